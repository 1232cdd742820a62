//! The end of an instance: who is there when it comes is closed.

use std::{sync::Arc, time::Duration};

use crate::node::Node;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Watches for the end until its task is aborted. It may be moved, either way.
pub(crate) async fn watch(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        if node.settings().has_expired(|| node.wall()) && node.sockets.count() > 0 {
            node.registry.call_all();
        }
    }
}
