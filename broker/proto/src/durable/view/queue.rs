//! Messages: which copies of one are in the log, whom they wait for, and how far each of those is.

use smallvec::SmallVec;

use super::{Change, Mutation, SessionState, View};
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
    pub subscription_ids: Option<Box<[u32]>>,
    pub expires_at: Option<Millis>,
    /// The packet identifier under which its device has taken it, if it is a QoS 2 message.
    pub received: Option<u16>,
    /// It finishes through `D` alone; else, if it has no other recipient, by its deletion.
    pub once: bool,
    /// The record by which this reader met it.
    pub(super) writing: Writing,
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
    pub(super) progress: Vec<Told>,
}

/// What one process run told about one recipient.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) sid: MessageId,
    pub(super) boot: Boot,
    pub(super) progress: Progress,
    pub(super) created: u32,
}

#[derive(Debug)]
pub(super) struct Copy {
    pub(super) boot: Boot,
    pub(super) chunk: u64,
    /// Of its latest occurrence: compaction may take the former ones.
    pub(super) offset: Offset,
    pub(super) created: u32,
    pub(super) size: u32,
    pub(super) once: bool,
    pub(super) recipients: Box<[MessageId]>,
}

impl Copy {
    pub(super) fn new(
        boot: Boot,
        chunk: u64,
        offset: Offset,
        created: u32,
        size: usize,
        message: &QueuedMessage<'_>,
    ) -> Copy {
        Copy {
            boot,
            chunk,
            offset,
            created,
            size: u32::try_from(size).unwrap_or(u32::MAX),
            once: message.once,
            recipients: message.recipients.iter().map(|recipient| recipient.sid).collect(),
        }
    }
}

impl Message {
    /// The boot and chunk of its one copy with one recipient: whose deletion says that it is done.
    pub fn sole_copy(&self) -> Option<(Boot, u64)> {
        match self.copies.as_slice() {
            [copy] if copy.recipients.len() == 1 && !copy.once => Some((copy.boot, copy.chunk)),
            _ => None,
        }
    }

    /// Whether another run has written it once more.
    pub(super) fn is_repeated(&self) -> bool {
        self.copies.len() > 1
    }

    pub(super) fn progress_of(&self, sid: MessageId) -> Option<Progress> {
        self.progress.iter().filter(|told| told.sid == sid).map(|told| told.progress).max()
    }
}

impl View {
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
            let progress = message.progress_of(recipient.sid);
            if matches!(progress, Some(Progress::Done(_))) && !forgets {
                continue;
            }
            let session = self.sessions.entry(recipient.sid).or_default();
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
                subscription_ids: recipient.subscription_ids.clone(),
                expires_at: written.content.expires_at,
                received,
                once: written.once,
                writing,
            };
            session.queue.insert(offset, entry);
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
                Some(copy) => entry.at = copy.offset,
                None => {
                    if session.finish(mid) && session.client.is_some() {
                        changes.push(Change::Finished { sid, mid, why: Why::Acknowledged });
                    }
                    finished.push(sid);
                }
            }
        }
        if message.copies.is_empty() && message.progress.is_empty() {
            self.messages.remove(&mid);
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
        let message = self.messages.entry(mid).or_default();
        match message.progress.iter_mut().find(|told| (told.sid, told.boot) == (sid, boot)) {
            Some(told) => {
                told.progress = progress.max(told.progress);
                told.created = told.created.max(created);
            }
            None => message.progress.push(Told { sid, boot, progress, created }),
        }
        let progress = message.progress_of(sid);
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
                if session.finish(mid) && lives {
                    changes.push(Change::Finished { sid, mid, why });
                }
                self.tidy(sid);
            }
            None => {}
        }
    }

    pub(super) fn progress_deleted(&mut self, mid: MessageId, sid: MessageId, boot: Boot) {
        let Some(message) = self.messages.get_mut(&mid) else { return };
        message.progress.retain(|told| (told.sid, told.boot) != (sid, boot));
        if message.copies.is_empty() && message.progress.is_empty() {
            self.messages.remove(&mid);
        }
    }
}

impl SessionState {
    /// The oldest are finished first, mostly: the search ends soon.
    fn entry(&mut self, mid: MessageId) -> Option<&mut Entry> {
        self.queue.values_mut().find(|entry| entry.mid == mid)
    }

    fn finish(&mut self, mid: MessageId) -> bool {
        let order = self.queue.iter().find(|(_, entry)| entry.mid == mid).map(|(order, _)| *order);
        order.is_some_and(|order| self.queue.remove(&order).is_some())
    }
}
