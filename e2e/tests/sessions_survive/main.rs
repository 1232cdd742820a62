//! Sessions survive SIGKILL: two hundred devices of two libraries publish to each other while the broker dies twenty times, or one
//! node after the other of three.
//!
//! All are persistent, subscribe once, and never begin anew. Meters ([`meter`], rumqttc) publish with QoS 1 to each other
//! and with QoS 2 to the [`gateway`]s (Paho), which publish with QoS 1 to meters. Only gateways take QoS 2: rumqttc forgets at
//! a lost connection which PUBREL is to come, and closes each connection on which it comes.

mod book;
mod gateway;
mod meter;

use std::{net::SocketAddr, sync::Arc, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use mqtt_e2e::{Broker, Cluster, Manifests, Store, on_kafka, wait_until};
use serde_json::json;

use self::{book::Book, gateway::Gateway, meter::Meters};

mqtt_e2e::on_every_store! {
    nothing_acknowledged_is_lost_and_qos_2_comes_once_though_the_broker_is_killed_twenty_times,
}

const METERS: usize = 180;
const GATEWAYS: usize = 20;
const KILLS: u32 = 20;
const NODES: usize = 3;
/// On several nodes.
const FAULTS: u32 = 10;
const FROZEN: Duration = Duration::from_secs(6);
/// Acknowledgements between a restart and the next kill.
const BETWEEN: std::ops::Range<usize> = 300..1500;
/// Between two messages of one device.
const PACE: Duration = Duration::from_millis(200);
/// For acknowledgements to come again after a restart, and for all to be there after the end.
const LIMIT: Duration = Duration::from_secs(60);
const USER: &str = "fleet";
const PASSWORD: &str = "fleet-secret";

fn meter(number: usize) -> String {
    format!("meter-{number}")
}

fn gateway(number: usize) -> String {
    format!("gateway-{number}")
}

/// What a device subscribes to.
fn topic_of(device: &str) -> String {
    format!("to/{device}")
}

fn nothing_acknowledged_is_lost_and_qos_2_comes_once_though_the_broker_is_killed_twenty_times(
    store: &Store,
) -> Result<()> {
    let mut broker = Broker::start_on(store, &manifests())?;
    let address = broker.mqtt;
    play(address, KILLS, |_| {
        broker.kill9()?;
        broker.restart()
    })
}

/// One node after the other dies, or is frozen for longer than the others wait for it, or ends in order.
#[test]
fn nothing_acknowledged_is_lost_and_qos_2_comes_once_though_nodes_of_three_die_freeze_and_end() -> Result<()>
{
    on_kafka(|store| {
        let mut cluster = Cluster::start(store, &manifests(), NODES)?;
        let address = cluster.front.address;
        play(address, FAULTS, |chance| {
            let node = cluster.node(chance.usize(0..NODES))?;
            match chance.u32(0..4) {
                0 => {
                    node.freeze(true)?;
                    sleep(FROZEN);
                    node.freeze(false)
                }
                1 => {
                    node.stop()?;
                    node.restart()
                }
                _ => {
                    node.kill9()?;
                    node.restart()
                }
            }
        })
    })
}

/// No message may go for want of room: a device is away while the others are back already.
fn manifests() -> Manifests {
    Manifests::new()
        .instance(json!({"session": {"offlineMessages": 100_000, "onlineMessages": 100_000}}))
        .user(USER, PASSWORD)
        .grant("fleet-all", USER, &[("pubsub", "to/#")])
}

/// Lets all devices publish to each other through this address, with so many faults; then holds the promises against what came.
fn play(
    address: SocketAddr,
    faults: u32,
    mut strike: impl FnMut(&mut fastrand::Rng) -> Result<()>,
) -> Result<()> {
    let book = Arc::new(Book::default());
    let meters = Meters::start(address, &book)?;
    let mut gateways =
        (0..GATEWAYS).map(|number| Gateway::start(address, number)).collect::<Result<Vec<_>>>()?;
    meters.publish(true);
    let seed = seed_of_the_faults();
    eprintln!("seed {seed}");
    let mut chance = fastrand::Rng::with_seed(seed);
    for fault in 1..=faults {
        let wanted = book.acked() + chance.usize(BETWEEN);
        wait_until(&format!("{wanted} acknowledgements before fault {fault}"), LIMIT, || {
            gateways.iter_mut().try_for_each(|gateway| gateway.turn(&book, true))?;
            ensure!(!meters.has_ended(), "the meters have ended");
            Ok((book.acked() >= wanted).then_some(()))
        })?;
        strike(&mut chance)?;
    }
    meters.publish(false);
    let waited = wait_until("all that was published to be acknowledged and delivered", LIMIT, || {
        gateways.iter_mut().try_for_each(|gateway| gateway.turn(&book, false))?;
        Ok((book.open() == 0 && book.missing().is_empty()).then_some(()))
    });
    let wrong = book.wrong();
    ensure!(wrong.is_empty(), "{} faults, such as {:?}", wrong.len(), wrong.first());
    let missing = book.missing();
    ensure!(
        missing.is_empty(),
        "{} acknowledged messages are lost, such as {:?}",
        missing.len(),
        missing.first()
    );
    waited?;
    let breaches = book.breaches();
    ensure!(breaches.is_empty(), "{} broken promises, such as {:?}", breaches.len(), breaches.first());
    eprintln!("{} messages acknowledged and delivered over {faults} faults", book.acked());
    Ok(())
}

/// Another one each time, printed, and taken from `SEED` to play a run's faults again.
fn seed_of_the_faults() -> u64 {
    std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..))
}
