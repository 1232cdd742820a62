//! Who may connect and what each user may do: the full set, rendered from all users and grants.
//!
//! What is left out when it is written says the same as its default: a document's hash depends on that.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AclDocument {
    /// Rises with every change.
    pub generation: u64,
    /// Connections without credentials act as this user; absent: they are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous_user: Option<String>,
    pub users: Vec<AclUser>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AclUser {
    pub username: String,
    /// Any of them is accepted (two while a password is rotated); none: no login with credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passwords: Vec<PasswordHash>,
    /// Client IDs this user may connect with, `*` standing for any run of characters; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub client_ids: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// How a password is kept. Never the password itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum PasswordHash {
    /// SHA-256 over salt then password, all hex: for generated 256-bit passwords, and for documents that
    /// never leave the process that rendered them.
    #[serde(rename_all = "camelCase")]
    SaltedSha256 { salt: String, digest: String },
    /// Argon2id (RFC 9106), version 0x13: for passwords that people chose.
    Argon2id(Argon2id),
}

/// An Argon2id hash with what it was made with. Brokers refuse a document in which it asks for more than
/// [`Argon2id::MOST_MEMORY_KIB`], [`Argon2id::MOST_PASSES`] or [`Argon2id::MOST_LANES`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Argon2id {
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
    /// Hex, 8 to 64 bytes.
    pub salt: String,
    /// Hex, 16 to 64 bytes.
    pub digest: String,
}

impl Argon2id {
    pub const MOST_MEMORY_KIB: u32 = 64 * 1024;
    pub const MOST_PASSES: u32 = 10;
    pub const MOST_LANES: u32 = 4;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    pub action: Action,
    /// A topic filter; `${clientId}` and `${username}` stand for the connection's own.
    pub filter: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Pub,
    Sub,
    PubSub,
}
