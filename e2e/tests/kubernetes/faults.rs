//! What happens to the operator and the API server: whatever it is, one writes, nothing gets stuck, and devices notice
//! nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{
    kubernetes::{Part, Request},
    wait_until,
};
use rustix::process::Signal;
use serde_json::json;

use crate::{
    PODS,
    meters::{Meters, grant, meter},
};

/// A leader that says nothing loses its Lease, and the other one has caught up.
const TAKE_OVER: Duration = Duration::from_secs(60);

#[test]
fn whatever_happens_to_operators_and_the_api_server_one_writes_and_nothing_is_stuck() -> Result<()> {
    let meters = Meters::empty_alone()?;
    let Meters { namespace, operator, .. } = &meters;
    let cluster = namespace.cluster();
    operator.wait_until_up()?;

    // Killed while it works: as soon as it has written something, and again.
    let written = || -> Result<usize> {
        let here = |write: &Request| write.namespace == namespace.name();
        Ok(cluster.writes()?.into_iter().filter(here).filter(|write| write.user == operator.user()).count())
    };
    meters.apply(json!({}), &[])?;
    for _ in 0..2 {
        let before = written()?;
        wait_until("a write of the operator", TAKE_OVER, || Ok((written()? > before).then_some(())))?;
        cluster.signal_pod(operator.namespace(), &operator.leader()?, Signal::KILL)?;
    }
    meters.wait_until_all_are_ready()?;
    let mut device = meters.connect(&meter(1))?;

    // The API server is gone for a while.
    cluster.kill9(Part::ApiServer)?;
    cluster.wait_until_up()?;
    namespace.apply(&grant("after-the-api-server", "fleet", &[("sub", "alarms/a")]))?;
    namespace.wait("condition=Ready", "topicgrant/after-the-api-server", TAKE_OVER)?;
    ensure!(device.subscribe("alarms/a", 1)? == 1, "ready, but not in force");

    // The leader freezes, and wakes up when another one leads.
    operator.wait_until_up()?;
    let frozen = operator.leader()?;
    let noted = cluster.writes()?.len();
    cluster.signal_pod(operator.namespace(), &frozen, Signal::STOP)?;
    let start = Instant::now();
    namespace.apply(&grant("after-the-leader", "fleet", &[("sub", "alarms/b")]))?;
    namespace.wait("condition=Ready", "topicgrant/after-the-leader", TAKE_OVER)?;
    ensure!(device.subscribe("alarms/b", 1)? == 1, "ready, but not in force");
    let leader = operator.leader()?;
    ensure!(leader != frozen, "{frozen} is frozen and leads");
    println!("a grant is in force {:?} after the leader froze", start.elapsed());
    cluster.signal_pod(operator.namespace(), &frozen, Signal::CONT)?;
    namespace.apply(&grant("after-the-thaw", "fleet", &[("sub", "alarms/c")]))?;
    namespace.wait("condition=Ready", "topicgrant/after-the-thaw", TAKE_OVER)?;
    operator.wait_until_up()?;

    // From the first write of the new leader on there is none of the one that froze.
    let since = cluster.writes()?.split_off(noted);
    let by = |write: &Request, pod: &str| write.pod.as_deref() == Some(pod) && write.resource != "leases";
    let taken_over =
        since.iter().find(|write| by(write, &leader)).context("the new leader writes nothing")?;
    let late = since.iter().find(|write| by(write, &frozen) && write.is_done() && write.at > taken_over.at);
    ensure!(late.is_none(), "{frozen} writes after {leader} has begun to: {late:?}");
    meters.namespace.wait_all("condition=Ready", "mqtt", PODS)?;
    ensure!(device.ping()?.is_empty(), "the device was disturbed");
    Ok(())
}
