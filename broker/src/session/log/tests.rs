//! What a start finds in the log.

use std::sync::Arc;

use mqtt_proto::{
    codec::QoS,
    durable::record::{Key, Phase, Session, Subscription, Value},
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
const PLACE: Place<'_> = Place { node: "0", partitions: 2, wire: None };

struct Nobody;

impl AppendSink for Nobody {
    fn appended(&self, _token: u64, outcome: Outcome) {
        assert!(matches!(outcome, Outcome::Durable(_)));
    }
}

async fn node(log: &Arc<EmbeddedLog>) -> Arc<Node> {
    let (config, acl) = (world::config(10, 10), world::acl());
    match make_node(Outside::default(), log.clone(), PLACE, &config, &acl).await {
        Ok(Ok(node)) => node,
        Ok(Err(problems)) => panic!("{:?}", problems.lines),
        Err(error) => panic!("{error}"),
    }
}

/// Writes what a process run leaves behind that dies with all its devices online.
fn write(log: &dyn Log, sessions: &SessionLog, now: u64) {
    for number in 0..SESSIONS {
        let client = format!("meter-{number}");
        let nonce = MessageId { boot: 1, counter: number + 1 };
        let partition = sessions.partition_of(&client);
        let session = Session {
            generation: now,
            sequence: 0,
            won: false,
            phase: Phase::Online,
            sid: nonce,
            boot: 1,
            since: now,
            expires_at: 0,
            expiry: 3600,
            sent_below: 0,
            node: PLACE.node.into(),
            user: "anyone".into(),
            peer: "10.0.0.1:50000".into(),
            protocol: 4,
            will: None,
        };
        let append = |key: Key, value: Value<'_>| {
            let record = Record {
                key: Some(key.encode().into()),
                value: Some(value.encode().into()),
                headers: Vec::new(),
                created: i64::try_from(now).unwrap(),
            };
            log.append(&sessions.topic, partition, record, Completion { sink: Arc::new(Nobody), token: 0 });
        };
        append(Key::Session { nonce, client: (&*client).into() }, Value::Session(Box::new(session)));
        for filter in 0..FILTERS {
            let key =
                Key::Filter { sid: nonce, generation: now, filter: format!("{client}/{filter}/#").into() };
            let subscription = Subscription {
                sequence: 1,
                on: true,
                qos: QoS::AtLeastOnce,
                no_local: false,
                retain_as_published: false,
                id: None,
            };
            append(key, Value::Filter(subscription));
        }
    }
}

#[tokio::test]
async fn a_start_finds_every_session_with_its_subscriptions_and_takes_over_what_was_online() {
    let dir = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).unwrap();
    let first = node(&log).await;
    write(&*log, &first.sessions, first.now());
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
    let offline = async {
        while online() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), offline).await.unwrap();
    tasks.iter().for_each(|task| task.abort());
    assert_eq!(node.sessions.live(), usize::try_from(SESSIONS).unwrap());
}
