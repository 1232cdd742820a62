//! What this process run passes on to others, and by which way: a link to the other node, or the relay in the log.
//!
//! Without input, output or a clock. Whoever owns it does what a result says before the next call, so that what is said to go
//! through the log stands there in the order of the calls. Promises, for each peer:
//!
//! - all that is handed for it goes, under numbers that rise, one way or the other, and what goes twice has one number;
//! - what went through the log is taken by the peer before anything behind it goes by the link, and what is behind something
//!   that the link did not bring in time goes through the log;
//! - nothing waits here longer than [`PATIENCE`], if somebody looks.

use std::collections::{BTreeMap, VecDeque};

use mqtt_proto::{
    durable::record::{Boot, Offset},
    message::Millis,
};

/// Until a link must have brought what was handed to it, in milliseconds.
pub(crate) const PATIENCE: Millis = 1000;
/// What may wait for one link before publishers are read no further.
const MOST_WAITING: usize = 20_000;
const MOST_WAITING_BYTES: usize = 8 << 20;
/// Of that, what may be sent and not acknowledged.
const WINDOW_BYTES: usize = 2 << 20;
/// What goes in one batch; a larger message goes alone.
const MOST_IN_BATCH: usize = 500;
pub(crate) const BATCH_BYTES: usize = 256 << 10;

/// See the module. `M` is what is handed, and shared by all links that it goes by.
pub(crate) struct Outgoing<M> {
    last: u64,
    peers: BTreeMap<Boot, Peer<M>>,
}

struct Peer<M> {
    way: Way,
    /// The last that was handed for it.
    handed: u64,
    /// The last that goes to it through the log.
    logged: u64,
    /// Whatever goes by the link is not ahead of what is for it in the relay before this offset.
    seen: Offset,
    /// On their way, or still here; in order.
    sent: VecDeque<Waiting<M>>,
    queue: VecDeque<Waiting<M>>,
    sent_bytes: usize,
    queue_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Way {
    #[default]
    Log,
    /// There is a link. What is new waits until the peer has taken what went through the log.
    Joining,
    Link,
}

struct Waiting<M> {
    sequence: u64,
    item: M,
    bytes: usize,
    since: Millis,
}

/// What goes by a link at once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch<M> {
    /// The number of what was handed for the peer before.
    pub(crate) after: u64,
    /// The peer must have read the relay before this offset first.
    pub(crate) seen: Offset,
    pub(crate) items: Vec<(u64, M)>,
}

impl<M> Default for Outgoing<M> {
    fn default() -> Self {
        Outgoing { last: 0, peers: BTreeMap::new() }
    }
}

impl<M> Default for Peer<M> {
    fn default() -> Self {
        Peer {
            way: Way::Log,
            handed: 0,
            logged: 0,
            seen: 0,
            sent: VecDeque::new(),
            queue: VecDeque::new(),
            sent_bytes: 0,
            queue_bytes: 0,
        }
    }
}

impl<M: Clone> Outgoing<M> {
    /// Something for these peers, each named once. Returns its number, and those of them to which it goes through the log now;
    /// `item` is asked once for each link that it waits for. `bytes` is its size.
    pub(crate) fn hand(
        &mut self,
        to: &[Boot],
        bytes: usize,
        now: Millis,
        mut item: impl FnMut() -> M,
    ) -> (u64, Vec<Boot>) {
        self.last += 1;
        let sequence = self.last;
        let mut through_log = Vec::new();
        for boot in to {
            let peer = self.peers.entry(*boot).or_default();
            match peer.way {
                Way::Log => {
                    (peer.handed, peer.logged) = (sequence, sequence);
                    through_log.push(*boot);
                }
                Way::Joining | Way::Link => {
                    peer.queue.push_back(Waiting { sequence, item: item(), bytes, since: now });
                    peer.queue_bytes += bytes;
                }
            }
        }
        (sequence, through_log)
    }

    /// A link to this peer stands, and says up to which number the peer has taken what there was. Nothing of a former link may be
    /// left: see [`Self::break_off`].
    pub(crate) fn join(&mut self, boot: Boot, taken: u64) {
        let peer = self.peers.entry(boot).or_default();
        peer.way = if taken >= peer.logged { Way::Link } else { Way::Joining };
    }

    /// The peer has taken all up to this number, by whichever way. Returns what nobody need wait for any more.
    pub(crate) fn taken(&mut self, boot: Boot, taken: u64) -> Vec<M> {
        let Some(peer) = self.peers.get_mut(&boot) else { return Vec::new() };
        if peer.way == Way::Joining && taken >= peer.logged {
            peer.way = Way::Link;
        }
        let mut done = Vec::new();
        while let Some(first) = peer.sent.pop_front_if(|first| first.sequence <= taken) {
            peer.sent_bytes -= first.bytes;
            done.push(first.item);
        }
        done
    }

    /// What goes by this peer's link next, if anything may.
    pub(crate) fn batch(&mut self, boot: Boot) -> Option<Batch<M>> {
        let peer = self.peers.get_mut(&boot).filter(|peer| peer.way == Way::Link)?;
        let mut batch = Batch { after: peer.handed, seen: peer.seen, items: Vec::new() };
        let mut bytes = 0;
        while let Some(next) = peer.queue.pop_front_if(|next| {
            let is_first = batch.items.is_empty();
            (is_first || (batch.items.len() < MOST_IN_BATCH && bytes + next.bytes <= BATCH_BYTES))
                && ((is_first && peer.sent.is_empty()) || peer.sent_bytes + next.bytes <= WINDOW_BYTES)
        }) {
            bytes += next.bytes;
            peer.queue_bytes -= next.bytes;
            peer.sent_bytes += next.bytes;
            peer.handed = next.sequence;
            batch.items.push((next.sequence, next.item.clone()));
            peer.sent.push_back(next);
        }
        (!batch.items.is_empty()).then_some(batch)
    }

    /// Whether the link has not brought in time what it should have. Then it must be broken off.
    pub(crate) fn is_overdue(&self, boot: Boot, now: Millis) -> bool {
        let Some(peer) = self.peers.get(&boot) else { return false };
        let oldest = peer.sent.front().or(peer.queue.front());
        oldest.is_some_and(|oldest| now.saturating_sub(oldest.since) >= PATIENCE)
    }

    /// There is no link to this peer any more. Returns what goes through the log now, in this order, with its numbers.
    pub(crate) fn break_off(&mut self, boot: Boot) -> Vec<(u64, M)> {
        let Some(peer) = self.peers.get_mut(&boot) else { return Vec::new() };
        peer.way = Way::Log;
        (peer.sent_bytes, peer.queue_bytes) = (0, 0);
        let left = peer.sent.drain(..).chain(peer.queue.drain(..));
        let left: Vec<_> = left.map(|waiting| (waiting.sequence, waiting.item)).collect();
        if let Some((last, _)) = left.last() {
            (peer.handed, peer.logged) = (*last, *last);
        }
        left
    }

    /// Peers that have, or had, something to be told.
    pub(crate) fn peers(&self) -> Vec<Boot> {
        self.peers.keys().copied().collect()
    }

    /// Something for this peer stands in the relay before this offset, whoever wrote it.
    pub(crate) fn seen(&mut self, boot: Boot, before: Offset) {
        let peer = self.peers.entry(boot).or_default();
        peer.seen = peer.seen.max(before);
    }

    /// Such peers are over, for ever, and owe nothing. Returns what nobody need wait for any more.
    pub(crate) fn forget(&mut self, is_over: impl Fn(Boot) -> bool) -> Vec<M> {
        let over = self.peers.extract_if(.., |boot, _| is_over(*boot));
        over.flat_map(|(_, peer)| peer.sent.into_iter().chain(peer.queue))
            .map(|waiting| waiting.item)
            .collect()
    }

    /// Links that are in use.
    pub(crate) fn links(&self) -> usize {
        self.peers.values().filter(|peer| peer.way == Way::Link).count()
    }

    /// False while more waits for some link than should.
    pub(crate) fn has_room(&self) -> bool {
        self.peers.values().all(|peer| {
            peer.sent.len() + peer.queue.len() < MOST_WAITING
                && peer.sent_bytes + peer.queue_bytes < MOST_WAITING_BYTES
        })
    }
}
