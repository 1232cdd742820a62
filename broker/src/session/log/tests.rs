//! What a start finds in the log.

mod leases;
mod pass_on;

use std::sync::Arc;

use mqtt_proto::{
    codec::QoS,
    durable::record::{Content, Key, Name, Phase, QueuedMessage, Recipient, Session, Subscription, Value},
    message::MessageId,
};

use super::Place;
use crate::{
    log::{
        AppendSink, Completion, Log, Outcome, Record,
        embedded::{EmbeddedLog, EmbeddedOptions},
    },
    node::Node,
    outside::Outside,
    process::make_node,
    session::log::SessionLog,
    simulation::world,
};

const SESSIONS: u64 = 2000;
const FILTERS: u64 = 3;
const PLACE: Place<'_> = Place { node: "0", partitions: 2, shared: false };

struct Nobody;

impl AppendSink for Nobody {
    fn appended(&self, _token: u64, outcome: Outcome) {
        assert!(matches!(outcome, Outcome::Durable(_)));
    }
}

async fn node(log: &Arc<EmbeddedLog>) -> Arc<Node> {
    node_on(log.clone(), Outside::default(), PLACE).await
}

async fn node_on(log: Arc<dyn Log>, outside: Outside, place: Place<'_>) -> Arc<Node> {
    let (config, acl) = (world::config(10, 10), world::acl());
    match make_node(outside, log, place, &config, &acl).await {
        Ok(Ok(node)) => node,
        Ok(Err(problems)) => panic!("{:?}", problems.lines),
        Err(error) => panic!("{error}"),
    }
}

const SUBSCRIPTION: Subscription = Subscription {
    sequence: 1,
    on: true,
    qos: QoS::AtLeastOnce,
    no_local: false,
    retain_as_published: false,
    id: None,
};

/// A session that began with this claim.
fn session(nonce: MessageId, now: u64, phase: Phase) -> Session {
    Session {
        generation: now,
        sequence: 0,
        won: false,
        phase,
        sid: nonce,
        boot: 1,
        since: now,
        expires_at: now + 3_600_000,
        expiry: 3600,
        sent_below: 0,
        node: Name::new(PLACE.node.into()),
        user: Name::new("anyone".into()),
        peer: "10.0.0.1:50000".into(),
        protocol: 4,
        will: None,
    }
}

/// Writes what a process run leaves behind: sessions whose devices were online, or had left.
fn write(log: &dyn Log, sessions: &SessionLog, now: u64, phase: Phase) {
    for number in 0..SESSIONS {
        let client = format!("meter-{number}");
        let nonce = MessageId { boot: 1, counter: number + 1 };
        let partition = sessions.partition_of(&client);
        let session = session(nonce, now, phase);
        let append = |key: Key, value: Value<'_>| append(log, sessions, partition, now, key, value);
        append(Key::Session { nonce, client: (&*client).into() }, Value::Session(Box::new(session)));
        for filter in 0..FILTERS {
            let key =
                Key::Filter { sid: nonce, generation: now, filter: format!("{client}/{filter}/#").into() };
            append(key, Value::Filter(SUBSCRIPTION));
        }
    }
}

fn append(log: &dyn Log, sessions: &SessionLog, partition: u32, now: u64, key: Key, value: Value<'_>) {
    let record = Record {
        key: Some(key.encode().into()),
        value: Some(value.encode().into()),
        headers: Vec::new(),
        created: i64::try_from(now).unwrap(),
    };
    log.append(&sessions.topic, partition, record, Completion { sink: Arc::new(Nobody), token: 0 });
}

/// Messages for the first session, in the order of these: how surely, and when they expire.
fn write_messages(log: &dyn Log, sessions: &SessionLog, now: u64, messages: &[(QoS, Option<u64>)]) {
    let sid = MessageId { boot: 1, counter: 1 };
    let partition = sessions.partition_of("meter-0");
    for (counter, &(qos, expires_at)) in (1..).zip(messages) {
        let recipients =
            vec![Recipient { sid, qos, retain: false, maybe_sent: false, subscription_ids: None }];
        let content =
            Content { qos, retain: false, expires_at, forwarded: &[], topic: "meter-0/0/x", payload: b"x" };
        let message = QueuedMessage { once: qos == QoS::ExactlyOnce, group: None, recipients, content };
        let mid = MessageId { boot: 2, counter };
        append(log, sessions, partition, now, Key::Message { mid, boot: 2, chunk: counter }, {
            Value::Message(message)
        });
    }
}

/// Waits until what happens in the log has made this true.
async fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(std::time::Duration::from_secs(60), wait).await.is_ok(), "{what}");
}

#[tokio::test]
async fn what_has_expired_goes_though_its_device_does_not_come() {
    let dir = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).unwrap();
    let first = node(&log).await;
    let now = first.now();
    write(&*log, &first.sessions, now, Phase::Offline);
    let (past, future) = (Some(now - 1), Some(now + 3_600_000));
    let messages = [
        (QoS::AtLeastOnce, past),
        (QoS::AtLeastOnce, None),
        (QoS::ExactlyOnce, past),
        (QoS::AtLeastOnce, future),
    ];
    write_messages(&*log, &first.sessions, now, &messages);
    drop(first);
    let node = node(&log).await;
    let tasks: Vec<_> = crate::server::background(&node).into_iter().map(tokio::spawn).collect();
    let waits = || -> Vec<u64> {
        let of = |state: &mut super::State| {
            let (_, session) = state.view.session(MessageId { boot: 1, counter: 1 }).unwrap();
            session.queue().values().map(|entry| entry.mid.counter).collect()
        };
        node.sessions.with(node.sessions.partition_of("meter-0"), of).unwrap()
    };
    assert_eq!(waits(), [1, 2, 3, 4]);
    node.sessions.expire(&node);
    wait_until("the expired ones go", || waits() == [2, 4]).await;
    assert_eq!(node.counters.expired_drops.get(), 2);
    node.sessions.expire(&node);
    assert_eq!(node.counters.expired_drops.get(), 2);
    tasks.iter().for_each(|task| task.abort());
}

#[tokio::test]
async fn each_run_of_a_node_has_a_higher_number() {
    let dir = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).unwrap();
    for number in 1..4 {
        let node = node(&log).await;
        let of = |state: &mut super::State| state.view.runs().number(node.boot);
        assert_eq!(node.sessions.with(0, of), Some(Some(number)));
    }
}

#[tokio::test]
async fn a_start_finds_every_session_with_its_subscriptions_and_takes_over_what_was_online() {
    let dir = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).unwrap();
    let first = node(&log).await;
    write(&*log, &first.sessions, first.now(), Phase::Online);
    drop(first);
    log.close().await;
    drop(log);
    let log = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).unwrap();
    let node = node(&log).await;
    assert_eq!(node.sessions.live(), usize::try_from(SESSIONS).unwrap());
    assert_eq!(node.router.subscriptions(), usize::try_from(SESSIONS * FILTERS).unwrap());
    let route = node.router.route("meter-7/2/x");
    assert_eq!(route.recipients.len(), 1);
    assert_eq!(route.logged.len(), 1);
    let tasks: Vec<_> = crate::server::background(&node).into_iter().map(tokio::spawn).collect();
    let online = || {
        let lines = node.sessions.summaries();
        lines.iter().flatten().filter(|line| line.contains(": Online")).count()
    };
    wait_until("nobody is online", || online() == 0).await;
    tasks.iter().for_each(|task| task.abort());
    assert_eq!(node.sessions.live(), usize::try_from(SESSIONS).unwrap());
}
