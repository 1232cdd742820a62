//! A client's publishes: may it, where to, and when is it acknowledged.
//!
//! They are issued strictly in order. Most are routed and handed to the log at once. A QoS 2 message of a
//! session in the log is noted there first ([`crate::session::note`]); what comes behind it on the connection waits for
//! its turn. A retained one is kept as its topic's before it is routed, in the order in which they came. Where other nodes
//! share the log each waits for a fresh view before that ([`knows_all`]). One is acknowledged once it is durable wherever it
//! must be: under its parent, and for each partition of the session log in which a session gets it.

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
    outside::Mistake,
    router::{Recipient, Route},
    session::{
        groups::{Among, Given, Handing},
        log::{Holding, SessionLog},
        note::Note,
    },
    settings::Parent,
};

/// Publishes that may wait for their turn.
const INTAKE_LIMIT: usize = 1000;
/// Topics that one connection remembers.
const REMEMBERED: usize = 64;

// What an append's token stands for, besides the ticket, turn or packet identifier in its lower bits.
const NOTED: u64 = 1 << 63;
const FOUND: u64 = 1 << 62;
const RELEASED: u64 = 1 << 61;
const KNOWN: u64 = 1 << 60;
pub(super) const RECEIVED: u64 = 1 << 59;
pub(super) const GRANTED: u64 = 1 << 58;
const RETAINED: u64 = 1 << 57;
const FRESH: u64 = 1 << 56;
const KINDS: u64 = NOTED | FOUND | RELEASED | KNOWN | RECEIVED | GRANTED | RETAINED | FRESH;

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
    /// Names it among those of this connection.
    turn: u64,
    stage: Stage,
    /// It was stored by a former process run already.
    is_stored: bool,
    /// Its packet identifier, if there is a note about it.
    noted: Option<u16>,
}

/// What a publish waits for before it is routed. It gets there in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its note.
    Noting,
    /// Those before it, which must be kept as their topics' first.
    Turn,
    /// Its record as a retained message.
    Retaining,
    /// A fresh view.
    Freshening,
    Ready,
}

impl Intake {
    fn new(message: Message, topic: Arc<TopicEntry>, ticket: Option<Ticket>, turn: u64) -> Intake {
        Intake { message, topic, ticket, turn, stage: Stage::Ready, is_stored: false, noted: None }
    }
}

/// Whether a publish of a connection can be routed now: no session is missing that anybody was told of before. Else `done` is told
/// once that is so. Leases will not do before a barrier was passed: they say nothing of messages, and what this client had from
/// another node before must not come behind.
fn knows_all(may_lease: bool, log: &SessionLog, done: impl FnOnce() -> Completion) -> bool {
    (may_lease && log.knows_all()) || log.is_fresh_or(done)
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
        let is_as_said = || publish.properties.message.are_true_of(publish.payload);
        let refusal = topic.refusal.or_else(|| (!is_as_said()).then_some(Reason::PayloadFormatInvalid));
        if let Some(reason) = refusal {
            return self.refuse(publish, ticket, reason, scratch);
        }
        let id = self.node.next_message_id();
        let message =
            Message::new(id, self.mailbox.key, publish.topic, publish.payload, publish.qos, publish.retain)
                .with_properties(&publish.properties.message, self.now);
        if let (Some(holding), Some(ticket), QoS::ExactlyOnce) = (self.holding.clone(), ticket, publish.qos) {
            self.note(publish, message, topic, &holding, ticket);
        } else if message.retain && ticket.is_some() {
            let turn = self.next_turn();
            let intake = Intake { stage: Stage::Turn, ..Intake::new(message, topic, ticket, turn) };
            self.intake.push_back(intake);
            self.retain_in_turn();
        } else if ticket.is_some() && self.node.sessions.shared {
            let turn = self.next_turn();
            let stage = self.freshen(turn);
            self.intake.push_back(Intake { stage, ..Intake::new(message, topic, ticket, turn) });
            self.issue_waiting(scratch);
        } else if self.intake.is_empty()
            && self.pauses.congested.is_empty()
            && scratch.fanout.congested.is_empty()
        {
            self.issue(Intake::new(message, topic, ticket, 0), scratch);
        } else {
            self.intake.push_back(Intake::new(message, topic, ticket, 0));
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
        let known = known || self.holding.is_some();
        if let Some(holding) = self.holding.as_ref().filter(|_| noted) {
            let known = if known { KNOWN } else { 0 };
            let done = self.completion(RELEASED | known | u64::from(packet_id));
            self.node.sessions.release(holding, packet_id, self.node.wall(), done);
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
        } else if token & RECEIVED != 0 {
            self.release_received(u16::try_from(number).unwrap_or_default(), scratch);
        } else if token & GRANTED != 0 {
            self.granted(number, scratch);
        } else if token & (NOTED | FOUND | RETAINED | FRESH) != 0 {
            let waiting = self.intake.iter().position(|intake| intake.turn == number);
            let Some(intake) = waiting.and_then(|index| self.intake.get_mut(index)) else { return };
            intake.is_stored |= token & FOUND != 0;
            self.has_looked |= token & FRESH != 0;
            let is_kept = !intake.message.retain || token & RETAINED != 0;
            // First who subscribes finds it, then those who have get it: so nobody misses it in between.
            intake.stage = match token & FRESH != 0 {
                true => Stage::Ready,
                false if is_kept => Stage::Freshening,
                false => Stage::Turn,
            };
            if intake.stage == Stage::Freshening {
                let done = || Completion { sink: self.settling.clone(), token: FRESH | number };
                // That the client is still this node's is in the log, behind the note or before it.
                let may_lease = self.has_looked && intake.noted.is_none();
                if knows_all(may_lease, &self.node.sessions, done) {
                    intake.stage = Stage::Ready;
                }
            } else if intake.stage == Stage::Turn {
                self.retain_in_turn();
            }
            self.issue_waiting(scratch);
        } else {
            match self.waits.get_mut(&number) {
                Some(left) if *left > 1 => *left -= 1,
                _ => {
                    self.waits.remove(&number);
                    self.session.published(Ticket(number), Reason::Success, &mut scratch.out);
                }
            }
        }
    }

    /// Issues the publishes whose turn has come, in order.
    pub(super) fn issue_waiting(&mut self, scratch: &mut Scratch) {
        let mut retains = false;
        while self.pauses.congested.is_empty()
            && scratch.fanout.congested.is_empty()
            && self.intake.front().is_some_and(|intake| intake.stage == Stage::Ready)
            // What another node goes on with is not this one's to route.
            && !self.is_lost()
        {
            let Some(intake) = self.intake.pop_front() else { break };
            retains |= intake.message.retain;
            self.issue(intake, scratch);
        }
        if retains {
            self.retain_in_turn();
        }
    }

    /// Keeps messages as their topics', as long as none comes before that can't be kept so far.
    fn retain_in_turn(&mut self) {
        let node = &self.node;
        let mut retained = false;
        for intake in self.intake.iter_mut().filter(|intake| intake.message.retain) {
            match intake.stage {
                Stage::Turn => {
                    intake.stage = Stage::Retaining;
                    retained = true;
                    let done = Completion { sink: self.settling.clone(), token: RETAINED | intake.turn };
                    node.retained.retain(&intake.message, node.now(), node.wall(), done);
                }
                Stage::Noting => break,
                // Nobody waits for it: it is kept when it is routed.
                Stage::Ready if intake.ticket.is_none() => break,
                _ => {}
            }
        }
        if retained {
            self.mind_the_log();
        }
    }

    /// What a publish waits for that needs nothing but a fresh view.
    fn freshen(&self, turn: u64) -> Stage {
        let done = || self.completion(FRESH | turn);
        let is_fresh = knows_all(self.has_looked, &self.node.sessions, done);
        if is_fresh { Stage::Ready } else { Stage::Freshening }
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

    /// Says in the log under which message ID this identifier's message goes on; or, if that was said already and the client
    /// repeats it, finds out whether it is stored.
    fn note(
        &mut self,
        publish: &Publish<'_>,
        mut message: Message,
        topic: Arc<TopicEntry>,
        holding: &Holding,
        ticket: Ticket,
    ) {
        let (packet_id, turn) = (publish.packet_id, self.next_turn());
        let now = self.node.wall();
        let former = self.held.core.notes.get(&packet_id);
        let former = former.filter(|note| note.is_repeated_by(&message, publish.dup, now)).cloned();
        if let Some(note) = former {
            message.id = note.inbound.mid;
            self.search(note, turn);
        } else {
            let stored = topic.parent.as_deref().map(|parent| {
                let partition = partition_of(parent, self.client_id(), &message);
                (parent, partition, self.node.log.known_end(&parent.topic, partition))
            });
            let note = Note::new(&message, now, stored);
            let done = self.completion(NOTED | turn);
            self.node.sessions.note(holding, packet_id, &note.inbound, now, done);
            self.held.core.notes.insert(packet_id, note);
            self.mind_the_log();
        }
        let intake = Intake::new(message, topic, Some(ticket), turn);
        let hurries = self.node.outside.makes(Mistake::RouteBeforeNote);
        let stage = if hurries { Stage::Ready } else { Stage::Noting };
        self.intake.push_back(Intake { stage, noted: Some(packet_id), ..intake });
    }

    fn search(&mut self, note: Note, turn: u64) {
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
            sink.appended(kind | turn, outcome);
        });
    }

    /// Routes a message, stores it where its parent is registered, and acknowledges it when nothing is left to wait for.
    fn issue(&mut self, intake: Intake, scratch: &mut Scratch) {
        let Intake { message, topic, ticket, is_stored, noted, .. } = intake;
        let note = noted.and_then(|packet_id| self.held.core.notes.get_mut(&packet_id));
        let note = note.filter(|note| note.inbound.mid == message.id);
        let routed = note.is_some_and(|note| std::mem::replace(&mut note.routed, true));
        let mut appends = 0;
        if let Some(parent) = topic.parent.as_ref().filter(|_| !is_stored) {
            appends += usize::from(ticket.is_some());
            let done = match ticket {
                Some(ticket) => self.completion(ticket.0),
                None => self.node.bridge.nobody(),
            };
            let wall = *self.wall.get_or_insert_with(|| self.node.wall());
            self.node.bridge.store(parent, &self.held.slot.client_id, &message, wall, done);
            self.mind_the_log();
        }
        let message = Arc::new(message);
        if message.retain && ticket.is_none() {
            // Nobody is told when it is durable, and its client may be gone by then.
            let (node, nobody) = (&self.node, self.node.bridge.nobody());
            node.retained.retain_early(node, &message, nobody);
            self.mind_the_log();
        }
        // A publish that waited for its turn must find who subscribed meanwhile.
        let route = if topic.route.generation == self.node.router.generation() {
            topic.route.clone()
        } else {
            Arc::new(self.node.router.route(&topic.name))
        };
        if let Some(ticket) = ticket.filter(|_| !route.logged.is_empty()) {
            // A repeat, too: nobody knows whether it is there already, and it counts once.
            let queued = self.enqueue(&route, &message, ticket, scratch);
            if !self.node.outside.makes(Mistake::AckBeforeQueued) {
                appends += queued;
            }
        }
        appends += self.share_out(&route, &message, ticket, noted, scratch);
        let done = || match ticket {
            Some(ticket) => self.completion(ticket.0),
            None => self.node.bridge.nobody(),
        };
        if self.node.pass(&route, &message, done) {
            appends += usize::from(ticket.is_some());
            self.mind_the_log();
        }
        let is_new = self.node.is_new(message.qos, message.id);
        if !routed && is_new {
            scratch.fanout.push(&route, message, self.settings.caps(), &self.node.counters);
        }
        if let Some(ticket) = ticket.filter(|_| appends > 1) {
            self.waits.insert(ticket.0, appends);
        }
        if let Some(ticket) = ticket.filter(|_| appends == 0) {
            let nobody = route.recipients.is_empty() && route.shares.is_empty() && topic.parent.is_none();
            let reason = if nobody { Reason::NoMatchingSubscribers } else { Reason::Success };
            self.session.published(ticket, reason, &mut scratch.out);
            if !self.session.owes_acks() {
                self.ack_deadline = None;
            }
        }
    }

    /// Hands a message to the devices, or to the session log, of those whose sessions are in that; of how many outcomes are
    /// waited for.
    fn enqueue(
        &mut self,
        route: &Route,
        message: &Arc<Message>,
        ticket: Ticket,
        scratch: &mut Scratch,
    ) -> usize {
        let caps = self.settings.caps();
        let logged = route.logged.iter().flat_map(|(_, indices)| indices);
        let mailboxes = logged.filter_map(|index| route.recipients.get(*index)).map(|to| &to.mailbox);
        scratch.fanout.congested.extend(mailboxes.filter(|mailbox| mailbox.is_congested(caps)).cloned());
        let once = message.qos == QoS::ExactlyOnce;
        let done = || self.completion(ticket.0);
        let log = &self.node.sessions;
        let (mut sent, now, wake) = (0, self.now, scratch.fanout.wakes());
        let may = SessionLog::may_send_first(route, message);
        let is_sent = |to: &Recipient| {
            let is_sent = may && log.send_first(to, message, now, caps, done, wake);
            sent += usize::from(is_sent);
            is_sent
        };
        let appends = log.enqueue(route, message, once, self.node.wall(), is_sent, done);
        if appends > 0 {
            self.mind_the_log();
        }
        appends + sent
    }

    /// Gives a message to one member of each shared subscription; how many appends there are. What came again goes to whom it
    /// went before, or to nobody if that is known to have it.
    fn share_out(
        &mut self,
        route: &Route,
        message: &Arc<Message>,
        ticket: Option<Ticket>,
        noted: Option<u16>,
        scratch: &mut Scratch,
    ) -> usize {
        let mut appends = 0;
        for share in &route.shares {
            let mid = share.id_of(message.id);
            let note = noted.and_then(|packet_id| self.held.core.notes.get(&packet_id));
            let note = note.filter(|note| note.inbound.mid == message.id);
            if note.is_some() && self.node.sessions.knows(mid) {
                continue;
            }
            let before = note.and_then(|note| note.shared.iter().find(|(name, _)| *name == share.name));
            let among = match before {
                Some((_, Given::Queued(_))) => continue,
                Some((_, Given::Appended(key))) if share.member(*key).is_some() => Among::One(*key),
                _ => Among::All,
            };
            let by = &*self.held.slot.client_id;
            let handing = Handing { by, mid, without: 0, among };
            let done = || match ticket {
                Some(ticket) => self.completion(ticket.0),
                None => self.node.bridge.nobody(),
            };
            let given = self.node.hand(share, message, handing, &mut scratch.fanout, done);
            appends += usize::from(matches!(given, Given::Appended(_)) && ticket.is_some());
            let note = noted.and_then(|packet_id| self.held.core.notes.get_mut(&packet_id));
            if let Some(note) = note.filter(|note| note.inbound.mid == message.id) {
                note.shared.retain(|(name, _)| *name != share.name);
                note.shared.push((share.name.clone(), given));
            }
        }
        if appends > 0 {
            self.mind_the_log();
        }
        appends
    }

    fn next_turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }

    /// Who hands records to a log that is behind, or to a link that is, reads on once it has caught up; others are not concerned.
    pub(super) fn mind_the_log(&mut self) {
        if self.pauses.log.is_none() && !self.node.has_room() {
            let node = self.node.clone();
            self.pauses.log = Some(Box::pin(async move { node.wait_for_room().await }));
        }
    }

    pub(super) fn completion(&self, token: u64) -> Completion {
        Completion { sink: self.settling.clone(), token }
    }
}
