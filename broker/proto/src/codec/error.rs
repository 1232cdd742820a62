//! What can be wrong with bytes that claim to be an MQTT packet.

use super::Reason;

/// Why a packet was refused. After any of these the byte stream can't be trusted and the connection ends;
/// [`CodecError::reason`] is what an MQTT 5 peer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("packet of {size} bytes, at most {max} are accepted")]
    PacketTooLarge { size: u32, max: u32 },
    #[error("remaining length takes more than four bytes")]
    RemainingLength,
    #[error("length or number written with more bytes than it needs, or more than four")]
    VariableInteger,
    #[error("packet ends inside a field")]
    Truncated,
    #[error("bytes left over after the last field")]
    TrailingBytes,
    #[error("packet type {0} does not exist in this version")]
    UnknownPacketType(u8),
    #[error("reserved bits of the fixed header are wrong in packet byte {0:#04x}")]
    ReservedFlags(u8),
    #[error("reserved bit of the connect flags is set")]
    ReservedConnectFlag,
    #[error("reserved bits of the connect acknowledge flags are set")]
    ReservedConnAckFlags,
    #[error("reserved bits of subscription options {0:#04x} are set")]
    ReservedSubscriptionOptions(u8),
    #[error("retain handling 3 does not exist")]
    InvalidRetainHandling,
    #[error("no-local on a shared subscription")]
    NoLocalOnSharedSubscription,
    #[error("QoS {0} does not exist")]
    InvalidQos(u8),
    #[error("duplicate flag on a QoS 0 message")]
    DupWithoutQos,
    #[error("packet identifier 0")]
    ZeroPacketId,
    #[error("text is not UTF-8")]
    InvalidUtf8,
    #[error("text contains U+0000")]
    NulInString,
    #[error("topic of a message contains U+0000")]
    NulInTopic,
    #[error("topic of a message contains a wildcard")]
    WildcardInTopic,
    #[error("topic of a message is empty")]
    EmptyTopic,
    #[error("topic filter is empty")]
    EmptyFilter,
    #[error("list of topic filters is empty")]
    NoFilters,
    #[error("list of reason codes is empty")]
    NoReasons,
    #[error("protocol name is neither MQTT nor MQIsdp")]
    UnknownProtocolName,
    #[error("protocol level {0} is not supported")]
    UnsupportedVersion(u8),
    #[error("will QoS or will retain set without a will")]
    WillFlagsWithoutWill,
    #[error("password without a user name")]
    PasswordWithoutUsername,
    #[error("session present on a refused connection")]
    SessionPresentOnRefusal,
    #[error("property {0:#04x} does not exist")]
    UnknownProperty(u32),
    #[error("property {0:#04x} does not belong in this packet")]
    PropertyNotAllowed(u8),
    #[error("property {0:#04x} appears twice")]
    DuplicateProperty(u8),
    #[error("property {0:#04x} has a value out of range")]
    PropertyValue(u8),
    #[error("topic alias 0")]
    ZeroTopicAlias,
    #[error("authentication method is missing")]
    AuthMethodMissing,
    #[error("reason code {0:#04x} does not exist or does not belong in this packet")]
    InvalidReason(u8),
}

impl CodecError {
    /// The MQTT 5 reason code for CONNACK or DISCONNECT (section 4.13).
    pub fn reason(&self) -> Reason {
        match self {
            Self::PacketTooLarge { .. } => Reason::PacketTooLarge,
            Self::UnknownProtocolName | Self::UnsupportedVersion(_) => Reason::UnsupportedProtocolVersion,
            Self::WildcardInTopic => Reason::TopicNameInvalid,
            Self::ZeroTopicAlias => Reason::TopicAliasInvalid,
            Self::InvalidRetainHandling
            | Self::NoLocalOnSharedSubscription
            | Self::DupWithoutQos
            | Self::ZeroPacketId
            | Self::EmptyTopic
            | Self::EmptyFilter
            | Self::NoFilters
            | Self::NoReasons
            | Self::SessionPresentOnRefusal
            | Self::DuplicateProperty(_)
            | Self::PropertyValue(_)
            | Self::AuthMethodMissing => Reason::ProtocolError,
            Self::RemainingLength
            | Self::VariableInteger
            | Self::Truncated
            | Self::TrailingBytes
            | Self::UnknownPacketType(_)
            | Self::ReservedFlags(_)
            | Self::ReservedConnectFlag
            | Self::ReservedConnAckFlags
            | Self::ReservedSubscriptionOptions(_)
            | Self::InvalidQos(_)
            | Self::InvalidUtf8
            | Self::NulInString
            | Self::NulInTopic
            | Self::WillFlagsWithoutWill
            | Self::PasswordWithoutUsername
            | Self::UnknownProperty(_)
            | Self::PropertyNotAllowed(_)
            | Self::InvalidReason(_) => Reason::MalformedPacket,
        }
    }
}
