//! The other nodes that share this one's log: what only they know, and what is for devices that are with them.
//!
//! A filter of a clean session is in no log. So each node tells each other which filters its clean sessions have, and a message
//! goes to every node that has one that matches ([`machine`], [`link`]); at QoS 0 to the nodes of persistent sessions, too. A
//! PUBLISH at QoS > 0 is routed only while this node has a *lease* of every peer, which says that no device was told of a
//! subscription that is not known here; a SUBACK waits until every peer knows of it, or can have no lease any more. A peer that is
//! silent is declared down in the log, never by one node alone; who reads that of itself stops at once.

pub(crate) mod link;
pub(crate) mod machine;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use foldhash::fast::RandomState;
use mqtt_proto::{
    codec::QoS,
    durable::record::Boot,
    message::{Message, MessageId, Millis},
    topic::Filter,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::{
    link::{Frame, Item},
    machine::{Effect, Machine, TICK},
};
use crate::{
    log::{Completion, Outcome},
    node::Node,
    outside::Mistake,
    router::{Route, fanout::Fanout},
};

/// How long a message that may come again is remembered for those sessions that are in no log.
const REMEMBERED: Millis = 15 * 60 * 1000;
/// Until it is said again that a peer is down.
const SAID: Millis = 1000;

/// Brings frames to other nodes. What it loses is sent again.
pub(crate) trait Wire: Send + Sync {
    fn send(&self, frame: Frame);
}

pub(crate) struct Peers {
    machine: Mutex<Machine>,
    wire: Arc<dyn Wire>,
    /// Messages that clean sessions here have had and must not get twice, with the time.
    had: Mutex<HashMap<MessageId, Millis, RandomState>>,
    /// When a peer was said to be down.
    said: Mutex<HashMap<Boot, Millis, RandomState>>,
    /// This process run is down by the log: others have taken what it held.
    pub(crate) fallen: Notify,
}

impl Peers {
    pub(crate) fn new(me: Boot, now: Millis, wire: Arc<dyn Wire>) -> Peers {
        Peers {
            machine: Mutex::new(Machine::new(me, now)),
            wire,
            had: Mutex::default(),
            said: Mutex::default(),
            fallen: Notify::new(),
        }
    }

    /// Whether devices may be let in: every peer asks for leases of this node before it routes.
    pub(crate) fn is_joined(&self) -> bool {
        self.machine.lock().is_joined()
    }

    fn with<R>(&self, node: &Node, act: impl FnOnce(&mut Machine, &mut Vec<Effect>) -> R) -> R {
        let mut machine = self.machine.lock();
        let mut effects = Vec::new();
        let result = act(&mut machine, &mut effects);
        // Within the lock: what is confirmed has been done.
        for effect in effects {
            self.carry_out(node, effect);
        }
        result
    }

    fn carry_out(&self, node: &Node, effect: Effect) {
        match effect {
            Effect::Send(frame) => self.wire.send(frame),
            Effect::Apply(peer, item) => match &*item {
                Item::Filter { filter, on } => node.router.set_peer(peer, filter, *on),
                Item::Message { message, once } => self.deliver(node, message, *once),
                Item::Listed | Item::Mark { .. } => {}
            },
            Effect::Forget(peer) => node.router.forget_peer(peer),
            Effect::Silent(peer) => {
                let mut said = self.said.lock();
                let last = said.insert(peer, node.now());
                if last.is_none_or(|last| node.now().saturating_sub(last) >= SAID) {
                    node.sessions.declare_down(node, peer);
                } else if let Some(last) = last {
                    said.insert(peer, last);
                }
            }
            Effect::Done(done) => done.sink.appended(done.token, Outcome::Durable(0)),
        }
    }

    /// A peer's message for the sessions here.
    fn deliver(&self, node: &Node, message: &Arc<Message>, once: bool) {
        if once && !self.is_first(node, message.id) {
            return;
        }
        let (caps, mut fanout) = (node.settings().caps(), Fanout::default());
        let route = Arc::new(node.router.route(message.topic()));
        fanout.push(&route, message.clone(), caps, &node.counters);
        fanout.flush(caps, &node.counters);
        fanout.wake();
    }

    /// Whether clean sessions here have not had this message so far; now they have.
    pub(crate) fn is_first(&self, node: &Node, mid: MessageId) -> bool {
        self.had.lock().insert(mid, node.now()).is_none()
    }

    /// True if a publish may be routed now; else `done` is told when it may.
    pub(crate) fn is_fresh_or(&self, node: &Node, done: impl FnOnce() -> Completion) -> bool {
        let mut machine = self.machine.lock();
        let is_fresh = machine.is_fresh(node.now()) || node.outside.makes(Mistake::RouteOnOldView);
        if !is_fresh {
            machine.wait_fresh(done());
        }
        is_fresh
    }

    /// Tells `done` once a subscription of a clean session, or that which lies before an offset of the log, is known to every
    /// node that may route.
    pub(crate) fn activate(&self, node: &Node, mark: Option<(u32, u64)>, done: Completion) {
        self.with(node, |machine, effects| {
            machine.wait_active(node.now(), mark, done, effects);
            machine.flush(node.now(), effects);
        });
    }

    /// The first clean session here has subscribed to a filter, or the last has left it.
    pub(crate) fn announce(&self, node: &Node, filter: &Filter, on: bool) {
        self.machine.lock().filter(node.now(), filter, on);
    }

    /// Hands a message to the peers that it is for. `done` is asked for once for each that is waited for; how many that are.
    pub(crate) fn send(
        &self,
        node: &Node,
        route: &Route,
        message: &Arc<Message>,
        once: bool,
        mut done: impl FnMut() -> Completion,
    ) -> usize {
        let mut to = route.peers.clone();
        // Those with the log get QoS > 0 through it.
        let at_zero = |of: &&crate::router::Recipient| of.logged.is_some() && message.qos.min(of.qos) == QoS::AtMostOnce;
        to.extend(route.recipients.iter().filter(at_zero).filter_map(|of| of.mailbox.holder()));
        if to.is_empty() {
            return 0;
        }
        to.sort_unstable();
        to.dedup();
        let waits = message.qos > QoS::AtMostOnce;
        let mut machine = self.machine.lock();
        let mut waited = 0;
        for peer in to {
            let is_waited_for = waits && route.peers.contains(&peer);
            let done = is_waited_for.then(&mut done);
            waited += usize::from(machine.message(node.now(), peer, message, once, done) && is_waited_for);
        }
        waited
    }

    /// Sends what was handed over.
    pub(crate) fn flush(&self, node: &Node) {
        self.with(node, |machine, effects| machine.flush(node.now(), effects));
    }

    /// The log says something new of which process runs there are.
    pub(crate) fn list(&self, node: &Node) {
        let (peers, positions) = node.sessions.peers();
        self.with(node, |machine, effects| {
            machine.list(node.now(), &peers, &positions, effects);
            machine.flush(node.now(), effects);
        });
    }

    /// The wire brought a frame.
    pub(crate) fn take(&self, node: &Node, frame: Frame) {
        let position = |partition| node.sessions.position(partition);
        self.with(node, |machine, effects| machine.take(node.now(), frame, position, effects));
    }

    /// The log was read on.
    pub(crate) fn read_on(&self, node: &Node) {
        self.tick(node);
    }

    fn tick(&self, node: &Node) {
        let position = |partition| node.sessions.position(partition);
        self.with(node, |machine, effects| machine.tick(node.now(), position, effects));
    }

    fn forget(&self, now: Millis) {
        self.had.lock().retain(|_, at| now.saturating_sub(*at) < REMEMBERED);
    }
}

/// Lets time pass for the peers, until the task is aborted.
pub(crate) async fn run(node: Arc<Node>) {
    let Some(peers) = &node.peers else { return };
    let mut ticks = tokio::time::interval(Duration::from_millis(TICK));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut count = 0_u32;
    loop {
        ticks.tick().await;
        peers.tick(&node);
        count = count.wrapping_add(1);
        if count.is_multiple_of(600) {
            peers.forget(node.now());
        }
    }
}
