//! Sessions that are left behind: each device connects for a session that outlives its connection, subscribes, and goes.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use super::conn::{Conn, Peer, SCRATCH};
use super::engine::KEEP_ALIVE;
use super::plan::Plan;
use super::report::{Checks, Report};
use super::wire::{self, Packet};
use super::{LoadError, Phase, procfs};

/// What follows a device's own level in the filters that it subscribes to.
const FILTERS: [&str; 3] = ["command", "config/#", "firmware/+"];

/// Leaves `sessions` of them, from `at_once` connections at a time.
pub(super) fn run(plan: &Plan, sessions: u32, at_once: u32) -> Result<Report, LoadError> {
    let failed = |what| move |source| LoadError::Io { what, source };
    let mut poll = Poll::new().map_err(failed("cannot make an epoll"))?;
    let mut events = Events::with_capacity(1024);
    let mut scratch = vec![0; SCRATCH];
    let (origin, own, broker) = (Instant::now(), procfs::cpu("self")?, plan.broker_cpu()?);
    let mut leaving = Leaving { plan, seats: Vec::new(), begun: 0, left: 0, sessions };
    for index in 0..at_once.min(sessions) as usize {
        let seat = leaving.sit(index, &poll)?;
        leaving.seats.push(seat);
    }
    while leaving.left < sessions {
        if origin.elapsed() > plan.timeout {
            let phase = Phase::Connecting { ready: leaving.left as usize, of: sessions as usize };
            return Err(LoadError::TimedOut { after: plan.timeout, phase });
        }
        match poll.poll(&mut events, Some(Duration::from_millis(20))) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            waited => waited.map_err(failed("cannot wait for events"))?,
        }
        for event in &events {
            leaving.event(event.token().0, event.is_readable(), event.is_writable(), &mut scratch, &poll)?;
        }
    }
    let seconds = origin.elapsed().as_secs_f64();
    let each = |spent: Duration| spent.as_secs_f64() * 1e6 / f64::from(sessions.max(1));
    Ok(Report {
        scene: plan.scene.name().to_owned(),
        qos: plan.qos as u8,
        connections: sessions.into(),
        payload: plan.payload,
        asked_per_second: None,
        seconds,
        messages: sessions.into(),
        per_second: f64::from(sessions) / seconds,
        latency: None,
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
    fn sit(&mut self, index: usize, poll: &Poll) -> Result<Seat, LoadError> {
        let conn = Conn::open(self.plan.addr, index, poll.registry())?;
        self.begun += 1;
        Ok(Seat { conn, device: self.begun, stage: Stage::Opening })
    }

    fn event(
        &mut self,
        index: usize,
        readable: bool,
        writable: bool,
        scratch: &mut [u8],
        poll: &Poll,
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
                (Packet::ConnAck { code: 0 }, Stage::Greeted) => {
                    for filter in FILTERS {
                        let filter = format!("{}/{client_id}/{filter}", plan.topic);
                        wire::subscribe(out, &filter, plan.qos as u8);
                    }
                    *stage = Stage::Subscribing(FILTERS.len());
                    Ok(())
                }
                (Packet::ConnAck { code }, Stage::Greeted) => {
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
                    let seat = self.sit(index, poll)?;
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
