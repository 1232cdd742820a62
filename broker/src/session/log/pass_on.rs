//! Gives what waits in the log for one member of a shared subscription to another: while its device is away, to one that is
//! there; once it is over, to anybody. It is durable there before it goes here: so it may come twice, and is never lost. QoS 2
//! stays where it is (MQTT 5 section 4.8.2).

use std::{sync::Arc, task::Waker, time::Duration};

use mqtt_proto::{
    durable::{
        record::{Offset, Why},
        view::Entry,
    },
    message::{Delivery, Message, MessageId},
};
use tokio::time::{Instant, sleep, timeout_at};

use super::{SessionLog, State, delivery};
use crate::{
    limits::notice,
    log::{Completion, Outcome},
    node::Node,
    router::{Logged, Recipient, fanout::Fanout, shared::Share},
    session::groups::{Among, Given, Handing},
};

/// Until what is passed on is read, and durable with another member, where nobody waits for that.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Until what could not be read is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A member of this shared subscription has come: it gets what waits for those that are away.
pub(crate) fn gather(node: &Arc<Node>, name: &str) {
    let Some(share) = node.router.share(name) else { return };
    let log = &node.sessions;
    for member in share.members() {
        let Some(from) = member.logged.filter(|_| !member.mailbox.is_reachable()) else { continue };
        let of_it = |entry: &Entry| entry.group.as_deref() == Some(name);
        log.with(from.partition, |state| log.pass_on(node, state, from, of_it));
    }
}

/// What another member shall have.
struct Passing {
    entries: Vec<(Offset, Entry)>,
    /// The mailbox key of the member that it waits for.
    without: u64,
}

impl SessionLog {
    /// Gives what is `wanted` of what waits for this member to others that are there, if there are any.
    pub(super) fn pass_on(
        &self,
        node: &Arc<Node>,
        state: &mut State,
        from: Logged,
        wanted: impl Fn(&Entry) -> bool,
    ) {
        let without = state.mailboxes.get(&from.sid).map_or(0, |mailbox| mailbox.key);
        let could_have = |member: &Recipient| {
            member.mailbox.key != without && member.logged.is_some() && member.mailbox.is_reachable()
        };
        let is_taken =
            |entry: &Entry| share_of(node, entry).is_some_and(|share| share.members().iter().any(could_have));
        let passing = take(state, from.sid, |entry| wanted(entry) && is_taken(entry));
        spawn(node, from, passing, Among::LoggedAndThere);
    }

    /// A member that is away is granted some groups no more: others get what waits for it there, as if its session had ended.
    pub(super) fn leave_lost_shares(&self, node: &Arc<Node>, state: &mut State, from: Logged) {
        let Some(mailbox) = state.mailboxes.get(&from.sid).filter(|mailbox| !mailbox.is_reachable()) else {
            return;
        };
        // Every node hears of it.
        let is_mine = |(client, _): (&Arc<str>, _)| !self.shared || self.ranks_first(state, client);
        if !state.view.session(from.sid).is_some_and(is_mine) {
            return;
        }
        let key = mailbox.key;
        let is_lost = |entry: &Entry| share_of(node, entry).is_some_and(|share| share.member(key).is_none());
        let passing = take(state, from.sid, is_lost);
        spawn(node, from, passing, Among::All);
    }

    /// The same of messages that a member has no more use for, and to anybody.
    pub(crate) fn pass_on_these(&self, node: &Arc<Node>, from: Logged, these: &[Delivery]) {
        let is_one = |entry: &Entry| these.iter().any(|delivery| delivery.message.id == entry.mid);
        if let Some(passing) = self.with(from.partition, |state| take(state, from.sid, is_one)) {
            spawn(node, from, passing, Among::All);
        }
    }

    /// Gives to others what members were chosen for whose sessions are over, in one partition.
    pub(super) fn pass_on_left(&self, node: &Arc<Node>, partition: u32) {
        self.with(partition, |state| {
            let mut over: Vec<MessageId> = state.view.with_left().collect();
            // In the same order in every run.
            over.sort_unstable();
            for sid in over {
                let passing = take(state, sid, |_| true);
                spawn(node, Logged { sid, partition }, passing, Among::All);
            }
        });
    }

    fn is_over(&self, of: Logged) -> bool {
        self.with(of.partition, |state| state.view.session(of.sid).is_none()) == Some(true)
    }

    /// Whether somebody is to have a message, or has it, by this name.
    pub(crate) fn knows(&self, mid: MessageId) -> bool {
        self.partitions.iter().any(|partition| partition.state.lock().view.knows(mid))
    }
}

/// The shared subscription for which a message waits, if it has members here.
fn share_of(node: &Node, entry: &Entry) -> Option<Arc<Share>> {
    node.router.share(entry.group.as_deref()?)
}

/// Marks what is `wanted`, so that it is passed on once.
fn take(state: &mut State, sid: MessageId, wanted: impl Fn(&Entry) -> bool) -> Passing {
    let State { view, mailboxes, dropping, passing, .. } = state;
    let without = mailboxes.get(&sid).map_or(0, |mailbox| mailbox.key);
    let queue = view.remains(sid).into_iter().flat_map(|session| session.queue());
    let is_free =
        |entry: &Entry| !dropping.contains(&(sid, entry.mid)) && !passing.contains(&(sid, entry.mid));
    let entries = queue.filter(|(_, entry)| entry.moves() && is_free(entry) && wanted(entry));
    let entries: Vec<_> = entries.map(|(order, entry)| (*order, entry.clone())).collect();
    passing.extend(entries.iter().map(|(_, entry)| (sid, entry.mid)));
    Passing { entries, without }
}

fn spawn(node: &Arc<Node>, from: Logged, passing: Passing, among: Among) {
    if !passing.entries.is_empty() {
        let of = node.clone();
        node.outside.spawn(async move {
            if !pass(&of, from, passing, among).await {
                notice!(
                    of,
                    pass_on,
                    "messages of a shared subscription could not be given to another member in time: they wait where they were"
                );
            }
        });
    }
}

/// False: the log did not give or take in time what another member should have. It stays where it was.
async fn pass(node: &Arc<Node>, from: Logged, passing: Passing, among: Among) -> bool {
    let log = &node.sessions;
    let until = Instant::now() + PATIENCE;
    let Passing { entries, without } = passing;
    let read = async {
        node.log.wait_for_room().await;
        // As for a publish: who left the group was told so, perhaps by another node.
        log.freshen().await;
        log.bodies(from.partition, from.sid, &entries).await
    };
    let Ok(Ok(mut bodies)) = timeout_at(until, read).await else {
        keep_unread(node, from, entries);
        return false;
    };
    let mut fanout = Fanout::default();
    let mut given = Vec::new();
    for (_, entry) in entries {
        let (done, outcome) = Completion::awaited();
        let message = bodies.remove(&entry.mid);
        let to = message.as_ref().map_or(Given::Nobody, |message| {
            give(node, &entry, message, (without, among), &mut fanout, done)
        });
        given.push((entry, message, to, outcome));
    }
    fanout.wake();
    let mut all = true;
    for (entry, message, to, outcome) in given {
        let is_there = match to {
            Given::Nobody => None,
            Given::Queued(_) => Some(true),
            Given::Appended(_) => {
                Some(matches!(timeout_at(until, outcome).await, Ok(Ok(Outcome::Durable(_)))))
            }
        };
        match is_there {
            Some(true) => log.done(from, entry.mid, Why::Moved, node.wall()),
            // There is no member any more.
            None if among == Among::All && log.is_over(from) => {
                log.done(from, entry.mid, Why::Dropped, node.wall())
            }
            _ => {
                all &= is_there.is_none();
                keep(node, from, &entry, message);
            }
        }
    }
    all
}

/// It stays where it was; its device, should it have come meanwhile, has not been sent it.
fn keep(node: &Node, from: Logged, entry: &Entry, message: Option<Arc<Message>>) {
    let log = &node.sessions;
    let mut wake = Vec::new();
    log.with(from.partition, |state| {
        state.passing.remove(&(from.sid, entry.mid));
        let mailbox = state.mailboxes.get(&from.sid).filter(|mailbox| mailbox.is_online());
        if let (Some(mailbox), Some(message)) = (mailbox, message) {
            mailbox.post_logged(delivery(entry, message), node.settings().caps(), &mut wake);
        }
    });
    wake.into_iter().for_each(Waker::wake);
}

/// The same of what could not be read so far: should its device have come meanwhile, it gets that once it can be.
fn keep_unread(node: &Arc<Node>, from: Logged, entries: Vec<(Offset, Entry)>) {
    let has_come = node.sessions.with(from.partition, |state| {
        let has_come = state.mailboxes.get(&from.sid).is_some_and(|mailbox| mailbox.is_online());
        if !has_come {
            for (_, entry) in &entries {
                state.passing.remove(&(from.sid, entry.mid));
            }
        }
        has_come
    });
    if has_come != Some(true) {
        return;
    }
    let of = node.clone();
    node.outside.spawn(async move {
        loop {
            sleep(RETRY).await;
            if let Ok(mut bodies) = of.sessions.bodies(from.partition, from.sid, &entries).await {
                entries.iter().for_each(|(_, entry)| keep(&of, from, entry, bodies.remove(&entry.mid)));
                return;
            }
        }
    });
}

fn give(
    node: &Node,
    entry: &Entry,
    message: &Arc<Message>,
    (without, among): (u64, Among),
    fanout: &mut Fanout,
    done: Completion,
) -> Given {
    let Some(share) = share_of(node, entry) else { return Given::Nobody };
    // A name of its own: it may come back to this member, which has done with it under the former.
    let handing = Handing { by: message.topic(), mid: node.next_message_id(), without, among };
    node.hand(&share, message, handing, fanout, || done)
}
