//! One MqttUser: [`password`] generates passwords for those who name none, [`hasher`] hashes all of them, and [`generate`]
//! keeps the Secrets of the former.

pub mod hasher;
pub mod password;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use mqtt_operator_api::{
    Kind,
    render::{ObjectName, Objects, Problem, name_of},
    user::MqttUser,
};

use self::password::{Found, Plan, plan};
use crate::{
    apply::{Error, Writer},
    batch::for_a_while,
    kept::Record,
    watch::secrets::{SecretName, Secrets, Value},
};

/// Secrets that are looked at, and made, at a time.
const AT_A_TIME: usize = 16;
/// For how long in one rendering: what else has changed need not wait longer.
const A_RENDERING: Duration = Duration::from_secs(1);

/// What became of the Secrets of generated passwords.
#[derive(Debug, Default)]
pub struct Generated {
    /// Secrets that are in the way.
    pub problems: Vec<Problem>,
    /// What could not be written, by user.
    pub failed: BTreeMap<ObjectName, Error>,
}

/// Who makes them, and of what.
#[derive(Clone, Copy)]
pub struct Makes<'a> {
    pub writer: &'a Writer,
    pub secrets: &'a Secrets,
    /// Of the instance, and of those that were before it.
    pub kept: Option<&'a Record>,
}

/// Sees to the Secrets of all users who name none, or of as many as time allows, and tells the objects which they are. `found`
/// has all Secrets that users name, and gets those that are made.
pub async fn generate(
    makes: Makes<'_>,
    objects: &mut Objects,
    found: &mut BTreeMap<SecretName, Arc<Value>>,
) -> Generated {
    let mut outcome = Generated::default();
    let mut theirs = BTreeSet::new();
    let mut left = Vec::new();
    for user in objects.users.iter().filter(|user| user.spec.password_secret_ref.is_none()) {
        let object = name_of(Kind::MqttUser, user);
        let there = found.get(&(object.namespace.clone(), user.generated_secret_name()));
        // Whatever there is no time for, and whatever fails: what lets devices in goes on to do so.
        if there.is_some_and(|there| there.owner.is_some() && there.owner == user.uid()) {
            theirs.insert(object);
        }
        match plan_for(user, there, makes.kept) {
            Ok((Plan::Keep, Some(_))) => {}
            Ok((Plan::Refuse(problem), _)) => outcome.problems.push(problem),
            Ok((Plan::Keep | Plan::Apply(_), _)) | Err(_) => left.push(user),
        }
    }
    let looked_at = left.into_iter().map(|user| {
        async move {
            let object = name_of(Kind::MqttUser, user);
            let name = (object.namespace.clone(), user.generated_secret_name());
            (object, one(makes, user, &name).await, name)
        }
        .boxed()
    });
    for (object, kept, name) in for_a_while(Box::new(looked_at), AT_A_TIME, A_RENDERING).await {
        match kept {
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

/// Makes or changes one that is not as it should be, as far as was seen. A watch may lag behind, and what is written on the strength
/// of it would be a second password.
async fn one(
    Makes { writer, secrets, kept }: Makes<'_>,
    user: &MqttUser,
    name: &SecretName,
) -> Result<Kept, Error> {
    let fresh = secrets.read_now(name).await?;
    match plan_for(user, fresh.as_ref(), kept)? {
        (Plan::Keep, Some(value)) => Ok(Kept::As(value)),
        (Plan::Keep, None) => {
            Err(Error::Later { what: format!("Secret {}/{}", name.0, name.1), why: "is not there".into() })
        }
        (Plan::Refuse(problem), _) => Ok(Kept::Refused(problem)),
        (Plan::Apply(secret), _) => {
            Ok(Kept::As(secrets.hold(name.clone(), writer.apply_secret(&name.0, &secret).await?)))
        }
    }
}

fn plan_for(
    user: &MqttUser,
    found: Option<&Arc<Value>>,
    kept: Option<&Record>,
) -> Result<(Plan, Option<Arc<Value>>), Error> {
    let mut random = [0; 32];
    getrandom::fill(&mut random)
        .map_err(|error| Error::Later { what: "make a password".into(), why: error.to_string() })?;
    let there = found.map(|value| Found { owner: value.owner.as_deref(), data: &value.data });
    let (object, uid) = (name_of(Kind::MqttUser, user), user.uid().unwrap_or_default());
    let now = Timestamp::now().as_second();
    let kept = kept.and_then(|kept| kept.taken_back(&object, &uid, &user.username(), now));
    Ok((plan(user, there, kept.as_ref(), random), found.cloned()))
}
