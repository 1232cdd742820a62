//! Passwords as a document keeps them, ready to be compared with what a device gives.
//!
//! Promises: no hash asks for more memory or time than the bounds that the document's type states; nothing here prints a
//! password or a hash.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
};

use argon2::{Algorithm, Argon2, Params, Version};
use hmac::{Hmac, KeyInit, Mac};
use mqtt_broker_api::acl::{Argon2id, PasswordHash};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

/// How many wrong passwords are known for a hash whose right one has not been seen yet.
const WRONG_KNOWN: usize = 8;

/// Of a user name and a password, under a key that only this process run has: it tells logins apart, and is worth
/// nothing outside.
pub(super) type Fingerprint = [u8; 32];

/// The key of [`Fingerprint`]s.
pub(super) struct Key([u8; 32]);

impl Key {
    pub(super) fn random() -> Result<Key, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Key(key))
    }

    pub(super) fn fingerprint(&self, username: &str, password: &[u8]) -> Fingerprint {
        // HMAC takes keys of any length.
        let Ok(mac) = <Hmac<Sha256>>::new_from_slice(&self.0) else { return [0; 32] };
        let length = (username.len() as u64).to_be_bytes();
        mac.chain_update(length).chain_update(username).chain_update(password).finalize().into_bytes().into()
    }
}

/// A password that a user may log in with.
pub(super) enum Password {
    /// Compared at once.
    Fast {
        salt: Vec<u8>,
        digest: Vec<u8>,
    },
    Slow(Arc<Slow>),
}

impl Password {
    /// Or what is wrong with the hash.
    pub(super) fn compile(hash: &PasswordHash) -> Result<Password, String> {
        let hex = |text: &str| unhex(text).ok_or_else(|| "a password hash is not hexadecimal".to_owned());
        Ok(match hash {
            PasswordHash::SaltedSha256 { salt, digest } => {
                Password::Fast { salt: hex(salt)?, digest: hex(digest)? }
            }
            PasswordHash::Argon2id(hash) => {
                let (salt, digest) = (hex(&hash.salt)?, hex(&hash.digest)?);
                Password::Slow(Arc::new(Slow::compile(hash, salt, digest)?))
            }
        })
    }

    pub(super) fn slow(&self) -> Option<&Arc<Slow>> {
        if let Password::Slow(slow) = self { Some(slow) } else { None }
    }

    pub(super) fn slow_mut(&mut self) -> Option<&mut Arc<Slow>> {
        if let Password::Slow(slow) = self { Some(slow) } else { None }
    }
}

/// An Argon2id hash, with what this process has learnt about it.
///
/// A hash accepts one password. Once that was seen, the answer for any other is known, too, and nothing is ever computed
/// again.
pub(super) struct Slow {
    argon2: Argon2<'static>,
    salt: Vec<u8>,
    digest: Vec<u8>,
    right: OnceLock<Fingerprint>,
    wrong: Mutex<VecDeque<Fingerprint>>,
}

impl Slow {
    fn compile(hash: &Argon2id, salt: Vec<u8>, digest: Vec<u8>) -> Result<Slow, String> {
        let most = |what: &str, value: u32, most: u32| {
            if value > most {
                return Err(format!("a password hash asks for {value} {what}, and may for {most} at most"));
            }
            Ok(())
        };
        most("KiB of memory", hash.memory_kib, Argon2id::MOST_MEMORY_KIB)?;
        most("passes", hash.passes, Argon2id::MOST_PASSES)?;
        most("lanes", hash.lanes, Argon2id::MOST_LANES)?;
        if !(8..=64).contains(&salt.len()) || !(16..=64).contains(&digest.len()) {
            let (salt, digest) = (salt.len(), digest.len());
            return Err(format!(
                "a password hash has a salt of {salt} bytes and a digest of {digest}; 8 to 64 and 16 to 64 are allowed"
            ));
        }
        let params = Params::new(hash.memory_kib, hash.passes, hash.lanes, Some(digest.len()))
            .map_err(|error| format!("a password hash can't be computed: {error}"))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        Ok(Slow { argon2, salt, digest, right: OnceLock::new(), wrong: Mutex::default() })
    }

    /// Whether this is its password, if that is known.
    pub(super) fn knows(&self, fingerprint: &Fingerprint) -> Option<bool> {
        match self.right.get() {
            Some(right) => Some(same(right, fingerprint)),
            None => self.wrong.lock().iter().any(|wrong| same(wrong, fingerprint)).then_some(false),
        }
    }

    /// Finds out, in some ten milliseconds and much memory; the answer is known from then on. Blocks.
    pub(super) fn compute(&self, password: &[u8], fingerprint: &Fingerprint) -> Result<bool, argon2::Error> {
        let mut given = vec![0; self.digest.len()];
        self.argon2.hash_password_into(password, &self.salt, &mut given)?;
        let right = same(&given, &self.digest);
        if right {
            // Its one password can be known already.
            let _ = self.right.set(*fingerprint);
        } else {
            let mut wrong = self.wrong.lock();
            if wrong.len() == WRONG_KNOWN {
                wrong.pop_front();
            }
            wrong.push_back(*fingerprint);
        }
        Ok(right)
    }

    /// The same hash, whatever is known of it.
    pub(super) fn is(&self, other: &Slow) -> bool {
        self.argon2.params() == other.argon2.params()
            && self.salt == other.salt
            && self.digest == other.digest
    }
}

/// Whether it is the password of the SHA-256 over salt and it.
pub(super) fn is_fast(salt: &[u8], digest: &[u8], password: &[u8]) -> bool {
    same(&Sha256::new().chain_update(salt).chain_update(password).finalize(), digest)
}

/// Compares in constant time, so that an answer's delay tells nothing.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
