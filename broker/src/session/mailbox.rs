//! A session's mailbox: what others leave for it, online or not.
//!
//! Anyone may post; only the session's holder takes. It is bounded: while the session is online publishers are
//! told that it is congested (they wait, then the oldest message goes); while it is away the offline cap holds
//! and the oldest goes at once. QoS 0 messages are kept only for who is online and has room.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use mqtt_proto::{
    codec::QoS,
    message::{Delivery, Message, MessageId},
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    log::{AppendSink, Outcome},
    router::Recipient,
};

/// How long publishers wait for a slow device before its oldest messages go.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// A queue that was once long gives its memory back when it is empty.
const KEPT_CAPACITY: usize = 32;

#[derive(Debug)]
pub(crate) struct Mailbox {
    /// Names the session within this process; never 0.
    pub(crate) key: u64,
    /// The process run of another node that its device is connected to; 0: none.
    holder: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    presence: Presence,
    queue: VecDeque<Delivery>,
    /// Outcomes of appends, with the connection and ticket they belong to.
    settled: Vec<Settled>,
    /// Somebody wants the holder to look at its claim or at its rights.
    called: bool,
    /// The holder has been woken, or need not be.
    signaled: bool,
    /// The holder has no use for more deliveries now; it will come by itself.
    full_window: bool,
    /// What comes at QoS > 0 is in the session log, and waits here only while the device is there.
    logged: bool,
    waker: Option<Waker>,
    /// Connections that wait for room here.
    waiting: Vec<Waker>,
    /// Since when the queue has been over its online bound, with no half of it free in between.
    over_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Presence {
    Online,
    Offline,
    /// The session has ended; whatever is posted goes nowhere.
    #[default]
    Ended,
}

/// The outcome of an append that a connection made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settled {
    pub(crate) connection: u64,
    pub(crate) token: u64,
    pub(crate) outcome: Outcome,
}

/// How many messages a session may have waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caps {
    pub(crate) online: usize,
    pub(crate) offline: usize,
}

/// What came of a post.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Posted {
    /// Messages that went: QoS 0 without room, or the oldest over the offline cap.
    pub(crate) dropped: usize,
    /// The queue is over its online bound: whoever posts QoS > 0 should wait.
    pub(crate) congested: bool,
}

/// What the holder found besides deliveries.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    pub(crate) settled: Vec<Settled>,
    pub(crate) called: bool,
}

impl Mailbox {
    pub(crate) fn new(key: u64) -> Mailbox {
        Mailbox { key, holder: AtomicU64::new(0), inner: Mutex::default() }
    }

    pub(crate) fn set_holder(&self, boot: Option<u64>) {
        self.holder.store(boot.unwrap_or(0), Ordering::Relaxed);
    }

    /// The process run of another node that its device is connected to.
    pub(crate) fn holder(&self) -> Option<u64> {
        Some(self.holder.load(Ordering::Relaxed)).filter(|boot| *boot != 0)
    }

    /// Leaves messages for this session. The waker of a holder that must be told is added to `wake`.
    pub(crate) fn post(
        &self,
        to: &Recipient,
        messages: &[Arc<Message>],
        caps: Caps,
        wake: &mut Vec<Waker>,
    ) -> Posted {
        let mut posted = Posted::default();
        let mut inner = self.inner.lock();
        let mut waits = false;
        for message in messages {
            let qos = message.qos.min(to.qos);
            if (to.logged.is_some() && qos > QoS::AtMostOnce)
                || (to.no_local && message.publisher == self.key)
                || !inner.accepts(qos, caps, &mut posted)
            {
                continue;
            }
            waits |= qos > QoS::AtMostOnce;
            inner.queue.push_back(Delivery {
                message: message.clone(),
                qos,
                retain: to.retain_as_published && message.retain,
                subscription_ids: to.subscription_ids.clone(),
            });
        }
        if !inner.logged && inner.presence == Presence::Online && inner.queue.len() > caps.online {
            let since = *inner.over_since.get_or_insert_with(Instant::now);
            if since.elapsed() < PATIENCE {
                posted.congested = waits;
            } else {
                // It has been waited for long enough: from now on the oldest goes.
                posted.dropped += inner.trim_to(caps.online);
            }
        }
        inner.signal_deliveries(wake);
        posted
    }

    /// Bytes of topics and payloads that wait; what waits elsewhere, too, is counted in full.
    pub(crate) fn bytes(&self) -> usize {
        let of = |delivery: &Delivery| delivery.message.topic().len() + delivery.message.payload().len();
        self.inner.lock().queue.iter().map(of).sum()
    }

    /// Leaves a message that is in the session log. Returns those that go for want of room: the oldest, once publishers have
    /// waited long enough.
    pub(crate) fn post_logged(
        &self,
        delivery: Delivery,
        caps: Caps,
        wake: &mut Vec<Waker>,
    ) -> Vec<MessageId> {
        let mut inner = self.inner.lock();
        inner.queue.push_back(delivery);
        let mut surplus = Vec::new();
        if inner.queue.len() > caps.online {
            let since = *inner.over_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= PATIENCE {
                surplus = inner.take_surplus(caps.online);
            }
        }
        inner.signal_deliveries(wake);
        surplus
    }

    /// Leaves what waited in the session log before the device came.
    pub(crate) fn prepend(&self, deliveries: Vec<Delivery>) {
        let mut inner = self.inner.lock();
        let later = std::mem::replace(&mut inner.queue, deliveries.into());
        inner.queue.extend(later);
    }

    /// Leaves retained messages for a new subscription: all of them, whatever is waiting.
    pub(crate) fn post_retained(&self, deliveries: Vec<Delivery>) {
        self.inner.lock().queue.extend(deliveries);
    }

    /// Takes messages in order, at most `most`, of which `window` may be QoS > 0. True if more are waiting that may
    /// be taken at once.
    pub(crate) fn take(&self, window: usize, most: usize, into: &mut Vec<Delivery>) -> bool {
        let mut inner = self.inner.lock();
        let mut window = window;
        inner.full_window = false;
        while let Some(next) = inner.queue.front() {
            if next.qos > QoS::AtMostOnce {
                if window == 0 {
                    inner.full_window = true;
                    break;
                }
                window -= 1;
            }
            if into.len() == most {
                return true;
            }
            into.extend(inner.queue.pop_front());
        }
        if inner.queue.is_empty() && inner.queue.capacity() > KEPT_CAPACITY {
            inner.queue = VecDeque::new();
        }
        false
    }

    /// Takes what is not a delivery, and asks to be woken for whatever comes after this call.
    pub(crate) fn look(&self, context: &Context<'_>) -> Mail {
        let mut inner = self.inner.lock();
        inner.signaled = false;
        match &mut inner.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Mail { settled: std::mem::take(&mut inner.settled), called: std::mem::take(&mut inner.called) }
    }

    /// Wakes the publishers that wait for room, if there is room.
    pub(crate) fn offer_room(&self, caps: Caps) {
        let mut inner = self.inner.lock();
        if inner.queue.len() <= caps.online / 2 {
            inner.over_since = None;
        }
        if !inner.waiting.is_empty()
            && (inner.presence != Presence::Online || inner.queue.len() <= caps.online / 2)
        {
            let waiting = std::mem::take(&mut inner.waiting);
            drop(inner);
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// True if there is room; else the caller is woken when there is.
    pub(crate) fn has_room(&self, caps: Caps, context: &Context<'_>) -> bool {
        let mut inner = self.inner.lock();
        if inner.presence != Presence::Online || inner.queue.len() <= caps.online {
            return true;
        }
        if !inner.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            inner.waiting.push(context.waker().clone());
        }
        false
    }

    /// Whether who publishes QoS > 0 should wait.
    pub(crate) fn is_congested(&self, caps: Caps) -> bool {
        let inner = self.inner.lock();
        let waits = inner.over_since.is_none_or(|since| since.elapsed() < PATIENCE);
        inner.presence == Presence::Online && inner.queue.len() > caps.online && waits
    }

    pub(crate) fn is_online(&self) -> bool {
        self.presence() == Presence::Online
    }

    /// Drops the oldest messages over the online bound: a publisher has waited long enough. Returns how many, if the session log
    /// need not be told: there the next message does it.
    pub(crate) fn drop_surplus(&self, caps: Caps) -> usize {
        let mut inner = self.inner.lock();
        let dropped = if inner.logged { 0 } else { inner.trim_to(caps.online) };
        let waiting = std::mem::take(&mut inner.waiting);
        drop(inner);
        waiting.into_iter().for_each(Waker::wake);
        dropped
    }

    /// Messages that wait here.
    pub(crate) fn len(&self) -> usize {
        self.inner.lock().queue.len()
    }

    /// Asks the holder to look whether it still holds the session and has its rights.
    pub(crate) fn call(&self) {
        let waker = {
            let mut inner = self.inner.lock();
            inner.called = true;
            inner.signal()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A connection holds the session from now on.
    pub(crate) fn go_online(&self) {
        let mut inner = self.inner.lock();
        inner.presence = Presence::Online;
        inner.full_window = false;
        inner.settled.clear();
        // A call that came since the claim stands: it may be a later claim's.
    }

    /// A connection's claim of a session in the log took effect: from now on what is queued comes here, too.
    pub(crate) fn attach(&self) {
        let mut inner = self.inner.lock();
        let called = inner.called;
        *inner = Inner { called, presence: Presence::Online, logged: true, ..Inner::default() };
    }

    /// The device went away, and its session stays in the log. Returns the first message that was not sent.
    pub(crate) fn detach(&self) -> Option<MessageId> {
        let left = {
            let mut inner = self.inner.lock();
            let called = inner.called;
            std::mem::replace(&mut *inner, Inner { called, presence: Presence::Offline, ..Inner::default() })
        };
        left.waiting.into_iter().for_each(Waker::wake);
        left.queue.iter().find(|delivery| delivery.qos > QoS::AtMostOnce).map(|delivery| delivery.message.id)
    }

    /// The session is over; nothing of it is left.
    pub(crate) fn end(&self) {
        let ended = {
            let mut inner = self.inner.lock();
            // Whoever called may be a later claim: it is the next holder that must hear it.
            let called = inner.called;
            std::mem::replace(&mut *inner, Inner { called, ..Inner::default() })
        };
        ended.waiting.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn presence(&self) -> Presence {
        self.inner.lock().presence
    }
}

impl Inner {
    fn accepts(&self, qos: QoS, caps: Caps, posted: &mut Posted) -> bool {
        match (self.presence, qos) {
            // What waits for a device that is away is in the session log.
            (Presence::Ended | Presence::Offline, _) => false,
            (Presence::Online, QoS::AtMostOnce) if self.queue.len() >= caps.online => {
                posted.dropped += 1;
                false
            }
            _ => true,
        }
    }

    /// Takes the oldest that may go of what is in the log.
    fn take_surplus(&mut self, cap: usize) -> Vec<MessageId> {
        let surplus = self.queue.len().saturating_sub(cap);
        let gone = self.queue.drain(..surplus).filter(|delivery| delivery.qos > QoS::AtMostOnce);
        gone.map(|delivery| delivery.message.id).collect()
    }

    fn trim_to(&mut self, cap: usize) -> usize {
        let surplus = self.queue.len().saturating_sub(cap);
        self.queue.drain(..surplus);
        surplus
    }

    fn signal(&mut self) -> Option<Waker> {
        if std::mem::replace(&mut self.signaled, true) { None } else { self.waker.clone() }
    }

    fn signal_deliveries(&mut self, wake: &mut Vec<Waker>) {
        if !self.queue.is_empty() && !self.full_window {
            wake.extend(self.signal());
        }
    }
}

/// Brings the outcomes of one connection's appends to its mailbox.
#[derive(Debug)]
pub(crate) struct Settling {
    pub(crate) mailbox: Arc<Mailbox>,
    /// Outcomes for a former connection of the session must not acknowledge anything on this one.
    pub(crate) connection: u64,
}

impl AppendSink for Settling {
    fn appended(&self, token: u64, outcome: Outcome) {
        let waker = {
            let mut inner = self.mailbox.inner.lock();
            inner.settled.push(Settled { connection: self.connection, token, outcome });
            inner.signal()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::Logged;

    const CAPS: Caps = Caps { online: 4, offline: 2 };

    /// Posts messages of these QoS, numbered from 1, to a mailbox in this state.
    fn posted(presence: Presence, qos: &[u8], online_only: bool) -> (Arc<Mailbox>, Posted) {
        let mailbox = Arc::new(Mailbox::new(7));
        mailbox.inner.lock().presence = presence;
        let messages: Vec<Arc<Message>> = (1..)
            .zip(qos)
            .map(|(counter, &qos)| {
                let qos = QoS::try_from(qos).unwrap();
                let mut message = Message::new(MessageId { boot: 0, counter }, 9, "t", b"", qos, false);
                message.online_only = online_only;
                Arc::new(message)
            })
            .collect();
        let to = Recipient {
            mailbox: mailbox.clone(),
            qos: QoS::ExactlyOnce,
            no_local: false,
            retain_as_published: false,
            subscription_ids: None,
            logged: None,
        };
        let posted = mailbox.post(&to, &messages, CAPS, &mut Vec::new());
        (mailbox, posted)
    }

    /// The numbers of the messages that may be taken with this window.
    fn taken(mailbox: &Mailbox, window: usize) -> Vec<u64> {
        let mut deliveries = Vec::new();
        mailbox.take(window, 100, &mut deliveries);
        deliveries.iter().map(|delivery| delivery.message.id.counter).collect()
    }

    #[track_caller]
    fn check(
        presence: Presence,
        qos: &[u8],
        online_only: bool,
        expected: &[u64],
        dropped: usize,
        congested: bool,
    ) {
        let (mailbox, posted) = posted(presence, qos, online_only);
        assert_eq!(posted, Posted { dropped, congested }, "{presence:?} {qos:?}");
        assert_eq!(taken(&mailbox, 100), expected, "{presence:?} {qos:?}");
    }

    #[test]
    fn what_is_kept_depends_on_who_is_there() {
        use Presence::{Ended, Offline, Online};
        check(Online, &[0, 1, 2], false, &[1, 2, 3], 0, false);
        check(Offline, &[0, 1, 2], false, &[], 0, false);
        check(Online, &[1, 2], true, &[1, 2], 0, false);
        check(Ended, &[1, 2], false, &[], 0, false);
    }

    #[test]
    fn over_the_online_bound_qos_0_goes_and_publishers_of_qos_1_are_asked_to_wait() {
        check(Presence::Online, &[0, 0, 0, 0, 0, 0], false, &[1, 2, 3, 4], 2, false);
        check(Presence::Online, &[1, 1, 1, 1, 1, 0], false, &[1, 2, 3, 4, 5], 1, true);
    }

    #[test]
    fn a_device_that_stayed_without_room_loses_its_oldest_and_holds_nobody_up() {
        let (mailbox, _) = posted(Presence::Online, &[1, 1, 1, 1, 1], false);
        mailbox.inner.lock().over_since = Instant::now().checked_sub(PATIENCE);
        let to = Recipient {
            mailbox: mailbox.clone(),
            qos: QoS::AtLeastOnce,
            no_local: false,
            retain_as_published: false,
            subscription_ids: None,
            logged: None,
        };
        let message = Message::new(MessageId { boot: 0, counter: 6 }, 9, "t", b"", QoS::AtLeastOnce, false);
        let posted = mailbox.post(&to, &[Arc::new(message)], CAPS, &mut Vec::new());
        assert_eq!(posted, Posted { dropped: 2, congested: false });
        assert_eq!(taken(&mailbox, 100), [3, 4, 5, 6]);
    }

    #[test]
    fn a_full_window_holds_qos_1_back_in_order() {
        let (mailbox, _) = posted(Presence::Online, &[1, 0, 1, 0], false);
        assert_eq!(taken(&mailbox, 1), [1, 2]);
        assert_eq!(taken(&mailbox, 0), [0; 0]);
        assert_eq!(taken(&mailbox, 1), [3, 4]);
    }

    #[test]
    fn of_a_session_in_the_log_only_qos_0_comes_beside_the_log() {
        let mailbox = Arc::new(Mailbox::new(7));
        mailbox.attach();
        let logged = Some(Logged { sid: MessageId { boot: 1, counter: 1 }, partition: 0 });
        let to = Recipient {
            mailbox: mailbox.clone(),
            qos: QoS::ExactlyOnce,
            no_local: false,
            retain_as_published: false,
            subscription_ids: None,
            logged,
        };
        let message =
            |counter, qos| Arc::new(Message::new(MessageId { boot: 0, counter }, 9, "t", b"", qos, false));
        mailbox.post(
            &to,
            &[message(1, QoS::AtLeastOnce), message(2, QoS::AtMostOnce)],
            CAPS,
            &mut Vec::new(),
        );
        let delivery = |counter| Delivery {
            message: message(counter, QoS::AtLeastOnce),
            qos: QoS::AtLeastOnce,
            retain: false,
            subscription_ids: None,
        };
        mailbox.post_logged(delivery(3), CAPS, &mut Vec::new());
        mailbox.prepend(vec![delivery(4)]);
        assert_eq!(taken(&mailbox, 1), [4, 2]);
        assert_eq!(mailbox.detach().map(|mid| mid.counter), Some(3));
        assert_eq!((mailbox.len(), mailbox.presence()), (0, Presence::Offline));
    }

    #[test]
    fn publishers_wait_for_a_session_in_the_log_a_while_then_its_oldest_go() {
        let mailbox = Arc::new(Mailbox::new(7));
        mailbox.attach();
        let post = |counter| {
            let id = MessageId { boot: 0, counter };
            let message = Arc::new(Message::new(id, 9, "t", b"", QoS::AtLeastOnce, false));
            let (qos, retain) = (QoS::AtLeastOnce, false);
            let delivery = Delivery { message, qos, retain, subscription_ids: None };
            let gone = mailbox.post_logged(delivery, CAPS, &mut Vec::new());
            gone.into_iter().map(|mid| mid.counter).collect::<Vec<_>>()
        };
        assert!((1..=5).all(|counter| post(counter).is_empty()));
        assert!(mailbox.is_congested(CAPS));
        mailbox.inner.lock().over_since = Instant::now().checked_sub(PATIENCE);
        assert!(!mailbox.is_congested(CAPS));
        assert_eq!(post(6), [1, 2]);
    }
}
