//! An application message as it travels from its publisher to every subscriber: made once, shared by all.

use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{MessageProperties, QoS};

/// Milliseconds on the caller's clock since the Unix epoch.
pub type Millis = u64;

/// Names a message for as long as anything about it is remembered: the process run that took it in, and a
/// counter. A retry of the same publish keeps its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    pub boot: u64,
    pub counter: u64,
}

/// What is the same for all receivers. Topic and payload lie in one shared buffer.
#[derive(Debug)]
pub struct Message {
    pub id: MessageId,
    /// As published; a receiver gets at most this.
    pub qos: QoS,
    /// The publisher's RETAIN flag.
    pub retain: bool,
    /// When it may no longer be delivered (MQTT 5 section 3.3.2.3.3); absent: never.
    pub expires_at: Option<Millis>,
    /// The session that published it, for No Local; 0: none.
    pub publisher: u64,
    /// Only for sessions whose device is online now.
    pub online_only: bool,
    topic_len: u16,
    /// Topic, then payload.
    buffer: Bytes,
    /// The MQTT 5 properties that reach subscribers unchanged, encoded; without the expiry interval.
    forwarded: Bytes,
}

impl Message {
    /// Copies topic and payload once. `topic` must have been checked by [`crate::topic::check_topic`] or the codec,
    /// so that it is at most 65,535 bytes; what would not fit is cut.
    pub fn new(
        id: MessageId,
        publisher: u64,
        topic: &str,
        payload: &[u8],
        qos: QoS,
        retain: bool,
    ) -> Message {
        let topic_len = u16::try_from(topic.len()).unwrap_or(u16::MAX);
        let topic = topic.as_bytes().get(..usize::from(topic_len)).unwrap_or_default();
        let mut buffer = Vec::with_capacity(topic.len() + payload.len());
        buffer.extend_from_slice(topic);
        buffer.extend_from_slice(payload);
        Message {
            id,
            qos,
            retain,
            expires_at: None,
            publisher,
            online_only: false,
            topic_len,
            buffer: buffer.into(),
            forwarded: Bytes::new(),
        }
    }

    /// Takes the properties that go on to subscribers; the expiry interval becomes an instant.
    pub fn with_properties(self, properties: &MessageProperties<'_>, now: Millis) -> Message {
        let mut forwarded = Vec::new();
        properties.encode_forwarded(&mut forwarded);
        self.with_forwarded(forwarded, properties.expiry_interval, now)
    }

    /// The same, from what [`MessageProperties::encode_forwarded`] gave. `expiry` in seconds from `now`.
    pub fn with_forwarded(mut self, forwarded: Vec<u8>, expiry: Option<u32>, now: Millis) -> Message {
        self.forwarded = forwarded.into();
        self.expires_at = expiry.map(|seconds| now.saturating_add(u64::from(seconds) * 1000));
        self
    }

    /// The same under another name.
    pub fn renamed(&self, id: MessageId) -> Message {
        Message { id, buffer: self.buffer.clone(), forwarded: self.forwarded.clone(), ..*self }
    }

    pub fn topic(&self) -> &str {
        let bytes = self.buffer.get(..usize::from(self.topic_len)).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    pub fn payload(&self) -> &[u8] {
        self.buffer.get(usize::from(self.topic_len)..).unwrap_or_default()
    }

    pub fn forwarded(&self) -> &[u8] {
        &self.forwarded
    }

    pub fn is_expired(&self, now: Millis) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Seconds that a receiver is told remain, rounded up so that a live message never says zero.
    pub fn remaining_expiry(&self, now: Millis) -> Option<u32> {
        self.expires_at.map(|at| u32::try_from(at.saturating_sub(now).div_ceil(1000)).unwrap_or(u32::MAX))
    }
}

/// A message on its way to one session.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub message: Arc<Message>,
    /// The lower of the message's and the subscription's.
    pub qos: QoS,
    pub retain: bool,
    /// Identifiers of all subscriptions that matched; absent: none has one.
    pub subscription_ids: Option<Box<[u32]>>,
    /// The shared subscription through which it came, as it was asked for: another member may get it instead.
    pub share: Option<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(expiry: Option<u32>, now: Millis) -> Message {
        Message::new(MessageId { boot: 1, counter: 2 }, 0, "t/é", b"payload", QoS::AtLeastOnce, false)
            .with_forwarded(vec![1, 1], expiry, now)
    }

    #[test]
    fn a_message_gives_back_what_it_was_made_of() {
        let message = message(None, 0);
        assert_eq!((message.topic(), message.payload()), ("t/é", &b"payload"[..]));
        assert_eq!(message.forwarded(), [1, 1]);
    }

    #[test]
    fn a_message_lives_as_long_as_its_expiry_says_and_counts_begun_seconds() {
        #[track_caller]
        fn check(expiry: Option<u32>, made: Millis, now: Millis, expected: (bool, Option<u32>)) {
            let message = message(expiry, made);
            assert_eq!((message.is_expired(now), message.remaining_expiry(now)), expected);
        }
        check(None, 0, Millis::MAX, (false, None));
        check(Some(2), 500, 500, (false, Some(2)));
        check(Some(2), 500, 1499, (false, Some(2)));
        check(Some(2), 500, 1500, (false, Some(1)));
        check(Some(2), 500, 2499, (false, Some(1)));
        check(Some(2), 500, 2500, (true, Some(0)));
        check(Some(0), 500, 500, (true, Some(0)));
        check(Some(u32::MAX), 0, 0, (false, Some(u32::MAX)));
        check(Some(u32::MAX), Millis::MAX, 0, (false, Some(u32::MAX)));
    }
}
