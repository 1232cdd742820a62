//! The side-by-side benchmark: our broker, mosquitto and rumqttd, one after the other on the same core,
//! under the same load from another core, round after round. Where ours stores on Kafka, a plain producer that sends
//! the same records stands beside it.
//!
//! A machine's speed drifts, so rounds are interleaved and what counts are ratios within a run.

mod brokers;
mod results;
mod scenes;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;

pub use brokers::Kind;

use crate::kafka::{Kafka, KafkaOptions};
use crate::load::Report;
use brokers::{Broker, PARTITIONS, Store, TOPIC};
use results::{Results, Run};
use scenes::{SCENES, Scene};

/// The command line of `mqtt-bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// Brokers compared.
    #[arg(long, value_delimiter = ',', default_value = "ours,mosquitto,rumqttd,bare")]
    pub brokers: Vec<Kind>,
    /// Our broker's binary.
    #[arg(long, env = "MQTT_BROKER", default_value = "target/release/mqtt-broker")]
    pub ours: PathBuf,
    #[arg(long, env = "MOSQUITTO", default_value = "/usr/sbin/mosquitto")]
    pub mosquitto: PathBuf,
    #[arg(long, env = "RUMQTTD", default_value = ".tools/bin/rumqttd")]
    pub rumqttd: PathBuf,
    /// The load generator's binary; by default the one beside this program.
    #[arg(long)]
    pub load: Option<PathBuf>,
    /// Only the scenes whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    pub scenes: Vec<String>,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub rounds: u32,
    /// Seconds measured a run.
    #[arg(long, default_value_t = 4.0)]
    pub duration: f64,
    /// One round of one second a run: shows that everything works, not how fast.
    #[arg(long)]
    pub quick: bool,
    /// Where the figures go as JSON.
    #[arg(long, default_value = "target/bench.json")]
    pub json: PathBuf,
    /// Core of the broker.
    #[arg(long, default_value_t = 0)]
    pub broker_core: usize,
    /// Core of the load generator.
    #[arg(long, default_value_t = 1)]
    pub load_core: usize,
}

/// Runs every scene against every broker; prints the table and writes the JSON file.
///
/// # Errors
/// What kept the benchmark from running. A run that fails is a cell of the table, and makes this return false.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let load = options.load.clone().map_or_else(beside_us, Ok)?;
    let scenes: Vec<&Scene> = SCENES.iter().filter(|s| s.is_wanted(&options.scenes)).collect();
    if scenes.is_empty() {
        bail!("no scene has such a name: {}; names are {}", options.scenes.join(", "), scenes::names());
    }
    for kind in &options.brokers {
        let path = binary(options, &load, *kind);
        if !path.is_file() {
            bail!("no {kind} at {}: {}, or leave it out with --brokers", path.display(), kind.how_to_get());
        }
    }
    if !load.is_file() {
        bail!("no load generator at {}: build it with cargo build --release -p mqtt-e2e", load.display());
    }

    let kafka = match scenes.iter().any(|scene| scene.store.is_kafka()) {
        true => Some(start_kafka().context("no Kafka to measure on (--scenes can leave it out)")?),
        false => None,
    };
    let (rounds, seconds) = if options.quick { (1, 1.0) } else { (options.rounds, options.duration) };
    let mut results = Results::new(rounds, seconds);
    for round in 1..=rounds {
        for scene in &scenes {
            for kind in options.brokers.iter().filter(|kind| scene.suits(**kind)) {
                let kafka = kafka.as_ref().filter(|_| scene.store.is_kafka());
                let outcome = measure(options, &load, scene, *kind, seconds, kafka);
                eprintln!(
                    "round {round}/{rounds} · {} · {kind}: {}",
                    scene.name,
                    results::in_brief(&outcome)
                );
                results.add(scene, Run::new(round, *kind, outcome));
            }
        }
    }

    println!("{}", results.markdown());
    let json = serde_json::to_string_pretty(&results)?;
    if let Some(parent) = options.json.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    std::fs::write(&options.json, json)
        .with_context(|| format!("cannot write {}", options.json.display()))?;
    Ok(results.all_sound())
}

/// One node, started once for all rounds.
fn start_kafka() -> anyhow::Result<Kafka> {
    Kafka::start(KafkaOptions { shows_log: false, ..KafkaOptions::default() })
}

/// One run: a fresh broker or nothing but `kafka`, one load, the report or why there is none.
fn measure(
    options: &Options,
    load: &Path,
    scene: &Scene,
    kind: Kind,
    seconds: f64,
    kafka: Option<&Kafka>,
) -> Result<Report, String> {
    let one_line = |e: anyhow::Error| format!("{e:#}");
    if let Some(kafka) = kafka {
        kafka.clear().map_err(one_line)?;
    }
    let address = kafka.map(Kafka::bootstrap);
    let (path, core) = (binary(options, load, kind), options.broker_core);
    let (mut broker, other) = match (kind, kafka) {
        (Kind::Bare, None) => return Err("it needs Kafka".to_owned()),
        (Kind::Bare, Some(kafka)) => {
            kafka.create_topic(TOPIC, PARTITIONS, &[]).map_err(one_line)?;
            (None, None)
        }
        _ if scene.store == Store::KafkaOfTwo => {
            let kafka = address.as_deref().unwrap_or_default();
            let [one, other] = Broker::start_two(path, core, kafka).map_err(one_line)?;
            (Some(one), Some(other))
        }
        _ => (Some(Broker::start(kind, path, core, address.as_deref(), &[]).map_err(one_line)?), None),
    };
    let without_sessions = match &broker {
        Some(broker) if scene.restarts => Some(broker.settled_kb().map_err(one_line)?),
        _ => None,
    };
    let mut command = Command::new("taskset");
    let core = if broker.is_some() { options.load_core } else { options.broker_core };
    command.args(["-c", &core.to_string()]).arg(load);
    match &broker {
        Some(broker) => {
            command.args(["--addr", &broker.addr.to_string(), "--pid", &broker.pid().to_string()])
        }
        None => command.args(["--addr", address.as_deref().unwrap_or_default()]),
    };
    if let Some(other) = &other {
        command.args(["--subscribers-at", &other.addr.to_string(), "--pid", &other.pid().to_string()]);
    }
    // Links are made within a second.
    let warmup = match (&other, options.quick) {
        (Some(_), _) => "2",
        (None, true) => "0.3",
        (None, false) => "1",
    };
    command.args(["--duration", &seconds.to_string(), "--warmup", warmup]);
    command.args(["--timeout", &(seconds + 120.0).to_string()]);
    if let Some((user, password)) = broker.as_ref().and_then(|broker| broker.login) {
        command.args(["--username", user, "--password", password]);
    }
    // The generator bounds its own time, so this wait is bounded too.
    let output =
        command.args(scene.load_of(kind)).output().map_err(|e| format!("cannot run taskset: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().last().unwrap_or("no report").trim_start_matches("mqtt-load: ").to_owned();
    match output.status.code() {
        Some(0) => {
            let report = serde_json::from_slice(&output.stdout);
            let mut report: Report = report.map_err(|e| format!("unreadable report: {e}"))?;
            if let (Some(broker), Some(before)) = (&mut broker, without_sessions) {
                let sessions = report.connections.max(1) as f64;
                let each = |now: u64| Some((now as f64 - before as f64) / sessions);
                report.broker_rss_kb_per_session_made = each(broker.settled_kb().map_err(one_line)?);
                report.ready_seconds = Some(broker.restart().map_err(one_line)?.as_secs_f64());
                report.broker_rss_kb_per_session = each(broker.settled_kb().map_err(one_line)?);
            }
            Ok(report)
        }
        _ => Err(match broker.and_then(|broker| broker.last_words()) {
            Some(words) => format!("{said} (broker: {words})"),
            None => said,
        }),
    }
}

fn binary<'a>(options: &'a Options, load: &'a Path, kind: Kind) -> &'a Path {
    match kind {
        Kind::Ours => &options.ours,
        Kind::Mosquitto => &options.mosquitto,
        Kind::Rumqttd => &options.rumqttd,
        Kind::Bare => load,
    }
}

fn beside_us() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("cannot find this program's own path; give --load")?;
    Ok(this.with_file_name("mqtt-load"))
}
