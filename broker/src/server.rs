//! A running broker: its listeners and background tasks around one [`Node`], from start to an orderly stop.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};

use crate::{admin, bridge::mq2mqtt, connection::closing, listener, node::Node};

/// How often sessions are looked at for what is due.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How long connections may take to say goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Server {
    pub(crate) mqtt: SocketAddr,
    pub(crate) admin: SocketAddr,
    node: Arc<Node>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Server {
    pub(crate) fn start(node: Arc<Node>, mqtt: TcpListener, admin: TcpListener) -> std::io::Result<Server> {
        let (stop, stopped) = watch::channel(false);
        let (mqtt_address, admin_address) = (mqtt.local_addr()?, admin.local_addr()?);
        let mut tasks = JoinSet::new();
        tasks.spawn(listener::tcp(node.clone(), mqtt, stopped));
        tasks.spawn(admin::serve(node.clone(), admin));
        tasks.spawn(sweep(node.clone()));
        for partition in 0..node.bridge.topics().mq2mqtt.partitions() {
            tasks.spawn(mq2mqtt::run(node.clone(), partition));
        }
        Ok(Server { mqtt: mqtt_address, admin: admin_address, node, stop, tasks })
    }

    /// Stops accepting, says goodbye to every client, and makes durable what is on its way.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        self.node.stop();
        let gone = async {
            while self.node.sockets.count() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout(GOODBYE_TIMEOUT, gone).await.is_err() {
            tracing::warn!(left = self.node.sockets.count(), "stopping before all clients heard it");
        }
        self.tasks.shutdown().await;
        self.node.log.close().await;
    }
}

/// Publishes delayed wills, and ends sessions whose devices stayed away.
async fn sweep(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        ticks.tick().await;
        let now = node.now();
        for mut held in node.registry.take_due(now) {
            if held.core.has_ended(now) {
                closing::end_session(&node, &mut held);
                node.registry.forget(held);
                node.counters.sessions_expired.add(1);
            } else {
                if let Some(will) = held.core.will.take_if(|will| will.at <= now) {
                    node.publish_for(&held.slot.client_id, &will.message);
                }
                let ends_at = held.core.ends_at();
                node.registry.release(held, ends_at);
            }
        }
    }
}
