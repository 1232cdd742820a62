//! CONNACK, no larger than its client takes.

use bytes::BytesMut;
use mqtt_proto::codec::{ConnAck, ConnAckProperties, Connect, Packet, Reason, Version};

/// Bytes of the largest packet that a client takes.
pub(super) fn largest_packet(connect: &Connect<'_>) -> u32 {
    connect.properties.maximum_packet_size.unwrap_or(u32::MAX)
}

/// The packet. What a client can do without is left out where it would be larger than `largest` bytes; if even so it is,
/// there is none to send (MQTT-3.1.2-24).
pub(super) fn connack(
    session_present: bool,
    reason: Reason,
    mut properties: ConnAckProperties<'_>,
    version: Version,
    largest: u32,
) -> Option<BytesMut> {
    // Response information need not be given; aliases are not used then, and too large a packet is answered when it comes.
    let spare: [fn(&mut ConnAckProperties<'_>); 4] = [
        |_| {},
        |properties| properties.response_information = None,
        |properties| properties.topic_alias_maximum = None,
        |properties| properties.maximum_packet_size = None,
    ];
    spare.into_iter().find_map(|leave_out| {
        leave_out(&mut properties);
        let mut out = BytesMut::new();
        let properties = properties.clone();
        Packet::ConnAck(ConnAck { session_present, reason, properties }).encode(version, &mut out);
        (version != Version::V5 || out.len() <= largest as usize).then_some(out)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The properties that are left: response information, topic aliases and the largest packet; and the packet's length.
    #[track_caller]
    fn check(version: Version, largest: u32, expected: Option<(usize, [bool; 3])>) {
        let properties = ConnAckProperties {
            session_expiry_interval: Some(60),
            maximum_packet_size: Some(1000),
            topic_alias_maximum: Some(16),
            response_information: Some("r/a"),
            ..ConnAckProperties::default()
        };
        let out = connack(false, Reason::Success, properties, version, largest);
        let has = |out: &BytesMut, id: u8, value: &[u8]| {
            out.windows(value.len() + 1).any(|at| at[0] == id && at[1..] == *value)
        };
        let seen = out.map(|out| {
            let left = [(0x1a, b"\0\x03r/a".as_slice()), (0x22, &[0, 16]), (0x27, &1000_u32.to_be_bytes())];
            (out.len(), left.map(|(id, value)| has(&out, id, value)))
        });
        assert_eq!(seen, expected, "{version:?} {largest}");
    }

    #[test]
    fn a_client_that_takes_small_packets_gets_a_small_connack_or_none() {
        check(Version::V5, u32::MAX, Some((24, [true, true, true])));
        check(Version::V5, 23, Some((18, [false, true, true])));
        check(Version::V5, 18, Some((18, [false, true, true])));
        check(Version::V5, 17, Some((15, [false, false, true])));
        check(Version::V5, 14, Some((10, [false, false, false])));
        check(Version::V5, 9, None);
        check(Version::V311, 1, Some((4, [false; 3])));
    }
}
