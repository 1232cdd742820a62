//! Packets to bytes.

use bytes::{BufMut, BytesMut};

use super::frame::{kind, put_binary, put_str, put_with_length};
use super::packet::{
    Ack, Auth, ConnAck, Connect, Disconnect, Packet, Publish, SubAck, Subscribe, SubscribeFilter, UnsubAck,
    Unsubscribe, Will,
};
use super::properties::AckProperties;
use super::property::{PropertyWriter, id};
use super::{AckKind, Delivery, Reason, Version, encode_ack};

impl Packet<'_> {
    /// Appends the packet as `version` lays it out; a CONNECT is written in its own version.
    ///
    /// What the version lacks is left out: properties and reasons in MQTT 3, and the whole of AUTH there.
    /// Text and binary fields are cut at 65,535 bytes, which nothing that was decoded exceeds.
    pub fn encode(&self, version: Version, out: &mut BytesMut) {
        match self {
            Packet::Connect(connect) => put_packet(kind::CONNECT << 4, out, |out| put_connect(connect, out)),
            Packet::ConnAck(connack) => {
                put_packet(kind::CONNACK << 4, out, |out| put_connack(connack, version, out));
            }
            Packet::Publish(publish) => put_publish(publish, version, out),
            Packet::PubAck(ack) => put_ack(AckKind::PubAck, ack, version, out),
            Packet::PubRec(ack) => put_ack(AckKind::PubRec, ack, version, out),
            Packet::PubRel(ack) => put_ack(AckKind::PubRel, ack, version, out),
            Packet::PubComp(ack) => put_ack(AckKind::PubComp, ack, version, out),
            Packet::Subscribe(subscribe) => {
                put_packet(kind::SUBSCRIBE << 4 | 0b0010, out, |out| put_subscribe(subscribe, version, out));
            }
            Packet::SubAck(suback) => {
                put_packet(kind::SUBACK << 4, out, |out| put_suback(suback, version, out));
            }
            Packet::Unsubscribe(unsubscribe) => {
                let first = kind::UNSUBSCRIBE << 4 | 0b0010;
                put_packet(first, out, |out| put_unsubscribe(unsubscribe, version, out));
            }
            Packet::UnsubAck(unsuback) => {
                put_packet(kind::UNSUBACK << 4, out, |out| put_unsuback(unsuback, version, out));
            }
            Packet::PingReq => out.put_slice(&[kind::PINGREQ << 4, 0]),
            Packet::PingResp => out.put_slice(&[kind::PINGRESP << 4, 0]),
            Packet::Disconnect(disconnect) => {
                put_packet(kind::DISCONNECT << 4, out, |out| put_disconnect(disconnect, version, out));
            }
            Packet::Auth(auth) if version == Version::V5 => {
                put_packet(kind::AUTH << 4, out, |out| put_auth(auth, out));
            }
            Packet::Auth(_) => {}
        }
    }
}

fn put_packet(first: u8, out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(first);
    put_with_length(out, body);
}

fn put_properties(
    version: Version,
    out: &mut BytesMut,
    write: impl FnOnce(&mut PropertyWriter<'_, BytesMut>),
) {
    if version == Version::V5 {
        put_with_length(out, |out| write(&mut PropertyWriter::new(out)));
    }
}

fn put_connect(connect: &Connect<'_>, out: &mut BytesMut) {
    let version = connect.version;
    put_str(out, if version == Version::V31 { "MQIsdp" } else { "MQTT" });
    out.put_u8(version.level());
    let will_flags = |will: &Will<'_>| 0x04 | (will.qos as u8) << 3 | u8::from(will.retain) << 5;
    out.put_u8(
        u8::from(connect.clean_start) << 1
            | connect.will.as_ref().map_or(0, will_flags)
            | u8::from(connect.password.is_some()) << 6
            | u8::from(connect.username.is_some()) << 7,
    );
    out.put_u16(connect.keep_alive);
    put_properties(version, out, |writer| connect.properties.write(writer));
    put_str(out, connect.client_id);
    if let Some(will) = &connect.will {
        put_properties(version, out, |writer| will.properties.write(writer));
        put_str(out, will.topic);
        put_binary(out, will.payload);
    }
    if let Some(username) = connect.username {
        put_str(out, username);
    }
    if let Some(password) = connect.password {
        put_binary(out, password);
    }
}

fn put_connack(connack: &ConnAck<'_>, version: Version, out: &mut BytesMut) {
    let present = connack.session_present && connack.reason == Reason::Success && version != Version::V31;
    out.put_u8(present.into());
    match version {
        Version::V5 => out.put_u8(connack.reason.code()),
        Version::V31 | Version::V311 => out.put_u8(connack.reason.connect_return_code()),
    }
    put_properties(version, out, |writer| connack.properties.write(writer));
}

fn put_publish(publish: &Publish<'_>, version: Version, out: &mut BytesMut) {
    let message = &publish.properties.message;
    let mut forwarded = Vec::new();
    if version == Version::V5 {
        message.encode_forwarded(&mut forwarded);
    }
    let delivery = Delivery {
        topic: publish.topic,
        payload: publish.payload,
        qos: publish.qos,
        packet_id: publish.packet_id,
        dup: publish.dup,
        retain: publish.retain,
        forwarded: &forwarded,
        expiry_interval: message.expiry_interval,
        subscription_ids: &publish.properties.subscription_ids,
        topic_alias: publish.properties.topic_alias,
    };
    delivery.encode(version, out);
}

fn put_ack(kind: AckKind, ack: &Ack<'_>, version: Version, out: &mut BytesMut) {
    if version != Version::V5 || ack.properties.is_empty() {
        return encode_ack(kind, version, ack.packet_id, ack.reason, out);
    }
    put_packet(kind.first_byte(), out, |out| {
        out.put_u16(ack.packet_id);
        out.put_u8(ack.reason.code());
        put_ack_properties(&ack.properties, version, out);
    });
}

fn put_ack_properties(properties: &AckProperties<'_>, version: Version, out: &mut BytesMut) {
    put_properties(version, out, |writer| properties.write(writer));
}

fn put_subscribe(subscribe: &Subscribe<'_>, version: Version, out: &mut BytesMut) {
    out.put_u16(subscribe.packet_id);
    put_properties(version, out, |writer| {
        writer.varint(id::SUBSCRIPTION_ID, subscribe.subscription_id);
        writer.user(&subscribe.user);
    });
    for filter in &subscribe.filters {
        put_str(out, filter.filter);
        out.put_u8(subscription_options(filter, version));
    }
}

fn subscription_options(filter: &SubscribeFilter<'_>, version: Version) -> u8 {
    let qos = filter.qos as u8;
    match version {
        Version::V31 | Version::V311 => qos,
        Version::V5 => {
            qos | u8::from(filter.no_local) << 2
                | u8::from(filter.retain_as_published) << 3
                | (filter.retain_handling as u8) << 4
        }
    }
}

fn put_suback(suback: &SubAck<'_>, version: Version, out: &mut BytesMut) {
    out.put_u16(suback.packet_id);
    put_ack_properties(&suback.properties, version, out);
    for reason in &suback.reasons {
        out.put_u8(match version {
            Version::V31 | Version::V311 if reason.is_failure() => Reason::UnspecifiedError.code(),
            _ => reason.code(),
        });
    }
}

fn put_unsubscribe(unsubscribe: &Unsubscribe<'_>, version: Version, out: &mut BytesMut) {
    out.put_u16(unsubscribe.packet_id);
    put_properties(version, out, |writer| writer.user(&unsubscribe.user));
    for filter in &unsubscribe.filters {
        put_str(out, filter);
    }
}

fn put_unsuback(unsuback: &UnsubAck<'_>, version: Version, out: &mut BytesMut) {
    out.put_u16(unsuback.packet_id);
    if version == Version::V5 {
        put_ack_properties(&unsuback.properties, version, out);
        out.extend(unsuback.reasons.iter().map(|reason| reason.code()));
    }
}

/// An MQTT 5 packet may end after the reason, but not every client reads it so; only the plain goodbye,
/// which is empty in every version, is shortened.
fn put_disconnect(disconnect: &Disconnect<'_>, version: Version, out: &mut BytesMut) {
    let plain = disconnect.reason == Reason::Success && disconnect.properties == Default::default();
    if version == Version::V5 && !plain {
        out.put_u8(disconnect.reason.code());
        put_properties(version, out, |writer| disconnect.properties.write(writer));
    }
}

fn put_auth(auth: &Auth<'_>, out: &mut BytesMut) {
    if auth.method.is_none() {
        return;
    }
    out.put_u8(auth.reason.code());
    put_properties(Version::V5, out, |writer| {
        writer.str(id::AUTH_METHOD, auth.method);
        writer.binary(id::AUTH_DATA, auth.data);
        writer.str(id::REASON_STRING, auth.reason_string);
        writer.user(&auth.user);
    });
}
