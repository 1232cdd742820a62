//! One broker node: what all its connections share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use mqtt_proto::message::{Message, MessageId, Millis};
use tokio::time::Instant;

use crate::{
    admission::Admission,
    auth::Logins,
    bridge::Bridge,
    counters::Counters,
    limits::{Connections, Notices, Rate, Sockets},
    log::Log,
    outside::Outside,
    router::{Router, fanout::Fanout},
    session::{Core, Registry, Slot, mailbox::Mailbox, unreleased::Unreleased},
    settings::Settings,
};

pub(crate) struct Node {
    /// Random id of this process run.
    pub(crate) boot: u64,
    pub(crate) outside: Outside,
    pub(crate) router: Router,
    pub(crate) registry: Registry,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) bridge: Bridge,
    pub(crate) unreleased: Unreleased,
    pub(crate) logins: Logins,
    pub(crate) counters: Counters,
    pub(crate) notices: Notices,
    pub(crate) connections: Connections,
    pub(crate) sockets: Sockets,
    pub(crate) publish_rate: Rate,
    pub(crate) admission: Admission,
    settings: ArcSwap<Settings>,
    next_message: AtomicU64,
    started: Instant,
    started_at: Millis,
    stopping: AtomicBool,
}

impl Node {
    pub(crate) fn new(
        outside: Outside,
        log: Arc<dyn Log>,
        bridge: Bridge,
        unreleased: Unreleased,
        logins: Logins,
        settings: Settings,
    ) -> Node {
        Node {
            boot: outside.random(),
            router: Router::default(),
            registry: Registry::new(),
            log,
            bridge,
            unreleased,
            logins,
            counters: Counters::default(),
            notices: Notices::default(),
            connections: Connections::default(),
            sockets: Sockets::default(),
            publish_rate: Rate::default(),
            admission: Admission::default(),
            settings: ArcSwap::from_pointee(settings),
            next_message: AtomicU64::new(1),
            started: Instant::now(),
            started_at: outside.wall(),
            outside,
            stopping: AtomicBool::new(false),
        }
    }

    /// Milliseconds since the Unix epoch as of the start, and steadily on: what is waited for must not move with the
    /// wall clock.
    pub(crate) fn now(&self) -> Millis {
        self.started_at + self.nanos() / 1_000_000
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

    /// Asks every connection to close.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.registry.review(|_, _| {});
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Puts new settings in force: at the return every connection has been asked to look at its rights, and offline
    /// sessions have lost the subscriptions that are no longer granted.
    pub(crate) fn apply(&self, mut settings: Settings) {
        settings.access.inherit(&self.settings().access);
        let settings = Arc::new(settings);
        self.settings.store(settings.clone());
        self.registry.review(|slot, core| {
            let user = core.user.as_deref().and_then(|name| settings.access.user(name));
            match user.filter(|user| user.may_use(&slot.client_id)) {
                None => {
                    core.will = None;
                    self.discard(slot, core);
                }
                Some(user) => {
                    let grants = user.grants(&slot.client_id);
                    core.revoke(&slot.mailbox, &self.router, &grants);
                }
            }
        });
    }

    /// Brings a message that no connection waits for (a will, a record of `mq2mqtt`) to its subscribers. Returns who has
    /// no room for more.
    pub(crate) fn deliver(&self, message: &Arc<Message>) -> Vec<Arc<Mailbox>> {
        if message.retain {
            self.router.retain(message);
        }
        let caps = self.settings().caps();
        let mut fanout = Fanout::default();
        let route = Arc::new(self.router.route(message.topic()));
        fanout.push(&route, message.clone(), caps, &self.counters);
        fanout.flush(caps, &self.counters);
        fanout.wake();
        fanout.congested
    }

    /// Publishes what a device left behind (its will): stored like its own messages.
    pub(crate) fn publish_for(&self, client_id: &str, message: &Arc<Message>) {
        if let Some(parent) = self.settings().parent_of(message.topic()) {
            self.bridge.store(&parent, client_id, message, self.wall(), self.bridge.nobody());
        }
        // Nobody can be made to wait here; a recipient that stays without room loses its oldest.
        self.deliver(message);
    }

    /// A client begins anew: what a former process run noted about its publishes is of no use.
    pub(crate) fn give_up_unreleased(&self, client_id: &str) {
        for packet_id in self.unreleased.take_recovered(client_id).into_keys() {
            self.unreleased.delete(client_id, packet_id, self.wall(), self.bridge.nobody());
        }
    }

    /// Ends a session, with what the log has noted about it.
    pub(crate) fn discard(&self, slot: &Slot, core: &mut Core) {
        for packet_id in std::mem::take(&mut core.notes).into_keys() {
            self.unreleased.delete(&slot.client_id, packet_id, self.wall(), self.bridge.nobody());
        }
        core.discard(&slot.mailbox, &self.router);
    }
}

/// Milliseconds since the Unix epoch as the machine has it. A node has [`Node::wall`].
pub(crate) fn wall() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}
