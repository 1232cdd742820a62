//! What one node knows of the others and waits for from them: frames, ticks and news of the log go in, effects come out. It
//! has no clock and no socket.
//!
//! Which nodes there are says the log alone: a process run is *listed* from its `T` until a later one has its name or it is
//! declared down.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use mqtt_proto::{
    durable::record::{Boot, Offset},
    message::{Message, Millis},
    topic::Filter,
};

use super::link::{Came, Frame, Item, Link, Seq};
use crate::log::Completion;

/// Time between two ticks.
pub(crate) const TICK: Millis = 100;
/// How long a peer may be silent before this node says so in the log; and if this node can't hear enough of the others, so that
/// it may be the one that is cut off.
const SILENCE: Millis = 3000;
const SILENCE_APART: Millis = 6000;
/// The same for one that serves nobody so far.
const SILENCE_BEFORE: Millis = 10_000;
const TURN: Millis = 1500;

/// What must be done, in order.
pub(crate) enum Effect {
    Send(Frame),
    /// An item of this peer.
    Apply(Boot, Arc<Item>),
    /// Nothing of this peer counts any more.
    Forget(Boot),
    /// The log should say that this peer is down.
    Silent(Boot),
    Done(Completion),
}

/// What must be confirmed by a peer.
pub(crate) struct Need {
    peer: Boot,
    seq: Seq,
    is_mark: bool,
}

struct Active {
    needs: Vec<Need>,
    done: Completion,
}

pub(crate) struct Machine {
    me: Boot,
    links: BTreeMap<Boot, Link>,
    /// Of the clean sessions here.
    filters: BTreeMap<Box<str>, Filter>,
    /// Messages on their way to a peer.
    taking: BTreeMap<Boot, VecDeque<(Seq, Completion)>>,
    /// Who waits until subscriptions are active.
    actives: Vec<Active>,
    /// Who waits for leases of all peers.
    fresh: Vec<Completion>,
    ticked: Millis,
}

impl Machine {
    pub(crate) fn new(me: Boot, now: Millis) -> Machine {
        Machine {
            me,
            links: BTreeMap::new(),
            filters: BTreeMap::new(),
            taking: BTreeMap::new(),
            actives: Vec::new(),
            fresh: Vec::new(),
            ticked: now,
        }
    }

    /// These are the process runs that there are now, besides this one.
    /// `positions`: how far this node has read each partition of the log.
    pub(crate) fn list(
        &mut self,
        now: Millis,
        peers: &[Boot],
        positions: &[Offset],
        effects: &mut Vec<Effect>,
    ) {
        let gone: Vec<Boot> = self.links.keys().filter(|boot| !peers.contains(boot)).copied().collect();
        for boot in gone {
            self.links.remove(&boot);
            effects.push(Effect::Forget(boot));
            let waiting = self.taking.remove(&boot).unwrap_or_default();
            effects.extend(waiting.into_iter().map(|(_, done)| Effect::Done(done)));
        }
        for boot in peers.iter().filter(|boot| **boot != self.me) {
            if self.links.contains_key(boot) {
                continue;
            }
            let mut link = Link::new(now);
            for filter in self.filters.values() {
                link.push(now, Arc::new(Item::Filter { filter: filter.clone(), on: true }));
            }
            // What devices were told of before may lie behind what the peer has read so far.
            for (partition, position) in (0..).zip(positions) {
                link.push(now, Arc::new(Item::Mark { partition, position: *position }));
            }
            link.push(now, Arc::new(Item::Listed));
            link.owe_all();
            self.links.insert(*boot, link);
        }
        self.settle(now, effects);
    }

    /// Whether every peer counts on this node.
    pub(crate) fn is_joined(&self) -> bool {
        self.links.values().all(|link| link.is_listed_there)
    }

    /// Whether no peer can have told anybody of a subscription that is not known here.
    pub(crate) fn is_fresh(&self, now: Millis) -> bool {
        self.links.values().all(|link| link.has_lease(now))
    }

    /// Tells `done` once that is so.
    pub(crate) fn wait_fresh(&mut self, done: Completion) {
        self.fresh.push(done);
    }

    /// Some clean session here wants what matches, or none does any more.
    pub(crate) fn filter(&mut self, now: Millis, filter: &Filter, on: bool) {
        if on {
            self.filters.insert(filter.as_str().into(), filter.clone());
        } else {
            self.filters.remove(filter.as_str());
        }
        self.push_all(now, &Arc::new(Item::Filter { filter: filter.clone(), on }));
    }

    /// Tells `done` once no peer can route on a view without what was announced so far; and without a subscription in the log that
    /// lies before `mark` in its partition.
    pub(crate) fn wait_active(
        &mut self,
        now: Millis,
        mark: Option<(u32, Offset)>,
        done: Completion,
        effects: &mut Vec<Effect>,
    ) {
        let needs = match mark {
            Some((partition, position)) => self.push_all(now, &Arc::new(Item::Mark { partition, position })),
            None => {
                let last = |(peer, link): (&Boot, &Link)| Need { peer: *peer, seq: link.last(), is_mark: false };
                self.links.iter().map(last).collect()
            }
        };
        self.actives.push(Active { needs, done });
        self.settle(now, effects);
    }

    fn push_all(&mut self, now: Millis, item: &Arc<Item>) -> Vec<Need> {
        let is_mark = matches!(&**item, Item::Mark { .. });
        let push = |(peer, link): (&Boot, &mut Link)| {
            Some(Need { peer: *peer, seq: link.push(now, item.clone())?, is_mark })
        };
        self.links.iter_mut().filter_map(push).collect()
    }

    /// Sends a message to a peer; `done` is told once the peer has it, or is no peer any more. False: it is none now, or a QoS 0
    /// message had no room.
    pub(crate) fn message(
        &mut self,
        now: Millis,
        to: Boot,
        message: &Arc<Message>,
        once: bool,
        done: Option<Completion>,
    ) -> bool {
        let Some(link) = self.links.get_mut(&to) else { return false };
        let Some(seq) = link.push(now, Arc::new(Item::Message { message: message.clone(), once })) else {
            return false;
        };
        if let Some(done) = done {
            self.taking.entry(to).or_default().push_back((seq, done));
        }
        true
    }

    /// A frame has come. `position`: how far this node has read a partition of the log.
    pub(crate) fn take(
        &mut self,
        now: Millis,
        frame: Frame,
        position: impl Fn(u32) -> Offset,
        effects: &mut Vec<Effect>,
    ) {
        let from = frame.from;
        if frame.to != self.me {
            return;
        }
        let Some(link) = self.links.get_mut(&from) else { return };
        let Came { items, answer } = link.take(now, frame);
        effects.extend(items.into_iter().map(|item| Effect::Apply(from, item)));
        let passed = link.pass(position);
        if answer || passed {
            effects.extend(link.frame(now, (self.me, from), true).map(Effect::Send));
        }
        self.settle(now, effects);
    }

    /// Sends what waits.
    pub(crate) fn flush(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        for (to, link) in &mut self.links {
            effects.extend(link.frame(now, (self.me, *to), false).map(Effect::Send));
        }
    }

    /// Time has passed; to be called every [`TICK`], and when the log was read on.
    pub(crate) fn tick(
        &mut self,
        now: Millis,
        position: impl Fn(u32) -> Offset,
        effects: &mut Vec<Effect>,
    ) {
        // Who was stopped itself heard nobody.
        let ran = now.saturating_sub(self.ticked).min(2 * TICK);
        self.ticked = now;
        let heard = self.links.values().filter(|link| link.silent < SILENCE).count();
        let patience = match (2 * (heard + 1)).cmp(&(self.links.len() + 1)) {
            std::cmp::Ordering::Greater => SILENCE,
            std::cmp::Ordering::Equal if self.links.keys().all(|boot| *boot > self.me) => SILENCE,
            _ => SILENCE_APART,
        };
        let patience = if self.is_joined() { patience } else { SILENCE_BEFORE };
        for (to, link) in &mut self.links {
            link.silent += ran;
            // Of two that don't hear each other one goes.
            let turn = if self.me < *to { 0 } else { TURN };
            if link.silent >= patience + turn {
                effects.push(Effect::Silent(*to));
            }
            let passed = link.pass(&position);
            effects.extend(link.frame(now, (self.me, *to), passed).map(Effect::Send));
        }
        self.settle(now, effects);
    }

    /// Tells who has waited long enough.
    fn settle(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        for (peer, waiting) in &mut self.taking {
            let Some(link) = self.links.get(peer) else { continue };
            while waiting.front().is_some_and(|(seq, _)| *seq <= link.taken()) {
                effects.extend(waiting.pop_front().map(|(_, done)| Effect::Done(done)));
            }
        }
        let links = &mut self.links;
        let mut is_safe = |need: &Need| {
            links.get_mut(&need.peer).is_none_or(|link| link.is_safe(now, need.seq, need.is_mark))
        };
        let active = self.actives.extract_if(.., |active| active.needs.iter().all(&mut is_safe));
        effects.extend(active.map(|active| Effect::Done(active.done)));
        if !self.fresh.is_empty() && self.is_fresh(now) {
            effects.extend(self.fresh.drain(..).map(Effect::Done));
        }
    }
}
