//! What was chosen for members of a shared subscription whose sessions are over.

use super::*;
use crate::log::sim::{SimLog, Weather, cluster::Cluster, still::Still};

const GROUP: &str = "$share/pool/work/+";

/// What lies in the log of these clients and their messages, each named by a number.
struct Left<'a> {
    log: &'a dyn Log,
    sessions: &'a SessionLog,
    now: u64,
}

impl Left<'_> {
    fn append(&self, client: &str, key: Key, value: Value<'_>) {
        append(self.log, self.sessions, self.sessions.partition_of(client), self.now, key, value);
    }

    /// A client whose session has its number.
    fn client(&self, number: u64, sequence: u64, phase: Phase) {
        let nonce = id(number);
        let session = Session { sequence, ..session(nonce, self.now, phase) };
        let client = name(number);
        let key = Key::Session { nonce, client: (&*client).into() };
        self.append(&client, key, Value::Session(Box::new(session)));
    }

    fn joins(&self, number: u64) {
        let key = Key::Filter { sid: id(number), generation: self.now, filter: GROUP.into() };
        self.append(&name(number), key, Value::Filter(SUBSCRIPTION));
    }

    /// The run with this boot has chosen a member for a message.
    fn message(&self, number: u64, boot: u64, member: u64, qos: QoS) {
        let recipients = vec![Recipient {
            sid: id(member),
            qos,
            retain: false,
            maybe_sent: false,
            subscription_ids: None,
        }];
        let content =
            Content { qos, retain: false, expires_at: None, forwarded: &[], topic: "work/x", payload: b"x" };
        let once = qos == QoS::ExactlyOnce;
        let message = QueuedMessage { once, group: Some(GROUP), recipients, content };
        let key = Key::Message { mid: MessageId { boot, counter: number }, boot, chunk: number };
        self.append(&name(member), key, Value::Message(message));
    }
}

fn id(number: u64) -> MessageId {
    MessageId { boot: 1, counter: number }
}

fn name(number: u64) -> String {
    format!("worker-{number}")
}

/// The messages that wait for a session, alive or not.
fn waits(node: &Node, number: u64) -> Vec<u64> {
    let of = |state: &mut super::super::State| {
        let session = state.view.remains(id(number));
        session.map_or_else(Vec::new, |session| {
            session.queue().values().map(|entry| entry.mid.counter).collect()
        })
    };
    node.sessions.with(node.sessions.partition_of(&name(number)), of).unwrap()
}

#[tokio::test]
async fn what_a_crash_left_with_a_session_that_was_over_goes_to_another_member() {
    let dir = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).unwrap();
    let crashed = node(&log).await;
    let left = Left { log: &*log, sessions: &crashed.sessions, now: crashed.now() };
    left.client(1, 0, Phase::Offline);
    left.joins(1);
    // What waited at its end was to go to others then, and did not.
    left.client(2, 0, Phase::Offline);
    left.message(21, crashed.boot, 2, QoS::AtLeastOnce);
    left.client(2, 1, Phase::Ended);
    // Nor did what came behind its end; and QoS 2 stays.
    left.client(3, 0, Phase::Ended);
    left.message(31, crashed.boot, 3, QoS::ExactlyOnce);
    left.message(32, crashed.boot, 3, QoS::AtLeastOnce);
    drop(crashed);
    let next = node(&log).await;
    let tasks: Vec<_> = crate::server::background(&next).into_iter().map(tokio::spawn).collect();
    wait_until("it goes to another", || waits(&next, 3) == [31]).await;
    wait_until("it goes to another", || waits(&next, 2).is_empty()).await;
    assert_eq!(waits(&next, 1).len(), 2);
    tasks.iter().for_each(|task| task.abort());
    drop(next);
    // Once: the run after that has nothing to give.
    let last = node(&log).await;
    for partition in &last.sessions.partitions {
        assert_eq!(partition.state.lock().view.with_left().count(), 0);
    }
    assert_eq!(waits(&last, 1).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_waits_at_the_end_of_a_session_goes_to_another_once_the_log_takes_it() {
    for slow in [true, false] {
        let cluster = Cluster::new(fastrand::Rng::with_seed(1), Box::new(|_, _, _| {}));
        let outside = Outside { simulated: Some(Still::new(cluster.clone())), mistake: None };
        let log = SimLog::new(cluster, outside.clone(), fastrand::Rng::with_seed(2), 10_000);
        let first = node_on(log.clone(), outside.clone(), PLACE).await;
        let left = Left { log: &*log, sessions: &first.sessions, now: first.now() };
        left.client(1, 0, Phase::Offline);
        left.joins(1);
        left.client(2, 0, Phase::Offline);
        left.joins(2);
        left.message(21, first.boot, 2, QoS::AtLeastOnce);
        left.client(2, 1, Phase::Ended);
        let node = node_on(log.clone(), outside, PLACE).await;
        match slow {
            true => log.set_weather(Weather { latency: 20_000..20_001, ..Weather::default() }),
            false => log.set_away(true),
        }
        let tasks: Vec<_> = crate::server::background(&node).into_iter().map(tokio::spawn).collect();
        // Of the clock that jumps: the first try is under way, and will have been in vain.
        tokio::time::sleep(super::super::pass_on::PATIENCE / 2).await;
        assert_eq!(waits(&node, 2), vec![21], "nobody else has it so far");
        log.set_weather(Weather::default());
        log.set_away(false);
        wait_until("it goes to another", || waits(&node, 2).is_empty()).await;
        // What came too late may be there, too.
        let copies = waits(&node, 1).len();
        assert!((1..=1 + usize::from(slow)).contains(&copies), "{copies}");
        tasks.iter().for_each(|task| task.abort());
    }
}

#[tokio::test]
async fn what_nobody_can_have_does_not_stay_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).unwrap();
    let first = node(&log).await;
    let left = Left { log: &*log, sessions: &first.sessions, now: first.now() };
    left.client(1, 0, Phase::Ended);
    left.message(11, first.boot, 1, QoS::AtLeastOnce);
    drop(first);
    let node = node(&log).await;
    let partition = node.sessions.partition_of(&name(1));
    let dead = || node.sessions.with(partition, |state| state.view.dead(0, 100, |_| false)).unwrap();
    let is_message = |key: &Key| matches!(key, Key::Message { .. });
    assert!(!dead().iter().any(is_message), "another member might have come");
    let tasks: Vec<_> = crate::server::background(&node).into_iter().map(tokio::spawn).collect();
    wait_until("it is dead", || dead().iter().any(is_message)).await;
    tasks.iter().for_each(|task| task.abort());
}
