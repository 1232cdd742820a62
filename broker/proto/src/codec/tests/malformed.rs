//! Bytes that must be refused, and as what.

use super::*;
use CodecError as E;
use Version::{V5, V31, V311};

/// Each packet is refused with its error.
#[track_caller]
fn check(version: Version, cases: &[(&[u8], CodecError)]) {
    for (bytes, error) in cases {
        assert_eq!(decode_one(bytes, version), Err(*error), "{version} {bytes:02x?}");
    }
}

#[test]
fn a_frame_needs_its_whole_header_and_body() {
    for input in [&b""[..], b"\x30", b"\x30\x80", b"\x30\xff\xff\xff", b"\x30\x03\0\x01", b"\x30\x81\x01x"] {
        assert_eq!(split_frame(input, NO_LIMIT), Ok(None), "{input:02x?}");
    }
    let (frame, consumed) = split_frame(b"\xc0\0\xd0\0", NO_LIMIT).unwrap().unwrap();
    assert_eq!((frame.first, frame.body, consumed), (0xC0, &b""[..], 2));
}

#[test]
fn a_remaining_length_of_more_than_four_bytes_is_refused() {
    for input in [&b"\x30\xff\xff\xff\xff"[..], b"\x30\x80\x80\x80\x80\x01"] {
        assert_eq!(split_frame(input, NO_LIMIT), Err(E::RemainingLength));
    }
}

#[test]
fn a_packet_over_the_limit_is_refused_from_its_header() {
    assert!(matches!(split_frame(b"\x30\x03\0\x01a", 5), Ok(Some(_))));
    assert_eq!(split_frame(b"\x30\x03", 4), Err(E::PacketTooLarge { size: 5, max: 4 }));
    assert_eq!(
        split_frame(b"\x30\xff\xff\xff\x7f", 131_072),
        Err(E::PacketTooLarge { size: 268_435_460, max: 131_072 })
    );
}

#[test]
fn lengths_with_needless_bytes_are_refused_in_version_5_alone() {
    let padded = |bytes, version| decode_one(bytes, version).map(drop);
    assert_eq!(padded(b"\xc0\x80\0", V311), Ok(()));
    assert_eq!(padded(b"\xc0\x80\0", V5), Err(E::VariableInteger));
    assert_eq!(padded(b"\x10\x8e\0\0\x04MQTT\x04\x02\0\x3c\0\x02m1", V311), Ok(()));
    // A CONNECT is judged by the version it states.
    assert_eq!(padded(b"\x10\x8f\0\0\x04MQTT\x05\x02\0\x3c\0\0\x02m1", V311), Err(E::VariableInteger));
}

#[test]
fn wrong_fixed_headers_are_refused() {
    for version in [V31, V311, V5] {
        check(
            version,
            &[
                (b"\0\0", E::UnknownPacketType(0)),
                (b"\x11\0", E::ReservedFlags(0x11)),
                (b"\x21\x02\0\0", E::ReservedFlags(0x21)),
                (b"\x41\x02\0\x01", E::ReservedFlags(0x41)),
                (b"\x52\x02\0\x01", E::ReservedFlags(0x52)),
                (b"\x60\x02\0\x01", E::ReservedFlags(0x60)),
                (b"\x72\x02\0\x01", E::ReservedFlags(0x72)),
                (b"\x80\x06\0\x01\0\x01a\0", E::ReservedFlags(0x80)),
                (b"\x83\x06\0\x01\0\x01a\0", E::ReservedFlags(0x83)),
                (b"\x92\x03\0\x01\0", E::ReservedFlags(0x92)),
                (b"\xa0\x05\0\x01\0\x01a", E::ReservedFlags(0xA0)),
                (b"\xb2\x02\0\x01", E::ReservedFlags(0xB2)),
                (b"\xc1\0", E::ReservedFlags(0xC1)),
                (b"\xd8\0", E::ReservedFlags(0xD8)),
                (b"\xe2\0", E::ReservedFlags(0xE2)),
                (b"\xf1\0", E::ReservedFlags(0xF1)),
                (b"\xc0\x01\0", E::TrailingBytes),
                (b"\xd0\x01\0", E::TrailingBytes),
            ],
        );
    }
    check(V311, &[(b"\x6a\x02\0\x01", E::ReservedFlags(0x6A)), (b"\xf0\0", E::UnknownPacketType(15))]);
    check(V31, &[(b"\xf0\0", E::UnknownPacketType(15))]);
}

#[test]
fn wrong_connects_are_refused() {
    check(
        V311,
        &[
            (b"\x10\0", E::Truncated),
            (b"\x10\x06\0\x04MQTT", E::Truncated),
            (b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x03m1", E::Truncated),
            (b"\x10\x0f\0\x04MQTT\x04\x02\0\x3c\0\x02m1!", E::TrailingBytes),
            (b"\x10\x0e\0\x04mqtt\x04\x02\0\x3c\0\x02m1", E::UnknownProtocolName),
            (b"\x10\x0e\0\x04MQTT\x06\x02\0\x3c\0\x02m1", E::UnsupportedVersion(6)),
            (b"\x10\x0e\0\x04MQTT\x03\x02\0\x3c\0\x02m1", E::UnsupportedVersion(3)),
            (b"\x10\x10\0\x06MQIsdp\x04\x02\0\x3c\0\x02m1", E::UnsupportedVersion(4)),
            (b"\x10\x0e\0\x04MQTT\x84\x02\0\x3c\0\x02m1", E::UnsupportedVersion(0x84)),
            (b"\x10\x0e\0\x04MQTT\x04\x03\0\x3c\0\x02m1", E::ReservedConnectFlag),
            (b"\x10\x0e\0\x04MQTT\x04\x0a\0\x3c\0\x02m1", E::WillFlagsWithoutWill),
            (b"\x10\x0e\0\x04MQTT\x04\x22\0\x3c\0\x02m1", E::WillFlagsWithoutWill),
            (b"\x10\x0e\0\x04MQTT\x04\x1e\0\x3c\0\x02m1", E::InvalidQos(3)),
            (b"\x10\x11\0\x04MQTT\x04\x42\0\x3c\0\x02m1\0\x01p", E::PasswordWithoutUsername),
            (b"\x10\x0e\0\x04MQTT\x04\x82\0\x3c\0\x02m1", E::Truncated),
            (b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x02m\0", E::NulInString),
            (b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x02\xc3(", E::InvalidUtf8),
            (b"\x10\x10\0\x04MQTT\x04\x82\0\x3c\0\0\0\x02\xff\xff", E::InvalidUtf8),
            (b"\x10\x12\0\x04MQTT\x04\x06\0\x3c\0\x01m\0\0\0\x01p", E::EmptyTopic),
            (b"\x10\x13\0\x04MQTT\x04\x06\0\x3c\0\x01m\0\x01#\0\x01p", E::WildcardInTopic),
        ],
    );
    check(V31, &[(b"\x10\x13\0\x06MQIsdp\x03\x42\0\x3c\0\x02m1\0\x01p", E::PasswordWithoutUsername)]);
    check(
        V5,
        &[
            (b"\x10\x0f\0\x04MQTT\x05\x03\0\x3c\0\0\x02m1", E::ReservedConnectFlag),
            // Properties of 1 byte, 5 bytes in a packet that ends before, and one that isn't theirs.
            (b"\x10\x10\0\x04MQTT\x05\x02\0\x3c\x01\x11\0\x02m1", E::Truncated),
            (b"\x10\x0b\0\x04MQTT\x05\x02\0\x3c\x05", E::Truncated),
            (b"\x10\x12\0\x04MQTT\x05\x02\0\x3c\x03\x23\0\x01\0\x02m1", E::PropertyNotAllowed(0x23)),
            (b"\x10\x12\0\x04MQTT\x05\x02\0\x3c\x03\x21\0\0\0\x02m1", E::PropertyValue(0x21)),
            (b"\x10\x14\0\x04MQTT\x05\x02\0\x3c\x05\x27\0\0\0\0\0\x02m1", E::PropertyValue(0x27)),
            (b"\x10\x11\0\x04MQTT\x05\x02\0\x3c\x02\x17\x02\0\x02m1", E::PropertyValue(0x17)),
            (b"\x10\x11\0\x04MQTT\x05\x02\0\x3c\x02\x19\x02\0\x02m1", E::PropertyValue(0x19)),
            (b"\x10\x13\0\x04MQTT\x05\x02\0\x3c\x04\x19\x01\x19\x01\0\x02m1", E::DuplicateProperty(0x19)),
            (b"\x10\x12\0\x04MQTT\x05\x02\0\x3c\x03\x16\0\0\0\x02m1", E::AuthMethodMissing),
            // The will may not carry a session expiry, nor the connection a will delay.
            (
                b"\x10\x1a\0\x04MQTT\x05\x06\0\x3c\0\0\x01m\x05\x11\0\0\0\x01\0\x01w\0\x01p",
                E::PropertyNotAllowed(0x11),
            ),
            (b"\x10\x14\0\x04MQTT\x05\x02\0\x3c\x05\x18\0\0\0\0\0\x02m1", E::PropertyNotAllowed(0x18)),
        ],
    );
}

#[test]
fn wrong_publishes_are_refused() {
    for version in [V31, V311, V5] {
        check(
            version,
            &[
                (b"\x36\x05\0\x01a\0\x01", E::InvalidQos(3)),
                (b"\x38\x03\0\x01a", E::DupWithoutQos),
                (b"\x32\x05\0\x01a\0\0", E::ZeroPacketId),
                (b"\x32\x04\0\x01a\0", E::Truncated),
                (b"\x30\x01\0", E::Truncated),
                (b"\x30\x03\0\x02a", E::Truncated),
                (b"\x30\x04\0\x02\xed\xa0", E::InvalidUtf8),
                (b"\x30\x05\0\x03\xed\xa0\x80", E::InvalidUtf8),
                (b"\x30\x04\0\x02\xc0\x80", E::InvalidUtf8),
                (b"\x30\x05\0\x03a\0b", E::NulInTopic),
                (b"\x30\x05\0\x03a/+", E::WildcardInTopic),
                (b"\x30\x03\0\x01#", E::WildcardInTopic),
                (b"\x30\x05\0\x03a#b", E::WildcardInTopic),
            ],
        );
    }
    check(V311, &[(b"\x30\x02\0\0", E::EmptyTopic)]);
    check(
        V5,
        &[
            (b"\x30\x03\0\0\0", E::EmptyTopic),
            (b"\x30\x07\0\x01a\x03\x23\0\0", E::ZeroTopicAlias),
            (b"\x30\x06\0\x01a\x02\x01\x02", E::PropertyValue(0x01)),
            (b"\x30\x06\0\x01a\x02\x0b\0", E::PropertyValue(0x0B)),
            (b"\x30\x07\0\x01a\x03\x0b\x81\0", E::VariableInteger),
            (b"\x30\x09\0\x01a\x05\x0b\xff\xff\xff\xff", E::VariableInteger),
            (b"\x30\x05\0\x01a\x80\0", E::VariableInteger),
            (b"\x30\x08\0\x01a\x04\x01\0\x01\0", E::DuplicateProperty(0x01)),
            (b"\x30\x07\0\x01a\x03\x08\0\0", E::EmptyTopic),
            (b"\x30\x08\0\x01a\x04\x08\0\x01+", E::WildcardInTopic),
            (b"\x30\x08\0\x01a\x04\x03\0\x01\0", E::NulInString),
            (b"\x30\x09\0\x01a\x05\x11\0\0\0\0", E::PropertyNotAllowed(0x11)),
            (b"\x30\x05\0\x01a\x01\x7f", E::UnknownProperty(0x7F)),
            (b"\x30\x05\0\x01a\x01\0", E::UnknownProperty(0)),
            (b"\x30\x06\0\x01a\x02\x80\x02", E::UnknownProperty(0x100)),
            (b"\x30\x06\0\x01a\x02\x81\0", E::VariableInteger),
            (b"\x30\x04\0\x01a\x01", E::Truncated),
            (b"\x30\x09\0\x01a\x05\x26\0\x01k\0", E::Truncated),
        ],
    );
}

#[test]
fn wrong_acknowledgements_are_refused() {
    for version in [V31, V311, V5] {
        for first in [0x40, 0x50, 0x62, 0x70] {
            check(
                version,
                &[
                    (&[first, 0], E::Truncated),
                    (&[first, 1, 0], E::Truncated),
                    (&[first, 2, 0, 0], E::ZeroPacketId),
                ],
            );
        }
    }
    check(V311, &[(b"\x40\x03\0\x01\0", E::TrailingBytes)]);
    check(
        V5,
        &[
            (b"\x40\x03\0\x01\x92", E::InvalidReason(0x92)),
            (b"\x62\x03\0\x01\x87", E::InvalidReason(0x87)),
            (b"\x40\x03\0\x01\x03", E::InvalidReason(0x03)),
            (b"\x40\x05\0\x01\0\0\0", E::TrailingBytes),
            (b"\x40\x06\0\x01\0\x02\x01\0", E::PropertyNotAllowed(0x01)),
            (b"\x40\x0a\0\x01\0\x06\x1f\0\0\x1f\0\0", E::DuplicateProperty(0x1F)),
        ],
    );
}

#[test]
fn wrong_subscribes_are_refused() {
    check(
        V311,
        &[
            (b"\x82\x02\0\x01", E::NoFilters),
            (b"\x82\x06\0\0\0\x01a\0", E::ZeroPacketId),
            (b"\x82\x05\0\x01\0\0\0", E::EmptyFilter),
            (b"\x82\x05\0\x01\0\x01a", E::Truncated),
            (b"\x82\x06\0\x01\0\x01a\x03", E::InvalidQos(3)),
            (b"\x82\x06\0\x01\0\x01a\x04", E::ReservedSubscriptionOptions(4)),
            (b"\x82\x06\0\x01\0\x01\0\0", E::NulInString),
            (b"\xa2\x02\0\x01", E::NoFilters),
            (b"\xa2\x05\0\0\0\x01a", E::ZeroPacketId),
            (b"\xa2\x04\0\x01\0\0", E::EmptyFilter),
            (b"\xa2\x06\0\x01\0\x01a\0", E::Truncated),
        ],
    );
    check(
        V5,
        &[
            (b"\x82\x03\0\x01\0", E::NoFilters),
            (b"\x82\x07\0\x01\0\0\x01a\x40", E::ReservedSubscriptionOptions(0x40)),
            (b"\x82\x07\0\x01\0\0\x01a\x30", E::InvalidRetainHandling),
            (b"\x82\x07\0\x01\0\0\x01a\x03", E::InvalidQos(3)),
            (b"\x82\x10\0\x01\0\0\x0a$share/g/a\x04", E::NoLocalOnSharedSubscription),
            (b"\x82\x09\0\x01\x02\x0b\0\0\x01a\0", E::PropertyValue(0x0B)),
            (b"\x82\x0b\0\x01\x04\x0b\x01\x0b\x01\0\x01a\0", E::DuplicateProperty(0x0B)),
            (b"\x82\x0a\0\x01\x03\x1f\0\0\0\x01a\0", E::PropertyNotAllowed(0x1F)),
            (b"\xa2\x03\0\x01\0", E::NoFilters),
            (b"\xa2\x08\0\x01\x02\x0b\x01\0\x01a", E::PropertyNotAllowed(0x0B)),
        ],
    );
}

#[test]
fn wrong_packets_of_a_server_are_refused() {
    check(
        V311,
        &[
            (b"\x20\x02\x02\0", E::ReservedConnAckFlags),
            (b"\x20\x02\0\x06", E::InvalidReason(6)),
            (b"\x20\x02\x01\x05", E::SessionPresentOnRefusal),
            (b"\x20\x03\0\0\0", E::TrailingBytes),
            (b"\x90\x03\0\x01\x03", E::InvalidReason(3)),
            (b"\x90\x03\0\x01\x87", E::InvalidReason(0x87)),
            (b"\x90\x02\0\x01", E::NoReasons),
            (b"\xb0\x03\0\x01\0", E::TrailingBytes),
            (b"\xe0\x01\0", E::TrailingBytes),
        ],
    );
    check(
        V5,
        &[
            (b"\x20\x02\0\0", E::Truncated),
            (b"\x20\x03\0\x01\0", E::InvalidReason(1)),
            (b"\x20\x03\0\x8e\0", E::InvalidReason(0x8E)),
            (b"\x20\x05\0\0\x02\x24\x02", E::PropertyValue(0x24)),
            (b"\x90\x03\0\x01\0", E::NoReasons),
            (b"\x90\x04\0\x01\0\x11", E::InvalidReason(0x11)),
            (b"\xb0\x03\0\x01\0", E::NoReasons),
            (b"\xb0\x04\0\x01\0\x01", E::InvalidReason(0x01)),
            (b"\xe0\x01\x01", E::InvalidReason(0x01)),
            (b"\xe0\x03\0\0\0", E::TrailingBytes),
            (b"\xe0\x04\0\x02\x01\0", E::PropertyNotAllowed(0x01)),
            (b"\xf0\x01\x18", E::Truncated),
            (b"\xf0\x02\x18\0", E::AuthMethodMissing),
            (b"\xf0\x02\x80\0", E::InvalidReason(0x80)),
        ],
    );
}

#[test]
fn a_peer_is_told_the_reason_that_fits() {
    for (error, reason) in [
        (E::Truncated, Reason::MalformedPacket),
        (E::NulInString, Reason::MalformedPacket),
        (E::NulInTopic, Reason::MalformedPacket),
        (E::InvalidQos(3), Reason::MalformedPacket),
        (E::DuplicateProperty(1), Reason::ProtocolError),
        (E::NoFilters, Reason::ProtocolError),
        (E::UnsupportedVersion(6), Reason::UnsupportedProtocolVersion),
        (E::WildcardInTopic, Reason::TopicNameInvalid),
        (E::ZeroTopicAlias, Reason::TopicAliasInvalid),
        (E::PacketTooLarge { size: 2, max: 1 }, Reason::PacketTooLarge),
    ] {
        assert_eq!(error.reason(), reason, "{error}");
    }
    let too_large = E::PacketTooLarge { size: 200_000, max: 131_072 };
    assert_eq!(too_large.to_string(), "packet of 200000 bytes, at most 131072 are accepted");
    assert_eq!(E::PropertyValue(0x21).to_string(), "property 0x21 has a value out of range");
}
