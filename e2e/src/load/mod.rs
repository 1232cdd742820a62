//! The load generator: its own MQTT 3.1.1 client, cheap enough to measure brokers with.
//!
//! One thread drives every socket through epoll, so that a message costs the generator less than it costs
//! the broker. The codec is written apart from the broker's on purpose: it is a second opinion on the wire.
//! Every payload carries its publisher, its number and the time it was due, so each run proves that nothing
//! was lost, repeated or reordered; figures of a run that can't prove it are not worth printing.

mod bare;
mod check;
mod conn;
mod engine;
mod leave;
mod ledger;
mod plan;
pub(crate) mod procfs;
mod publisher;
mod report;
mod seats;
mod storm;
mod takeover;
mod timer;
mod window;
mod wire;

use std::io;
use std::time::Duration;

pub use plan::{Loopback, Options, Plan, PlanError, Qos, Scene};
pub use report::{Checks, Latency, Report};

/// Runs `plan` against a broker and reports what was measured.
///
/// # Errors
/// What kept the run from being measured at all. A run that was measured but broke MQTT's promises is a
/// [`Report`] whose [`Report::failures`] says so.
pub fn run(plan: &Plan) -> Result<Report, LoadError> {
    match plan.scene {
        Scene::Connect { at_once } => storm::run(plan, at_once),
        Scene::Leave { sessions, at_once } => leave::run(plan, sessions, at_once),
        Scene::Takeover { sessions, at_once } => takeover::run(plan, sessions, at_once),
        Scene::Stored { publishers, bare: true } => bare::run(plan, publishers),
        _ => engine::run(plan),
    }
}

/// Why a run could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
    #[error(
        "the broker refused connection {connection} with CONNACK code {code}: check --username and --password"
    )]
    Refused { connection: usize, code: u8 },
    #[error("the broker refused the subscription of connection {connection}: check the user's grants")]
    NotSubscribed { connection: usize },
    #[error("device {connection} found no session where it came again")]
    NoSession { connection: usize },
    #[error("the broker closed connection {connection} while {phase}")]
    Closed { connection: usize, phase: Phase },
    #[error("connection {connection} received {source}")]
    Wire { connection: usize, source: wire::WireError },
    #[error("connection {connection} received a {packet} it has no use for")]
    Unexpected { connection: usize, packet: &'static str },
    #[error("gave up after {} s while {phase}: raise --timeout, or look at the broker's log", .after.as_secs())]
    TimedOut { after: Duration, phase: Phase },
    #[error("Kafka at --addr: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    #[error("cannot read {path}: {source}; check --pid")]
    Proc { path: String, source: io::Error },
    #[error("cannot make sense of {path}")]
    ProcShape { path: String },
}

/// What a run is busy with, for errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Connecting { ready: usize, of: usize },
    Publishing,
    Draining,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connecting { ready, of } => write!(f, "connecting ({ready} of {of} ready)"),
            Self::Publishing => f.write_str("publishing"),
            Self::Draining => f.write_str("waiting for the last messages"),
        }
    }
}
