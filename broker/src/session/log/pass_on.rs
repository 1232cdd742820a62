//! Gives what waits in the log for one member of a shared subscription to another: while its device is away, to one that is
//! there; before it ends, to anybody. It is durable there before it goes here: so it may come twice, and is never lost. QoS 2
//! stays where it is (MQTT 5 section 4.8.2).

use std::{sync::Arc, task::Waker};

use mqtt_proto::{
    codec::QoS,
    durable::{
        record::{Offset, Why},
        view::Entry,
    },
    message::{Delivery, Message, MessageId},
};

use super::{SessionLog, State, delivery, follow::Taken};
use crate::{
    log::{Completion, Outcome},
    node::Node,
    router::{Logged, Recipient, fanout::Fanout, shared::Share},
    session::groups::{Among, Given, Handing},
};

/// A member of this shared subscription has come: it gets what waits for those that are away.
pub(crate) fn gather(node: &Arc<Node>, name: &str) {
    let Some(share) = node.router.share(name) else { return };
    let log = &node.sessions;
    for member in share.members() {
        let Some(from) = member.logged.filter(|_| !member.mailbox.is_online()) else { continue };
        let of_it = |entry: &Entry| entry.group.as_deref() == Some(name);
        log.with(from.partition, |state| log.pass_on(node, state, from, of_it));
    }
}

/// A session is about to end: others get what waits for it, whether they are there or not.
pub(crate) async fn pass_on_all(node: &Arc<Node>, client: &str, sid: MessageId) {
    let log = &node.sessions;
    let from = log.logged(client, sid);
    let take = |state: &mut State| take(state, sid, |_| true);
    if let Some(passing) = log.with(from.partition, take).filter(|passing| !passing.entries.is_empty()) {
        pass(node, from, passing, Among::All).await;
        log.with(from.partition, |state| state.passing.retain(|(of, _)| *of != sid));
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
            member.mailbox.key != without && member.logged.is_some() && member.mailbox.is_online()
        };
        let is_taken =
            |entry: &Entry| share_of(node, entry).is_some_and(|share| share.members().iter().any(could_have));
        let passing = take(state, from.sid, |entry| wanted(entry) && is_taken(entry));
        spawn(node, from, passing, Among::LoggedAndThere);
    }

    /// A member that is away is granted some groups no more.
    pub(super) fn leave_lost_shares(&self, node: &Arc<Node>, state: &mut State, from: Logged) {
        let Some(mailbox) = state.mailboxes.get(&from.sid).filter(|mailbox| !mailbox.is_online()) else {
            return;
        };
        let key = mailbox.key;
        let is_lost = |entry: &Entry| share_of(node, entry).is_some_and(|share| share.member(key).is_none());
        self.pass_on(node, state, from, is_lost);
    }

    /// The same of messages that a member has no more use for, and to anybody.
    pub(crate) fn pass_on_these(&self, node: &Arc<Node>, from: Logged, these: &[Delivery]) {
        let is_one = |entry: &Entry| these.iter().any(|delivery| delivery.message.id == entry.mid);
        if let Some(passing) = self.with(from.partition, |state| take(state, from.sid, is_one)) {
            spawn(node, from, passing, Among::All);
        }
    }

    /// A message for a member whose session ended before it was read back: it was chosen in vain.
    pub(super) fn pass_on_from_nobody(&self, node: &Node, state: &State, record: &mut Taken<'_>) {
        let Some((group, recipient)) = record.group() else { return };
        if recipient.qos != QoS::AtLeastOnce || state.view.session(recipient.sid).is_some() {
            return;
        }
        let (qos, retain, share) = (recipient.qos, recipient.retain, Some(Arc::from(group)));
        let Some(message) = record.message() else { return };
        node.hand_on([Delivery { message, qos, retain, subscription_ids: None, share }], 0);
    }

    /// Whether a message is known, by this name.
    pub(crate) fn knows(&self, mid: MessageId) -> bool {
        self.partitions.iter().any(|partition| partition.state.lock().view.message(mid).is_some())
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
    let may_move = |entry: &Entry| entry.group.is_some() && entry.qos == QoS::AtLeastOnce;
    let entries = queue.filter(|(_, entry)| may_move(entry) && is_free(entry) && wanted(entry));
    let entries: Vec<_> = entries.map(|(order, entry)| (*order, entry.clone())).collect();
    passing.extend(entries.iter().map(|(_, entry)| (sid, entry.mid)));
    Passing { entries, without }
}

fn spawn(node: &Arc<Node>, from: Logged, passing: Passing, among: Among) {
    if !passing.entries.is_empty() {
        let of = node.clone();
        node.outside.spawn(async move { pass(&of, from, passing, among).await });
    }
}

async fn pass(node: &Arc<Node>, from: Logged, passing: Passing, among: Among) {
    let log = &node.sessions;
    let Passing { entries, without } = passing;
    let mut bodies = log.bodies(from.partition, from.sid, &entries).await.unwrap_or_default();
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
    for (entry, message, to, outcome) in given {
        let is_there = match to {
            Given::Nobody => false,
            Given::Queued(_) => true,
            Given::Appended(_) => matches!(outcome.await, Ok(Outcome::Durable(_))),
        };
        if is_there {
            log.done(from, entry.mid, Why::Moved, node.wall());
        } else {
            keep(node, from, &entry, message);
        }
    }
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
