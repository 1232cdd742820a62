//! The log in a Kafka cluster.
//!
//! Promises beyond [`Log`]'s: an append is `Durable` once all in-sync replicas have the record. Records repeat when a
//! producer had to be replaced or Kafka itself repeated them. `Refused` is told of a record that Kafka will never
//! take (too large, too old, or too much for a topic that does not work), `Broken` only at a close. While Kafka is away
//! appends wait, [`Health`] says so, and everything goes on by itself later.
//!
//! | part | owns |
//! |---|---|
//! | [`lane`] | the records of a partition that have no outcome yet, in their order |
//! | [`producer`] | one librdkafka producer, from its start to its first failure |
//! | [`writer`] | threads that serve lanes with producers, one generation after the other |
//! | [`reader`] | consumers and cursors |
//! | [`clients`] | the settings of clients |
//! | [`vitals`] | what Kafka's state is, and who is told |
//!
//! Topics are made, verified and altered by the crate `mqtt-kafka`, which the operator does it by, too.

mod clients;
mod lane;
mod producer;
mod reader;
#[cfg(test)]
mod tests;
mod vitals;
mod writer;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
pub(crate) use mqtt_kafka::Access;
use mqtt_kafka::{Admin, Found};
use parking_lot::{Mutex, RwLock};
use rdkafka::consumer::Consumer;
use tokio::{runtime::Handle, sync::watch};

use self::{
    lane::Lane,
    reader::Readers,
    vitals::{Spell, Stalled, Vitals},
    writer::Writer,
};
use super::{
    Bounds, BoxFuture, Cleanup, Completion, Health, Log, LogError, Offset, Outcome, ReadBatch, ReadLimit,
    Record, Topic, TopicSettings, room::Room,
};

/// Bytes and records that may wait before [`Log::room`] says no.
const ROOM_BYTES: usize = 64 << 20;
const ROOM_RECORDS: usize = 200_000;
/// What is older is refused by Kafka where topics keep the latest record of a key; a little less than its setting.
const OLDEST: Duration = Duration::from_secs(290);
/// How long a close waits for what is on its way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct KafkaLog {
    shared: Arc<Shared>,
    writer: Arc<Writer>,
    health: watch::Receiver<Health>,
}

/// What the parts have in common.
struct Shared {
    runtime: Handle,
    access: ArcSwap<Access>,
    vitals: Arc<Vitals>,
    readers: Readers,
    admin: Mutex<Option<(Arc<Access>, Admin)>>,
    topics: RwLock<Topics>,
    room: Arc<Room>,
    main: RwLock<Weak<Writer>>,
    /// Set by [`Writer::stop`].
    stopped: AtomicBool,
}

#[derive(Default)]
struct Topics {
    by_name: HashMap<String, Arc<TopicState>>,
    by_id: Vec<Arc<TopicState>>,
}

struct TopicState {
    handle: Topic,
    /// What it was last found to be in line with.
    settings: Mutex<Option<TopicSettings>>,
    min_in_sync: u32,
    /// Partitions of which who reads them on does not know yet that the topic was deleted and made anew.
    made_anew: Mutex<HashSet<u32>>,
    lanes: RwLock<Vec<Arc<Lane>>>,
}

impl KafkaLog {
    /// Starts the clients; whether Kafka answers is [`KafkaLog::reach`]'s question. Must run on a tokio runtime.
    pub(crate) fn open(access: Access) -> Result<Arc<KafkaLog>, LogError> {
        let vitals = Arc::new(Vitals::new());
        let access = Arc::new(access);
        let shared = Arc::new(Shared {
            runtime: Handle::current(),
            readers: Readers::new(access.clone(), vitals.clone()),
            access: ArcSwap::new(access),
            vitals,
            admin: Mutex::default(),
            topics: RwLock::default(),
            room: Arc::new(Room::new(ROOM_BYTES, ROOM_RECORDS)),
            main: RwLock::default(),
            stopped: AtomicBool::new(false),
        });
        let writer = Writer::start(shared.clone())
            .map_err(|error| LogError::Store(format!("Kafka: no thread to write from: {error}")))?;
        *shared.main.write() = Arc::downgrade(&writer);
        let (sender, health) = watch::channel(Health::Working);
        tokio::spawn(vitals::watch(Arc::downgrade(&shared), sender));
        Ok(Arc::new(KafkaLog { shared, writer, health }))
    }

    /// Returns once Kafka answers; tells after each attempt why it does not, and every minute the log.
    pub(crate) async fn reach(&self, mut told: impl FnMut(&str)) {
        let mut spell = Spell::default();
        loop {
            let readers = &self.shared.readers;
            let answer = match readers.questions() {
                Ok(client) => {
                    let asked = move || client.client().fetch_cluster_id(QUESTION_TIMEOUT);
                    let asked = tokio::task::spawn_blocking(asked).await.ok().flatten();
                    asked.map(drop).ok_or_else(|| "no connection".to_owned())
                }
                Err(error) => Err(error.to_string()),
            };
            let Err(error) = answer else { return };
            let access = self.shared.access();
            let (servers, why) = (access.servers(), self.shared.vitals.last_error().unwrap_or(error));
            told(&format!("Kafka at {servers} does not answer: {why}"));
            if spell.is_due() {
                let seconds = spell.begun.elapsed().as_secs();
                tracing::error!(
                    "Kafka at {servers} does not answer since {seconds} s: {why}; the broker starts once it does"
                );
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    /// Goes on with other addresses or credentials; what is on its way is finished with the old ones.
    pub(crate) fn use_access(&self, access: Access) {
        if *self.shared.access.load_full() != access {
            let access = Arc::new(access);
            self.shared.access.store(access.clone());
            self.shared.readers.renew(access);
        }
    }
}

impl Log for KafkaLog {
    fn ensure_topic<'a>(
        &'a self,
        name: &'a str,
        settings: TopicSettings,
    ) -> BoxFuture<'a, Result<Topic, LogError>> {
        Box::pin(async move {
            let known = self.shared.topic(name);
            if let Some(known) = known.filter(|known| *known.settings.lock() == Some(settings)) {
                return Ok(known.handle.clone());
            }
            self.shared.ensure(name, settings).await
        })
    }

    fn topic(&self, name: &str) -> Option<Topic> {
        self.shared.topic(name).map(|topic| topic.handle.clone())
    }

    fn append(&self, topic: &Topic, partition: u32, record: Record, done: Completion) {
        match self.shared.lane(topic, partition) {
            Some(lane) => {
                if !lane.append(record, done) {
                    self.shared.vitals.records_refused.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(
                        topic = topic.name(),
                        partition,
                        "an append is refused: too large, or its topic does not work"
                    );
                }
            }
            None => {
                tracing::error!(topic = topic.name(), partition, "an append is refused: no such partition");
                done.sink.appended(done.token, Outcome::Refused);
            }
        }
    }

    fn room(&self) -> bool {
        self.shared.room.has_some()
    }

    fn wait_for_room(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.shared.room.wait())
    }

    fn read<'a>(
        &'a self,
        topic: &'a Topic,
        partition: u32,
        from: Offset,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<ReadBatch, LogError>> {
        Box::pin(async move {
            self.shared.check(topic, partition)?;
            if !limit.wait.is_zero() && self.shared.was_made_anew(topic, partition) && from > 0 {
                return Err(LogError::Ahead { end: 0 });
            }
            let read = self.shared.readers.read(topic, partition, from, limit).await;
            if matches!(read, Err(LogError::UnknownTopic(_))) {
                // Nobody writes to it, perhaps, who would find that it is gone.
                self.shared.verify(topic.name()).await?;
                tokio::time::sleep(TRY_AGAIN).await;
                // Where nobody waits, an empty batch would say that this is the end.
                if !limit.wait.is_zero() {
                    return Ok(ReadBatch { records: Vec::new(), next: from });
                }
            }
            read
        })
    }

    fn bounds<'a>(&'a self, topic: &'a Topic, partition: u32) -> BoxFuture<'a, Result<Bounds, LogError>> {
        Box::pin(async move {
            self.shared.check(topic, partition)?;
            self.shared.readers.bounds(topic, partition).await
        })
    }

    fn offset_at<'a>(
        &'a self,
        topic: &'a Topic,
        partition: u32,
        time: i64,
    ) -> BoxFuture<'a, Result<Offset, LogError>> {
        Box::pin(async move {
            self.shared.check(topic, partition)?;
            self.shared.readers.offset_at(topic, partition, time).await
        })
    }

    fn known_end(&self, topic: &Topic, partition: u32) -> Offset {
        self.shared.lane(topic, partition).map_or(0, |lane| lane.known_end())
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        let waits = self.shared.longest_waiting().map_or(0, |stalled| stalled.since.elapsed().as_millis());
        let waits = ("log_waits_longest_ms", u64::try_from(waits).unwrap_or(u64::MAX));
        self.shared.room.figures().into_iter().chain([waits]).chain(self.shared.vitals.figures()).collect()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let lanes = self.shared.all_lanes();
            lanes.iter().for_each(|lane| lane.close());
            let until = Instant::now() + CLOSE_TIMEOUT;
            let waits = |lanes: &[Arc<Lane>]| lanes.iter().any(|lane| lane.backlog().records > 0);
            while waits(&lanes) && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let writer = self.writer.clone();
            // An error means that the thread panicked, which it has said.
            let _ = tokio::task::spawn_blocking(move || writer.stop()).await;
            let left: usize = lanes.iter().map(|lane| lane.backlog().records).sum();
            if left > 0 {
                tracing::error!("the log is closed while Kafka is away: {left} records may not be stored");
            }
            lanes.iter().for_each(|lane| lane.abandon());
        })
    }
}

impl Drop for KafkaLog {
    fn drop(&mut self) {
        self.writer.stop();
    }
}

impl Shared {
    fn access(&self) -> Arc<Access> {
        self.access.load_full()
    }

    fn topic(&self, name: &str) -> Option<Arc<TopicState>> {
        self.topics.read().by_name.get(name).cloned()
    }

    fn lane(&self, topic: &Topic, partition: u32) -> Option<Arc<Lane>> {
        let topics = self.topics.read();
        let state = topics.by_id.get(topic.id() as usize)?;
        state.lanes.read().get(partition as usize).cloned()
    }

    fn all_lanes(&self) -> Vec<Arc<Lane>> {
        self.topics.read().by_id.iter().flat_map(|topic| topic.lanes.read().clone()).collect()
    }

    fn check(&self, topic: &Topic, partition: u32) -> Result<(), LogError> {
        match self.lane(topic, partition) {
            Some(_) => Ok(()),
            None => Err(LogError::UnknownPartition { topic: topic.name().to_owned(), partition }),
        }
    }

    /// The partition whose first record has waited longest, of the topics that work.
    fn longest_waiting(&self) -> Option<Stalled> {
        let waiting = self.all_lanes().into_iter().filter_map(|lane| {
            let backlog = lane.backlog();
            backlog.since.filter(|_| !backlog.aside).map(|since| (since, lane))
        });
        let (since, lane) = waiting.min_by_key(|(since, _)| *since)?;
        Some(Stalled { topic: lane.topic.name().to_owned(), partition: lane.partition, since })
    }

    fn admin(&self) -> Result<Admin, LogError> {
        let access = self.access();
        let mut admin = self.admin.lock();
        if let Some((_, admin)) = admin.as_ref().filter(|(of, _)| **of == *access) {
            return Ok(admin.clone());
        }
        let new = Admin::new(&access, "broker")?;
        *admin = Some((access, new.clone()));
        Ok(new)
    }

    /// Makes or verifies a topic.
    async fn ensure(&self, name: &str, settings: TopicSettings) -> Result<Topic, LogError> {
        let found = mqtt_kafka::ensure(&self.admin()?, name, settings, self.access().copies()).await?;
        // What is read on for ever has forgotten nothing of its topic's former life, and would pass over what came anew.
        if let Some(known) =
            self.topic(name).filter(|_| found.made && settings.cleanup != Cleanup::KeepLatest)
        {
            known.made_anew.lock().extend(0..found.partitions);
        }
        self.admit(name, settings, &found).await
    }

    /// Takes a topic in as it was found, with a lane for each partition.
    async fn admit(&self, name: &str, settings: TopicSettings, found: &Found) -> Result<Topic, LogError> {
        let oldest = (settings.cleanup == Cleanup::KeepLatest).then_some(OLDEST);
        let (state, new) = {
            let mut topics = self.topics.write();
            let id = u32::try_from(topics.by_id.len()).unwrap_or(u32::MAX);
            let state = topics.by_name.get(name).cloned().unwrap_or_else(|| {
                let state = Arc::new(TopicState {
                    handle: Topic::new(name, id, 0),
                    settings: Mutex::default(),
                    min_in_sync: found.min_in_sync,
                    made_anew: Mutex::default(),
                    lanes: RwLock::default(),
                });
                topics.by_name.insert(name.to_owned(), state.clone());
                topics.by_id.push(state.clone());
                state
            });
            let mut lanes = state.lanes.write();
            lanes.iter().for_each(|lane| lane.record_bytes.store(found.max_record, Ordering::Relaxed));
            let known = u32::try_from(lanes.len()).unwrap_or(u32::MAX);
            let lane =
                |partition| Lane::new(&state.handle, partition, found.max_record, oldest, self.room.clone());
            let new: Vec<Arc<Lane>> = (known..found.partitions).map(|p| Arc::new(lane(p))).collect();
            lanes.extend(new.iter().cloned());
            drop(lanes);
            (state, new)
        };
        self.have_served(new);
        let lanes = state.lanes.read().clone();
        for lane in lanes.iter().filter(|lane| lane.known_end() == 0) {
            lane.learn_end(self.readers.bounds(&state.handle, lane.partition).await?.end);
        }
        state.handle.grow(found.partitions);
        *state.settings.lock() = Some(settings);
        Ok(state.handle.clone())
    }

    /// Whether this partition was made anew since who reads it on asked last; told once.
    fn was_made_anew(&self, topic: &Topic, partition: u32) -> bool {
        self.topic(topic.name()).is_some_and(|topic| topic.made_anew.lock().remove(&partition))
    }

    /// Sees to it that a known topic is as it was asked for.
    async fn verify(&self, name: &str) -> Result<(), LogError> {
        let state = self.topic(name).ok_or_else(|| LogError::UnknownTopic(name.to_owned()))?;
        let settings = *state.settings.lock();
        match settings {
            Some(settings) => self.ensure(name, settings).await.map(drop),
            None => Ok(()),
        }
    }

    /// Takes lanes back whose topic works again.
    fn rejoin(&self, lanes: Vec<Arc<Lane>>) {
        lanes.iter().for_each(|lane| lane.move_to(&self.room, false));
        self.have_served(lanes);
    }

    /// By the writer of all topics that work.
    fn have_served(&self, lanes: Vec<Arc<Lane>>) {
        if let Some(main) = self.main.read().upgrade() {
            main.adopt(lanes);
        }
    }

    /// What may keep a partition from confirming, as far as Kafka's metadata shows it.
    async fn look_at(&self, topic: &str, partition: u32) -> Option<String> {
        let min_in_sync = self.topic(topic)?.min_in_sync;
        let client = self.readers.questions().ok()?;
        let topic = topic.to_owned();
        let asked = tokio::task::spawn_blocking(move || {
            let metadata = client.fetch_metadata(Some(&topic), QUESTION_TIMEOUT).ok()?;
            let found = metadata.topics().first()?.partitions();
            let id = i32::try_from(partition).ok()?;
            let found = found.iter().find(|found| found.id() == id)?;
            let in_sync = found.isr().len();
            if found.leader() < 0 {
                Some(format!("topic {topic} partition {partition} has no leader"))
            } else if (in_sync as u64) < u64::from(min_in_sync) {
                Some(format!(
                    "topic {topic} partition {partition} has {in_sync} in-sync replicas of the {min_in_sync} that min.insync.replicas asks for; start the missing Kafka nodes"
                ))
            } else {
                None
            }
        });
        asked.await.ok().flatten()
    }
}

impl From<mqtt_kafka::Error> for LogError {
    fn from(error: mqtt_kafka::Error) -> LogError {
        if error.may_pass() { LogError::Store(error.line) } else { LogError::Settings(error.line) }
    }
}
