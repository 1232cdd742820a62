//! Passwords that were wrong: who keeps trying from one address with one user name is slowed down.
//!
//! A few failures cost nothing. Beyond them the attempts of this address and user are made one a second, whether right or
//! wrong, for a right guess must not be known sooner; what would wait too long is turned away. Others notice nothing.

use std::{collections::HashMap, hash::BuildHasher, net::IpAddr, time::Duration};

use foldhash::fast::RandomState;
use mqtt_proto::message::Millis;
use parking_lot::Mutex;

use super::addresses::one_host;

/// Failures that cost nothing; one is forgotten a second.
const FREE: u64 = 10;
/// From one attempt to the next.
const PAUSE: Millis = 1000;
/// The longest that an attempt waits for its turn.
const PATIENCE: Millis = 8000;
/// Addresses and users that are remembered.
const MOST: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Failures {
    hasher: RandomState,
    /// When all failures are paid for.
    paid_at: Mutex<HashMap<u64, Millis>>,
}

/// One address and user name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suspect(u64);

/// More attempts wait than can be made in the time that one waits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

impl Failures {
    pub(crate) fn suspect(&self, address: IpAddr, user: &str) -> Suspect {
        Suspect(self.hasher.hash_one((one_host(address), user)))
    }

    /// How long an attempt must wait; it has its turn then, and no other has.
    pub(crate) fn turn(&self, suspect: Suspect, now: Millis) -> Result<Option<Duration>, TooMany> {
        let mut table = self.paid_at.lock();
        let Some(paid_at) = table.get_mut(&suspect.0).filter(|paid_at| **paid_at > now) else {
            return Ok(None);
        };
        let wait = *paid_at - now;
        if wait > PATIENCE {
            return Err(TooMany);
        }
        *paid_at += PAUSE;
        Ok(Some(Duration::from_millis(wait)))
    }

    /// The password was wrong, at an attempt that had not waited.
    pub(crate) fn note(&self, suspect: Suspect, now: Millis) {
        let mut table = self.paid_at.lock();
        let earliest = now.saturating_sub(FREE * PAUSE);
        if table.len() >= MOST && !table.contains_key(&suspect.0) {
            table.retain(|_, paid_at| *paid_at > earliest);
            if table.len() >= MOST
                && let Some(any) = table.keys().next().copied()
            {
                table.remove(&any);
            }
        }
        let paid_at = table.entry(suspect.0).or_insert(earliest);
        *paid_at = earliest.max(*paid_at) + PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_000_000;

    #[test]
    fn failures_beyond_the_free_ones_make_attempts_wait_for_each_other() {
        let failures = Failures::default();
        let of = |address: &str, user| failures.suspect(address.parse().unwrap(), user);
        let suspect = of("192.0.2.1", "fleet");
        for _ in 0..FREE {
            assert_eq!(failures.turn(suspect, NOW), Ok(None));
            failures.note(suspect, NOW);
        }
        assert_eq!(failures.turn(suspect, NOW), Ok(None));
        failures.note(suspect, NOW);
        let turns: Vec<_> = (0..10).map(|_| failures.turn(suspect, NOW)).collect();
        let seconds = |n| Ok(Some(Duration::from_secs(n)));
        assert_eq!(turns[..8], (1..=8).map(seconds).collect::<Vec<_>>());
        assert_eq!(turns[8..], [Err(TooMany), Err(TooMany)]);
        assert_eq!(failures.turn(of("192.0.2.1", "other"), NOW), Ok(None));
        assert_eq!(failures.turn(of("192.0.2.2", "fleet"), NOW), Ok(None));
        assert_eq!(failures.turn(suspect, NOW + 60_000), Ok(None), "it is forgotten");
    }

    #[test]
    fn the_table_stays_bounded() {
        let failures = Failures::default();
        for number in 0..3 * MOST {
            failures.note(failures.suspect([192, 0, 2, 1].into(), &number.to_string()), NOW);
        }
        assert_eq!(failures.paid_at.lock().len(), MOST);
        let late = NOW + 60_000;
        failures.note(failures.suspect([192, 0, 2, 1].into(), "x"), late);
        assert_eq!(failures.paid_at.lock().len(), 1, "who has paid makes room");
    }
}
