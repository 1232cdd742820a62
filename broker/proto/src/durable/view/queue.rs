//! Messages: which copies of one are in the log, and whom they wait for. [`super::progress`] has how far each of those is.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::{Change, Mutation, SessionState, View, give_back, progress::Told};
use crate::{
    codec::QoS,
    durable::record::{Boot, Offset, Progress, QueuedMessage, Why},
    message::{MessageId, Millis},
};

/// A message that waits for one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub mid: MessageId,
    /// Where its body can be read.
    pub at: Offset,
    /// Of its record, in bytes.
    pub size: u32,
    pub qos: QoS,
    pub retain: bool,
    /// See [`crate::durable::record::Recipient::maybe_sent`].
    pub maybe_sent: bool,
    pub subscription_ids: Option<Box<[u32]>>,
    pub expires_at: Option<Millis>,
    /// The packet identifier under which its device has taken it, if it is a QoS 2 message.
    pub received: Option<u16>,
    /// It finishes through `D` alone; else, if it has no other recipient, by its deletion.
    pub once: bool,
    /// The shared subscription for which the session was chosen.
    pub group: Option<Box<str>>,
    /// The record by which this reader met it.
    pub(super) writing: Writing,
}

/// What waits for one session.
#[derive(Debug)]
pub(super) struct Queue {
    /// By the offset at which each was first read.
    entries: BTreeMap<Offset, Entry>,
    /// Nothing expires before.
    first_expiry: Millis,
}

impl Default for Queue {
    fn default() -> Self {
        Queue { entries: BTreeMap::new(), first_expiry: Millis::MAX }
    }
}

impl Queue {
    fn put(&mut self, order: Offset, entry: Entry) {
        self.first_expiry = self.first_expiry.min(entry.expires_at.unwrap_or(Millis::MAX));
        self.entries.insert(order, entry);
    }
}

/// Which of its records a process run wrote: the `chunk` of an `M` rises with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Writing {
    pub(super) boot: Boot,
    pub(super) chunk: u64,
}

/// What the log holds about one message.
#[derive(Debug, Default)]
pub struct Message {
    pub(super) copies: SmallVec<[Copy; 1]>,
}

#[derive(Debug)]
pub(super) struct Copy {
    pub(super) boot: Boot,
    pub(super) chunk: u64,
    /// Of its latest occurrence: compaction may take the former ones.
    pub(super) offset: Offset,
    pub(super) size: u32,
    pub(super) once: bool,
    /// Should its session end, another member of a shared subscription is to have it.
    pub(super) moves: bool,
    pub(super) recipients: Box<[MessageId]>,
}

impl Copy {
    pub(super) fn new(
        boot: Boot,
        chunk: u64,
        offset: Offset,
        size: usize,
        message: &QueuedMessage<'_>,
    ) -> Copy {
        Copy {
            boot,
            chunk,
            offset,
            size: u32::try_from(size).unwrap_or(u32::MAX),
            once: message.once,
            moves: message.group.is_some() && message.recipients.iter().any(|to| to.qos == QoS::AtLeastOnce),
            recipients: message.recipients.iter().map(|recipient| recipient.sid).collect(),
        }
    }
}

impl Entry {
    /// Whether another member of a shared subscription may have it (MQTT 5 section 4.8.2).
    pub fn moves(&self) -> bool {
        self.group.is_some() && self.qos == QoS::AtLeastOnce
    }
}

impl Message {
    /// The boot and chunk of its one copy, if that is for this session alone: whose deletion says that it is done.
    pub fn sole_copy(&self, sid: MessageId) -> Option<(Boot, u64)> {
        match self.copies.as_slice() {
            [copy] if *copy.recipients == [sid] && !copy.once => Some((copy.boot, copy.chunk)),
            _ => None,
        }
    }

    /// Whether another run has written it once more.
    pub(super) fn is_repeated(&self) -> bool {
        self.copies.len() > 1
    }
}

impl View {
    /// Live sessions for which something may wait that has expired.
    pub fn with_expired(&self, now: Millis) -> impl Iterator<Item = MessageId> {
        let some = self
            .sessions
            .iter()
            .filter(move |session| session.client.is_some() && session.may_have_expired(now));
        some.map(|session| session.sid)
    }

    /// Sessions that are over, and for which something waits that another member of a shared subscription is to have.
    pub fn with_left(&self) -> impl Iterator<Item = MessageId> {
        let has_left = |session: &SessionState| session.queue().values().any(Entry::moves);
        let over = self.sessions.iter().filter(move |session| session.client.is_none() && has_left(session));
        over.map(|session| session.sid)
    }

    /// What waits for a session and has expired, by the places in its queue. Until more expires the session is none of
    /// [`Self::with_expired`].
    pub fn expired(&mut self, sid: MessageId, now: Millis) -> Vec<(Offset, Entry)> {
        let Some(queue) = self.sessions.get_mut(&sid).and_then(|session| session.queue.as_mut()) else {
            return Vec::new();
        };
        let expiries = queue.entries.values().filter_map(|entry| entry.expires_at);
        queue.first_expiry = expiries.filter(|at| *at > now).min().unwrap_or(Millis::MAX);
        let is_expired = |(_, entry): &(&Offset, &Entry)| entry.expires_at.is_some_and(|at| at <= now);
        let expired = queue.entries.iter().filter(is_expired);
        expired.map(|(order, entry)| (*order, entry.clone())).collect()
    }

    pub(super) fn message_written(
        &mut self,
        mid: MessageId,
        copy: Copy,
        written: &QueuedMessage<'_>,
        changes: &mut Vec<Change>,
    ) {
        let forgets = self.has(Mutation::RepeatsQueue);
        let message = self.messages.entry(mid).or_default();
        let (offset, size) = (copy.offset, copy.size);
        let writing = Writing { boot: copy.boot, chunk: copy.chunk };
        // Most are: then no queue need be searched for it.
        let is_first = message.copies.is_empty();
        let known =
            message.copies.iter_mut().find(|known| (known.boot, known.chunk) == (copy.boot, copy.chunk));
        match known {
            Some(known) => *known = copy,
            None => message.copies.push(copy),
        }
        for recipient in &written.recipients {
            let progress = self.progress.of(mid, recipient.sid);
            if matches!(progress, Some(Progress::Done(_))) && !forgets {
                continue;
            }
            let session =
                self.sessions.get_or_insert_with(&recipient.sid, || SessionState::new(recipient.sid));
            if !is_first && let Some(entry) = session.entry(mid) {
                entry.at = offset;
                continue;
            }
            let received = match progress {
                Some(Progress::Received(packet_id)) => Some(packet_id),
                _ => None,
            };
            let entry = Entry {
                mid,
                at: offset,
                size,
                qos: recipient.qos,
                retain: recipient.retain,
                maybe_sent: recipient.maybe_sent,
                subscription_ids: recipient.subscription_ids.clone(),
                expires_at: written.content.expires_at,
                received,
                once: written.once,
                group: written.group.map(Into::into),
                writing,
            };
            session.queue.get_or_insert_default().put(offset, entry);
            if session.client.is_some() {
                changes.push(Change::Queued { sid: recipient.sid, order: offset });
            }
        }
    }

    pub(super) fn message_deleted(
        &mut self,
        mid: MessageId,
        boot: Boot,
        chunk: u64,
        changes: &mut Vec<Change>,
    ) {
        let Some(message) = self.messages.get_mut(&mid) else { return };
        let Some(index) = message.copies.iter().position(|copy| (copy.boot, copy.chunk) == (boot, chunk))
        else {
            return;
        };
        let gone = message.copies.remove(index);
        let mut finished: SmallVec<[MessageId; 1]> = SmallVec::new();
        for sid in gone.recipients {
            let Some(session) = self.sessions.get_mut(&sid) else { continue };
            let Some(entry) = session.entry(mid) else { continue };
            match message.copies.iter().rev().find(|copy| copy.recipients.contains(&sid)) {
                Some(copy) => {
                    entry.at = copy.offset;
                    if session.client.is_some() {
                        changes.push(Change::Remains { sid, mid });
                    }
                }
                None => {
                    if session.finish(mid) {
                        changes.push(Change::Finished { sid, mid, why: Why::Acknowledged });
                    }
                    finished.push(sid);
                }
            }
        }
        if message.copies.is_empty() {
            self.messages.remove(&mid);
            give_back(&mut self.messages);
        }
        finished.into_iter().for_each(|sid| self.tidy(sid));
    }

    pub(super) fn progress_written(
        &mut self,
        mid: MessageId,
        sid: MessageId,
        boot: Boot,
        progress: Progress,
        created: u32,
        changes: &mut Vec<Change>,
    ) {
        self.progress.tell(mid, sid, Told { boot, progress, created });
        let progress = self.progress.of(mid, sid);
        let Some(session) = self.sessions.get_mut(&sid) else { return };
        let lives = session.client.is_some();
        match progress {
            Some(Progress::Received(packet_id)) => {
                let Some(entry) = session.entry(mid) else { return };
                if entry.received.replace(packet_id).is_none() && lives {
                    changes.push(Change::Received { sid, mid });
                }
            }
            Some(Progress::Done(why)) => {
                if session.finish(mid) {
                    changes.push(Change::Finished { sid, mid, why });
                }
                self.tidy(sid);
            }
            None => {}
        }
    }
}

impl SessionState {
    /// What waits, by the offset at which this reader met it first.
    pub fn queue(&self) -> &BTreeMap<Offset, Entry> {
        static EMPTY: BTreeMap<Offset, Entry> = BTreeMap::new();
        self.queue.as_ref().map_or(&EMPTY, |queue| &queue.entries)
    }

    /// What waits, in the order in which it is to be delivered.
    pub fn in_order(&self) -> Vec<&Entry> {
        let mut of_run: BTreeMap<Boot, Vec<&Entry>> = BTreeMap::new();
        for entry in self.queue().values() {
            of_run.entry(entry.writing.boot).or_default().push(entry);
        }
        for entries in of_run.values_mut() {
            entries.sort_by_key(|entry| std::cmp::Reverse(entry.writing));
        }
        // Each place in the queue goes to the next message of the run whose message was met there.
        let next = |entry: &Entry| of_run.get_mut(&entry.writing.boot).and_then(Vec::pop);
        self.queue().values().filter_map(next).collect()
    }

    /// Whether anything that waits may have expired.
    pub fn may_have_expired(&self, now: Millis) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.first_expiry <= now)
    }

    /// The oldest are finished first, mostly: the search ends soon.
    fn entry(&mut self, mid: MessageId) -> Option<&mut Entry> {
        self.queue.as_mut()?.entries.values_mut().find(|entry| entry.mid == mid)
    }

    fn finish(&mut self, mid: MessageId) -> bool {
        let Some(queue) = &mut self.queue else { return false };
        let order = queue.entries.iter().find(|(_, entry)| entry.mid == mid).map(|(order, _)| *order);
        let finished = order.is_some_and(|order| queue.entries.remove(&order).is_some());
        if queue.entries.is_empty() {
            self.queue = None;
        }
        finished
    }
}
