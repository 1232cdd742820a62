//! Sessions: who holds which, what waits for them, and when they end.
//!
//! [`Registry`] knows every client that somebody is there for, by client ID. A session's [`Core`] is owned by exactly one task
//! at a time, through its lock: the connection that serves the device, or whoever ends it. The later of two
//! connections with one client ID always wins, in the order in which they claimed.
//!
//! A session that outlives its connection is in the [`log`], and what is here of it is what its connection uses.

pub(crate) mod groups;
pub(crate) mod log;
pub(crate) mod mailbox;
pub(crate) mod note;
pub(crate) mod relay;
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
use mqtt_proto::{acl::Grants, durable::record::Boot, message::Delivery, topic::FilterRequest};
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
    next_claim: AtomicU64,
}

/// The sessions of some client IDs.
type Shard = HashMap<Box<str>, Arc<Slot>, RandomState>;

/// A client ID's place in the registry: while a connection has it, or something is done with its session.
pub(crate) struct Slot {
    pub(crate) client_id: Box<str>,
    pub(crate) mailbox: Arc<Mailbox>,
    /// The latest claim, which is the valid one.
    latest: AtomicU64,
    core: Arc<tokio::sync::Mutex<Core>>,
}

/// What a session is while its device is there, besides its mailbox.
#[derive(Default)]
pub(crate) struct Core {
    /// By the filter as the client wrote it, `$share` included.
    pub(crate) subscriptions: BTreeMap<Box<str>, FilterRequest>,
    /// What is noted in the log about unreleased QoS 2 packet identifiers.
    pub(crate) notes: BTreeMap<u16, Note>,
}

/// A claim that took effect: this task alone owns the session until it lets go.
pub(crate) struct Held {
    pub(crate) slot: Arc<Slot>,
    pub(crate) core: OwnedMutexGuard<Core>,
    /// The number of this claim; names the connection among all of this process. A session's mailbox may be older than its
    /// client's place here, and hold what an append of a former connection came to.
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
            next_claim: AtomicU64::new(1),
        }
    }

    /// Takes the client ID over from whoever has it. The former connection is told and closes. `mailbox`: that of the
    /// client's session in the log.
    pub(crate) async fn claim(
        &self,
        client_id: &str,
        mailbox: Option<Arc<Mailbox>>,
    ) -> Result<Held, ClaimError> {
        let (slot, claim) = {
            let mut shard = self.shard(client_id).lock();
            let slot = self.slot_in(&mut shard, client_id, mailbox);
            let claim = self.next_claim.fetch_add(1, Ordering::Relaxed);
            slot.latest.store(claim, Ordering::Release);
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

    /// Lets go of a client whose session may go on in the log: nothing of it is kept here but what is nowhere else.
    pub(crate) fn release(&self, held: Held) {
        if held.core.notes.is_empty() {
            self.forget(held);
        }
    }

    /// A mailbox for all sessions in no log of another node's process run.
    pub(crate) fn new_mailbox_of_peer(&self, boot: Boot) -> Arc<Mailbox> {
        Arc::new(Mailbox::of_peer(self.next_key.fetch_add(1, Ordering::Relaxed), boot))
    }

    /// A mailbox for a session in the log that nobody is there for.
    pub(crate) fn new_mailbox(&self) -> Arc<Mailbox> {
        Arc::new(Mailbox::new(self.next_key.fetch_add(1, Ordering::Relaxed)))
    }

    pub(crate) fn slot_of(&self, client_id: &str) -> Option<Arc<Slot>> {
        self.shard(client_id).lock().get(client_id).cloned()
    }

    /// Takes a client that nobody is there for. `mailbox` as in [`Self::claim`].
    pub(crate) fn take_idle(&self, client_id: &str, mailbox: Option<Arc<Mailbox>>) -> Option<Held> {
        let slot = self.slot_in(&mut self.shard(client_id).lock(), client_id, mailbox);
        let claim = slot.latest.load(Ordering::Acquire);
        let core = slot.core.clone().try_lock_owned().ok()?;
        Some(Held { slot, core, claim })
    }

    /// Asks every connection to look at its rights again.
    pub(crate) fn call_all(&self) {
        self.slots().iter().for_each(|slot| slot.mailbox.call());
    }

    /// The client ID's place, made if there is none.
    fn slot_in(&self, shard: &mut Shard, client_id: &str, mailbox: Option<Arc<Mailbox>>) -> Arc<Slot> {
        if let Some(slot) = shard.get(client_id) {
            return slot.clone();
        }
        let slot = Arc::new(Slot {
            client_id: client_id.into(),
            mailbox: mailbox.unwrap_or_else(|| self.new_mailbox()),
            latest: AtomicU64::new(0),
            core: Arc::default(),
        });
        shard.insert(client_id.into(), slot.clone());
        slot
    }

    /// Every client's place.
    pub(crate) fn slots(&self) -> Vec<Arc<Slot>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            found.extend(shard.lock().values().cloned());
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

impl Held {
    /// Whether no later connection has claimed the client ID.
    pub(crate) fn is_valid(&self) -> bool {
        self.slot.latest.load(Ordering::Acquire) == self.claim
    }
}

impl Core {
    /// Ends the subscriptions that are no longer granted; returns them. Where there is a log it must be told.
    pub(crate) fn revoke(&mut self, mailbox: &Mailbox, router: &Router, grants: &Grants) -> Vec<Box<str>> {
        let revoked: Vec<Box<str>> = self
            .subscriptions
            .iter()
            .filter(|(_, asked)| !grants.may_subscribe(&asked.filter))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &revoked {
            if let Some(asked) = self.subscriptions.remove(name) {
                router.unsubscribe(&asked, mailbox.key);
            }
        }
        revoked
    }

    /// Forgets a session that is in no log: its subscriptions and its queue. Returns what waited in it and another member of
    /// a shared subscription may get.
    pub(crate) fn discard(&mut self, mailbox: &Mailbox, router: &Router) -> Vec<Delivery> {
        for asked in std::mem::take(&mut self.subscriptions).into_values() {
            router.unsubscribe_clean(&asked, mailbox.key);
        }
        *self = Core::default();
        mailbox.end()
    }

    /// The names of the shared subscriptions of which it is a member.
    pub(crate) fn shares(&self) -> impl Iterator<Item = &str> {
        self.subscriptions.iter().filter(|(_, asked)| asked.share.is_some()).map(|(name, _)| &**name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_claim_is_numbered_as_another_was_though_its_client_was_forgotten_meanwhile() {
        let registry = Registry::new();
        let mut numbers = Vec::new();
        for client_id in ["a", "b", "a", "a"] {
            let held = registry.claim(client_id, None).await.unwrap();
            assert!(held.is_valid());
            numbers.push(held.claim);
            registry.forget(held);
        }
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all, "{numbers:?}");
    }
}
