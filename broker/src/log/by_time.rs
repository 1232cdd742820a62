//! From a time to an offset, for stores that keep no index of times: by halving a partition whose records stand
//! nearly in the order of their making.

use super::{Bounds, CLOCK_SKEW, Log, LogError, Offset, ReadLimit, Topic};

/// One record and no waiting.
const ONE: ReadLimit = ReadLimit { records: 1, bytes: 1, wait: std::time::Duration::ZERO };

/// See [`Log::offset_at`].
pub(super) async fn search<L: Log + ?Sized>(
    log: &L,
    topic: &Topic,
    partition: u32,
    time: i64,
) -> Result<Offset, LogError> {
    let skew = i64::try_from(CLOCK_SKEW.as_millis()).unwrap_or(i64::MAX);
    // The record before what is found is so old that none before it is of the time or later.
    let old = time.saturating_sub(skew);
    let Bounds { start: mut low, end: mut high } = log.bounds(topic, partition).await?;
    while low < high {
        let middle = low + (high - low) / 2;
        match log.read(topic, partition, middle, ONE).await {
            Ok(batch) => match batch.records.first() {
                Some(found) if found.offset >= high => high = middle,
                Some(found) if found.record.created < old => low = found.offset + 1,
                Some(_) | None => high = middle,
            },
            // Retention went on meanwhile.
            Err(LogError::Lost { start }) => low = start,
            Err(error) => return Err(error),
        }
    }
    Ok(low)
}
