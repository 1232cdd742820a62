//! A client's publishes: may it, where to, and when is it acknowledged.
//!
//! They are issued strictly in order. Most are routed and handed to the log at once. A QoS 2 message of a persistent
//! session under a registered parent is noted in the log first ([`crate::session::unreleased`]); what comes
//! behind it on the connection waits for its turn.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;
use mqtt_proto::{
    codec::{Publish, QoS, Reason, Version},
    message::Message,
    session::Ticket,
    topic::check_topic,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use super::{ACK_TIMEOUT, Connection, Scratch, closing::Close, millis};
use crate::{
    bridge::partition_of,
    limits::notice,
    log::{Completion, Outcome},
    router::Route,
    session::unreleased::Note,
    settings::Parent,
};

/// Publishes that may wait for their turn.
const INTAKE_LIMIT: usize = 1000;
/// Topics that one connection remembers.
const REMEMBERED: usize = 64;

// What an append's token stands for, besides the ticket or packet identifier in its lower bits.
const NOTED: u64 = 1 << 63;
const FOUND: u64 = 1 << 62;
const RELEASED: u64 = 1 << 61;
const KNOWN: u64 = 1 << 60;
const KINDS: u64 = NOTED | FOUND | RELEASED | KNOWN;

/// What a connection knows of the topics it publishes to.
#[derive(Default)]
pub(super) struct Topics {
    last: Option<Arc<TopicEntry>>,
    known: HashMap<Box<str>, Arc<TopicEntry>, RandomState>,
}

pub(super) struct TopicEntry {
    name: Box<str>,
    /// Why publishing there is refused.
    refusal: Option<Reason>,
    route: Arc<Route>,
    parent: Option<Arc<Parent>>,
}

/// A publish that waits for its turn.
pub(super) struct Intake {
    message: Message,
    topic: Arc<TopicEntry>,
    ticket: Option<Ticket>,
    stage: Stage,
    /// Its packet identifier, if there is a note about it.
    noted: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its note is not durable yet, or it is being looked for in its parent topic.
    Noting,
    Ready,
    /// It was stored by a former process run already.
    Stored,
}

impl Topics {
    /// Settings have changed: all must be judged anew.
    pub(super) fn forget(&mut self) {
        *self = Topics::default();
    }

    fn find(&self, topic: &str, generation: u64) -> Option<&Arc<TopicEntry>> {
        let last = self.last.as_ref().filter(|entry| &*entry.name == topic);
        last.or_else(|| self.known.get(topic)).filter(|entry| entry.route.generation == generation)
    }

    fn remember(&mut self, entry: Arc<TopicEntry>) {
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(entry.name.clone(), entry);
    }
}

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    pub(super) fn publish(
        &mut self,
        publish: &Publish<'_>,
        ticket: Option<Ticket>,
        scratch: &mut Scratch,
    ) -> Result<(), Close> {
        let topic = self.topic(publish.topic);
        let refusal = topic.refusal.or_else(|| is_not_what_it_says(publish));
        if let Some(reason) = refusal {
            return self.refuse(publish, ticket, reason, scratch);
        }
        let id = self.node.next_message_id();
        let message =
            Message::new(id, self.mailbox.key, publish.topic, publish.payload, publish.qos, publish.retain)
                .with_properties(&publish.properties.message, self.now);
        if let (Some(parent), Some(ticket), QoS::ExactlyOnce) = (&topic.parent, ticket, publish.qos)
            && self.expiry > 0
        {
            let parent = parent.clone();
            self.note(publish, message, topic, &parent, ticket);
        } else if self.intake.is_empty()
            && self.pauses.congested.is_empty()
            && scratch.fanout.congested.is_empty()
        {
            self.issue(Intake { message, topic, ticket, stage: Stage::Ready, noted: None }, scratch);
        } else {
            self.intake.push_back(Intake { message, topic, ticket, stage: Stage::Ready, noted: None });
        }
        if self.ack_deadline.is_none() && self.session.owes_acks() {
            self.ack_deadline = Some(self.now + millis(ACK_TIMEOUT));
        }
        Ok(())
    }

    /// PUBREL: the identifier is free once its note is gone.
    pub(super) fn release(&mut self, packet_id: u16, known: bool, scratch: &mut Scratch) {
        let noted = self.held.core.notes.remove(&packet_id).is_some();
        // A client that keeps its session may release what was finished when a crash swallowed the answer. Clients give
        // up when they are told then that the identifier is unknown.
        let known = known || self.expiry > 0;
        if noted {
            let known = if known { KNOWN } else { 0 };
            let done = self.completion(RELEASED | known | u64::from(packet_id));
            self.node.unreleased.delete(&self.held.slot.client_id, packet_id, self.node.wall(), done);
        } else {
            self.session.released(packet_id, known, &mut scratch.out);
        }
    }

    /// An append of this connection is durable.
    pub(super) fn settle_durable(&mut self, token: u64, scratch: &mut Scratch) {
        let number = token & !KINDS;
        if token & RELEASED != 0 {
            let packet_id = u16::try_from(number).unwrap_or_default();
            self.session.released(packet_id, token & KNOWN != 0, &mut scratch.out);
        } else if token & (NOTED | FOUND) != 0 {
            let waiting = self.intake.iter_mut().find(|intake| intake.ticket == Some(Ticket(number)));
            if let Some(intake) = waiting {
                intake.stage = if token & FOUND != 0 { Stage::Stored } else { Stage::Ready };
            }
            self.issue_waiting(scratch);
        } else {
            self.session.published(Ticket(number), Reason::Success, &mut scratch.out);
        }
    }

    /// Issues the publishes whose turn has come, in order.
    pub(super) fn issue_waiting(&mut self, scratch: &mut Scratch) {
        while self.pauses.congested.is_empty()
            && scratch.fanout.congested.is_empty()
            && self.intake.front().is_some_and(|intake| intake.stage != Stage::Noting)
        {
            let Some(intake) = self.intake.pop_front() else { break };
            self.issue(intake, scratch);
        }
    }

    /// Whether so many publishes wait for their turn that no more should be read.
    pub(super) fn intake_full(&self) -> bool {
        self.intake.len() >= INTAKE_LIMIT
    }

    /// Whether it may publish there, who gets it, and where it is stored: looked up once while nothing changes.
    fn topic(&mut self, topic: &str) -> Arc<TopicEntry> {
        let generation = self.node.router.generation();
        if let Some(entry) = self.topics.find(topic, generation) {
            let entry = entry.clone();
            if self.topics.last.as_ref().is_none_or(|last| !Arc::ptr_eq(last, &entry)) {
                self.topics.last = Some(entry.clone());
            }
            return entry;
        }
        let refusal = if check_topic(topic).is_err() || !self.settings.allows_characters(topic, false) {
            Some(Reason::TopicNameInvalid)
        } else {
            (!self.grants.may_publish(topic)).then_some(Reason::NotAuthorized)
        };
        let entry = Arc::new(TopicEntry {
            name: topic.into(),
            refusal,
            route: Arc::new(self.node.router.route(topic)),
            parent: self.settings.parent_of(topic),
        });
        self.topics.remember(entry.clone());
        self.topics.last = Some(entry.clone());
        entry
    }

    /// v5: refused with its reason; before v5 there is no such answer, so the connection ends (MQTT 3.3.5).
    fn refuse(
        &mut self,
        publish: &Publish<'_>,
        ticket: Option<Ticket>,
        reason: Reason,
        scratch: &mut Scratch,
    ) -> Result<(), Close> {
        self.node.counters.publishes_refused.add(1);
        let (client_id, user) = (self.client_id(), &*self.user.name);
        notice!(
            self.node,
            refused_publish,
            client_id,
            user,
            topic = publish.topic,
            "publish refused: {reason}"
        );
        if self.session.version() != Version::V5 {
            return Err(Close::PublishRefused);
        }
        if let Some(ticket) = ticket {
            self.session.published(ticket, reason, &mut scratch.out);
        }
        Ok(())
    }

    /// Says in the log under which message ID this identifier's message will be stored; or, if a former process run said so
    /// already and the client repeats it, finds out whether it is stored.
    fn note(
        &mut self,
        publish: &Publish<'_>,
        mut message: Message,
        topic: Arc<TopicEntry>,
        parent: &Parent,
        ticket: Ticket,
    ) {
        let packet_id = publish.packet_id;
        let now = self.node.wall();
        let former = self.held.core.notes.get(&packet_id);
        let former =
            former.filter(|note| note.is_repeated_by(&message, publish.dup, &parent.topic, now)).cloned();
        if let Some(note) = former {
            message.id = note.message_id();
            self.search(note, ticket);
        } else {
            let partition = partition_of(parent, self.client_id(), &message);
            let from = self.node.log.known_end(&parent.topic, partition);
            let note = Note::new(&self.user.name, &message, now, &parent.topic, partition, from);
            let done = self.completion(NOTED | ticket.0);
            self.node.unreleased.note(&self.held.slot.client_id, packet_id, &note, now, done);
            self.held.core.notes.insert(packet_id, note);
            self.mind_the_log();
        }
        let (ticket, noted) = (Some(ticket), Some(packet_id));
        self.intake.push_back(Intake { message, topic, ticket, stage: Stage::Noting, noted });
    }

    fn search(&mut self, note: Note, ticket: Ticket) {
        self.outstanding += 1;
        let log = self.node.log.clone();
        let sink = self.settling.clone();
        self.node.outside.spawn(async move {
            let (kind, outcome) = match timeout(ACK_TIMEOUT, note.is_stored(&*log)).await {
                Ok(Ok(true)) => (FOUND, Outcome::Durable(0)),
                Ok(Ok(false)) => (NOTED, Outcome::Durable(0)),
                Err(_) => (NOTED, Outcome::Broken),
                Ok(Err(error)) => {
                    tracing::warn!("a repeated message could not be looked for: {error}");
                    (NOTED, Outcome::Broken)
                }
            };
            sink.appended(kind | ticket.0, outcome);
        });
    }

    /// Routes a message, stores it where its parent is registered, and acknowledges it when nothing is left to wait for.
    fn issue(&mut self, intake: Intake, scratch: &mut Scratch) {
        let Intake { message, topic, ticket, stage, noted } = intake;
        let note = noted.and_then(|packet_id| self.held.core.notes.get_mut(&packet_id));
        let note = note.filter(|note| note.message_id() == message.id);
        let routed = note.is_some_and(|note| std::mem::replace(&mut note.routed, true));
        let mut waits = false;
        if let Some(parent) = topic.parent.as_ref().filter(|_| stage != Stage::Stored) {
            waits = ticket.is_some();
            let done = match ticket {
                Some(ticket) => self.completion(ticket.0),
                None => self.node.bridge.nobody(),
            };
            self.node.bridge.store(parent, &self.held.slot.client_id, &message, self.node.wall(), done);
            self.mind_the_log();
        }
        let message = Arc::new(message);
        if message.retain && !routed {
            self.node.router.retain(&message);
        }
        // A publish that waited for its turn must find who subscribed meanwhile.
        let route = if topic.route.generation == self.node.router.generation() {
            topic.route.clone()
        } else {
            Arc::new(self.node.router.route(&topic.name))
        };
        if !routed {
            scratch.fanout.push(&route, message, self.settings.caps(), &self.node.counters);
        }
        if let Some(ticket) = ticket.filter(|_| !waits) {
            let nobody = route.recipients.is_empty() && topic.parent.is_none();
            let reason = if nobody { Reason::NoMatchingSubscribers } else { Reason::Success };
            self.session.published(ticket, reason, &mut scratch.out);
            if !self.session.owes_acks() {
                self.ack_deadline = None;
            }
        }
    }

    /// Who hands records to a log that is behind reads on once it has caught up; others are not concerned.
    fn mind_the_log(&mut self) {
        if self.pauses.log.is_none() && !self.node.log.room() {
            let log = self.node.log.clone();
            self.pauses.log = Some(Box::pin(async move { log.wait_for_room().await }));
        }
    }

    fn completion(&mut self, token: u64) -> Completion {
        self.outstanding += 1;
        Completion { sink: self.settling.clone(), token }
    }
}

/// A payload that is said to be text and is none (MQTT 5 section 3.3.2.3.2).
fn is_not_what_it_says(publish: &Publish<'_>) -> Option<Reason> {
    let says_text = publish.properties.message.payload_is_utf8 == Some(true);
    (says_text && str::from_utf8(publish.payload).is_err()).then_some(Reason::PayloadFormatInvalid)
}
