//! What waits for the store's thread: owns the queue of appends and the store's wake-ups.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::PartitionId;
use crate::log::{Completion, LogError, Offset, Outcome, Topic, TopicSettings, room::Room};

/// One append on its way.
pub(super) struct Entry {
    pub(super) partition: PartitionId,
    /// The record's key, where the topic keeps the latest of a key.
    pub(super) key: Option<Bytes>,
    /// No value: the key is deleted.
    pub(super) deletes: bool,
    /// As [`super::record::encode`] made it; `None`: to be refused in its turn.
    pub(super) encoded: Option<Vec<u8>>,
    pub(super) done: Completion,
    /// Given by the store at its first try; what recovers the database compares it.
    pub(super) offset: Option<Offset>,
}

/// A topic to be made or changed, and who waits for it.
pub(super) struct Ensure {
    pub(super) name: String,
    pub(super) settings: TopicSettings,
    pub(super) reply: oneshot::Sender<Result<Topic, LogError>>,
}

pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    /// Taken and not yet told an outcome, in the queue or being written.
    pub(super) room: Room,
}

#[derive(Default)]
struct Waiting {
    entries: VecDeque<Entry>,
    ensures: Vec<Ensure>,
    closing: bool,
}

/// One batch is small enough that its commit does not make others wait long.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_RECORDS: usize = 10_000;

impl Queue {
    pub(super) fn new(limit_bytes: usize, limit_records: usize) -> Queue {
        Queue { waiting: Mutex::default(), wake: Condvar::new(), room: Room::new(limit_bytes, limit_records) }
    }

    /// Refuses once the queue is closed.
    pub(super) fn push(&self, entry: Entry) {
        let mut waiting = self.waiting.lock();
        if waiting.closing {
            drop(waiting);
            entry.done.sink.appended(entry.done.token, Outcome::Refused);
            return;
        }
        self.room.take(entry.size());
        waiting.entries.push_back(entry);
        drop(waiting);
        self.wake.notify_one();
    }

    /// False when the queue is closed; nobody is told then.
    pub(super) fn ensure(&self, ensure: Ensure) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.closing {
            return false;
        }
        waiting.ensures.push(ensure);
        drop(waiting);
        self.wake.notify_one();
        true
    }

    pub(super) fn close(&self) {
        self.waiting.lock().closing = true;
        self.wake.notify_all();
    }

    /// Waits for something to do, at most until `until`; moves one batch to `batch`.
    /// Returns the topics asked for, and whether the queue is closed and nothing is left.
    pub(super) fn take(&self, batch: &mut Vec<Entry>, until: Instant) -> (Vec<Ensure>, bool) {
        let mut waiting = self.waiting.lock();
        while waiting.entries.is_empty() && waiting.ensures.is_empty() && !waiting.closing {
            if self.wake.wait_until(&mut waiting, until).timed_out() {
                break;
            }
        }
        let mut bytes = 0;
        while batch.len() < BATCH_RECORDS && bytes < BATCH_BYTES {
            let Some(entry) = waiting.entries.pop_front() else { break };
            bytes += entry.size();
            batch.push(entry);
        }
        let finished = waiting.closing && waiting.entries.is_empty();
        (std::mem::take(&mut waiting.ensures), finished)
    }

    /// Waits while nothing can be written: for `time`, or until closed, which returns true.
    pub(super) fn pause(&self, time: Duration) -> (Vec<Ensure>, bool) {
        let until = Instant::now() + time;
        let mut waiting = self.waiting.lock();
        while !waiting.closing && !self.wake.wait_until(&mut waiting, until).timed_out() {}
        (std::mem::take(&mut waiting.ensures), waiting.closing)
    }
}

impl Entry {
    pub(super) fn size(&self) -> usize {
        self.encoded.as_ref().map_or(0, Vec::len)
    }
}
