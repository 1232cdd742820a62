//! How much may wait for a store: owns the count of what was taken in and has no outcome yet, and its soft bound.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Bytes and records that were taken in and not yet told an outcome. Nothing is refused here: whoever takes work
/// from a socket asks [`Room::has_some`] first.
pub(super) struct Room {
    bytes: AtomicUsize,
    records: AtomicUsize,
    limit_bytes: usize,
    limit_records: usize,
    full: AtomicBool,
    freed: Notify,
}

impl Room {
    pub(super) fn new(limit_bytes: usize, limit_records: usize) -> Room {
        Room {
            bytes: AtomicUsize::new(0),
            records: AtomicUsize::new(0),
            limit_bytes,
            limit_records,
            full: AtomicBool::new(false),
            freed: Notify::new(),
        }
    }

    pub(super) fn take(&self, bytes: usize) {
        let bytes = self.bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        let records = self.records.fetch_add(1, Ordering::SeqCst) + 1;
        if bytes >= self.limit_bytes || records >= self.limit_records {
            self.full.store(true, Ordering::SeqCst);
            // What was freed since it was counted did not see that it is full, and may have been the last.
            self.wake();
        }
    }

    pub(super) fn free(&self, bytes: usize, records: usize) {
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        self.records.fetch_sub(records, Ordering::SeqCst);
        self.wake();
    }

    /// Well below the bound before anyone is woken, so that they are not woken for one record each.
    fn wake(&self) {
        let low = || {
            self.bytes.load(Ordering::SeqCst) <= self.limit_bytes / 4 * 3
                && self.records.load(Ordering::SeqCst) <= self.limit_records / 4 * 3
        };
        if self.full.load(Ordering::SeqCst) && low() {
            self.full.store(false, Ordering::SeqCst);
            self.freed.notify_waiters();
        }
    }

    pub(super) fn has_some(&self) -> bool {
        !self.full.load(Ordering::Acquire)
    }

    pub(super) async fn wait(&self) {
        loop {
            let freed = self.freed.notified();
            if self.has_some() {
                return;
            }
            freed.await;
        }
    }

    /// See [`super::Log::figures`].
    pub(super) fn figures(&self) -> [(&'static str, u64); 2] {
        let figure = |of: &AtomicUsize| of.load(Ordering::Relaxed) as u64;
        [("log_waiting_bytes", figure(&self.bytes)), ("log_waiting_records", figure(&self.records))]
    }

    #[cfg(test)]
    pub(super) fn records(&self) -> usize {
        self.records.load(Ordering::Relaxed)
    }
}
