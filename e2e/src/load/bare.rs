//! A plain producer without a broker: sends Kafka what our broker would store there, and measures from when a record
//! was due to its delivery report.
//!
//! The records are made beforehand, so that librdkafka and Kafka are all that costs. It asks for the promise that a
//! PUBACK gives (acks=all, idempotent); everything else is librdkafka's default, but for `linger.ms`.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use parking_lot::{Condvar, Mutex};
use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use serde_json::json;

use super::check;
use super::engine::{QUIET, nanos};
use super::plan::Plan;
use super::report::{Checks, Latencies, Report};
use super::{LoadError, Phase, procfs};

/// As many as the broker's benchmark has.
const PARTITIONS: u64 = 3;
/// As many in a row go to one of them.
const RUN: u64 = 32;
/// Longest wait, so that phases end on time.
const TICK: Duration = Duration::from_millis(20);

/// One publisher's record; number and times are of the same length in each, so it stands for all.
struct Template {
    value: String,
    headers: OwnedHeaders,
}

/// What librdkafka calls; the number that goes with a record is when it was due.
struct Events {
    origin: Instant,
    outcomes: Mutex<Outcomes>,
    wake: Condvar,
}

/// What delivery reports add up to. Times are nanoseconds since the origin.
struct Outcomes {
    delivered: u64,
    failed: u64,
    /// Records due earlier count for the checks only.
    measured_from: u64,
    latencies: Latencies,
    /// How many outcomes the sender sleeps for.
    wanted: u64,
}

struct Sender<'a> {
    plan: &'a Plan,
    producer: &'a BaseProducer<Events>,
    templates: Vec<Template>,
    /// Records that may be without an outcome at once.
    window: u64,
    sent: u64,
    /// Begin of the pace.
    begin: u64,
    lateness: Latencies,
}

/// The counters at one end of the measured time.
struct Sample {
    at: u64,
    delivered: u64,
    cpu: Duration,
}

/// Runs the scene `stored --bare`.
pub(super) fn run(plan: &Plan, publishers: u32) -> Result<Report, LoadError> {
    let events = Events {
        origin: Instant::now(),
        outcomes: Mutex::new(Outcomes {
            delivered: 0,
            failed: 0,
            measured_from: u64::MAX,
            latencies: Latencies::new(),
            wanted: u64::MAX,
        }),
        wake: Condvar::new(),
    };
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", plan.addr.to_string())
        .set("acks", "all")
        .set("enable.idempotence", "true");
    // With the default, 5 ms, waiting for company would be most of the latency under a pace; flat out a window never
    // fills a batch, so it would cost half of the rate, too.
    config.set("linger.ms", "0");
    let producer: BaseProducer<Events> = config.create_with_context(events)?;
    let sender = Sender {
        plan,
        producer: &producer,
        templates: (0..publishers).map(|publisher| Template::new(plan, publisher)).collect(),
        window: u64::from(plan.window) * u64::from(publishers),
        sent: 0,
        begin: 0,
        lateness: Latencies::new(),
    };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                producer.poll(TICK);
            }
        });
        let report = sender.run();
        over.store(true, Ordering::Relaxed);
        report
    })
}

impl Template {
    fn new(plan: &Plan, publisher: u32) -> Self {
        let client_id = format!("load-{}-{publisher}", process::id());
        let topic = format!("{}/{}/0/{publisher}", plan.topic, process::id());
        // The stamp of a message is hardly ever text, so its payload stands as base64.
        let payload = [vec![0xff; check::Stamp::BYTES], check::filler(plan.payload)].concat();
        let value = json!({
            "clientId": client_id, "topic": topic, "payload": BASE64_STANDARD.encode(payload),
            "encoding": "base64", "ts": 1_700_000_000_000_u64,
        });
        let qos = (plan.qos as u8).to_string();
        let headers = [
            ("mqttTopic", topic.as_str()),
            ("qoslevel", &qos),
            ("clientId", &client_id),
            ("messageId", "0123456789abcdef-12345"),
        ];
        let headers = headers.into_iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value) })
        });
        Self { value: value.to_string(), headers }
    }
}

impl ClientContext for Events {}

impl ProducerContext for Events {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, due: usize) {
        let mut outcomes = self.outcomes.lock();
        match result {
            Ok(_) => {
                outcomes.delivered += 1;
                if due as u64 >= outcomes.measured_from {
                    outcomes.latencies.record(self.now().saturating_sub(due as u64));
                }
            }
            Err(_) => outcomes.failed += 1,
        }
        if outcomes.settled() >= outcomes.wanted {
            outcomes.wanted = u64::MAX;
            self.wake.notify_one();
        }
    }
}

impl Events {
    fn now(&self) -> u64 {
        nanos(self.origin.elapsed())
    }

    /// How many outcomes there are, after a wait for `wanted` of them, a tick at most.
    fn settled(&self, wanted: u64) -> u64 {
        let mut outcomes = self.outcomes.lock();
        if outcomes.settled() < wanted {
            outcomes.wanted = wanted;
            self.wake.wait_for(&mut outcomes, TICK);
        }
        outcomes.settled()
    }
}

impl Outcomes {
    fn settled(&self) -> u64 {
        self.delivered + self.failed
    }
}

impl Sender<'_> {
    fn run(mut self) -> Result<Report, LoadError> {
        self.begin = self.events().now();
        let measured_from = self.begin + nanos(self.plan.warmup);
        self.events().outcomes.lock().measured_from = measured_from;
        self.publish_until(measured_from)?;
        let before = self.sample()?;
        self.publish_until(measured_from + nanos(self.plan.duration))?;
        let after = self.sample()?;
        self.drain()?;
        self.report(&before, &after)
    }

    fn events(&self) -> &'_ Events {
        self.producer.context()
    }

    fn publish_until(&mut self, end: u64) -> Result<(), LoadError> {
        let mut settled = 0;
        loop {
            let now = self.events().now();
            if now >= end || self.sent >= self.plan.messages.into() {
                return Ok(());
            }
            if self.sent - settled >= self.window {
                // In one go for many, as reports come.
                settled = self.events().settled(self.sent - self.window * 7 / 8);
                self.check_time(now, Phase::Publishing)?;
                continue;
            }
            let due = self.due().unwrap_or(now);
            if due > now {
                thread::sleep(Duration::from_nanos(due.min(end) - now));
                continue;
            }
            if self.plan.rate.is_some() {
                self.lateness.record(now - due);
                settled = self.events().settled(0);
            }
            self.send(due)?;
        }
    }

    /// When the next record is to be sent; absent: as soon as it can.
    fn due(&self) -> Option<u64> {
        self.plan.rate.map(|rate| self.begin + self.sent * 1_000_000_000 / u64::from(rate))
    }

    fn send(&mut self, due: u64) -> Result<(), LoadError> {
        let at = usize::try_from(self.sent).unwrap_or(0) % self.templates.len().max(1);
        let Some(template) = self.templates.get(at) else { return Ok(()) };
        let record: BaseRecord<'_, (), str, usize> =
            BaseRecord::with_opaque_to(&self.plan.topic, usize::try_from(due).unwrap_or(usize::MAX))
                .partition(i32::try_from(self.sent / RUN % PARTITIONS).unwrap_or(0))
                .payload(template.value.as_str())
                .headers(template.headers.clone());
        self.producer.send(record).map_err(|(error, _)| error)?;
        self.sent += 1;
        Ok(())
    }

    /// Waits until every record has its outcome, or nothing has moved for a while.
    fn drain(&self) -> Result<(), LoadError> {
        let mut moved = (self.events().now(), 0);
        loop {
            let settled = self.events().settled(self.sent);
            let now = self.events().now();
            if settled != moved.1 {
                moved = (now, settled);
            }
            if settled == self.sent || now - moved.0 > nanos(QUIET) {
                return Ok(());
            }
            self.check_time(now, Phase::Draining)?;
        }
    }

    fn check_time(&self, now: u64, phase: Phase) -> Result<(), LoadError> {
        match now > nanos(self.plan.timeout) {
            true => Err(LoadError::TimedOut { after: self.plan.timeout, phase }),
            false => Ok(()),
        }
    }

    fn sample(&self) -> Result<Sample, LoadError> {
        let delivered = self.events().outcomes.lock().delivered;
        Ok(Sample { at: self.events().now(), delivered, cpu: procfs::cpu("self")? })
    }

    fn report(self, before: &Sample, after: &Sample) -> Result<Report, LoadError> {
        let plan = self.plan;
        let mut outcomes = self.events().outcomes.lock();
        let seconds = after.at.saturating_sub(before.at) as f64 / 1e9;
        let messages = after.delivered - before.delivered;
        let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6 / messages.max(1) as f64;
        let mut unsent = 0;
        if let Some(rate) = plan.rate {
            let due = (after.at - self.begin).saturating_mul(u64::from(rate)) / 1_000_000_000;
            // One may be due in this moment.
            unsent = due.saturating_sub(self.sent + 1);
            // They would have taken longer than this: leaving them out would flatter Kafka.
            for number in self.sent..self.sent + unsent {
                let due = self.begin + number * 1_000_000_000 / u64::from(rate);
                outcomes.latencies.record(after.at.saturating_sub(due));
            }
        }
        Ok(Report {
            scene: plan.scene.name().to_owned(),
            qos: plan.qos as u8,
            connections: self.templates.len() as u64,
            payload: plan.payload,
            asked_per_second: plan.rate.map(f64::from),
            seconds,
            messages,
            per_second: messages as f64 / seconds,
            latency: outcomes.latencies.summary(),
            checks: Checks {
                loss: outcomes.failed,
                unacknowledged: self.sent - outcomes.settled(),
                ..Checks::default()
            },
            unsent,
            generator_late_p99_us: self.lateness.summary().map(|late| late.p99_us),
            generator_cpu_us_per_message: cpu,
            broker_cpu_us_per_message: Some(cpu),
            broker_rss_kb: Some(procfs::resident_kb("self")?),
            ..Report::default()
        })
    }
}
