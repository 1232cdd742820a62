//! What a device's trace tells of its connections: one function for each thing that can happen. None waits.
//!
//! On one client ID the order is: the former connection's end, what became of its session, the new connection, what
//! it resumed.

use std::{borrow::Cow, net::SocketAddr};

use mqtt_broker_api::trace::{Traced, TracedFilter};
use mqtt_proto::codec::{Reason, SubscribeFilter, Version};

use super::{closing::Close, handshake::Admitted};
use crate::node::Node;

/// Filters of one SUBSCRIBE that are listed.
const MOST_FILTERS: usize = 100;

/// How a client came, and upon what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) version: Version,
    pub(super) clean_start: bool,
    pub(super) session_present: bool,
    /// Seconds.
    pub(super) keep_alive: u16,
    /// The client ID had a connection.
    pub(super) was_online: bool,
    /// It had a session that would have outlived, or has outlived, its connection.
    pub(super) had_session: bool,
}

/// What became of what was there before.
pub(super) fn replaced(node: &Node, peer: SocketAddr, admitted: &Admitted) {
    let (taken_over, discarded) = fate(&admitted.arrival);
    let client_id = &admitted.held.slot.client_id;
    let address = readable(peer);
    if taken_over {
        tell(node, client_id, Traced::Takeovered { address });
    }
    if let Some(reason) = discarded {
        tell(node, client_id, Traced::Discarded { address, reason: reason.into() });
    }
}

/// Whether a connection was taken over, and why a session was dropped.
fn fate(arrival: &Arrival) -> (bool, Option<&'static str>) {
    let Arrival { clean_start, session_present, was_online, had_session, .. } = *arrival;
    if clean_start {
        (false, (was_online || had_session).then_some("the device connected with a clean session"))
    } else {
        (was_online, (had_session && !session_present).then_some("it was another user's"))
    }
}

/// It has been let in.
pub(super) fn came(node: &Node, peer: SocketAddr, admitted: &Admitted) {
    let Admitted { held, user, expiry, arrival, .. } = admitted;
    let client_id = &held.slot.client_id;
    tell(
        node,
        client_id,
        Traced::Connect {
            address: readable(peer),
            user: (&*user.name).into(),
            protocol: arrival.version.to_string().into(),
            clean_start: arrival.clean_start,
            session_present: arrival.session_present,
            session_expiry: *expiry,
            keep_alive: arrival.keep_alive,
        },
    );
    if arrival.session_present {
        let subscriptions = held.core.subscriptions.len();
        tell(node, client_id, Traced::Resumed { subscriptions, queued: held.slot.mailbox.len() });
    }
}

pub(super) fn subscribed(node: &Node, client_id: &str, asked: &[SubscribeFilter<'_>], answers: &[Reason]) {
    let filters = asked.iter().zip(answers).take(MOST_FILTERS).map(|(asked, answer)| {
        let refused = (answer.code() >= 0x80).then(|| answer.to_string().into());
        let qos = refused.is_none().then(|| answer.code());
        TracedFilter { filter: asked.filter.into(), qos, refused }
    });
    let more = asked.len().saturating_sub(MOST_FILTERS);
    tell(node, client_id, Traced::Subscribed { filters: filters.collect(), more });
}

pub(super) fn gone(node: &Node, client_id: &str, close: &Close) {
    let (code, reason) = ending(close);
    tell(node, client_id, Traced::Disconnect { code: code.map(Reason::code), reason });
}

/// Why a connection ended: as MQTT 5 says it, if anybody did, and for people.
fn ending(close: &Close) -> (Option<Reason>, Cow<'_, str>) {
    match close {
        Close::Gone => (None, "the device closed the connection without a goodbye".into()),
        Close::Socket(error) => (None, format!("the connection was lost: {error}").into()),
        Close::Goodbye { discard_will: true } => (Some(Reason::Success), "the device said goodbye".into()),
        Close::Goodbye { discard_will: false } => {
            (Some(Reason::DisconnectWithWill), "the device said goodbye and asked for its will".into())
        }
        said => match said.last_word() {
            Some((reason, why)) => (Some(reason), why.into()),
            None => (None, "the broker closed the connection".into()),
        },
    }
}

/// An IPv4 address as such on a listener for both kinds, too.
fn readable(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

fn tell(node: &Node, client_id: &str, what: Traced<'_>) {
    node.bridge.trace(node.boot, client_id, what, node.wall());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fate_of(
        clean_start: bool,
        was_online: bool,
        had_session: bool,
        session_present: bool,
    ) -> (bool, bool) {
        let version = Version::V5;
        let (taken_over, discarded) =
            fate(&Arrival { version, clean_start, session_present, keep_alive: 0, was_online, had_session });
        (taken_over, discarded.is_some())
    }

    #[test]
    fn a_clean_connection_discards_and_a_persistent_one_takes_over() {
        const NEITHER: (bool, bool) = (false, false);
        const TAKEN_OVER: (bool, bool) = (true, false);
        const DISCARDED: (bool, bool) = (false, true);
        assert_eq!(fate_of(true, false, false, false), NEITHER);
        assert_eq!(fate_of(false, false, false, false), NEITHER);
        assert_eq!(fate_of(true, false, true, false), DISCARDED);
        assert_eq!(fate_of(true, true, false, false), DISCARDED);
        assert_eq!(fate_of(true, true, true, false), DISCARDED);
        assert_eq!(fate_of(false, false, true, true), NEITHER, "it goes on");
        assert_eq!(fate_of(false, true, false, false), TAKEN_OVER);
        assert_eq!(fate_of(false, true, true, true), TAKEN_OVER);
        assert_eq!(fate_of(false, false, true, false), DISCARDED, "another user's");
        assert_eq!(fate_of(false, true, true, false), (true, true), "another user's");
    }

    #[test]
    fn an_end_is_told_in_words_and_with_the_code_that_was_said() {
        let check = |close: &Close, code: Option<u8>, words: &str| {
            let (reason, told) = ending(close);
            assert_eq!(reason.map(Reason::code), code, "{close:?}");
            assert!(told.contains(words), "{close:?}: {told}");
        };
        check(&Close::Gone, None, "without a goodbye");
        check(&Close::Goodbye { discard_will: true }, Some(0), "said goodbye");
        check(&Close::Goodbye { discard_will: false }, Some(4), "will");
        check(&Close::TakenOver, Some(0x8e), "connected again");
        check(&Close::KeepAlive, Some(0x8d), "keep alive");
        check(&Close::Refused("its user was removed"), Some(0x87), "user was removed");
        check(&Close::Violation(Reason::MalformedPacket, "a bad byte".into()), Some(0x81), "a bad byte");
        check(&Close::Expired, Some(0x98), "has expired");
        check(&Close::ShuttingDown, Some(0x8b), "stopping");
    }
}
