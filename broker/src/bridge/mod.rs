//! Between MQTT and the log's topics: stored records, presence and trace of devices, and messages from the cloud
//! (`mq2mqtt`).

pub(crate) mod mq2mqtt;
pub(crate) mod stored;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use mqtt_broker_api::{
    config::Ordering,
    topics::{DEVICE_CONNECT, DEVICE_DISCONNECT, MQ2MQTT, MQ2MQTT_REJECTED, POSITIONS},
    trace::{self, TraceEvent, Traced},
};
use mqtt_kafka::largest_record;
use mqtt_proto::{
    message::{Message, MessageId, Millis},
    murmur2,
};
use serde::Serialize;

use crate::{
    counters::Counter,
    log::{AppendSink, Cleanup, Completion, Log, LogError, Outcome, Record, Topic, TopicSettings},
    settings::Parent,
};

const PARTITIONS: u32 = 3;
const SYSTEM_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// The topics that every instance has.
pub(crate) struct SystemTopics {
    pub(crate) mq2mqtt: Topic,
    pub(crate) rejected: Topic,
    /// How far `mq2mqtt` has been read: the latest record of each partition's key.
    pub(crate) positions: Topic,
    connect: Topic,
    disconnect: Topic,
    /// What happened to each device.
    pub(crate) trace: Topic,
}

pub(crate) struct Bridge {
    log: Arc<dyn Log>,
    topics: SystemTopics,
    nobody: Arc<dyn AppendSink>,
    /// Presence records that went because the log took no more.
    pub(crate) presence_drops: Counter,
    /// The same of events of the trace.
    pub(crate) trace_drops: Counter,
    /// Events so far.
    events: AtomicU64,
}

/// Messages in a row that go to one partition of a parent without order.
const RUN: u64 = 32;

#[derive(Serialize)]
struct Presence<'a> {
    clientid: &'a str,
    ts: Millis,
}

impl SystemTopics {
    /// Makes what is missing; `packet_size` is the instance's, in bytes.
    pub(crate) async fn ensure(log: &dyn Log, packet_size: u32) -> Result<SystemTopics, LogError> {
        let kept = TopicSettings {
            partitions: PARTITIONS,
            cleanup: Cleanup::Retention { age: Some(SYSTEM_RETENTION), bytes: None },
            record_bytes: largest_record(packet_size),
        };
        let latest = TopicSettings { partitions: 1, cleanup: Cleanup::KeepLatest, record_bytes: 1024 };
        Ok(SystemTopics {
            mq2mqtt: log.ensure_topic(MQ2MQTT, kept).await?,
            rejected: log.ensure_topic(MQ2MQTT_REJECTED, kept).await?,
            positions: log.ensure_topic(POSITIONS, latest).await?,
            connect: log.ensure_topic(DEVICE_CONNECT, kept).await?,
            disconnect: log.ensure_topic(DEVICE_DISCONNECT, kept).await?,
            trace: log.ensure_topic(trace::TOPIC, kept).await?,
        })
    }
}

impl Bridge {
    pub(crate) fn new(log: Arc<dyn Log>, topics: SystemTopics) -> Bridge {
        Bridge {
            log,
            topics,
            nobody: Arc::new(Nobody),
            presence_drops: Counter::default(),
            trace_drops: Counter::default(),
            events: AtomicU64::new(1),
        }
    }

    pub(crate) fn topics(&self) -> &SystemTopics {
        &self.topics
    }

    /// For appends that nobody waits for.
    pub(crate) fn nobody(&self) -> Completion {
        Completion { sink: self.nobody.clone(), token: 0 }
    }

    /// Stores a message under its registered parent.
    pub(crate) fn store(
        &self,
        parent: &Parent,
        client_id: &str,
        message: &Message,
        now: Millis,
        done: Completion,
    ) {
        let partition = partition_of(parent, client_id, message);
        let key = (parent.ordering == Ordering::PartitionOrdered)
            .then(|| Bytes::copy_from_slice(client_id.as_bytes()));
        self.log.append(&parent.topic, partition, stored::record(client_id, message, key, now), done);
    }

    /// Tells cloud applications that a device came.
    pub(crate) fn connected(&self, client_id: &str, now: Millis) {
        let presence = Presence { clientid: client_id, ts: now };
        self.tell(&self.topics.connect, client_id, &presence, now, &self.presence_drops);
    }

    /// Tells cloud applications that a device went.
    pub(crate) fn disconnected(&self, client_id: &str, now: Millis) {
        let presence = Presence { clientid: client_id, ts: now };
        self.tell(&self.topics.disconnect, client_id, &presence, now, &self.presence_drops);
    }

    /// Writes down what happened to a device.
    pub(crate) fn trace(&self, boot: u64, client_id: &str, what: Traced<'_>, now: Millis) {
        let counter = self.events.fetch_add(1, Relaxed);
        let id = stored::message_id(MessageId { boot, counter }).into();
        let event = TraceEvent { client_id: client_id.into(), ts: now, id, what };
        self.tell(&self.topics.trace, client_id, &event, now, &self.trace_drops);
    }

    /// Nobody waits for it and nothing slows a reconnecting fleet down, so it gives way when the log is behind.
    fn tell(&self, topic: &Topic, client_id: &str, value: &impl Serialize, now: Millis, drops: &Counter) {
        if !self.log.room() {
            drops.add(1);
            return;
        }
        let value = serde_json::to_vec(value).unwrap_or_default();
        let record = Record {
            key: Some(Bytes::copy_from_slice(client_id.as_bytes())),
            value: Some(value.into()),
            headers: Vec::new(),
            created: stored::timestamp(now),
        };
        let partition = murmur2::partition(client_id.as_bytes(), topic.partitions());
        self.log.append(topic, partition, record, self.nobody());
    }
}

/// Which partition of its parent a message goes to. For ordered parents as Kafka's Java client would choose by the
/// client ID; else in runs, evenly: what comes together is stored, and acknowledged, together (KIP-480 says why).
pub(crate) fn partition_of(parent: &Parent, client_id: &str, message: &Message) -> u32 {
    let partitions = parent.topic.partitions();
    match parent.ordering {
        Ordering::PartitionOrdered => murmur2::partition(client_id.as_bytes(), partitions),
        Ordering::Normal => {
            u32::try_from(message.id.counter / RUN % u64::from(partitions.max(1))).unwrap_or(0)
        }
    }
}

struct Nobody;

impl AppendSink for Nobody {
    fn appended(&self, _token: u64, _outcome: Outcome) {}

    fn is_ordered(&self) -> bool {
        false
    }
}
