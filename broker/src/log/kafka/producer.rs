//! One producer generation: a librdkafka producer from its start to its end, and what it reports.
//!
//! acks=all, idempotent and gapless: after a record that failed, no later one of its partition gets in. So a
//! generation ends with its first failure, and the next one begins with what has no outcome.
//!
//! Everything between lanes and librdkafka happens on the writer's thread. While others append it sleeps or hands over,
//! so that what came meanwhile goes in one request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mqtt_kafka::{
    Access,
    bulk::{Destination, Outgoing, Report, Sender},
};
use parking_lot::{Mutex, RwLock};
use rdkafka::{
    ClientContext, Message,
    config::RDKafkaLogLevel,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{BaseProducer, Producer as _, ProducerContext, PurgeConfig},
};

use super::{clients, lane::Lane, vitals::Vitals};
use crate::log::{Offset, Record};

/// How long a purged producer may take to report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// Bits of a token that are the record's [`Number`]; the rest is its lane's seat.
const NUMBER_BITS: u32 = 40;
const NUMBERS: usize = (1 << NUMBER_BITS) - 1;

pub(super) struct Producer {
    sender: Arc<Sender<Events>>,
    number: u64,
}

/// A lane's place with a producer.
pub(super) struct Seat {
    producer: Arc<Producer>,
    index: usize,
    /// Absent before the first record.
    destination: Option<Destination<Events>>,
}

/// Names a record among those of its lane; they begin again after a long while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Number(usize);

/// A record that Kafka has; `offset` is absent where a repeat was recognised.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) number: Number,
    pub(super) offset: Option<Offset>,
}

/// A record that this generation could not store.
pub(super) struct Failure {
    pub(super) lane: Arc<Lane>,
    pub(super) number: Number,
    pub(super) code: RDKafkaErrorCode,
}

/// What librdkafka calls.
struct Events {
    number: u64,
    vitals: Arc<Vitals>,
    /// By seat.
    lanes: RwLock<Vec<Arc<Lane>>>,
    /// Seats of lanes that have something to hand over.
    calls: Mutex<Vec<usize>>,
    failures: Mutex<Vec<Failure>>,
    /// It will store nothing more.
    fatal: AtomicBool,
}

impl Producer {
    pub(super) fn start(access: &Access, vitals: Arc<Vitals>, number: u64) -> KafkaResult<Producer> {
        let events = Events {
            number,
            vitals,
            lanes: RwLock::default(),
            calls: Mutex::default(),
            failures: Mutex::default(),
            fatal: AtomicBool::new(false),
        };
        let inner: BaseProducer<Events> = clients::producer(access).create_with_context(events)?;
        let sender = Sender::new(inner)
            .ok_or_else(|| KafkaError::ClientCreation("there is no memory for a queue".to_owned()))?;
        Ok(Producer { sender: Arc::new(sender), number })
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn seat(self: &Arc<Self>, lane: &Arc<Lane>) -> Seat {
        let mut lanes = self.events().lanes.write();
        lanes.push(lane.clone());
        Seat { producer: self.clone(), index: lanes.len() - 1, destination: None }
    }

    /// Tells outcomes and hands records over, for so long.
    pub(super) fn work(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut reports = Vec::new();
        loop {
            self.sender.wait(until.saturating_duration_since(Instant::now()), &mut reports);
            self.events().take(&reports);
            reports.clear();
            let calls = std::mem::take(&mut *self.events().calls.lock());
            for seat in calls {
                if let Some(lane) = self.events().lane(seat) {
                    lane.hand_over();
                }
            }
            if Instant::now() >= until {
                return;
            }
        }
    }

    /// Whether this generation must end.
    pub(super) fn has_failed(&self) -> bool {
        self.events().fatal.load(Ordering::Acquire) || !self.events().failures.lock().is_empty()
    }

    /// Waits until what is on its way has its outcome, at most for `patience`, and gives up the rest. Afterwards nothing is told
    /// any more. Returns what failed, without what was given up.
    pub(super) fn end(&self, patience: Duration) -> Vec<Failure> {
        let until = Instant::now() + patience;
        let inner = self.sender.producer();
        inner.purge(PurgeConfig::default().queue());
        while inner.in_flight_count() > 0 && Instant::now() < until {
            self.work(Duration::from_millis(20));
        }
        inner.purge(PurgeConfig::default().queue().inflight());
        if let Err(error) = inner.flush(REPORT_TIMEOUT) {
            tracing::warn!("Kafka: a producer ended with records unreported: {error}");
        }
        self.events().lanes.write().clear();
        std::mem::take(&mut *self.events().failures.lock())
    }

    fn events(&self) -> &Events {
        self.sender.producer().client().context()
    }
}

impl Seat {
    /// There is something to hand over: the writer comes for it.
    pub(super) fn call(&self) {
        let mut calls = self.producer.events().calls.lock();
        calls.push(self.index);
        if calls.len() == 1 {
            self.producer.sender.rouse();
        }
    }

    /// Never blocks; the outcome comes to the lane.
    pub(super) fn hand_over(
        &mut self,
        lane: &Lane,
        number: Number,
        record: &Record,
    ) -> Result<(), RDKafkaErrorCode> {
        if self.destination.is_none() {
            let sender = self.producer.sender.clone();
            self.destination = Some(Destination::new(sender, lane.topic.name(), lane.partition)?);
        }
        let Some(destination) = &self.destination else { return Err(RDKafkaErrorCode::Fail) };
        let outgoing = Outgoing {
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: record.headers.iter().map(|(name, value)| (&**name, &**value)),
            created: record.created,
        };
        destination.send(outgoing, (self.index << NUMBER_BITS) | number.0)
    }

    pub(super) fn fail(&self, lane: &Arc<Lane>, number: Number, code: RDKafkaErrorCode) {
        self.producer.events().failures.lock().push(Failure { lane: lane.clone(), number, code });
    }
}

impl Number {
    pub(super) fn plus(self, count: usize) -> Number {
        Number(self.0.wrapping_add(count) & NUMBERS)
    }
}

impl Events {
    fn lane(&self, seat: usize) -> Option<Arc<Lane>> {
        self.lanes.read().get(seat).cloned()
    }

    /// Those of one lane come together.
    fn take(&self, reports: &[Report]) {
        let seat_of = |report: &Report| report.token >> NUMBER_BITS;
        let now = Instant::now();
        let mut stored = Vec::new();
        for of_lane in reports.chunk_by(|one, next| seat_of(one) == seat_of(next)) {
            let Some(lane) = of_lane.first().and_then(|report| self.lane(seat_of(report))) else { continue };
            for Report { token, outcome } in of_lane {
                let number = Number(token & NUMBERS);
                match *outcome {
                    Ok(offset) => stored.push(Stored { number, offset }),
                    // Given up by this side.
                    Err(
                        RDKafkaErrorCode::PurgeQueue
                        | RDKafkaErrorCode::PurgeInflight
                        | RDKafkaErrorCode::Fatal,
                    ) => {}
                    Err(code) => self.failures.lock().push(Failure { lane: lane.clone(), number, code }),
                }
            }
            if !stored.is_empty() {
                self.vitals.confirmed(now);
                lane.delivered(self.number, &stored, now);
                stored.clear();
            }
        }
    }
}

impl ClientContext for Events {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        super::vitals::log(level, facility, message);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.vitals.take_statistics(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.fatal.store(true, Ordering::Release);
        }
        self.vitals.take_error(&error, reason);
    }
}

impl ProducerContext for Events {
    type DeliveryOpaque = usize;

    /// Only at the end: before that the writer takes many at once.
    fn delivery(&self, result: &DeliveryResult<'_>, token: usize) {
        let outcome = match result {
            Ok(message) => Ok(u64::try_from(message.offset()).ok()),
            Err((error, _)) => Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)),
        };
        self.take(&[Report { token, outcome }]);
    }
}
