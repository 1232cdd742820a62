//! Once all is in force, the operator rests.

use std::{thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use mqtt_e2e::{kubernetes::Request, wait_until};
use serde_json::json;

use crate::meters::Meters;

/// How long nothing is written: in that time there is a resync, of which there is one every 45 s here.
const REST: Duration = Duration::from_secs(55);
/// What is still on its way when all is ready may take so long.
const SETTLED: Duration = Duration::from_secs(150);

#[test]
fn once_all_is_in_force_nothing_is_written_but_the_lease() -> Result<()> {
    rests(&Meters::start(json!({}))?)
}

/// Waits until the operator writes nothing here for a while but the Lease.
pub(crate) fn rests(meters: &Meters) -> Result<()> {
    let (cluster, user) = (meters.namespace.cluster(), meters.operator.user());
    let writes = || -> Result<(Vec<Request>, usize)> {
        let all = cluster.writes()?.into_iter().filter(|write| write.user == user);
        let (leases, others): (Vec<_>, Vec<_>) = all.partition(|write| write.resource == "leases");
        let here = others.into_iter().filter(|write| write.namespace == meters.namespace.name());
        Ok((here.collect(), leases.len()))
    };
    let (first, _) = writes()?;
    ensure!(!first.is_empty(), "the API server notes nothing");
    let (before, renewed) = wait_until("rest", SETTLED, || {
        let (before, renewed) = writes()?;
        sleep(REST);
        let (after, renewed_then) = writes()?;
        let new = after.get(before.len()..).unwrap_or_default();
        println!("in {REST:?} {} writes: {new:?}", new.len());
        Ok(new.is_empty().then_some((after.len(), renewed_then - renewed)))
    })?;
    ensure!(renewed > 0, "the Lease is not renewed either");
    println!("{before} writes until all was in force, then only the Lease, {renewed} times in {REST:?}");
    Ok(())
}
