//! A model client: a device that speaks MQTT through the codec, keeps to the protocol, and knows what it was promised.

mod hear;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use mqtt_proto::codec::{
    Ack, AckKind, Connect, ConnectProperties, Disconnect, Packet, Publish, QoS, Reason, RetainHandling,
    Subscribe, SubscribeFilter, Unsubscribe, Version, Will, WillProperties,
};
use tokio::time::Instant;

use super::{
    ledger::{Group, Ledger},
    net::Wire,
};

/// Until CONNACK must have come, and an answer to anything.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that are remembered; what is older is surely closed.
const KEPT_WIRES: usize = 10;
/// Publishes without an answer.
const MOST_UNFINISHED: usize = 20;

/// What a device is, for good.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub(super) index: usize,
    pub(super) version: Version,
    /// Seconds; 0: none of its sessions outlives its connection.
    pub(super) expiry: u32,
    pub(super) keep_alive: u16,
    pub(super) receive_maximum: u16,
}

pub(super) struct Client {
    pub(super) kind: Kind,
    pub(super) random: fastrand::Rng,
    /// Where it connects next.
    pub(super) node: usize,
    /// It shall be online.
    pub(super) wanted: bool,
    /// Its next CONNECT asks for a clean start.
    pub(super) cleans: bool,
    /// It keeps its acknowledgements back.
    pub(super) stalled: bool,
    pub(super) link: Option<Link>,
    /// All that a node may still have open.
    pub(super) wires: Vec<Arc<Wire>>,
    session: Known,
    /// Connections that it gave up before they were answered and that asked for a clean start: what a node reads late it may
    /// carry out late. Those since it was let in last, and those that were open still at that time.
    given_up: Vec<Arc<Wire>>,
    stale: Vec<Arc<Wire>>,
    next_id: u16,
    unfinished: VecDeque<Unfinished>,
    /// QoS 2 identifiers between PUBLISH and PUBREL, with the message.
    held: BTreeMap<u16, u32>,
    /// QoS 1 identifiers whose PUBACK is kept back.
    kept_back: VecDeque<(AckKind, u16)>,
    unacked: BTreeMap<u16, u32>,
    asked: BTreeMap<u16, Asked>,
    pub(super) heard_publish: Instant,
}

/// A connection of this client.
pub(super) struct Link {
    pub(super) wire: Arc<Wire>,
    pub(super) connection: u32,
    pub(super) boot: u64,
    clean: bool,
    begun: Instant,
    since: u64,
    pub(super) up: bool,
    unread: BytesMut,
    silent_until: Option<Instant>,
    ping_at: Option<Instant>,
}

/// What a client knows of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Never,
    Live(usize),
    /// A CONNECT or a close of unknown effect came last.
    Unknown,
}

struct Unfinished {
    packet_id: u16,
    number: u32,
    topic: String,
    qos: QoS,
    retain: bool,
    clears: bool,
    released: bool,
    sent: bool,
}

enum Asked {
    Subscribe(String, QoS),
    Unsubscribe(String),
    /// It asked otherwise since.
    Superseded,
}

impl Kind {
    fn may_join(&self, group: &Group) -> bool {
        self.version == Version::V5 && (self.expiry > 0 || !group.is_logged)
    }
}

impl Client {
    pub(super) fn new(kind: Kind, random: fastrand::Rng) -> Client {
        Client {
            node: kind.index,
            kind,
            random,
            wanted: true,
            cleans: false,
            stalled: false,
            link: None,
            wires: Vec::new(),
            session: Known::Never,
            given_up: Vec::new(),
            stale: Vec::new(),
            next_id: 0,
            unfinished: VecDeque::new(),
            held: BTreeMap::new(),
            kept_back: VecDeque::new(),
            unacked: BTreeMap::new(),
            asked: BTreeMap::new(),
            heard_publish: Instant::now(),
        }
    }

    pub(super) fn is_online(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.up)
    }

    pub(super) fn is_done(&self) -> bool {
        self.is_online() && self.unfinished.is_empty() && self.asked.is_empty()
    }

    /// Sends CONNECT on a new connection.
    pub(super) fn begin(&mut self, ledger: &mut Ledger, wire: Arc<Wire>, connection: u32, boot: u64) {
        let Kind { index, version, expiry, keep_alive, receive_maximum } = self.kind;
        let clean = std::mem::take(&mut self.cleans)
            || (expiry == 0 && (version != Version::V5 || self.random.bool()));
        if clean {
            self.end_session(ledger);
            self.drop_state();
        }
        ledger.event("client", index, if clean { "CONNECT clean" } else { "CONNECT" }, connection.into());
        let will = (self.random.u32(0..3) == 0).then(|| {
            let delay = if expiry > 0 { self.random.u32(0..6) } else { 0 };
            let qos = [QoS::AtLeastOnce, QoS::ExactlyOnce][self.random.usize(0..2)];
            // A connection of its own: it has no order with anything.
            let number = ledger.sent(connection + (1 << 31), "t/will", qos, false);
            (number.to_string(), delay, qos)
        });
        let client_id = format!("device-{index}");
        let packet = Packet::Connect(Connect {
            version,
            clean_start: clean,
            keep_alive,
            client_id: &client_id,
            will: will.as_ref().map(|(payload, delay_interval, qos)| Will {
                qos: *qos,
                retain: false,
                topic: "t/will",
                payload: payload.as_bytes(),
                properties: WillProperties { delay_interval: *delay_interval, ..Default::default() },
            }),
            username: None,
            password: None,
            properties: ConnectProperties {
                session_expiry_interval: expiry,
                receive_maximum,
                ..Default::default()
            },
        });
        let mut out = BytesMut::new();
        packet.encode(version, &mut out);
        wire.send(out.freeze());
        let (kept, recent) = (KEPT_WIRES, self.wires.len());
        self.wires.drain(..recent.saturating_sub(kept));
        self.wires.push(wire.clone());
        self.link = Some(Link {
            wire,
            connection,
            boot,
            clean,
            begun: Instant::now(),
            since: ledger.now(),
            up: false,
            unread: BytesMut::new(),
            silent_until: Some(Instant::now() + CONNECT_TIMEOUT),
            ping_at: None,
        });
    }

    /// The connection is gone.
    pub(super) fn lost(&mut self, ledger: &mut Ledger) {
        let Some(link) = self.link.take() else { return };
        ledger.event("client", self.kind.index, "offline", link.connection.into());
        if link.clean && !link.up {
            self.given_up.push(link.wire.clone());
        }
        for one in self.unfinished.iter().filter(|one| one.sent && one.retain && !one.released) {
            ledger.strays(one.number, link.wire.node);
        }
        if self.kind.expiry == 0 || (link.clean && self.kind.version != Version::V5) {
            self.end_session(ledger);
        } else if !link.up {
            // It may have begun a session nevertheless.
            if !matches!(self.session, Known::Live(_)) {
                self.session = Known::Unknown;
            }
        }
        self.unfinished.iter_mut().for_each(|one| one.sent = false);
        if let Known::Live(incarnation) = self.session {
            for asked in self.asked.values() {
                if let Asked::Subscribe(filter, _) = asked {
                    ledger.gives_up(incarnation, filter);
                }
            }
        }
        self.asked.clear();
        self.kept_back.clear();
        self.unacked.clear();
    }

    fn end_session(&mut self, ledger: &mut Ledger) {
        if let Known::Live(incarnation) = self.session {
            ledger.incarnation(incarnation).ended = true;
        }
        if self.session != Known::Never {
            self.session = Known::Unknown;
        }
    }

    fn drop_state(&mut self) {
        self.unfinished.clear();
        self.held.clear();
    }

    /// When [`Client::tick`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let link = self.link.as_ref()?;
        [link.silent_until, link.ping_at].into_iter().flatten().min()
    }

    /// False: the node does not answer.
    pub(super) fn tick(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        if link.silent_until.is_some_and(|at| at <= Instant::now()) {
            return false;
        }
        if link.ping_at.is_some_and(|at| at <= Instant::now()) {
            link.ping_at = Some(Instant::now() + Duration::from_secs(self.kind.keep_alive.into()) / 2);
            self.send(&Packet::PingReq, true);
        }
        true
    }

    fn send(&mut self, packet: &Packet<'_>, wants_answer: bool) {
        let Some(link) = &mut self.link else { return };
        let mut out = BytesMut::new();
        packet.encode(self.kind.version, &mut out);
        link.wire.send(out.freeze());
        if wants_answer {
            link.silent_until.get_or_insert(Instant::now() + ANSWER_TIMEOUT);
        }
    }

    /// Publishes a message, if it may now.
    pub(super) fn publish(&mut self, ledger: &mut Ledger, topic: &str, qos: QoS, retain: bool, clears: bool) {
        let Some(link) = self.link.as_ref().filter(|link| link.up) else { return };
        if self.unfinished.len() >= MOST_UNFINISHED {
            return;
        }
        let number = ledger.sent(link.connection, topic, qos, retain);
        ledger.event(
            "client",
            self.kind.index,
            ["PUBLISH 0", "PUBLISH 1", "PUBLISH 2"][qos as usize],
            number.into(),
        );
        if retain {
            ledger.retains(number, clears);
        }
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { self.free_id() };
        let one = Unfinished {
            packet_id,
            number,
            topic: topic.to_owned(),
            qos,
            retain,
            clears,
            released: false,
            sent: true,
        };
        self.send_publish(&one, false);
        if qos > QoS::AtMostOnce {
            self.unfinished.push_back(one);
        }
    }

    fn send_publish(&mut self, one: &Unfinished, dup: bool) {
        let filler = if one.number.is_multiple_of(30) { ".".repeat(3000) } else { String::new() };
        let payload = if one.clears { String::new() } else { format!("{}{filler}", one.number) };
        let publish = Publish {
            dup,
            qos: one.qos,
            retain: one.retain,
            topic: &one.topic,
            packet_id: one.packet_id,
            properties: Default::default(),
            payload: payload.as_bytes(),
        };
        self.send(&Packet::Publish(publish), one.qos > QoS::AtMostOnce);
    }

    fn free_id(&mut self) -> u16 {
        loop {
            self.next_id = self.next_id % 200 + 1;
            let used = self.unfinished.iter().any(|one| one.packet_id == self.next_id);
            if !used && !self.asked.contains_key(&self.next_id) {
                return self.next_id;
            }
        }
    }

    pub(super) fn subscribe(&mut self, ledger: &mut Ledger, filter: &str, qos: QoS) {
        let Known::Live(incarnation) = self.session else { return };
        let group = Group::named(filter);
        if !self.is_online() || group.is_some_and(|group| !self.kind.may_join(group)) {
            return;
        }
        ledger.event(
            "client",
            self.kind.index,
            if group.is_some() { "SUBSCRIBE shared" } else { "SUBSCRIBE" },
            qos as u64,
        );
        // Until SUBACK the former options and the new ones may both be in force.
        ledger.gives_up(incarnation, filter);
        ledger.asks(incarnation, filter, qos);
        self.supersede(filter);
        let packet_id = self.free_id();
        let filters = [SubscribeFilter {
            filter,
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::SendAlways,
        }];
        let filters = filters.into_iter().collect();
        let subscription_id = group.map(|group| group.id);
        let packet = Subscribe { packet_id, subscription_id, filters, user: Vec::new() };
        self.asked.insert(packet_id, Asked::Subscribe(filter.to_owned(), qos));
        self.send(&Packet::Subscribe(packet), true);
    }

    pub(super) fn unsubscribe(&mut self, ledger: &mut Ledger, filter: &str) {
        let Known::Live(incarnation) = self.session else { return };
        if !self.is_online() {
            return;
        }
        ledger.event("client", self.kind.index, "UNSUBSCRIBE", 0);
        ledger.gives_up(incarnation, filter);
        self.supersede(filter);
        let packet_id = self.free_id();
        let filters = [filter].into_iter().collect();
        self.asked.insert(packet_id, Asked::Unsubscribe(filter.to_owned()));
        self.send(&Packet::Unsubscribe(Unsubscribe { packet_id, filters, user: Vec::new() }), true);
    }

    /// The answer to what it asked before about a filter says nothing any more.
    fn supersede(&mut self, filter: &str) {
        let is_it = |asked: &&mut Asked| match asked {
            Asked::Subscribe(name, _) | Asked::Unsubscribe(name) => *name == filter,
            Asked::Superseded => false,
        };
        self.asked.values_mut().filter(is_it).for_each(|asked| *asked = Asked::Superseded);
    }

    /// Says goodbye and closes. `keeps_will`: it wants its will published.
    pub(super) fn disconnect(&mut self, ledger: &mut Ledger, keeps_will: bool) {
        ledger.event("client", self.kind.index, "DISCONNECT", keeps_will.into());
        let reason = if keeps_will { Reason::DisconnectWithWill } else { Reason::Success };
        self.send(&Packet::Disconnect(Disconnect { reason, properties: Default::default() }), false);
        if let Some(link) = &self.link {
            link.wire.close();
        }
        self.lost(ledger);
    }

    /// Takes its acknowledgements up again.
    pub(super) fn recover(&mut self) {
        self.stalled = false;
        for (kind, packet_id) in std::mem::take(&mut self.kept_back) {
            self.answer(kind, packet_id);
        }
    }

    fn answer(&mut self, kind: AckKind, packet_id: u16) {
        if self.stalled {
            self.kept_back.push_back((kind, packet_id));
            return;
        }
        let ack = Ack { packet_id, reason: Reason::Success, properties: Default::default() };
        let packet = match kind {
            AckKind::PubAck => Packet::PubAck(ack),
            AckKind::PubRec => Packet::PubRec(ack),
            AckKind::PubRel => Packet::PubRel(ack),
            AckKind::PubComp => Packet::PubComp(ack),
        };
        if kind == AckKind::PubAck {
            self.unacked.remove(&packet_id);
        }
        self.send(&packet, kind == AckKind::PubRel);
    }
}
