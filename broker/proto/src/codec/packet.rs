//! The packets of all three versions. What a version does not have is at its default there.

use smallvec::SmallVec;

use super::properties::{
    AckProperties, ConnAckProperties, ConnectProperties, DisconnectProperties, PublishProperties,
    UserProperties, WillProperties,
};
use super::{QoS, Reason, Version};

/// One packet; text and bytes are borrowed from the frame it was decoded from.
#[derive(Clone, Debug, PartialEq)]
pub enum Packet<'a> {
    Connect(Connect<'a>),
    ConnAck(ConnAck<'a>),
    Publish(Publish<'a>),
    PubAck(Ack<'a>),
    PubRec(Ack<'a>),
    PubRel(Ack<'a>),
    PubComp(Ack<'a>),
    Subscribe(Subscribe<'a>),
    SubAck(SubAck<'a>),
    Unsubscribe(Unsubscribe<'a>),
    UnsubAck(UnsubAck<'a>),
    PingReq,
    PingResp,
    Disconnect(Disconnect<'a>),
    Auth(Auth<'a>),
}

/// The first packet of a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Connect<'a> {
    pub version: Version,
    /// "Clean session" in MQTT 3.
    pub clean_start: bool,
    /// Seconds; 0 switches it off.
    pub keep_alive: u16,
    /// May be empty; whether that is acceptable is the session's decision.
    pub client_id: &'a str,
    pub will: Option<Will<'a>>,
    pub username: Option<&'a str>,
    pub password: Option<&'a [u8]>,
    pub properties: ConnectProperties<'a>,
}

/// The message published for a client that goes away without saying so.
#[derive(Clone, Debug, PartialEq)]
pub struct Will<'a> {
    pub qos: QoS,
    pub retain: bool,
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub properties: WillProperties<'a>,
}

/// The server's answer to CONNECT. MQTT 3 knows five refusals, onto which every `reason` is mapped.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnAck<'a> {
    pub session_present: bool,
    pub reason: Reason,
    pub properties: ConnAckProperties<'a>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Publish<'a> {
    pub dup: bool,
    pub qos: QoS,
    pub retain: bool,
    /// Without wildcards. Empty only in MQTT 5 together with a topic alias.
    pub topic: &'a str,
    /// 0 for QoS 0, never else.
    pub packet_id: u16,
    pub properties: PublishProperties<'a>,
    pub payload: &'a [u8],
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP. Reason and properties exist in MQTT 5 alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Ack<'a> {
    pub packet_id: u16,
    pub reason: Reason,
    pub properties: AckProperties<'a>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Subscribe<'a> {
    pub packet_id: u16,
    /// 1 to 268,435,455.
    pub subscription_id: Option<u32>,
    /// At least one.
    pub filters: SmallVec<[SubscribeFilter<'a>; 1]>,
    pub user: UserProperties<'a>,
}

/// One subscription of a SUBSCRIBE. Everything but the QoS exists in MQTT 5 alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SubscribeFilter<'a> {
    /// Not empty; its wildcards and levels are not judged yet.
    pub filter: &'a str,
    pub qos: QoS,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub retain_handling: RetainHandling,
}

/// Whether a new subscription is sent the retained messages it matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetainHandling {
    #[default]
    SendAlways = 0,
    SendIfNew = 1,
    DoNotSend = 2,
}

/// One reason for each filter, in order; on the wire of MQTT 3 any failure is `0x80`.
#[derive(Clone, Debug, PartialEq)]
pub struct SubAck<'a> {
    pub packet_id: u16,
    pub reasons: SmallVec<[Reason; 4]>,
    pub properties: AckProperties<'a>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Unsubscribe<'a> {
    pub packet_id: u16,
    /// At least one, none of them empty.
    pub filters: SmallVec<[&'a str; 1]>,
    pub user: UserProperties<'a>,
}

/// One reason for each filter, in order, in MQTT 5; none on the wire of MQTT 3.
#[derive(Clone, Debug, PartialEq)]
pub struct UnsubAck<'a> {
    pub packet_id: u16,
    pub reasons: SmallVec<[Reason; 4]>,
    pub properties: AckProperties<'a>,
}

/// The last packet of a client; in MQTT 5 also of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct Disconnect<'a> {
    pub reason: Reason,
    pub properties: DisconnectProperties<'a>,
}

/// A step of an MQTT 5 authentication in several steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Auth<'a> {
    pub reason: Reason,
    /// Missing only when the whole packet is empty, which means success (section 3.15.2).
    pub method: Option<&'a str>,
    pub data: Option<&'a [u8]>,
    pub reason_string: Option<&'a str>,
    pub user: UserProperties<'a>,
}
