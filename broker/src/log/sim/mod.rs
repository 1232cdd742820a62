//! The log of a simulation: a store that several nodes share, in memory, on the runtime's own clock.
//!
//! It produces whatever [`Log`] allows: it takes its time, repeats records as 1 2 3 2 3, tells `Broken` of records
//! that show or never show, refuses what was made too far off its clock, leaves gaps, compacts what it may, loses
//! what retention takes, gives old ends. What differs from day to day is its [`Weather`].
//!
//! [`cluster::Cluster`] is the store itself; a [`SimLog`] is what one process run has of it.

pub(crate) mod cluster;
mod lane;
pub(crate) mod still;
mod tests;

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use self::{
    cluster::{Cluster, Look, size},
    lane::Lane,
};
use super::{
    Bounds, BoxFuture, Completion, Health, Log, LogError, Offset, Outcome, ReadBatch, ReadLimit, Record,
    Topic, TopicSettings, room::Room,
};
use crate::outside::Outside;

/// How long a question may go unanswered.
const PATIENCE: Duration = Duration::from_secs(1);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How a store behaves towards one process run, until it changes.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    /// Milliseconds from an append to its outcome.
    pub(crate) latency: Range<u64>,
    /// How often a producer must begin anew with what it has no answer for.
    pub(crate) repeats: f64,
    /// How often it gives up, and can't say what became of what it had.
    pub(crate) breaks: f64,
    /// Ends are old ones.
    pub(crate) stale: bool,
}

impl Default for Weather {
    fn default() -> Self {
        Weather { latency: 0..4, repeats: 0.01, breaks: 0.0, stale: false }
    }
}

pub(crate) struct SimLog {
    me: Weak<SimLog>,
    cluster: Arc<Cluster>,
    outside: Outside,
    random: Mutex<fastrand::Rng>,
    weather: Mutex<Weather>,
    room: Room,
    lanes: Mutex<BTreeMap<(u32, u32), Arc<Lane>>>,
    known_ends: Mutex<BTreeMap<(u32, u32), Offset>>,
    away: AtomicBool,
    back: Notify,
    /// One for each who asked: a channel of its own wakes those who wait by chance, not in turn.
    health: Mutex<(Health, Vec<watch::Sender<Health>>)>,
    closed: AtomicBool,
}

impl SimLog {
    /// `records`: how many may wait before there is no room.
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        outside: Outside,
        random: fastrand::Rng,
        records: usize,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| SimLog {
            me: me.clone(),
            cluster,
            outside,
            random: Mutex::new(random),
            weather: Mutex::default(),
            room: Room::new(64 << 20, records),
            lanes: Mutex::default(),
            known_ends: Mutex::default(),
            away: AtomicBool::new(false),
            back: Notify::new(),
            health: Mutex::new((Health::Working, Vec::new())),
            closed: AtomicBool::new(false),
        })
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        *self.weather.lock() = weather;
    }

    /// Cuts this process run off from the store, or lets it back. It takes a while to notice.
    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
        if !away {
            self.back.notify_waiters();
            self.tell_health(Health::Working);
        } else if let Some(log) = self.me.upgrade() {
            let noticed = Duration::from_millis(self.random.lock().u64(0..3000));
            tokio::spawn(async move {
                sleep(noticed).await;
                if log.away.load(Ordering::Relaxed) {
                    log.tell_health(Health::Away("the store does not answer".to_owned()));
                }
            });
        }
    }

    /// The process died: what it had on its way may show for some minutes, or never.
    pub(crate) fn crash(&self) {
        self.closed.store(true, Ordering::Relaxed);
        for lane in self.lanes.lock().values() {
            let mut left = lane.give_up();
            let mut random = self.random.lock();
            left.truncate(random.usize(0..=left.len()));
            let late = match random.u32(0..20) {
                0..14 => random.u64(0..50),
                14..19 => random.u64(0..30_000),
                _ => random.u64(0..280_000),
            };
            let (cluster, lane) = (self.cluster.clone(), lane.clone());
            tokio::spawn(async move {
                sleep(Duration::from_millis(late)).await;
                // In order and without a gap, as ever.
                let _ = left.iter().try_for_each(|record| {
                    cluster.land(&lane.topic, lane.partition, record).map(drop).ok_or(())
                });
            });
        }
    }

    /// A part of what an append takes, as the weather has it.
    fn latency(&self) -> Duration {
        let range = self.weather.lock().latency.clone();
        let millis = if range.is_empty() { range.start } else { self.random.lock().u64(range) };
        Duration::from_millis(millis / 2)
    }

    fn chance(&self, probability: f64) -> bool {
        self.random.lock().f64() < probability
    }

    async fn reached(&self) {
        while self.away.load(Ordering::Relaxed) {
            self.back.notified().await;
        }
    }

    fn tell_health(&self, health: Health) {
        let mut told = self.health.lock();
        told.1.retain(|who| !who.is_closed());
        for who in &told.1 {
            who.send_replace(health.clone());
        }
        told.0 = health;
    }

    async fn ask(&self) -> Result<(), LogError> {
        sleep(self.latency()).await;
        let reached = timeout(PATIENCE, self.reached()).await;
        reached.map_err(|_| LogError::Store("the store does not answer".to_owned()))
    }

    fn learn_end(&self, topic: &Topic, partition: u32, end: Offset) {
        let mut ends = self.known_ends.lock();
        let known = ends.entry((topic.id(), partition)).or_default();
        *known = end.max(*known);
    }
}

impl Log for SimLog {
    fn ensure_topic<'a>(
        &'a self,
        name: &'a str,
        settings: TopicSettings,
    ) -> BoxFuture<'a, Result<Topic, LogError>> {
        Box::pin(async move {
            self.ask().await?;
            Ok(self.cluster.ensure(name, settings))
        })
    }

    fn topic(&self, name: &str) -> Option<Topic> {
        self.cluster.topic(name)
    }

    fn append(&self, topic: &Topic, partition: u32, record: Record, done: Completion) {
        if self.closed.load(Ordering::Relaxed) || partition >= topic.partitions() {
            return done.sink.appended(done.token, Outcome::Refused);
        }
        self.room.take(size(&record));
        let mut lanes = self.lanes.lock();
        let lane = lanes.entry((topic.id(), partition)).or_insert_with(|| {
            let lane = Arc::new(Lane::new(topic, partition));
            if let Some(log) = self.me.upgrade() {
                self.outside.spawn(lane::run(log, lane.clone()));
            }
            lane
        });
        lane.push(record, done);
    }

    fn room(&self) -> bool {
        self.room.has_some()
    }

    fn wait_for_room(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.room.wait())
    }

    fn read<'a>(
        &'a self,
        topic: &'a Topic,
        partition: u32,
        from: Offset,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<ReadBatch, LogError>> {
        Box::pin(async move {
            let deadline = Instant::now() + limit.wait;
            loop {
                self.ask().await?;
                let changed = match self.cluster.look(topic, partition, from, limit)? {
                    Look::Found(batch) => {
                        self.learn_end(topic, partition, batch.next);
                        return Ok(batch);
                    }
                    Look::Nothing(changed) => changed,
                };
                let late =
                    Instant::now() >= deadline || timeout_at(deadline, changed.notified()).await.is_err();
                if late {
                    return Ok(ReadBatch { records: Vec::new(), next: from });
                }
            }
        })
    }

    fn bounds<'a>(&'a self, topic: &'a Topic, partition: u32) -> BoxFuture<'a, Result<Bounds, LogError>> {
        Box::pin(async move {
            self.ask().await?;
            let (start, end) = self.cluster.bounds(topic, partition)?;
            let behind = if self.weather.lock().stale { self.random.lock().u64(0..20) } else { 0 };
            Ok(Bounds { start, end: end.saturating_sub(behind).max(start) })
        })
    }

    fn known_end(&self, topic: &Topic, partition: u32) -> Offset {
        self.known_ends.lock().get(&(topic.id(), partition)).copied().unwrap_or(0)
    }

    fn health(&self) -> watch::Receiver<Health> {
        let mut told = self.health.lock();
        let (sender, receiver) = watch::channel(told.0.clone());
        told.1.push(sender);
        receiver
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        self.room.figures().to_vec()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.closed.store(true, Ordering::Relaxed);
            let until = Instant::now() + CLOSE_TIMEOUT;
            while self.room.records() > 0 && Instant::now() < until {
                sleep_until(Instant::now() + Duration::from_millis(1)).await;
            }
            let lanes: Vec<_> = self.lanes.lock().values().cloned().collect();
            lanes.iter().for_each(|lane| lane.tell_all(self, Outcome::Broken));
        })
    }
}
