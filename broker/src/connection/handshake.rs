//! From the first byte to CONNACK: who is it, may it come in, and which session is its own.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use mqtt_proto::{
    codec::{CodecError, ConnAckProperties, Connect, Packet, Reason, Version, decode, split_frame},
    session::{SessionState, TOPIC_ALIAS_MAXIMUM, Terms},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{
    closing,
    connack::{connack, largest_packet},
    takeover::{Taken, take_session},
    trace::{self, Arrival},
    will::{Will, WillError},
};
use crate::{
    admission::{Newcomer, TooMany},
    auth::{Credentials, LoginError, User},
    limits::notice,
    log::Health,
    node::Node,
    session::{
        ClaimError, Held,
        log::{ClaimFailed, Holding},
    },
    settings::Settings,
};

/// Until CONNECT must be here, and until CONNACK must be taken.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// QoS > 0 messages towards one client without its acknowledgement: they are kept in memory.
const INFLIGHT_CAP: u16 = 1000;
/// QoS > 0 publishes of one client that may wait at once; then its socket is read no further. It is no Receive Maximum,
/// for well-known clients don't keep to one and would be closed for it.
const PUBLISH_WINDOW: u16 = 1000;
const FIRST_READ: usize = 1024;
/// How long a client that wants its session kept waits for a log that takes nothing now.
pub(super) const LOG_PATIENCE: Duration = Duration::from_secs(5);

/// A client that has been let in.
pub(super) struct Admitted {
    pub(super) held: Held,
    /// Of a session in the log, and what is under way with it.
    pub(super) holding: Option<Arc<Holding>>,
    /// Of a session in no log: where other nodes see that the client is here.
    pub(super) marker: Option<Arc<Holding>>,
    pub(super) state: SessionState,
    pub(super) user: Arc<User>,
    pub(super) anonymous: bool,
    /// What it was let in under: a change since then is followed at once.
    pub(super) settings: Arc<Settings>,
    pub(super) terms: Terms,
    pub(super) will: Option<Will>,
    /// Seconds that the session outlives the connection; 0: a clean one.
    pub(super) expiry: u32,
    /// What came behind CONNECT.
    pub(super) unread: Vec<u8>,
    pub(super) arrival: Arrival,
}

/// Why a client was not let in. It has been told where the protocol allows.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("{0}")]
    Socket(#[from] std::io::Error),
    #[error("no CONNECT within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    #[error("not a CONNECT packet")]
    NotConnect,
    #[error("{0}")]
    Codec(CodecError),
    #[error("{0}")]
    Login(#[from] LoginError),
    #[error("client ID has {0} characters, the limit is {1}: shorten it")]
    ClientIdLength(usize, u32),
    #[error("client ID or user name has characters outside 0-9 a-z A-Z - _ / @@")]
    Characters,
    #[error("an empty client ID needs a clean session")]
    EmptyClientId,
    #[error("enhanced authentication is not supported")]
    AuthMethod,
    #[error("its will can't be published: {0}")]
    Will(#[from] WillError),
    #[error("it takes {0} bytes a packet, too few for CONNACK: raise its Maximum Packet Size")]
    PacketSize(u32),
    #[error("its address has {0} connections already: see spec.limits.connectionsPerAddress")]
    AddressLimit(u64),
    #[error("too many wrong passwords came from its address for its user; it may try again")]
    TooManyFailures,
    #[error("the instance has expired: move spec.expiresAt to let devices in again")]
    Expired,
    #[error("memory is short")]
    NoMemory,
    #[error("all {0} connections of the instance are in use")]
    ConnectionLimit(u64),
    #[error("sessions can't be kept while the log takes nothing; a clean session would be let in")]
    LogAway,
    #[error("{0}")]
    Claim(#[from] ClaimError),
}

impl From<ClaimFailed> for Refused {
    fn from(_: ClaimFailed) -> Refused {
        Refused::LogAway
    }
}

impl Refused {
    /// Whether MQTT 3 has a word for it; where it has none, the connection is closed without one (MQTT 3.1.1 sections
    /// 3.1.4 and 3.2.2.3).
    fn has_a_return_code(&self) -> bool {
        match self {
            Refused::Codec(error) => matches!(error, CodecError::UnsupportedVersion(_)),
            Refused::Will(_) => false,
            _ => true,
        }
    }

    fn reason(&self) -> Option<Reason> {
        Some(match self {
            Refused::Socket(_) | Refused::Timeout | Refused::NotConnect | Refused::PacketSize(_) => {
                return None;
            }
            Refused::Codec(error) => error.reason(),
            Refused::Login(LoginError::BadCredentials) => Reason::BadUserNameOrPassword,
            Refused::Login(LoginError::Busy | LoginError::TooSlow) => Reason::ServerBusy,
            Refused::Login(LoginError::NoCredentials | LoginError::ClientIdNotAllowed) => {
                Reason::NotAuthorized
            }
            Refused::ClientIdLength(..) | Refused::Characters | Refused::EmptyClientId => {
                Reason::ClientIdentifierNotValid
            }
            Refused::AuthMethod => Reason::BadAuthenticationMethod,
            Refused::Will(WillError::Topic(_)) => Reason::TopicNameInvalid,
            Refused::Will(WillError::Payload) => Reason::PayloadFormatInvalid,
            Refused::ConnectionLimit(_) | Refused::AddressLimit(_) => Reason::QuotaExceeded,
            Refused::TooManyFailures | Refused::NoMemory => Reason::ServerBusy,
            // Who may end it is the administrator, and another try is in vain; "quota exceeded" says that there may be room soon.
            // MQTT 3: not authorized.
            Refused::Expired => Reason::Banned,
            // "Session taken over" is none that CONNACK may carry (MQTT 5 section 3.2.2.2).
            Refused::LogAway | Refused::Claim(_) => Reason::ServerUnavailable,
        })
    }
}

/// Lets a client in, or tells it why not. One line is logged about whoever is refused.
pub(super) async fn admit<S>(node: &Arc<Node>, stream: &mut S, newcomer: &mut Newcomer) -> Option<Admitted>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let peer = newcomer.peer;
    let mut buffer = BytesMut::with_capacity(FIRST_READ);
    let settings = node.settings().clone();
    let place = newcomer.place.take()?;
    let read = place.hold(timeout(CONNECT_TIMEOUT, read_frame(stream, &mut buffer, &settings))).await;
    drop(place);
    let Ok(read) = read else {
        tracing::debug!(%peer, "closed before its CONNECT: others came");
        return None;
    };
    let length = match read {
        Ok(Ok(length)) => length,
        Ok(Err(Refused::Socket(error))) if closing::is_violation(&error) => {
            closing::report_violation(node, "", peer, &error);
            return None;
        }
        Ok(Err(Refused::Socket(error))) => {
            tracing::debug!(%peer, "gone before CONNECT: {error}");
            return None;
        }
        Ok(Err(refused)) => {
            report(node, peer, "", &refused);
            return None;
        }
        Err(_) => {
            report(node, peer, "", &Refused::Timeout);
            return None;
        }
    };
    let unread = buffer.split_off(length).to_vec();
    // The client took its time: what holds is what holds now.
    let settings = node.settings().clone();
    let mut largest = u32::MAX;
    let (version, client_id, outcome) = match parse(&buffer) {
        Err(refused) => (version_for_refusal(&buffer), String::new(), Err(refused)),
        Ok(connect) => {
            let client_id = connect.client_id.to_owned();
            largest = largest_packet(&connect);
            (
                Some(connect.version),
                client_id,
                let_in(node, &settings, &connect, newcomer, unread, peer).await,
            )
        }
    };
    let (admitted, connack) = match outcome {
        Ok(admitted) => admitted,
        Err(refused) => {
            report(node, peer, &client_id, &refused);
            if let (Some(reason), Some(version)) = (refused.reason(), version)
                && (version == Version::V5 || refused.has_a_return_code())
            {
                let properties = ConnAckProperties::default();
                if let Some(out) = connack(false, reason, properties, version, largest) {
                    // Whether it still hears the refusal is its own business.
                    closing::last_word(stream, &out).await;
                }
            }
            return None;
        }
    };
    // Whether or not it takes CONNACK, this has happened.
    trace::replaced(node, peer, &admitted);
    match timeout(CONNECT_TIMEOUT, stream.write_all(&connack)).await {
        Ok(Ok(())) => Some(admitted),
        _ => {
            closing::leave_unused(node, admitted);
            None
        }
    }
}

async fn read_frame<S>(stream: &mut S, buffer: &mut BytesMut, settings: &Settings) -> Result<usize, Refused>
where
    S: AsyncRead + Unpin,
{
    loop {
        match split_frame(buffer, settings.limits().packet_size).map_err(Refused::Codec)? {
            Some((_, length)) => return Ok(length),
            // Whatever is not CONNECT is not waited for: its length may be a lie.
            None if buffer.first().is_some_and(|first| first >> 4 != 1) => return Err(Refused::NotConnect),
            None => {
                if stream.read_buf(buffer).await? == 0 {
                    return Err(Refused::Socket(std::io::ErrorKind::UnexpectedEof.into()));
                }
            }
        }
    }
}

fn parse(buffer: &[u8]) -> Result<Connect<'_>, Refused> {
    let (frame, _) = split_frame(buffer, u32::MAX).map_err(Refused::Codec)?.ok_or(Refused::NotConnect)?;
    if frame.first >> 4 != 1 {
        return Err(Refused::NotConnect);
    }
    match decode(frame, Version::V311).map_err(Refused::Codec)? {
        Packet::Connect(connect) => Ok(connect),
        _ => Err(Refused::NotConnect),
    }
}

/// All checks in their order, then the claim of the session; CONNACK comes with it.
async fn let_in(
    node: &Arc<Node>,
    settings: &Arc<Settings>,
    connect: &Connect<'_>,
    newcomer: &mut Newcomer,
    unread: Vec<u8>,
    peer: SocketAddr,
) -> Result<(Admitted, BytesMut), Refused> {
    if settings.has_expired(|| node.wall()) {
        return Err(Refused::Expired);
    }
    let limits = settings.limits();
    let given_expiry = connect.properties.session_expiry_interval;
    let expiry = match connect.version {
        Version::V5 => given_expiry.min(settings.config.session.expiry_seconds),
        _ if connect.clean_start => 0,
        _ => settings.config.session.expiry_seconds,
    };
    let assigned = connect.client_id.is_empty().then(|| format!("auto-{:016x}", node.outside.random()));
    if assigned.is_some()
        && connect.version != Version::V5
        && !(connect.clean_start && connect.version == Version::V311)
    {
        return Err(Refused::EmptyClientId);
    }
    let client_id = assigned.as_deref().unwrap_or(connect.client_id);
    let length = client_id.chars().count();
    if length > limits.client_id_length as usize {
        return Err(Refused::ClientIdLength(length, limits.client_id_length));
    }
    if !settings.allows_characters(client_id, false) {
        return Err(Refused::Characters);
    }
    if connect.properties.auth_method.is_some() {
        return Err(Refused::AuthMethod);
    }
    let credentials = match (connect.username, connect.password) {
        // Its certificate is its password.
        _ if newcomer.user.is_some() => None,
        (None, None) => None,
        (Some(username), Some(password)) => Some((username, password)),
        _ => return Err(LoginError::BadCredentials.into()),
    };
    if node.admission.memory.is_short() {
        return Err(Refused::NoMemory);
    }
    let (settings, user) = &match &newcomer.user {
        Some(name) => certified(node, name, connect.username, client_id)?,
        None => login(node, newcomer.peer, credentials, client_id).await?,
    };
    let limits = settings.limits();
    let keep_alive = keep_alive(connect, limits.keep_alive_seconds);
    let will = connect.will.as_ref().map(Will::parse).transpose()?;
    if (expiry > 0 || node.sessions.shared) && !log_works(node).await {
        return Err(Refused::LogAway);
    }
    let asks = connect.properties.request_response_information;
    let response_information = settings.response_information.as_ref().filter(|_| asks);
    let response_information = response_information.map(|of| of.fill(client_id, &user.name));
    let properties = ConnAckProperties {
        session_expiry_interval: (expiry != given_expiry).then_some(expiry),
        maximum_packet_size: Some(limits.packet_size),
        assigned_client_id: assigned.as_deref(),
        topic_alias_maximum: Some(TOPIC_ALIAS_MAXIMUM),
        response_information: response_information.as_deref(),
        server_keep_alive: (keep_alive != connect.keep_alive).then_some(keep_alive),
        ..ConnAckProperties::default()
    };
    let largest = largest_packet(connect);
    let greeting = |session_present| {
        connack(session_present, Reason::Success, properties.clone(), connect.version, largest)
            .ok_or(Refused::PacketSize(largest))
    };
    // Before anything of it is changed.
    greeting(false)?;
    // A client that is there already takes no more room: it takes its own connection over.
    let address_limit = limits.connections_per_address.unwrap_or(u64::MAX);
    let address_limit = if node.registry.is_online(client_id) { u64::MAX } else { address_limit };
    newcomer.seat = node.admission.addresses.enter(newcomer.peer.ip(), address_limit);
    if newcomer.seat.is_none() {
        return Err(Refused::AddressLimit(address_limit));
    }
    let elsewhere = node.used_elsewhere();
    let entered = node.connections.enter(limits.connections.saturating_sub(elsewhere.connections))
        || (node.registry.is_online(client_id) && node.connections.enter(u64::MAX));
    if !entered {
        return Err(Refused::ConnectionLimit(limits.connections));
    }
    let was_online = node.registry.is_online(client_id);
    let held = node.registry.claim(client_id, node.sessions.mailbox(client_id)).await;
    let mut held = held.inspect_err(|_| node.connections.leave())?;
    let taken = take_session(node, &mut held, connect, user, expiry, will.as_ref(), peer).await;
    let Taken { holding, marker, state, present: session_present, had_session } = match taken {
        Ok(taken) => taken,
        Err(refused) => {
            node.registry.release(held);
            node.connections.leave();
            return Err(refused);
        }
    };
    let arrival = Arrival {
        version: connect.version,
        clean_start: connect.clean_start,
        session_present,
        keep_alive,
        was_online,
        had_session,
    };
    let admitted = Admitted {
        held,
        terms: Terms {
            logged: holding.is_some(),
            keep_alive,
            ..Terms::of(connect, INFLIGHT_CAP, PUBLISH_WINDOW)
        },
        holding,
        marker,
        state,
        user: user.clone(),
        anonymous: connect.username.is_none() && newcomer.user.is_none(),
        settings: settings.clone(),
        will,
        expiry,
        unread,
        arrival,
    };
    Ok((admitted, greeting(session_present)?))
}

/// What holds of the keep alive that a client asks for. Before MQTT 5 it can't be told another, and would be closed for keeping to
/// its own.
fn keep_alive(connect: &Connect<'_>, longest: Option<u16>) -> u16 {
    match (longest, connect.keep_alive) {
        (Some(longest), asked) if connect.version == Version::V5 && (asked == 0 || asked > longest) => {
            longest
        }
        (_, asked) => asked,
    }
}

/// Whom its certificate names, unless it gives another user's name.
fn certified(
    node: &Node,
    name: &str,
    given: Option<&str>,
    client_id: &str,
) -> Result<(Arc<Settings>, Arc<User>), LoginError> {
    let settings = node.settings().clone();
    let user = settings.access.user(name).filter(|_| given.is_none_or(|given| given == name));
    let user = user.cloned().ok_or(LoginError::BadCredentials)?;
    if user.may_use(client_id) { Ok((settings, user)) } else { Err(LoginError::ClientIdNotAllowed) }
}

/// Who it is, under the settings in force when that is known. Who has tried too often must wait.
async fn login(
    node: &Arc<Node>,
    peer: SocketAddr,
    credentials: Credentials<'_>,
    client_id: &str,
) -> Result<(Arc<Settings>, Arc<User>), Refused> {
    let current = || node.settings().clone();
    let Some((name, _)) = credentials else { return Ok(node.logins.login(current, None, client_id).await?) };
    let failures = &node.admission.failures;
    let suspect = failures.suspect(peer.ip(), name);
    let turn = failures.turn(suspect, node.now()).map_err(|TooMany| Refused::TooManyFailures)?;
    if let Some(wait) = turn {
        node.counters.logins_slowed.add(1);
        notice!(node, failed_login, %peer, "wrong passwords come too often from there for one user: they are slowed down");
        tokio::time::sleep(wait).await;
    }
    let outcome = node.logins.login(current, credentials, client_id).await;
    if turn.is_none() && matches!(outcome, Err(LoginError::BadCredentials)) {
        failures.note(suspect, node.now());
    }
    Ok(outcome?)
}

/// Waits a while for a log that is away.
async fn log_works(node: &Node) -> bool {
    let mut health = node.log.health();
    let works = health.wait_for(|health| *health == Health::Working);
    matches!(timeout(LOG_PATIENCE, works).await, Ok(Ok(_)))
}

/// Counts a refusal and says it in one line.
fn report(node: &Node, peer: SocketAddr, client_id: &str, refused: &Refused) {
    match refused {
        Refused::ConnectionLimit(_) => {
            node.counters.connections_over_limit.add(1);
            notice!(node, connection_limit, %peer, client_id, "connection refused: {refused}");
        }
        Refused::AddressLimit(_) => {
            node.counters.connections_over_address_limit.add(1);
            notice!(node, address_limit, %peer, client_id, "connection refused: {refused}");
        }
        Refused::TooManyFailures => {
            node.counters.logins_slowed.add(1);
            notice!(node, failed_login, %peer, client_id, "connection refused: {refused}");
        }
        Refused::NoMemory => {
            node.counters.connects_without_memory.add(1);
            notice!(node, memory, %peer, client_id, "connection refused: {refused}");
        }
        Refused::Login(LoginError::Busy | LoginError::TooSlow) => {
            node.counters.logins_busy.add(1);
            notice!(node, busy_login, %peer, client_id, "connection refused: {refused}");
        }
        _ => {
            node.counters.connects_refused.add(1);
            notice!(node, refused_connect, %peer, client_id, "connection refused: {refused}");
        }
    }
}

/// In which version a client whose CONNECT can't be read may be told so.
fn version_for_refusal(buffer: &[u8]) -> Option<Version> {
    let (frame, _) = split_frame(buffer, u32::MAX).ok()??;
    if frame.body.starts_with(b"\0\x06MQIsdp") {
        return Some(Version::V31);
    }
    match frame.body.strip_prefix(b"\0\x04MQTT")?.first()? {
        5 => Some(Version::V5),
        _ => Some(Version::V311),
    }
}
