//! What was applied last, and what the API server made of it: so that what is as it should be need not be written.
//!
//! Promises: an object is written again as soon as something else is wanted, or as somebody else has changed or deleted
//! it and the watch has told so.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use parking_lot::Mutex;
use serde_json::Value;

/// One object of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Item {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

impl Item {
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.into(), namespace: namespace.into(), name: name.into() }
    }

    /// The object's; empty parts where it has none.
    pub fn of(object: &Value) -> Self {
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        Self::new(text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
    }
}

#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<HashMap<Item, Entry>>,
}

#[derive(Debug)]
struct Entry {
    wanted: u64,
    /// The resourceVersion that the API server answered.
    version: String,
}

/// A digest of what is wanted.
pub fn digest(object: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.to_string().hash(&mut hasher);
    hasher.finish()
}

impl Ledger {
    /// The version that is in force, if nothing need be written.
    pub fn up_to_date(&self, item: &Item, wanted: u64) -> Option<String> {
        let entries = self.entries.lock();
        entries.get(item).filter(|entry| entry.wanted == wanted).map(|entry| entry.version.clone())
    }

    pub fn applied(&self, item: Item, wanted: u64, version: String) {
        self.entries.lock().insert(item, Entry { wanted, version });
    }

    /// A watch has seen the object at this version; none: it is gone.
    pub fn seen(&self, item: &Item, version: Option<&str>) {
        let mut entries = self.entries.lock();
        if entries.get(item).is_some_and(|entry| Some(entry.version.as_str()) != version) {
            entries.remove(item);
        }
    }

    /// Whatever was missed, or is not watched, is written again.
    pub fn forget(&self, which: impl Fn(&Item) -> bool) {
        self.entries.lock().retain(|item, _| !which(item));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_as_applied_is_left_alone_until_it_changes_or_something_else_is_wanted() {
        let (ledger, item) = (Ledger::default(), Item::new("Service", "plant", "a"));
        assert_eq!(ledger.up_to_date(&item, 1), None, "never applied");
        let applied = || ledger.applied(item.clone(), 1, "7".into());
        applied();
        assert_eq!(ledger.up_to_date(&item, 1), Some("7".into()));
        assert_eq!(ledger.up_to_date(&item, 2), None, "something else is wanted");
        ledger.seen(&item, Some("7"));
        assert_eq!(ledger.up_to_date(&item, 1), Some("7".into()), "the watch saw our own write");
        ledger.seen(&item, Some("8"));
        assert_eq!(ledger.up_to_date(&item, 1), None, "somebody else has changed it");
        applied();
        ledger.seen(&item, None);
        assert_eq!(ledger.up_to_date(&item, 1), None, "it was deleted");
        applied();
        ledger.forget(|other| other.kind == "Secret");
        assert_eq!(ledger.up_to_date(&item, 1), Some("7".into()));
        ledger.forget(|other| other.namespace == "plant");
        assert_eq!(ledger.up_to_date(&item, 1), None, "forgotten");
    }
}
