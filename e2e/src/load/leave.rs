//! Sessions that are left behind: each device connects for a session that outlives its connection, subscribes, and goes.

use std::time::Instant;

use mio::Registry;

use super::conn::{Conn, Peer};
use super::engine::KEEP_ALIVE;
use super::plan::Plan;
use super::report::Report;
use super::seats::{self, Ready, Sockets, Spent};
use super::wire::{self, Packet};
use super::{LoadError, Phase};

/// What follows a device's own level in the filters that it subscribes to.
const FILTERS: [&str; 3] = ["command", "config/#", "firmware/+"];

/// Leaves `sessions` of them, from `at_once` connections at a time.
pub(super) fn run(plan: &Plan, sessions: u32, at_once: u32) -> Result<Report, LoadError> {
    let mut sockets = Sockets::new()?;
    let (origin, before) = (Instant::now(), Spent::now(plan)?);
    let mut leaving = Leaving { plan, seats: Vec::new(), begun: 0, left: 0, sessions };
    for index in 0..at_once.min(sessions) as usize {
        let seat = leaving.sit(index, sockets.registry())?;
        leaving.seats.push(seat);
    }
    while leaving.left < sessions {
        if origin.elapsed() > plan.timeout {
            let phase = Phase::Connecting { ready: leaving.left as usize, of: sessions as usize };
            return Err(LoadError::TimedOut { after: plan.timeout, phase });
        }
        sockets.wait(|ready, scratch, registry| leaving.event(ready, scratch, registry))?;
    }
    seats::report(plan, sessions, sessions.into(), origin.elapsed().as_secs_f64(), before)
}

struct Leaving<'a> {
    plan: &'a Plan,
    seats: Vec<Seat>,
    /// Devices that have begun, and those that are gone again.
    begun: u32,
    left: u32,
    sessions: u32,
}

struct Seat {
    conn: Conn,
    device: u32,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Greeted,
    /// So many answers to SUBSCRIBE are missing.
    Subscribing(usize),
    /// DISCONNECT is sent and the broker closes.
    Leaving,
    /// There are no devices left for it.
    Empty,
}

impl Leaving<'_> {
    fn sit(&mut self, index: usize, registry: &Registry) -> Result<Seat, LoadError> {
        let conn = Conn::open(self.plan.addr, index, registry)?;
        self.begun += 1;
        Ok(Seat { conn, device: self.begun, stage: Stage::Opening })
    }

    fn event(
        &mut self,
        Ready { seat: index, readable, writable }: Ready,
        scratch: &mut [u8],
        registry: &Registry,
    ) -> Result<(), LoadError> {
        let plan = self.plan;
        let Some(seat) = self.seats.get_mut(index).filter(|seat| seat.stage != Stage::Empty) else {
            return Ok(());
        };
        let client_id = format!("meter-{:06}", seat.device);
        if seat.stage == Stage::Opening {
            if !(writable && seat.conn.connected()?) {
                return Ok(());
            }
            let (client_id, login) = (&*client_id, plan.login());
            let connect = wire::Connect { client_id, login, keep_alive: KEEP_ALIVE, clean: false };
            wire::connect(&mut seat.conn.out, &connect);
            seat.stage = Stage::Greeted;
        }
        let mut peer = Peer::There;
        if readable {
            let stage = &mut seat.stage;
            peer = seat.conn.receive(scratch, |packet, out| match (packet, *stage) {
                (Packet::ConnAck { code: 0, .. }, Stage::Greeted) => {
                    for filter in FILTERS {
                        let filter = format!("{}/{client_id}/{filter}", plan.topic);
                        wire::subscribe(out, &filter, plan.qos as u8);
                    }
                    *stage = Stage::Subscribing(FILTERS.len());
                    Ok(())
                }
                (Packet::ConnAck { code, .. }, Stage::Greeted) => {
                    Err(LoadError::Refused { connection: index, code })
                }
                (Packet::SubAck { granted }, Stage::Subscribing(missing)) => {
                    if granted != [plan.qos as u8] {
                        return Err(LoadError::NotSubscribed { connection: index });
                    }
                    *stage = Stage::Subscribing(missing - 1);
                    if missing == 1 {
                        *stage = Stage::Leaving;
                        wire::disconnect(out);
                    }
                    Ok(())
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
                seat.stage = Stage::Empty;
                self.left += 1;
                if self.begun < self.sessions {
                    let seat = self.sit(index, registry)?;
                    if let Some(place) = self.seats.get_mut(index) {
                        *place = seat;
                    }
                }
                Ok(())
            }
            (Peer::Gone, _) => {
                let phase = Phase::Connecting { ready: self.left as usize, of: self.sessions as usize };
                Err(LoadError::Closed { connection: index, phase })
            }
        }
    }
}
