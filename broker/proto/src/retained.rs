//! What topics remember: given a filter, finds the retained value of every topic it matches.

use crate::{
    level_tree::LevelTree,
    topic::{Filter, Topic},
};

/// Retained values of type `V` by topic.
#[derive(Debug)]
pub struct RetainedTrie<V> {
    tree: LevelTree<V>,
    len: usize,
}

impl<V> RetainedTrie<V> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a value; the one it replaces.
    pub fn insert(&mut self, topic: &Topic, value: V) -> Option<V> {
        let old = self.tree.upsert(topic.as_str(), |slot| slot.replace(Box::new(value)));
        self.len += usize::from(old.is_none());
        old.map(|old| *old)
    }

    /// Forgets a topic's value; none if it had none.
    pub fn remove(&mut self, topic: &Topic) -> Option<V> {
        let old = self.tree.edit(topic.as_str(), Option::take);
        self.len -= usize::from(old.is_some());
        old.map(|old| *old)
    }

    /// Visits the values of all topics that the filter matches (see [`Filter::matches`]), in no stated order.
    pub fn visit(&self, filter: &Filter, visit: impl FnMut(&V)) {
        self.tree.topics_matching(filter.as_str(), visit);
    }

    /// The number of topics with a value.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<V> Default for RetainedTrie<V> {
    fn default() -> Self {
        RetainedTrie { tree: LevelTree::default(), len: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::test_random::Random;

    #[test]
    fn a_filter_finds_the_retained_topics_that_it_matches() {
        for seed in 1..=40 {
            let mut random = Random::new(seed);
            let mut store = RetainedTrie::new();
            let mut naive: BTreeMap<Topic, u64> = BTreeMap::new();
            for step in 0..600u64 {
                let topic = random.topic();
                if random.below(10) < if step < 400 { 8 } else { 2 } {
                    assert_eq!(store.insert(&topic, step), naive.insert(topic, step));
                } else {
                    assert_eq!(store.remove(&topic), naive.remove(&topic));
                }
                assert_eq!(store.len(), naive.len());
                let filter = random.filter();
                let mut found = Vec::new();
                store.visit(&filter, |value| found.push(*value));
                found.sort();
                let matching = naive.iter().filter(|(topic, _)| filter.matches(topic.as_str()));
                let mut expected: Vec<_> = matching.map(|(_, value)| *value).collect();
                expected.sort();
                assert_eq!(found, expected, "seed {seed}, step {step}, filter {filter}");
            }
            for topic in naive.keys() {
                store.remove(topic);
            }
            assert!(store.is_empty() && store.tree.is_empty(), "nothing stays behind, seed {seed}");
        }
    }
}
