//! The connect storm: logins a second. Each seat connects, is greeted, disconnects, and begins again.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use super::conn::{Conn, Peer, SCRATCH};
use super::engine::{KEEP_ALIVE, nanos};
use super::plan::Plan;
use super::report::{Checks, Latencies, Report};
use super::wire::{self, Packet};
use super::{LoadError, Phase, procfs};

/// Keeps `seats` logins going through warm-up and measurement.
pub(super) fn run(plan: &Plan, seats: u32) -> Result<Report, LoadError> {
    let failed = |what| move |source| LoadError::Io { what, source };
    let mut poll = Poll::new().map_err(failed("cannot make an epoll"))?;
    let mut events = Events::with_capacity(1024);
    let mut scratch = vec![0; SCRATCH];
    let origin = Instant::now();
    let mut storm =
        Storm { plan, origin, seats: Vec::new(), logins: 0, latencies: Latencies::new(), from: 0 };
    for index in 0..seats as usize {
        let seat = storm.sit(index, &poll)?;
        storm.seats.push(seat);
    }

    storm.from = nanos(plan.warmup);
    let mut start = None;
    let end = plan.warmup + plan.duration;
    let mut at = Duration::ZERO;
    while at < end {
        if at >= plan.warmup && start.is_none() {
            start = Some((at, storm.logins, procfs::cpu("self")?, plan.broker_cpu()?));
        }
        match poll.poll(&mut events, Some(Duration::from_millis(20))) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            waited => waited.map_err(failed("cannot wait for events"))?,
        }
        for event in &events {
            storm.event(event.token().0, event.is_readable(), event.is_writable(), &mut scratch, &poll)?;
        }
        at = origin.elapsed();
    }

    let (begun, logins, own, broker) =
        start.unwrap_or((at, storm.logins, procfs::cpu("self")?, plan.broker_cpu()?));
    let messages = storm.logins - logins;
    let seconds = (at - begun).as_secs_f64();
    let each = |spent: Duration| spent.as_secs_f64() * 1e6 / messages.max(1) as f64;
    Ok(Report {
        scene: plan.scene.name().to_owned(),
        qos: plan.qos as u8,
        connections: seats.into(),
        payload: plan.payload,
        asked_per_second: None,
        seconds,
        messages,
        per_second: messages as f64 / seconds,
        latency: storm.latencies.summary(),
        checks: Checks::default(),
        unsent: 0,
        generator_late_p99_us: None,
        generator_cpu_us_per_message: each(procfs::cpu("self")?.saturating_sub(own)),
        broker_cpu_us_per_message: plan.broker_cpu()?.zip(broker).map(|(a, b)| each(a.saturating_sub(b))),
        broker_rss_kb: plan.broker_resident_kb()?,
        broker_rss_kb_per_connection: None,
        ready_seconds: None,
        broker_rss_kb_per_session: None,
    })
}

struct Storm<'a> {
    plan: &'a Plan,
    origin: Instant,
    seats: Vec<Seat>,
    logins: u64,
    latencies: Latencies,
    /// Logins begun earlier are not measured.
    from: u64,
}

struct Seat {
    conn: Conn,
    begun: u64,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Greeted,
    /// DISCONNECT is sent and the broker closes, which spares the generator's side the port it used.
    Leaving,
}

impl Storm<'_> {
    fn now(&self) -> u64 {
        nanos(self.origin.elapsed())
    }

    fn sit(&self, index: usize, poll: &Poll) -> Result<Seat, LoadError> {
        let conn = Conn::open(self.plan.addr, index, poll.registry())?;
        Ok(Seat { conn, begun: self.now(), stage: Stage::Opening })
    }

    fn event(
        &mut self,
        index: usize,
        readable: bool,
        writable: bool,
        scratch: &mut [u8],
        poll: &Poll,
    ) -> Result<(), LoadError> {
        let now = self.now();
        let Self { plan, seats, logins, latencies, from, .. } = self;
        let Some(seat) = seats.get_mut(index) else { return Ok(()) };
        if seat.stage == Stage::Opening {
            if !(writable && seat.conn.connected()?) {
                return Ok(());
            }
            let client_id = format!("load-{}-{index}", std::process::id());
            let connect = wire::Connect {
                client_id: &client_id,
                login: plan.login(),
                keep_alive: KEEP_ALIVE,
                clean: true,
            };
            wire::connect(&mut seat.conn.out, &connect);
            seat.stage = Stage::Greeted;
        }
        let mut peer = Peer::There;
        if readable {
            let (stage, begun) = (&mut seat.stage, seat.begun);
            peer = seat.conn.receive(scratch, |packet, out| match (packet, *stage) {
                (Packet::ConnAck { code: 0 }, Stage::Greeted) => {
                    *stage = Stage::Leaving;
                    *logins += 1;
                    if begun >= *from {
                        latencies.record(now.saturating_sub(begun));
                    }
                    wire::disconnect(out);
                    Ok(())
                }
                (Packet::ConnAck { code }, Stage::Greeted) => {
                    Err(LoadError::Refused { connection: index, code })
                }
                (packet, _) => Err(LoadError::Unexpected { connection: index, packet: packet.name() }),
            })?;
        }
        if peer == Peer::There {
            peer = seat.conn.flush();
        }
        match (peer, seat.stage) {
            (Peer::There, _) => Ok(()),
            (Peer::Gone, Stage::Leaving) => {
                let seat = self.sit(index, poll)?;
                if let Some(place) = self.seats.get_mut(index) {
                    *place = seat;
                }
                Ok(())
            }
            (Peer::Gone, _) => Err(LoadError::Closed { connection: index, phase: Phase::Publishing }),
        }
    }
}
