//! The start: reads each partition to the tick of this process run, so that nothing that anybody was promised before is missing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64},
    },
    time::Duration,
};

use futures_util::future::try_join_all;
use mqtt_proto::{
    durable::{
        record::{self, Boot, Key, Value},
        view::{Change, View},
    },
    message::Millis,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Partition, Place, SessionLog, State, barrier::Barriers, write::Surely};
use crate::{
    log::{Log, LogError, Offset, Outcome, ReadLimit, Record, StoredRecord, Topic, append_and_wait},
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
        Place { node: name, partitions, wire }: Place<'_>,
        packet_size: u32,
    ) -> Result<SessionLog, LogError> {
        let topic = log.ensure_topic(super::TOPIC, SessionLog::settings(partitions, packet_size)).await?;
        let (began, now) = (Instant::now(), outside.wall());
        let partitions = try_join_all((0..topic.partitions()).map(|partition| {
            let (log, topic) = (log.clone(), topic.clone());
            async move {
                let mut view = View::default();
                let take = |stored: &StoredRecord, changes: &mut Vec<Change>| {
                    apply(&mut view, &topic, partition, stored, changes)
                };
                let next = read_to_tick(&*log, &topic, partition, boot, name, now, take).await?;
                let state = Mutex::new(State { view, ..State::default() });
                Ok::<_, LogError>(Partition { state, next: next.into() })
            }
        }))
        .await?;
        let log = SessionLog {
            log,
            outside,
            topic,
            boot,
            name: name.into(),
            shared: wire.is_some(),
            barriers: Barriers::default(),
            partitions,
            sequence: AtomicU32::new(1),
            chunk: AtomicU64::new(1),
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
    let Record { key, value, created, .. } = &stored.record;
    let size = key.as_ref().map_or(0, |key| key.len()) + value.as_ref().map_or(0, |value| value.len());
    let (key, value) = parse(topic, partition, stored)?;
    view.apply(stored.offset, u64::try_from(*created).unwrap_or(0), size, key, value, changes);
    Ok(())
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

/// Appends a tick and gives `take` every record up to it; returns where to read on.
pub(crate) async fn read_to_tick(
    log: &dyn Log,
    topic: &Topic,
    partition: u32,
    boot: Boot,
    name: &str,
    now: Millis,
    mut take: impl FnMut(&StoredRecord, &mut Vec<Change>) -> Result<(), LogError>,
) -> Result<Offset, LogError> {
    let tick = Record {
        key: Some(Key::Tick { boot }.encode().into()),
        value: Some(Value::Tick { node: name }.encode().into()),
        headers: Vec::new(),
        created: i64::try_from(now).unwrap_or(i64::MAX),
    };
    let mut appended = Box::pin(append_and_wait(log, topic, partition, tick));
    let mut outcome = None;
    let mut from = log.bounds(topic, partition).await?.start;
    let (mut records, mut told, mut heard) = (0_usize, Instant::now(), Instant::now());
    let mut changes = Vec::new();
    loop {
        let batch = log.read(topic, partition, from, READ).await?;
        if outcome.is_none() {
            outcome = futures_util::FutureExt::now_or_never(appended.as_mut());
        }
        if matches!(outcome, Some(Outcome::Refused | Outcome::Broken)) {
            return Err(LogError::Store(format!("topic {} takes no records", topic.name())));
        }
        let mut is_ready = false;
        for stored in &batch.records {
            changes.clear();
            take(stored, &mut changes)?;
            is_ready |= changes.contains(&Change::Ticked { boot });
        }
        records += batch.records.len();
        if batch.next != from {
            heard = Instant::now();
        }
        from = batch.next;
        if is_ready {
            return Ok(from);
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
