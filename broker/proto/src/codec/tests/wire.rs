//! Bytes and what they mean, written out by hand from the specifications.

use smallvec::smallvec;

use super::*;
use Version::{V5, V31, V311};

/// `bytes` mean `packet`, and `packet` is written as `bytes`.
#[track_caller]
fn check<'a>(version: Version, bytes: &'a [u8], packet: Packet<'a>) {
    check_reads(version, bytes, packet.clone());
    check_writes(version, packet, bytes);
}

#[track_caller]
fn check_reads<'a>(version: Version, bytes: &'a [u8], packet: Packet<'a>) {
    assert_eq!(decode_one(bytes, version), Ok(packet));
}

#[track_caller]
fn check_writes(version: Version, packet: Packet<'_>, bytes: &[u8]) {
    let out = encoded(&packet, version);
    assert_eq!(out, bytes, "wrote {out:02x?}, not {bytes:02x?}");
}

fn connect(version: Version) -> Connect<'static> {
    Connect {
        version,
        clean_start: true,
        keep_alive: 60,
        client_id: "m1",
        will: None,
        username: None,
        password: None,
        properties: ConnectProperties::default(),
    }
}

fn message() -> Publish<'static> {
    Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: "a/b",
        packet_id: 0,
        properties: PublishProperties::default(),
        payload: b"hi",
    }
}

fn ack(packet_id: u16, reason: Reason) -> Ack<'static> {
    Ack { packet_id, reason, properties: AckProperties::default() }
}

fn filter(filter: &str, qos: QoS) -> SubscribeFilter<'_> {
    SubscribeFilter {
        filter,
        qos,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::SendAlways,
    }
}

#[test]
fn connect_of_each_version() {
    check(V311, b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x02m1", Packet::Connect(connect(V311)));
    check(V31, b"\x10\x10\0\x06MQIsdp\x03\x02\0\x3c\0\x02m1", Packet::Connect(connect(V31)));
    check(V5, b"\x10\x0f\0\x04MQTT\x05\x02\0\x3c\0\0\x02m1", Packet::Connect(connect(V5)));
    // The version comes from the packet, whatever the connection was thought to speak.
    check_reads(V5, b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x02m1", Packet::Connect(connect(V311)));
}

#[test]
fn connect_with_will_and_credentials() {
    let will = Will {
        qos: QoS::ExactlyOnce,
        retain: true,
        topic: "w",
        payload: &[0, 0xFF],
        properties: WillProperties::default(),
    };
    let full = Connect {
        clean_start: false,
        will: Some(will.clone()),
        username: Some("ü"),
        password: Some(&[0xC3, 0]),
        ..connect(V311)
    };
    check(
        V311,
        b"\x10\x1d\0\x04MQTT\x04\xf4\0\x3c\0\x02m1\0\x01w\0\x02\0\xff\0\x02\xc3\xbc\0\x02\xc3\0",
        Packet::Connect(full),
    );
    let v5 = Connect {
        will: Some(Will {
            properties: WillProperties {
                delay_interval: 5,
                message: MessageProperties { expiry_interval: Some(9), ..Default::default() },
            },
            ..will
        }),
        password: Some(b"token"),
        properties: ConnectProperties {
            session_expiry_interval: 7200,
            receive_maximum: 10,
            maximum_packet_size: Some(0x20000),
            topic_alias_maximum: 4,
            request_response_information: true,
            request_problem_information: false,
            auth_method: Some("M"),
            auth_data: Some(&[0]),
            user: vec![("k", "v"), ("k", "")],
        },
        ..connect(V5)
    };
    check(
        V5,
        b"\x10\x51\0\x04MQTT\x05\x76\0\x3c\
          \x29\x11\0\0\x1c\x20\x21\0\x0a\x27\0\x02\0\0\x22\0\x04\x19\x01\x17\0\x15\0\x01M\x16\0\x01\0\
          \x26\0\x01k\0\x01v\x26\0\x01k\0\0\
          \0\x02m1\x0a\x18\0\0\0\x05\x02\0\0\0\x09\0\x01w\0\x02\0\xff\0\x05token",
        Packet::Connect(v5),
    );
}

#[test]
fn connect_of_3_1_may_leave_out_announced_credentials_and_use_undefined_bits() {
    let bare = Packet::Connect(connect(V31));
    check_reads(V31, b"\x10\x10\0\x06MQIsdp\x03\xc2\0\x3c\0\x02m1", bare.clone());
    check_reads(V31, b"\x10\x10\0\x06MQIsdp\x03\x3b\0\x3c\0\x02m1", bare);
    let named = Connect { username: Some("u"), ..connect(V31) };
    check_reads(V31, b"\x10\x13\0\x06MQIsdp\x03\xc2\0\x3c\0\x02m1\0\x01u", Packet::Connect(named));
}

#[test]
fn connack_of_each_version() {
    let connack =
        |session_present, reason| ConnAck { session_present, reason, properties: Default::default() };
    check(V311, b"\x20\x02\x01\0", Packet::ConnAck(connack(true, Reason::Success)));
    check(V5, b"\x20\x03\x01\0\0", Packet::ConnAck(connack(true, Reason::Success)));
    check(V5, b"\x20\x03\0\x87\0", Packet::ConnAck(connack(false, Reason::NotAuthorized)));
    check(V31, b"\x20\x02\0\x04", Packet::ConnAck(connack(false, Reason::BadUserNameOrPassword)));
    // 3.1 has no session-present flag, and a refusal never has one.
    check_writes(V31, Packet::ConnAck(connack(true, Reason::Success)), b"\x20\x02\0\0");
    check_reads(V31, b"\x20\x02\xff\0", Packet::ConnAck(connack(false, Reason::Success)));
    check_writes(V311, Packet::ConnAck(connack(true, Reason::Banned)), b"\x20\x02\0\x05");
    check(
        V5,
        b"\x20\x47\0\0\x44\x11\0\0\0\x01\x21\0\x02\x24\x01\x25\0\x27\0\0\0\x03\x12\0\x02id\x22\0\x04\
          \x1f\0\x01r\x28\0\x29\x01\x2a\0\x13\0\x05\x1a\0\x01i\x1c\0\x01s\x15\0\x01m\x16\0\x01\xff\
          \x26\0\x01k\0\x01v\x26\0\x01k\0\x01v",
        Packet::ConnAck(ConnAck {
            properties: ConnAckProperties {
                session_expiry_interval: Some(1),
                receive_maximum: Some(2),
                maximum_qos: Some(QoS::AtLeastOnce),
                retain_available: Some(false),
                maximum_packet_size: Some(3),
                assigned_client_id: Some("id"),
                topic_alias_maximum: Some(4),
                reason_string: Some("r"),
                wildcard_subscriptions_available: Some(false),
                subscription_ids_available: Some(true),
                shared_subscriptions_available: Some(false),
                server_keep_alive: Some(5),
                response_information: Some("i"),
                server_reference: Some("s"),
                auth_method: Some("m"),
                auth_data: Some(&[0xFF]),
                user: vec![("k", "v"), ("k", "v")],
            },
            ..connack(false, Reason::Success)
        }),
    );
}

#[test]
fn a_refusal_is_mapped_onto_the_return_codes_of_mqtt_3() {
    for (reason, code) in [
        (Reason::Success, 0),
        (Reason::UnsupportedProtocolVersion, 1),
        (Reason::ClientIdentifierNotValid, 2),
        (Reason::ServerUnavailable, 3),
        (Reason::QuotaExceeded, 3),
        (Reason::ConnectionRateExceeded, 3),
        (Reason::BadUserNameOrPassword, 4),
        (Reason::NotAuthorized, 5),
        (Reason::Banned, 5),
    ] {
        let connack = ConnAck { session_present: false, reason, properties: Default::default() };
        check_writes(V311, Packet::ConnAck(connack), &[0x20, 2, 0, code]);
    }
}

#[test]
fn publish_of_each_version() {
    check(V311, b"\x30\x07\0\x03a/bhi", Packet::Publish(message()));
    check(V5, b"\x30\x08\0\x03a/b\0hi", Packet::Publish(message()));
    let sent_again =
        Publish { dup: true, qos: QoS::ExactlyOnce, retain: true, packet_id: 0x0102, ..message() };
    check(V31, b"\x3d\x09\0\x03a/b\x01\x02hi", Packet::Publish(sent_again.clone()));
    check(V5, b"\x3d\x0a\0\x03a/b\x01\x02\0hi", Packet::Publish(sent_again));
    let empty = Publish { topic: "/", payload: b"", ..message() };
    check(V311, b"\x30\x03\0\x01/", Packet::Publish(empty));
    // A payload is bytes, whatever they are.
    let binary = Publish { qos: QoS::AtLeastOnce, packet_id: 1, payload: &[0, 0xFF, b'#'], ..message() };
    check(V311, b"\x32\x0a\0\x03a/b\0\x01\0\xff#", Packet::Publish(binary));
}

#[test]
fn publish_with_properties() {
    let properties = PublishProperties {
        topic_alias: Some(7),
        subscription_ids: smallvec![1, 268_435_455],
        message: MessageProperties {
            payload_is_utf8: Some(true),
            expiry_interval: Some(10),
            content_type: Some("t"),
            response_topic: Some("r"),
            correlation_data: Some(&[0]),
            user: vec![("b", "2"), ("a", "1")],
        },
    };
    let publish = Publish { topic: "", properties: properties.clone(), ..message() };
    check(
        V5,
        b"\x30\x30\0\0\x2b\x23\0\x07\x02\0\0\0\x0a\x0b\x01\x0b\xff\xff\xff\x7f\
          \x01\x01\x03\0\x01t\x08\0\x01r\x09\0\x01\0\x26\0\x01b\0\x012\x26\0\x01a\0\x011hi",
        Packet::Publish(publish),
    );
    // MQTT 3 has no room for them.
    check_writes(V311, Packet::Publish(Publish { properties, ..message() }), b"\x30\x07\0\x03a/bhi");
}

#[test]
fn acknowledgements_of_each_version() {
    for version in [V31, V311, V5] {
        check(version, b"\x40\x02\0\x01", Packet::PubAck(ack(1, Reason::Success)));
        check(version, b"\x50\x02\0\x01", Packet::PubRec(ack(1, Reason::Success)));
        check(version, b"\x62\x02\0\x01", Packet::PubRel(ack(1, Reason::Success)));
        check(version, b"\x70\x02\xff\xff", Packet::PubComp(ack(65535, Reason::Success)));
    }
    check(V5, b"\x40\x03\0\x01\x87", Packet::PubAck(ack(1, Reason::NotAuthorized)));
    check(V5, b"\x50\x03\0\x01\x10", Packet::PubRec(ack(1, Reason::NoMatchingSubscribers)));
    check(V5, b"\x62\x03\0\x01\x92", Packet::PubRel(ack(1, Reason::PacketIdentifierNotFound)));
    check_reads(V5, b"\x40\x03\0\x01\0", Packet::PubAck(ack(1, Reason::Success)));
    check_reads(V5, b"\x40\x04\0\x01\x87\0", Packet::PubAck(ack(1, Reason::NotAuthorized)));
    check_writes(V311, Packet::PubAck(ack(1, Reason::NotAuthorized)), b"\x40\x02\0\x01");
    // 3.1 marks a PUBREL as sent again.
    check_reads(V31, b"\x6a\x02\0\x01", Packet::PubRel(ack(1, Reason::Success)));
    let properties = AckProperties { reason_string: Some("no"), user: vec![("k", "v")] };
    check(
        V5,
        b"\x70\x10\0\x01\x92\x0c\x1f\0\x02no\x26\0\x01k\0\x01v",
        Packet::PubComp(Ack { properties, ..ack(1, Reason::PacketIdentifierNotFound) }),
    );
}

#[test]
fn subscribe_of_each_version() {
    let subscribe = Subscribe {
        packet_id: 10,
        subscription_id: None,
        filters: smallvec![filter("a/#", QoS::AtLeastOnce), filter("+", QoS::ExactlyOnce)],
        user: vec![],
    };
    check(V311, b"\x82\x0c\0\x0a\0\x03a/#\x01\0\x01+\x02", Packet::Subscribe(subscribe.clone()));
    check(V5, b"\x82\x0d\0\x0a\0\0\x03a/#\x01\0\x01+\x02", Packet::Subscribe(subscribe.clone()));
    check_reads(V31, b"\x8a\x0c\0\x0a\0\x03a/#\x01\0\x01+\x02", Packet::Subscribe(subscribe));
    check(
        V5,
        b"\x82\x11\0\x0a\x0a\x0b\x80\x01\x26\0\x01k\0\x01v\0\x01a\x2d",
        Packet::Subscribe(Subscribe {
            packet_id: 10,
            subscription_id: Some(128),
            filters: smallvec![SubscribeFilter {
                no_local: true,
                retain_as_published: true,
                retain_handling: RetainHandling::DoNotSend,
                ..filter("a", QoS::AtLeastOnce)
            }],
            user: vec![("k", "v")],
        }),
    );
}

#[test]
fn suback_of_each_version() {
    let suback = SubAck {
        packet_id: 10,
        reasons: smallvec![Reason::Success, Reason::GrantedQoS2, Reason::NotAuthorized],
        properties: AckProperties::default(),
    };
    check(V5, b"\x90\x06\0\x0a\0\0\x02\x87", Packet::SubAck(suback.clone()));
    check_writes(V311, Packet::SubAck(suback.clone()), b"\x90\x05\0\x0a\0\x02\x80");
    let refused = smallvec![Reason::GrantedQoS1, Reason::UnspecifiedError];
    check(V311, b"\x90\x04\0\x0a\x01\x80", Packet::SubAck(SubAck { reasons: refused, ..suback }));
}

#[test]
fn unsubscribe_and_unsuback_of_each_version() {
    let unsubscribe = Unsubscribe { packet_id: 11, filters: smallvec!["a", "b/+"], user: vec![] };
    check(V311, b"\xa2\x0a\0\x0b\0\x01a\0\x03b/+", Packet::Unsubscribe(unsubscribe.clone()));
    let with_user = Unsubscribe { user: vec![("k", "v")], ..unsubscribe };
    check(V5, b"\xa2\x12\0\x0b\x07\x26\0\x01k\0\x01v\0\x01a\0\x03b/+", Packet::Unsubscribe(with_user));
    let unsuback =
        |reasons| Packet::UnsubAck(UnsubAck { packet_id: 11, reasons, properties: Default::default() });
    check(V5, b"\xb0\x05\0\x0b\0\0\x11", unsuback(smallvec![Reason::Success, Reason::NoSubscriptionExisted]));
    check(V311, b"\xb0\x02\0\x0b", unsuback(smallvec![]));
    check_writes(V31, unsuback(smallvec![Reason::Success]), b"\xb0\x02\0\x0b");
}

#[test]
fn pings_are_the_same_in_all_versions() {
    for version in [V31, V311, V5] {
        check(version, b"\xc0\0", Packet::PingReq);
        check(version, b"\xd0\0", Packet::PingResp);
    }
}

#[test]
fn disconnect_of_each_version() {
    let disconnect = |reason| Disconnect { reason, properties: Default::default() };
    for version in [V31, V311, V5] {
        check(version, b"\xe0\0", Packet::Disconnect(disconnect(Reason::Success)));
    }
    check(V5, b"\xe0\x02\x8e\0", Packet::Disconnect(disconnect(Reason::SessionTakenOver)));
    check_reads(V5, b"\xe0\x01\x04", Packet::Disconnect(disconnect(Reason::DisconnectWithWill)));
    check_writes(V311, Packet::Disconnect(disconnect(Reason::SessionTakenOver)), b"\xe0\0");
    let properties = DisconnectProperties {
        session_expiry_interval: Some(1),
        reason_string: Some("r"),
        server_reference: Some("s"),
        user: vec![("k", "v")],
    };
    check(
        V5,
        b"\xe0\x16\x9c\x14\x11\0\0\0\x01\x1f\0\x01r\x1c\0\x01s\x26\0\x01k\0\x01v",
        Packet::Disconnect(Disconnect { reason: Reason::UseAnotherServer, properties }),
    );
}

#[test]
fn auth_exists_in_version_5_alone() {
    let auth = Auth {
        reason: Reason::ContinueAuthentication,
        method: Some("M"),
        data: Some(&[1, 0]),
        reason_string: Some("r"),
        user: vec![("k", "v")],
    };
    check(
        V5,
        b"\xf0\x16\x18\x14\x15\0\x01M\x16\0\x02\x01\0\x1f\0\x01r\x26\0\x01k\0\x01v",
        Packet::Auth(auth.clone()),
    );
    check_writes(V311, Packet::Auth(auth), b"");
    let success =
        Auth { reason: Reason::Success, method: None, data: None, reason_string: None, user: vec![] };
    check(V5, b"\xf0\0", Packet::Auth(success));
}

#[test]
fn a_delivery_is_written_as_the_publish_it_stands_for() {
    let message_properties = MessageProperties {
        payload_is_utf8: Some(false),
        expiry_interval: Some(99),
        content_type: Some("json"),
        response_topic: Some("re/ply"),
        correlation_data: Some(&[7; 200]),
        user: vec![("k", "v")],
    };
    let mut forwarded = Vec::new();
    message_properties.encode_forwarded(&mut forwarded);
    let payload = vec![0xA5; 20_000];
    for version in [V31, V311, V5] {
        for (qos, packet_id, dup) in
            [(QoS::AtMostOnce, 0, false), (QoS::AtLeastOnce, 3, true), (QoS::ExactlyOnce, 65535, false)]
        {
            for payload_len in [0, 100, 127, 128, 16_383, 20_000] {
                let payload = &payload[..payload_len];
                let delivery = Delivery {
                    topic: "some/topic",
                    payload,
                    qos,
                    packet_id,
                    dup,
                    retain: true,
                    forwarded: &forwarded,
                    expiry_interval: Some(5),
                    subscription_ids: &[1, 200, 3_000_000],
                    topic_alias: Some(2),
                };
                let mut out = BytesMut::new();
                delivery.encode(version, &mut out);
                assert_eq!(out.len(), delivery.encoded_len(version));
                let mut expected = Publish {
                    dup,
                    qos,
                    retain: true,
                    topic: "some/topic",
                    packet_id,
                    properties: PublishProperties::default(),
                    payload,
                };
                if version == V5 {
                    expected.properties = PublishProperties {
                        topic_alias: Some(2),
                        subscription_ids: smallvec![1, 200, 3_000_000],
                        // The time left goes out in place of the publisher's.
                        message: MessageProperties { expiry_interval: Some(5), ..message_properties.clone() },
                    };
                }
                check_reads(version, &out, Packet::Publish(expected));
            }
        }
    }
}

#[test]
fn a_qos_0_delivery_carries_neither_packet_identifier_nor_duplicate_flag() {
    let delivery = Delivery {
        topic: "a/b",
        payload: b"hi",
        qos: QoS::AtMostOnce,
        packet_id: 9,
        dup: true,
        retain: false,
        forwarded: &[],
        expiry_interval: None,
        subscription_ids: &[],
        topic_alias: None,
    };
    let mut out = BytesMut::new();
    delivery.encode(V311, &mut out);
    check_reads(V311, &out, Packet::Publish(message()));
}

#[test]
fn text_too_long_for_its_length_field_is_cut_between_characters() {
    // 65,534 bytes, then a character of two bytes.
    let long = format!("{}ü", "x".repeat(65_534));
    let connack = ConnAck {
        session_present: false,
        reason: Reason::Success,
        properties: ConnAckProperties { reason_string: Some(&long), ..Default::default() },
    };
    let out = encoded(&Packet::ConnAck(connack.clone()), V5);
    let properties = ConnAckProperties { reason_string: Some(&long[..65_534]), ..Default::default() };
    check_reads(V5, &out, Packet::ConnAck(ConnAck { properties, ..connack }));
}
