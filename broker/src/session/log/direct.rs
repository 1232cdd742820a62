//! Messages of sessions, as they are written: in order with what a device is sent before it is in the log.
//!
//! A QoS 1 message for a device that is at this node is sent at once, if nothing that the log has, or will have, for its session
//! is ahead of it ([`crate::session::mailbox::direct`]). Its PUBACK is all that its publisher waits for. What has none soon is
//! written; before anything else is written for the session, and before its connection leaves it, so is all that has none.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Waker,
    time::Duration,
};

use mqtt_proto::{
    codec::QoS,
    durable::record::{Key, Progress, QueuedMessage, Recipient, Value, Why},
    message::{Message, MessageId, Millis},
};

use super::{Partition, Queueing, SessionLog, State, content, write::record};
use crate::{
    log::{Completion, Outcome},
    outside::Mistake,
    router::{self, Logged, Route},
    session::mailbox::{
        Caps, Mailbox,
        direct::{Finished, Late, Left},
    },
};

/// How long a device may take for its PUBACK before a message is written to the log.
pub(crate) const DIRECT_PATIENCE: Duration = Duration::from_millis(5);
/// Sessions in the log that one message is for, beyond which it goes through that: there it is one record for all of them.
const MOST_SESSIONS: usize = 32;

impl SessionLog {
    /// Whether a message may be sent before it is in the log. One that may come again after a crash is found there under its
    /// name.
    pub(crate) fn may_send_first(route: &Route, message: &Message) -> bool {
        let sessions: usize = route.logged.iter().map(|(_, indices)| indices.len()).sum();
        message.qos == QoS::AtLeastOnce && sessions <= MOST_SESSIONS
    }

    /// Sends a message to a device that is here. False: it must go through the log. `done` is told once the device has it, or
    /// the log.
    pub(crate) fn send_first(
        &self,
        to: &router::Recipient,
        message: &Arc<Message>,
        now: Millis,
        caps: Caps,
        done: impl Fn() -> Completion,
        wake: &mut Vec<Waker>,
    ) -> bool {
        let Some(partition) = to.logged.and_then(|logged| self.partition(logged.partition)) else {
            return false;
        };
        let read_back = partition.read_back.load(Ordering::Acquire);
        let is_sent = to.mailbox.post_direct(to, message, (read_back, now), caps, &done, wake);
        if is_sent && self.outside.makes(Mistake::AckWhenSent) {
            let done = done();
            done.sink.appended(done.token, Outcome::Durable(0));
        }
        is_sent
    }

    /// Appends a message for sessions of one partition.
    pub(crate) fn append_message(
        &self,
        to: Queueing<'_>,
        recipients: &[(&Mailbox, Recipient)],
        message: &Message,
        now: Millis,
        done: Completion,
    ) {
        let Some(partition) = self.partition(to.partition) else {
            return done.sink.appended(done.token, Outcome::Refused);
        };
        let mut last = partition.written.lock();
        for (mailbox, _) in recipients {
            self.write_late(to.partition, mailbox.take_direct(&mut last), now);
        }
        *last += 1;
        recipients.iter().for_each(|(mailbox, _)| mailbox.bar(*last));
        let recipients = recipients.iter().map(|(_, recipient)| recipient.clone()).collect();
        self.write_message(to, recipients, message, *last, now, done);
    }

    /// Writes what the device of a session was sent before this moment and has not acknowledged.
    pub(crate) fn write_overdue(&self, partition: u32, mailbox: &Mailbox, sent: Millis, now: Millis) {
        let Some(of) = self.partition(partition) else { return };
        let mut last = of.written.lock();
        self.write_late(partition, mailbox.take_overdue(sent, &mut last), now);
    }

    /// A connection's claim of this session takes effect.
    pub(super) fn attach(&self, partition: u32, mailbox: &Mailbox) {
        if let Some(of) = self.partition(partition) {
            // What was written before may be for it, and is not with it.
            mailbox.attach(*of.written.lock());
        }
    }

    /// The device of a session went away: what it has not acknowledged is written. Returns the first message in the log that it
    /// was not sent.
    pub(crate) fn detach(&self, partition: u32, mailbox: &Mailbox, now: Millis) -> Option<MessageId> {
        let of = self.partition(partition)?;
        let mut last = of.written.lock();
        let Left { unsent, late } = mailbox.detach(&mut last);
        self.write_late(partition, late, now);
        unsent
    }

    /// The device of a session needs this message no more.
    pub(crate) fn finish(&self, mailbox: &Mailbox, to: Logged, mid: MessageId, why: Why, now: Millis) {
        let copy = match mailbox.finish_direct(mid) {
            Finished::Outstanding(done) => return done.sink.appended(done.token, Outcome::Durable(0)),
            Finished::Written(number) => {
                // Until it is appended, that is.
                drop(self.partition(to.partition).map(|of| of.written.lock()));
                Some((self.boot, number))
            }
            Finished::Logged => {
                let sole = |state: &mut State| state.view.message(mid)?.sole_copy(to.sid);
                self.with(to.partition, sole).flatten()
            }
        };
        match copy {
            Some((boot, chunk)) if why == Why::Acknowledged => {
                self.append_surely(to.partition, &Key::Message { mid, boot, chunk }, None, now);
            }
            _ => self.done(to, mid, why, now),
        }
    }

    /// The same, without a look at what else the message is for.
    pub(crate) fn done(&self, to: Logged, mid: MessageId, why: Why, now: Millis) {
        let key = Key::Progress { mid, sid: to.sid, boot: self.boot };
        self.append_surely(to.partition, &key, Some(Value::Progress(Progress::Done(why))), now);
    }

    /// In the order in which they were numbered, by who holds that number.
    fn write_late(&self, partition: u32, late: Vec<Late>, now: Millis) {
        for Late { sid, delivery, number, maybe_sent, done } in late {
            let to = Queueing { partition, once: false, group: None };
            let (qos, retain, subscription_ids) = (delivery.qos, delivery.retain, delivery.subscription_ids);
            let recipient = Recipient { sid, qos, retain, maybe_sent, subscription_ids };
            self.write_message(to, vec![recipient], &delivery.message, number, now, done);
        }
    }

    fn write_message(
        &self,
        Queueing { partition, once, group }: Queueing<'_>,
        recipients: Vec<Recipient>,
        message: &Message,
        number: u64,
        now: Millis,
        done: Completion,
    ) {
        let key = Key::Message { mid: message.id, boot: self.boot, chunk: number };
        let message = QueuedMessage { once, group, recipients, content: content(message) };
        self.log.append(&self.topic, partition, record(&key, Some(Value::Message(message)), now), done);
    }
}

impl Partition {
    /// A message of this process run was read, and left with who gets it.
    pub(super) fn has_read(&self, number: u64) {
        self.read_back.fetch_max(number, Ordering::Release);
    }
}
