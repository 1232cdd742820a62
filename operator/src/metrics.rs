//! Figures of the operator, in the text format of Prometheus.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use mqtt_operator_api::Kind;
use parking_lot::Mutex;

/// Upper bounds of the histogram's buckets, in seconds.
const BUCKETS: [f64; 10] = [0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 15.0, 60.0];

#[derive(Debug, Default)]
pub struct Metrics {
    reconciles: Mutex<BTreeMap<(Kind, &'static str), Durations>>,
    /// When one of the kind ended well last, since the Unix epoch.
    succeeded: Mutex<BTreeMap<Kind, Duration>>,
    propagation: Mutex<Durations>,
}

#[derive(Debug, Default)]
struct Durations {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: Duration,
}

/// What is read when it is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges {
    pub leads: bool,
    /// Due and not yet taken up.
    pub waiting: usize,
    pub running: usize,
    /// Of this process; none where Linux does not tell.
    pub resident_bytes: Option<usize>,
}

impl Metrics {
    /// `result` is one of a few words, `settled` among them.
    pub fn reconciled(&self, kind: Kind, result: &'static str, took: Duration) {
        if result == "settled" {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.succeeded.lock().insert(kind, now);
        }
        self.reconciles.lock().entry((kind, result)).or_default().add(took);
    }

    /// A change of users or grants is in force at every broker, so long after it was seen.
    pub fn propagated(&self, took: Duration) {
        self.propagation.lock().add(took);
    }

    pub fn text(&self, gauges: Gauges) -> String {
        let mut text = String::new();
        let Gauges { leads, waiting, running, resident_bytes } = gauges;
        let mut gauge = |name: &str, help: &str, value: usize| {
            // Writing to a String does not fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        };
        gauge("mqtt_operator_leader", "Whether this process holds the Lease.", usize::from(leads));
        gauge("mqtt_operator_queue_waiting", "Objects that are due and not yet taken up.", waiting);
        gauge("mqtt_operator_queue_running", "Objects that are being reconciled.", running);
        if let Some(bytes) = resident_bytes {
            gauge("process_resident_memory_bytes", "Memory that this process has.", bytes);
        }
        let name = "mqtt_operator_last_success_timestamp_seconds";
        let _ = writeln!(
            text,
            "# HELP {name} When a reconcile of the kind ended well last, in seconds since the Unix epoch.\n# TYPE {name} gauge"
        );
        for (kind, at) in &*self.succeeded.lock() {
            let _ = writeln!(text, "{name}{{kind=\"{kind}\"}} {}", at.as_secs());
        }
        let name = "mqtt_operator_reconcile_seconds";
        let _ = writeln!(
            text,
            "# HELP {name} How long reconciles took, by kind and result.\n# TYPE {name} histogram"
        );
        for ((kind, result), durations) in &*self.reconciles.lock() {
            durations.write(&mut text, name, &format!("kind=\"{kind}\",result=\"{result}\""));
        }
        let name = "mqtt_operator_propagation_seconds";
        let _ = writeln!(
            text,
            "# HELP {name} From seeing a change of users or grants to having it in force at every broker.\n# TYPE {name} histogram"
        );
        self.propagation.lock().write(&mut text, name, "");
        text
    }
}

impl Durations {
    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.sum += took;
        for (bucket, bound) in self.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(took.as_secs_f64() <= bound);
        }
    }

    fn write(&self, text: &mut String, name: &str, labels: &str) {
        let (braced, first) = match labels {
            "" => (String::new(), String::new()),
            labels => (format!("{{{labels}}}"), format!("{labels},")),
        };
        for (bound, count) in BUCKETS.iter().zip(self.buckets) {
            let _ = writeln!(text, "{name}_bucket{{{first}le=\"{bound}\"}} {count}");
        }
        let (count, sum) = (self.count, self.sum.as_secs_f64());
        let _ = writeln!(text, "{name}_bucket{{{first}le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum{braced} {sum}\n{name}_count{braced} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_in_buckets_and_reconciles_by_kind_and_result() {
        let metrics = Metrics::default();
        metrics.reconciled(Kind::MqttInstance, "settled", Duration::from_millis(20));
        metrics.reconciled(Kind::MqttInstance, "settled", Duration::from_secs(2));
        metrics.reconciled(Kind::ParentTopic, "failed", Duration::from_secs(100));
        metrics.propagated(Duration::from_millis(1500));
        let text = metrics.text(Gauges { leads: true, waiting: 3, running: 1, resident_bytes: Some(4096) });
        for line in [
            "mqtt_operator_leader 1",
            "mqtt_operator_queue_waiting 3",
            "process_resident_memory_bytes 4096",
            "mqtt_operator_queue_running 1",
            "mqtt_operator_reconcile_seconds_bucket{kind=\"MqttInstance\",result=\"settled\",le=\"0.01\"} 0",
            "mqtt_operator_reconcile_seconds_bucket{kind=\"MqttInstance\",result=\"settled\",le=\"0.05\"} 1",
            "mqtt_operator_reconcile_seconds_bucket{kind=\"MqttInstance\",result=\"settled\",le=\"5\"} 2",
            "mqtt_operator_reconcile_seconds_sum{kind=\"MqttInstance\",result=\"settled\"} 2.02",
            "mqtt_operator_reconcile_seconds_bucket{kind=\"ParentTopic\",result=\"failed\",le=\"60\"} 0",
            "mqtt_operator_reconcile_seconds_bucket{kind=\"ParentTopic\",result=\"failed\",le=\"+Inf\"} 1",
            "mqtt_operator_propagation_seconds_bucket{le=\"1\"} 0",
            "mqtt_operator_propagation_seconds_bucket{le=\"2\"} 1",
            "mqtt_operator_propagation_seconds_sum 1.5",
            "mqtt_operator_propagation_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        let succeeded =
            |kind: &str| text.contains(&format!("last_success_timestamp_seconds{{kind=\"{kind}\"}} "));
        assert!(succeeded("MqttInstance") && !succeeded("ParentTopic"), "{text}");
    }
}
