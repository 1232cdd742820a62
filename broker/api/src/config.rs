//! What one instance's brokers are told to be: limits, session rules, parent topics, listeners, the Kafka cluster.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The configuration of all brokers of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstanceConfig {
    /// `namespace/name` of the MqttInstance.
    pub instance: String,
    pub limits: Limits,
    pub session: SessionRules,
    /// From then on (Unix time in seconds) nobody is let in, and who is there is closed; absent: never. Not written where it is
    /// absent, for brokers that do not know it refuse a config with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    /// Registered groups: client IDs `GROUP@@device` are counted under them.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Registered parent topics: what is published under one is stored in the log topic of that name.
    #[serde(default)]
    pub parents: Vec<Parent>,
    pub listeners: Listeners,
    /// Absent: the embedded store.
    #[serde(default)]
    pub kafka: Option<Kafka>,
}

/// Limits of the whole instance; those that count something are shared evenly among the live nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    pub connections: u64,
    /// Published messages a second; over it sockets are read more slowly.
    pub publish_rate: u64,
    /// Deliveries a second; absent: no cap.
    #[serde(default)]
    pub delivery_rate: Option<u64>,
    pub subscriptions: u64,
    /// Connections accepted a second; over it they are accepted more slowly.
    #[serde(default = "connect_rate")]
    pub connect_rate: u64,
    /// Connections of one address at a time; absent: no cap.
    #[serde(default)]
    pub connections_per_address: Option<u64>,
    /// Bytes that a broker's process may take; absent: four fifths of what there is.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Bytes of a whole MQTT packet, fixed header included.
    pub packet_size: u32,
    /// Characters (Unicode scalar values).
    pub client_id_length: u32,
    /// The longest keep alive, in seconds, told to MQTT 5 clients that ask for a longer one or none; absent: whatever they ask for.
    #[serde(default)]
    pub keep_alive_seconds: Option<u16>,
    pub characters: Characters,
}

fn connect_rate() -> u64 {
    2000
}

/// Which characters client IDs and topics may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Characters {
    /// What MQTT allows.
    Any,
    /// `0-9 a-z A-Z - _ / @@`, and wildcards in filters.
    Strict,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionRules {
    /// How long a persistent session is kept after its disconnect, in seconds; caps what MQTT 5 clients ask.
    pub expiry_seconds: u32,
    /// QoS > 0 messages kept while the device is away; the oldest is dropped first.
    pub offline_messages: u32,
    /// The slower bound while it is online: publishers wait for room, then the oldest is dropped.
    pub online_messages: u32,
    /// How the messages of a shared subscription are spread over its members.
    #[serde(default)]
    pub sharing: Sharing,
    /// Told to MQTT 5 clients that ask for response information, with `${clientId}` and `${username}` for their own; absent:
    /// nothing is.
    #[serde(default)]
    pub response_information: Option<String>,
}

/// Which of the members of a shared subscription that are there gets a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sharing {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The same one for all that one client publishes, as long as the members that are there stay the same.
    HashClientId,
    /// The same one as before, until it goes.
    Sticky,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Parent {
    /// The parent level and the log topic's name.
    pub topic: String,
    pub ordering: Ordering,
    pub partitions: u32,
    pub retention: Retention,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ordering {
    /// No key: records are spread over the partitions.
    Normal,
    /// Key = client ID: all of a client's messages in one partition, in its order.
    PartitionOrdered,
}

/// When stored records may go; absent = never for that reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retention {
    #[serde(default)]
    pub seconds: Option<u64>,
    /// Bytes a partition.
    #[serde(default)]
    pub bytes: Option<u64>,
}

/// Socket addresses as `HOST:PORT`; port 0 picks a free one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listeners {
    pub mqtt: String,
    /// MQTT over TLS; absent: none. Certificate and key are told beside the config: see [`TlsSecrets`].
    #[serde(default)]
    pub mqtts: Option<String>,
    /// MQTT over WebSocket; absent: none.
    #[serde(default)]
    pub ws: Option<String>,
    /// MQTT over WebSocket over TLS, with the secrets of `mqtts`; absent: none.
    #[serde(default)]
    pub wss: Option<String>,
    pub admin: String,
    /// Web pages of these origins may open WebSockets; empty: those of all.
    #[serde(default)]
    pub origins: Vec<String>,
    /// Those before which proxies stand that say by the PROXY protocol whom they speak for.
    #[serde(default)]
    pub proxy_protocol: Vec<DeviceListener>,
    /// Where MQTT 5 clients are told to go when this broker stops; absent: nowhere.
    #[serde(default)]
    pub server_reference: Option<String>,
    /// The subject's common name in a device's certificate is its user name, and the certificate its password.
    #[serde(default)]
    pub user_from_certificate: bool,
}

/// A listener that devices come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DeviceListener {
    Mqtt,
    Mqtts,
    Ws,
    Wss,
}

impl DeviceListener {
    pub fn name(self) -> &'static str {
        match self {
            DeviceListener::Mqtt => "mqtt",
            DeviceListener::Mqtts => "mqtts",
            DeviceListener::Ws => "ws",
            DeviceListener::Wss => "wss",
        }
    }

    pub fn is_tls(self) -> bool {
        matches!(self, DeviceListener::Mqtts | DeviceListener::Wss)
    }

    pub fn is_websocket(self) -> bool {
        matches!(self, DeviceListener::Ws | DeviceListener::Wss)
    }
}

impl Listeners {
    /// Whether any of them shows the certificate of [`TlsSecrets`].
    pub fn use_tls(&self) -> bool {
        self.mqtts.is_some() || self.wss.is_some()
    }

    /// Whether these sockets are where those are.
    pub fn are_where(&self, others: &Listeners) -> bool {
        let addresses = |of: &Listeners| {
            [Some(of.mqtt.clone()), of.mqtts.clone(), of.ws.clone(), of.wss.clone(), Some(of.admin.clone())]
        };
        addresses(self) == addresses(others)
    }
}

/// The Kafka cluster that keeps what is stored, but for what must stay secret: see [`KafkaSecrets`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kafka {
    /// `HOST:PORT` of some of its brokers.
    pub bootstrap_servers: Vec<String>,
    /// Copies that Kafka keeps of each record.
    pub replication_factor: u16,
    /// Where this broker is, in the words of Kafka's `broker.rack`: reads go to a replica there if there is one.
    #[serde(default)]
    pub rack: Option<String>,
    /// Absent: connections are not encrypted.
    #[serde(default)]
    pub tls: Option<KafkaTls>,
    /// Absent: no login.
    #[serde(default)]
    pub sasl: Option<KafkaSasl>,
}

/// Which certificates connections to Kafka use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KafkaTls {
    /// Whether Kafka's certificates are checked against the CA among the secrets; else against the system's roots.
    pub ca: bool,
    /// Whether the broker proves who it is with the certificate and key among the secrets.
    pub certificate: bool,
}

/// The login at Kafka; its password is among the secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KafkaSasl {
    pub mechanism: SaslMechanism,
    pub username: String,
}

/// How the login is proven, by the names registered for SASL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SaslMechanism {
    #[serde(rename = "PLAIN")]
    Plain,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

/// What connections to Kafka need and nobody else may see. It can't be serialised, and `Debug` tells only what
/// is there.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KafkaSecrets {
    /// Certificates of the CAs that Kafka's certificates are checked against, in PEM.
    pub ca: Option<String>,
    /// The broker's own certificate, and those between it and its CA, in PEM.
    pub certificate: Option<String>,
    /// Its private key, in PEM, not encrypted.
    pub key: Option<String>,
    /// The password of the SASL login.
    pub password: Option<String>,
}

impl fmt::Debug for KafkaSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ca, certificate, key, password } = self;
        let all = [
            ("ca", ca.is_some()),
            ("certificate", certificate.is_some()),
            ("key", key.is_some()),
            ("password", password.is_some()),
        ];
        names_of_those_present(&all, f)
    }
}

/// What the TLS listener needs: who the broker is, and by whom devices must be known; and the same for links between brokers.
/// It can't be serialised, and `Debug` tells only what is there.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsSecrets {
    /// The broker's certificate, and those between it and its CA, in PEM.
    pub certificate: String,
    /// Its private key, in PEM, not encrypted.
    pub key: String,
    /// Certificates of the CAs that devices' certificates must come from, in PEM; absent: devices need none. Links have them.
    pub client_ca: Option<String>,
}

impl fmt::Debug for TlsSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { certificate: _, key: _, client_ca } = self;
        names_of_those_present(&[("certificate", true), ("key", true), ("client_ca", client_ca.is_some())], f)
    }
}

fn names_of_those_present(all: &[(&str, bool)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut present = f.debug_set();
    for (name, _) in all.iter().filter(|(_, present)| *present) {
        present.entry(&format_args!("{name}"));
    }
    present.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Reads the document, compares, and writes it back; what was left out comes back as null.
    fn check(document: &Value, kafka: &Kafka, written: &Value) {
        let read: Kafka = serde_json::from_value(document.clone()).unwrap();
        assert_eq!(&read, kafka, "{document}");
        assert_eq!(&serde_json::to_value(read).unwrap(), written, "{document}");
    }

    #[test]
    fn kafka_is_read_as_it_is_written() {
        let plain = Kafka {
            bootstrap_servers: vec!["kafka:9092".into()],
            replication_factor: 1,
            rack: None,
            tls: None,
            sasl: None,
        };
        check(
            &json!({"bootstrapServers": ["kafka:9092"], "replicationFactor": 1}),
            &plain,
            &json!({"bootstrapServers": ["kafka:9092"], "replicationFactor": 1,
                    "rack": null, "tls": null, "sasl": null}),
        );
        for (mechanism, name) in [
            (SaslMechanism::Plain, "PLAIN"),
            (SaslMechanism::ScramSha256, "SCRAM-SHA-256"),
            (SaslMechanism::ScramSha512, "SCRAM-SHA-512"),
        ] {
            let whole = json!({
                "bootstrapServers": ["kafka:9092"], "replicationFactor": 3, "rack": "zone-a",
                "tls": {"ca": true, "certificate": false}, "sasl": {"mechanism": name, "username": "mqtt"},
            });
            let kafka = Kafka {
                replication_factor: 3,
                rack: Some("zone-a".into()),
                tls: Some(KafkaTls { ca: true, certificate: false }),
                sasl: Some(KafkaSasl { mechanism, username: "mqtt".into() }),
                ..plain.clone()
            };
            check(&whole, &kafka, &whole);
        }
    }

    #[test]
    fn a_password_has_no_place_in_the_document() {
        let document = json!({
            "bootstrapServers": ["kafka:9092"], "replicationFactor": 1,
            "sasl": {"mechanism": "PLAIN", "username": "mqtt", "password": "s3cret"},
        });
        let error = serde_json::from_value::<Kafka>(document).unwrap_err().to_string();
        assert!(error.starts_with("unknown field `password`"), "{error}");
    }

    #[test]
    fn debug_tells_which_secrets_there_are_and_no_more() {
        let secret = || Some("s3cret".to_owned());
        for (secrets, shown) in [
            (KafkaSecrets::default(), "{}"),
            (KafkaSecrets { password: secret(), ..KafkaSecrets::default() }, "{password}"),
            (
                KafkaSecrets { ca: secret(), certificate: secret(), key: secret(), password: secret() },
                "{ca, certificate, key, password}",
            ),
        ] {
            assert_eq!(format!("{secrets:?}"), shown);
        }
        for (client_ca, shown) in [(None, "{certificate, key}"), (secret(), "{certificate, key, client_ca}")]
        {
            let tls = TlsSecrets { certificate: "s3cret".into(), key: "s3cret".into(), client_ca };
            assert_eq!(format!("{tls:?}"), shown);
        }
    }
}
