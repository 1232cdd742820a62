//! How Kafka fares: owns what its clients report, and what is made of it: health, figures, and lines in the log.
//!
//! Kafka counts as away when no broker of it is connected, or when something waits and nothing at all has been
//! confirmed for [`SILENCE`]. A single partition that confirms nothing is told in the log and makes nobody wait
//! but those who publish to it.

use std::{
    collections::HashMap,
    sync::{
        Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
};
use serde::Deserialize;
use tokio::sync::watch;

use super::Shared;
use crate::log::Health;

/// How long something may wait before it is said.
const SILENCE: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(500);
const SAY_EVERY: Duration = Duration::from_secs(60);
const TIDY_EVERY: Duration = Duration::from_secs(5);

pub(super) struct Vitals {
    started: Instant,
    /// Milliseconds since `started`.
    confirmed: AtomicU64,
    last_error: Mutex<Option<String>>,
    statistics: Mutex<Option<Statistics>>,
    pub(super) records_refused: AtomicU64,
    pub(super) producers_started: AtomicU64,
}

/// What is used of librdkafka's statistics (its STATISTICS.md).
#[derive(Clone, Debug, Default, Deserialize)]
struct Statistics {
    brokers: HashMap<String, Broker>,
    #[serde(default)]
    tx: u64,
    #[serde(default)]
    tx_bytes: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Broker {
    #[serde(default)]
    nodeid: i64,
    #[serde(default)]
    state: String,
    #[serde(default)]
    txerrs: u64,
    #[serde(default)]
    txretries: u64,
    #[serde(default)]
    req_timeouts: u64,
    #[serde(default)]
    rtt: Window,
}

impl Broker {
    fn is_up(&self) -> bool {
        matches!(self.state.as_str(), "UP" | "UPDATE")
    }
}

/// Microseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Window {
    #[serde(default)]
    p50: u64,
    #[serde(default)]
    p99: u64,
}

/// The partition that has waited longest.
pub(super) struct Stalled {
    pub(super) topic: String,
    pub(super) partition: u32,
    pub(super) since: Instant,
}

/// What there is to say now.
#[derive(Default)]
struct Said {
    away: Option<Spell>,
    stalled: Option<Spell>,
}

/// Something that goes on, and is said at its begin and every minute, in whatever words.
pub(super) struct Spell {
    pub(super) begun: Instant,
    said: Option<Instant>,
}

impl Default for Spell {
    fn default() -> Spell {
        Spell { begun: Instant::now(), said: None }
    }
}

impl Spell {
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.said.is_none_or(|at| at.elapsed() >= SAY_EVERY);
        if due {
            self.said = Some(Instant::now());
        }
        due
    }

    /// Nothing at its begin.
    fn age(&self) -> String {
        match self.begun.elapsed() {
            age if age < SAY_EVERY => String::new(),
            age => format!("since {} s: ", age.as_secs()),
        }
    }
}

impl Vitals {
    pub(super) fn new() -> Vitals {
        Vitals {
            started: Instant::now(),
            confirmed: AtomicU64::new(0),
            last_error: Mutex::default(),
            statistics: Mutex::default(),
            records_refused: AtomicU64::new(0),
            producers_started: AtomicU64::new(0),
        }
    }

    pub(super) fn confirmed(&self, at: Instant) {
        let since = u64::try_from((at - self.started).as_millis()).unwrap_or(u64::MAX);
        self.confirmed.store(since, Ordering::Relaxed);
    }

    fn last_confirmed(&self) -> Instant {
        self.started + Duration::from_millis(self.confirmed.load(Ordering::Relaxed))
    }

    /// What a client of librdkafka complained about.
    pub(super) fn take_error(&self, error: &KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        tracing::debug!("Kafka: {reason}");
        let mut last = self.last_error.lock();
        // That all are down says less than why one is.
        if last.is_none() || error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *last = Some(reason.to_owned());
        }
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    pub(super) fn take_statistics(&self, json: &[u8]) {
        match serde_json::from_slice(json) {
            Ok(statistics) => *self.statistics.lock() = Some(statistics),
            Err(error) => tracing::warn!("Kafka: librdkafka's statistics can't be read: {error}"),
        }
    }

    /// How many brokers are connected; absent: not known yet.
    fn brokers_up(&self) -> Option<u64> {
        let statistics = self.statistics.lock();
        statistics.as_ref().map(|all| all.brokers.values().filter(|broker| broker.is_up()).count() as u64)
    }

    pub(super) fn figures(&self) -> Vec<(&'static str, u64)> {
        let statistics = self.statistics.lock().clone().unwrap_or_default();
        // The entries of the bootstrap list stand for nodes that have entries of their own.
        let nodes = || statistics.brokers.values().filter(|broker| broker.nodeid >= 0);
        let most = |of: fn(&Broker) -> u64| nodes().map(of).max().unwrap_or(0);
        vec![
            ("kafka_brokers_known", nodes().count() as u64),
            ("kafka_brokers_up", nodes().filter(|broker| broker.is_up()).count() as u64),
            ("kafka_requests", statistics.tx),
            ("kafka_request_bytes", statistics.tx_bytes),
            ("kafka_request_errors", nodes().map(|broker| broker.txerrs).sum()),
            ("kafka_request_retries", nodes().map(|broker| broker.txretries).sum()),
            ("kafka_request_timeouts", nodes().map(|broker| broker.req_timeouts).sum()),
            ("kafka_round_trip_p50_us", most(|broker| broker.rtt.p50)),
            ("kafka_round_trip_p99_us", most(|broker| broker.rtt.p99)),
            ("kafka_records_refused", self.records_refused.load(Ordering::Relaxed)),
            ("kafka_producers_started", self.producers_started.load(Ordering::Relaxed)),
        ]
    }
}

/// Looks after the store until it is gone.
pub(super) async fn watch(shared: Weak<Shared>, health: watch::Sender<Health>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    let mut said = Said::default();
    let mut looks_without = 0;
    let mut tidied = Instant::now();
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        if tidied.elapsed() > TIDY_EVERY {
            tidied = Instant::now();
            let shared = shared.clone();
            // Closing a client may take its time.
            drop(tokio::task::spawn_blocking(move || shared.readers.tidy()));
        }
        let vitals = &shared.vitals;
        looks_without = if vitals.brokers_up() == Some(0) { looks_without + 1 } else { 0 };
        let stalled = shared.longest_waiting().filter(|stalled| stalled.since.elapsed() > SILENCE);
        // Reported twice without a connection: statistics come once a second.
        let cut_off = looks_without > 3;
        match cut_off || stalled.is_some() && vitals.last_confirmed().elapsed() > SILENCE {
            true => {
                let begun = said.away.get_or_insert_with(Spell::default);
                if begun.is_due() {
                    let why = why(&shared, stalled.as_ref()).await;
                    let line = format!(
                        "Kafka at {} is away: {why}; appends wait, and go on once it is back",
                        shared.access().servers()
                    );
                    tracing::error!("{}{line}", begun.age());
                    health.send_replace(Health::Away(line));
                }
            }
            false => {
                if let Some(spell) = said.away.take() {
                    health.send_replace(Health::Working);
                    tracing::info!(
                        "Kafka at {} is back after {} s",
                        shared.access().servers(),
                        spell.begun.elapsed().as_secs()
                    );
                }
            }
        }
        say_stalled(&shared, stalled.filter(|_| said.away.is_none()), &mut said.stalled).await;
    }
}

/// One partition waits while others don't.
async fn say_stalled(shared: &Shared, stalled: Option<Stalled>, said: &mut Option<Spell>) {
    let Some(stalled) = stalled else {
        *said = None;
        return;
    };
    if said.get_or_insert_with(Spell::default).is_due() {
        let waited = stalled.since.elapsed().as_secs();
        let why = why(shared, Some(&stalled)).await;
        let Stalled { topic, partition, .. } = stalled;
        tracing::warn!(
            "Kafka has confirmed nothing in topic {topic} partition {partition} for {waited} s: {why}"
        );
    }
}

/// The likely cause, in a few words.
async fn why(shared: &Shared, stalled: Option<&Stalled>) -> String {
    if let Some(stalled) = stalled
        && shared.vitals.brokers_up().is_some_and(|up| up > 0)
        && let Some(why) = shared.look_at(&stalled.topic, stalled.partition).await
    {
        return why;
    }
    shared.vitals.last_error().unwrap_or_else(|| "it does not answer".to_owned())
}

/// librdkafka's own lines: what matters of them is told in ours.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Debug | RDKafkaLogLevel::Info => tracing::trace!("librdkafka {facility}: {message}"),
        _ => tracing::debug!("librdkafka {facility}: {message}"),
    }
}
