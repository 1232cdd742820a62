//! Sessions that change their node: devices are at one, and come to the other while the first still holds their connections.

use std::time::Instant;

use mio::Registry;

use super::conn::{Conn, Peer};
use super::engine::{KEEP_ALIVE, nanos};
use super::plan::Plan;
use super::report::{Latencies, Report};
use super::seats::{self, Ready, Sockets, Spent};
use super::wire::{self, Packet};
use super::{LoadError, Phase};

/// Moves `sessions` of them, from `--addr` to `--subscribers-at`, `at_once` at a time. What is measured is from the opening of the
/// second connection to its CONNACK; every session has to be there, and every former connection to end.
pub(super) fn run(plan: &Plan, sessions: u32, at_once: u32) -> Result<Report, LoadError> {
    let mut sockets = Sockets::new()?;
    let origin = Instant::now();
    let mut moving = Moving {
        plan,
        origin,
        devices: Vec::new(),
        under_way: 0,
        here: 0,
        moved: 0,
        closed: 0,
        latencies: Latencies::new(),
    };
    let sessions = sessions as usize;
    moving.until(&mut sockets, |moving, registry| {
        while moving.under_way < at_once && moving.devices.len() < sessions {
            let former = Conn::open(plan.addr, 2 * moving.devices.len(), registry)?;
            moving.devices.push(Device { former: Some(former), next: None, begun: 0, stage: Stage::Opening });
            moving.under_way += 1;
        }
        Ok(moving.here == sessions)
    })?;
    let (began, before) = (origin.elapsed(), Spent::now(plan)?);
    let mut next = 0;
    moving.until(&mut sockets, |moving, registry| {
        while moving.under_way < at_once && next < sessions {
            let begun = nanos(moving.origin.elapsed());
            if let Some(device) = moving.devices.get_mut(next) {
                device.next = Some(Conn::open(plan.subscribers_at, 2 * next + 1, registry)?);
                (device.begun, device.stage) = (begun, Stage::Reopening);
            }
            (next, moving.under_way) = (next + 1, moving.under_way + 1);
        }
        Ok(moving.moved == sessions && moving.closed == sessions)
    })?;
    let took = (origin.elapsed() - began).as_secs_f64();
    let measured = seats::report(plan, sessions as u32, sessions as u64, took, before)?;
    Ok(Report { latency: moving.latencies.summary(), ..measured })
}

struct Moving<'a> {
    plan: &'a Plan,
    origin: Instant,
    devices: Vec<Device>,
    /// Connections that are being made, devices that have a session, that have it at the other node, and whose former
    /// connection has ended.
    under_way: u32,
    here: usize,
    moved: usize,
    closed: usize,
    latencies: Latencies,
}

struct Device {
    /// Until it ends.
    former: Option<Conn>,
    next: Option<Conn>,
    begun: u64,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The first connection is being made.
    Opening,
    Coming,
    Subscribing,
    Here,
    /// The second connection is being made.
    Reopening,
    Moving,
    Moved,
}

impl Moving<'_> {
    /// Takes events until `done`, which begins what may begin, says so.
    fn until(
        &mut self,
        sockets: &mut Sockets,
        mut done: impl FnMut(&mut Self, &Registry) -> Result<bool, LoadError>,
    ) -> Result<(), LoadError> {
        while !done(self, sockets.registry())? {
            if self.origin.elapsed() > self.plan.timeout {
                let phase = Phase::Connecting { ready: self.here + self.moved, of: 2 * self.devices.len() };
                return Err(LoadError::TimedOut { after: self.plan.timeout, phase });
            }
            sockets.wait(|ready, scratch, _| self.event(ready, scratch))?;
        }
        Ok(())
    }

    fn event(&mut self, ready: Ready, scratch: &mut [u8]) -> Result<(), LoadError> {
        let (now, plan) = (nanos(self.origin.elapsed()), self.plan);
        let (index, is_next) = (ready.seat / 2, ready.seat % 2 == 1);
        let Some(device) = self.devices.get_mut(index) else { return Ok(()) };
        let was = device.stage;
        let conn = if is_next { &mut device.next } else { &mut device.former };
        let Some(open) = conn else { return Ok(()) };
        let client_id = format!("mover-{}-{index}", std::process::id());
        let greeted = match (device.stage, is_next) {
            (Stage::Opening, false) => Some(Stage::Coming),
            (Stage::Reopening, true) => Some(Stage::Moving),
            _ => None,
        };
        if let Some(stage) = greeted {
            if !(ready.writable && open.connected()?) {
                return Ok(());
            }
            let (client_id, login) = (&*client_id, plan.login());
            wire::connect(
                &mut open.out,
                &wire::Connect { client_id, login, keep_alive: KEEP_ALIVE, clean: false },
            );
            device.stage = stage;
        }
        let stage = &mut device.stage;
        let mut peer = Peer::There;
        if ready.readable {
            peer = open.receive(scratch, |packet, out| match (packet, *stage) {
                (Packet::ConnAck { code: 0, .. }, Stage::Coming) => {
                    wire::subscribe(out, &format!("{}/{client_id}", plan.topic), plan.qos as u8);
                    *stage = Stage::Subscribing;
                    Ok(())
                }
                (Packet::ConnAck { code: 0, present: true }, Stage::Moving) if is_next => {
                    *stage = Stage::Moved;
                    Ok(())
                }
                (Packet::ConnAck { code: 0, .. }, Stage::Moving) => {
                    Err(LoadError::NoSession { connection: index })
                }
                (Packet::ConnAck { code, .. }, _) => Err(LoadError::Refused { connection: index, code }),
                (Packet::SubAck { granted }, Stage::Subscribing) if granted == [plan.qos as u8] => {
                    *stage = Stage::Here;
                    Ok(())
                }
                (Packet::SubAck { .. }, _) => Err(LoadError::NotSubscribed { connection: index }),
                (packet, _) => Err(LoadError::Unexpected { connection: index, packet: packet.name() }),
            })?;
        }
        if peer == Peer::There {
            peer = open.flush();
        }
        if peer == Peer::Gone {
            if is_next
                || matches!(*stage, Stage::Coming | Stage::Subscribing | Stage::Here | Stage::Reopening)
            {
                let phase = Phase::Connecting { ready: self.here + self.moved, of: self.devices.len() };
                return Err(LoadError::Closed { connection: index, phase });
            }
            *conn = None;
            self.closed += 1;
        }
        match (was, device.stage) {
            (Stage::Subscribing, Stage::Here) => {
                self.here += 1;
                self.under_way -= 1;
            }
            (Stage::Moving, Stage::Moved) => {
                self.moved += 1;
                self.under_way -= 1;
                self.latencies.record(now.saturating_sub(device.begun));
            }
            _ => {}
        }
        Ok(())
    }
}
