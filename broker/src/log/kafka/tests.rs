//! The store before librdkafka's own mock of a cluster, which fails as it is told. What needs a real Kafka is in the stories.

use std::collections::HashMap;

use bytes::Bytes;
use mqtt_broker_api::config::{Kafka, KafkaSecrets};
use rdkafka::{
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use tokio::{sync::mpsc, time::timeout};

use super::*;
use crate::log::{AppendSink, StoredRecord, append_and_wait};

const PATIENCE: Duration = Duration::from_secs(30);
const KEPT: TopicSettings = TopicSettings {
    partitions: 2,
    cleanup: Cleanup::Retention { age: None, bytes: None },
    record_bytes: 1000,
};

/// A store on a mock, with the topic `t`.
struct Place {
    cluster: MockCluster<'static, DefaultProducerContext>,
    log: Arc<KafkaLog>,
}

struct Told(mpsc::UnboundedSender<(u64, Outcome)>);

impl AppendSink for Told {
    fn appended(&self, token: u64, outcome: Outcome) {
        self.0.send((token, outcome)).unwrap();
    }
}

fn told() -> (Arc<Told>, mpsc::UnboundedReceiver<(u64, Outcome)>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Arc::new(Told(sender)), receiver)
}

fn access(cluster: &MockCluster<'static, DefaultProducerContext>, client_id: &str) -> Access {
    let config = Kafka {
        bootstrap_servers: vec![cluster.bootstrap_servers()],
        replication_factor: 1,
        rack: None,
        tls: None,
        sasl: None,
    };
    Access::new(config, KafkaSecrets::default(), client_id)
}

impl Place {
    async fn new() -> Place {
        let cluster = MockCluster::new(1).unwrap();
        let log = KafkaLog::open(access(&cluster, "test")).unwrap();
        let place = Place { cluster, log };
        place.topic("t").await;
        place
    }

    async fn topic(&self, name: &str) -> Topic {
        if self.log.topic(name).is_none() {
            self.cluster.create_topic(name, 2, 1).unwrap();
        }
        let found = Found { partitions: 2, max_record: KEPT.record_bytes, min_in_sync: 1, made: false };
        let topic = self.log.shared.admit(name, KEPT, &found).await.unwrap();
        // The mock answers no questions about topics' settings, so none are to be verified.
        *self.log.shared.topic(name).unwrap().settings.lock() = None;
        topic
    }

    /// The values of a partition.
    async fn values(&self, topic: &Topic, partition: u32) -> Vec<String> {
        let mut from = 0;
        let mut values = Vec::new();
        loop {
            let limit = ReadLimit { records: 7, bytes: 1 << 20, wait: Duration::ZERO };
            let batch =
                timeout(PATIENCE, self.log.read(topic, partition, from, limit)).await.unwrap().unwrap();
            if batch.next == from {
                return values;
            }
            for stored in batch.records {
                values.push(String::from_utf8(stored.record.value.unwrap().to_vec()).unwrap());
            }
            from = batch.next;
        }
    }
}

fn record(value: impl ToString) -> Record {
    Record {
        key: Some(Bytes::from_static(b"k")),
        value: Some(value.to_string().into()),
        headers: vec![(Bytes::from_static(b"h"), Bytes::from_static(b"\xff\x00"))],
        created: i64::try_from(crate::node::wall()).unwrap(),
    }
}

/// First occurrences, in order.
fn first(values: &[String]) -> Vec<&str> {
    let mut seen = std::collections::HashSet::new();
    values.iter().map(String::as_str).filter(|value| seen.insert(*value)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_come_back_as_they_were_appended() {
    let place = Place::new().await;
    let topic = place.log.topic("t").unwrap();
    assert_eq!(place.values(&topic, 0).await, Vec::<String>::new(), "an empty partition");
    for i in 0..3 {
        let outcome = append_and_wait(&*place.log, &topic, 1, record(i)).await;
        assert_eq!(outcome, Outcome::Durable(i));
    }
    let limit = ReadLimit { records: 1, bytes: 1 << 20, wait: Duration::ZERO };
    for i in 1..3 {
        let batch = place.log.read(&topic, 1, i, limit).await.unwrap();
        assert_eq!((batch.next, batch.records.len()), (i + 1, 1));
        let StoredRecord { offset, record: found } = batch.records[0].clone();
        let appended = Record { created: found.created, ..record(i) };
        assert_eq!((offset, found), (i, appended));
    }
    assert_eq!(place.log.bounds(&topic, 1).await.unwrap(), Bounds { start: 0, end: 3 });
    assert_eq!(place.log.known_end(&topic, 1), 3);
    assert!(matches!(place.log.read(&topic, 1, 9, limit).await, Err(LogError::Ahead { end: 3 })));
    assert_eq!(place.values(&topic, 1).await, ["0", "1", "2"], "again from the start");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_waits_gets_what_comes() {
    let place = Place::new().await;
    let topic = place.log.topic("t").unwrap();
    let limit = ReadLimit { records: 10, bytes: 1 << 20, wait: PATIENCE };
    let mut from = 0;
    for i in 0..5 {
        let (log, topic) = (place.log.clone(), topic.clone());
        let waiting = tokio::spawn(async move { log.read(&topic, 0, from, limit).await });
        append_and_wait(&*place.log, &place.log.topic("t").unwrap(), 0, record(i)).await;
        let batch = timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
        assert_eq!(batch.records.len(), 1, "record {i}");
        from = batch.next;
    }
    let short = ReadLimit { wait: Duration::from_millis(50), ..limit };
    let batch = place.log.read(&topic, 0, from, short).await.unwrap();
    assert_eq!((batch.records.len(), batch.next), (0, from), "nothing came");
}

/// Appends numbers while Kafka's answers to some are these; all of them must end in the log, in order.
async fn check_errors(what: &str, errors: &[RDKafkaRespErr]) {
    const COUNT: u64 = 400;
    let place = Place::new().await;
    let topic = place.log.topic("t").unwrap();
    let (sink, mut outcomes) = told();
    let mut ends = HashMap::new();
    for i in 0..COUNT {
        if i == COUNT / 4 {
            place.cluster.request_errors(RDKafkaApiKey::Produce, errors);
        }
        let partition = u32::from(i % 2 == 1);
        place.log.append(&topic, partition, record(i), Completion { sink: sink.clone(), token: i });
        if i % 10 == 0 {
            let (token, outcome) = timeout(PATIENCE, outcomes.recv()).await.expect(what).unwrap();
            ends.insert(token, outcome);
        }
    }
    while ends.len() < usize::try_from(COUNT).unwrap() {
        let (token, outcome) = timeout(PATIENCE, outcomes.recv()).await.expect(what).unwrap();
        assert!(ends.insert(token, outcome).is_none(), "{what}: {token} was told twice");
    }
    assert!(ends.values().all(|end| matches!(end, Outcome::Durable(_))), "{what}: {ends:?}");
    for partition in 0..2 {
        let values = place.values(&topic, partition).await;
        let expected: Vec<String> =
            (0..COUNT).filter(|i| i % 2 == u64::from(partition)).map(|i| i.to_string()).collect();
        assert_eq!(first(&values), expected, "{what}");
    }
    assert!(place.log.room());
    assert_eq!(place.log.shared.room.records(), 0, "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_record_gets_in_in_order_whatever_kafka_answers_meanwhile() {
    use RDKafkaRespErr as E;
    check_errors("a leader that moved", &[E::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION; 3]).await;
    check_errors("too few replicas", &[E::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 3]).await;
    check_errors("a lost answer", &[E::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT; 2]).await;
    check_errors("a topic not known for a moment", &[E::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART]).await;
    check_errors("a sequence Kafka lost", &[E::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]).await;
    check_errors("a producer Kafka forgot", &[E::RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID]).await;
    check_errors("an unknown trouble", &[E::RD_KAFKA_RESP_ERR_UNKNOWN]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_kafka_refuses_is_told_and_stops_nobody_else() {
    let place = Place::new().await;
    let topic = place.log.topic("t").unwrap();
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP;
    place.cluster.request_errors(RDKafkaApiKey::Produce, &[refused]);
    let outcome = append_and_wait(&*place.log, &topic, 0, record("bad")).await;
    assert_eq!(outcome, Outcome::Refused);
    let outcome = append_and_wait(&*place.log, &topic, 0, record("good")).await;
    assert!(matches!(outcome, Outcome::Durable(_)), "{outcome:?}");
    let large = "x".repeat(2000);
    assert_eq!(append_and_wait(&*place.log, &topic, 0, record(large)).await, Outcome::Refused, "too large");
    assert_eq!(append_and_wait(&*place.log, &topic, 7, record("nowhere")).await, Outcome::Refused);
    assert_eq!(place.values(&topic, 0).await, ["good"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_follows_the_first_record_until_the_partition_knows_the_producer() {
    let place = Place::new().await;
    let topic = place.log.topic("t").unwrap();
    let lane = place.log.shared.lane(&topic, 0).unwrap();
    for round in ["a new producer", "its successor"] {
        place.cluster.broker_round_trip_time(1, Duration::from_millis(300)).unwrap();
        let (sink, mut outcomes) = told();
        for token in 0..5 {
            lane.append(record(token), Completion { sink: sink.clone(), token });
        }
        let alone = loop {
            let backlog = lane.backlog();
            if backlog.records < 5 {
                break backlog;
            }
            assert!(backlog.under_way <= 1, "{round}: {backlog:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!((alone.records, alone.under_way), (4, 4), "{round}: the rest follows at once");
        assert_eq!(timeout(PATIENCE, outcomes.recv()).await.unwrap().unwrap().0, 0, "{round}");
        for token in 1..5 {
            assert_eq!(timeout(PATIENCE, outcomes.recv()).await.unwrap().unwrap().0, token, "{round}");
        }
        place.cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();
        let started = place.log.shared.vitals.producers_started.load(Ordering::Relaxed);
        place.log.use_access(access(&place.cluster, round));
        while place.log.shared.vitals.producers_started.load(Ordering::Relaxed) == started {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_refused_record_go_those_its_writer_has_behind_it() {
    let place = Place::new().await;
    let topic = place.log.topic("t").unwrap();
    let lane = place.log.shared.lane(&topic, 0).unwrap();
    lane.hold();
    let (one, mut of_one) = told();
    let (other, mut of_other) = told();
    for (sink, token) in [(&one, 0), (&other, 10), (&one, 1), (&one, 2), (&other, 11)] {
        let mut record = record(token);
        if token == 1 {
            record.created = 0;
        }
        lane.append(record, Completion { sink: sink.clone(), token });
    }
    lane.take_back();
    lane.refuse(|_, record| record.created == 0);
    assert_eq!(of_one.try_recv().unwrap(), (1, Outcome::Refused));
    assert_eq!(of_one.try_recv().unwrap(), (2, Outcome::Refused));
    place.log.use_access(access(&place.cluster, "renewed"));
    for token in [0, 10, 11] {
        let receiver = if token == 0 { &mut of_one } else { &mut of_other };
        let (told, outcome) = timeout(PATIENCE, receiver.recv()).await.unwrap().unwrap();
        assert_eq!(told, token);
        assert!(matches!(outcome, Outcome::Durable(_)), "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_does_not_work_stops_no_other() {
    let place = Place::new().await;
    let (good, bad) = (place.log.topic("t").unwrap(), place.topic("bad").await);
    place.cluster.topic_error("bad", RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
    let (sink, mut outcomes) = told();
    for i in 0..300 {
        place.log.append(&bad, 0, record(i), Completion { sink: sink.clone(), token: 1000 + i });
        place.log.append(&good, 0, record(i), Completion { sink: sink.clone(), token: i });
    }
    for _ in 0..300 {
        let (token, outcome) = timeout(PATIENCE, outcomes.recv()).await.unwrap().unwrap();
        assert!(token < 1000 && matches!(outcome, Outcome::Durable(_)), "{token}: {outcome:?}");
    }
    let values = place.values(&good, 0).await;
    assert_eq!(first(&values).len(), 300);
    let until = Instant::now() + PATIENCE;
    while place.log.shared.room.records() > 0 {
        assert!(Instant::now() < until, "what the bad topic has must not take the others' room");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(outcomes.try_recv().is_err(), "nothing of the bad topic has an outcome");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_settings_take_over_without_a_loss_or_a_repeat() {
    let place = Place::new().await;
    let topic = place.log.topic("t").unwrap();
    let (sink, mut outcomes) = told();
    for i in 0..2000 {
        if i % 500 == 250 {
            place.log.use_access(access(&place.cluster, &format!("test-{i}")));
        }
        place.log.append(&topic, 0, record(i), Completion { sink: sink.clone(), token: i });
    }
    for i in 0..2000 {
        let (token, outcome) = timeout(PATIENCE, outcomes.recv()).await.unwrap().unwrap();
        assert_eq!(token, i);
        assert!(matches!(outcome, Outcome::Durable(_)), "{outcome:?}");
    }
    let expected: Vec<String> = (0..2000).map(|i| i.to_string()).collect();
    assert_eq!(place.values(&topic, 0).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_kafka_is_away_appends_wait_and_it_is_said() {
    let place = Place::new().await;
    let topic = place.log.topic("t").unwrap();
    assert!(matches!(append_and_wait(&*place.log, &topic, 0, record("before")).await, Outcome::Durable(0)));
    place.cluster.broker_down(1).unwrap();
    let (sink, mut outcomes) = told();
    place.log.append(&topic, 0, record("during"), Completion { sink, token: 0 });
    let mut health = place.log.health();
    let away = timeout(PATIENCE, health.wait_for(|health| *health != Health::Working)).await.unwrap();
    assert!(matches!(&*away.unwrap(), Health::Away(line) if line.contains("is away")), "it says so");
    assert!(outcomes.try_recv().is_err(), "nothing is acknowledged meanwhile");
    place.cluster.broker_up(1).unwrap();
    let (_, outcome) = timeout(PATIENCE, outcomes.recv()).await.unwrap().unwrap();
    assert_eq!(outcome, Outcome::Durable(1));
    timeout(PATIENCE, health.wait_for(|health| *health == Health::Working)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_tells_every_append_its_end() {
    let place = Place::new().await;
    let topic = place.log.topic("t").unwrap();
    let (sink, mut outcomes) = told();
    for i in 0..100 {
        place.log.append(&topic, 0, record(i), Completion { sink: sink.clone(), token: i });
    }
    place.log.close().await;
    for _ in 0..100 {
        assert!(matches!(outcomes.try_recv().unwrap().1, Outcome::Durable(_)));
    }
    place.log.append(&topic, 0, record("late"), Completion { sink, token: 100 });
    assert_eq!(outcomes.try_recv().unwrap(), (100, Outcome::Refused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_works_again_joins_the_others_while_it_is_published_to() {
    let place = Place::new().await;
    let topic = place.topic("bad").await;
    let lane = place.log.shared.lane(&topic, 0).unwrap();
    place.cluster.topic_error("bad", RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
    let (sink, mut outcomes) = told();
    let append = |token| {
        place.log.append(&topic, 0, record(token), Completion { sink: sink.clone(), token });
    };
    (0..50).for_each(append);
    let until = Instant::now() + PATIENCE;
    while !lane.backlog().aside {
        assert!(Instant::now() < until, "it is set aside");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    place.cluster.topic_error("bad", RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
    // Something is always under way.
    for token in 50.. {
        let (_, outcome) = timeout(PATIENCE, outcomes.recv()).await.unwrap().unwrap();
        assert!(matches!(outcome, Outcome::Durable(_)), "{outcome:?}");
        append(token);
        if !lane.backlog().aside {
            break;
        }
        assert!(Instant::now() < until, "it joins the others again");
    }
}
