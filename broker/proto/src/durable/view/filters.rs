//! The records of one session's subscriptions, in as little memory as they need: there may be a hundred thousand sessions,
//! most with a few subscriptions that hardly ever change.

use std::collections::{BTreeMap, btree_map};

use crate::{
    codec::QoS,
    durable::{
        bytes::{Reader, Writer},
        record::{Generation, Subscription},
    },
};

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FilterRecord<'a> {
    pub(super) filter: &'a str,
    pub(super) generation: Generation,
    pub(super) subscription: Subscription,
    /// Seconds since the Unix epoch.
    pub(super) created: u32,
}

/// See the module. A filter has a record for each generation that wrote one.
#[derive(Debug)]
pub(super) enum Filters {
    /// One after another, in bytes.
    Few(Box<[u8]>),
    Many(Box<Many>),
}

type Many = BTreeMap<(Box<str>, Generation), (Subscription, u32)>;

/// Up to here it is as quick to read all as to search.
const FEW: usize = 8;

impl Default for Filters {
    fn default() -> Self {
        Filters::Few(Box::default())
    }
}

impl Filters {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Filters::Few(packed) => packed.is_empty(),
            Filters::Many(many) => many.is_empty(),
        }
    }

    pub(super) fn iter(&self) -> Iter<'_> {
        match self {
            Filters::Few(packed) => Iter::of_packed(packed),
            Filters::Many(many) => Iter::Many(many.iter()),
        }
    }

    pub(super) fn get(&self, filter: &str, generation: Generation) -> Option<FilterRecord<'_>> {
        self.of(filter).find(|record| record.generation == generation)
    }

    /// The record of a filter that counts.
    pub(super) fn highest(&self, filter: &str) -> Option<FilterRecord<'_>> {
        self.of(filter).max_by_key(|record| record.generation)
    }

    /// Keeps this record, in the place of that with the same filter and generation.
    pub(super) fn put(&mut self, record: FilterRecord<'_>) {
        let others = match self {
            Filters::Many(many) => {
                let key = (record.filter.into(), record.generation);
                many.insert(key, (record.subscription, record.created));
                return;
            }
            Filters::Few(packed) => Iter::of_packed(packed),
        };
        let is_other = |other: &FilterRecord<'_>| !other.is_of(record.filter, record.generation);
        if others.clone().filter(is_other).count() < FEW {
            *self = Filters::Few(pack(others.filter(is_other).chain([record])));
            return;
        }
        let all = others
            .chain([record])
            .map(|record| ((record.filter.into(), record.generation), (record.subscription, record.created)));
        *self = Filters::Many(Box::new(all.collect()));
    }

    /// True if it was there.
    pub(super) fn remove(&mut self, filter: &str, generation: Generation) -> bool {
        if self.get(filter, generation).is_none() {
            return false;
        }
        match self {
            Filters::Many(many) => drop(many.remove(&(filter.into(), generation))),
            Filters::Few(packed) => {
                *packed = pack(Iter::of_packed(packed).filter(|record| !record.is_of(filter, generation)));
            }
        }
        if self.is_empty() {
            *self = Filters::default();
        }
        true
    }

    fn of<'a>(&'a self, filter: &str) -> impl Iterator<Item = FilterRecord<'a>> {
        let records = match self {
            Filters::Few(packed) => Iter::of_packed(packed),
            Filters::Many(many) => {
                Iter::Of(many.range((filter.into(), 0)..=(filter.into(), Generation::MAX)))
            }
        };
        records.filter(move |record| record.filter == filter)
    }
}

/// Each record's numbers are written as what differs from the one before: those of a device that subscribes to a few things at
/// once are about the same.
#[derive(Clone, Copy, Default)]
pub(super) struct Before {
    generation: u64,
    sequence: u64,
}

fn pack<'a>(records: impl Iterator<Item = FilterRecord<'a>>) -> Box<[u8]> {
    let (mut packed, mut before) = (Writer(Vec::new()), Before::default());
    records.for_each(|record| before = record.pack(before, &mut packed));
    // A copy: of the vector's own memory the allocator cuts nothing off unless it is more than half.
    Box::from(&*packed.0)
}

impl<'a> FilterRecord<'a> {
    fn is_of(&self, filter: &str, generation: Generation) -> bool {
        self.generation == generation && self.filter == filter
    }

    fn pack(&self, before: Before, out: &mut Writer) -> Before {
        let Subscription { sequence, on, qos, no_local, retain_as_published, id } = self.subscription;
        let flags = [on, no_local, retain_as_published, id.is_some()];
        let flags = flags.iter().fold(qos as u8, |bits, flag| bits << 1 | u8::from(*flag));
        out.u8(flags);
        out.small(self.generation ^ before.generation);
        out.small(sequence ^ before.sequence);
        // Mostly it is made soon after its generation began.
        out.small((self.generation / 1000) ^ u64::from(self.created));
        if let Some(id) = id {
            out.u32(id);
        }
        out.small(self.filter.len() as u64);
        out.put(self.filter.as_bytes());
        Before { generation: self.generation, sequence }
    }

    fn unpack(from: &mut Reader<'a>, before: &mut Before) -> Option<FilterRecord<'a>> {
        let flags = from.u8()?;
        let has = |bit: u8| flags >> bit & 1 == 1;
        let generation = from.small()? ^ before.generation;
        let sequence = from.small()? ^ before.sequence;
        *before = Before { generation, sequence };
        let created = u32::try_from(from.small()? ^ (generation / 1000)).ok()?;
        let id = if has(0) { Some(from.u32()?) } else { None };
        let subscription = Subscription {
            sequence,
            on: has(3),
            qos: QoS::try_from(flags >> 4).ok()?,
            no_local: has(2),
            retain_as_published: has(1),
            id,
        };
        let length = usize::try_from(from.small()?).ok()?;
        let filter = std::str::from_utf8(from.take(length)?).ok()?;
        Some(FilterRecord { filter, generation, subscription, created })
    }
}

#[derive(Clone)]
pub(super) enum Iter<'a> {
    Few(Reader<'a>, Before),
    Many(btree_map::Iter<'a, (Box<str>, Generation), (Subscription, u32)>),
    Of(btree_map::Range<'a, (Box<str>, Generation), (Subscription, u32)>),
}

impl<'a> Iter<'a> {
    fn of_packed(packed: &'a [u8]) -> Iter<'a> {
        Iter::Few(Reader(packed), Before::default())
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = FilterRecord<'a>;

    fn next(&mut self) -> Option<FilterRecord<'a>> {
        let ((filter, generation), (subscription, created)) = match self {
            Iter::Few(packed, before) => return FilterRecord::unpack(packed, before),
            Iter::Many(many) => many.next()?,
            Iter::Of(some) => some.next()?,
        };
        let (generation, subscription, created) = (*generation, *subscription, *created);
        Some(FilterRecord { filter, generation, subscription, created })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_random::Random;

    #[test]
    fn what_was_put_is_found_however_many_there_are() {
        for seed in 1..=30 {
            let mut random = Random::new(seed);
            let (mut filters, mut model) = (Filters::default(), BTreeMap::new());
            let most = if seed % 2 == 0 { FEW / 2 } else { 4 * FEW };
            for step in 0..400 {
                let name = format!("f/{}", random.below(most));
                let generation = random.below(2) as u64;
                let grows = random.below(10) < if step < 250 { 8 } else { 2 };
                if !grows {
                    let was_there = model.remove(&(name.clone(), generation)).is_some();
                    assert_eq!(filters.remove(&name, generation), was_there);
                    continue;
                }
                let subscription = Subscription {
                    sequence: step,
                    on: random.below(2) == 0,
                    qos: QoS::try_from(random.below(3) as u8).unwrap(),
                    no_local: random.below(2) == 0,
                    retain_as_published: random.below(2) == 0,
                    id: (random.below(2) == 0).then_some(random.below(1 << 28) as u32),
                };
                let created = random.below(1 << 30) as u32;
                filters.put(FilterRecord { filter: &name, generation, subscription, created });
                model.insert((name, generation), (subscription, created));
                let mut all: Vec<_> = filters.iter().collect();
                all.sort_by_key(|record| (record.filter.to_owned(), record.generation));
                let expected: Vec<_> = model
                    .iter()
                    .map(|((filter, generation), (subscription, created))| FilterRecord {
                        filter,
                        generation: *generation,
                        subscription: *subscription,
                        created: *created,
                    })
                    .collect();
                assert_eq!(all, expected, "seed {seed} step {step}");
                for record in expected {
                    let highest = model.contains_key(&(record.filter.to_owned(), 1)).into();
                    assert_eq!(filters.highest(record.filter).map(|record| record.generation), Some(highest));
                    assert_eq!(filters.get(record.filter, record.generation), Some(record));
                }
            }
        }
    }
}
