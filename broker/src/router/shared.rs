//! Shared subscriptions (MQTT 5 section 4.8.2): the groups of this node, and whose turn it is.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use foldhash::fast::RandomState;
use mqtt_broker_api::config::Sharing;
use mqtt_proto::{message::MessageId, topic::Filter, trie::Trie};

use super::Recipient;

/// All shared subscriptions, found by topic.
#[derive(Default)]
pub(super) struct Shares {
    filters: Trie<Arc<str>, ()>,
    by_name: HashMap<Arc<str>, Arc<Share>, RandomState>,
}

/// One shared subscription: all who ask for the same group and filter. Whoever comes or goes makes it another one, which
/// goes on where this stood.
#[derive(Debug)]
pub(crate) struct Share {
    /// As its members ask for it: `$share/GROUP/FILTER`.
    pub(crate) name: Arc<str>,
    /// In the order of their mailboxes' keys.
    members: Vec<Recipient>,
    turn: Arc<Turn>,
}

#[derive(Debug, Default)]
struct Turn {
    next: AtomicUsize,
    /// The key of the mailbox that got the last message, where members are stuck to.
    last: AtomicU64,
}

impl Shares {
    /// Adds a member, or replaces it, which is returned.
    pub(super) fn insert(&mut self, name: &str, filter: &Filter, recipient: Recipient) -> Option<Recipient> {
        let (name, turn, mut members) = match self.by_name.get(name) {
            Some(share) => (share.name.clone(), share.turn.clone(), share.members.clone()),
            None => (Arc::from(name), Arc::default(), Vec::new()),
        };
        let key = recipient.mailbox.key;
        let recipient = Recipient { share: Some(name.clone()), ..recipient };
        let former = match members.binary_search_by_key(&key, |member| member.mailbox.key) {
            Ok(index) => members.get_mut(index).map(|known| std::mem::replace(known, recipient)),
            Err(index) => {
                members.insert(index, recipient);
                None
            }
        };
        self.filters.insert(filter, name.clone(), ());
        self.by_name.insert(name.clone(), Arc::new(Share { name, members, turn }));
        former
    }

    /// Returns it if it was a member.
    pub(super) fn remove(&mut self, name: &str, filter: &Filter, key: u64) -> Option<Recipient> {
        let share = self.by_name.get(name)?;
        let removed = share.member(key)?.clone();
        let (name, turn) = (share.name.clone(), share.turn.clone());
        let members: Vec<Recipient> =
            share.members.iter().filter(|member| member.mailbox.key != key).cloned().collect();
        if members.is_empty() {
            self.filters.remove(filter, &name);
            self.by_name.remove(&name);
        } else {
            self.by_name.insert(name.clone(), Arc::new(Share { name, members, turn }));
        }
        Some(removed)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Arc<Share>> {
        self.by_name.get(name)
    }

    /// Whether the member with this mailbox key is a session in the log.
    pub(super) fn is_logged(&self, name: &str, key: u64) -> bool {
        self.get(name).and_then(|share| share.member(key)).is_some_and(|member| member.logged.is_some())
    }

    pub(super) fn matching(&self, topic: &str) -> Vec<Arc<Share>> {
        let mut found = Vec::new();
        if !self.filters.is_empty() {
            self.filters.matches(topic, |name, ()| found.extend(self.by_name.get(name).cloned()));
        }
        found
    }
}

impl Share {
    pub(crate) fn members(&self) -> &[Recipient] {
        &self.members
    }

    pub(crate) fn member(&self, key: u64) -> Option<&Recipient> {
        let index = self.members.binary_search_by_key(&key, |member| member.mailbox.key).ok()?;
        self.members.get(index)
    }

    /// The member whose turn it is, of those that `fit`. `by` is the client that published.
    pub(crate) fn choose(
        &self,
        sharing: Sharing,
        by: &str,
        fit: impl Fn(&Recipient) -> bool,
    ) -> Option<&Recipient> {
        if self.members.is_empty() {
            return None;
        }
        if sharing == Sharing::Sticky
            && let Some(last) = self.member(self.turn.last.load(Ordering::Relaxed))
            && fit(last)
        {
            return Some(last);
        }
        let takes_turns = sharing != Sharing::HashClientId;
        let start = match takes_turns {
            true => self.turn.next.fetch_add(1, Ordering::Relaxed),
            false => usize::try_from(mixed(0, by.as_bytes())).unwrap_or_default(),
        };
        let (before, from) = self.members.split_at(start % self.members.len());
        let (passed, chosen) = from.iter().chain(before).enumerate().find(|(_, member)| fit(member))?;
        if takes_turns {
            // Whoever is passed over has had its turn: else the one behind it would have two.
            self.turn.next.fetch_add(passed, Ordering::Relaxed);
            self.turn.last.store(chosen.mailbox.key, Ordering::Relaxed);
        }
        Some(chosen)
    }

    /// See [`id_for`].
    pub(crate) fn id_of(&self, message: MessageId) -> MessageId {
        id_for(&self.name, message)
    }
}

/// Of counters that follow from others, and of no others.
const FOLLOWS: u64 = 1 << 63;

/// What a message is called in the session log for this group: its members may get it for themselves, too. The same in every
/// process run; and one that is called so already, as another node passed it on, keeps its name.
pub(crate) fn id_for(group: &str, message: MessageId) -> MessageId {
    if message.counter & FOLLOWS != 0 {
        return message;
    }
    let group = group.as_bytes();
    MessageId { boot: message.boot ^ mixed(1, group), counter: (message.counter ^ mixed(2, group)) | FOLLOWS }
}

/// FNV-1a, its bits mixed once more as SplitMix64 does: the same for ever.
fn mixed(seed: u64, bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::mailbox::Mailbox;
    use mqtt_proto::codec::QoS;

    fn share(members: u64, online: &[u64]) -> Arc<Share> {
        let mut shares = Shares::default();
        let filter = Filter::parse("t").unwrap();
        for key in 1..=members {
            let mailbox = Arc::new(Mailbox::new(key));
            if online.contains(&key) {
                mailbox.go_online();
            }
            let recipient = Recipient::plain(mailbox, QoS::AtLeastOnce);
            assert!(shares.insert("$share/g/t", &filter, recipient).is_none());
        }
        let found = shares.matching("t");
        assert_eq!(found.len(), 1);
        found[0].clone()
    }

    /// Whom messages of these publishers go to, one after the other.
    #[track_caller]
    fn check(sharing: Sharing, online: &[u64], by: &[&str], expected: &[u64]) {
        let share = share(4, online);
        let chosen = by.iter().map(|by| share.choose(sharing, by, |member| member.mailbox.is_online()));
        let keys: Vec<u64> = chosen.map(|member| member.map_or(0, |member| member.mailbox.key)).collect();
        assert_eq!(keys, expected, "{sharing:?} {online:?}");
    }

    #[test]
    fn a_message_goes_to_the_member_whose_turn_it_is() {
        let same = ["p"; 6];
        check(Sharing::RoundRobin, &[1, 2, 3, 4], &same, &[1, 2, 3, 4, 1, 2]);
        // Who is away is passed over, and nobody has more than its share for that.
        check(Sharing::RoundRobin, &[1, 4], &same, &[1, 4, 1, 4, 1, 4]);
        check(Sharing::RoundRobin, &[], &same, &[0; 6]);
        check(Sharing::Sticky, &[2, 3], &same, &[2; 6]);
        check(Sharing::HashClientId, &[1, 2, 3, 4], &["p", "s", "t", "p", "s"], &[2, 1, 3, 2, 1]);
    }

    #[test]
    fn a_message_has_one_name_for_a_group_however_often_it_is_asked_for() {
        let id = MessageId { boot: u64::MAX, counter: 7 };
        let names = ["$share/g/a", "$share/h/a"].map(|group| id_for(group, id));
        assert!(names[0] != names[1] && names[0] != id);
        assert_eq!(id_for("$share/g/a", names[0]), names[0]);
    }

    #[test]
    fn members_stick_to_one_until_it_goes() {
        let share = share(3, &[1, 2, 3]);
        let choose = |gone: u64| share.choose(Sharing::Sticky, "", |member| member.mailbox.key != gone);
        let keys: Vec<u64> = [0, 0, 1, 0, 0].map(|gone| choose(gone).unwrap().mailbox.key).into();
        assert_eq!(keys, [1, 1, 2, 2, 2]);
    }

    #[test]
    fn a_group_ends_with_its_last_member_and_groups_are_told_apart_by_filter() {
        let mut shares = Shares::default();
        let (all, one) = (Filter::parse("a/#").unwrap(), Filter::parse("a/b").unwrap());
        let member = share(1, &[]).members()[0].clone();
        assert!(shares.insert("$share/g/a/#", &all, member.clone()).is_none());
        assert!(shares.insert("$share/g/a/#", &all, member.clone()).is_some());
        assert!(shares.insert("$share/g/a/b", &one, member).is_none());
        let names = |shares: &Shares| {
            let mut names: Vec<_> =
                shares.matching("a/b").iter().map(|share| share.name.to_string()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&shares), ["$share/g/a/#", "$share/g/a/b"]);
        assert!(shares.remove("$share/g/a/#", &all, 1).is_some());
        assert!(shares.remove("$share/g/a/#", &all, 1).is_none());
        assert_eq!(names(&shares), ["$share/g/a/b"]);
        assert!(shares.remove("$share/g/a/b", &one, 1).is_some());
        assert!(shares.filters.is_empty() && shares.by_name.is_empty());
    }
}
