//! The codec against the specifications: known bytes, refused bytes, and generated packets.

// In a test, a panic is a finding.
#![allow(clippy::indexing_slicing)]

mod generated;
mod malformed;
mod packets;
mod wire;

use bytes::BytesMut;

use super::*;

/// Packet size limit of tests that are not about it.
const NO_LIMIT: u32 = u32::MAX;

fn encoded(packet: &Packet<'_>, version: Version) -> BytesMut {
    let mut out = BytesMut::new();
    packet.encode(version, &mut out);
    out
}

/// Decodes the one packet that `bytes` must hold.
fn decode_one(bytes: &[u8], version: Version) -> Result<Packet<'_>, CodecError> {
    let (frame, consumed) = split_frame(bytes, NO_LIMIT)?.expect("the bytes hold a whole packet");
    assert_eq!(consumed, bytes.len(), "the remaining length does not cover {bytes:02x?}");
    decode(frame, version)
}
