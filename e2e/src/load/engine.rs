//! The run itself: connects everyone, publishes through warm-up and measurement, drains, and reports.
//!
//! One loop owns everything. Each turn sends what is due, takes the sockets' events, answers what was read,
//! and sends what the answers made room for: one read and one write a socket and turn.

use std::time::{Duration, Instant};

use mio::{Events, Poll};

use super::check::Seen;
use super::conn::{Conn, Peer, SCRATCH};
use super::ledger::{Ledger, Role, Stage};
use super::plan::{Plan, Scene};
use super::publisher::{Pace, Publisher, Start};
use super::report::{Latencies, Report};
use super::timer::Timer;
use super::wire;
use super::{LoadError, Phase, procfs};

/// Connections being made at once: below the backlog of every broker's listener.
const MOST_OPENING: usize = 64;
/// Longer than any run, so that no PINGREQ is due.
pub(super) const KEEP_ALIVE: u16 = 900;
/// A drain without a single arrival for this long is over; what is missing then is lost.
pub(super) const QUIET: Duration = Duration::from_secs(3);
/// Longest wait for events, so that phases end on time.
const TICK: Duration = Duration::from_millis(20);

/// Runs every scene but the connect storm.
pub(super) fn run(plan: &Plan) -> Result<Report, LoadError> {
    let mut engine = Engine::new(plan)?;
    let mut roles = engine.roles();
    // The first connections pay for what the broker sets up once; the others show what each one costs.
    let rest = roles.split_off(MOST_OPENING.min(roles.len() / 2));
    engine.connect(roles)?;
    let idle_before = plan.broker_resident_kb()?;
    let counted = rest.len();
    engine.connect(rest)?;
    let begin = engine.now();
    engine.ledger.measured_from = begin + nanos(plan.warmup);
    engine.schedule_from = begin;
    let end = engine.ledger.measured_from + nanos(plan.duration);
    engine.publish_until(engine.ledger.measured_from)?;
    let before = Sample::take(plan, &engine)?;
    engine.publish_until(end)?;
    let after = Sample::take(plan, &engine)?;
    engine.drain()?;
    engine.report(&before, &after, idle_before.map(|kb| (kb, counted)))
}

struct Engine<'a> {
    plan: &'a Plan,
    origin: Instant,
    poll: Poll,
    events: Events,
    scratch: Vec<u8>,
    clients: Vec<Client>,
    /// Connections made and not ready yet.
    opening: usize,
    ready: usize,
    ledger: Ledger,
    /// Messages published.
    sent: u32,
    /// Messages put on the schedule, which begins at `schedule_from`.
    scheduled: u64,
    schedule_from: u64,
    /// Ends a wait when the next message is due; absent: waits are not left to sleep.
    timer: Option<Timer>,
    /// How late the schedule was served.
    lateness: Latencies,
}

struct Client {
    conn: Conn,
    role: Role,
    stage: Stage,
}

/// The counters at one end of the measured time.
struct Sample {
    at: u64,
    arrivals: u64,
    own: Duration,
    broker: Option<Duration>,
}

impl Sample {
    fn take(plan: &Plan, engine: &Engine<'_>) -> Result<Self, LoadError> {
        Ok(Self {
            at: engine.now(),
            arrivals: engine.ledger.arrivals,
            own: procfs::cpu("self")?,
            broker: plan.broker_cpu()?,
        })
    }
}

impl<'a> Engine<'a> {
    fn new(plan: &'a Plan) -> Result<Self, LoadError> {
        let poll = Poll::new().map_err(|source| LoadError::Io { what: "cannot make an epoll", source })?;
        let timer = plan.sleep.then(|| Timer::new(poll.registry())).transpose();
        Ok(Self {
            plan,
            origin: Instant::now(),
            timer: timer.map_err(|source| LoadError::Io { what: "cannot make a timer", source })?,
            poll,
            events: Events::with_capacity(1024),
            scratch: vec![0; SCRATCH],
            clients: Vec::new(),
            opening: 0,
            ready: 0,
            ledger: Ledger::new(plan),
            sent: 0,
            scheduled: 0,
            schedule_from: 0,
            lateness: Latencies::new(),
        })
    }

    fn now(&self) -> u64 {
        nanos(self.origin.elapsed())
    }

    /// Opens these connections, some at a time, and waits until all are greeted and subscribed.
    fn connect(&mut self, roles: Vec<Role>) -> Result<(), LoadError> {
        let of = self.clients.len() + roles.len();
        let mut waiting = roles.into_iter();
        while self.ready < of {
            while self.opening < MOST_OPENING {
                let Some(role) = waiting.next() else { break };
                let index = self.clients.len();
                let is_subscriber = matches!(role, Role::Subscriber(..));
                let addr = if is_subscriber { self.plan.subscribers_at } else { self.plan.addr };
                let conn = Conn::open(addr, index, self.poll.registry())?;
                self.clients.push(Client { conn, role, stage: Stage::Opening });
                self.opening += 1;
            }
            self.turn(TICK, Phase::Connecting { ready: self.ready, of })?;
        }
        Ok(())
    }

    /// Who connects, subscribers first; fills in publishers and subscribers on the way.
    fn roles(&mut self) -> Vec<Role> {
        let plan = self.plan;
        if let Scene::Idle { connections } = plan.scene {
            return (0..connections).map(|_| Role::Idle).collect();
        }
        // Topics of their own for each run: what an earlier one left in the broker is not heard.
        let base = format!("{}/{}", plan.topic, std::process::id());
        let groups = plan.groups();
        let mut roles = Vec::new();
        for (g, group) in groups.iter().enumerate() {
            let alone = group.publishers.len() == 1;
            let filter = if alone {
                format!("{base}/{g}/{}", group.publishers.start)
            } else {
                format!("{base}/{g}/+")
            };
            for _ in 0..group.subscribers {
                roles.push(Role::Subscriber(self.ledger.subscribers.len(), filter.clone()));
                self.ledger.subscribers.push(Seen::new(group.publishers.clone()));
            }
        }
        for (g, group) in groups.iter().enumerate() {
            for id in group.publishers.clone() {
                self.ledger.publishers.push(Publisher::new(&Start {
                    id,
                    conn: roles.len(),
                    topic: &format!("{base}/{g}/{id}"),
                    qos: plan.qos,
                    payload: plan.payload,
                    window: plan.window,
                    lag: plan.rate.is_none().then_some(plan.lag),
                    fan: group.subscribers,
                }));
                roles.push(Role::Publisher(self.ledger.publishers.len() - 1));
            }
        }
        roles
    }

    fn publish_until(&mut self, end: u64) -> Result<(), LoadError> {
        self.ledger.woken = (0..self.ledger.publishers.len()).collect();
        loop {
            let now = self.now();
            if now >= end || (self.sent >= self.plan.messages && self.all_settled()) {
                return Ok(());
            }
            self.schedule(now);
            self.fill(now)?;
            let wait = self.wait(now, end)?;
            self.turn(wait, Phase::Publishing)?;
        }
    }

    /// How long the sockets may be waited for.
    fn wait(&self, now: u64, end: u64) -> Result<Duration, LoadError> {
        let longest = TICK.min(Duration::from_nanos(end - now));
        match (self.plan.rate, &self.timer) {
            (Some(rate), Some(timer)) => {
                let next = Duration::from_nanos(self.due(rate).saturating_sub(self.now()));
                timer.set(next).map_err(|source| LoadError::Io { what: "cannot set a timer", source })?;
                Ok(if next.is_zero() { next } else { longest })
            }
            // A timeout of epoll is late by up to a millisecond: with a schedule to keep, look again at once.
            (Some(_), None) if !self.ledger.publishers.is_empty() => Ok(Duration::ZERO),
            _ => Ok(longest),
        }
    }

    /// When the next message to be scheduled is due.
    fn due(&self, rate: u32) -> u64 {
        self.schedule_from + self.scheduled * 1_000_000_000 / u64::from(rate)
    }

    /// Hands the messages that have become due to their publishers, in turn, evenly spaced.
    fn schedule(&mut self, now: u64) {
        let (Some(rate), count @ 1..) = (self.plan.rate, self.ledger.publishers.len() as u64) else { return };
        loop {
            let due = self.due(rate);
            if due > now || self.scheduled >= u64::from(self.plan.messages) {
                return;
            }
            if due >= self.ledger.measured_from {
                self.lateness.record(now - due);
            }
            let p = (self.scheduled % count) as usize;
            if let Some(Publisher { pace: Pace::Timed { due: dues }, .. }) = self.ledger.publishers.get_mut(p)
            {
                dues.push_back(due);
                self.ledger.wake(p);
            }
            self.scheduled += 1;
        }
    }

    /// Lets the publishers that have room send.
    fn fill(&mut self, now: u64) -> Result<(), LoadError> {
        let Ledger { publishers, woken, filler, .. } = &mut self.ledger;
        for p in woken.drain(..) {
            let Some(publisher) = publishers.get_mut(p) else { continue };
            let Some(client) = self.clients.get_mut(publisher.conn) else { continue };
            loop {
                let most = self.plan.messages - self.sent;
                let filled = publisher.fill(now, most, filler, &mut client.conn.out);
                self.sent += filled;
                if client.conn.flush() == Peer::Gone {
                    return Err(LoadError::Closed { connection: publisher.conn, phase: Phase::Publishing });
                }
                // A socket that took everything will not tell that it has room.
                if filled == 0 || client.conn.pending() > 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Waits until everything sent has arrived and been acknowledged, or nothing has moved for a while.
    fn drain(&mut self) -> Result<(), LoadError> {
        let mut moved = (self.now(), self.ledger.arrivals);
        while !self.all_settled() {
            let now = self.now();
            if self.ledger.arrivals != moved.1 {
                moved = (now, self.ledger.arrivals);
            } else if now - moved.0 > nanos(QUIET) {
                break;
            }
            self.turn(TICK, Phase::Draining)?;
            self.ledger.woken.clear();
        }
        // A second copy would follow the first closely.
        let end = self.now() + nanos(Duration::from_millis(50));
        while self.now() < end {
            self.turn(TICK, Phase::Draining)?;
        }
        Ok(())
    }

    fn all_settled(&self) -> bool {
        self.ledger.publishers.iter().all(Publisher::settled)
    }

    /// Takes the events of all sockets, once.
    fn turn(&mut self, wait: Duration, phase: Phase) -> Result<(), LoadError> {
        if self.origin.elapsed() > self.plan.timeout {
            return Err(LoadError::TimedOut { after: self.plan.timeout, phase });
        }
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => return Ok(()),
            Err(source) => return Err(LoadError::Io { what: "cannot wait for events", source }),
            Ok(()) => {}
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let result =
            events.iter().try_for_each(|e| self.event(e.token().0, e.is_readable(), e.is_writable(), phase));
        self.events = events;
        result
    }

    fn event(&mut self, index: usize, readable: bool, writable: bool, phase: Phase) -> Result<(), LoadError> {
        let now = self.now();
        let closed = LoadError::Closed { connection: index, phase };
        let Some(client) = self.clients.get_mut(index) else { return Ok(()) };
        if client.stage == Stage::Opening {
            if !(writable && client.conn.connected()?) {
                return Ok(());
            }
            let client_id = format!("load-{}-{index}", std::process::id());
            wire::connect(
                &mut client.conn.out,
                &wire::Connect {
                    client_id: &client_id,
                    login: self.plan.login(),
                    keep_alive: KEEP_ALIVE,
                    clean: !(self.plan.persistent && matches!(client.role, Role::Subscriber(..))),
                },
            );
            client.stage = Stage::Greeted;
        }
        let mut peer = Peer::There;
        if readable {
            let Client { conn, role, stage } = client;
            let ledger = &mut self.ledger;
            let was_ready = *stage == Stage::Ready;
            peer = conn.receive(&mut self.scratch, |packet, out| {
                ledger.packet(now, index, role, stage, packet, out)
            })?;
            if !was_ready && *stage == Stage::Ready {
                self.opening -= 1;
                self.ready += 1;
            }
        }
        if peer == Peer::Gone || client.conn.flush() == Peer::Gone {
            return Err(closed);
        }
        // A publisher that waited for its socket may have room to write now.
        if let (true, Role::Publisher(p), 0) = (writable, &client.role, client.conn.pending()) {
            self.ledger.wake(*p);
        }
        Ok(())
    }

    fn report(
        mut self,
        before: &Sample,
        after: &Sample,
        idle_before: Option<(u64, usize)>,
    ) -> Result<Report, LoadError> {
        let plan = self.plan;
        let unsent = self.ledger.close(after.at);
        let resident = plan.broker_resident_kb()?;
        let seconds = after.at.saturating_sub(before.at) as f64 / 1e9;
        let idle = matches!(plan.scene, Scene::Idle { .. });
        let messages = if idle { self.clients.len() as u64 } else { after.arrivals - before.arrivals };
        let each = |spent: Duration| spent.as_secs_f64() * 1e6 / messages.max(1) as f64;
        Ok(Report {
            scene: plan.scene.name().to_owned(),
            qos: plan.qos as u8,
            connections: self.clients.len() as u64,
            payload: plan.payload,
            asked_per_second: plan.rate.map(|rate| f64::from(rate) * f64::from(plan.fan())),
            seconds,
            messages,
            per_second: if idle { 0.0 } else { messages as f64 / seconds },
            latency: self.ledger.latencies.summary(),
            checks: self.ledger.checks,
            unsent,
            published: self.sent.into(),
            generator_late_p99_us: self.lateness.summary().map(|late| late.p99_us),
            generator_cpu_us_per_message: each(after.own.saturating_sub(before.own)),
            broker_cpu_us_per_message: after
                .broker
                .zip(before.broker)
                .map(|(a, b)| each(a.saturating_sub(b))),
            broker_rss_kb: resident,
            broker_rss_kb_per_connection: resident
                .zip(idle_before)
                .filter(|_| idle)
                .map(|(after, (before, counted))| (after as f64 - before as f64) / counted.max(1) as f64),
            ..Report::default()
        })
    }
}

pub(super) fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}
