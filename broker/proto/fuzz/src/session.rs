//! One session, its client hostile and its owner slow: what the machine promises holds.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::BytesMut;
use mqtt_proto::{
    codec::{Packet, QoS, Reason, Version, decode, split_frame},
    message::{Delivery, Message, MessageId},
    session::{Dropped, Effect, Sent, Session, SessionState, Terms, Ticket},
};

use super::{Input, VERSIONS};

struct Stage {
    session: Session,
    terms: Terms,
    now: u64,
    owed: VecDeque<(Ticket, u16, QoS)>,
    /// QoS 2 identifiers that were taken and not released.
    taken: BTreeMap<u16, ()>,
    /// QoS and identifiers of deliveries without their last acknowledgement.
    out_there: BTreeMap<u16, QoS>,
    /// What the client was told its aliases stand for.
    aliases: BTreeMap<u16, String>,
    out: BytesMut,
}

/// Terms, then steps: of the owner below 0x08, else a packet of the client.
pub fn session(data: &[u8]) {
    let mut input = Input(data);
    let terms = terms(&mut input);
    let mut stage = Stage {
        session: Session::new(terms, SessionState::default(), 0),
        terms,
        now: 0,
        owed: VecDeque::new(),
        taken: BTreeMap::new(),
        out_there: BTreeMap::new(),
        aliases: BTreeMap::new(),
        out: BytesMut::new(),
    };
    while !input.is_empty() {
        match input.byte() {
            0 => stage.settle(Reason::Success),
            1 => stage.settle(Reason::NotAuthorized),
            2 => stage.deliver(input.byte()),
            3 => {
                let mut out = std::mem::take(&mut stage.out);
                stage.session.resend(stage.now, &mut out);
                let dropped = stage.session.take_dropped();
                stage.out = out;
                if dropped != Dropped::default() {
                    // Their identifiers are free, and which they are isn't told.
                    stage.look();
                    stage.out_there.clear();
                }
            }
            4 => stage.now += u64::from(input.byte()) * 100,
            5 | 6 => stage.reconnect(self::terms(&mut input)),
            7 => stage.session.excuse_silence(stage.now),
            _ => {
                let length = usize::from(input.byte());
                if stage.hear(input.take(length)).is_err() {
                    let terms = stage.terms;
                    stage.reconnect(terms);
                }
            }
        }
        stage.look();
    }
}

fn terms(input: &mut Input<'_>) -> Terms {
    Terms {
        version: VERSIONS[usize::from(input.byte()) % VERSIONS.len()],
        keep_alive: u16::from(input.byte()),
        receive_maximum: 1 + u16::from(input.byte() % 8),
        maximum_packet_size: if input.byte().is_multiple_of(4) { 24 } else { u32::MAX },
        publish_window: 4,
        told_receive_maximum: 4,
        topic_alias_maximum: u16::from(input.byte() % 4),
        wants_reasons: true,
        logged: false,
    }
}

impl Stage {
    fn settle(&mut self, reason: Reason) {
        let Some((ticket, packet_id, qos)) = self.owed.pop_front() else { return };
        if qos == QoS::ExactlyOnce && reason == Reason::Success {
            self.taken.insert(packet_id, ());
        }
        self.session.published(ticket, reason, &mut self.out);
    }

    fn deliver(&mut self, what: u8) {
        let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(what) % 3];
        let topic = ["t", "t/long/enough/to/matter", "é"][usize::from(what >> 2) % 3];
        let expiry = (what & 0x40 != 0).then_some(u32::from(what & 3));
        let message = Message::new(MessageId { boot: 1, counter: 1 }, 1, topic, b"payload", qos, false)
            .with_forwarded(Vec::new(), expiry, self.now);
        let delivery = Delivery {
            message: Arc::new(message),
            qos,
            retain: what & 0x80 != 0,
            subscription_ids: None,
            share: None,
        };
        if self.session.must_resend() {
            return;
        }
        let sent = self.session.deliver(&delivery, self.now, &mut self.out);
        assert!(sent != Sent::WindowFull || qos != QoS::AtMostOnce, "QoS 0 knows no window");
    }

    fn reconnect(&mut self, terms: Terms) {
        self.look();
        let session = std::mem::replace(&mut self.session, Session::new(terms, SessionState::default(), 0));
        self.session = Session::new(terms, session.into_state(), self.now);
        self.terms = terms;
        self.owed.clear();
        self.aliases.clear();
    }

    /// Packets of the client; an error ends the connection.
    fn hear(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let mut rest = bytes;
        while let Some((frame, length)) = split_frame(rest, 1 << 20).map_err(drop)? {
            rest = &rest[length..];
            let mut named = None;
            let mut packet = decode(frame, self.terms.version).map_err(drop)?;
            if let Packet::PubAck(ack) | Packet::PubComp(ack) = &packet {
                let qos = self.out_there.get(&ack.packet_id);
                if qos.is_some_and(|qos| (*qos == QoS::AtLeastOnce) == matches!(packet, Packet::PubAck(_))) {
                    // Whether PUBCOMP was due yet is the machine's business: the identifier may come again.
                    let id = ack.packet_id;
                    self.out_there.remove(&id);
                }
            } else if let Packet::PubRec(ack) = &packet
                && ack.reason.is_failure()
            {
                self.out_there.remove(&ack.packet_id);
            }
            self.session.name_topic(&mut packet, &mut named).map_err(drop)?;
            match self.session.receive(packet, self.now, &mut self.out).map_err(drop)? {
                Effect::Publish(publish, ticket) => {
                    assert!(!publish.topic.is_empty(), "a topic is named");
                    assert_eq!(ticket.is_some(), publish.qos != QoS::AtMostOnce);
                    if publish.qos == QoS::ExactlyOnce {
                        assert!(!self.taken.contains_key(&publish.packet_id), "handed on twice");
                    }
                    self.owed.extend(ticket.map(|ticket| (ticket, publish.packet_id, publish.qos)));
                }
                Effect::Release { packet_id, known } => {
                    self.taken.remove(&packet_id);
                    self.session.released(packet_id, known, &mut self.out);
                }
                Effect::Subscribe(subscribe) => {
                    let reasons = vec![Reason::Success; subscribe.filters.len()];
                    self.session.subscribed(subscribe.packet_id, &reasons, &mut self.out);
                }
                Effect::Unsubscribe(unsubscribe) => {
                    let reasons = vec![Reason::Success; unsubscribe.filters.len()];
                    self.session.unsubscribed(unsubscribe.packet_id, &reasons, &mut self.out);
                }
                Effect::Disconnect { .. } => return Err(()),
                Effect::Received { packet_id, mid } => {
                    self.session.received(packet_id, mid, &mut self.out);
                }
                Effect::None | Effect::Delivered => {}
            }
        }
        Ok(())
    }

    /// All that was sent is whole packets, which keep to what the client allows.
    fn look(&mut self) {
        let out = std::mem::take(&mut self.out);
        let mut rest = &out[..];
        while !rest.is_empty() {
            let (frame, length) = split_frame(rest, u32::MAX).expect("a frame").expect("a whole one");
            rest = &rest[length..];
            let packet = decode(frame, self.terms.version).expect("a packet");
            let Packet::Publish(publish) = packet else { continue };
            if self.terms.version == Version::V5 {
                assert!(length <= self.terms.maximum_packet_size as usize, "larger than the client takes");
            }
            if let Some(alias) = publish.properties.topic_alias {
                assert!(alias > 0 && alias <= self.terms.topic_alias_maximum);
                if publish.topic.is_empty() {
                    assert!(self.aliases.contains_key(&alias), "an alias for nothing");
                } else {
                    assert_eq!(self.aliases.insert(alias, publish.topic.to_owned()), None);
                }
            }
            if publish.qos != QoS::AtMostOnce {
                assert!(publish.packet_id != 0);
                let former = self.out_there.insert(publish.packet_id, publish.qos);
                assert!(former.is_none() || publish.dup, "an identifier in use names another message");
            }
        }
        assert!(self.session.window() <= usize::from(self.terms.receive_maximum));
    }
}
