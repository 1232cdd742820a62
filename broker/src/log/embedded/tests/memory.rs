//! What stays in memory, and for how long.

use std::time::Duration;

use fjall::AbstractTree;
use tempfile::TempDir;

use super::{EmbeddedLog, EmbeddedOptions, append, eventually, quick, read, record, told, topic};
use crate::log::{Cleanup, Completion, Log};

const RECORDS: usize = 3_000;
/// Less is not worth a table.
const LEAST: u64 = 10_000;

/// Bytes that the database keeps in memory of what was appended, written out or not.
fn held(log: &EmbeddedLog) -> u64 {
    let Some(db) = log.shared.db() else { return 0 };
    db.keyspaces().map(|keyspace| keyspace.tree.get_version_history_lock().memtable_size_sum()).sum()
}

#[tokio::test]
async fn records_leave_memory_after_a_while_whether_appended_or_found_in_the_journal() {
    let never = EmbeddedOptions {
        flush_age: Duration::from_secs(3600),
        flush_bytes: u64::MAX,
        flush_least: LEAST,
        ..quick()
    };
    let soon = EmbeddedOptions { flush_age: Duration::from_millis(100), ..never };
    let value = "x".repeat(1_000);
    for (first, second) in [(soon, None), (never, Some(soon))] {
        let dir = TempDir::new().unwrap();
        let mut log = EmbeddedLog::open(dir.path(), first).unwrap();
        let made = topic(&log, "t", 3, Cleanup::KeepLatest).await;
        let (sink, mut outcomes) = told();
        for token in 0..RECORDS as u64 {
            let record = record(&format!("k{token}"), &value);
            log.append(&made, token as u32 % 3, record, Completion { sink: sink.clone(), token });
        }
        for _ in 0..RECORDS {
            outcomes.recv().await.unwrap();
        }
        if let Some(second) = second {
            assert!(held(&log) > 3_000_000, "nothing makes it leave: {}", held(&log));
            log.close().await;
            log = EmbeddedLog::open(dir.path(), second).unwrap();
        }
        eventually("memory is given back", || async { held(&log) < LEAST }).await;
        let mut found = 0;
        for partition in 0..3 {
            found += read(&log, &made, partition, 0).await.records.len();
        }
        assert_eq!(found, RECORDS);
        append(&log, &made, 0, record("k0", "later")).await;
        assert!((1..LEAST).contains(&held(&log)), "{}", held(&log));
    }
}
