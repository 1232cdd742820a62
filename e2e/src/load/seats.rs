//! Scenes in which devices only come and go: the sockets that a few seats have one after the other, and what such a run
//! amounts to.

use std::io::ErrorKind;
use std::time::Duration;

use mio::{Events, Poll, Registry};

use super::conn::SCRATCH;
use super::plan::Plan;
use super::report::Report;
use super::{LoadError, procfs};

pub(super) struct Sockets {
    poll: Poll,
    events: Events,
    scratch: Vec<u8>,
}

/// What a seat's socket is ready for.
#[derive(Clone, Copy)]
pub(super) struct Ready {
    pub(super) seat: usize,
    pub(super) readable: bool,
    pub(super) writable: bool,
}

impl Sockets {
    pub(super) fn new() -> Result<Self, LoadError> {
        let poll = Poll::new().map_err(|source| LoadError::Io { what: "cannot make an epoll", source })?;
        Ok(Self { poll, events: Events::with_capacity(1024), scratch: vec![0; SCRATCH] })
    }

    /// For who opens a connection.
    pub(super) fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    /// Waits a moment, and tells each socket that is ready, with room to read into.
    pub(super) fn wait(
        &mut self,
        mut each: impl FnMut(Ready, &mut [u8], &Registry) -> Result<(), LoadError>,
    ) -> Result<(), LoadError> {
        match self.poll.poll(&mut self.events, Some(Duration::from_millis(20))) {
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
            waited => waited.map_err(|source| LoadError::Io { what: "cannot wait for events", source })?,
        }
        for event in &self.events {
            let (readable, writable) = (event.is_readable(), event.is_writable());
            let ready = Ready { seat: event.token().0, readable, writable };
            each(ready, &mut self.scratch, self.poll.registry())?;
        }
        Ok(())
    }
}

/// The CPU time that the generator and the broker have had.
#[derive(Clone, Copy)]
pub(super) struct Spent {
    own: Duration,
    broker: Option<Duration>,
}

impl Spent {
    pub(super) fn now(plan: &Plan) -> Result<Self, LoadError> {
        Ok(Self { own: procfs::cpu("self")?, broker: plan.broker_cpu()? })
    }
}

/// A run of so many `messages` in so many `seconds`, since `before`.
pub(super) fn report(
    plan: &Plan,
    connections: u32,
    messages: u64,
    seconds: f64,
    before: Spent,
) -> Result<Report, LoadError> {
    let after = Spent::now(plan)?;
    let each = |spent: Duration| spent.as_secs_f64() * 1e6 / messages.max(1) as f64;
    let of_broker = after.broker.zip(before.broker);
    Ok(Report {
        scene: plan.scene.name().to_owned(),
        qos: plan.qos as u8,
        connections: connections.into(),
        payload: plan.payload,
        seconds,
        messages,
        per_second: messages as f64 / seconds,
        generator_cpu_us_per_message: each(after.own.saturating_sub(before.own)),
        broker_cpu_us_per_message: of_broker.map(|(after, before)| each(after.saturating_sub(before))),
        broker_rss_kb: plan.broker_resident_kb()?,
        ..Report::default()
    })
}
