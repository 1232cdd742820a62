//! Figures of the operator, in the text format of Prometheus.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use mqtt_operator_api::Kind;
use parking_lot::Mutex;

/// Upper bounds of the histogram's buckets, in seconds.
const BUCKETS: [f64; 8] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0];

#[derive(Debug, Default)]
pub struct Metrics(Mutex<BTreeMap<(Kind, &'static str), Durations>>);

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
}

impl Metrics {
    /// `result` is one of a few words.
    pub fn reconciled(&self, kind: Kind, result: &'static str, took: Duration) {
        let mut all = self.0.lock();
        let durations = all.entry((kind, result)).or_default();
        durations.count += 1;
        durations.sum += took;
        for (bucket, bound) in durations.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(took.as_secs_f64() <= bound);
        }
    }

    pub fn text(&self, gauges: Gauges) -> String {
        let mut text = String::new();
        let Gauges { leads, waiting, running } = gauges;
        let mut gauge = |name: &str, help: &str, value: usize| {
            // Writing to a String does not fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        };
        gauge("mqtt_operator_leader", "Whether this process holds the Lease.", usize::from(leads));
        gauge("mqtt_operator_queue_waiting", "Objects that are due and not yet taken up.", waiting);
        gauge("mqtt_operator_queue_running", "Objects that are being reconciled.", running);
        let name = "mqtt_operator_reconcile_seconds";
        let _ = writeln!(
            text,
            "# HELP {name} How long reconciles took, by kind and result.\n# TYPE {name} histogram"
        );
        for ((kind, result), durations) in &*self.0.lock() {
            let labels = format!("kind=\"{kind}\",result=\"{result}\"");
            for (bound, count) in BUCKETS.iter().zip(durations.buckets) {
                let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
            }
            let (count, sum) = (durations.count, durations.sum.as_secs_f64());
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
            let _ = writeln!(text, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_by_kind_and_result() {
        let metrics = Metrics::default();
        metrics.reconciled(Kind::MqttInstance, "settled", Duration::from_millis(20));
        metrics.reconciled(Kind::MqttInstance, "settled", Duration::from_secs(2));
        metrics.reconciled(Kind::ParentTopic, "failed", Duration::from_secs(100));
        let text = metrics.text(Gauges { leads: true, waiting: 3, running: 1 });
        for line in [
            "mqtt_operator_leader 1",
            "mqtt_operator_queue_waiting 3",
            "mqtt_operator_queue_running 1",
            "mqtt_operator_reconcile_seconds_bucket{kind=\"MqttInstance\",result=\"settled\",le=\"0.01\"} 0",
            "mqtt_operator_reconcile_seconds_bucket{kind=\"MqttInstance\",result=\"settled\",le=\"0.05\"} 1",
            "mqtt_operator_reconcile_seconds_bucket{kind=\"MqttInstance\",result=\"settled\",le=\"5\"} 2",
            "mqtt_operator_reconcile_seconds_sum{kind=\"MqttInstance\",result=\"settled\"} 2.02",
            "mqtt_operator_reconcile_seconds_bucket{kind=\"ParentTopic\",result=\"failed\",le=\"60\"} 0",
            "mqtt_operator_reconcile_seconds_bucket{kind=\"ParentTopic\",result=\"failed\",le=\"+Inf\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
