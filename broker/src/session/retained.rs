//! What topics remember, for as long as the log is there: owns the topic `__mqtt-retained`, and puts in the router what its
//! records amount to.
//!
//! A record's key names a message and its topic; one with an empty payload says that the topic has none any more. Of two that one
//! node wrote the later run's counts, and of two of one run that with the higher number: so what shows again, or late, changes
//! nothing. Of two nodes the last in the log counts. Whoever wrote what counts deletes the others when it has read it back. What
//! a former process run of this node had on its way may show behind what another node wrote: then that is written once more.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use foldhash::fast::RandomState;
use futures_util::future::try_join_all;
use mqtt_proto::{
    durable::{
        record::{Boot, Key, Value},
        runs::Runs,
    },
    message::{Message, MessageId, Millis},
    murmur2,
};
use parking_lot::Mutex;

use super::log::{Begins, Place, Reads, Surely, content, message_of, parse, read_to_tick};
use crate::{
    limits::Trouble,
    log::{
        AppendSink, Cleanup, Completion, Log, LogError, Outcome, ReadLimit, Record, StoredRecord, Topic,
        TopicSettings,
    },
    node::Node,
    outside::{Mistake, Outside},
};

const TOPIC: &str = "__mqtt-retained";
const MOST_PARTITIONS: u32 = 3;
/// Besides the packet a record has a key with the topic once more.
const RECORD_BYTES: u32 = 128 * 1024;
const READ: ReadLimit = ReadLimit { records: 500, bytes: 1 << 20, wait: Duration::from_secs(5) };
const RETRY: Duration = Duration::from_secs(1);
/// How long it is remembered that a topic has nothing: longer than a record may come late.
const KEPT: Millis = 15 * 60 * 1000;

pub(crate) struct RetainedLog {
    log: Arc<dyn Log>,
    topic: Topic,
    boot: Boot,
    name: Box<str>,
    partitions: Vec<Partition>,
    surely: Arc<Surely>,
}

#[derive(Default)]
struct Partition {
    state: Mutex<State>,
    next: AtomicU64,
}

#[derive(Default)]
struct State {
    topics: HashMap<Box<str>, Kept, RandomState>,
    runs: Runs,
    /// Who waits until a message of this process run is read back.
    waiting: HashMap<MessageId, Vec<Completion>, RandomState>,
    /// By topic, the message of this process run that is in the router already, until it is read back.
    early: HashMap<Box<str>, MessageId, RandomState>,
}

/// What is in the log for one topic.
struct Kept {
    /// What counts; without a payload the topic has none.
    message: Arc<Message>,
    created: Millis,
    others: Vec<MessageId>,
}

impl RetainedLog {
    /// Reads all of the log.
    pub(crate) async fn open(
        log: Arc<dyn Log>,
        outside: &Outside,
        boot: Boot,
        place: Place<'_>,
        packet_size: u32,
    ) -> Result<RetainedLog, LogError> {
        let settings = TopicSettings {
            partitions: place.partitions.min(MOST_PARTITIONS),
            cleanup: Cleanup::KeepLatest,
            record_bytes: packet_size.saturating_add(RECORD_BYTES),
        };
        let topic = log.ensure_topic(TOPIC, settings).await?;
        let partitions = try_join_all((0..topic.partitions()).map(|partition| {
            let (log, topic) = (log.clone(), topic.clone());
            async move {
                let mut state = State::default();
                let begins = Begins { boot, node: place.node, outside };
                let next = read_to_tick(&*log, &topic, partition, begins, &mut state).await?;
                Ok::<_, LogError>(Partition { state: Mutex::new(state), next: next.into() })
            }
        }))
        .await?;
        let surely = Arc::new(Surely::default());
        Ok(RetainedLog { log, topic, boot, name: place.node.into(), partitions, surely })
    }

    pub(crate) fn partitions(&self) -> u32 {
        self.topic.partitions()
    }

    /// Puts in the router what the log held at the start.
    pub(crate) fn begin(&self, node: &Node) {
        if node.outside.makes(Mistake::ForgetRetained) {
            return;
        }
        for partition in &self.partitions {
            partition.state.lock().topics.values().for_each(|kept| node.router.retain(&kept.message));
        }
    }

    /// Keeps a message as its topic's, under a name that this process run gave in the order of publishing: one that came again
    /// has a new one. `done` is told once who subscribes finds it.
    pub(crate) fn retain(&self, message: &Message, id: MessageId, now: Millis, done: Completion) {
        let message = &message.renamed(id);
        let partition = murmur2::partition(message.topic().as_bytes(), self.partitions());
        if let Some(of) = self.of(partition) {
            of.state.lock().waiting.entry(message.id).or_default().push(done.clone());
        }
        let sink = Arc::new(Failure { done });
        self.append(partition, message, now, Completion { sink, token: 0 });
    }

    /// The same for a message that nobody acknowledges: who subscribes finds it at once, though the log may not take it.
    pub(crate) fn retain_early(&self, node: &Node, message: &Arc<Message>, now: Millis, done: Completion) {
        let partition = murmur2::partition(message.topic().as_bytes(), self.partitions());
        if let Some(of) = self.of(partition) {
            let mut state = of.state.lock();
            state.early.insert(message.topic().into(), message.id);
            node.router.retain(message);
        }
        self.retain(message, message.id, now, done);
    }

    fn of(&self, partition: u32) -> Option<&Partition> {
        self.partitions.get(usize::try_from(partition).ok()?)
    }

    fn append(&self, partition: u32, message: &Message, now: Millis, done: Completion) {
        self.log.append(&self.topic, partition, record(message, now), done);
    }

    /// Though nobody waits for it.
    fn append_surely(&self, partition: u32, record: Record) {
        self.surely.append(&*self.log, &self.topic, partition, record);
    }

    /// Writes again what could not be written.
    pub(crate) fn retry(&self, now: Millis) {
        self.surely.retry(&*self.log, &self.topic, now);
    }

    /// Reads a partition on until the task is aborted.
    pub(crate) async fn follow(node: Arc<Node>, partition: u32) {
        let mut trouble = Trouble::default();
        loop {
            if let Err(error) = node.retained.read_on(&node, partition).await {
                let line = error.to_string();
                if trouble.is_due(&line) {
                    tracing::error!(partition, "retained messages: {line}; trying again");
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn read_on(&self, node: &Node, partition: u32) -> Result<(), LogError> {
        let Some(of) = self.of(partition) else { return Ok(()) };
        loop {
            let from = of.next.load(Ordering::Acquire);
            let batch = self.log.read(&self.topic, partition, from, READ).await?;
            for stored in &batch.records {
                let mut state = of.state.lock();
                let taken = state.read(&self.topic, partition, stored)?;
                self.act(node, partition, &mut state, taken);
            }
            of.next.store(batch.next, Ordering::Release);
        }
    }

    fn act(&self, node: &Node, partition: u32, state: &mut State, taken: Taken) {
        match taken {
            Taken::Tick => {}
            Taken::Gone(topic) if state.early.contains_key(&topic) => {}
            Taken::Gone(topic) => {
                // A cleared one takes the message away.
                let id = MessageId { boot: self.boot, counter: 0 };
                let cleared = Message::new(id, 0, &topic, b"", mqtt_proto::codec::QoS::AtMostOnce, true);
                node.router.retain(&Arc::new(cleared));
            }
            Taken::Kept { mid, topic, former } => {
                let Some(kept) = state.topics.get_mut(&topic) else { return };
                // What was written before it does not take its place.
                let is_early =
                    |early: &MessageId| kept.message.id.boot == self.boot && *early <= kept.message.id;
                if state.early.get(&topic).is_none_or(is_early) {
                    state.early.remove(&topic);
                    node.router.retain(&kept.message);
                }
                let is_mine = |boot| state.runs.is_of(boot, &self.name);
                if let Some(former) = former
                    && mid.boot != self.boot
                    && is_mine(mid.boot)
                    && !is_mine(former.id.boot)
                {
                    // Below all that this run has on its way.
                    let again = former.renamed(MessageId { boot: self.boot, counter: 0 });
                    self.append_surely(partition, record(&again, node.wall()));
                }
                if kept.message.id.boot == self.boot {
                    for mid in kept.others.drain(..) {
                        let key = Key::Retained { mid, topic: topic.clone() };
                        self.append_surely(partition, keyed(&key, None, node.wall()));
                    }
                }
                for done in state.waiting.remove(&mid).unwrap_or_default() {
                    done.sink.appended(done.token, Outcome::Durable(0));
                }
            }
        }
    }

    /// Deletes what has been cleared or has expired, and was long ago.
    pub(crate) fn bury(&self, node: &Node) {
        let now = node.wall();
        for (partition, of) in (0..).zip(&self.partitions) {
            let state = of.state.lock();
            let is_over = |kept: &&Kept| {
                let says_nothing = kept.message.payload().is_empty() || kept.message.is_expired(now);
                says_nothing && kept.others.is_empty() && now.saturating_sub(kept.created) >= KEPT
            };
            let mut over: Vec<&Arc<Message>> =
                state.topics.values().filter(is_over).map(|kept| &kept.message).collect();
            // In the same order in every run.
            over.sort_unstable_by_key(|message| message.id);
            for message in over {
                self.append_surely(partition, keyed(&key(message), None, now));
            }
        }
    }

    /// What every node must know alike.
    #[cfg(test)]
    pub(crate) fn summary(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.partitions.iter().flat_map(|of| of.state.lock().summary()).collect();
        lines.sort();
        lines
    }

    /// What a reader knows that reads the log now.
    #[cfg(test)]
    pub(crate) async fn fresh_summary(log: &dyn Log) -> Vec<String> {
        let topic = log.topic(TOPIC).unwrap();
        let mut lines = Vec::new();
        for partition in 0..topic.partitions() {
            let (mut state, mut from) =
                (State::default(), log.bounds(&topic, partition).await.unwrap().start);
            loop {
                let limit = ReadLimit { wait: Duration::ZERO, ..READ };
                let batch = log.read(&topic, partition, from, limit).await.unwrap();
                for stored in &batch.records {
                    state.read(&topic, partition, stored).unwrap();
                }
                if batch.next == from {
                    break;
                }
                from = batch.next;
            }
            lines.extend(state.summary());
        }
        lines.sort();
        lines
    }
}

impl Reads for State {
    fn take(&mut self, topic: &Topic, partition: u32, stored: &StoredRecord) -> Result<(), LogError> {
        self.read(topic, partition, stored).map(drop)
    }

    fn runs(&self) -> &Runs {
        &self.runs
    }
}

/// What a record did.
enum Taken {
    Tick,
    /// What counts for this topic may be another.
    Kept {
        mid: MessageId,
        topic: Box<str>,
        former: Option<Arc<Message>>,
    },
    /// Nothing counts for this topic any more.
    Gone(Box<str>),
}

impl State {
    /// What topics have, one line each.
    #[cfg(test)]
    fn summary(&self) -> Vec<String> {
        let has = self.topics.values().filter(|kept| !kept.message.payload().is_empty());
        has.map(|kept| format!("{} {:?}", kept.message.topic(), kept.message.id)).collect()
    }

    fn read(&mut self, topic: &Topic, partition: u32, stored: &StoredRecord) -> Result<Taken, LogError> {
        match parse(topic, partition, stored)? {
            (Key::Tick { boot }, value) => {
                if let Some(Value::Tick { node, run }) = value {
                    self.runs.began(boot, node, run);
                }
                Ok(Taken::Tick)
            }
            (Key::Retained { mid, topic }, Some(Value::Retained(content))) => {
                let created = u64::try_from(stored.record.created).unwrap_or(0);
                let former = self.keep(mid, created, || Arc::new(message_of(mid, &content)), &topic);
                Ok(Taken::Kept { mid, topic, former })
            }
            (Key::Retained { mid, topic }, _) => {
                let Some(kept) = self.topics.get_mut(&topic) else { return Ok(Taken::Gone(topic)) };
                kept.others.retain(|other| *other != mid);
                if kept.message.id == mid {
                    self.topics.remove(&topic);
                    return Ok(Taken::Gone(topic));
                }
                Ok(Taken::Kept { mid, topic, former: None })
            }
            _ => Err(LogError::Settings(format!(
                "topic {} partition {partition} offset {}: no retained message",
                topic.name(),
                stored.offset
            ))),
        }
    }

    /// Returns what counted before, if that is another.
    fn keep(
        &mut self,
        mid: MessageId,
        created: Millis,
        message: impl FnOnce() -> Arc<Message>,
        topic: &str,
    ) -> Option<Arc<Message>> {
        let Some(kept) = self.topics.get_mut(topic) else {
            self.topics.insert(topic.into(), Kept { message: message(), created, others: Vec::new() });
            return None;
        };
        let counts = kept.message.id;
        let is_older = match mid.boot == counts.boot {
            true => mid.counter < counts.counter,
            false => self.runs.is_earlier(mid.boot, counts.boot),
        };
        if counts == mid {
            return None;
        }
        kept.others.retain(|other| *other != mid && *other != counts);
        if is_older {
            kept.others.push(mid);
            return None;
        }
        kept.others.push(counts);
        kept.created = created;
        Some(std::mem::replace(&mut kept.message, message()))
    }
}

/// Passes on that a record will not be read back.
struct Failure {
    done: Completion,
}

impl AppendSink for Failure {
    fn appended(&self, _token: u64, outcome: Outcome) {
        if !matches!(outcome, Outcome::Durable(_)) {
            self.done.sink.appended(self.done.token, outcome);
        }
    }
}

fn record(message: &Message, now: Millis) -> Record {
    keyed(&key(message), Some(Value::Retained(content(message)).encode()), now)
}

fn keyed(key: &Key, value: Option<Vec<u8>>, now: Millis) -> Record {
    Record {
        key: Some(key.encode().into()),
        value: value.map(Into::into),
        headers: Vec::new(),
        created: i64::try_from(now).unwrap_or(i64::MAX),
    }
}

fn key(message: &Message) -> Key {
    Key::Retained { mid: message.id, topic: message.topic().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_run_retained_counts_though_the_tick_of_the_former_shows_again_behind_its_own() {
        let message = |boot| {
            let id = MessageId { boot, counter: 1 };
            Arc::new(Message::new(id, 0, "t", b"x", mqtt_proto::codec::QoS::AtLeastOnce, true))
        };
        // The ticks were `1 2 1`, and compaction took the first.
        for ticks in [[(1, 1), (2, 2)], [(2, 2), (1, 1)]] {
            for order in [[1, 2], [2, 1]] {
                let mut state = State::default();
                ticks.iter().for_each(|&(boot, number)| state.runs.began(boot, "0", number));
                for boot in order {
                    state.keep(MessageId { boot, counter: 1 }, 0, || message(boot), "t");
                }
                assert_eq!(state.topics["t"].message.id.boot, 2, "{ticks:?} {order:?}");
            }
        }
    }
}
