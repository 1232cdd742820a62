//! The packets a busy server writes most, PUBLISH and the acknowledgements, written without building a
//! [`super::Packet`].

use bytes::{BufMut, BytesMut};

use super::frame::{cut, kind, put_str, put_varint, varint_len};
use super::property::id;
use super::{QoS, Reason, Version};

/// A message on its way to one subscriber.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delivery<'a> {
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub qos: QoS,
    /// Written only for QoS 1 and 2, for which it is not 0.
    pub packet_id: u16,
    /// Written only for QoS 1 and 2.
    pub dup: bool,
    pub retain: bool,
    /// Property bytes from [`super::MessageProperties::encode_forwarded`]. This and the fields below are
    /// written in MQTT 5 only.
    pub forwarded: &'a [u8],
    /// Seconds that are left.
    pub expiry_interval: Option<u32>,
    /// Those of all subscriptions that match; each 1 to 268,435,455.
    pub subscription_ids: &'a [u32],
    pub topic_alias: Option<u16>,
}

impl Delivery<'_> {
    /// Bytes of the whole packet, fixed header included, to compare with the client's maximum packet size.
    pub fn encoded_len(&self, version: Version) -> usize {
        let remaining = self.remaining_length(self.properties_len(version), version);
        1 + varint_len(remaining) + remaining
    }

    /// Appends the packet. [`Self::encoded_len`] must not exceed 268,435,460 bytes, the most the format can say.
    pub fn encode(&self, version: Version, out: &mut BytesMut) {
        let properties_len = self.properties_len(version);
        let remaining = self.remaining_length(properties_len, version);
        out.reserve(1 + varint_len(remaining) + remaining);

        let counted = self.qos != QoS::AtMostOnce;
        let flags = u8::from(self.dup && counted) << 3 | (self.qos as u8) << 1 | u8::from(self.retain);
        out.put_u8(kind::PUBLISH << 4 | flags);
        put_varint(out, remaining);
        put_str(out, self.topic);
        if counted {
            out.put_u16(self.packet_id);
        }
        if version == Version::V5 {
            put_varint(out, properties_len);
            if let Some(alias) = self.topic_alias {
                out.put_u8(id::TOPIC_ALIAS);
                out.put_u16(alias);
            }
            if let Some(seconds) = self.expiry_interval {
                out.put_u8(id::EXPIRY_INTERVAL);
                out.put_u32(seconds);
            }
            for &subscription_id in self.subscription_ids {
                out.put_u8(id::SUBSCRIPTION_ID);
                put_varint(out, subscription_id as usize);
            }
            out.put_slice(self.forwarded);
        }
        out.put_slice(self.payload);
    }

    fn properties_len(&self, version: Version) -> usize {
        if version != Version::V5 {
            return 0;
        }
        let ids = self.subscription_ids.iter().map(|&id| 1 + varint_len(id as usize)).sum::<usize>();
        let alias = if self.topic_alias.is_some() { 3 } else { 0 };
        let expiry = if self.expiry_interval.is_some() { 5 } else { 0 };
        alias + expiry + ids + self.forwarded.len()
    }

    fn remaining_length(&self, properties_len: usize, version: Version) -> usize {
        let packet_id = if self.qos == QoS::AtMostOnce { 0 } else { 2 };
        let prefix = if version == Version::V5 { varint_len(properties_len) } else { 0 };
        2 + cut(self.topic).len() + packet_id + prefix + properties_len + self.payload.len()
    }
}

/// The four acknowledgements of a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckKind {
    PubAck,
    PubRec,
    PubRel,
    PubComp,
}

impl AckKind {
    pub(super) fn first_byte(self) -> u8 {
        match self {
            AckKind::PubAck => kind::PUBACK << 4,
            AckKind::PubRec => kind::PUBREC << 4,
            AckKind::PubRel => kind::PUBREL << 4 | 0b0010,
            AckKind::PubComp => kind::PUBCOMP << 4,
        }
    }
}

/// Appends an acknowledgement without properties. MQTT 3 has no room for the reason.
pub fn encode_ack(kind: AckKind, version: Version, packet_id: u16, reason: Reason, out: &mut BytesMut) {
    let [high, low] = packet_id.to_be_bytes();
    if version == Version::V5 && reason != Reason::Success {
        out.put_slice(&[kind.first_byte(), 3, high, low, reason.code()]);
    } else {
        out.put_slice(&[kind.first_byte(), 2, high, low]);
    }
}
