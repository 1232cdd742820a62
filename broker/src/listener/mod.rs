//! Sockets that devices connect to, and what stands between a socket and a connection: a proxy's header, TLS, WebSocket.
//!
//! Promises: whatever a client does in a handshake holds nobody up, and not for long; beyond the connect rate connections
//! are accepted more slowly, and none is dropped.

mod proxy;
pub(crate) mod tls;
mod ws;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use mqtt_broker_api::config::DeviceListener;
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};

use crate::{
    admission::{Evicted, Newcomer},
    connection,
    limits::notice,
    node::Node,
};

/// How long nothing is accepted after the process ran out of something, such as open files.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// How long each handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// After this long without a word on a connection the kernel asks whether the other side is there.
const ASK_AFTER: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_secs(15);
const ASKED_IN_VAIN: u32 = 4;
/// How long what was sent may stay unacknowledged, or a device may take nothing at all of what waits for it, before the
/// kernel gives the connection up.
const UNHEARD: Duration = Duration::from_secs(120);

/// A socket that is listened on.
pub(crate) struct Listener {
    pub(crate) name: DeviceListener,
    pub(crate) socket: TcpListener,
    /// What TLS is spoken with, where it is.
    pub(crate) tls: Option<Arc<tls::Current>>,
}

/// What is spoken on a connection below MQTT.
struct Below {
    name: DeviceListener,
    terms: Option<Arc<tls::Terms>>,
    proxy: bool,
    /// Certificates name users.
    certified: bool,
}

/// A connection that is more than a socket.
trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// Accepts connections until `shutdown` says true. Each gets a task of its own, its handshakes included.
pub(crate) async fn listen(node: Arc<Node>, listener: Listener, mut shutdown: watch::Receiver<bool>) {
    let Listener { name, socket, tls } = listener;
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = shutdown.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Without any of them it works, too.
                let _ = prepare(&stream);
                let config = &node.settings().clone().config;
                let rate = config.limits.connect_rate;
                let below = Below {
                    name,
                    terms: tls.as_ref().map(|terms| terms.load_full()),
                    proxy: config.listeners.proxy_protocol.contains(&name),
                    certified: config.listeners.user_from_certificate,
                };
                let (newcomer, gave_way) = node.admission.meet(peer, rate);
                if gave_way {
                    node.counters.half_open_evicted.add(1);
                    notice!(node, half_open, "too many connections without a CONNECT: the oldest are closed");
                }
                match below.is_nothing() {
                    true => tokio::spawn(connection::serve(node.clone(), stream, newcomer)),
                    false => tokio::spawn(serve(node.clone(), stream, newcomer, below)),
                };
                keep_pace(&node, rate).await;
            }
            Err(error) if is_peers_fault(&error) => {}
            Err(error) => {
                tracing::error!("no connection can be accepted: {error}; trying again");
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

/// Waits as long as the connect rate asks for after one more connection.
async fn keep_pace(node: &Node, rate: u64) {
    if let Some(wait) = node.admission.pace.spend(1, rate, node.nanos()) {
        node.counters.connect_rate_pauses.add(1);
        notice!(node, connect_rate, rate, "more connections come than may in a second: they wait");
        tokio::time::sleep(wait).await;
    }
}

fn is_peers_fault(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

fn prepare(stream: &TcpStream) -> rustix::io::Result<()> {
    // Answers are written whole; waiting for more would only delay them.
    sockopt::set_tcp_nodelay(stream, true)?;
    // A device that vanished without a word would stay for ever, where it asked for no keep alive.
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, ASK_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, ASK_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, ASKED_IN_VAIN)?;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(UNHEARD.as_millis()).unwrap_or(u32::MAX))
}

impl Below {
    fn is_nothing(&self) -> bool {
        self.name == DeviceListener::Mqtt && !self.proxy
    }
}

fn serve(
    node: Arc<Node>,
    stream: TcpStream,
    newcomer: Newcomer,
    below: Below,
) -> impl Future<Output = ()> + Send {
    // Boxed: an idle connection's task should hold no room for a handshake.
    let opening = Box::pin(open(node.clone(), stream, newcomer, below));
    async move {
        if let Some((stream, newcomer)) = opening.await {
            connection::serve(node, stream, newcomer).await;
        }
    }
}

/// What is spoken below MQTT; none where that failed, which was told.
async fn open(
    node: Arc<Node>,
    stream: TcpStream,
    mut newcomer: Newcomer,
    below: Below,
) -> Option<(Box<dyn Transport>, Newcomer)> {
    let place = newcomer.place.take()?;
    let opened = place.hold(descend(&node, stream, &mut newcomer, below)).await;
    newcomer.place = Some(place);
    match opened {
        Ok(stream) => Some((stream?, newcomer)),
        Err(Evicted) => {
            tracing::debug!(peer = %newcomer.peer, "closed in its handshake: others came");
            None
        }
    }
}

async fn descend(
    node: &Node,
    mut stream: TcpStream,
    newcomer: &mut Newcomer,
    below: Below,
) -> Option<Box<dyn Transport>> {
    if below.proxy {
        newcomer.peer = real_peer(node, &mut stream, newcomer.peer).await?;
    }
    let stream: Box<dyn Transport> = match below.terms {
        None => Box::new(stream),
        Some(terms) => {
            let stream = tls::handshake(node, stream, newcomer.peer, terms).await?;
            newcomer.user = if below.certified { tls::subject(&stream) } else { None };
            Box::new(stream)
        }
    };
    if below.name.is_websocket() { open_websocket(node, stream, newcomer.peer).await } else { Some(stream) }
}

/// Whom the proxy speaks for.
async fn real_peer(node: &Node, stream: &mut TcpStream, proxy: SocketAddr) -> Option<SocketAddr> {
    let why = match timeout(HANDSHAKE_TIMEOUT, proxy::read(stream)).await {
        Ok(Ok(peer)) => return Some(peer.unwrap_or(proxy)),
        Ok(Err(proxy::NoHeader::Socket(error))) => {
            tracing::debug!(%proxy, "gone before its PROXY header: {error}");
            return None;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("its PROXY header is {}", not_finished()),
    };
    node.counters.proxy_headers_missing.add(1);
    notice!(node, proxy, %proxy, "connection refused: {why}");
    None
}

async fn open_websocket(
    node: &Node,
    stream: Box<dyn Transport>,
    peer: SocketAddr,
) -> Option<Box<dyn Transport>> {
    let settings = node.settings().clone();
    let why = match timeout(HANDSHAKE_TIMEOUT, ws::accept(stream, &settings.config.listeners.origins)).await {
        Ok(Ok(stream)) => return Some(Box::new(stream)),
        Ok(Err(ws::NotOpened::Socket(error))) => {
            tracing::debug!(%peer, "gone before its WebSocket was open: {error}");
            return None;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => not_finished(),
    };
    node.counters.ws_handshakes_failed.add(1);
    notice!(node, ws_handshake, %peer, "WebSocket handshake failed: {why}");
    None
}

fn not_finished() -> String {
    format!("not finished within {} s", HANDSHAKE_TIMEOUT.as_secs())
}
