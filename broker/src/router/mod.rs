//! Who gets what: subscriptions and retained messages of this node.
//!
//! Publishers look a topic up once and keep the [`Route`] while [`Router::generation`] stands; there is no
//! routing task, and nothing is locked for a message on a known topic but the mailboxes it goes to.

pub(crate) mod fanout;
pub(crate) mod shared;

use std::{
    borrow::Borrow,
    cmp::Ordering as Comparison,
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use mqtt_proto::{
    codec::QoS,
    message::{Delivery, Message, MessageId, Millis},
    retained::RetainedTrie,
    topic::{Filter, FilterRequest, Topic},
    trie::Trie,
};
use parking_lot::RwLock;

use self::shared::{Share, Shares};
use crate::session::mailbox::Mailbox;

#[derive(Default)]
pub(crate) struct Router {
    subscriptions: RwLock<Subscriptions>,
    retained: RwLock<RetainedTrie<Arc<Message>>>,
    /// Other nodes must know what sessions have here that are in no log.
    counts_clean: bool,
    /// Rises with every change of the subscriptions.
    generation: AtomicU64,
    count: AtomicUsize,
}

#[derive(Default)]
struct Subscriptions {
    own: Trie<Subscriber, Terms>,
    shared: Shares,
    /// How many sessions of this node that are in no log have a filter, where other nodes must know.
    clean: HashMap<Box<str>, usize, foldhash::fast::RandomState>,
}

/// Subscription options (MQTT 5 section 3.8.3.1); the defaults are those of MQTT 3.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) qos: QoS,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    pub(crate) subscription_id: Option<u32>,
}

/// Who subscribes, found by the key of the mailbox.
#[derive(Clone, Debug)]
struct Subscriber(Arc<Mailbox>);

/// What a subscription asks for. There may be a million: it is as small as can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Terms {
    /// 0: none.
    subscription_id: u32,
    qos: QoS,
    no_local: bool,
    retain_as_published: bool,
    /// Of a session in the log; where that stands there the mailbox knows.
    is_logged: bool,
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
    /// The shared subscription of which it is a member here.
    pub(crate) share: Option<Arc<str>>,
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
    /// Of each one member gets a message.
    pub(crate) shares: Vec<Arc<Share>>,
}

/// The instance has as many subscriptions as it may have.
#[derive(Debug, thiserror::Error)]
#[error("all subscriptions of the instance are in use")]
pub(crate) struct SubscriptionLimit;

impl Router {
    /// `shared`: other nodes route to this one.
    pub(crate) fn new(shared: bool) -> Router {
        Router { counts_clean: shared, ..Router::default() }
    }

    /// Whether any session of this node that is in no log has this filter; where other nodes route to this one.
    pub(crate) fn has_clean(&self, filter: &str) -> bool {
        self.subscriptions.read().clean.contains_key(filter)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Subscriptions of sessions of this node that are in no log; where other nodes route to this one.
    pub(crate) fn clean_subscriptions(&self) -> u64 {
        self.subscriptions.read().clean.values().map(|count| *count as u64).sum()
    }

    /// Subscriptions in force: those of sessions in the log, of whichever node, and of this node's others.
    pub(crate) fn subscriptions(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// From its return on, every message that is routed finds the subscription. Replaces the session's former one on the
    /// same filter. `is_logged`: it is of the session in the log that the mailbox was told of last; one that is not takes no
    /// such one's place: its connection was taken over, and does not know yet.
    pub(crate) fn subscribe(
        &self,
        asked: &FilterRequest,
        mailbox: &Arc<Mailbox>,
        options: Options,
        is_logged: bool,
        limit: u64,
    ) -> Result<(), SubscriptionLimit> {
        let subscriber = Subscriber(mailbox.clone());
        let terms = Terms {
            subscription_id: options.subscription_id.unwrap_or(0),
            qos: options.qos,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            is_logged,
        };
        let mut subscriptions = self.subscriptions.write();
        let former = match asked.shared() {
            Some(name) if !is_logged && subscriptions.shared.is_logged(&name, mailbox.key) => return Ok(()),
            Some(name) => subscriptions.shared.insert(&name, &asked.filter, subscriber.recipient(terms)),
            None => match subscriptions.own.insert(&asked.filter, subscriber.clone(), terms) {
                // What publishers know of their topics still holds.
                Some(former) if former == terms => return Ok(()),
                Some(former) if former.is_logged && !is_logged => {
                    subscriptions.own.insert(&asked.filter, subscriber, former);
                    return Ok(());
                }
                former => former.map(|former| subscriber.recipient(former)),
            },
        };
        if former.is_none() && mailbox.peer().is_none() {
            if !self.has_room(limit) {
                subscriptions.remove(asked, mailbox.key, true);
                return Err(SubscriptionLimit);
            }
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        if self.counts_clean {
            subscriptions.count_clean(asked, former.as_ref(), Some(&subscriber.recipient(terms)));
        }
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Whether there is room for one more.
    pub(crate) fn has_room(&self, limit: u64) -> bool {
        (self.count.load(Ordering::Relaxed) as u64) < limit
    }

    /// A session in no log is over. What a session in the log has under its mailbox stays.
    pub(crate) fn unsubscribe_clean(&self, asked: &FilterRequest, key: u64) {
        self.remove(asked, key, false);
    }

    pub(crate) fn unsubscribe(&self, asked: &FilterRequest, key: u64) {
        self.remove(asked, key, true);
    }

    fn remove(&self, asked: &FilterRequest, key: u64, logged_too: bool) {
        let mut subscriptions = self.subscriptions.write();
        if let Some(removed) = subscriptions.remove(asked, key, logged_too) {
            if self.counts_clean {
                subscriptions.count_clean(asked, Some(&removed), None);
            }
            if removed.mailbox.peer().is_none() {
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    pub(crate) fn route(&self, topic: &str) -> Route {
        // Read first: a change meanwhile makes the route look older than it is, never newer.
        let generation = self.generation();
        let mut recipients: Vec<Recipient> = Vec::new();
        let mut seen: HashMap<u64, usize, foldhash::fast::RandomState> = HashMap::default();
        let subscriptions = self.subscriptions.read();
        subscriptions.own.matches(topic, |subscriber, terms| match seen.get(&subscriber.0.key) {
            Some(&index) => {
                if let Some(known) = recipients.get_mut(index) {
                    known.merge(*terms);
                }
            }
            None => {
                seen.insert(subscriber.0.key, recipients.len());
                // While the subscription is there its mailbox is of no later session.
                recipients.push(subscriber.recipient(*terms));
            }
        });
        let shares = subscriptions.shared.matching(topic);
        drop(subscriptions);
        let mut logged: Vec<(u32, Vec<usize>)> = Vec::new();
        for (index, recipient) in recipients.iter().enumerate() {
            let Some(Logged { partition, .. }) = recipient.logged else { continue };
            match logged.iter_mut().find(|(known, _)| *known == partition) {
                Some((_, indices)) => indices.push(index),
                None => logged.push((partition, vec![index])),
            }
        }
        Route { generation, recipients, logged, shares }
    }

    /// A shared subscription by its name, if it has members here.
    pub(crate) fn share(&self, name: &str) -> Option<Arc<Share>> {
        self.subscriptions.read().shared.get(name).cloned()
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
                    share: None,
                });
            }
        });
        found.sort_unstable_by_key(|delivery| (delivery.message.id.counter, delivery.message.id.boot));
        found
    }
}

impl Subscriptions {
    /// `logged_too`: what a session in the log has, too.
    fn remove(&mut self, asked: &FilterRequest, key: u64, logged_too: bool) -> Option<Recipient> {
        match asked.shared() {
            Some(name) if !logged_too && self.shared.is_logged(&name, key) => None,
            Some(name) => self.shared.remove(&name, &asked.filter, key),
            None => {
                let (subscriber, terms) =
                    self.own.remove_if(&asked.filter, &key, |terms| logged_too || !terms.is_logged)?;
                Some(subscriber.recipient(terms))
            }
        }
    }

    /// One subscription has taken another's place.
    fn count_clean(&mut self, asked: &FilterRequest, former: Option<&Recipient>, now: Option<&Recipient>) {
        let is_clean =
            |of: Option<&Recipient>| of.is_some_and(|of| of.logged.is_none() && of.mailbox.peer().is_none());
        let name = asked.to_string();
        match (is_clean(former), is_clean(now)) {
            (false, true) => *self.clean.entry(name.into()).or_default() += 1,
            (true, false) => {
                let Some(count) = self.clean.get_mut(&*name) else { return };
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.clean.remove(&*name);
                }
            }
            _ => {}
        }
    }
}

impl Subscriber {
    fn recipient(&self, terms: Terms) -> Recipient {
        let Terms { subscription_id, qos, no_local, retain_as_published, is_logged } = terms;
        Recipient {
            mailbox: self.0.clone(),
            qos,
            no_local,
            retain_as_published,
            subscription_ids: (subscription_id != 0).then(|| Box::from([subscription_id])),
            logged: self.0.logged().filter(|_| is_logged),
            share: None,
        }
    }
}

impl Borrow<u64> for Subscriber {
    fn borrow(&self) -> &u64 {
        &self.0.key
    }
}

impl PartialEq for Subscriber {
    fn eq(&self, other: &Subscriber) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Subscriber {}

impl PartialOrd for Subscriber {
    fn partial_cmp(&self, other: &Subscriber) -> Option<Comparison> {
        Some(self.cmp(other))
    }
}

impl Ord for Subscriber {
    fn cmp(&self, other: &Subscriber) -> Comparison {
        self.0.key.cmp(&other.0.key)
    }
}

impl Recipient {
    /// With nothing but a mailbox and a QoS.
    #[cfg(test)]
    pub(crate) fn plain(mailbox: Arc<Mailbox>, qos: QoS) -> Recipient {
        Recipient {
            mailbox,
            qos,
            no_local: false,
            retain_as_published: false,
            subscription_ids: None,
            logged: None,
            share: None,
        }
    }

    /// Another subscription of the same session matches, too: one delivery at the higher QoS, with all identifiers.
    fn merge(&mut self, other: Terms) {
        self.qos = self.qos.max(other.qos);
        self.no_local &= other.no_local;
        self.retain_as_published |= other.retain_as_published;
        if other.subscription_id != 0 {
            let ids = self.subscription_ids.iter().flatten().copied();
            self.subscription_ids = Some(ids.chain([other.subscription_id]).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_in_no_log_takes_nothing_from_one_in_the_log_that_has_its_mailbox() {
        let logged = Logged { sid: MessageId { boot: 1, counter: 2 }, partition: 0 };
        let options = Options {
            qos: QoS::AtLeastOnce,
            no_local: false,
            retain_as_published: false,
            subscription_id: None,
        };
        for filter in ["t/#", "$share/g/t/#"] {
            let (router, mailbox) = (Router::new(true), Arc::new(Mailbox::new(7)));
            let asked = FilterRequest::parse(filter).unwrap();
            let subscribe = |is_logged| router.subscribe(&asked, &mailbox, options, is_logged, 10).unwrap();
            let found = || {
                let route = router.route("t/1");
                let shared = route.shares.iter().flat_map(|share| share.members().to_vec());
                let all: Vec<_> = route.recipients.iter().cloned().chain(shared).collect();
                all.iter().map(|recipient| recipient.logged.is_some()).collect::<Vec<_>>()
            };
            subscribe(false);
            assert_eq!(found(), [false], "{filter}");
            mailbox.follow(logged);
            subscribe(true);
            subscribe(false);
            router.unsubscribe_clean(&asked, mailbox.key);
            assert_eq!(found(), [true], "{filter}");
            router.unsubscribe(&asked, mailbox.key);
            subscribe(false);
            router.unsubscribe_clean(&asked, mailbox.key);
            assert!(found().is_empty(), "{filter}");
        }
    }
}
