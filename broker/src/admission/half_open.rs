//! Connections whose CONNECT is awaited: how many there may be, and who gives way.
//!
//! The oldest does: an honest device is through in a moment, and who holds a place for nothing is the oldest soon. So a
//! flood of silent connections keeps no device out, as a plain cap would.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(super) struct HalfOpen(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    /// In the order of their coming.
    places: BTreeMap<u64, Arc<Notify>>,
}

/// One of them; given back when dropped.
pub(crate) struct Place {
    number: u64,
    called: Arc<Notify>,
    all: Arc<HalfOpen>,
}

/// It had to give way.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Evicted;

impl HalfOpen {
    /// A place for one more, of at most `most`; true if the oldest had to give way.
    pub(super) fn enter(self: &Arc<Self>, most: usize) -> (Place, bool) {
        let called = Arc::new(Notify::new());
        let mut inner = self.0.lock();
        let oldest = if inner.places.len() >= most.max(1) { inner.places.pop_first() } else { None };
        let number = inner.next;
        inner.next += 1;
        inner.places.insert(number, called.clone());
        drop(inner);
        let gave_way = oldest.map(|(_, oldest)| oldest.notify_one()).is_some();
        (Place { number, called, all: self.clone() }, gave_way)
    }
}

impl Place {
    /// Does this unless the place has to be given up before it is done.
    pub(crate) async fn hold<F: Future>(&self, work: F) -> Result<F::Output, Evicted> {
        tokio::select! {
            biased;
            () = self.called.notified() => Err(Evicted),
            done = work => Ok(done),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.0.lock().places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn the_oldest_gives_way_to_a_newcomer_and_a_place_given_back_is_free() {
        let all = Arc::new(HalfOpen::default());
        let (first, gave_way) = all.enter(2);
        let (second, _) = all.enter(2);
        assert!(!gave_way);
        let (third, gave_way) = all.enter(2);
        assert!(gave_way);
        assert_eq!(first.hold(pending::<()>()).await, Err(Evicted));
        assert_eq!((second.hold(ready(2)).await, third.hold(ready(3)).await), (Ok(2), Ok(3)));
        drop(second);
        let (_fourth, gave_way) = all.enter(2);
        assert!(!gave_way);
        assert_eq!(third.hold(ready(3)).await, Ok(3));
    }
}
