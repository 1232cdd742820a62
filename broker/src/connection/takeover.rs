//! Takes a client over for a connection: settles what is due of the connection before, claims the session in the log where it
//! is or will be there, and finds out what it goes on with.

use std::{net::SocketAddr, sync::Arc};

use mqtt_proto::{
    codec::Connect,
    durable::record::{Name, Phase, Session},
    message::MessageId,
    session::SessionState,
};
use tokio::time::{Instant, timeout};

use super::{
    handshake::{LOG_PATIENCE, Refused},
    will::Will,
};
use crate::{
    auth::User,
    log::LogError,
    node::Node,
    session::{
        Held,
        log::{Holding, Online, Resumed, delivery, gather, may_resume, publish_will},
        note::Note,
    },
};

/// A client that was taken for this connection.
pub(super) struct Taken {
    pub(super) holding: Option<Arc<Holding>>,
    /// As in [`super::handshake::Admitted::marker`].
    pub(super) marker: Option<Arc<Holding>>,
    pub(super) state: SessionState,
    pub(super) present: bool,
    pub(super) had_session: bool,
}

/// Takes the client over, in the log if its session is or will be there, for a connection that has it here.
pub(super) async fn take_session(
    node: &Arc<Node>,
    held: &mut Held,
    connect: &Connect<'_>,
    user: &User,
    expiry: u32,
    will: Option<&Will>,
    peer: SocketAddr,
) -> Result<Taken, Refused> {
    let slot = held.slot.clone();
    let client_id = &*slot.client_id;
    let deadline = Instant::now() + LOG_PATIENCE;
    let (resumed, had_session, resumes) = loop {
        let former = node.sessions.latest(client_id);
        let lives = former.as_ref().filter(|(_, former)| former.phase != Phase::Ended);
        let resumes = !connect.clean_start
            && lives.is_some_and(|(_, former)| may_resume(former, &user.name, node.now()));
        let had_session = lives.is_some();
        if let Some((nonce, former)) = &former {
            settle_will(node, client_id, former, *nonce, resumes).await?;
        }
        if expiry == 0 && !resumes && !node.sessions.shared {
            if had_session {
                node.sessions.claim_end(node, &slot, LOG_PATIENCE).await?;
            }
            break (None, had_session, false);
        }
        let terms = Online {
            resumes,
            is_kept: expiry > 0 || resumes,
            before: former.map(|(nonce, _)| nonce),
            user: Name::new((&*user.name).into()),
            peer: peer.to_string().into(),
            protocol: connect.version as u8,
            expiry,
            will: will.map(|will| Box::new(will.logged())),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if let Some(resumed) = node.sessions.claim_online(node, &slot, left, terms).await? {
            break (Some(resumed), had_session, resumes);
        }
        // Another node came first: what is due now is another will, and maybe another session goes on.
    };
    let resumed = match resumed {
        Some(resumed) if expiry > 0 || resumes => resumed,
        marker => {
            let left = held.core.discard(&slot.mailbox, &node.router);
            node.hand_on(left, slot.mailbox.key);
            return Ok(Taken {
                holding: None,
                marker: marker.map(|marker| marker.holding),
                state: SessionState::default(),
                present: false,
                had_session,
            });
        }
    };
    let present = resumed.present;
    let holding = resumed.holding.clone();
    let state = match timeout(LOG_PATIENCE, restore(node, held, resumed)).await {
        Ok(Ok(state)) => state,
        Ok(Err(_)) | Err(_) => {
            // It is not served after all.
            super::closing::leave_logged(node, held, &holding, None);
            return Err(Refused::LogAway);
        }
    };
    for name in held.core.revoke(&held.slot.mailbox, &node.router, &user.grants(client_id)) {
        // A grant may have gone while nobody could act on the session.
        node.sessions.subscribe(&holding, &name, None, node.wall(), node.bridge.nobody());
        node.leave_share(Some(&holding), &held.slot.mailbox, &name);
    }
    held.core.shares().for_each(|name| gather(node, name));
    Ok(Taken { holding: Some(holding), marker: None, state, present, had_session })
}

/// Publishes the will of the connection before, unless it waits and the session goes on.
async fn settle_will(
    node: &Arc<Node>,
    client_id: &str,
    former: &Session,
    nonce: MessageId,
    resumes: bool,
) -> Result<(), Refused> {
    let Some(will) = &former.will else { return Ok(()) };
    let is_due = match former.phase {
        Phase::Online => will.delay == 0,
        Phase::Offline | Phase::Ended => will.due_at.is_some_and(|at| at <= node.now()),
    };
    if (is_due || !resumes) && !publish_will(node, client_id, former, will, nonce).await {
        return Err(Refused::LogAway);
    }
    Ok(())
}

/// What the session goes on with: subscriptions, unreleased publishes, and messages that wait or are under way.
async fn restore(node: &Node, held: &mut Held, resumed: Resumed) -> Result<SessionState, LogError> {
    let Resumed { holding, queue, sent_below, inbound, filters, .. } = resumed;
    held.core.subscriptions = filters.into_iter().collect();
    let mut former = std::mem::take(&mut held.core.notes);
    held.core.notes = inbound
        .into_iter()
        .map(|(packet_id, inbound)| {
            let known = former.remove(&packet_id).filter(|note| note.inbound.mid == inbound.mid);
            let (routed, shared) = known.map_or_else(Default::default, |note| (note.routed, note.shared));
            (packet_id, Note { inbound, routed, shared })
        })
        .collect();
    let received =
        queue.iter().filter_map(|(_, entry)| Some((entry.received?, entry.mid))).collect::<Vec<_>>();
    let waits: Vec<_> = queue.into_iter().filter(|(_, entry)| entry.received.is_none()).collect();
    let mut bodies = node.sessions.bodies(holding.partition, holding.sid, &waits).await?;
    let (mut sent, mut unsent) = (Vec::new(), Vec::new());
    // What was sent before it was written stands where it was written; what is before that came before, too.
    let sent_first = waits.iter().rfind(|(_, entry)| entry.maybe_sent).map(|(order, _)| order + 1);
    let sent_below = sent_below.max(sent_first.unwrap_or(0));
    for (order, entry) in waits {
        let Some(message) = bodies.remove(&entry.mid) else { continue };
        let to = if order < sent_below { &mut sent } else { &mut unsent };
        to.push(delivery(&entry, message));
    }
    held.slot.mailbox.prepend(unsent);
    Ok(SessionState::restore(received, sent))
}
