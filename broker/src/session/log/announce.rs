//! Subscriptions of sessions that are in no log, as far as other nodes must know them: which filters any of them has on this
//! node, and what this node knows of the others.
//!
//! A filter is announced in the log when the first session asks for it, and in force once that was read back: whoever
//! publishes behind a barrier then knows it. When none has it any more it is withdrawn, at leisure.

use std::{collections::HashMap, sync::Arc, time::Duration};

use foldhash::fast::RandomState;
use mqtt_proto::{
    codec::QoS,
    durable::record::{Announced, Boot, Key, Value},
    message::Millis,
    murmur2,
    topic::FilterRequest,
};
use parking_lot::Mutex;

use super::{SessionLog, State};
use crate::{
    log::{AppendSink, Completion, Outcome},
    node::Node,
    outside::Mistake,
    router::Options,
    session::mailbox::Mailbox,
};

/// What this process run has announced, and whom it knows.
#[derive(Default)]
pub(super) struct Announcements {
    own: Mutex<HashMap<Box<str>, Announcement, RandomState>>,
    /// Of each other process run, what routes take for its sessions.
    others: Mutex<HashMap<Boot, Arc<Mailbox>, RandomState>>,
}

struct Announcement {
    sequence: u64,
    is_read_back: bool,
    waiting: Vec<Completion>,
}

/// Passes on that an announcement can't be counted on.
struct Failure {
    node: Arc<Node>,
    filter: Box<str>,
    sequence: u64,
}

impl AppendSink for Failure {
    fn appended(&self, _token: u64, outcome: Outcome) {
        if matches!(outcome, Outcome::Durable(_)) {
            return;
        }
        let failed = {
            let mut own = self.node.sessions.announcements.own.lock();
            // Should it show after all it is withdrawn.
            let is_it = own.get(&self.filter).is_some_and(|one| one.sequence == self.sequence);
            if is_it { own.remove(&self.filter) } else { None }
        };
        for done in failed.into_iter().flat_map(|one| one.waiting) {
            done.sink.appended(done.token, outcome);
        }
    }
}

impl SessionLog {
    /// A session in no log has this subscription on this node from now on. True: all nodes know of such already; else `done` is
    /// told once they do.
    pub(crate) fn announce(&self, node: &Arc<Node>, filter: &str, done: impl FnOnce() -> Completion) -> bool {
        if !self.shared {
            return true;
        }
        let is_hasty = self.outside.makes(Mistake::SubackBeforeAnnouncement);
        let mut own = self.announcements.own.lock();
        if let Some(known) = own.get_mut(filter) {
            let in_force = known.is_read_back || is_hasty;
            if !in_force {
                known.waiting.push(done());
            }
            return in_force;
        }
        let sequence = self.next_sequence();
        let waiting = if is_hasty { Vec::new() } else { vec![done()] };
        own.insert(filter.into(), Announcement { sequence, is_read_back: false, waiting });
        drop(own);
        let (partition, key) = self.announcement(filter);
        let value = Value::Announced(Announced { sequence, on: true });
        let sink = Arc::new(Failure { node: node.clone(), filter: filter.into(), sequence });
        let of = node.clone();
        let write = move || {
            let done = Completion { sink, token: 0 };
            of.sessions.append(partition, &key, Some(value), of.wall(), done);
        };
        if is_hasty {
            self.outside.spawn(async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                write();
            });
        } else {
            write();
        }
        is_hasty
    }

    /// Withdraws what no session in no log has any more on this node.
    pub(super) fn withdraw(&self, node: &Node) {
        let mut own = self.announcements.own.lock();
        let gone = own.extract_if(|filter, one| one.is_read_back && !node.router.has_clean(filter));
        let mut gone: Vec<Box<str>> = gone.map(|(filter, _)| filter).collect();
        // In the same order in every run.
        gone.sort_unstable();
        // Numbered while nobody can announce it again.
        gone.iter().for_each(|filter| self.write_withdrawal(filter, node.wall()));
    }

    fn write_withdrawal(&self, filter: &str, now: Millis) {
        let (partition, key) = self.announcement(filter);
        let value = Announced { sequence: self.next_sequence(), on: false };
        self.append_surely(partition, &key, Some(Value::Announced(value)), now);
    }

    fn announcement(&self, filter: &str) -> (u32, Key) {
        let partition = murmur2::partition(filter.as_bytes(), self.topic.partitions());
        (partition, Key::Announced { boot: self.boot, filter: filter.into() })
    }

    /// An announcement was read.
    pub(super) fn announced(
        &self,
        node: &Node,
        state: &State,
        boot: Boot,
        filter: &str,
        (on, sequence): (bool, u64),
    ) {
        if boot != self.boot {
            if on && !state.view.runs().is_over(boot) {
                self.route_to(node, boot, filter);
            } else {
                self.stop_routing_to(node, boot, filter);
            }
            return;
        }
        let told = {
            let mut own = self.announcements.own.lock();
            match own.get_mut(filter) {
                Some(one) if on && one.sequence <= sequence => {
                    one.is_read_back = true;
                    std::mem::take(&mut one.waiting)
                }
                Some(_) => Vec::new(),
                None => {
                    if on {
                        self.write_withdrawal(filter, node.wall());
                    }
                    Vec::new()
                }
            }
        };
        told.into_iter().for_each(|done| done.sink.appended(done.token, Outcome::Durable(0)));
    }

    /// Process runs may be over: their sessions that are in no log have ended.
    pub(super) fn forget_over(&self, node: &Node, state: &State) {
        let runs = state.view.runs();
        for (boot, filter) in state.view.announced().on().filter(|(boot, _)| runs.is_over(*boot)) {
            self.stop_routing_to(node, boot, filter);
        }
    }

    /// Puts in force what other nodes had announced when this one began.
    pub(super) fn begin_routing(&self, node: &Node, state: &State) {
        let runs = state.view.runs();
        for (boot, filter) in state.view.announced().on().filter(|(boot, _)| !runs.is_over(*boot)) {
            self.route_to(node, boot, filter);
        }
    }

    fn route_to(&self, node: &Node, boot: Boot, filter: &str) {
        let Ok(asked) = FilterRequest::parse(filter) else { return };
        let mailbox = {
            let mut others = self.announcements.others.lock();
            others.entry(boot).or_insert_with(|| node.registry.new_mailbox_of_peer(boot)).clone()
        };
        let options = Options {
            // Each node cuts it down to what each of its sessions was granted.
            qos: QoS::ExactlyOnce,
            no_local: false,
            retain_as_published: true,
            subscription_id: None,
        };
        // Its own node has looked at the limit.
        let _ = node.router.subscribe(&asked, &mailbox, options, false, u64::MAX);
    }

    fn stop_routing_to(&self, node: &Node, boot: Boot, filter: &str) {
        let known = self.announcements.others.lock().get(&boot).cloned();
        if let (Some(mailbox), Ok(asked)) = (known, FilterRequest::parse(filter)) {
            node.router.unsubscribe(&asked, mailbox.key);
        }
    }
}
