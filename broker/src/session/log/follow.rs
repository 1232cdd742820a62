//! What happens in the log, as it happens: keeps router, mailboxes and queues in line with the view.

use std::{collections::HashSet, sync::Arc, task::Waker, time::Duration};

use mqtt_proto::{
    acl::Grants,
    durable::{
        record::{Boot, Key, Offset, Phase, Session, Subscription, Value, Why},
        view::{Change, Entry},
    },
    message::{Delivery, Message, MessageId},
    topic::FilterRequest,
};

use super::{SessionLog, State, Waiting, claim::Former, replay, write};
use crate::{
    limits::Trouble,
    log::{LogError, Outcome, ReadLimit, StoredRecord},
    node::Node,
    outside::Mistake,
    router::{Logged, Options},
    session::{Slot, mailbox::Mailbox},
};

const READ: ReadLimit = ReadLimit { records: 500, bytes: 1 << 20, wait: Duration::from_secs(5) };
const RETRY: Duration = Duration::from_secs(1);
/// Sessions that are looked at in one go when grants have changed: a millisecond or two.
const REVIEWED: usize = 500;

/// Reads one partition on until the task is aborted.
pub(crate) async fn follow(node: Arc<Node>, partition: u32) {
    let mut trouble = Trouble::default();
    loop {
        if let Err(error) = read_on(&node, partition).await {
            let line = error.to_string();
            if trouble.is_due(&line) {
                tracing::error!(partition, "session log: {line}; sessions wait, trying again");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn read_on(node: &Arc<Node>, partition: u32) -> Result<(), LogError> {
    let log = &node.sessions;
    loop {
        let from = log.position(partition);
        let batch = log.log.read(&log.topic, partition, from, READ).await?;
        for stored in &batch.records {
            log.take(node, partition, stored)?;
        }
        if let Some(of) = usize::try_from(partition).ok().and_then(|index| log.partitions.get(index)) {
            of.next.raise(batch.next);
        }
    }
}

impl SessionLog {
    /// Puts in force what the log held at the start.
    pub(crate) fn begin(&self, node: &Node) {
        for partition in &self.partitions {
            let mut state = partition.state.lock();
            let mut clients: Vec<Arc<str>> = state.view.heads().map(|(client, _)| client.clone()).collect();
            clients.sort_unstable();
            for client in &clients {
                self.adopt(node, &mut state, client, None);
                self.look_where(&state, client);
            }
            self.begin_routing(node, &state);
        }
    }

    /// Routes only as what is granted now allows to these users. What is not granted any more is written off once its client
    /// comes, or ends. Between some sessions and the next others get their turn.
    pub(crate) async fn review(&self, node: &Arc<Node>, users: &HashSet<&str>) {
        if users.is_empty() {
            return;
        }
        for (index, partition) in (0..).zip(&self.partitions) {
            let all: Vec<MessageId> = partition.state.lock().mailboxes.keys().copied().collect();
            for some in all.chunks(REVIEWED) {
                {
                    let mut state = partition.state.lock();
                    for sid in some {
                        let Some((client, _)) = state.view.session(*sid) else { continue };
                        let head = state.view.head(client);
                        if head.is_some_and(|head| users.contains(&**head.session.user)) {
                            self.route_all(node, &state, *sid);
                            let from = Logged { sid: *sid, partition: index };
                            self.leave_lost_shares(node, &mut state, from);
                        }
                    }
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// Takes one record, and does what follows from it.
    fn take(&self, node: &Arc<Node>, partition: u32, stored: &StoredRecord) -> Result<(), LogError> {
        let (key, value) = replay::parse(&self.topic, partition, stored)?;
        let mut wake = Vec::new();
        self.with(partition, |state| {
            let former = match &key {
                Key::Session { client, .. } => state.view.head(client).map(|head| Former {
                    sid: head.session.sid,
                    phase: head.session.phase,
                    sent_below: head.session.sent_below,
                }),
                _ => None,
            };
            let mut changes = Vec::new();
            replay::apply(&mut state.view, &self.topic, partition, stored, &mut changes)?;
            let mut record = Taken { key: &key, value: &value, message: None };
            for change in changes {
                self.act(node, partition, state, &mut record, change, &mut wake);
            }
            self.tell_waiting(node, state, &key, &value, former, stored.offset);
            let Some(partition) = self.partition(partition) else { return Ok(()) };
            if let Key::Message { boot, chunk, .. } = &key
                && *boot == self.boot
            {
                partition.has_read(*chunk);
            }
            partition.next.raise(stored.offset + 1);
            Ok::<_, LogError>(())
        })
        .unwrap_or(Ok(()))?;
        wake.into_iter().for_each(Waker::wake);
        Ok(())
    }

    fn act(
        &self,
        node: &Arc<Node>,
        partition: u32,
        state: &mut State,
        record: &mut Taken<'_>,
        change: Change,
        wake: &mut Vec<Waker>,
    ) {
        match change {
            Change::Claimed { client, nonce, ended, .. } => {
                if let Some(lost) = state.holdings.get(&client).filter(|holding| holding.nonce != nonce) {
                    lost.lose();
                    state.holdings.remove(&client);
                    if let Some(slot) = node.registry.slot_of(&client) {
                        slot.mailbox.call();
                    }
                }
                self.part(node, state, ended);
                self.adopt(node, state, &client, None);
                self.look_where(state, &client);
                self.confirm(node, state, &client);
            }
            Change::Rewritten { client, ended } => {
                self.part(node, state, ended);
                self.look_where(state, &client);
                let head = state.view.head(&client);
                let is_read = |holding: &Arc<super::Holding>| {
                    head.is_none_or(|head| {
                        head.session.sequence >= holding.written().sequence
                            && head.session.phase != Phase::Online
                    })
                };
                if state.holdings.get(&client).is_some_and(is_read) {
                    state.holdings.remove(&client);
                }
            }
            Change::Void { client, .. } => self.confirm(node, state, &client),
            Change::Filter { sid, filter } => self.filter_changed(node, state, sid, &filter),
            Change::Queued { sid, order } => {
                self.queued(node, partition, state, record, (sid, order), wake);
            }
            Change::Finished { sid, mid, .. } => {
                state.dropping.remove(&(sid, mid));
                state.passing.remove(&(sid, mid));
            }
            Change::Remains { sid, mid } => {
                let client = state.view.session(sid).map(|(client, _)| client);
                let head = client.and_then(|client| state.view.head(client));
                if head.is_some_and(|head| head.session.boot == self.boot) {
                    // Another node wrote it, too, before it read that the device has it.
                    self.done(Logged { sid, partition }, mid, Why::Acknowledged, node.wall());
                }
            }
            Change::Barrier { boot, number } if boot == self.boot => state.barriers.passed(number),
            Change::Announced { boot, filter, on, sequence } => {
                self.announced(node, state, boot, &filter, (on, sequence));
            }
            Change::Over => {
                self.leases.relist();
                self.forget_over(node, state);
                self.notice_own_end(state);
            }
            Change::Received { .. } | Change::Barrier { .. } => {}
        }
    }

    /// Tells who waits for this record to be read back.
    fn tell_waiting(
        &self,
        node: &Node,
        state: &mut State,
        key: &Key,
        value: &Option<Value<'_>>,
        former: Option<Former>,
        offset: Offset,
    ) {
        let Some(waiting) = state.waiting.remove(key) else { return };
        for waiting in waiting {
            match (waiting, value) {
                (Waiting::Claim(pending), _) => self.claim_read(node, state, pending, former),
                (Waiting::Filter { sequence, done }, Some(Value::Filter(written)))
                    if written.sequence >= sequence =>
                {
                    done.sink.appended(done.token, Outcome::Durable(offset));
                }
                (later, _) => state.waiting.entry(key.clone()).or_default().push(later),
            }
        }
    }

    /// Sees to it that other readers do not take a void claim for one of this process run.
    fn confirm(&self, node: &Node, state: &State, client: &Arc<str>) {
        if !state.view.is_contested(client) {
            return;
        }
        if let Some(holding) = self.held(state, client) {
            self.rewrite(&holding, node.wall(), |_| {});
        }
    }

    /// Routes to the session that counts for a client, whichever node has it.
    pub(super) fn adopt(&self, node: &Node, state: &mut State, client: &Arc<str>, slot: Option<&Arc<Slot>>) {
        let Some(head) = state.view.head(client) else { return };
        let sid = head.session.sid;
        let former = state.mailboxes.get(&sid);
        let stays = |former: &Arc<Mailbox>| slot.is_none_or(|slot| Arc::ptr_eq(former, &slot.mailbox));
        if head.session.phase == Phase::Ended || former.is_some_and(stays) {
            return;
        }
        if let Some(former) = state.mailboxes.remove(&sid) {
            unroute(node, state, sid, &former);
        }
        let known = slot.cloned().or_else(|| node.registry.slot_of(client));
        let mailbox = known.map_or_else(|| node.registry.new_mailbox(), |slot| slot.mailbox.clone());
        mailbox.follow(self.logged(client, sid));
        state.mailboxes.insert(sid, mailbox);
        self.route_all(node, state, sid);
    }

    /// Notes where the device of what counts for a client is.
    fn look_where(&self, state: &State, client: &str) {
        let Some(head) = state.view.head(client) else { return };
        let Some(mailbox) = state.mailboxes.get(&head.session.sid) else { return };
        let session = &head.session;
        let is_over = || state.view.runs().is_over(session.boot);
        let elsewhere = session.phase == Phase::Online && session.boot != self.boot && !is_over();
        mailbox.set_elsewhere(elsewhere.then_some(session.boot));
    }

    /// A session is over.
    fn part(&self, node: &Node, state: &mut State, sid: Option<MessageId>) {
        if let Some(sid) = sid
            && let Some(mailbox) = state.mailboxes.remove(&sid)
        {
            unroute(node, state, sid, &mailbox);
        }
    }

    /// Routes as all subscriptions of a session say now.
    fn route_all(&self, node: &Node, state: &State, sid: MessageId) {
        let (Some(mailbox), Some((client, session))) = (state.mailboxes.get(&sid), state.view.session(sid))
        else {
            return;
        };
        let grants = granted(node, state, client);
        for (name, subscription) in session.subscriptions() {
            route(node, mailbox, &grants, name, Some(subscription));
        }
    }

    /// Routes as the session's subscription says now.
    fn filter_changed(&self, node: &Node, state: &State, sid: MessageId, name: &str) {
        let (Some(mailbox), Some((client, session))) = (state.mailboxes.get(&sid), state.view.session(sid))
        else {
            return;
        };
        let subscription = session.filter(name).map(|(_, subscription)| subscription);
        route(node, mailbox, &granted(node, state, client), name, subscription);
    }

    /// A message waits for a session: it is sent to a device that is there, and counts against the cap of one that is not.
    fn queued(
        &self,
        node: &Arc<Node>,
        partition: u32,
        state: &mut State,
        record: &mut Taken<'_>,
        (sid, order): (MessageId, Offset),
        wake: &mut Vec<Waker>,
    ) {
        let (Some(mailbox), Some((client, session))) = (state.mailboxes.get(&sid), state.view.session(sid))
        else {
            return;
        };
        let Some(entry) = session.queue().get(&order) else { return };
        let group = entry.group.clone();
        let is_away = !mailbox.is_reachable();
        // A connection here that another node took the client from gets nothing more.
        let is_held = || state.view.head(client).is_some_and(|head| head.session.boot == self.boot);
        if mailbox.is_online() && is_held() {
            if entry.maybe_sent
                && record.number(self.boot).is_some_and(|number| mailbox.has_already(entry.mid, number))
            {
                return;
            }
            let Some(message) = record.message() else { return };
            let surplus = mailbox.post_logged(delivery(entry, message), node.settings().caps(), wake);
            let to = Logged { sid, partition };
            self.dropped(node, state, to, surplus);
        } else if record.boot() == Some(self.boot) {
            let to = Logged { sid, partition };
            self.enforce_cap(node, state, to);
            if let Some(group) = group.filter(|_| is_away) {
                // It was there when it was chosen.
                self.pass_on(node, state, to, |entry| entry.group.as_ref() == Some(&group));
            }
        }
    }

    /// Lets the oldest messages of a session go whose device is away, beyond what may wait.
    pub(super) fn enforce_cap(&self, node: &Node, state: &mut State, to: Logged) {
        let cap = node.settings().caps().offline;
        let Some((_, session)) = state.view.session(to.sid) else { return };
        if session.queue().len() <= cap {
            return;
        }
        let Some(sent_below) = self.sent_below(state, to.sid) else { return };
        // What its device may have does not count, and what it may have of QoS 2 must not go.
        let waits = session.queue().iter().filter(|(order, entry)| {
            **order >= sent_below
                && !entry.maybe_sent
                && entry.received.is_none()
                && !state.dropping.contains(&(to.sid, entry.mid))
        });
        let mut waits: Vec<MessageId> = waits.map(|(_, entry)| entry.mid).collect();
        if self.outside.makes(Mistake::DropNewest) {
            waits.reverse();
        }
        let surplus = waits.len().saturating_sub(cap);
        let surplus = waits.into_iter().take(surplus).collect();
        self.dropped(node, state, to, surplus);
    }

    /// What lies before this offset its device may have, as far as this process run knows.
    pub(super) fn sent_below(&self, state: &State, sid: MessageId) -> Option<Offset> {
        let below = |session: &Session| match session.phase {
            Phase::Online => Offset::MAX,
            Phase::Offline | Phase::Ended => session.sent_below,
        };
        let (client, _) = state.view.session(sid)?;
        let head = state.view.head(client)?;
        let mine = state.holdings.get(client).filter(|mine| mine.nonce == head.nonce);
        Some(mine.map_or_else(|| below(&head.session), |mine| below(&mine.written())))
    }

    /// Writes down that messages went for want of room.
    fn dropped(&self, node: &Node, state: &mut State, to: Logged, messages: Vec<MessageId>) {
        for mid in messages {
            node.counters.queue_full_drops.add(1);
            state.dropping.insert((to.sid, mid));
            self.done(to, mid, Why::Dropped, node.wall());
        }
    }
}

fn unroute(node: &Node, state: &State, sid: MessageId, mailbox: &Mailbox) {
    let Some(session) = state.view.remains(sid) else { return };
    for asked in session.filters().filter_map(|name| FilterRequest::parse(name).ok()) {
        node.router.unsubscribe(&asked, mailbox.key);
    }
}

/// What a client in the log may do now.
fn granted(node: &Node, state: &State, client: &str) -> Grants {
    let settings = node.settings();
    let user = state.view.head(client).and_then(|head| settings.access.user(&head.session.user));
    user.map_or_else(Grants::default, |user| user.grants(client))
}

fn route(
    node: &Node,
    mailbox: &Arc<Mailbox>,
    grants: &Grants,
    name: &str,
    subscription: Option<Subscription>,
) {
    let Ok(asked) = FilterRequest::parse(name) else { return };
    let Some(subscription) = subscription.filter(|of| of.on && grants.may_subscribe(&asked.filter)) else {
        return node.router.unsubscribe(&asked, mailbox.key);
    };
    let options = Options {
        qos: subscription.qos,
        no_local: subscription.no_local,
        retain_as_published: subscription.retain_as_published,
        subscription_id: subscription.id,
    };
    // The limit was looked at when the client asked.
    let _ = node.router.subscribe(&asked, mailbox, options, true, u64::MAX);
}

/// The record that is acted on; its message is made once for all who get it.
pub(super) struct Taken<'a> {
    key: &'a Key,
    value: &'a Option<Value<'a>>,
    message: Option<Arc<Message>>,
}

impl Taken<'_> {
    pub(super) fn message(&mut self) -> Option<Arc<Message>> {
        if let (None, Key::Message { mid, .. }, Some(Value::Message(queued))) =
            (&self.message, self.key, self.value)
        {
            self.message = Some(Arc::new(write::message_of(*mid, &queued.content)));
        }
        self.message.clone()
    }

    /// Of a message that this process run wrote.
    fn number(&self, own: Boot) -> Option<u64> {
        match self.key {
            Key::Message { boot, chunk, .. } if *boot == own => Some(*chunk),
            _ => None,
        }
    }

    fn boot(&self) -> Option<Boot> {
        match self.key {
            Key::Message { boot, .. } => Some(*boot),
            _ => None,
        }
    }
}

/// A message as one session gets it.
pub(crate) fn delivery(entry: &Entry, message: Arc<Message>) -> Delivery {
    let Entry { qos, retain, subscription_ids, group, .. } = entry;
    let share = group.as_deref().map(Arc::from);
    Delivery { message, qos: *qos, retain: *retain, subscription_ids: subscription_ids.clone(), share }
}
