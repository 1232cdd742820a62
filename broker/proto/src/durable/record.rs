//! Every record of the session log and of the retained topic: keys, values, and their bytes.
//!
//! A key is `kind, version, fields`; a value is `version, fields`; numbers are big-endian. A value that is absent deletes the
//! key. Each kind has a version of its own; whoever reads one that it does not know must stop, never skip. Parsing is
//! total: whatever the bytes are, the result is a record or a [`RecordError`].
//!
//! | kind | key | says |
//! |---|---|---|
//! | `L` | | which log this is |
//! | `S` | nonce, client ID | who holds a client, and what its session is (a *claim*, or a rewrite of one) |
//! | `F` | session, generation, filter | a subscription, on or off |
//! | `M` | message, boot, chunk | a message with the sessions that get it |
//! | `D` | message, session, boot | how far one session is with one message |
//! | `R` | session, generation, packet id | a QoS 2 publish of the session that it has not released |
//! | `T` | boot | which node begins anew: who reads it back has read all that was there before |
//! | `B` | boot | a process run asks to be told where the log ends now: who reads it back has read all that was there before |
//! | `C` | boot, filter | sessions that are in no log have this subscription on the process run's node, or none has any more |
//! | `X` | boot | a process run is over, though it may not know |
//! | `H` | boot | a process run is alive, and what of its limits its node uses |
//! | `P` | boot, sequence | a message for what is in no log on the nodes of other process runs |
//! | `K` | message, topic | a retained message, or (empty payload) that there is none any more |
//!
//! One key is written by one process run, the one whose nonce, generation or boot stands in it. Others only delete it, once
//! it is dead ([`super::view`]). An `X` may be written by any, and says the same whoever does. `K` has a topic of its own, `H` and `P` have
//! another ([`Value::Alive`], [`Value::Passed`]): nothing but age deletes there.

use std::sync::Arc;

use super::bytes::{Reader, Writer};
use crate::{
    codec::QoS,
    message::{MessageId, Millis},
};

/// Random id of one process run.
pub type Boot = u64;
/// Rises with each claim of a client that takes effect.
pub type Generation = u64;
/// Position of a record in its partition.
pub type Offset = u64;

/// The version of all keys and values so far.
const VERSION: u8 = 1;
/// Sessions that one `M` may name; larger fan-outs are cut into chunks.
pub const MOST_RECIPIENTS: usize = 10_000;
/// Process runs that one `P` may be for.
pub const MOST_NODES: usize = 1_000;
/// Subscription identifiers that one recipient may have.
pub const MOST_SUBSCRIPTION_IDS: usize = 1_000;

/// What a key names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    Identity,
    Session {
        nonce: MessageId,
        client: Box<str>,
    },
    Filter {
        sid: MessageId,
        generation: Generation,
        filter: Box<str>,
    },
    /// `chunk` rises with each that a process run writes into a partition. So it differs between the parts of a large fan-out,
    /// and between the first routing of a message and another by the same run: their recipients may differ, and one must not
    /// replace the other.
    Message {
        mid: MessageId,
        boot: Boot,
        chunk: u64,
    },
    Progress {
        mid: MessageId,
        sid: MessageId,
        boot: Boot,
    },
    Inbound {
        sid: MessageId,
        generation: Generation,
        packet_id: u16,
    },
    Tick {
        boot: Boot,
    },
    /// Not a `T`: of that the first of each process run must stay, for it says in which order they began.
    Barrier {
        boot: Boot,
    },
    Announced {
        boot: Boot,
        filter: Box<str>,
    },
    Down {
        boot: Boot,
    },
    Alive {
        boot: Boot,
    },
    Passed {
        boot: Boot,
        sequence: u64,
    },
    Retained {
        mid: MessageId,
        topic: Box<str>,
    },
}

/// What a value says. It borrows what is large.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    Identity(Identity),
    Session(Box<Session>),
    Filter(Subscription),
    Message(QueuedMessage<'a>),
    Progress(Progress),
    Inbound(Inbound),
    /// The node of the process run that begins here, which of its runs it is (they count up), and whether it lets others serve
    /// devices from the same log.
    Tick {
        node: &'a str,
        run: u64,
        shared: bool,
    },
    /// Rises with each of a process run.
    Barrier(u64),
    Announced(Announced),
    Down,
    Alive(Alive<'a>),
    Passed(Passed<'a>),
    Retained(Content<'a>),
}

/// A filter, of a shared subscription with its group, that sessions in no log have on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Counts the writings of this key, as in [`Session::sequence`].
    pub sequence: u64,
    pub on: bool,
}

/// What a node says of itself while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alive<'a> {
    pub node: &'a str,
    /// Counts up; in milliseconds since the process run began.
    pub at: Millis,
    pub connections: u64,
    /// Of sessions in no log.
    pub subscriptions: u64,
}

/// A message on its way to other nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Passed<'a> {
    pub mid: MessageId,
    /// The process runs that it is for.
    pub to: Vec<Boot>,
    /// The shared subscription of which one member on that node gets it.
    pub group: Option<&'a str>,
    pub content: Content<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub log: u128,
    pub partitions: u32,
    pub format: u8,
}

/// What many sessions have in common, in the place of one pointer.
pub type Name = Arc<Box<str>>;

/// A claim of a client, or what became of it. Its key's nonce names the claim.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    pub generation: Generation,
    /// Counts the writings of this key, so that a repeat of an older one is known. 64 bits: no process run uses them up.
    pub sequence: u64,
    /// The claim had taken effect when this was written.
    pub won: bool,
    pub phase: Phase,
    /// The session: the nonce of the claim that began it.
    pub sid: MessageId,
    pub boot: Boot,
    /// When this phase began.
    pub since: Millis,
    /// When an offline session ends; [`Millis::MAX`]: never.
    pub expires_at: Millis,
    /// Seconds that it outlives its connection.
    pub expiry: u32,
    /// Queued messages before this offset may have been sent to the device. 0: judge by the phases.
    pub sent_below: Offset,
    pub node: Name,
    pub user: Name,
    /// The device's address while it is there, for who asks.
    pub peer: Box<str>,
    /// Its protocol level, likewise.
    pub protocol: u8,
    pub will: Option<Box<Will>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    Online = 0,
    Offline = 1,
    Ended = 2,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Will {
    /// Its message's, if that is not the nonce of the claim that it stands in: whoever claimed the client as offline for a holder
    /// that is over left the will as it was, and it may be published already.
    pub mid: Option<MessageId>,
    /// Seconds between the close and its publication.
    pub delay: u32,
    /// When it is due, once its connection has closed.
    pub due_at: Option<Millis>,
    pub topic: Box<str>,
    pub payload: Box<[u8]>,
    pub qos: QoS,
    pub retain: bool,
    pub expiry: Option<u32>,
    pub forwarded: Box<[u8]>,
}

impl Will {
    /// Its message's, of a will that stands in the claim with this nonce.
    pub fn message_id(&self, nonce: MessageId) -> MessageId {
        self.mid.unwrap_or(nonce)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Counts the writings of this key, as in [`Session::sequence`].
    pub sequence: u64,
    pub on: bool,
    pub qos: QoS,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub id: Option<u32>,
}

/// What of a message is the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content<'a> {
    pub qos: QoS,
    pub retain: bool,
    pub expires_at: Option<Millis>,
    /// MQTT 5 properties as [`crate::codec::MessageProperties::encode_forwarded`] gives them.
    pub forwarded: &'a [u8],
    pub topic: &'a str,
    pub payload: &'a [u8],
}

#[derive(Clone, Debug, PartialEq)]
pub struct QueuedMessage<'a> {
    /// It reaches a session once at most, though it may be in the log more than once.
    pub once: bool,
    /// The shared subscription group that chose the recipient.
    pub group: Option<&'a str>,
    pub recipients: Vec<Recipient>,
    pub content: Content<'a>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    pub sid: MessageId,
    pub qos: QoS,
    pub retain: bool,
    /// It was on its way to the session's device before it was written, and may have been sent.
    pub maybe_sent: bool,
    pub subscription_ids: Option<Box<[u32]>>,
}

/// How far a session is with a message; only rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// Its device has taken the QoS 2 message under this packet identifier.
    Received(u16),
    Done(Why),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    Acknowledged = 0,
    Dropped = 1,
    Expired = 2,
    TooLarge = 3,
    Moved = 4,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    pub mid: MessageId,
    /// Of topic and payload.
    pub digest: u64,
    pub at: Millis,
    /// Where it is stored, if it is: this parent topic, empty if none, and partition, at this offset or later.
    pub parent: Box<str>,
    pub partition: u32,
    pub from: Offset,
}

/// Why bytes are no record. None may be passed over: the log is not this broker's, or it is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error(
        "a record of the unknown kind {0:#04x}: a later version of the broker wrote it, or the topic is another's"
    )]
    Kind(u8),
    #[error(
        "a record of kind {kind:?} has version {version}, this broker knows 1: run the version that wrote it"
    )]
    Version { kind: char, version: u8 },
    #[error("a record of kind {0:?} is damaged")]
    Damaged(char),
    #[error("a record without a key")]
    NoKey,
}

impl Key {
    fn kind(&self) -> u8 {
        match self {
            Key::Identity => b'L',
            Key::Session { .. } => b'S',
            Key::Filter { .. } => b'F',
            Key::Message { .. } => b'M',
            Key::Progress { .. } => b'D',
            Key::Inbound { .. } => b'R',
            Key::Tick { .. } => b'T',
            Key::Barrier { .. } => b'B',
            Key::Announced { .. } => b'C',
            Key::Down { .. } => b'X',
            Key::Alive { .. } => b'H',
            Key::Passed { .. } => b'P',
            Key::Retained { .. } => b'K',
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer(vec![self.kind(), VERSION]);
        match self {
            Key::Identity => {}
            Key::Session { nonce, client } => {
                out.id(*nonce);
                out.put(client.as_bytes());
            }
            Key::Filter { sid, generation, filter } => {
                out.id(*sid);
                out.u64(*generation);
                out.put(filter.as_bytes());
            }
            Key::Message { mid, boot, chunk } => {
                out.id(*mid);
                out.u64(*boot);
                out.u64(*chunk);
            }
            Key::Progress { mid, sid, boot } => {
                out.id(*mid);
                out.id(*sid);
                out.u64(*boot);
            }
            Key::Inbound { sid, generation, packet_id } => {
                out.id(*sid);
                out.u64(*generation);
                out.u16(*packet_id);
            }
            Key::Tick { boot } | Key::Barrier { boot } | Key::Down { boot } | Key::Alive { boot } => {
                out.u64(*boot);
            }
            Key::Announced { boot, filter } => {
                out.u64(*boot);
                out.put(filter.as_bytes());
            }
            Key::Passed { boot, sequence } => {
                out.u64(*boot);
                out.u64(*sequence);
            }
            Key::Retained { mid, topic } => {
                out.id(*mid);
                out.put(topic.as_bytes());
            }
        }
        out.0
    }

    pub fn parse(bytes: &[u8]) -> Result<Key, RecordError> {
        let mut from = Reader(bytes);
        let kind = from.u8().ok_or(RecordError::NoKey)?;
        let name = name(kind)?;
        check_version(name, from.u8())?;
        parse_key(kind, from).ok_or(RecordError::Damaged(name))
    }
}

/// The two halves of a record; without a value it deletes the key.
pub fn parse<'a>(key: &[u8], value: Option<&'a [u8]>) -> Result<(Key, Option<Value<'a>>), RecordError> {
    let key = Key::parse(key)?;
    let Some(value) = value else { return Ok((key, None)) };
    let name = char::from(key.kind());
    let mut from = Reader(value);
    check_version(name, from.u8())?;
    let value = Value::parse(&key, from).ok_or(RecordError::Damaged(name))?;
    Ok((key, Some(value)))
}

fn name(kind: u8) -> Result<char, RecordError> {
    if b"LSFMDRTBCXHPK".contains(&kind) { Ok(kind.into()) } else { Err(RecordError::Kind(kind)) }
}

fn check_version(kind: char, version: Option<u8>) -> Result<(), RecordError> {
    match version {
        Some(VERSION) => Ok(()),
        Some(version) => Err(RecordError::Version { kind, version }),
        None => Err(RecordError::Damaged(kind)),
    }
}

fn parse_key(kind: u8, mut from: Reader<'_>) -> Option<Key> {
    let key = match kind {
        b'L' => Key::Identity,
        b'S' => Key::Session { nonce: from.id()?, client: from.rest()?.into() },
        b'F' => Key::Filter { sid: from.id()?, generation: from.u64()?, filter: from.rest()?.into() },
        b'M' => Key::Message { mid: from.id()?, boot: from.u64()?, chunk: from.u64()? },
        b'D' => Key::Progress { mid: from.id()?, sid: from.id()?, boot: from.u64()? },
        b'R' => Key::Inbound { sid: from.id()?, generation: from.u64()?, packet_id: from.u16()? },
        b'T' => Key::Tick { boot: from.u64()? },
        b'B' => Key::Barrier { boot: from.u64()? },
        b'C' => Key::Announced { boot: from.u64()?, filter: from.rest()?.into() },
        b'X' => Key::Down { boot: from.u64()? },
        b'H' => Key::Alive { boot: from.u64()? },
        b'P' => Key::Passed { boot: from.u64()?, sequence: from.u64()? },
        b'K' => Key::Retained { mid: from.id()?, topic: from.rest()?.into() },
        _ => return None,
    };
    from.end()?;
    Some(key)
}
