//! What was applied last, and what the API server made of it: so that what is as it should be need not be written.
//!
//! Promises: an object is written again as soon as something else is wanted, or as somebody else has changed or deleted
//! it and the watch has told so.

use std::collections::HashMap;

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
    /// A change may have been missed.
    doubted: bool,
}

/// What is known of an object that shall be as it was applied last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is so, at this version.
    AsApplied(String),
    /// It is so if it still has this version.
    AsAppliedAt(String),
    /// It has to be applied.
    Otherwise,
}

impl Ledger {
    pub fn known(&self, item: &Item, wanted: u64) -> Known {
        match self.entries.lock().get(item).filter(|entry| entry.wanted == wanted) {
            Some(Entry { version, doubted: false, .. }) => Known::AsApplied(version.clone()),
            Some(Entry { version, doubted: true, .. }) => Known::AsAppliedAt(version.clone()),
            None => Known::Otherwise,
        }
    }

    /// It is as wanted at this version.
    pub fn applied(&self, item: Item, wanted: u64, version: String) {
        self.entries.lock().insert(item, Entry { wanted, version, doubted: false });
    }

    /// A watch has seen the object at this version; none: it is gone.
    pub fn seen(&self, item: &Item, version: Option<&str>) {
        let mut entries = self.entries.lock();
        if entries.get(item).is_some_and(|entry| Some(entry.version.as_str()) != version) {
            entries.remove(item);
        }
    }

    /// Something may have been missed, or is not watched: it is looked at before it counts again.
    pub fn doubt(&self, which: impl Fn(&Item) -> bool) {
        let mut entries = self.entries.lock();
        entries.iter_mut().filter(|(item, _)| which(item)).for_each(|(_, entry)| entry.doubted = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_as_applied_is_left_alone_until_it_changes_or_something_else_is_wanted() {
        let (ledger, item) = (Ledger::default(), Item::new("Service", "plant", "a"));
        let check = |what: &str, wanted: u64, expected: Known| {
            assert_eq!(ledger.known(&item, wanted), expected, "{what}");
        };
        let as_applied = || Known::AsApplied("7".into());
        check("never applied", 1, Known::Otherwise);
        let applied = || ledger.applied(item.clone(), 1, "7".into());
        applied();
        check("applied", 1, as_applied());
        check("something else is wanted", 2, Known::Otherwise);
        ledger.seen(&item, Some("7"));
        check("the watch saw our own write", 1, as_applied());
        ledger.seen(&item, Some("8"));
        check("somebody else has changed it", 1, Known::Otherwise);
        applied();
        ledger.seen(&item, None);
        check("it was deleted", 1, Known::Otherwise);
        applied();
        ledger.doubt(|other| other.kind == "Secret");
        check("others are doubted", 1, as_applied());
        ledger.doubt(|other| other.namespace == "plant");
        check("a change may have been missed", 1, Known::AsAppliedAt("7".into()));
        ledger.seen(&item, Some("7"));
        check("what a watch has seen may be old", 1, Known::AsAppliedAt("7".into()));
        applied();
        check("it was looked at", 1, as_applied());
    }
}
