//! One peer, as another node sees it: what goes to it and comes from it, in order and once each, over frames that may be lost,
//! repeated or reordered; and the leases that each gives the other.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use mqtt_proto::{
    durable::record::{Boot, Offset},
    message::{Message, Millis},
    topic::Filter,
};

/// Names an item among those to one peer, from 1 on.
pub(crate) type Seq = u64;

/// How long a lease lasts, by the clock of who gives it.
pub(super) const LEASE: Millis = 2000;
/// The same for who has it, counted from when it asked: clocks run differently fast.
const LEASE_HELD: Millis = 1800;
/// None is renewed while something has waited so long for its confirmation.
const LAG: Millis = 1000;
/// Until what is not confirmed is sent again.
const RESEND: Millis = 300;
/// A frame without items goes this often.
const KEEP_ALIVE: Millis = 250;
/// Items in one frame.
const MOST_ITEMS: usize = 500;
/// Items that came before their turn.
const MOST_EARLY: usize = 2000;
/// Items that wait for a peer, beyond which QoS 0 messages are dropped.
const MOST_OUT: usize = 20_000;

/// What one node tells another.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// Some clean session here wants what matches this filter; or none does any more.
    Filter { filter: Filter, on: bool },
    /// All filters so far are above, and the node that reads this is one whose leases are asked for here.
    Listed,
    /// A session of this node has a subscription in the log before this offset: to be confirmed when that is read.
    Mark { partition: u32, position: Offset },
    /// For the clean sessions of the node that reads it, and at QoS 0 for the others that it has. `once`: unless it has
    /// come there before.
    Message { message: Arc<Message>, once: bool },
}

/// What goes over the wire. All of it but the items says the latest, so that any frame may be lost.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) from: Boot,
    pub(crate) to: Boot,
    /// The first item's number; the others follow.
    pub(crate) first: Seq,
    pub(crate) items: Vec<Arc<Item>>,
    /// Items of the other side up to this one have been taken.
    pub(crate) taken: Seq,
    /// Its marks up to this one have been passed.
    pub(crate) passed: Seq,
    /// Asks for a lease from this time on, by the clock of who asks.
    pub(crate) asked: Millis,
    /// Gives the lease that was asked for at this time; 0: none.
    pub(crate) granted: Millis,
}

/// What has come for a node.
pub(super) struct Came {
    pub(super) items: Vec<Arc<Item>>,
    pub(super) answer: bool,
}

#[derive(Debug, Default)]
pub(super) struct Link {
    /// Sent or to be sent, not taken so far, with the time since when; the first has the number `out_first`.
    out: VecDeque<(Millis, Arc<Item>)>,
    out_first: Seq,
    /// Items before this one have been sent since the last time that they were sent anew.
    sent: Seq,
    /// When the peer took something last, or there was nothing for it to take.
    moved_at: Millis,
    spoke_at: Millis,
    /// Marks that were not passed so far.
    marks: VecDeque<(Millis, Seq)>,
    /// The next item that comes.
    in_next: Seq,
    early: BTreeMap<Seq, Arc<Item>>,
    /// Marks of the peer that this node has not passed.
    to_pass: VecDeque<(Seq, u32, Offset)>,
    passed: Seq,
    /// The peer counts on this node.
    pub(super) is_listed_there: bool,
    /// Until when this node has a lease.
    lease_until: Millis,
    /// The latest that the peer asked for, and the latest that it was given, and until when it may use that.
    asked: Millis,
    granted: Millis,
    granted_until: Millis,
    /// What was told to devices though the peer had not confirmed it: it gets no lease before.
    owed_item: Seq,
    owed_mark: Seq,
    /// For how long nothing came from it, by this node's running time.
    pub(super) silent: Millis,
}

impl Link {
    pub(super) fn new(now: Millis) -> Link {
        Link { out_first: 1, sent: 1, in_next: 1, moved_at: now, spoke_at: now, ..Link::default() }
    }

    pub(super) fn push(&mut self, now: Millis, item: Arc<Item>) -> Option<Seq> {
        if self.out.len() >= MOST_OUT && matches!(&*item, Item::Message { message, .. } if message.qos as u8 == 0)
        {
            return None;
        }
        let seq = self.out_first + self.out.len() as Seq;
        if self.out.is_empty() {
            self.moved_at = now;
        }
        if matches!(&*item, Item::Mark { .. }) {
            self.marks.push_back((now, seq));
        }
        self.out.push_back((now, item));
        Some(seq)
    }

    /// The last item so far.
    pub(super) fn last(&self) -> Seq {
        self.out_first + self.out.len() as Seq - 1
    }

    /// Items up to this one have been taken.
    pub(super) fn taken(&self) -> Seq {
        self.out_first - 1
    }

    /// The peer gets no lease before it has confirmed all that there is so far.
    pub(super) fn owe_all(&mut self) {
        self.owed_item = self.last();
        self.owed_mark = self.marks.back().map_or(0, |(_, seq)| *seq);
    }

    /// Whether the peer has confirmed an item: taken it, or, of a mark, passed it.
    pub(super) fn has_confirmed(&self, seq: Seq, is_mark: bool) -> bool {
        if is_mark { self.marks.front().is_none_or(|(_, first)| *first > seq) } else { self.taken() >= seq }
    }

    /// Whether the peer can't route on a view without this item: it has confirmed it, or has no lease from here. From then on
    /// it gets none before it has.
    pub(super) fn is_safe(&mut self, now: Millis, seq: Seq, is_mark: bool) -> bool {
        if self.has_confirmed(seq, is_mark) {
            return true;
        }
        if self.granted_until >= now {
            return false;
        }
        let owed = if is_mark { &mut self.owed_mark } else { &mut self.owed_item };
        *owed = seq.max(*owed);
        true
    }

    pub(super) fn has_lease(&self, now: Millis) -> bool {
        self.lease_until > now
    }

    /// Takes a frame of this peer; items come out in order, each once.
    pub(super) fn take(&mut self, now: Millis, frame: Frame) -> Came {
        let Frame { first, items, taken, passed, asked, granted, .. } = frame;
        self.silent = 0;
        while self.taken() < taken && self.out.pop_front().is_some() {
            self.out_first += 1;
            self.moved_at = now;
        }
        self.sent = self.sent.max(self.out_first);
        while self.marks.front().is_some_and(|(_, seq)| *seq <= passed) {
            self.marks.pop_front();
        }
        if granted > 0 {
            self.lease_until = self.lease_until.max(granted.saturating_add(LEASE_HELD));
        }
        self.asked = self.asked.max(asked);
        self.grant(now);
        let answer = !items.is_empty();
        for (seq, item) in (first..).zip(items) {
            if seq >= self.in_next && self.early.len() < MOST_EARLY {
                self.early.insert(seq, item);
            }
        }
        let mut came = Vec::new();
        while let Some(item) = self.early.remove(&self.in_next) {
            if let Item::Mark { partition, position } = &*item {
                self.to_pass.push_back((self.in_next, *partition, *position));
            }
            self.is_listed_there |= matches!(&*item, Item::Listed);
            came.push(item);
            self.in_next += 1;
        }
        Came { items: came, answer }
    }

    /// Gives the lease that was asked for last, unless the peer is behind.
    fn grant(&mut self, now: Millis) {
        let is_late = |since: Option<Millis>| since.is_some_and(|since| now.saturating_sub(since) > LAG);
        let lags = is_late(self.out.front().map(|(since, _)| *since))
            || is_late(self.marks.front().map(|(since, _)| *since));
        let owes =
            !self.has_confirmed(self.owed_item, false) || !self.has_confirmed(self.owed_mark, true);
        if self.asked > self.granted && !lags && !owes {
            self.granted = self.asked;
            self.granted_until = now + LEASE;
        }
    }

    /// This node has read the log's partitions up to these positions. True if marks were passed that the peer must hear of.
    pub(super) fn pass(&mut self, position: impl Fn(u32) -> Offset) -> bool {
        let before = self.passed;
        while let Some((seq, _, _)) = self.to_pass.front().filter(|(_, of, at)| position(*of) >= *at) {
            self.passed = *seq;
            self.to_pass.pop_front();
        }
        self.passed > before
    }

    /// A frame, if there is anything to say.
    pub(super) fn frame(&mut self, now: Millis, (from, to): (Boot, Boot), must: bool) -> Option<Frame> {
        if !self.out.is_empty() && now.saturating_sub(self.moved_at) >= RESEND {
            (self.sent, self.moved_at) = (self.out_first, now);
        }
        let is_due = now.saturating_sub(self.spoke_at) >= KEEP_ALIVE;
        let skipped = usize::try_from(self.sent - self.out_first).unwrap_or(usize::MAX);
        let items: Vec<_> =
            self.out.iter().skip(skipped).take(MOST_ITEMS).map(|(_, item)| item.clone()).collect();
        if items.is_empty() && !must && !is_due {
            return None;
        }
        let first = self.sent;
        self.spoke_at = now;
        self.sent += items.len() as Seq;
        Some(Frame {
            from,
            to,
            first,
            items,
            taken: self.in_next - 1,
            passed: self.passed,
            asked: now,
            granted: self.granted,
        })
    }
}
