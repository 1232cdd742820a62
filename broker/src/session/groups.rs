//! Shared subscriptions, as far as messages go: to the member that is chosen, and from one that leaves to another.

use std::sync::Arc;

use mqtt_proto::{
    codec::QoS,
    message::{Delivery, Message, MessageId},
};

use super::{
    log::{Holding, Queueing, recipient},
    mailbox::Mailbox,
};
use crate::{
    log::Completion,
    node::Node,
    router::{Recipient, fanout::Fanout, shared::Share},
};

/// Who may get a message of a shared subscription, and what is known of it.
#[derive(Clone, Copy)]
pub(crate) struct Handing<'a> {
    /// The client that published it.
    pub(crate) by: &'a str,
    /// Its name in the session log.
    pub(crate) mid: MessageId,
    /// Not the member with this mailbox key.
    pub(crate) without: u64,
    pub(crate) among: Among,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Among {
    /// Whoever is there; else who is away, and has its messages kept.
    All,
    /// This member alone, there or not.
    One(u64),
    /// Those in the session log whose device is there.
    LoggedAndThere,
}

/// What became of a message, with the mailbox key of the member that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// There is no such member.
    Nobody,
    /// It waits in a queue that ends with this process.
    Queued(u64),
    /// It has been appended to the session log.
    Appended(u64),
}

impl Node {
    /// Gives a message to one member. `done` is told once it is durable, if it was appended.
    pub(crate) fn hand(
        &self,
        share: &Share,
        message: &Arc<Message>,
        handing: Handing<'_>,
        fanout: &mut Fanout,
        done: impl FnOnce() -> Completion,
    ) -> Given {
        let settings = self.settings();
        let caps = settings.caps();
        let is_kept =
            |member: &Recipient| member.logged.is_some() && message.qos.min(member.qos) > QoS::AtMostOnce;
        let is_there = |member: &Recipient| match handing.among {
            Among::One(key) => member.mailbox.key == key,
            Among::LoggedAndThere if !is_kept(member) => false,
            _ => member.mailbox.key != handing.without && member.mailbox.is_reachable(),
        };
        let waits = |member: &Recipient| {
            handing.among == Among::All && member.mailbox.key != handing.without && is_kept(member)
        };
        let sharing = settings.config.session.sharing;
        // Whoever goes while it is given to is not there at the next look.
        for _ in 0..=share.members().len() {
            let away = || {
                if message.online_only { None } else { share.choose(sharing, handing.by, waits) }
            };
            let Some(member) = share.choose(sharing, handing.by, is_there).or_else(away) else { break };
            let key = member.mailbox.key;
            let recipient = recipient(member, message);
            if let (Some(recipient), Some(to)) = (recipient, member.logged) {
                let once = message.qos == QoS::ExactlyOnce;
                let to = Queueing { partition: to.partition, once, group: Some(&share.name) };
                let named = message.renamed(handing.mid);
                self.sessions.append_message(to, vec![recipient], &named, self.wall(), done());
                if member.mailbox.is_congested(caps) {
                    fanout.congested.push(member.mailbox.clone());
                }
                return Given::Appended(key);
            }
            if let (Some(boot), Some(relay)) = (member.mailbox.elsewhere(), &self.relay) {
                let named = Arc::new(message.renamed(handing.mid));
                relay.pass(&named, &[boot], Some(&share.name), self.wall(), done());
                return Given::Appended(key);
            }
            if fanout.hand(member, message, caps, &self.counters) {
                return Given::Queued(key);
            }
        }
        Given::Nobody
    }

    /// Gives to others what a member leaves behind that was in no log.
    pub(crate) fn hand_on(&self, left: impl IntoIterator<Item = Delivery>, without: u64) {
        let mut fanout = Fanout::default();
        for Delivery { message, share, qos, .. } in left {
            let share = share.and_then(|name| self.router.share(&name));
            let Some(share) = share.filter(|_| qos > QoS::AtMostOnce) else { continue };
            let mid = self.next_message_id();
            let handing = Handing { by: message.topic(), mid, without, among: Among::All };
            self.hand(&share, &message, handing, &mut fanout, || self.bridge.nobody());
        }
        fanout.wake();
    }

    /// A session whose device is there is no member any more: others get what waits for it. What was sent is its own.
    pub(crate) fn leave_share(
        self: &Arc<Self>,
        holding: Option<&Arc<Holding>>,
        mailbox: &Mailbox,
        name: &str,
    ) {
        let is_other = |member: &Recipient| member.mailbox.key != mailbox.key;
        let share = self.router.share(name);
        if !share.is_some_and(|share| share.members().iter().any(is_other)) {
            return;
        }
        let left = mailbox.take_shared(name);
        match holding {
            Some(holding) => self.sessions.pass_on_these(self, holding.logged(), &left),
            None => self.hand_on(left, mailbox.key),
        }
    }
}
