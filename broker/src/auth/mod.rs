//! Who may connect, and as whom. What a user may do then is decided by `mqtt_proto::acl`.

mod logins;
mod password;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use mqtt_broker_api::acl::{AclDocument, AclUser, Action};
use mqtt_proto::{
    acl::{Grants, RuleTemplate},
    topic::client_id_matches,
};

pub(crate) use self::logins::{Credentials, Logins};
use self::password::{Fingerprint, Password, Slow, is_fast};

/// All users, ready to decide.
#[derive(Debug, Default)]
pub(crate) struct Access {
    users: HashMap<Box<str>, Arc<User>>,
    anonymous: Option<Box<str>>,
}

#[derive(Debug)]
pub(crate) struct User {
    pub(crate) name: Box<str>,
    /// Those with a placeholder first.
    rules: Vec<RuleTemplate>,
    /// How many rules mean something else for each client ID.
    with_placeholder: usize,
    /// What the others grant.
    common: Arc<Grants>,
    passwords: Vec<Password>,
    client_ids: Vec<Box<str>>,
}

/// What is known at once about a login.
enum Checked {
    /// Who it is.
    User(Arc<User>),
    /// It depends on hashes that must be computed first.
    Unknown(Vec<Arc<Slow>>),
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
    #[error("too many passwords wait to be checked; it may try again")]
    Busy,
    #[error("its password was not checked within {} s; it may try again", logins::PATIENCE.as_secs())]
    TooSlow,
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
        let anonymous = document.anonymous_user.as_deref().filter(|name| users.contains_key(*name));
        let anonymous = anonymous.map(Box::from);
        if problems.is_empty() { Ok(Access { users, anonymous }) } else { Err(problems) }
    }

    /// Goes on with what was learnt about the same hashes of the same users before: who could log in without a
    /// computation still can.
    pub(crate) fn inherit(&mut self, before: &Access) {
        for (name, user) in &mut self.users {
            let (Some(user), Some(before)) = (Arc::get_mut(user), before.users.get(name)) else { continue };
            for slow in user.passwords.iter_mut().filter_map(Password::slow_mut) {
                let mut known = before.passwords.iter().filter_map(Password::slow);
                if let Some(known) = known.find(|known| known.is(slow)) {
                    *slow = known.clone();
                }
            }
        }
    }

    /// The users whose clients may do other things now than `before`.
    pub(crate) fn changed_since<'a>(&'a self, before: &'a Access) -> HashSet<&'a str> {
        let rules = |of: &'a Access, name: &str| of.users.get(name).map(|user| &user.rules);
        let names = self.users.keys().chain(before.users.keys()).map(|name| &**name);
        names.filter(|name| rules(self, name) != rules(before, name)).collect()
    }

    /// Whose credentials these are, as far as it is known without computing; none means no credentials.
    fn check(
        &self,
        credentials: Option<(&str, &[u8], &Fingerprint)>,
        client_id: &str,
    ) -> Result<Checked, LoginError> {
        let user = match credentials {
            None => self.anonymous().ok_or(LoginError::NoCredentials)?,
            Some((name, password, fingerprint)) => {
                let user = self.users.get(name).ok_or(LoginError::BadCredentials)?;
                match user.accepts(password, fingerprint) {
                    Ok(true) => user,
                    Ok(false) => return Err(LoginError::BadCredentials),
                    Err(unknown) => return Ok(Checked::Unknown(unknown)),
                }
            }
        };
        if !user.may_use(client_id) {
            return Err(LoginError::ClientIdNotAllowed);
        }
        Ok(Checked::User(user.clone()))
    }

    fn anonymous(&self) -> Option<&Arc<User>> {
        self.users.get(self.anonymous.as_deref()?)
    }

    pub(crate) fn user(&self, name: &str) -> Option<&Arc<User>> {
        self.users.get(name)
    }

    /// The user as it is now, if it still may have this connection.
    pub(crate) fn still(&self, name: &str, anonymous: bool, client_id: &str) -> Option<Arc<User>> {
        let user = if anonymous {
            self.anonymous().filter(|user| &*user.name == name)
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
        let (mut rules, plain): (Vec<_>, Vec<_>) = rules.into_iter().partition(RuleTemplate::has_placeholder);
        let common = Arc::new(Grants::resolve(&plain, "", &user.username));
        let with_placeholder = rules.len();
        rules.extend(plain);
        let mut passwords = Vec::with_capacity(user.passwords.len());
        for hash in &user.passwords {
            match Password::compile(hash) {
                Ok(password) => passwords.push(password),
                Err(problem) => problems.push(format!("user {:?}: {problem}", user.username)),
            }
        }
        User {
            name: user.username.as_str().into(),
            rules,
            with_placeholder,
            common,
            passwords,
            client_ids: user.client_ids.iter().map(|pattern| pattern.as_str().into()).collect(),
        }
    }

    /// What this user may do on a connection with this client ID.
    pub(crate) fn grants(&self, client_id: &str) -> Grants {
        let own = self.rules.get(..self.with_placeholder).unwrap_or_default();
        Grants::resolve(own, client_id, &self.name).with(self.common.clone())
    }

    pub(crate) fn may_use(&self, client_id: &str) -> bool {
        self.client_ids.is_empty()
            || self.client_ids.iter().any(|pattern| client_id_matches(pattern, client_id))
    }

    /// Whether it is one of the passwords; or the hashes that must be computed to know it.
    fn accepts(&self, password: &[u8], fingerprint: &Fingerprint) -> Result<bool, Vec<Arc<Slow>>> {
        let mut unknown = Vec::new();
        for known in &self.passwords {
            match known {
                Password::Fast { salt, digest } if is_fast(salt, digest, password) => return Ok(true),
                Password::Fast { .. } => {}
                Password::Slow(slow) => match slow.knows(fingerprint) {
                    Some(true) => return Ok(true),
                    Some(false) => {}
                    None => unknown.push(slow.clone()),
                },
            }
        }
        if unknown.is_empty() { Ok(false) } else { Err(unknown) }
    }
}
