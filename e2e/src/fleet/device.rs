//! One device's side of its exchanges: what it has published, what is open, and what each answer means.
//!
//! It reads no clock and opens no socket: time comes in, packets come in, bytes go out. After a lost connection it
//! repeats what is open as MQTT 4.4 says: in order, under the same packet identifiers, DUP set, and PUBREL where
//! PUBREC was seen. It holds the broker to the order of PUBACKs and PUBRECs (4.6).

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use thiserror::Error;

use crate::{Packet, Version, wire};

/// Exchanges open at once, at most.
pub(super) const WINDOW: usize = 20;

/// Who a device is and what it does.
#[derive(Clone, Debug)]
pub struct Role {
    pub client_id: String,
    pub version: Version,
    pub qos: u8,
    /// The parent topic it publishes under, to `PARENT/CLIENT_ID`.
    pub parent: String,
}

/// One number's way; times since the fleet's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    pub sent: Duration,
    /// PUBREC came (QoS 2): from now on the broker has promised it.
    pub received: Option<Duration>,
    /// PUBACK or PUBCOMP came.
    pub acked: Option<Duration>,
    /// How often its PUBLISH was sent.
    pub times: u32,
}

#[derive(Debug)]
pub(super) struct Device {
    pub(super) role: Role,
    topic: String,
    /// By number, from 0.
    pub(super) published: Vec<Published>,
    open: VecDeque<Exchange>,
    last_id: u16,
}

#[derive(Debug)]
struct Exchange {
    id: u16,
    number: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// PUBLISH was sent; PUBACK or PUBREC is to come.
    Published,
    /// PUBREL was sent; PUBCOMP is to come.
    Released,
}

/// An answer no broker may give.
#[derive(Debug, PartialEq, Eq, Error)]
pub(super) enum Wrong {
    #[error("number {number} was refused with {reason:#04x}")]
    Refused { number: usize, reason: u8 },
    #[error("{packet:?} answers nothing that is due; next is {due:?}")]
    OutOfTurn { packet: Packet, due: Option<u16> },
}

impl Device {
    pub(super) fn new(role: Role) -> Self {
        let topic = format!("{}/{}", role.parent, role.client_id);
        Self { role, topic, published: Vec::new(), open: VecDeque::new(), last_id: 0 }
    }

    pub(super) fn has_room(&self) -> bool {
        self.open.len() < WINDOW
    }

    /// Everything published is acknowledged.
    pub(super) fn is_settled(&self) -> bool {
        self.open.is_empty()
    }

    /// Says what is open, if anything is.
    pub(super) fn open(&self) -> Option<String> {
        let first = self.open.front()?;
        let (role, count) = (&self.role, self.open.len());
        Some(format!("{role:?}: {count} of {}, the first {first:?}", self.published.len()))
    }

    /// Publishes the next number. The caller asks [`Device::has_room`] first.
    pub(super) fn publish(&mut self, now: Duration, out: &mut Vec<u8>) {
        let used: BTreeSet<u16> = self.open.iter().map(|exchange| exchange.id).collect();
        let mut id = self.last_id;
        loop {
            id = id.checked_add(1).unwrap_or(1);
            if !used.contains(&id) {
                break;
            }
        }
        self.last_id = id;
        let number = self.published.len();
        self.published.push(Published { sent: now, times: 1, ..Published::default() });
        self.open.push_back(Exchange { id, number, stage: Stage::Published });
        self.write_publish(id, number, false, out);
    }

    /// What is sent first on a new connection: everything open, again.
    pub(super) fn repeat(&mut self, out: &mut Vec<u8>) {
        let open: Vec<_> = self.open.iter().map(|open| (open.id, open.number, open.stage)).collect();
        for (id, number, stage) in open {
            match stage {
                Stage::Published => {
                    if let Some(published) = self.published.get_mut(number) {
                        published.times += 1;
                    }
                    self.write_publish(id, number, true, out);
                }
                Stage::Released => out.extend(wire::pubrel(id)),
            }
        }
    }

    /// Takes an answer; what it asks for is written to `out`.
    pub(super) fn answer(&mut self, now: Duration, packet: Packet, out: &mut Vec<u8>) -> Result<(), Wrong> {
        let (id, stage, last, reason) = match (&packet, self.role.qos) {
            (Packet::PubAck { id, reason }, 1) => (*id, Stage::Published, true, *reason),
            (Packet::PubRec { id, reason }, 2) => (*id, Stage::Published, false, *reason),
            // 0x92, packet identifier not found: the broker has forgotten the exchange, so it is over.
            (Packet::PubComp { id, reason: 0 | 0x92 }, 2) => (*id, Stage::Released, true, 0),
            _ => return Err(Wrong::OutOfTurn { packet, due: None }),
        };
        // Only PUBCOMPs may come in any order.
        let is_due =
            |exchange: &Exchange| exchange.stage == stage && (stage != Stage::Released || exchange.id == id);
        let due = self.open.iter().position(is_due);
        let Some((at, exchange)) = due.and_then(|at| Some((at, self.open.get_mut(at)?))) else {
            return Err(Wrong::OutOfTurn { packet, due: None });
        };
        if exchange.id != id {
            return Err(Wrong::OutOfTurn { packet, due: Some(exchange.id) });
        }
        let number = exchange.number;
        if reason >= 0x80 {
            return Err(Wrong::Refused { number, reason });
        }
        if !last {
            exchange.stage = Stage::Released;
            out.extend(wire::pubrel(id));
        } else {
            self.open.remove(at);
        }
        if let Some(published) = self.published.get_mut(number) {
            let place = if last { &mut published.acked } else { &mut published.received };
            *place = Some(now);
        }
        Ok(())
    }

    fn write_publish(&self, id: u16, number: usize, dup: bool, out: &mut Vec<u8>) {
        let Role { version, qos, .. } = self.role;
        out.extend(wire::publish(
            version,
            self.topic.as_bytes(),
            number.to_string().as_bytes(),
            qos,
            id,
            dup,
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A device that has published `count` numbers, under the identifiers 1, 2, …
    fn device(qos: u8, count: usize) -> Device {
        let role = Role { client_id: "d".into(), version: Version::V3, qos, parent: "p".into() };
        let mut device = Device::new(role);
        for _ in 0..count {
            device.publish(Duration::ZERO, &mut Vec::new());
        }
        device
    }

    fn publish(qos: u8, number: &str, id: u16, dup: bool) -> Vec<u8> {
        wire::publish(Version::V3, b"p/d", number.as_bytes(), qos, id, dup)
    }

    #[test]
    fn what_is_open_is_repeated_in_order_with_dup_and_pubrel_where_pubrec_was_seen() {
        let check = |qos: u8, answers: &[Packet], repeated: &[Vec<u8>], times: &[u32]| {
            let mut device = device(qos, 3);
            for answer in answers {
                device.answer(SECOND, answer.clone(), &mut Vec::new()).unwrap();
            }
            let mut out = Vec::new();
            device.repeat(&mut out);
            assert_eq!(out, repeated.concat(), "QoS {qos} after {answers:?}");
            let counted: Vec<u32> = device.published.iter().map(|published| published.times).collect();
            assert_eq!(counted, times, "QoS {qos} after {answers:?}");
        };
        let ack = |id| Packet::PubAck { id, reason: 0 };
        let rec = |id| Packet::PubRec { id, reason: 0 };
        let comp = |id| Packet::PubComp { id, reason: 0 };
        let whole = |qos| ["0", "1", "2"].iter().zip(1..).map(|(n, id)| publish(qos, n, id, true)).collect();
        let all: Vec<Vec<u8>> = whole(1);
        check(1, &[], &all, &[2, 2, 2]);
        check(1, &[ack(1)], &all[1..], &[1, 2, 2]);
        check(1, &[ack(1), ack(2), ack(3)], &[], &[1, 1, 1]);
        let all: Vec<Vec<u8>> = whole(2);
        check(2, &[], &all, &[2, 2, 2]);
        let released = [wire::pubrel(1), all[1].clone(), all[2].clone()];
        check(2, &[rec(1)], &released, &[1, 2, 2]);
        check(2, &[rec(1), comp(1)], &all[1..], &[1, 2, 2]);
        check(2, &[rec(1), rec(2), comp(1)], &[wire::pubrel(2), all[2].clone()], &[1, 1, 2]);
    }

    #[test]
    fn an_answer_out_of_turn_is_a_fault_of_the_broker() {
        let check = |qos: u8, answers: &[Packet], wrong: bool| {
            let mut device = device(qos, 2);
            let (last, before) = answers.split_last().unwrap();
            for answer in before {
                device.answer(SECOND, answer.clone(), &mut Vec::new()).unwrap();
            }
            assert_eq!(
                device.answer(SECOND, last.clone(), &mut Vec::new()).is_err(),
                wrong,
                "QoS {qos}, {answers:?}"
            );
        };
        let ack = |id, reason| Packet::PubAck { id, reason };
        let rec = |id| Packet::PubRec { id, reason: 0 };
        let comp = |id, reason| Packet::PubComp { id, reason };
        check(1, &[ack(1, 0), ack(2, 0x10)], false);
        check(1, &[ack(2, 0)], true);
        check(1, &[ack(1, 0), ack(1, 0)], true);
        check(1, &[ack(1, 0x97)], true);
        check(1, &[rec(1)], true);
        check(2, &[rec(1), rec(2), comp(1, 0), comp(2, 0x92)], false);
        check(2, &[rec(2)], true);
        check(2, &[comp(1, 0)], true);
        check(2, &[rec(1), rec(1)], true);
        check(2, &[rec(1), rec(2), comp(2, 0), comp(1, 0)], false);
        check(2, &[rec(1), comp(2, 0)], true);
        check(2, &[rec(1), comp(1, 0x80)], true);
        check(2, &[ack(1, 0)], true);
        check(2, &[Packet::PingResp], true);
    }

    #[test]
    fn times_are_kept_by_number_and_identifiers_go_round_past_those_in_use() {
        let mut device = device(2, 1);
        device.last_id = u16::MAX;
        let mut out = Vec::new();
        device.publish(SECOND, &mut out);
        assert_eq!(out, publish(2, "1", 2, false), "1 is in use");
        out.clear();
        device.answer(SECOND, Packet::PubRec { id: 1, reason: 0 }, &mut out).unwrap();
        assert_eq!(out, wire::pubrel(1));
        device.answer(2 * SECOND, Packet::PubComp { id: 1, reason: 0 }, &mut out).unwrap();
        let first =
            Published { sent: Duration::ZERO, received: Some(SECOND), acked: Some(2 * SECOND), times: 1 };
        assert_eq!(device.published[0], first);
        assert!(!device.is_settled() && device.has_room());
        for _ in 0..WINDOW - 1 {
            assert!(device.has_room());
            device.publish(SECOND, &mut out);
        }
        assert!(!device.has_room());
    }
}
