//! The durable log that everything acknowledged stands in: topics of partitions of records, shaped like Kafka's.
//!
//! [`Log`] is what the rest of the broker knows of it; the stores behind it promise exactly what is written
//! here and nothing more. In particular a record may show twice, an append may end unknown, and there is no
//! linearizable end offset. Nothing outside this module names a store.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
pub(crate) use mqtt_kafka::{Cleanup, TopicSettings};
use tokio::sync::{oneshot, watch};

mod by_time;
pub(crate) mod embedded;
pub(crate) mod kafka;
mod room;
#[cfg(test)]
pub(crate) mod sim;

/// Position of a record in its partition; rises, with gaps.
pub(crate) type Offset = u64;
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How far the order of records in a partition may differ from that of their `created`: clocks differ.
pub(crate) const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// A record as it is appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub key: Option<Bytes>,
    /// Absent: a delete marker for the key, in a compacted topic.
    pub value: Option<Bytes>,
    pub headers: Vec<(Bytes, Bytes)>,
    /// Milliseconds since the Unix epoch, when its writer made it.
    pub created: i64,
}

/// A record as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredRecord {
    pub offset: Offset,
    pub record: Record,
}

/// How an append ended. Told exactly once for each, unless the process ends first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It survives the death of this process, and of the machine as far as the store promises. It stands at this
    /// offset, or at a later one where the store could not tell.
    Durable(Offset),
    /// It is not in the log and never will be.
    Refused,
    /// It may become visible until 10 minutes after its `created`.
    Broken,
}

/// Who is told how an append ended. Called from the store's own thread (a closed store: from within
/// [`Log::append`]): must not block, must not append.
pub(crate) trait AppendSink: Send + Sync {
    fn appended(&self, token: u64, outcome: Outcome);

    /// Whether a record that is refused takes those behind it with it.
    fn is_ordered(&self) -> bool {
        true
    }
}

/// Where an append's outcome goes; `token` is the sink's own business.
#[derive(Clone)]
pub(crate) struct Completion {
    pub sink: Arc<dyn AppendSink>,
    pub token: u64,
}

/// Names a topic for appending and reading, as cheap to clone as a pointer. Got from [`Log::ensure_topic`].
#[derive(Clone, Debug)]
pub(crate) struct Topic {
    inner: Arc<TopicInner>,
}

#[derive(Debug)]
struct TopicInner {
    name: String,
    partitions: std::sync::atomic::AtomicU32,
    /// The store's own number for it.
    id: u32,
}

/// How far one read may go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadLimit {
    pub records: usize,
    /// Bytes of keys, values and headers; at least one record is returned, whatever its size.
    pub bytes: usize,
    /// How long to wait for the first record when there is none yet; zero: not at all.
    pub wait: Duration,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct ReadBatch {
    pub records: Vec<StoredRecord>,
    /// Where to read on: past gaps, too.
    pub next: Offset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// The first offset that can be read.
    pub start: Offset,
    /// The offset that the next record will have at least.
    pub end: Offset,
}

/// Whether appends are being made durable now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Working,
    /// Appends wait, and the fault is this machine's. What failed, where and what to do, in one line.
    Failing(String),
    /// Appends wait for a store that this machine does not have to itself; what needs no store goes on. Why, in one
    /// line.
    Away(String),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("topic {0:?} is not in the log")]
    UnknownTopic(String),
    #[error("topic {topic:?} has no partition {partition}")]
    UnknownPartition { topic: String, partition: u32 },
    /// Records between the asked offset and `start` are gone (retention); never a silent skip.
    #[error("records before offset {start} are gone")]
    Lost { start: Offset },
    /// The partition is shorter than the asked offset: what was there is gone.
    #[error("the partition ends at offset {end}, before what is asked for: was the topic made anew?")]
    Ahead { end: Offset },
    #[error("{0}")]
    Settings(String),
    /// The store itself failed; worth another try.
    #[error("{0}")]
    Store(String),
}

/// Topics, partitions and records, durable once told so.
///
/// Order: what one writer appends to one partition becomes visible in the order of its calls, without a gap; a
/// record that shows twice does so as 1 2 3 2 3. With a record that is `Refused` go those that the same sink
/// waits for in the same partition.
pub(crate) trait Log: Send + Sync {
    /// Makes the topic if there is none, or brings an existing one to these settings (partitions only grow).
    fn ensure_topic<'a>(
        &'a self,
        name: &'a str,
        settings: TopicSettings,
    ) -> BoxFuture<'a, Result<Topic, LogError>>;

    fn topic(&self, name: &str) -> Option<Topic>;

    /// Takes the record and returns at once; `done` is told the outcome later. Callers look at
    /// [`Log::room`] before they take more work from a socket: that is what bounds the queue.
    /// A partition that the topic does not have, and a store that is closed, refuse.
    fn append(&self, topic: &Topic, partition: u32, record: Record, done: Completion);

    /// False while more is waiting than should: then take nothing more in before [`Log::wait_for_room`] is over.
    fn room(&self) -> bool;

    fn wait_for_room(&self) -> BoxFuture<'_, ()>;

    /// The visible records from `from` on. A record is visible only once durable. An empty batch may still move
    /// `next` past a gap; at the end `next` is `from`. With `wait` zero that is the end as it was after the call.
    fn read<'a>(
        &'a self,
        topic: &'a Topic,
        partition: u32,
        from: Offset,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<ReadBatch, LogError>>;

    fn bounds<'a>(&'a self, topic: &'a Topic, partition: u32) -> BoxFuture<'a, Result<Bounds, LogError>>;

    /// Where to begin reading for what was created at `time` (milliseconds since the Unix epoch) or later: all such
    /// records stand at this offset or behind it, as long as no record stands behind one that was created more
    /// than [`CLOCK_SKEW`] after it; older ones may, too. The end where there are none.
    fn offset_at<'a>(
        &'a self,
        topic: &'a Topic,
        partition: u32,
        time: i64,
    ) -> BoxFuture<'a, Result<Offset, LogError>> {
        Box::pin(by_time::search(self, topic, partition, time))
    }

    /// An offset that no later append will be below, without asking anybody: what this process last knew of the
    /// partition's end, 0 if nothing.
    fn known_end(&self, topic: &Topic, partition: u32) -> Offset;

    fn health(&self) -> watch::Receiver<Health>;

    /// Gauges and counters of the store, by name.
    fn figures(&self) -> Vec<(&'static str, u64)>;

    /// Makes durable what was appended, and closes the store. Appends afterwards are refused.
    fn close(&self) -> BoxFuture<'_, ()>;
}

impl Topic {
    fn new(name: &str, id: u32, partitions: u32) -> Topic {
        Topic { inner: Arc::new(TopicInner { name: name.to_owned(), partitions: partitions.into(), id }) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.inner.name
    }

    pub(crate) fn partitions(&self) -> u32 {
        self.inner.partitions.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn id(&self) -> u32 {
        self.inner.id
    }

    fn grow(&self, partitions: u32) {
        self.inner.partitions.fetch_max(partitions, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Appends one record and waits for its outcome; for rare appends, where a sink of one's own is not worth it.
/// `Broken` when the store ended without telling.
pub(crate) fn append_and_wait(
    log: &dyn Log,
    topic: &Topic,
    partition: u32,
    record: Record,
) -> impl Future<Output = Outcome> + use<> {
    let (done, receiver) = Completion::awaited();
    log.append(topic, partition, record, done);
    async move { receiver.await.unwrap_or(Outcome::Broken) }
}

impl Completion {
    /// For one append whose outcome is awaited; it has none when the store ended without telling.
    pub(crate) fn awaited() -> (Completion, oneshot::Receiver<Outcome>) {
        let (sender, receiver) = oneshot::channel();
        let sink = Arc::new(OneOutcome(parking_lot::Mutex::new(Some(sender))));
        (Completion { sink, token: 0 }, receiver)
    }
}

struct OneOutcome(parking_lot::Mutex<Option<oneshot::Sender<Outcome>>>);

impl AppendSink for OneOutcome {
    fn appended(&self, _token: u64, outcome: Outcome) {
        if let Some(sender) = self.0.lock().take() {
            // Nobody waits any more: the outcome is of no use.
            let _ = sender.send(outcome);
        }
    }
}
