//! The simulated store does what the trait allows, and nothing else.
#![allow(clippy::indexing_slicing)]

use super::{cluster::EPOCH, *};
use crate::log::{AppendSink, Cleanup, append_and_wait};

const SETTINGS: TopicSettings =
    TopicSettings { partitions: 2, cleanup: Cleanup::KeepLatest, record_bytes: 1 << 20 };
const ALL: ReadLimit = ReadLimit { records: usize::MAX, bytes: usize::MAX, wait: Duration::ZERO };

fn record(key: u64, value: Option<u64>, created: u64) -> Record {
    let bytes = |n: u64| bytes::Bytes::from(n.to_string());
    let created = i64::try_from(created).unwrap();
    Record { key: Some(bytes(key)), value: value.map(bytes), headers: Vec::new(), created }
}

fn cluster(seed: u64) -> Arc<Cluster> {
    Cluster::new(fastrand::Rng::with_seed(seed), Box::new(|_, _, _| {}))
}

fn process(cluster: &Arc<Cluster>, seed: u64) -> Arc<SimLog> {
    SimLog::new(cluster.clone(), Outside::default(), fastrand::Rng::with_seed(seed), 1000)
}

/// Values in the order in which they stand, read in many small steps.
async fn values(log: &SimLog, topic: &Topic) -> Vec<u64> {
    let (mut found, mut from, mut last) = (Vec::new(), 0, None);
    loop {
        let batch = log.read(topic, 0, from, ALL).await.unwrap();
        for stored in &batch.records {
            assert!(last < Some(stored.offset) && stored.offset >= from, "offsets rise");
            last = Some(stored.offset);
            let value = stored.record.value.clone().unwrap_or_default();
            found.push(std::str::from_utf8(&value).unwrap().parse().unwrap_or(u64::MAX));
        }
        if batch.next == from {
            return found;
        }
        from = batch.next;
    }
}

#[derive(Default)]
struct Told(Mutex<Vec<(u64, Outcome)>>);

impl AppendSink for Told {
    fn appended(&self, token: u64, outcome: Outcome) {
        self.0.lock().push((token, outcome));
    }
}

#[tokio::test(start_paused = true)]
async fn one_writer_s_records_stand_in_order_whatever_repeats() {
    let mut repeated = 0;
    for seed in 0..30 {
        let cluster = cluster(seed);
        let log = process(&cluster, seed);
        log.set_weather(Weather { repeats: 0.5, ..Weather::default() });
        let topic = log.ensure_topic("t", SETTINGS).await.unwrap();
        let sink = Arc::new(Told::default());
        for token in 0..60 {
            let done = Completion { sink: sink.clone(), token };
            log.append(&topic, 0, record(token, Some(token), EPOCH), done);
            if token % 7 == 0 {
                sleep(Duration::from_millis(2)).await;
            }
        }
        log.close().await;
        let told = sink.0.lock().clone();
        assert!(told.iter().all(|(_, outcome)| matches!(outcome, Outcome::Durable(_))), "{told:?}");
        assert!(told.iter().map(|(token, _)| *token).eq(0..60), "told in order: {told:?}");
        let found = values(&log, &topic).await;
        let (mut most, mut first) = (0, Vec::new());
        for value in &found {
            assert!(*value <= most, "seed {seed}: a gap before {value} in {found:?}");
            if *value == most {
                first.push(*value);
                most += 1;
            }
        }
        assert_eq!(first.len(), 60, "seed {seed}");
        repeated += found.len() - 60;
    }
    assert!(repeated > 30, "hardly anything was repeated");
}

#[tokio::test(start_paused = true)]
async fn what_is_made_off_the_clock_is_refused_with_what_its_writer_has_behind_it() {
    let cluster = cluster(1);
    let log = process(&cluster, 1);
    let topic = log.ensure_topic("t", SETTINGS).await.unwrap();
    sleep(Duration::from_secs(400)).await;
    let (one, other) = (Arc::new(Told::default()), Arc::new(Told::default()));
    for (token, created) in [(0, EPOCH + 400_000), (1, EPOCH), (2, EPOCH + 400_000)] {
        log.append(&topic, 0, record(0, Some(token), created), Completion { sink: one.clone(), token });
    }
    log.append(&topic, 0, record(0, Some(3), EPOCH + 400_000), Completion { sink: other.clone(), token: 3 });
    log.close().await;
    let outcomes = |told: &Told| told.0.lock().iter().map(|(_, outcome)| *outcome).collect::<Vec<_>>();
    assert!(matches!(outcomes(&one)[..], [Outcome::Durable(_), Outcome::Refused, Outcome::Refused]));
    assert!(matches!(outcomes(&other)[..], [Outcome::Durable(_)]));
    assert_eq!(values(&log, &topic).await, [0, 3]);
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_process_had_on_its_way_shows_late_in_part_or_never() {
    let mut shown = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let cluster = cluster(seed);
        let log = process(&cluster, seed);
        let topic = log.ensure_topic("t", SETTINGS).await.unwrap();
        log.set_away(true);
        let sink = Arc::new(Told::default());
        for token in 0..3 {
            let done = Completion { sink: sink.clone(), token };
            log.append(&topic, 0, record(token, Some(token), EPOCH), done);
        }
        sleep(Duration::from_secs(1)).await;
        log.crash();
        let successor = process(&cluster, seed + 100);
        let created = cluster.wall();
        append_and_wait(&*successor, &topic, 0, record(9, Some(9), created)).await;
        sleep(Duration::from_secs(600)).await;
        assert!(sink.0.lock().is_empty(), "the dead are told nothing");
        shown.insert(values(&successor, &topic).await);
    }
    assert!(shown.contains(&vec![9]) && shown.contains(&vec![9, 0, 1, 2]), "{shown:?}");
    assert!(shown.iter().all(|found| found.iter().filter(|value| **value != 9).is_sorted()), "{shown:?}");
}

#[tokio::test(start_paused = true)]
async fn compaction_keeps_each_key_s_latest_and_takes_only_what_is_old() {
    for seed in 0..20 {
        let cluster = cluster(seed);
        let log = process(&cluster, seed);
        let topic = log.ensure_topic("t", SETTINGS).await.unwrap();
        let append = async |key, value| {
            append_and_wait(&*log, &topic, 0, record(key, value, cluster.wall())).await;
        };
        append(1, Some(10)).await;
        append(1, Some(11)).await;
        append(2, Some(20)).await;
        append(2, None).await;
        cluster.compact();
        assert_eq!(values(&log, &topic).await, [10, 11, 20, u64::MAX], "all are young");
        sleep(Duration::from_secs(61)).await;
        append(1, Some(12)).await;
        (0..20).for_each(|_| {
            cluster.compact();
        });
        assert_eq!(values(&log, &topic).await, [u64::MAX, 12], "the marker outlives what it deletes");
        sleep(Duration::from_secs(16 * 60)).await;
        (0..20).for_each(|_| {
            cluster.compact();
        });
        assert_eq!(values(&log, &topic).await, [12]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_record_an_end_of_old_and_a_store_away_are_told() {
    let cluster = cluster(5);
    let log = process(&cluster, 5);
    let topic = log.ensure_topic("t", SETTINGS).await.unwrap();
    for value in 0..5 {
        append_and_wait(&*log, &topic, 0, record(value, Some(value), EPOCH)).await;
    }
    let end = log.bounds(&topic, 0).await.unwrap().end;
    assert_eq!(log.known_end(&topic, 0), end);
    cluster.delete_before(&topic, 0, 2);
    assert!(matches!(log.read(&topic, 0, 0, ALL).await, Err(LogError::Lost { start: 2 })));
    assert!(matches!(log.read(&topic, 0, end + 1, ALL).await, Err(LogError::Ahead { .. })));
    log.set_weather(Weather { stale: true, ..Weather::default() });
    let mut ends = Vec::new();
    for _ in 0..20 {
        ends.push(log.bounds(&topic, 0).await.unwrap().end);
    }
    assert!(ends.iter().any(|old| *old < end) && ends.iter().all(|old| (2..=end).contains(old)), "{ends:?}");
    log.set_away(true);
    assert!(matches!(log.read(&topic, 0, 2, ALL).await, Err(LogError::Store(_))));
    let health = log.health().wait_for(|health| *health != Health::Working).await.unwrap().clone();
    assert!(matches!(health, Health::Away(_)));
    log.set_away(false);
    assert_eq!(*log.health().borrow(), Health::Working);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_says_so_until_there_is_room() {
    let cluster = cluster(6);
    let log = SimLog::new(cluster.clone(), Outside::default(), fastrand::Rng::with_seed(6), 4);
    let topic = log.ensure_topic("t", SETTINGS).await.unwrap();
    log.set_away(true);
    let sink = Arc::new(Told::default());
    for token in 0..5 {
        log.append(&topic, 0, record(token, None, EPOCH), Completion { sink: sink.clone(), token });
    }
    assert!(!log.room());
    log.set_away(false);
    log.wait_for_room().await;
    assert!(log.room());
}
