//! What the client receives: QoS > 0 messages in flight, in the order they were first sent.

use std::collections::VecDeque;

use bytes::BytesMut;

use super::{
    DropReason, Dropped, Sent, Terms,
    aliases::{OutboundAliases, Written},
};
use crate::{
    codec::{self, AckKind, QoS, Reason, Version, encode_ack},
    message::{Delivery, Millis},
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
}

#[derive(Debug)]
struct Inflight {
    serial: u64,
    delivery: Delivery,
    stage: Stage,
    /// Sent on this connection.
    sent: bool,
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

    pub(super) fn reconnect(&mut self) {
        for entry in &mut self.inflight {
            entry.sent = false;
        }
        self.unsent = self.inflight.len();
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
        let serial = self.free_serial();
        if let Err(reason) = encode(delivery, terms, aliases, (packet_id(serial), false), now, out) {
            return Sent::Dropped(reason);
        }
        self.next_serial = serial + 1;
        self.inflight.push_back(Inflight {
            serial,
            delivery: delivery.clone(),
            stage: Stage::Published,
            sent: true,
        });
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
            encode_ack(AckKind::PubRel, terms.version, packet_id(entry.serial), Reason::Success, out);
            entry.sent = true;
            self.unsent -= 1;
        }
        let mut room = usize::from(terms.receive_maximum).saturating_sub(self.inflight.len() - self.unsent);
        let Outbound { inflight, unsent, dropped, .. } = self;
        inflight.retain_mut(|entry| {
            if entry.sent || room == 0 || out.len() >= RESENT_AT_ONCE {
                return true;
            }
            *unsent -= 1;
            let kept = match entry.repeat(terms, aliases, now, out) {
                Ok(()) => true,
                Err(reason) => {
                    dropped.add(reason);
                    entry.give_up(terms, out)
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
        self.answered(packet_id, QoS::ExactlyOnce, Outbound::remove)
    }

    /// PUBACK.
    pub(super) fn acknowledged(&mut self, packet_id: u16) -> Matched {
        self.answered(packet_id, QoS::AtLeastOnce, Outbound::remove)
    }

    /// PUBCOMP: true if it finished a message. Before PUBREC it is the late answer to a PUBREL from before the
    /// identifier was used again, and finishes nothing.
    pub(super) fn completed(&mut self, packet_id: u16) -> bool {
        let Some(index) = self.find(packet_id) else { return false };
        let released = self.inflight.get(index).is_some_and(|entry| entry.stage == Stage::Released);
        if released {
            self.remove(index);
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

    fn remove(&mut self, index: usize) {
        if let Some(entry) = self.inflight.remove(index) {
            self.unsent -= usize::from(!entry.sent);
        }
    }

    /// Clients mostly acknowledge in order, so that the search ends at once.
    fn find(&self, id: u16) -> Option<usize> {
        self.inflight.iter().position(|entry| packet_id(entry.serial) == id)
    }

    /// The next serial whose packet identifier no message in flight has. Only messages a whole round of
    /// identifiers old can be in the way, and they stand in front.
    fn free_serial(&self) -> u64 {
        let mut serial = self.next_serial;
        while self
            .inflight
            .iter()
            .take_while(|entry| entry.serial + LAST_PACKET_ID <= serial)
            .any(|entry| packet_id(entry.serial) == packet_id(serial))
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
        encode(&self.delivery, terms, aliases, (packet_id(self.serial), true), now, out)?;
        self.sent = true;
        Ok(())
    }

    /// The PUBLISH may not be repeated, which is as if it were delivered (MQTT 5 section 3.1.2.11.4); false: that
    /// was all. For the client may have had it on the former connection: it must let go of a QoS 2 identifier, lest
    /// it take the next message with that for a repeat. PUBREL asks it to, known to it or not.
    fn give_up(&mut self, terms: &Terms, out: &mut BytesMut) -> bool {
        if self.delivery.qos != QoS::ExactlyOnce {
            return false;
        }
        self.stage = Stage::Released;
        self.sent = true;
        encode_ack(AckKind::PubRel, terms.version, packet_id(self.serial), Reason::Success, out);
        true
    }
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
