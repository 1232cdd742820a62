//! Fresh views: where several nodes share a log, what one knows may be a moment old, while somebody was told already that a
//! subscription or a retained message of another node counts.
//!
//! A *barrier* is a record in every partition. Whoever reads its own back has read all that anybody was promised before it
//! was asked for. All who ask while one is under way share the next.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use mqtt_proto::{
    durable::record::{Boot, Key, Value},
    message::Millis,
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    SessionLog, State,
    rounds::{self, Rounds},
    write::record,
};
use crate::{
    log::{Completion, Log, Outcome, Topic},
    node::Node,
    outside::Mistake,
};

/// Until a barrier must be read back; one that is not is asked for again.
const PATIENCE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(200);

/// What is told of a barrier in one partition: that it is durable, then that it was read back.
pub(crate) type BarrierPart = (oneshot::Receiver<Outcome>, oneshot::Receiver<()>);

/// Who waits for a fresh view.
#[derive(Default)]
pub(super) struct Barriers {
    rounds: Rounds,
    /// One shall be passed though nobody waits for it.
    is_due: AtomicBool,
}

/// Who waits until a barrier of this process run is read back from one partition, by its number.
#[derive(Default)]
pub(crate) struct BarrierWaits(Vec<(u64, oneshot::Sender<()>)>);

impl BarrierWaits {
    fn wait_for(&mut self, number: u64) -> oneshot::Receiver<()> {
        let (told, hears) = oneshot::channel();
        self.0.push((number, told));
        hears
    }

    /// The barrier with this number was read.
    pub(crate) fn passed(&mut self, number: u64) {
        for (_, told) in self.0.extract_if(.., |(waits_for, _)| *waits_for <= number) {
            // Nobody waits for it any more: another came later.
            let _ = told.send(());
        }
    }
}

impl SessionLog {
    /// Tells `done` once this node knows everything that anybody was promised before this call. True: it does now, as where no
    /// other node shares the log, and nobody is told.
    pub(crate) fn is_fresh_or(&self, done: impl FnOnce() -> Completion) -> bool {
        if !self.shared || self.outside.makes(Mistake::RouteOnOldView) {
            return true;
        }
        self.barriers.rounds.join(done());
        false
    }

    /// The same for who can wait here.
    pub(crate) async fn freshen(&self) {
        let (done, outcome) = Completion::awaited();
        if !self.is_fresh_or(|| done) {
            // It is never told anything else.
            let _ = outcome.await;
        }
    }

    /// Soon a barrier is passed that nobody waits for.
    pub(super) fn look_again(&self) {
        if !self.barriers.is_due.swap(true, Ordering::AcqRel) {
            self.barriers.rounds.ask();
        }
    }
}

/// Passes the barriers that are asked for, until the task is aborted.
pub(crate) async fn barriers(node: Arc<Node>) {
    let log = &node.sessions;
    loop {
        let waiting = log.barriers.rounds.next().await;
        if waiting.is_empty() && !log.barriers.is_due.load(Ordering::Acquire) {
            continue;
        }
        while !pass(&node).await {
            sleep(RETRY).await;
        }
        log.barriers.is_due.store(false, Ordering::Release);
        rounds::tell(waiting);
    }
}

/// Writes a barrier, and reads it back.
async fn pass(node: &Arc<Node>) -> bool {
    let log = &node.sessions;
    let begun = log.leases.now();
    let number = log.next_sequence();
    let now = node.wall();
    let mut parts = Vec::new();
    for partition in 0..log.topic.partitions() {
        let write = |state: &mut State| {
            write_barrier(&*log.log, (&log.topic, partition), (log.boot, number), now, &mut state.barriers)
        };
        parts.extend(log.with(partition, write));
    }
    parts.extend(node.retained.write_barrier(number, now));
    parts.extend(node.relay.as_ref().map(|relay| relay.write_barrier(number, now)));
    let parts = parts.into_iter().map(is_back);
    let passed = timeout(PATIENCE, join_all(parts)).await;
    let has_passed = passed.is_ok_and(|parts| parts.into_iter().all(|passed| passed));
    if has_passed {
        log.leases.looked(begun);
    }
    has_passed
}

/// Writes a process run's barrier with this number to one partition, whose reader tells those in `waits`.
pub(crate) fn write_barrier(
    log: &dyn Log,
    (topic, partition): (&Topic, u32),
    (boot, number): (Boot, u64),
    now: Millis,
    waits: &mut BarrierWaits,
) -> BarrierPart {
    let passed = waits.wait_for(number);
    let (done, outcome) = Completion::awaited();
    let barrier = record(&Key::Barrier { boot }, Some(Value::Barrier(number)), now);
    log.append(topic, partition, barrier, done);
    (outcome, passed)
}

/// Whether one part of it is durable, and was read back.
async fn is_back((outcome, passed): BarrierPart) -> bool {
    matches!(outcome.await, Ok(Outcome::Durable(_))) && passed.await.is_ok()
}
