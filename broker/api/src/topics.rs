//! The names of the topics that brokers have in Kafka beside parent topics.

/// What every session is made of, and how far it is.
pub const SESSIONS: &str = "__mqtt-sessions";
pub const RETAINED: &str = "__mqtt-retained";
/// What nodes pass on to each other where they can't reach each other.
pub const RELAY: &str = "__mqtt-relay";
/// How far `mq2mqtt` has been read.
pub const POSITIONS: &str = "__mqtt-positions";
/// What applications send to devices, and what of it could not be sent.
pub const MQ2MQTT: &str = "mq2mqtt";
pub const MQ2MQTT_REJECTED: &str = "mq2mqtt-rejected";
pub const DEVICE_CONNECT: &str = "mqtt-device-connect";
pub const DEVICE_DISCONNECT: &str = "mqtt-device-disconnect";
pub const DEVICE_TRACE: &str = "mqtt-device-trace";

pub const ALL: [&str; 9] = [
    SESSIONS,
    RETAINED,
    RELAY,
    POSITIONS,
    MQ2MQTT,
    MQ2MQTT_REJECTED,
    DEVICE_CONNECT,
    DEVICE_DISCONNECT,
    DEVICE_TRACE,
];
