//! What spares barriers where nodes have links: leases (see [`peers::lease`](crate::peers::lease)).
//!
//! Who holds one of each other node, and has passed a barrier a moment ago, knows all that anybody was told of subscriptions. Who has
//! given one tells a client nothing of a subscription before the other has read it. An answer to a SUBSCRIBE waits for a
//! link then, not each publish for the log.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use mqtt_proto::{
    durable::record::{Boot, Offset},
    message::Millis,
};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{
    SessionLog,
    rounds::{self, Rounds},
};
use crate::{
    log::Completion,
    node::Node,
    outside::Mistake,
    peers::{
        lease::{Given, Held, LEASE},
        wire::{Lease, ReadOn},
    },
    session::relay::Rising,
};

/// How often a lease is asked for.
pub(crate) const ASK_EVERY: Duration = Duration::from_millis(LEASE / 4);
/// With less time than this left of it a look at the log is repeated, if anybody makes use of it.
const LOOK_AGAIN: Millis = LEASE / 2;

/// What this process run holds and has given.
pub(super) struct Leases {
    began: Instant,
    held: Mutex<Held>,
    /// As [`Held`] says.
    until: AtomicU64,
    looked_until: AtomicU64,
    /// Told when it must be found out which other process runs there are.
    relisted: Notify,
    given: Mutex<Given>,
    /// The round that was begun last.
    round: Rising,
    /// Told when a peer has read on.
    heard: Notify,
    waiting: Rounds,
    is_over: AtomicBool,
    /// Publishes that were routed at once.
    used: AtomicU64,
}

impl Leases {
    /// Of a process run whose beginning everybody can read.
    pub(super) fn new() -> Leases {
        Leases {
            began: Instant::now(),
            held: Mutex::default(),
            until: AtomicU64::new(0),
            looked_until: AtomicU64::new(0),
            relisted: Notify::new(),
            given: Mutex::new(Given::new(0)),
            round: Rising::new(0),
            heard: Notify::new(),
            waiting: Rounds::default(),
            is_over: AtomicBool::new(false),
            used: AtomicU64::new(0),
        }
    }

    /// Milliseconds on a clock that is steady, and counts on while the process stands still.
    pub(super) fn now(&self) -> Millis {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn hold(&self, act: impl FnOnce(&mut Held)) {
        let mut held = self.held.lock();
        act(&mut held);
        self.until.store(held.until(), Ordering::Release);
        self.looked_until.store(held.looked_until(), Ordering::Release);
    }

    /// A process run has begun, or is over. Called before anybody can hear that this node has read so.
    pub(super) fn relist(&self) {
        self.hold(Held::relist);
        self.relisted.notify_one();
    }

    /// Others count on nothing that this process run says any more.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.hold(Held::end);
    }

    /// A barrier was passed that had been begun at this time.
    pub(super) fn looked(&self, at: Millis) {
        self.hold(|held| held.looked(at));
    }
}

impl SessionLog {
    /// Whether this node knows everything that anybody was told of subscriptions before this call, without a barrier.
    pub(crate) fn knows_all(&self) -> bool {
        if !self.shared {
            return true;
        }
        let leases = &self.leases;
        let now = leases.now();
        if now >= leases.until.load(Ordering::Acquire) {
            return false;
        }
        leases.used.fetch_add(1, Ordering::Relaxed);
        if leases.looked_until.load(Ordering::Acquire).saturating_sub(now) < LOOK_AGAIN {
            self.look_again();
        }
        true
    }

    /// Publishes that were routed without a barrier.
    pub(crate) fn routed_at_once(&self) -> u64 {
        self.leases.used.load(Ordering::Relaxed)
    }

    /// Tells `done` once every other node knows, of subscriptions, what this one has read before this call, or counts on
    /// nothing. True: that is so now, and nobody is told; nor is anybody if this process run is over.
    pub(crate) fn is_known_or(&self, done: impl FnOnce() -> Completion) -> bool {
        let leases = &self.leases;
        if !self.shared || self.outside.makes(Mistake::SubackBeforeRead) {
            return true;
        }
        if leases.is_over.load(Ordering::Acquire) {
            return false;
        }
        // What was read was read before this look at what was given: a lease that is given later says up to where to read.
        if !leases.given.lock().may_bind(leases.now()) {
            return true;
        }
        leases.waiting.join(done());
        false
    }

    /// Peers are over.
    pub(crate) fn forget_leases(&self, is_over: impl Fn(Boot) -> bool) {
        let leases = &self.leases;
        leases.given.lock().forget(is_over, leases.now());
    }

    /// Up to where this node has read each partition, with all that follows from it.
    pub(super) fn positions(&self) -> Vec<Offset> {
        let of = |partition: &super::Partition| {
            let _applied = partition.state.lock();
            partition.next.get()
        };
        self.partitions.iter().map(of).collect()
    }

    /// Ends once this node has read as far; never if a peer has more partitions than it.
    async fn reach(&self, positions: &[Offset]) {
        if positions.len() > self.partitions.len() {
            return std::future::pending().await;
        }
        for (partition, position) in self.partitions.iter().zip(positions) {
            partition.next.reach(*position).await;
        }
    }
}

/// Keeps in mind which other process runs a lease is needed of, until the task is aborted.
pub(crate) async fn list_peers(node: Arc<Node>) {
    let leases = &node.sessions.leases;
    loop {
        let relisted = leases.relisted.notified();
        // What comes in between is found by the next look: it makes nothing of this one.
        leases.hold(Held::look);
        let others = node.sessions.others().into_keys().collect();
        leases.hold(|held| held.list(others));
        relisted.await;
    }
}

/// Tells who waits for other nodes to have read on, until the task is aborted.
pub(crate) async fn ask_peers(node: Arc<Node>) {
    let log = &node.sessions;
    let leases = &log.leases;
    loop {
        let waiting = leases.waiting.next().await;
        if waiting.is_empty() {
            continue;
        }
        let round = leases.given.lock().ask(leases.now());
        leases.round.raise(round);
        loop {
            let heard = leases.heard.notified();
            let others: BTreeSet<Boot> = log.others().into_keys().chain(log.replaced()).collect();
            let waits = leases.given.lock().waits(round, &others, leases.now());
            let Some(until) = waits else { break };
            // Whoever has not read by then counts on nothing any more.
            let _ = timeout_at(leases.began + Duration::from_millis(until), heard).await;
        }
        rounds::tell(waiting);
    }
}

/// What a peer that passes on over a link is told and asked.
pub(crate) struct Giving {
    node: Arc<Node>,
    to: Boot,
    /// A round that it has not answered.
    asked: bool,
}

impl Giving {
    pub(crate) fn new(node: Arc<Node>, to: Boot) -> Giving {
        Giving { node, to, asked: false }
    }

    /// What it is asked next, once there is something.
    pub(crate) async fn next(&mut self) -> ReadOn {
        let log = &self.node.sessions;
        if self.asked {
            return std::future::pending().await;
        }
        let read = log.leases.given.lock().read_by(self.to);
        let round = log.leases.round.reach(read + 1).await;
        self.asked = true;
        ReadOn { round, positions: log.positions() }
    }

    /// It has read as far as it was asked to in this round.
    pub(crate) fn read(&mut self, round: u64) {
        let leases = &self.node.sessions.leases;
        self.asked = false;
        leases.given.lock().read(self.to, round);
        leases.heard.notify_waiters();
    }

    /// It asks for a lease.
    pub(crate) fn give(&self, asked: Millis) -> Option<Lease> {
        let log = &self.node.sessions;
        let given = log.leases.given.lock().give(self.to, log.leases.now());
        // Only now: whoever found that none was given had read what it tells before.
        given.then(|| Lease { asked, positions: log.positions() })
    }
}

/// What a peer said over a link, until this node has read as far as it must have for that. With it ends the lease.
pub(crate) struct Hearing {
    node: Arc<Node>,
    of: Boot,
    heard: VecDeque<Heard>,
}

enum Heard {
    Lease(Lease),
    ReadOn(ReadOn),
}

/// A peer asks for more before it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMuch;

impl Hearing {
    pub(crate) fn new(node: Arc<Node>, of: Boot) -> Hearing {
        Hearing { node, of, heard: VecDeque::new() }
    }

    /// When a lease is asked for now, if one should be.
    pub(crate) fn ask(&self) -> Option<Millis> {
        let now = self.node.sessions.leases.now();
        (!self.waits_for_lease()).then_some(now)
    }

    /// It may be one of several that were asked for while nothing came: the others are asked for again.
    pub(crate) fn lease(&mut self, lease: Lease) {
        if !self.waits_for_lease() {
            self.heard.push_back(Heard::Lease(lease));
        }
    }

    pub(crate) fn read_on(&mut self, read_on: ReadOn) -> Result<(), TooMuch> {
        if self.heard.iter().any(|heard| matches!(heard, Heard::ReadOn(_))) {
            return Err(TooMuch);
        }
        self.heard.push_back(Heard::ReadOn(read_on));
        Ok(())
    }

    fn waits_for_lease(&self) -> bool {
        self.heard.iter().any(|heard| matches!(heard, Heard::Lease(_)))
    }

    /// The next round that is to be answered, as this node has read so far. Nothing is lost if nobody waits any more.
    pub(crate) async fn next(&mut self) -> u64 {
        let log = &self.node.sessions;
        while let Some(heard) = self.heard.front() {
            let (Heard::Lease(Lease { positions, .. }) | Heard::ReadOn(ReadOn { positions, .. })) = heard;
            if !log.outside.makes(Mistake::LeaseBeforeRead) {
                log.reach(positions).await;
            }
            match self.heard.pop_front() {
                Some(Heard::ReadOn(ReadOn { round, .. })) => return round,
                Some(Heard::Lease(Lease { asked, .. })) => {
                    // Not later than now, whatever the peer says.
                    let asked = asked.min(log.leases.now());
                    log.leases.hold(|held| held.lease(self.of, asked));
                }
                None => {}
            }
        }
        std::future::pending().await
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        self.node.sessions.leases.hold(|held| held.lost(self.of));
    }
}
