//! Links between the nodes of a cluster: the fast way of what the relay passes on, beside the log.
//!
//! | part | is |
//! |---|---|
//! | [`outgoing`] | what goes by a link and what through the log, and what is done with: without input, output or a clock |
//! | [`incoming`] | what of it is new where it arrives |
//! | [`lease`] | whose word a node has that it misses no subscription, and whom a node asks before it tells of one |
//! | [`wire`] | what goes over a link |
//! | [`dial`], [`serve`] | its two ends: gRPC |
//! | [`settings`], [`tls`] | where nodes find each other, and how they know that it is they |

mod dial;
pub(crate) mod incoming;
pub(crate) mod lease;
pub(crate) mod outgoing;
mod serve;
pub(crate) mod settings;
#[cfg(test)]
mod tests;
pub(crate) mod tls;
pub(crate) mod wire;

use std::time::Duration;

pub(crate) use self::{
    dial::dial_all,
    serve::listen,
    settings::{Addresses, Current, Settings},
};

/// After this long without a word the other end is asked whether it is there, and given up when it does not answer.
const ASK_AFTER: Duration = Duration::from_secs(1);
const UNANSWERED: Duration = Duration::from_secs(2);
/// What may be on its way in a stream, above what [`outgoing`] lets.
const STREAM_WINDOW: u32 = 4 << 20;
