//! What the simulated store truly holds: owns the records, and removes only what the trait allows.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::log::{
    Cleanup, LogError, Offset, ReadBatch, ReadLimit, Record, StoredRecord, Topic, TopicSettings,
};

/// Milliseconds since the Unix epoch at which every simulation begins.
pub(crate) const EPOCH: u64 = 1_790_000_000_000;
/// A record made this much off the store's clock is refused.
const OLDEST: u64 = 5 * 60 * 1000;
/// When compaction may remove a record that has a later one, and a delete marker after that.
const COMPACTION_LAG: Duration = Duration::from_secs(60);
const MARKER_LIFE: Duration = Duration::from_secs(15 * 60);

/// Told of each record that becomes visible: topic, partition, record.
pub(crate) type Landed = Box<dyn Fn(&str, u32, &StoredRecord) + Send + Sync>;

/// The store that several nodes share. It outlives all of them.
pub(crate) struct Cluster {
    began: Instant,
    inner: Mutex<Inner>,
    random: Mutex<fastrand::Rng>,
    landed: Landed,
}

#[derive(Default)]
struct Inner {
    topics: Vec<Kept>,
}

struct Kept {
    topic: Topic,
    settings: TopicSettings,
    partitions: Vec<Partition>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Partition {
    records: VecDeque<(Instant, StoredRecord)>,
    start: Offset,
    next: Offset,
}

/// What one look at a partition finds.
pub(super) enum Look {
    Found(ReadBatch),
    /// Nothing there yet; told when it may be worth another look.
    Nothing(Arc<Notify>),
}

impl Cluster {
    pub(crate) fn new(random: fastrand::Rng, landed: Landed) -> Arc<Cluster> {
        let (inner, random) = (Mutex::default(), Mutex::new(random));
        Arc::new(Cluster { began: Instant::now(), inner, random, landed })
    }

    /// The store's own clock.
    pub(crate) fn wall(&self) -> u64 {
        EPOCH + u64::try_from(self.began.elapsed().as_millis()).unwrap()
    }

    pub(super) fn ensure(&self, name: &str, settings: TopicSettings) -> Topic {
        let mut inner = self.inner.lock();
        let index = inner.topics.iter().position(|kept| kept.topic.name() == name).unwrap_or_else(|| {
            let id = u32::try_from(inner.topics.len()).unwrap();
            let topic = Topic::new(name, id, settings.partitions);
            inner.topics.push(Kept { topic, settings, partitions: Vec::new(), changed: Arc::default() });
            inner.topics.len() - 1
        });
        let kept = &mut inner.topics[index];
        let partitions = settings.partitions.max(kept.settings.partitions);
        kept.settings = TopicSettings { partitions, ..settings };
        kept.topic.grow(partitions);
        kept.partitions.resize_with(partitions as usize, Partition::default);
        kept.topic.clone()
    }

    pub(super) fn topic(&self, name: &str) -> Option<Topic> {
        let inner = self.inner.lock();
        inner.topics.iter().find(|kept| kept.topic.name() == name).map(|kept| kept.topic.clone())
    }

    /// Makes a record visible; none if it is too far off the store's clock.
    pub(super) fn land(&self, topic: &Topic, partition: u32, record: &Record) -> Option<Offset> {
        if u64::try_from(record.created).unwrap_or(0).abs_diff(self.wall()) > OLDEST {
            return None;
        }
        let gap = if self.chance(0.03) { self.random.lock().u64(1..4) } else { 0 };
        let mut inner = self.inner.lock();
        let kept = &mut inner.topics[topic.id() as usize];
        let of = &mut kept.partitions[partition as usize];
        let offset = of.next + gap;
        of.next = offset + 1;
        let stored = StoredRecord { offset, record: record.clone() };
        of.records.push_back((Instant::now(), stored.clone()));
        kept.changed.notify_waiters();
        drop(inner);
        (self.landed)(topic.name(), partition, &stored);
        Some(offset)
    }

    pub(super) fn look(
        &self,
        topic: &Topic,
        partition: u32,
        from: Offset,
        limit: ReadLimit,
    ) -> Result<Look, LogError> {
        let most = if self.chance(0.2) { self.random.lock().usize(1..4) } else { usize::MAX };
        let inner = self.inner.lock();
        let kept = inner.kept(topic)?;
        let of = kept.partition(partition)?;
        if from < of.start {
            return Err(LogError::Lost { start: of.start });
        }
        if from > of.next {
            return Err(LogError::Ahead { end: of.next });
        }
        if from == of.next {
            return Ok(Look::Nothing(kept.changed.clone()));
        }
        let mut batch = ReadBatch { records: Vec::new(), next: of.next };
        let mut bytes = 0;
        let first = of.records.partition_point(|(_, stored)| stored.offset < from);
        for (_, stored) in of.records.range(first..) {
            bytes += size(&stored.record);
            let full = batch.records.len() >= limit.records.min(most) || bytes > limit.bytes;
            if full && !batch.records.is_empty() {
                batch.next = stored.offset;
                break;
            }
            batch.records.push(stored.clone());
        }
        Ok(Look::Found(batch))
    }

    /// First offset, and the one after the last.
    pub(super) fn bounds(&self, topic: &Topic, partition: u32) -> Result<(Offset, Offset), LogError> {
        let inner = self.inner.lock();
        let of = inner.kept(topic)?.partition(partition)?;
        Ok((of.start, of.next))
    }

    /// Removes some of what compaction may remove now: which, is chance.
    pub(crate) fn compact(&self) -> usize {
        let mut random = self.random.lock();
        let mut inner = self.inner.lock();
        let mut removed = 0;
        let compacted = inner.topics.iter_mut().filter(|kept| kept.settings.cleanup == Cleanup::KeepLatest);
        for of in compacted.flat_map(|kept| &mut kept.partitions) {
            let all = random.bool();
            let mut later: BTreeSet<Bytes> = BTreeSet::new();
            let mut keep: VecDeque<_> = VecDeque::new();
            while let Some((landed, stored)) = of.records.pop_back() {
                let age = landed.elapsed();
                let marker = stored.record.value.is_none() && age >= COMPACTION_LAG + MARKER_LIFE;
                let old = age >= COMPACTION_LAG;
                let key = stored.record.key.clone();
                let superseded = old && key.as_ref().is_some_and(|key| later.contains(key));
                later.extend(key);
                // A marker goes only when nothing that it deletes is left: all of that is older.
                if superseded && (all || random.bool()) {
                    removed += 1;
                    continue;
                }
                keep.push_front((landed, stored, marker));
            }
            let mut before: BTreeSet<Bytes> = BTreeSet::new();
            for (landed, stored, marker) in keep {
                let alone = stored.record.key.as_ref().is_none_or(|key| !before.contains(key));
                if marker && alone && random.bool() {
                    removed += 1;
                    continue;
                }
                before.extend(stored.record.key.clone());
                of.records.push_back((landed, stored));
            }
        }
        removed
    }

    /// As retention or an administrator would: whoever reads from before is told that it is lost.
    pub(crate) fn delete_before(&self, topic: &Topic, partition: u32, offset: Offset) {
        let mut inner = self.inner.lock();
        let of = &mut inner.topics[topic.id() as usize].partitions[partition as usize];
        of.start = of.start.max(offset.min(of.next));
        while of.records.front().is_some_and(|(_, stored)| stored.offset < of.start) {
            of.records.pop_front();
        }
    }

    pub(super) fn chance(&self, probability: f64) -> bool {
        self.random.lock().f64() < probability
    }
}

impl Inner {
    fn kept(&self, topic: &Topic) -> Result<&Kept, LogError> {
        let found = self.topics.get(topic.id() as usize);
        found.ok_or_else(|| LogError::UnknownTopic(topic.name().to_owned()))
    }
}

impl Kept {
    fn partition(&self, partition: u32) -> Result<&Partition, LogError> {
        let topic = self.topic.name();
        let unknown = || LogError::UnknownPartition { topic: topic.to_owned(), partition };
        self.partitions.get(partition as usize).ok_or_else(unknown)
    }
}

pub(super) fn size(record: &Record) -> usize {
    let fields = record.key.iter().chain(&record.value);
    let headers = record.headers.iter().flat_map(|(name, value)| [name, value]);
    fields.chain(headers).map(Bytes::len).sum()
}
