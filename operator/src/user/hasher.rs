//! Hashes of passwords for the documents of brokers: each is paid for once, also across restarts of the operator.
//!
//! Promises: passwords that people chose are kept as Argon2id, those that the operator generated as SHA-256 (nobody can
//! guess 256 random bits, however fast the hash); a hash that the document before has is not computed again.
//!
//! A salt comes from the password by a key that only the operator has, so an equal password has an equal salt, and the
//! hash with that salt is its own. Who has both the key and the document can guess passwords at the speed of SHA-256; but
//! who may read the key may read the Secrets of the passwords, too.

use std::collections::{HashMap, HashSet};

use argon2::{Algorithm, Argon2, Params, Version};
use hmac::{Hmac, KeyInit as _, Mac as _};
use mqtt_broker_api::acl::{AclDocument, Argon2id, PasswordHash};
use mqtt_operator_api::render::{self, Password};
use sha2::Sha256;

use super::password::is_generated;

/// New passwords to be hashed in one rendering: some seconds on one core, so that what else changed need not wait
/// longer.
pub const A_RENDERING: usize = 100;

const DIGEST_BYTES: usize = 32;

/// The operator's own key. It lies in a Secret beside the operator; with another one all passwords are hashed anew.
pub struct HashKey([u8; 32]);

impl HashKey {
    /// Of what its Secret holds; none if that is no key.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub fn random() -> Result<Self, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Self(key))
    }

    /// What its Secret is to hold.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn salt(&self, password: &Password<'_>) -> Option<[u8; 16]> {
        let mut mac = <Hmac<Sha256>>::new_from_slice(&self.0).ok()?;
        for part in [password.namespace, &password.secret.name, &password.secret.key] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac.update(password.value);
        mac.finalize().into_bytes().first_chunk().copied()
    }
}

/// Hashes the passwords of one rendering.
///
/// It blocks: some ten milliseconds for a new password, with 19 MiB of memory, one after the other. So render on a
/// thread that may block.
pub struct Hasher<'a> {
    key: &'a HashKey,
    /// By salt.
    known: HashMap<String, Argon2id>,
    /// Who has hashes in the document before.
    established: HashSet<&'a str>,
    left: usize,
}

impl<'a> Hasher<'a> {
    /// `before` is the last document that was rendered, or, after a start, the one that was applied. Users who have no
    /// hash in it wait for another rendering once `most` were hashed; all others would lose a password that is theirs, so
    /// they never wait.
    pub fn new(key: &'a HashKey, before: &'a AclDocument, most: usize) -> Self {
        let hashes = before.users.iter().flat_map(|user| &user.passwords);
        let known = hashes.filter_map(|hash| match hash {
            PasswordHash::Argon2id(hash) => Some((hash.salt.clone(), hash.clone())),
            PasswordHash::SaltedSha256 { .. } => None,
        });
        let established = before.users.iter().filter(|user| !user.passwords.is_empty());
        Self {
            key,
            known: known.collect(),
            established: established.map(|user| user.username.as_str()).collect(),
            left: most,
        }
    }

    /// The hash; none if it is left for another rendering, for want of memory, too.
    pub fn hash(&mut self, password: &Password<'_>) -> Option<PasswordHash> {
        let salt = self.key.salt(password)?;
        // What a person put in the place of a generated password is kept like any that a person chose.
        if password.generated && is_generated(password.value) {
            return Some(render::hash(salt, password.value));
        }
        let cost = Params::DEFAULT;
        let found = self.known.get(&hex(&salt)).filter(|hash| {
            (hash.memory_kib, hash.passes, hash.lanes) == (cost.m_cost(), cost.t_cost(), cost.p_cost())
        });
        if let Some(found) = found {
            return Some(PasswordHash::Argon2id(found.clone()));
        }
        if !self.established.contains(password.username) {
            self.left = self.left.checked_sub(1)?;
        }
        let mut digest = [0; DIGEST_BYTES];
        let (memory_kib, passes, lanes) = (cost.m_cost(), cost.t_cost(), cost.p_cost());
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, cost);
        argon2.hash_password_into(password.value, &salt, &mut digest).ok()?;
        let (salt, digest) = (hex(&salt), hex(&digest));
        let hash = Argon2id { memory_kib, passes, lanes, salt, digest };
        // Many users may name one Secret.
        self.known.insert(hash.salt.clone(), hash.clone());
        Some(PasswordHash::Argon2id(hash))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
