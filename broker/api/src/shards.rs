//! The ACL document in parts that each fit into a ConfigMap, and the parts put together again.
//!
//! Promises: parts make a document only if all of one document are there, unchanged; `join` of `split` is the
//! document. A user with many rules may stand in several parts, one after the other.

use serde::{Deserialize, Serialize};

use crate::acl::{AclDocument, AclUser, Rule};

/// Bytes of a part's JSON that leave room in a ConfigMap, which takes 1 MiB.
pub const SHARD_BYTES: usize = 900 * 1024;

/// One part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AclShard {
    /// The document's.
    pub generation: u64,
    /// The document's [`hash`].
    pub hash: String,
    pub shard: Place,
    /// The document's, in every part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous_user: Option<String>,
    /// The first may go on with the rules of the last one of the part before; it has nothing but its name and rules
    /// then.
    pub users: Vec<AclUser>,
}

/// Which part it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Place {
    /// From 0.
    pub index: u32,
    /// How many parts there are.
    pub of: u32,
}

/// One user, without rules or with one of them, is larger than a part may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("user {username:?} does not fit into {limit} bytes; shorten its client IDs and filters")]
pub struct TooLarge {
    pub username: String,
    pub limit: usize,
}

/// Why parts make no document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error("there are no shards")]
    None,
    #[error("the shards of generation {0} and generation {1} are of two documents")]
    Mixed(u64, u64),
    #[error("shard {index} of {of} of generation {generation} is missing")]
    Missing { generation: u64, index: u32, of: u32 },
    #[error("shard {index} of {of} of generation {generation} is there twice")]
    Twice { generation: u64, index: u32, of: u32 },
    #[error("shard {index} of {of} of generation {generation} can't be: they count from 0")]
    Beyond { generation: u64, index: u32, of: u32 },
    #[error(
        "the shards of generation {generation} are not what was written: their hash is {actual}, not {wanted}"
    )]
    Hash { generation: u64, wanted: String, actual: String },
}

/// The SHA-256 of the document's canonical form, in lower-case hex. That form is its JSON as these types write it:
/// without spaces, fields in their order, and without what has its default.
pub fn hash(document: &AclDocument) -> String {
    // Plain structs of text and numbers can always be written.
    let canonical = serde_json::to_vec(document).unwrap_or_default();
    crate::sha256(canonical)
}

/// Cuts a document into parts whose JSON has `limit` bytes at most. User names must differ.
pub fn split(document: &AclDocument, limit: usize) -> Result<Vec<AclShard>, TooLarge> {
    let empty = AclShard {
        generation: document.generation,
        hash: hash(document),
        shard: Place { index: u32::MAX, of: u32::MAX },
        anonymous_user: document.anonymous_user.clone(),
        users: Vec::new(),
    };
    let mut cut = Cut { room: limit.saturating_sub(length(&empty)), used: 0, shards: Vec::new(), empty };
    cut.shards.push(cut.empty.clone());
    for user in &document.users {
        cut.add_user(user).map_err(|Full| TooLarge { username: user.username.clone(), limit })?;
    }
    let mut shards = cut.shards;
    let of = u32::try_from(shards.len()).unwrap_or(u32::MAX);
    for (shard, index) in shards.iter_mut().zip(0..) {
        shard.shard = Place { index, of };
    }
    Ok(shards)
}

/// Puts the parts together, in whatever order they come.
pub fn join(mut shards: Vec<AclShard>) -> Result<AclDocument, JoinError> {
    shards.sort_by_key(|shard| shard.shard.index);
    let Some(first) = shards.first() else { return Err(JoinError::None) };
    let AclShard { generation, hash: wanted, shard: Place { of, .. }, anonymous_user, .. } = first.clone();
    let of_one = |other: &AclShard| {
        (other.generation, &other.hash, other.shard.of, &other.anonymous_user)
            == (generation, &wanted, of, &anonymous_user)
    };
    if let Some(other) = shards.iter().find(|other| !of_one(other)) {
        return Err(JoinError::Mixed(generation.min(other.generation), generation.max(other.generation)));
    }
    let mut expected = 0;
    for index in shards.iter().map(|shard| shard.shard.index) {
        if index >= of {
            return Err(JoinError::Beyond { generation, index, of });
        } else if index < expected {
            return Err(JoinError::Twice { generation, index, of });
        } else if index > expected {
            return Err(JoinError::Missing { generation, index: expected, of });
        }
        expected += 1;
    }
    if expected < of {
        return Err(JoinError::Missing { generation, index: expected, of });
    }
    let mut users: Vec<AclUser> = Vec::new();
    for mut part in shards.into_iter().map(|shard| shard.users.into_iter()) {
        if let (Some(last), Some(first)) = (users.last_mut(), part.as_slice().first())
            && last.username == first.username
        {
            last.rules.extend(part.next().into_iter().flat_map(|user| user.rules));
        }
        users.extend(part);
    }
    let document = AclDocument { generation, anonymous_user, users };
    let actual = hash(&document);
    if actual == wanted { Ok(document) } else { Err(JoinError::Hash { generation, wanted, actual }) }
}

/// The parts so far; the last one is being filled.
struct Cut {
    empty: AclShard,
    /// Bytes that users may take in a part.
    room: usize,
    /// Bytes that the last part's users take, or some more.
    used: usize,
    shards: Vec<AclShard>,
}

/// Not even an empty part takes it.
struct Full;

/// What `"rules":[]` and its comma take.
const RULES_BYTES: usize = 11;

impl Cut {
    fn add_user(&mut self, user: &AclUser) -> Result<(), Full> {
        let head = AclUser { rules: Vec::new(), ..user.clone() };
        self.begin(head)?;
        for rule in &user.rules {
            self.add_rule(&user.username, rule)?;
        }
        Ok(())
    }

    /// Puts a user in, without rules so far.
    fn begin(&mut self, user: AclUser) -> Result<(), Full> {
        let bytes = length(&user) + RULES_BYTES + 1;
        if self.used + bytes > self.room && self.used > 0 {
            self.next();
        }
        if self.used + bytes > self.room {
            return Err(Full);
        }
        self.used += bytes;
        self.users().push(user);
        Ok(())
    }

    /// Adds to the user that was put in last.
    fn add_rule(&mut self, username: &str, rule: &Rule) -> Result<(), Full> {
        let bytes = length(rule) + 1;
        if self.used + bytes > self.room {
            self.next();
            let username = username.to_owned();
            self.begin(AclUser {
                username,
                passwords: Vec::new(),
                client_ids: Vec::new(),
                rules: Vec::new(),
            })?;
        }
        if self.used + bytes > self.room {
            return Err(Full);
        }
        self.used += bytes;
        self.users().last_mut().ok_or(Full)?.rules.push(rule.clone());
        Ok(())
    }

    fn next(&mut self) {
        self.used = 0;
        self.shards.push(self.empty.clone());
    }

    fn users(&mut self) -> &mut Vec<AclUser> {
        // There is always a last one.
        match self.shards.last_mut() {
            Some(shard) => &mut shard.users,
            None => &mut self.empty.users,
        }
    }
}

/// Bytes of its JSON.
fn length(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX / 2, |json| json.len())
}

#[cfg(test)]
#[path = "shards_tests.rs"]
mod tests;
