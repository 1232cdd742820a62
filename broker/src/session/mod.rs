//! Sessions: who holds which, what waits for them, and when they end.
//!
//! [`Registry`] knows every session of this node by client ID. A session's [`Core`] is owned by exactly one task
//! at a time, through its lock: the connection that serves the device, or whoever ends it. The later of two
//! connections with one client ID always wins, in the order in which they claimed.

pub(crate) mod mailbox;
pub(crate) mod unreleased;

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
use mqtt_proto::{
    acl::Grants,
    message::{Message, Millis},
    session::SessionState,
    topic::Filter,
};
use parking_lot::Mutex;
use tokio::{sync::OwnedMutexGuard, time::timeout};

use self::{
    mailbox::{Mailbox, Presence},
    unreleased::Note,
};
use crate::router::Router;

/// Until a former connection must have given a session up.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);
const SHARDS: usize = 64;
/// `Slot::due` of a session that nothing is due for.
const NEVER: Millis = Millis::MAX;

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
    /// When the session ends, if its device stays away.
    due: AtomicU64,
}

/// What a session is, besides its mailbox. Default: there is none.
#[derive(Default)]
pub(crate) struct Core {
    /// Who made it; only this user resumes it. None: no session.
    pub(crate) user: Option<Box<str>>,
    pub(crate) state: SessionState,
    /// By the filter as the client wrote it, `$share` included.
    pub(crate) subscriptions: BTreeMap<Box<str>, Filter>,
    /// What the log has noted about unreleased QoS 2 packet identifiers, by this process run or a former one.
    pub(crate) notes: BTreeMap<u16, Note>,
    /// Published when it is due, unless the device comes back before.
    pub(crate) will: Option<DueWill>,
    /// When the session ends, while its device is away.
    ends_at: Millis,
}

pub(crate) struct DueWill {
    pub(crate) message: Arc<Message>,
    pub(crate) at: Millis,
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
            let slot = match shard.get(client_id) {
                Some(slot) => slot.clone(),
                None => {
                    let slot = Arc::new(Slot::new(client_id, self.next_key.fetch_add(1, Ordering::Relaxed)));
                    shard.insert(client_id.into(), slot.clone());
                    slot
                }
            };
            // First, so that nobody takes the session for due under the new claim's number.
            slot.due.store(NEVER, Ordering::Release);
            let claim = slot.claims.fetch_add(1, Ordering::AcqRel) + 1;
            (slot, claim)
        };
        slot.mailbox.call();
        let Ok(core) = timeout(CLAIM_TIMEOUT, slot.core.clone().lock_owned()).await else {
            // The former holder will find its claim outdated and set no date: whoever sweeps does.
            let _shard = self.shard(client_id).lock();
            if slot.claims.load(Ordering::Acquire) == claim {
                slot.due.store(0, Ordering::Release);
            }
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

    /// Lets go of a session whose device is away; it ends at `ends_at` unless claimed before.
    pub(crate) fn release(&self, mut held: Held, ends_at: Millis) {
        held.core.ends_at = ends_at;
        let due = held.core.will.as_ref().map_or(ends_at, |will| will.at.min(ends_at));
        // Under the shard's lock, so that a claim made meanwhile is not overwritten.
        let _shard = self.shard(&held.slot.client_id).lock();
        if held.is_valid() {
            held.slot.due.store(due, Ordering::Release);
        }
    }

    /// Takes the sessions for which something is due: their will, or their end.
    pub(crate) fn take_due(&self, now: Millis) -> Vec<Held> {
        let due = self.slots(|slot| slot.due.load(Ordering::Acquire) <= now);
        due.into_iter()
            .filter_map(|slot| {
                let claim = slot.claims.load(Ordering::Acquire);
                let core = slot.core.clone().try_lock_owned().ok()?;
                // A claim made meanwhile has taken the date away.
                (slot.due.load(Ordering::Acquire) <= now).then_some(Held { slot, core, claim })
            })
            .collect()
    }

    /// Asks every connection to look at its rights again, and applies `edit` to every session whose device is away.
    pub(crate) fn review(&self, mut edit: impl FnMut(&Slot, &mut Core)) {
        for slot in self.slots(|_| true) {
            match slot.core.clone().try_lock_owned() {
                Ok(mut core) if slot.mailbox.presence() == Presence::Offline => edit(&slot, &mut core),
                _ => slot.mailbox.call(),
            }
        }
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
            due: AtomicU64::new(NEVER),
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
    /// Whether its time is over.
    pub(crate) fn has_ended(&self, now: Millis) -> bool {
        self.ends_at <= now
    }

    pub(crate) fn ends_at(&self) -> Millis {
        self.ends_at
    }

    /// Whether `user` may go on with this session.
    pub(crate) fn belongs_to(&self, user: &str) -> bool {
        self.user.as_deref() == Some(user)
    }

    /// Ends the subscriptions that are no longer granted; returns them.
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

    /// Forgets the session: subscriptions, queue, inflight.
    pub(crate) fn discard(&mut self, mailbox: &Mailbox, router: &Router) {
        for filter in std::mem::take(&mut self.subscriptions).into_values() {
            router.unsubscribe(&filter, mailbox.key);
        }
        mailbox.end();
        *self = Core::default();
    }
}
