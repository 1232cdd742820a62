//! One broker node: what all its connections share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use mqtt_proto::{
    codec::QoS,
    message::{Message, MessageId, Millis},
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    admission::Admission,
    auth::Logins,
    bridge::Bridge,
    counters::Counters,
    limits::{Connections, Notices, Rate, Sockets},
    log::{Completion, Log, Outcome},
    outside::Outside,
    router::{Route, Router, fanout::Fanout},
    session::{
        Registry,
        groups::{Among, Given, Handing},
        log::SessionLog,
        mailbox::Mailbox,
        relay::{Relay, Used, elsewhere},
        retained::RetainedLog,
    },
    settings::Settings,
};

/// Into how many parts connections are divided that are let go one after the other.
const LET_GO_STEPS: usize = 100;

/// How often a message without a connection may reach a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivered {
    /// It may come again as another one.
    Maybe,
    Once,
    /// The same, and sessions that are in no log have it.
    OnceAgain,
}

pub(crate) struct Node {
    /// Random id of this process run.
    pub(crate) boot: u64,
    pub(crate) outside: Outside,
    pub(crate) router: Router,
    pub(crate) registry: Registry,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) bridge: Bridge,
    pub(crate) sessions: SessionLog,
    pub(crate) retained: RetainedLog,
    /// Where other nodes share the log.
    pub(crate) relay: Option<Relay>,
    pub(crate) logins: Logins,
    pub(crate) counters: Counters,
    pub(crate) notices: Notices,
    pub(crate) connections: Connections,
    pub(crate) sockets: Sockets,
    pub(crate) publish_rate: Rate,
    pub(crate) delivery_rate: Rate,
    pub(crate) admission: Admission,
    /// Of the config file that `settings` were made of; none: they were made of something else.
    pub(crate) config_hash: ArcSwapOption<String>,
    settings: ArcSwap<Settings>,
    next_message: AtomicU64,
    started: Instant,
    started_at: Millis,
    stopping: AtomicBool,
    in_haste: AtomicBool,
}

/// What a node knows of its log when it begins.
pub(crate) struct Replayed {
    pub(crate) sessions: SessionLog,
    pub(crate) retained: RetainedLog,
    /// Where other nodes share the log.
    pub(crate) relay: Option<Relay>,
}

impl Node {
    pub(crate) fn new(
        outside: Outside,
        log: Arc<dyn Log>,
        bridge: Bridge,
        Replayed { sessions, retained, relay }: Replayed,
        logins: Logins,
        settings: Settings,
    ) -> Node {
        Node {
            boot: sessions.boot,
            router: Router::new(sessions.shared),
            registry: Registry::new(),
            log,
            bridge,
            sessions,
            retained,
            relay,
            logins,
            counters: Counters::default(),
            notices: Notices::default(),
            connections: Connections::default(),
            sockets: Sockets::default(),
            publish_rate: Rate::default(),
            delivery_rate: Rate::default(),
            admission: Admission::default(),
            config_hash: ArcSwapOption::default(),
            settings: ArcSwap::from_pointee(settings),
            next_message: AtomicU64::new(1),
            started: Instant::now(),
            started_at: outside.wall(),
            outside,
            stopping: AtomicBool::new(false),
            in_haste: AtomicBool::new(false),
        }
    }

    /// Milliseconds since the Unix epoch as of the start, and steadily on: what is waited for must not move with the
    /// wall clock.
    pub(crate) fn now(&self) -> Millis {
        self.started_at + self.nanos() / 1_000_000
    }

    /// When it began, in milliseconds since the Unix epoch.
    pub(crate) fn started_at(&self) -> Millis {
        self.started_at
    }

    /// Milliseconds since the Unix epoch as the machine has it now: for what others read.
    pub(crate) fn wall(&self) -> Millis {
        self.outside.wall()
    }

    /// Monotonic, since the start.
    pub(crate) fn nanos(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn next_message_id(&self) -> MessageId {
        MessageId { boot: self.boot, counter: self.next_message.fetch_add(1, Ordering::Relaxed) }
    }

    pub(crate) fn settings(&self) -> arc_swap::Guard<Arc<Settings>> {
        self.settings.load()
    }

    /// Asks every connection to close as soon as what was read from it is answered, one after the other within this time: so they
    /// come back elsewhere one after the other, too.
    pub(crate) async fn let_go(&self, within: Duration) {
        self.stopping.store(true, Ordering::Release);
        let slots = self.registry.slots();
        for some in slots.chunks(slots.len().div_ceil(LET_GO_STEPS).max(1)) {
            some.iter().for_each(|slot| slot.mailbox.call());
            if !within.is_zero() && self.sockets.count() > 0 {
                tokio::time::sleep(within / LET_GO_STEPS as u32).await;
            }
        }
    }

    /// Asks those that are there still to close without more ado.
    pub(crate) fn hurry(&self) {
        self.in_haste.store(true, Ordering::Release);
        self.registry.call_all();
    }

    pub(crate) fn is_in_haste(&self) -> bool {
        self.in_haste.load(Ordering::Acquire)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// What other nodes use of the instance's limits.
    pub(crate) fn used_elsewhere(&self) -> Used {
        self.relay.as_ref().map_or_else(Used::default, Relay::used_elsewhere)
    }

    /// What this node may take of a rate that the instance's nodes share evenly; 0 stays 0, which is no limit.
    pub(crate) fn share_of(&self, rate: u64) -> u64 {
        let nodes = self.relay.as_ref().map_or(1, Relay::nodes);
        if rate == 0 { 0 } else { (rate / nodes.max(1)).max(1) }
    }

    /// Puts new settings in force: at the return every connection has been asked to look at its rights, and sessions have lost
    /// the subscriptions that are no longer granted.
    pub(crate) async fn apply(self: &Arc<Self>, mut settings: Settings) {
        settings.access.inherit(&self.settings().access);
        let settings = Arc::new(settings);
        let former = self.settings.swap(settings.clone());
        self.sessions.review(self, &settings.access.changed_since(&former.access)).await;
        self.registry.call_all();
    }

    /// Brings a message that no connection waits for (a will, a record of `mq2mqtt`) to its subscribers: at once to those that
    /// are in no log. What is returned first has no room for more; then, what must be waited for until it is in the
    /// session log.
    pub(crate) fn deliver(
        &self,
        client_id: &str,
        message: &Arc<Message>,
        how: Delivered,
    ) -> (Vec<Arc<Mailbox>>, Vec<oneshot::Receiver<Outcome>>) {
        let caps = self.settings().caps();
        let mut fanout = Fanout::default();
        let route = Arc::new(self.router.route(message.topic()));
        let mut outcomes = Vec::new();
        let mut awaited = || {
            let (done, outcome) = Completion::awaited();
            outcomes.push(outcome);
            done
        };
        self.sessions.enqueue(&route, message, how != Delivered::Maybe, self.wall(), |_| false, &mut awaited);
        self.pass(&route, message, awaited);
        let logged = route.recipients.iter().filter(|to| to.logged.is_some());
        fanout
            .congested
            .extend(logged.map(|to| &to.mailbox).filter(|mailbox| mailbox.is_congested(caps)).cloned());
        if how != Delivered::OnceAgain && self.is_new(message.qos, message.id) {
            fanout.push(&route, message.clone(), caps, &self.counters);
        }
        fanout.flush(caps, &self.counters);
        for share in &route.shares {
            let mid = share.id_of(message.id);
            if how != Delivered::Maybe && self.sessions.knows(mid) {
                // A member has it, or had.
                continue;
            }
            let handing = Handing { by: client_id, mid, without: 0, among: Among::All };
            let (done, outcome) = Completion::awaited();
            if let Given::Appended(_) = self.hand(share, message, handing, &mut fanout, || done) {
                outcomes.push(outcome);
            }
        }
        fanout.wake();
        (fanout.congested, outcomes)
    }

    /// Passes a message on to other nodes, for those there who do not get it through the session log; true if there are any.
    /// `done` is told once they have it, or it is durable.
    pub(crate) fn pass(
        &self,
        route: &Route,
        message: &Arc<Message>,
        done: impl FnOnce() -> Completion,
    ) -> bool {
        let Some(relay) = &self.relay else { return false };
        let boots = elsewhere(route, message);
        if boots.is_empty() {
            return false;
        }
        relay.pass(message, &boots, None, self.wall(), done());
        true
    }

    /// False if sessions in no log have had a message of this QoS and name here; from now on they have.
    pub(crate) fn is_new(&self, qos: QoS, mid: MessageId) -> bool {
        self.relay.as_ref().is_none_or(|relay| relay.is_new(qos, mid))
    }

    /// False while more waits for the log, or for links to other nodes, than should.
    pub(crate) fn has_room(&self) -> bool {
        self.log.room() && self.relay.as_ref().is_none_or(Relay::has_room)
    }

    pub(crate) async fn wait_for_room(&self) {
        self.log.wait_for_room().await;
        if let Some(relay) = &self.relay {
            relay.wait_for_room().await;
        }
    }

    /// Publishes what a device left behind (its will): stored like its own messages. True once all of it is durable.
    pub(crate) async fn publish_durably(
        &self,
        client_id: &str,
        message: &Arc<Message>,
        how: Delivered,
    ) -> bool {
        let mut outcomes = Vec::new();
        if let Some(parent) = self.settings().parent_of(message.topic()) {
            let (done, outcome) = Completion::awaited();
            outcomes.push(outcome);
            self.bridge.store(&parent, client_id, message, self.wall(), done);
        }
        if message.retain {
            let (done, outcome) = Completion::awaited();
            self.retained.retain(message, self.now(), self.wall(), done);
            if !matches!(outcome.await, Ok(Outcome::Durable(_))) {
                return false;
            }
        }
        self.sessions.freshen().await;
        // Nobody can be made to wait here; a recipient that stays without room loses its oldest.
        let (_, queued) = self.deliver(client_id, message, how);
        for outcome in outcomes.into_iter().chain(queued) {
            if !matches!(outcome.await, Ok(Outcome::Durable(_))) {
                return false;
            }
        }
        true
    }
}

/// Milliseconds since the Unix epoch as the machine has it. A node has [`Node::wall`].
pub(crate) fn wall() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}
