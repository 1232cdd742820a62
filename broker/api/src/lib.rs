//! The documents that a broker is steered by, and nothing else: plain serde types, how a large document comes in
//! parts, and how YAML files are read so that a mistake can be told with its line.
//!
//! The operator (or, on one machine, the `standalone` command) renders them; the broker parses them. Both
//! sides use these very types, so a drift between them does not compile.

pub mod acl;
pub mod admin;
pub mod config;
pub mod node;
pub mod shards;
pub mod topics;
pub mod trace;
pub mod yaml;

use sha2::{Digest as _, Sha256};

/// SHA-256 in lower-case hex.
fn sha256(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
