//! What one instance's brokers are told to be: limits, session rules, parent topics, listeners.

use serde::{Deserialize, Serialize};

/// The configuration of all brokers of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstanceConfig {
    /// `namespace/name` of the MqttInstance.
    pub instance: String,
    pub limits: Limits,
    pub session: SessionRules,
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
    /// Bytes of a whole MQTT packet, fixed header included.
    pub packet_size: u32,
    /// Characters (Unicode scalar values).
    pub client_id_length: u32,
    pub characters: Characters,
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listeners {
    pub mqtt: String,
    pub admin: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kafka {
    pub bootstrap_servers: Vec<String>,
    pub replication_factor: u16,
}
