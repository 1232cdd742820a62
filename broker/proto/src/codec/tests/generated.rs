//! Properties that hold for every packet, tried on generated packets and on damaged bytes.

use super::{packets::Random, *};
use Version::{V5, V31, V311};

const VERSIONS: [Version; 3] = [V31, V311, V5];

#[test]
fn every_packet_is_read_as_it_was_written() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for _ in 0..20_000 {
        let version = random.pick(&VERSIONS);
        let mut bytes = BytesMut::new();
        let packet = random.packet(version);
        packet.encode(version, &mut bytes);
        // A CONNECT says its version itself.
        let read_as = if matches!(packet, Packet::Connect(_)) { random.pick(&VERSIONS) } else { version };
        assert_eq!(decode_one(&bytes, read_as).as_ref(), Ok(&packet), "{version} {bytes:02x?}");
        let cut = random.below(bytes.len());
        assert_eq!(split_frame(&bytes[..cut], NO_LIMIT), Ok(None), "{version} {cut} of {bytes:02x?}");
    }
}

#[test]
fn packets_one_after_another_are_split_where_they_were_joined() {
    let mut random = Random(7);
    for _ in 0..200 {
        let version = random.pick(&VERSIONS);
        let mut bytes = BytesMut::new();
        let packets: Vec<_> = (0..10).map(|_| random.packet(version)).collect();
        packets.iter().for_each(|packet| packet.encode(version, &mut bytes));
        let mut rest = &bytes[..];
        for packet in &packets {
            let (frame, consumed) = split_frame(rest, NO_LIMIT).unwrap().unwrap();
            assert_eq!(decode(frame, version).as_ref(), Ok(packet));
            rest = &rest[consumed..];
        }
        assert!(rest.is_empty());
    }
}

#[test]
fn damaged_packets_are_refused_or_mean_what_they_say_and_never_panic() {
    let mut random = Random(0xD1B5_4A32_D192_ED03);
    let mut accepted = 0;
    for _ in 0..10_000 {
        let version = random.pick(&VERSIONS);
        let whole = encoded(&random.packet(version), version);
        for _ in 0..20 {
            let mut bytes = whole.to_vec();
            random.damage(&mut bytes);
            accepted += usize::from(survives(&bytes, random.pick(&VERSIONS)));
        }
    }
    assert!(accepted > 1_000, "only {accepted} were accepted: the damage leaves nothing to look at");
}

#[test]
fn random_bytes_are_refused_or_mean_what_they_say_and_never_panic() {
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    for _ in 0..100_000 {
        let first = random.next() as u8;
        let body: Vec<u8> = (0..random.below(40)).map(|_| random.byte()).collect();
        let mut bytes = vec![first, body.len() as u8];
        bytes.extend(body);
        survives(&bytes, random.pick(&VERSIONS));
    }
}

/// Reads whatever `bytes` start with. What is accepted must be written as bytes that are read as the same
/// packet. Returns whether it was accepted.
fn survives(bytes: &[u8], version: Version) -> bool {
    let Ok(Some((frame, consumed))) = split_frame(bytes, NO_LIMIT) else { return false };
    assert!(consumed <= bytes.len());
    let mut again = BytesMut::new();
    let Ok(packet) = decode(frame, version) else { return false };
    packet.encode(version, &mut again);
    assert_eq!(decode_one(&again, version).as_ref(), Ok(&packet), "{version} {bytes:02x?} {again:02x?}");
    true
}
