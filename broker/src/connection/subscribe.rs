//! SUBSCRIBE and UNSUBSCRIBE: one answer for each filter.

use mqtt_proto::{
    codec::{QoS, Reason, RetainHandling, Subscribe, SubscribeFilter, Unsubscribe},
    topic::FilterRequest,
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Connection, Scratch, trace};
use crate::{limits::notice, router::Options};

/// Retained messages that may wait for a client when it asks for more.
const MOST_RETAINED: usize = 10_000;

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    pub(super) fn subscribe(&mut self, subscribe: &Subscribe<'_>, scratch: &mut Scratch) {
        // What this client published before must not find the subscription.
        self.hand_over(scratch);
        let reasons: Vec<Reason> = subscribe
            .filters
            .iter()
            .map(|filter| match self.subscribe_one(filter, subscribe.subscription_id) {
                Ok(qos) => granted(qos),
                Err(reason) => {
                    self.refuse_subscription(filter.filter, reason);
                    reason
                }
            })
            .collect();
        trace::subscribed(&self.node, self.client_id(), &subscribe.filters, &reasons);
        self.session.subscribed(subscribe.packet_id, &reasons, &mut scratch.out);
    }

    pub(super) fn unsubscribe(&mut self, unsubscribe: &Unsubscribe<'_>, scratch: &mut Scratch) {
        self.hand_over(scratch);
        let reasons: Vec<Reason> = unsubscribe
            .filters
            .iter()
            .map(|filter| match self.held.core.subscriptions.remove(*filter) {
                Some(filter) => {
                    self.node.router.unsubscribe(&filter, self.mailbox.key);
                    Reason::Success
                }
                None => Reason::NoSubscriptionExisted,
            })
            .collect();
        self.session.unsubscribed(unsubscribe.packet_id, &reasons, &mut scratch.out);
    }

    fn subscribe_one(
        &mut self,
        asked: &SubscribeFilter<'_>,
        subscription_id: Option<u32>,
    ) -> Result<QoS, Reason> {
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
        self.node
            .router
            .subscribe(&request.filter, &self.mailbox, options, limit)
            .map_err(|_| Reason::QuotaExceeded)?;
        let is_new = !self.held.core.subscriptions.contains_key(asked.filter);
        let sends_retained = match asked.retain_handling {
            RetainHandling::SendAlways => true,
            RetainHandling::SendIfNew => is_new,
            RetainHandling::DoNotSend => false,
        };
        if sends_retained {
            self.mailbox.post_retained(self.node.router.retained(&request.filter, options, self.now));
        }
        self.held.core.subscriptions.insert(asked.filter.into(), request.filter);
        Ok(asked.qos)
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

fn granted(qos: QoS) -> Reason {
    match qos {
        QoS::AtMostOnce => Reason::Success,
        QoS::AtLeastOnce => Reason::GrantedQoS1,
        QoS::ExactlyOnce => Reason::GrantedQoS2,
    }
}
