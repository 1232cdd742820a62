//! The state of one partition as a function of its records: who holds which client, what each session has subscribed to,
//! what waits for it and how far it is.
//!
//! [`View::apply`] takes the records in the order of the log. It depends on nothing else, so that every reader has the same
//! view, whether it followed the log from its beginning or reads now what compaction has left of it. What a repeat or a
//! stale writer's late record says is recognised and changes nothing.
//!
//! Rules, by kind (S, F, …: see [`super::record`]):
//!
//! - **S**. A *claim* (`won` false) takes effect if its generation is above the head's, and its session is either a new one
//!   (named by its own nonce) or the head's, not ended. With no head known it takes effect, as where a gap between the generations shows that what it was based
//!   on lies elsewhere. Any other claim is *void*. A rewrite (`won` true) is by one whose claim took effect: it
//!   counts, and beats a claim of the same generation. The *head* is what counts and has the highest generation. A rewrite is
//!   known from a repeat by its sequence number.
//! - A session lives while a head that has not ended names it.
//! - **F**, **R**: the highest generation for a filter or packet identifier counts.
//! - **M** queues for its recipients. **D** only rises.
//!
//! Compaction moves a record: of a key that was written or shown more than once, only the last occurrence may be left. So a
//! reader can meet a void claim, or the end of the former holder's session, before the effective claim, and judge that by it. Therefore
//! a holder that finds a void claim, or reads anything of another behind its own claim, writes it once more with `won`
//! ([`View::is_contested`]), and only then a void one is deleted. Or a reader can meet a claim before the one that it was
//! based on: then the generations have a gap, and the claim is taken as it stands.
//!
//! The order of a queue can't be that of its records: of `1 2 1 2` compaction may leave `2 1 2`. But a process run numbers its
//! `M` as it writes them. So what one run wrote is in the order of its numbers, and runs stand to each other as this
//! reader met them ([`SessionState::in_order`]); what one publisher sent is in the same order for all readers. The numbers in
//! message ids would not do: a message that its client repeats to a later run keeps its id, and stands behind others.

mod announced;
mod dead;
mod filters;
mod names;
#[cfg(test)]
mod order_tests;
mod progress;
mod queue;
mod rare;
mod summary;
mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::Arc,
};

use foldhash::fast::FixedState;

pub use self::{
    announced::AllAnnounced,
    queue::{Entry, Message},
};
use self::{
    filters::{FilterRecord, Filters},
    names::Names,
    progress::AllProgress,
    queue::Queue,
    rare::Rare,
    table::{Keyed, Table},
};
use super::{
    record::{
        Announced, Boot, Generation, Identity, Inbound, Key, Offset, Phase, Session, Subscription, Value, Why,
    },
    runs::Runs,
};
use crate::message::{MessageId, Millis};

type Map<K, V> = HashMap<K, V, FixedState>;

/// A table that held much more once keeps its memory else: a busy minute's messages go all at once.
fn give_back<K: Eq + Hash, V>(map: &mut Map<K, V>) {
    if map.capacity() > 1_000 && map.len() < map.capacity() / 8 {
        map.shrink_to(map.len() * 2);
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct View {
    identity: Option<Identity>,
    clients: Table<Client>,
    sessions: Table<SessionState>,
    messages: Map<MessageId, Message>,
    progress: AllProgress,
    /// Messages that an `R` names, and how many do.
    inbound: Map<MessageId, u32>,
    runs: Runs,
    /// Process runs of which there is a `B`.
    barriers: BTreeSet<Boot>,
    announced: AllAnnounced,
    /// Of nodes and users.
    names: Names,
    #[cfg(test)]
    mutation: Option<Mutation>,
}

/// Mistakes that a test makes on purpose, to see that they are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutation {
    IgnoreGeneration,
    /// What a session has done is forgotten when the message shows again.
    RepeatsQueue,
    /// An ended client's last record is deleted while older ones are there.
    HeadFirst,
}

#[derive(Debug)]
struct Client {
    name: Arc<str>,
    head: Option<Head>,
    rivals: Option<Box<Rivals>>,
}

/// Of a client's head.
#[derive(Debug, Default)]
struct Rivals {
    /// Records that are not the head's.
    others: Vec<Other>,
    /// Another's record was read behind the head's.
    overtook: bool,
}

#[derive(Clone, Copy, Debug)]
struct Other {
    nonce: MessageId,
    generation: Generation,
    is_void: bool,
}

/// What counts for a client.
#[derive(Debug)]
pub struct Head {
    pub nonce: MessageId,
    pub session: Box<Session>,
}

/// What lies in the log for one session, alive or not.
#[derive(Debug)]
pub struct SessionState {
    sid: MessageId,
    /// Of the client whose head names it.
    client: Option<Arc<str>>,
    filters: Filters,
    inbound: Rare<InboundRecord>,
    /// There as long as anything waits.
    queue: Option<Box<Queue>>,
}

#[derive(Debug)]
struct InboundRecord {
    generation: Generation,
    packet_id: u16,
    inbound: Inbound,
}

/// What a record changed, as far as a reader acts on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Another head: the claim of this nonce took effect, and the one before it lost the client. `ended`: the session that the former
    /// head named, if that is over.
    Claimed { client: Arc<str>, nonce: MessageId, before: Option<MessageId>, ended: Option<MessageId> },
    /// The head wrote its record once more. `ended` as above.
    Rewritten { client: Arc<str>, ended: Option<MessageId> },
    /// This claim has no effect, and never will.
    Void { client: Arc<str>, nonce: MessageId },
    /// A subscription of a session that lives is on or off now.
    Filter { sid: MessageId, filter: Box<str> },
    /// A message waits for this session, at this place in its queue.
    Queued { sid: MessageId, order: Offset },
    /// The session's device has taken a QoS 2 message.
    Received { sid: MessageId, mid: MessageId },
    /// A message no longer waits for this session, which may be over.
    Finished { sid: MessageId, mid: MessageId, why: Why },
    /// The copy by whose deletion it was to be finished was not the only one any more: it waits still.
    Remains { sid: MessageId, mid: MessageId },
    /// All that was in the log when this process run asked, under this number, has been read.
    Barrier { boot: Boot, number: u64 },
    /// Sessions in no log have this filter on a process run's node, or none has any more, as of this writing of its record.
    Announced { boot: Boot, filter: Box<str>, on: bool, sequence: u64 },
    /// Process runs may be over that were not before.
    Over,
}

impl View {
    /// Takes the record at `offset`, which was made at `created` and has `size` bytes.
    pub fn apply(
        &mut self,
        offset: Offset,
        created: Millis,
        size: usize,
        key: Key,
        value: Option<Value<'_>>,
        changes: &mut Vec<Change>,
    ) {
        let seconds = u32::try_from(created / 1000).unwrap_or(u32::MAX);
        match (key, value) {
            (Key::Identity, Some(Value::Identity(identity))) => self.identity = Some(identity),
            (Key::Session { nonce, client }, Some(Value::Session(session))) => {
                self.session_written(nonce, &client, session, changes);
            }
            (Key::Session { nonce, client }, None) => self.session_deleted(nonce, &client, changes),
            (Key::Filter { sid, generation, filter }, Some(Value::Filter(subscription))) => {
                self.filter_written(sid, generation, filter, subscription, seconds, changes);
            }
            (Key::Filter { sid, generation, filter }, None) => {
                self.filter_deleted(sid, generation, &filter, changes);
            }
            (Key::Inbound { sid, generation, packet_id }, value) => {
                let value = match value {
                    Some(Value::Inbound(inbound)) => Some(inbound),
                    _ => None,
                };
                self.inbound_written(sid, generation, packet_id, value);
            }
            (Key::Message { mid, boot, chunk }, Some(Value::Message(message))) => {
                let copy = queue::Copy::new(boot, chunk, offset, size, &message);
                self.message_written(mid, copy, &message, changes);
            }
            (Key::Message { mid, boot, chunk }, None) => self.message_deleted(mid, boot, chunk, changes),
            (Key::Progress { mid, sid, boot }, Some(Value::Progress(progress))) => {
                self.progress_written(mid, sid, boot, progress, seconds, changes);
            }
            (Key::Progress { mid, sid, boot }, None) => self.progress.forget(mid, sid, boot),
            (Key::Tick { boot }, Some(Value::Tick { node, run, shared })) => {
                self.runs.began(boot, node, run, shared);
                changes.push(Change::Over);
            }
            (Key::Tick { boot }, None) => self.runs.gone(boot),
            (Key::Down { boot }, Some(_)) => {
                self.runs.went_down(boot);
                changes.push(Change::Over);
            }
            (Key::Down { boot }, None) => self.runs.forget_down(boot),
            (Key::Announced { boot, filter }, Some(Value::Announced(Announced { sequence, on }))) => {
                let counts = self.announced.written(boot, &filter, sequence, on, seconds);
                if counts {
                    changes.push(Change::Announced { boot, filter, on, sequence });
                }
            }
            (Key::Announced { boot, filter }, None) => self.announced.deleted(boot, &filter),
            (Key::Barrier { boot }, Some(Value::Barrier(number))) => {
                self.barriers.insert(boot);
                changes.push(Change::Barrier { boot, number });
            }
            (Key::Barrier { boot }, None) => drop(self.barriers.remove(&boot)),
            // Retained messages and what passes between nodes have topics of their own, an identity is never deleted, and a value is of its key's kind.
            _ => {}
        }
    }

    pub fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// What counts for a client, ended or not.
    pub fn head(&self, client: &str) -> Option<&Head> {
        self.clients.get(client)?.head.as_ref()
    }

    /// All clients with a head.
    pub fn heads(&self) -> impl Iterator<Item = (&Arc<str>, &Head)> {
        self.clients.iter().filter_map(|client| Some((&client.name, client.head.as_ref()?)))
    }

    /// The generation that a claim of this client must have. Where nothing is known of the client it is the time: whatever there
    /// was has been deleted long ago, and a reader who meets the deletion later than the claim must not take it for older.
    pub fn next_generation(&self, client: &str, now: Millis) -> Generation {
        match self.clients.get(client).map_or(0, Client::floor) {
            0 => now.max(1),
            floor => floor.saturating_add(1),
        }
    }

    /// Whether the head of a client must be written once more, with `won`, lest other readers take a void claim for it.
    pub fn is_contested(&self, client: &str) -> bool {
        self.clients.get(client).is_some_and(|client| {
            (client.is_overtaken() || client.others().iter().any(|other| other.is_void))
                && client.head.as_ref().is_some_and(|head| !head.session.won)
        })
    }

    /// A session that lives, with its client.
    pub fn session(&self, sid: MessageId) -> Option<(&Arc<str>, &SessionState)> {
        let session = self.sessions.get(&sid)?;
        Some((session.client.as_ref()?, session))
    }

    /// What lies in the log for a session, whether it lives or not.
    pub fn remains(&self, sid: MessageId) -> Option<&SessionState> {
        self.sessions.get(&sid)
    }

    /// The process runs that have begun.
    pub fn runs(&self) -> &Runs {
        &self.runs
    }

    /// What process runs have announced.
    pub fn announced(&self) -> &AllAnnounced {
        &self.announced
    }

    /// Sessions that live.
    pub fn live(&self) -> usize {
        self.heads().filter(|(_, head)| head.session.phase != Phase::Ended).count()
    }

    /// What is known of a message.
    pub fn message(&self, mid: MessageId) -> Option<&Message> {
        self.messages.get(&mid)
    }

    /// Whether a message with this name waits for anybody, or has within the last minutes.
    pub fn knows(&self, mid: MessageId) -> bool {
        self.messages.contains_key(&mid) || self.progress.is_of(mid)
    }

    /// Whether a publish that is not released has this message: it may be routed again.
    pub fn names(&self, mid: MessageId) -> bool {
        self.inbound.contains_key(&mid)
    }

    fn session_mut(&mut self, sid: MessageId) -> &mut SessionState {
        self.sessions.get_or_insert_with(&sid, || SessionState::new(sid))
    }

    #[cfg(test)]
    fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    #[cfg(not(test))]
    fn has(&self, _: Mutation) -> bool {
        false
    }

    fn session_written(
        &mut self,
        nonce: MessageId,
        name: &str,
        mut session: Box<Session>,
        changes: &mut Vec<Change>,
    ) {
        self.names.share(&mut session.node);
        self.names.share(&mut session.user);
        let ignore_generation = self.has(Mutation::IgnoreGeneration);
        let client = self.clients.get_or_insert_with(name, || Client::new(name));
        let name = client.name.clone();
        let counts = match &client.head {
            None => session.won || session.generation > client.floor(),
            Some(head) if head.nonce == nonce => session.sequence > head.session.sequence,
            Some(head) => {
                let rivals = session.generation == head.session.generation;
                let above = session.generation > head.session.generation || ignore_generation;
                let follows = session.generation.checked_sub(1) == Some(head.session.generation);
                let resumes = session.sid == head.session.sid && head.session.phase != Phase::Ended;
                match session.won {
                    true => above || (rivals && !head.session.won),
                    // A claim is one above what it was based on: a gap hides that from this reader.
                    false => above && (session.sid == nonce || resumes || !follows),
                }
            }
        };
        if !counts {
            if client.head.as_ref().is_some_and(|head| head.nonce == nonce) {
                return;
            }
            client.put_aside(nonce, session.generation, !session.won);
            client.rivals.get_or_insert_default().overtook = true;
            if !session.won {
                changes.push(Change::Void { client: name, nonce });
            }
            return;
        }
        let is_head = client.head.as_ref().is_some_and(|head| head.nonce == nonce);
        client.forget_other(nonce, is_head);
        let (sid, generation, lives) = (session.sid, session.generation, session.phase != Phase::Ended);
        let former = client.head.replace(Head { nonce, session });
        let ended = former.as_ref().filter(|former| former.session.phase != Phase::Ended);
        let ended = ended.map(|former| former.session.sid).filter(|former| *former != sid || !lives);
        match former {
            Some(former) if former.nonce == nonce => {
                changes.push(Change::Rewritten { client: name.clone(), ended });
            }
            former => {
                let before = former.map(|former| {
                    // A rival that a rewrite of the same generation corrects never counted for others.
                    let is_void = former.session.generation == generation;
                    client.put_aside(former.nonce, former.session.generation, is_void);
                    former.nonce
                });
                changes.push(Change::Claimed { client: name.clone(), nonce, before, ended });
            }
        }
        if let Some(ended) = ended {
            self.part(ended);
        }
        if lives {
            self.session_mut(sid).client = Some(name);
        }
    }

    fn session_deleted(&mut self, nonce: MessageId, name: &str, changes: &mut Vec<Change>) {
        let Some(client) = self.clients.get_mut(name) else { return };
        client.forget_other(nonce, true);
        if let Some(head) = client.head.take_if(|head| head.nonce == nonce) {
            // By the rules it has ended before.
            let lived = head.session.phase != Phase::Ended;
            let ended = lived.then_some(head.session.sid);
            changes.push(Change::Rewritten { client: name.into(), ended });
            if let Some(ended) = ended {
                self.part(ended);
            }
        }
        if self.clients.get(name).is_some_and(|client| client.head.is_none() && client.others().is_empty()) {
            self.clients.remove(name);
        }
    }

    /// The session is over; its records stay until they are deleted.
    fn part(&mut self, sid: MessageId) {
        if let Some(session) = self.sessions.get_mut(&sid) {
            session.client = None;
            self.tidy(sid);
        }
    }

    fn filter_written(
        &mut self,
        sid: MessageId,
        generation: Generation,
        filter: Box<str>,
        subscription: Subscription,
        created: u32,
        changes: &mut Vec<Change>,
    ) {
        let session = self.session_mut(sid);
        let known = session.filters.get(&filter, generation);
        if known.is_some_and(|known| known.subscription.sequence >= subscription.sequence) {
            return;
        }
        session.filters.put(FilterRecord { filter: &filter, generation, subscription, created });
        if session.client.is_some() {
            changes.push(Change::Filter { sid, filter });
        }
    }

    fn filter_deleted(
        &mut self,
        sid: MessageId,
        generation: Generation,
        filter: &str,
        changes: &mut Vec<Change>,
    ) {
        let Some(session) = self.sessions.get_mut(&sid) else { return };
        if session.filters.remove(filter, generation) && session.client.is_some() {
            changes.push(Change::Filter { sid, filter: filter.into() });
        }
        self.tidy(sid);
    }

    fn inbound_written(
        &mut self,
        sid: MessageId,
        generation: Generation,
        packet_id: u16,
        value: Option<Inbound>,
    ) {
        let session = self.sessions.get_or_insert_with(&sid, || SessionState::new(sid));
        let is_it = |r: &InboundRecord| r.generation == generation && r.packet_id == packet_id;
        let gone = |former: InboundRecord| {
            if let Some(count) = self.inbound.get_mut(&former.inbound.mid) {
                *count -= 1;
                if *count == 0 {
                    self.inbound.remove(&former.inbound.mid);
                }
            }
        };
        session.inbound.retain(|r| !is_it(r), gone);
        if let Some(inbound) = value {
            *self.inbound.entry(inbound.mid).or_default() += 1;
            session.inbound.push(InboundRecord { generation, packet_id, inbound });
        }
        self.tidy(sid);
    }

    /// Forgets a session of which nothing is in the log.
    fn tidy(&mut self, sid: MessageId) {
        let empty = |s: &SessionState| {
            s.client.is_none() && s.filters.is_empty() && s.inbound.is_empty() && s.queue.is_none()
        };
        if self.sessions.get(&sid).is_some_and(empty) {
            self.sessions.remove(&sid);
        }
    }
}

impl Client {
    fn new(name: &str) -> Client {
        Client { name: name.into(), head: None, rivals: None }
    }

    fn others(&self) -> &[Other] {
        self.rivals.as_ref().map_or(&[], |rivals| &rivals.others)
    }

    fn is_overtaken(&self) -> bool {
        self.rivals.as_ref().is_some_and(|rivals| rivals.overtook)
    }

    fn put_aside(&mut self, nonce: MessageId, generation: Generation, is_void: bool) {
        let others = &mut self.rivals.get_or_insert_default().others;
        match others.iter_mut().find(|other| other.nonce == nonce) {
            // What counted once was no void claim, whatever a repeat of it looks like now.
            Some(known) => known.is_void &= is_void,
            None => others.push(Other { nonce, generation, is_void }),
        }
    }

    /// This record is the head's now, or gone. `is_same_head`: the head stays overtaken if it was.
    fn forget_other(&mut self, nonce: MessageId, is_same_head: bool) {
        if let Some(rivals) = &mut self.rivals {
            rivals.others.retain(|other| other.nonce != nonce);
            rivals.overtook &= is_same_head;
            if rivals.others.is_empty() && !rivals.overtook {
                self.rivals = None;
            }
        }
    }

    /// The highest generation known to have counted.
    fn floor(&self) -> Generation {
        let head = self.head.as_ref().map(|head| head.session.generation);
        let others = self.others().iter().filter(|other| !other.is_void).map(|other| other.generation);
        others.chain(head).max().unwrap_or(0)
    }
}

impl Keyed for Client {
    type Key = str;

    fn key(&self) -> &str {
        &self.name
    }
}

impl Keyed for SessionState {
    type Key = MessageId;

    fn key(&self) -> &MessageId {
        &self.sid
    }
}

impl SessionState {
    fn new(sid: MessageId) -> SessionState {
        SessionState { sid, client: None, filters: Filters::default(), inbound: Rare::default(), queue: None }
    }

    /// The subscription on a filter, if it is on, and the generation and sequence of its record.
    pub fn filter(&self, filter: &str) -> Option<(Generation, Subscription)> {
        let highest = self.filters.highest(filter)?;
        Some((highest.generation, highest.subscription))
    }

    /// The subscriptions that are on.
    pub fn subscriptions(&self) -> impl Iterator<Item = (&str, Subscription)> {
        let is_highest = |record: &FilterRecord<'_>| self.filters.highest(record.filter) == Some(*record);
        let on = self.filters.iter().filter(|record| record.subscription.on).filter(is_highest);
        on.map(|record| (record.filter, record.subscription))
    }

    /// The QoS 2 publishes that are not released, with packet identifier and generation.
    pub fn inbound(&self) -> impl Iterator<Item = (u16, Generation, &Inbound)> {
        let is_highest = |record: &&InboundRecord| {
            !self
                .inbound
                .iter()
                .any(|other| other.generation > record.generation && other.packet_id == record.packet_id)
        };
        let highest = self.inbound.iter().filter(is_highest);
        highest.map(|record| (record.packet_id, record.generation, &record.inbound))
    }

    /// All records about a packet identifier: to be deleted when it is released.
    pub fn inbound_of(&self, packet_id: u16) -> impl Iterator<Item = Generation> {
        self.inbound.iter().filter(move |r| r.packet_id == packet_id).map(|r| r.generation)
    }

    /// Every filter of which anything is in the log.
    pub fn filters(&self) -> impl Iterator<Item = &str> {
        self.filters.iter().map(|record| record.filter)
    }
}
