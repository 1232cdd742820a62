//! The connect storm: logins a second. Each seat connects, is greeted, disconnects, and begins again.

use std::time::{Duration, Instant};

use mio::Registry;

use super::conn::{Conn, Peer};
use super::engine::{KEEP_ALIVE, nanos};
use super::plan::Plan;
use super::report::{Latencies, Report};
use super::seats::{self, Ready, Sockets, Spent};
use super::wire::{self, Packet};
use super::{LoadError, Phase};

/// Keeps `seats` logins going through warm-up and measurement.
pub(super) fn run(plan: &Plan, seats: u32) -> Result<Report, LoadError> {
    let mut sockets = Sockets::new()?;
    let origin = Instant::now();
    let mut storm =
        Storm { plan, origin, seats: Vec::new(), logins: 0, latencies: Latencies::new(), from: 0 };
    for index in 0..seats as usize {
        let seat = storm.sit(index, sockets.registry())?;
        storm.seats.push(seat);
    }

    storm.from = nanos(plan.warmup);
    let mut start = None;
    let end = plan.warmup + plan.duration;
    let mut at = Duration::ZERO;
    while at < end {
        if at >= plan.warmup && start.is_none() {
            start = Some((at, storm.logins, Spent::now(plan)?));
        }
        sockets.wait(|ready, scratch, registry| storm.event(ready, scratch, registry))?;
        at = origin.elapsed();
    }

    let (begun, logins, before) = start.unwrap_or((at, storm.logins, Spent::now(plan)?));
    let measured = seats::report(plan, seats, storm.logins - logins, (at - begun).as_secs_f64(), before)?;
    Ok(Report { latency: storm.latencies.summary(), ..measured })
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

    fn sit(&self, index: usize, registry: &Registry) -> Result<Seat, LoadError> {
        let conn = Conn::open(self.plan.addr, index, registry)?;
        Ok(Seat { conn, begun: self.now(), stage: Stage::Opening })
    }

    fn event(
        &mut self,
        Ready { seat: index, readable, writable }: Ready,
        scratch: &mut [u8],
        registry: &Registry,
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
                clean: !plan.persistent,
            };
            wire::connect(&mut seat.conn.out, &connect);
            seat.stage = Stage::Greeted;
        }
        let mut peer = Peer::There;
        if readable {
            let (stage, begun) = (&mut seat.stage, seat.begun);
            peer = seat.conn.receive(scratch, |packet, out| match (packet, *stage) {
                (Packet::ConnAck { code: 0, .. }, Stage::Greeted) => {
                    *stage = Stage::Leaving;
                    *logins += 1;
                    if begun >= *from {
                        latencies.record(now.saturating_sub(begun));
                    }
                    wire::disconnect(out);
                    Ok(())
                }
                (Packet::ConnAck { code, .. }, Stage::Greeted) => {
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
                let seat = self.sit(index, registry)?;
                if let Some(place) = self.seats.get_mut(index) {
                    *place = seat;
                }
                Ok(())
            }
            (Peer::Gone, _) => Err(LoadError::Closed { connection: index, phase: Phase::Publishing }),
        }
    }
}
