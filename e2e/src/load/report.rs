//! What a run measured, as one JSON object, and whether the broker kept MQTT's promises in it.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The result of a run. Figures cover the measured time only; checks cover every message, warm-up included.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub scene: String,
    pub qos: u8,
    pub connections: u64,
    pub payload: usize,
    /// What was asked for a second, counted as `messages` are; absent: as fast as it went.
    pub asked_per_second: Option<f64>,
    pub seconds: f64,
    /// What the scene counts: deliveries, acknowledgements (stored), connections (idle, connect), sessions (leave, takeover).
    pub messages: u64,
    pub per_second: f64,
    /// From when a message was due to its delivery (stored: acknowledgement; bare: delivery report; connect and takeover: from the
    /// opening of the connection to CONNACK).
    pub latency: Option<Latency>,
    #[serde(flatten)]
    pub checks: Checks,
    /// Messages that were due but not sent when time was up: the broker did not keep the pace.
    pub unsent: u64,
    /// All that were published, warm-up included.
    #[serde(default)]
    pub published: u64,
    /// How late the generator itself took up a due message, in µs (p99); with --rate only. Latencies include it.
    pub generator_late_p99_us: Option<f64>,
    /// With --rate the generator spins, so this is all of a core.
    pub generator_cpu_us_per_message: f64,
    /// With --pid only, as are the next two; without a broker, the producer that stands in its place.
    pub broker_cpu_us_per_message: Option<f64>,
    pub broker_rss_kb: Option<u64>,
    /// Scene idle only.
    pub broker_rss_kb_per_connection: Option<f64>,
    /// Where the broker was killed afterwards: until the next run of it was ready, and what it has in memory for each session,
    /// beyond what the first had without any.
    #[serde(default)]
    pub ready_seconds: Option<f64>,
    #[serde(default)]
    pub broker_rss_kb_per_session: Option<f64>,
    /// The same of the first, that has made them.
    #[serde(default)]
    pub broker_rss_kb_per_session_made: Option<f64>,
    /// What the session log on Kafka has grown by, those of the connections included, for each published message.
    #[serde(default)]
    pub log_records_per_message: Option<f64>,
}

/// Microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

/// What went wrong with messages, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checks {
    pub loss: u64,
    pub duplicates: u64,
    /// Messages that came after a later one of the same publisher.
    pub disorder: u64,
    /// Payloads that were not what any publisher sent.
    pub corrupt: u64,
    /// Messages a subscriber had not asked for.
    pub misrouted: u64,
    /// Messages whose exchange with the broker was not over at the end.
    pub unacknowledged: u64,
    /// Acknowledgements out of the messages' order (4.6), or for no message at all.
    pub ack_disorder: u64,
}

impl Report {
    /// Whether the broker delivered at the rate that was asked for; one that did not had a queue to batch from,
    /// which makes its CPU time a message look better and its latency worse.
    pub fn kept_pace(&self) -> bool {
        self.unsent == 0 && self.asked_per_second.is_none_or(|asked| self.per_second >= asked * 0.95)
    }

    /// One report of runs that went on side by side and had nothing to say but of connections and memory.
    pub fn joined(reports: Vec<Self>) -> Option<Self> {
        reports.into_iter().reduce(|one, other| {
            let connections = one.connections + other.connections;
            let share = |report: &Self| {
                Some(
                    report.broker_rss_kb_per_connection? * report.connections as f64
                        / connections.max(1) as f64,
                )
            };
            Self {
                broker_rss_kb_per_connection: share(&one).zip(share(&other)).map(|(one, other)| one + other),
                broker_rss_kb: one.broker_rss_kb.zip(other.broker_rss_kb).map(|(one, other)| one + other),
                connections,
                messages: one.messages + other.messages,
                broker_cpu_us_per_message: None,
                ..one
            }
        })
    }

    /// What makes this run a failed one; empty when every promise of its QoS was kept.
    pub fn failures(&self) -> Vec<String> {
        let c = &self.checks;
        // A run that measured nothing has proved nothing.
        let silent = (self.messages == 0).then(|| "no message arrived in the measured time".to_owned());
        let broken = [
            (c.loss, self.qos > 0, "lost"),
            (c.duplicates, self.qos != 1, "delivered more than once"),
            (c.disorder, true, "delivered out of order"),
            (c.corrupt, true, "changed on the way"),
            (c.misrouted, true, "delivered to the wrong subscriber"),
            (c.unacknowledged, true, "not acknowledged"),
            (c.ack_disorder, true, "acknowledged out of order or without cause"),
        ]
        .into_iter()
        .filter(|(count, promised, _)| *count > 0 && *promised)
        .map(|(count, _, what)| format!("{count} messages {what} at QoS {}", self.qos));
        silent.into_iter().chain(broken).collect()
    }
}

/// Latencies of a run in nanoseconds, to three digits.
pub(super) struct Latencies(Option<Histogram<u64>>);

impl Latencies {
    pub(super) fn new() -> Self {
        // Up to ten minutes, the longest run; the bounds are constants, so this is never `None`.
        Self(Histogram::new_with_bounds(1, 600_000_000_000, 3).ok())
    }

    pub(super) fn record(&mut self, nanos: u64) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(nanos);
        }
    }

    pub(super) fn summary(&self) -> Option<Latency> {
        let histogram = self.0.as_ref().filter(|h| !h.is_empty())?;
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        Some(Latency {
            p50_us: micros(histogram.value_at_quantile(0.50)),
            p99_us: micros(histogram.value_at_quantile(0.99)),
            max_us: micros(histogram.max()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(qos: u8, messages: u64, checks: Checks) -> Report {
        Report {
            scene: "p2p".into(),
            qos,
            connections: 2,
            payload: 16,
            seconds: 1.0,
            messages,
            per_second: 1.0,
            checks,
            ..Report::default()
        }
    }

    #[test]
    fn memory_of_several_nodes_is_summed_and_its_share_a_connection_weighed() {
        let idle = |connections, kb, each| Report {
            connections,
            broker_rss_kb: Some(kb),
            broker_rss_kb_per_connection: Some(each),
            ..report(0, connections, Checks::default())
        };
        let joined = Report::joined(vec![idle(100, 1_000, 2.0), idle(300, 2_000, 4.0)]).unwrap();
        assert_eq!((joined.connections, joined.messages, joined.broker_rss_kb), (400, 400, Some(3_000)));
        assert_eq!(joined.broker_rss_kb_per_connection, Some(3.5));
        assert_eq!(Report::joined(Vec::new()), None);
    }

    #[test]
    fn a_run_in_which_nothing_arrived_has_failed() {
        assert_eq!(report(0, 0, Checks::default()).failures().len(), 1);
        assert_eq!(report(0, 1, Checks::default()).failures().len(), 0);
    }

    #[test]
    fn a_broker_that_delivers_less_than_was_asked_for_has_not_kept_the_pace() {
        let check = |asked_per_second: Option<f64>, per_second: f64, unsent: u64, kept: bool| {
            let run = Report { asked_per_second, per_second, unsent, ..report(0, 1, Checks::default()) };
            assert_eq!(run.kept_pace(), kept, "{per_second} of {asked_per_second:?}, {unsent} unsent");
        };
        check(None, 5.0, 0, true);
        check(Some(100.0), 99.0, 0, true);
        check(Some(100.0), 90.0, 0, false);
        check(Some(100.0), 100.0, 1, false);
    }

    #[test]
    fn a_run_fails_on_what_its_qos_promises_and_on_nothing_else() {
        let check = |qos: u8, checks: Checks, failures: usize| {
            let report = report(qos, 1, checks);
            assert_eq!(report.failures().len(), failures, "QoS {qos}: {checks:?}");
        };
        let fine = Checks::default();
        for qos in 0..=2 {
            check(qos, fine, 0);
            check(qos, Checks { disorder: 1, corrupt: 1, misrouted: 1, ack_disorder: 1, ..fine }, 4);
        }
        check(0, Checks { loss: 1, ..fine }, 0);
        check(1, Checks { loss: 1, ..fine }, 1);
        check(2, Checks { loss: 1, ..fine }, 1);
        check(0, Checks { duplicates: 1, ..fine }, 1);
        check(1, Checks { duplicates: 1, ..fine }, 0);
        check(2, Checks { duplicates: 1, ..fine }, 1);
    }

    #[test]
    fn latencies_are_summed_up_in_microseconds() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.summary(), None);
        for micros in 1..=100 {
            latencies.record(micros * 1000);
        }
        let summary = latencies.summary().unwrap();
        for (got, want) in [(summary.p50_us, 50.0), (summary.p99_us, 99.0), (summary.max_us, 100.0)] {
            assert!((got - want).abs() <= want / 500.0, "{got} is near {want}");
        }
    }
}
