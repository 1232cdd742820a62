//! The instance's limits as a running node holds them: publish rate, connections, and what is said about it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use mqtt_proto::message::Millis;
use tokio::time::Instant;

/// A rate may run ahead by what it allows in this time, in nanoseconds, so that batches pass undivided.
const BURST_NANOS: u64 = 100_000_000;

/// How often a trouble that goes on is said.
const EVERY: Duration = Duration::from_secs(60);

/// Slows down to a rate whatever is reckoned by it, all together. Nothing is ever refused.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    /// When all that was taken in is paid for, in nanoseconds of the caller's clock.
    paid_at: AtomicU64,
    /// The rate that it was reckoned by: a new one begins without debt.
    per_second: AtomicU64,
}

impl Rate {
    /// Takes so many into account, and says how long to wait before the next.
    /// `per_second` 0 means no cap.
    pub(crate) fn spend(&self, count: u64, per_second: u64, now_nanos: u64) -> Option<Duration> {
        if per_second == 0 || count == 0 {
            return None;
        }
        let cost = count.saturating_mul(1_000_000_000) / per_second;
        if self.per_second.swap(per_second, Ordering::Relaxed) != per_second {
            self.paid_at.store(now_nanos, Ordering::Relaxed);
        }
        let mut paid_at = self.paid_at.load(Ordering::Relaxed);
        loop {
            let next = paid_at.max(now_nanos).saturating_add(cost);
            match self.paid_at.compare_exchange_weak(paid_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    // The clock may have begun just now: the burst is added here, where it can't be cut off at zero.
                    let wait = next.saturating_sub(now_nanos.saturating_add(BURST_NANOS));
                    return (wait > 0).then(|| Duration::from_nanos(wait));
                }
                Err(current) => paid_at = current,
            }
        }
    }
}

/// Counts the connections in use.
#[derive(Debug, Default)]
pub(crate) struct Connections(AtomicU64);

impl Connections {
    /// Takes a place unless all are taken.
    pub(crate) fn enter(&self, limit: u64) -> bool {
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < limit).then_some(n + 1)).is_ok()
    }

    pub(crate) fn leave(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Counts sockets from accept to close, refused and departing ones included.
#[derive(Debug, Default)]
pub(crate) struct Sockets(AtomicU64);

/// One open socket; closed when dropped.
pub(crate) struct Open<'a>(&'a Sockets);

impl Sockets {
    pub(crate) fn open(&self) -> Open<'_> {
        self.0.fetch_add(1, Ordering::AcqRel);
        Open(self)
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What is said at most once a second after a first burst of lines, however often it happens.
#[derive(Debug, Default)]
pub(crate) struct Notice<const BURST: u64 = 20> {
    /// When all lines that were written are accounted for.
    until: AtomicU64,
    unsaid: AtomicU64,
}

impl<const BURST: u64> Notice<BURST> {
    /// Whether to say it now; with the number of times that it was not said before.
    pub(crate) fn say(&self, now: Millis) -> Option<u64> {
        let earliest = now.saturating_sub(BURST * 1000);
        let said = self
            .until
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |until| {
                let next = until.max(earliest) + 1000;
                (next <= now).then_some(next)
            })
            .is_ok();
        if said {
            return Some(self.unsaid.swap(0, Ordering::AcqRel));
        }
        self.unsaid.fetch_add(1, Ordering::AcqRel);
        None
    }
}

/// A trouble that goes on is said when it begins, when it changes, and every minute.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Option<(String, Instant)>);

impl Trouble {
    /// Whether to say this line now.
    pub(crate) fn is_due(&mut self, line: &str) -> bool {
        let due = self.0.as_ref().is_none_or(|(last, at)| last != line || at.elapsed() >= EVERY);
        if due {
            self.0 = Some((line.to_owned(), Instant::now()));
        }
        due
    }
}

/// Writes one log line about something a client did, unless its like has been written too often lately.
macro_rules! notice {
    ($node:expr, $kind:ident, $($fields:tt)*) => {
        if let Some(unsaid) = $node.notices.$kind.say($node.now()) {
            if unsaid > 0 {
                tracing::warn!(unsaid, $($fields)*);
            } else {
                tracing::warn!($($fields)*);
            }
        }
    };
}
pub(crate) use notice;

/// One [`Notice`] for each kind of line.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    pub(crate) refused_connect: Notice,
    pub(crate) connection_limit: Notice<1>,
    pub(crate) busy_login: Notice<1>,
    pub(crate) tls_handshake: Notice<1>,
    pub(crate) ws_handshake: Notice<1>,
    pub(crate) proxy: Notice<1>,
    pub(crate) connect_rate: Notice<1>,
    pub(crate) half_open: Notice<1>,
    pub(crate) address_limit: Notice<1>,
    pub(crate) failed_login: Notice<1>,
    pub(crate) memory: Notice<1>,
    pub(crate) shed: Notice<1>,
    pub(crate) refused_publish: Notice,
    pub(crate) refused_subscribe: Notice,
    pub(crate) subscription_limit: Notice<1>,
    pub(crate) publish_rate: Notice<1>,
    pub(crate) violation: Notice,
    pub(crate) slow_device: Notice<1>,
    pub(crate) bridge: Notice,
    pub(crate) pass_on: Notice<1>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishers_over_the_rate_wait_for_what_they_sent_beyond_the_burst() {
        let rate = Rate::default();
        let second = 1_000_000_000;
        // 1000/s lets 100 messages pass at once; the 101st costs a millisecond.
        assert_eq!(rate.spend(100, 1000, 10 * second), None);
        assert_eq!(rate.spend(1, 1000, 10 * second), Some(Duration::from_millis(1)));
        assert_eq!(rate.spend(99, 1000, 10 * second), Some(Duration::from_millis(100)));
        assert_eq!(rate.spend(1, 1000, 20 * second), None);
    }

    #[test]
    fn the_burst_is_there_when_the_clock_has_only_begun() {
        let rate = Rate::default();
        assert_eq!(rate.spend(100, 1000, 0), None);
        assert_eq!(rate.spend(1, 1000, 0), Some(Duration::from_millis(1)));
    }

    #[test]
    fn a_notice_is_said_in_a_burst_and_then_once_a_second_with_what_went_unsaid() {
        let notice = Notice::<20>::default();
        let said = (0..50).filter(|_| notice.say(1_000_000).is_some()).count();
        assert_eq!(said, 20);
        assert_eq!(notice.say(1_001_000), Some(30));
        assert_eq!(notice.say(1_001_500), None);
        assert_eq!(notice.say(1_002_000), Some(1));
    }

    #[test]
    fn the_connection_over_the_limit_gets_no_place() {
        let connections = Connections::default();
        assert!(connections.enter(2) && connections.enter(2) && !connections.enter(2));
        connections.leave();
        assert!(connections.enter(2));
    }
}
