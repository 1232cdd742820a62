//! A fresh reader knows what one knows that followed the log from its beginning: for random histories of several
//! nodes that keep to the rules, with repeats, late readers, restarts and any legal compaction.

use std::collections::{BTreeMap, HashMap};

use super::*;
use crate::{
    codec::QoS,
    durable::record::{self, Boot, Content, Name, Progress, QueuedMessage, Recipient},
    test_random::Random,
};

#[derive(Clone)]
struct Stored {
    offset: Offset,
    key: Key,
    value: Option<Vec<u8>>,
    writer: Boot,
    created: Millis,
}

/// A record a while: so much time is between two.
const STEP: Millis = 10_000;
/// How old a record may be when it shows again, and how far a reader may be behind.
const LATE: Millis = 5 * 60 * 1000;

/// One node, as far as it writes to this partition.
struct Node {
    boot: Boot,
    view: View,
    next: usize,
    counter: u64,
    /// What it wrote last under keys that are written more than once.
    sequences: HashMap<Key, u64>,
    /// Claims that it has written the end of: it never writes anything else about them.
    over: Vec<MessageId>,
}

struct World {
    random: Random,
    log: Vec<Stored>,
    nodes: Vec<Node>,
    next_boot: Boot,
    mutation: Option<Mutation>,
    counts: BTreeMap<&'static str, usize>,
}

const CLIENTS: usize = 4;
/// Messages that are published again have a boot of their own from here on: a client repeats all that it published after
/// such a one, too, and this model does not, so that nothing is to be said about their order.
const RETRIED: Boot = 1_000_000;

fn view(mutation: Option<Mutation>) -> View {
    View { mutation, ..View::default() }
}

fn apply(view: &mut View, stored: &Stored, changes: &mut Vec<Change>) {
    let (key, value) = record::parse(&stored.key.encode(), stored.value.as_deref()).unwrap();
    view.apply(stored.offset, stored.created, 100, key, value, changes);
}

fn fresh(log: &[Stored], mutation: Option<Mutation>) -> View {
    let mut fresh = view(mutation);
    log.iter().for_each(|stored| apply(&mut fresh, stored, &mut Vec::new()));
    fresh
}

impl Node {
    fn id(&mut self) -> MessageId {
        self.counter += 1;
        MessageId { boot: self.boot, counter: self.counter }
    }

    /// The heads that it holds.
    fn held(&self) -> Vec<(Arc<str>, MessageId)> {
        let mut held: Vec<_> = self
            .view
            .heads()
            .filter(|(_, head)| head.session.boot == self.boot)
            .map(|(name, head)| (name.clone(), head.nonce))
            .collect();
        held.sort();
        held
    }
}

impl World {
    fn new(seed: u64, mutation: Option<Mutation>) -> World {
        let mut world = World {
            random: Random::new(seed),
            log: Vec::new(),
            nodes: Vec::new(),
            next_boot: 1,
            mutation,
            counts: BTreeMap::new(),
        };
        for _ in 0..3 {
            let node = world.start();
            world.nodes.push(node);
        }
        world
    }

    fn start(&mut self) -> Node {
        self.next_boot += 1;
        Node {
            boot: self.next_boot,
            view: view(self.mutation),
            next: 0,
            counter: 0,
            sequences: HashMap::new(),
            over: Vec::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn append(&mut self, node: usize, key: Key, value: Option<Value<'_>>) {
        let stored = Stored {
            offset: self.log.len() as Offset + 1,
            key,
            value: value.map(|value| value.encode()),
            writer: self.nodes[node].boot,
            created: self.now(),
        };
        self.log.push(stored);
        if self.random.below(12) == 0 {
            self.repeat(node);
        }
    }

    fn now(&self) -> Millis {
        (self.log.len() as u64 + 1) * STEP
    }

    /// The writer's last few records once more.
    fn repeat(&mut self, node: usize) {
        let boot = self.nodes[node].boot;
        let most = 1 + self.random.below(5);
        let mut last: Vec<Stored> =
            self.log.iter().rev().filter(|stored| stored.writer == boot).take(most).cloned().collect();
        last.reverse();
        let now = self.now();
        last.retain(|stored| stored.created + LATE > now);
        for mut stored in last {
            stored.offset = self.log.len() as Offset + 1;
            self.log.push(stored);
            self.count("repeats");
        }
    }

    fn sequence(&mut self, node: usize, key: &Key) -> u64 {
        let sequence = self.nodes[node].sequences.entry(key.clone()).or_default();
        *sequence += 1;
        *sequence
    }

    /// Reads up to `most` records and does what the rules ask of a holder.
    fn read(&mut self, node: usize, most: usize) {
        for _ in 0..most {
            let Node { view, next, .. } = &mut self.nodes[node];
            let Some(stored) = self.log.get(*next) else { return };
            *next += 1;
            let mut changes = Vec::new();
            apply(view, stored, &mut changes);
            for change in changes {
                match change {
                    Change::Void { .. } => self.count("void claims"),
                    Change::Claimed { before: Some(_), .. } => self.count("takeovers"),
                    _ => {}
                }
            }
            if let Key::Session { client, .. } = self.log[self.nodes[node].next - 1].key.clone() {
                self.confirm(node, &client);
            }
        }
    }

    fn confirm(&mut self, node: usize, client: &str) {
        let held = self.nodes[node].held();
        if !self.nodes[node].view.is_contested(client) {
            return;
        }
        if let Some((_, nonce)) = held.iter().find(|(name, _)| **name == *client) {
            self.rewrite(node, client, *nonce, |_| {});
        }
    }

    fn rewrite(&mut self, node: usize, client: &str, nonce: MessageId, edit: impl FnOnce(&mut Session)) {
        let Some(head) = self.nodes[node].view.head(client) else { return };
        let key = Key::Session { nonce, client: client.into() };
        let mut session = head.session.clone();
        session.won = true;
        edit(&mut session);
        if self.nodes[node].over.contains(&nonce) {
            return;
        }
        if session.phase == Phase::Ended {
            self.nodes[node].over.push(nonce);
        }
        session.sequence = self.sequence(node, &key);
        self.append(node, key, Some(Value::Session(session)));
    }

    fn claim(&mut self, node: usize, client: &str, phase: Phase) {
        let nonce = self.nodes[node].id();
        let boot = self.nodes[node].boot;
        let resume = self.random.below(3) > 0;
        let head = self.nodes[node].view.head(client);
        let resumed = head.filter(|head| head.session.phase != Phase::Ended);
        let resumed = resumed.filter(|_| resume || phase == Phase::Offline).map(|head| head.session.sid);
        let session = Session {
            generation: self.nodes[node].view.next_generation(client, self.now()),
            sequence: 0,
            won: false,
            phase,
            sid: resumed.unwrap_or(nonce),
            boot,
            since: self.now(),
            expires_at: 0,
            expiry: 0,
            sent_below: 0,
            node: Name::new("n".into()),
            user: Name::new("u".into()),
            peer: "p".into(),
            protocol: 4,
            will: None,
        };
        let key = Key::Session { nonce, client: client.into() };
        self.append(node, key, Some(Value::Session(Box::new(session))));
        self.count("claims");
    }

    fn step(&mut self) {
        let node = self.random.below(self.nodes.len());
        let behind = (self.log.len() - self.nodes[node].next) as u64 * STEP;
        let most = if behind > LATE { usize::MAX } else { self.random.below(12) };
        self.read(node, most);
        let client = format!("c{}", self.random.below(CLIENTS));
        match self.random.below(20) {
            0..3 => self.claim(node, &client, Phase::Online),
            3..14 => self.hold(node),
            14..17 => self.publish(node),
            17 | 18 => drop(self.delete(node)),
            _ if self.random.below(8) == 0 => {
                self.nodes[node] = self.start();
                let left = compacted(&self.log, &mut self.random);
                self.nodes[node].view = fresh(&left, self.mutation);
                self.nodes[node].next = self.log.len();
                self.count("restarts");
            }
            _ => {}
        }
    }

    /// Something that a holder does.
    fn hold(&mut self, node: usize) {
        let held = self.nodes[node].held();
        if held.is_empty() {
            return;
        }
        let (client, nonce) = held[self.random.below(held.len())].clone();
        let Some(head) = self.nodes[node].view.head(&client) else { return };
        let (sid, generation, phase) = (head.session.sid, head.session.generation, head.session.phase);
        if phase != Phase::Online {
            return;
        }
        match self.random.below(12) {
            0 => self.rewrite(node, &client, nonce, |session| session.phase = Phase::Offline),
            1 if self.random.below(3) == 0 => {
                let since = self.now();
                self.rewrite(node, &client, nonce, |session| {
                    (session.phase, session.since) = (Phase::Ended, since);
                });
            }
            1..5 => {
                let filter = ["a", "b/+", "#"][self.random.below(3)];
                let key = Key::Filter { sid, generation, filter: filter.into() };
                let subscription = Subscription {
                    sequence: self.sequence(node, &key),
                    on: self.random.below(3) > 0,
                    qos: QoS::AtLeastOnce,
                    no_local: false,
                    retain_as_published: false,
                    id: None,
                };
                self.append(node, key, Some(Value::Filter(subscription)));
            }
            5..7 => {
                let packet_id = 1 + self.random.below(3) as u16;
                let known: Vec<Generation> = self.nodes[node]
                    .view
                    .session(sid)
                    .map(|(_, state)| state.inbound_of(packet_id).collect())
                    .unwrap_or_default();
                if known.is_empty() {
                    let mid = self.nodes[node].id();
                    let inbound = Inbound { mid, digest: 0, at: 0, parent: "".into(), partition: 0, from: 0 };
                    let key = Key::Inbound { sid, generation, packet_id };
                    self.append(node, key, Some(Value::Inbound(inbound)));
                }
                for generation in known {
                    self.append(node, Key::Inbound { sid, generation, packet_id }, None);
                }
            }
            _ => self.acknowledge(node, sid),
        }
    }

    fn acknowledge(&mut self, node: usize, sid: MessageId) {
        let Some((_, state)) = self.nodes[node].view.session(sid) else { return };
        let Some(entry) = state.queue().values().next() else { return };
        let (mid, qos, received) = (entry.mid, entry.qos, entry.received);
        let boot = self.nodes[node].boot;
        let sole = self.nodes[node].view.message(mid).and_then(|message| message.sole_copy(sid));
        let progress = match (qos, received) {
            (QoS::ExactlyOnce, None) => Progress::Received(mid.counter as u16),
            _ => Progress::Done(Why::Acknowledged),
        };
        match sole {
            Some((writer, chunk)) if progress == Progress::Done(Why::Acknowledged) => {
                self.append(node, Key::Message { mid, boot: writer, chunk }, None);
            }
            _ => self.append(node, Key::Progress { mid, sid, boot }, Some(Value::Progress(progress))),
        }
        self.count("acknowledgements");
    }

    /// A message for some sessions; now and then a former one once more, by another node.
    fn publish(&mut self, node: usize) {
        let mut live: Vec<MessageId> = self.nodes[node]
            .view
            .heads()
            .filter(|(_, head)| head.session.phase != Phase::Ended)
            .map(|(_, head)| head.session.sid)
            .collect();
        live.sort();
        live.retain(|_| self.random.below(2) == 0);
        if live.is_empty() {
            return;
        }
        let qos = if self.random.below(2) == 0 { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        let once = qos == QoS::ExactlyOnce;
        let again: Vec<MessageId> = self
            .nodes
            .iter()
            .flat_map(|node| node.view.messages.iter())
            .filter(|(mid, message)| mid.boot >= RETRIED && message.copies.iter().any(|copy| copy.once))
            .map(|(mid, _)| *mid)
            .collect();
        let mut again = again;
        again.sort();
        let mid = match self.random.below(4) {
            0 if once && !again.is_empty() => again[self.random.below(again.len())],
            1 if once => {
                let MessageId { boot, counter } = self.nodes[node].id();
                MessageId { boot: RETRIED + 1000 * boot + counter, counter }
            }
            _ => self.nodes[node].id(),
        };
        let recipients = live
            .into_iter()
            .map(|sid| Recipient { sid, qos, retain: false, maybe_sent: false, subscription_ids: None })
            .collect();
        let content =
            Content { qos, retain: false, expires_at: None, forwarded: &[], topic: "t", payload: b"p" };
        let boot = self.nodes[node].boot;
        let chunk = self.nodes[node].id().counter;
        self.append(
            node,
            Key::Message { mid, boot, chunk },
            Some(Value::Message(QueuedMessage { once, group: None, recipients, content })),
        );
        self.count("messages");
    }

    fn delete(&mut self, node: usize) -> usize {
        let now = self.now();
        let view = &self.nodes[node].view;
        let dead = view.dead(now, 20, |mid| view.names(mid));
        for key in &dead {
            self.append(node, key.clone(), None);
            self.count("deletions");
        }
        dead.len()
    }

    /// Everybody has read everything, and nobody has anything left to write.
    fn rest(&mut self) {
        for round in 0.. {
            assert!(round < 200, "they come to no end");
            let before = self.log.len();
            for node in 0..self.nodes.len() {
                self.read(node, usize::MAX);
            }
            let alive: Vec<Boot> = self.nodes.iter().map(|node| node.boot).collect();
            let lost: Vec<Arc<str>> = self.nodes[0]
                .view
                .heads()
                .filter(|(_, head)| {
                    head.session.phase == Phase::Online && !alive.contains(&head.session.boot)
                })
                .map(|(name, _)| name.clone())
                .collect();
            if self.log.len() == before {
                for client in &lost {
                    self.claim(0, client, Phase::Offline);
                }
            }
            if self.log.len() == before && self.delete(0) == 0 {
                return;
            }
        }
    }
}

/// What may be left of a log: of each key the last record, and any of the former; no more than that where it is a deletion.
fn compacted(log: &[Stored], random: &mut Random) -> Vec<Stored> {
    let chance = [2, 4, 10][random.below(3)];
    let mut last: HashMap<&Key, usize> = HashMap::new();
    for (index, stored) in log.iter().enumerate() {
        last.insert(&stored.key, index);
    }
    let mut kept: HashMap<&Key, bool> = HashMap::new();
    let mut left = Vec::new();
    for (index, stored) in log.iter().enumerate() {
        let is_last = last[&stored.key] == index;
        let former_kept = kept.entry(&stored.key).or_default();
        let goes = random.below(10) < chance;
        let may_go = !is_last || (stored.value.is_none() && !*former_kept);
        if may_go && goes {
            continue;
        }
        *former_kept = true;
        left.push(stored.clone());
    }
    left
}

/// What went wrong in the history of a seed, if anything did.
fn history(seed: u64, mutation: Option<Mutation>) -> (Option<String>, BTreeMap<&'static str, usize>) {
    let mut world = World::new(seed, mutation);
    for _ in 0..250 {
        world.step();
    }
    world.rest();
    let expected = fresh(&world.log, mutation).summary();
    let mut wrong = None;
    let mut compare = |who: String, view: &View| {
        let found = view.summary();
        if found != expected {
            let more: Vec<_> = found.iter().filter(|line| !expected.contains(line)).collect();
            let less: Vec<_> = expected.iter().filter(|line| !found.contains(line)).collect();
            wrong.get_or_insert(format!("seed {seed}: {who} knows {more:#?} in place of {less:#?}"));
        }
    };
    for node in &world.nodes {
        compare(format!("node {}", node.boot), &node.view);
    }
    for number in 0..6 {
        let left = compacted(&world.log, &mut world.random);
        compare(format!("fresh reader {number}"), &fresh(&left, mutation));
    }
    let claims = world.log.iter().filter(|stored| matches!(stored.key, Key::Session { .. }));
    let wrong = wrong.map(|wrong| claims.fold(wrong, |wrong, stored| format!("{wrong}\n{stored:?}")));
    (wrong, world.counts)
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (key, value) = record::parse(&self.key.encode(), self.value.as_deref()).unwrap();
        write!(f, "{} by {}: {key:?} {value:?}", self.offset, self.writer)
    }
}

#[test]
fn every_reader_knows_the_same_whatever_was_repeated_and_compacted() {
    let mut totals: BTreeMap<&'static str, usize> = BTreeMap::new();
    for seed in 0..300 {
        let (wrong, counts) = history(seed, None);
        if let Some(wrong) = wrong {
            panic!("{wrong}");
        }
        counts.into_iter().for_each(|(what, count)| *totals.entry(what).or_default() += count);
    }
    for what in ["acknowledgements", "claims", "deletions", "messages", "repeats", "takeovers"] {
        assert!(totals.get(what).is_some_and(|count| *count > 300), "too few {what}: {totals:?}");
    }
    assert!(totals["void claims"] > 100 && totals["restarts"] > 100, "{totals:?}");
}

#[test]
fn mistakes_in_the_view_are_noticed() {
    for mutation in [Mutation::IgnoreGeneration, Mutation::RepeatsQueue] {
        let noticed = (0..400).any(|seed| history(seed, Some(mutation)).0.is_some());
        assert!(noticed, "nobody noticed {mutation:?}");
    }
}

#[test]
fn what_ended_never_comes_back_however_far_its_records_are_deleted() {
    let id = |counter| MessageId { boot: 1, counter };
    let ended = Session { generation: 2, phase: Phase::Ended, ..session_of(id(1)) };
    let records = [(id(1), session_of(id(1))), (id(2), ended)];
    let key = |nonce| Key::Session { nonce, client: "c".into() };
    // What a reader knows that meets what compaction left of it.
    let read = |gone: &[Key], mutation| {
        let mut view = view(mutation);
        let left = records.iter().filter(|(nonce, _)| !gone.contains(&key(*nonce)));
        for (offset, (nonce, session)) in (0..).zip(left) {
            let value = Value::Session(Box::new(session.clone()));
            view.apply(offset, 0, 100, key(*nonce), Some(value), &mut Vec::new());
        }
        view
    };
    let comes_back = |mutation| {
        let mut gone = Vec::new();
        while gone.len() < records.len() {
            gone.extend(read(&gone, mutation).dead(3_600_000, 1, |_| false).into_iter().take(1));
            if read(&gone, mutation).live() > 0 {
                return true;
            }
        }
        false
    };
    assert!(!comes_back(None));
    assert!(comes_back(Some(Mutation::HeadFirst)), "nobody noticed");
}

/// A claim that begins a session.
pub(super) fn session_of(nonce: MessageId) -> Session {
    Session {
        generation: 1,
        sequence: 0,
        won: false,
        phase: Phase::Online,
        sid: nonce,
        boot: nonce.boot,
        since: 0,
        expires_at: 0,
        expiry: 0,
        sent_below: 0,
        node: Name::new("n".into()),
        user: Name::new("u".into()),
        peer: "p".into(),
        protocol: 4,
        will: None,
    }
}

#[test]
fn what_shows_again_changes_nothing() {
    let id = |counter| MessageId { boot: 1, counter };
    let session = |sequence, phase| {
        Value::Session(Box::new(Session { sequence, won: sequence > 0, phase, ..session_of(id(1)) }))
    };
    let subscription = |sequence, on| {
        Value::Filter(Subscription {
            sequence,
            on,
            qos: QoS::AtLeastOnce,
            no_local: false,
            retain_as_published: false,
            id: None,
        })
    };
    let holder = || Key::Session { nonce: id(1), client: "c".into() };
    let filter = || Key::Filter { sid: id(1), generation: 1, filter: "f".into() };
    let records = [
        (holder(), session(0, Phase::Online)),
        (filter(), subscription(1, true)),
        (filter(), subscription(2, false)),
        (holder(), session(1, Phase::Offline)),
    ];
    let mut view = View::default();
    let mut write = |from: usize, expected: usize| {
        let mut changes = Vec::new();
        for (offset, (key, value)) in records.iter().enumerate().skip(from) {
            view.apply(offset as Offset, 0, 10, key.clone(), Some(value.clone()), &mut changes);
        }
        assert_eq!(changes.len(), expected, "{changes:?}");
    };
    write(0, 4);
    write(0, 0);
    write(2, 0);
    let (_, state) = view.session(id(1)).unwrap();
    assert_eq!(state.subscriptions().count(), 0);
    assert_eq!(view.head("c").unwrap().session.phase, Phase::Offline);
}
