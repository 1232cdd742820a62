//! The side-by-side benchmark: our broker, mosquitto and rumqttd, one after the other on the same core,
//! under the same load from another core, round after round. Where ours stores on Kafka, a plain producer that sends
//! the same records stands beside it.
//!
//! A machine's speed drifts, so rounds are interleaved and what counts are ratios within a run.

mod brokers;
mod results;
mod scenes;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

pub use brokers::Kind;

use crate::kafka::{Kafka, KafkaOptions};
use crate::load::Report;
use brokers::{Broker, PARTITIONS, Store, TOPIC};
use results::{Results, Run};
use scenes::{SCENES, Scene, Way};

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
                let outcome =
                    measure(options, &load, scene, *kind, seconds, kafka).map_err(|e| format!("{e:#}"));
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

/// One run: a fresh broker or nothing but `kafka`, the load, the report or why there is none.
fn measure(
    options: &Options,
    load: &Path,
    scene: &Scene,
    kind: Kind,
    seconds: f64,
    kafka: Option<&Kafka>,
) -> anyhow::Result<Report> {
    if let Some(kafka) = kafka {
        kafka.clear()?;
    }
    let address = kafka.map(Kafka::bootstrap);
    let (path, core) = (binary(options, load, kind), options.broker_core);
    let mut nodes = match (kind, kafka, scene.store) {
        (Kind::Bare, None, _) => bail!("it needs Kafka"),
        (Kind::Bare, Some(kafka), _) => {
            kafka.create_topic(TOPIC, PARTITIONS, &[])?;
            Vec::new()
        }
        (_, _, Store::KafkaOf(nodes)) => {
            Broker::start_joined(nodes, path, core, address.as_deref().unwrap_or_default())?
        }
        _ => vec![Broker::start(kind, path, core, address.as_deref(), &[])?],
    };
    let log = address.as_deref().filter(|_| kind == Kind::Ours);
    let logged = log.map(session_records).transpose()?;
    let without_sessions = match nodes.first() {
        Some(broker) if scene.way == Way::Restart => Some(broker.settled_kb()?),
        _ => None,
    };
    // Links are made within a second.
    let warmup = match (nodes.len(), options.quick) {
        (2.., _) => "2",
        (_, true) => "0.3",
        (_, false) => "1",
    };
    let generator = |core: usize, at: &str, nodes: &[Broker]| {
        let mut command = Command::new("taskset");
        command.args(["-c", &core.to_string()]).arg(load).args(["--addr", at]);
        nodes.iter().for_each(|node| {
            command.args(["--pid", &node.pid().to_string()]);
        });
        command.args(["--duration", &seconds.to_string(), "--warmup", warmup]);
        command.args(["--timeout", &(seconds + 120.0).to_string()]);
        if let Some((user, password)) = nodes.first().and_then(|node| node.login) {
            command.args(["--username", user, "--password", password]);
        }
        command.args(scene.load_of(kind)).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let core = options.load_core;
    let generators = match (nodes.as_slice(), scene.way) {
        ([], _) => vec![generator(options.broker_core, address.as_deref().unwrap_or_default(), &[])],
        (nodes, Way::LoadEach) => {
            let each = nodes.chunks(1).zip(nodes);
            each.map(|(node, Broker { addr, .. })| generator(core, &addr.to_string(), node)).collect()
        }
        ([one, others @ ..], _) => {
            let mut command = generator(core, &one.addr.to_string(), &nodes);
            if let Some(other) = others.first() {
                command.args(["--subscribers-at", &other.addr.to_string()]);
            }
            vec![command]
        }
    };
    let running = generators.into_iter().map(|mut command| command.spawn().context("cannot run taskset"));
    let running = running.collect::<anyhow::Result<Vec<_>>>()?;
    // The generator bounds its own time, so these waits are bounded too.
    let reports = running.into_iter().map(|child| reported(child, &nodes)).collect::<Vec<_>>();
    let reports = reports.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let mut report = Report::joined(reports).context("no report")?;
    if let (Some(log), Some(before)) = (log, logged)
        && report.published > 0
    {
        let grown = session_records(log)?.saturating_sub(before);
        report.log_records_per_message = Some(grown as f64 / report.published as f64);
    }
    if let (Some(broker), Some(before)) = (nodes.first_mut(), without_sessions) {
        let sessions = report.connections.max(1) as f64;
        let each = |now: u64| Some((now as f64 - before as f64) / sessions);
        report.broker_rss_kb_per_session_made = each(broker.settled_kb()?);
        report.ready_seconds = Some(broker.restart()?.as_secs_f64());
        report.broker_rss_kb_per_session = each(broker.settled_kb()?);
    }
    Ok(report)
}

/// What a generator printed, or its last words and those of the broker.
fn reported(generator: Child, nodes: &[Broker]) -> anyhow::Result<Report> {
    let output = generator.wait_with_output().context("the load generator is lost")?;
    if output.status.code() == Some(0) {
        return serde_json::from_slice(&output.stdout).context("unreadable report");
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().last().unwrap_or("no report").trim_start_matches("mqtt-load: ");
    match nodes.iter().find_map(Broker::last_words) {
        Some(words) => bail!("{said} (broker: {words})"),
        None => bail!("{said}"),
    }
}

/// All that has ever been written to the session log, by where its partitions end.
fn session_records(kafka: &str) -> anyhow::Result<u64> {
    const LOG: &str = "__mqtt-sessions";
    const LIMIT: Duration = Duration::from_secs(20);
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", kafka).create()?;
    let metadata = consumer.fetch_metadata(Some(LOG), LIMIT).context("no word of the session log")?;
    let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
    partitions
        .map(|partition| Ok(consumer.fetch_watermarks(LOG, partition.id(), LIMIT)?.1.unsigned_abs()))
        .sum()
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
