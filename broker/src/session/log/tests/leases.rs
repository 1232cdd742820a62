//! What a peer says over a link, and this node's own end.

use std::collections::BTreeSet;

use futures_util::FutureExt as _;

use super::*;
use crate::{
    peers::{
        lease::Held,
        wire::{Lease, ReadOn},
    },
    session::log::Hearing,
};

const PEER: u64 = 7;

/// A node that has found out that there is one other, and has just passed a barrier.
async fn one_of_two(folder: &std::path::Path) -> (Arc<Node>, Hearing) {
    let log = EmbeddedLog::open(folder, EmbeddedOptions::default()).unwrap();
    let node = node_on(log, Outside::default(), Place { shared: true, ..PLACE }).await;
    let leases = &node.sessions.leases;
    leases.hold(Held::look);
    leases.hold(|held| held.list(BTreeSet::from([PEER])));
    leases.looked(leases.now());
    let hearing = Hearing::new(node.clone(), PEER);
    (node, hearing)
}

/// As far as the node has read, and `more` in the first partition.
fn positions(node: &Node, more: u64) -> Vec<u64> {
    let mut positions = node.sessions.positions();
    *positions.first_mut().unwrap() += more;
    positions
}

#[tokio::test]
async fn a_lease_counts_once_its_holder_has_read_as_far_as_its_giver_and_as_long_as_the_link_stands() {
    let folder = tempfile::tempdir().unwrap();
    let (node, mut hearing) = one_of_two(folder.path()).await;
    let (log, further) = (&node.sessions, positions(&node, 3));
    assert!(!log.knows_all(), "no lease is held");
    hearing.lease(Lease { asked: hearing.ask().unwrap(), positions: further.clone() });
    assert_eq!(hearing.next().now_or_never(), None);
    assert!(!log.knows_all(), "what was promised before is not read");
    assert_eq!(hearing.ask(), None, "it is not asked for again before");
    log.partitions[0].next.raise(further[0]);
    assert_eq!(hearing.next().now_or_never(), None);
    assert!(log.knows_all());
    drop(hearing);
    assert!(!log.knows_all(), "nothing is heard of the peer any more");
}

#[tokio::test]
async fn a_peer_hears_that_this_node_has_read_on_once_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let (node, mut hearing) = one_of_two(folder.path()).await;
    let further = positions(&node, 3);
    hearing.read_on(ReadOn { round: 5, positions: further.clone() }).unwrap();
    assert_eq!(hearing.next().now_or_never(), None);
    assert!(hearing.read_on(ReadOn { round: 6, positions: further.clone() }).is_err(), "5 is not answered");
    node.sessions.partitions[0].next.raise(further[0]);
    assert_eq!(hearing.next().now_or_never(), Some(5));
}

#[tokio::test]
async fn who_is_over_holds_no_lease_and_tells_of_no_subscription() {
    let folder = tempfile::tempdir().unwrap();
    let (node, mut hearing) = one_of_two(folder.path()).await;
    let log = &node.sessions;
    hearing.lease(Lease { asked: hearing.ask().unwrap(), positions: positions(&node, 0) });
    assert_eq!(hearing.next().now_or_never(), None);
    assert!(log.knows_all());
    log.end_here();
    assert!(!log.knows_all());
    let (done, outcome) = Completion::awaited();
    assert!(!log.is_known_or(|| done));
    assert!(outcome.await.is_err(), "somebody was told");
}
