//! QoS 2 packet identifiers whose message is on its way to a registered parent, kept in the log.
//!
//! Before such a message of a persistent session is stored, a note says under which message ID; it goes when the client
//! releases the identifier. After a crash the client repeats what was not acknowledged, and the note tells
//! whether it is stored already: it is stored once.
//!
//! Well-known clients forget DUP when they repeat after a lost session. So a repeat without it counts as one, too, if
//! it has the same topic and payload and the note is young; an older one, or another message, is new.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use mqtt_proto::{
    message::{Message, MessageId, Millis},
    murmur2,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    bridge::stored::{MESSAGE_ID, message_id, timestamp},
    log::{Cleanup, Completion, Log, LogError, Offset, ReadLimit, Record, Topic, TopicSettings},
};

const TOPIC: &str = "__mqtt-unreleased";
const PARTITIONS: u32 = 3;
/// A note has a client ID, a user and a topic's name.
const NOTE_BYTES: u32 = 256 * 1024;
/// How long a repeat may come without DUP.
const REPEAT_WITHOUT_DUP: Millis = 10 * 60 * 1000;
const READ: ReadLimit = ReadLimit { records: 1000, bytes: 1 << 20, wait: Duration::ZERO };

/// What is noted about one packet identifier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The user whose session it is.
    pub(crate) user: Box<str>,
    boot: u64,
    counter: u64,
    /// Of topic and payload.
    digest: u64,
    /// When it was noted, in milliseconds since the Unix epoch.
    at: Millis,
    /// Where the message is, if it is stored: this topic and partition, at this offset or later.
    pub(crate) parent: Box<str>,
    pub(crate) partition: u32,
    pub(crate) from: Offset,
    /// This process run has brought it to its subscribers, so that a repeat must not, even if it was not stored.
    #[serde(skip)]
    pub(crate) routed: bool,
}

pub(crate) struct Unreleased {
    log: Arc<dyn Log>,
    topic: Topic,
    /// Notes of former process runs, until their session is back or given up.
    recovered: Mutex<HashMap<Box<str>, BTreeMap<u16, Note>>>,
}

impl Note {
    pub(crate) fn new(
        user: &str,
        message: &Message,
        at: Millis,
        parent: &Topic,
        partition: u32,
        from: Offset,
    ) -> Note {
        Note {
            user: user.into(),
            boot: message.id.boot,
            counter: message.id.counter,
            digest: digest(message),
            at,
            parent: parent.name().into(),
            partition,
            from,
            routed: false,
        }
    }

    pub(crate) fn message_id(&self) -> MessageId {
        MessageId { boot: self.boot, counter: self.counter }
    }

    /// Whether `message`, published now under the same packet identifier, is this one again.
    pub(crate) fn is_repeated_by(&self, message: &Message, dup: bool, parent: &Topic, now: Millis) -> bool {
        *self.parent == *parent.name()
            && self.digest == digest(message)
            && (dup || now.saturating_sub(self.at) <= REPEAT_WITHOUT_DUP)
    }

    /// Whether the message is in its parent topic.
    pub(crate) async fn is_stored(&self, log: &dyn Log) -> Result<bool, LogError> {
        let Some(topic) = log.topic(&self.parent) else { return Ok(false) };
        let wanted = message_id(self.message_id());
        let mut from = self.from;
        loop {
            let batch = match log.read(&topic, self.partition, from, READ).await {
                Err(LogError::Lost { start }) => {
                    from = start;
                    continue;
                }
                Err(LogError::Ahead { .. }) => return Ok(false),
                batch => batch?,
            };
            let is_it = |(name, value): &(Bytes, Bytes)| name == MESSAGE_ID && value == wanted.as_bytes();
            if batch.records.iter().any(|stored| stored.record.headers.iter().any(is_it)) {
                return Ok(true);
            }
            if batch.next == from {
                return Ok(false);
            }
            from = batch.next;
        }
    }
}

impl Unreleased {
    /// Reads what former process runs left. Notes older than `keep` are passed over: their sessions are over.
    pub(crate) async fn recover(
        log: Arc<dyn Log>,
        now: Millis,
        keep: Duration,
    ) -> Result<Unreleased, LogError> {
        let settings =
            TopicSettings { partitions: PARTITIONS, cleanup: Cleanup::KeepLatest, record_bytes: NOTE_BYTES };
        let topic = log.ensure_topic(TOPIC, settings).await?;
        let oldest = timestamp(now) - i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
        let mut recovered: HashMap<Box<str>, BTreeMap<u16, Note>> = HashMap::new();
        for partition in 0..topic.partitions() {
            let mut from = log.bounds(&topic, partition).await?.start;
            loop {
                let batch = log.read(&topic, partition, from, READ).await?;
                if batch.next == from {
                    break;
                }
                for stored in batch.records {
                    let Some((client_id, packet_id)) = stored.record.key.as_deref().and_then(parse_key)
                    else {
                        return Err(LogError::Settings(format!(
                            "topic {TOPIC} partition {partition} offset {}: not a note of this broker",
                            stored.offset
                        )));
                    };
                    let of_client = recovered.entry(client_id.into()).or_default();
                    match stored.record.value.as_deref().map(serde_json::from_slice::<Note>) {
                        Some(Ok(note)) if stored.record.created >= oldest => {
                            of_client.insert(packet_id, note);
                        }
                        Some(Err(error)) => {
                            return Err(LogError::Settings(format!(
                                "topic {TOPIC} partition {partition} offset {}: {error}",
                                stored.offset
                            )));
                        }
                        _ => drop(of_client.remove(&packet_id)),
                    }
                }
                from = batch.next;
            }
        }
        recovered.retain(|_, notes| !notes.is_empty());
        Ok(Unreleased { log, topic, recovered: Mutex::new(recovered) })
    }

    /// What was left of this client's session, once.
    pub(crate) fn take_recovered(&self, client_id: &str) -> BTreeMap<u16, Note> {
        let mut recovered = self.recovered.lock();
        if recovered.is_empty() { BTreeMap::new() } else { recovered.remove(client_id).unwrap_or_default() }
    }

    pub(crate) fn note(&self, client_id: &str, packet_id: u16, note: &Note, now: Millis, done: Completion) {
        let value = serde_json::to_vec(note).unwrap_or_default();
        self.append(client_id, packet_id, Some(value.into()), now, done);
    }

    pub(crate) fn delete(&self, client_id: &str, packet_id: u16, now: Millis, done: Completion) {
        self.append(client_id, packet_id, None, now, done);
    }

    fn append(&self, client_id: &str, packet_id: u16, value: Option<Bytes>, now: Millis, done: Completion) {
        let mut key = client_id.as_bytes().to_vec();
        key.extend_from_slice(&packet_id.to_be_bytes());
        let record = Record { key: Some(key.into()), value, headers: Vec::new(), created: timestamp(now) };
        let partition = murmur2::partition(client_id.as_bytes(), self.topic.partitions());
        self.log.append(&self.topic, partition, record, done);
    }
}

/// Stable over process runs.
fn digest(message: &Message) -> u64 {
    let digest = Sha256::new()
        .chain_update(message.topic())
        .chain_update([0])
        .chain_update(message.payload())
        .finalize();
    digest.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

fn parse_key(key: &[u8]) -> Option<(&str, u16)> {
    let (client_id, packet_id) = key.split_last_chunk::<2>()?;
    Some((std::str::from_utf8(client_id).ok()?, u16::from_be_bytes(*packet_id)))
}
