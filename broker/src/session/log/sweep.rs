//! What is due without anybody asking: wills, the end of sessions, clients whose holder is gone, and records that are dead.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use mqtt_proto::{
    codec::QoS,
    durable::{
        record::{Phase, Session, Why, Will},
        view::{Entry, Head},
    },
    message::{Message, MessageId, Millis},
};
use tokio::time::Instant;

use super::{Holding, SessionLog};
use crate::{
    limits::notice,
    log::Health,
    node::{Delivered, Node},
    outside::Mistake,
    router::Logged,
    session::Held,
};

const EVERY: Duration = Duration::from_secs(1);
/// How long what another node should see to first is left to it.
const LEFT_TO_OTHERS: Duration = Duration::from_secs(5);
/// Clients that are settled side by side.
const AT_ONCE: usize = 500;
/// Until a claim must be read back, and a will durable; what is not is tried again.
const PATIENCE: Duration = Duration::from_secs(5);
const EXPIRE_EVERY: Duration = Duration::from_secs(10);
const BURY_EVERY: Duration = Duration::from_secs(60);
/// Records that are deleted at once, that are looked for in one go, and how often in a row that is done.
const AT_A_TIME: usize = 5000;
const BURIED: usize = 50_000;
const BURIALS: usize = 20;

/// Runs until the task is aborted.
pub(crate) async fn sweep(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(EVERY);
    let (mut expired, mut buried) = (Instant::now(), Instant::now());
    // Since when that is due which is others' to do.
    let mut left: HashMap<Arc<str>, Instant> = HashMap::new();
    loop {
        ticks.tick().await;
        node.sessions.retry(node.wall());
        node.retained.retry(node.wall());
        node.sessions.withdraw(&node);
        let duties: Vec<u32> = (0..node.sessions.topic.partitions())
            .filter(|partition| node.sessions.has_duty(&format!("what is over in {partition}")))
            .collect();
        // Once more would be once more in the log, as soon as that takes anything again.
        if *node.log.health().borrow() == Health::Working && !node.outside.makes(Mistake::EndWithoutPassing) {
            duties.iter().for_each(|partition| node.sessions.pass_on_left(&node, *partition));
        }
        let mut due = Vec::new();
        let mut still_left = HashMap::new();
        for (client, is_mine) in node.sessions.due(node.now()) {
            let since = left.get(&client).copied().unwrap_or_else(Instant::now);
            if is_mine || since.elapsed() >= LEFT_TO_OTHERS {
                due.push(client.clone());
            }
            if !is_mine {
                still_left.insert(client, since);
            }
        }
        left = still_left;
        for some in due.chunks(AT_ONCE) {
            join_all(some.iter().map(|client| settle(&node, client))).await;
        }
        if expired.elapsed() >= EXPIRE_EVERY {
            node.sessions.expire(&node);
            expired = Instant::now();
        }
        if buried.elapsed() >= BURY_EVERY {
            // One node is enough for that: what it deletes is dead to the others, too, once they read it.
            for partition in duties {
                bury(&node, partition).await;
            }
            if node.sessions.has_duty("retained messages that are over") {
                node.retained.bury(&node);
            }
            node.sessions.forget_wills();
            buried = Instant::now();
        }
    }
}

/// Does what is due for one client, unless somebody is there.
async fn settle(node: &Arc<Node>, client: &str) {
    let Some(held) = node.registry.take_idle(client, node.sessions.mailbox(client)) else { return };
    match settle_held(node, &held).await {
        true => node.registry.forget(held),
        false => node.registry.release(held),
    }
}

/// True if the session is over.
async fn settle_held(node: &Arc<Node>, held: &Held) -> bool {
    let client = &*held.slot.client_id;
    let Some((nonce, session)) = node.sessions.latest(client) else { return false };
    let now = node.now();
    if !node.sessions.is_due(client, &session, now) {
        return false;
    }
    if session.phase == Phase::Online {
        let log = &node.sessions;
        let from = log.logged(client, session.sid);
        let sent_below = log.end_of_queue(from.partition, session.sid);
        write(node, held, nonce, &session, |session| go_offline(session, now, sent_below)).await;
        log.with(from.partition, |state| log.pass_on(node, state, from, |_| true));
        return false;
    }
    let ends = session.phase == Phase::Offline && session.expires_at <= now;
    if let Some(will) = session.will.as_deref()
        && !publish_will(node, client, &session, will, nonce).await
    {
        return false;
    }
    let end = |session: &mut Session| {
        session.will = None;
        if ends {
            (session.phase, session.since) = (Phase::Ended, now);
        }
    };
    let is_over = write(node, held, nonce, &session, end).await && ends;
    if is_over {
        node.counters.sessions_expired.add(1);
    }
    is_over
}

impl SessionLog {
    /// The connection of a held client is gone; `unsent` is the first message that it was not sent.
    pub(crate) fn leave(
        &self,
        node: &Arc<Node>,
        holding: &Holding,
        unsent: Option<MessageId>,
        edit: impl FnOnce(&mut Session),
    ) {
        let first = self.with(holding.partition, |state| {
            let (_, session) = state.view.session(holding.sid)?;
            let is_it = |(_, entry): &(&u64, &Entry)| Some(entry.mid) == unsent;
            session.queue().iter().find(is_it).map(|(order, _)| *order)
        });
        let sent_below = first.flatten().unwrap_or_else(|| self.end_of_queue(holding.partition, holding.sid));
        self.rewrite(holding, node.wall(), |session| {
            edit(session);
            go_offline(session, node.now(), sent_below);
        });
        self.with(holding.partition, |state| {
            self.enforce_cap(node, state, holding.logged());
            // What another should get of a session that ends has gone to it before.
            if holding.written().phase != Phase::Ended {
                self.pass_on(node, state, holding.logged(), |_| true);
            }
        });
    }

    /// Publishes the will of a client whose connection is gone, if it is due at once.
    pub(crate) async fn publish_left_will(&self, node: &Arc<Node>, holding: &Holding) {
        let session = holding.written().clone();
        let due = |will: &&Will| will.due_at <= Some(node.now());
        let Some(will) = session.will.as_deref().filter(due) else { return };
        if publish_will(node, &holding.client, &session, will, holding.nonce).await {
            self.rewrite(holding, node.wall(), |session| session.will = None);
        }
    }
}

/// The device of this session is away from `now` on.
fn go_offline(session: &mut Session, now: Millis, sent_below: u64) {
    session.phase = if session.expiry == 0 { Phase::Ended } else { Phase::Offline };
    session.since = now;
    session.expires_at = now.saturating_add(Holding::outlives(session));
    session.sent_below = sent_below;
    // Where it was is in the device trace.
    session.peer = Box::default();
    if let Some(will) = &mut session.will {
        let delay = u64::from(will.delay) * 1000;
        will.due_at = Some(now.saturating_add(delay).min(session.expires_at));
    }
}

/// Changes what counts for a client that nobody uses: whose process run has it rewrites it, any other claims it.
async fn write(
    node: &Arc<Node>,
    held: &Held,
    nonce: MessageId,
    session: &Session,
    edit: impl Fn(&mut Session),
) -> bool {
    let log = &node.sessions;
    if session.boot == log.boot {
        let Some(holding) = log.holding(&held.slot.client_id) else { return false };
        log.rewrite(&holding, node.wall(), edit);
        return true;
    }
    let make = |head: Option<&Head>, claim: MessageId| {
        let head = head.filter(|head| head.nonce == nonce)?;
        let mut session = (*head.session).clone();
        if let Some(will) = &mut session.will {
            // It may be published already: what says that it is not may be all that a crash took.
            will.mid.get_or_insert(nonce);
        }
        edit(&mut session);
        if head.session.phase == Phase::Ended {
            // Nobody may go on with it.
            session.sid = claim;
        }
        Some(session)
    };
    matches!(log.claim(node, &held.slot, (PATIENCE, true), make).await, Ok(Some(_)))
}

/// True once the will is in the log and with its subscribers, or may not be published.
pub(crate) async fn publish_will(
    node: &Arc<Node>,
    client: &str,
    session: &Session,
    will: &Will,
    nonce: MessageId,
) -> bool {
    let settings = node.settings().clone();
    let user = settings.access.user(&session.user).filter(|user| user.may_use(client));
    if !user.is_some_and(|user| user.grants(client).may_publish(&will.topic)) {
        node.counters.publishes_refused.add(1);
        let (user, topic) = (&**session.user, &*will.topic);
        notice!(node, refused_publish, client, user, topic, "will refused: not authorized");
        return true;
    }
    let mid = will.message_id(nonce);
    let message = Message::new(mid, 0, &will.topic, &will.payload, will.qos, will.retain).with_forwarded(
        will.forwarded.to_vec(),
        will.expiry,
        node.now(),
    );
    let message = Arc::new(message);
    let first = node.sessions.wills.lock().insert(mid, client.into()).is_none();
    let how = if first { Delivered::Once } else { Delivered::OnceAgain };
    let published = node.publish_durably(client, &message, how);
    matches!(tokio::time::timeout(PATIENCE, published).await, Ok(true))
}

/// Of a client that nobody is there for.
fn is_due(session: &Session, now: Millis) -> bool {
    let will = session.will.as_ref().and_then(|will| will.due_at);
    let has_due_will = will.is_some_and(|at| at <= now);
    match session.phase {
        Phase::Online => true,
        Phase::Offline => session.expires_at <= now || has_due_will,
        // What its holder did not come to do.
        Phase::Ended => has_due_will,
    }
}

/// Deletes what is dead in a partition, as long as there is much of it.
async fn bury(node: &Node, partition: u32) {
    let log = &node.sessions;
    for _ in 0..BURIALS {
        // Messages are named from other partitions, too.
        let others = (0..).zip(&log.partitions).filter(|(index, _)| *index != partition).map(|(_, of)| of);
        let others: Vec<_> = others.collect();
        let names = |mid| others.iter().any(|of| of.state.lock().view.names(mid));
        let dead = log.with(partition, |state| {
            let view = &state.view;
            view.dead(node.wall(), BURIED, |mid| view.names(mid) || names(mid))
        });
        let dead = dead.unwrap_or_default();
        // What is dead stays so: however long it takes until it is written.
        for some in dead.chunks(AT_A_TIME) {
            node.log.wait_for_room().await;
            for key in some {
                log.append(partition, key, None, node.wall(), node.bridge.nobody());
            }
        }
        if dead.len() < BURIED {
            return;
        }
        tokio::time::sleep(EVERY).await;
    }
}

impl SessionLog {
    /// The offset behind all that is known to wait for a session.
    fn end_of_queue(&self, partition: u32, sid: MessageId) -> u64 {
        let last = |state: &mut super::State| {
            let (_, session) = state.view.session(sid)?;
            session.queue().last_key_value().map(|(order, _)| order + 1)
        };
        self.with(partition, last).flatten().unwrap_or(0)
    }

    /// Lets messages go that have expired while their devices are away.
    pub(super) fn expire(&self, node: &Node) {
        let now = node.now();
        for (partition, of) in (0..).zip(&self.partitions) {
            let mut state = of.state.lock();
            let is_away =
                |sid: &MessageId| state.mailboxes.get(sid).is_some_and(|mailbox| !mailbox.is_reachable());
            let mut some: Vec<MessageId> = state.view.with_expired(now).filter(is_away).collect();
            // In the same order in every run.
            some.sort_unstable();
            for sid in some {
                let Some(sent_below) = self.sent_below(&state, sid) else { continue };
                for (order, entry) in state.view.expired(sid, now) {
                    // What its device may have of QoS 2 must not go.
                    let may_have = entry.qos == QoS::ExactlyOnce && order < sent_below;
                    if entry.received.is_some() || may_have || !state.dropping.insert((sid, entry.mid)) {
                        continue;
                    }
                    node.counters.expired_drops.add(1);
                    self.done(Logged { sid, partition }, entry.mid, Why::Expired, node.wall());
                }
            }
        }
    }

    /// Forgets the wills that can't be published again.
    fn forget_wills(&self) {
        let mut wills = self.wills.lock();
        wills.retain(|mid, client| {
            let still_has = |state: &mut super::State| {
                let head = state.view.head(client)?;
                Some(head.session.will.as_ref()?.message_id(head.nonce) == *mid)
            };
            self.with(self.partition_of(client), still_has).flatten() == Some(true)
        });
    }

    /// Whether anything is due for a client that nobody is there for on this node: if the process run that has it is this one, or is
    /// over.
    fn is_due(&self, client: &str, session: &Session, now: Millis) -> bool {
        let is_over = |state: &mut super::State| state.view.runs().is_over(session.boot);
        is_due(session, now)
            && (session.boot == self.boot || self.with(self.partition_of(client), is_over) == Some(true))
    }

    /// Clients for which something is due, as far as can be told without asking who is there. True: it is this node's to do.
    fn due(&self, now: Millis) -> Vec<(Arc<str>, bool)> {
        let mut due = Vec::new();
        for partition in &self.partitions {
            let state = partition.state.lock();
            let is_there = |session: &Session| {
                let mailbox = state.mailboxes.get(&session.sid);
                session.phase == Phase::Online && mailbox.is_some_and(|mailbox| mailbox.is_online())
            };
            let runs = state.view.runs();
            for (client, head) in state.view.heads().filter(|(_, head)| is_due(&head.session, now)) {
                if head.session.boot == self.boot {
                    due.extend((!is_there(&head.session)).then(|| (client.clone(), true)));
                } else if runs.is_over(head.session.boot) {
                    due.push((client.clone(), self.ranks_first(&state, client)));
                }
            }
        }
        // In the same order in every run.
        due.sort_unstable();
        due
    }
}
