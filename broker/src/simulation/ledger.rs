//! What was promised and what came of it: owns every message sent, every session and its subscriptions as the clients
//! know them, and the rules that all of it must keep.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

use mqtt_proto::{codec::QoS, topic::Filter};
use tokio::time::Instant;

/// What must hold, whatever happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Rule {
    /// A publish that was acknowledged reaches who had subscribed before, unless newer ones filled its queue.
    Delivered,
    /// QoS 2 reaches a session once.
    Once,
    /// First copies come in order for each publisher's connection, session and QoS.
    Ordered,
    /// At the acknowledgement the parent topic's record is in the store.
    Stored,
    /// QoS 2 of a persistent session stands in its parent topic under one message ID.
    StoredOnce,
    /// A client has one connection.
    OneConnection,
    /// A session is there until it ends, and not after.
    SessionEnds,
    /// A packet identifier names one unfinished message.
    PacketIds,
    /// A new subscriber gets the retained value that was last set.
    Retained,
    /// Every node knows of sessions and retained messages what a fresh reader of the log knows.
    SameState,
    /// What a device has finished waits for it no more.
    Finished,
    /// Who can be reached is online 10 s after the last fault, and everything asked is answered then.
    Online,
}

pub(super) const RULES: [Rule; 12] = [
    Rule::Delivered,
    Rule::Once,
    Rule::Ordered,
    Rule::Stored,
    Rule::StoredOnce,
    Rule::OneConnection,
    Rule::SessionEnds,
    Rule::PacketIds,
    Rule::Retained,
    Rule::SameState,
    Rule::Finished,
    Rule::Online,
];

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Fault {
    Crash,
    Freeze,
    ClockSkew,
    StoreAway,
    NodeWithoutStore,
    SlowStore,
    Repeats,
    Breaks,
    Cut,
    Reset,
    Vanish,
    SlowLink,
    Takeover,
    Stall,
    Compaction,
}

pub(super) const FAULTS: [Fault; 15] = [
    Fault::Crash,
    Fault::Freeze,
    Fault::ClockSkew,
    Fault::StoreAway,
    Fault::NodeWithoutStore,
    Fault::SlowStore,
    Fault::Repeats,
    Fault::Breaks,
    Fault::Cut,
    Fault::Reset,
    Fault::Vanish,
    Fault::SlowLink,
    Fault::Takeover,
    Fault::Stall,
    Fault::Compaction,
];

/// How often a rule was judged about something that a fault came in between.
pub(super) type Exercised = BTreeMap<(Rule, Fault), u64>;

/// One line of what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Event {
    pub(super) at: u128,
    pub(super) who: &'static str,
    pub(super) index: usize,
    pub(super) what: &'static str,
    pub(super) number: u64,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Event { at, who, index, what, number } = self;
        write!(f, "  {at:>7} ms  {who} {index}: {what} {number}")
    }
}

/// Everything that happened, of which the last is kept.
#[derive(Default)]
struct Trace {
    last: VecDeque<Event>,
    kept: usize,
    hash: DefaultHasher,
}

/// Queues of this length lose nothing.
pub(super) const NO_CAP: usize = 100_000;

/// A message, named by its number, which is its payload.
pub(super) struct Sent {
    /// Among all connections of all clients.
    connection: u32,
    pub(super) topic: String,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    since: u64,
    pub(super) acked: Option<u64>,
    /// It is not waited for.
    pub(super) mortal: bool,
    /// Sent again to a session that did not know it: it may come twice.
    pub(super) maybe_twice: bool,
    /// Its session ended in between, so that it may be stored twice.
    pub(super) maybe_stored_twice: bool,
    pub(super) resent: bool,
    /// How often it was sent as another one.
    pub(super) copies: usize,
}

/// A session from its beginning to its end.
pub(super) struct Incarnation {
    client: usize,
    /// It may have subscriptions of which nothing is known here.
    inherits: bool,
    pub(super) boot: u64,
    pub(super) ended: bool,
    subscriptions: Vec<Subscription>,
    received: BTreeMap<u32, u32>,
    latest: BTreeMap<(u32, QoS), u32>,
}

struct Subscription {
    filter: Filter,
    qos: QoS,
    since: u64,
    until: Option<u64>,
}

/// What was published with RETAIN under one topic, in order.
#[derive(Default)]
struct RetainedTopic {
    history: Vec<Value>,
}

struct Value {
    number: u32,
    clears: bool,
    /// By this node.
    acked: Option<usize>,
    /// Nodes that it was sent to without an answer: they may come to it when others were acknowledged elsewhere.
    strays: Vec<usize>,
}

pub(super) struct Ledger {
    began: Instant,
    /// Orders everything.
    now: u64,
    trace: Trace,
    messages: Vec<Sent>,
    incarnations: Vec<Incarnation>,
    /// Message IDs in parent topics, by message.
    stored: BTreeMap<u32, BTreeSet<String>>,
    retained: BTreeMap<String, RetainedTopic>,
    faults: Vec<(Fault, u64, Option<u64>)>,
    /// The messages before are settled.
    settled: usize,
    /// When that was.
    rested: u64,
    /// Newer messages that may push one out of its queue.
    pub(super) cap: usize,
    pub(super) exercised: Exercised,
    pub(super) violation: Option<String>,
}

impl Ledger {
    /// `kept`: events that are kept to be looked at.
    pub(super) fn new(cap: usize, kept: usize) -> Ledger {
        Ledger {
            began: Instant::now(),
            now: 0,
            trace: Trace { kept, ..Trace::default() },
            messages: Vec::new(),
            incarnations: Vec::new(),
            stored: BTreeMap::new(),
            retained: BTreeMap::new(),
            faults: Vec::new(),
            settled: 0,
            rested: 0,
            cap,
            exercised: Exercised::new(),
            violation: None,
        }
    }

    pub(super) fn event(&mut self, who: &'static str, index: usize, what: &'static str, number: u64) {
        let event = Event { at: self.began.elapsed().as_millis(), who, index, what, number };
        event.hash(&mut self.trace.hash);
        if self.trace.last.len() == self.trace.kept {
            self.trace.last.pop_front();
        }
        self.trace.last.push_back(event);
        self.now += 1;
    }

    /// The same for the same seed.
    pub(super) fn hash(&self) -> u64 {
        self.trace.hash.finish()
    }

    /// The last events, oldest first.
    pub(super) fn events(&self) -> Vec<Event> {
        self.trace.last.iter().copied().collect()
    }

    /// The first is what counts.
    pub(super) fn violate(&mut self, rule: Rule, what: String) {
        if self.violation.is_none() {
            let at = self.began.elapsed();
            let events = self.trace.last.iter().map(Event::to_string).collect::<Vec<_>>().join("\n");
            self.violation = Some(format!("{rule:?} at {at:?}: {what}\nbefore that:\n{events}"));
        }
    }

    pub(super) fn fault_begins(&mut self, fault: Fault, index: usize) -> usize {
        self.event("fault", index, fault.name(), 0);
        self.faults.push((fault, self.now, None));
        self.faults.len() - 1
    }

    pub(super) fn fault_ends(&mut self, fault: usize) {
        let name = self.faults[fault].0.name();
        self.event("fault", fault, name, 1);
        self.faults[fault].2 = Some(self.now);
    }

    pub(super) fn faults(&self) -> usize {
        self.faults.len()
    }

    /// A rule was judged about something that went on since then.
    pub(super) fn judged(&mut self, rule: Rule, since: u64) {
        for (fault, _, _) in self.faults.iter().filter(|(_, _, until)| until.is_none_or(|at| at >= since)) {
            *self.exercised.entry((rule, *fault)).or_default() += 1;
        }
    }

    /// When everything was at rest last.
    pub(super) fn rested(&self) -> u64 {
        self.rested
    }

    /// All has been looked at.
    pub(super) fn rests(&mut self) {
        self.rested = self.now;
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }

    pub(super) fn sent(&mut self, connection: u32, topic: &str, qos: QoS, retain: bool) -> u32 {
        let number = u32::try_from(self.messages.len()).unwrap();
        self.messages.push(Sent {
            connection,
            topic: topic.to_owned(),
            qos,
            retain,
            since: self.now,
            acked: None,
            mortal: false,
            maybe_twice: false,
            maybe_stored_twice: false,
            resent: false,
            copies: 1,
        });
        number
    }

    pub(super) fn retains(&mut self, number: u32, clears: bool) {
        let Sent { topic, .. } = &self.messages[number as usize];
        let of = self.retained.entry(topic.clone()).or_default();
        of.history.push(Value { number, clears, acked: None, strays: Vec::new() });
        // Without a payload it can't be told from another.
        self.messages[number as usize].mortal |= clears;
    }

    /// The connection to this node is gone, and the message has no answer.
    pub(super) fn strays(&mut self, number: u32, node: usize) {
        let topic = &self.messages[number as usize].topic;
        let history = self.retained.get_mut(topic).into_iter().flat_map(|of| &mut of.history);
        history.filter(|value| value.number == number).for_each(|value| value.strays.push(node));
    }

    pub(super) fn message(&mut self, number: u32) -> &mut Sent {
        &mut self.messages[number as usize]
    }

    /// PUBACK or PUBREC has come.
    pub(super) fn acked(&mut self, number: u32, node: usize) {
        let now = self.now;
        let Sent { acked, since, topic, retain, .. } = &mut self.messages[number as usize];
        *acked = Some(now);
        let since = *since;
        let stands_under_parent = topic.starts_with("m/") || topic.starts_with("n/");
        if *retain && let Some(of) = self.retained.get_mut(topic.as_str()) {
            for value in of.history.iter_mut().filter(|value| value.number == number) {
                value.acked = Some(node);
            }
        }
        if stands_under_parent {
            self.judged(Rule::Stored, since);
            if !self.stored.contains_key(&number) {
                self.violate(
                    Rule::Stored,
                    format!("message {number} is acknowledged, and not in its parent topic"),
                );
            }
        }
    }

    /// A record has become visible.
    pub(super) fn landed(&mut self, number: u32, message_id: &str) {
        let ids = self.stored.entry(number).or_default();
        ids.insert(message_id.to_owned());
    }

    pub(super) fn begin(&mut self, client: usize, boot: u64, inherits: bool) -> usize {
        self.incarnations.push(Incarnation {
            client,
            inherits,
            boot,
            ended: false,
            subscriptions: Vec::new(),
            received: BTreeMap::new(),
            latest: BTreeMap::new(),
        });
        self.incarnations.len() - 1
    }

    pub(super) fn incarnation(&mut self, index: usize) -> &mut Incarnation {
        &mut self.incarnations[index]
    }

    /// It may be in force from now on, or never.
    pub(super) fn asks(&mut self, incarnation: usize, filter: &str, qos: QoS) {
        self.granted(incarnation, filter, qos);
        self.gives_up(incarnation, filter);
    }

    pub(super) fn granted(&mut self, incarnation: usize, filter: &str, qos: QoS) {
        let filter = Filter::parse(filter).unwrap();
        let subscription = Subscription { filter, qos, since: self.now, until: None };
        self.incarnations[incarnation].subscriptions.push(subscription);
    }

    /// From now on nothing is sure under this filter.
    pub(super) fn gives_up(&mut self, incarnation: usize, filter: &str) {
        let now = self.now;
        for of in &mut self.incarnations[incarnation].subscriptions {
            if of.filter.as_str() == filter {
                of.until.get_or_insert(now);
            }
        }
    }

    /// The device is at another connection: nothing is promised about the order of QoS 0 over both.
    pub(super) fn reconnects(&mut self, incarnation: usize) {
        self.incarnations[incarnation].latest.retain(|(_, qos), _| *qos > QoS::AtMostOnce);
    }

    /// A message has reached the application of a session. `qos` as delivered.
    pub(super) fn received(&mut self, incarnation: usize, number: u32, qos: QoS, retained: bool) {
        if retained {
            return;
        }
        let Some(message) = self.messages.get(number as usize) else {
            return self.violate(Rule::Delivered, format!("message {number} was never sent"));
        };
        let (connection, published, since) = (message.connection, message.qos, message.since);
        let maybe_twice = message.maybe_twice;
        // The first copy may have gone for want of room.
        let maybe_late = message.resent && self.cap < NO_CAP;
        let of = &mut self.incarnations[incarnation];
        // Who subscribed after it was sent may get but the repeat of it.
        let is_due = of.subscriptions.iter().any(|one| {
            (one.qos > QoS::AtMostOnce || published == QoS::AtMostOnce)
                && one.since < since
                && one.until.is_none()
                && one.filter.matches(&message.topic)
        });
        // What came down to QoS 0 has no promise: its repeat may be the first that comes, at the QoS granted by then.
        let promised = qos > QoS::AtMostOnce || published == QoS::AtMostOnce;
        let times = of.received.entry(number).or_default();
        *times += u32::from(promised);
        let times = *times;
        if times == 1 && is_due && promised && !maybe_twice && !maybe_late {
            let latest = of.latest.entry((connection, published)).or_insert(number);
            let last = *latest;
            *latest = last.max(number);
            self.judged(Rule::Ordered, since);
            if last > number {
                let what = format!(
                    "session {incarnation}: message {number} comes after {last} of the same connection and {published:?}"
                );
                self.violate(Rule::Ordered, what);
            }
        } else if times > 1 && qos == QoS::ExactlyOnce && !maybe_twice {
            self.violate(Rule::Once, format!("message {number} has come twice at QoS 2"));
        }
        if qos == QoS::ExactlyOnce {
            self.judged(Rule::Once, since);
        }
    }

    /// Everything is at rest: what was acknowledged must have come.
    pub(super) fn settle(&mut self) {
        let mut missing = None;
        let mut judged = Vec::new();
        for (index, of) in self.incarnations.iter().enumerate().filter(|(_, of)| !of.ended) {
            let live: Vec<&Subscription> =
                of.subscriptions.iter().filter(|of| of.until.is_none() && of.qos > QoS::AtMostOnce).collect();
            let matches = |message: &Sent| {
                live.iter().any(|one| one.since < message.since && one.filter.matches(&message.topic))
            };
            let from = self.settled;
            for (number, message) in (from..).zip(&self.messages[from..]) {
                let due = message.acked.is_some() && message.qos > QoS::AtMostOnce && !message.mortal;
                if !due || !matches(message) {
                    continue;
                }
                judged.push(message.since);
                if of.received.contains_key(&u32::try_from(number).unwrap()) {
                    continue;
                }
                // What was given up, or asked for without an answer, may be in force, and fills its queue, too.
                let fills = of.subscriptions.iter().filter(|one| one.qos > QoS::AtMostOnce);
                // What has an answer may come once more for each time that it was sent without one.
                let may_come = |other: &Sent| {
                    let is_open = other.acked.is_none_or(|at| at > message.since);
                    if is_open { other.copies } else { other.copies - 1 }
                };
                let others = self.messages[from..].iter().filter(|other| {
                    let fits = of.inherits || fills.clone().any(|one| one.filter.matches(&other.topic));
                    other.qos > QoS::AtMostOnce && fits
                });
                let newer = others.map(may_come).sum::<usize>() - 1;
                if newer < self.cap {
                    let filters: Vec<_> = live.iter().map(|one| (one.filter.as_str(), one.qos)).collect();
                    missing = Some(format!(
                        "session {index} of client {} with {filters:?} never got message {number} under {:?}, acknowledged; {newer} newer",
                        of.client, message.topic
                    ));
                }
            }
        }
        judged.into_iter().for_each(|since| self.judged(Rule::Delivered, since));
        if let Some(missing) = missing {
            self.violate(Rule::Delivered, missing);
        }
        for number in self.settled..self.messages.len() {
            let message = &self.messages[number];
            let number = u32::try_from(number).unwrap();
            let Some(ids) = self.stored.get(&number).filter(|_| message.qos == QoS::ExactlyOnce) else {
                continue;
            };
            if message.maybe_stored_twice {
                continue;
            }
            let twice = ids.len() > 1;
            let what = format!("message {number} is stored under {ids:?}");
            self.judged(Rule::StoredOnce, message.since);
            if twice {
                self.violate(Rule::StoredOnce, what);
            }
        }
        self.settled = self.messages.len();
    }

    /// What a new subscriber to everything retained found on a node.
    pub(super) fn found_retained(&mut self, node: usize, found: &BTreeMap<String, u32>, since: u64) {
        let mut wrong = Vec::new();
        for (topic, of) in &self.retained {
            let sure = of.history.iter().rposition(|value| value.acked.is_some());
            let by = sure.and_then(|sure| of.history[sure].acked);
            let (before, values) = of.history.split_at(sure.unwrap_or(0));
            let late = before.iter().filter(|value| value.strays.iter().any(|node| Some(*node) != by));
            let values = || values.iter().chain(late.clone());
            let fits = match found.get(topic) {
                Some(number) => values().any(|value| value.number == *number && !value.clears),
                None => sure.is_none() || values().any(|value| value.clears),
            };
            if !fits {
                let may: Vec<_> = values().map(|value| (value.number, value.clears)).collect();
                wrong.push(format!("{topic:?} has {:?} on node {node}, may have {may:?}", found.get(topic)));
            }
        }
        self.judged(Rule::Retained, since);
        if let Some(wrong) = wrong.pop() {
            self.violate(Rule::Retained, wrong);
        }
    }
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::Crash => "crash",
            Fault::Freeze => "freeze",
            Fault::ClockSkew => "clock skew",
            Fault::StoreAway => "store away",
            Fault::NodeWithoutStore => "node without store",
            Fault::SlowStore => "slow store",
            Fault::Repeats => "repeats",
            Fault::Breaks => "breaks",
            Fault::Cut => "cut",
            Fault::Reset => "reset",
            Fault::Vanish => "vanish",
            Fault::SlowLink => "slow link",
            Fault::Takeover => "takeover",
            Fault::Stall => "stall",
            Fault::Compaction => "compaction",
        }
    }
}
