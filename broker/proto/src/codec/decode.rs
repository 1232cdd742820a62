//! Frames to packets.

use smallvec::SmallVec;

use super::frame::{Reader, kind};
use super::packet::{
    Ack, Auth, ConnAck, Connect, Disconnect, Packet, Publish, RetainHandling, SubAck, Subscribe,
    SubscribeFilter, UnsubAck, Unsubscribe, Will,
};
use super::properties::{
    AckProperties, ConnAckProperties, ConnectProperties, DisconnectProperties, PublishProperties,
    UserProperties, WillProperties,
};
use super::property::{Property, SubscriptionIds, read_properties};
use super::{CodecError, Frame, QoS, Reason, Version};

/// Parses one frame as `version` lays it out; a CONNECT says its own version, and the argument is ignored.
///
/// Packets of both directions are understood: that a client may not send, say, a SUBACK or a subscription
/// identifier in a PUBLISH is for the caller to know.
pub fn decode<'a>(frame: Frame<'a>, version: Version) -> Result<Packet<'a>, CodecError> {
    let kind = frame.first >> 4;
    check_flags(frame.first, version)?;
    if frame.padded_length && version == Version::V5 && kind != kind::CONNECT {
        return Err(CodecError::VariableInteger);
    }
    let reader = Reader::new(frame.body);
    match kind {
        kind::CONNECT => connect(reader, frame.padded_length).map(Packet::Connect),
        kind::CONNACK => connack(reader, version).map(Packet::ConnAck),
        kind::PUBLISH => publish(frame.first, reader, version),
        kind::PUBACK => ack(kind, Packet::PubAck, reader, version),
        kind::PUBREC => ack(kind, Packet::PubRec, reader, version),
        kind::PUBREL => ack(kind, Packet::PubRel, reader, version),
        kind::PUBCOMP => ack(kind, Packet::PubComp, reader, version),
        kind::SUBSCRIBE => subscribe(reader, version).map(Packet::Subscribe),
        kind::SUBACK => suback(reader, version).map(Packet::SubAck),
        kind::UNSUBSCRIBE => unsubscribe(reader, version).map(Packet::Unsubscribe),
        kind::UNSUBACK => unsuback(reader, version).map(Packet::UnsubAck),
        kind::PINGREQ => reader.finish().map(|()| Packet::PingReq),
        kind::PINGRESP => reader.finish().map(|()| Packet::PingResp),
        kind::DISCONNECT => disconnect(reader, version).map(Packet::Disconnect),
        kind::AUTH if version == Version::V5 => auth(reader).map(Packet::Auth),
        _ => Err(CodecError::UnknownPacketType(kind)),
    }
}

/// The lower four bits of the first byte; those of a PUBLISH have a meaning and are read there.
fn check_flags(first: u8, version: Version) -> Result<(), CodecError> {
    let kind = first >> 4;
    if kind == kind::PUBLISH {
        return Ok(());
    }
    let acked = matches!(kind, kind::PUBREL | kind::SUBSCRIBE | kind::UNSUBSCRIBE);
    let expected = if acked { 0b0010 } else { 0 };
    // MQTT 3.1 marks these three as sent again the way it does a PUBLISH.
    let meaningful = if acked && version == Version::V31 { 0b0111 } else { 0b1111 };
    if first & meaningful == expected { Ok(()) } else { Err(CodecError::ReservedFlags(first)) }
}

fn connect(mut reader: Reader<'_>, padded_length: bool) -> Result<Connect<'_>, CodecError> {
    let name = reader.binary()?;
    let level = reader.u8()?;
    let version = match (name, level) {
        (b"MQIsdp", 3) => Version::V31,
        (b"MQTT", 4) => Version::V311,
        (b"MQTT", 5) => Version::V5,
        (b"MQIsdp" | b"MQTT", _) => return Err(CodecError::UnsupportedVersion(level)),
        _ => return Err(CodecError::UnknownProtocolName),
    };
    if padded_length && version == Version::V5 {
        return Err(CodecError::VariableInteger);
    }
    let flags = ConnectFlags::parse(reader.u8()?, version)?;
    let keep_alive = reader.u16()?;
    let mut properties = ConnectProperties::default();
    if version == Version::V5 {
        read_properties(&mut reader, SubscriptionIds::One, |property| properties.accept(property))?;
        if properties.auth_data.is_some() && properties.auth_method.is_none() {
            return Err(CodecError::AuthMethodMissing);
        }
    }
    let client_id = reader.string()?;
    let will = match flags.will {
        Some((qos, retain)) => Some(will(&mut reader, qos, retain, version)?),
        None => None,
    };
    // MQTT 3.1 (section 3.1) lets a client set these flags and yet end the packet before the field.
    let has = |flag: bool, reader: &Reader<'_>| flag && !(version == Version::V31 && reader.is_empty());
    let username = if has(flags.username, &reader) { Some(reader.string()?) } else { None };
    let password = if has(flags.password, &reader) { Some(reader.binary()?) } else { None };
    reader.finish()?;
    Ok(Connect {
        version,
        clean_start: flags.clean_start,
        keep_alive,
        client_id,
        will,
        username,
        password,
        properties,
    })
}

/// The connect flags byte (MQTT 5 section 3.1.2.3).
struct ConnectFlags {
    clean_start: bool,
    will: Option<(QoS, bool)>,
    username: bool,
    password: bool,
}

impl ConnectFlags {
    fn parse(byte: u8, version: Version) -> Result<Self, CodecError> {
        // MQTT 3.1 leaves the lowest bit, and the will's bits without a will, undefined.
        let strict = version != Version::V31;
        if strict && byte & 0x01 != 0 {
            return Err(CodecError::ReservedConnectFlag);
        }
        let will = match byte & 0x04 != 0 {
            true => Some((QoS::try_from(byte >> 3 & 0b11)?, byte & 0x20 != 0)),
            false if strict && byte & 0x38 != 0 => return Err(CodecError::WillFlagsWithoutWill),
            false => None,
        };
        let (username, password) = (byte & 0x80 != 0, byte & 0x40 != 0);
        if password && !username && version != Version::V5 {
            return Err(CodecError::PasswordWithoutUsername);
        }
        Ok(ConnectFlags { clean_start: byte & 0x02 != 0, will, username, password })
    }
}

fn will<'a>(
    reader: &mut Reader<'a>,
    qos: QoS,
    retain: bool,
    version: Version,
) -> Result<Will<'a>, CodecError> {
    let mut properties = WillProperties::default();
    if version == Version::V5 {
        read_properties(reader, SubscriptionIds::One, |property| properties.accept(property))?;
    }
    let topic = reader.non_empty_topic()?;
    let payload = reader.binary()?;
    Ok(Will { qos, retain, topic, payload, properties })
}

fn connack(mut reader: Reader<'_>, version: Version) -> Result<ConnAck<'_>, CodecError> {
    let flags = reader.u8()?;
    // MQTT 3.1 has no flags here.
    let session_present = version != Version::V31 && flags & 0x01 != 0;
    if version != Version::V31 && flags & !0x01 != 0 {
        return Err(CodecError::ReservedConnAckFlags);
    }
    let code = reader.u8()?;
    let mut properties = ConnAckProperties::default();
    let reason = if version == Version::V5 {
        read_properties(&mut reader, SubscriptionIds::One, |property| properties.accept(property))?;
        Reason::parse_in(kind::CONNACK, code)?
    } else {
        Reason::from_connect_return_code(code)?
    };
    if session_present && reason != Reason::Success {
        return Err(CodecError::SessionPresentOnRefusal);
    }
    reader.finish()?;
    Ok(ConnAck { session_present, reason, properties })
}

/// This and [`ack`] give the finished packet, because moving one costs as much as reading it.
fn publish(first: u8, mut reader: Reader<'_>, version: Version) -> Result<Packet<'_>, CodecError> {
    let dup = first & 0b1000 != 0;
    let retain = first & 0b0001 != 0;
    let qos = QoS::try_from(first >> 1 & 0b11)?;
    if dup && qos == QoS::AtMostOnce {
        return Err(CodecError::DupWithoutQos);
    }
    let topic = reader.topic()?;
    let packet_id = if qos == QoS::AtMostOnce { 0 } else { reader.packet_id()? };
    let mut properties = PublishProperties::default();
    if version == Version::V5 {
        read_properties(&mut reader, SubscriptionIds::Many, |property| properties.accept(property))?;
    }
    if topic.is_empty() && properties.topic_alias.is_none() {
        return Err(CodecError::EmptyTopic);
    }
    let payload = reader.remainder();
    Ok(Packet::Publish(Publish { dup, qos, retain, topic, packet_id, properties, payload }))
}

fn ack<'a>(
    kind: u8,
    packet: fn(Ack<'a>) -> Packet<'a>,
    mut reader: Reader<'a>,
    version: Version,
) -> Result<Packet<'a>, CodecError> {
    let packet_id = reader.packet_id()?;
    let mut reason = Reason::Success;
    let mut properties = AckProperties::default();
    if version == Version::V5 && !reader.is_empty() {
        reason = Reason::parse_in(kind, reader.u8()?)?;
        if !reader.is_empty() {
            properties = ack_properties(&mut reader)?;
        }
    }
    reader.finish()?;
    Ok(packet(Ack { packet_id, reason, properties }))
}

fn ack_properties<'a>(reader: &mut Reader<'a>) -> Result<AckProperties<'a>, CodecError> {
    let mut properties = AckProperties::default();
    read_properties(reader, SubscriptionIds::One, |property| properties.accept(property))?;
    Ok(properties)
}

fn subscribe(mut reader: Reader<'_>, version: Version) -> Result<Subscribe<'_>, CodecError> {
    let packet_id = reader.packet_id()?;
    let mut subscription_id = None;
    let mut user = UserProperties::new();
    if version == Version::V5 {
        read_properties(&mut reader, SubscriptionIds::One, |property| {
            match property {
                Property::SubscriptionId(value) => subscription_id = Some(value),
                Property::User(name, value) => user.push((name, value)),
                _ => return false,
            }
            true
        })?;
    }
    let mut filters = SmallVec::new();
    while !reader.is_empty() {
        filters.push(subscribe_filter(&mut reader, version)?);
    }
    if filters.is_empty() {
        return Err(CodecError::NoFilters);
    }
    Ok(Subscribe { packet_id, subscription_id, filters, user })
}

fn subscribe_filter<'a>(
    reader: &mut Reader<'a>,
    version: Version,
) -> Result<SubscribeFilter<'a>, CodecError> {
    let filter = reader.filter()?;
    let options = reader.u8()?;
    let reserved = if version == Version::V5 { 0b1100_0000 } else { 0b1111_1100 };
    if options & reserved != 0 {
        return Err(CodecError::ReservedSubscriptionOptions(options));
    }
    let no_local = options & 0b0100 != 0;
    if no_local && filter.starts_with("$share/") {
        return Err(CodecError::NoLocalOnSharedSubscription);
    }
    Ok(SubscribeFilter {
        filter,
        qos: QoS::try_from(options & 0b11)?,
        no_local,
        retain_as_published: options & 0b1000 != 0,
        retain_handling: match options >> 4 & 0b11 {
            0 => RetainHandling::SendAlways,
            1 => RetainHandling::SendIfNew,
            2 => RetainHandling::DoNotSend,
            _ => return Err(CodecError::InvalidRetainHandling),
        },
    })
}

fn suback(mut reader: Reader<'_>, version: Version) -> Result<SubAck<'_>, CodecError> {
    let packet_id = reader.packet_id()?;
    let mut properties = AckProperties::default();
    if version == Version::V5 {
        properties = ack_properties(&mut reader)?;
    }
    let reasons = reasons(reader.remainder(), |code| match (version, code) {
        (Version::V5, _) | (_, 0..=2 | 0x80) => Reason::parse_in(kind::SUBACK, code),
        _ => Err(CodecError::InvalidReason(code)),
    })?;
    Ok(SubAck { packet_id, reasons, properties })
}

fn unsubscribe(mut reader: Reader<'_>, version: Version) -> Result<Unsubscribe<'_>, CodecError> {
    let packet_id = reader.packet_id()?;
    let mut user = UserProperties::new();
    if version == Version::V5 {
        read_properties(&mut reader, SubscriptionIds::One, |property| {
            let Property::User(name, value) = property else { return false };
            user.push((name, value));
            true
        })?;
    }
    let mut filters = SmallVec::new();
    while !reader.is_empty() {
        filters.push(reader.filter()?);
    }
    if filters.is_empty() {
        return Err(CodecError::NoFilters);
    }
    Ok(Unsubscribe { packet_id, filters, user })
}

fn unsuback(mut reader: Reader<'_>, version: Version) -> Result<UnsubAck<'_>, CodecError> {
    let packet_id = reader.packet_id()?;
    if version != Version::V5 {
        reader.finish()?;
        return Ok(UnsubAck { packet_id, reasons: SmallVec::new(), properties: AckProperties::default() });
    }
    let properties = ack_properties(&mut reader)?;
    let reasons = reasons(reader.remainder(), |code| Reason::parse_in(kind::UNSUBACK, code))?;
    Ok(UnsubAck { packet_id, reasons, properties })
}

fn reasons(
    codes: &[u8],
    parse: impl Fn(u8) -> Result<Reason, CodecError>,
) -> Result<SmallVec<[Reason; 4]>, CodecError> {
    if codes.is_empty() {
        return Err(CodecError::NoReasons);
    }
    codes.iter().map(|&code| parse(code)).collect()
}

fn disconnect(mut reader: Reader<'_>, version: Version) -> Result<Disconnect<'_>, CodecError> {
    let mut reason = Reason::Success;
    let mut properties = DisconnectProperties::default();
    if version == Version::V5 && !reader.is_empty() {
        reason = Reason::parse_in(kind::DISCONNECT, reader.u8()?)?;
        if !reader.is_empty() {
            read_properties(&mut reader, SubscriptionIds::One, |property| properties.accept(property))?;
        }
    }
    reader.finish()?;
    Ok(Disconnect { reason, properties })
}

fn auth(mut reader: Reader<'_>) -> Result<Auth<'_>, CodecError> {
    let mut auth = Auth {
        reason: Reason::Success,
        method: None,
        data: None,
        reason_string: None,
        user: UserProperties::new(),
    };
    if reader.is_empty() {
        return Ok(auth);
    }
    auth.reason = Reason::parse_in(kind::AUTH, reader.u8()?)?;
    read_properties(&mut reader, SubscriptionIds::One, |property| {
        match property {
            Property::AuthMethod(value) => auth.method = Some(value),
            Property::AuthData(value) => auth.data = Some(value),
            Property::ReasonString(value) => auth.reason_string = Some(value),
            Property::User(name, value) => auth.user.push((name, value)),
            _ => return false,
        }
        true
    })?;
    reader.finish()?;
    if auth.method.is_none() {
        return Err(CodecError::AuthMethodMissing);
    }
    Ok(auth)
}
