//! One session's protocol, from CONNACK to the close: packets go in, packets and effects come out.
//!
//! [`Session`] is one state machine for all protocol versions. It holds what lives as long as a connection
//! (version, keep alive, acknowledgements owed) and, in [`SessionState`], what a persistent session carries
//! from one connection to the next. It promises: acknowledgements leave in the order of their publishes; a
//! packet identifier names one unfinished message; a QoS 2 message is handed on once; nothing is sent beyond
//! the client's Receive Maximum.
//!
//! The owner answers effects when it has done its part ([`Session::published`], [`Session::released`], …);
//! packets to send are appended to the buffer it passes.

mod aliases;
mod inbound;
mod outbound;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::BytesMut;

use crate::{
    codec::{
        Ack, AckKind, Connect, Disconnect, Packet, Publish, QoS, Reason, SubAck, Subscribe, UnsubAck,
        Unsubscribe, Version, encode_ack,
    },
    durable::record::Why,
    message::{Delivery, MessageId, Millis},
};
pub use aliases::TOPIC_ALIAS_MAXIMUM;
use aliases::{InboundAliases, OutboundAliases};
pub use inbound::Ticket;
use inbound::{Begin, Inbound, Owed, Release};
use outbound::{Matched, Outbound};

/// What outlives a connection: inflight messages in both directions.
#[derive(Debug, Default)]
pub struct SessionState {
    inbound: Inbound,
    outbound: Outbound,
}

impl SessionState {
    /// What a log knows of a session: the QoS 2 messages that its device has taken and not let go of, and those that
    /// may have been sent to it, in order.
    pub fn restore(
        received: impl IntoIterator<Item = (u16, MessageId)>,
        sent: Vec<Delivery>,
    ) -> SessionState {
        let mut state = SessionState::default();
        for (packet_id, mid) in received {
            state.outbound.restore_received(packet_id, mid);
        }
        sent.into_iter().for_each(|delivery| state.outbound.restore_sent(delivery));
        state
    }

    /// Messages sent and not yet acknowledged to the end.
    pub fn inflight(&self) -> usize {
        self.outbound.len()
    }
}

/// What the owner must do about a packet.
#[derive(Debug)]
pub enum Effect<'a> {
    /// Nothing.
    None,
    /// Route and store it, then call [`Session::published`] with the ticket (QoS 0 has none).
    Publish(Publish<'a>, Option<Ticket>),
    /// The client let go of this QoS 2 packet identifier: forget what is stored about it, then call
    /// [`Session::released`]. Unknown identifiers come, too: they may stem from before a restart.
    Release { packet_id: u16, known: bool },
    /// Answer with [`Session::subscribed`].
    Subscribe(Subscribe<'a>),
    /// Answer with [`Session::unsubscribed`].
    Unsubscribe(Unsubscribe<'a>),
    /// Its device has finished a message: the window is open for another.
    Delivered,
    /// Of a logged session: its device has taken a QoS 2 message. Write that down, then call [`Session::received`].
    Received { packet_id: u16, mid: MessageId },
    /// The client says goodbye.
    Disconnect {
        /// Discard the will, as reason 0x00 alone asks for (MQTT 5 section 3.14.4).
        discard_will: bool,
        /// MQTT 5: a new Session Expiry Interval, in seconds.
        session_expiry: Option<u32>,
    },
}

/// Why the connection must be closed; a v5 client is told first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} ({reason})")]
pub struct Violation {
    pub reason: Reason,
    pub what: &'static str,
}

/// What the client asked for and the broker allows, once and for this connection.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub version: Version,
    /// Seconds; 0: none.
    pub keep_alive: u16,
    /// QoS > 0 messages that may be unacknowledged towards the client.
    pub receive_maximum: u16,
    /// The largest packet that the client takes, in bytes.
    pub maximum_packet_size: u32,
    /// QoS > 0 publishes of the client that may wait for their acknowledgement at once.
    pub publish_window: u16,
    /// The Receive Maximum that the client was told: beyond it, it is closed.
    pub told_receive_maximum: u16,
    /// The largest topic alias that the client takes; 0: it takes none.
    pub topic_alias_maximum: u16,
    /// The client wants to be told reasons in words (MQTT 5 section 3.1.2.11.7).
    pub wants_reasons: bool,
    /// What the client gets at QoS > 0 is in a log: packet identifiers follow from the message, a PUBREL waits for
    /// [`Session::received`], and [`Session::take_finished`] tells what needs no delivery any more.
    pub logged: bool,
}

impl Terms {
    /// What a CONNECT asks for. Receive Maximum is capped at `inflight_cap`: what is unacknowledged is kept in memory.
    pub fn of(connect: &Connect<'_>, inflight_cap: u16, publish_window: u16) -> Terms {
        Terms {
            version: connect.version,
            keep_alive: connect.keep_alive,
            receive_maximum: connect.properties.receive_maximum.min(inflight_cap),
            maximum_packet_size: connect.properties.maximum_packet_size.unwrap_or(u32::MAX),
            publish_window,
            told_receive_maximum: u16::MAX,
            topic_alias_maximum: connect.properties.topic_alias_maximum,
            wants_reasons: connect.properties.request_problem_information,
            logged: false,
        }
    }
}

/// How a delivery was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Its packet is in the buffer.
    Now,
    /// The window is full: offer it again after [`Effect::Delivered`].
    WindowFull,
    /// It may not be sent and is finished with.
    Dropped(DropReason),
}

/// Why a message may not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Its Message Expiry Interval has passed (MQTT 5 section 3.3.2.3.3).
    Expired,
    /// Larger than the client's Maximum Packet Size (MQTT 5 section 3.1.2.11.4).
    TooLarge,
}

/// A message of a logged session that needs no delivery any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    pub mid: MessageId,
    pub why: Why,
}

impl From<DropReason> for Why {
    fn from(reason: DropReason) -> Why {
        match reason {
            DropReason::Expired => Why::Expired,
            DropReason::TooLarge => Why::TooLarge,
        }
    }
}

/// How many messages [`Session::resend`] gave up, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    pub expired: u64,
    pub too_large: u64,
}

impl Dropped {
    fn add(&mut self, reason: DropReason) {
        match reason {
            DropReason::Expired => self.expired += 1,
            DropReason::TooLarge => self.too_large += 1,
        }
    }
}

/// One connection of a session.
#[derive(Debug)]
pub struct Session {
    terms: Terms,
    state: SessionState,
    their_aliases: InboundAliases,
    our_aliases: OutboundAliases,
    last_heard: Millis,
}

impl Session {
    /// Begins a connection of the session that `state` holds. The caller has sent CONNACK.
    pub fn new(terms: Terms, mut state: SessionState, now: Millis) -> Session {
        state.inbound.reconnect(terms.told_receive_maximum);
        state.outbound.reconnect(terms.logged);
        let allowed = if terms.version == Version::V5 { terms.topic_alias_maximum } else { 0 };
        let our_aliases = OutboundAliases::new(allowed);
        Session { terms, state, their_aliases: InboundAliases::default(), our_aliases, last_heard: now }
    }

    /// Ends the connection and gives back what outlives it.
    pub fn into_state(self) -> SessionState {
        self.state
    }

    /// Ends the session, too, and gives back what it was chosen for of what shared subscriptions got: another member may get
    /// that. It is not acknowledged; QoS 2 is left out once it was sent (MQTT 5 section 4.8.2).
    pub fn into_shared(self) -> impl Iterator<Item = Delivery> {
        self.state.outbound.shared()
    }

    /// What the client speaks.
    pub fn version(&self) -> Version {
        self.terms.version
    }

    /// Whether reason strings may be sent outside of CONNACK and DISCONNECT.
    pub fn wants_reasons(&self) -> bool {
        self.terms.wants_reasons
    }

    /// The largest packet that the client takes, in bytes.
    pub fn maximum_packet_size(&self) -> u32 {
        self.terms.maximum_packet_size
    }

    /// QoS > 0 messages that may be sent now.
    pub fn window(&self) -> usize {
        usize::from(self.terms.receive_maximum).saturating_sub(self.state.outbound.len())
    }

    /// Whether publishes wait for their outcome.
    pub fn owes_acks(&self) -> bool {
        self.state.inbound.owed() > 0
    }

    /// Whether the client has so many publishes waiting that no more should be read from it.
    pub fn publish_window_full(&self) -> bool {
        self.state.inbound.owed() >= usize::from(self.terms.publish_window)
    }

    /// Puts the topic into a PUBLISH that says a topic alias alone, and keeps it in `named` meanwhile; remembers aliases
    /// that the packet gives. Comes before [`Session::receive`].
    pub fn name_topic<'a>(
        &mut self,
        packet: &mut Packet<'a>,
        named: &'a mut Option<Arc<str>>,
    ) -> Result<(), Violation> {
        if let Packet::Publish(publish) = packet
            && let Some(topic) = self.their_aliases.resolve(publish)?
        {
            publish.topic = named.insert(topic);
        }
        Ok(())
    }

    /// Takes one packet, its topic named ([`Session::name_topic`]). Its answers, where the machine can give them alone, are appended to `out`.
    pub fn receive<'a>(
        &mut self,
        packet: Packet<'a>,
        now: Millis,
        out: &mut BytesMut,
    ) -> Result<Effect<'a>, Violation> {
        self.last_heard = now;
        match packet {
            Packet::Publish(publish) => self.receive_publish(publish, out),
            Packet::PubAck(ack) => finished(self.state.outbound.acknowledged(ack.packet_id)),
            Packet::PubRec(ack) => self.receive_pubrec(&ack, out),
            Packet::PubComp(ack) if self.state.outbound.completed(ack.packet_id) => Ok(Effect::Delivered),
            Packet::PubComp(_) => Ok(Effect::None),
            Packet::PubRel(ack) => self.receive_pubrel(&ack),
            Packet::Subscribe(subscribe) => Ok(Effect::Subscribe(subscribe)),
            Packet::Unsubscribe(unsubscribe) => Ok(Effect::Unsubscribe(unsubscribe)),
            Packet::PingReq => {
                Packet::PingResp.encode(self.terms.version, out);
                Ok(Effect::None)
            }
            Packet::Disconnect(disconnect) => Ok(goodbye(self.terms.version, &disconnect)),
            Packet::Connect(_) => Err(violation("a second CONNECT")),
            Packet::Auth(_) => Err(violation("AUTH without an authentication method")),
            Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {
                Err(violation("a packet that only a server may send"))
            }
        }
    }

    /// The outcome of a publish. Acknowledgements that are due now leave, in order.
    pub fn published(&mut self, ticket: Ticket, reason: Reason, out: &mut BytesMut) {
        self.state.inbound.settle(ticket, reason);
        self.acknowledge(out);
    }

    /// What was stored about a released QoS 2 packet identifier is gone: PUBCOMP.
    pub fn released(&mut self, packet_id: u16, known: bool, out: &mut BytesMut) {
        let reason = match (known, self.terms.version) {
            (false, Version::V5) => Reason::PacketIdentifierNotFound,
            _ => Reason::Success,
        };
        encode_ack(AckKind::PubComp, self.terms.version, packet_id, reason, out);
    }

    /// SUBACK: one reason for each filter of the SUBSCRIBE, in its order.
    pub fn subscribed(&mut self, packet_id: u16, reasons: &[Reason], out: &mut BytesMut) {
        let reasons = reasons.iter().copied().collect();
        Packet::SubAck(SubAck { packet_id, reasons, properties: Default::default() })
            .encode(self.terms.version, out);
    }

    /// UNSUBACK: one reason for each filter of the UNSUBSCRIBE, in its order. MQTT 3 is not told them.
    pub fn unsubscribed(&mut self, packet_id: u16, reasons: &[Reason], out: &mut BytesMut) {
        let reasons = reasons.iter().copied().collect();
        Packet::UnsubAck(UnsubAck { packet_id, reasons, properties: Default::default() })
            .encode(self.terms.version, out);
    }

    /// Sends one message, if it may be sent now.
    pub fn deliver(&mut self, delivery: &Delivery, now: Millis, out: &mut BytesMut) -> Sent {
        self.state.outbound.deliver(delivery, &self.terms, &mut self.our_aliases, now, out)
    }

    /// After a reconnect: sends again what the client has not acknowledged, PUBRELs first, then PUBLISHes in their
    /// order as far as its window allows, some 256 KiB at once. While it returns true call it again, before new messages:
    /// when the bytes are gone, and after each [`Effect::Delivered`]. What has expired or become too large is given up: [`Session::take_dropped`].
    pub fn resend(&mut self, now: Millis, out: &mut BytesMut) -> bool {
        self.state.outbound.resend(&self.terms, &mut self.our_aliases, now, out)
    }

    /// What [`Session::resend`] gave up since this was last asked.
    pub fn take_dropped(&mut self) -> Dropped {
        self.state.outbound.take_dropped()
    }

    /// What has come to its end since this was last asked, in a logged session: acknowledged, or given up by
    /// [`Session::resend`].
    pub fn take_finished(&mut self) -> Vec<Finished> {
        self.state.outbound.take_finished()
    }

    /// What [`Session::resend`] gave up of QoS 2 since this was last asked, in a logged session, by packet identifier. Its device may
    /// have it: write down that it has, then call [`Session::received`].
    pub fn take_given_up(&mut self) -> Vec<(u16, MessageId)> {
        self.state.outbound.take_given_up()
    }

    /// That the device has taken a message is written down: PUBREL.
    pub fn received(&mut self, packet_id: u16, mid: MessageId, out: &mut BytesMut) {
        if self.state.outbound.published(packet_id) == Some(mid) {
            self.state.outbound.received(packet_id);
            encode_ack(AckKind::PubRel, self.terms.version, packet_id, Reason::Success, out);
        }
    }

    /// Whether anything of a former connection must still be sent again before new messages.
    pub fn must_resend(&self) -> bool {
        self.state.outbound.must_resend()
    }

    /// When the client must have been heard by: one and a half keep alives (MQTT 3.1.2.10). None: never.
    pub fn deadline(&self) -> Option<Millis> {
        let keep_alive = u64::from(self.terms.keep_alive);
        (keep_alive > 0).then(|| self.last_heard + keep_alive * 1500)
    }

    /// The broker was not reading, so silence up to `now` is not the client's fault.
    pub fn excuse_silence(&mut self, now: Millis) {
        self.last_heard = now;
    }

    /// Sends the acknowledgements that no earlier one keeps back.
    fn acknowledge(&mut self, out: &mut BytesMut) {
        while let Some(Owed { packet_id, qos, reason }) = self.state.inbound.next_due() {
            let kind = if qos == QoS::ExactlyOnce { AckKind::PubRec } else { AckKind::PubAck };
            encode_ack(kind, self.terms.version, packet_id, reason, out);
        }
    }

    fn receive_publish<'a>(
        &mut self,
        publish: Publish<'a>,
        out: &mut BytesMut,
    ) -> Result<Effect<'a>, Violation> {
        if publish.topic.is_empty() {
            return Err(violation("a PUBLISH without a topic"));
        }
        if !publish.properties.subscription_ids.is_empty() {
            return Err(violation("a subscription identifier in a client's PUBLISH"));
        }
        if publish.qos == QoS::AtMostOnce {
            return Ok(Effect::Publish(publish, None));
        }
        if self.terms.version == Version::V5
            && self.state.inbound.is_beyond_allowance(publish.packet_id, publish.qos)
        {
            return Err(Violation {
                reason: Reason::ReceiveMaximumExceeded,
                what: "more unfinished publishes than its Receive Maximum allows",
            });
        }
        if publish.qos == QoS::AtLeastOnce {
            let ticket = self.state.inbound.owe(publish.packet_id);
            return Ok(Effect::Publish(publish, Some(ticket)));
        }
        match self.state.inbound.begin(publish.packet_id) {
            Begin::New(ticket) => Ok(Effect::Publish(publish, Some(ticket))),
            Begin::Repeat => {
                self.acknowledge(out);
                Ok(Effect::None)
            }
        }
    }

    fn receive_pubrel<'a>(&mut self, ack: &Ack<'_>) -> Result<Effect<'a>, Violation> {
        let known = match self.state.inbound.release(ack.packet_id) {
            Release::Known => true,
            Release::Unknown => false,
            Release::TooEarly => return Err(violation("a PUBREL before its PUBREC")),
        };
        Ok(Effect::Release { packet_id: ack.packet_id, known })
    }

    fn receive_pubrec<'a>(&mut self, ack: &Ack<'_>, out: &mut BytesMut) -> Result<Effect<'a>, Violation> {
        if ack.reason.is_failure() {
            // The receiver refused the message: the exchange ends here (MQTT 5 section 4.3.3).
            return finished(self.state.outbound.refused(ack.packet_id));
        }
        if self.terms.logged
            && let Some(mid) = self.state.outbound.published(ack.packet_id)
        {
            return Ok(Effect::Received { packet_id: ack.packet_id, mid });
        }
        let reason = match (self.state.outbound.received(ack.packet_id), self.terms.version) {
            (Matched::OtherQoS, _) => return finished(Matched::OtherQoS),
            (Matched::Unknown, Version::V5) => Reason::PacketIdentifierNotFound,
            _ => Reason::Success,
        };
        encode_ack(AckKind::PubRel, self.terms.version, ack.packet_id, reason, out);
        Ok(Effect::None)
    }
}

fn finished<'a>(matched: Matched) -> Result<Effect<'a>, Violation> {
    match matched {
        Matched::Yes => Ok(Effect::Delivered),
        // It may be left from before a reconnect.
        Matched::Unknown => Ok(Effect::None),
        Matched::OtherQoS => Err(violation("an acknowledgement that does not belong to its message's QoS")),
    }
}

fn goodbye<'a>(version: Version, disconnect: &Disconnect<'_>) -> Effect<'a> {
    Effect::Disconnect {
        discard_will: version != Version::V5 || disconnect.reason == Reason::Success,
        session_expiry: disconnect.properties.session_expiry_interval,
    }
}

fn violation(what: &'static str) -> Violation {
    Violation { reason: Reason::ProtocolError, what }
}
