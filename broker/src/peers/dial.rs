//! The end of links that passes messages on: one task for each other process run that the log knows.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::stream;
use hyper::http::uri::{PathAndQuery, Uri};
use hyper_util::rt::TokioIo;
use mqtt_proto::durable::record::Boot;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{
    ASK_AFTER, STREAM_WINDOW, UNANSWERED,
    settings::{Current, Settings},
    wire::{
        self, Answer, Ask, Call, FromPeer, HasRead, Hello, InTouch, SPOKEN, Taken, ToPeer, Versions, Welcome,
    },
};
use crate::{
    limits::Trouble,
    node::Node,
    session::{
        log::{ASK_EVERY, Hearing, TooMuch},
        relay::Relay,
    },
};

/// How often it is looked at which process runs there are, and whether a link is in time.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(100);
/// How long each step to a link may take.
const STEP: Duration = Duration::from_secs(2);
/// Between two attempts; doubled with each that fails.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
enum NoLink {
    #[error("its address is not known: name it with --peer")]
    NoAddress,
    #[error("{0} can't be found: {1}")]
    NotFound(String, std::io::Error),
    #[error("{0} is no loopback address, and there is no certificate: plain text does not leave the machine")]
    Plain(SocketAddr),
    #[error("{0} can't be reached: {1}")]
    NotReached(String, String),
    #[error("{0} did not answer within {limit} s", limit = STEP.as_secs())]
    NoAnswer(String),
    #[error("{0}")]
    Versions(wire::NoCommonVersion),
    #[error("another process run answers there")]
    Another,
    #[error("it did not say what a peer says")]
    Strange,
    #[error("it asks for more before it was answered")]
    TooMuch,
    #[error("it was closed")]
    Closed,
    #[error("it broke: {0}")]
    Broke(String),
    #[error("what it should have brought is not confirmed after {} ms", super::outgoing::PATIENCE)]
    Overdue,
}

impl From<Status> for NoLink {
    fn from(status: Status) -> NoLink {
        NoLink::Broke(root(&status))
    }
}

/// What is behind an error that says little by itself.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let last = std::iter::successors(Some(error), |error| error.source()).last();
    last.unwrap_or(error).to_string()
}

/// Keeps a link to each other process run, until it is aborted.
pub(crate) async fn dial_all(node: Arc<Node>, current: Arc<Current>) {
    let mut tasks = JoinSet::new();
    let mut dialled: HashMap<Boot, AbortHandle> = HashMap::new();
    let mut ticks = interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        while tasks.try_join_next().is_some() {}
        let others: BTreeMap<Boot, (String, bool)> = node.sessions.others();
        for (_, gone) in dialled.extract_if(|boot, _| !others.contains_key(boot)) {
            gone.abort();
        }
        for (boot, (name, _)) in others.into_iter().filter(|(_, (_, shared))| *shared) {
            dialled
                .entry(boot)
                .or_insert_with(|| tasks.spawn(keep(node.clone(), current.clone(), boot, name)));
        }
    }
}

/// Keeps a link to one.
async fn keep(node: Arc<Node>, current: Arc<Current>, boot: Boot, name: String) {
    let mut pause = FIRST_PAUSE;
    let mut trouble = Trouble::default();
    loop {
        let began = Instant::now();
        let settings = current.load_full();
        let why = match settings.addresses.of(&name) {
            None => NoLink::NoAddress,
            Some(address) => match pass_on(&node, &settings, (boot, &name), &address).await {
                Ok(never) => match never {},
                Err(why) => why,
            },
        };
        let line = why.to_string();
        if trouble.is_due(&line) {
            tracing::warn!("no link to node {name}, what is for it goes through Kafka: {line}");
        }
        if began.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Makes a link, and passes on over it what is for the peer, as long as it stands.
async fn pass_on(
    node: &Arc<Node>,
    settings: &Settings,
    (boot, name): (Boot, &str),
    address: &str,
) -> Result<std::convert::Infallible, NoLink> {
    let late = |_| NoLink::NoAnswer(address.to_owned());
    let channel = timeout(STEP, connect(settings, address)).await.map_err(late)??;
    let (calls, requests) = mpsc::channel(1);
    let (mut answers, Welcome { taken, .. }) =
        timeout(STEP, greet(node, boot, channel, &calls, requests)).await.map_err(late)??;
    let (Some(relay), Some(link)) = (&node.relay, Relay::join(node, boot, taken)) else {
        return Err(NoLink::Another);
    };
    tracing::info!("a link to node {name} at {address} stands");
    let mut handed = pin!(relay.handed());
    let (mut ticks, mut asks) = (interval(TICK), interval(ASK_EVERY));
    asks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut hearing = Hearing::new(node.clone(), boot);
    let mut said = VecDeque::new();
    let mut may_have_more = true;
    loop {
        tokio::select! {
            biased;
            answer = answers.message() => {
                match answer?.ok_or(NoLink::Closed)?.answer {
                    Some(Answer::Taken(Taken { sequence })) => link.taken(sequence),
                    Some(Answer::InTouch(InTouch {})) => relay.peer_is_in_touch(name),
                    Some(Answer::Lease(lease)) => hearing.lease(lease),
                    Some(Answer::ReadOn(read_on)) => {
                        hearing.read_on(read_on).map_err(|TooMuch| NoLink::TooMuch)?;
                    }
                    // Of a later version.
                    Some(Answer::Welcome(_)) | None => {}
                }
                may_have_more = true;
            }
            room = calls.reserve(), if may_have_more || !said.is_empty() => {
                let room = room.map_err(|_| NoLink::Closed)?;
                if let Some(call) = said.pop_front() {
                    room.send(ToPeer { call: Some(call) });
                    continue;
                }
                // What is handed over from here on is heard of.
                handed.set(relay.handed());
                match link.batch() {
                    Some(batch) => room.send(ToPeer { call: Some(Call::Batch(batch)) }),
                    None => may_have_more = false,
                }
            }
            () = &mut handed, if !may_have_more => may_have_more = true,
            round = hearing.next() => said.push_back(Call::HasRead(HasRead { round })),
            _ = asks.tick() => {
                said.extend(hearing.ask().filter(|_| said.is_empty()).map(|asked| Call::Ask(Ask { asked })));
            }
            _ = ticks.tick() => {
                if link.is_overdue() {
                    return Err(NoLink::Overdue);
                }
            }
        }
    }
}

/// Says who this is, and hears who that is.
async fn greet(
    node: &Node,
    boot: Boot,
    channel: Channel,
    calls: &mpsc::Sender<ToPeer>,
    requests: mpsc::Receiver<ToPeer>,
) -> Result<(Streaming<FromPeer>, Welcome), NoLink> {
    let Versions { lowest, highest } = SPOKEN;
    let own = node.relay.as_ref().map_or("", Relay::name).to_owned();
    let hello = Hello { lowest, highest, from: node.boot, to: boot, node: own };
    calls.try_send(ToPeer { call: Some(Call::Hello(hello)) }).map_err(|_| NoLink::Closed)?;
    let requests = stream::unfold(requests, async |mut requests| {
        let next = requests.recv().await?;
        Some((next, requests))
    });
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| NoLink::Broke(root(&error)))?;
    let codec = ProstCodec::<ToPeer, FromPeer>::default();
    let path = PathAndQuery::from_static(wire::PASS);
    let mut answers = grpc.streaming(Request::new(requests), path, codec).await?.into_inner();
    let Some(FromPeer { answer: Some(Answer::Welcome(welcome)) }) = answers.message().await? else {
        return Err(NoLink::Strange);
    };
    if welcome.boot != boot {
        return Err(NoLink::Another);
    }
    SPOKEN.agree(Versions { lowest: welcome.version, highest: welcome.version }).map_err(NoLink::Versions)?;
    Ok((answers, welcome))
}

/// A connection that is more than a socket.
trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

async fn connect(settings: &Settings, address: &str) -> Result<Channel, NoLink> {
    let opened = open(settings, address).await?;
    // There is one connection to be had: with it the channel ends.
    let mut opened = Some(TokioIo::new(opened));
    let connector = tower::service_fn(move |_: Uri| {
        let opened = opened.take().ok_or_else(|| std::io::Error::other("the connection has ended"));
        std::future::ready(opened)
    });
    let failed = |error: tonic::transport::Error| NoLink::NotReached(address.to_owned(), root(&error));
    Endpoint::from_shared(format!("http://{address}"))
        .map_err(failed)?
        .http2_keep_alive_interval(ASK_AFTER)
        .keep_alive_timeout(UNANSWERED)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW)
        .connect_with_connector(connector)
        .await
        .map_err(failed)
}

/// The first of the addresses behind a name that can be reached.
async fn open(settings: &Settings, address: &str) -> Result<Box<dyn Transport>, NoLink> {
    let not_found = |error| NoLink::NotFound(address.to_owned(), error);
    let not_reached = |error: std::io::Error| NoLink::NotReached(address.to_owned(), error.to_string());
    let mut last = NoLink::NotReached(address.to_owned(), "it has no address".into());
    for found in lookup_host(address).await.map_err(not_found)? {
        if !settings.allow(found) {
            last = NoLink::Plain(found);
            continue;
        }
        let stream = match TcpStream::connect(found).await {
            Ok(stream) => stream,
            Err(error) => {
                last = not_reached(error);
                continue;
            }
        };
        stream.set_nodelay(true).map_err(not_reached)?;
        let Some(identity) = &settings.identity else { return Ok(Box::new(stream)) };
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let host = ServerName::try_from(host).map_err(std::io::Error::other).map_err(not_reached)?;
        let tls =
            TlsConnector::from(identity.client.clone()).connect(host, stream).await.map_err(not_reached)?;
        return Ok(Box::new(tls));
    }
    Err(last)
}
