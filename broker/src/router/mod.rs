//! Who gets what: subscriptions and retained messages of this node.
//!
//! Publishers look a topic up once and keep the [`Route`] while [`Router::generation`] stands; there is no
//! routing task, and nothing is locked for a message on a known topic but the mailboxes it goes to.

pub(crate) mod fanout;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use mqtt_proto::{
    codec::QoS,
    message::{Delivery, Message, MessageId, Millis},
    retained::RetainedTrie,
    topic::{Filter, Topic},
    trie::Trie,
};
use foldhash::fast::RandomState;
use parking_lot::{Mutex, RwLock};

use crate::session::mailbox::Mailbox;

#[derive(Default)]
pub(crate) struct Router {
    subscriptions: RwLock<Trie<u64, Recipient>>,
    retained: RwLock<RetainedTrie<Arc<Message>>>,
    /// What clean sessions of other nodes want, and the same by node.
    peers: RwLock<(Trie<u64, ()>, HashMap<u64, HashSet<Filter>, RandomState>)>,
    /// How many clean sessions here want what matches a filter, and who is told of the first and the last.
    clean: Mutex<HashMap<Box<str>, usize, RandomState>>,
    announce: OnceLock<Announce>,
    /// Rises with every change of the subscriptions.
    generation: AtomicU64,
    count: AtomicUsize,
}

/// Subscription options (MQTT 5 section 3.8.3.1); the defaults are those of MQTT 3.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) qos: QoS,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    pub(crate) subscription_id: Option<u32>,
}

/// One session that gets a topic's messages, whatever the number of its filters that match.
#[derive(Clone, Debug)]
pub(crate) struct Recipient {
    pub(crate) mailbox: Arc<Mailbox>,
    /// The highest of its matching subscriptions.
    pub(crate) qos: QoS,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    pub(crate) subscription_ids: Option<Box<[u32]>>,
    /// What it gets at QoS > 0 it gets through the session log.
    pub(crate) logged: Option<Logged>,
}

/// Where a session stands in the session log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) sid: MessageId,
    pub(crate) partition: u32,
}

/// Where the messages of one topic go, as of a generation.
#[derive(Debug, Default)]
pub(crate) struct Route {
    pub(crate) generation: u64,
    pub(crate) recipients: Vec<Recipient>,
    /// Which of them get QoS > 0 through the session log, by its partitions.
    pub(crate) logged: Vec<(u32, Vec<usize>)>,
    /// Process runs of other nodes with clean sessions that get it.
    pub(crate) peers: Vec<u64>,
}

/// Told of a filter that the first clean session of this node has, or none has any more.
type Announce = Box<dyn Fn(&Filter, bool) + Send + Sync>;

/// The instance has as many subscriptions as it may have.
#[derive(Debug, thiserror::Error)]
#[error("all subscriptions of the instance are in use")]
pub(crate) struct SubscriptionLimit;

impl Router {
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Subscriptions in force.
    pub(crate) fn subscriptions(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// From its return on, every message that is routed finds the subscription. Replaces the session's former one on the
    /// same filter.
    pub(crate) fn subscribe(
        &self,
        filter: &Filter,
        mailbox: &Arc<Mailbox>,
        options: Options,
        logged: Option<Logged>,
        limit: u64,
    ) -> Result<(), SubscriptionLimit> {
        let recipient = Recipient {
            mailbox: mailbox.clone(),
            qos: options.qos,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            subscription_ids: options.subscription_id.map(|id| Box::from([id])),
            logged,
        };
        let mut clean = self.clean.lock();
        let mut subscriptions = self.subscriptions.write();
        let replaced = subscriptions.insert(filter, mailbox.key, recipient);
        if replaced.is_none() {
            if subscriptions.len() as u64 > limit {
                subscriptions.remove(filter, &mailbox.key);
                return Err(SubscriptionLimit);
            }
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        self.generation.fetch_add(1, Ordering::Release);
        drop(subscriptions);
        let was_clean = replaced.is_some_and(|replaced| replaced.logged.is_none());
        self.tell(&mut clean, filter, was_clean, logged.is_none());
        Ok(())
    }

    /// From now on `announce` is told which filters the clean sessions have.
    pub(crate) fn announce(&self, announce: Announce) {
        // It is set once, before there are any.
        let _ = self.announce.set(announce);
    }

    fn tell(
        &self,
        clean: &mut HashMap<Box<str>, usize, RandomState>,
        filter: &Filter,
        was_clean: bool,
        is_clean: bool,
    ) {
        let Some(announce) = self.announce.get().filter(|_| was_clean != is_clean) else { return };
        let count = clean.entry(filter.as_str().into()).or_default();
        let before = *count;
        *count = if is_clean { before + 1 } else { before.saturating_sub(1) };
        let is_wanted = *count > 0;
        if !is_wanted {
            clean.remove(filter.as_str());
        }
        if (before > 0) != is_wanted {
            announce(filter, is_wanted);
        }
    }

    /// Clean sessions of another node want what matches, or none of it does any more.
    pub(crate) fn set_peer(&self, peer: u64, filter: &Filter, on: bool) {
        let mut peers = self.peers.write();
        let (trie, of_peer) = &mut *peers;
        if on {
            trie.insert(filter, peer, ());
            of_peer.entry(peer).or_default().insert(filter.clone());
        } else {
            trie.remove(filter, &peer);
            of_peer.entry(peer).or_default().remove(filter);
        }
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// A node is there no more.
    pub(crate) fn forget_peer(&self, peer: u64) {
        let mut peers = self.peers.write();
        let (trie, of_peer) = &mut *peers;
        for filter in of_peer.remove(&peer).unwrap_or_default() {
            trie.remove(&filter, &peer);
        }
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Whether there is room for one more.
    pub(crate) fn has_room(&self, limit: u64) -> bool {
        (self.count.load(Ordering::Relaxed) as u64) < limit
    }

    pub(crate) fn unsubscribe(&self, filter: &Filter, key: u64) {
        let mut clean = self.clean.lock();
        let mut subscriptions = self.subscriptions.write();
        let Some(removed) = subscriptions.remove(filter, &key) else { return };
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Release);
        drop(subscriptions);
        self.tell(&mut clean, filter, removed.logged.is_none(), false);
    }

    pub(crate) fn route(&self, topic: &str) -> Route {
        // Read first: a change meanwhile makes the route look older than it is, never newer.
        let generation = self.generation();
        let mut recipients: Vec<Recipient> = Vec::new();
        let mut seen: HashMap<u64, usize, foldhash::fast::RandomState> = HashMap::default();
        self.subscriptions.read().matches(topic, |key, found| match seen.get(key) {
            Some(&index) => {
                if let Some(known) = recipients.get_mut(index) {
                    known.merge(found);
                }
            }
            None => {
                seen.insert(*key, recipients.len());
                recipients.push(found.clone());
            }
        });
        let mut logged: Vec<(u32, Vec<usize>)> = Vec::new();
        for (index, recipient) in recipients.iter().enumerate() {
            let Some(Logged { partition, .. }) = recipient.logged else { continue };
            match logged.iter_mut().find(|(known, _)| *known == partition) {
                Some((_, indices)) => indices.push(index),
                None => logged.push((partition, vec![index])),
            }
        }
        let mut peers: Vec<u64> = Vec::new();
        self.peers.read().0.matches(topic, |peer, ()| {
            if !peers.contains(peer) {
                peers.push(*peer);
            }
        });
        peers.sort_unstable();
        Route { generation, recipients, logged, peers }
    }

    /// Keeps a message as its topic's retained one; an empty payload clears it (MQTT 3.3.1.3).
    pub(crate) fn retain(&self, message: &Arc<Message>) {
        let Ok(topic) = Topic::parse(message.topic()) else { return };
        let mut retained = self.retained.write();
        if message.payload().is_empty() {
            retained.remove(&topic);
        } else {
            retained.insert(&topic, message.clone());
        }
    }

    /// The retained messages that a new subscription gets, in the order of their names.
    pub(crate) fn retained(&self, filter: &Filter, options: Options, now: Millis) -> Vec<Delivery> {
        let mut found = Vec::new();
        self.retained.read().visit(filter, |message| {
            if !message.is_expired(now) {
                found.push(Delivery {
                    message: message.clone(),
                    qos: message.qos.min(options.qos),
                    retain: true,
                    subscription_ids: options.subscription_id.map(|id| Box::from([id])),
                });
            }
        });
        found.sort_unstable_by_key(|delivery| (delivery.message.id.counter, delivery.message.id.boot));
        found
    }
}

impl Recipient {
    /// Another subscription of the same session matches, too: one delivery at the higher QoS, with all identifiers.
    fn merge(&mut self, other: &Recipient) {
        self.qos = self.qos.max(other.qos);
        self.no_local &= other.no_local;
        self.retain_as_published |= other.retain_as_published;
        if let Some(more) = &other.subscription_ids {
            let ids = self.subscription_ids.iter().flatten().chain(more).copied();
            self.subscription_ids = Some(ids.collect());
        }
    }
}
