//! What is kept when the disk is full, or when the process is killed: everything that was confirmed, once.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::*;
use crate::log::{
    Health,
    embedded::{
        PartitionId, Shared,
        db::{Cause, DataDir, Db},
        queue::Entry,
        store::Store,
    },
};

/// A small file system of its own, gone with this value.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    fn mount(megabytes: u32) -> SmallDisk {
        let dir = TempDir::new().unwrap();
        let size = format!("size={megabytes}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output();
        let mounted = mounted.expect("this test needs the mount command");
        let reason = String::from_utf8_lossy(&mounted.stderr);
        assert!(mounted.status.success(), "this test mounts a small tmpfs and so must run as root: {reason}");
        SmallDisk { dir }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// It is full until what comes back is dropped: what is given back meanwhile, such as a table that could not be
    /// finished, is taken at once.
    fn fill(&self) -> Ballast {
        let path = self.dir.path().join("ballast");
        let mut file = File::create(&path).unwrap();
        let mut fill = move || {
            for size in [1 << 20, 1 << 12] {
                while file.write_all(&vec![1; size]).is_ok() {}
            }
        };
        fill();
        let (stop, stopped) = mpsc::channel();
        let keeps_full = thread::spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(1)) == Err(RecvTimeoutError::Timeout) {
                fill();
            }
        });
        Ballast { path, stop: Some(stop), keeps_full: Some(keeps_full) }
    }
}

struct Ballast {
    path: PathBuf,
    stop: Option<mpsc::Sender<()>>,
    keeps_full: Option<thread::JoinHandle<()>>,
}

impl Drop for Ballast {
    fn drop(&mut self) {
        self.stop.take();
        let _ = self.keeps_full.take().map(thread::JoinHandle::join);
        std::fs::remove_file(&self.path).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.dir.path()).status();
    }
}

async fn health_is(log: &EmbeddedLog, wanted: impl Fn(&Health) -> bool) -> Health {
    let mut health = log.health();
    let seen = tokio::time::timeout(PATIENCE, health.wait_for(wanted)).await;
    seen.expect("waited in vain for the health").unwrap().clone()
}

fn failing(health: &Health) -> bool {
    matches!(health, Health::Failing(_))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_makes_appends_wait_and_nothing_is_lost_or_doubled() {
    let disk = SmallDisk::mount(200);
    let options = EmbeddedOptions { queue_records: 2_000, ..quick() };
    let log = EmbeddedLog::open(&disk.data(), options).unwrap();
    let made = topic(&log, "t", 2, FOREVER).await;
    let state = topic(&log, "state", 1, Cleanup::KeepLatest).await;
    let padding = "x".repeat(1_000);
    let (sink, mut outcomes) = told();
    let mut token = 0;
    let mut confirmed = 0;
    let mut append_some = |many: u64| {
        for _ in 0..many {
            let (topic, partition) = if token % 3 == 2 { (&state, 0) } else { (&made, (token % 3) as u32) };
            let record = record(&format!("k{}", token % 300), &format!("{token} {padding}"));
            log.append(topic, partition, record, Completion { sink: sink.clone(), token });
            token += 1;
        }
        token
    };
    for round in 0..3 {
        let appended = append_some(3_000);
        while confirmed < appended {
            assert_eq!(outcomes.recv().await.unwrap(), (confirmed, Outcome::Durable(confirmed / 3)));
            confirmed += 1;
        }
        let full = disk.fill();
        // More than what was reserved by the journal's last page.
        let appended = append_some(3_000);
        let Health::Failing(text) = health_is(&log, failing).await else { unreachable!() };
        assert!(
            text.contains("No space left") && text.contains(&disk.data().display().to_string()),
            "{text}"
        );
        assert!(!text.contains('\n'), "{text}");
        assert!(!log.room(), "what waits fills the queue");
        // Nothing more is confirmed while it fails, and readers get what was, or an error that says why.
        while let Ok(told) = outcomes.try_recv() {
            assert_eq!(told, (confirmed, Outcome::Durable(confirmed / 3)));
            confirmed += 1;
        }
        assert!(confirmed < appended);
        match log.read(&made, 0, 0, limit(10)).await {
            Ok(batch) => assert_eq!(batch.records.len(), 10),
            Err(LogError::Store(text)) => assert!(text.contains("being opened again"), "{text}"),
            Err(other) => panic!("{other}"),
        }
        drop(full);
        health_is(&log, |health| *health == Health::Working).await;
        while confirmed < appended {
            let told =
                tokio::time::timeout(PATIENCE, outcomes.recv()).await.expect("an outcome after the outage");
            assert_eq!(told.unwrap(), (confirmed, Outcome::Durable(confirmed / 3)), "round {round}");
            confirmed += 1;
        }
    }
    tokio::time::timeout(PATIENCE, log.wait_for_room()).await.unwrap();
    log.close().await;
    let log = EmbeddedLog::open(&disk.data(), options).unwrap();
    for partition in 0..2 {
        let found = values(&log, &made, partition).await;
        assert_eq!(found.len() as u64, confirmed / 3, "partition {partition}");
        for (index, (offset, value)) in (0..).zip(found) {
            let token = index * 3 + u64::from(partition);
            assert_eq!((offset, value), (index, format!("{token} {padding}")));
        }
    }
    let latest = || async { values(&log, &state, 0).await };
    eventually("the latest of 100 keys are left", || async { latest().await.len() == 100 }).await;
    for (offset, value) in latest().await {
        assert!(
            offset >= confirmed / 3 - 100 && value == format!("{} {padding}", offset * 3 + 2),
            "{offset} {value}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_in_the_background_is_noticed_without_an_append() {
    let disk = SmallDisk::mount(200);
    let log = EmbeddedLog::open(&disk.data(), quick()).unwrap();
    let made = topic(&log, "t", 1, FOREVER).await;
    for _ in 0..100 {
        append(&log, &made, 0, record("k", "v")).await;
    }
    let full = disk.fill();
    let _ = log.shared.db().unwrap().flush();
    health_is(&log, failing).await;
    let waiting = tokio::spawn(append_and_wait(&*log, &made, 0, record("k", "last")));
    let settings = TopicSettings { partitions: 1, cleanup: FOREVER, record_bytes: 1 << 20 };
    let refused = tokio::time::timeout(PATIENCE, log.ensure_topic("u", settings)).await.expect("an answer");
    assert!(matches!(refused, Err(LogError::Store(_))), "{refused:?}");
    assert!(!waiting.is_finished());
    drop(full);
    health_is(&log, |health| *health == Health::Working).await;
    assert_eq!(waiting.await.unwrap(), Outcome::Durable(100));
    assert_eq!(values(&log, &made, 0).await.len(), 101);
    topic(&log, "u", 1, FOREVER).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_closed_while_its_disk_is_full_tells_every_append_that_it_is_not_stored() {
    let disk = SmallDisk::mount(200);
    let log = EmbeddedLog::open(&disk.data(), quick()).unwrap();
    let made = topic(&log, "t", 1, FOREVER).await;
    let full = disk.fill();
    let (sink, mut outcomes) = told();
    let large = "x".repeat(10_000);
    for token in 0..1_000 {
        log.append(&made, 0, record("k", &large), Completion { sink: sink.clone(), token });
    }
    health_is(&log, failing).await;
    tokio::time::timeout(PATIENCE, log.close()).await.expect("closing ends");
    let mut ends = HashMap::new();
    for expected in 0..1_000 {
        let (token, outcome) = outcomes.try_recv().unwrap();
        assert_eq!(token, expected);
        if let Outcome::Durable(offset) = outcome {
            assert_eq!(offset, token);
        }
        *ends.entry(std::mem::discriminant(&outcome)).or_insert(0) += 1;
    }
    assert!(
        ends.contains_key(&std::mem::discriminant(&Outcome::Broken)),
        "the batch that failed may turn up"
    );
    let durable = ends.get(&std::mem::discriminant(&Outcome::Durable(0))).copied().unwrap_or(0);
    drop(full);
    let found = values(&open(&disk.data()), &made, 0).await;
    assert!(found.len() >= durable, "{} of {durable}", found.len());
    assert!((0..).zip(&found).all(|(index, (offset, _))| index == *offset));
}

const CHILD: &str = "EMBEDDED_LOG_TEST_CHILD";
const PARTITIONS: u32 = 3;
const KEYS: u64 = 50;

/// The test runs itself again as the process that is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_confirmed_record_survives_kill_9() {
    if let Ok(dir) = std::env::var(CHILD) {
        return append_for_ever(&PathBuf::from(dir)).await;
    }
    let dir = TempDir::new().unwrap();
    let mut confirmed = HashMap::new();
    for round in 0..5 {
        let mut child = start_child(dir.path());
        let output = BufReader::new(child.stdout.take().unwrap());
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
        let kill_after = 500 + nanos % 20_000;
        let mut seen = 0;
        for line in output.lines().map_while(Result::ok) {
            let Some(acked) = line.strip_prefix("acked ") else { continue };
            let numbers: Vec<u64> = acked.split(' ').map(|n| n.parse().unwrap()).collect();
            // The last line may be cut, but then it has too few numbers or a smaller one, which is as true.
            if let [partition, offset] = numbers[..] {
                let end = confirmed.entry(partition as u32).or_insert(0);
                *end = (offset + 1).max(*end);
            }
            seen += 1;
            if seen == kill_after {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen >= kill_after, "the child ended by itself after {seen} appends");
        let log = EmbeddedLog::open(dir.path(), quick()).unwrap();
        let stored = log.topic("stored").unwrap();
        for partition in 0..PARTITIONS {
            let found = values(&log, &stored, partition).await;
            let end = confirmed.get(&partition).copied().unwrap_or(0);
            assert!(found.len() as u64 >= end, "round {round}: {end} confirmed, {} found", found.len());
            for (index, (offset, value)) in (0..).zip(found) {
                assert_eq!((offset, value), (index, content(index)), "round {round}, partition {partition}");
            }
        }
        let state = log.topic("state").unwrap();
        let end = confirmed.get(&PARTITIONS).copied().unwrap_or(0);
        let found: HashMap<Offset, String> = values(&log, &state, 0).await.into_iter().collect();
        let last = log.bounds(&state, 0).await.unwrap().end;
        assert!(last >= end, "round {round}: {end} confirmed, the log ends at {last}");
        for offset in last.saturating_sub(KEYS)..last {
            assert_eq!(found.get(&offset), Some(&content(offset)), "round {round}: the latest of its key");
        }
        log.close().await;
    }
}

#[test]
fn a_store_killed_while_it_is_made_or_opened_opens_again() {
    let dir = TempDir::new().unwrap();
    for millis in (0..100).step_by(7) {
        let mut child = start_child(dir.path());
        let mut output = child.stdout.take().unwrap();
        let drained = std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        // Not a wait for anything: the moment of the fault.
        std::thread::sleep(Duration::from_millis(millis));
        child.kill().unwrap();
        child.wait().unwrap();
        drained.join().unwrap().unwrap();
        let opened = EmbeddedLog::open(dir.path(), quick());
        assert!(opened.is_ok(), "killed after {millis} ms: {:?}", opened.err());
        // So that each moment meets a store being made, too.
        if millis % 2 == 0 {
            drop(opened);
            std::fs::remove_dir_all(dir.path().join("store")).unwrap();
        }
    }
}

fn start_child(dir: &Path) -> Child {
    let name = "log::embedded::tests::faults::every_confirmed_record_survives_kill_9";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(CHILD, dir);
    command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
}

fn content(offset: Offset) -> String {
    format!("{offset} {}", "x".repeat((offset % 700) as usize))
}

async fn append_for_ever(dir: &Path) {
    let log = EmbeddedLog::open(dir, quick()).unwrap();
    let stored = topic(&log, "stored", PARTITIONS, FOREVER).await;
    let state = topic(&log, "state", 1, Cleanup::KeepLatest).await;
    let mut next = HashMap::new();
    for partition in 0..PARTITIONS {
        next.insert(partition, log.bounds(&stored, partition).await.unwrap().end);
    }
    next.insert(PARTITIONS, log.bounds(&state, 0).await.unwrap().end);
    let sink = Arc::new(Print);
    loop {
        for (partition, offset) in &mut next {
            log.wait_for_room().await;
            let record = record(&format!("k{}", *offset % KEYS), &content(*offset));
            let done = Completion { sink: sink.clone(), token: u64::from(*partition) };
            match *partition {
                PARTITIONS => log.append(&state, 0, record, done),
                _ => log.append(&stored, *partition, record, done),
            }
            *offset += 1;
        }
    }
}

/// Prints what is confirmed, as the parent expects it.
struct Print;

impl AppendSink for Print {
    fn appended(&self, partition: u64, outcome: Outcome) {
        let Outcome::Durable(offset) = outcome else { panic!("an append ended {outcome:?}") };
        println!("acked {partition} {offset}");
    }
}

/// A store without its thread, so that its steps can be taken one by one.
fn stopped_store(dir: &Path) -> (Store, Topic) {
    let shared = Arc::new(Shared::new(dir, EmbeddedOptions::default()));
    let (mut store, _) = Store::open(DataDir::lock(dir).unwrap(), shared).unwrap();
    let settings = TopicSettings { partitions: 1, cleanup: Cleanup::KeepLatest, record_bytes: 1 << 20 };
    let Ok(topic) = store.make_topic("t", settings) else { panic!("no topic was made") };
    (store, topic)
}

fn entry(topic: &Topic, value: &str) -> Entry {
    let record = record("k", value);
    let (sink, _) = told();
    Entry {
        partition: PartitionId { topic: topic.id(), partition: 0 },
        encoded: super::super::record::encode(&record),
        key: record.key,
        deletes: false,
        done: Completion { sink, token: 0 },
        offset: None,
    }
}

#[tokio::test]
async fn what_the_journal_kept_of_a_batch_that_failed_is_not_written_again() {
    let dir = TempDir::new().unwrap();
    let (mut store, topic) = stopped_store(dir.path());
    let mut batch = vec![entry(&topic, "v0"), entry(&topic, "v1")];
    assert_eq!(store.write(&mut batch), Ok(()));
    // Nobody was told, as if the sync had failed after the journal was written.
    assert!(store.recover(Cause("a sync failed".to_owned())));
    batch.push(entry(&topic, "v2"));
    assert_eq!(store.write(&mut batch), Ok(()));
    assert_eq!(batch.iter().map(|entry| entry.offset).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    store.close_db();
    drop(store);
    let log = open(dir.path());
    assert_eq!(values(&log, &topic, 0).await, [(0, "v0".into()), (1, "v1".into()), (2, "v2".into())]);
}

#[tokio::test]
async fn a_log_that_lost_confirmed_records_does_not_go_on_and_says_so() {
    let dir = TempDir::new().unwrap();
    let (mut store, topic) = stopped_store(dir.path());
    let mut batch = vec![entry(&topic, "v0")];
    assert_eq!(store.write(&mut batch), Ok(()));
    store.publish(&batch);
    store.close_db();
    let other = TempDir::new().unwrap();
    let (mut older, _) = stopped_store(other.path());
    older.close_db();
    drop(older);
    let db = Db::open(&DataDir::lock(other.path()).unwrap()).unwrap();
    let error = store.adopt(db).unwrap_err().to_string();
    assert!(error.contains("partition 0 of topic \"t\" ends at offset 0, but 1 was confirmed"), "{error}");
}
