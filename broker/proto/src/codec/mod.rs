//! The wire format of MQTT 3.1, 3.1.1 and 5.0: bytes to packets and back.
//!
//! Decoding borrows everything from the frame it is given, never panics, and refuses whatever the
//! specifications call malformed or a protocol error as far as one packet alone can show it. What needs
//! the connection's state (who may send which packet, alias limits, receive maximum) or the meaning of a
//! topic filter is not judged here.
//!
//! One packet type serves all versions; the version is an argument. Encoding leaves out what the version
//! does not have.

mod decode;
mod delivery;
mod encode;
mod error;
mod frame;
mod packet;
mod properties;
mod property;
mod reason;
#[cfg(test)]
mod tests;

use std::fmt;

pub use decode::decode;
pub use delivery::{AckKind, Delivery, encode_ack};
pub use error::CodecError;
pub use frame::{Frame, split_frame};
pub use packet::{
    Ack, Auth, ConnAck, Connect, Disconnect, Packet, Publish, RetainHandling, SubAck, Subscribe,
    SubscribeFilter, UnsubAck, Unsubscribe, Will,
};
pub use properties::{
    AckProperties, ConnAckProperties, ConnectProperties, DisconnectProperties, MessageProperties,
    PublishProperties, UserProperties, WillProperties,
};
pub use reason::Reason;

/// The protocol a connection speaks, by its protocol level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    V31 = 3,
    V311 = 4,
    V5 = 5,
}

impl Version {
    /// The protocol level byte of CONNECT: 3, 4 or 5.
    pub fn level(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Version::V31 => "3.1",
            Version::V311 => "3.1.1",
            Version::V5 => "5.0",
        })
    }
}

/// How surely a message is delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QoS {
    #[default]
    AtMostOnce = 0,
    AtLeastOnce = 1,
    ExactlyOnce = 2,
}

impl TryFrom<u8> for QoS {
    type Error = CodecError;

    fn try_from(value: u8) -> Result<Self, CodecError> {
        match value {
            0 => Ok(QoS::AtMostOnce),
            1 => Ok(QoS::AtLeastOnce),
            2 => Ok(QoS::ExactlyOnce),
            _ => Err(CodecError::InvalidQos(value)),
        }
    }
}
