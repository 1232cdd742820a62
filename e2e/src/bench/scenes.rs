//! What is measured, and the bars our broker is held to.

use super::brokers::{Kind, Store};
use crate::load::Report;

/// One load, run against each broker it suits.
pub(super) struct Scene {
    pub(super) name: &'static str,
    /// Arguments of `mqtt-load`.
    pub(super) load: &'static [&'static str],
    /// Who is compared with ours; with nobody the scene has absolute bars only.
    pub(super) peers: &'static [Kind],
    /// Where ours keeps its log.
    pub(super) store: Store,
    pub(super) way: Way,
    pub(super) bars: &'static [Bar],
}

/// What is done with the broker, or with all nodes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Load,
    /// Each node has the load for itself.
    LoadEach,
    /// Afterwards it is killed and started again; that is what is measured.
    Restart,
}

/// One thing our broker must reach.
pub(super) struct Bar {
    pub(super) of: Metric,
    pub(super) limit: Limit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    Cpu,
    PerSecond,
    P50,
    P99,
    IdleKb,
    AllMb,
    LogRecords,
    Ready,
    SessionKb,
    MadeKb,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Limit {
    /// At most this multiple of the best peer's figure.
    MostOfBest(f64),
    /// At least this multiple of it.
    LeastOfBest(f64),
    AtMost(f64),
    AtLeast(f64),
}

impl Scene {
    pub(super) fn suits(&self, kind: Kind) -> bool {
        kind == Kind::Ours || self.peers.contains(&kind)
    }

    /// Arguments of `mqtt-load` that put this load on `kind`.
    pub(super) fn load_of(&self, kind: Kind) -> impl Iterator<Item = &'static str> {
        self.load.iter().copied().chain((kind == Kind::Bare).then_some("--bare"))
    }

    pub(super) fn is_wanted(&self, names: &[String]) -> bool {
        names.is_empty() || names.iter().any(|name| self.name.contains(name.as_str()))
    }
}

impl Limit {
    /// Whether it is a ratio to the best peer.
    pub(super) fn needs_peer(self) -> bool {
        matches!(self, Self::MostOfBest(_) | Self::LeastOfBest(_))
    }

    /// Whether more is better.
    pub(super) fn is_least(self) -> bool {
        matches!(self, Self::AtLeast(_) | Self::LeastOfBest(_))
    }

    pub(super) fn figure(self) -> f64 {
        let (Self::MostOfBest(figure)
        | Self::LeastOfBest(figure)
        | Self::AtMost(figure)
        | Self::AtLeast(figure)) = self;
        figure
    }
}

impl Metric {
    /// The figure in the unit [`Metric::unit`] names.
    pub(super) fn of(self, report: &Report) -> Option<f64> {
        match self {
            Self::Cpu => report.broker_cpu_us_per_message,
            Self::PerSecond => Some(report.per_second),
            Self::P50 => report.latency.map(|l| l.p50_us / 1000.0),
            Self::P99 => report.latency.map(|l| l.p99_us / 1000.0),
            Self::IdleKb => report.broker_rss_kb_per_connection,
            Self::AllMb => report.broker_rss_kb.map(|kb| kb as f64 / 1024.0),
            Self::LogRecords => report.log_records_per_message,
            Self::Ready => report.ready_seconds,
            Self::SessionKb => report.broker_rss_kb_per_session,
            Self::MadeKb => report.broker_rss_kb_per_session_made,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::PerSecond => "rate",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::IdleKb | Self::SessionKb => "memory",
            Self::MadeKb => "memory before",
            Self::AllMb => "memory in all",
            Self::LogRecords => "log",
            Self::Ready => "ready after",
        }
    }

    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Cpu => "µs",
            Self::PerSecond => "/s",
            Self::P50 | Self::P99 => "ms",
            Self::IdleKb | Self::SessionKb | Self::MadeKb => "KB",
            Self::AllMb => "MB",
            Self::LogRecords => "records",
            Self::Ready => "s",
        }
    }
}

pub(super) fn names() -> String {
    SCENES.iter().map(|scene| scene.name).collect::<Vec<_>>().join("; ")
}

/// Those that have nothing like the log.
const BROKERS: &[Kind] = &[Kind::Mosquitto, Kind::Rumqttd];

const fn cpu(of_best: f64) -> Bar {
    Bar { of: Metric::Cpu, limit: Limit::MostOfBest(of_best) }
}

/// Of sessions with three subscriptions each, that their devices have left.
const LEFT: &[Bar] = &[
    Bar { of: Metric::Ready, limit: Limit::AtMost(15.0) },
    Bar { of: Metric::SessionKb, limit: Limit::AtMost(1.0) },
    Bar { of: Metric::MadeKb, limit: Limit::AtMost(1.0) },
];

const RATE_OF_BARE: Bar = Bar { of: Metric::PerSecond, limit: Limit::LeastOfBest(0.7) };

/// A seat's session lasts, so that each of its logins claims it anew.
const CLAIMS: &[&str] = &["--persistent", "connect"];
const TAKEOVER: &[&str] = &["--qos", "1", "takeover", "--sessions", "5000"];

/// On two nodes as on one.
const PACED: &[&str] =
    &["--qos", "1", "--window", "1000", "--rate", "2000", "--sleep", "p2p", "--pairs", "50"];
const PACED_LASTING: &[&str] =
    &["--qos", "1", "--window", "1000", "--rate", "2000", "--sleep", "--persistent", "p2p", "--pairs", "50"];

pub(super) const SCENES: &[Scene] = &[
    Scene {
        name: "p2p QoS 0, 50 pairs, 30,000/s",
        load: &["--qos", "0", "--rate", "30000", "p2p", "--pairs", "50"],
        peers: BROKERS,
        store: Store::Folder,
        way: Way::Load,
        bars: &[cpu(0.8)],
    },
    Scene {
        name: "p2p QoS 1, 50 pairs, window 20, flat out",
        load: &["--qos", "1", "--window", "20", "p2p", "--pairs", "50"],
        peers: BROKERS,
        store: Store::Folder,
        way: Way::Load,
        bars: &[cpu(1.0)],
    },
    Scene {
        name: "p2p QoS 2, 50 pairs, window 20, flat out",
        load: &["--qos", "2", "--window", "20", "p2p", "--pairs", "50"],
        peers: BROKERS,
        store: Store::Folder,
        way: Way::Load,
        bars: &[cpu(1.0)],
    },
    Scene {
        name: "fan-in QoS 1, 50 → 1, window 20, flat out",
        load: &["--qos", "1", "--window", "20", "fan-in", "--publishers", "50"],
        peers: BROKERS,
        store: Store::Folder,
        way: Way::Load,
        bars: &[cpu(1.0)],
    },
    Scene {
        name: "fan-out QoS 0, 1 → 100, 60,000 deliveries/s",
        load: &["--qos", "0", "--rate", "600", "fan-out", "--subscribers", "100"],
        peers: BROKERS,
        store: Store::Folder,
        way: Way::Load,
        bars: &[cpu(0.8)],
    },
    Scene {
        name: "fan-out QoS 1, 1 → 100, window 20, flat out",
        load: &["--qos", "1", "--window", "20", "fan-out", "--subscribers", "100"],
        peers: BROKERS,
        store: Store::Folder,
        way: Way::Load,
        bars: &[cpu(1.0)],
    },
    Scene {
        name: "p2p QoS 1, 50 pairs, 2,000/s",
        load: &["--qos", "1", "--window", "1000", "--rate", "2000", "p2p", "--pairs", "50"],
        peers: BROKERS,
        store: Store::Folder,
        way: Way::Load,
        bars: &[
            cpu(0.9),
            Bar { of: Metric::P50, limit: Limit::MostOfBest(1.0) },
            Bar { of: Metric::P99, limit: Limit::MostOfBest(1.0) },
        ],
    },
    Scene {
        name: "p2p QoS 1 to sessions that last, 50 pairs, window 20, flat out",
        load: &["--qos", "1", "--window", "20", "--persistent", "p2p", "--pairs", "50"],
        peers: &[],
        store: Store::Folder,
        way: Way::Load,
        bars: &[],
    },
    Scene {
        name: "p2p QoS 1 to sessions that last, 50 pairs, 2,000/s",
        load: &["--qos", "1", "--window", "1000", "--rate", "2000", "--persistent", "p2p", "--pairs", "50"],
        peers: &[],
        store: Store::Folder,
        way: Way::Load,
        bars: &[Bar { of: Metric::P50, limit: Limit::AtMost(0.5) }],
    },
    Scene {
        name: "p2p QoS 1 on one node with Kafka, 50 pairs, 2,000/s",
        load: PACED,
        peers: &[],
        store: Store::Kafka,
        way: Way::Load,
        bars: &[],
    },
    Scene {
        name: "p2p QoS 1 on one node with Kafka to sessions that last, 50 pairs, 2,000/s",
        load: PACED_LASTING,
        peers: &[],
        store: Store::Kafka,
        way: Way::Load,
        bars: &[],
    },
    Scene {
        name: "p2p QoS 1 across two nodes, 50 pairs, 2,000/s",
        load: PACED,
        peers: &[],
        store: Store::KafkaOf(2),
        way: Way::Load,
        bars: &[],
    },
    Scene {
        name: "p2p QoS 1 across two nodes to sessions that last, 50 pairs, 2,000/s",
        load: PACED_LASTING,
        peers: &[],
        store: Store::KafkaOf(2),
        way: Way::Load,
        bars: &[],
    },
    Scene {
        name: "logins, 64 at a time",
        load: &["connect"],
        peers: BROKERS,
        store: Store::Folder,
        way: Way::Load,
        bars: &[Bar { of: Metric::PerSecond, limit: Limit::LeastOfBest(1.5) }],
    },
    Scene {
        name: "logins to sessions that last, 64 at a time",
        load: CLAIMS,
        peers: &[],
        store: Store::Folder,
        way: Way::Load,
        bars: &[],
    },
    Scene {
        name: "logins to sessions that last, 64 at a time, on two nodes",
        load: CLAIMS,
        peers: &[],
        store: Store::KafkaOf(2),
        way: Way::Load,
        bars: &[],
    },
    Scene {
        name: "5,000 sessions taken over, 16 at a time",
        load: TAKEOVER,
        peers: &[],
        store: Store::Folder,
        way: Way::Load,
        bars: &[],
    },
    Scene {
        name: "5,000 sessions taken over by another of two nodes, 16 at a time",
        load: TAKEOVER,
        peers: &[],
        store: Store::KafkaOf(2),
        way: Way::Load,
        bars: &[],
    },
    Scene {
        name: "idle, 6 nodes with 16,700 connections each",
        load: &["idle", "--connections", "16700"],
        peers: &[],
        store: Store::KafkaOf(6),
        way: Way::LoadEach,
        bars: &[Bar { of: Metric::IdleKb, limit: Limit::AtMost(3.0) }],
    },
    Scene {
        name: "idle, 5,000 connections",
        load: &["idle", "--connections", "5000"],
        peers: BROKERS,
        store: Store::Folder,
        way: Way::Load,
        bars: &[Bar { of: Metric::IdleKb, limit: Limit::AtMost(3.0) }],
    },
    Scene {
        name: "start with 100,000 sessions",
        load: &["--qos", "1", "leave", "--sessions", "100000"],
        peers: &[],
        store: Store::Folder,
        way: Way::Restart,
        bars: LEFT,
    },
    Scene {
        name: "start with 100,000 sessions on Kafka",
        load: &["--qos", "1", "leave", "--sessions", "100000"],
        peers: &[],
        store: Store::Kafka,
        way: Way::Restart,
        bars: LEFT,
    },
    Scene {
        name: "stored QoS 1, 50 publishers, window 20, flat out",
        load: &["--qos", "1", "--window", "20", "--topic", "stored", "stored", "--publishers", "50"],
        peers: &[],
        store: Store::Folder,
        way: Way::Load,
        bars: &[Bar { of: Metric::PerSecond, limit: Limit::AtLeast(100_000.0) }],
    },
    Scene {
        name: "stored QoS 1, 50 publishers, 2,000/s",
        load: &[
            "--qos",
            "1",
            "--window",
            "1000",
            "--rate",
            "2000",
            "--topic",
            "stored",
            "stored",
            "--publishers",
            "50",
        ],
        peers: &[],
        store: Store::Folder,
        way: Way::Load,
        bars: &[Bar { of: Metric::P50, limit: Limit::AtMost(1.5) }],
    },
    Scene {
        name: "stored on Kafka, QoS 1, 50 publishers, window 20, flat out",
        load: &["--qos", "1", "--window", "20", "--topic", "stored", "stored", "--publishers", "50"],
        peers: &[Kind::Bare],
        store: Store::Kafka,
        way: Way::Load,
        bars: &[RATE_OF_BARE],
    },
    Scene {
        name: "stored on Kafka, QoS 1, 50 publishers, window 200, flat out",
        load: &["--qos", "1", "--window", "200", "--topic", "stored", "stored", "--publishers", "50"],
        peers: &[Kind::Bare],
        store: Store::Kafka,
        way: Way::Load,
        bars: &[RATE_OF_BARE],
    },
    Scene {
        name: "stored on Kafka, QoS 1, 50 publishers, 2,000/s",
        load: &[
            "--qos",
            "1",
            "--window",
            "1000",
            "--rate",
            "2000",
            "--sleep",
            "--topic",
            "stored",
            "stored",
            "--publishers",
            "50",
        ],
        peers: &[Kind::Bare],
        store: Store::Kafka,
        way: Way::Load,
        bars: &[Bar { of: Metric::P50, limit: Limit::MostOfBest(1.5) }],
    },
];

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::load::{Options, Plan};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn every_scene_is_a_plan_the_generator_accepts() {
        for scene in SCENES {
            for kind in Kind::ALL.into_iter().filter(|kind| scene.suits(*kind)) {
                let line = ["mqtt-load"].into_iter().chain(scene.load_of(kind));
                let options = Cli::try_parse_from(line)
                    .unwrap_or_else(|e| panic!("{}, {kind}: {e}", scene.name))
                    .options;
                if let Err(e) = Plan::try_from(options) {
                    panic!("{}, {kind}: {e}", scene.name);
                }
            }
        }
    }

    #[test]
    fn a_scene_without_peers_has_no_bar_that_needs_one() {
        for scene in SCENES.iter().filter(|scene| scene.peers.is_empty()) {
            assert!(
                !scene.bars.iter().any(|bar| bar.limit.needs_peer()),
                "{} is compared with nobody",
                scene.name
            );
        }
    }
}
