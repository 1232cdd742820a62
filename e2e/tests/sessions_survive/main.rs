//! Sessions survive SIGKILL: two hundred devices of two libraries publish to each other while the broker dies twenty times.
//!
//! All are persistent, subscribe once, and never begin anew. Meters ([`meter`], rumqttc) publish with QoS 1 to each other
//! and with QoS 2 to the [`gateway`]s (Paho), which publish with QoS 1 to meters. Only gateways take QoS 2: rumqttc forgets at
//! a lost connection which PUBREL is to come, and closes each connection on which it comes.

mod book;
mod gateway;
mod meter;

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use mqtt_e2e::{Broker, Manifests, Store, wait_until};
use serde_json::json;

use self::{book::Book, gateway::Gateway, meter::Meters};

mqtt_e2e::on_every_store! {
    nothing_acknowledged_is_lost_and_qos_2_comes_once_though_the_broker_is_killed_twenty_times,
}

const METERS: usize = 180;
const GATEWAYS: usize = 20;
const KILLS: u32 = 20;
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
    // No message may go for want of room: a device is away while the others are back already.
    let manifests = Manifests::new()
        .instance(json!({"session": {"offlineMessages": 100_000, "onlineMessages": 100_000}}))
        .user(USER, PASSWORD)
        .grant("fleet-all", USER, &[("pubsub", "to/#")]);
    let mut broker = Broker::start_on(store, &manifests)?;
    let book = Arc::new(Book::default());
    let meters = Meters::start(broker.mqtt, &book)?;
    let mut gateways =
        (0..GATEWAYS).map(|number| Gateway::start(&broker, number)).collect::<Result<Vec<_>>>()?;
    meters.publish(true);
    let seed = seed_of_the_kills();
    eprintln!("seed {seed}");
    let mut chance = fastrand::Rng::with_seed(seed);
    for kill in 1..=KILLS {
        let wanted = book.acked() + chance.usize(BETWEEN);
        wait_until(&format!("{wanted} acknowledgements before kill {kill}"), LIMIT, || {
            gateways.iter_mut().try_for_each(|gateway| gateway.turn(&book, true))?;
            ensure!(!meters.has_ended(), "the meters have ended");
            Ok((book.acked() >= wanted).then_some(()))
        })?;
        broker.kill9()?;
        broker.restart()?;
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
    eprintln!("{} messages acknowledged and delivered over {KILLS} kills", book.acked());
    Ok(())
}

/// Another one each time, printed, and taken from `SEED` to play a run's kills again.
fn seed_of_the_kills() -> u64 {
    std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..))
}
