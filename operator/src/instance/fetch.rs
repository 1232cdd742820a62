//! What an instance is rendered from: itself, all that names it, and the Secrets that they name.

use std::collections::BTreeSet;

use mqtt_broker_api::{acl::AclDocument, shards};
use mqtt_operator_api::{
    Kind,
    grant::TopicGrant,
    instance::MqttInstance,
    parent_topic::ParentTopic,
    refs::{SecretKeyRef, SecretRef},
    render::{ObjectName, Objects, Secrets, name_of},
    user::MqttUser,
};

use crate::{
    apply::Error,
    watch::{
        World, instance_of, picked,
        secrets::{SecretName, Value},
    },
};

/// All that names one instance, whether or not there is such an instance.
pub struct Members {
    pub topics: Vec<ParentTopic>,
    pub users: Vec<MqttUser>,
    pub grants: Vec<TopicGrant>,
}

impl Members {
    pub fn of(world: &World, name: &ObjectName) -> Self {
        Self {
            // One that is being deleted is kept by its finalizer alone.
            topics: picked(&world.topics, |topic| {
                instance_of(topic, &topic.spec.instance_ref) == *name
                    && topic.metadata.deletion_timestamp.is_none()
            }),
            users: picked(&world.users, |user| instance_of(user, &user.spec.instance_ref) == *name),
            grants: picked(&world.grants, |grant| instance_of(grant, &grant.spec.instance_ref) == *name),
        }
    }

    /// What is rendered, but for the Secrets.
    pub fn with(self, instance: MqttInstance) -> Objects {
        let Self { topics, users, grants } = self;
        Objects { instance, topics, users, grants, secrets: Secrets::new(), generated: Some(BTreeSet::new()) }
    }
}

/// The Secrets that the instance and its users name.
pub fn secrets_of(objects: &Objects) -> BTreeSet<SecretName> {
    let mut wanted = BTreeSet::new();
    let here = name_of(Kind::MqttInstance, &objects.instance).namespace;
    let spec = &objects.instance.spec;
    let mut of_key = |namespace: &str, secret: Option<&SecretKeyRef>| {
        wanted.extend(secret.map(|secret| (namespace.to_owned(), secret.name.clone())));
    };
    let tls = spec.kafka.as_ref().and_then(|kafka| kafka.tls.as_ref());
    of_key(&here, tls.and_then(|tls| tls.ca_secret_ref.as_ref()));
    of_key(
        &here,
        spec.kafka.as_ref().and_then(|kafka| kafka.sasl.as_ref()).map(|sasl| &sasl.password_secret_ref),
    );
    let mqtts = spec.listeners.mqtts.as_ref();
    of_key(&here, mqtts.and_then(|mqtts| mqtts.client_ca_secret_ref.as_ref()));
    for user in &objects.users {
        let namespace = name_of(Kind::MqttUser, user).namespace;
        of_key(&namespace, user.spec.password_secret_ref.as_ref());
        of_key(&namespace, user.spec.previous_password_secret_ref.as_ref());
    }
    for user in objects.users.iter().filter(|user| user.spec.password_secret_ref.is_none()) {
        wanted.insert((name_of(Kind::MqttUser, user).namespace, user.generated_secret_name()));
    }
    let mut whole = |secret: Option<&SecretRef>| {
        wanted.extend(secret.map(|secret| (here.clone(), secret.name.clone())));
    };
    whole(tls.and_then(|tls| tls.certificate_secret_ref.as_ref()));
    whole(mqtts.map(|mqtts| &mqtts.secret_ref));
    whole(spec.listeners.peers.secret_ref.as_ref());
    wanted
}

/// The ACL document that was applied last, as its Secrets tell it: after a start of the operator. What is there of one
/// that is not whole still has the hashes of passwords, and a generation to count on from.
pub async fn applied(
    world: &World,
    namespace: &str,
    names: impl Iterator<Item = String>,
) -> Result<AclDocument, Error> {
    let mut parts = Vec::new();
    for name in names {
        let value = world.secrets.read(&(namespace.to_owned(), name)).await?;
        parts.extend(value.iter().flat_map(|value| shards_in(value)));
    }
    Ok(whole_or_parts(parts))
}

fn shards_in(value: &Value) -> Vec<shards::AclShard> {
    value.data.values().filter_map(|json| serde_json::from_slice(json).ok()).collect()
}

fn whole_or_parts(parts: Vec<shards::AclShard>) -> AclDocument {
    if let Ok(document) = shards::join(parts.clone()) {
        return document;
    }
    let generation = parts.iter().map(|part| part.generation).max().unwrap_or(0);
    let users = parts.into_iter().flat_map(|part| part.users).collect();
    AclDocument { generation, anonymous_user: None, users }
}
