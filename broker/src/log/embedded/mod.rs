//! The log of a broker that runs alone: a store in one directory of one machine, on an LSM database.
//!
//! Promises beyond [`Log`]'s: an append is `Durable` only after its record was synced to the disk; across all
//! topics and partitions records become durable and visible in the order of the calls to `append`; records
//! are never repeated and `Broken` is told only at a close while the disk fails. It does not judge `created`.
//! When the disk is full or fails, appends wait, [`Health`] says so, and everything goes on by itself later.
//!
//! One thread, [`store::Store`], writes; readers read beside it from any thread. A read near the end of a
//! partition is answered from memory in place; one further back runs on tokio's blocking threads.

mod cleanup;
mod db;
mod outage;
mod queue;
mod read;
mod record;
mod store;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};

use self::{
    db::{DataDir, Db},
    queue::{Ensure, Entry, Queue},
};
use super::{
    Bounds, BoxFuture, Cleanup, Completion, Health, Log, LogError, Offset, Outcome, ReadBatch, ReadLimit,
    Record, Topic, TopicSettings,
};

/// How the store behaves; the default is meant for production.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EmbeddedOptions {
    /// Bytes and records that may wait before [`Log::room`] says no.
    pub queue_bytes: usize,
    pub queue_records: usize,
    /// How long a record stays after a later one got its key, at least.
    pub compaction_lag: Duration,
    /// How long a delete marker stays beyond that.
    pub delete_retention: Duration,
    /// How often old records are looked for.
    pub cleanup_interval: Duration,
    /// Bytes appended before memory is written out as tables.
    pub flush_bytes: u64,
    /// When nothing was written out for this long, so much memory is enough.
    pub flush_age: Duration,
    pub flush_least: u64,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        EmbeddedOptions {
            queue_bytes: 64 << 20,
            queue_records: 200_000,
            compaction_lag: Duration::from_secs(60),
            delete_retention: Duration::from_secs(15 * 60),
            cleanup_interval: Duration::from_secs(1),
            flush_bytes: 32 << 20,
            flush_age: Duration::from_secs(10),
            flush_least: 2 << 20,
        }
    }
}

/// See the module.
pub(crate) struct EmbeddedLog {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    closed: watch::Receiver<bool>,
}

/// Names a partition among all topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct PartitionId {
    topic: u32,
    partition: u32,
}

/// What the store's thread and everybody else share.
struct Shared {
    dir: PathBuf,
    options: EmbeddedOptions,
    queue: Queue,
    /// `None` while it is being opened again.
    db: RwLock<Option<Arc<Db>>>,
    topics: RwLock<Topics>,
    health: watch::Sender<Health>,
}

#[derive(Default)]
struct Topics {
    by_name: HashMap<String, Arc<TopicState>>,
    by_id: HashMap<u32, Arc<TopicState>>,
}

struct TopicState {
    handle: Topic,
    cleanup: Cleanup,
    partitions: Vec<Arc<Partition>>,
}

/// What readers see of a partition.
struct Partition {
    /// Rises by retention alone.
    start: AtomicU64,
    end: watch::Sender<Offset>,
}

impl EmbeddedLog {
    /// Opens the store, or makes it, and starts its thread. Blocks while the journal is read.
    pub(crate) fn open(dir: &Path, options: EmbeddedOptions) -> Result<Arc<EmbeddedLog>, LogError> {
        let data = DataDir::lock(dir)?;
        let shared = Arc::new(Shared::new(dir, options));
        let (ended, closed) = watch::channel(false);
        let thread = store::start(data, shared.clone(), ended)?;
        Ok(Arc::new(EmbeddedLog { shared, thread: Mutex::new(Some(thread)), closed }))
    }
}

impl Log for EmbeddedLog {
    fn ensure_topic<'a>(
        &'a self,
        name: &'a str,
        settings: TopicSettings,
    ) -> BoxFuture<'a, Result<Topic, LogError>> {
        Box::pin(async move {
            let closed = || LogError::Store("the log is closed".to_owned());
            let (reply, answer) = oneshot::channel();
            if !self.shared.queue.ensure(Ensure { name: name.to_owned(), settings, reply }) {
                return Err(closed());
            }
            answer.await.unwrap_or_else(|_| Err(closed()))
        })
    }

    fn topic(&self, name: &str) -> Option<Topic> {
        self.shared.topics.read().by_name.get(name).map(|topic| topic.handle.clone())
    }

    fn append(&self, topic: &Topic, partition: u32, record: Record, done: Completion) {
        let state = self.shared.topics.read().by_id.get(&topic.id()).cloned();
        let state = state.filter(|state| (partition as usize) < state.partitions.len());
        let encoded = state.as_ref().and_then(|_| record::encode(&record));
        if encoded.is_none() {
            let topic = topic.name();
            tracing::error!(
                topic,
                partition,
                "an append is refused: no such partition, or a record too large"
            );
        }
        let keeps_latest = state.is_some_and(|state| state.cleanup == Cleanup::KeepLatest);
        let deletes = record.value.is_none();
        let key = record.key.filter(|_| keeps_latest);
        let partition = PartitionId { topic: topic.id(), partition };
        self.shared.queue.push(Entry { partition, key, deletes, encoded, done, offset: None });
    }

    fn room(&self) -> bool {
        self.shared.queue.room.has_some()
    }

    fn wait_for_room(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.shared.queue.room.wait())
    }

    fn read<'a>(
        &'a self,
        topic: &'a Topic,
        partition: u32,
        from: Offset,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<ReadBatch, LogError>> {
        Box::pin(read::read(&self.shared, topic, partition, from, limit))
    }

    fn bounds<'a>(&'a self, topic: &'a Topic, partition: u32) -> BoxFuture<'a, Result<Bounds, LogError>> {
        Box::pin(async move {
            let partition = self.shared.partition(topic, partition)?;
            Ok(Bounds { start: partition.start.load(Ordering::Acquire), end: *partition.end.borrow() })
        })
    }

    fn known_end(&self, topic: &Topic, partition: u32) -> Offset {
        self.shared.partition(topic, partition).map_or(0, |partition| *partition.end.borrow())
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        self.shared.queue.room.figures().to_vec()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.shared.queue.close();
            let mut closed = self.closed.clone();
            // An error means that the thread is gone, which is what is waited for.
            let _ = closed.wait_for(|closed| *closed).await;
            self.join();
        })
    }
}

impl EmbeddedLog {
    fn join(&self) {
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the log's thread panicked");
        }
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.shared.queue.close();
        self.join();
    }
}

impl Shared {
    fn new(dir: &Path, options: EmbeddedOptions) -> Shared {
        Shared {
            dir: dir.to_owned(),
            options,
            queue: Queue::new(options.queue_bytes, options.queue_records),
            db: RwLock::new(None),
            topics: RwLock::default(),
            health: watch::Sender::new(Health::Working),
        }
    }

    fn partition(&self, topic: &Topic, partition: u32) -> Result<Arc<Partition>, LogError> {
        let topics = self.topics.read();
        let state =
            topics.by_id.get(&topic.id()).ok_or_else(|| LogError::UnknownTopic(topic.name().to_owned()))?;
        let found = state.partitions.get(partition as usize).cloned();
        found.ok_or_else(|| LogError::UnknownPartition { topic: topic.name().to_owned(), partition })
    }

    /// The database for one short use, after which the clone must go.
    fn db(&self) -> Option<Arc<Db>> {
        self.db.read().clone()
    }
}

impl PartitionId {
    fn to_bytes(self) -> [u8; 8] {
        ((u64::from(self.topic) << 32) | u64::from(self.partition)).to_be_bytes()
    }
}

impl Entry {
    fn tell(&self, outcome: Outcome) {
        self.done.sink.appended(self.done.token, outcome);
    }
}
