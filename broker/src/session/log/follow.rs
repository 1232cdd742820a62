//! What happens in the log, as it happens: keeps router, mailboxes and queues in line with the view.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    task::Waker,
    time::Duration,
};

use mqtt_proto::{
    durable::{
        record::{Boot, Key, Offset, Phase, Session, Value, Why},
        view::{Change, Entry},
    },
    message::{Delivery, Message, MessageId},
    topic::Filter,
};

use super::{SessionLog, State, Waiting, claim::Former, replay, write};
use crate::{
    limits::Trouble,
    log::{LogError, Outcome, ReadLimit, StoredRecord},
    node::Node,
    router::{Logged, Options},
    session::Slot,
};

const READ: ReadLimit = ReadLimit { records: 500, bytes: 1 << 20, wait: Duration::from_secs(5) };
const RETRY: Duration = Duration::from_secs(1);

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
            of.next.store(batch.next, Ordering::Release);
        }
        if let Some(peers) = node.peers.as_ref().filter(|_| !batch.records.is_empty()) {
            peers.read_on(node);
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
            clients.iter().for_each(|client| self.adopt(node, &mut state, client, None));
        }
    }

    /// Routes only as what is granted now allows. What is not granted any more is written off once its client comes, or ends.
    pub(crate) fn review(&self, node: &Node) {
        for partition in &self.partitions {
            let state = partition.state.lock();
            for sid in state.slots.keys() {
                let session = state.view.session(*sid).map(|(_, session)| session);
                let names = session.into_iter().flat_map(|session| session.subscriptions());
                for (name, _) in names {
                    self.filter_changed(node, &state, *sid, name);
                }
            }
        }
    }

    /// Takes one record, and does what follows from it.
    fn take(&self, node: &Arc<Node>, partition: u32, stored: &StoredRecord) -> Result<(), LogError> {
        let (key, value) = replay::parse(&self.topic, partition, stored)?;
        let mut wake = Vec::new();
        let told = self.with(partition, |state| {
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
            // Who is told now may ask how far this node has read.
            if let Some(of) = usize::try_from(partition).ok().and_then(|index| self.partitions.get(index)) {
                of.next.store(stored.offset + 1, Ordering::Release);
            }
            self.tell_waiting(node, state, &key, &value, former, stored.offset);
            Ok::<_, LogError>(std::mem::take(&mut state.runs_changed))
        });
        wake.into_iter().for_each(Waker::wake);
        if told.unwrap_or(Ok(false))?
            && let Some(peers) = &node.peers
        {
            peers.list(node);
        }
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
                self.tell_holder(state, &client);
                self.confirm(node, state, &client);
            }
            Change::Rewritten { client, ended } => {
                self.part(node, state, ended);
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
                self.tell_holder(state, &client);
            }
            Change::Void { client, .. } => self.confirm(node, state, &client),
            Change::Filter { sid, filter } => self.filter_changed(node, state, sid, &filter),
            Change::Queued { sid, order } => {
                self.queued(node, partition, state, record, (sid, order), wake);
            }
            Change::Finished { sid, mid, .. } => drop(state.dropping.remove(&(sid, mid))),
            Change::Down { boot } => {
                state.runs_changed = true;
                if let Some(peers) = node.peers.as_ref().filter(|_| boot == self.boot) {
                    peers.fallen.notify_one();
                }
            }
            Change::Ticked { .. } => state.runs_changed = true,
            Change::Barrier { boot, number } if boot == self.boot => state.passing.passed(number),
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
                (Waiting::Note { mid, done }, Some(Value::Inbound(written))) if written.mid == mid => {
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

    /// The other process runs that are over in no partition, and how far each has been read.
    pub(crate) fn peers(&self) -> (Vec<Boot>, Vec<Offset>) {
        let mut known = BTreeSet::new();
        let mut positions = Vec::new();
        for partition in &self.partitions {
            let state = partition.state.lock();
            known.extend(state.view.runs().map(|(boot, _)| boot).filter(|boot| *boot != self.boot));
            positions.push(partition.next.load(Ordering::Acquire));
        }
        (known.into_iter().collect(), positions)
    }

    /// Says in every partition that a process run is down.
    pub(crate) fn declare_down(&self, node: &Node, boot: Boot) {
        for partition in 0..self.topic.partitions() {
            let (key, nobody) = (Key::Down { boot }, node.bridge.nobody());
            self.append(partition, &key, Some(Value::Down.encode()), node.wall(), nobody);
        }
    }

    /// Routes to the session that counts for a client, whichever node has it.
    pub(super) fn adopt(&self, node: &Node, state: &mut State, client: &Arc<str>, slot: Option<&Arc<Slot>>) {
        let Some(head) = state.view.head(client) else { return };
        let sid = head.session.sid;
        let former = state.slots.get(&sid);
        if head.session.phase == Phase::Ended
            || former.is_some_and(|former| slot.is_none_or(|slot| Arc::ptr_eq(former, slot)))
        {
            return;
        }
        if let Some(former) = state.slots.remove(&sid) {
            unroute(node, state, sid, &former);
        }
        let slot = slot.cloned().unwrap_or_else(|| node.registry.slot(client));
        state.slots.insert(sid, slot);
        let names: Vec<Box<str>> = state.view.session(sid).map_or_else(Vec::new, |(_, session)| {
            session.subscriptions().map(|(name, _)| name.into()).collect()
        });
        for name in &names {
            self.filter_changed(node, state, sid, name);
        }
    }

    /// Notes where a client is online, if that is elsewhere: what comes at QoS 0 goes there.
    fn tell_holder(&self, state: &State, client: &str) {
        let Some(head) = state.view.head(client).filter(|_| self.shared) else { return };
        let Session { phase, boot, sid, .. } = *head.session;
        if let Some(slot) = state.slots.get(&sid) {
            slot.mailbox.set_holder((phase == Phase::Online && boot != self.boot).then_some(boot));
        }
    }

    /// A session is over.
    fn part(&self, node: &Node, state: &mut State, sid: Option<MessageId>) {
        if let Some(sid) = sid
            && let Some(slot) = state.slots.remove(&sid)
        {
            unroute(node, state, sid, &slot);
            node.registry.forget_idle(&slot);
        }
    }

    /// Routes as the session's subscription says now.
    fn filter_changed(&self, node: &Node, state: &State, sid: MessageId, name: &str) {
        let (Some(slot), Some((client, session))) = (state.slots.get(&sid), state.view.session(sid)) else {
            return;
        };
        let Ok(filter) = Filter::parse(name) else { return };
        let user = state.view.head(client).map(|head| &head.session.user);
        let settings = node.settings();
        let user = user.and_then(|name| settings.access.user(name));
        let is_granted = || user.is_some_and(|user| user.grants(&slot.client_id).may_subscribe(&filter));
        match session.filter(name).filter(|(_, subscription)| subscription.on && is_granted()) {
            Some((_, subscription)) => {
                let options = Options {
                    qos: subscription.qos,
                    no_local: subscription.no_local,
                    retain_as_published: subscription.retain_as_published,
                    subscription_id: subscription.id,
                };
                let logged = Logged { sid, partition: self.partition_of(&slot.client_id) };
                // The limit was looked at when the client asked.
                let _ = node.router.subscribe(&filter, &slot.mailbox, options, Some(logged), u64::MAX);
            }
            None => node.router.unsubscribe(&filter, slot.mailbox.key),
        }
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
        let (Some(slot), Some((client, session))) = (state.slots.get(&sid), state.view.session(sid)) else {
            return;
        };
        let Some(entry) = session.queue().get(&order) else { return };
        // A connection here that another node took the client from gets nothing more.
        let is_held = || state.view.head(client).is_some_and(|head| head.session.boot == self.boot);
        if slot.mailbox.is_online() && is_held() {
            let Some(message) = record.message() else { return };
            let surplus = slot.mailbox.post_logged(delivery(entry, message), node.settings().caps(), wake);
            let to = Logged { sid, partition };
            self.dropped(node, state, to, surplus);
        } else if record.boot() == Some(self.boot) {
            self.enforce_cap(node, state, Logged { sid, partition });
        }
    }

    /// Lets the oldest messages of a session go whose device is away, beyond what may wait.
    pub(super) fn enforce_cap(&self, node: &Node, state: &mut State, to: Logged) {
        let cap = node.settings().caps().offline;
        let Some((client, session)) = state.view.session(to.sid) else { return };
        if session.queue().len() <= cap {
            return;
        }
        let below = |session: &Session| match session.phase {
            Phase::Online => Offset::MAX,
            Phase::Offline | Phase::Ended => session.sent_below,
        };
        let Some(head) = state.view.head(client) else { return };
        let mine = state.holdings.get(client).filter(|mine| mine.nonce == head.nonce);
        let sent_below = mine.map_or_else(|| below(&head.session), |mine| below(&mine.written()));
        // What its device may have does not count, and what it may have of QoS 2 must not go.
        let waits = session.queue().iter().filter(|(order, entry)| {
            **order >= sent_below
                && entry.received.is_none()
                && !state.dropping.contains(&(to.sid, entry.mid))
        });
        let waits: Vec<MessageId> = waits.map(|(_, entry)| entry.mid).collect();
        let surplus = waits.len().saturating_sub(cap);
        let surplus = waits.into_iter().take(surplus).collect();
        self.dropped(node, state, to, surplus);
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

fn unroute(node: &Node, state: &State, sid: MessageId, slot: &Slot) {
    let Some(session) = state.view.remains(sid) else { return };
    for filter in session.filters().filter_map(|name| Filter::parse(name).ok()) {
        node.router.unsubscribe(&filter, slot.mailbox.key);
    }
}

/// The record that is acted on; its message is made once for all who get it.
struct Taken<'a> {
    key: &'a Key,
    value: &'a Option<Value<'a>>,
    message: Option<Arc<Message>>,
}

impl Taken<'_> {
    fn message(&mut self) -> Option<Arc<Message>> {
        if let (None, Key::Message { mid, .. }, Some(Value::Message(queued))) =
            (&self.message, self.key, self.value)
        {
            self.message = Some(Arc::new(write::message_of(*mid, &queued.content)));
        }
        self.message.clone()
    }

    fn boot(&self) -> Option<u64> {
        match self.key {
            Key::Message { boot, .. } => Some(*boot),
            _ => None,
        }
    }
}

/// A message as one session gets it.
pub(crate) fn delivery(entry: &Entry, message: Arc<Message>) -> Delivery {
    let Entry { qos, retain, subscription_ids, .. } = entry;
    Delivery { message, qos: *qos, retain: *retain, subscription_ids: subscription_ids.clone() }
}
