//! What was promised and what came of it: owns every message sent, every session and its subscriptions as the clients
//! know them, and the rules that all of it must keep.

mod groups;
mod retained;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

use mqtt_proto::{codec::QoS, topic::Filter};
use tokio::time::Instant;

pub(in crate::simulation) use self::groups::{GROUPS, Group};
use self::retained::RetainedTopic;

/// What must hold, whatever happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::simulation) enum Rule {
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
    /// A publish that was acknowledged reaches a member of each group that had one before.
    Shared,
    /// QoS 2 reaches a member of a group once, and one member where none ends with its node.
    SharedOnce,
    /// Only members get what goes to a group.
    Members,
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

pub(in crate::simulation) const RULES: [Rule; 15] = [
    Rule::Delivered,
    Rule::Once,
    Rule::Ordered,
    Rule::Stored,
    Rule::StoredOnce,
    Rule::Shared,
    Rule::SharedOnce,
    Rule::Members,
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
pub(in crate::simulation) enum Fault {
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
    Apart,
    SlowLinks,
    BrokenLinks,
}

pub(in crate::simulation) const FAULTS: [Fault; 18] = [
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
    Fault::Apart,
    Fault::SlowLinks,
    Fault::BrokenLinks,
];

/// How often a rule was judged about something that a fault came in between.
pub(in crate::simulation) type Exercised = BTreeMap<(Rule, Fault), u64>;

/// One line of what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::simulation) struct Event {
    pub(in crate::simulation) at: u128,
    pub(in crate::simulation) who: &'static str,
    pub(in crate::simulation) index: usize,
    pub(in crate::simulation) what: &'static str,
    pub(in crate::simulation) number: u64,
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
pub(in crate::simulation) const NO_CAP: usize = 100_000;

/// A message, named by its number, which is its payload.
pub(in crate::simulation) struct Sent {
    /// Among all connections of all clients.
    connection: u32,
    pub(in crate::simulation) topic: String,
    pub(in crate::simulation) qos: QoS,
    pub(in crate::simulation) retain: bool,
    since: u64,
    pub(in crate::simulation) acked: Option<u64>,
    /// It is not waited for.
    pub(in crate::simulation) mortal: bool,
    /// Sent again to a session that did not know it: it may come twice.
    pub(in crate::simulation) maybe_twice: bool,
    /// Its session ended in between, so that it may be stored twice.
    pub(in crate::simulation) maybe_stored_twice: bool,
    pub(in crate::simulation) resent: bool,
    /// When it was sent once more for the first time.
    pub(in crate::simulation) again: Option<u64>,
    /// How often it was sent as another one.
    pub(in crate::simulation) copies: usize,
}

/// A session from its beginning to its end.
pub(in crate::simulation) struct Incarnation {
    client: usize,
    /// It may have subscriptions of which nothing is known here.
    inherits: bool,
    /// It goes with its connection, and with the process run that it is at.
    clean: bool,
    pub(in crate::simulation) boot: u64,
    pub(in crate::simulation) ended: bool,
    /// It surely ended before this.
    over: Option<u64>,
    subscriptions: Vec<Subscription>,
    received: BTreeMap<u32, u32>,
    latest: BTreeMap<(u32, QoS), u32>,
}

#[derive(Clone)]
struct Subscription {
    name: String,
    /// What it is compared with.
    filter: Filter,
    group: Option<&'static Group>,
    qos: QoS,
    since: u64,
    /// From then on nothing is sure.
    until: Option<u64>,
    /// From then on it is surely off.
    off: Option<u64>,
}

pub(in crate::simulation) struct Ledger {
    began: Instant,
    /// Orders everything.
    now: u64,
    trace: Trace,
    messages: Vec<Sent>,
    incarnations: Vec<Incarnation>,
    /// Message IDs in parent topics, by message.
    stored: BTreeMap<u32, BTreeSet<String>>,
    retained: BTreeMap<String, RetainedTopic>,
    /// Who got what through which group, by group and message: sessions, and when.
    shared: BTreeMap<(u32, u32), Vec<(usize, u64)>>,
    /// The process run of each node that serves, and when those before were surely known to be over.
    serving: BTreeMap<usize, u64>,
    over: BTreeMap<u64, u64>,
    faults: Vec<(Fault, u64, Option<u64>)>,
    /// The messages before are settled.
    settled: usize,
    settled_shared: usize,
    /// When that was.
    rested: u64,
    /// Newer messages that may push one out of its queue.
    pub(in crate::simulation) cap: usize,
    pub(in crate::simulation) exercised: Exercised,
    pub(in crate::simulation) violation: Option<String>,
}

impl Ledger {
    /// `kept`: events that are kept to be looked at.
    pub(in crate::simulation) fn new(cap: usize, kept: usize) -> Ledger {
        Ledger {
            began: Instant::now(),
            now: 0,
            trace: Trace { kept, ..Trace::default() },
            messages: Vec::new(),
            incarnations: Vec::new(),
            stored: BTreeMap::new(),
            retained: BTreeMap::new(),
            shared: BTreeMap::new(),
            serving: BTreeMap::new(),
            over: BTreeMap::new(),
            faults: Vec::new(),
            settled: 0,
            settled_shared: 0,
            rested: 0,
            cap,
            exercised: Exercised::new(),
            violation: None,
        }
    }

    pub(in crate::simulation) fn event(
        &mut self,
        who: &'static str,
        index: usize,
        what: &'static str,
        number: u64,
    ) {
        let event = Event { at: self.began.elapsed().as_millis(), who, index, what, number };
        event.hash(&mut self.trace.hash);
        if self.trace.last.len() == self.trace.kept {
            self.trace.last.pop_front();
        }
        self.trace.last.push_back(event);
        self.now += 1;
    }

    /// The same for the same seed.
    pub(in crate::simulation) fn hash(&self) -> u64 {
        self.trace.hash.finish()
    }

    /// The last events, oldest first.
    pub(in crate::simulation) fn events(&self) -> Vec<Event> {
        self.trace.last.iter().copied().collect()
    }

    /// The first is what counts.
    pub(in crate::simulation) fn violate(&mut self, rule: Rule, what: String) {
        if self.violation.is_none() {
            let at = self.began.elapsed();
            let events = self.trace.last.iter().map(Event::to_string).collect::<Vec<_>>().join("\n");
            self.violation = Some(format!("{rule:?} at {at:?}: {what}\nbefore that:\n{events}"));
        }
    }

    pub(in crate::simulation) fn fault_begins(&mut self, fault: Fault, index: usize) -> usize {
        self.event("fault", index, fault.name(), 0);
        self.faults.push((fault, self.now, None));
        self.faults.len() - 1
    }

    pub(in crate::simulation) fn fault_ends(&mut self, fault: usize) {
        let name = self.faults[fault].0.name();
        self.event("fault", fault, name, 1);
        self.faults[fault].2 = Some(self.now);
    }

    pub(in crate::simulation) fn faults(&self) -> usize {
        self.faults.len()
    }

    /// A rule was judged about something that went on since then.
    pub(in crate::simulation) fn judged(&mut self, rule: Rule, since: u64) {
        for (fault, _, _) in self.faults.iter().filter(|(_, _, until)| until.is_none_or(|at| at >= since)) {
            *self.exercised.entry((rule, *fault)).or_default() += 1;
        }
    }

    /// When everything was at rest last.
    pub(in crate::simulation) fn rested(&self) -> u64 {
        self.rested
    }

    /// All has been looked at.
    pub(in crate::simulation) fn rests(&mut self) {
        self.rested = self.now;
    }

    pub(in crate::simulation) fn now(&self) -> u64 {
        self.now
    }

    pub(in crate::simulation) fn sent(
        &mut self,
        connection: u32,
        topic: &str,
        qos: QoS,
        retain: bool,
    ) -> u32 {
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
            again: None,
            copies: 1,
        });
        number
    }

    pub(in crate::simulation) fn message(&mut self, number: u32) -> &mut Sent {
        &mut self.messages[number as usize]
    }

    /// PUBACK or PUBREC has come.
    pub(in crate::simulation) fn acked(&mut self, number: u32, node: usize) {
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
    pub(in crate::simulation) fn landed(&mut self, number: u32, message_id: &str) {
        let ids = self.stored.entry(number).or_default();
        ids.insert(message_id.to_owned());
    }

    pub(in crate::simulation) fn begin(
        &mut self,
        client: usize,
        boot: u64,
        inherits: bool,
        clean: bool,
    ) -> usize {
        let subscriptions = self.memberships_before(client, inherits);
        self.incarnations.push(Incarnation {
            client,
            inherits,
            clean,
            boot,
            ended: false,
            over: None,
            subscriptions,
            received: BTreeMap::new(),
            latest: BTreeMap::new(),
        });
        self.incarnations.len() - 1
    }

    pub(in crate::simulation) fn incarnation(&mut self, index: usize) -> &mut Incarnation {
        &mut self.incarnations[index]
    }

    /// It may be in force from now on, or never.
    pub(in crate::simulation) fn asks(&mut self, incarnation: usize, name: &str, qos: QoS) {
        self.granted(incarnation, name, qos);
        self.gives_up(incarnation, name);
    }

    pub(in crate::simulation) fn granted(&mut self, incarnation: usize, name: &str, qos: QoS) {
        let group = Group::named(name);
        let filter = Filter::parse(group.map_or(name, |group| group.filter)).unwrap();
        let (name, since) = (name.to_owned(), self.now);
        let subscription = Subscription { name, filter, group, qos, since, until: None, off: None };
        self.incarnations[incarnation].subscriptions.push(subscription);
    }

    /// From now on nothing is sure under this filter.
    pub(in crate::simulation) fn gives_up(&mut self, incarnation: usize, name: &str) {
        let now = self.now;
        for of in &mut self.incarnations[incarnation].subscriptions {
            if of.name == name {
                of.until.get_or_insert(now);
            }
        }
    }

    /// It is off, as far as it was asked for before.
    pub(in crate::simulation) fn off(&mut self, incarnation: usize, name: &str) {
        let now = self.now;
        for of in &mut self.incarnations[incarnation].subscriptions {
            if of.name == name {
                of.off.get_or_insert(now);
            }
        }
    }

    /// The device is at another connection: nothing is promised about the order of QoS 0 over both.
    pub(in crate::simulation) fn reconnects(&mut self, incarnation: usize) {
        self.incarnations[incarnation].latest.retain(|(_, qos), _| *qos > QoS::AtMostOnce);
    }

    /// A message has reached the application of a session. `qos` as delivered.
    pub(in crate::simulation) fn received(
        &mut self,
        incarnation: usize,
        number: u32,
        qos: QoS,
        retained: bool,
    ) {
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
            one.group.is_none()
                && (one.qos > QoS::AtMostOnce || published == QoS::AtMostOnce)
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
    pub(in crate::simulation) fn settle(&mut self) {
        let mut missing = None;
        let mut judged = Vec::new();
        for (index, of) in self.incarnations.iter().enumerate().filter(|(_, of)| !of.ended) {
            let own = of.subscriptions.iter().filter(|of| of.group.is_none());
            let live: Vec<&Subscription> =
                own.filter(|of| of.until.is_none() && of.qos > QoS::AtMostOnce).collect();
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
                // Each group gives it a copy of its own.
                let ways = |other: &Sent| {
                    let fitting = fills.clone().filter(|one| one.filter.matches(&other.topic));
                    let groups = fitting.map(|one| one.group.map(|group| group.id));
                    groups.collect::<BTreeSet<_>>().len().max(of.inherits.into())
                };
                let others = self.messages[from..].iter().filter(|other| other.qos > QoS::AtMostOnce);
                let newer = others.map(|other| ways(other) * may_come(other)).sum::<usize>() - 1;
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
            Fault::Apart => "apart",
            Fault::SlowLinks => "slow links",
            Fault::BrokenLinks => "broken links",
        }
    }
}
