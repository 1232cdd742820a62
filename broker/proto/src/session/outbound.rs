//! What the client receives: QoS > 0 messages in flight, in the order they were first sent.

use std::{collections::VecDeque, sync::Arc};

use bytes::BytesMut;

use super::{
    DropReason, Dropped, Finished, Sent, Terms,
    aliases::{OutboundAliases, Written},
};
use crate::{
    codec::{self, AckKind, QoS, Reason, Version, encode_ack},
    durable::record::Why,
    message::{Delivery, Message, MessageId, Millis},
};

/// Bytes in the buffer from which on the rest is sent again later: a client that has just come back may be slow.
const RESENT_AT_ONCE: usize = 256 * 1024;
/// Packet identifiers are 1 to this (MQTT 2.2.1).
const LAST_PACKET_ID: u64 = 65_535;

#[derive(Debug, Default)]
pub(super) struct Outbound {
    /// In the order of first sending, which is that of `serial`.
    inflight: VecDeque<Inflight>,
    /// Counts first sendings; packet identifiers follow from it.
    next_serial: u64,
    /// Entries from a former connection that were not sent again yet.
    unsent: usize,
    /// What `resend` gave up.
    dropped: Dropped,
    /// Messages are in a log, and what has come to an end is told.
    logged: bool,
    finished: Vec<Finished>,
    /// Of QoS 2, by packet identifier: PUBREL waits until that is written down.
    given_up: Vec<(u16, MessageId)>,
}

#[derive(Debug)]
struct Inflight {
    serial: u64,
    packet_id: u16,
    delivery: Delivery,
    stage: Stage,
    /// Sent on this connection.
    sent: bool,
    /// It may have been sent before.
    dup: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// PUBLISH is out.
    Published,
    /// PUBREC has come, or is not waited for; PUBREL is out.
    Released,
}

/// What an acknowledgement is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Matched {
    Yes,
    /// No message in flight has that identifier.
    Unknown,
    /// The message with that identifier takes another acknowledgement.
    OtherQoS,
}

impl Outbound {
    pub(super) fn len(&self) -> usize {
        self.inflight.len()
    }

    pub(super) fn reconnect(&mut self, logged: bool) {
        for entry in &mut self.inflight {
            entry.dup |= entry.sent;
            entry.sent = false;
        }
        self.unsent = self.inflight.len();
        self.logged = logged;
        self.given_up.clear();
    }

    /// A message whose PUBREC has come on a former connection.
    pub(super) fn restore_received(&mut self, packet_id: u16, mid: MessageId) {
        let message = Arc::new(Message::new(mid, 0, "", b"", QoS::ExactlyOnce, false));
        let qos = QoS::ExactlyOnce;
        let delivery = Delivery { message, qos, retain: false, subscription_ids: None, share: None };
        self.restore(packet_id, delivery, Stage::Released);
    }

    /// A message that a former connection may have sent.
    pub(super) fn restore_sent(&mut self, delivery: Delivery) {
        let packet_id = self.logged_id(&delivery);
        self.restore(packet_id, delivery, Stage::Published);
    }

    fn restore(&mut self, packet_id: u16, delivery: Delivery, stage: Stage) {
        let serial = self.next_serial;
        self.next_serial += 1;
        self.inflight.push_back(Inflight { serial, packet_id, delivery, stage, sent: false, dup: true });
    }

    pub(super) fn must_resend(&self) -> bool {
        self.unsent > 0
    }

    pub(super) fn deliver(
        &mut self,
        delivery: &Delivery,
        terms: &Terms,
        aliases: &mut OutboundAliases,
        now: Millis,
        out: &mut BytesMut,
    ) -> Sent {
        if delivery.message.is_expired(now) {
            return Sent::Dropped(DropReason::Expired);
        }
        if delivery.qos == QoS::AtMostOnce {
            let encoded = encode(delivery, terms, aliases, (0, false), now, out);
            return encoded.map_or_else(Sent::Dropped, |()| Sent::Now);
        }
        if self.inflight.len() >= usize::from(terms.receive_maximum) {
            return Sent::WindowFull;
        }
        let (serial, packet_id) = if self.logged {
            (self.next_serial, self.logged_id(delivery))
        } else {
            let serial = self.free_serial();
            (serial, packet_id(serial))
        };
        // Only one from the log can find its identifier in use. It waits, and with it what is behind it.
        let sent = self.unsent == 0 && !(self.logged && self.find(packet_id).is_some());
        if sent && let Err(reason) = encode(delivery, terms, aliases, (packet_id, false), now, out) {
            return Sent::Dropped(reason);
        }
        self.next_serial = serial + 1;
        self.unsent += usize::from(!sent);
        let (delivery, stage) = (delivery.clone(), Stage::Published);
        self.inflight.push_back(Inflight { serial, packet_id, delivery, stage, sent, dup: false });
        Sent::Now
    }

    /// PUBRELs leave at once, for they open the window again (MQTT 5 section 4.9); PUBLISHes as far as it allows.
    pub(super) fn resend(
        &mut self,
        terms: &Terms,
        aliases: &mut OutboundAliases,
        now: Millis,
        out: &mut BytesMut,
    ) -> bool {
        if self.unsent == 0 {
            return false;
        }
        for entry in self.inflight.iter_mut().filter(|entry| !entry.sent && entry.stage == Stage::Released) {
            encode_ack(AckKind::PubRel, terms.version, entry.packet_id, Reason::Success, out);
            entry.sent = true;
            self.unsent -= 1;
        }
        let mut room = usize::from(terms.receive_maximum).saturating_sub(self.inflight.len() - self.unsent);
        let mut used: Vec<u16> = Vec::new();
        if self.logged {
            used.extend(self.inflight.iter().filter(|entry| entry.sent).map(|entry| entry.packet_id));
        }
        let Outbound { inflight, unsent, dropped, logged, finished, given_up, .. } = self;
        inflight.retain_mut(|entry| {
            if entry.sent || room == 0 || out.len() >= RESENT_AT_ONCE {
                return true;
            }
            if *logged {
                if used.contains(&entry.packet_id) {
                    // Neither it nor what is behind it may be sent before that one is finished.
                    room = 0;
                    return true;
                }
                used.push(entry.packet_id);
            }
            *unsent -= 1;
            let kept = match entry.repeat(terms, aliases, now, out) {
                Ok(()) => true,
                Err(reason) => {
                    dropped.add(reason);
                    let mid = entry.delivery.message.id;
                    let kept = entry.give_up(terms, *logged, out);
                    match (*logged, kept) {
                        (true, true) => given_up.push((entry.packet_id, mid)),
                        (true, false) => finished.push(Finished { mid, why: reason.into() }),
                        (false, _) => {}
                    }
                    kept
                }
            };
            room -= usize::from(kept);
            kept
        });
        self.unsent > 0
    }

    pub(super) fn take_dropped(&mut self) -> Dropped {
        std::mem::take(&mut self.dropped)
    }

    pub(super) fn take_finished(&mut self) -> Vec<Finished> {
        std::mem::take(&mut self.finished)
    }

    pub(super) fn take_given_up(&mut self) -> Vec<(u16, MessageId)> {
        std::mem::take(&mut self.given_up)
    }

    /// What came through a shared subscription and another member may get: what is not acknowledged, of QoS 2 what was never
    /// sent.
    pub(super) fn shared(self) -> impl Iterator<Item = Delivery> {
        let may_move = |entry: &Inflight| match entry.delivery.qos {
            QoS::ExactlyOnce => !entry.sent && !entry.dup && entry.stage == Stage::Published,
            _ => true,
        };
        let shared = self.inflight.into_iter().filter(|entry| entry.delivery.share.is_some());
        shared.filter(may_move).map(|entry| entry.delivery)
    }

    /// The message whose PUBREC this is, if nothing else has been heard of it.
    pub(super) fn published(&self, packet_id: u16) -> Option<MessageId> {
        let entry = self.inflight.get(self.find(packet_id)?)?;
        let waits = entry.stage == Stage::Published && entry.delivery.qos == QoS::ExactlyOnce;
        waits.then_some(entry.delivery.message.id)
    }

    /// PUBREC that takes the message, or a repeat of it.
    pub(super) fn received(&mut self, packet_id: u16) -> Matched {
        self.answered(packet_id, QoS::ExactlyOnce, |outbound, index| {
            if let Some(entry) = outbound.inflight.get_mut(index) {
                entry.stage = Stage::Released;
                // Its PUBREL leaves now.
                outbound.unsent -= usize::from(!std::mem::replace(&mut entry.sent, true));
            }
        })
    }

    /// PUBREC that refuses the message: nothing follows.
    pub(super) fn refused(&mut self, packet_id: u16) -> Matched {
        self.answered(packet_id, QoS::ExactlyOnce, Outbound::finish)
    }

    /// PUBACK.
    pub(super) fn acknowledged(&mut self, packet_id: u16) -> Matched {
        self.answered(packet_id, QoS::AtLeastOnce, Outbound::finish)
    }

    /// PUBCOMP: true if it finished a message. Before PUBREC it is the late answer to a PUBREL from before the
    /// identifier was used again, and finishes nothing.
    pub(super) fn completed(&mut self, packet_id: u16) -> bool {
        let Some(index) = self.find(packet_id) else { return false };
        let released = self.inflight.get(index).is_some_and(|entry| entry.stage == Stage::Released);
        if released {
            self.finish(index);
        }
        released
    }

    fn answered(&mut self, packet_id: u16, qos: QoS, then: impl FnOnce(&mut Outbound, usize)) -> Matched {
        let Some(index) = self.find(packet_id) else { return Matched::Unknown };
        if self.inflight.get(index).is_none_or(|entry| entry.delivery.qos != qos) {
            return Matched::OtherQoS;
        }
        then(self, index);
        Matched::Yes
    }

    fn finish(&mut self, index: usize) {
        if let Some(entry) = self.inflight.remove(index) {
            self.unsent -= usize::from(!entry.sent);
            if self.logged {
                self.finished.push(Finished { mid: entry.delivery.message.id, why: Why::Acknowledged });
            }
        }
    }

    /// Clients mostly acknowledge in order, so that the search ends at once.
    fn find(&self, id: u16) -> Option<usize> {
        self.inflight.iter().position(|entry| entry.packet_id == id)
    }

    /// Every connection gives a QoS 2 message the same identifier, whatever the process: its device may know it
    /// from a former one. QoS 1 takes any other where that is in use.
    fn logged_id(&self, delivery: &Delivery) -> u16 {
        let mut id = id_of(delivery.message.id);
        while delivery.qos == QoS::AtLeastOnce && self.find(id).is_some() {
            id = id.checked_add(1).unwrap_or(1);
        }
        id
    }

    /// The next serial whose packet identifier no message in flight has. Only messages a whole round of
    /// identifiers old can be in the way, and they stand in front.
    fn free_serial(&self) -> u64 {
        let mut serial = self.next_serial;
        while self
            .inflight
            .iter()
            .take_while(|entry| entry.serial + LAST_PACKET_ID <= serial)
            .any(|entry| entry.packet_id == packet_id(serial))
        {
            serial += 1;
        }
        serial
    }
}

impl Inflight {
    /// The PUBLISH once more.
    fn repeat(
        &mut self,
        terms: &Terms,
        aliases: &mut OutboundAliases,
        now: Millis,
        out: &mut BytesMut,
    ) -> Result<(), DropReason> {
        if self.delivery.message.is_expired(now) {
            return Err(DropReason::Expired);
        }
        encode(&self.delivery, terms, aliases, (self.packet_id, self.dup), now, out)?;
        self.sent = true;
        Ok(())
    }

    /// The PUBLISH may not be repeated, which is as if it were delivered (MQTT 5 section 3.1.2.11.4); false: that
    /// was all. For the client may have had it on the former connection: it must let go of a QoS 2 identifier, lest
    /// it take the next message with that for a repeat. PUBREL asks it to, known to it or not.
    ///
    /// Where the next connection knows what the log does, PUBREL waits until that has it: else the PUBLISH could come once
    /// more, to a device that takes more by then and has let go of the identifier.
    fn give_up(&mut self, terms: &Terms, logged: bool, out: &mut BytesMut) -> bool {
        if self.delivery.qos != QoS::ExactlyOnce {
            return false;
        }
        self.sent = true;
        if !logged {
            self.stage = Stage::Released;
            encode_ack(AckKind::PubRel, terms.version, self.packet_id, Reason::Success, out);
        }
        true
    }
}

/// Evenly spread over all identifiers (the finalizer of SplitMix64).
fn id_of(mid: MessageId) -> u16 {
    let mut x = mid.boot ^ mid.counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    packet_id(x ^ (x >> 31))
}

fn packet_id(serial: u64) -> u16 {
    u16::try_from(1 + serial % LAST_PACKET_ID).unwrap_or(1)
}

fn encode(
    delivery: &Delivery,
    terms: &Terms,
    aliases: &mut OutboundAliases,
    (packet_id, dup): (u16, bool),
    now: Millis,
    out: &mut BytesMut,
) -> Result<(), DropReason> {
    let message = &delivery.message;
    let written = aliases.write(message.topic());
    let (topic, topic_alias) = match written {
        Written::Plain => (message.topic(), None),
        Written::With(alias) => (message.topic(), Some(alias)),
        Written::As(alias) => ("", Some(alias)),
    };
    let mut packet = codec::Delivery {
        topic,
        payload: message.payload(),
        qos: delivery.qos,
        packet_id,
        dup,
        retain: delivery.retain,
        forwarded: message.forwarded(),
        expiry_interval: message.remaining_expiry(now),
        subscription_ids: delivery.subscription_ids.as_deref().unwrap_or_default(),
        topic_alias,
    };
    let fits = |packet: &codec::Delivery<'_>| {
        terms.version != Version::V5
            || terms.maximum_packet_size == u32::MAX
            || packet.encoded_len(terms.version) <= terms.maximum_packet_size as usize
    };
    if matches!(written, Written::With(_)) {
        if fits(&packet) {
            aliases.told(message.topic());
        } else {
            packet.topic_alias = None;
        }
    }
    if !fits(&packet) {
        return Err(DropReason::TooLarge);
    }
    packet.encode(terms.version, out);
    Ok(())
}
