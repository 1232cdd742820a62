//! Claims: how this process run takes a client, for a connection or to end what is due. One takes effect where it stands in
//! the log, and is acted on when it was read back.

use std::{sync::Arc, sync::atomic::AtomicBool, time::Duration};

use mqtt_proto::{
    codec::QoS,
    durable::{
        record::{Inbound, Key, Name, Offset, Phase, Session, Value, Will},
        view::{Entry, Head},
    },
    message::{MessageId, Millis},
    topic::FilterRequest,
};
use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{Holding, SessionLog, State, Waiting};
use crate::{
    log::{AppendSink, Completion, Outcome},
    node::Node,
    outside::Mistake,
    session::Slot,
};

/// What a claim brings, at the moment at which it took effect.
pub(crate) struct Resumed {
    pub(crate) holding: Arc<Holding>,
    /// The session was there before.
    pub(crate) present: bool,
    /// What waits for its device, in order.
    pub(crate) queue: Vec<(Offset, Entry)>,
    /// What lies before this offset may have been sent to the device.
    pub(crate) sent_below: Offset,
    /// QoS 2 publishes that the device has not released.
    pub(crate) inbound: Vec<(u16, Inbound)>,
    pub(crate) filters: Vec<(Box<str>, FilterRequest)>,
}

/// What a connection's claim says.
#[derive(Clone)]
pub(crate) struct Online {
    pub(crate) resumes: bool,
    /// The session outlives the connection, or has outlived one. If not, the claim but says where the client is, and with
    /// which will.
    pub(crate) is_kept: bool,
    /// What must count for the client still.
    pub(crate) before: Option<MessageId>,
    pub(crate) user: Name,
    pub(crate) peer: Box<str>,
    pub(crate) protocol: u8,
    /// Seconds.
    pub(crate) expiry: u32,
    pub(crate) will: Option<Box<Will>>,
}

/// The log did not take the claim in time, or nobody knows whether it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClaimFailed;

/// A claim that was not read back so far.
pub(super) struct Pending {
    /// Told what it brings, or nothing if it is void.
    told: oneshot::Sender<Option<Resumed>>,
    holding: Arc<Holding>,
    slot: Arc<Slot>,
    /// Its session outlives the connection, so that what is for it comes through the log.
    is_kept: bool,
}

/// Forgets a claim that will not be read back; or that may be, too late.
struct ClaimSink {
    node: Arc<Node>,
    partition: u32,
    key: Key,
}

impl AppendSink for ClaimSink {
    fn appended(&self, _token: u64, outcome: Outcome) {
        if !matches!(outcome, Outcome::Durable(_)) {
            self.node.sessions.abandon(self.partition, &self.key);
        }
    }
}

impl SessionLog {
    /// Claims a client as `make` says, given what counts for the client and the claim's nonce; with nothing if it says nothing.
    /// The caller has the client's slot to itself.
    pub(crate) async fn claim(
        &self,
        node: &Arc<Node>,
        slot: &Arc<Slot>,
        (patience, is_kept): (Duration, bool),
        make: impl Fn(Option<&Head>, MessageId) -> Option<Session>,
    ) -> Result<Option<Resumed>, ClaimFailed> {
        let deadline = Instant::now() + patience;
        let client: Arc<str> = (&*slot.client_id).into();
        let partition = self.partition_of(&client);
        loop {
            let fresh = node.next_message_id();
            let shares_key = self.outside.makes(Mistake::SharedClaimKey);
            let nonce = if shares_key { MessageId { boot: 0, counter: 0 } } else { fresh };
            let key = Key::Session { nonce, client: (&*client).into() };
            let begun = self.with(partition, |state| {
                let mut session = Box::new(make(state.view.head(&client), fresh)?);
                session.generation = state.view.next_generation(&client, node.now());
                (session.sequence, session.won) = (0, false);
                (session.boot, session.node) = (self.boot, self.name.clone());
                let holding = Arc::new(Holding {
                    client: client.clone(),
                    partition,
                    sid: session.sid,
                    generation: session.generation,
                    nonce,
                    written: Mutex::new(session.clone()),
                    lost: AtomicBool::new(false),
                });
                let (told, hears) = oneshot::channel();
                let pending = Waiting::Claim(Pending { told, holding, slot: slot.clone(), is_kept });
                state.waiting.entry(key.clone()).or_default().push(pending);
                Some((session, hears))
            });
            let Some((session, hears)) = begun.flatten() else { return Ok(None) };
            let sink = Arc::new(ClaimSink { node: node.clone(), partition, key: key.clone() });
            let value = Value::Session(session);
            self.append(partition, &key, Some(value), node.wall(), Completion { sink, token: 0 });
            match timeout_at(deadline, hears).await {
                Ok(Ok(Some(resumed))) => return Ok(Some(resumed)),
                // Another claim came first.
                Ok(Ok(None)) if Instant::now() < deadline => {}
                Ok(Ok(None) | Err(_)) | Err(_) => {
                    self.abandon(partition, &key);
                    return Err(ClaimFailed);
                }
            }
        }
    }

    /// A connection's claim; nothing if something else counts for the client by now.
    pub(crate) async fn claim_online(
        &self,
        node: &Arc<Node>,
        slot: &Arc<Slot>,
        patience: Duration,
        terms: Online,
    ) -> Result<Option<Resumed>, ClaimFailed> {
        let make = |head: Option<&Head>, nonce: MessageId| {
            if head.map(|head| head.nonce) != terms.before {
                return None;
            }
            let resumed =
                head.filter(|head| terms.resumes && may_resume(&head.session, &terms.user, node.now()));
            let Online { user, peer, protocol, expiry, will, .. } = terms.clone();
            Some(Session {
                phase: Phase::Online,
                sid: resumed.map_or(nonce, |head| head.session.sid),
                since: node.now(),
                expires_at: 0,
                expiry,
                sent_below: 0,
                user,
                peer,
                protocol,
                will,
                ..blank(nonce)
            })
        };
        self.claim(node, slot, (patience, terms.is_kept), make).await
    }

    /// Ends a session that goes on otherwise.
    pub(crate) async fn claim_end(
        &self,
        node: &Arc<Node>,
        slot: &Arc<Slot>,
        patience: Duration,
    ) -> Result<(), ClaimFailed> {
        let make = |head: Option<&Head>, _| {
            let head = head.filter(|head| head.session.phase != Phase::Ended)?;
            let session = (*head.session).clone();
            Some(Session { phase: Phase::Ended, since: node.now(), will: None, ..session })
        };
        self.claim(node, slot, (patience, true), make).await.map(drop)
    }

    /// What was written last about a client, by this process run or another, while somebody has its slot.
    pub(crate) fn latest(&self, client: &str) -> Option<(MessageId, Box<Session>)> {
        let latest = |state: &mut State| {
            let head = state.view.head(client)?;
            let mine = state.holdings.get(client).filter(|holding| holding.nonce == head.nonce);
            let session = mine.map_or_else(|| head.session.clone(), |mine| mine.written.lock().clone());
            Some((head.nonce, session))
        };
        self.with(self.partition_of(client), latest).flatten()
    }

    /// The holding of a client that this process run holds.
    pub(crate) fn holding(&self, client: &str) -> Option<Arc<Holding>> {
        self.with(self.partition_of(client), |state| self.held(state, client)).flatten()
    }

    pub(super) fn held(&self, state: &State, client: &str) -> Option<Arc<Holding>> {
        let head = state.view.head(client).filter(|head| head.session.boot == self.boot)?;
        if let Some(mine) = state.holdings.get(client).filter(|mine| mine.nonce == head.nonce) {
            return Some(mine.clone());
        }
        // It was kept until its last writing was read back.
        Some(Arc::new(Holding {
            client: client.into(),
            partition: self.partition_of(client),
            sid: head.session.sid,
            generation: head.session.generation,
            nonce: head.nonce,
            written: Mutex::new(head.session.clone()),
            lost: AtomicBool::new(false),
        }))
    }

    fn abandon(&self, partition: u32, key: &Key) {
        self.with(partition, |state| state.waiting.remove(key));
    }

    /// A claim of this process run was read back.
    pub(super) fn claim_read(
        &self,
        node: &Node,
        state: &mut State,
        pending: Pending,
        former: Option<Former>,
    ) {
        let Pending { told, holding, slot, is_kept } = pending;
        let head = state.view.head(&holding.client).filter(|head| head.nonce == holding.nonce);
        let Some((phase, sid)) = head.map(|head| (head.session.phase, head.session.sid)) else {
            // Whoever waited for it asks anew.
            let _ = told.send(None);
            return;
        };
        if phase == Phase::Online {
            state.holdings.insert(holding.client.clone(), holding.clone());
        }
        if phase != Phase::Ended {
            self.adopt(node, state, &holding.client, Some(&slot));
        }
        let session = state.view.session(sid).map(|(_, session)| session);
        let all = || session.into_iter().filter(|_| !self.outside.makes(Mistake::ResumeWithoutQueue));
        let filters = session.into_iter().flat_map(|session| session.subscriptions());
        let resumed = Resumed {
            present: former.is_some_and(|former| former.sid == sid),
            // Each place in the queue goes to what is to be delivered there. What another member of a shared subscription is about
            // to have is as gone. What was found to be over the cap, and is not read to be gone by now, is not gone: another
            // node would deliver it, behind what comes after it. At QoS 2 it may go while it is under way, which must not be.
            queue: all()
                .flat_map(|session| {
                    session.queue().keys().copied().zip(session.in_order().into_iter().cloned())
                })
                .filter(|(_, entry)| {
                    let this = (sid, entry.mid);
                    let is_going = entry.qos == QoS::ExactlyOnce && state.dropping.contains(&this);
                    !is_going && !state.passing.contains(&this)
                })
                .collect(),
            sent_below: former.map_or(0, |former| match former.phase {
                Phase::Online => Offset::MAX,
                Phase::Offline | Phase::Ended => former.sent_below,
            }),
            inbound: all()
                .flat_map(|session| session.inbound())
                .map(|(packet_id, _, inbound)| (packet_id, inbound.clone()))
                .collect(),
            filters: filters
                .filter_map(|(name, _)| Some((name.into(), FilterRequest::parse(name).ok()?)))
                .collect(),
            holding,
        };
        let partition = resumed.holding.partition;
        let attaches = phase == Phase::Online && is_kept;
        if attaches {
            self.attach(partition, &slot.mailbox);
        }
        if told.send(Some(resumed)).is_err() && attaches {
            // It came too late for its connection; the sweep finds that nobody is there.
            self.detach(partition, &slot.mailbox, node.wall());
        }
    }
}

/// What counted for a client before a claim of it.
#[derive(Clone, Copy)]
pub(super) struct Former {
    pub(super) sid: MessageId,
    pub(super) phase: Phase,
    pub(super) sent_below: Offset,
}

/// Whether a user may go on with what counts for a client.
pub(crate) fn may_resume(session: &Session, user: &str, now: Millis) -> bool {
    let Session { phase, expires_at, user: owner, .. } = session;
    let lives = match phase {
        Phase::Online => true,
        Phase::Offline => *expires_at > now,
        Phase::Ended => false,
    };
    lives && ***owner == *user
}

/// A session of which nothing is known.
fn blank(nonce: MessageId) -> Session {
    Session {
        generation: 0,
        sequence: 0,
        won: false,
        phase: Phase::Ended,
        sid: nonce,
        boot: 0,
        since: 0,
        expires_at: 0,
        expiry: 0,
        sent_below: 0,
        node: Name::default(),
        user: Name::default(),
        peer: "".into(),
        protocol: 0,
        will: None,
    }
}
