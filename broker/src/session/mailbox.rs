//! A session's mailbox: what others leave for it, online or not.
//!
//! Anyone may post; only the session's holder takes. It is bounded: while the session is online publishers are
//! told that it is congested (they wait, then the oldest message goes); while it is away the offline cap holds
//! and the oldest goes at once. QoS 0 messages are kept only for who is online and has room.
//!
//! [`direct`] has what the device of a session in the log is sent before it is there.

pub(crate) mod direct;

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use mqtt_proto::{
    codec::QoS,
    durable::record::Boot,
    message::{Delivery, Message, MessageId, Millis},
};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::direct::Directs;
use crate::{
    log::{AppendSink, Outcome},
    router::{Logged, Recipient},
};

/// How long publishers wait for a slow device before its oldest messages go.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// A queue that was once long gives its memory back when it is empty.
const KEPT_CAPACITY: usize = 32;

#[derive(Debug)]
pub(crate) struct Mailbox {
    /// Names the session within this process; never 0.
    pub(crate) key: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    presence: Presence,
    /// Its device is at another node, whose process run this is; 0: it is not.
    elsewhere: Boot,
    /// It stands for all sessions in no log on that node: what is for them goes there.
    is_of_peer: bool,
    /// Somebody wants the holder to look at its claim or at its rights.
    called: bool,
    /// Whether its subscriptions are of a session in the log, and of which one in which partition.
    is_in_log: bool,
    partition: u32,
    sid: MessageId,
    /// There once it is used: a device that is away costs nothing of it.
    open: Option<Box<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    queue: VecDeque<Delivery>,
    /// Outcomes of appends, with the connection and ticket they belong to.
    settled: Vec<Settled>,
    /// The holder has been woken, or need not be.
    signaled: bool,
    /// The holder has no use for more deliveries now; it will come by itself.
    full_window: bool,
    /// What comes at QoS > 0 is in the session log, and waits here only while the device is there.
    is_logged: bool,
    waker: Option<Waker>,
    /// Connections that wait for room here.
    waiting: Vec<Waker>,
    /// Since when the queue has been over its online bound, with no half of it free in between.
    over_since: Option<Instant>,
    /// Until this message of this process is read back, nothing goes to the device beside the log.
    barred: u64,
    direct: Option<Box<Directs>>,
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
    /// Nobody is there.
    pub(crate) absent: bool,
}

/// What the holder found besides deliveries.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    pub(crate) settled: Vec<Settled>,
    pub(crate) called: bool,
    /// See [`Mailbox::first_direct`].
    pub(crate) first_direct: Option<Millis>,
}

impl Mailbox {
    pub(crate) fn new(key: u64) -> Mailbox {
        let nothing = MessageId { boot: 0, counter: 0 };
        let inner = Inner {
            presence: Presence::Ended,
            elsewhere: 0,
            is_of_peer: false,
            called: false,
            is_in_log: false,
            partition: 0,
            sid: nothing,
            open: None,
        };
        Mailbox { key, inner: Mutex::new(inner) }
    }

    /// For all sessions in no log on the node of another process run.
    pub(crate) fn of_peer(key: u64, boot: Boot) -> Mailbox {
        let mailbox = Mailbox::new(key);
        let mut inner = mailbox.inner.lock();
        (inner.elsewhere, inner.is_of_peer) = (boot, true);
        drop(inner);
        mailbox
    }

    /// The process run for whose sessions in no log it stands.
    pub(crate) fn peer(&self) -> Option<Boot> {
        let inner = self.inner.lock();
        inner.is_of_peer.then_some(inner.elsewhere)
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
        posted.absent = inner.presence != Presence::Online;
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
            inner.open().queue.push_back(Delivery {
                message: message.clone(),
                qos,
                retain: to.retain_as_published && message.retain,
                subscription_ids: to.subscription_ids.clone(),
                share: to.share.clone(),
            });
        }
        let is_online = inner.presence == Presence::Online;
        let Some(open) = &mut inner.open else { return posted };
        if !open.is_logged && is_online && open.queue.len() > caps.online {
            let since = *open.over_since.get_or_insert_with(Instant::now);
            if since.elapsed() < PATIENCE {
                posted.congested = waits;
            } else {
                // It has been waited for long enough: from now on the oldest goes.
                posted.dropped += open.trim_to(caps.online);
            }
        }
        open.signal_deliveries(wake);
        posted
    }

    /// Bytes of topics and payloads that wait; what waits elsewhere, too, is counted in full.
    pub(crate) fn bytes(&self) -> usize {
        let of = |delivery: &Delivery| delivery.message.topic().len() + delivery.message.payload().len();
        self.inner.lock().open.iter().flat_map(|open| &open.queue).map(of).sum()
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
        let open = inner.open();
        open.queue.push_back(delivery);
        let mut surplus = Vec::new();
        if open.queue.len() > caps.online {
            let since = *open.over_since.get_or_insert_with(Instant::now);
            // What is in no log has its publisher waiting; it is so for a moment.
            if since.elapsed() >= PATIENCE && !open.has_directs() {
                surplus = open.take_surplus(caps.online);
            }
        }
        open.signal_deliveries(wake);
        surplus
    }

    /// Leaves what waited in the session log before the device came.
    pub(crate) fn prepend(&self, deliveries: Vec<Delivery>) {
        let mut inner = self.inner.lock();
        let open = inner.open();
        let later = std::mem::replace(&mut open.queue, deliveries.into());
        open.queue.extend(later);
    }

    /// Leaves retained messages for a new subscription: all of them, whatever is waiting.
    pub(crate) fn post_retained(&self, deliveries: Vec<Delivery>) {
        self.inner.lock().open().queue.extend(deliveries);
    }

    /// Takes messages in order, at most `most`, of which `window` may be QoS > 0. True if more are waiting that may
    /// be taken at once.
    pub(crate) fn take(&self, window: usize, most: usize, into: &mut Vec<Delivery>) -> bool {
        let mut inner = self.inner.lock();
        let Some(open) = &mut inner.open else { return false };
        let mut window = window;
        open.full_window = false;
        while let Some(next) = open.queue.front() {
            if next.qos > QoS::AtMostOnce {
                if window == 0 {
                    open.full_window = true;
                    break;
                }
                window -= 1;
            }
            if into.len() == most {
                return true;
            }
            into.extend(open.queue.pop_front());
        }
        if open.queue.is_empty() && open.queue.capacity() > KEPT_CAPACITY {
            open.queue = VecDeque::new();
        }
        false
    }

    /// Takes what is not a delivery, and asks to be woken for whatever comes after this call.
    pub(crate) fn look(&self, context: &Context<'_>) -> Mail {
        let mut inner = self.inner.lock();
        let called = std::mem::take(&mut inner.called);
        let open = inner.open();
        open.signaled = false;
        match &mut open.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        let first_direct = open.first_direct();
        Mail { settled: std::mem::take(&mut open.settled), called, first_direct }
    }

    /// Wakes the publishers that wait for room, if there is room.
    pub(crate) fn offer_room(&self, caps: Caps) {
        let mut inner = self.inner.lock();
        let is_online = inner.presence == Presence::Online;
        let Some(open) = &mut inner.open else { return };
        if open.queue.len() <= caps.online / 2 {
            open.over_since = None;
        }
        if !open.waiting.is_empty() && (!is_online || open.queue.len() <= caps.online / 2) {
            let waiting = std::mem::take(&mut open.waiting);
            drop(inner);
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// True if there is room; else the caller is woken when there is.
    pub(crate) fn has_room(&self, caps: Caps, context: &Context<'_>) -> bool {
        let mut inner = self.inner.lock();
        let is_online = inner.presence == Presence::Online;
        let Some(open) = inner.open.as_mut().filter(|open| is_online && open.queue.len() > caps.online)
        else {
            return true;
        };
        if !open.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            open.waiting.push(context.waker().clone());
        }
        false
    }

    /// Whether who publishes QoS > 0 should wait.
    pub(crate) fn is_congested(&self, caps: Caps) -> bool {
        let inner = self.inner.lock();
        let is_over = |open: &Open| {
            open.queue.len() > caps.online && open.over_since.is_none_or(|since| since.elapsed() < PATIENCE)
        };
        inner.presence == Presence::Online && inner.open.as_deref().is_some_and(is_over)
    }

    /// Its device is at this node.
    pub(crate) fn is_online(&self) -> bool {
        self.presence() == Presence::Online
    }

    /// Its device is at this node or at another.
    pub(crate) fn is_reachable(&self) -> bool {
        let inner = self.inner.lock();
        inner.presence == Presence::Online || inner.elsewhere != 0
    }

    /// The process run of another node at which its device is, or for whose sessions it stands.
    pub(crate) fn elsewhere(&self) -> Option<Boot> {
        let elsewhere = self.inner.lock().elsewhere;
        (elsewhere != 0).then_some(elsewhere)
    }

    pub(crate) fn set_elsewhere(&self, elsewhere: Option<Boot>) {
        self.inner.lock().elsewhere = elsewhere.unwrap_or(0);
    }

    /// Drops the oldest messages over the online bound: a publisher has waited long enough. Returns how many, if the session log
    /// need not be told: there the next message does it.
    pub(crate) fn drop_surplus(&self, caps: Caps) -> usize {
        let mut inner = self.inner.lock();
        let Some(open) = &mut inner.open else { return 0 };
        let dropped = if open.is_logged { 0 } else { open.trim_to(caps.online) };
        let waiting = std::mem::take(&mut open.waiting);
        drop(inner);
        waiting.into_iter().for_each(Waker::wake);
        dropped
    }

    /// Messages that wait here.
    pub(crate) fn len(&self) -> usize {
        self.inner.lock().open.as_ref().map_or(0, |open| open.queue.len())
    }

    /// Asks the holder to look whether it still holds the session and has its rights.
    pub(crate) fn call(&self) {
        let waker = {
            let mut inner = self.inner.lock();
            inner.called = true;
            inner.open.as_mut().and_then(|open| open.signal())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A connection holds the session from now on.
    pub(crate) fn go_online(&self) {
        let mut inner = self.inner.lock();
        inner.presence = Presence::Online;
        let open = inner.open();
        open.full_window = false;
        open.settled.clear();
        // A call that came since the claim stands: it may be a later claim's.
    }

    /// A connection's claim of a session in the log took effect: from now on what is queued comes here, too. `barred` as in
    /// [`Self::bar`].
    pub(crate) fn attach(&self, barred: u64) {
        let mut inner = self.inner.lock();
        inner.presence = Presence::Online;
        inner.open = Some(Box::new(Open { is_logged: true, barred, ..Open::default() }));
    }

    /// Its subscriptions are of this session in the log from now on. There must be none of another one.
    pub(crate) fn follow(&self, Logged { sid, partition }: Logged) {
        let mut inner = self.inner.lock();
        if inner.sid != sid
            && let Some(open) = &mut inner.open
        {
            // The connection that is still here is of another session.
            open.barred = u64::MAX;
        }
        (inner.is_in_log, inner.sid, inner.partition) = (true, sid, partition);
    }

    /// See [`Self::follow`].
    pub(crate) fn logged(&self) -> Option<Logged> {
        let inner = self.inner.lock();
        inner.is_in_log.then(|| Logged { sid: inner.sid, partition: inner.partition })
    }

    /// Takes what came through this shared subscription and was not sent; QoS 2 stays where it is in the session log.
    pub(crate) fn take_shared(&self, name: &str) -> Vec<Delivery> {
        let mut inner = self.inner.lock();
        let Some(open) = &mut inner.open else { return Vec::new() };
        let most = if open.is_logged { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        let is_it = |delivery: &Delivery| {
            delivery.share.as_deref() == Some(name) && (QoS::AtLeastOnce..=most).contains(&delivery.qos)
        };
        let (taken, kept): (VecDeque<_>, _) = std::mem::take(&mut open.queue).into_iter().partition(is_it);
        open.queue = kept;
        taken.into()
    }

    /// The session is over; what is left of it is what another may get.
    pub(crate) fn end(&self) -> Vec<Delivery> {
        let ended = {
            let mut inner = self.inner.lock();
            // Whoever called may be a later claim: it is the next holder that must hear it.
            inner.presence = Presence::Ended;
            inner.open.take()
        };
        let Some(ended) = ended else { return Vec::new() };
        ended.waiting.into_iter().for_each(Waker::wake);
        ended.queue.into_iter().filter(|delivery| delivery.share.is_some()).collect()
    }

    pub(crate) fn presence(&self) -> Presence {
        self.inner.lock().presence
    }
}

impl Inner {
    fn open(&mut self) -> &mut Open {
        self.open.get_or_insert_default()
    }

    fn accepts(&self, qos: QoS, caps: Caps, posted: &mut Posted) -> bool {
        match (self.presence, qos) {
            // What waits for a device that is away is in the session log.
            (Presence::Ended | Presence::Offline, _) => false,
            (Presence::Online, QoS::AtMostOnce)
                if self.open.as_ref().is_some_and(|open| open.queue.len() >= caps.online) =>
            {
                posted.dropped += 1;
                false
            }
            _ => true,
        }
    }
}

impl Open {
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
            // What comes when its connection has gone is nothing to anybody.
            inner.open.as_mut().and_then(|open| {
                open.settled.push(Settled { connection: self.connection, token, outcome });
                open.signal()
            })
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests;
