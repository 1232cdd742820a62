//! The start: reads each partition to the tick of this process run, so that nothing that anybody was promised before is missing.
//!
//! The tick has a number above those of all runs of this node that were met before it. Should another show between, it is
//! written once more.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{Fuse, try_join_all},
};
use mqtt_proto::durable::{
    record::{self, Boot, Key, Name, Value},
    runs::Runs,
    view::{Change, View},
};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    super::relay::Rising,
    Partition, Place, SessionLog, State,
    announce::Announcements,
    barrier::Barriers,
    leases::Leases,
    lives::End,
    write::{self, Surely},
};
use crate::{
    log::{
        Bounds, BoxFuture, Log, LogError, Offset, Outcome, ReadLimit, Record, StoredRecord, Topic,
        append_and_wait,
    },
    outside::Outside,
};

const READ: ReadLimit = ReadLimit { records: 5000, bytes: 4 << 20, wait: Duration::from_millis(500) };
/// How long the log may be silent before the start is given up, to be tried again.
const PATIENCE: Duration = Duration::from_secs(10);
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

impl SessionLog {
    /// Reads all of the log. `boot` names this process run.
    pub(crate) async fn open(
        log: Arc<dyn Log>,
        outside: Outside,
        boot: Boot,
        Place { node: name, partitions, shared }: Place<'_>,
        packet_size: u32,
    ) -> Result<SessionLog, LogError> {
        let topic = log.ensure_topic(super::TOPIC, SessionLog::settings(partitions, packet_size)).await?;
        let began = Instant::now();
        let partitions = try_join_all((0..topic.partitions()).map(|partition| {
            let (log, topic, outside) = (log.clone(), topic.clone(), &outside);
            async move {
                let mut reading = Reading::default();
                let begins = Begins { boot, node: name, shared, outside };
                let next = read_to_tick(&*log, &topic, partition, begins, &mut reading).await?;
                let state = Mutex::new(State { view: reading.view, ..State::default() });
                Ok::<_, LogError>(Partition { state, next: Rising::new(next), ..Partition::default() })
            }
        }))
        .await?;
        let log = SessionLog {
            log,
            outside,
            topic,
            boot,
            name: Name::new(name.into()),
            shared,
            barriers: Barriers::default(),
            leases: Leases::new(),
            announcements: Announcements::default(),
            end: End::default(),
            partitions,
            sequence: AtomicU64::new(1),
            surely: Arc::new(Surely::default()),
            wills: Mutex::default(),
        };
        let seconds = began.elapsed().as_secs_f64();
        tracing::info!("{} sessions of the log are known after {seconds:.1} s", log.live());
        Ok(log)
    }
}

/// Applies a record to a view. A record that is none of this broker's stops the reader.
pub(super) fn apply(
    view: &mut View,
    topic: &Topic,
    partition: u32,
    stored: &StoredRecord,
    changes: &mut Vec<Change>,
) -> Result<(), LogError> {
    let (key, value) = parse(topic, partition, stored)?;
    put(view, stored, key, value, changes);
    Ok(())
}

fn put(
    view: &mut View,
    stored: &StoredRecord,
    key: Key,
    value: Option<Value<'_>>,
    changes: &mut Vec<Change>,
) {
    let of = &stored.record;
    let size = of.key.as_ref().map_or(0, |key| key.len()) + of.value.as_ref().map_or(0, |value| value.len());
    view.apply(stored.offset, u64::try_from(of.created).unwrap_or(0), size, key, value, changes);
}

pub(crate) fn parse<'a>(
    topic: &Topic,
    partition: u32,
    stored: &'a StoredRecord,
) -> Result<(Key, Option<Value<'a>>), LogError> {
    let Record { key, value, .. } = &stored.record;
    record::parse(key.as_deref().unwrap_or_default(), value.as_deref()).map_err(|error| {
        let (topic, offset) = (topic.name(), stored.offset);
        LogError::Settings(format!("topic {topic} partition {partition} offset {offset}: {error}"))
    })
}

/// A process run that begins.
#[derive(Clone, Copy)]
pub(crate) struct Begins<'a> {
    pub(crate) boot: Boot,
    pub(crate) node: &'a str,
    /// See [`Place::shared`].
    pub(crate) shared: bool,
    pub(crate) outside: &'a Outside,
}

/// What the records of a partition are read into.
pub(crate) trait Reads {
    fn take(&mut self, topic: &Topic, partition: u32, stored: &StoredRecord) -> Result<(), LogError>;

    fn runs(&self) -> &Runs;
}

#[derive(Default)]
struct Reading {
    view: View,
    /// Nobody acts on them so far.
    changes: Vec<Change>,
}

impl Reads for Reading {
    fn take(&mut self, topic: &Topic, partition: u32, stored: &StoredRecord) -> Result<(), LogError> {
        self.changes.clear();
        apply(&mut self.view, topic, partition, stored, &mut self.changes)
    }

    fn runs(&self) -> &Runs {
        self.view.runs()
    }
}

/// Reads a partition from its start to a tick that is appended on the way; returns where to read on.
pub(crate) async fn read_to_tick(
    log: &dyn Log,
    topic: &Topic,
    partition: u32,
    begins: Begins<'_>,
    reads: &mut impl Reads,
) -> Result<Offset, LogError> {
    let Bounds { start: mut from, end } = log.bounds(topic, partition).await?;
    // The end may be an old one: whatever is read before the tick is appended only makes its number the likelier to do.
    let mut asked = (from >= end).then(|| begins.append_tick(log, topic, partition, reads.runs()));
    let (mut records, mut told, mut heard) = (0_usize, Instant::now(), Instant::now());
    loop {
        let batch = log.read(topic, partition, from, READ).await?;
        batch.records.iter().try_for_each(|stored| reads.take(topic, partition, stored))?;
        records += batch.records.len();
        if batch.next != from {
            heard = Instant::now();
        }
        from = batch.next;
        if let Some((number, appended)) = &mut asked {
            if let Some(Outcome::Refused | Outcome::Broken) = appended.now_or_never() {
                return Err(LogError::Store(format!("topic {} takes no records", topic.name())));
            }
            let runs = reads.runs();
            if runs.number(begins.boot) >= Some(*number) {
                if runs.next_number(begins.node, begins.boot) <= *number {
                    return Ok(from);
                }
                asked = Some(begins.append_tick(log, topic, partition, runs));
            }
        } else if from >= end {
            asked = Some(begins.append_tick(log, topic, partition, reads.runs()));
        }
        if heard.elapsed() > PATIENCE {
            return Err(LogError::Store(format!("topic {} is not read to its end", topic.name())));
        }
        if told.elapsed() > PROGRESS_EVERY {
            told = Instant::now();
            tracing::info!("{} partition {partition}: {records} records read so far", topic.name());
        }
    }
}

impl Begins<'_> {
    /// The number that the tick has, and what comes of it; nothing once that was told.
    fn append_tick(
        &self,
        log: &dyn Log,
        topic: &Topic,
        partition: u32,
        runs: &Runs,
    ) -> (u64, Fuse<BoxFuture<'static, Outcome>>) {
        let run = runs.next_number(self.node, self.boot);
        let value = Value::Tick { node: self.node, run, shared: self.shared };
        let tick = write::record(&Key::Tick { boot: self.boot }, Some(value), self.outside.wall());
        let appended: BoxFuture<'static, Outcome> = Box::pin(append_and_wait(log, topic, partition, tick));
        (run, appended.fuse())
    }
}

/// What a reader knows that reads the log now.
#[cfg(test)]
pub(crate) async fn summaries(log: &dyn Log) -> Vec<Vec<String>> {
    let topic = log.topic(super::TOPIC).unwrap();
    let mut found = Vec::new();
    for partition in 0..topic.partitions() {
        let (mut view, mut from) = (View::default(), log.bounds(&topic, partition).await.unwrap().start);
        loop {
            let limit = ReadLimit { wait: Duration::ZERO, ..READ };
            let batch = log.read(&topic, partition, from, limit).await.unwrap();
            for stored in &batch.records {
                apply(&mut view, &topic, partition, stored, &mut Vec::new()).unwrap();
            }
            if batch.next == from {
                break;
            }
            from = batch.next;
        }
        found.push(view.summary());
    }
    found
}
