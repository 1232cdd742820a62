//! The reason codes of MQTT 5 (section 2.4), which packet may carry which, and how MQTT 3 says the same.

use std::fmt;

use super::CodecError;
use super::frame::kind;

macro_rules! reasons {
    ($($name:ident = $code:literal, $phrase:literal;)*) => {
        /// Why something was accepted, refused or ended. `0x00` also stands for "granted QoS 0" and
        /// "normal disconnection". From `0x80` on it is a failure.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $($name = $code,)*
        }

        impl TryFrom<u8> for Reason {
            type Error = CodecError;

            fn try_from(code: u8) -> Result<Self, CodecError> {
                match code {
                    $($code => Ok(Reason::$name),)*
                    _ => Err(CodecError::InvalidReason(code)),
                }
            }
        }

        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Reason::$name => $phrase,)*
                })
            }
        }
    };
}

reasons! {
    Success = 0x00, "success";
    GrantedQoS1 = 0x01, "granted QoS 1";
    GrantedQoS2 = 0x02, "granted QoS 2";
    DisconnectWithWill = 0x04, "disconnect with will message";
    NoMatchingSubscribers = 0x10, "no matching subscribers";
    NoSubscriptionExisted = 0x11, "no such subscription";
    ContinueAuthentication = 0x18, "continue authentication";
    ReAuthenticate = 0x19, "authenticate again";
    UnspecifiedError = 0x80, "unspecified error";
    MalformedPacket = 0x81, "malformed packet";
    ProtocolError = 0x82, "protocol error";
    ImplementationSpecificError = 0x83, "not accepted by this server";
    UnsupportedProtocolVersion = 0x84, "protocol version not supported";
    ClientIdentifierNotValid = 0x85, "client ID not valid";
    BadUserNameOrPassword = 0x86, "bad user name or password";
    NotAuthorized = 0x87, "not authorized";
    ServerUnavailable = 0x88, "server unavailable";
    ServerBusy = 0x89, "server busy";
    Banned = 0x8A, "banned";
    ServerShuttingDown = 0x8B, "server shutting down";
    BadAuthenticationMethod = 0x8C, "authentication method not supported";
    KeepAliveTimeout = 0x8D, "keep alive timeout";
    SessionTakenOver = 0x8E, "session taken over";
    TopicFilterInvalid = 0x8F, "topic filter not valid";
    TopicNameInvalid = 0x90, "topic name not valid";
    PacketIdentifierInUse = 0x91, "packet identifier in use";
    PacketIdentifierNotFound = 0x92, "packet identifier not found";
    ReceiveMaximumExceeded = 0x93, "receive maximum exceeded";
    TopicAliasInvalid = 0x94, "topic alias not valid";
    PacketTooLarge = 0x95, "packet too large";
    MessageRateTooHigh = 0x96, "message rate too high";
    QuotaExceeded = 0x97, "quota exceeded";
    AdministrativeAction = 0x98, "administrative action";
    PayloadFormatInvalid = 0x99, "payload is not of the format it claims";
    RetainNotSupported = 0x9A, "retain not supported";
    QoSNotSupported = 0x9B, "QoS not supported";
    UseAnotherServer = 0x9C, "use another server";
    ServerMoved = 0x9D, "server moved";
    SharedSubscriptionsNotSupported = 0x9E, "shared subscriptions not supported";
    ConnectionRateExceeded = 0x9F, "connection rate exceeded";
    MaximumConnectTime = 0xA0, "maximum connect time";
    SubscriptionIdentifiersNotSupported = 0xA1, "subscription identifiers not supported";
    WildcardSubscriptionsNotSupported = 0xA2, "wildcard subscriptions not supported";
}

impl Reason {
    /// The code as it stands on the wire of MQTT 5.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Whether this refuses or ends something (codes from `0x80`).
    pub fn is_failure(self) -> bool {
        self.code() >= 0x80
    }

    /// Parses a code as one that the packet type `packet` may carry (the tables of section 3).
    pub(super) fn parse_in(packet: u8, code: u8) -> Result<Self, CodecError> {
        let reason = Reason::try_from(code)?;
        let allowed = match packet {
            kind::CONNACK => matches!(
                code,
                0x00 | 0x80..=0x8A | 0x8C | 0x90 | 0x95 | 0x97 | 0x99..=0x9D | 0x9F
            ),
            kind::PUBACK | kind::PUBREC => {
                matches!(code, 0x00 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99)
            }
            kind::PUBREL | kind::PUBCOMP => matches!(code, 0x00 | 0x92),
            kind::SUBACK => {
                matches!(code, 0x00..=0x02 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91 | 0x97 | 0x9E | 0xA1 | 0xA2)
            }
            kind::UNSUBACK => matches!(code, 0x00 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91),
            kind::DISCONNECT => matches!(
                code,
                0x00 | 0x04
                    | 0x80..=0x83
                    | 0x87
                    | 0x89
                    | 0x8B
                    | 0x8D..=0x90
                    | 0x93..=0xA2
            ),
            kind::AUTH => matches!(code, 0x00 | 0x18 | 0x19),
            _ => false,
        };
        if allowed { Ok(reason) } else { Err(CodecError::InvalidReason(code)) }
    }

    /// The return code of an MQTT 3 CONNACK: 0 accepted, 1 version, 2 client ID, 3 unavailable, 4 bad
    /// credentials, 5 not authorized.
    pub(super) fn connect_return_code(self) -> u8 {
        match self {
            Reason::Success => 0,
            Reason::UnsupportedProtocolVersion => 1,
            Reason::ClientIdentifierNotValid => 2,
            Reason::BadUserNameOrPassword => 4,
            Reason::NotAuthorized | Reason::Banned => 5,
            _ => 3,
        }
    }

    /// The reverse of [`Self::connect_return_code`].
    pub(super) fn from_connect_return_code(code: u8) -> Result<Self, CodecError> {
        match code {
            0 => Ok(Reason::Success),
            1 => Ok(Reason::UnsupportedProtocolVersion),
            2 => Ok(Reason::ClientIdentifierNotValid),
            3 => Ok(Reason::ServerUnavailable),
            4 => Ok(Reason::BadUserNameOrPassword),
            5 => Ok(Reason::NotAuthorized),
            _ => Err(CodecError::InvalidReason(code)),
        }
    }
}
