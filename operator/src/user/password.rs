//! The Secret of a generated password: when it is made, changed, left alone or refused. Pure: chance is an argument.
//!
//! Promises: a password that is in use stays valid unless a person asks otherwise; a Secret that is not the user's own is
//! never touched.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Resource as _, ResourceExt as _, core::ObjectMeta};
use mqtt_operator_api::{
    Kind,
    render::{Problem, name_of},
    user::{MqttUser, PASSWORD, PREVIOUS_PASSWORD, ROTATE, USERNAME},
};

/// The key of the Secret that says which value of the annotation was followed last.
const ROTATION: &str = "rotation";
const TYPE: &str = "kubernetes.io/basic-auth";
const RANDOM_BYTES: usize = 32;

/// A Secret that is there under the name of the user's.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The UID of the object that controls it.
    pub owner: Option<&'a str>,
    pub data: &'a BTreeMap<String, Vec<u8>>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// It is as it should be.
    Keep,
    /// Apply this, all of it: what it does not name goes.
    Apply(Box<Secret>),
    /// It is not the user's; a person has to do something.
    Refuse(Problem),
}

/// What is to become of the Secret of a user without a `passwordSecretRef`. Where there is none, what is `kept` of one is taken
/// back. `random` comes from the system and is used for nothing else.
pub fn plan(
    user: &MqttUser,
    found: Option<Found<'_>>,
    kept: Option<&BTreeMap<String, Vec<u8>>>,
    random: [u8; RANDOM_BYTES],
) -> Plan {
    let asked = user.annotations().get(ROTATE).filter(|asked| !asked.is_empty());
    let Some(data) = found.map(|found| found.data).or(kept) else {
        return Plan::Apply(secret(user, new(random), None, asked));
    };
    if let Some(found) = found
        && (found.owner.is_none() || found.owner != user.uid().as_deref())
    {
        let object = name_of(Kind::MqttUser, user);
        let secret = format!("{}/{}", object.namespace, user.generated_secret_name());
        let message = format!(
            "is missing, and Secret {secret}, where a generated password would lie, is not of this user; name it here, or delete it"
        );
        return Plan::Refuse(Problem { object, field: "spec.passwordSecretRef".into(), message });
    }
    let value = |key: &str| data.get(key).filter(|value| !value.is_empty());
    let Some(password) = value(PASSWORD) else { return Plan::Apply(secret(user, new(random), None, asked)) };
    let (followed, previous) = (value(ROTATION), value(PREVIOUS_PASSWORD));
    let wanted = match (asked, followed) {
        (Some(asked), followed) if followed.is_none_or(|followed| followed != asked.as_bytes()) => {
            secret(user, new(random), Some(password.clone()), Some(asked))
        }
        (Some(_), _) => secret(user, password.clone(), previous.cloned(), asked),
        (None, _) => secret(user, password.clone(), None, None),
    };
    let entries = wanted.data.iter().flatten().map(|(key, value)| (key, &value.0));
    if found.is_some() && entries.eq(data) { Plan::Keep } else { Plan::Apply(wanted) }
}

/// Whether a password looks like one that was generated.
pub fn is_generated(password: &[u8]) -> bool {
    URL_SAFE_NO_PAD.decode(password).is_ok_and(|bytes| bytes.len() == RANDOM_BYTES)
}

fn new(random: [u8; RANDOM_BYTES]) -> Vec<u8> {
    URL_SAFE_NO_PAD.encode(random).into_bytes()
}

fn secret(
    user: &MqttUser,
    password: Vec<u8>,
    previous: Option<Vec<u8>>,
    rotation: Option<&String>,
) -> Box<Secret> {
    let entries = [
        (USERNAME, Some(user.username().into_bytes())),
        (PASSWORD, Some(password)),
        (PREVIOUS_PASSWORD, previous),
        (ROTATION, rotation.map(|rotation| rotation.clone().into_bytes())),
    ];
    let data = entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), ByteString(value?))));
    let labels = [("app.kubernetes.io/managed-by", "mqtt-operator"), ("app.kubernetes.io/part-of", "mqtt")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Box::new(Secret {
        metadata: ObjectMeta {
            name: Some(user.generated_secret_name()),
            namespace: Some(name_of(Kind::MqttUser, user).namespace),
            labels: Some(labels.into()),
            owner_references: user.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        type_: Some(TYPE.into()),
        data: Some(data.collect()),
        ..Secret::default()
    })
}
