//! What a run knows of its messages: who has sent and seen what, and what each packet means for that.

use super::check::{self, Seen};
use super::plan::Plan;
use super::publisher::{Pace, Publisher};
use super::report::{Checks, Latencies};
use super::window::Acked;
use super::wire::{self, Ack, Packet};
use super::{LoadError, plan};

pub(super) struct Ledger {
    qos: plan::Qos,
    pub(super) publishers: Vec<Publisher>,
    pub(super) subscribers: Vec<Seen>,
    /// Publishers with room since they last sent.
    pub(super) woken: Vec<usize>,
    pub(super) filler: Vec<u8>,
    /// Messages due earlier count for the checks only.
    pub(super) measured_from: u64,
    pub(super) latencies: Latencies,
    pub(super) checks: Checks,
    /// Deliveries, or acknowledgements where nobody subscribes.
    pub(super) arrivals: u64,
}

/// What a connection is for. The number is the publisher's or subscriber's.
pub(super) enum Role {
    Publisher(usize),
    Subscriber(usize, String),
    Idle,
}

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Opening,
    Greeted,
    Ready,
}

impl Ledger {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            qos: plan.qos,
            publishers: Vec::new(),
            subscribers: Vec::new(),
            woken: Vec::new(),
            filler: check::filler(plan.payload),
            measured_from: 0,
            latencies: Latencies::new(),
            checks: Checks::default(),
            arrivals: 0,
        }
    }

    /// Takes one packet of connection `index` and writes the answer to `out`.
    ///
    /// # Errors
    /// A refusal, or a packet that has no place here.
    pub(super) fn packet(
        &mut self,
        now: u64,
        index: usize,
        role: &Role,
        stage: &mut Stage,
        packet: Packet<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), LoadError> {
        use Stage::{Greeted, Ready};
        use plan::Qos::{AtLeastOnce, ExactlyOnce};
        match (&packet, role, *stage, self.qos) {
            (Packet::Publish { qos, id, payload }, Role::Subscriber(s, _), Ready, _) => {
                self.delivery(now, *s, payload);
                match qos {
                    0 => {}
                    1 => wire::ack(out, Ack::Taken, *id),
                    _ => wire::ack(out, Ack::Received, *id),
                }
            }
            (Packet::PubRel(id), Role::Subscriber(..), Ready, _) => wire::ack(out, Ack::Complete, *id),
            (Packet::PubAck(id), Role::Publisher(p), Ready, AtLeastOnce) => {
                let acked = self.publishers.get_mut(*p).and_then(|p| p.window.puback(*id));
                self.acked(now, acked);
                self.wake(*p);
            }
            (Packet::PubRec(id), Role::Publisher(p), Ready, ExactlyOnce) => {
                let acked = self.publishers.get_mut(*p).and_then(|p| p.window.pubrec(*id));
                self.acked(now, acked);
                wire::ack(out, Ack::Release, *id);
            }
            (Packet::PubComp(id), Role::Publisher(p), Ready, ExactlyOnce) => {
                match self.publishers.get_mut(*p).and_then(|p| p.window.pubcomp(*id)) {
                    Some(()) => self.wake(*p),
                    None => self.checks.ack_disorder += 1,
                }
            }
            (Packet::ConnAck { code: 0, .. }, Role::Subscriber(_, filter), Greeted, qos) => {
                wire::subscribe(out, filter, qos as u8);
            }
            (Packet::ConnAck { code: 0, .. }, _, Greeted, _) => *stage = Ready,
            (Packet::ConnAck { code, .. }, _, Greeted, _) => {
                return Err(LoadError::Refused { connection: index, code: *code });
            }
            (Packet::SubAck { granted }, Role::Subscriber(..), Greeted, qos) => {
                if *granted != [qos as u8] {
                    return Err(LoadError::NotSubscribed { connection: index });
                }
                *stage = Ready;
            }
            _ => return Err(LoadError::Unexpected { connection: index, packet: packet.name() }),
        }
        Ok(())
    }

    /// Has publisher `p` looked at in the next turn.
    pub(super) fn wake(&mut self, p: usize) {
        if self.woken.last() != Some(&p) {
            self.woken.push(p);
        }
    }

    /// Counts what never came; returns how many messages were due and not sent by `end`.
    pub(super) fn close(&mut self, end: u64) -> u64 {
        let Self { publishers, subscribers, checks, latencies, .. } = self;
        let sent = |p: u32| publishers.get(p as usize).map_or(0, |publisher| publisher.sent);
        checks.loss = subscribers.iter().map(|seen| seen.lost(sent)).sum();
        let mut unsent = 0;
        for publisher in publishers {
            checks.unacknowledged += publisher.window.open();
            if let Pace::Timed { due } = &publisher.pace {
                unsent += due.len() as u64;
                // They would have taken longer than this: leaving them out would flatter the broker.
                due.iter().for_each(|&due| latencies.record(end.saturating_sub(due)));
            }
        }
        unsent
    }

    fn delivery(&mut self, now: u64, subscriber: usize, payload: &[u8]) {
        self.arrivals += 1;
        let Some(seen) = self.subscribers.get_mut(subscriber) else { return };
        let Some((stamp, accounted)) = seen.take(payload, &self.filler, &mut self.checks) else { return };
        self.measured(now, stamp.due);
        let p = stamp.publisher as usize;
        if accounted > 0 && self.publishers.get_mut(p).is_some_and(|publisher| publisher.delivered(accounted))
        {
            self.wake(p);
        }
    }

    /// A first acknowledgement; where nobody subscribes it is what the scene measures.
    fn acked(&mut self, now: u64, acked: Option<Acked>) {
        match acked {
            Some(Acked { in_order: true, .. }) => {}
            _ => self.checks.ack_disorder += 1,
        }
        if let (Some(acked), true) = (acked, self.subscribers.is_empty()) {
            self.arrivals += 1;
            self.measured(now, acked.due);
        }
    }

    fn measured(&mut self, now: u64, due: u64) {
        if due >= self.measured_from {
            self.latencies.record(now.saturating_sub(due));
        }
    }
}
