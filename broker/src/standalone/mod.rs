//! `mqtt-broker standalone`: one node, steered by a folder of manifests, with the embedded store or Kafka.

mod args;
pub(crate) mod manifests;
mod store;
mod watch;

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

pub(crate) use self::args::Args;
use self::{
    manifests::{Loaded, Manifests},
    store::Store,
};
use crate::{
    bridge::{Bridge, SystemTopics},
    log::{Log, LogError},
    node::{self, Node},
    server::Server,
    session::unreleased::Unreleased,
    settings::{Problems, Settings},
};

/// Exit code for manifests that can't be used.
const BAD_MANIFESTS: u8 = 2;
/// Until a store that could not be asked is asked again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// The same is said again.
const SAY_EVERY: Duration = Duration::from_secs(60);

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
    let ended = runtime.block_on(serve(args, manifests, loaded, state));
    // Questions to a Kafka that does not answer are not waited for.
    runtime.shutdown_background();
    match ended {
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
    let prepared = tokio::select! {
        prepared = prepare(&args, &loaded) => prepared?,
        signal = stop_signal() => {
            tracing::info!("stopped before the start was over");
            return signal.map(|()| ExitCode::SUCCESS);
        }
    };
    let (store, node) = match prepared {
        Ok(ready) => ready,
        Err(problems) => {
            problems.lines.iter().for_each(|problem| eprintln!("{problem}"));
            return Ok(ExitCode::from(BAD_MANIFESTS));
        }
    };
    let (mqtt, admin) = (loaded.config.listeners.mqtt, loaded.config.listeners.admin);
    let mqtt = bind(args.mqtt.as_deref().unwrap_or(&mqtt), "--mqtt").await?;
    let admin = bind(args.admin.as_deref().unwrap_or(&admin), "--admin").await?;
    let server = Server::start(node.clone(), mqtt, admin)?;
    println!("ready mqtt={} admin={}", server.mqtt, server.admin);

    let watching = tokio::spawn(watch::run(node, store, args.manifests, manifests, state));
    stop_signal().await?;
    tracing::info!("stopping");
    watching.abort();
    server.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Everything that the log is needed for before devices are let in. Waits for a log that can't be asked.
async fn prepare(args: &Args, loaded: &Loaded) -> anyhow::Result<Result<(Store, Arc<Node>), Problems>> {
    let store = Store::open(args.data.as_deref(), loaded).await?;
    let mut said: Option<(Vec<String>, Instant)> = None;
    loop {
        let lines = match make_node(store.log(), loaded).await {
            Ok(Ok(node)) => return Ok(Ok((store, node))),
            Ok(Err(problems)) if !problems.may_pass => return Ok(Err(problems)),
            Ok(Err(problems)) => problems.lines,
            Err(error @ LogError::Store(_)) => vec![error.to_string()],
            Err(error) => return Err(error.into()),
        };
        if said.as_ref().is_none_or(|(last, at)| *last != lines || at.elapsed() >= SAY_EVERY) {
            lines.iter().for_each(|line| tracing::error!("{line}; trying again"));
            said = Some((lines, Instant::now()));
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

async fn make_node(log: Arc<dyn Log>, loaded: &Loaded) -> Result<Result<Arc<Node>, Problems>, LogError> {
    let keep = Duration::from_secs(u64::from(loaded.config.session.expiry_seconds));
    let unreleased = Unreleased::recover(log.clone(), node::wall(), keep).await?;
    let topics = SystemTopics::ensure(&*log, loaded.config.limits.packet_size).await?;
    let bridge = Bridge::new(log.clone(), topics);
    let settings = match Settings::compile(loaded.config.clone(), &loaded.acl, &*log).await {
        Ok(settings) => settings,
        Err(problems) => return Ok(Err(problems)),
    };
    Ok(Ok(Arc::new(Node::new(node::random_u64(), log, bridge, unreleased, settings))))
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
