//! How far sessions are with messages, as `D` records tell.
//!
//! Most of these are of messages that are in no queue any more, and wait until no late record can refer to them. So each takes
//! little.

use smallvec::SmallVec;

use super::{Map, give_back, rare::Rare};
use crate::{
    durable::record::{Boot, Progress},
    message::MessageId,
};

/// By message; most have one recipient.
#[derive(Debug, Default)]
pub(super) struct AllProgress(Map<MessageId, SmallVec<[(MessageId, Tellings); 1]>>);

#[derive(Debug)]
struct Tellings {
    first: Told,
    /// Of other process runs.
    others: Rare<Told>,
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
        let (_, tellings) = self.0.get(&mid)?.iter().find(|(of, _)| *of == sid)?;
        tellings.all().map(|told| told.progress).max()
    }

    /// Whether anybody has been told to be anywhere with this message.
    pub(super) fn is_of(&self, mid: MessageId) -> bool {
        self.0.contains_key(&mid)
    }

    /// A record was read.
    pub(super) fn tell(&mut self, mid: MessageId, sid: MessageId, told: Told) {
        let sessions = self.0.entry(mid).or_default();
        let Some((_, Tellings { first, others })) = sessions.iter_mut().find(|(of, _)| *of == sid) else {
            return sessions.push((sid, Tellings { first: told, others: Rare::default() }));
        };
        let known = match first.boot == told.boot {
            true => Some(first),
            false => others.iter_mut().find(|known| known.boot == told.boot),
        };
        match known {
            Some(known) => {
                known.progress = known.progress.max(told.progress);
                known.created = known.created.max(told.created);
            }
            None => others.push(told),
        }
    }

    /// A record was deleted.
    pub(super) fn forget(&mut self, mid: MessageId, sid: MessageId, boot: Boot) {
        let Some(sessions) = self.0.get_mut(&mid) else { return };
        let Some(index) = sessions.iter().position(|(of, _)| *of == sid) else { return };
        let Some((_, Tellings { first, others })) = sessions.get_mut(index) else { return };
        others.retain(|told| told.boot != boot, drop);
        if first.boot != boot {
            return;
        }
        if let Some(other) = others.first() {
            *first = *other;
            let next = first.boot;
            others.retain(|told| told.boot != next, drop);
            return;
        }
        sessions.swap_remove(index);
        if sessions.is_empty() {
            self.0.remove(&mid);
            give_back(&mut self.0);
        }
    }

    /// Every record: message, session, and what it tells.
    pub(super) fn iter(&self) -> impl Iterator<Item = (MessageId, MessageId, &Told)> {
        let sessions = self.0.iter().flat_map(|(mid, sessions)| sessions.iter().map(|of| (*mid, of)));
        sessions.flat_map(|(mid, (sid, tellings))| tellings.all().map(move |told| (mid, *sid, told)))
    }
}

impl Tellings {
    fn all(&self) -> impl Iterator<Item = &Told> {
        std::iter::once(&self.first).chain(self.others.iter())
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
