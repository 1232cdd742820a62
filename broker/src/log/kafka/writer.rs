//! Writers: each owns a set of lanes and the producer that serves them, from generation to generation.
//!
//! There is one for all topics. A topic that Kafka refuses (deleted, no longer allowed, changed) gets a writer of its own
//! until it works again, so that it stops nobody else; what waits for it is bounded more tightly meanwhile.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use mqtt_kafka::{Access, access::without_value, bulk::interrupt_nobody};
use parking_lot::Mutex;
use rdkafka::error::RDKafkaErrorCode;

use super::{
    Shared,
    lane::Lane,
    producer::{Failure, Number, Producer},
};
use crate::{limits::Trouble, log::room::Room};

/// How long a producer works before its writer looks up.
const TURN: Duration = Duration::from_millis(50);
/// How long what is on its way may take when a generation ends in good order, and when it failed or is the last.
const GOOD_END: Duration = Duration::from_secs(10);
const BAD_END: Duration = Duration::from_secs(1);
/// How often a writer that pauses looks whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a topic must have worked by itself before it joins the others again.
const PROBATION: Duration = Duration::from_secs(5);
/// What may wait for a topic that Kafka refuses.
const ASIDE_BYTES: usize = 8 << 20;
const ASIDE_RECORDS: usize = 20_000;

static GENERATION: AtomicU64 = AtomicU64::new(1);

/// The writer of all topics that work.
pub(super) struct Writer {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    shared: Arc<Shared>,
    /// Lanes that came and have not been opened yet.
    arrivals: Mutex<Vec<Arc<Lane>>>,
}

/// Why a generation ended.
enum End {
    Stopped,
    /// Credentials or addresses have changed.
    Renewed,
    Failed,
    /// The topic works again.
    Recovered,
}

/// What to do about a record that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It can never be stored.
    Refuse,
    /// Its topic does not work.
    Aside,
    /// It is not to blame.
    Again,
}

impl Writer {
    pub(super) fn start(shared: Arc<Shared>) -> std::io::Result<Arc<Writer>> {
        let inner = Arc::new(Inner::new(shared));
        let worker = inner.clone();
        let thread = std::thread::Builder::new()
            .name("kafka-writer".to_owned())
            .spawn(move || worker.run(Vec::new(), None))?;
        Ok(Arc::new(Writer { inner, thread: Mutex::new(Some(thread)) }))
    }

    /// Serves these, too.
    pub(super) fn adopt(&self, lanes: impl IntoIterator<Item = Arc<Lane>>) {
        self.inner.arrivals.lock().extend(lanes);
    }

    /// Ends the thread, and those of topics set aside; what has no outcome keeps none.
    pub(super) fn stop(&self) {
        self.inner.shared.stopped.store(true, Ordering::Release);
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the Kafka writer's thread panicked");
        }
    }
}

impl Inner {
    fn new(shared: Arc<Shared>) -> Inner {
        Inner { shared, arrivals: Mutex::default() }
    }

    /// `aside`: the topic that this writer has alone.
    fn run(self: &Arc<Self>, mut lanes: Vec<Arc<Lane>>, aside: Option<&str>) {
        // Under load whoever brings records works on, so that more of them go in one request.
        if !interrupt_nobody() {
            tracing::debug!("Kafka: the writer may not be scheduled for batches");
        }
        let mut pause = Pause::default();
        if aside.is_some() {
            pause.lengthen();
        }
        while !self.stopped() {
            pause.wait(self);
            if let Some(topic) = aside
                && !self.mend(topic, &mut pause)
            {
                continue;
            }
            let access = self.shared.access();
            let number = GENERATION.fetch_add(1, Ordering::Relaxed);
            self.shared.vitals.producers_started.fetch_add(1, Ordering::Relaxed);
            let producer = match Producer::start(&access, self.shared.vitals.clone(), number) {
                Ok(producer) => Arc::new(producer),
                Err(error) => {
                    pause.say(&format!(
                        "Kafka: no producer could be started: {}; check spec.kafka and its Secrets",
                        without_value(&error)
                    ));
                    pause.lengthen();
                    continue;
                }
            };
            let begun = Instant::now();
            let end = self.serve(&producer, &access, &mut lanes, aside.is_some());
            // What went well for long, or was meant to end, does not make the next one wait.
            if begun.elapsed() > LONGEST_PAUSE || matches!(end, End::Renewed) {
                pause.reset();
            }
            lanes.iter().for_each(|lane| lane.hold());
            // Before it stops the store has waited for what is under way.
            let patience = if matches!(end, End::Failed | End::Stopped) { BAD_END } else { GOOD_END };
            let failures = producer.end(patience);
            lanes.iter().for_each(|lane| lane.take_back());
            // Closing a client takes its time, and nothing waits for it.
            let closing = std::thread::Builder::new().name("kafka-closing".to_owned());
            drop(closing.spawn(move || drop(producer)));
            match end {
                End::Stopped => return,
                End::Recovered => {
                    tracing::info!("Kafka: topic {} works again", aside.unwrap_or_default());
                    return self.shared.rejoin(lanes);
                }
                End::Renewed => tracing::info!("Kafka: going on with new settings"),
                End::Failed if failures.is_empty() => {
                    let why = self.shared.vitals.last_error().unwrap_or_default();
                    pause.say(&format!("Kafka: the producer ended: {why}; a new one goes on"));
                    pause.lengthen();
                }
                End::Failed => self.judge(&failures, &mut lanes, aside, &mut pause),
            }
        }
    }

    /// Works until something ends the generation.
    fn serve(
        self: &Arc<Self>,
        producer: &Arc<Producer>,
        access: &Access,
        lanes: &mut Vec<Arc<Lane>>,
        aside: bool,
    ) -> End {
        lanes.iter().for_each(|lane| lane.open(producer));
        let started = Instant::now();
        loop {
            let arrivals = std::mem::take(&mut *self.arrivals.lock());
            arrivals.iter().for_each(|lane| lane.open(producer));
            lanes.extend(arrivals);
            producer.work(TURN);
            if self.stopped() {
                return End::Stopped;
            }
            if producer.has_failed() {
                return End::Failed;
            }
            if *access != *self.shared.access() {
                return End::Renewed;
            }
            if aside && started.elapsed() > PROBATION && lanes.iter().all(|lane| lane.backlog().keeps_up()) {
                return End::Recovered;
            }
        }
    }

    /// Refuses what can never be stored, and sets aside the topics that do not work.
    fn judge(
        self: &Arc<Self>,
        failures: &[Failure],
        lanes: &mut Vec<Arc<Lane>>,
        aside: Option<&str>,
        pause: &mut Pause,
    ) {
        let mut blamed = false;
        let mut refused: Vec<(Arc<Lane>, HashSet<Number>)> = Vec::new();
        for failure in failures {
            let Failure { lane, number, code } = failure;
            let (topic, partition) = (lane.topic.name(), lane.partition);
            match verdict(*code) {
                Verdict::Refuse => {
                    blamed = true;
                    self.shared.vitals.records_refused.fetch_add(1, Ordering::Relaxed);
                    pause.say(&format!(
                        "Kafka refused a record for topic {topic} partition {partition}: {code}; its publisher is not acknowledged"
                    ));
                    match refused.iter_mut().find(|(other, _)| Arc::ptr_eq(other, lane)) {
                        Some((_, numbers)) => drop(numbers.insert(*number)),
                        None => refused.push((lane.clone(), HashSet::from([*number]))),
                    }
                }
                Verdict::Aside if aside.is_some() => {
                    pause.say(&format!("Kafka refuses topic {topic}: {code}; what is published to it waits"));
                    pause.lengthen();
                    return;
                }
                Verdict::Aside => {
                    blamed = true;
                    let (gone, stay) =
                        std::mem::take(lanes).into_iter().partition(|other| other.topic.name() == topic);
                    *lanes = stay;
                    self.set_aside(topic, gone, *code);
                }
                Verdict::Again => {}
            }
        }
        refused.iter().for_each(|(lane, numbers)| lane.refuse(|number, _| numbers.contains(&number)));
        if blamed {
            pause.reset();
        } else {
            let why = failures.first().map(|failure| failure.code.to_string()).unwrap_or_default();
            pause.say(&format!("Kafka: the producer ended: {why}; a new one goes on"));
            pause.lengthen();
        }
    }

    fn set_aside(self: &Arc<Self>, topic: &str, lanes: Vec<Arc<Lane>>, code: RDKafkaErrorCode) {
        if lanes.is_empty() {
            return;
        }
        tracing::error!(
            "Kafka refuses topic {topic}: {code}; what is published to it waits, other topics go on"
        );
        let room = Arc::new(Room::new(ASIDE_BYTES, ASIDE_RECORDS));
        lanes.iter().for_each(|lane| lane.move_to(&room, true));
        let inner = Arc::new(Inner::new(self.shared.clone()));
        let name = topic.to_owned();
        let started = std::thread::Builder::new()
            .name("kafka-aside".to_owned())
            .spawn(move || inner.run(lanes, Some(&name)));
        if let Err(error) = started {
            // The lanes keep what they have; it is told as not stored when the store is closed.
            tracing::error!("Kafka: no thread for topic {topic}: {error}; restart the broker");
        }
    }

    /// Sees to it that the topic is as it should be; false: not yet.
    fn mend(&self, topic: &str, pause: &mut Pause) -> bool {
        match self.shared.runtime.block_on(self.shared.verify(topic)) {
            Ok(()) => true,
            Err(error) => {
                pause.say(&format!("Kafka: topic {topic} does not work: {error}"));
                pause.lengthen();
                false
            }
        }
    }

    fn stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::Acquire)
    }
}

/// How long to wait before the next try, and what was said about the last.
#[derive(Default)]
struct Pause {
    next: Duration,
    trouble: Trouble,
}

impl Pause {
    fn wait(&self, inner: &Inner) {
        let until = Instant::now() + self.next;
        while !inner.stopped() && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn lengthen(&mut self) {
        self.next = (self.next * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
    }

    fn reset(&mut self) {
        self.next = Duration::ZERO;
    }

    fn say(&mut self, line: &str) {
        if self.trouble.is_due(line) {
            tracing::error!("{line}");
        }
    }
}

fn verdict(code: RDKafkaErrorCode) -> Verdict {
    use RDKafkaErrorCode as Code;
    match code {
        Code::InvalidTimestamp | Code::InvalidRecord => Verdict::Refuse,
        Code::Fatal | Code::GaplessGuarantee | Code::InvalidDifferentRecord => Verdict::Again,
        Code::OutOfOrderSequenceNumber | Code::UnknownProducerId | Code::InvalidProducerEpoch => {
            Verdict::Again
        }
        Code::Inconsistent | Code::AllBrokersDown | Code::BrokerTransportFailure => Verdict::Again,
        // Not known to be the producer's: let it not stop other topics. A size that Kafka refuses is one of them: what
        // is handed over was held to the topic's, so the topic has changed.
        _ => Verdict::Aside,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_refused_a_topic_set_aside_and_a_producer_replaced() {
        use RDKafkaErrorCode as Code;
        for (code, expected) in [
            (Code::InvalidTimestamp, Verdict::Refuse),
            (Code::InvalidRecord, Verdict::Refuse),
            (Code::InvalidDifferentRecord, Verdict::Again),
            (Code::GaplessGuarantee, Verdict::Again),
            (Code::OutOfOrderSequenceNumber, Verdict::Again),
            (Code::TopicAuthorizationFailed, Verdict::Aside),
            (Code::UnknownTopicOrPartition, Verdict::Aside),
            (Code::MessageSizeTooLarge, Verdict::Aside),
            (Code::PolicyViolation, Verdict::Aside),
        ] {
            assert_eq!(verdict(code), expected, "{code:?}");
        }
    }
}
