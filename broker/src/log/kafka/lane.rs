//! The way of records into one partition: owns what was taken in and has no outcome yet, in its order.
//!
//! Whatever happens to a producer, the lane still holds every record without an outcome, so that a new producer
//! gets them again in the same order. A success is told once, at the front; anything else waits for the writer.
//!
//! A partition that does not know the producer takes any sequence number to begin with (KIP-360). If of two requests
//! on their way the first were refused, by a node that is just becoming leader, and the second taken, librdkafka
//! would count both as stored. So the first record goes alone, until the partition has shown that it knows.
//!
//! Otherwise what waits is handed over while few records are under way, so that it goes at once when little comes; else
//! all of it together once they have their outcomes. librdkafka has one such request for a partition on its way, and
//! would look without rest whether the next one may follow.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use super::producer::{Number, Producer, Seat, Stored};
use crate::log::{Completion, Offset, Outcome, Record, Topic, room::Room};

/// Bytes that a record costs besides its own.
const OVERHEAD: usize = 100;
/// How long Kafka surely remembers a producer that sends nothing; by default it is a day (`producer.id.expiration.ms`).
const MEMORY: Duration = Duration::from_secs(600);
/// With fewer on their way, an idempotent librdkafka sends what it is given at once (`RD_KAFKA_IDEMP_MAX_INFLIGHT`).
const FEW: usize = 5;
/// What is handed over together at most: librdkafka puts as much into a request.
const REQUEST_RECORDS: usize = 10_000;
const REQUEST_BYTES: usize = super::clients::BATCH_BYTES;
/// Records handed over in one go: others append meanwhile.
const HANDOVER: usize = 64;
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
    /// Since when there are any, or since one was stored.
    since: Option<Instant>,
    /// Names the first entry.
    first: Number,
    /// How many, from the front, are with the producer, and how large they are.
    submitted: usize,
    submitted_bytes: usize,
    /// Of the producer that has them, even when no more go to it.
    generation: u64,
    /// Takes what comes; absent: it waits for the writer.
    seat: Option<Seat>,
    /// The producer has been asked to come for what waits.
    called: bool,
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
}

/// What waits in a lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backlog {
    pub(super) records: usize,
    /// How many of them are with a producer.
    pub(super) under_way: usize,
    /// Since when something waits and nothing was stored.
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
            since: None,
            first: Number::default(),
            submitted: 0,
            submitted_bytes: 0,
            generation: 0,
            seat: None,
            called: false,
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
        if waiting.entries.is_empty() {
            waiting.since = Some(Instant::now());
        }
        waiting.entries.push_back(Entry { record, done, size });
        waiting.call();
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
        waiting.submitted_bytes = 0;
        waiting.confirmed = None;
        waiting.generation = producer.number();
        waiting.seat = Some(producer.seat(self));
        waiting.called = false;
        waiting.call();
    }

    /// What comes waits, until [`Lane::open`].
    pub(super) fn hold(&self) {
        self.waiting.lock().seat = None;
    }

    /// The producer that had its records has ended: none of its outcomes counts any more.
    pub(super) fn take_back(&self) {
        let mut waiting = self.waiting.lock();
        waiting.seat = None;
        waiting.submitted = 0;
        waiting.submitted_bytes = 0;
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

    /// Hands over what waits, in order, if few records are under way. On the producer's thread alone.
    pub(super) fn hand_over(self: &Arc<Self>) {
        let mut waiting = self.waiting.lock();
        waiting.called = false;
        if waiting.submitted >= FEW {
            return;
        }
        let is_known = waiting.confirmed.is_some_and(|at| at.elapsed() < MEMORY);
        let most = if is_known { REQUEST_RECORDS } else { 1 };
        while waiting.submit(self, most) {
            MutexGuard::bump(&mut waiting);
        }
    }

    /// Kafka has these records. On the producer's thread alone.
    pub(super) fn delivered(self: &Arc<Self>, generation: u64, stored: &[Stored], now: Instant) {
        let mut told = Vec::with_capacity(stored.len());
        let mut waiting = self.waiting.lock();
        let mut size = 0;
        for Stored { number, offset } in stored {
            // Of a former producer, or behind one that failed: it will be sent again and told then.
            if waiting.generation != generation || waiting.first != *number || waiting.submitted == 0 {
                continue;
            }
            let Some(entry) = waiting.entries.pop_front() else { continue };
            waiting.first = waiting.first.plus(1);
            waiting.submitted -= 1;
            size += entry.size;
            told.push((entry, *offset));
        }
        if told.is_empty() {
            return;
        }
        waiting.submitted_bytes = waiting.submitted_bytes.saturating_sub(size);
        waiting.room.free(size, told.len());
        waiting.confirmed = Some(now);
        waiting.since = Some(now);
        drop(waiting);
        // First of all: Kafka has nothing to do meanwhile.
        self.hand_over();
        if let Some(last) = told.iter().rev().find_map(|(_, offset)| *offset) {
            self.end.fetch_max(last + 1, Ordering::Relaxed);
        }
        for (entry, offset) in told {
            entry.tell(Outcome::Durable(offset.unwrap_or_else(|| self.known_end())));
        }
    }

    /// Tells that these records can never be stored; with each go those that its sink waits for behind it, lest they
    /// overtake it. Only while no producer has any.
    pub(super) fn refuse(&self, is_bad: impl Fn(Number, &Record) -> bool) {
        let mut refused = Vec::new();
        let mut kept = VecDeque::new();
        let mut sinks = HashSet::new();
        let mut waiting = self.waiting.lock();
        let first = waiting.first;
        for (at, entry) in std::mem::take(&mut waiting.entries).into_iter().enumerate() {
            let number = first.plus(at);
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
            since: waiting.since.filter(|_| !waiting.entries.is_empty()),
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
    /// Has the producer come, if there is something for it to take.
    fn call(&mut self) {
        if let Some(seat) = &self.seat
            && self.submitted < FEW.min(self.entries.len())
            && !std::mem::replace(&mut self.called, true)
        {
            seat.call();
        }
    }

    /// Hands some of what waits to the producer, until it has `most`; true: there is more to hand over.
    fn submit(&mut self, lane: &Arc<Lane>, most: usize) -> bool {
        let Some(seat) = &mut self.seat else { return false };
        let in_one_go = most.min(self.submitted + HANDOVER);
        while self.submitted < in_one_go && self.submitted_bytes < REQUEST_BYTES {
            let Some(entry) = self.entries.get(self.submitted) else { return false };
            let number = self.first.plus(self.submitted);
            if let Err(code) = seat.hand_over(lane, number, &entry.record) {
                // Nothing may overtake it: the writer decides.
                seat.fail(lane, number, code);
                self.seat = None;
                return false;
            }
            self.submitted += 1;
            self.submitted_bytes += entry.size;
        }
        self.submitted < most && self.submitted_bytes < REQUEST_BYTES
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
