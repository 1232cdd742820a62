//! Who may try to come in, and how fast: what a node bears of clients that it does not know yet.
//!
//! Promises: each table here is bounded; nobody is turned away without a counter and a line in the log (once a second at
//! most); a flood of newcomers costs those who are in nothing but their share of the processor.

mod addresses;
mod failures;
mod half_open;
pub(crate) mod memory;
pub(crate) mod term;

use std::{net::SocketAddr, sync::Arc};

use self::{addresses::Addresses, failures::Failures, half_open::HalfOpen, memory::Memory};
pub(crate) use self::{
    addresses::Seat,
    failures::TooMany,
    half_open::{Evicted, Place},
};
use crate::limits::Rate;

/// As many connections may be on their way to CONNECT as may come in this many seconds.
const HALF_OPEN_SECONDS: u64 = 2;

#[derive(Debug, Default)]
pub(crate) struct Admission {
    /// Connections that are accepted.
    pub(crate) pace: Rate,
    pub(crate) memory: Memory,
    pub(crate) failures: Failures,
    pub(crate) addresses: Arc<Addresses>,
    half_open: Arc<HalfOpen>,
}

/// Somebody whose CONNECT has not been answered.
pub(crate) struct Newcomer {
    /// Where the device is, or what stands before it.
    pub(crate) peer: SocketAddr,
    /// Whom its certificate names, where that counts.
    pub(crate) user: Option<Box<str>>,
    /// Until CONNECT is here.
    pub(crate) place: Option<Place>,
    /// Among the connections of its address, once it is let in.
    pub(crate) seat: Option<Seat>,
}

impl Admission {
    /// Somebody has come. With it the one that had to give way, if it had to: the oldest of those whose CONNECT is awaited.
    pub(crate) fn meet(&self, peer: SocketAddr, connect_rate: u64) -> (Newcomer, bool) {
        let most = usize::try_from(connect_rate.saturating_mul(HALF_OPEN_SECONDS)).unwrap_or(usize::MAX);
        let (place, gave_way) = self.half_open.enter(most);
        (Newcomer { peer, user: None, place: Some(place), seat: None }, gave_way)
    }
}
