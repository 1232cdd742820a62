//! How far sessions are with messages, as `D` records tell.
//!
//! Most of these are of messages that are in no queue any more, and wait until no late record can refer to them. So each takes
//! little.

use std::collections::hash_map::Entry;

use super::{Map, give_back};
use crate::{
    durable::record::{Boot, Progress},
    message::MessageId,
};

/// By message.
#[derive(Debug, Default)]
pub(super) struct AllProgress(Map<MessageId, OfMessage>);

/// What all have told of one message. Most have one recipient, of which one run tells: all others are one pointer away.
#[derive(Debug)]
struct OfMessage {
    sid: MessageId,
    told: Told,
    /// Of other sessions, and of other process runs, by session.
    others: Option<Box<Map<MessageId, Vec<Told>>>>,
}

/// What one process run told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub(super) boot: Boot,
    pub(super) progress: Progress,
    /// Seconds since the Unix epoch.
    pub(super) created: u32,
}

impl AllProgress {
    /// How far a session is with a message.
    pub(super) fn of(&self, mid: MessageId, sid: MessageId) -> Option<Progress> {
        let OfMessage { sid: first, told, others } = self.0.get(&mid)?;
        let others = others.iter().filter_map(|others| others.get(&sid)).flatten();
        (*first == sid).then_some(told).into_iter().chain(others).map(|told| told.progress).max()
    }

    /// Whether anybody has been told to be anywhere with this message.
    pub(super) fn is_of(&self, mid: MessageId) -> bool {
        self.0.contains_key(&mid)
    }

    /// A record was read.
    pub(super) fn tell(&mut self, mid: MessageId, sid: MessageId, told: Told) {
        let known = match self.0.entry(mid) {
            Entry::Vacant(entry) => {
                entry.insert(OfMessage { sid, told, others: None });
                return;
            }
            Entry::Occupied(entry) => entry.into_mut(),
        };
        if known.sid == sid && known.told.boot == told.boot {
            return known.told.join(told);
        }
        let of_session = known.others.get_or_insert_default().entry(sid).or_default();
        match of_session.iter_mut().find(|known| known.boot == told.boot) {
            Some(known) => known.join(told),
            None => of_session.push(told),
        }
    }

    /// A record was deleted.
    pub(super) fn forget(&mut self, mid: MessageId, sid: MessageId, boot: Boot) {
        let Some(known) = self.0.get_mut(&mid) else { return };
        if known.sid != sid || known.told.boot != boot {
            known.take(sid, |told| told.boot == boot);
            return;
        }
        let next = known.others.as_ref().and_then(|others| others.keys().next().copied());
        if let Some((sid, told)) = next.and_then(|next| Some((next, known.take(next, |_| true)?))) {
            (known.sid, known.told) = (sid, told);
            return;
        }
        self.0.remove(&mid);
        give_back(&mut self.0);
    }

    /// Every record: message, session, and what it tells.
    pub(super) fn iter(&self) -> impl Iterator<Item = (MessageId, MessageId, &Told)> {
        self.0.iter().flat_map(|(mid, OfMessage { sid, told, others })| {
            let others = others.iter().flat_map(|others| others.iter());
            let others = others.flat_map(move |(sid, all)| all.iter().map(move |told| (*mid, *sid, told)));
            std::iter::once((*mid, *sid, told)).chain(others)
        })
    }
}

impl OfMessage {
    /// Takes the first of what a session's other runs told that is as asked for.
    fn take(&mut self, sid: MessageId, is_it: impl FnMut(&Told) -> bool) -> Option<Told> {
        let others = self.others.as_deref_mut()?;
        let of_session = others.get_mut(&sid)?;
        let taken = of_session.iter().position(is_it).map(|index| of_session.swap_remove(index));
        if of_session.is_empty() {
            others.remove(&sid);
            give_back(others);
        }
        if others.is_empty() {
            self.others = None;
        }
        taken
    }
}

impl Told {
    /// The same run told something again.
    fn join(&mut self, told: Told) {
        self.progress = self.progress.max(told.progress);
        self.created = self.created.max(told.created);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{durable::record::Why, test_random::Random};

    #[test]
    fn what_the_furthest_of_several_runs_told_counts_until_it_is_deleted() {
        let mut random = Random::new(1);
        let (mut all, mut model) = (AllProgress::default(), BTreeMap::new());
        for _ in 0..5_000 {
            let id = |counter: usize| MessageId { boot: 1, counter: counter as u64 };
            let (mid, sid, boot) = (id(random.below(3)), id(random.below(3)), random.below(4) as u64);
            if random.below(2) == 0 {
                all.forget(mid, sid, boot);
                model.remove(&(mid, sid, boot));
            } else {
                let progress = match random.below(3) {
                    0 => Progress::Received(random.below(3) as u16),
                    1 => Progress::Done(Why::Acknowledged),
                    _ => Progress::Done(Why::Expired),
                };
                all.tell(mid, sid, Told { boot, progress, created: 0 });
                let known = model.entry((mid, sid, boot)).or_insert(progress);
                *known = progress.max(*known);
            }
            let told = model.iter().filter(|((m, s, _), _)| (*m, *s) == (mid, sid));
            assert_eq!(all.of(mid, sid), told.map(|(_, progress)| *progress).max());
            assert_eq!(all.is_of(mid), model.keys().any(|(m, ..)| *m == mid));
            assert_eq!(all.iter().count(), model.len());
        }
    }
}
