//! What a topic is asked to be, and which topics the config of an instance asks for.

use std::time::Duration;

use mqtt_broker_api::config::Parent;

/// How a topic keeps its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    /// The oldest go when older than `age` or when the partition is larger than `bytes`; absent: never.
    Retention { age: Option<Duration>, bytes: Option<u64> },
    /// Only the latest record of a key is kept; a delete marker goes after a while, too.
    KeepLatest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// May grow later, never shrink.
    pub partitions: u32,
    pub cleanup: Cleanup,
    /// The largest record that it must take, in bytes.
    pub record_bytes: u32,
}

impl TopicSettings {
    /// Those of a parent topic of an instance whose packets have `packet_size` bytes at most.
    pub fn of_parent(parent: &Parent, packet_size: u32) -> TopicSettings {
        TopicSettings {
            partitions: parent.partitions,
            cleanup: Cleanup::Retention {
                age: parent.retention.seconds.map(Duration::from_secs),
                bytes: parent.retention.bytes,
            },
            record_bytes: largest_record(packet_size),
        }
    }
}

/// Bytes that the record of a packet takes at most: JSON writes a control character as six, and topic and client ID
/// stand in a header, too.
pub fn largest_record(packet_size: u32) -> u32 {
    packet_size.saturating_mul(7).saturating_add(64 * 1024)
}
