//! Sessions that outlive this process: owns the session log's topic, the [`View`] of each of its partitions, and what
//! this process run writes there.
//!
//! `PROTOCOL.md` beside this file says what is written, and why it may be trusted. In short: every node reads all of the log
//! and has the same [`View`]; a record has effect where it stands in the log, and whoever wrote it acts on it when it has
//! read it back. A client is *held* by the process run whose claim took effect last.
//!
//! | part | does |
//! |---|---|
//! | [`replay`] | reads the log from its start to the tick of this process run |
//! | [`follow`] | reads on for ever, and does what the records ask of this node |
//! | [`claim`] | takes a client for a connection, or to end what is due |
//! | [`lives`] | which process runs live, which of them does what only one should |
//! | [`write`](mod@write) | what is appended besides claims |
//! | [`direct`] | messages, in order with what a device is sent before it is in the log |
//! | [`announce`] | tells other nodes which filters sessions in no log have here |
//! | [`barrier`] | makes sure that nothing is missing that another node promised |
//! | [`leases`] | the same without the log, where nodes have links |
//! | [`rounds`] | those who wait for either |
//! | [`bodies`] | finds the messages of a queue again |
//! | [`pass_on`] | gives what waits for a member of a shared subscription to another |
//! | [`sweep`] | wills and sessions that are due, what nobody holds, and what is dead |

mod announce;
mod barrier;
mod bodies;
mod claim;
mod direct;
mod follow;
mod leases;
mod lives;
mod pass_on;
mod replay;
mod rounds;
mod sweep;
#[cfg(test)]
mod tests;
mod write;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use foldhash::fast::RandomState;
use mqtt_proto::{
    durable::{
        record::{Boot, Generation, Key, Name, Session, Value},
        view::View,
    },
    message::{MessageId, Millis},
    murmur2,
};
use parking_lot::Mutex;

#[cfg(test)]
pub(crate) use self::replay::summaries;
pub(crate) use self::{
    barrier::{BarrierPart, BarrierWaits, barriers, write_barrier},
    claim::{ClaimFailed, Online, Resumed, may_resume},
    direct::DIRECT_PATIENCE,
    follow::{delivery, follow},
    leases::{ASK_EVERY, Giving, Hearing, TooMuch, ask_peers, list_peers},
    pass_on::gather,
    replay::{Begins, Reads, parse, read_to_tick},
    sweep::{publish_will, sweep},
    write::{Queueing, Surely, content, message_of, recipient, record},
};
use super::{mailbox::Mailbox, relay::Rising};
use crate::{
    log::{Cleanup, Completion, Log, Offset, Topic, TopicSettings},
    outside::Outside,
    router::Logged,
};

const TOPIC: &str = mqtt_broker_api::topics::SESSIONS;
/// Besides a message an `M` holds those who get it, and an `S` a will and what is known of a connection.
const RECORD_BYTES: u32 = 512 * 1024;

/// Where a process run stands among those that share a log.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// What all process runs of its node have in common, and those of no other.
    pub(crate) node: &'a str,
    /// The log's, if there is none yet.
    pub(crate) partitions: u32,
    /// Other nodes may serve devices from this log. Where none does, nothing is asked of it for their sake.
    pub(crate) shared: bool,
}

/// See the module.
pub(crate) struct SessionLog {
    log: Arc<dyn Log>,
    outside: Outside,
    topic: Topic,
    /// This process run.
    pub(crate) boot: Boot,
    /// What process runs of this node have in common.
    name: Name,
    /// See [`Place::shared`].
    pub(crate) shared: bool,
    barriers: barrier::Barriers,
    leases: leases::Leases,
    announcements: announce::Announcements,
    end: lives::End,
    partitions: Vec<Partition>,
    /// Numbers the writings of keys that are written more than once.
    sequence: AtomicU64,
    surely: Arc<write::Surely>,
    /// Wills that sessions have which are in no log, by nonce, with their clients: until the log says that they are published.
    wills: Mutex<HashMap<MessageId, Box<str>, RandomState>>,
}

#[derive(Default)]
struct Partition {
    state: Mutex<State>,
    /// All records before this one have been read. It rises while the state is locked, or behind what has followed from it.
    next: Rising,
    /// The number of the last message that this process run has written here. Held while one is written: they stand in the
    /// log as they are numbered. Whoever has it may lock a mailbox, and nothing else.
    written: Mutex<u64>,
    /// The number of the last of them that was read back.
    read_back: AtomicU64,
}

#[derive(Default)]
struct State {
    view: View,
    /// Who waits until a record of this process run is read back.
    waiting: HashMap<Key, Vec<Waiting>, RandomState>,
    /// What this process run holds for connections that are there, by client ID.
    holdings: HashMap<Arc<str>, Arc<Holding>, RandomState>,
    /// The mailboxes of all sessions that live, whichever node has them.
    mailboxes: HashMap<MessageId, Arc<Mailbox>, RandomState>,
    /// Messages of which it was written, and not read back yet, that they go for want of room: session and message.
    dropping: HashSet<(MessageId, MessageId), RandomState>,
    /// Messages of shared subscriptions that are being given to another member: session and message.
    passing: HashSet<(MessageId, MessageId), RandomState>,
    barriers: BarrierWaits,
}

/// What a record of this process run is waited for by.
enum Waiting {
    Claim(claim::Pending),
    /// A subscription, as of this writing of its key.
    Filter {
        sequence: u64,
        done: Completion,
    },
}

/// A client that this process run holds: its claim took effect.
#[derive(Debug)]
pub(crate) struct Holding {
    pub(crate) client: Arc<str>,
    pub(crate) partition: u32,
    pub(crate) sid: MessageId,
    pub(crate) generation: Generation,
    nonce: MessageId,
    /// As written last.
    written: Mutex<Box<Session>>,
    /// Another claim took effect.
    lost: AtomicBool,
}

impl Holding {
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    pub(crate) fn logged(&self) -> Logged {
        Logged { sid: self.sid, partition: self.partition }
    }
}

impl SessionLog {
    pub(super) fn settings(partitions: u32, packet_size: u32) -> TopicSettings {
        let record_bytes = packet_size.saturating_add(RECORD_BYTES);
        TopicSettings { partitions, cleanup: Cleanup::KeepLatest, record_bytes }
    }

    pub(crate) fn topic(&self) -> &Topic {
        &self.topic
    }

    fn partition_of(&self, client: &str) -> u32 {
        murmur2::partition(client.as_bytes(), self.topic.partitions())
    }

    /// There is one for each partition that the topic has had since the start.
    fn with<R>(&self, partition: u32, act: impl FnOnce(&mut State) -> R) -> Option<R> {
        Some(act(&mut self.partition(partition)?.state.lock()))
    }

    fn partition(&self, partition: u32) -> Option<&Partition> {
        self.partitions.get(usize::try_from(partition).ok()?)
    }

    fn position(&self, partition: u32) -> Offset {
        self.partition(partition).map_or(0, |partition| partition.next.get())
    }

    /// Sessions that live.
    pub(crate) fn live(&self) -> usize {
        self.partitions.iter().map(|partition| partition.state.lock().view.live()).sum()
    }

    /// Where what is for a client's session is left, if the client is this node's.
    pub(crate) fn mailbox(&self, client: &str) -> Option<Arc<Mailbox>> {
        let of = |state: &mut State| {
            let head = state.view.head(client)?;
            state.mailboxes.get(&head.session.sid).cloned()
        };
        self.with(self.partition_of(client), of).flatten()
    }

    /// Where a client's session stands.
    fn logged(&self, client: &str, sid: MessageId) -> Logged {
        Logged { sid, partition: self.partition_of(client) }
    }

    fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// Appends a record, or with no value deletes its key.
    fn append(&self, partition: u32, key: &Key, value: Option<Value<'_>>, now: Millis, done: Completion) {
        self.log.append(&self.topic, partition, write::record(key, value, now), done);
    }

    /// What every node must know alike, one line a fact.
    #[cfg(test)]
    pub(crate) fn summaries(&self) -> Vec<Vec<String>> {
        self.partitions.iter().map(|partition| partition.state.lock().view.summary()).collect()
    }
}
