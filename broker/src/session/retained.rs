//! What topics remember, for as long as the log is there: owns the topic `__mqtt-retained`, and puts in the router what its
//! records amount to.
//!
//! A record's key names a message and its topic; one with an empty payload says that the topic has none any more. The highest
//! name counts, whichever node gave it and wherever it shows: so what shows again, or late, changes nothing, and all readers
//! agree. A name is above all that its writer knows of the topic, and no lower than its clock. Who reads its own record back and
//! finds that another counts gives it a new name, above that: so one that was acknowledged stood, at its place in the log,
//! above all before it. Whoever wrote what counts deletes the others when it has read it back.

use std::{
    collections::{HashMap, VecDeque},
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

use super::log::{
    BarrierPart, BarrierWaits, Begins, Place, Reads, Surely, content, message_of, parse, read_to_tick,
    record, write_barrier,
};
use crate::{
    limits::Trouble,
    log::{
        AppendSink, Cleanup, Completion, Log, LogError, Outcome, ReadLimit, Record, StoredRecord, Topic,
        TopicSettings,
    },
    node::Node,
    outside::{Mistake, Outside},
};

const TOPIC: &str = mqtt_broker_api::topics::RETAINED;
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
    /// The last name that this process run gave.
    named: AtomicU64,
    partitions: Vec<Arc<Partition>>,
    surely: Arc<Surely>,
}

#[derive(Default)]
struct Partition {
    /// Who has it writes: in the order of the names. Taken before the state.
    writing: Mutex<()>,
    state: Mutex<State>,
    next: AtomicU64,
}

#[derive(Default)]
struct State {
    topics: HashMap<Box<str>, Kept, RandomState>,
    /// By topic, what this process run has written and not read back so far, in order.
    pending: HashMap<Box<str>, VecDeque<Pending>, RandomState>,
    runs: Runs,
    barriers: BarrierWaits,
}

/// A message of this process run that does not count so far.
struct Pending {
    /// With the name that it was written under last.
    message: Arc<Message>,
    /// It is in the router already.
    is_early: bool,
    done: Completion,
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
                let begins = Begins { boot, node: place.node, shared: place.shared, outside };
                let next = read_to_tick(&*log, &topic, partition, begins, &mut state).await?;
                Ok::<_, LogError>(Arc::new(Partition {
                    writing: Mutex::default(),
                    state: Mutex::new(state),
                    next: next.into(),
                }))
            }
        }))
        .await?;
        let surely = Arc::new(Surely::default());
        Ok(RetainedLog { log, topic, boot, named: AtomicU64::new(0), partitions, surely })
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

    /// Keeps a message as its topic's. Those of one topic are kept in the order of these calls. `done` is told once who subscribes
    /// finds it. `steady`: a clock that does not jump.
    pub(crate) fn retain(&self, message: &Message, steady: Millis, now: Millis, done: Completion) {
        let of = self.partition_of(message.topic());
        let Some(of) = of.and_then(|partition| Some((partition, self.of(partition)?))) else { return };
        let _writing = of.1.writing.lock();
        self.write(of, (message, false, done), steady, now);
    }

    /// The same for a message that nobody acknowledges: who subscribes finds it at once, though the log may not take it.
    pub(crate) fn retain_early(&self, node: &Node, message: &Arc<Message>, done: Completion) {
        let of = self.partition_of(message.topic());
        let Some(of) = of.and_then(|partition| Some((partition, self.of(partition)?))) else { return };
        let _writing = of.1.writing.lock();
        let message = self.write(of, (message, true, done), node.now(), node.wall());
        node.router.retain(&message);
    }

    /// Who calls has the right to write to this partition.
    fn write(
        &self,
        (partition, of): (u32, &Arc<Partition>),
        (message, is_early, done): (&Message, bool, Completion),
        steady: Millis,
        now: Millis,
    ) -> Arc<Message> {
        let mut state = of.state.lock();
        let topic = message.topic();
        let known = state.topics.get(topic).map_or(0, |kept| kept.message.id.counter);
        // Many may be named in one millisecond.
        let least = known.saturating_add(1).max(steady << 16);
        let next = |last: u64| Some(last.saturating_add(1).max(least));
        let last = self.named.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
        let counter = next(last).unwrap_or_default();
        let message = Arc::new(message.renamed(MessageId { boot: self.boot, counter }));
        let sink = Arc::new(Failure { of: of.clone(), message: message.clone() });
        let record = retained(&message, now);
        let one = Pending { message: message.clone(), is_early, done };
        state.pending.entry(topic.into()).or_default().push_back(one);
        // The outcome may be told at once.
        drop(state);
        self.log.append(&self.topic, partition, record, Completion { sink, token: 0 });
        message
    }

    fn of(&self, partition: u32) -> Option<&Arc<Partition>> {
        self.partitions.get(usize::try_from(partition).ok()?)
    }

    fn partition_of(&self, topic: &str) -> Option<u32> {
        Some(murmur2::partition(topic.as_bytes(), self.partitions()))
    }

    /// Writes a barrier to each partition: told is first that it is durable, then that it is read back.
    pub(crate) fn write_barrier(&self, number: u64, now: Millis) -> Vec<BarrierPart> {
        let write = |(partition, of): (u32, &Arc<Partition>)| {
            let waits = &mut of.state.lock().barriers;
            write_barrier(&*self.log, (&self.topic, partition), (self.boot, number), now, waits)
        };
        (0..).zip(&self.partitions).map(write).collect()
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
                let _writing = of.writing.lock();
                let again = {
                    let mut state = of.state.lock();
                    let taken = state.read(&self.topic, partition, stored)?;
                    self.act(node, partition, &mut state, taken)
                };
                for Pending { message, is_early, done } in again {
                    self.write((partition, of), (&message, is_early, done), node.now(), node.wall());
                }
            }
            of.next.store(batch.next, Ordering::Release);
        }
    }

    /// Returns what must be written again.
    fn act(&self, node: &Node, partition: u32, state: &mut State, taken: Taken) -> VecDeque<Pending> {
        let is_early = |state: &State, topic: &str| {
            state.pending.get(topic).is_some_and(|pending| pending.iter().any(|one| one.is_early))
        };
        match taken {
            Taken::Tick => {}
            Taken::Barrier { boot, number } => {
                if boot == self.boot {
                    state.barriers.passed(number);
                }
            }
            // Until it is read back nothing takes the place of what was put there early.
            Taken::Gone(topic) if is_early(state, &topic) => {}
            Taken::Gone(topic) => {
                // A cleared one takes the message away.
                let id = MessageId { boot: self.boot, counter: 0 };
                let cleared = Message::new(id, 0, &topic, b"", mqtt_proto::codec::QoS::AtMostOnce, true);
                node.router.retain(&Arc::new(cleared));
            }
            Taken::Kept { mid, topic } => {
                let again = state.read_back(mid, &topic);
                let early = is_early(state, &topic) || again.iter().any(|one| one.is_early);
                let Some(kept) = state.topics.get_mut(&topic) else { return again };
                if !early {
                    node.router.retain(&kept.message);
                }
                if kept.message.id.boot == self.boot {
                    for mid in kept.others.drain(..) {
                        let key = Key::Retained { mid, topic: topic.clone() };
                        self.append_surely(partition, record(&key, None, node.wall()));
                    }
                }
                return again;
            }
        }
        VecDeque::new()
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
                self.append_surely(partition, record(&key(message), None, now));
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
    Barrier {
        boot: Boot,
        number: u64,
    },
    /// What counts for this topic may be another.
    Kept {
        mid: MessageId,
        topic: Box<str>,
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
                if let Some(Value::Tick { node, run, shared }) = value {
                    self.runs.began(boot, node, run, shared);
                }
                Ok(Taken::Tick)
            }
            (Key::Barrier { boot }, value) => {
                let number = if let Some(Value::Barrier(number)) = value { number } else { 0 };
                Ok(Taken::Barrier { boot, number })
            }
            (Key::Retained { mid, topic }, Some(Value::Retained(content))) => {
                let created = u64::try_from(stored.record.created).unwrap_or(0);
                self.keep(mid, created, || Arc::new(message_of(mid, &content)), &topic);
                Ok(Taken::Kept { mid, topic })
            }
            (Key::Retained { mid, topic }, _) => {
                let Some(kept) = self.topics.get_mut(&topic) else { return Ok(Taken::Gone(topic)) };
                kept.others.retain(|other| *other != mid);
                if kept.message.id == mid {
                    self.topics.remove(&topic);
                    return Ok(Taken::Gone(topic));
                }
                Ok(Taken::Kept { mid, topic })
            }
            _ => Err(LogError::Settings(format!(
                "topic {} partition {partition} offset {}: no retained message",
                topic.name(),
                stored.offset
            ))),
        }
    }

    /// If this message is one that this process run waits for: it counts, and so do those before it; or another was faster, and it
    /// must be written again, with all behind it.
    fn read_back(&mut self, mid: MessageId, topic: &str) -> VecDeque<Pending> {
        let (Some(pending), Some(kept)) = (self.pending.get_mut(topic), self.topics.get(topic)) else {
            return VecDeque::new();
        };
        let Some(at) = pending.iter().position(|one| one.message.id == mid) else { return VecDeque::new() };
        if kept.message.id != mid {
            return self.pending.remove(topic).unwrap_or_default();
        }
        for Pending { done, .. } in pending.drain(..=at) {
            done.sink.appended(done.token, Outcome::Durable(0));
        }
        if pending.is_empty() {
            self.pending.remove(topic);
        }
        VecDeque::new()
    }

    fn keep(&mut self, mid: MessageId, created: Millis, message: impl FnOnce() -> Arc<Message>, topic: &str) {
        let Some(kept) = self.topics.get_mut(topic) else {
            self.topics.insert(topic.into(), Kept { message: message(), created, others: Vec::new() });
            return;
        };
        let counts = kept.message.id;
        if counts == mid {
            return;
        }
        kept.others.retain(|other| *other != mid && *other != counts);
        if (mid.counter, mid.boot) < (counts.counter, counts.boot) {
            kept.others.push(mid);
            return;
        }
        kept.others.push(counts);
        kept.created = created;
        kept.message = message();
    }
}

/// Gets the outcome of a record that is waited for until it is read back.
struct Failure {
    of: Arc<Partition>,
    message: Arc<Message>,
}

impl AppendSink for Failure {
    fn appended(&self, _token: u64, outcome: Outcome) {
        if matches!(outcome, Outcome::Durable(_)) {
            return;
        }
        let failed = {
            let mut state = self.of.state.lock();
            let Some(pending) = state.pending.get_mut(self.message.topic()) else { return };
            // It may have another name by now.
            let Some(at) = pending.iter().position(|one| one.message.id == self.message.id) else { return };
            let failed = pending.remove(at);
            if pending.is_empty() {
                state.pending.remove(self.message.topic());
            }
            failed
        };
        if let Some(Pending { done, .. }) = failed {
            done.sink.appended(done.token, outcome);
        }
    }
}

fn retained(message: &Message, now: Millis) -> Record {
    record(&key(message), Some(Value::Retained(content(message))), now)
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
                ticks.iter().for_each(|&(boot, number)| state.runs.began(boot, "0", number, false));
                for boot in order {
                    state.keep(MessageId { boot, counter: 1 }, 0, || message(boot), "t");
                }
                assert_eq!(state.topics["t"].message.id.boot, 2, "{ticks:?} {order:?}");
            }
        }
    }
}
