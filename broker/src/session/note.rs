//! QoS 2 packet identifiers of a session in the log whose message is on its way.
//!
//! Before such a message is routed and stored, an `R` says under which message ID; it goes when the client
//! releases the identifier. After a crash the client repeats what was not acknowledged, and the note tells under which ID, and
//! whether it is stored already: it is stored once, and reaches a session once.
//!
//! Well-known clients forget DUP when they repeat after a lost session. So a repeat without it counts as one, too, if
//! it has the same topic and payload and the note is young; an older one, or another message, is new.

use std::sync::Arc;

use bytes::Bytes;
use mqtt_proto::{
    durable::record::Inbound,
    message::{Message, Millis},
};
use sha2::{Digest, Sha256};

use crate::{
    bridge::stored::{MESSAGE_ID, message_id},
    log::{Log, LogError, Offset, ReadLimit},
    session::groups::Given,
    settings::Parent,
};

/// How long a repeat may come without DUP.
const REPEAT_WITHOUT_DUP: Millis = 10 * 60 * 1000;
const READ: ReadLimit = ReadLimit { records: 1000, bytes: 1 << 20, wait: std::time::Duration::ZERO };

/// What is noted about one packet identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) inbound: Inbound,
    /// This process run has brought it to the clean sessions that get it, so that a repeat must not.
    pub(crate) routed: bool,
    /// The members of shared subscriptions to which it gave it.
    pub(crate) shared: Vec<(Arc<str>, Given)>,
}

impl Note {
    /// `stored`: the parent, and where in it the message will stand at the earliest.
    pub(crate) fn new(message: &Message, at: Millis, stored: Option<(&Parent, u32, Offset)>) -> Note {
        let (parent, partition, from) = match stored {
            Some((parent, partition, from)) => (parent.topic.name().into(), partition, from),
            None => ("".into(), 0, 0),
        };
        let digest = digest(message);
        let inbound = Inbound { mid: message.id, digest, at, parent, partition, from };
        Note { inbound, routed: false, shared: Vec::new() }
    }

    /// Whether `message`, published now under the same packet identifier, is this one again.
    pub(crate) fn is_repeated_by(&self, message: &Message, dup: bool, now: Millis) -> bool {
        self.inbound.digest == digest(message)
            && (dup || now.saturating_sub(self.inbound.at) <= REPEAT_WITHOUT_DUP)
    }

    /// Whether the message is in its parent topic.
    pub(crate) async fn is_stored(&self, log: &dyn Log) -> Result<bool, LogError> {
        let Inbound { mid, parent, partition, from, .. } = &self.inbound;
        let Some(topic) = log.topic(parent) else { return Ok(false) };
        let wanted = message_id(*mid);
        let mut from = *from;
        loop {
            let batch = match log.read(&topic, *partition, from, READ).await {
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

/// Stable over process runs.
fn digest(message: &Message) -> u64 {
    let digest = Sha256::new()
        .chain_update(message.topic())
        .chain_update([0])
        .chain_update(message.payload())
        .finalize();
    digest.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}
