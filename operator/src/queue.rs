//! What is to be reconciled, and when: one entry an object, however many reasons there are.
//!
//! Promises: an object is never reconciled twice at a time; what comes up meanwhile is seen to afterwards; a change is
//! taken up after [`DEBOUNCE`], however many follow; failures put an object off, each for longer and by chance, and
//! delay no other.

use std::{collections::HashMap, time::Duration};

use mqtt_operator_api::render::ObjectName;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// Changes that come within this time are taken up together.
const DEBOUNCE: Duration = Duration::from_millis(100);
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct Queue {
    entries: Mutex<Entries>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Entries {
    due: HashMap<ObjectName, Instant>,
    /// When the first change was seen that is not taken up yet.
    seen: HashMap<ObjectName, Instant>,
    /// With when the first change was seen that each takes up; none: it is no change that it is for.
    running: HashMap<ObjectName, Option<Instant>>,
    failures: HashMap<ObjectName, u32>,
}

/// How a reconcile ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Nothing to do until something changes, or until the resync.
    Settled,
    /// To be looked at again after this time.
    Again(Duration),
    /// It did not work; again with back-off.
    Failed,
}

impl Queue {
    /// Something has changed.
    pub fn add(&self, object: ObjectName) {
        self.entries.lock().seen.entry(object.clone()).or_insert_with(Instant::now);
        self.add_after(object, DEBOUNCE);
    }

    /// Due after this time, or earlier where it is so already.
    pub fn add_after(&self, object: ObjectName, after: Duration) {
        self.entries.lock().add(object, Instant::now() + after);
        self.changed.notify_one();
    }

    /// Waits for the next object that is due.
    pub async fn next(&self) -> ObjectName {
        loop {
            let changed = self.changed.notified();
            let earliest = {
                let mut entries = self.entries.lock();
                match entries.earliest() {
                    Some((object, due)) if due <= Instant::now() => {
                        entries.due.remove(&object);
                        let seen = entries.seen.remove(&object);
                        entries.running.insert(object.clone(), seen);
                        // Another worker may find more.
                        self.changed.notify_one();
                        return object;
                    }
                    earliest => earliest.map(|(_, due)| due),
                }
            };
            match earliest {
                Some(due) => tokio::select! {
                    () = sleep_until(due) => {}
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }

    /// When the first change was seen that the reconcile which is under way takes up.
    pub fn seen(&self, object: &ObjectName) -> Option<Instant> {
        self.entries.lock().running.get(object).copied().flatten()
    }

    /// The object that [`Queue::next`] gave out is done with.
    pub fn done(&self, object: &ObjectName, done: Done) {
        let mut entries = self.entries.lock();
        let seen = entries.running.remove(object).flatten();
        let after = match done {
            Done::Settled | Done::Again(_) => {
                entries.failures.remove(object);
                if let Done::Again(after) = done { Some(after) } else { None }
            }
            Done::Failed => {
                let failures = entries.failures.entry(object.clone()).or_default();
                *failures = failures.saturating_add(1);
                let after = back_off(*failures, fastrand::f64());
                // What it was for is still to be done.
                entries.seen.extend(seen.map(|seen| (object.clone(), seen)));
                Some(after)
            }
        };
        if let Some(after) = after {
            // Whatever is due earlier, such as a change, may be what it takes.
            entries.add(object.clone(), Instant::now() + after);
        }
        drop(entries);
        self.changed.notify_one();
    }

    /// How many are due by now and not yet taken up, and how many are being reconciled.
    pub fn load(&self) -> (usize, usize) {
        let (entries, now) = (self.entries.lock(), Instant::now());
        (entries.due.values().filter(|due| **due <= now).count(), entries.running.len())
    }
}

impl Entries {
    fn add(&mut self, object: ObjectName, at: Instant) {
        let due = self.due.entry(object).or_insert(at);
        *due = at.min(*due);
    }

    fn earliest(&self) -> Option<(ObjectName, Instant)> {
        let idle = self.due.iter().filter(|(object, _)| !self.running.contains_key(object));
        idle.min_by_key(|(_, due)| **due).map(|(object, due)| (object.clone(), *due))
    }
}

/// Twice as long each time, between half and all of it.
fn back_off(failures: u32, chance: f64) -> Duration {
    let longest =
        FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(LAST_RETRY);
    longest.mul_f64(0.5 + chance / 2.0)
}

#[cfg(test)]
mod tests {
    use mqtt_operator_api::Kind;
    use tokio::time::timeout;

    use super::*;

    fn object(name: &str) -> ObjectName {
        ObjectName { kind: Kind::MqttInstance, namespace: "plant".into(), name: name.into() }
    }

    async fn none_for(queue: &Queue, time: Duration) {
        assert_eq!(timeout(time, queue.next()).await.ok(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_taken_up_together_and_never_twice_at_a_time() {
        let queue = Queue::default();
        for _ in 0..5 {
            queue.add(object("a"));
        }
        assert_eq!(queue.next().await, object("a"));
        queue.add(object("a"));
        queue.add(object("b"));
        assert_eq!(queue.next().await, object("b"), "a is being reconciled");
        none_for(&queue, Duration::from_secs(60)).await;
        queue.done(&object("a"), Done::Settled);
        assert_eq!(queue.next().await, object("a"), "what came up meanwhile");
        queue.done(&object("a"), Done::Settled);
        queue.done(&object("b"), Done::Again(Duration::from_secs(5)));
        none_for(&queue, Duration::from_secs(4)).await;
        assert_eq!(queue.next().await, object("b"));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_put_an_object_off_for_longer_each_time_but_not_a_change_of_it() {
        let queue = Queue::default();
        queue.add(object("a"));
        let mut last = Duration::ZERO;
        for _ in 0..10 {
            let before = Instant::now();
            let next = queue.next().await;
            let waited = before.elapsed();
            assert!(
                waited <= LAST_RETRY + DEBOUNCE && waited >= last.mul_f64(0.5),
                "{waited:?} after {last:?}"
            );
            last = waited;
            queue.done(&next, Done::Failed);
        }
        assert!(last > Duration::from_secs(25), "{last:?}");
        queue.add(object("a"));
        let before = Instant::now();
        let next = queue.next().await;
        assert!(before.elapsed() <= DEBOUNCE.mul_f64(1.1), "a change is not put off: {:?}", before.elapsed());
        queue.done(&next, Done::Settled);
        queue.add_after(next, Duration::ZERO);
        queue.done(&queue.next().await, Done::Failed);
        let before = Instant::now();
        queue.next().await;
        assert!(
            before.elapsed() <= FIRST_RETRY.mul_f64(1.1),
            "success starts it anew: {:?}",
            before.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_known_since_when_a_change_waits_until_it_is_done() {
        let (queue, start) = (Queue::default(), Instant::now());
        let a = object("a");
        let next = async |done: Done| {
            queue.next().await;
            let seen = queue.seen(&a);
            queue.done(&a, done);
            seen
        };
        queue.add(a.clone());
        tokio::time::advance(Duration::from_millis(50)).await;
        queue.add(a.clone());
        assert_eq!(next(Done::Failed).await, Some(start), "the first of two");
        assert_eq!(next(Done::Again(Duration::from_secs(1))).await, Some(start), "it did not work before");
        assert_eq!(next(Done::Settled).await, None, "nothing has changed since");
    }
}
