//! Sockets that devices connect to.

pub(crate) mod tls;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{connection, node::Node};

/// How long nothing is accepted after the process ran out of something, such as open files.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Accepts plain TCP connections until `shutdown` says true. Each gets a task of its own.
pub(crate) async fn tcp(node: Arc<Node>, listener: TcpListener, shutdown: watch::Receiver<bool>) {
    let serve = |stream, peer| drop(tokio::spawn(connection::serve(node.clone(), stream, peer)));
    accept(listener, shutdown, serve).await;
}

/// Gives each new connection to `serve`, which must not block.
async fn accept(
    listener: TcpListener,
    mut shutdown: watch::Receiver<bool>,
    serve: impl Fn(TcpStream, SocketAddr),
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Answers are written whole; waiting for more would only delay them. Without it it works, too.
                let _ = stream.set_nodelay(true);
                serve(stream, peer);
            }
            Err(error) if is_peers_fault(&error) => {}
            Err(error) => {
                tracing::error!("no connection can be accepted: {error}; trying again");
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

fn is_peers_fault(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}
