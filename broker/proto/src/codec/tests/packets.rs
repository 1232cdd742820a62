//! Generated packets of every kind, valid each, and ways to damage their bytes.
//!
//! The differential tests of `broker/proto/differential` include this file, too.

use smallvec::SmallVec;

use super::*;
use Version::{V5, V31};

const TEXTS: [&str; 6] = ["", "a", "meter-7", "温度/é", "\u{feff}x\u{10ffff}", LONG];
const TOPICS: [&str; 6] = ["/", "a", "a/b/c", "$SYS/x", "ü/温", LONG];
const FILTERS: [&str; 5] = ["#", "+/a", "$share/g/a/#", "ü", LONG];
/// Long enough for lengths of two bytes.
const LONG: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
static BYTES: [u8; 40_000] = [0xA5; 40_000];

/// A xorshift generator: the same packets in every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }

    pub(super) fn flip(&mut self) -> bool {
        self.below(2) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn some<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.flip().then(|| make(self))
    }

    /// Small numbers, which lengths and identifiers are, come often.
    pub(super) fn byte(&mut self) -> u8 {
        let byte = self.next() as u8;
        if self.flip() { byte % 0x2B } else { byte }
    }

    pub(super) fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            // Most of what can go wrong stands at the front.
            let reach = if self.flip() { bytes.len().min(40) } else { bytes.len() };
            let at = self.below(reach.max(1));
            let byte = self.byte();
            match self.below(4) {
                0 => bytes.insert(at.min(bytes.len()), byte),
                1 if bytes.len() > 1 => drop(bytes.remove(at)),
                2 => bytes[at] ^= 1 << self.below(8),
                _ => bytes[at] = byte,
            }
        }
    }

    fn text(&mut self) -> &'static str {
        self.pick(&TEXTS)
    }

    fn bytes(&mut self) -> &'static [u8] {
        let len = self.pick(&[0, 1, 2, 60, 127, 128, 200]);
        &BYTES[..len]
    }

    fn u16(&mut self) -> u16 {
        self.pick(&[1, 2, 0xFF, 0x100, 0xFFFF])
    }

    fn u32(&mut self) -> u32 {
        self.pick(&[1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_455])
    }

    fn qos(&mut self) -> QoS {
        self.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
    }

    fn user(&mut self) -> UserProperties<'static> {
        (0..self.below(3)).map(|_| (self.text(), self.text())).collect()
    }

    pub(super) fn packet<'a>(&mut self, version: Version) -> Packet<'a> {
        let v5 = version == V5;
        match self.below(if v5 { 15 } else { 14 }) {
            0 => Packet::Connect(self.connect(version)),
            1 => Packet::ConnAck(self.connack(version)),
            2 => Packet::Publish(self.publish(v5)),
            3 => Packet::PubAck(self.ack(v5, &[Reason::Success, Reason::NotAuthorized])),
            4 => Packet::PubRec(self.ack(v5, &[Reason::Success, Reason::QuotaExceeded])),
            5 => Packet::PubRel(self.ack(v5, &[Reason::Success, Reason::PacketIdentifierNotFound])),
            6 => Packet::PubComp(self.ack(v5, &[Reason::Success, Reason::PacketIdentifierNotFound])),
            7 => Packet::Subscribe(Subscribe {
                packet_id: self.u16(),
                subscription_id: if v5 { self.some(Self::u32) } else { None },
                filters: (0..=self.below(3)).map(|_| self.filter(v5)).collect(),
                user: self.user_in(v5),
            }),
            8 => Packet::SubAck(SubAck {
                packet_id: self.u16(),
                reasons: self.reasons(&[Reason::Success, Reason::GrantedQoS2, Reason::UnspecifiedError]),
                properties: self.ack_properties(v5),
            }),
            9 => Packet::Unsubscribe(Unsubscribe {
                packet_id: self.u16(),
                filters: (0..=self.below(3)).map(|_| self.pick(&FILTERS)).collect(),
                user: self.user_in(v5),
            }),
            10 => Packet::UnsubAck(UnsubAck {
                packet_id: self.u16(),
                reasons: if v5 {
                    self.reasons(&[Reason::Success, Reason::NoSubscriptionExisted])
                } else {
                    SmallVec::new()
                },
                properties: self.ack_properties(v5),
            }),
            11 => Packet::PingReq,
            12 => Packet::PingResp,
            13 => Packet::Disconnect(self.disconnect(v5)),
            _ => Packet::Auth(Auth {
                reason: self.pick(&[Reason::ContinueAuthentication, Reason::ReAuthenticate]),
                method: Some(self.text()),
                data: self.some(Self::bytes),
                reason_string: self.some(Self::text),
                user: self.user(),
            }),
        }
    }

    fn user_in(&mut self, v5: bool) -> UserProperties<'static> {
        if v5 { self.user() } else { UserProperties::new() }
    }

    fn reasons(&mut self, from: &[Reason]) -> SmallVec<[Reason; 4]> {
        (0..=self.below(6)).map(|_| self.pick(from)).collect()
    }

    fn connect(&mut self, version: Version) -> Connect<'static> {
        let v5 = version == V5;
        let username = self.some(Self::text);
        let password = if v5 || username.is_some() { self.some(Self::bytes) } else { None };
        let mut properties = ConnectProperties::default();
        if v5 {
            let auth_method = self.some(Self::text);
            properties = ConnectProperties {
                session_expiry_interval: self.pick(&[0, 1, u32::MAX]),
                receive_maximum: self.u16(),
                maximum_packet_size: self.some(Self::u32),
                topic_alias_maximum: self.pick(&[0, 1, 0xFFFF]),
                request_response_information: self.flip(),
                request_problem_information: self.flip(),
                auth_method,
                auth_data: if auth_method.is_some() { self.some(Self::bytes) } else { None },
                user: self.user(),
            };
        }
        Connect {
            version,
            clean_start: self.flip(),
            keep_alive: self.u16(),
            client_id: self.text(),
            will: self.some(|random| random.will(v5)),
            username,
            password,
            properties,
        }
    }

    fn will(&mut self, v5: bool) -> Will<'static> {
        let mut properties = WillProperties::default();
        if v5 {
            properties = WillProperties { delay_interval: self.pick(&[0, 1]), message: self.message() };
        }
        Will {
            qos: self.qos(),
            retain: self.flip(),
            topic: self.pick(&TOPICS),
            payload: self.bytes(),
            properties,
        }
    }

    fn message(&mut self) -> MessageProperties<'static> {
        MessageProperties {
            payload_is_utf8: self.some(Self::flip),
            expiry_interval: self.some(Self::u32),
            content_type: self.some(Self::text),
            response_topic: self.some(|random| random.pick(&TOPICS)),
            correlation_data: self.some(Self::bytes),
            user: self.user(),
        }
    }

    fn connack(&mut self, version: Version) -> ConnAck<'static> {
        let reason = self.pick(&[Reason::Success, Reason::NotAuthorized, Reason::ServerUnavailable]);
        let mut properties = ConnAckProperties::default();
        if version == V5 {
            properties = ConnAckProperties {
                session_expiry_interval: self.some(Self::u32),
                receive_maximum: self.some(Self::u16),
                maximum_qos: self.some(|random| random.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce])),
                retain_available: self.some(Self::flip),
                maximum_packet_size: self.some(Self::u32),
                assigned_client_id: self.some(Self::text),
                topic_alias_maximum: self.some(Self::u16),
                reason_string: self.some(Self::text),
                wildcard_subscriptions_available: self.some(Self::flip),
                subscription_ids_available: self.some(Self::flip),
                shared_subscriptions_available: self.some(Self::flip),
                server_keep_alive: self.some(Self::u16),
                response_information: self.some(Self::text),
                server_reference: self.some(Self::text),
                auth_method: self.some(Self::text),
                auth_data: self.some(Self::bytes),
                user: self.user(),
            };
        }
        let session_present = version != V31 && reason == Reason::Success && self.flip();
        ConnAck { session_present, reason, properties }
    }

    fn publish(&mut self, v5: bool) -> Publish<'static> {
        let qos = self.qos();
        let counted = qos != QoS::AtMostOnce;
        let mut properties = PublishProperties::default();
        if v5 {
            properties = PublishProperties {
                topic_alias: self.some(Self::u16),
                subscription_ids: (0..self.below(4)).map(|_| self.u32()).collect(),
                message: self.message(),
            };
        }
        let topic = if properties.topic_alias.is_some() && self.flip() { "" } else { self.pick(&TOPICS) };
        // Now and then large enough for a remaining length of three bytes.
        let payload = if self.below(50) == 0 { &BYTES[..] } else { self.bytes() };
        Publish {
            dup: counted && self.flip(),
            qos,
            retain: self.flip(),
            topic,
            packet_id: if counted { self.u16() } else { 0 },
            properties,
            payload,
        }
    }

    fn ack(&mut self, v5: bool, reasons: &[Reason]) -> Ack<'static> {
        let reason = if v5 { self.pick(reasons) } else { Reason::Success };
        Ack { packet_id: self.u16(), reason, properties: self.ack_properties(v5) }
    }

    fn ack_properties(&mut self, v5: bool) -> AckProperties<'static> {
        if !v5 {
            return AckProperties::default();
        }
        AckProperties { reason_string: self.some(Self::text), user: self.user() }
    }

    fn filter<'a>(&mut self, v5: bool) -> SubscribeFilter<'a> {
        let filter = self.pick(&FILTERS);
        let handling = [RetainHandling::SendAlways, RetainHandling::SendIfNew, RetainHandling::DoNotSend];
        SubscribeFilter {
            filter,
            qos: self.qos(),
            no_local: v5 && !filter.starts_with("$share/") && self.flip(),
            retain_as_published: v5 && self.flip(),
            retain_handling: if v5 { self.pick(&handling) } else { RetainHandling::SendAlways },
        }
    }

    fn disconnect(&mut self, v5: bool) -> Disconnect<'static> {
        if !v5 {
            return Disconnect { reason: Reason::Success, properties: DisconnectProperties::default() };
        }
        Disconnect {
            reason: self.pick(&[Reason::Success, Reason::SessionTakenOver, Reason::UseAnotherServer]),
            properties: DisconnectProperties {
                session_expiry_interval: self.some(Self::u32),
                reason_string: self.some(Self::text),
                server_reference: self.some(Self::text),
                user: self.user(),
            },
        }
    }
}
