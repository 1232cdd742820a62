//! One MQTT 5 property on the wire (section 2.2.2): identifiers, types and value ranges.
//!
//! Which packet may carry which property stands in [`super::properties`].

use bytes::BufMut;

use super::frame::{Reader, put_binary, put_str, put_varint};
use super::{CodecError, QoS};

/// Property identifiers.
pub(super) mod id {
    pub(in crate::codec) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(in crate::codec) const EXPIRY_INTERVAL: u8 = 0x02;
    pub(in crate::codec) const CONTENT_TYPE: u8 = 0x03;
    pub(in crate::codec) const RESPONSE_TOPIC: u8 = 0x08;
    pub(in crate::codec) const CORRELATION_DATA: u8 = 0x09;
    pub(in crate::codec) const SUBSCRIPTION_ID: u8 = 0x0B;
    pub(in crate::codec) const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
    pub(in crate::codec) const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub(in crate::codec) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(in crate::codec) const AUTH_METHOD: u8 = 0x15;
    pub(in crate::codec) const AUTH_DATA: u8 = 0x16;
    pub(in crate::codec) const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub(in crate::codec) const WILL_DELAY_INTERVAL: u8 = 0x18;
    pub(in crate::codec) const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub(in crate::codec) const RESPONSE_INFORMATION: u8 = 0x1A;
    pub(in crate::codec) const SERVER_REFERENCE: u8 = 0x1C;
    pub(in crate::codec) const REASON_STRING: u8 = 0x1F;
    pub(in crate::codec) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(in crate::codec) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(in crate::codec) const TOPIC_ALIAS: u8 = 0x23;
    pub(in crate::codec) const MAXIMUM_QOS: u8 = 0x24;
    pub(in crate::codec) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(in crate::codec) const USER_PROPERTY: u8 = 0x26;
    pub(in crate::codec) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(in crate::codec) const WILDCARDS_AVAILABLE: u8 = 0x28;
    pub(in crate::codec) const SUBSCRIPTION_IDS_AVAILABLE: u8 = 0x29;
    pub(in crate::codec) const SHARED_AVAILABLE: u8 = 0x2A;
}

/// A property with a value that its own definition allows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Property<'a> {
    PayloadIsUtf8(bool),
    ExpiryInterval(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    SubscriptionId(u32),
    SessionExpiryInterval(u32),
    AssignedClientId(&'a str),
    ServerKeepAlive(u16),
    AuthMethod(&'a str),
    AuthData(&'a [u8]),
    RequestProblemInformation(bool),
    WillDelayInterval(u32),
    RequestResponseInformation(bool),
    ResponseInformation(&'a str),
    ServerReference(&'a str),
    ReasonString(&'a str),
    ReceiveMaximum(u16),
    TopicAliasMaximum(u16),
    TopicAlias(u16),
    MaximumQos(QoS),
    RetainAvailable(bool),
    User(&'a str, &'a str),
    MaximumPacketSize(u32),
    WildcardsAvailable(bool),
    SubscriptionIdsAvailable(bool),
    SharedAvailable(bool),
}

/// Whether a packet may carry several subscription identifiers: a PUBLISH may, a SUBSCRIBE may not.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum SubscriptionIds {
    One,
    Many,
}

/// Reads a property list with its length. `accept` is given each property and says whether it belongs in
/// this packet.
pub(super) fn read_properties<'a>(
    reader: &mut Reader<'a>,
    subscription_ids: SubscriptionIds,
    mut accept: impl FnMut(Property<'a>) -> bool,
) -> Result<(), CodecError> {
    let len = reader.varint()?;
    let mut list = Reader::new(reader.take(len as usize)?);
    // One bit for each identifier; the highest is 0x2A.
    let mut seen = 0u64;
    while !list.is_empty() {
        let (id, property) = read_property(&mut list)?;
        if !accept(property) {
            return Err(CodecError::PropertyNotAllowed(id));
        }
        let may_repeat =
            id == id::USER_PROPERTY || id == id::SUBSCRIPTION_ID && subscription_ids == SubscriptionIds::Many;
        let bit = 1 << id;
        if seen & bit != 0 && !may_repeat {
            return Err(CodecError::DuplicateProperty(id));
        }
        seen |= bit;
    }
    Ok(())
}

/// Writes properties; each method leaves out what is `None`.
pub(super) struct PropertyWriter<'o, B: BufMut> {
    out: &'o mut B,
}

impl<'o, B: BufMut> PropertyWriter<'o, B> {
    pub(super) fn new(out: &'o mut B) -> Self {
        PropertyWriter { out }
    }

    pub(super) fn bool(&mut self, id: u8, value: Option<bool>) {
        self.u8(id, value.map(u8::from));
    }

    pub(super) fn u8(&mut self, id: u8, value: Option<u8>) {
        if let Some(value) = value {
            self.out.put_slice(&[id, value]);
        }
    }

    pub(super) fn u16(&mut self, id: u8, value: Option<u16>) {
        if let Some(value) = value {
            self.out.put_u8(id);
            self.out.put_u16(value);
        }
    }

    pub(super) fn u32(&mut self, id: u8, value: Option<u32>) {
        if let Some(value) = value {
            self.out.put_u8(id);
            self.out.put_u32(value);
        }
    }

    pub(super) fn varint(&mut self, id: u8, value: Option<u32>) {
        if let Some(value) = value {
            self.out.put_u8(id);
            put_varint(self.out, value as usize);
        }
    }

    pub(super) fn str(&mut self, id: u8, value: Option<&str>) {
        if let Some(value) = value {
            self.out.put_u8(id);
            put_str(self.out, value);
        }
    }

    pub(super) fn binary(&mut self, id: u8, value: Option<&[u8]>) {
        if let Some(value) = value {
            self.out.put_u8(id);
            put_binary(self.out, value);
        }
    }

    pub(super) fn user(&mut self, pairs: &[(&str, &str)]) {
        for (name, value) in pairs {
            self.out.put_u8(id::USER_PROPERTY);
            put_str(self.out, name);
            put_str(self.out, value);
        }
    }
}

fn read_property<'a>(reader: &mut Reader<'a>) -> Result<(u8, Property<'a>), CodecError> {
    let number = reader.varint()?;
    let id = u8::try_from(number).map_err(|_| CodecError::UnknownProperty(number))?;
    let property = match id {
        id::PAYLOAD_FORMAT => Property::PayloadIsUtf8(read_bool(reader, id)?),
        id::EXPIRY_INTERVAL => Property::ExpiryInterval(reader.u32()?),
        id::CONTENT_TYPE => Property::ContentType(reader.string()?),
        id::RESPONSE_TOPIC => Property::ResponseTopic(reader.non_empty_topic()?),
        id::CORRELATION_DATA => Property::CorrelationData(reader.binary()?),
        id::SUBSCRIPTION_ID => Property::SubscriptionId(non_zero(reader.varint()?, id)?),
        id::SESSION_EXPIRY_INTERVAL => Property::SessionExpiryInterval(reader.u32()?),
        id::ASSIGNED_CLIENT_ID => Property::AssignedClientId(reader.string()?),
        id::SERVER_KEEP_ALIVE => Property::ServerKeepAlive(reader.u16()?),
        id::AUTH_METHOD => Property::AuthMethod(reader.string()?),
        id::AUTH_DATA => Property::AuthData(reader.binary()?),
        id::REQUEST_PROBLEM_INFORMATION => Property::RequestProblemInformation(read_bool(reader, id)?),
        id::WILL_DELAY_INTERVAL => Property::WillDelayInterval(reader.u32()?),
        id::REQUEST_RESPONSE_INFORMATION => Property::RequestResponseInformation(read_bool(reader, id)?),
        id::RESPONSE_INFORMATION => Property::ResponseInformation(reader.string()?),
        id::SERVER_REFERENCE => Property::ServerReference(reader.string()?),
        id::REASON_STRING => Property::ReasonString(reader.string()?),
        id::RECEIVE_MAXIMUM => Property::ReceiveMaximum(non_zero(reader.u16()?, id)?),
        id::TOPIC_ALIAS_MAXIMUM => Property::TopicAliasMaximum(reader.u16()?),
        id::TOPIC_ALIAS => match reader.u16()? {
            0 => return Err(CodecError::ZeroTopicAlias),
            alias => Property::TopicAlias(alias),
        },
        id::MAXIMUM_QOS => {
            let one = read_bool(reader, id)?;
            Property::MaximumQos(if one { QoS::AtLeastOnce } else { QoS::AtMostOnce })
        }
        id::RETAIN_AVAILABLE => Property::RetainAvailable(read_bool(reader, id)?),
        id::USER_PROPERTY => Property::User(reader.string()?, reader.string()?),
        id::MAXIMUM_PACKET_SIZE => Property::MaximumPacketSize(non_zero(reader.u32()?, id)?),
        id::WILDCARDS_AVAILABLE => Property::WildcardsAvailable(read_bool(reader, id)?),
        id::SUBSCRIPTION_IDS_AVAILABLE => Property::SubscriptionIdsAvailable(read_bool(reader, id)?),
        id::SHARED_AVAILABLE => Property::SharedAvailable(read_bool(reader, id)?),
        _ => return Err(CodecError::UnknownProperty(number)),
    };
    Ok((id, property))
}

fn read_bool(reader: &mut Reader<'_>, id: u8) -> Result<bool, CodecError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(CodecError::PropertyValue(id)),
    }
}

fn non_zero<N: PartialEq + Default>(value: N, id: u8) -> Result<N, CodecError> {
    if value == N::default() { Err(CodecError::PropertyValue(id)) } else { Ok(value) }
}
