//! Messages for sessions in no log on other nodes, from where they are handed over to where they are taken: by a link, or
//! through the log while there is none. [`Outgoing`] and [`Incoming`] say what goes which way, and what was there before.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use mqtt_proto::{
    durable::record::{Boot, Key, Offset, Passed, Value},
    message::{Message, Millis},
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, futures::Notified},
    time::timeout,
};

use super::{Relay, Rising};
use crate::{
    log::{AppendSink, Completion, Outcome},
    node::Node,
    outside::Mistake,
    peers::{
        incoming::{Found, Incoming},
        outgoing::{Outgoing, PATIENCE},
        wire,
    },
    router::fanout::Fanout,
    session::log::{content, record},
};

/// What is passed on, and by which way.
pub(super) struct Handing {
    /// Held while a record is appended: they stand in the order of their numbers for each peer.
    outgoing: Mutex<Outgoing<Handed>>,
    /// Told with everything that may go by a link.
    handed: Notify,
    is_full: AtomicBool,
    freed: Notify,
    by_link: AtomicU64,
    through_log: AtomicU64,
}

/// What waits for a link.
#[derive(Clone)]
struct Handed {
    message: Arc<Message>,
    group: Option<Arc<str>>,
    parts: Arc<Parts>,
}

/// Tells somebody once all peers have a message.
struct Parts {
    left: AtomicUsize,
    /// The worst so far, of [`Self::OUTCOMES`].
    worst: AtomicU8,
    done: Completion,
}

/// What comes from another process run.
#[derive(Default)]
pub(super) struct Origin {
    /// Held while it is left in queues: it comes there in order, whichever way it takes.
    incoming: Mutex<Incoming>,
    taken: Arc<Rising>,
}

/// Why a batch of a link can't be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTaken {
    #[error("something is missing before message {0}")]
    Gap(u64),
    #[error("message {0} is none that can be passed on")]
    Damaged(u64),
    #[error("this node has not read the relay so far in time")]
    Behind,
}

/// A link to another process run that stands. Once it is dropped, what it has not brought goes through the log.
pub(crate) struct Standing {
    node: Arc<Node>,
    to: Boot,
}

impl Default for Handing {
    fn default() -> Self {
        Handing {
            outgoing: Mutex::default(),
            handed: Notify::new(),
            is_full: AtomicBool::new(false),
            freed: Notify::new(),
            by_link: AtomicU64::new(0),
            through_log: AtomicU64::new(0),
        }
    }
}

impl Relay {
    /// Passes a message on to other process runs, each named once: to who gets it there, or to one member of a shared
    /// subscription. `done` is told once it is durable, or has been left in the queues there.
    pub(crate) fn pass(
        &self,
        message: &Arc<Message>,
        to: &[Boot],
        group: Option<&Arc<str>>,
        now: Millis,
        done: Completion,
    ) {
        let handing = &self.handing;
        let mut parts = None;
        let handed = || {
            let parts = parts.get_or_insert_with(|| Arc::new(Parts::new(to.len(), done.clone())));
            Handed { message: message.clone(), group: group.cloned(), parts: parts.clone() }
        };
        let mut outgoing = handing.outgoing.lock();
        let (sequence, through_log) = outgoing.hand(to, size(message, group), self.elapsed(), handed);
        let linked = to.len() - through_log.len();
        if linked > 0 && !outgoing.has_room() {
            handing.is_full.store(true, Ordering::SeqCst);
        }
        if !through_log.is_empty() {
            let token = through_log.len() as u64;
            let done = parts.map_or(done, |sink| Completion { sink, token });
            self.append(sequence, through_log, message, group, now, done);
        }
        drop(outgoing);
        if linked > 0 {
            handing.handed.notify_waiters();
        }
    }

    fn append(
        &self,
        sequence: u64,
        to: Vec<Boot>,
        message: &Message,
        group: Option<&Arc<str>>,
        now: Millis,
        done: Completion,
    ) {
        self.handing.through_log.fetch_add(to.len() as u64, Ordering::Relaxed);
        let passed =
            Passed { mid: message.id, to, group: group.map(|group| &**group), content: content(message) };
        let key = Key::Passed { boot: self.boot, sequence };
        self.log.append(&self.topic, 0, record(&key, Some(Value::Passed(passed)), now), done);
    }

    /// False while more waits for some link than should.
    pub(crate) fn has_room(&self) -> bool {
        !self.handing.is_full.load(Ordering::SeqCst)
    }

    pub(crate) async fn wait_for_room(&self) {
        loop {
            let freed = self.handing.freed.notified();
            if self.has_room() {
                return;
            }
            freed.await;
        }
    }

    /// Links in use; messages that links have brought, and those that went through the log, counted for each peer.
    pub(crate) fn figures(&self) -> [(&'static str, u64); 3] {
        let Handing { outgoing, by_link, through_log, .. } = &self.handing;
        [
            ("peer_links", outgoing.lock().links() as u64),
            ("passed_by_links", by_link.load(Ordering::Relaxed)),
            ("passed_through_log", through_log.load(Ordering::Relaxed)),
        ]
    }

    /// A link to another process run stands, which says what it has taken so far. There is one at a time for each.
    pub(crate) fn join(node: &Arc<Node>, to: Boot, taken: u64) -> Option<Standing> {
        let relay = node.relay.as_ref()?;
        relay.fall_back(to, node);
        let taken = if node.outside.makes(Mistake::LinkAheadOfLog) { u64::MAX } else { taken };
        relay.handing.outgoing.lock().join(to, taken);
        Some(Standing { node: node.clone(), to })
    }

    /// Ends when something is handed over, from now on, that may go by a link.
    pub(crate) fn handed(&self) -> Notified<'_> {
        self.handing.handed.notified()
    }

    /// What links have not brought goes through the log.
    pub(crate) fn retreat(&self, node: &Node) {
        let peers = self.handing.outgoing.lock().peers();
        peers.into_iter().for_each(|boot| self.fall_back(boot, node));
    }

    fn fall_back(&self, to: Boot, node: &Node) {
        let mut outgoing = self.handing.outgoing.lock();
        for (sequence, Handed { message, group, parts }) in outgoing.break_off(to) {
            if node.outside.makes(Mistake::ForgetUnconfirmed) {
                parts.settle(1, Outcome::Durable(0));
                continue;
            }
            let done = Completion { sink: parts, token: 1 };
            self.append(sequence, vec![to], &message, group.as_ref(), node.wall(), done);
        }
        self.look_for_room(&outgoing);
    }

    /// Process runs that are over owe nothing.
    pub(super) fn forget(&self, is_over: impl Fn(Boot) -> bool) {
        let mut outgoing = self.handing.outgoing.lock();
        let done = outgoing.forget(is_over);
        self.look_for_room(&outgoing);
        drop(outgoing);
        done.into_iter().for_each(|handed| handed.parts.settle(1, Outcome::Durable(0)));
    }

    fn look_for_room(&self, outgoing: &Outgoing<Handed>) {
        if !self.has_room() && outgoing.has_room() {
            self.handing.is_full.store(false, Ordering::SeqCst);
            self.handing.freed.notify_waiters();
        }
    }

    /// A message for other process runs was read.
    pub(super) fn seen(&self, to: &[Boot], offset: Offset) {
        let mut outgoing = self.handing.outgoing.lock();
        let others = to.iter().filter(|boot| **boot != self.boot);
        others.for_each(|boot| outgoing.seen(*boot, offset + 1));
    }

    /// A message for this process run was read.
    pub(super) fn take_logged(
        &self,
        node: &Arc<Node>,
        (boot, sequence): (Boot, u64),
        passed: &Passed<'_>,
        fanout: &mut Fanout,
    ) {
        let origin = self.origin(boot);
        let mut incoming = origin.incoming.lock();
        if incoming.through_log(sequence) {
            let message = Arc::new(super::message_of(passed.mid, &passed.content));
            self.deliver(node, message, passed.group, fanout);
            origin.taken.raise(incoming.last());
        }
    }

    /// A batch came by a link. Returns once it is in the queues of the sessions that get it.
    pub(crate) async fn take_linked(
        &self,
        node: &Arc<Node>,
        from: Boot,
        batch: &wire::Batch,
    ) -> Result<(), NotTaken> {
        // What its sender knew of the relay is not to come behind it.
        let ahead = node.outside.makes(Mistake::LinkAheadOfLog);
        let read = self.next.reach(if ahead { 0 } else { batch.seen });
        timeout(Duration::from_millis(PATIENCE), read).await.map_err(|_| NotTaken::Behind)?;
        let origin = self.origin(from);
        let mut fanout = Fanout::default();
        let taken = {
            let mut incoming = origin.incoming.lock();
            let mut after = if ahead { 0 } else { batch.after };
            let mut take = |passed: &wire::Passed| {
                let sequence = passed.sequence;
                let message = passed.message().ok_or(NotTaken::Damaged(sequence))?;
                match incoming.by_link(after, sequence) {
                    Found::New => self.deliver(node, message, passed.group.as_deref(), &mut fanout),
                    Found::Known => {}
                    Found::Gap => return Err(NotTaken::Gap(sequence)),
                }
                after = sequence;
                Ok(())
            };
            let taken = batch.messages.iter().try_for_each(&mut take);
            origin.taken.raise(incoming.last());
            taken
        };
        super::relieve(node, &mut fanout);
        taken
    }

    /// The last number that was taken of another process run, by whichever way, as it rises.
    pub(crate) fn taken_of(&self, boot: Boot) -> Arc<Rising> {
        self.origin(boot).taken.clone()
    }

    fn origin(&self, boot: Boot) -> Arc<Origin> {
        self.origins.lock().entry(boot).or_default().clone()
    }
}

impl Standing {
    /// What goes by it next, if anything may.
    pub(crate) fn batch(&self) -> Option<wire::Batch> {
        let batch = self.relay()?.handing.outgoing.lock().batch(self.to)?;
        let message = |(sequence, Handed { message, group, .. }): &(u64, Handed)| {
            wire::Passed::new(*sequence, message, group.as_deref())
        };
        let messages = batch.items.iter().map(message).collect();
        Some(wire::Batch { after: batch.after, seen: batch.seen, messages })
    }

    /// The peer has taken all up to this number, by whichever way.
    pub(crate) fn taken(&self, sequence: u64) {
        let Some(relay) = self.relay() else { return };
        let mut outgoing = relay.handing.outgoing.lock();
        let done = outgoing.taken(self.to, sequence);
        relay.look_for_room(&outgoing);
        drop(outgoing);
        relay.handing.by_link.fetch_add(done.len() as u64, Ordering::Relaxed);
        done.into_iter().for_each(|handed| handed.parts.settle(1, Outcome::Durable(0)));
    }

    /// Whether it has not brought in time what it should have, and must be given up.
    pub(crate) fn is_overdue(&self) -> bool {
        self.relay().is_some_and(|relay| relay.handing.outgoing.lock().is_overdue(self.to, relay.elapsed()))
    }

    fn relay(&self) -> Option<&Relay> {
        self.node.relay.as_ref()
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        if let Some(relay) = self.relay() {
            relay.fall_back(self.to, &self.node);
        }
    }
}

impl Parts {
    const OUTCOMES: [Outcome; 3] = [Outcome::Durable(0), Outcome::Broken, Outcome::Refused];

    fn new(count: usize, done: Completion) -> Parts {
        Parts { left: AtomicUsize::new(count), worst: AtomicU8::new(0), done }
    }

    /// So many peers have it, or will not.
    fn settle(&self, count: usize, outcome: Outcome) {
        let rank = match outcome {
            Outcome::Durable(_) => 0,
            Outcome::Broken => 1,
            Outcome::Refused => 2,
        };
        let worst = self.worst.fetch_max(rank, Ordering::AcqRel).max(rank);
        if self.left.fetch_sub(count, Ordering::AcqRel) == count {
            let outcome = Self::OUTCOMES.get(usize::from(worst)).copied().unwrap_or(Outcome::Broken);
            self.done.sink.appended(self.done.token, outcome);
        }
    }
}

impl AppendSink for Parts {
    /// `token`: the peers that one record is for.
    fn appended(&self, token: u64, outcome: Outcome) {
        self.settle(usize::try_from(token).unwrap_or(0), outcome);
    }

    fn is_ordered(&self) -> bool {
        false
    }
}

/// What it takes on its way, in bytes.
fn size(message: &Message, group: Option<&Arc<str>>) -> usize {
    let group = group.map_or(0, |group| group.len());
    message.topic().len() + message.payload().len() + message.forwarded().len() + group + wire::OVERHEAD
}

#[cfg(test)]
mod tests;
