//! Gives what waits in the log for one member of a shared subscription to another: while its device is away, to one that is
//! there; before it ends, to anybody. It is durable there before it goes here: so it may come twice, and is never lost. QoS 2
//! stays where it is (MQTT 5 section 4.8.2).

use std::{collections::HashSet, sync::Arc, task::Waker, time::Duration};

use foldhash::fast::RandomState;
use mqtt_proto::{
    codec::QoS,
    durable::{
        record::{Boot, Key, Offset, Value, Why},
        view::{Change, Entry, View},
    },
    message::{Delivery, Message, MessageId},
};
use tokio::time::{Instant, sleep, timeout_at};

use super::{SessionLog, State, delivery};
use crate::{
    limits::notice,
    log::{Completion, Outcome},
    node::Node,
    outside::Mistake,
    router::{Logged, Recipient, fanout::Fanout, shared::Share},
    session::groups::{Among, Given, Handing},
};

/// Until what is passed on is read, and durable with another member, where nobody waits for that.
const PATIENCE: Duration = Duration::from_secs(10);

/// Until what could not be read is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The log did not give or take in time what another member should have. It stays where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "messages of a shared subscription could not be given to another member in time: they wait where they were"
)]
pub(crate) struct NotPassedOn;

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

/// A session is about to end: others get what waits for it, whether they are there or not. What they can't get within
/// `patience` the sweep gives them once the session is over.
pub(crate) async fn pass_on_all(
    node: &Arc<Node>,
    client: &str,
    sid: MessageId,
    patience: Duration,
) -> Result<(), NotPassedOn> {
    let log = &node.sessions;
    let from = log.logged(client, sid);
    let take = |state: &mut State| take(state, sid, |_| true);
    if node.outside.makes(Mistake::EndWithoutPassing) {
        return Ok(());
    }
    let passing = log.with(from.partition, take).filter(|passing| !passing.entries.is_empty());
    let Some(passing) = passing else { return Ok(()) };
    let passed = pass(node, from, passing, Among::All, patience).await;
    log.with(from.partition, |state| state.passing.retain(|(of, _)| *of != sid));
    passed
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

    /// Gives to others what members were chosen for whose sessions had ended.
    pub(super) fn pass_on_vain(&self, node: &Arc<Node>, state: &mut State, partition: u32) {
        for (sid, mid) in std::mem::take(&mut state.vain) {
            if !state.waits(sid, mid) {
                continue;
            }
            if state.view.session(sid).is_some() || state.passing.contains(&(sid, mid)) {
                // Its end is on its way, or did not come; or somebody is about to have it, and may not.
                state.vain.push((sid, mid));
                continue;
            }
            let passing = take(state, sid, |entry| entry.mid == mid);
            spawn(node, Logged { sid, partition }, passing, Among::All);
        }
    }

    /// Whether a message is known, by this name.
    pub(crate) fn knows(&self, mid: MessageId) -> bool {
        self.partitions.iter().any(|partition| partition.state.lock().view.message(mid).is_some())
    }
}

impl State {
    pub(super) fn waits(&self, sid: MessageId, mid: MessageId) -> bool {
        let session = self.view.remains(sid);
        session.is_some_and(|session| session.queue().values().any(|entry| entry.mid == mid))
    }

    /// Takes out of what is dead what another member is still to get.
    pub(super) fn spare(&self, dead: &mut Vec<Key>) {
        let passing = self.passing.iter().chain(&self.vain).filter(|(sid, mid)| self.waits(*sid, *mid));
        let spared: HashSet<MessageId, RandomState> = passing.map(|(_, mid)| *mid).collect();
        if !spared.is_empty() {
            dead.retain(|key| !matches!(key, Key::Message { mid, .. } if spared.contains(mid)));
        }
    }
}

/// A message whose member had ended before it stood in the log, by who wrote it, session and message: it was chosen in vain.
pub(super) fn in_vain(
    view: &View,
    key: &Key,
    value: &Option<Value<'_>>,
) -> Option<(Boot, MessageId, MessageId)> {
    let (Key::Message { mid, boot, .. }, Some(Value::Message(queued))) = (key, value) else { return None };
    let member = queued.recipients.first().filter(|_| queued.group.is_some())?;
    let may_move = member.qos == QoS::AtLeastOnce && view.session(member.sid).is_none();
    may_move.then_some((*boot, member.sid, *mid))
}

/// What waits at the end of a session for one that was a member, as above, by who wrote the end: what came for it since it gave
/// away what it had, and what it could not give away.
pub(super) fn left_behind(
    view: &View,
    by: Option<Boot>,
    changes: &[Change],
) -> Vec<(Boot, MessageId, MessageId)> {
    let Some(boot) = by else { return Vec::new() };
    let ended = changes.iter().filter_map(|change| match change {
        Change::Claimed { ended, .. } | Change::Rewritten { ended, .. } => *ended,
        _ => None,
    });
    let left = ended.flat_map(|sid| {
        let queue = view.remains(sid).into_iter().flat_map(|session| session.queue().values());
        queue.filter(|entry| may_move(entry)).map(move |entry| (boot, sid, entry.mid))
    });
    left.collect()
}

/// Who wrote what became of a client.
pub(super) fn told_by(key: &Key) -> Option<Boot> {
    match key {
        Key::Session { nonce, .. } => Some(nonce.boot),
        _ => None,
    }
}

fn may_move(entry: &Entry) -> bool {
    entry.group.is_some() && entry.qos == QoS::AtLeastOnce
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
    let entries = queue.filter(|(_, entry)| may_move(entry) && is_free(entry) && wanted(entry));
    let entries: Vec<_> = entries.map(|(order, entry)| (*order, entry.clone())).collect();
    passing.extend(entries.iter().map(|(_, entry)| (sid, entry.mid)));
    Passing { entries, without }
}

fn spawn(node: &Arc<Node>, from: Logged, passing: Passing, among: Among) {
    if !passing.entries.is_empty() {
        let of = node.clone();
        node.outside.spawn(async move {
            if let Err(late) = pass(&of, from, passing, among, PATIENCE).await {
                notice!(of, pass_on, "{late}");
            }
        });
    }
}

async fn pass(
    node: &Arc<Node>,
    from: Logged,
    passing: Passing,
    among: Among,
    patience: Duration,
) -> Result<(), NotPassedOn> {
    let log = &node.sessions;
    let until = Instant::now() + patience;
    let Passing { entries, without } = passing;
    let read = async {
        node.log.wait_for_room().await;
        // As for a publish: who left the group was told so, perhaps by another node.
        log.freshen().await;
        log.bodies(from.partition, from.sid, &entries).await
    };
    let Ok(Ok(mut bodies)) = timeout_at(until, read).await else {
        entries.iter().for_each(|(_, entry)| again(node, from, entry, among));
        keep_unread(node, from, entries);
        return Err(NotPassedOn);
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
    let mut all = Ok(());
    for (entry, message, to, outcome) in given {
        let is_there = match to {
            Given::Nobody => false,
            Given::Queued(_) => true,
            Given::Appended(_) => {
                let durable = matches!(timeout_at(until, outcome).await, Ok(Ok(Outcome::Durable(_))));
                if !durable {
                    all = Err(NotPassedOn);
                    again(node, from, &entry, among);
                }
                durable
            }
        };
        if is_there {
            log.done(from, entry.mid, Why::Moved, node.wall());
        } else {
            keep(node, from, &entry, message);
        }
    }
    all
}

/// What could not be given away by a session that is about to end must be, once it has.
fn again(node: &Node, from: Logged, entry: &Entry, among: Among) {
    if among == Among::All {
        node.sessions.with(from.partition, |state| state.vain.push((from.sid, entry.mid)));
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
