//! `mqtt-broker standalone`: one node, steered by a folder of manifests, with the embedded store.

pub(crate) mod manifests;
mod watch;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

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

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with the manifests (MqttInstance, ParentTopic, MqttUser, TopicGrant, Secret), watched for changes.
    #[arg(long)]
    manifests: PathBuf,
    /// Folder for the stored messages; made when missing.
    #[arg(long)]
    data: PathBuf,
    /// Where devices connect, HOST:PORT; port 0 picks one. Overrides the manifest.
    #[arg(long)]
    mqtt: Option<String>,
    /// Where the admin endpoint listens, HOST:PORT.
    #[arg(long)]
    admin: Option<String>,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let mut manifests = match Manifests::new(&args.manifests) {
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
    let log: Arc<dyn Log> = EmbeddedLog::open(&args.data, EmbeddedOptions::default())?;
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
