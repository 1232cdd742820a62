//! From a time to an offset.

use std::sync::Arc;

use tempfile::TempDir;

use super::{FOREVER, append, open, record, topic};
use crate::log::{CLOCK_SKEW, Completion, Log, Record};

const BEGIN: i64 = 1_700_000_000_000;

#[tokio::test]
async fn everything_of_a_time_or_later_stands_at_its_offset_or_behind_it() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let made = topic(&log, "trace", 2, FOREVER).await;
    let skew = i64::try_from(CLOCK_SKEW.as_millis()).unwrap();
    for time in [i64::MIN, 0, BEGIN, i64::MAX] {
        assert_eq!(log.offset_at(&made, 1, time).await.unwrap(), 0, "an empty partition");
    }
    // Nearly in order: each is up to the skew older than those before it.
    let created: Vec<i64> = (0..5000).map(|n: i64| BEGIN + n * 1000 - (n * 7919 % 300) * 1000).collect();
    let (sink, mut outcomes) = super::told();
    for created in &created {
        let record = Record { created: *created, ..record("k", "v") };
        log.append(&made, 1, record, Completion { sink: sink.clone(), token: 0 });
    }
    for _ in &created {
        outcomes.recv().await.unwrap();
    }
    for time in [0, BEGIN - skew, BEGIN, BEGIN + 1, BEGIN + 777_777, BEGIN + 2_500_000, BEGIN + 4_600_000] {
        let found = usize::try_from(log.offset_at(&made, 1, time).await.unwrap()).unwrap();
        let missed = created[..found].iter().filter(|created| **created >= time).count();
        assert_eq!(missed, 0, "records before offset {found}, for {time}");
        let first = created.iter().position(|created| *created >= time).unwrap();
        assert!(first - found <= 2 * 300 + 1, "{found} is far before {first}");
    }
    assert_eq!(log.offset_at(&made, 1, i64::MAX).await.unwrap(), 5000, "nothing is so late");
    assert_eq!(log.offset_at(&made, 0, BEGIN).await.unwrap(), 0, "another partition");
    append(&log, &made, 0, Record { created: BEGIN, ..record("k", "v") }).await;
    assert_eq!(log.offset_at(&made, 0, BEGIN + skew + 1).await.unwrap(), 1);
    let log: Arc<dyn Log> = log;
    assert!(log.offset_at(&made, 7, BEGIN).await.is_err(), "there is no such partition");
}
