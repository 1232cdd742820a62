//! `GET /metrics`: what happened here and how it stands, for Prometheus, as OpenMetrics. [`FAMILIES`] is all there is; README
//! has the same table. No label has a value that a client chooses, so that their number is bounded.

use std::{fmt, sync::Arc};

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use super::Serving;
use crate::{counters::Counter, log::Health, node::Node};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One metric, with a value for each of its label sets.
struct Family {
    /// As a query has it: a counter ends in `_total`.
    name: &'static str,
    help: &'static str,
    read: fn(&Node) -> Vec<Sample>,
}

type Labels = Vec<(&'static str, &'static str)>;

struct Sample {
    labels: Labels,
    value: f64,
}

const fn family(name: &'static str, help: &'static str, read: fn(&Node) -> Vec<Sample>) -> Family {
    Family { name, help, read }
}

const FAMILIES: &[Family] = &[
    family("mqtt_build_info", "1, with the version that runs.", |_| {
        vec![Sample { labels: vec![("version", env!("CARGO_PKG_VERSION"))], value: 1.0 }]
    }),
    family("mqtt_start_time_seconds", "When the process began, in seconds since the Unix epoch.", |node| {
        one(seconds(node.started_at()))
    }),
    family("mqtt_connections", "Connections that are let in.", |node| one(real(node.connections.count()))),
    family("mqtt_connections_limit", "How many the instance may have.", |node| {
        one(real(node.settings().limits().connections))
    }),
    family("mqtt_connections_elsewhere", "Connections of the instance's other nodes.", |node| {
        one(real(node.used_elsewhere().connections))
    }),
    family("mqtt_connections_refused_total", "Connections that were not let in, by reason.", |node| {
        let of = &node.counters;
        by(
            "reason",
            &[
                ("credentials", &of.connects_refused),
                ("logins_busy", &of.logins_busy),
                ("limit", &of.connections_over_limit),
                ("address_limit", &of.connections_over_address_limit),
                ("memory", &of.connects_without_memory),
                ("tls_handshake", &of.tls_handshakes_failed),
                ("ws_handshake", &of.ws_handshakes_failed),
                ("proxy_header", &of.proxy_headers_missing),
                ("half_open", &of.half_open_evicted),
            ],
        )
    }),
    family(
        "mqtt_connections_closed_total",
        "Connections that the broker closed for a fault, by reason.",
        |node| {
            let of = &node.counters;
            by("reason", &[("protocol", &of.protocol_violations), ("memory", &of.connections_shed)])
        },
    ),
    family("mqtt_logins_slowed_total", "Logins that had to wait after wrong passwords.", |node| {
        one(real(node.counters.logins_slowed.get()))
    }),
    family(
        "mqtt_password_hashes_total",
        "Passwords that were hashed: verified ones are remembered.",
        |node| one(real(node.logins.hashes())),
    ),
    family("mqtt_sessions", "Sessions in the session log, of all nodes.", |node| {
        one(real(node.sessions.live() as u64))
    }),
    family("mqtt_sessions_expired_total", "Sessions ended because their device stayed away.", |node| {
        one(real(node.counters.sessions_expired.get()))
    }),
    family("mqtt_subscriptions", "Subscriptions of sessions in the log, and of the node's others.", |node| {
        one(real(node.router.subscriptions() as u64))
    }),
    family(
        "mqtt_subscriptions_elsewhere",
        "Subscriptions of sessions in no log at the instance's other nodes.",
        |node| one(real(node.used_elsewhere().subscriptions)),
    ),
    family("mqtt_subscriptions_limit", "How many the instance may have.", |node| {
        one(real(node.settings().limits().subscriptions))
    }),
    family("mqtt_subscriptions_refused_total", "Subscriptions that were refused, by reason.", |node| {
        let of = &node.counters;
        by("reason", &[("grant", &of.subscriptions_refused), ("limit", &of.subscriptions_over_limit)])
    }),
    family("mqtt_messages_received_total", "PUBLISH packets taken in, by QoS.", |node| {
        by_qos(node.counters.received.messages())
    }),
    family("mqtt_messages_sent_total", "PUBLISH packets sent, by QoS.", |node| {
        by_qos(node.counters.sent.messages())
    }),
    family("mqtt_payload_bytes_received_total", "Payloads of what was taken in, by QoS.", |node| {
        by_qos(node.counters.received.bytes())
    }),
    family("mqtt_payload_bytes_sent_total", "Payloads of what was sent, by QoS.", |node| {
        by_qos(node.counters.sent.bytes())
    }),
    family("mqtt_messages_dropped_total", "Messages that somebody did not get, by reason.", |node| {
        let of = &node.counters;
        by(
            "reason",
            &[
                ("queue_full", &of.queue_full_drops),
                ("expired", &of.expired_drops),
                ("too_large", &of.oversize_drops),
                ("presence", &node.bridge.presence_drops),
                ("trace", &node.bridge.trace_drops),
                ("mq2mqtt", &of.bridge_rejects),
            ],
        )
    }),
    family("mqtt_publishes_refused_total", "Publishes without a grant.", |node| {
        one(real(node.counters.publishes_refused.get()))
    }),
    family("mqtt_publish_rate_limit", "Messages a second that the node takes in; 0: no limit.", |node| {
        one(real(node.share_of(node.settings().limits().publish_rate)))
    }),
    family("mqtt_delivery_rate_limit", "Deliveries a second that the node makes; 0: no limit.", |node| {
        one(real(node.share_of(node.settings().limits().delivery_rate.unwrap_or(0))))
    }),
    family(
        "mqtt_rate_pauses_total",
        "Times that the broker read or sent more slowly, by the limit.",
        |node| {
            let of = &node.counters;
            by(
                "limit",
                &[
                    ("publish_rate", &of.publish_rate_pauses),
                    ("delivery_rate", &of.delivery_rate_pauses),
                    ("connect_rate", &of.connect_rate_pauses),
                ],
            )
        },
    ),
    family("mqtt_peer_links", "Links to other nodes in use.", |node| passed(node, "peer_links")),
    family(
        "mqtt_messages_passed_total",
        "Messages passed on to other nodes, counted for each, by way.",
        |node| {
            let ways = [("link", "passed_by_links"), ("log", "passed_through_log")];
            each("way", &ways, |name| passed(node, name))
        },
    ),
    family(
        "mqtt_publishes_by_lease_total",
        "Publishes at QoS 1 and 2 that were routed without a round trip to the log.",
        |node| {
            let several = node.relay.iter();
            several.flat_map(|_| one(real(node.sessions.routed_at_once()))).collect()
        },
    ),
    family("mqtt_memory_resident_bytes", "Memory of the process.", |node| {
        one(real(node.admission.memory.figures().0))
    }),
    family("mqtt_memory_bound_bytes", "Memory beyond which connections are refused.", |node| {
        one(real(node.admission.memory.figures().1))
    }),
    family(
        "mqtt_tls_certificate_expiry_timestamp_seconds",
        "When the certificate of the TLS listeners expires.",
        |node| {
            let at = node.counters.tls_certificate_expires_at.get();
            if at == 0 { Vec::new() } else { one(real(at)) }
        },
    ),
    family("mqtt_acl_generation", "Generation of the ACL document in force.", |node| {
        one(real(node.settings().acl.generation))
    }),
    family("mqtt_log_away", "1 while the store is out of reach.", |node| {
        one(f64::from(u8::from(*node.log.health().borrow() != Health::Working)))
    }),
    family("mqtt_log_waiting_bytes", "Bytes that wait to be stored.", |node| {
        figure(node, "log_waiting_bytes")
    }),
    family("mqtt_log_waiting_records", "Records that wait to be stored.", |node| {
        figure(node, "log_waiting_records")
    }),
    family("mqtt_log_longest_wait_seconds", "How long the oldest of them has waited (Kafka).", |node| {
        scaled(node, "log_waits_longest_ms", 1e-3)
    }),
    family("mqtt_kafka_brokers_known", "Kafka nodes that the cluster told of.", |node| {
        figure(node, "kafka_brokers_known")
    }),
    family("mqtt_kafka_brokers_up", "Those with a connection.", |node| figure(node, "kafka_brokers_up")),
    family("mqtt_kafka_requests_total", "Requests to Kafka.", |node| figure(node, "kafka_requests")),
    family("mqtt_kafka_request_bytes_total", "Bytes of them.", |node| figure(node, "kafka_request_bytes")),
    family("mqtt_kafka_request_failures_total", "What did not go well with them, by kind.", |node| {
        let kinds = [
            ("error", "kafka_request_errors"),
            ("retry", "kafka_request_retries"),
            ("timeout", "kafka_request_timeouts"),
        ];
        each("kind", &kinds, |name| figure(node, name))
    }),
    family("mqtt_kafka_round_trip_seconds", "The slowest Kafka node's round trip, by quantile.", |node| {
        let quantiles = [("0.5", "kafka_round_trip_p50_us"), ("0.99", "kafka_round_trip_p99_us")];
        each("quantile", &quantiles, |name| scaled(node, name, 1e-6))
    }),
    family("mqtt_kafka_records_refused_total", "Records that Kafka does not take.", |node| {
        figure(node, "kafka_records_refused")
    }),
    family(
        "mqtt_kafka_producers_started_total",
        "Producers: more than one says that something was replaced.",
        |node| figure(node, "kafka_producers_started"),
    ),
];

pub(super) async fn metrics(Serving(node): Serving) -> Response {
    match text(node) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn text(node: Arc<Node>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(AllOf(node)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

struct AllOf(Arc<Node>);

impl fmt::Debug for AllOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AllOf")
    }
}

impl Collector for AllOf {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Family { name, help, read } in FAMILIES {
            let samples = read(&self.0);
            if samples.is_empty() {
                continue;
            }
            let counter = name.strip_suffix("_total");
            let kind = if counter.is_some() { MetricType::Counter } else { MetricType::Gauge };
            let mut family = encoder.encode_descriptor(counter.unwrap_or(name), help, None, kind)?;
            for Sample { labels, value } in &samples {
                if !labels.is_empty() {
                    put(kind, *value, family.encode_family(labels)?)?;
                }
            }
            if let [Sample { labels, value }] = samples.as_slice()
                && labels.is_empty()
            {
                put(kind, *value, family)?;
            }
        }
        Ok(())
    }
}

fn put(kind: MetricType, value: f64, into: MetricEncoder<'_>) -> fmt::Result {
    match kind {
        MetricType::Counter => ConstCounter::new(value).encode(into),
        _ => ConstGauge::new(value).encode(into),
    }
}

fn one(value: f64) -> Vec<Sample> {
    vec![Sample { labels: Vec::new(), value }]
}

fn by(label: &'static str, counters: &[(&'static str, &Counter)]) -> Vec<Sample> {
    let of = |(name, counter): &(&'static str, &Counter)| Sample {
        labels: vec![(label, *name)],
        value: real(counter.get()),
    };
    counters.iter().map(of).collect()
}

fn by_qos(figures: [u64; 3]) -> Vec<Sample> {
    let of = |(name, figure)| Sample { labels: vec![("qos", name)], value: real(figure) };
    ["0", "1", "2"].into_iter().zip(figures).map(of).collect()
}

/// What is read for each of these, labelled.
fn each(
    label: &'static str,
    all: &[(&'static str, &'static str)],
    read: impl Fn(&str) -> Vec<Sample>,
) -> Vec<Sample> {
    let labelled = |(value, name): &(&'static str, &'static str)| {
        let labels = vec![(label, *value)];
        read(name).into_iter().map(move |sample| Sample { labels: labels.clone(), ..sample })
    };
    all.iter().flat_map(labelled).collect()
}

/// A figure of the store, if it has it.
fn figure(node: &Node, name: &str) -> Vec<Sample> {
    scaled(node, name, 1.0)
}

/// A figure of what passes between nodes, where there are several.
fn passed(node: &Node, name: &str) -> Vec<Sample> {
    let figures = node.relay.iter().flat_map(|relay| relay.figures());
    figures.filter(|(figure, _)| *figure == name).flat_map(|(_, value)| one(real(value))).collect()
}

fn scaled(node: &Node, name: &str, unit: f64) -> Vec<Sample> {
    let figure = node.log.figures().into_iter().find(|(figure, _)| *figure == name);
    figure.map(|(_, value)| one(real(value) * unit)).unwrap_or_default()
}

fn seconds(millis: u64) -> f64 {
    real(millis) / 1e3
}

/// Exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn real(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::FAMILIES;

    #[test]
    fn readme_has_all_metrics_and_no_others() {
        let readme = include_str!("../../../README.md");
        let rows = readme.lines().filter_map(|line| line.strip_prefix("| `mqtt_")?.split('`').next());
        let documented: Vec<String> = rows.map(|name| format!("mqtt_{name}")).collect();
        let there: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        assert_eq!(documented, there);
    }
}
