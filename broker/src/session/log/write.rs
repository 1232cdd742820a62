//! What is appended besides claims: rewrites of a held client, subscriptions, messages, how far a session is with them, and
//! the QoS 2 publishes that it has not released.

use std::sync::{Arc, atomic::Ordering};

use mqtt_proto::{
    codec::QoS,
    durable::record::{self, Content, Inbound, Key, Progress, Recipient, Session, Subscription, Value},
    message::{Message, MessageId, Millis},
};
use parking_lot::{Mutex, MutexGuard};

use super::{Holding, SessionLog, State, Waiting};
use crate::{
    log::{AppendSink, Completion, Log, Outcome, Record, Topic},
    outside::Mistake,
    router::{self, Options, Route},
};

/// Sessions that one `M` names; a larger fan-out is cut.
const CHUNK: usize = 2000;

/// Records that must get into the log, though nobody waits for them: what could not be written is written again.
#[derive(Default)]
pub(crate) struct Surely {
    again: Mutex<Vec<(u32, Record)>>,
}

/// Gets the outcome of one such record.
struct SurelySink {
    surely: Arc<Surely>,
    written: Mutex<Option<(u32, Record)>>,
}

impl AppendSink for SurelySink {
    fn appended(&self, _token: u64, outcome: Outcome) {
        if let (Some(written), Outcome::Refused | Outcome::Broken) = (self.written.lock().take(), outcome) {
            self.surely.again.lock().push(written);
        }
    }

    fn is_ordered(&self) -> bool {
        false
    }
}

impl Surely {
    pub(crate) fn append(self: &Arc<Self>, log: &dyn Log, topic: &Topic, partition: u32, record: Record) {
        let written = Mutex::new(Some((partition, record.clone())));
        let sink = Arc::new(SurelySink { surely: self.clone(), written });
        log.append(topic, partition, record, Completion { sink, token: 0 });
    }

    pub(crate) fn retry(self: &Arc<Self>, log: &dyn Log, topic: &Topic, now: Millis) {
        for (partition, mut record) in std::mem::take(&mut *self.again.lock()) {
            record.created = i64::try_from(now).unwrap_or(i64::MAX);
            self.append(log, topic, partition, record);
        }
    }
}

/// How a message is queued.
#[derive(Clone, Copy)]
pub(crate) struct Queueing<'a> {
    pub(crate) partition: u32,
    /// It reaches a session once at most.
    pub(crate) once: bool,
    /// The shared subscription for which its one recipient was chosen.
    pub(crate) group: Option<&'a str>,
}

/// A record of what all nodes read; with no value it deletes its key.
pub(crate) fn record(key: &Key, value: Option<Value<'_>>, now: Millis) -> Record {
    Record {
        key: Some(key.encode().into()),
        value: value.map(|value| value.encode().into()),
        headers: Vec::new(),
        created: i64::try_from(now).unwrap_or(i64::MAX),
    }
}

impl SessionLog {
    pub(super) fn append_surely(&self, partition: u32, key: &Key, value: Option<Value<'_>>, now: Millis) {
        self.surely.append(&*self.log, &self.topic, partition, record(key, value, now));
    }

    /// Writes again what could not be written.
    pub(super) fn retry(&self, now: Millis) {
        self.surely.retry(&*self.log, &self.topic, now);
    }

    /// Writes a held client's record once more. The last edit counts, whoever makes it.
    pub(crate) fn rewrite(&self, holding: &Holding, now: Millis, edit: impl FnOnce(&mut Session)) {
        let mut written = holding.written.lock();
        edit(&mut written);
        written.won = true;
        written.sequence = self.next_sequence();
        let key = Key::Session { nonce: holding.nonce, client: (&*holding.client).into() };
        self.append_surely(holding.partition, &key, Some(Value::Session(written.clone())), now);
    }

    /// Writes a subscription on, with these options, or off. `done` is told once it was read back, and is in force.
    pub(crate) fn subscribe(
        &self,
        holding: &Holding,
        filter: &str,
        options: Option<Options>,
        now: Millis,
        done: Completion,
    ) {
        let early = self.outside.makes(Mistake::SubackBeforeFilter);
        if early {
            done.sink.appended(done.token, Outcome::Durable(0));
        }
        let sequence = self.next_sequence();
        let key = Key::Filter { sid: holding.sid, generation: holding.generation, filter: filter.into() };
        let subscription = Subscription {
            sequence,
            on: options.is_some(),
            qos: options.map_or(QoS::AtMostOnce, |options| options.qos),
            no_local: options.is_some_and(|options| options.no_local),
            retain_as_published: options.is_some_and(|options| options.retain_as_published),
            id: options.and_then(|options| options.subscription_id),
        };
        if !early {
            let waiting = Waiting::Filter { sequence, done: done.clone() };
            let wait = |state: &mut State| state.waiting.entry(key.clone()).or_default().push(waiting);
            self.with(holding.partition, wait);
        }
        let value = Value::Filter(subscription);
        // Only a failure is told at once.
        let sink = Arc::new(FilterSink { done });
        self.append(holding.partition, &key, Some(value), now, Completion { sink, token: 0 });
    }

    /// Appends a message for each partition in which sessions get it at QoS > 0 and have not gone without it: `is_sent` is asked of
    /// each once. How many records that are.
    pub(crate) fn enqueue(
        &self,
        route: &Route,
        message: &Message,
        once: bool,
        now: Millis,
        mut is_sent: impl FnMut(&router::Recipient) -> bool,
        mut done: impl FnMut() -> Completion,
    ) -> usize {
        if message.qos == QoS::AtMostOnce {
            return 0;
        }
        let mut appended = 0;
        for (partition, indices) in &route.logged {
            let recipients = indices.iter().filter_map(|index| route.recipients.get(*index));
            let recipients = recipients.filter(|to| !message.online_only || to.mailbox.is_reachable());
            let recipients = recipients.filter_map(|to| Some((to, recipient(to, message)?)));
            let recipients = recipients.filter(|(to, _)| !is_sent(to));
            let recipients: Vec<_> = recipients.map(|(to, recipient)| (&*to.mailbox, recipient)).collect();
            for chunk in recipients.chunks(CHUNK) {
                let to = Queueing { partition: *partition, once, group: None };
                self.append_message(to, chunk, message, now, done());
                appended += 1;
            }
        }
        appended
    }

    /// A session's device has taken a QoS 2 message under this packet identifier.
    pub(crate) fn received(
        &self,
        holding: &Holding,
        mid: MessageId,
        packet_id: u16,
        now: Millis,
        done: Completion,
    ) {
        let key = Key::Progress { mid, sid: holding.sid, boot: self.boot };
        let value = Value::Progress(Progress::Received(packet_id));
        self.append(holding.partition, &key, Some(value), now, done);
    }

    /// A QoS 2 publish of a held client.
    pub(crate) fn note(
        &self,
        holding: &Holding,
        packet_id: u16,
        inbound: &Inbound,
        now: Millis,
        done: Completion,
    ) {
        let key = inbound_key(holding, holding.generation, packet_id);
        self.append(holding.partition, &key, Some(Value::Inbound(inbound.clone())), now, done);
    }

    /// The client has released it. `done` is told once that is durable.
    pub(crate) fn release(&self, holding: &Holding, packet_id: u16, now: Millis, done: Completion) {
        let older = self.with(holding.partition, |state| {
            let session = state.view.session(holding.sid);
            session.map(|(_, session)| session.inbound_of(packet_id).collect::<Vec<_>>())
        });
        // What older generations noted first: were it left alone, it would count again.
        for generation in older.flatten().unwrap_or_default() {
            if generation != holding.generation {
                self.append_surely(
                    holding.partition,
                    &inbound_key(holding, generation, packet_id),
                    None,
                    now,
                );
            }
        }
        self.append(holding.partition, &inbound_key(holding, holding.generation, packet_id), None, now, done);
    }
}

/// Passes on what will not be read back.
struct FilterSink {
    done: Completion,
}

impl AppendSink for FilterSink {
    fn appended(&self, _token: u64, outcome: Outcome) {
        if !matches!(outcome, Outcome::Durable(_)) {
            self.done.sink.appended(self.done.token, outcome);
        }
    }
}

fn inbound_key(holding: &Holding, generation: record::Generation, packet_id: u16) -> Key {
    Key::Inbound { sid: holding.sid, generation, packet_id }
}

/// What a session gets of a message through the log, if it gets it so.
pub(crate) fn recipient(to: &router::Recipient, message: &Message) -> Option<Recipient> {
    let qos = message.qos.min(to.qos);
    let is_own = to.no_local && message.publisher == to.mailbox.key;
    let logged = to.logged.filter(|_| qos > QoS::AtMostOnce && !is_own)?;
    Some(Recipient {
        sid: logged.sid,
        qos,
        retain: to.retain_as_published && message.retain,
        maybe_sent: false,
        subscription_ids: to.subscription_ids.clone(),
    })
}

pub(crate) fn content(message: &Message) -> Content<'_> {
    Content {
        qos: message.qos,
        retain: message.retain,
        expires_at: message.expires_at,
        forwarded: message.forwarded(),
        topic: message.topic(),
        payload: message.payload(),
    }
}

/// The message that `content` was made of.
pub(crate) fn message_of(mid: MessageId, content: &Content<'_>) -> Message {
    let mut message = Message::new(mid, 0, content.topic, content.payload, content.qos, content.retain)
        .with_forwarded(content.forwarded.to_vec(), None, 0);
    message.expires_at = content.expires_at;
    message
}

impl Holding {
    /// Milliseconds from the close of a connection to the end of its session.
    pub(super) fn outlives(session: &Session) -> Millis {
        if session.expiry == u32::MAX { Millis::MAX } else { u64::from(session.expiry) * 1000 }
    }

    pub(super) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// As written last.
    pub(super) fn written(&self) -> MutexGuard<'_, Box<Session>> {
        self.written.lock()
    }
}
