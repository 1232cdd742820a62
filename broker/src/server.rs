//! A running broker: its listeners and background tasks, from start to an orderly stop.
//!
//! The admin endpoint is there first: whoever asks is told what the rest waits for.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};

use crate::{
    admin::{self, Stage},
    admission::{memory, term},
    bridge::mq2mqtt,
    listener::{self, Listener, tls},
    log::BoxFuture,
    node::Node,
    peers,
    session::{self, relay::Relay, retained::RetainedLog},
};

/// In which connections are let go, one after the other, where other nodes take them.
const LET_GO: Duration = Duration::from_secs(5);
/// How long what was read from connections may take to be answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long connections may take to say goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Server {
    pub(crate) admin: SocketAddr,
    stage: Arc<ArcSwap<Stage>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Server {
    /// Serves the admin endpoint alone.
    pub(crate) fn start(admin: TcpListener) -> io::Result<Server> {
        let stage = Arc::new(ArcSwap::from_pointee(Stage::Starting("it has just begun".into())));
        let mut server = Server {
            admin: admin.local_addr()?,
            stage,
            stop: watch::Sender::new(false),
            tasks: JoinSet::new(),
        };
        server.tasks.spawn(admin::serve(server.stage.clone(), admin));
        Ok(server)
    }

    /// Says what is waited for.
    pub(crate) fn awaits(&self, what: &str) {
        self.stage.store(Arc::new(Stage::Starting(what.to_owned())));
    }

    /// Does what a node does besides serving connections. `links`: those to other nodes.
    pub(crate) fn begin(&mut self, node: &Arc<Node>, links: Option<(TcpListener, Arc<peers::Current>)>) {
        self.tasks.spawn(memory::watch(node.clone()));
        self.tasks.spawn(term::watch(node.clone()));
        if let Some((socket, settings)) = links {
            self.tasks.spawn(peers::listen(node.clone(), socket, settings.clone()));
            self.tasks.spawn(peers::dial_all(node.clone(), settings));
        }
        for task in background(node) {
            self.tasks.spawn(task);
        }
    }

    /// Lets devices in.
    pub(crate) fn serve(&mut self, node: Arc<Node>, listeners: Vec<Listener>) {
        if let Some(current) = listeners.iter().find_map(|listener| listener.tls.clone()) {
            self.tasks.spawn(tls::watch_expiry(node.clone(), current));
        }
        for listener in listeners {
            self.tasks.spawn(listener::listen(node.clone(), listener, self.stop.subscribe()));
        }
        self.stage.store(Arc::new(Stage::Serving(node)));
    }

    /// Stops accepting, says goodbye to every client, and makes durable what is on its way.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        let node = match &**self.stage.load() {
            Stage::Serving(node) => Some(node.clone()),
            Stage::Starting(_) => None,
        };
        if let Some(node) = &node {
            let gone = async || {
                while node.sockets.count() > 0 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            node.let_go(if node.sessions.shared { LET_GO } else { Duration::ZERO }).await;
            if timeout(ANSWER_TIMEOUT, gone()).await.is_err() {
                node.hurry();
            }
            if timeout(GOODBYE_TIMEOUT, gone()).await.is_err() {
                tracing::warn!(left = node.sockets.count(), "stopping before all clients heard it");
            }
        }
        self.tasks.shutdown().await;
        if let Some(node) = node {
            if let Some(relay) = &node.relay {
                relay.retreat(&node);
            }
            if node.sessions.shared {
                // Nobody need wait until its silence has lasted long enough.
                node.sessions.say_down(node.boot, node.wall());
            }
            node.log.close().await;
        }
    }
}

/// What a node does besides serving connections, until it is aborted.
pub(crate) fn background(node: &Arc<Node>) -> Vec<BoxFuture<'static, ()>> {
    let mut tasks: Vec<BoxFuture<'static, ()>> = vec![Box::pin(session::log::sweep(node.clone()))];
    if node.sessions.shared {
        tasks.push(Box::pin(session::log::barriers(node.clone())));
        tasks.push(Box::pin(session::log::list_peers(node.clone())));
        tasks.push(Box::pin(session::log::ask_peers(node.clone())));
        tasks.push(Box::pin(Relay::follow(node.clone())));
        tasks.push(Box::pin(Relay::watch(node.clone())));
    }
    for partition in 0..node.sessions.topic().partitions() {
        tasks.push(Box::pin(session::log::follow(node.clone(), partition)));
    }
    for partition in 0..node.retained.partitions() {
        tasks.push(Box::pin(RetainedLog::follow(node.clone(), partition)));
    }
    for partition in 0..node.bridge.topics().mq2mqtt.partitions() {
        tasks.push(Box::pin(mq2mqtt::run(node.clone(), partition)));
    }
    tasks
}
