//! Before devices are let in: sees to it that the nodes on one log agree on whether there are several of them.
//!
//! A node that serves alone knows of nobody's subscriptions but its own; none may serve beside it.

use std::time::Duration;

use tokio::time::sleep;

use crate::{node::Node, server::Server, session::relay::Relay};

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Returns once no other node is in the way. The node's background tasks run already.
pub(super) async fn wait(server: &Server, node: &Node) -> anyhow::Result<()> {
    loop {
        let others = node.sessions.others();
        let in_the_way: Vec<_> =
            others.iter().filter(|(_, (_, shared))| !(node.sessions.shared && *shared)).collect();
        if in_the_way.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = in_the_way.iter().map(|(_, (name, _))| name.as_str()).collect();
        let names = names.join(", ");
        server.awaits(&match node.sessions.shared {
            true => format!("node {names} serves alone from this Kafka, and must end first"),
            false => format!(
                "node {names} may serve from this Kafka, and this node serves alone: stop one, or name both"
            ),
        });
        if node.sessions.shared {
            // Who does not say that it lives is said to be over.
            sleep(LOOK_EVERY).await;
            continue;
        }
        let relay = Relay::open_beside(node).await?;
        let heard = relay.hear_out().await?;
        for (boot, (name, _)) in in_the_way.into_iter().filter(|(boot, _)| !heard.contains(*boot)) {
            tracing::warn!("node {name} is over: it does not say that it lives");
            node.sessions.say_down(*boot, node.wall());
        }
    }
}
