//! Process runs, as the log knows them: which live, which are said to be over, which of them does what only one should, and the
//! end of this one.

use std::collections::{BTreeMap, BTreeSet};

use mqtt_proto::{
    durable::record::{Boot, Key, Value},
    message::Millis,
    murmur2,
};
use tokio::sync::watch;

use super::{SessionLog, State};

/// Whether somebody has said that this process run is over.
pub(super) struct End(watch::Sender<bool>);

impl Default for End {
    fn default() -> End {
        End(watch::Sender::new(false))
    }
}

impl SessionLog {
    /// The process runs that are not over: not said to be in every partition.
    pub(crate) fn current_runs(&self) -> Vec<Boot> {
        self.others().into_keys().chain([self.boot]).collect()
    }

    /// The other process runs that may serve devices from this log: with the name of its node, and whether it lets others do so.
    pub(crate) fn others(&self) -> BTreeMap<Boot, (String, bool)> {
        let mut others = BTreeMap::new();
        for partition in 0..self.topic.partitions() {
            self.with(partition, |state| {
                let current = state.view.runs().current().filter(|run| run.boot != self.boot);
                others.extend(current.map(|run| (run.boot, (run.node.to_owned(), run.shared))));
            });
        }
        others
    }

    /// The process runs that may not know that they are over: each has another of its node behind it.
    pub(super) fn replaced(&self) -> BTreeSet<Boot> {
        let mut replaced = BTreeSet::new();
        for partition in 0..self.topic.partitions() {
            self.with(partition, |state| replaced.extend(state.view.runs().replaced()));
        }
        replaced
    }

    /// Says that a process run is over: in each partition, so that who reads it there has read all that it was promised there.
    pub(crate) fn say_down(&self, boot: Boot, now: Millis) {
        for partition in 0..self.topic.partitions() {
            self.append_surely(partition, &Key::Down { boot }, Some(Value::Down), now);
        }
    }

    /// Whether this node is the one, of those that live, that sees to `what`. Two may think so for a moment.
    pub(crate) fn has_duty(&self, what: &str) -> bool {
        !self.shared || self.with(0, |state| self.ranks_first(state, what)) == Some(true)
    }

    pub(super) fn ranks_first(&self, state: &State, what: &str) -> bool {
        let mine = rank(&self.name, what);
        state.view.runs().current().all(|run| rank(run.node, what) <= mine)
    }

    /// A tick or an end was read.
    pub(super) fn notice_own_end(&self, state: &State) {
        if state.view.runs().is_over(self.boot) {
            self.end_here();
        }
    }

    /// This process run has to let its clients go, and to begin anew.
    pub(crate) fn end_here(&self) {
        self.leases.end();
        self.end.0.send_replace(true);
    }

    /// Ready once this process run is over.
    pub(crate) async fn ended(&self) {
        // It never closes before.
        let _ = self.end.0.subscribe().wait_for(|ended| *ended).await;
    }
}

/// Among nodes with one log: who comes first does what any of them may do. The same everywhere.
fn rank(node: &str, what: &str) -> u32 {
    murmur2::murmur2(format!("{node}\0{what}").as_bytes())
}
