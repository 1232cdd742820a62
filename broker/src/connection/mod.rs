//! One device's connection: its socket, its session, and nothing in between.
//!
//! Each connection is one task, written as one poll function that works until the socket or the mailbox has
//! nothing more: it reads as much as there is, parses all of it, routes it in runs, and writes all answers
//! and deliveries at once. Buffers belong to the thread; an idle connection holds none. Reading pauses (and
//! with it the keep alive clock) while the log, a slow recipient or the publish rate asks for it.

pub(crate) mod closing;
mod connack;
mod handshake;
mod input;
mod output;
mod publish;
mod subscribe;
mod takeover;
#[cfg(test)]
mod tests;
mod trace;
pub(crate) mod will;

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use foldhash::fast::RandomState;
use mqtt_proto::{
    acl::Grants,
    message::{Delivery, MessageId, Millis},
    session::{Session, Violation},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Sleep,
};

use self::{
    closing::Close,
    input::Kept,
    publish::{Intake, Topics},
    subscribe::Asked,
    will::Will,
};
use crate::{
    admission::{Newcomer, Seat},
    auth::User,
    limits::notice,
    log::{AppendSink, BoxFuture, Outcome},
    node::Node,
    router::fanout::Fanout,
    session::{
        Held,
        log::{DIRECT_PATIENCE, Holding},
        mailbox::{Mailbox, PATIENCE, Settled, Settling},
    },
    settings::Settings,
};

/// Bytes read at once.
const READ_SIZE: usize = 64 * 1024;
/// Reads in one go before other connections of the thread get their turn.
const READS_A_TURN: usize = 8;
/// A client that does not read its socket is not read from, either, once this many bytes wait for it.
const BACKLOG_LIMIT: usize = 256 * 1024;
/// The longest that a publish waits for its outcome before the connection is closed without an answer.
const ACK_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) struct Connection<S> {
    node: Arc<Node>,
    stream: S,
    peer: SocketAddr,
    /// Among those of its address.
    _seat: Option<Seat>,
    session: Session,
    held: Held,
    /// Of a session in the log.
    holding: Option<Arc<Holding>>,
    /// Of a session in no log, where other nodes see that the client is here.
    marker: Option<Arc<Holding>>,
    mailbox: Arc<Mailbox>,
    user: Arc<User>,
    anonymous: bool,
    /// Seconds that the session outlives this connection.
    expiry: u32,
    will: Option<Box<Will>>,
    settings: Arc<Settings>,
    grants: Grants,
    topics: Topics,
    /// Publishes that wait for their turn.
    intake: VecDeque<Intake>,
    /// Counts those that something of their own is waited for.
    turns: u64,
    /// A barrier was passed since this connection began: what its client was told before, on whichever node, is known.
    has_looked: bool,
    /// Gets the outcomes of this connection's appends.
    settling: Arc<dyn AppendSink>,
    /// Read, not yet parsed.
    unread: Vec<u8>,
    /// What is in `unread`.
    kept: Kept,
    /// Encoded, not yet taken by the socket.
    backlog: BytesMut,
    pauses: Pauses,
    /// Publishes that wait for more than one append.
    waits: HashMap<u64, usize, RandomState>,
    /// Changes of subscriptions that wait for the log.
    asked: Asked,
    /// QoS 2 messages that the device has taken, by packet identifier, until that is written down.
    receiving: HashMap<u16, MessageId, RandomState>,
    /// The broker lets it go: nothing more is read, and it ends once what was read is answered.
    leaves: bool,
    /// When the oldest unanswered publish must have its outcome.
    ack_deadline: Option<Millis>,
    timer: Option<Pin<Box<Sleep>>>,
    now: Millis,
    /// [`Node::wall`] in this turn, once it was asked for.
    wall: Option<Millis>,
}

/// What reading waits for, and sending.
#[derive(Default)]
struct Pauses {
    /// Recipients without room, and until when they are waited for.
    congested: Vec<Arc<Mailbox>>,
    congested_until: Millis,
    /// The publish rate.
    rate_until: Option<Millis>,
    /// The delivery rate, which sending waits for.
    delivery_rate_until: Option<Millis>,
    log: Option<BoxFuture<'static, ()>>,
}

/// Buffers that one thread's connections share, one at a time.
struct Scratch {
    read: Vec<u8>,
    out: BytesMut,
    deliveries: Vec<Delivery>,
    fanout: Fanout,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Serves one device until it goes. What comes before it is served, and after, is boxed: an idle connection's task has no
/// room for it.
pub(crate) fn serve<S>(node: Arc<Node>, stream: S, newcomer: Newcomer) -> impl Future<Output = ()> + Send
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let beginning = Box::pin(begin(node.clone(), stream, newcomer));
    async move {
        let _open = node.sockets.open();
        let Some(mut connection) = beginning.await else { return };
        let close = std::future::poll_fn(|context| connection.poll(context)).await;
        Box::pin(closing::close(*connection, close)).await;
    }
}

async fn begin<S>(node: Arc<Node>, mut stream: S, mut newcomer: Newcomer) -> Option<Box<Connection<S>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let admitted = handshake::admit(&node, &mut stream, &mut newcomer).await?;
    node.bridge.connected(&admitted.held.slot.client_id, node.wall());
    trace::came(&node, newcomer.peer, &admitted);
    Some(Box::new(Connection::new(node, stream, newcomer, admitted)))
}

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    fn new(node: Arc<Node>, stream: S, newcomer: Newcomer, admitted: handshake::Admitted) -> Self {
        let handshake::Admitted {
            held,
            holding,
            marker,
            state,
            user,
            anonymous,
            settings,
            terms,
            will,
            expiry,
            unread,
            arrival: _,
        } = admitted;
        let now = node.now();
        let mailbox = held.slot.mailbox.clone();
        if holding.is_none() {
            mailbox.go_online();
        }
        Connection {
            session: Session::new(terms, state, now),
            grants: user.grants(&held.slot.client_id),
            topics: Topics::default(),
            intake: VecDeque::new(),
            turns: 0,
            has_looked: false,
            settling: Arc::new(Settling { mailbox: mailbox.clone(), connection: held.claim }),
            backlog: BytesMut::new(),
            pauses: Pauses::default(),
            waits: HashMap::default(),
            asked: Asked::default(),
            receiving: HashMap::default(),
            leaves: false,
            ack_deadline: None,
            timer: None,
            node,
            stream,
            peer: newcomer.peer,
            _seat: newcomer.seat,
            held,
            holding,
            marker,
            mailbox,
            user,
            anonymous,
            expiry,
            will: will.map(Box::new),
            settings,
            kept: if unread.is_empty() { Kept::Part } else { Kept::Packets },
            unread,
            now,
            wall: None,
        }
    }

    /// What is kept in memory for this client until it reads, or has sent the rest.
    fn waiting_bytes(&self) -> usize {
        self.backlog.capacity() + self.unread.capacity() + self.mailbox.bytes()
    }

    fn client_id(&self) -> &str {
        &self.held.slot.client_id
    }

    /// Another node has the client.
    fn is_lost(&self) -> bool {
        self.holding.as_ref().or(self.marker.as_ref()).is_some_and(|holding| holding.is_lost())
    }

    /// Works until there is nothing to do; ready when the connection must be closed.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Close> {
        let mut scratch = SCRATCH.take().unwrap_or_else(Scratch::new);
        let outcome = self.turn(&mut scratch, context);
        scratch.fanout.flush(self.settings.caps(), &self.node.counters);
        scratch.fanout.wake();
        if outcome.is_err() {
            // What was answered before the end is said before it.
            self.backlog.extend_from_slice(&scratch.out);
        }
        scratch.tidy();
        SCRATCH.set(Some(scratch));
        match outcome {
            Err(close) => Poll::Ready(close),
            Ok(()) => Poll::Pending,
        }
    }

    fn turn(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Result<(), Close> {
        for _ in 0..READS_A_TURN {
            self.now = self.node.now();
            self.wall = None;
            let mail = self.mailbox.look(context);
            // Behind an append that failed nothing more is appended: it would overtake what the client sends again.
            let has_failed = |settled: &Settled| {
                settled.connection == self.held.claim && !matches!(settled.outcome, Outcome::Durable(_))
            };
            let outcome = match mail.settled.iter().any(has_failed) {
                true => Err(Close::LogFailed),
                false => Ok(()),
            };
            if outcome.is_ok() {
                mail.settled.into_iter().for_each(|settled| self.settle(settled, scratch));
            }
            if mail.called && (!self.held.is_valid() || self.is_lost()) {
                return Err(Close::TakenOver);
            }
            self.leaves |= mail.called && self.node.is_stopping();
            if self.leaves && (self.node.is_in_haste() || !self.session.owes_acks()) {
                return Err(Close::ShuttingDown);
            }
            if mail.called && self.node.admission.memory.is_too_much(self.waiting_bytes()) {
                return Err(Close::NoMemory);
            }
            if mail.called && self.node.settings().has_expired(|| self.node.wall()) {
                return Err(Close::Expired);
            }
            self.follow_settings()?;
            outcome?;
            self.write_overdue(mail.first_direct);
            self.await_room(context);
            self.issue_waiting(scratch);
            let read = self.read(scratch, context)?;
            self.hand_over(scratch);
            let more = self.fill(scratch);
            let blocked = self.write(&mut scratch.out, context)?;
            if !read && (!more || blocked) {
                return self.wait(context);
            }
        }
        // Others of this thread first.
        context.waker().wake_by_ref();
        Ok(())
    }

    /// Leaves the batch's messages with their recipients, and waits for those without room.
    fn hand_over(&mut self, scratch: &mut Scratch) {
        scratch.fanout.flush(self.settings.caps(), &self.node.counters);
        scratch.fanout.wake();
        if !scratch.fanout.congested.is_empty() {
            if self.pauses.congested.is_empty() {
                self.pauses.congested_until = self.now + millis(PATIENCE);
            }
            self.pauses.congested.append(&mut scratch.fanout.congested);
        }
    }

    /// Keeps to what the instance says now: a removed user goes, a removed grant ends its subscriptions.
    fn follow_settings(&mut self) -> Result<(), Close> {
        let current = self.node.settings();
        if Arc::ptr_eq(&current, &self.settings) {
            return Ok(());
        }
        self.settings = current.clone();
        self.topics.forget();
        (self.pauses.rate_until, self.pauses.delivery_rate_until) = (None, None);
        // Nothing is allowed until it is known what is: neither here nor for its will.
        self.grants = Grants::default();
        let client_id = &self.held.slot.client_id;
        let Some(user) = self.settings.access.still(&self.user.name, self.anonymous, client_id) else {
            return Err(Close::Refused("its user was removed or may no longer use this client ID"));
        };
        self.grants = user.grants(client_id);
        self.user = user;
        for filter in self.held.core.revoke(&self.mailbox, &self.node.router, &self.grants) {
            if let Some(holding) = &self.holding {
                let nobody = self.node.bridge.nobody();
                self.node.sessions.subscribe(holding, &filter, None, self.node.wall(), nobody);
            }
            self.node.leave_share(self.holding.as_ref(), &self.mailbox, &filter);
            tracing::info!(
                client_id = self.client_id(),
                filter = &*filter,
                "subscription ended: its grant was removed"
            );
        }
        Ok(())
    }

    /// An append is durable; if it was a former connection's, that is nothing to this one.
    fn settle(&mut self, settled: Settled, scratch: &mut Scratch) {
        if settled.connection == self.held.claim {
            self.settle_durable(settled.token, scratch);
            self.ack_deadline = self.session.owes_acks().then(|| self.now + millis(ACK_TIMEOUT));
        }
    }

    /// Waits for recipients without room, but not for ever. Meanwhile publishes gather in the intake, while everything
    /// else is read on: two clients that publish to each other must not wait for each other.
    fn await_room(&mut self, context: &mut Context<'_>) {
        if self.pauses.congested.is_empty() {
            return;
        }
        let caps = self.settings.caps();
        if self.now >= self.pauses.congested_until {
            for mailbox in self.pauses.congested.drain(..) {
                let dropped = mailbox.drop_surplus(caps) as u64;
                self.node.counters.queue_full_drops.add(dropped);
                notice!(
                    self.node,
                    slow_device,
                    dropped,
                    "a device is too slow: its oldest messages were dropped"
                );
            }
        }
        self.pauses.congested.retain(|mailbox| !mailbox.has_room(caps, context));
    }

    /// Whether anything keeps this connection from reading on now; the context is woken when that changes.
    fn paused(&mut self, context: &mut Context<'_>) -> bool {
        self.pauses.rate_until = self.pauses.rate_until.filter(|until| self.now < *until);
        if let Some(wait) = &mut self.pauses.log {
            if wait.as_mut().poll(context).is_pending() {
                return self.pause();
            }
            self.pauses.log = None;
        }
        if self.leaves
            || self.pauses.rate_until.is_some()
            || self.intake_full()
            || self.session.publish_window_full()
        {
            return self.pause();
        }
        self.backlog.len() >= BACKLOG_LIMIT
    }

    /// The broker does not read, so the client's silence is not its fault.
    fn pause(&mut self) -> bool {
        self.session.excuse_silence(self.now);
        true
    }

    /// Nothing to do now: sets the timer for what comes by itself.
    fn wait(&mut self, context: &mut Context<'_>) -> Result<(), Close> {
        loop {
            if self.session.deadline().is_some_and(|at| at <= self.now) {
                return Err(Close::KeepAlive);
            }
            if self.ack_deadline.is_some_and(|at| at <= self.now) {
                return Err(Close::AckTimeout);
            }
            let direct = self.mailbox.first_direct().map(|first| first + millis(DIRECT_PATIENCE));
            let congested = (!self.pauses.congested.is_empty()).then_some(self.pauses.congested_until);
            let Pauses { rate_until, delivery_rate_until, .. } = self.pauses;
            let (silent, late) = (self.session.deadline(), self.ack_deadline);
            let dates = [silent, late, congested, rate_until, delivery_rate_until, direct];
            let Some(next) = dates.into_iter().flatten().min() else {
                self.timer = None;
                return Ok(());
            };
            let at =
                tokio::time::Instant::now() + Duration::from_millis(next.saturating_sub(self.now).max(1));
            match &mut self.timer {
                // A timer that fires early costs a look; setting it anew at every packet would cost more.
                Some(timer) if timer.deadline() <= at && !timer.is_elapsed() => {}
                Some(timer) => timer.as_mut().reset(at),
                none => *none = Some(Box::pin(tokio::time::sleep_until(at))),
            }
            let Some(timer) = &mut self.timer else { return Ok(()) };
            if timer.as_mut().poll(context).is_pending() {
                return Ok(());
            }
            self.now = self.node.now();
            let is_over = |until: &Option<Millis>| until.is_some_and(|until| until <= self.now);
            if [rate_until, delivery_rate_until, congested, direct].iter().any(is_over) {
                // What follows is for a new turn.
                context.waker().wake_by_ref();
                return Ok(());
            }
        }
    }
}

impl Scratch {
    fn new() -> Box<Scratch> {
        Box::new(Scratch {
            read: vec![0; READ_SIZE],
            out: BytesMut::with_capacity(READ_SIZE),
            deliveries: Vec::new(),
            fanout: Fanout::default(),
        })
    }

    /// After a connection's turn nothing of it is left, and an unusually large buffer is given back.
    fn tidy(&mut self) {
        self.deliveries.clear();
        self.fanout.congested.clear();
        if self.out.capacity() > 4 * BACKLOG_LIMIT {
            self.out = BytesMut::with_capacity(READ_SIZE);
        }
        self.out.clear();
    }
}

impl From<Violation> for Close {
    fn from(violation: Violation) -> Close {
        Close::Violation(violation.reason, violation.what.into())
    }
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}
