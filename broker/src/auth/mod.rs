//! Who may connect, and as whom. What a user may do then is decided by `mqtt_proto::acl`.

use std::{collections::HashMap, sync::Arc};

use mqtt_broker_api::acl::{AclDocument, AclUser, Action, PasswordHash};
use mqtt_proto::{
    acl::{Grants, RuleTemplate},
    topic::client_id_matches,
};
use sha2::{Digest, Sha256};

/// All users, ready to decide.
#[derive(Debug, Default)]
pub(crate) struct Access {
    users: HashMap<Box<str>, Arc<User>>,
    anonymous: Option<Arc<User>>,
}

#[derive(Debug)]
pub(crate) struct User {
    pub(crate) name: Box<str>,
    rules: Vec<RuleTemplate>,
    passwords: Vec<Password>,
    client_ids: Vec<Box<str>>,
}

struct Password {
    salt: Vec<u8>,
    digest: Vec<u8>,
}

/// Why a connection may not act as anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoginError {
    #[error("unknown user or wrong password")]
    BadCredentials,
    #[error("no credentials, and the instance has no anonymous user")]
    NoCredentials,
    #[error("the user may not connect with this client ID")]
    ClientIdNotAllowed,
}

impl Access {
    /// Each problem is one line that names the user and the rule.
    pub(crate) fn compile(document: &AclDocument) -> Result<Access, Vec<String>> {
        let mut problems = Vec::new();
        let users: HashMap<Box<str>, Arc<User>> = document
            .users
            .iter()
            .map(|user| (user.username.as_str().into(), Arc::new(User::compile(user, &mut problems))))
            .collect();
        let anonymous = document.anonymous_user.as_deref().and_then(|name| users.get(name).cloned());
        if problems.is_empty() { Ok(Access { users, anonymous }) } else { Err(problems) }
    }

    /// Who a connection with these credentials is.
    pub(crate) fn login(
        &self,
        username: Option<&str>,
        password: Option<&[u8]>,
        client_id: &str,
    ) -> Result<Arc<User>, LoginError> {
        let user = match (username, password) {
            (None, None) => self.anonymous.as_ref().ok_or(LoginError::NoCredentials)?,
            (Some(name), Some(password)) => self
                .users
                .get(name)
                .filter(|user| user.passwords.iter().any(|known| known.is(password)))
                .ok_or(LoginError::BadCredentials)?,
            _ => return Err(LoginError::BadCredentials),
        };
        if !user.may_use(client_id) {
            return Err(LoginError::ClientIdNotAllowed);
        }
        Ok(user.clone())
    }

    pub(crate) fn user(&self, name: &str) -> Option<&Arc<User>> {
        self.users.get(name)
    }

    /// The user as it is now, if it still may have this connection.
    pub(crate) fn still(&self, name: &str, anonymous: bool, client_id: &str) -> Option<Arc<User>> {
        let user = if anonymous {
            self.anonymous.as_ref().filter(|user| &*user.name == name)
        } else {
            self.users.get(name)
        };
        user.filter(|user| user.may_use(client_id)).cloned()
    }
}

impl User {
    fn compile(user: &AclUser, problems: &mut Vec<String>) -> User {
        let mut rules = Vec::with_capacity(user.rules.len());
        for rule in &user.rules {
            let publish = matches!(rule.action, Action::Pub | Action::PubSub);
            let subscribe = matches!(rule.action, Action::Sub | Action::PubSub);
            match RuleTemplate::parse(publish, subscribe, &rule.filter) {
                Ok(rule) => rules.push(rule),
                Err(error) => {
                    problems.push(format!("user {:?}: the filter {:?} {error}", user.username, rule.filter));
                }
            }
        }
        let mut passwords = Vec::with_capacity(user.passwords.len());
        for PasswordHash::SaltedSha256 { salt, digest } in &user.passwords {
            match (unhex(salt), unhex(digest)) {
                (Some(salt), Some(digest)) => passwords.push(Password { salt, digest }),
                _ => problems.push(format!("user {:?}: a password hash is not hexadecimal", user.username)),
            }
        }
        User {
            name: user.username.as_str().into(),
            rules,
            passwords,
            client_ids: user.client_ids.iter().map(|pattern| pattern.as_str().into()).collect(),
        }
    }

    /// What this user may do on a connection with this client ID.
    pub(crate) fn grants(&self, client_id: &str) -> Grants {
        Grants::resolve(&self.rules, client_id, &self.name)
    }

    pub(crate) fn may_use(&self, client_id: &str) -> bool {
        self.client_ids.is_empty()
            || self.client_ids.iter().any(|pattern| client_id_matches(pattern, client_id))
    }
}

impl Password {
    fn is(&self, password: &[u8]) -> bool {
        let given = Sha256::new().chain_update(&self.salt).chain_update(password).finalize();
        // Compared in constant time, so that an answer's delay tells nothing.
        given.len() == self.digest.len()
            && given.iter().zip(&self.digest).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
    }
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
