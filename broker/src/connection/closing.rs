//! The end of a connection: a last word to the client, then its session is kept or ended, and its will published.

use std::{borrow::Cow, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use mqtt_proto::{
    codec::{Disconnect, DisconnectProperties, Packet, Reason, Version},
    message::Delivery,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{ACK_TIMEOUT, Connection, handshake::Admitted, trace};
use crate::{
    limits::notice,
    node::{Delivered, Node},
    session::{Held, log::Holding},
};

/// How long a will may hold up who takes the session over.
const WILL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a client may take to hear why it is closed.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes that are read from a client after its last word.
const UNHEARD_LIMIT: u64 = 1 << 20;

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum Close {
    /// The client closed its socket without a DISCONNECT.
    Gone,
    Socket(io::Error),
    Goodbye {
        discard_will: bool,
    },
    /// What it sent breaks the protocol or a limit.
    Violation(Reason, Cow<'static, str>),
    /// A publish without a grant, before MQTT 5.
    PublishRefused,
    TakenOver,
    KeepAlive,
    /// It lost its right to be here.
    Refused(&'static str),
    /// A publish's outcome did not come in time.
    AckTimeout,
    LogFailed,
    /// Memory was short, and much waited for it.
    NoMemory,
    /// The instance has come to its end. Sessions stay: it may be moved.
    Expired,
    ShuttingDown,
}

impl Close {
    /// What a v5 client is told; none where it has gone or asked for it.
    pub(super) fn last_word(&self) -> Option<(Reason, &str)> {
        Some(match self {
            Close::Gone | Close::Socket(_) | Close::Goodbye { .. } => return None,
            Close::Violation(reason, what) => (*reason, what),
            Close::PublishRefused => (Reason::NotAuthorized, "publish without a grant"),
            Close::Refused(why) => (Reason::NotAuthorized, why),
            Close::TakenOver => (Reason::SessionTakenOver, "the client ID connected again"),
            Close::KeepAlive => (Reason::KeepAliveTimeout, "nothing heard for one and a half keep alives"),
            Close::AckTimeout | Close::LogFailed => {
                (Reason::ServerBusy, "a publish could not be made durable")
            }
            Close::NoMemory => {
                (Reason::ServerBusy, "the broker is short of memory, and much waits for this client")
            }
            // DISCONNECT may not say "banned", as CONNACK then does (MQTT 5 section 3.14.2.1).
            Close::Expired => (Reason::AdministrativeAction, "the instance has expired"),
            Close::ShuttingDown => (Reason::ServerShuttingDown, "the broker is stopping"),
        })
    }
}

pub(super) async fn close<S>(mut connection: Connection<S>, close: Close)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    report(&connection, &close);
    let node = connection.node.clone();
    node.bridge.disconnected(connection.client_id(), node.wall());
    trace::gone(&node, connection.client_id(), &close);
    node.connections.leave();
    let will = connection.will.take().filter(|_| !matches!(close, Close::Goodbye { discard_will: true }));
    let will = will.filter(|will| {
        let granted = connection.grants.may_publish(will.topic());
        if !granted {
            node.counters.publishes_refused.add(1);
            let (client_id, user) = (connection.client_id(), &*connection.user.name);
            notice!(
                node,
                refused_publish,
                client_id,
                user,
                topic = will.topic(),
                "will refused: not authorized"
            );
        }
        granted
    });
    let expiry = if matches!(close, Close::Refused(_)) { 0 } else { connection.expiry };
    let last_words = connection.last_words(&close);
    let Connection { mut held, holding, marker, mut stream, session, .. } = connection;
    if let Some(holding) = holding.as_ref().or(marker.as_ref()) {
        let left = Left { expiry, has_will: will.is_some() };
        leave_logged(&node, &held, holding, Some(left));
        // Who took the client over saw to the will before.
        if will.is_some() && !holding.is_lost() {
            // Whoever sweeps does what could not be done in time.
            let _ = timeout(WILL_TIMEOUT, node.sessions.publish_left_will(&node, holding)).await;
        }
    }
    if holding.is_some() {
        held.core.subscriptions.clear();
        match expiry {
            0 => node.registry.forget(held),
            _ => node.registry.release(held),
        }
    } else {
        if let Some(will) = will.filter(|_| marker.is_none()) {
            let message = will.message(node.next_message_id(), held.slot.mailbox.key, node.now());
            let message = Arc::new(message);
            let published = node.publish_durably(&held.slot.client_id, &message, Delivered::Maybe);
            let _ = timeout(WILL_TIMEOUT, published).await;
        }
        let key = held.slot.mailbox.key;
        // What was sent first comes first.
        let sent: Vec<_> = session.into_shared().collect();
        let unsent = end_session(&node, held);
        node.hand_on(sent.into_iter().chain(unsent), key);
    }
    // Last, for whoever takes the session over must not wait for a client that does not listen.
    if let Some(bytes) = last_words {
        last_word(&mut stream, &bytes).await;
    }
}

/// How a device left a session that is in the log.
pub(super) struct Left {
    /// Seconds that the session goes on.
    expiry: u32,
    has_will: bool,
}

/// The client was let in, but did not take CONNACK.
pub(super) fn leave_unused(node: &Arc<Node>, admitted: Admitted) {
    node.connections.leave();
    let Admitted { held, holding, marker, .. } = admitted;
    if let Some(holding) = holding.as_ref().or(marker.as_ref()) {
        leave_logged(node, &held, holding, None);
    }
    if holding.is_some() {
        node.registry.release(held);
    } else {
        let key = held.slot.mailbox.key;
        let left = end_session(node, held);
        node.hand_on(left, key);
    }
}

/// The device is away: its session in the log waits for it as long as it asked, or ends. `left`: none if it was never
/// served.
pub(super) fn leave_logged(node: &Arc<Node>, held: &Held, holding: &Holding, left: Option<Left>) {
    let unsent = node.sessions.detach(holding.partition, &held.slot.mailbox, node.wall());
    if holding.is_lost() {
        return;
    }
    node.sessions.leave(node, holding, unsent, |session| {
        if let Some(Left { expiry, has_will }) = left {
            session.expiry = expiry;
            session.will.take_if(|_| !has_will);
        }
    });
}

/// Ends a session that is in no log: nothing of it is left but what other members of shared subscriptions may get.
fn end_session(node: &Node, mut held: Held) -> Vec<Delivery> {
    let left = held.core.discard(&held.slot.mailbox, &node.router);
    node.registry.forget(held);
    left
}

/// Sends these bytes and closes the socket so that they arrive: what the client still sends is read first, for a socket that is
/// closed with unread bytes is reset. Whether the client listens is its own business.
pub(crate) async fn last_word<S>(stream: &mut S, bytes: &[u8])
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let said = timeout(LAST_WORD_TIMEOUT, async {
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        let mut unheard = stream.take(UNHEARD_LIMIT);
        tokio::io::copy(&mut unheard, &mut tokio::io::sink()).await
    });
    let _ = said.await;
}

/// Whether the client broke the rules of what MQTT goes over: WebSocket, TLS.
pub(super) fn is_violation(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

pub(super) fn report_violation(node: &Node, client_id: &str, peer: SocketAddr, what: &io::Error) {
    node.counters.protocol_violations.add(1);
    notice!(node, violation, client_id, %peer, "closed: {what}");
}

fn report<S>(connection: &Connection<S>, close: &Close) {
    let node = &connection.node;
    let (client_id, peer) = (&*connection.held.slot.client_id, connection.peer);
    match close {
        Close::Gone | Close::Goodbye { .. } | Close::ShuttingDown => {
            tracing::debug!(client_id, %peer, "disconnected")
        }
        Close::Socket(error) if is_violation(error) => report_violation(node, client_id, peer, error),
        Close::Socket(error) => tracing::debug!(client_id, %peer, "connection lost: {error}"),
        Close::TakenOver => tracing::info!(client_id, %peer, "closed: the client ID connected again"),
        Close::KeepAlive => {
            tracing::info!(client_id, %peer, "closed: nothing heard for one and a half keep alives")
        }
        Close::Violation(reason, what) => {
            node.counters.protocol_violations.add(1);
            notice!(node, violation, client_id, %peer, "closed: {what} ({reason})");
        }
        // The refusal itself was logged.
        Close::PublishRefused => {}
        Close::Refused(why) => tracing::info!(client_id, %peer, "closed: {why}"),
        Close::AckTimeout => {
            tracing::warn!(client_id, %peer, "closed: a publish was not durable within {} s", ACK_TIMEOUT.as_secs());
        }
        Close::NoMemory => {
            node.counters.connections_shed.add(1);
            notice!(node, shed, client_id, %peer, "closed: memory is short, and much waits for it");
        }
        Close::Expired => tracing::debug!(client_id, %peer, "closed: the instance has expired"),
        Close::LogFailed => tracing::warn!(client_id, %peer, "closed: a publish could not be made durable"),
    }
}

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// What is still due to the client, and why it ends; none if it has gone.
    fn last_words(&mut self, close: &Close) -> Option<BytesMut> {
        let reason = close.last_word().filter(|_| self.session.version() == Version::V5);
        if let Some((reason, why)) = reason {
            let elsewhere = self.settings.config.listeners.server_reference.as_deref();
            let elsewhere = elsewhere.filter(|_| matches!(close, Close::ShuttingDown));
            let reason = if elsewhere.is_some() { Reason::UseAnotherServer } else { reason };
            let why = self.session.wants_reasons().then_some(why);
            let properties = DisconnectProperties {
                reason_string: why,
                server_reference: elsewhere,
                ..DisconnectProperties::default()
            };
            let before = self.backlog.len();
            Packet::Disconnect(Disconnect { reason, properties }).encode(Version::V5, &mut self.backlog);
            if self.backlog.len() - before > self.session.maximum_packet_size() as usize {
                // Without words it may be small enough (MQTT 5 section 3.14.2.2.3).
                self.backlog.truncate(before);
                let properties = DisconnectProperties::default();
                Packet::Disconnect(Disconnect { reason, properties }).encode(Version::V5, &mut self.backlog);
            }
        }
        (!matches!(close, Close::Gone | Close::Socket(_))).then(|| std::mem::take(&mut self.backlog))
    }
}
