//! Filters and topics for property tests, the same for the same seed, few enough to meet each other.

use crate::topic::{Filter, Topic};

pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// A number below `bound`, which is not 0 (splitmix64).
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % bound as u64) as usize
    }

    pub(crate) fn topic(&mut self) -> Topic {
        loop {
            if let Ok(topic) = Topic::parse(&self.levels(false)) {
                return topic;
            }
        }
    }

    pub(crate) fn filter(&mut self) -> Filter {
        loop {
            if let Ok(filter) = Filter::parse(&self.levels(true)) {
                return filter;
            }
        }
    }

    /// Up to four levels out of twenty and, in filters, the wildcards; now and then empty or with a `$`.
    fn levels(&mut self, wildcards: bool) -> String {
        let count = 1 + self.below(4);
        let mut levels = Vec::new();
        for _ in 0..count {
            levels.push(match self.below(if wildcards { 16 } else { 12 }) {
                0 => String::new(),
                1 => "$SYS".to_owned(),
                2 => "$".to_owned(),
                // Enough to make a node's children a map and a row again.
                3 => format!("n{}", self.below(16)),
                4..6 => "a".to_owned(),
                6..8 => "b".to_owned(),
                8..10 => "c".to_owned(),
                10..12 => "é".to_owned(),
                12..15 => "+".to_owned(),
                _ => "#".to_owned(),
            });
        }
        levels.join("/")
    }
}
