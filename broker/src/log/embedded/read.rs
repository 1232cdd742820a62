//! Reading: owns where records are looked up, how long a read waits, and how a gap differs from a loss.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use tokio::time::timeout_at;

use super::{
    Partition, PartitionId, Shared,
    db::{Cause, Db, guarded, offset_of},
    record,
};
use crate::log::{LogError, Offset, ReadBatch, ReadLimit, StoredRecord, Topic};

/// A read that begins this near to the end, or spans no more than this, is short and finds its records in
/// memory: it does not go to a thread of its own.
const IN_PLACE: u64 = 1_000;

/// See [`crate::log::Log::read`].
pub(super) async fn read(
    shared: &Arc<Shared>,
    topic: &Topic,
    partition: u32,
    from: Offset,
    limit: ReadLimit,
) -> Result<ReadBatch, LogError> {
    let state = shared.partition(topic, partition)?;
    let id = PartitionId { topic: topic.id(), partition };
    let mut ends = state.end.subscribe();
    let deadline = Instant::now().checked_add(limit.wait);
    loop {
        let end = *ends.borrow_and_update();
        check_start(&state, from)?;
        if from < end {
            let batch = read_between(shared, id, from, end, limit).await;
            let batch = batch.map_err(|cause| {
                LogError::Store(format!("partition {partition} of topic {:?}: {}", topic.name(), cause.0))
            })?;
            // Retention may have gone past `from` meanwhile: then what is missing is no gap.
            check_start(&state, from)?;
            return Ok(batch);
        }
        if from > end {
            return Err(LogError::Ahead { end });
        }
        let nothing = Ok(ReadBatch { records: Vec::new(), next: from });
        if limit.wait.is_zero() {
            return nothing;
        }
        let changed = match deadline {
            Some(deadline) => timeout_at(deadline.into(), ends.changed()).await,
            None => Ok(ends.changed().await),
        };
        if !matches!(changed, Ok(Ok(()))) {
            return nothing;
        }
    }
}

fn check_start(partition: &Partition, from: Offset) -> Result<(), LogError> {
    let start = partition.start.load(Ordering::Acquire);
    if from < start { Err(LogError::Lost { start }) } else { Ok(()) }
}

async fn read_between(
    shared: &Arc<Shared>,
    id: PartitionId,
    from: Offset,
    end: Offset,
    limit: ReadLimit,
) -> Result<ReadBatch, Cause> {
    let db = shared.db().ok_or_else(|| Cause("the log is being opened again, try later".to_owned()))?;
    if end - from <= IN_PLACE {
        return scan(&db, id, from, end, limit);
    }
    let scan = tokio::task::spawn_blocking(move || scan(&db, id, from, end, limit));
    scan.await.unwrap_or_else(|_| Err(Cause("the runtime is shutting down".to_owned())))
}

fn scan(db: &Db, id: PartitionId, from: Offset, end: Offset, limit: ReadLimit) -> Result<ReadBatch, Cause> {
    let mut found = ReadBatch { records: Vec::new(), next: end };
    let mut bytes = 0;
    let records = db.records(id)?;
    // The iterator is made and used within the guard: the database may panic in either.
    guarded(|| {
        for item in records.range(from.to_be_bytes()..end.to_be_bytes()) {
            let (key, value) = item.into_inner()?;
            let (offset, record) = match (offset_of(&key), record::parse(&value)) {
                (Some(offset), Some(record)) => (offset, record),
                (offset, _) => return Ok(Err(offset)),
            };
            let size = size(&record);
            let full = found.records.len() >= limit.records || bytes + size > limit.bytes;
            if full && !found.records.is_empty() {
                found.next = offset;
                break;
            }
            bytes += size;
            found.records.push(StoredRecord { offset, record });
        }
        Ok(Ok(()))
    })?
    .map_err(|offset| {
        let offset = offset.map_or("?".to_owned(), |offset| offset.to_string());
        Cause(format!("the record at offset {offset} is damaged; restore the data directory"))
    })?;
    Ok(found)
}

fn size(record: &crate::log::Record) -> usize {
    let fields = record.key.iter().chain(&record.value);
    let headers = record.headers.iter().flat_map(|(name, value)| [name, value]);
    fields.chain(headers).map(bytes::Bytes::len).sum()
}
