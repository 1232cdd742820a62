//! The end of links that takes messages in: a listener of its own, and one call of gRPC for each process run that passes on.

use std::{convert::Infallible, future::Future, pin::Pin, sync::Arc, time::Duration};

use futures_util::stream::{self, Stream};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Interval, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tonic::{
    Request, Response, Status, Streaming,
    server::{Grpc, StreamingService},
};
use tonic_prost::ProstCodec;

use super::{
    ASK_AFTER, STREAM_WINDOW, UNANSWERED,
    outgoing::BATCH_BYTES,
    settings::{Current, Settings},
    wire::{
        self, Answer, Ask, Call, FromPeer, HasRead, Hello, InTouch, SPOKEN, Taken, ToPeer, Versions, Welcome,
    },
};
use crate::{
    node::Node,
    session::{
        log::Giving,
        relay::{BEAT, Relay, Rising},
    },
};

/// Connections at a time; each peer has one.
const MOST_CONNECTIONS: usize = 1000;
/// How long a handshake, and the first word of a call, may take.
const STEP: Duration = Duration::from_secs(5);
/// How long nothing is accepted after the process ran out of something, such as open files.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// A group, which is as long as a filter may be, and what is around it.
const GROUP_BYTES: usize = 128 << 10;

/// Takes in what peers pass on, until it is aborted.
pub(crate) async fn listen(node: Arc<Node>, socket: TcpListener, current: Arc<Current>) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = socket.accept().await;
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let Ok(place) = room.clone().try_acquire_owned() else {
                    tracing::debug!(
                        "a link is refused: there are {MOST_CONNECTIONS} connections of other nodes"
                    );
                    continue;
                };
                let (node, settings) = (node.clone(), current.load_full());
                connections.spawn(async move {
                    if let Err(why) = meet(node, stream, &settings).await {
                        tracing::debug!("a link from another node ended: {why}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!("no link can be accepted: {error}; trying again");
                sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

async fn meet(node: Arc<Node>, stream: TcpStream, settings: &Settings) -> anyhow::Result<()> {
    anyhow::ensure!(settings.allow(stream.peer_addr()?), "plain text from another machine");
    stream.set_nodelay(true)?;
    let Some(identity) = &settings.identity else { return serve(node, stream).await };
    let stream = timeout(STEP, TlsAcceptor::from(identity.server.clone()).accept(stream)).await??;
    serve(node, stream).await
}

async fn serve(
    node: Arc<Node>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> anyhow::Result<()> {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let node = node.clone();
        async move {
            if request.uri().path() != wire::PASS {
                return Ok::<_, Infallible>(Status::unimplemented("there is no such call").into_http());
            }
            let most = usize::try_from(node.settings().limits().packet_size).unwrap_or(usize::MAX);
            let most = most.saturating_add(BATCH_BYTES + GROUP_BYTES);
            let mut grpc = Grpc::new(ProstCodec::default()).max_decoding_message_size(most);
            Ok(grpc.streaming(Peers(node), request).await)
        }
    });
    let mut builder = Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(ASK_AFTER)
        .keep_alive_timeout(UNANSWERED)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW)
        .max_concurrent_streams(2);
    builder.serve_connection(TokioIo::new(stream), service).await.map_err(anyhow::Error::from_boxed)
}

/// The service that peers call.
struct Peers(Arc<Node>);

type Answers = Pin<Box<dyn Stream<Item = Result<FromPeer, Status>> + Send>>;

impl StreamingService<ToPeer> for Peers {
    type Response = FromPeer;
    type ResponseStream = Answers;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<ToPeer>>) -> Self::Future {
        let node = self.0.clone();
        Box::pin(async move {
            let mut calls = request.into_inner();
            let first = timeout(STEP, calls.message()).await;
            let first = first.map_err(|_| Status::deadline_exceeded("nothing was said"))??;
            let Some(ToPeer { call: Some(Call::Hello(hello)) }) = first else {
                return Err(Status::invalid_argument("a call begins with who calls"));
            };
            let taking = Taking::new(node, calls, &hello)?;
            let answers = stream::unfold(taking, async |mut taking| {
                let answer = taking.next().await?;
                Some((answer, taking))
            });
            Ok(Response::new(Box::pin(answers) as Answers))
        })
    }
}

/// What is taken from one process run.
struct Taking {
    node: Arc<Node>,
    from: u64,
    calls: Streaming<ToPeer>,
    taken: Arc<Rising>,
    /// Up to which number the peer was told that it is taken.
    told: u64,
    giving: Giving,
    /// When it is said whether this node is in touch with the log.
    ticks: Interval,
    welcome: Option<Welcome>,
    is_over: bool,
}

impl Taking {
    fn new(node: Arc<Node>, calls: Streaming<ToPeer>, hello: &Hello) -> Result<Taking, Status> {
        let Hello { lowest, highest, from, to, node: name } = hello;
        let version = SPOKEN
            .agree(Versions { lowest: *lowest, highest: *highest })
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        let relay = node.relay.as_ref().filter(|_| *to == node.boot && *from != node.boot);
        let relay = relay.ok_or_else(|| Status::failed_precondition("this is another process run"))?;
        if !node.sessions.others().contains_key(from) {
            return Err(Status::unavailable("the log does not know of this process run, or not yet"));
        }
        tracing::debug!(version, "node {name} passes on over a link");
        let taken = relay.taken_of(*from);
        let told = taken.get();
        let mut ticks = interval(BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let welcome = Some(Welcome { version, boot: node.boot, taken: told });
        let giving = Giving::new(node.clone(), *from);
        Ok(Taking { from: *from, calls, taken, told, giving, ticks, welcome, is_over: false, node })
    }

    async fn next(&mut self) -> Option<Result<FromPeer, Status>> {
        if let Some(welcome) = self.welcome.take() {
            return Some(Ok(FromPeer { answer: Some(Answer::Welcome(welcome)) }));
        }
        while !self.is_over {
            tokio::select! {
                biased;
                sequence = self.taken.reach(self.told + 1) => {
                    self.told = sequence;
                    return Some(Ok(FromPeer { answer: Some(Answer::Taken(Taken { sequence })) }));
                }
                read_on = self.giving.next() => {
                    return Some(Ok(FromPeer { answer: Some(Answer::ReadOn(read_on)) }));
                }
                _ = self.ticks.tick() => {
                    if self.node.relay.as_ref()?.is_in_touch() {
                        return Some(Ok(FromPeer { answer: Some(Answer::InTouch(InTouch {})) }));
                    }
                }
                call = self.calls.message() => {
                    match self.take(call).await {
                        Ok(None) => {}
                        Ok(answer) => return Some(Ok(FromPeer { answer })),
                        Err(why) => {
                            self.is_over = true;
                            return why.map(Err);
                        }
                    }
                }
            }
        }
        None
    }

    /// What is answered at once, if anything is. An error ends it, with what is said of that.
    async fn take(&mut self, call: Result<Option<ToPeer>, Status>) -> Result<Option<Answer>, Option<Status>> {
        match call.map_err(Some)?.ok_or(None)?.call {
            Some(Call::Batch(batch)) => {
                let relay: &Relay = self.node.relay.as_ref().ok_or(None)?;
                let taken = relay.take_linked(&self.node, self.from, &batch).await;
                taken.map_err(|error| Some(Status::failed_precondition(error.to_string())))?;
                Ok(None)
            }
            Some(Call::Ask(Ask { asked })) => Ok(self.giving.give(asked).map(Answer::Lease)),
            Some(Call::HasRead(HasRead { round })) => {
                self.giving.read(round);
                Ok(None)
            }
            // Of a later version.
            Some(Call::Hello(_)) | None => Ok(None),
        }
    }
}
