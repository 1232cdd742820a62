//! SUBSCRIBE and UNSUBSCRIBE: one answer for each filter. Of a session in the log it waits until the log has it.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use mqtt_proto::{
    codec::{QoS, Reason, RetainHandling, Subscribe, SubscribeFilter, Unsubscribe},
    durable::record::Recipient,
    message::Delivery,
    topic::{Filter, FilterRequest},
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Connection, Scratch, publish::GRANTED, trace};
use crate::{
    limits::notice,
    log::Completion,
    router::Options,
    session::log::{Queueing, gather},
};

/// Retained messages that may wait for a client when it asks for more.
const MOST_RETAINED: usize = 10_000;

/// SUBSCRIBEs and UNSUBSCRIBEs of a session in the log that have no answer so far, by their number.
#[derive(Default)]
pub(super) struct Asked {
    next: u64,
    waiting: HashMap<u64, Waiting, RandomState>,
}

/// One of them.
struct Waiting {
    packet_id: u16,
    is_subscribe: bool,
    reasons: Vec<Reason>,
    /// What the stage waits for: filters, or one answer.
    left: usize,
    stage: Stage,
    /// Whose retained messages are sent then.
    retained: Vec<(Filter, Options)>,
    /// Shared subscriptions of which the session is a member then.
    shares: Vec<Box<str>>,
}

/// What one waits for. It gets there in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The log has its filters.
    InForce,
    /// Other nodes know of them.
    Known,
    /// What is retained is not older than what others were promised.
    Fresh,
}

impl Stage {
    /// Where nothing has changed that other nodes must know there is nothing to tell them.
    fn first(has_changed: bool) -> Stage {
        if has_changed { Stage::InForce } else { Stage::Known }
    }
}

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    pub(super) fn subscribe(&mut self, subscribe: &Subscribe<'_>, scratch: &mut Scratch) {
        // What this client published before must not find the subscription.
        self.hand_over(scratch);
        let number = self.asked.next;
        let (mut left, mut retained, mut shares) = (0, Vec::new(), Vec::new());
        let reasons: Vec<Reason> = subscribe
            .filters
            .iter()
            .map(|filter| match self.subscribe_one(filter, subscribe.subscription_id, number) {
                Ok(subscribed) => {
                    left += usize::from(subscribed.waits);
                    retained.extend(subscribed.retained);
                    shares.extend(subscribed.share);
                    granted(filter.qos)
                }
                Err(reason) => {
                    self.refuse_subscription(filter.filter, reason);
                    reason
                }
            })
            .collect();
        trace::subscribed(&self.node, self.client_id(), &subscribe.filters, &reasons);
        let packet_id = subscribe.packet_id;
        let stage = Stage::first(reasons.iter().any(|reason| !reason.is_failure()));
        let waiting = Waiting { packet_id, is_subscribe: true, reasons, left, stage, retained, shares };
        self.answer(waiting, scratch);
    }

    pub(super) fn unsubscribe(&mut self, unsubscribe: &Unsubscribe<'_>, scratch: &mut Scratch) {
        self.hand_over(scratch);
        let number = self.asked.next;
        let mut left = 0;
        let reasons: Vec<Reason> = unsubscribe
            .filters
            .iter()
            .map(|name| {
                let Some(asked) = self.held.core.subscriptions.remove(*name) else {
                    return Reason::NoSubscriptionExisted;
                };
                if let Some(holding) = &self.holding {
                    left += 1;
                    let done = self.completion(GRANTED | number);
                    self.node.sessions.subscribe(holding, name, None, self.node.wall(), done);
                } else {
                    self.node.router.unsubscribe(&asked, self.mailbox.key);
                }
                if asked.share.is_some() {
                    self.node.leave_share(self.holding.as_ref(), &self.mailbox, name);
                }
                Reason::Success
            })
            .collect();
        let packet_id = unsubscribe.packet_id;
        // What comes for a session in no log its own node gives to who is there.
        let (retained, shares, stage) = (Vec::new(), Vec::new(), Stage::first(left > 0));
        let waiting = Waiting { packet_id, is_subscribe: false, reasons, left, stage, retained, shares };
        self.answer(waiting, scratch);
    }

    /// A subscription is in force, or off.
    pub(super) fn granted(&mut self, number: u64, scratch: &mut Scratch) {
        let Some(waiting) = self.asked.waiting.get_mut(&number) else { return };
        waiting.left = waiting.left.saturating_sub(1);
        if waiting.left == 0 {
            self.look(number, scratch);
        }
    }

    fn answer(&mut self, waiting: Waiting, scratch: &mut Scratch) {
        let (number, left) = (self.asked.next, waiting.left);
        self.asked.waiting.insert(number, waiting);
        self.asked.next += 1;
        if left == 0 {
            return self.look(number, scratch);
        }
        self.mind_the_log();
    }

    /// One has what it waited for: it is answered once all nodes know of it, and what is retained is known as it is now.
    fn look(&mut self, number: u64, scratch: &mut Scratch) {
        let node = self.node.clone();
        let sink = &self.settling;
        let done = || Completion { sink: sink.clone(), token: GRANTED | number };
        let Some(waiting) = self.asked.waiting.get_mut(&number) else { return };
        waiting.left = 1;
        if waiting.stage == Stage::InForce {
            waiting.stage = Stage::Known;
            if !node.sessions.is_known_or(done) {
                return;
            }
        }
        // Who publishes from here on finds it; what was published before is retained.
        if waiting.stage == Stage::Known {
            waiting.stage = Stage::Fresh;
            if !waiting.retained.is_empty() && !node.sessions.is_fresh_or(done) {
                return;
            }
        }
        if let Some(waiting) = self.asked.waiting.remove(&number) {
            self.tell(waiting, scratch);
        }
    }

    fn tell(&mut self, waiting: Waiting, scratch: &mut Scratch) {
        let Waiting { packet_id, is_subscribe, reasons, retained, shares, .. } = waiting;
        shares.iter().for_each(|name| gather(&self.node, name));
        for (filter, options) in retained {
            self.send_retained(&filter, options);
        }
        if is_subscribe {
            self.session.subscribed(packet_id, &reasons, &mut scratch.out);
        } else {
            self.session.unsubscribed(packet_id, &reasons, &mut scratch.out);
        }
    }

    fn send_retained(&self, filter: &Filter, options: Options) {
        let found = self.node.router.retained(filter, options, self.now);
        let Some(holding) = &self.holding else { return self.mailbox.post_retained(found) };
        let (logged, direct): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|delivery| delivery.qos > QoS::AtMostOnce);
        self.mailbox.post_retained(direct);
        for Delivery { message, qos, retain, subscription_ids, .. } in logged {
            // A message of its own: that with this identifier may have come, and been finished.
            let copy = message.renamed(self.node.next_message_id());
            let maybe_sent = false;
            let recipient = Recipient { sid: holding.sid, qos, retain, maybe_sent, subscription_ids };
            let (now, nobody) = (self.node.wall(), self.node.bridge.nobody());
            let to = Queueing { partition: holding.partition, once: false, group: None };
            self.node.sessions.append_message(to, &[(&*self.mailbox, recipient)], &copy, now, nobody);
        }
    }

    fn subscribe_one(
        &mut self,
        asked: &SubscribeFilter<'_>,
        subscription_id: Option<u32>,
        number: u64,
    ) -> Result<Subscribed, Reason> {
        let request = FilterRequest::parse(asked.filter).map_err(|_| Reason::TopicFilterInvalid)?;
        let group = request.share.as_ref().map_or("", |share| share.as_str());
        if !self.settings.allows_characters(request.filter.as_str(), true)
            || !self.settings.allows_characters(group, false)
        {
            return Err(Reason::TopicFilterInvalid);
        }
        if !self.grants.may_subscribe(&request.filter) {
            return Err(Reason::NotAuthorized);
        }
        if self.mailbox.len() > self.settings.caps().online + MOST_RETAINED {
            // Filters that all match many retained messages would fill the memory.
            return Err(Reason::QuotaExceeded);
        }
        let options = Options {
            qos: asked.qos,
            no_local: asked.no_local,
            retain_as_published: asked.retain_as_published,
            subscription_id,
        };
        let elsewhere = self.node.used_elsewhere().subscriptions;
        let limit = self.settings.limits().subscriptions.saturating_sub(elsewhere);
        let is_new = !self.held.core.subscriptions.contains_key(asked.filter);
        let mut waits = self.holding.is_some();
        if let Some(holding) = &self.holding {
            if is_new && !self.node.router.has_room(limit) {
                return Err(Reason::QuotaExceeded);
            }
            let done = self.completion(GRANTED | number);
            self.node.sessions.subscribe(holding, asked.filter, Some(options), self.node.wall(), done);
        } else {
            self.node
                .router
                .subscribe(&request, &self.mailbox, options, false, limit)
                .map_err(|_| Reason::QuotaExceeded)?;
            let done = || self.completion(GRANTED | number);
            waits = !self.node.sessions.announce(&self.node, asked.filter, done);
        }
        let share: Option<Box<str>> = request.share.is_some().then(|| asked.filter.into());
        let sends_retained = match asked.retain_handling {
            // MQTT 5 section 4.8.2.
            _ if share.is_some() => false,
            RetainHandling::SendAlways => true,
            RetainHandling::SendIfNew => is_new,
            RetainHandling::DoNotSend => false,
        };
        let retained = sends_retained.then(|| (request.filter.clone(), options));
        self.held.core.subscriptions.insert(asked.filter.into(), request);
        Ok(Subscribed { waits, retained, share })
    }

    fn refuse_subscription(&self, filter: &str, reason: Reason) {
        let (client_id, user) = (self.client_id(), &*self.user.name);
        if reason == Reason::QuotaExceeded {
            self.node.counters.subscriptions_over_limit.add(1);
            let limit = self.settings.limits().subscriptions;
            notice!(
                self.node,
                subscription_limit,
                client_id,
                user,
                filter,
                "subscription refused: all {limit} subscriptions of the instance are in use"
            );
        } else {
            self.node.counters.subscriptions_refused.add(1);
            notice!(self.node, refused_subscribe, client_id, user, filter, "subscription refused: {reason}");
        }
    }
}

/// What became of one filter.
struct Subscribed {
    /// It is in force once the log has it.
    waits: bool,
    retained: Option<(Filter, Options)>,
    /// The shared subscription that it is, by its name.
    share: Option<Box<str>>,
}

fn granted(qos: QoS) -> Reason {
    match qos {
        QoS::AtMostOnce => Reason::Success,
        QoS::AtLeastOnce => Reason::GrantedQoS1,
        QoS::ExactlyOnce => Reason::GrantedQoS2,
    }
}
