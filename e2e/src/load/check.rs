//! What each payload carries, and the proof drawn from it: nothing lost, repeated, reordered or changed.

use std::ops::Range;

use super::report::Checks;

/// The first bytes of each payload: who sent it, which of theirs it is, and when it was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) publisher: u32,
    pub(super) number: u32,
    /// Nanoseconds since the run's clock began.
    pub(super) due: u64,
}

impl Stamp {
    pub(super) const BYTES: usize = 16;

    pub(super) fn push(self, out: &mut Vec<u8>) {
        let publisher = u128::from(self.publisher) << 96;
        let number = u128::from(self.number) << 64;
        out.extend_from_slice(&(publisher | number | u128::from(self.due)).to_be_bytes());
    }

    /// The stamp and the filler behind it; `None` when the payload is too short to be one of ours.
    pub(super) fn cut(payload: &[u8]) -> Option<(Self, &[u8])> {
        let (stamp, filler) = payload.split_first_chunk::<{ Self::BYTES }>()?;
        let bits = u128::from_be_bytes(*stamp);
        Some((Self { publisher: (bits >> 96) as u32, number: (bits >> 64) as u32, due: bits as u64 }, filler))
    }
}

/// The bytes behind the stamp, the same in each message of a run.
pub(super) fn filler(payload: usize) -> Vec<u8> {
    (Stamp::BYTES..payload).map(|at| (at % 251) as u8).collect()
}

/// What one subscriber has seen of the publishers it is meant to hear.
pub(super) struct Seen {
    first: u32,
    streams: Vec<Stream>,
}

impl Seen {
    /// Expects messages of `publishers` and of no one else.
    pub(super) fn new(publishers: Range<u32>) -> Self {
        Self { first: publishers.start, streams: publishers.map(|_| Stream::default()).collect() }
    }

    /// Takes one payload, counts what is wrong with it in `checks`, and says whose and from when it is.
    /// The second value is how many messages of that publisher this one accounts for: more than one when it
    /// leaves a gap, none when it was accounted for before.
    pub(super) fn take(
        &mut self,
        payload: &[u8],
        filler: &[u8],
        checks: &mut Checks,
    ) -> Option<(Stamp, u32)> {
        let Some((stamp, behind)) = Stamp::cut(payload) else {
            checks.corrupt += 1;
            return None;
        };
        if behind != filler {
            checks.corrupt += 1;
            return None;
        }
        let stream = stamp.publisher.checked_sub(self.first).and_then(|at| self.streams.get_mut(at as usize));
        let Some(stream) = stream else {
            checks.misrouted += 1;
            return None;
        };
        let accounted = match stream.take(stamp.number) {
            Arrival::Next => 1,
            Arrival::Ahead { missing } => missing + 1,
            Arrival::Late => {
                checks.disorder += 1;
                0
            }
            Arrival::Again => {
                checks.duplicates += 1;
                0
            }
        };
        Some((stamp, accounted))
    }

    /// How many messages never came, of those that each publisher has `sent`.
    pub(super) fn lost(&self, sent: impl Fn(u32) -> u32) -> u64 {
        (self.first..).zip(&self.streams).map(|(publisher, stream)| stream.lost(sent(publisher))).sum()
    }
}

/// One publisher's messages as one subscriber sees them.
#[derive(Default)]
struct Stream {
    next: u32,
    /// Numbers below `next` that have not come, in ascending order.
    missing: Vec<Range<u32>>,
}

enum Arrival {
    Next,
    Ahead { missing: u32 },
    Late,
    Again,
}

impl Stream {
    fn take(&mut self, number: u32) -> Arrival {
        if number == self.next {
            self.next += 1;
            return Arrival::Next;
        }
        if number > self.next {
            let missing = number - self.next;
            self.missing.push(self.next..number);
            self.next = number.saturating_add(1);
            return Arrival::Ahead { missing };
        }
        let Some(at) = self.missing.iter().position(|gap| gap.contains(&number)) else {
            return Arrival::Again;
        };
        let gap = self.missing.remove(at);
        let halves = [gap.start..number, number + 1..gap.end];
        self.missing.splice(at..at, halves.into_iter().filter(|half| !half.is_empty()));
        Arrival::Late
    }

    fn lost(&self, sent: u32) -> u64 {
        let gaps: u64 = self.missing.iter().map(|gap| gap.len() as u64).sum();
        gaps + u64::from(sent.saturating_sub(self.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays messages (publisher, number) to a subscriber of publishers 7 and 8, which sent `sent` each.
    fn play(arrivals: &[(u32, u32)], sent: u32) -> Checks {
        let filler = filler(32);
        let (mut seen, mut checks) = (Seen::new(7..9), Checks::default());
        for &(publisher, number) in arrivals {
            let mut payload = Vec::new();
            Stamp { publisher, number, due: 5 }.push(&mut payload);
            payload.extend_from_slice(&filler);
            seen.take(&payload, &filler, &mut checks);
        }
        checks.loss = seen.lost(|_| sent);
        checks
    }

    #[test]
    fn loss_duplicates_and_disorder_are_each_told_apart() {
        let check = |case: &str, arrivals: &[(u32, u32)], sent: u32, want: Checks| {
            assert_eq!(play(arrivals, sent), want, "{case}");
        };
        let fine = Checks::default();
        check("all in order", &[(7, 0), (8, 0), (7, 1), (8, 1)], 2, fine);
        check("nothing sent", &[], 0, fine);
        check("nothing came", &[], 3, Checks { loss: 6, ..fine });
        check("a gap", &[(7, 0), (7, 3), (8, 0), (8, 1), (8, 2), (8, 3)], 4, Checks { loss: 2, ..fine });
        check("the tail", &[(7, 0), (7, 1), (8, 0)], 2, Checks { loss: 1, ..fine });
        check("twice", &[(7, 0), (7, 0), (8, 0)], 1, Checks { duplicates: 1, ..fine });
        check("swapped", &[(7, 1), (7, 0), (8, 0), (8, 1)], 2, Checks { disorder: 1, ..fine });
        check(
            "late into a gap, then again",
            &[(7, 0), (7, 4), (7, 2), (7, 2), (8, 0), (8, 1), (8, 2), (8, 3), (8, 4)],
            5,
            Checks { loss: 2, disorder: 1, duplicates: 1, ..fine },
        );
        check("someone else's", &[(6, 0), (9, 0), (7, 0), (8, 0)], 1, Checks { misrouted: 2, ..fine });
    }

    #[test]
    fn a_changed_or_short_payload_counts_as_corrupt() {
        let filler = filler(20);
        let check = |payload: &[u8], corrupt: u64| {
            let mut checks = Checks::default();
            Seen::new(0..1).take(payload, &filler, &mut checks);
            assert_eq!(checks, Checks { corrupt, ..Checks::default() }, "{payload:?}");
        };
        let mut good = vec![0; Stamp::BYTES];
        good.extend_from_slice(&filler);
        check(&good, 0);
        check(&good[..19], 1);
        check(&good[..15], 1);
        check(&[], 1);
        good[17] ^= 1;
        check(&good, 1);
    }

    #[test]
    fn a_stamp_comes_back_as_it_was_written() {
        for stamp in [
            Stamp { publisher: 0, number: 0, due: 0 },
            Stamp { publisher: u32::MAX, number: 1, due: u64::MAX },
            Stamp { publisher: 3, number: u32::MAX, due: 1 << 40 },
        ] {
            let mut out = Vec::new();
            stamp.push(&mut out);
            out.push(9);
            assert_eq!(Stamp::cut(&out), Some((stamp, &[9][..])));
        }
    }

    #[test]
    fn a_message_that_leaves_a_gap_accounts_for_the_gap() {
        let (mut seen, mut checks) = (Seen::new(0..1), Checks::default());
        let mut take = |number| {
            let mut payload = Vec::new();
            Stamp { publisher: 0, number, due: 0 }.push(&mut payload);
            seen.take(&payload, &[], &mut checks).map(|(_, accounted)| accounted)
        };
        assert_eq!([take(0), take(3), take(1), take(3)], [Some(1), Some(3), Some(0), Some(0)]);
    }
}
