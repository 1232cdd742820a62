//! One MqttUser: [`password`] generates passwords for those who name none, [`hasher`] hashes all of them, and [`generate`]
//! keeps the Secrets of the former.

pub mod hasher;
pub mod password;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kube::ResourceExt as _;
use mqtt_operator_api::{
    Kind,
    render::{ObjectName, Objects, Problem, name_of},
    user::MqttUser,
};

use self::password::{Found, Plan, plan};
use crate::{
    apply::{Error, Owner, Writer},
    watch::secrets::{SecretName, Secrets, Value},
};

/// What became of the Secrets of generated passwords.
#[derive(Debug, Default)]
pub struct Generated {
    /// Secrets that are in the way.
    pub problems: Vec<Problem>,
    /// What could not be written, by user.
    pub failed: BTreeMap<ObjectName, Error>,
}

/// Sees to the Secrets of all users who name none, and tells the objects which they are. `found` has all Secrets that
/// users name, and gets those that are made.
pub async fn generate(
    writer: &Writer,
    secrets: &Secrets,
    objects: &mut Objects,
    found: &mut BTreeMap<SecretName, Arc<Value>>,
) -> Generated {
    let mut outcome = Generated::default();
    let mut theirs = BTreeSet::new();
    for user in objects.users.iter().filter(|user| user.spec.password_secret_ref.is_none()) {
        let object = name_of(Kind::MqttUser, user);
        let name = (object.namespace.clone(), user.generated_secret_name());
        match one(writer, secrets, user, &name, found.get(&name)).await {
            Ok(Kept::As(value)) => {
                found.insert(name, value);
                theirs.insert(object);
            }
            Ok(Kept::Refused(problem)) => outcome.problems.push(problem),
            Err(error) => _ = outcome.failed.insert(object, error),
        }
    }
    objects.generated = Some(theirs);
    outcome
}

enum Kept {
    As(Arc<Value>),
    Refused(Problem),
}

async fn one(
    writer: &Writer,
    secrets: &Secrets,
    user: &MqttUser,
    name: &SecretName,
    found: Option<&Arc<Value>>,
) -> Result<Kept, Error> {
    match plan_for(user, found)? {
        (Plan::Keep, Some(value)) => return Ok(Kept::As(value)),
        (Plan::Refuse(problem), _) => return Ok(Kept::Refused(problem)),
        (Plan::Keep | Plan::Apply(_), _) => {}
    }
    // A watch may lag behind, and what is written on the strength of it would be a second password.
    let fresh = secrets.read_now(name).await?;
    match plan_for(user, fresh.as_ref())? {
        (Plan::Keep, Some(value)) => Ok(Kept::As(value)),
        (Plan::Keep, None) => {
            Err(Error::Later { what: format!("Secret {}/{}", name.0, name.1), why: "is not there".into() })
        }
        (Plan::Refuse(problem), _) => Ok(Kept::Refused(problem)),
        (Plan::Apply(secret), _) => {
            let owner = Owner { object: name_of(Kind::MqttUser, user), uid: user.uid().unwrap_or_default() };
            Ok(Kept::As(secrets.hold(name.clone(), writer.apply_secret(&owner, &secret).await?)))
        }
    }
}

fn plan_for(user: &MqttUser, found: Option<&Arc<Value>>) -> Result<(Plan, Option<Arc<Value>>), Error> {
    let mut random = [0; 32];
    getrandom::fill(&mut random)
        .map_err(|error| Error::Later { what: "make a password".into(), why: error.to_string() })?;
    let there = found.map(|value| Found { owner: value.owner.as_deref(), data: &value.data });
    Ok((plan(user, there, random), found.cloned()))
}
