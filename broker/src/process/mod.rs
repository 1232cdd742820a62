//! A broker's process: from the documents that steer it to a node that serves, and on to its end.
//!
//! `standalone` and `run` differ in where the documents come from; the rest is here. Documents that can't be used end
//! the start with exit status 2; later they change nothing but the log.

mod company;
mod store;
pub(crate) mod watch;

use std::{
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use mqtt_broker_api::{
    acl::AclDocument,
    config::{DeviceListener, InstanceConfig, KafkaSecrets, Listeners},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use self::{store::Store, watch::Watcher};
use crate::{
    allocator,
    auth::Logins,
    bridge::{Bridge, SystemTopics},
    limits::Trouble,
    listener::{Listener, tls},
    log::{Log, LogError},
    node::{Node, Replayed},
    outside::Outside,
    peers,
    server::Server,
    session::{
        log::{Place, SessionLog},
        relay::Relay,
        retained::RetainedLog,
    },
    settings::{Problems, Settings},
};

/// Exit code for documents that can't be used.
const BAD_DOCUMENTS: u8 = 2;
/// Until a store that could not be asked is asked again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What steers a node.
pub(crate) struct Documents {
    pub(crate) config: InstanceConfig,
    /// Of the file that it was read from, see [`mqtt_broker_api::node::hash`].
    pub(crate) config_hash: Option<String>,
    /// Those that go with `config.kafka`.
    pub(crate) kafka_secrets: KafkaSecrets,
    /// There if and only if `config.listeners` use it.
    pub(crate) tls: Option<Arc<tls::Terms>>,
    /// Absent: there has been no complete one so far.
    pub(crate) acl: Option<AclDocument>,
    /// The folder of the embedded store, used where `config.kafka` is absent.
    pub(crate) data: Option<PathBuf>,
    /// The name of this node among those that serve devices from the same Kafka; absent: it serves alone.
    pub(crate) node: Option<String>,
    /// Links to the other nodes; there only where this one has a name.
    pub(crate) peers: Option<peers::Settings>,
    /// One line each: what has no effect, is doubtful, or is waited for.
    pub(crate) warnings: Vec<String>,
}

/// Where documents come from.
pub(crate) trait Source: Send + 'static {
    /// What a person calls it.
    const NAME: &'static str;

    /// Files and folders that are to be loaded again when they change.
    fn watched(&self) -> Vec<PathBuf>;

    /// Reads everything. Each problem is one line. Blocks on the file system.
    fn load(&mut self) -> Result<Documents, Vec<String>>;

    /// How a person says where a listener, named as in the config, shall listen.
    fn address_is_set(listener: &str) -> String;
}

/// How serving ended.
enum Ended {
    With(ExitCode),
    /// The process must begin anew: this run of it is over, though nothing is wrong with it.
    Anew,
}

/// Serves until a signal asks for the end.
pub(crate) fn run<S: Source>(mut source: S) -> ExitCode {
    let seen = watch::fingerprint(&source.watched());
    let documents = match source.load() {
        Ok(documents) => documents,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            return ExitCode::from(BAD_DOCUMENTS);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_park(allocator::tidy)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("mqtt-broker: no threads to run on: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(serve(Watcher::new(source, seen), documents));
    // Questions to a Kafka that does not answer are not waited for.
    runtime.shutdown_background();
    match ended {
        Ok(Ended::With(code)) => code,
        Ok(Ended::Anew) => begin_anew(),
        Err(error) => {
            eprintln!("mqtt-broker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Becomes the program that it is once more, with the same arguments. Returns if that fails.
fn begin_anew() -> ExitCode {
    let error = Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).exec();
    eprintln!("mqtt-broker: can't begin anew: {error}; start it again");
    ExitCode::FAILURE
}

async fn serve<S: Source>(mut watcher: Watcher<S>, documents: Documents) -> anyhow::Result<Ended> {
    let admin = bind::<S>(&documents.config.listeners.admin, "admin").await?;
    let mut server = Server::start(admin)?;
    let prepared = tokio::select! {
        prepared = prepare(&server, &mut watcher, documents) => prepared?,
        signal = stop_signal() => {
            tracing::info!("stopped before the start was over");
            return signal.map(|()| Ended::With(ExitCode::SUCCESS));
        }
    };
    let Prepared { store, node, listeners, tls, peers } = match prepared {
        Ok(prepared) => prepared,
        Err(problems) => {
            problems.lines.iter().for_each(|problem| eprintln!("{problem}"));
            return Ok(Ended::With(ExitCode::from(BAD_DOCUMENTS)));
        }
    };
    let terms = tls.map(|terms| Arc::new(tls::Current::new(terms)));
    if listeners.use_tls() && terms.is_none() {
        bail!("there is no certificate for {listeners:?}");
    }
    let mut ready = Vec::new();
    let mut open = Vec::new();
    for (name, address) in [
        (DeviceListener::Mqtt, Some(&listeners.mqtt)),
        (DeviceListener::Mqtts, listeners.mqtts.as_ref()),
        (DeviceListener::Ws, listeners.ws.as_ref()),
        (DeviceListener::Wss, listeners.wss.as_ref()),
    ] {
        let Some(address) = address else { continue };
        let socket = bind::<S>(address, name.name()).await?;
        ready.push(format!("{}={}", name.name(), socket.local_addr()?));
        open.push(Listener { name, socket, tls: terms.clone().filter(|_| name.is_tls()) });
    }
    ready.insert(1, format!("admin={}", server.admin));
    let peers = match peers {
        Some(settings) => {
            let socket = bind::<S>(&settings.listen, "peers").await?;
            let address = socket.local_addr()?;
            if !settings.allow(address) {
                bail!(
                    "plain text is for loopback addresses, and {address} is none: name a certificate for peers"
                );
            }
            ready.push(format!("peers={address}"));
            Some((socket, Arc::new(peers::Current::from_pointee(settings))))
        }
        None => None,
    };
    let links = peers.as_ref().map(|(_, settings)| settings.clone());
    server.begin(&node, peers);
    let wait = company::wait(&server, &node);
    if let Some(ended) = until_end(&node, wait).await? {
        server.stop().await;
        return Ok(ended);
    }
    server.serve(node.clone(), open);
    println!("ready {}", ready.join(" "));

    let steered = watch::Steered { node: node.clone(), store, terms, listeners, peers: links };
    let watching = tokio::spawn(watch::run(watcher, steered));
    let ended = until_end(&node, std::future::pending()).await?;
    tracing::info!("stopping");
    watching.abort();
    server.stop().await;
    Ok(ended.unwrap_or(Ended::With(ExitCode::SUCCESS)))
}

/// Waits for something, but not longer than this process run shall last: then says how it ends.
async fn until_end(
    node: &Node,
    wait: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Option<Ended>> {
    tokio::select! {
        waited = wait => waited.map(|()| None),
        signal = stop_signal() => signal.map(|()| Some(Ended::With(ExitCode::SUCCESS))),
        () = node.sessions.ended() => {
            tracing::warn!("this process run is over, as the log says, or its place in it has changed: beginning anew");
            Ok(Some(Ended::Anew))
        }
    }
}

/// A node that devices may be let in to.
struct Prepared {
    store: Store,
    node: Arc<Node>,
    listeners: Listeners,
    tls: Option<Arc<tls::Terms>>,
    peers: Option<peers::Settings>,
}

/// Everything that is needed before devices are let in. Waits for a log that can't be asked, and for the first ACL.
async fn prepare<S: Source>(
    server: &Server,
    watcher: &mut Watcher<S>,
    mut documents: Documents,
) -> anyhow::Result<Result<Prepared, Problems>> {
    let warn = |documents: &Documents| documents.warnings.iter().for_each(|line| tracing::warn!("{line}"));
    warn(&documents);
    let acl = loop {
        if let Some(acl) = documents.acl.take() {
            break acl;
        }
        let why = documents.warnings.join("; ");
        tracing::info!("not ready, http://{}/readyz says when: {why}", server.admin);
        server.awaits(&why);
        match watcher.change().await {
            Ok(changed) => {
                documents = changed;
                warn(&documents);
            }
            Err(problems) => watch::report::<S>(problems),
        }
    };
    server.awaits("the store does not answer yet");
    let store = Store::open(&documents)?;
    let mut steering = Steering { documents, acl };
    steering.until(store.reach(|why| server.awaits(why)), &store, watcher).await;
    let mut trouble = Trouble::default();
    loop {
        let Steering { documents, acl } = &steering;
        let lines =
            match make_node(Outside::default(), store.log(), store.place(documents), &documents.config, acl)
                .await
            {
                Ok(Ok(node)) => {
                    node.config_hash.store(documents.config_hash.clone().map(Arc::new));
                    let Documents { config: InstanceConfig { listeners, .. }, tls, peers, .. } =
                        steering.documents;
                    return Ok(Ok(Prepared { store, node, listeners, tls, peers }));
                }
                Ok(Err(problems)) if !problems.may_pass => return Ok(Err(problems)),
                Ok(Err(problems)) => problems.lines,
                Err(error @ LogError::Store(_)) => vec![error.to_string()],
                Err(error) => return Err(error.into()),
            };
        let line = lines.join("; ");
        server.awaits(&line);
        if trouble.is_due(&line) {
            lines.iter().for_each(|line| tracing::error!("{line}; trying again"));
        }
        steering.until(tokio::time::sleep(TRY_AGAIN), &store, watcher).await;
    }
}

/// What a node is made of. It may hold the very mistake for which a store does not answer, so it follows its source
/// while that is waited for.
struct Steering {
    documents: Documents,
    acl: AclDocument,
}

impl Steering {
    async fn until<S: Source>(
        &mut self,
        over: impl Future<Output = ()>,
        store: &Store,
        watcher: &mut Watcher<S>,
    ) {
        tokio::pin!(over);
        loop {
            let changed = tokio::select! {
                () = &mut over => return,
                changed = watcher.change() => changed,
            };
            match changed {
                Ok(mut changed) => {
                    changed.warnings.iter().for_each(|line| tracing::warn!("{line}"));
                    store.follow(&changed);
                    if let Some(acl) = changed.acl.take() {
                        self.acl = acl;
                    }
                    self.documents = changed;
                }
                Err(problems) => watch::report::<S>(problems),
            }
        }
    }
}

/// A node on this log, once what it needs of the log is there and read.
pub(crate) async fn make_node(
    outside: Outside,
    log: Arc<dyn Log>,
    place: Place<'_>,
    config: &InstanceConfig,
    acl: &AclDocument,
) -> Result<Result<Arc<Node>, Problems>, LogError> {
    let (boot, packet_size) = (outside.random(), config.limits.packet_size);
    let sessions = SessionLog::open(log.clone(), outside.clone(), boot, place, packet_size).await?;
    let retained = RetainedLog::open(log.clone(), &outside, boot, place, packet_size).await?;
    let relay = match place.shared {
        true => Some(Relay::open(log.clone(), boot, place, packet_size, outside.wall()).await?),
        false => None,
    };
    let replayed = Replayed { sessions, retained, relay };
    let topics = SystemTopics::ensure(&*log, config.limits.packet_size).await?;
    let bridge = Bridge::new(log.clone(), topics);
    let settings = match Settings::compile(config.clone(), acl, &*log).await {
        Ok(settings) => settings,
        Err(problems) => return Ok(Err(problems)),
    };
    let logins = match Logins::new(outside.clone()) {
        Ok(logins) => logins,
        Err(error) => {
            let lines = vec![format!("the system has no random numbers to give: {error}")];
            return Ok(Err(Problems { lines, may_pass: true }));
        }
    };
    let node = Arc::new(Node::new(outside, log, bridge, replayed, logins, settings));
    node.retained.begin(&node);
    node.sessions.begin(&node);
    Ok(Ok(node))
}

async fn bind<S: Source>(address: &str, listener: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("can't listen on {address}: choose another address {}", S::address_is_set(listener))
    })
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
