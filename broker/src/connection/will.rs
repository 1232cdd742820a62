//! A will: the message that speaks for a device that went without a word.

use mqtt_proto::{
    codec::{self, QoS},
    durable::record,
    message::{Message, MessageId, Millis},
    topic::{TopicError, check_topic},
};

#[derive(Debug)]
pub(super) struct Will {
    /// Seconds between the close and the publication (MQTT 5 section 3.1.3.2.2).
    pub(super) delay: u32,
    topic: Box<str>,
    payload: Box<[u8]>,
    qos: QoS,
    retain: bool,
    expiry: Option<u32>,
    forwarded: Vec<u8>,
}

/// Why a will can't be published, whoever the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WillError {
    #[error("its topic {0}")]
    Topic(#[from] TopicError),
    /// MQTT 5 section 3.1.3.2.3.
    #[error("its payload is said to be text and is none")]
    Payload,
}

impl Will {
    pub(super) fn parse(will: &codec::Will<'_>) -> Result<Will, WillError> {
        check_topic(will.topic)?;
        if !will.properties.message.are_true_of(will.payload) {
            return Err(WillError::Payload);
        }
        let mut forwarded = Vec::new();
        will.properties.message.encode_forwarded(&mut forwarded);
        Ok(Will {
            delay: will.properties.delay_interval,
            topic: will.topic.into(),
            payload: will.payload.into(),
            qos: will.qos,
            retain: will.retain,
            expiry: will.properties.message.expiry_interval,
            forwarded,
        })
    }

    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    /// The message, published at `at`.
    pub(super) fn message(&self, id: MessageId, publisher: u64, at: Millis) -> Message {
        Message::new(id, publisher, &self.topic, &self.payload, self.qos, self.retain).with_forwarded(
            self.forwarded.clone(),
            self.expiry,
            at,
        )
    }

    /// As it stands in the session log.
    pub(super) fn logged(&self) -> record::Will {
        record::Will {
            mid: None,
            delay: self.delay,
            due_at: None,
            topic: self.topic.clone(),
            payload: self.payload.clone(),
            qos: self.qos,
            retain: self.retain,
            expiry: self.expiry,
            forwarded: self.forwarded.clone().into(),
        }
    }
}
