//! MQTT 3.1, 3.1.1 and 5.0 without input or output: packets and ticks go in, packets and effects come out.
//!
//! Nothing here reads a clock, opens a socket or starts a task; time is an argument. Whatever comes from a
//! socket or a file is parsed into a type that can't be wrong ([`topic::Topic`], [`topic::Filter`], …).

pub mod acl;
pub mod codec;
pub mod durable;
mod level_tree;
pub mod message;
pub mod murmur2;
pub mod retained;
pub mod session;
pub mod template;
pub mod topic;
pub mod trie;

#[cfg(test)]
mod test_random;
