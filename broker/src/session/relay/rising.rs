//! A number that only rises, and those who wait for that. They are woken in the order in which they came, so that the same
//! run of a simulation is the same again; the order of a `watch` is left to chance.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct Rising {
    number: AtomicU64,
    risen: Notify,
}

impl Rising {
    pub(crate) fn new(number: u64) -> Rising {
        Rising { number: number.into(), risen: Notify::new() }
    }

    pub(crate) fn get(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// One that is not above it changes nothing.
    pub(crate) fn raise(&self, number: u64) {
        if self.number.fetch_max(number, Ordering::AcqRel) < number {
            self.risen.notify_waiters();
        }
    }

    /// Returns it once it is at least this; nothing is lost if nobody waits any more.
    pub(crate) async fn reach(&self, number: u64) -> u64 {
        loop {
            let risen = self.risen.notified();
            let now = self.get();
            if now >= number {
                return now;
            }
            risen.await;
        }
    }
}
