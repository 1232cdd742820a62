//! What our codec writes the others read alike, and what they write of it ours reads as the same packet; of damaged bytes all
//! think the same. Where they do not, the tables here say who is right.

#[path = "../../src/codec/tests/packets.rs"]
mod packets;

use std::collections::BTreeMap;

use bytes::BytesMut;
use mqtt_proto::codec::*;
use mqtt_proto_differential::{
    Other::{self, Rmqtt, Rumqttd},
    Outcome,
};
use packets::Random;

const VERSIONS: [Version; 2] = [Version::V311, Version::V5];

/// A valid packet that one of them does not give back as it was.
struct Exception {
    other: Other,
    of: fn(&Packet<'_>, Version) -> bool,
    why: &'static str,
}

const EXCEPTIONS: &[Exception] = &[
    Exception {
        other: Rmqtt,
        of: |packet, _| matches!(packet, Packet::Connect(connect) if connect.client_id.is_empty() && !connect.clean_start),
        why: "refuses an empty client ID without a clean session as malformed; by MQTT 3.1.1 it is answered with 2 \
              (MQTT-3.1.3-8), and MQTT 5 allows it",
    },
    Exception {
        other: Rmqtt,
        of: |packet, _| matches!(packet, Packet::ConnAck(connack) if says_a_default(&connack.properties)),
        why: "leaves out what is said though it is the default, which means the same",
    },
    Exception {
        other: Rmqtt,
        of: |packet, _| {
            matches!(packet, Packet::Publish(publish)
                if publish.properties.message.payload_is_utf8 == Some(false))
        },
        why: "leaves out a Payload Format Indicator of 0, though it is to reach subscribers unaltered (MQTT-3.3.2-4)",
    },
    Exception {
        other: Rumqttd,
        of: |packet, _| matches!(packet, Packet::Connect(connect) if connect.password.is_some()),
        why: "takes a password for text, though it is binary (MQTT-3.1.3.6), and needs a user name with it",
    },
    Exception {
        other: Rumqttd,
        of: |packet, _| {
            matches!(packet, Packet::Connect(connect)
                if connect.username == Some("") || connect.client_id.is_empty() && !connect.clean_start)
        },
        why: "drops an empty user name, and refuses an empty client ID without a clean session",
    },
    Exception {
        other: Rumqttd,
        of: |packet, version| version == Version::V5 && matches!(packet, Packet::Auth(_)),
        why: "knows no AUTH",
    },
    Exception {
        other: Rumqttd,
        of: |packet, version| {
            version == Version::V5 && matches!(packet, Packet::ConnAck(_) | Packet::UnsubAck(_))
        },
        why: "panics when it is to read what a server sends",
    },
    Exception {
        other: Rumqttd,
        of: |packet, version| {
            version == Version::V5
                && matches!(packet, Packet::Disconnect(disconnect)
                    if disconnect.properties == DisconnectProperties::default())
        },
        why: "writes a byte too many behind a DISCONNECT without properties",
    },
    Exception {
        other: Rumqttd,
        of: |packet, _| matches!(packet, Packet::Publish(publish) if publish.properties.subscription_ids.len() > 1),
        why: "reads the second of two subscription identifiers as part of the payload",
    },
];

fn says_a_default(properties: &ConnAckProperties<'_>) -> bool {
    [
        properties.retain_available,
        properties.wildcard_subscriptions_available,
        properties.subscription_ids_available,
        properties.shared_subscriptions_available,
    ]
    .contains(&Some(true))
        || properties.receive_maximum == Some(u16::MAX)
        || properties.maximum_qos == Some(QoS::ExactlyOnce)
        || properties.topic_alias_maximum == Some(0)
}

#[test]
fn every_packet_means_the_same_to_all_and_exceptions_are_known() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut met = vec![0; EXCEPTIONS.len()];
    let mut wrong = BTreeMap::new();
    for _ in 0..30_000 {
        let version = random.pick(&VERSIONS);
        let packet = random.packet(version);
        let mut bytes = BytesMut::new();
        packet.encode(version, &mut bytes);
        for other in Other::ALL {
            let outcome = other.look(&bytes, version);
            if is_same(&packet, &outcome, version) {
                continue;
            }
            let known =
                EXCEPTIONS.iter().position(|known| known.other == other && (known.of)(&packet, version));
            match known {
                Some(at) => met[at] += 1,
                None => {
                    let kind = format!("{other:?} {version} {}", first_word(&packet));
                    wrong.entry(kind).or_insert_with(|| format!("{packet:?}\n{outcome:02x?}"));
                }
            }
        }
    }
    let wrong: Vec<String> = wrong.into_iter().map(|(kind, what)| format!("{kind}: {what}")).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (exception, met) in EXCEPTIONS.iter().zip(met) {
        assert!(met > 0, "{:?} no longer {}", exception.other, exception.why);
    }
}

/// Whether it was read and written as the packet it was.
fn is_same(packet: &Packet<'_>, outcome: &Outcome, version: Version) -> bool {
    let Outcome::Written(bytes) = outcome else { return false };
    let Ok(Some((frame, length))) = split_frame(bytes, u32::MAX) else { return false };
    // By its words, as the lifetimes of the two are not one.
    length == bytes.len()
        && decode(frame, version).is_ok_and(|read| format!("{read:?}") == format!("{packet:?}"))
}

/// What we refuse and they accept, by packet type; 0 stands for all.
const LAXER: &[(Other, &[u8], &str, &str)] = &[
    (Rmqtt, &[0], "NulInString", "U+0000 is in no text (MQTT-1.5.4-2)"),
    (Rmqtt, &[0], "NulInTopic", "nor in a topic (MQTT-4.7.3-2)"),
    (Rmqtt, &[1, 3], "WildcardInTopic", "a topic name has no wildcards (MQTT-3.3.2-2)"),
    (Rmqtt, &[1, 2, 12, 13, 14], "TrailingBytes", "these packets end where their fields do"),
    (Rmqtt, &[2], "SessionPresentOnRefusal", "a refusal has no session (MQTT-3.2.2-6)"),
    (Rmqtt, &[2], "InvalidReason", "return codes go up to 5"),
    (Rmqtt, &[3], "DupWithoutQos", "DUP is clear at QoS 0 (MQTT-3.3.1-2)"),
    (Rmqtt, &[3], "EmptyTopic", "a topic has a character, unless an alias stands for it (MQTT-4.7.3-1)"),
    (Rmqtt, &[8], "ReservedSubscriptionOptions", "reserved bits are zero (MQTT-3.8.3-5)"),
    (Rmqtt, &[8], "NoLocalOnSharedSubscription", "a shared subscription has no No Local (MQTT-3.8.3-4)"),
    (Rmqtt, &[9, 11], "NoReasons", "SUBACK and UNSUBACK answer at least one filter (MQTT-3.8.4-6)"),
    (Rmqtt, &[2], "PropertyValue", "a Maximum QoS is 0 or 1 (MQTT 5 section 3.2.2.3.4)"),
    (Rmqtt, &[1], "WillFlagsWithoutWill", "no will, no flags of one (MQTT-3.1.2-11)"),
    (Rmqtt, &[15], "Truncated", "AUTH with a reason has properties"),
    (Rmqtt, &[0], "VariableInteger", "a length has no needless bytes (MQTT-1.5.5-1)"),
    (Rumqttd, &[0], "*", "hardly looks: flags, lengths and text go unchecked"),
];

/// What we accept and they refuse, by packet type.
const STRICTER: &[(Other, &[u8], &str)] = &[
    (Rmqtt, &[1], "an empty client ID without a clean session"),
    (Rumqttd, &[1], "passwords that are not text, passwords alone, empty client IDs"),
    (Rumqttd, &[14], "a DISCONNECT that ends with its reason, which it may (MQTT 5 section 3.14.2.2)"),
    (Rumqttd, &[15], "AUTH"),
];

#[test]
fn damaged_bytes_are_refused_by_all_and_exceptions_are_known() {
    let mut random = Random(0xD1B5_4A32_D192_ED03);
    let mut wrong = BTreeMap::new();
    let mut accepted = 0;
    for _ in 0..60_000 {
        let version = random.pick(&VERSIONS);
        let mut bytes = BytesMut::new();
        random.packet(version).encode(version, &mut bytes);
        let mut bytes = bytes.to_vec();
        random.damage(&mut bytes);
        let Ok(Some((frame, length))) = split_frame(&bytes, u32::MAX) else { continue };
        let kind = frame.first >> 4;
        let ours = decode(frame, version);
        // A CONNECT says its version itself, and those two were told another.
        if matches!(&ours, Ok(Packet::Connect(connect)) if connect.version != version) {
            continue;
        }
        for other in Other::ALL {
            let theirs = other.look(&bytes[..length], version);
            let is_listed = |kinds: &[u8]| kinds == [0] || kinds.contains(&kind);
            let known = match (&ours, &theirs) {
                (_, Outcome::Panicked) => {
                    other == Rumqttd && version == Version::V5 && matches!(kind, 2 | 11)
                }
                (Ok(_), Outcome::Refused) => {
                    STRICTER.iter().any(|(codec, kinds, _)| *codec == other && is_listed(kinds))
                }
                (Err(error), Outcome::Written(_) | Outcome::Read) => {
                    let error = first_word(error);
                    LAXER.iter().any(|(codec, kinds, name, _)| {
                        *codec == other && is_listed(kinds) && (*name == "*" || *name == error)
                    })
                }
                (Ok(_), _) => {
                    accepted += 1;
                    true
                }
                (Err(_), Outcome::Refused) => true,
            };
            if !known {
                let what = format!("{other:?} {version} type {kind}");
                wrong.entry(what).or_insert_with(|| format!("{ours:?}\n{:02x?}", &bytes[..length]));
            }
        }
    }
    let wrong: Vec<String> = wrong.into_iter().map(|(kind, what)| format!("{kind}: {what}")).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(accepted > 1_000, "only {accepted} were accepted: the damage leaves nothing to look at");
}

/// The name of an enum's variant.
fn first_word(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.split(|letter: char| !letter.is_alphanumeric()).next().unwrap_or_default().to_owned()
}
