//! Two codecs that nobody here wrote, behind one face: what each makes of a packet's bytes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::BytesMut;
use mqtt_proto::codec::Version;
use rumqttd::protocol::Protocol;
use tokio_util::codec::{Decoder, Encoder};

/// The largest packet that is shown to them.
const LARGEST: u32 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Other {
    Rmqtt,
    Rumqttd,
}

/// What became of bytes that hold one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was read, and written as these bytes.
    Written(Vec<u8>),
    /// It was read; writing it failed.
    Read,
    Refused,
    Panicked,
}

impl Other {
    pub const ALL: [Other; 2] = [Other::Rmqtt, Other::Rumqttd];

    /// Reads one whole packet and writes it again.
    pub fn look(self, bytes: &[u8], version: Version) -> Outcome {
        catch_unwind(AssertUnwindSafe(|| match (self, version) {
            (Other::Rmqtt, Version::V5) => rmqtt(rmqtt_codec::v5::Codec::new(LARGEST, 0), bytes),
            (Other::Rmqtt, _) => rmqtt(rmqtt_codec::v3::Codec::new(LARGEST), bytes),
            (Other::Rumqttd, Version::V5) => rumqttd(rumqttd::protocol::v5::V5, bytes),
            (Other::Rumqttd, _) => rumqttd(rumqttd::protocol::v4::V4, bytes),
        }))
        .unwrap_or(Outcome::Panicked)
    }
}

fn rmqtt<C, P>(mut codec: C, bytes: &[u8]) -> Outcome
where
    C: Decoder<Item = (P, u32)> + Encoder<P>,
{
    let mut input = BytesMut::from(bytes);
    let Ok(Some((packet, _))) = codec.decode(&mut input) else { return Outcome::Refused };
    let mut out = BytesMut::new();
    match codec.encode(packet, &mut out) {
        Ok(()) => Outcome::Written(out.to_vec()),
        Err(_) => Outcome::Read,
    }
}

fn rumqttd(mut protocol: impl Protocol, bytes: &[u8]) -> Outcome {
    let mut input = BytesMut::from(bytes);
    let Ok(packet) = protocol.read_mut(&mut input, LARGEST as usize) else { return Outcome::Refused };
    let mut out = BytesMut::new();
    match protocol.write(packet, &mut out) {
        Ok(_) => Outcome::Written(out.to_vec()),
        Err(_) => Outcome::Read,
    }
}
