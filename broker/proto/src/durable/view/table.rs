//! A hash table of values that hold their own keys. Each is in a box: a place that is not taken, and up to half of them may
//! be, costs no more than a pointer.

use std::{
    fmt,
    hash::{BuildHasher, Hash},
};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

pub(super) trait Keyed {
    type Key: Hash + Eq + ?Sized;

    fn key(&self) -> &Self::Key;
}

/// See the module.
pub(super) struct Table<V>(HashTable<Box<V>>);

fn hash<K: Hash + ?Sized>(key: &K) -> u64 {
    FixedState::default().hash_one(key)
}

impl<V: Keyed> Table<V> {
    pub(super) fn get(&self, key: &V::Key) -> Option<&V> {
        self.0.find(hash(key), |value| value.key() == key).map(|value| &**value)
    }

    pub(super) fn get_mut(&mut self, key: &V::Key) -> Option<&mut V> {
        self.0.find_mut(hash(key), |value| value.key() == key).map(|value| &mut **value)
    }

    /// What has this key; if nothing has, what `make` makes, which must have it.
    pub(super) fn get_or_insert_with(&mut self, key: &V::Key, make: impl FnOnce() -> V) -> &mut V {
        let entry = self.0.entry(hash(key), |value| value.key() == key, |value| hash(value.key()));
        entry.or_insert_with(|| Box::new(make())).into_mut()
    }

    pub(super) fn remove(&mut self, key: &V::Key) {
        if let Ok(found) = self.0.find_entry(hash(key), |value| value.key() == key) {
            found.remove();
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|value| &**value)
    }
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Table(HashTable::new())
    }
}

impl<V: fmt::Debug> fmt::Debug for Table<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.0).finish()
    }
}
