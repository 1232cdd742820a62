//! Hands a run of messages to their recipients: one lock a recipient and run, one wake-up a recipient and batch.

use std::{sync::Arc, task::Waker};

use mqtt_proto::message::Message;

use super::{Recipient, Route};
use crate::{
    counters::Counters,
    session::mailbox::{Caps, Mailbox},
};

/// Gathers messages of one publisher until they are flushed. Order is kept: a run ends where the route changes.
#[derive(Default)]
pub(crate) struct Fanout {
    route: Option<Arc<Route>>,
    run: Vec<Arc<Message>>,
    wake: Vec<Waker>,
    /// Recipients whose queues are over their bound: the publisher should wait for them.
    pub(crate) congested: Vec<Arc<Mailbox>>,
}

impl Fanout {
    pub(crate) fn push(
        &mut self,
        route: &Arc<Route>,
        message: Arc<Message>,
        caps: Caps,
        counters: &Counters,
    ) {
        if route.recipients.is_empty() {
            return;
        }
        if self.route.as_ref().is_some_and(|current| !Arc::ptr_eq(current, route)) {
            self.flush(caps, counters);
        }
        self.route.get_or_insert_with(|| route.clone());
        self.run.push(message);
    }

    /// Leaves what was gathered in the mailboxes. Recipients are woken by [`Fanout::wake`].
    pub(crate) fn flush(&mut self, caps: Caps, counters: &Counters) {
        let Some(route) = self.route.take() else { return };
        for recipient in &route.recipients {
            let posted = recipient.mailbox.post(recipient, &self.run, caps, &mut self.wake);
            if posted.dropped > 0 {
                counters.queue_full_drops.add(posted.dropped as u64);
            }
            if posted.congested {
                self.congested.push(recipient.mailbox.clone());
            }
        }
        self.run.clear();
    }

    /// Leaves one message with the member of a shared subscription that was chosen for it; false if that is not there any
    /// more.
    pub(crate) fn hand(
        &mut self,
        to: &Recipient,
        message: &Arc<Message>,
        caps: Caps,
        counters: &Counters,
    ) -> bool {
        let posted = to.mailbox.post(to, std::slice::from_ref(message), caps, &mut self.wake);
        counters.queue_full_drops.add(posted.dropped as u64);
        if posted.congested {
            self.congested.push(to.mailbox.clone());
        }
        !posted.absent
    }

    /// Who is to be woken with those who got something.
    pub(crate) fn wakes(&mut self) -> &mut Vec<Waker> {
        &mut self.wake
    }

    pub(crate) fn wake(&mut self) {
        self.wake.drain(..).for_each(Waker::wake);
    }
}
