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
use crate::{limits::notice, outside::Mistake, router::Options};

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
    /// Filters that are not in force yet; then, what [`Step`] waits for.
    left: usize,
    step: Step,
    /// Whose retained messages are sent then.
    retained: Vec<(Filter, Options)>,
}

/// What an answer waits for, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// All is in force on this node.
    InForce,
    /// No other node routes without it.
    Active,
    /// Nothing that was retained before is missing here, and this node was not down meanwhile.
    Read,
}

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    pub(super) fn subscribe(&mut self, subscribe: &Subscribe<'_>, scratch: &mut Scratch) {
        // What this client published before must not find the subscription.
        self.hand_over(scratch);
        let number = self.asked.next;
        let (mut left, mut retained) = (0, Vec::new());
        let reasons: Vec<Reason> = subscribe
            .filters
            .iter()
            .map(|filter| match self.subscribe_one(filter, subscribe.subscription_id, number) {
                Ok(subscribed) => {
                    left += usize::from(subscribed.waits);
                    retained.extend(subscribed.retained);
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
        self.answer(
            Waiting { packet_id, is_subscribe: true, reasons, left, step: Step::InForce, retained },
            scratch,
        );
    }

    pub(super) fn unsubscribe(&mut self, unsubscribe: &Unsubscribe<'_>, scratch: &mut Scratch) {
        self.hand_over(scratch);
        let number = self.asked.next;
        let mut left = 0;
        let reasons: Vec<Reason> = unsubscribe
            .filters
            .iter()
            .map(|name| {
                let Some(filter) = self.held.core.subscriptions.remove(*name) else {
                    return Reason::NoSubscriptionExisted;
                };
                if let Some(holding) = &self.holding {
                    left += 1;
                    let done = self.completion(GRANTED | number);
                    self.node.sessions.subscribe(holding, name, None, self.node.wall(), done);
                } else {
                    self.node.router.unsubscribe(&filter, self.mailbox.key);
                }
                Reason::Success
            })
            .collect();
        let packet_id = unsubscribe.packet_id;
        let (retained, step) = (Vec::new(), Step::InForce);
        let waiting = Waiting { packet_id, is_subscribe: false, reasons, left, step, retained };
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

    /// One step of one is done.
    fn look(&mut self, number: u64, scratch: &mut Scratch) {
        let node = self.node.clone();
        let done = self.completion(GRANTED | number);
        let Some(waiting) = self.asked.waiting.get_mut(&number) else { return };
        let early = node.outside.makes(Mistake::SubackBeforeActive);
        if let Some(peers) = node.peers.as_ref().filter(|_| waiting.is_subscribe && !early) {
            waiting.left = 1;
            match waiting.step {
                Step::InForce => {
                    waiting.step = Step::Active;
                    let mark = self.holding.as_ref().map(|holding| {
                        (holding.partition, node.sessions.position(holding.partition))
                    });
                    return peers.activate(&node, mark, done);
                }
                Step::Active => {
                    waiting.step = Step::Read;
                    if !node.sessions.is_read_or(|| done) {
                        return;
                    }
                }
                Step::Read => {}
            }
        }
        if let Some(waiting) = self.asked.waiting.remove(&number) {
            self.tell(waiting, scratch);
        }
    }

    fn tell(&mut self, waiting: Waiting, scratch: &mut Scratch) {
        let Waiting { packet_id, is_subscribe, reasons, retained, .. } = waiting;
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
        for Delivery { message, qos, retain, subscription_ids } in logged {
            // A message of its own: that with this identifier may have come, and been finished.
            let copy = message.renamed(self.node.next_message_id());
            let recipients = vec![Recipient { sid: holding.sid, qos, retain, subscription_ids }];
            let (now, nobody) = (self.node.wall(), self.node.bridge.nobody());
            self.node.sessions.append_message(holding.partition, recipients, &copy, false, now, nobody);
        }
    }

    fn subscribe_one(
        &mut self,
        asked: &SubscribeFilter<'_>,
        subscription_id: Option<u32>,
        number: u64,
    ) -> Result<Subscribed, Reason> {
        let request = FilterRequest::parse(asked.filter).map_err(|_| Reason::TopicFilterInvalid)?;
        if !self.settings.allows_characters(request.filter.as_str(), true) {
            return Err(Reason::TopicFilterInvalid);
        }
        if !self.grants.may_subscribe(&request.filter) {
            return Err(Reason::NotAuthorized);
        }
        if request.share.is_some() {
            return Err(Reason::SharedSubscriptionsNotSupported);
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
        let limit = self.settings.limits().subscriptions;
        let is_new = !self.held.core.subscriptions.contains_key(asked.filter);
        if let Some(holding) = &self.holding {
            if is_new && !self.node.router.has_room(limit) {
                return Err(Reason::QuotaExceeded);
            }
            let done = self.completion(GRANTED | number);
            self.node.sessions.subscribe(holding, asked.filter, Some(options), self.node.wall(), done);
        } else {
            self.node
                .router
                .subscribe(&request.filter, &self.mailbox, options, None, limit)
                .map_err(|_| Reason::QuotaExceeded)?;
        }
        let sends_retained = match asked.retain_handling {
            RetainHandling::SendAlways => true,
            RetainHandling::SendIfNew => is_new,
            RetainHandling::DoNotSend => false,
        };
        let retained = sends_retained.then(|| (request.filter.clone(), options));
        self.held.core.subscriptions.insert(asked.filter.into(), request.filter);
        Ok(Subscribed { waits: self.holding.is_some(), retained })
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
}

fn granted(qos: QoS) -> Reason {
    match qos {
        QoS::AtMostOnce => Reason::Success,
        QoS::AtLeastOnce => Reason::GrantedQoS1,
        QoS::ExactlyOnce => Reason::GrantedQoS2,
    }
}
