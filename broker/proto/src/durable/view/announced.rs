//! Filters of sessions that are in no log, as process runs announce them to the nodes that may publish to them.

use std::collections::BTreeMap;

use super::dead::KEPT;
use crate::durable::record::{Boot, Key};

/// See the module.
#[derive(Debug, Default)]
pub struct AllAnnounced(BTreeMap<Boot, BTreeMap<Box<str>, Writing>>);

/// The last writing of one.
#[derive(Debug)]
struct Writing {
    sequence: u64,
    on: bool,
    /// In seconds.
    created: u32,
}

impl AllAnnounced {
    /// True if it counts: no later one was read before.
    pub(super) fn written(
        &mut self,
        boot: Boot,
        filter: &str,
        sequence: u64,
        on: bool,
        created: u32,
    ) -> bool {
        let of = self.0.entry(boot).or_default();
        if of.get(filter).is_some_and(|known| known.sequence > sequence) {
            return false;
        }
        of.insert(filter.into(), Writing { sequence, on, created });
        true
    }

    pub(super) fn deleted(&mut self, boot: Boot, filter: &str) {
        let Some(of) = self.0.get_mut(&boot) else { return };
        of.remove(filter);
        if of.is_empty() {
            self.0.remove(&boot);
        }
    }

    /// The filters that are on, with the process run that has them.
    pub fn on(&self) -> impl Iterator<Item = (Boot, &str)> {
        self.0.iter().flat_map(|(boot, of)| {
            of.iter().filter(|(_, writing)| writing.on).map(|(filter, _)| (*boot, &**filter))
        })
    }

    /// Those of process runs that are over, and what was off for so long that no older one shows any more.
    pub(super) fn dead(&self, now: u32, is_over: impl Fn(Boot) -> bool, most: usize, dead: &mut Vec<Key>) {
        let found = self.0.iter().flat_map(|(boot, of)| {
            let all = is_over(*boot);
            let is_dead =
                move |writing: &Writing| all || (!writing.on && now.saturating_sub(writing.created) >= KEPT);
            let of = of.iter().filter(move |(_, writing)| is_dead(writing));
            of.map(|(filter, _)| Key::Announced { boot: *boot, filter: filter.clone() })
        });
        dead.extend(found.take(most));
    }
}
