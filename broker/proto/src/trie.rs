//! Who subscribes to what: given a topic, finds the subscribers of every filter that matches it, in a time
//! that depends on the topic's levels and on what matches, hardly on how many subscriptions there are.

use std::{borrow::Borrow, collections::BTreeMap, mem};

use crate::{level_tree::LevelTree, topic::Filter};

/// Subscriptions: for each filter, values of type `V` by subscriber `K`.
#[derive(Debug)]
pub struct Trie<K, V> {
    tree: LevelTree<Subscribers<K, V>>,
    len: usize,
}

impl<K: Ord, V> Trie<K, V> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a subscription, or replaces the subscriber's value under that filter and returns the old one.
    pub fn insert(&mut self, filter: &Filter, key: K, value: V) -> Option<V> {
        let old = self.tree.upsert(filter.as_str(), |slot| match slot {
            Some(subscribers) => subscribers.insert(key, value),
            None => {
                *slot = Some(Box::new(Subscribers::One(key, value)));
                None
            }
        });
        self.len += usize::from(old.is_none());
        old
    }

    /// Ends one subscription and returns it, or nothing if there was no such subscription.
    pub fn remove<Q: Ord>(&mut self, filter: &Filter, key: &Q) -> Option<(K, V)>
    where
        K: Borrow<Q>,
    {
        self.remove_if(filter, key, |_| true)
    }

    /// The same for one whose value is such.
    pub fn remove_if<Q: Ord>(
        &mut self,
        filter: &Filter,
        key: &Q,
        is_such: impl Fn(&V) -> bool,
    ) -> Option<(K, V)>
    where
        K: Borrow<Q>,
    {
        let removed = self.tree.edit(filter.as_str(), |slot| match slot.as_deref_mut()? {
            Subscribers::One(own, value) if Borrow::<Q>::borrow(own) != key || !is_such(value) => None,
            Subscribers::One(..) => match slot.take().map(|subscribers| *subscribers) {
                Some(Subscribers::One(key, value)) => Some((key, value)),
                _ => None,
            },
            Subscribers::Many(map) => {
                map.get(key).filter(|value| is_such(value))?;
                let removed = map.remove_entry(key);
                if map.len() == 1
                    && let Some((key, value)) = map.pop_first()
                {
                    *slot = Some(Box::new(Subscribers::One(key, value)));
                }
                removed
            }
        });
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Visits every subscription whose filter matches the topic name (see [`Filter::matches`]), one with
    /// overlapping filters once for each. Subscribers of one filter come in the order of their keys.
    pub fn matches(&self, topic: &str, mut visit: impl FnMut(&K, &V)) {
        self.tree.filters_matching(topic, |subscribers| match subscribers {
            Subscribers::One(key, value) => visit(key, value),
            Subscribers::Many(map) => map.iter().for_each(|(key, value)| visit(key, value)),
        });
    }

    /// The number of subscriptions: pairs of filter and subscriber.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<K, V> Default for Trie<K, V> {
    fn default() -> Self {
        Trie { tree: LevelTree::default(), len: 0 }
    }
}

/// Those of one filter: mostly one. The map is ordered so that a run with the same input visits in the same
/// order, which a simulation needs to be replayed, and so that it shrinks by itself. It is boxed so that the one
/// has no larger place than it needs.
#[derive(Debug)]
#[expect(clippy::box_collection, reason = "see above")]
enum Subscribers<K, V> {
    One(K, V),
    Many(Box<BTreeMap<K, V>>),
}

impl<K: Ord, V> Subscribers<K, V> {
    fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self {
            Subscribers::One(own, old) if *own == key => Some(mem::replace(old, value)),
            Subscribers::Many(map) => map.insert(key, value),
            Subscribers::One(..) => {
                let map = Box::new(BTreeMap::from([(key, value)]));
                if let Subscribers::One(own, old) = mem::replace(self, Subscribers::Many(map)) {
                    self.insert(own, old);
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::test_random::Random;

    #[test]
    fn the_trie_finds_what_each_filter_alone_would_match() {
        for seed in 1..=40 {
            let mut random = Random::new(seed);
            let mut trie = Trie::new();
            let mut naive: BTreeMap<(Filter, u32), u64> = BTreeMap::new();
            for step in 0..600u64 {
                // First it grows, then it shrinks to nothing.
                let grow = random.below(10) < if step < 400 { 8 } else { 2 };
                let (filter, key) = (random.filter(), random.below(4) as u32);
                if grow {
                    let old = naive.insert((filter.clone(), key), step);
                    assert_eq!(trie.insert(&filter, key, step), old);
                } else {
                    // Half of the removals name something that is there.
                    let (filter, key) = match naive.keys().nth(random.below(2 * naive.len().max(1))) {
                        Some((filter, key)) => (filter.clone(), *key),
                        None => (filter, key),
                    };
                    let removed = trie.remove(&filter, &key).map(|(_, value)| value);
                    assert_eq!(removed, naive.remove(&(filter, key)));
                }
                assert_eq!(trie.len(), naive.len());
                let topic = random.topic();
                let mut found = Vec::new();
                trie.matches(topic.as_str(), |key, value| found.push((*key, *value)));
                found.sort();
                let matching = naive.iter().filter(|((filter, _), _)| filter.matches(topic.as_str()));
                let mut expected: Vec<_> = matching.map(|((_, key), value)| (*key, *value)).collect();
                expected.sort();
                assert_eq!(found, expected, "seed {seed}, step {step}, topic {topic}");
            }
            for (filter, key) in naive.keys() {
                trie.remove(filter, key);
            }
            assert!(trie.is_empty() && trie.tree.is_empty(), "nothing stays behind, seed {seed}");
        }
    }

    #[test]
    fn a_filter_with_many_subscribers_visits_each_in_order_and_shrinks_again() {
        let mut trie = Trie::new();
        let all = Filter::parse("all/+").unwrap();
        for key in (0..100_000u32).rev() {
            assert_eq!(trie.insert(&all, key, key), None);
        }
        let mut seen = Vec::new();
        trie.matches("all/x", |key, _| seen.push(*key));
        assert!(seen.iter().copied().eq(0..100_000));
        for key in 1..100_000 {
            assert_eq!(trie.remove(&all, &key), Some((key, key)));
        }
        let mut seen = BTreeSet::new();
        trie.matches("all/x", |key, _| assert!(seen.insert(*key)));
        assert_eq!((seen, trie.len()), (BTreeSet::from([0]), 1));
        assert_eq!(trie.remove(&all, &0), Some((0, 0)));
        assert!(trie.tree.is_empty());
    }

    #[test]
    fn a_topic_of_32_thousand_levels_is_matched_without_deep_recursion() {
        let mut trie = Trie::new();
        for (key, filter) in ["#", "+/+/#", "/+/x", "//"].iter().enumerate() {
            trie.insert(&Filter::parse(filter).unwrap(), key, ());
        }
        let mut found = Vec::new();
        trie.matches(&"/".repeat(65_535), |key, ()| found.push(*key));
        found.sort();
        assert_eq!(found, [0, 1]);
    }
}
