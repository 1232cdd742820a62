//! The clients at both ends: a publisher that keeps to its quota, and a device that answers when it likes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;

/// Repeats what it has no answer for, in order, before anything new.
#[derive(Default)]
pub(super) struct Publisher {
    pub(super) link: Option<Link>,
    /// It has connected once more: it neither uses nor hears its former connection, which `link` is until the broker has let go
    /// of that.
    pub(super) comes_again: bool,
    next_number: u32,
    pub(super) unfinished: Vec<Unfinished>,
    /// MQTT 5 section 4.9.
    quota: u16,
    /// Told that the broker has them.
    pub(super) promised: BTreeSet<u32>,
}

pub(super) struct Unfinished {
    packet_id: u16,
    number: u32,
    qos: QoS,
    released: bool,
    dup: bool,
    /// On this connection.
    sent: bool,
}

impl Publisher {
    /// Messages so far.
    pub(super) fn published(&self) -> u32 {
        self.next_number
    }

    /// Whose session has expired forgets what it had begun.
    pub(super) fn connect(&mut self, version: Version, expired: bool) {
        if expired {
            self.unfinished.clear();
        }
        self.quota = if version == Version::V5 { PUBLISH_WINDOW } else { PUBLISHER_IDS };
        self.link = Some(Link { version, up: Wire::new(), down: Wire::new() });
        self.comes_again = false;
        self.unfinished.iter_mut().for_each(|entry| entry.sent = false);
        self.send();
    }

    pub(super) fn publish(&mut self, qos: QoS) {
        let speaks = self.link.is_some() && !self.comes_again;
        if !speaks || self.unfinished.iter().any(|entry| !entry.sent) || self.quota == 0 {
            return;
        }
        let in_use: BTreeSet<u16> = self.unfinished.iter().map(|entry| entry.packet_id).collect();
        let Some(packet_id) = (1..=PUBLISHER_IDS).find(|id| !in_use.contains(id)) else { return };
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { packet_id };
        let number = self.next_number;
        self.next_number += 1;
        self.unfinished.push(Unfinished { packet_id, number, qos, released: false, dup: false, sent: false });
        self.send();
        self.unfinished.retain(|entry| entry.qos != QoS::AtMostOnce);
    }

    /// As far as the quota allows, in order; PUBRELs need none.
    fn send(&mut self) {
        let Some(link) = &mut self.link else { return };
        for entry in self.unfinished.iter_mut().filter(|entry| !entry.sent) {
            if entry.released {
                link.send(&Packet::PubRel(ack(entry.packet_id, Reason::Success)));
            } else {
                if self.quota == 0 {
                    return;
                }
                self.quota -= u16::from(entry.qos != QoS::AtMostOnce);
                let filler = if is_large(entry.number) { ".".repeat(LARGE_PAYLOAD) } else { String::new() };
                let payload = format!("{}{filler}", entry.number);
                let mut publish = Publish {
                    dup: entry.dup,
                    qos: entry.qos,
                    retain: false,
                    topic: "t",
                    packet_id: entry.packet_id,
                    properties: Default::default(),
                    payload: payload.as_bytes(),
                };
                publish.properties.message.expiry_interval = is_mortal(entry.number).then_some(20);
                link.send(&Packet::Publish(publish));
                entry.dup = true;
            }
            entry.sent = true;
        }
    }

    pub(super) fn hear(&mut self) {
        let Some(link) = self.link.as_mut().filter(|_| !self.comes_again) else { return };
        let Some(bytes) = link.down.pop_front() else { return };
        let version = link.version;
        for packet in read(&bytes, version) {
            let (kind, ack) = match &packet {
                Packet::PubAck(ack) => (AckKind::PubAck, ack),
                Packet::PubRec(ack) => (AckKind::PubRec, ack),
                Packet::PubComp(ack) => (AckKind::PubComp, ack),
                other => panic!("a publisher gets no {other:?}"),
            };
            let Some(index) = self.unfinished.iter().position(|entry| entry.packet_id == ack.packet_id)
            else {
                panic!("nothing is unfinished under {packet:?}");
            };
            let entry = &mut self.unfinished[index];
            assert!(entry.sent, "{packet:?} answers nothing of this connection");
            assert_eq!(entry.qos == QoS::AtLeastOnce, kind == AckKind::PubAck, "{packet:?}");
            if kind != AckKind::PubComp && !ack.reason.is_failure() {
                self.promised.insert(entry.number);
            }
            if kind == AckKind::PubRec && !ack.reason.is_failure() {
                entry.released = true;
                entry.sent = false;
            } else {
                assert!(kind != AckKind::PubComp || entry.released, "{packet:?} comes before PUBREC");
                self.unfinished.remove(index);
                self.quota =
                    (self.quota + 1).min(if version == Version::V5 { PUBLISH_WINDOW } else { PUBLISHER_IDS });
            }
        }
        self.send();
    }
}

/// Remembers its QoS 2 identifiers from one connection to the next.
#[derive(Default)]
pub(super) struct Device {
    pub(super) link: Option<Link>,
    /// As of [`Publisher`].
    pub(super) comes_again: bool,
    /// QoS 2 identifiers between PUBLISH and PUBREL.
    pub(super) unreleased: BTreeSet<u16>,
    /// Answers that are not sent yet.
    pub(super) answers: VecDeque<(AckKind, u16, Reason)>,
    last_new: Option<u32>,
    pub(super) seen: BTreeSet<u32>,
    /// How often each message reached the application.
    pub(super) taken: BTreeMap<u32, usize>,
    pub(super) taken_at_qos_0: usize,
    /// What was published before it subscribed.
    pub(super) excused_below: u32,
}

impl Device {
    pub(super) fn hear(&mut self, refuses: bool) {
        let Some(link) = self.link.as_mut().filter(|_| !self.comes_again) else { return };
        let Some(bytes) = link.down.pop_front() else { return };
        let version = link.version;
        for packet in read(&bytes, version) {
            match &packet {
                Packet::Publish(publish) => self.take(publish, refuses && version == Version::V5),
                Packet::PubRel(ack) => {
                    let known = self.unreleased.remove(&ack.packet_id) || version != Version::V5;
                    let reason = if known { Reason::Success } else { Reason::PacketIdentifierNotFound };
                    self.answers.push_back((AckKind::PubComp, ack.packet_id, reason));
                }
                other => panic!("a device gets no {other:?}"),
            }
        }
    }

    fn take(&mut self, publish: &Publish<'_>, refuses: bool) {
        let number = number_of(publish.payload);
        // Of one that was refused or dropped at first, or came before the subscription, a later repeat may come through, behind
        // others.
        let is_excused = is_refused(number) || may_vanish(number) || number < self.excused_below;
        if self.seen.insert(number) && !is_excused {
            assert!(self.last_new < Some(number), "{number} comes after {:?}", self.last_new);
            self.last_new = Some(number);
        }
        let mut taken = true;
        match publish.qos {
            QoS::AtMostOnce => self.taken_at_qos_0 += 1,
            QoS::AtLeastOnce => self.answers.push_back((AckKind::PubAck, publish.packet_id, Reason::Success)),
            QoS::ExactlyOnce => {
                taken = !self.unreleased.contains(&publish.packet_id);
                let reason = if taken && refuses { Reason::QuotaExceeded } else { Reason::Success };
                if !reason.is_failure() {
                    self.unreleased.insert(publish.packet_id);
                }
                taken &= !reason.is_failure();
                self.answers.push_back((AckKind::PubRec, publish.packet_id, reason));
            }
        }
        if taken {
            *self.taken.entry(number).or_default() += 1;
        }
        assert!(
            publish.qos == QoS::AtLeastOnce || self.taken.get(&number).is_none_or(|&times| times == 1),
            "{number} comes twice"
        );
    }

    /// One answer, not always the oldest.
    pub(super) fn answer(&mut self, random: &mut Random) {
        let Some(link) = self.link.as_mut().filter(|_| !self.comes_again) else { return };
        let index = if random.below(4) == 0 { random.below(self.answers.len().max(1)) } else { 0 };
        let Some((kind, packet_id, reason)) = self.answers.remove(index) else { return };
        link.send(&match kind {
            AckKind::PubAck => Packet::PubAck(ack(packet_id, reason)),
            AckKind::PubRec => Packet::PubRec(ack(packet_id, reason)),
            _ => Packet::PubComp(ack(packet_id, reason)),
        });
    }
}
