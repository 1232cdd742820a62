//! Sessions that outlive the process: what is written about them, and what the writings amount to.
//!
//! One compacted log topic holds all sessions, partitioned by client ID. [`record`] is what a record of it says and how its
//! bytes lie; [`view`] is the state that the records of one partition amount to, the same for every reader, and [`runs`] what they
//! tell of the process runs that wrote them. Nothing here
//! reads a log or a clock: who writes what, and when it may act on it, is the broker's business.
//!
//! What the log gives: a record once durable is seen by every reader in the same order; the records of one writer keep theirs;
//! any record may show twice, within one writer as 1 2 3 2 3; compaction removes a record once a later one has its key. There
//! is no conditional write. The order of the log takes its place: of two claims of a client with the same generation the
//! first one counts, for every reader.

mod bytes;
pub mod record;
#[cfg(test)]
mod record_tests;
pub mod runs;
mod value;
pub mod view;
