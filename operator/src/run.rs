//! The process that acts on a cluster: waits for its Lease, watches, reconciles, and ends when it leads no longer.
//!
//! Promises: it ends with an error when it loses the Lease or the API server does not let it work, and is to be started
//! again; told to end (SIGTERM, SIGINT), it finishes what it is at, gives the Lease back and ends well, within
//! [`FAREWELL`].

use std::{net::SocketAddr, sync::Arc, time::Duration};

use kube::{Client, Config};
use mqtt_operator_api::{Kind, render::ObjectName};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use crate::{
    apply::{Error as Unwritten, Writer},
    health::{self, Health, Stage},
    instance::{
        build::Options,
        clusters::Clusters,
        nodes::Asker,
        reconcile::{Instances, Memories},
    },
    invalid,
    kept::{Keeper, Records},
    leader::{self, Candidate, Fence},
    parent_topic::{Clients, Topics, Wants},
    queue::{Done, Queue},
    user::hasher::HashKey,
    watch::World,
};

/// Objects that are reconciled at a time.
const WORKERS: usize = 8;
/// How long what is under way may take once the process is told to end.
const FAREWELL: Duration = Duration::from_secs(15);
/// The key of the Secret that [`HashKey`] lies in.
const HASH_KEY: &str = "hash-key";
/// A connection that is silent for so long is dead: watches end before.
const SILENCE: Duration = Duration::from_secs(100);

pub struct Settings {
    /// Where the operator runs.
    pub namespace: String,
    /// Who this is among the candidates for the Lease.
    pub identity: String,
    /// Empty: all.
    pub watch_namespaces: Vec<String>,
    /// The name of the Lease; that of the operator's own Secret begins with it.
    pub lease: String,
    /// Where health and metrics are served.
    pub address: SocketAddr,
    pub resync: Duration,
    /// For tests: after so many changes it dies; zero: it lives.
    pub dies_after: u64,
    pub options: Options,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no API server is known: {0}")]
    NoServer(String),
    #[error("{0} can't be listened on: {1}")]
    Address(SocketAddr, std::io::Error),
    #[error("signals can't be waited for: {0}")]
    Signals(std::io::Error),
    #[error(transparent)]
    Leader(#[from] leader::Error),
    #[error("the key of password hashes can't be kept: {0}")]
    KeyNotKept(Unwritten),
    #[error(
        "Secret {0} holds no key of 32 bytes under {HASH_KEY:?}; delete it, and all passwords are hashed anew"
    )]
    NoKey(String),
    #[error("what instances have left can't be read: {0}")]
    NotRemembered(Unwritten),
    #[error("no random bytes: {0}")]
    NoRandom(getrandom::Error),
}

/// Acts until told to end.
pub async fn run(settings: Settings) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let listener =
        TcpListener::bind(settings.address).await.map_err(|error| Error::Address(settings.address, error))?;
    let client = client().await?;
    let queue = Arc::new(Queue::default());
    let health = Arc::new(Health::new(queue.clone()));
    tokio::spawn(health::serve(health.clone(), listener));

    let fence = Arc::new(Fence::default());
    let candidate = Candidate::new(client.clone(), &settings.namespace, &settings.lease, &settings.identity);
    let (end, ended) = watch::channel(false);
    let led = async {
        let lease = candidate.acquire(&fence, || health.set(Stage::Waiting)).await;
        tokio::select! {
            lost = candidate.keep(lease, &fence) => Err(Error::from(lost)),
            worked = act(&settings, client, &fence, queue, &health, ended) => worked,
        }
    };
    tokio::pin!(led);
    let told = tokio::select! {
        ended = &mut led => return ended,
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!("{told}: finishes what it is at");
    let _ = end.send(true);
    if fence.left().is_some() && timeout(FAREWELL, &mut led).await.is_err() {
        tracing::warn!("something is still under way, and is left");
    }
    candidate.release(&fence).await;
    Ok(())
}

/// A client that does not repeat requests by itself: what is repeated has to ask again whether it may.
async fn client() -> Result<Client, Error> {
    let no_server = |error: &dyn std::fmt::Display| Error::NoServer(error.to_string());
    let mut config = Config::infer().await.map_err(|error| no_server(&error))?;
    config.default_retry = false;
    config.read_timeout = Some(SILENCE);
    Client::try_from(config).map_err(|error| no_server(&error))
}

/// Watches and reconciles, until told to end.
async fn act(
    settings: &Settings,
    client: Client,
    fence: &Arc<Fence>,
    queue: Arc<Queue>,
    health: &Arc<Health>,
    ended: watch::Receiver<bool>,
) -> Result<(), Error> {
    health.set(Stage::Listing);
    let writer = Writer::new(client.clone(), fence.clone(), &settings.identity);
    let writer = Arc::new(writer.dying_after(settings.dies_after));
    let key = hash_key(settings, &writer).await?;
    let world = Arc::new(World::watch(&client, &settings.watch_namespaces, &queue, &writer));
    world.ready().await;
    health.set(Stage::Acting);
    let wants = Arc::new(Wants::new(queue.clone()));
    let (options, resync) = (settings.options.clone(), settings.resync);
    let clients = Arc::new(Clients::default());
    let clusters = Arc::new(Clusters::new(clients.clone(), queue.clone()));
    let keeper = Arc::new(Keeper {
        world: world.clone(),
        writer: writer.clone(),
        clusters: clusters.clone(),
        clients: clients.clone(),
        queue: queue.clone(),
        namespace: settings.namespace.clone(),
        prefix: settings.lease.clone(),
        watched: settings.watch_namespaces.clone(),
        records: Records::default(),
    });
    keeper.load().await.map_err(Error::NotRemembered)?;
    let kinds = Arc::new(Kinds {
        topics: Topics::new(world.clone(), writer.clone(), wants.clone(), clients, keeper.clone(), resync),
        instances: Instances {
            world: world.clone(),
            writer: writer.clone(),
            wants,
            clusters,
            keeper,
            options,
            key: Arc::new(key),
            resync,
            asker: Asker::default(),
            health: health.clone(),
            memories: Memories::default(),
        },
        world: world.clone(),
        writer,
    });
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        workers.spawn(work(kinds.clone(), queue.clone(), health.clone(), ended.clone()));
    }
    // A worker ends when told to, and only then.
    let everything = async {
        loop {
            let instances = world.all_instances();
            world.secrets.prune(&instances.iter().map(|instance| instance.namespace.as_str()).collect());
            instances.into_iter().for_each(|instance| queue.add(instance));
            world.listed().await;
        }
    };
    tokio::select! {
        () = everything => {}
        () = async { while workers.join_next().await.is_some() {} } => {}
    }
    Ok(())
}

/// The controllers.
struct Kinds {
    instances: Instances,
    topics: Topics,
    world: Arc<World>,
    writer: Arc<Writer>,
}

async fn work(kinds: Arc<Kinds>, queue: Arc<Queue>, health: Arc<Health>, mut ended: watch::Receiver<bool>) {
    loop {
        let object = tokio::select! {
            object = queue.next() => object,
            _ = ended.wait_for(|ended| *ended) => return,
        };
        health.begun(&object);
        let outcome = kinds.reconcile(&object).await;
        let took = health.ended(&object);
        let (done, result) = match &outcome {
            Ok(Done::Failed) => (Done::Failed, "failed"),
            Ok(done) => (*done, "settled"),
            Err(Unwritten::Lost) => (Done::Failed, "lost"),
            Err(error @ Unwritten::Later { .. }) => {
                tracing::warn!("{object}: {error}; it is tried again");
                (Done::Failed, "failed")
            }
            Err(error @ Unwritten::Theirs { .. }) => {
                tracing::warn!("{object}: {error}");
                (Done::Failed, "refused")
            }
        };
        health.metrics.reconciled(object.kind, result, took);
        queue.done(&object, done);
    }
}

impl Kinds {
    async fn reconcile(&self, object: &ObjectName) -> Result<Done, Unwritten> {
        let (namespace, name) = (&object.namespace, &object.name);
        let unreadable = match object.kind {
            Kind::MqttInstance => return self.instances.reconcile(object).await,
            Kind::ParentTopic => return self.topics.reconcile(object).await,
            Kind::MqttUser => {
                let user = self.world.users.get(namespace, name);
                user.and_then(|user| user.0.as_ref().err().cloned())
            }
            Kind::TopicGrant => {
                let grant = self.world.grants.get(namespace, name);
                grant.and_then(|grant| grant.0.as_ref().err().cloned())
            }
        };
        if let Some(unreadable) = unreadable {
            invalid::say(&self.writer, object, &unreadable).await?;
        }
        Ok(Done::Settled)
    }
}

/// The key that salts come from: made once, and the same after every start.
async fn hash_key(settings: &Settings, writer: &Writer) -> Result<HashKey, Error> {
    let name = format!("{}-{HASH_KEY}", settings.lease);
    let new = HashKey::random().map_err(Error::NoRandom)?;
    let kept = writer.keep_secret(&settings.namespace, &name, HASH_KEY, new.bytes()).await;
    let kept = kept.map_err(Error::KeyNotKept)?;
    kept.and_then(|bytes| HashKey::new(&bytes))
        .ok_or_else(|| Error::NoKey(format!("{}/{name}", settings.namespace)))
}
