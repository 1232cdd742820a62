//! A fleet of fifty devices at a pace: everything acknowledged is stored, once and in order, through kills of the broker.

use std::time::Duration;

use anyhow::{Result, ensure};
use mqtt_e2e::{
    Broker, Fleet, FleetOptions, Manifests,
    fleet::{Entry, Repeats},
};

const LIMIT: Duration = Duration::from_secs(30);

fn manifests() -> Manifests {
    Manifests::new()
        .parent("readings")
        .ordered_parent("orderMsg2mq-readings")
        .user("fleet", "fleet-secret")
        .grant("fleet-all", "fleet", &[("pub", "#")])
}

fn stored(broker: &Broker, options: &FleetOptions) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for parent in &options.parents {
        for record in broker.records(parent)? {
            entries.push(Entry::of(&record)?);
        }
    }
    Ok(entries)
}

#[test]
fn a_fleets_messages_are_each_stored_once_where_nothing_fails() -> Result<()> {
    let broker = Broker::start(&manifests())?;
    let options = FleetOptions::default();
    let fleet = Fleet::start(broker.mqtt, options.clone())?;
    fleet.wait_for_pace(LIMIT)?;
    let ledger = fleet.stop(LIMIT)?;
    let connects = (ledger.connects, ledger.resent());
    ensure!(connects == (options.devices as u64, 0), "connects and repeats: {connects:?}");
    let entries = stored(&broker, &options)?;
    ensure!(entries.len() == ledger.published(), "{} records of {}", entries.len(), ledger.published());
    ledger.ensure_kept(&entries, Repeats::Never)
}

#[test]
fn a_fleets_acknowledged_messages_are_stored_in_order_though_the_broker_is_killed_three_times() -> Result<()>
{
    const KILLS: u64 = 3;
    let mut broker = Broker::start(&manifests())?;
    let options = FleetOptions::default();
    let fleet = Fleet::start(broker.mqtt, options.clone())?;
    fleet.wait_for_pace(LIMIT)?;
    for _ in 0..KILLS {
        broker.kill9()?;
        broker.restart()?;
        fleet.wait_for_acks(3000, LIMIT)?;
    }
    let ledger = fleet.stop(LIMIT)?;
    let everyone = options.devices as u64 * (KILLS + 1);
    ensure!(ledger.connects >= everyone, "{} connections of {everyone}", ledger.connects);
    ensure!(ledger.resent() > 0, "no kill came between a message and its ack");
    eprintln!(
        "{} numbers, {} repeated, {} connections, acks a second {:?}",
        ledger.published(),
        ledger.resent(),
        ledger.connects,
        ledger.acks_per_second()
    );
    ledger.ensure_kept(&stored(&broker, &options)?, Repeats::OfQos1)
}
