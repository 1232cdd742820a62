//! What passes between nodes that share a log besides sessions: messages for sessions that are in no log, and signs of life.
//! Owns the topic `__mqtt-relay`.
//!
//! A message is for the process runs that it names; each of them looks up by itself who gets it there. It goes by a link
//! between the two nodes where there is one, and through the log else: see [`handing`]. A node that says
//! nothing for some seconds is said to be over, by whoever hears itself and not the other. Whoever reads that of
//! itself lets its clients go, and begins anew.

mod handing;
mod rising;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use foldhash::fast::RandomState;
use mqtt_proto::{
    codec::QoS,
    durable::record::{Alive, Boot, Key, Value},
    message::{Message, MessageId, Millis},
};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::handing::{Handing, Origin};
pub(crate) use self::rising::Rising;
use super::{
    groups::Left,
    log::{BarrierPart, BarrierWaits, Place, message_of, parse, record, write_barrier},
    mailbox::Mailbox,
};
use crate::{
    limits::Trouble,
    log::{
        Cleanup, Log, LogError, Outcome, ReadLimit, Record, StoredRecord, Topic, TopicSettings,
        append_and_wait,
    },
    node::Node,
    router::{Recipient, Route, fanout::Fanout},
};

const TOPIC: &str = mqtt_broker_api::topics::RELAY;
/// Besides its message a record names the nodes that it is for.
const RECORD_BYTES: u32 = 64 * 1024;
const KEPT: Duration = Duration::from_secs(3600);
const READ: ReadLimit = ReadLimit { records: 500, bytes: 1 << 20, wait: Duration::from_secs(1) };
const RETRY: Duration = Duration::from_secs(1);
pub(crate) const BEAT: Duration = Duration::from_secs(1);
/// A node is said to be over when it has been silent for this long.
const SILENCE: Duration = Duration::from_secs(3);
/// Who has not heard itself for this long, though another has all the time, is over for that one, and can't read that it is.
const CUT_OFF: Duration = Duration::from_secs(5);
/// Who hears itself later than this after it spoke, or not as often, can't tell who is silent.
const LATE: Duration = Duration::from_millis(1500);
/// QoS 2 messages that are known, should they come again.
const REMEMBERED: usize = 1 << 16;

/// See the module.
pub(crate) struct Relay {
    log: Arc<dyn Log>,
    topic: Topic,
    boot: Boot,
    name: Box<str>,
    began: Instant,
    /// All records before this one have been read.
    next: Rising,
    handing: Handing,
    origins: Mutex<HashMap<Boot, Arc<Origin>, RandomState>>,
    heard: Mutex<Heard>,
    recent: Mutex<Recent>,
    barriers: Mutex<BarrierWaits>,
    /// That live, with this one.
    nodes: AtomicU64,
}

/// What was read of each process run.
struct Heard {
    alive: HashMap<Boot, Sign, RandomState>,
    /// Of others, as they say by links.
    in_touch: Option<InTouch>,
    /// When this process run last read a sign of its own, however late that was.
    read: Instant,
    /// When this process run read its own sign last, and since when it has done so in time.
    own: Instant,
    in_time_since: Instant,
    said: HashSet<Boot, RandomState>,
}

#[derive(Clone, Copy)]
struct Sign {
    at: Instant,
    used: Used,
}

/// What a node uses of the instance's limits.
#[derive(Clone, Copy, Default)]
pub(crate) struct Used {
    pub(crate) connections: u64,
    /// Of sessions in no log: those in the log every node counts itself.
    pub(crate) subscriptions: u64,
}

/// That another node is in touch with the log.
struct InTouch {
    /// Which one said so last.
    name: String,
    /// Since when there was one all the time.
    since: Instant,
    said: Instant,
}

impl InTouch {
    fn counts(&self) -> bool {
        self.said.elapsed() < BEAT + LATE
    }
}

/// The last QoS 2 messages that sessions in no log got here.
#[derive(Default)]
struct Recent {
    known: HashSet<MessageId, RandomState>,
    order: VecDeque<MessageId>,
}

impl Heard {
    fn live(&self) -> impl Iterator<Item = &Sign> {
        self.alive.values().filter(|sign| sign.at.elapsed() < SILENCE)
    }
}

impl Relay {
    /// From here on nothing is missed that is for this process run.
    pub(crate) async fn open(
        log: Arc<dyn Log>,
        boot: Boot,
        place: Place<'_>,
        packet_size: u32,
        now: Millis,
    ) -> Result<Relay, LogError> {
        let settings = TopicSettings {
            partitions: 1,
            cleanup: Cleanup::Retention { age: Some(KEPT), bytes: None },
            record_bytes: packet_size.saturating_add(RECORD_BYTES),
        };
        let topic = log.ensure_topic(TOPIC, settings).await?;
        let began = Instant::now();
        let first = sign(boot, place.node, began, Used::default(), now);
        let Outcome::Durable(next) = append_and_wait(&*log, &topic, 0, first).await else {
            return Err(LogError::Store(format!("topic {TOPIC} takes no records")));
        };
        let heard = Heard {
            alive: HashMap::default(),
            in_touch: None,
            read: began,
            own: began,
            in_time_since: began,
            said: HashSet::default(),
        };
        Ok(Relay {
            log,
            topic,
            boot,
            name: place.node.into(),
            began,
            next: Rising::new(next),
            handing: Handing::default(),
            origins: Mutex::default(),
            heard: Mutex::new(heard),
            recent: Mutex::default(),
            barriers: Mutex::default(),
            nodes: AtomicU64::new(1),
        })
    }

    /// Of a node that serves alone, and wants to know whether it does.
    pub(crate) async fn open_beside(node: &Node) -> Result<Relay, LogError> {
        let place = Place { node: "", partitions: 1, shared: false };
        let packet_size = node.settings().limits().packet_size;
        Relay::open(node.log.clone(), node.boot, place, packet_size, node.wall()).await
    }

    /// Writes a barrier: who publishes behind it is not ahead of what was passed on before.
    pub(crate) fn write_barrier(&self, number: u64, now: Millis) -> BarrierPart {
        let waits = &mut self.barriers.lock();
        write_barrier(&*self.log, (&self.topic, 0), (self.boot, number), now, waits)
    }

    /// False if sessions in no log have had a message of this QoS and name here; from now on they have.
    pub(crate) fn is_new(&self, qos: QoS, mid: MessageId) -> bool {
        qos != QoS::ExactlyOnce || self.recent.lock().insert(mid)
    }

    /// No session here has had this message after all: it may come back from another node.
    pub(crate) fn was_not_given(&self, mid: MessageId) {
        let mut recent = self.recent.lock();
        if recent.known.remove(&mid) {
            recent.order.retain(|known| *known != mid);
        }
    }

    /// What this node is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What the other nodes that live use, as they said last.
    pub(crate) fn used_elsewhere(&self) -> Used {
        let heard = self.heard.lock();
        heard.live().fold(Used::default(), |all, sign| Used {
            connections: all.connections + sign.used.connections,
            subscriptions: all.subscriptions + sign.used.subscriptions,
        })
    }

    /// Nodes that live, with this one, as of the last second.
    pub(crate) fn nodes(&self) -> u64 {
        self.nodes.load(Ordering::Relaxed)
    }

    /// The process runs that say within some seconds that they live, for who does not follow otherwise.
    pub(crate) async fn hear_out(&self) -> Result<HashSet<Boot, RandomState>, LogError> {
        let until = Instant::now() + SILENCE + LATE;
        let mut heard = HashSet::default();
        while Instant::now() < until {
            let from = self.next.get();
            let batch = self.log.read(&self.topic, 0, from, READ).await?;
            for stored in &batch.records {
                if let (Key::Alive { boot }, Some(_)) = parse(&self.topic, 0, stored)? {
                    heard.insert(boot);
                }
            }
            self.next.raise(batch.next);
        }
        Ok(heard)
    }

    /// Reads on until the task is aborted.
    pub(crate) async fn follow(node: Arc<Node>) {
        let Some(relay) = &node.relay else { return };
        let mut trouble = Trouble::default();
        loop {
            match relay.read_on(&node).await {
                Ok(never) => match never {},
                Err(LogError::Lost { .. } | LogError::Ahead { .. }) => {
                    tracing::error!("topic {TOPIC}: messages are gone that were not read: beginning anew");
                    return node.sessions.end_here();
                }
                Err(error) => {
                    let line = error.to_string();
                    if trouble.is_due(&line) {
                        tracing::error!("messages of other nodes: {line}; trying again");
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Whether this node reads back from the log what it writes there.
    pub(crate) fn is_in_touch(&self) -> bool {
        self.heard.lock().own.elapsed() < BEAT + LATE
    }

    /// That node is, as it says by a link.
    pub(crate) fn peer_is_in_touch(&self, name: &str) {
        let (mut heard, now) = (self.heard.lock(), Instant::now());
        let since =
            heard.in_touch.as_ref().filter(|before| before.counts()).map_or(now, |before| before.since);
        heard.in_touch = Some(InTouch { name: name.to_owned(), since, said: now });
    }

    /// The node that is in touch with the log, should this one alone not be; `began`: when it began to look. After an outage
    /// for all, who comes back first is no reason for the others to go.
    fn cut_off(&self, began: Instant) -> Option<String> {
        let heard = self.heard.lock();
        let other = heard.in_touch.as_ref().filter(|other| other.counts())?;
        let alone_since = heard.read.max(began).max(other.since);
        (alone_since.elapsed() > CUT_OFF).then(|| other.name.clone())
    }

    /// Says that this node lives, and which does not, until the task is aborted; ends this process run when others are in touch
    /// with the log and it is not: where none is, no other could do better.
    pub(crate) async fn watch(node: Arc<Node>) {
        let Some(relay) = &node.relay else { return };
        let began = Instant::now();
        let mut ticks = tokio::time::interval(BEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let used = Used {
                connections: node.connections.count(),
                subscriptions: node.router.clean_subscriptions(),
            };
            let sign = sign(relay.boot, &relay.name, relay.began, used, node.wall());
            relay.log.append(&relay.topic, 0, sign, node.bridge.nobody());
            relay.nodes.store(relay.heard.lock().live().count() as u64 + 1, Ordering::Relaxed);
            if let Some(other) = relay.cut_off(began) {
                tracing::error!(
                    "the log has been out of reach for {} s, and node {other} reaches it: devices are better off there",
                    CUT_OFF.as_secs()
                );
                return node.sessions.end_here();
            }
            let others = node.sessions.others();
            relay.forget(|boot| !others.contains_key(&boot));
            node.sessions.forget_leases(|boot| !others.contains_key(&boot));
            for boot in relay.silent(&node.sessions.current_runs()) {
                tracing::warn!(boot, "a node has said nothing for {} s: it is over", SILENCE.as_secs());
                node.sessions.say_down(boot, node.wall());
            }
        }
    }

    /// The runs of these that have been silent for too long, each once.
    fn silent(&self, current: &[Boot]) -> Vec<Boot> {
        let mut heard = self.heard.lock();
        let now = Instant::now();
        let Heard { alive, own, in_time_since, said, .. } = &mut *heard;
        alive.retain(|boot, _| current.contains(boot));
        said.retain(|boot| current.contains(boot));
        if own.elapsed() > LATE {
            return Vec::new();
        }
        let mut silent = Vec::new();
        for boot in current.iter().copied().filter(|boot| *boot != self.boot) {
            let last =
                alive.entry(boot).or_insert(Sign { at: now, used: Used::default() }).at.max(*in_time_since);
            if last.elapsed() > SILENCE && said.insert(boot) {
                silent.push(boot);
            }
        }
        silent
    }

    async fn read_on(&self, node: &Arc<Node>) -> Result<std::convert::Infallible, LogError> {
        loop {
            let from = self.next.get();
            let batch = self.log.read(&self.topic, 0, from, READ).await?;
            let mut fanout = Fanout::default();
            for stored in &batch.records {
                self.take(node, stored, &mut fanout)?;
            }
            relieve(node, &mut fanout);
            self.next.raise(batch.next);
        }
    }

    fn take(&self, node: &Arc<Node>, stored: &StoredRecord, fanout: &mut Fanout) -> Result<(), LogError> {
        match parse(&self.topic, 0, stored)? {
            (Key::Alive { boot }, Some(Value::Alive(alive))) => self.hear(boot, &alive),
            (Key::Passed { boot, sequence }, Some(Value::Passed(passed))) => {
                self.seen(&passed.to, stored.offset);
                if boot != self.boot && passed.to.contains(&self.boot) {
                    self.take_logged(node, (boot, sequence), &passed, fanout);
                }
            }
            (Key::Barrier { boot }, Some(Value::Barrier(number))) if boot == self.boot => {
                self.barriers.lock().passed(number);
            }
            _ => {}
        }
        Ok(())
    }

    /// Milliseconds since this began; steady.
    fn elapsed(&self) -> Millis {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn hear(&self, boot: Boot, alive: &Alive<'_>) {
        let mut heard = self.heard.lock();
        let now = Instant::now();
        if boot != self.boot {
            let used = Used { connections: alive.connections, subscriptions: alive.subscriptions };
            heard.alive.insert(boot, Sign { at: now, used });
            return;
        }
        heard.read = now;
        let spoken = self.began + Duration::from_millis(alive.at);
        if now.saturating_duration_since(spoken) > LATE {
            return;
        }
        if heard.own.elapsed() > BEAT + LATE {
            heard.in_time_since = now;
        }
        heard.own = now;
    }

    /// To the sessions here that get it by no other way.
    fn deliver(&self, node: &Arc<Node>, message: Arc<Message>, group: Option<&str>, fanout: &mut Fanout) {
        if !self.is_new(message.qos, message.id) {
            return;
        }
        let settings = node.settings();
        let caps = settings.caps();
        let Some(group) = group else {
            let route = Arc::new(node.router.route(message.topic()));
            fanout.push(&route, message, caps, &node.counters);
            return fanout.flush(caps, &node.counters);
        };
        let share = node.router.share(group);
        let is_here = |member: &Recipient| {
            let is_kept = member.logged.is_some() && message.qos.min(member.qos) > QoS::AtMostOnce;
            member.mailbox.is_online() && !is_kept
        };
        let sharing = settings.config.session.sharing;
        let chosen = share.as_ref().and_then(|share| share.choose(sharing, message.topic(), is_here));
        if !chosen.is_some_and(|member| fanout.hand(member, &message, caps, &node.counters)) {
            // It has gone meanwhile.
            self.was_not_given(message.id);
            node.hand_out(vec![Left { name: group.into(), mid: message.id, message }], 0);
        }
    }
}

impl Recent {
    fn insert(&mut self, mid: MessageId) -> bool {
        if !self.known.insert(mid) {
            return false;
        }
        self.order.push_back(mid);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// The process runs of other nodes on which sessions get this message that do not get it through the session log.
pub(crate) fn elsewhere(route: &Route, message: &Message) -> Vec<Boot> {
    let mut boots = Vec::new();
    for to in &route.recipients {
        let is_unlogged = || message.qos.min(to.qos) == QoS::AtMostOnce;
        let boot = to.mailbox.elsewhere().filter(|_| to.logged.is_none() || is_unlogged());
        boots.extend(boot.filter(|boot| !boots.contains(boot)));
    }
    boots
}

/// Wakes who got something. Nobody can be made to wait here: the oldest goes of a queue that is far too long.
fn relieve(node: &Node, fanout: &mut Fanout) {
    fanout.wake();
    let caps = node.settings().caps();
    let is_full = |mailbox: &Arc<Mailbox>| mailbox.len() > caps.online.saturating_mul(2);
    for mailbox in fanout.congested.drain(..).filter(is_full) {
        node.counters.queue_full_drops.add(mailbox.drop_surplus(caps) as u64);
    }
}

fn sign(boot: Boot, node: &str, began: Instant, used: Used, now: Millis) -> Record {
    let Used { connections, subscriptions } = used;
    let at = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    record(&Key::Alive { boot }, Some(Value::Alive(Alive { node, at, connections, subscriptions })), now)
}
