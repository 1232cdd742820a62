//! The MQTT 5 properties of each packet: which belong there, what their absence means, how they are written.
//!
//! A field that is an `Option` tells absence apart; any other holds the default of the specification when
//! the property is absent, and is not written at its default.

use bytes::BufMut;
use smallvec::SmallVec;

use super::QoS;
use super::property::{Property, PropertyWriter, id};

/// Name and value pairs in the order they were sent; a name may repeat.
pub type UserProperties<'a> = Vec<(&'a str, &'a str)>;

/// Section 3.1.2.11.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectProperties<'a> {
    /// Seconds after the disconnect; 0 ends the session with the connection, `u32::MAX` never.
    pub session_expiry_interval: u32,
    /// How many QoS>0 messages the client takes at once, at least 1.
    pub receive_maximum: u16,
    /// Bytes of a whole packet the client accepts, at least 1; unlimited when absent.
    pub maximum_packet_size: Option<u32>,
    pub topic_alias_maximum: u16,
    pub request_response_information: bool,
    /// Whether reason strings and user properties may be sent in packets other than PUBLISH, CONNACK and
    /// DISCONNECT.
    pub request_problem_information: bool,
    pub auth_method: Option<&'a str>,
    pub auth_data: Option<&'a [u8]>,
    pub user: UserProperties<'a>,
}

impl Default for ConnectProperties<'_> {
    fn default() -> Self {
        ConnectProperties {
            session_expiry_interval: 0,
            receive_maximum: u16::MAX,
            maximum_packet_size: None,
            topic_alias_maximum: 0,
            request_response_information: false,
            request_problem_information: true,
            auth_method: None,
            auth_data: None,
            user: Vec::new(),
        }
    }
}

/// Section 3.1.3.2.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WillProperties<'a> {
    /// Seconds between the disconnect and the will's publication.
    pub delay_interval: u32,
    pub message: MessageProperties<'a>,
}

/// Section 3.3.2.3.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PublishProperties<'a> {
    /// Never 0.
    pub topic_alias: Option<u16>,
    /// Only a server sends these; each 1 to 268,435,455.
    pub subscription_ids: SmallVec<[u32; 1]>,
    pub message: MessageProperties<'a>,
}

/// The properties that travel with an application message to its subscribers unchanged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MessageProperties<'a> {
    pub payload_is_utf8: Option<bool>,
    /// Seconds. Forwarded less the time the message has waited.
    pub expiry_interval: Option<u32>,
    pub content_type: Option<&'a str>,
    /// Not empty, without wildcards.
    pub response_topic: Option<&'a str>,
    pub correlation_data: Option<&'a [u8]>,
    pub user: UserProperties<'a>,
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK and UNSUBACK.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AckProperties<'a> {
    pub reason_string: Option<&'a str>,
    pub user: UserProperties<'a>,
}

/// Section 3.2.2.3.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConnAckProperties<'a> {
    pub session_expiry_interval: Option<u32>,
    pub receive_maximum: Option<u16>,
    /// Exactly once is said by absence.
    pub maximum_qos: Option<QoS>,
    pub retain_available: Option<bool>,
    pub maximum_packet_size: Option<u32>,
    pub assigned_client_id: Option<&'a str>,
    pub topic_alias_maximum: Option<u16>,
    pub reason_string: Option<&'a str>,
    pub wildcard_subscriptions_available: Option<bool>,
    pub subscription_ids_available: Option<bool>,
    pub shared_subscriptions_available: Option<bool>,
    /// Seconds the client must use instead of its own.
    pub server_keep_alive: Option<u16>,
    pub response_information: Option<&'a str>,
    pub server_reference: Option<&'a str>,
    pub auth_method: Option<&'a str>,
    pub auth_data: Option<&'a [u8]>,
    pub user: UserProperties<'a>,
}

/// Section 3.14.2.2.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DisconnectProperties<'a> {
    /// Only a client sends this.
    pub session_expiry_interval: Option<u32>,
    pub reason_string: Option<&'a str>,
    /// Only a server sends this.
    pub server_reference: Option<&'a str>,
    pub user: UserProperties<'a>,
}

impl MessageProperties<'_> {
    /// Whether a payload is text, if they say so (MQTT 5 sections 3.3.2.3.2 and 3.1.3.2.3).
    pub fn are_true_of(&self, payload: &[u8]) -> bool {
        self.payload_is_utf8 != Some(true) || std::str::from_utf8(payload).is_ok()
    }

    /// Appends all but the expiry interval as property bytes without the leading length, as
    /// [`super::Delivery::forwarded`] puts them on the wire again.
    pub fn encode_forwarded(&self, out: &mut Vec<u8>) {
        self.write_forwarded(&mut PropertyWriter::new(out));
    }

    fn write_forwarded(&self, writer: &mut PropertyWriter<'_, impl BufMut>) {
        writer.bool(id::PAYLOAD_FORMAT, self.payload_is_utf8);
        writer.str(id::CONTENT_TYPE, self.content_type);
        writer.str(id::RESPONSE_TOPIC, self.response_topic);
        writer.binary(id::CORRELATION_DATA, self.correlation_data);
        writer.user(&self.user);
    }
}

// Each `accept` takes over one property and says whether it belongs here; its match is the specification's
// table for that packet. Each `write` is its reverse.

impl<'a> ConnectProperties<'a> {
    pub(super) fn accept(&mut self, property: Property<'a>) -> bool {
        match property {
            Property::SessionExpiryInterval(value) => self.session_expiry_interval = value,
            Property::ReceiveMaximum(value) => self.receive_maximum = value,
            Property::MaximumPacketSize(value) => self.maximum_packet_size = Some(value),
            Property::TopicAliasMaximum(value) => self.topic_alias_maximum = value,
            Property::RequestResponseInformation(value) => self.request_response_information = value,
            Property::RequestProblemInformation(value) => self.request_problem_information = value,
            Property::AuthMethod(value) => self.auth_method = Some(value),
            Property::AuthData(value) => self.auth_data = Some(value),
            Property::User(name, value) => self.user.push((name, value)),
            _ => return false,
        }
        true
    }

    pub(super) fn write(&self, writer: &mut PropertyWriter<'_, impl BufMut>) {
        let default = ConnectProperties::default();
        writer.u32(id::SESSION_EXPIRY_INTERVAL, differs(self.session_expiry_interval, 0));
        writer.u16(id::RECEIVE_MAXIMUM, differs(self.receive_maximum, default.receive_maximum));
        writer.u32(id::MAXIMUM_PACKET_SIZE, self.maximum_packet_size);
        writer.u16(id::TOPIC_ALIAS_MAXIMUM, differs(self.topic_alias_maximum, 0));
        writer.bool(id::REQUEST_RESPONSE_INFORMATION, differs(self.request_response_information, false));
        writer.bool(id::REQUEST_PROBLEM_INFORMATION, differs(self.request_problem_information, true));
        writer.str(id::AUTH_METHOD, self.auth_method);
        writer.binary(id::AUTH_DATA, self.auth_data);
        writer.user(&self.user);
    }
}

impl<'a> WillProperties<'a> {
    pub(super) fn accept(&mut self, property: Property<'a>) -> bool {
        match property {
            Property::WillDelayInterval(value) => self.delay_interval = value,
            other => return self.message.accept(other),
        }
        true
    }

    pub(super) fn write(&self, writer: &mut PropertyWriter<'_, impl BufMut>) {
        writer.u32(id::WILL_DELAY_INTERVAL, differs(self.delay_interval, 0));
        writer.u32(id::EXPIRY_INTERVAL, self.message.expiry_interval);
        self.message.write_forwarded(writer);
    }
}

impl<'a> PublishProperties<'a> {
    pub(super) fn accept(&mut self, property: Property<'a>) -> bool {
        match property {
            Property::TopicAlias(value) => self.topic_alias = Some(value),
            Property::SubscriptionId(value) => self.subscription_ids.push(value),
            other => return self.message.accept(other),
        }
        true
    }
}

impl<'a> MessageProperties<'a> {
    fn accept(&mut self, property: Property<'a>) -> bool {
        match property {
            Property::PayloadIsUtf8(value) => self.payload_is_utf8 = Some(value),
            Property::ExpiryInterval(value) => self.expiry_interval = Some(value),
            Property::ContentType(value) => self.content_type = Some(value),
            Property::ResponseTopic(value) => self.response_topic = Some(value),
            Property::CorrelationData(value) => self.correlation_data = Some(value),
            Property::User(name, value) => self.user.push((name, value)),
            _ => return false,
        }
        true
    }
}

impl<'a> AckProperties<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.reason_string.is_none() && self.user.is_empty()
    }

    pub(super) fn accept(&mut self, property: Property<'a>) -> bool {
        match property {
            Property::ReasonString(value) => self.reason_string = Some(value),
            Property::User(name, value) => self.user.push((name, value)),
            _ => return false,
        }
        true
    }

    pub(super) fn write(&self, writer: &mut PropertyWriter<'_, impl BufMut>) {
        writer.str(id::REASON_STRING, self.reason_string);
        writer.user(&self.user);
    }
}

impl<'a> ConnAckProperties<'a> {
    pub(super) fn accept(&mut self, property: Property<'a>) -> bool {
        match property {
            Property::SessionExpiryInterval(value) => self.session_expiry_interval = Some(value),
            Property::ReceiveMaximum(value) => self.receive_maximum = Some(value),
            Property::MaximumQos(value) => self.maximum_qos = Some(value),
            Property::RetainAvailable(value) => self.retain_available = Some(value),
            Property::MaximumPacketSize(value) => self.maximum_packet_size = Some(value),
            Property::AssignedClientId(value) => self.assigned_client_id = Some(value),
            Property::TopicAliasMaximum(value) => self.topic_alias_maximum = Some(value),
            Property::ReasonString(value) => self.reason_string = Some(value),
            Property::WildcardsAvailable(value) => self.wildcard_subscriptions_available = Some(value),
            Property::SubscriptionIdsAvailable(value) => self.subscription_ids_available = Some(value),
            Property::SharedAvailable(value) => self.shared_subscriptions_available = Some(value),
            Property::ServerKeepAlive(value) => self.server_keep_alive = Some(value),
            Property::ResponseInformation(value) => self.response_information = Some(value),
            Property::ServerReference(value) => self.server_reference = Some(value),
            Property::AuthMethod(value) => self.auth_method = Some(value),
            Property::AuthData(value) => self.auth_data = Some(value),
            Property::User(name, value) => self.user.push((name, value)),
            _ => return false,
        }
        true
    }

    pub(super) fn write(&self, writer: &mut PropertyWriter<'_, impl BufMut>) {
        let maximum_qos = self.maximum_qos.filter(|qos| *qos != QoS::ExactlyOnce);
        writer.u32(id::SESSION_EXPIRY_INTERVAL, self.session_expiry_interval);
        writer.u16(id::RECEIVE_MAXIMUM, self.receive_maximum);
        writer.u8(id::MAXIMUM_QOS, maximum_qos.map(|qos| qos as u8));
        writer.bool(id::RETAIN_AVAILABLE, self.retain_available);
        writer.u32(id::MAXIMUM_PACKET_SIZE, self.maximum_packet_size);
        writer.str(id::ASSIGNED_CLIENT_ID, self.assigned_client_id);
        writer.u16(id::TOPIC_ALIAS_MAXIMUM, self.topic_alias_maximum);
        writer.str(id::REASON_STRING, self.reason_string);
        writer.bool(id::WILDCARDS_AVAILABLE, self.wildcard_subscriptions_available);
        writer.bool(id::SUBSCRIPTION_IDS_AVAILABLE, self.subscription_ids_available);
        writer.bool(id::SHARED_AVAILABLE, self.shared_subscriptions_available);
        writer.u16(id::SERVER_KEEP_ALIVE, self.server_keep_alive);
        writer.str(id::RESPONSE_INFORMATION, self.response_information);
        writer.str(id::SERVER_REFERENCE, self.server_reference);
        writer.str(id::AUTH_METHOD, self.auth_method);
        writer.binary(id::AUTH_DATA, self.auth_data);
        writer.user(&self.user);
    }
}

impl<'a> DisconnectProperties<'a> {
    pub(super) fn accept(&mut self, property: Property<'a>) -> bool {
        match property {
            Property::SessionExpiryInterval(value) => self.session_expiry_interval = Some(value),
            Property::ReasonString(value) => self.reason_string = Some(value),
            Property::ServerReference(value) => self.server_reference = Some(value),
            Property::User(name, value) => self.user.push((name, value)),
            _ => return false,
        }
        true
    }

    pub(super) fn write(&self, writer: &mut PropertyWriter<'_, impl BufMut>) {
        writer.u32(id::SESSION_EXPIRY_INTERVAL, self.session_expiry_interval);
        writer.str(id::REASON_STRING, self.reason_string);
        writer.str(id::SERVER_REFERENCE, self.server_reference);
        writer.user(&self.user);
    }
}

fn differs<T: PartialEq>(value: T, default: T) -> Option<T> {
    (value != default).then_some(value)
}
