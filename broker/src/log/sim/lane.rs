//! The way of one process run's records into one partition: in order, without a gap, now and then more than once.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::sleep};

use super::{SimLog, cluster::size};
use crate::log::{Completion, Outcome, Record, Topic};

/// Records that one request holds at most.
const BATCH: usize = 50;

pub(super) struct Lane {
    pub(super) topic: Topic,
    pub(super) partition: u32,
    /// Without an outcome so far.
    waiting: Mutex<VecDeque<(Record, Completion)>>,
    arrived: Notify,
}

impl Lane {
    pub(super) fn new(topic: &Topic, partition: u32) -> Lane {
        Lane { topic: topic.clone(), partition, waiting: Mutex::default(), arrived: Notify::new() }
    }

    pub(super) fn push(&self, record: Record, done: Completion) {
        self.waiting.lock().push_back((record, done));
        self.arrived.notify_one();
    }

    /// What has no outcome and gets none from here.
    pub(super) fn give_up(&self) -> Vec<Record> {
        self.waiting.lock().drain(..).map(|(record, _)| record).collect()
    }

    /// Tells the first few their outcome.
    fn tell(&self, log: &SimLog, told: impl IntoIterator<Item = Outcome>) {
        for outcome in told {
            let Some((record, done)) = self.waiting.lock().pop_front() else { return };
            log.room.free(size(&record), 1);
            if let Outcome::Durable(offset) = outcome {
                log.learn_end(&self.topic, self.partition, offset + 1);
            }
            done.sink.appended(done.token, outcome);
        }
    }

    pub(super) fn tell_all(&self, log: &SimLog, outcome: Outcome) {
        let waiting = self.waiting.lock().len();
        self.tell(log, std::iter::repeat_n(outcome, waiting));
    }

    /// Refuses the first record, with those that its sink waits for behind it.
    fn refuse_first(&self, log: &SimLog) {
        let mut refused: Vec<(Record, Completion)> = Vec::new();
        self.waiting.lock().retain(|(record, done)| {
            let goes = match refused.first() {
                None => true,
                Some((_, first)) => first.sink.is_ordered() && Arc::ptr_eq(&first.sink, &done.sink),
            };
            if goes {
                refused.push((record.clone(), done.clone()));
            }
            !goes
        });
        for (record, done) in refused {
            log.room.free(size(&record), 1);
            done.sink.appended(done.token, Outcome::Refused);
        }
    }

    fn first(&self, count: usize) -> Vec<Record> {
        self.waiting.lock().iter().take(count).map(|(record, _)| record.clone()).collect()
    }
}

/// Sends what waits, until the task is aborted.
pub(super) async fn run(log: Arc<SimLog>, lane: Arc<Lane>) {
    loop {
        while lane.waiting.lock().is_empty() {
            lane.arrived.notified().await;
        }
        sleep(log.latency()).await;
        log.reached().await;
        let batch = lane.first(log.random.lock().usize(1..=BATCH));
        let weather = log.weather.lock().clone();
        if log.chance(weather.breaks) {
            give_up(&log, &lane).await;
            continue;
        }
        let anew = log.chance(weather.repeats);
        // A request that fails may have been carried out in part, and its answer may be lost.
        let landing = if anew { log.random.lock().usize(0..=batch.len()) } else { batch.len() };
        let mut told = Vec::new();
        for record in batch.iter().take(landing) {
            match log.cluster.land(&lane.topic, lane.partition, record) {
                Some(offset) => told.push(Outcome::Durable(offset)),
                None => break,
            }
        }
        let refused = told.len() < landing;
        if anew && !refused {
            told.truncate(log.random.lock().usize(0..=told.len()));
        }
        sleep(log.latency()).await;
        // An answer reaches only who is not cut off.
        log.reached().await;
        lane.tell(&log, told);
        if refused {
            lane.refuse_first(&log);
        }
    }
}

/// Nobody knows what became of all that waits. Nothing overtakes it.
async fn give_up(log: &SimLog, lane: &Lane) {
    let left = lane.first(usize::MAX);
    let shows = log.random.lock().usize(0..=left.len());
    lane.tell_all(log, Outcome::Broken);
    let pause = log.random.lock().u64(0..3000);
    sleep(Duration::from_millis(pause)).await;
    for record in left.iter().take(shows) {
        if log.cluster.land(&lane.topic, lane.partition, record).is_none() {
            return;
        }
    }
}
