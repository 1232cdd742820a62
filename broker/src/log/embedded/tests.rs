//! What a user of the store sees: order, reading, waiting, cleanup, and what is kept over a restart.
#![allow(clippy::indexing_slicing)]

mod by_time;
mod faults;
mod memory;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{EmbeddedLog, EmbeddedOptions};
use crate::log::{
    AppendSink, Bounds, Cleanup, Completion, Log, LogError, Offset, Outcome, ReadBatch, ReadLimit, Record,
    Topic, TopicSettings, append_and_wait,
};

const FOREVER: Cleanup = Cleanup::Retention { age: None, bytes: None };
/// For what must happen; far more than it takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn record(key: &str, value: &str) -> Record {
    Record {
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: vec![(Bytes::from_static(b"header"), Bytes::from_static(b"\x00\xff"))],
        created: 1_700_000_000_000,
    }
}

fn marker(key: &str) -> Record {
    Record { value: None, ..record(key, "") }
}

fn open(dir: &Path) -> Arc<EmbeddedLog> {
    EmbeddedLog::open(dir, EmbeddedOptions::default()).unwrap()
}

/// Compaction and retention without waiting for minutes.
fn quick() -> EmbeddedOptions {
    EmbeddedOptions {
        compaction_lag: Duration::ZERO,
        delete_retention: Duration::ZERO,
        cleanup_interval: Duration::from_millis(20),
        flush_bytes: 1 << 20,
        ..EmbeddedOptions::default()
    }
}

async fn topic(log: &EmbeddedLog, name: &str, partitions: u32, cleanup: Cleanup) -> Topic {
    log.ensure_topic(name, TopicSettings { partitions, cleanup, record_bytes: 1 << 20 }).await.unwrap()
}

async fn append(log: &EmbeddedLog, topic: &Topic, partition: u32, record: Record) -> Offset {
    match append_and_wait(log, topic, partition, record).await {
        Outcome::Durable(offset) => offset,
        other => panic!("an append ended {other:?}"),
    }
}

fn limit(records: usize) -> ReadLimit {
    ReadLimit { records, bytes: 1 << 30, wait: Duration::ZERO }
}

async fn read(log: &EmbeddedLog, topic: &Topic, partition: u32, from: Offset) -> ReadBatch {
    log.read(topic, partition, from, limit(usize::MAX)).await.unwrap()
}

async fn values(log: &EmbeddedLog, topic: &Topic, partition: u32) -> Vec<(Offset, String)> {
    let text = |value: Option<Bytes>| String::from_utf8(value.unwrap_or_default().to_vec()).unwrap();
    let batch = read(log, topic, partition, 0).await;
    batch.records.into_iter().map(|stored| (stored.offset, text(stored.record.value))).collect()
}

/// Waits until it holds, failing after `PATIENCE`.
async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Hands on every outcome in the order it was told.
struct Told(mpsc::UnboundedSender<(u64, Outcome)>);

impl AppendSink for Told {
    fn appended(&self, token: u64, outcome: Outcome) {
        let _ = self.0.send((token, outcome));
    }
}

fn told() -> (Arc<Told>, mpsc::UnboundedReceiver<(u64, Outcome)>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Arc::new(Told(sender)), receiver)
}

#[tokio::test]
async fn what_was_appended_is_read_back_with_its_offset_and_survives_a_restart() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let made = topic(&log, "readings", 2, FOREVER).await;
    for offset in 0..3 {
        assert_eq!(append(&log, &made, 1, record("k", &format!("v{offset}"))).await, offset);
    }
    let mut bare = record("", "");
    (bare.key, bare.headers) = (None, Vec::new());
    append(&log, &made, 0, bare.clone()).await;
    for round in ["before", "after"] {
        let log = if round == "before" {
            log.clone()
        } else {
            log.close().await;
            open(dir.path())
        };
        let found = log.topic("readings").unwrap();
        assert_eq!(found.partitions(), 2);
        assert_eq!(
            values(&log, &found, 1).await,
            [(0, "v0".into()), (1, "v1".into()), (2, "v2".into())],
            "{round} the restart"
        );
        assert_eq!(read(&log, &found, 1, 2).await.records[0].record, record("k", "v2"));
        assert_eq!(read(&log, &found, 0, 0).await.records[0].record, bare);
        assert_eq!(log.bounds(&found, 1).await.unwrap(), Bounds { start: 0, end: 3 });
        if round == "after" {
            assert_eq!(append(&log, &found, 1, record("k", "v3")).await, 3);
        }
    }
}

#[tokio::test]
async fn outcomes_come_in_the_order_of_the_appends_across_topics() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let topics = [topic(&log, "a", 2, FOREVER).await, topic(&log, "b", 1, Cleanup::KeepLatest).await];
    let (sink, mut outcomes) = told();
    for token in 0..10_000_u64 {
        let (topic, partition) = match token % 3 {
            0 => (&topics[0], 0),
            1 => (&topics[0], 1),
            _ => (&topics[1], 0),
        };
        let record = record(&format!("k{token}"), "v");
        log.append(topic, partition, record, Completion { sink: sink.clone(), token });
    }
    for token in 0..10_000 {
        assert_eq!(outcomes.recv().await.unwrap(), (token, Outcome::Durable(token / 3)));
    }
}

#[tokio::test]
async fn a_read_stops_at_its_limits_and_says_where_to_go_on() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let made = topic(&log, "t", 1, FOREVER).await;
    for _ in 0..5 {
        append(&log, &made, 0, record("key", "0123456789")).await;
    }
    // A record counts 3 + 10 bytes and its header 6 + 2.
    let cases = [
        (0, 100, 1 << 20, 5, 5),
        (0, 2, 1 << 20, 2, 2),
        (1, 2, 1 << 20, 2, 3),
        (0, 100, 43, 2, 2),
        (0, 100, 1, 1, 1),
        (0, 0, 0, 1, 1),
        (5, 100, 1 << 20, 0, 5),
    ];
    for (from, records, bytes, expected, next) in cases {
        let limit = ReadLimit { records, bytes, wait: Duration::ZERO };
        let batch = log.read(&made, 0, from, limit).await.unwrap();
        assert_eq!(
            (batch.records.len(), batch.next),
            (expected, next),
            "from {from}, {records} records, {bytes} bytes"
        );
    }
    let limit = ReadLimit { records: 100, bytes: 1 << 20, wait: Duration::ZERO };
    assert!(matches!(log.read(&made, 0, 9, limit).await, Err(LogError::Ahead { end: 5 })));
}

#[tokio::test]
async fn a_waiting_read_returns_with_the_next_record_or_empty_after_its_wait() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let made = topic(&log, "t", 2, FOREVER).await;
    let wait = |wait| ReadLimit { records: 10, bytes: 1 << 20, wait };
    let empty = log.read(&made, 0, 0, wait(Duration::from_millis(20))).await.unwrap();
    assert_eq!((empty.records.len(), empty.next), (0, 0));
    let reading = tokio::spawn({
        let (log, made) = (log.clone(), made.clone());
        async move { log.read(&made, 0, 0, wait(PATIENCE)).await.unwrap() }
    });
    append(&log, &made, 1, record("k", "another partition's")).await;
    assert!(!reading.is_finished());
    append(&log, &made, 0, record("k", "v")).await;
    let batch = reading.await.unwrap();
    assert_eq!((batch.records.len(), batch.next), (1, 1));
}

#[tokio::test]
async fn a_topic_grows_keeps_its_settings_and_refuses_what_cannot_be() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let made = topic(&log, "t", 2, FOREVER).await;
    append(&log, &made, 1, record("k", "v")).await;
    assert_eq!(topic(&log, "t", 4, FOREVER).await.partitions(), 4);
    assert_eq!(made.partitions(), 4, "an older handle sees the growth");
    assert_eq!(topic(&log, "t", 1, FOREVER).await.partitions(), 4, "a topic never shrinks");
    append(&log, &made, 3, record("k", "v")).await;
    let long = "n".repeat(250);
    let cases = [
        ("t", 4, Cleanup::KeepLatest),
        ("u", 0, FOREVER),
        ("u", 1_001, FOREVER),
        ("", 1, FOREVER),
        (&long, 1, FOREVER),
    ];
    for (name, partitions, cleanup) in cases {
        let refused =
            log.ensure_topic(name, TopicSettings { partitions, cleanup, record_bytes: 1 << 20 }).await;
        assert!(matches!(refused, Err(LogError::Settings(_))), "{name:?} with {partitions}: {refused:?}");
    }
    assert!(log.topic("u").is_none());
    assert_eq!(append_and_wait(&*log, &made, 4, record("k", "v")).await, Outcome::Refused);
    let missing = log.read(&made, 4, 0, limit(1)).await;
    assert!(matches!(missing, Err(LogError::UnknownPartition { partition: 4, .. })), "{missing:?}");
    log.close().await;
    let log = open(dir.path());
    assert_eq!(log.topic("t").unwrap().partitions(), 4);
    assert_eq!(values(&log, &made, 1).await.len() + values(&log, &made, 3).await.len(), 2);
}

#[tokio::test]
async fn a_closed_log_has_stored_what_was_appended_and_refuses_more() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let made = topic(&log, "t", 1, FOREVER).await;
    let (sink, mut outcomes) = told();
    for token in 0..1_000 {
        log.append(&made, 0, record("k", "v"), Completion { sink: sink.clone(), token });
    }
    log.close().await;
    for token in 0..1_000 {
        assert_eq!(outcomes.try_recv().unwrap(), (token, Outcome::Durable(token)));
    }
    assert_eq!(append_and_wait(&*log, &made, 0, record("k", "late")).await, Outcome::Refused);
    let settings = TopicSettings { partitions: 1, cleanup: FOREVER, record_bytes: 1 << 20 };
    assert!(matches!(log.ensure_topic("u", settings).await, Err(LogError::Store(_))));
    assert_eq!(values(&open(dir.path()), &made, 0).await.len(), 1_000);
}

#[tokio::test]
async fn a_full_queue_has_no_room_until_what_waits_is_stored() {
    let dir = TempDir::new().unwrap();
    let options = EmbeddedOptions { queue_records: 100, ..EmbeddedOptions::default() };
    let log = EmbeddedLog::open(dir.path(), options).unwrap();
    let made = topic(&log, "t", 1, FOREVER).await;
    let (sink, mut outcomes) = told();
    let mut appended = 0;
    while log.room() {
        assert!(appended < 1_000_000, "there was always room");
        log.append(&made, 0, record("k", "v"), Completion { sink: sink.clone(), token: appended });
        appended += 1;
    }
    tokio::time::timeout(PATIENCE, log.wait_for_room()).await.unwrap();
    assert!(log.room());
    for _ in 0..appended {
        assert!(matches!(outcomes.recv().await.unwrap().1, Outcome::Durable(_)));
    }
}

#[tokio::test]
async fn a_directory_in_use_or_of_another_format_is_refused_in_one_line() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let refused = |expected: &str| {
        let error = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains(&dir.path().display().to_string()) && !error.contains('\n'), "{error}");
    };
    refused("is in use by another process");
    log.close().await;
    drop(log);
    let data = super::DataDir::lock(dir.path()).unwrap();
    super::Db::open(&data).unwrap().meta.insert("format", 9_u32.to_be_bytes()).unwrap();
    drop(data);
    refused("has format 9, this version reads 1");
}

#[tokio::test]
async fn a_store_whose_making_was_interrupted_is_made_anew() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir_all(dir.path().join("store.new/keyspaces/0")).unwrap();
    for name in ["0.jnl", "version"] {
        std::fs::write(dir.path().join("store.new").join(name), []).unwrap();
    }
    let log = open(dir.path());
    let made = topic(&log, "t", 1, FOREVER).await;
    assert_eq!(append(&log, &made, 0, record("k", "v")).await, 0);
    log.close().await;
    std::fs::remove_file(dir.path().join("store/version")).unwrap();
    let error = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).err().unwrap().to_string();
    assert!(error.contains("its version file is missing"), "a store with records is never removed: {error}");
}

#[tokio::test]
async fn a_damaged_record_is_an_error_that_names_its_place() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let made = topic(&log, "t", 2, FOREVER).await;
    for value in ["v0", "v1", "v2"] {
        append(&log, &made, 1, record("k", value)).await;
    }
    let id = super::PartitionId { topic: made.id(), partition: 1 };
    log.shared.db().unwrap().records(id).unwrap().insert(1_u64.to_be_bytes(), [1, 2, 3]).unwrap();
    let error = log.read(&made, 1, 0, limit(10)).await.unwrap_err().to_string();
    assert!(error.contains("partition 1 of topic \"t\"") && error.contains("offset 1"), "{error}");
    assert_eq!(read(&log, &made, 1, 2).await.records.len(), 1, "the rest can be read");
}

#[tokio::test]
async fn retention_takes_the_oldest_and_reading_them_is_lost_with_the_start() {
    let dir = TempDir::new().unwrap();
    let log = EmbeddedLog::open(dir.path(), quick()).unwrap();
    let kilobyte = "x".repeat(1_000);
    let cleanups = [
        Cleanup::Retention { age: None, bytes: Some(50_000) },
        Cleanup::Retention { age: Some(Duration::from_millis(300)), bytes: None },
    ];
    for (number, cleanup) in cleanups.into_iter().enumerate() {
        let made = topic(&log, &format!("t{number}"), 1, cleanup).await;
        for _ in 0..100 {
            append(&log, &made, 0, record("k", &kilobyte)).await;
        }
        eventually("the start rises", || async { log.bounds(&made, 0).await.unwrap().start >= 50 }).await;
        let error = log.read(&made, 0, 0, limit(1)).await.unwrap_err();
        let LogError::Lost { start } = error else { panic!("{error}") };
        if number == 0 {
            assert!((50..60).contains(&start), "{start}: 50 kB of about 1,070 bytes each stay");
            // It may rise once more in between.
            eventually("the first is read", || async {
                let start = log.bounds(&made, 0).await.unwrap().start;
                log.read(&made, 0, start, limit(1)).await.is_ok_and(|batch| batch.records[0].offset == start)
            })
            .await;
        }
        // It makes the start rise once more.
        assert_eq!(append(&log, &made, 0, record("k", "v")).await, 100, "offsets go on");
        if number == 1 {
            eventually("all is gone", || async { log.bounds(&made, 0).await.unwrap().start == 101 }).await;
        }
        // A reader at the end is never lost.
        assert_eq!(read(&log, &made, 0, 101).await.next, 101);
    }
    log.close().await;
    let log = EmbeddedLog::open(dir.path(), quick()).unwrap();
    let emptied = log.topic("t1").unwrap();
    assert_eq!(log.bounds(&emptied, 0).await.unwrap(), Bounds { start: 101, end: 101 });
    assert_eq!(append(&log, &emptied, 0, record("k", "v")).await, 101, "no offset is given twice");
}

#[tokio::test]
async fn keep_latest_keeps_the_last_record_of_each_key_and_drops_delete_markers() {
    let dir = TempDir::new().unwrap();
    let log = EmbeddedLog::open(dir.path(), quick()).unwrap();
    let made = topic(&log, "state", 1, Cleanup::KeepLatest).await;
    let other = topic(&log, "other", 1, Cleanup::KeepLatest).await;
    append(&log, &other, 0, record("a", "another topic's")).await;
    let appends = [
        record("a", "a0"),
        record("b", "b1"),
        record("a", "a2"),
        record("c", "c3"),
        marker("c"),
        record("d", "d5"),
        marker("d"),
        record("d", "d7"),
        marker("e"),
    ];
    for record in appends {
        append(&log, &made, 0, record).await;
    }
    let left = [(1, "b1".to_owned()), (2, "a2".to_owned()), (7, "d7".to_owned())];
    eventually("the superseded go", || async { values(&log, &made, 0).await == left }).await;
    assert_eq!(log.bounds(&made, 0).await.unwrap(), Bounds { start: 0, end: 9 });
    assert_eq!(read(&log, &made, 0, 8).await.next, 9, "past the gap at the end");
    log.close().await;
    let log = EmbeddedLog::open(dir.path(), quick()).unwrap();
    assert_eq!(values(&log, &made, 0).await, left);
    assert_eq!(values(&log, &other, 0).await.len(), 1);
    assert_eq!(
        append(&log, &made, 0, record("c", "c9")).await,
        9,
        "the offset of a removed marker stays taken"
    );
    append(&log, &made, 0, record("b", "b10")).await;
    let left = [(2, "a2".to_owned()), (7, "d7".to_owned()), (9, "c9".to_owned()), (10, "b10".to_owned())];
    eventually("what an earlier run wrote is superseded", || async { values(&log, &made, 0).await == left })
        .await;
}

#[tokio::test]
async fn nothing_is_compacted_before_its_time() {
    let dir = TempDir::new().unwrap();
    let hour = Duration::from_secs(3600);
    let cases = [(hour, Duration::ZERO, 3), (Duration::ZERO, hour, 2)];
    for (number, (compaction_lag, delete_retention, left)) in cases.into_iter().enumerate() {
        let options = EmbeddedOptions { compaction_lag, delete_retention, ..quick() };
        let log = EmbeddedLog::open(&dir.path().join(number.to_string()), options).unwrap();
        let made = topic(&log, "t", 1, Cleanup::KeepLatest).await;
        for record in [record("a", "a0"), record("a", "a1"), marker("b")] {
            append(&log, &made, 0, record).await;
        }
        eventually("what may go goes", || async { read(&log, &made, 0, 0).await.records.len() == left })
            .await;
        let until = Instant::now() + Duration::from_millis(200);
        eventually("some steps have run", || async { Instant::now() > until }).await;
        assert_eq!(read(&log, &made, 0, 0).await.records.len(), left, "lag {compaction_lag:?}");
    }
}

#[tokio::test]
async fn the_disk_space_of_what_is_cleaned_up_comes_back() {
    let dir = TempDir::new().unwrap();
    let log = EmbeddedLog::open(dir.path(), quick()).unwrap();
    let stored = Cleanup::Retention { age: None, bytes: Some(4 << 20) };
    let topics = [topic(&log, "stored", 1, stored).await, topic(&log, "state", 1, Cleanup::KeepLatest).await];
    let (sink, mut outcomes) = told();
    for topic in &topics {
        for token in 0..8_000_u64 {
            log.wait_for_room().await;
            // Bytes that do not compress, or the test would show nothing.
            let noise: Vec<u8> = (0..10_000_u64)
                .map(|i| ((i * 31 + token).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u8)
                .collect();
            let mut record = record(&format!("key {}", token % 100), "");
            record.value = Some(noise.into());
            log.append(topic, 0, record, Completion { sink: sink.clone(), token });
        }
    }
    for _ in 0..16_000 {
        assert!(matches!(outcomes.recv().await.unwrap().1, Outcome::Durable(_)));
    }
    // 160 MB were written; 4 MiB and 1 MB are wanted, and a table or two more may stay of each.
    let size = || allocated(&dir.path().join("store/keyspaces"));
    eventually("the tables shrink", || async { size() < 48 << 20 }).await;
    eventually("journals go", || async { allocated(dir.path()) < 200 << 20 }).await;
    let left = || async { read(&log, &topics[1], 0, 0).await.records.len() };
    topic(&log, "stored", 1, Cleanup::Retention { age: Some(Duration::ZERO), bytes: None }).await;
    let stored = super::PartitionId { topic: topics[0].id(), partition: 0 };
    let stored = || log.shared.db().unwrap().records(stored).unwrap().disk_space();
    eventually("nothing is left of what is too old", || async { stored() < 10_000 }).await;
    eventually("the latest of 100 keys are left", || async { left().await == 100 }).await;
}

/// Bytes that the files below take on the disk.
fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => allocated(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}
