//! Shared subscriptions, as far as messages go: to the member that is chosen, and from one that leaves to another.

use std::{sync::Arc, time::Duration};

use mqtt_proto::{
    codec::QoS,
    message::{Delivery, Message, MessageId},
};
use tokio::{sync::oneshot::Receiver, time::sleep};

use super::{
    log::{Holding, Queueing, recipient},
    mailbox::Mailbox,
};
use crate::{
    log::{Completion, Outcome},
    node::Node,
    router::{
        Recipient,
        fanout::Fanout,
        shared::{Share, id_for},
    },
};

/// Until what the log did not take is handed out again.
const RETRY: Duration = Duration::from_secs(1);

/// Who may get a message of a shared subscription, and what is known of it.
#[derive(Clone, Copy)]
pub(crate) struct Handing<'a> {
    /// The client that published it.
    pub(crate) by: &'a str,
    /// Its name in the session log, and on the way to another node.
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

/// A message that a member of this shared subscription is to get, by the name as in [`Handing`].
pub(crate) struct Left {
    pub(crate) name: Arc<str>,
    pub(crate) message: Arc<Message>,
    pub(crate) mid: MessageId,
}

/// How far it is with what is handed out.
enum Handed {
    Not(Vec<Left>),
    /// Of these it is not known so far whether they are durable; the others have a member, or there is none.
    Appended(Vec<(Left, Receiver<Outcome>)>),
}

/// Those that the log did not take.
async fn not_durable(appended: Vec<(Left, Receiver<Outcome>)>) -> Vec<Left> {
    let mut lost = Vec::new();
    for (left, outcome) in appended {
        if !matches!(outcome.await, Ok(Outcome::Durable(_))) {
            lost.push(left);
        }
    }
    lost
}

/// What became of a message, with the mailbox key of the member that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// There is no such member.
    Nobody,
    /// It waits in a queue that ends with this process, or had its turn there before.
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
                self.sessions.append_message(
                    to,
                    &[(&*member.mailbox, recipient)],
                    &named,
                    self.wall(),
                    done(),
                );
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
            // Another node may have passed it on to a member here before its publisher came here with it.
            if !self.is_new(message.qos, handing.mid) || fanout.hand(member, message, caps, &self.counters) {
                return Given::Queued(key);
            }
            self.relay.iter().for_each(|relay| relay.was_not_given(handing.mid));
        }
        Given::Nobody
    }

    /// Gives to others what a member leaves behind that was in no log.
    pub(crate) fn hand_on(self: &Arc<Self>, left: impl IntoIterator<Item = Delivery>, without: u64) {
        let left = left.into_iter().filter(|delivery| delivery.qos > QoS::AtMostOnce);
        let left = left.filter_map(|Delivery { message, share, qos, .. }| {
            let name = share?;
            let mid = match qos {
                // No other member has had it. Its publisher may send it again, and it must be found then.
                QoS::ExactlyOnce => {
                    let mid = id_for(&name, message.id);
                    self.relay.iter().for_each(|relay| relay.was_not_given(mid));
                    mid
                }
                // One may have had it, and get it back: then it must not count as done.
                _ => self.next_message_id(),
            };
            Some(Left { name, message, mid })
        });
        self.hand_out(left.collect(), without);
    }

    /// Gives to members what nobody waits for, and nothing else has: until one has it.
    pub(crate) fn hand_out(self: &Arc<Self>, left: Vec<Left>, without: u64) {
        if left.is_empty() {
            return;
        }
        let node = self.clone();
        let mut begun =
            if self.sessions.shared { Handed::Not(left) } else { self.hand_out_now(left, without) };
        if matches!(&begun, Handed::Appended(appended) if appended.is_empty()) {
            return;
        }
        self.outside.spawn(async move {
            loop {
                let left = match begun {
                    Handed::Not(left) => left,
                    Handed::Appended(appended) => {
                        let lost = not_durable(appended).await;
                        if lost.is_empty() {
                            return;
                        }
                        sleep(RETRY).await;
                        lost
                    }
                };
                // As for a publish: whoever is a member by now was told so, perhaps by another node.
                node.sessions.freshen().await;
                begun = node.hand_out_now(left, without);
            }
        });
    }

    fn hand_out_now(&self, left: Vec<Left>, without: u64) -> Handed {
        let mut fanout = Fanout::default();
        let mut appended = Vec::new();
        for left in left {
            let Some(share) = self.router.share(&left.name) else { continue };
            let by = left.message.topic();
            let handing = Handing { by, mid: left.mid, without, among: Among::All };
            let (done, outcome) = Completion::awaited();
            if let Given::Appended(_) = self.hand(&share, &left.message, handing, &mut fanout, || done) {
                appended.push((left, outcome));
            }
        }
        fanout.wake();
        Handed::Appended(appended)
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
