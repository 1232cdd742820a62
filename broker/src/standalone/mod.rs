//! `mqtt-broker standalone`: one node, steered by a folder of manifests, with the embedded store or Kafka.

mod args;
pub(crate) mod manifests;
mod watch;

use std::{path::Path, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

pub(crate) use self::args::Args;
use self::manifests::{Loaded, Manifests};
use crate::{
    bridge::{Bridge, SystemTopics},
    log::{
        Log,
        embedded::{EmbeddedLog, EmbeddedOptions},
    },
    node::{self, Node},
    server::Server,
    session::unreleased::Unreleased,
    settings::Settings,
};

/// Exit code for manifests that can't be used.
const BAD_MANIFESTS: u8 = 2;

pub(crate) fn run(args: Args) -> ExitCode {
    let mut manifests = match Manifests::new(&args.manifests, args.store()) {
        Ok(manifests) => manifests,
        Err(error) => {
            eprintln!("mqtt-broker: {error}");
            return ExitCode::FAILURE;
        }
    };
    let state = watch::fingerprint(&args.manifests);
    let loaded = match manifests.load() {
        Ok(loaded) => loaded,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            return ExitCode::from(BAD_MANIFESTS);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("mqtt-broker: no threads to run on: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve(args, manifests, loaded, state)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mqtt-broker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(
    args: Args,
    manifests: Manifests,
    loaded: Loaded,
    state: watch::Fingerprint,
) -> anyhow::Result<ExitCode> {
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let log = open_log(args.data.as_deref(), &loaded)?;
    let keep = Duration::from_secs(u64::from(loaded.config.session.expiry_seconds));
    let unreleased = Unreleased::recover(log.clone(), node::wall(), keep).await?;
    let bridge = Bridge::new(log.clone(), SystemTopics::ensure(&*log).await?);
    let (mqtt, admin) = (loaded.config.listeners.mqtt.clone(), loaded.config.listeners.admin.clone());
    let settings = match Settings::compile(loaded.config, &loaded.acl, &*log).await {
        Ok(settings) => settings,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            return Ok(ExitCode::from(BAD_MANIFESTS));
        }
    };
    let mqtt = bind(args.mqtt.as_deref().unwrap_or(&mqtt), "--mqtt").await?;
    let admin = bind(args.admin.as_deref().unwrap_or(&admin), "--admin").await?;
    let node = Arc::new(Node::new(node::random_u64(), log, bridge, unreleased, settings));
    let server = Server::start(node.clone(), mqtt, admin)?;
    println!("ready mqtt={} admin={}", server.mqtt, server.admin);

    let watching = tokio::spawn(watch::run(node, args.manifests, manifests, state));
    stop_signal().await?;
    tracing::info!("stopping");
    watching.abort();
    server.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// The store: Kafka where the config names one, else the embedded one in the folder `data`.
fn open_log(data: Option<&Path>, loaded: &Loaded) -> anyhow::Result<Arc<dyn Log>> {
    match (&loaded.config.kafka, data) {
        (Some(kafka), _) => {
            let servers = kafka.bootstrap_servers.join(",");
            tracing::info!("records are kept in Kafka at {servers}; secrets: {:?}", loaded.kafka_secrets);
            bail!("Kafka at {servers} can't be used: not built yet; start with --data instead")
        }
        (None, Some(data)) => Ok(EmbeddedLog::open(data, EmbeddedOptions::default())?),
        (None, None) => bail!("there is no store; name one with --data or --kafka"),
    }
}

async fn bind(address: &str, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("can't listen on {address}: choose another address with {flag}"))
}

async fn stop_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
