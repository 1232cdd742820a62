//! Sessions survive SIGKILL: two hundred devices of two libraries publish to each other while the broker dies twenty times, or
//! thirty things befall the three nodes of a cluster and its Kafka, or these become nodes of another version.
//!
//! All are persistent, subscribe once, and never begin anew. Meters ([`meter`], rumqttc) publish with QoS 1 to each other
//! and with QoS 2 to the [`gateway`]s (Paho), which publish with QoS 1 to meters. Only gateways take QoS 2: rumqttc forgets at
//! a lost connection which PUBREL is to come, and closes each connection on which it comes. The [`audience`] only listens: clean
//! devices, and a group that shares everything.

mod audience;
mod book;
mod crew;
mod gateway;
mod meter;

use std::{
    net::SocketAddr,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{
    Broker, Cluster, Manifests, Store,
    broker::{before, binary},
    on_kafka, wait_until,
};
use serde_json::json;

use self::{book::Book, gateway::Gateway, meter::Meters};

mqtt_e2e::on_every_store! {
    nothing_acknowledged_is_lost_and_qos_2_comes_once_though_the_broker_is_killed_twenty_times,
}

const METERS: usize = 180;
const GATEWAYS: usize = 20;
/// Clean devices.
const WATCHERS: usize = 200;
const MEMBERS: usize = 10;
const KILLS: u32 = 20;
const NODES: usize = 3;
/// On several nodes.
const FAULTS: u32 = 30;
/// How long a node is frozen, or cut off from Kafka.
const FROZEN: Duration = Duration::from_secs(10);
/// How long two nodes can't reach each other.
const APART: Duration = Duration::from_secs(5);
/// After so many faults all comes to rest, and the promises are held against what came.
const ROUND: u32 = 10;
/// Acknowledgements between a restart and the next kill.
const BETWEEN: std::ops::Range<usize> = 300..1500;
/// How soon after a fault all devices have a connection and an answer.
const BACK: Duration = Duration::from_secs(10);
/// Between two messages of one device.
const PACE: Duration = Duration::from_millis(800);
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
    play(
        address,
        |fault| fault >= KILLS,
        |_| {
            broker.kill9()?;
            broker.restart()?;
            Ok("the broker died")
        },
    )
}

/// A node dies, ends in order, or is frozen or cut off from Kafka for longer than the others wait for it; two can't reach each
/// other; or Kafka restarts.
#[test]
fn nothing_acknowledged_is_lost_and_qos_2_comes_once_whatever_befalls_three_nodes() -> Result<()> {
    on_kafka(|store| {
        let kafka = store.cluster()?;
        let mut cluster = Cluster::start(store, &manifests(), NODES)?;
        let address = cluster.front.address;
        let soaked = soak()?.map(|minutes| Instant::now() + minutes);
        let is_last = |fault| fault >= FAULTS && soaked.is_none_or(|end| Instant::now() > end);
        play(address, is_last, |chance| {
            let number = chance.usize(0..NODES);
            let kind = chance.u32(0..14);
            if kind > 11 {
                let other = (number + chance.usize(1..NODES)) % NODES;
                cluster.cut(number, other, true);
                sleep(APART);
                cluster.cut(number, other, false);
                return Ok("two nodes could not reach each other");
            }
            let node = cluster.node(number)?;
            Ok(match kind {
                0..=1 => {
                    node.freeze(true)?;
                    sleep(FROZEN);
                    node.freeze(false)?;
                    "a node was frozen"
                }
                2..=3 => {
                    kafka.cut(number, true)?;
                    sleep(FROZEN);
                    kafka.cut(number, false)?;
                    "a node was cut off from Kafka"
                }
                4..=5 => {
                    node.stop()?;
                    node.restart()?;
                    "a node ended in order"
                }
                6 => {
                    kafka.stop(1)?;
                    kafka.start_node(1)?;
                    kafka.wait_until_up()?;
                    "Kafka restarted"
                }
                _ => {
                    node.kill9()?;
                    node.restart()?;
                    "a node died"
                }
            })
        })?;
        wait_until("all nodes to know the same sessions", LIMIT, || {
            let known = cluster.nodes.iter().map(|node| node.counter("sessions_logged"));
            let known = known.collect::<Result<Vec<_>>>()?;
            Ok(known.windows(2).all(|two| two.first() == two.last()).then_some(()))
        })
    })
}

/// The nodes of a cluster become those of this version one after the other, and one goes back for a while.
#[test]
fn nothing_acknowledged_is_lost_and_qos_2_comes_once_while_nodes_change_their_version() -> Result<()> {
    on_kafka(|store| {
        let [old, new] = [before()?, binary()?];
        let mut cluster = Cluster::start_of(&old, store, &manifests(), NODES)?;
        let address = cluster.front.address;
        let changes = [(0, &new), (1, &new), (1, &old), (1, &new), (2, &new)];
        let mut next = changes.iter();
        let all = u32::try_from(changes.len())?;
        play(
            address,
            |change| change >= all,
            |chance| {
                let (number, version) = next.next().context("no change is left")?;
                let node = cluster.node(*number)?;
                let ends_in_order = chance.bool();
                if ends_in_order {
                    node.stop()?;
                } else {
                    node.kill9()?;
                }
                node.becomes(version);
                node.restart()?;
                Ok(if ends_in_order {
                    "a node ended in order and changed its version"
                } else {
                    "a node died and changed its version"
                })
            },
        )
    })
}

/// No message may go for want of room: a device is away while the others are back already.
fn manifests() -> Manifests {
    Manifests::new()
        .instance(json!({"session": {"offlineMessages": 100_000, "onlineMessages": 100_000}}))
        .user(USER, PASSWORD)
        .grant("fleet-all", USER, &[("pubsub", "to/#")])
}

/// How long faults follow each other at least: `make soak` says it in minutes.
fn soak() -> Result<Option<Duration>> {
    let Ok(minutes) = std::env::var("SOAK_MINUTES") else { return Ok(None) };
    let minutes: u64 = minutes.parse().context("SOAK_MINUTES is no number")?;
    Ok(Some(Duration::from_secs(60 * minutes)))
}

/// Lets all devices publish to each other through this address, with one fault after the other; holds the promises against what
/// came.
fn play(
    address: SocketAddr,
    is_last: impl Fn(u32) -> bool,
    mut strike: impl FnMut(&mut fastrand::Rng) -> Result<&'static str>,
) -> Result<()> {
    let book = Arc::new(Book::default());
    let meters = Meters::start(address, &book)?;
    let _audience = audience::start(address, &book)?;
    let mut gateways =
        (0..GATEWAYS).map(|number| Gateway::start(address, number, &book)).collect::<Result<Vec<_>>>()?;
    let seed = seed_of_the_faults();
    eprintln!("seed {seed}");
    let mut chance = fastrand::Rng::with_seed(seed);
    for fault in 1.. {
        meters.publish(true);
        let wanted = book.acked() + chance.usize(BETWEEN);
        wait_until(&format!("{wanted} acknowledgements before fault {fault}"), LIMIT, || {
            gateways.iter_mut().try_for_each(|gateway| gateway.turn(&book, true))?;
            ensure!(!meters.has_ended(), "the meters have ended");
            Ok((book.acked() >= wanted).then_some(()))
        })?;
        let what = strike(&mut chance)?;
        let over = Instant::now();
        book.fault_is_over();
        wait_until(&format!("all devices to be served after fault {fault}: {what}"), BACK, || {
            gateways.iter_mut().try_for_each(|gateway| gateway.turn(&book, true))?;
            let publishers = METERS + GATEWAYS;
            Ok(book.are_back(publishers + WATCHERS + MEMBERS, publishers).then_some(()))
        })?;
        eprintln!("{fault}: {what}, all were served after {:.1} s", over.elapsed().as_secs_f64());
        let ends = is_last(fault);
        if fault % ROUND == 0 || ends {
            meters.publish(false);
            rest(&book, &mut gateways)?;
        }
        if ends {
            eprintln!("{} messages acknowledged and delivered over {fault} faults", book.acked());
            break;
        }
    }
    Ok(())
}

/// Nobody publishes: in the end everything must be where it was promised.
fn rest(book: &Book, gateways: &mut [Gateway]) -> Result<()> {
    let waited = wait_until("all that was published to be acknowledged and delivered", LIMIT, || {
        gateways.iter_mut().try_for_each(|gateway| gateway.turn(book, false))?;
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
    Ok(())
}

/// Another one each time, printed, and taken from `SEED` to play a run's faults again.
fn seed_of_the_faults() -> u64 {
    std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..))
}
