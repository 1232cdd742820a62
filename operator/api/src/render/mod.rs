//! From a full set of objects to the documents that steer a broker. Pure: no clock, no randomness, no I/O.
//!
//! Promises: the outcome depends on the set alone, not on the order of users, grants or topics in it (but for two
//! objects that claim one name and are equally old: the first wins); a problem of one object takes nothing away
//! from the others; what is wrong is told, never half applied.

mod consent;
mod kafka;
mod secret_text;
mod tls;

pub use self::secret_text::{TLS_CA, TLS_CERTIFICATE, TLS_KEY};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use kube::{Resource, ResourceExt as _};
use mqtt_broker_api::{
    acl::{self, AclDocument, AclUser, PasswordHash},
    config::{self, InstanceConfig, KafkaSecrets, TlsSecrets},
};
use sha2::{Digest as _, Sha256};

use crate::{
    DEFAULT_NAMESPACE, Kind,
    grant::{self, TopicGrant},
    instance::{Characters, DeviceListener, MqttInstance, Sharing},
    parent_topic::{Ordering, ParentTopic},
    refs::{InstanceRef, SecretKeyRef},
    user::{MqttUser, PASSWORD, PREVIOUS_PASSWORD},
};

/// All that concerns one instance.
#[derive(Clone, Debug)]
pub struct Objects {
    pub instance: MqttInstance,
    pub topics: Vec<ParentTopic>,
    pub users: Vec<MqttUser>,
    pub grants: Vec<TopicGrant>,
    pub secrets: Secrets,
    /// Users without a `passwordSecretRef` whose Secret for a generated password is among `secrets`, and theirs. None:
    /// nobody generates passwords here, so such users can't log in.
    pub generated: Option<BTreeSet<ObjectName>>,
}

/// The Secrets that users and the instance name: by namespace and name, then key.
pub type Secrets = BTreeMap<(String, String), BTreeMap<String, Vec<u8>>>;

/// The documents, and what could not go into them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub config: InstanceConfig,
    /// Those that go with `config.kafka`; without what is missing or wrong, which is a problem.
    pub kafka_secrets: KafkaSecrets,
    /// Those that go with `config.listeners.mqtts`; absent, too, if one is missing or wrong, which is a problem.
    pub tls_secrets: Option<TlsSecrets>,
    /// What brokers show each other over links, with a CA: that which the instance names; absent if it names none, or if
    /// something is missing or wrong, which is a problem.
    pub peers_secrets: Option<TlsSecrets>,
    pub acl: AclDocument,
    /// Users that lack a password in `acl` that is still to be hashed or generated: render again.
    pub pending: BTreeSet<ObjectName>,
    pub problems: Vec<Problem>,
}

impl Problem {
    /// Which objects have one.
    pub fn objects(problems: &[Self]) -> BTreeSet<&ObjectName> {
        problems.iter().map(|problem| &problem.object).collect()
    }
}

/// A password that the document is to have a hash of.
#[derive(Clone, Copy)]
pub struct Password<'a> {
    pub username: &'a str,
    pub namespace: &'a str,
    pub secret: &'a SecretKeyRef,
    pub value: &'a [u8],
    /// It lies where the operator puts what it generates.
    pub generated: bool,
}

/// What one object can't have, though nothing in it alone is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub object: ObjectName,
    /// Such as `spec.userRef.name`.
    pub field: String,
    /// What is wrong and what to do, in one line.
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Renders the documents.
///
/// `generation` goes into the ACL document as it is. `hasher` gives the hash of a password; one that gives the same for
/// the same keeps documents equal while nothing changes. It gives none to leave the password for another rendering.
pub fn render(
    objects: &Objects,
    generation: u64,
    mut hasher: impl FnMut(&Password<'_>) -> Option<PasswordHash>,
) -> Rendered {
    let mut problems = Vec::new();
    let mut pending = BTreeSet::new();
    let instance = name_of(Kind::MqttInstance, &objects.instance);

    let topics = oldest_of_each(
        members(
            objects,
            &instance,
            Kind::ParentTopic,
            &objects.topics,
            |t| &t.spec.instance_ref,
            &mut problems,
        ),
        ParentTopic::topic,
        |name, topic, winner| Problem {
            object: name,
            field: "spec.topic".into(),
            message: format!(
                "the parent topic {topic:?} belongs to {winner}, which came first; remove one of the two"
            ),
        },
        &mut problems,
    );
    let users = oldest_of_each(
        members(objects, &instance, Kind::MqttUser, &objects.users, |u| &u.spec.instance_ref, &mut problems),
        MqttUser::username,
        |name, username, winner| Problem {
            object: name,
            field: "spec.username".into(),
            message: format!(
                "the user name {username:?} belongs to {winner}, which came first; remove one of the two"
            ),
        },
        &mut problems,
    );
    let grants = members(
        objects,
        &instance,
        Kind::TopicGrant,
        &objects.grants,
        |g| &g.spec.instance_ref,
        &mut problems,
    );

    let anonymous = anonymous_user(objects, &instance, &users, &mut problems);
    let mut acl_users: BTreeMap<ObjectName, AclUser> = users
        .into_iter()
        .map(|(username, (name, user))| {
            let mut passwords_of = Passwords { objects, hasher: &mut hasher, problems: &mut problems };
            let (passwords, complete) = passwords_of.hashes(&name, &username, user);
            if !complete {
                pending.insert(name.clone());
            }
            let none = objects.generated.is_none() && user.spec.password_secret_ref.is_none();
            if none && anonymous.as_ref() != Some(&name) {
                problems.push(Problem {
                    object: name.clone(),
                    field: "spec.passwordSecretRef".into(),
                    message: "is missing, so this user can't log in; name a Secret that holds its password"
                        .into(),
                });
            }
            let client_ids = user.spec.client_ids.clone();
            (name, AclUser { username, passwords, client_ids, rules: Vec::new() })
        })
        .collect();
    add_rules(&instance, grants, &objects.users, &topics, &mut acl_users, &mut problems);

    let anonymous_user = anonymous.and_then(|name| acl_users.get(&name)).map(|user| user.username.clone());
    let mut acl_users: Vec<_> = acl_users.into_values().collect();
    acl_users.sort_by(|a, b| a.username.cmp(&b.username));
    let (kafka, kafka_secrets) = match &objects.instance.spec.kafka {
        Some(spec) => {
            let (kafka, secrets) = kafka::kafka(&instance, spec, &objects.secrets, &mut problems);
            (Some(kafka), secrets)
        }
        None => (None, KafkaSecrets::default()),
    };
    let mqtts = objects.instance.spec.listeners.mqtts.as_ref();
    let tls_secrets = mqtts.and_then(|spec| tls::tls(&instance, spec, &objects.secrets, &mut problems));
    let named = objects.instance.spec.listeners.peers.secret_ref.as_ref();
    let peers_secrets = named.and_then(|named| tls::peers(&instance, named, &objects.secrets, &mut problems));
    Rendered {
        config: config(&objects.instance, &instance, topics, kafka),
        kafka_secrets,
        tls_secrets,
        peers_secrets,
        acl: AclDocument { generation, anonymous_user, users: acl_users },
        pending,
        problems,
    }
}

/// The SHA-256 of salt and password, as documents keep it.
pub fn hash(salt: [u8; 16], password: &[u8]) -> PasswordHash {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let digest = Sha256::new().chain_update(salt).chain_update(password).finalize();
    PasswordHash::SaltedSha256 { salt: hex(&salt), digest: hex(&digest) }
}

/// How an object is called; without a namespace it counts as being in `default`.
pub fn name_of<K: Resource>(kind: Kind, object: &K) -> ObjectName {
    let namespace = object.namespace().unwrap_or_else(|| DEFAULT_NAMESPACE.into());
    ObjectName { kind, namespace, name: object.name_any() }
}

/// The objects that belong to the instance, the oldest first; the others are problems.
fn members<'a, K: Resource>(
    all: &Objects,
    instance: &ObjectName,
    kind: Kind,
    objects: &'a [K],
    instance_ref: impl Fn(&K) -> &InstanceRef,
    problems: &mut Vec<Problem>,
) -> Vec<(ObjectName, &'a K)> {
    let mut members = Vec::new();
    for object in objects {
        let name = name_of(kind, object);
        let named = instance_ref(object);
        let namespace = named.namespace.as_ref().unwrap_or(&name.namespace);
        let is_named = (namespace, &named.name) == (&instance.namespace, &instance.name);
        let is_foreign = name.namespace != instance.namespace && !all.instance.spec.allows(&name.namespace);
        if is_named && is_foreign {
            let message = format!(
                "{instance} takes no objects from namespace {}; name it in its spec.allowedNamespaces, or make this one there",
                name.namespace
            );
            problems.push(Problem { object: name, field: "spec.instanceRef.namespace".into(), message });
        } else if is_named {
            members.push((name, object));
        } else {
            let message = format!(
                "names MqttInstance {namespace}/{}, but the only one here is {}/{}; name that one, or remove this",
                named.name, instance.namespace, instance.name
            );
            problems.push(Problem { object: name, field: "spec.instanceRef".into(), message });
        }
    }
    // Stable, so that equally old ones (or those without a time, as in manifests) keep their order.
    members.sort_by_key(|(_, object)| {
        let created = object.meta().creation_timestamp.clone();
        (created.is_none(), created)
    });
    members
}

/// Of the objects (the oldest first) that claim one key, the first; the others are problems.
fn oldest_of_each<'a, K>(
    objects: Vec<(ObjectName, &'a K)>,
    key: impl Fn(&K) -> String,
    problem: impl Fn(ObjectName, &str, &ObjectName) -> Problem,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, (ObjectName, &'a K)> {
    let mut winners: BTreeMap<String, (ObjectName, &K)> = BTreeMap::new();
    for (name, object) in objects {
        let key = key(object);
        match winners.get(&key) {
            Some((winner, _)) => problems.push(problem(name, &key, winner)),
            None => {
                winners.insert(key, (name, object));
            }
        }
    }
    winners
}

fn anonymous_user(
    objects: &Objects,
    instance: &ObjectName,
    users: &BTreeMap<String, (ObjectName, &MqttUser)>,
    problems: &mut Vec<Problem>,
) -> Option<ObjectName> {
    let wanted = objects.instance.spec.auth.anonymous_user.as_ref()?;
    let mut in_force = users.values().map(|(name, _)| name);
    let found = in_force.find(|user| &user.name == wanted && user.namespace == instance.namespace).cloned();
    if found.is_none() {
        problems.push(Problem {
            object: instance.clone(),
            field: "spec.auth.anonymousUser".into(),
            message: format!(
                "no MqttUser {wanted:?} of this instance is in force in namespace {}, so connections without credentials are refused; create it, or remove the field",
                instance.namespace
            ),
        });
    }
    found
}

/// Finds and hashes the passwords of users.
struct Passwords<'a, H> {
    objects: &'a Objects,
    hasher: H,
    problems: &'a mut Vec<Problem>,
}

impl<H: FnMut(&Password<'_>) -> Option<PasswordHash>> Passwords<'_, H> {
    /// The hashes of a user's passwords, the current one first, and whether none is still to be made.
    fn hashes(&mut self, user: &ObjectName, username: &str, object: &MqttUser) -> (Vec<PasswordHash>, bool) {
        let spec = &object.spec;
        if spec.password_secret_ref.is_none() {
            return self.generated(user, username, object);
        }
        let (mut hashes, mut complete) = (Vec::new(), true);
        for (field, secret_ref) in [
            ("spec.passwordSecretRef", &spec.password_secret_ref),
            ("spec.previousPasswordSecretRef", &spec.previous_password_secret_ref),
        ] {
            let Some(secret) = secret_ref else { continue };
            match secret_value(&self.objects.secrets, &user.namespace, secret, "the password") {
                Ok(value) => {
                    let namespace = &user.namespace;
                    let password = Password { username, namespace, secret, value, generated: false };
                    let hash = (self.hasher)(&password);
                    complete &= hash.is_some();
                    hashes.extend(hash);
                }
                Err((part, message)) => {
                    let field = format!("{field}.{part}");
                    self.problems.push(Problem { object: user.clone(), field, message });
                }
            }
        }
        (hashes, complete)
    }

    /// Whatever keeps a generated password from being there is said on the user by who generates it.
    fn generated(
        &mut self,
        user: &ObjectName,
        username: &str,
        object: &MqttUser,
    ) -> (Vec<PasswordHash>, bool) {
        let Some(theirs) = &self.objects.generated else { return (Vec::new(), true) };
        let name = object.generated_secret_name();
        let secret = self.objects.secrets.get(&(user.namespace.clone(), name.clone()));
        let Some(secret) = secret.filter(|_| theirs.contains(user)) else { return (Vec::new(), false) };
        let (mut hashes, mut complete) = (Vec::new(), true);
        for key in [PASSWORD, PREVIOUS_PASSWORD] {
            let value = secret.get(key).filter(|value| !value.is_empty());
            let Some(value) = value else {
                complete &= key != PASSWORD;
                continue;
            };
            let secret = &SecretKeyRef { name: name.clone(), key: key.into() };
            let namespace = &user.namespace;
            let hash = (self.hasher)(&Password { username, namespace, secret, value, generated: true });
            complete &= hash.is_some();
            hashes.extend(hash);
        }
        (hashes, complete)
    }
}

/// What a reference names, not empty; or which part of the reference is wrong and a message. `what` should be
/// there.
fn secret_value<'a>(
    secrets: &'a Secrets,
    namespace: &str,
    SecretKeyRef { name, key }: &SecretKeyRef,
    what: &str,
) -> Result<&'a [u8], (&'static str, String)> {
    let whole_name = format!("{namespace}/{name}");
    match secrets.get(&(namespace.to_owned(), name.clone())).map(|secret| secret.get(key)) {
        Some(Some(value)) if !value.is_empty() => Ok(value),
        Some(Some(_)) => {
            Err(("key", format!("Secret {whole_name} has nothing under {key:?}; put {what} there")))
        }
        Some(None) => {
            Err(("key", format!("Secret {whole_name} has no key {key:?}; add it, or change the reference")))
        }
        None => Err(("name", format!("there is no Secret {whole_name}; create it, or name another one"))),
    }
}

fn add_rules(
    instance: &ObjectName,
    mut grants: Vec<(ObjectName, &TopicGrant)>,
    all_users: &[MqttUser],
    topics: &BTreeMap<String, (ObjectName, &ParentTopic)>,
    users: &mut BTreeMap<ObjectName, AclUser>,
    problems: &mut Vec<Problem>,
) {
    let existing: BTreeMap<_, _> =
        all_users.iter().map(|user| (name_of(Kind::MqttUser, user), user)).collect();
    grants.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, grant) in grants {
        let user = ObjectName {
            kind: Kind::MqttUser,
            namespace: name.namespace.clone(),
            name: grant.spec.user_ref.name.clone(),
        };
        if let (Some(user), Some(object)) = (users.get_mut(&user), existing.get(&user)) {
            let topics = topics.iter().map(|(topic, (name, object))| (topic.as_str(), name, *object));
            if let Some(problem) = consent::refusal(&name, grant, object, instance, topics) {
                problems.push(problem);
                continue;
            }
            user.rules.extend(
                grant
                    .spec
                    .rules
                    .iter()
                    .map(|rule| acl::Rule { action: action(rule.action), filter: rule.filter.clone() }),
            );
            continue;
        }
        let message = if existing.contains_key(&user) {
            format!("{user} is not in force, so this grants nothing; see what is wrong with it")
        } else {
            format!("there is no {user}; create it, or name another one")
        };
        problems.push(Problem { object: name, field: "spec.userRef.name".into(), message });
    }
}

fn config(
    object: &MqttInstance,
    name: &ObjectName,
    topics: BTreeMap<String, (ObjectName, &ParentTopic)>,
    kafka: Option<config::Kafka>,
) -> InstanceConfig {
    let spec = &object.spec;
    let limits = &spec.limits;
    InstanceConfig {
        instance: format!("{}/{}", name.namespace, name.name),
        limits: config::Limits {
            connections: limits.connections,
            publish_rate: limits.publish_rate,
            delivery_rate: limits.delivery_rate,
            subscriptions: limits.subscriptions,
            connect_rate: limits.connect_rate,
            connections_per_address: limits.connections_per_address,
            memory: limits.memory.as_ref().map(crate::quantity::Quantity::bytes),
            packet_size: u32::try_from(limits.packet_size.bytes()).unwrap_or(u32::MAX),
            client_id_length: limits.client_id_length,
            keep_alive_seconds: limits
                .keep_alive
                .as_ref()
                .map(|longest| u16::try_from(longest.seconds()).unwrap_or(u16::MAX)),
            characters: match limits.characters {
                Characters::Any => config::Characters::Any,
                Characters::Strict => config::Characters::Strict,
            },
        },
        session: config::SessionRules {
            expiry_seconds: u32::try_from(spec.session.expiry.seconds()).unwrap_or(u32::MAX),
            offline_messages: spec.session.offline_messages,
            online_messages: spec.session.online_messages,
            sharing: match spec.session.sharing {
                Sharing::RoundRobin => config::Sharing::RoundRobin,
                Sharing::HashClientId => config::Sharing::HashClientId,
                Sharing::Sticky => config::Sharing::Sticky,
            },
            response_information: spec.session.response_information.clone(),
        },
        expires_at: spec.expires_at.as_ref().map(|at| u64::try_from(at.0.as_second()).unwrap_or(0)),
        groups: spec.groups.clone(),
        parents: topics.into_iter().map(|(topic, (_, object))| parent(topic, object)).collect(),
        listeners: config::Listeners {
            mqtt: format!("[::]:{}", spec.listeners.mqtt.port),
            mqtts: spec.listeners.mqtts.as_ref().map(|mqtts| format!("[::]:{}", mqtts.port)),
            ws: spec.listeners.ws.as_ref().map(|ws| format!("[::]:{}", ws.port)),
            wss: spec.listeners.wss.as_ref().map(|wss| format!("[::]:{}", wss.port)),
            origins: spec.listeners.origins.clone(),
            user_from_certificate: spec
                .listeners
                .mqtts
                .as_ref()
                .is_some_and(|mqtts| mqtts.user_from_certificate),
            proxy_protocol: spec.listeners.proxy_protocol.iter().map(|&name| device_listener(name)).collect(),
            server_reference: spec.listeners.server_reference.clone(),
            admin: format!("127.0.0.1:{}", spec.listeners.admin.port),
        },
        kafka,
    }
}

fn device_listener(name: DeviceListener) -> config::DeviceListener {
    match name {
        DeviceListener::Mqtt => config::DeviceListener::Mqtt,
        DeviceListener::Mqtts => config::DeviceListener::Mqtts,
        DeviceListener::Ws => config::DeviceListener::Ws,
        DeviceListener::Wss => config::DeviceListener::Wss,
    }
}

fn parent(topic: String, object: &ParentTopic) -> config::Parent {
    config::Parent {
        topic,
        ordering: match object.spec.ordering {
            Ordering::Normal => config::Ordering::Normal,
            Ordering::PartitionOrdered => config::Ordering::PartitionOrdered,
        },
        partitions: object.spec.partitions,
        retention: config::Retention {
            seconds: Some(object.spec.retention.age.seconds()),
            bytes: object.spec.retention.size.as_ref().map(crate::quantity::Quantity::bytes),
        },
    }
}

fn action(action: grant::Action) -> acl::Action {
    match action {
        grant::Action::Pub => acl::Action::Pub,
        grant::Action::Sub => acl::Action::Sub,
        grant::Action::PubSub => acl::Action::PubSub,
    }
}
