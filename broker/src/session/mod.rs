//! Sessions: who holds which, what waits for them, and when they end.
//!
//! [`Registry`] knows every session of this node by client ID. A session's [`Core`] is owned by exactly one task
//! at a time, through its lock: the connection that serves the device, or whoever ends it. The later of two
//! connections with one client ID always wins, in the order in which they claimed.
//!
//! A session that outlives its connection is in the [`log`], and what is here of it is what its connection uses.

pub(crate) mod log;
pub(crate) mod mailbox;
pub(crate) mod note;
pub(crate) mod retained;

use std::{
    collections::{BTreeMap, HashMap},
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use foldhash::fast::RandomState;
use mqtt_proto::{acl::Grants, topic::Filter};
use parking_lot::Mutex;
use tokio::{sync::OwnedMutexGuard, time::timeout};

use self::{
    mailbox::{Mailbox, Presence},
    note::Note,
};
use crate::router::Router;

/// Until a former connection must have given a session up.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);
const SHARDS: usize = 64;

pub(crate) struct Registry {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    next_key: AtomicU64,
}

/// The sessions of some client IDs.
type Shard = HashMap<Box<str>, Arc<Slot>, RandomState>;

/// A client ID's place in the registry.
pub(crate) struct Slot {
    pub(crate) client_id: Box<str>,
    pub(crate) mailbox: Arc<Mailbox>,
    /// How many connections have claimed it. The latest claim is the valid one.
    claims: AtomicU64,
    core: Arc<tokio::sync::Mutex<Core>>,
}

/// What a session is while its device is there, besides its mailbox.
#[derive(Default)]
pub(crate) struct Core {
    /// By the filter as the client wrote it, `$share` included.
    pub(crate) subscriptions: BTreeMap<Box<str>, Filter>,
    /// What is noted in the log about unreleased QoS 2 packet identifiers.
    pub(crate) notes: BTreeMap<u16, Note>,
}

/// A claim that took effect: this task alone owns the session until it lets go.
pub(crate) struct Held {
    pub(crate) slot: Arc<Slot>,
    pub(crate) core: OwnedMutexGuard<Core>,
    /// The number of this claim; names the connection among those of the session.
    pub(crate) claim: u64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ClaimError {
    #[error("a later connection with the same client ID came first")]
    Superseded,
    #[error("the former connection did not give the session up in {} s", CLAIM_TIMEOUT.as_secs())]
    Busy,
}

impl Registry {
    pub(crate) fn new() -> Registry {
        Registry {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::default(),
            next_key: AtomicU64::new(1),
        }
    }

    /// Takes the client ID over from whoever has it. The former connection is told and closes.
    pub(crate) async fn claim(&self, client_id: &str) -> Result<Held, ClaimError> {
        let (slot, claim) = {
            let mut shard = self.shard(client_id).lock();
            let slot = self.slot_in(&mut shard, client_id);
            let claim = slot.claims.fetch_add(1, Ordering::AcqRel) + 1;
            (slot, claim)
        };
        slot.mailbox.call();
        let Ok(core) = timeout(CLAIM_TIMEOUT, slot.core.clone().lock_owned()).await else {
            return Err(ClaimError::Busy);
        };
        let held = Held { slot, core, claim };
        if !held.is_valid() {
            return Err(ClaimError::Superseded);
        }
        Ok(held)
    }

    /// Whether a connection holds this client ID now.
    pub(crate) fn is_online(&self, client_id: &str) -> bool {
        let slot = self.shard(client_id).lock().get(client_id).cloned();
        slot.is_some_and(|slot| slot.mailbox.presence() == Presence::Online)
    }

    /// Lets go of a session that has ended.
    pub(crate) fn forget(&self, held: Held) {
        let mut shard = self.shard(&held.slot.client_id).lock();
        if held.is_valid() {
            shard.remove(&held.slot.client_id);
        }
    }

    /// Lets go of a client's place that nobody uses.
    pub(crate) fn forget_idle(&self, slot: &Arc<Slot>) {
        let mut shard = self.shard(&slot.client_id).lock();
        // Who has claimed it has it from here: the registry and the caller have one each.
        let is_it = |known: &Arc<Slot>| Arc::ptr_eq(known, slot) && Arc::strong_count(slot) == 2;
        if shard.get(&slot.client_id).is_some_and(is_it) && slot.core.try_lock().is_ok() {
            shard.remove(&slot.client_id);
        }
    }

    /// The client ID's place, made if there is none.
    pub(crate) fn slot(&self, client_id: &str) -> Arc<Slot> {
        self.slot_in(&mut self.shard(client_id).lock(), client_id)
    }

    pub(crate) fn slot_of(&self, client_id: &str) -> Option<Arc<Slot>> {
        self.shard(client_id).lock().get(client_id).cloned()
    }

    /// Takes a client that nobody is there for.
    pub(crate) fn take_idle(&self, client_id: &str) -> Option<Held> {
        let slot = self.slot(client_id);
        let claim = slot.claims.load(Ordering::Acquire);
        let core = slot.core.clone().try_lock_owned().ok()?;
        Some(Held { slot, core, claim })
    }

    /// Asks every connection to look at its rights again.
    pub(crate) fn call_all(&self) {
        self.slots(|_| true).iter().for_each(|slot| slot.mailbox.call());
    }

    fn slot_in(&self, shard: &mut Shard, client_id: &str) -> Arc<Slot> {
        if let Some(slot) = shard.get(client_id) {
            return slot.clone();
        }
        let slot = Arc::new(Slot::new(client_id, self.next_key.fetch_add(1, Ordering::Relaxed)));
        shard.insert(client_id.into(), slot.clone());
        slot
    }

    fn slots(&self, wanted: impl Fn(&Slot) -> bool) -> Vec<Arc<Slot>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            found.extend(shard.lock().values().filter(|slot| wanted(slot)).cloned());
        }
        // What is done to several sessions is done in the same order in every run.
        found.sort_unstable_by_key(|slot| slot.mailbox.key);
        found
    }

    fn shard(&self, client_id: &str) -> &Mutex<Shard> {
        let index = usize::try_from(self.hasher.hash_one(client_id)).unwrap_or(0) % SHARDS;
        #[allow(clippy::indexing_slicing, reason = "there are SHARDS of them")]
        &self.shards[index]
    }
}

impl Slot {
    fn new(client_id: &str, key: u64) -> Slot {
        Slot {
            client_id: client_id.into(),
            mailbox: Arc::new(Mailbox::new(key)),
            claims: AtomicU64::new(0),
            core: Arc::default(),
        }
    }
}

impl Held {
    /// Whether no later connection has claimed the client ID.
    pub(crate) fn is_valid(&self) -> bool {
        self.slot.claims.load(Ordering::Acquire) == self.claim
    }
}

impl Core {
    /// Ends the subscriptions that are no longer granted; returns them. Where there is a log it must be told.
    pub(crate) fn revoke(&mut self, mailbox: &Mailbox, router: &Router, grants: &Grants) -> Vec<Box<str>> {
        let revoked: Vec<Box<str>> = self
            .subscriptions
            .iter()
            .filter(|(_, filter)| !grants.may_subscribe(filter))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &revoked {
            if let Some(filter) = self.subscriptions.remove(name) {
                router.unsubscribe(&filter, mailbox.key);
            }
        }
        revoked
    }

    /// Forgets a session that is in no log: its subscriptions and its queue.
    pub(crate) fn discard(&mut self, mailbox: &Mailbox, router: &Router) {
        for filter in std::mem::take(&mut self.subscriptions).into_values() {
            router.unsubscribe(&filter, mailbox.key);
        }
        mailbox.end();
        *self = Core::default();
    }
}
