//! Messages of QoS 1 that a device is sent before they are in its session's log. Owns, of one connection, which of them have
//! no PUBACK so far, in their order, and whose publishers wait for that.
//!
//! One is sent so only if nothing that is in the log, or on its way there, is ahead of it. What the device does not acknowledge
//! soon is written to the log, as is everything outstanding before anything else is written for the session: so the
//! order in the log is that in which it was sent. [`crate::session::log`] does the writing (`log/direct.rs`).

use std::{collections::VecDeque, sync::Arc, task::Waker};

use mqtt_proto::{
    codec::QoS,
    message::{Delivery, Message, MessageId, Millis},
};

use super::{Caps, Mailbox, Open, Presence};
use crate::{log::Completion, router::Recipient};

/// Messages that a session may have outstanding, with those that were written and not read back.
const MOST: usize = 500;
/// A device that is late again and again is tried anew after this many messages at the latest.
const MOST_SKIPPED: u32 = 1023;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Directs {
    outstanding: VecDeque<Direct>,
    /// Written to the log since, and not read back: there they have these numbers.
    written: VecDeque<(MessageId, u64)>,
    /// So many messages more go through the log, for the device was late; and how many would if it were again.
    skips: u32,
    next_skips: u32,
}

/// One that waits for its PUBACK.
struct Direct {
    sid: MessageId,
    delivery: Delivery,
    since: Millis,
    /// Its publisher.
    done: Completion,
}

/// One that must be written to the log, under this number.
pub(crate) struct Late {
    pub(crate) sid: MessageId,
    pub(crate) delivery: Delivery,
    pub(crate) number: u64,
    pub(crate) maybe_sent: bool,
    pub(crate) done: Completion,
}

/// Where a message was that a device has finished.
pub(crate) enum Finished {
    /// Nowhere else: its publisher is to be told.
    Outstanding(Completion),
    /// It is written to the log under this number, and may not be read back.
    Written(u64),
    /// It came through the log.
    Logged,
}

/// What a connection leaves that served a session in the log.
#[derive(Default)]
pub(crate) struct Left {
    /// The first message in the log that was not sent.
    pub(crate) unsent: Option<MessageId>,
    pub(crate) late: Vec<Late>,
}

impl Mailbox {
    /// Leaves a message for the device beside the log; false: it must go through that. `read_back`: up to which number what this
    /// process wrote to the session's partition was read back. `done` is told once the device has it, or the log.
    pub(crate) fn post_direct(
        &self,
        to: &Recipient,
        message: &Arc<Message>,
        (read_back, now): (u64, Millis),
        caps: Caps,
        done: impl FnOnce() -> Completion,
        wake: &mut Vec<Waker>,
    ) -> bool {
        let mut inner = self.inner.lock();
        let is_here = inner.presence == Presence::Online && inner.is_in_log;
        let Some(logged) = to.logged.filter(|logged| is_here && logged.sid == inner.sid) else {
            return false;
        };
        let may_go = |open: &&mut Box<Open>| {
            open.is_logged
                // Its connection serves, and will see to what it does not acknowledge.
                && open.waker.is_some()
                && open.barred <= read_back
                && !open.full_window
                && open.over_since.is_none()
                && open.queue.len() < caps.online
        };
        let Some(open) = inner.open.as_mut().filter(may_go) else { return false };
        let directs = open.direct.get_or_insert_default();
        if !directs.has_room() {
            return false;
        }
        let delivery = Delivery {
            message: message.clone(),
            qos: QoS::AtLeastOnce,
            retain: to.retain_as_published && message.retain,
            subscription_ids: to.subscription_ids.clone(),
            share: None,
        };
        open.queue.push_back(delivery.clone());
        directs.outstanding.push_back(Direct { sid: logged.sid, delivery, since: now, done: done() });
        open.signal_deliveries(wake);
        true
    }

    /// Since when the oldest waits that is in no log.
    pub(crate) fn first_direct(&self) -> Option<Millis> {
        self.inner.lock().open.as_deref().and_then(Open::first_direct)
    }

    /// Takes those out that wait since this moment or longer: the device is late. `last` is the last number given in the
    /// session's partition.
    pub(crate) fn take_overdue(&self, since: Millis, last: &mut u64) -> Vec<Late> {
        self.with_directs(|directs| directs.take_overdue(since, last)).unwrap_or_default()
    }

    /// Takes all out that are in no log: something else is about to be written for the session.
    pub(crate) fn take_direct(&self, last: &mut u64) -> Vec<Late> {
        self.with_directs(|directs| directs.take(usize::MAX, last)).unwrap_or_default()
    }

    /// Until what this process has written under this number is read back, everything else goes through the log, too.
    pub(crate) fn bar(&self, number: u64) {
        if let Some(open) = self.inner.lock().open.as_mut() {
            open.barred = open.barred.max(number);
        }
    }

    /// The device needs a message no more.
    pub(crate) fn finish_direct(&self, mid: MessageId) -> Finished {
        self.with_directs(|directs| directs.finish(mid)).unwrap_or(Finished::Logged)
    }

    /// A message that this process wrote was read back. True: the device was sent it before, or it waits here to be.
    pub(crate) fn has_already(&self, mid: MessageId, number: u64) -> bool {
        self.with_directs(|directs| directs.read_back(mid, number)).unwrap_or(false)
    }

    /// The device went away. Where its session stays in the log, so does what waits for it. Else that stays here until
    /// [`Self::end`], for another may get some of it. `last` as in [`Self::take_overdue`].
    pub(crate) fn detach(&self, last: &mut u64) -> Left {
        let left = {
            let mut inner = self.inner.lock();
            inner.presence = Presence::Offline;
            inner.open.take_if(|open| open.is_logged)
        };
        let Some(mut left) = left else { return Left::default() };
        left.waiting.drain(..).for_each(Waker::wake);
        left.leave(last)
    }

    fn with_directs<R>(&self, act: impl FnOnce(&mut Directs) -> R) -> Option<R> {
        self.inner.lock().open.as_mut()?.direct.as_deref_mut().map(act)
    }
}

impl Open {
    pub(super) fn first_direct(&self) -> Option<Millis> {
        Some(self.direct.as_deref()?.outstanding.front()?.since)
    }

    pub(super) fn has_directs(&self) -> bool {
        self.direct.as_deref().is_some_and(|directs| !directs.outstanding.is_empty())
    }

    fn leave(&mut self, last: &mut u64) -> Left {
        let mut directs = self.direct.take().unwrap_or_default();
        let mut late = directs.take(usize::MAX, last);
        for one in &mut late {
            one.maybe_sent = !self.queue.iter().any(|queued| queued.message.id == one.delivery.message.id);
        }
        // Those have their place in the log only once they are read back.
        let is_logged = |queued: &&Delivery| {
            queued.qos > QoS::AtMostOnce
                && !directs.written.iter().any(|(written, _)| *written == queued.message.id)
        };
        let unsent = self.queue.iter().find(is_logged).map(|queued| queued.message.id);
        Left { unsent, late }
    }
}

impl Directs {
    /// Whether one more may be sent so.
    fn has_room(&mut self) -> bool {
        if self.outstanding.len() + self.written.len() >= MOST {
            return false;
        }
        let is_trusted = self.skips == 0;
        self.skips = self.skips.saturating_sub(1);
        is_trusted
    }

    fn take_overdue(&mut self, since: Millis, last: &mut u64) -> Vec<Late> {
        let count = self.outstanding.iter().take_while(|one| one.since <= since).count();
        if count > 0 {
            self.next_skips = (2 * self.next_skips + 1).min(MOST_SKIPPED);
            self.skips = self.next_skips;
        }
        self.take(count, last)
    }

    /// Takes the oldest.
    fn take(&mut self, count: usize, last: &mut u64) -> Vec<Late> {
        let count = count.min(self.outstanding.len());
        let Directs { outstanding, written, .. } = self;
        let late = outstanding.drain(..count).map(|Direct { sid, delivery, done, .. }| {
            *last += 1;
            written.push_back((delivery.message.id, *last));
            Late { sid, delivery, number: *last, maybe_sent: true, done }
        });
        late.collect()
    }

    fn finish(&mut self, mid: MessageId) -> Finished {
        // Clients mostly acknowledge in order, so that the search ends at once.
        let at = self.outstanding.iter().position(|one| one.delivery.message.id == mid);
        if let Some(one) = at.and_then(|at| self.outstanding.remove(at)) {
            (self.skips, self.next_skips) = (0, 0);
            return Finished::Outstanding(one.done);
        }
        let written = self.written.iter().find(|(written, _)| *written == mid);
        written.map_or(Finished::Logged, |(_, number)| Finished::Written(*number))
    }

    /// What was written before and is not read back by now never will be.
    fn read_back(&mut self, mid: MessageId, number: u64) -> bool {
        let is_it = self.written.iter().any(|written| *written == (mid, number));
        self.written.retain(|(_, written)| *written > number);
        is_it
    }
}

impl std::fmt::Debug for Direct {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Direct").field("mid", &self.delivery.message.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
