//! The broker between them: as its owner would, it feeds one session and empties the other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;

/// The publisher's side: outcomes come in any order.
#[derive(Default)]
pub(super) struct Intake {
    pub(super) session: Option<Session>,
    pub(super) state: SessionState,
    outcomes: Vec<Outcome>,
    /// Counts messages: what is published again is another one.
    handed_on: u64,
    /// Of a connection that was taken over.
    late: Vec<Outcome>,
    pub(super) late_outcomes: usize,
    pub(super) releases: Vec<(u16, bool)>,
    /// Its session ended while it was away.
    pub(super) expired: bool,
    /// Acknowledgements that must come next, in this order.
    order: VecDeque<u16>,
}

struct Outcome {
    ticket: Ticket,
    qos: QoS,
    reason: Reason,
}

impl Intake {
    pub(super) fn read(&mut self, link: &mut Link, queue: &mut VecDeque<Delivery>, now: Millis) {
        let Some(session) = self.session.as_mut().filter(|session| !session.publish_window_full()) else {
            return;
        };
        let Some(bytes) = link.up.pop_front() else { return };
        let mut out = BytesMut::new();
        for packet in read(&bytes, link.version) {
            let repeated = match &packet {
                Packet::Publish(publish) if publish.packet_id > 0 => Some(publish.packet_id),
                _ => None,
            };
            match session.receive(packet, now, &mut out).expect("the publisher keeps to the protocol") {
                Effect::Publish(publish, ticket) => {
                    let refused = link.version == Version::V5 && is_refused(number_of(publish.payload));
                    if let Some(ticket) = ticket {
                        self.order.push_back(publish.packet_id);
                        let reason = if refused { Reason::NotAuthorized } else { Reason::Success };
                        self.outcomes.push(Outcome { ticket, qos: publish.qos, reason });
                    }
                    if !refused {
                        self.handed_on += 1;
                        let id = MessageId { boot: 1, counter: self.handed_on };
                        let message = Message::new(id, 0, "t", publish.payload, publish.qos, false)
                            .with_properties(&publish.properties.message, now);
                        let (message, qos) = (Arc::new(message), publish.qos);
                        queue.push_back(Delivery {
                            message,
                            qos,
                            retain: false,
                            subscription_ids: None,
                            share: None,
                        });
                    }
                }
                Effect::Release { packet_id, known } => self.releases.push((packet_id, known)),
                Effect::None => {
                    let packet_id = repeated.expect("only a repeat asks for nothing");
                    if !self.order.contains(&packet_id) {
                        self.order.push_back(packet_id);
                    }
                }
                other => panic!("a publisher does not lead to {other:?}"),
            }
        }
        self.send(out, link);
    }

    pub(super) fn settle(&mut self, random: &mut Random, link: &mut Link) {
        let Some(session) = &mut self.session else { return };
        let mut out = BytesMut::new();
        if let Some(Outcome { ticket, reason, .. }) = self.late.pop() {
            let owed = session.state.inbound.owed();
            session.published(ticket, reason, &mut out);
            assert!(
                out.is_empty() && session.state.inbound.owed() == owed,
                "a former connection's outcome counts"
            );
        }
        if !self.outcomes.is_empty() {
            let Outcome { ticket, reason, .. } = self.outcomes.swap_remove(random.below(self.outcomes.len()));
            session.published(ticket, reason, &mut out);
        }
        if !self.releases.is_empty() {
            let (packet_id, known) = self.releases.swap_remove(random.below(self.releases.len()));
            session.released(packet_id, known, &mut out);
        }
        self.send(out, link);
    }

    fn send(&mut self, out: BytesMut, link: &mut Link) {
        for packet in read(&out, link.version) {
            if let Packet::PubAck(ack) | Packet::PubRec(ack) = &packet {
                assert_eq!(self.order.pop_front(), Some(ack.packet_id), "acknowledgements out of order");
            }
            link.down.push_back(encoded(&packet, link.version));
        }
    }

    /// The connection is taken over. What became of QoS 2 is awaited, for else a repeat would be another message; of QoS 1 it
    /// comes too late, and the client sends that again.
    pub(super) fn give_up(&mut self, random: &mut Random) {
        let outcomes = std::mem::take(&mut self.outcomes);
        let (awaited, late) = outcomes.into_iter().partition(|outcome| outcome.qos == QoS::ExactlyOnce);
        self.outcomes = awaited;
        self.late_outcomes += late.len();
        self.late.extend(late);
        self.close(random);
    }

    /// The session ended while its client was away.
    pub(super) fn expire(&mut self) {
        self.state = SessionState::default();
        self.late.clear();
        self.expired = true;
    }

    /// The connection is gone. All outcomes are awaited before the session is put away.
    pub(super) fn close(&mut self, random: &mut Random) {
        let Some(mut session) = self.session.take() else { return };
        while !self.outcomes.is_empty() {
            let Outcome { ticket, reason, .. } = self.outcomes.swap_remove(random.below(self.outcomes.len()));
            session.published(ticket, reason, &mut BytesMut::new());
        }
        assert!(!session.owes_acks() || !self.late.is_empty());
        self.releases.clear();
        self.order.clear();
        self.state = session.into_state();
    }
}

/// The subscriber's side.
#[derive(Default)]
pub(super) struct Outlet {
    pub(super) session: Option<Session>,
    pub(super) state: SessionState,
    /// There in worlds whose session is in a log: what that knows of it.
    pub(super) log: Option<Log>,
    pub(super) receive_maximum: u16,
    /// The number of the message that each identifier stands for until it is finished.
    in_flight: BTreeMap<u16, u32>,
    /// Of those, sent as PUBLISH on this connection.
    pub(super) on_wire: BTreeSet<u16>,
    pub(super) dropped: Dropped,
}

/// What any process would go on with.
#[derive(Default)]
pub(super) struct Log {
    /// May have been sent, in order, and not done with.
    sent: Vec<Delivery>,
    /// Taken by the device, by the packet identifier.
    received: Vec<(u16, MessageId)>,
    /// On its way into the log: PUBREL waits for it.
    writing: VecDeque<(u16, MessageId)>,
}

impl Log {
    /// What came to its end may be written down much later, for nobody waits for it; here it is at once.
    fn done(&mut self, session: &mut Session) {
        for Finished { mid, .. } in session.take_finished() {
            self.sent.retain(|delivery| delivery.message.id != mid);
            self.received.retain(|(_, received)| *received != mid);
        }
    }

    /// The oldest that was on its way is there.
    fn written(&mut self) -> Option<(u16, MessageId)> {
        let (packet_id, mid) = self.writing.pop_front()?;
        self.sent.retain(|delivery| delivery.message.id != mid);
        self.received.push((packet_id, mid));
        Some((packet_id, mid))
    }
}

impl Outlet {
    pub(super) fn new(is_logged: bool) -> Outlet {
        Outlet { log: is_logged.then(Log::default), ..Outlet::default() }
    }

    /// The connection is gone. Of a session in the log the next one knows what the log does: some of what was on its way there
    /// is in it, too.
    pub(super) fn part(&mut self, random: &mut Random) {
        self.on_wire.clear();
        let Some(session) = self.session.take() else { return };
        let Some(log) = &mut self.log else {
            self.state = session.into_state();
            return;
        };
        for _ in 0..random.below(log.writing.len() + 1) {
            log.written();
        }
        log.writing.clear();
        self.state = SessionState::restore(log.received.iter().copied(), log.sent.clone());
    }

    pub(super) fn expire(&mut self) {
        self.log = self.log.take().map(|_| Log::default());
        self.state = SessionState::default();
        self.in_flight.clear();
        self.on_wire.clear();
    }

    pub(super) fn fill(
        &mut self,
        queue: &mut VecDeque<Delivery>,
        link: &mut Link,
        limit: usize,
        now: Millis,
    ) {
        let Some(session) = &mut self.session else { return };
        let mut out = BytesMut::new();
        let more = session.must_resend() && session.resend(now, &mut out);
        if let Some(log) = &mut self.log {
            log.done(session);
            log.writing.extend(session.take_given_up());
        }
        let dropped = session.take_dropped();
        self.dropped.expired += dropped.expired;
        self.dropped.too_large += dropped.too_large;
        for _ in 0..limit {
            let Some(delivery) = queue.front().filter(|_| !more) else { break };
            if session.window() == 0 && delivery.qos != QoS::AtMostOnce {
                break;
            }
            let sent = session.deliver(delivery, now, &mut out);
            assert_ne!(sent, Sent::WindowFull, "the window was open");
            let delivery = queue.pop_front().filter(|delivery| delivery.qos > QoS::AtMostOnce);
            if let (Some(log), Some(delivery), Sent::Now) = (&mut self.log, delivery, sent) {
                log.sent.push(delivery);
            }
        }
        for packet in read(&out, link.version) {
            if let Packet::Publish(publish) = &packet
                && publish.qos != QoS::AtMostOnce
            {
                let (packet_id, number) = (publish.packet_id, number_of(publish.payload));
                let former = self.in_flight.insert(packet_id, number);
                let dup = publish.dup.then_some(number);
                // Whether it was sent no log knows for sure.
                let is_it = former == dup || (self.log.is_some() && former.is_none());
                assert!(is_it, "identifier {packet_id} is that of another message: {former:?}, {dup:?}");
                assert!(self.on_wire.insert(packet_id), "{packet_id} is sent twice on one connection");
                assert!(self.on_wire.len() <= usize::from(self.receive_maximum), "beyond the window");
            }
            link.down.push_back(encoded(&packet, link.version));
        }
    }

    pub(super) fn read(&mut self, link: &mut Link, now: Millis) {
        let Some(session) = &mut self.session else { return };
        let Some(bytes) = link.up.pop_front() else { return };
        let mut out = BytesMut::new();
        for packet in read(&bytes, link.version) {
            let (Packet::PubAck(Ack { packet_id, .. })
            | Packet::PubRec(Ack { packet_id, .. })
            | Packet::PubComp(Ack { packet_id, .. })) = packet
            else {
                panic!("a device sends no {packet:?}")
            };
            match session.receive(packet, now, &mut out).expect("the device keeps to the protocol") {
                Effect::Delivered => {
                    self.in_flight.remove(&packet_id);
                    self.on_wire.remove(&packet_id);
                }
                Effect::Received { packet_id, mid } => {
                    let log = self.log.as_mut().expect("only a log is told");
                    if !log.writing.contains(&(packet_id, mid)) {
                        log.writing.push_back((packet_id, mid));
                    }
                }
                Effect::None => {}
                other => panic!("a device does not lead to {other:?}"),
            }
        }
        if let Some(log) = &mut self.log {
            log.done(session);
        }
        link.down.extend(read(&out, link.version).iter().map(|packet| encoded(packet, link.version)));
    }

    /// What the device has taken is written down.
    pub(super) fn write_down(&mut self, link: &mut Link) {
        let Some(log) = &mut self.log else { return };
        let (Some(session), Some((packet_id, mid))) = (&mut self.session, log.written()) else { return };
        let mut out = BytesMut::new();
        session.received(packet_id, mid, &mut out);
        link.down.extend(read(&out, link.version).iter().map(|packet| encoded(packet, link.version)));
    }
}
