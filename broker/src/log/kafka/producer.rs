//! One producer generation: a librdkafka producer from its start to its end, and what it reports.
//!
//! acks=all, idempotent and gapless: after a record that failed, no later one of its partition gets in. So a
//! generation ends with its first failure, and the next one begins with what has no outcome.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mqtt_kafka::Access;
use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Message,
    config::RDKafkaLogLevel,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig},
};

use super::{clients, lane::Lane, vitals::Vitals};
use crate::log::Record;

/// How long a purged producer may take to report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Producer {
    inner: BaseProducer<Events>,
    number: u64,
}

/// Goes with a record to Kafka and comes back with its outcome.
pub(super) struct Handover {
    pub(super) lane: Arc<Lane>,
    pub(super) number: u64,
}

/// A record that this generation could not store.
pub(super) struct Failure {
    pub(super) lane: Arc<Lane>,
    pub(super) number: u64,
    pub(super) code: RDKafkaErrorCode,
}

/// What librdkafka calls.
struct Events {
    number: u64,
    vitals: Arc<Vitals>,
    failures: Mutex<Vec<Failure>>,
    /// It will store nothing more.
    fatal: AtomicBool,
}

impl Producer {
    pub(super) fn start(access: &Access, vitals: Arc<Vitals>, number: u64) -> KafkaResult<Producer> {
        let events = Events { number, vitals, failures: Mutex::default(), fatal: AtomicBool::new(false) };
        let inner: BaseProducer<Events> = clients::producer(access).create_with_context(events)?;
        Ok(Producer { inner, number })
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Never blocks; the outcome comes to the lane.
    pub(super) fn hand_over(&self, handover: Handover, record: &Record) -> Result<(), RDKafkaErrorCode> {
        let lane = handover.lane.clone();
        let mut message = BaseRecord::with_opaque_to(lane.topic.name(), Box::new(handover))
            .partition(i32::try_from(lane.partition).unwrap_or(i32::MAX))
            .timestamp(record.created);
        if let Some(key) = &record.key {
            message = message.key(&**key);
        }
        if let Some(value) = &record.value {
            message = message.payload(&**value);
        }
        if !record.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(record.headers.len());
            message = message.headers(record.headers.iter().fold(headers, |headers, (name, value)| {
                // Kafka's names are text; whatever came from Kafka or from us is.
                headers.insert(Header { key: &String::from_utf8_lossy(name), value: Some(&**value) })
            }));
        }
        self.inner.send(message).map_err(|(error, _)| code_of(&error))
    }

    pub(super) fn fail(&self, lane: &Arc<Lane>, number: u64, code: RDKafkaErrorCode) {
        self.inner.context().failures.lock().push(Failure { lane: lane.clone(), number, code });
    }

    /// Tells outcomes for so long.
    pub(super) fn work(&self, time: Duration) {
        self.inner.poll(time);
    }

    /// Whether this generation must end.
    pub(super) fn has_failed(&self) -> bool {
        let events = self.inner.context();
        events.fatal.load(Ordering::Acquire) || !events.failures.lock().is_empty()
    }

    /// Waits until what is on its way has its outcome, at most for `patience`, and gives up the rest. Afterwards nothing is told
    /// any more. Returns what failed, without what was given up.
    pub(super) fn end(&self, patience: Duration) -> Vec<Failure> {
        let until = Instant::now() + patience;
        self.inner.purge(PurgeConfig::default().queue());
        while self.inner.in_flight_count() > 0 && Instant::now() < until {
            self.inner.poll(Duration::from_millis(20));
        }
        self.inner.purge(PurgeConfig::default().queue().inflight());
        if let Err(error) = self.inner.flush(REPORT_TIMEOUT) {
            tracing::warn!("Kafka: a producer ended with records unreported: {error}");
        }
        std::mem::take(&mut *self.inner.context().failures.lock())
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
    type DeliveryOpaque = Box<Handover>;

    fn delivery(&self, result: &DeliveryResult<'_>, handover: Box<Handover>) {
        let Handover { lane, number } = *handover;
        match result {
            Ok(message) => {
                let now = Instant::now();
                self.vitals.confirmed(now);
                lane.delivered(self.number, number, u64::try_from(message.offset()).ok(), now);
            }
            Err((error, _)) => {
                let code = code_of(error);
                let given_up = matches!(
                    code,
                    RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight | RDKafkaErrorCode::Fatal
                );
                if !given_up {
                    self.failures.lock().push(Failure { lane, number, code });
                }
            }
        }
    }
}

fn code_of(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)
}
