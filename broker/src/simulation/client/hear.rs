//! What a client makes of what it is sent: answers, bookkeeping, and the rules that one client alone can judge.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mqtt_proto::codec::{Ack, AckKind, Packet, Publish, QoS, Reason, Version, decode, split_frame};
use tokio::time::Instant;

use super::{ANSWER_TIMEOUT, Asked, Client, Known};
use crate::simulation::ledger::{Ledger, Rule};

/// Until a session surely ends whose device has been away as long as it asked.
const MOST_DELAY: Duration = Duration::from_secs(40);

impl Client {
    /// Takes what has come; false: the node has said goodbye.
    pub(in crate::simulation) fn hear(&mut self, ledger: &mut Ledger, bytes: &Bytes) -> bool {
        let Some(link) = &mut self.link else { return false };
        link.unread.extend_from_slice(bytes);
        link.silent_until = None;
        let unread = std::mem::take(&mut link.unread);
        let mut used = 0;
        while let Some((frame, length)) = split_frame(&unread[used..], u32::MAX).unwrap() {
            let packet = match decode(frame, self.kind.version) {
                Ok(packet) => packet,
                Err(error) => {
                    let what = format!("client {} gets no packet but {error}: {frame:?}", self.kind.index);
                    ledger.violate(Rule::PacketIds, what);
                    return false;
                }
            };
            if !self.take(ledger, &packet) {
                return false;
            }
            used += length;
        }
        let waits = !self.asked.is_empty() || self.unfinished.iter().any(|one| one.sent);
        if let Some(link) = &mut self.link {
            link.unread = BytesMut::from(&unread[used..]);
            link.silent_until = waits.then(|| Instant::now() + 3 * ANSWER_TIMEOUT);
        }
        true
    }

    fn take(&mut self, ledger: &mut Ledger, packet: &Packet<'_>) -> bool {
        let index = self.kind.index;
        match packet {
            Packet::ConnAck(connack) if connack.reason == Reason::Success => {
                self.let_in(ledger, connack.session_present);
            }
            Packet::ConnAck(connack) => {
                ledger.event("client", index, "refused", connack.reason.code().into());
                return false;
            }
            Packet::Publish(publish) => self.receive(ledger, publish),
            Packet::PubRel(ack) => {
                self.held.remove(&ack.packet_id);
                self.answer(AckKind::PubComp, ack.packet_id);
            }
            Packet::PubAck(ack) => self.settle(ledger, QoS::AtLeastOnce, ack),
            Packet::PubRec(ack) => self.settle(ledger, QoS::ExactlyOnce, ack),
            Packet::PubComp(ack) => {
                self.unfinished.retain(|one| one.packet_id != ack.packet_id || !one.released);
            }
            Packet::SubAck(suback) => {
                let asked = self.asked.remove(&suback.packet_id);
                if let (Some(Asked::Subscribe(filter, qos)), Known::Live(incarnation)) = (asked, self.session)
                    && !suback.reasons[0].is_failure()
                {
                    ledger.event("client", index, "SUBACK", qos as u64);
                    ledger.granted(incarnation, &filter, qos);
                }
            }
            Packet::UnsubAck(unsuback) => {
                let asked = self.asked.remove(&unsuback.packet_id);
                // What was asked for without an answer may not be known so far.
                if let (Some(Asked::Unsubscribe(filter)), Known::Live(incarnation)) = (asked, self.session)
                    && unsuback.reasons.first() == Some(&Reason::Success)
                {
                    ledger.off(incarnation, &filter);
                }
            }
            Packet::PingResp => {}
            Packet::Disconnect(disconnect) => {
                ledger.event("client", index, "told to go", disconnect.reason.code().into());
                return false;
            }
            other => ledger.violate(Rule::PacketIds, format!("client {index} gets {other:?}")),
        }
        true
    }

    fn let_in(&mut self, ledger: &mut Ledger, present: bool) {
        let Some(link) = &mut self.link else { return };
        link.up = true;
        link.ping_at = (self.kind.keep_alive > 0)
            .then(|| Instant::now() + Duration::from_secs(self.kind.keep_alive.into()) / 2);
        let (clean, boot, begun, since) = (link.clean, link.boot, link.begun, link.since);
        if !self.stale.is_empty() {
            // One of them may have ended the session, and begun another.
            self.end_session(ledger);
        }
        self.stale.append(&mut self.given_up);
        // What was carried out may be what closed it, and this connection before its CONNACK came here.
        self.stale.retain(|wire| wire.node_closed().is_none_or(|at| at >= begun));
        let (index, is_clean) =
            (self.kind.index, self.kind.expiry == 0 || clean && self.kind.version != Version::V5);
        ledger.event("client", index, "online", present.into());
        self.judge_session(ledger, present, clean, since);
        // One that it does not know was begun by a CONNECT that it has no answer to.
        let known = present && matches!(self.session, Known::Live(_));
        match self.session {
            Known::Live(incarnation) if present => {
                ledger.incarnation(incarnation).boot = boot;
                ledger.reconnects(incarnation);
            }
            Known::Live(incarnation) => {
                ledger.incarnation(incarnation).ended = true;
                self.session = Known::Live(ledger.begin(index, boot, false, is_clean));
            }
            _ => self.session = Known::Live(ledger.begin(index, boot, present, is_clean)),
        }
        if !known {
            self.held.clear();
        }
        self.send_again(ledger, known);
    }

    fn judge_session(&self, ledger: &mut Ledger, present: bool, clean: bool, since: u64) {
        let index = self.kind.index;
        ledger.judged(Rule::SessionEnds, since);
        let expected = match self.session {
            _ if clean => Some(false),
            Known::Never => Some(false),
            Known::Unknown => None,
            Known::Live(_) => self.is_kept(),
        };
        if expected.is_some_and(|expected| expected != present) {
            let what = format!(
                "client {index} is told session present {present}, clean start {clean}; {:?} {:?}",
                self.session, self.kind
            );
            ledger.violate(Rule::SessionEnds, what);
        }
    }

    /// Whether a session that was live at the last connection must still be there; none: that is not sure.
    fn is_kept(&self) -> Option<bool> {
        let expiry = Duration::from_secs(self.kind.expiry.into());
        let (_, former) = self.wires.split_last()?;
        let wrote = former.iter().filter_map(|wire| wire.node_wrote()).max();
        if wrote.is_none_or(|at| at.elapsed() + Duration::from_secs(1) < expiry) {
            return (wrote.is_some() || self.kind.expiry > 1000).then_some(true);
        }
        let closed: Option<Vec<Instant>> = former.iter().map(|wire| wire.node_closed()).collect();
        let latest = closed?.into_iter().max()?;
        // From a crash on the time begins anew, once there is a node again that can reach its store.
        (latest.elapsed() > expiry + MOST_DELAY).then_some(false)
    }

    /// What has no answer is sent again: to a session that knows it, or as new.
    fn send_again(&mut self, ledger: &mut Ledger, known: bool) {
        for mut one in std::mem::take(&mut self.unfinished) {
            ledger.event("client", self.kind.index, "again", one.number.into());
            let now = ledger.now();
            let message = ledger.message(one.number);
            message.again.get_or_insert(now);
            message.resent = true;
            message.copies += usize::from(!known || one.qos == QoS::AtLeastOnce);
            if !known {
                message.maybe_twice = true;
                message.maybe_stored_twice = true;
            }
            one.sent = true;
            if one.released {
                self.answer_release(one.packet_id);
            } else {
                self.send_publish(&one, true);
            }
            self.unfinished.push_back(one);
        }
    }

    fn answer_release(&mut self, packet_id: u16) {
        let ack = Ack { packet_id, reason: Reason::Success, properties: Default::default() };
        self.send(&Packet::PubRel(ack), true);
    }

    /// PUBACK or PUBREC.
    fn settle(&mut self, ledger: &mut Ledger, qos: QoS, ack: &Ack<'_>) {
        let index = self.kind.index;
        ledger.event(
            "client",
            index,
            if qos == QoS::AtLeastOnce { "PUBACK" } else { "PUBREC" },
            ack.packet_id.into(),
        );
        let Some(at) = self.unfinished.iter().position(|one| one.packet_id == ack.packet_id && one.sent)
        else {
            return ledger.violate(Rule::PacketIds, format!("client {index}: {ack:?} answers nothing"));
        };
        let one = &mut self.unfinished[at];
        let (number, released) = (one.number, std::mem::replace(&mut one.released, true));
        if one.qos != qos {
            ledger.violate(Rule::PacketIds, format!("client {index}: {ack:?} is for another QoS"));
        }
        ledger.judged(Rule::PacketIds, self.link.as_ref().map_or(0, |link| link.since));
        if ack.reason.is_failure() {
            self.unfinished.remove(at);
            return;
        }
        if !released {
            ledger.acked(number, self.link.as_ref().map_or(0, |link| link.wire.node));
        }
        if qos == QoS::AtLeastOnce {
            self.unfinished.remove(at);
        } else {
            self.answer_release(ack.packet_id);
        }
    }

    fn receive(&mut self, ledger: &mut Ledger, publish: &Publish<'_>) {
        self.heard_publish = Instant::now();
        let index = self.kind.index;
        let text = std::str::from_utf8(publish.payload).unwrap().trim_end_matches('.');
        // An empty one cleared a retained value.
        let number = text.parse::<u32>().ok();
        let group = publish.properties.subscription_ids.first().copied();
        let gets = match group {
            Some(_) => "gets of a group",
            None => ["gets at 0", "gets at 1", "gets at 2"][publish.qos as usize],
        };
        ledger.event("client", index, gets, number.unwrap_or_default().into());
        let packet_id = publish.packet_id;
        let wrong = |ledger: &mut Ledger, other: u32| {
            let what = format!("client {index}: {number:?} comes under {packet_id}, which is {other}'s");
            ledger.violate(Rule::PacketIds, what);
        };
        let mut is_new = true;
        match (publish.qos, number) {
            (QoS::AtLeastOnce, Some(number)) => {
                let other = self.unacked.insert(packet_id, number);
                if let Some(other) = other.filter(|other| *other != number) {
                    wrong(ledger, other);
                }
            }
            (QoS::ExactlyOnce, Some(number)) => {
                let other = self.held.insert(packet_id, number);
                is_new = other.is_none();
                if let Some(other) = other.filter(|other| *other != number) {
                    wrong(ledger, other);
                }
            }
            _ => {}
        }
        if let (Known::Live(incarnation), Some(number), true) = (self.session, number, is_new) {
            match group {
                Some(id) => ledger.received_shared(incarnation, id, number, publish.qos),
                None => ledger.received(incarnation, number, publish.qos, publish.retain),
            }
        }
        match publish.qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => self.answer(AckKind::PubAck, packet_id),
            QoS::ExactlyOnce => self.answer(AckKind::PubRec, packet_id),
        }
    }
}
