//! The way of records into one partition: owns what was taken in and has no outcome yet, in its order.
//!
//! Whatever happens to a producer, the lane still holds every record without an outcome, so that a new producer
//! gets them again in the same order. A success is told once, at the front; anything else waits for the writer.
//!
//! A partition that does not know the producer takes any sequence number to begin with (KIP-360). If of two requests
//! on their way the first were refused, by a node that is just becoming leader, and the second taken, librdkafka
//! would count both as stored. So the first record goes alone, until the partition has shown that it knows.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::producer::{Handover, Producer};
use crate::log::{Completion, Offset, Outcome, Record, Topic, room::Room};

/// Bytes that a record costs besides its own.
const OVERHEAD: usize = 100;
/// How long Kafka surely remembers a producer that sends nothing; by default it is a day (`producer.id.expiration.ms`).
const MEMORY: Duration = Duration::from_secs(600);
/// Records handed over in one go: others append meanwhile.
const HANDOVER: usize = 1000;
const JUST_NOW: Duration = Duration::from_secs(1);

pub(super) struct Lane {
    pub(super) topic: Topic,
    pub(super) partition: u32,
    /// The largest record that the topic takes.
    pub(super) record_bytes: AtomicU32,
    /// Kafka refuses what was created longer ago.
    oldest: Option<Duration>,
    /// See [`crate::log::Log::known_end`].
    end: AtomicU64,
    waiting: Mutex<Waiting>,
}

struct Waiting {
    entries: VecDeque<Entry>,
    /// Number of the first entry.
    first: u64,
    /// How many, from the front, are with the producer.
    submitted: usize,
    /// Of the producer that has them, even when no more go to it.
    generation: u64,
    /// Takes what comes; absent: it waits for the writer.
    producer: Option<Arc<Producer>>,
    /// When the partition last confirmed something of this producer.
    confirmed: Option<Instant>,
    room: Arc<Room>,
    /// More than the room has is refused.
    aside: bool,
    /// Something was refused for want of room: so is all that follows, lest it overtake that.
    overfull: bool,
    closed: bool,
}

struct Entry {
    record: Record,
    done: Completion,
    size: usize,
    since: Instant,
}

/// What waits in a lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backlog {
    pub(super) records: usize,
    /// How many of them are with a producer.
    pub(super) under_way: usize,
    /// Since when the first waits.
    pub(super) since: Option<Instant>,
    /// When the producer's last success was told.
    confirmed: Option<Instant>,
    /// Its topic does not work, which is told elsewhere.
    pub(super) aside: bool,
}

impl Backlog {
    /// Whether nothing is with the producer, or it has stored something just now.
    pub(super) fn keeps_up(&self) -> bool {
        self.under_way == 0 || self.confirmed.is_some_and(|at| at.elapsed() < JUST_NOW)
    }
}

impl Lane {
    pub(super) fn new(
        topic: &Topic,
        partition: u32,
        record_bytes: u32,
        oldest: Option<Duration>,
        room: Arc<Room>,
    ) -> Lane {
        let waiting = Waiting {
            entries: VecDeque::new(),
            first: 0,
            submitted: 0,
            generation: 0,
            producer: None,
            confirmed: None,
            room,
            aside: false,
            overfull: false,
            closed: false,
        };
        Lane {
            topic: topic.clone(),
            partition,
            record_bytes: record_bytes.into(),
            oldest,
            end: AtomicU64::new(0),
            waiting: Mutex::new(waiting),
        }
    }

    /// Takes the record in; false: it can't be taken, and its sink was told so.
    pub(super) fn append(self: &Arc<Self>, record: Record, done: Completion) -> bool {
        let size = size(&record);
        let mut waiting = self.waiting.lock();
        let too_large = size > self.record_bytes.load(Ordering::Relaxed) as usize;
        waiting.overfull |= waiting.aside && !waiting.room.has_some();
        if too_large || waiting.closed || waiting.overfull {
            drop(waiting);
            done.sink.appended(done.token, Outcome::Refused);
            return false;
        }
        waiting.room.take(size);
        waiting.entries.push_back(Entry { record, done, size, since: Instant::now() });
        waiting.submit(self);
        true
    }

    /// From now on records go to this producer, those that wait first.
    pub(super) fn open(self: &Arc<Self>, producer: &Arc<Producer>) {
        if let Some(oldest) = self.oldest {
            let oldest = i64::try_from(oldest.as_millis()).unwrap_or(i64::MAX);
            let now = i64::try_from(crate::node::wall()).unwrap_or(i64::MAX);
            self.refuse(|_, record| now.saturating_sub(record.created) > oldest);
        }
        let mut waiting = self.waiting.lock();
        waiting.submitted = 0;
        waiting.confirmed = None;
        waiting.generation = producer.number();
        waiting.producer = Some(producer.clone());
        waiting.submit(self);
    }

    /// What comes waits, until [`Lane::open`].
    pub(super) fn hold(&self) {
        self.waiting.lock().producer = None;
    }

    /// The producer that had its records has ended: none of its outcomes counts any more.
    pub(super) fn take_back(&self) {
        let mut waiting = self.waiting.lock();
        waiting.producer = None;
        waiting.submitted = 0;
        waiting.generation = 0;
    }

    /// What waits counts in another room from now on; `aside`: nothing is taken beyond what that has.
    pub(super) fn move_to(&self, room: &Arc<Room>, aside: bool) {
        let mut waiting = self.waiting.lock();
        let sizes: Vec<usize> = waiting.entries.iter().map(|entry| entry.size).collect();
        sizes.iter().for_each(|size| room.take(*size));
        waiting.room.free(sizes.iter().sum(), sizes.len());
        waiting.room = room.clone();
        waiting.aside = aside;
        waiting.overfull = false;
    }

    /// Kafka has the record; `offset` is absent where a repeat was recognised.
    pub(super) fn delivered(
        self: &Arc<Self>,
        generation: u64,
        number: u64,
        offset: Option<Offset>,
        now: Instant,
    ) {
        let mut waiting = self.waiting.lock();
        // Of a former producer, or behind one that failed: it will be sent again and told then.
        if waiting.generation != generation || waiting.first != number || waiting.submitted == 0 {
            return;
        }
        let Some(entry) = waiting.entries.pop_front() else { return };
        waiting.first += 1;
        waiting.submitted -= 1;
        waiting.room.free(entry.size, 1);
        waiting.confirmed = Some(now);
        waiting.submit(self);
        drop(waiting);
        if let Some(offset) = offset {
            self.end.fetch_max(offset + 1, Ordering::Relaxed);
        }
        entry.tell(Outcome::Durable(offset.unwrap_or_else(|| self.known_end())));
    }

    /// Tells that these records can never be stored; with each go those that its sink waits for behind it, lest they
    /// overtake it. Only while no producer has any.
    pub(super) fn refuse(&self, is_bad: impl Fn(u64, &Record) -> bool) {
        let mut refused = Vec::new();
        let mut kept = VecDeque::new();
        let mut sinks = HashSet::new();
        let mut waiting = self.waiting.lock();
        for (number, entry) in (waiting.first..).zip(std::mem::take(&mut waiting.entries)) {
            let sink = Arc::as_ptr(&entry.done.sink).cast::<()>();
            let bad = is_bad(number, &entry.record);
            if bad && entry.done.sink.is_ordered() {
                sinks.insert(sink);
            }
            if bad || sinks.contains(&sink) {
                refused.push(entry);
            } else {
                kept.push_back(entry);
            }
        }
        waiting.entries = kept;
        waiting.room.free(refused.iter().map(|entry| entry.size).sum(), refused.len());
        drop(waiting);
        refused.iter().for_each(|entry| entry.tell(Outcome::Refused));
    }

    /// Takes nothing more.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
    }

    /// Gives up what still waits.
    pub(super) fn abandon(&self) {
        let entries = {
            let mut waiting = self.waiting.lock();
            waiting.closed = true;
            let entries = std::mem::take(&mut waiting.entries);
            waiting.room.free(entries.iter().map(|entry| entry.size).sum(), entries.len());
            entries
        };
        entries.iter().for_each(|entry| entry.tell(Outcome::Broken));
    }

    pub(super) fn backlog(&self) -> Backlog {
        let waiting = self.waiting.lock();
        Backlog {
            records: waiting.entries.len(),
            under_way: waiting.submitted,
            since: waiting.entries.front().map(|entry| entry.since),
            confirmed: waiting.confirmed,
            aside: waiting.aside,
        }
    }

    pub(super) fn known_end(&self) -> Offset {
        self.end.load(Ordering::Relaxed)
    }

    pub(super) fn learn_end(&self, end: Offset) {
        self.end.fetch_max(end, Ordering::Relaxed);
    }
}

impl Waiting {
    /// Hands what is not with the producer yet to it, in order.
    fn submit(&mut self, lane: &Arc<Lane>) {
        let Some(producer) = &self.producer else { return };
        let is_known = self.confirmed.is_some_and(|at| at.elapsed() < MEMORY);
        let most = if is_known { self.submitted + HANDOVER } else { 1 };
        while self.submitted < most
            && let Some(entry) = self.entries.get(self.submitted)
        {
            let number = self.first + self.submitted as u64;
            if let Err(code) = producer.hand_over(Handover { lane: lane.clone(), number }, &entry.record) {
                // Nothing may overtake it: the writer decides.
                producer.fail(lane, number, code);
                self.producer = None;
                return;
            }
            self.submitted += 1;
        }
    }
}

impl Entry {
    fn tell(&self, outcome: Outcome) {
        self.done.sink.appended(self.done.token, outcome);
    }
}

/// Bytes that a record takes in Kafka, at most.
fn size(record: &Record) -> usize {
    let fields = record.key.iter().chain(&record.value);
    let headers = record.headers.iter().flat_map(|(name, value)| [name, value]);
    // Each header has two lengths.
    fields.chain(headers).map(bytes::Bytes::len).sum::<usize>() + record.headers.len() * 10 + OVERHEAD
}
