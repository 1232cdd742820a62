//! What the cluster holds, as watches tell it: the four kinds, what is ours of theirs, and the Secrets that they name.
//!
//! Promises: only what is ours is watched, by label; of Secrets that nobody names only metadata is seen, and only in
//! namespaces with objects of ours ([`secrets`]); an object that can't be read stops nothing, and is told; a change of
//! anything puts the instance that it belongs to in the [`Queue`].

pub mod secrets;
mod stores;

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Pod, Service},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Client, Resource, ResourceExt as _,
    core::{DeserializeGuard, PartialObjectMeta},
};
use mqtt_operator_api::{
    Kind,
    grant::TopicGrant,
    instance::MqttInstance,
    parent_topic::{DeletionPolicy, ParentTopic},
    refs::InstanceRef,
    render::{ObjectName, name_of},
    user::MqttUser,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::{
    secrets::Secrets,
    stores::{Scope, Seen, Stores},
};
use crate::{
    apply::{Item, Writer},
    queue::Queue,
};

/// The label of all that is ours.
const OURS: &str = "app.kubernetes.io/managed-by=mqtt-operator";

/// One of the four kinds.
pub type Read<K> = DeserializeGuard<K>;

pub struct World {
    pub instances: Stores<Read<MqttInstance>>,
    pub topics: Stores<Read<ParentTopic>>,
    pub users: Stores<Read<MqttUser>>,
    pub grants: Stores<Read<TopicGrant>>,
    pub stateful_sets: Stores<StatefulSet>,
    pub services: Stores<Service>,
    pub pods: Stores<Pod>,
    config_maps: Stores<PartialObjectMeta<ConfigMap>>,
    budgets: Stores<PartialObjectMeta<PodDisruptionBudget>>,
    policies: Stores<PartialObjectMeta<NetworkPolicy>>,
    pub secrets: Secrets,
    /// One of the four kinds was listed anew: what went meanwhile was not told.
    listed: Arc<Notify>,
    /// What is gone and said at last that something of it is to stay: there may have been no time to look at it before.
    stays: Stays,
}

type Stays = Arc<Mutex<HashSet<ObjectName>>>;

/// One of the four kinds.
pub(crate) trait Kept {
    /// Whether what it says now is that something of it stays in Kafka when it goes.
    fn stays(&self) -> bool {
        false
    }
}

impl Kept for MqttInstance {
    fn stays(&self) -> bool {
        self.spec.deletion_policy == DeletionPolicy::Retain
    }
}

impl Kept for ParentTopic {
    fn stays(&self) -> bool {
        self.spec.deletion_policy == DeletionPolicy::Retain
    }
}

impl Kept for MqttUser {}

impl Kept for TopicGrant {}

/// An object that an instance owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    pub item: Item,
    pub group_version: &'static str,
    pub uid: String,
}

impl World {
    /// Begins to watch; `namespaces` empty: everywhere.
    pub fn watch(client: &Client, namespaces: &[String], queue: &Arc<Queue>, writer: &Arc<Writer>) -> Self {
        let scope = Scope { client: client.clone(), namespaces: namespaces.to_vec() };
        let listed = Arc::new(Notify::new());
        let stays = Stays::default();
        let children = Children { queue: queue.clone(), writer: writer.clone(), stays: stays.clone() };
        Self {
            stays,
            instances: scope.watch(None, children.ours(&listed, Kind::MqttInstance, |_: &MqttInstance| None)),
            topics: scope.watch(
                None,
                children
                    .ours(&listed, Kind::ParentTopic, |topic: &ParentTopic| Some(&topic.spec.instance_ref)),
            ),
            users: scope.watch(
                None,
                children.ours(&listed, Kind::MqttUser, |user: &MqttUser| Some(&user.spec.instance_ref)),
            ),
            grants: scope.watch(
                None,
                children.ours(&listed, Kind::TopicGrant, |grant: &TopicGrant| Some(&grant.spec.instance_ref)),
            ),
            stateful_sets: scope.watch(Some(OURS), children.of("StatefulSet")),
            services: scope.watch(Some(OURS), children.of("Service")),
            pods: scope.watch(Some(OURS), children.pods()),
            config_maps: scope.watch(Some(OURS), children.of("ConfigMap")),
            budgets: scope.watch(Some(OURS), children.of("PodDisruptionBudget")),
            policies: scope.watch(Some(OURS), children.of("NetworkPolicy")),
            secrets: Secrets::new(client.clone(), children),
            listed,
        }
    }

    /// Waits until all is known that there is: what is rendered from less would take rights away.
    pub async fn ready(&self) {
        self.instances.ready().await;
        self.topics.ready().await;
        self.users.ready().await;
        self.grants.ready().await;
        self.stateful_sets.ready().await;
        self.services.ready().await;
        self.pods.ready().await;
        self.config_maps.ready().await;
        self.budgets.ready().await;
        self.policies.ready().await;
    }

    /// Waits until a change may have been missed of which nobody knows whom it concerns.
    pub async fn listed(&self) {
        self.listed.notified().await;
    }

    /// Every instance that there is, or that an object names.
    pub fn all_instances(&self) -> BTreeSet<ObjectName> {
        let mut all = BTreeSet::new();
        for object in self.instances.state() {
            all.insert(name_of(Kind::MqttInstance, &*object));
        }
        visit(&self.topics, |topic| _ = all.insert(instance_of(topic, &topic.spec.instance_ref)));
        visit(&self.users, |user| _ = all.insert(instance_of(user, &user.spec.instance_ref)));
        visit(&self.grants, |grant| _ = all.insert(instance_of(grant, &grant.spec.instance_ref)));
        all
    }

    /// What belongs to the instance with this UID, Secrets included.
    pub fn owned_by(&self, namespace: &str, uid: &str) -> Vec<Owned> {
        let mut owned = Vec::new();
        collect(&mut owned, &self.stateful_sets, ("apps/v1", "StatefulSet"), namespace, uid);
        collect(&mut owned, &self.services, ("v1", "Service"), namespace, uid);
        collect(&mut owned, &self.config_maps, ("v1", "ConfigMap"), namespace, uid);
        collect(&mut owned, &self.budgets, ("policy/v1", "PodDisruptionBudget"), namespace, uid);
        collect(&mut owned, &self.policies, ("networking.k8s.io/v1", "NetworkPolicy"), namespace, uid);
        self.secrets.each(namespace, |secret| {
            if let Some(found) = owned_one(secret.meta(), ("v1", "Secret"), namespace, uid) {
                owned.push(found);
            }
        });
        owned
    }

    /// Whether an object that is gone said at last that something of it is to stay; told once.
    pub fn was_to_stay(&self, object: &ObjectName) -> bool {
        self.stays.lock().remove(object)
    }

    /// Whether any pod of an instance is left, be it of one that is gone.
    pub fn has_pods(&self, instance: &ObjectName) -> bool {
        self.pods.state().iter().any(|pod| pods_instance(pod).as_ref() == Some(instance))
    }

    /// Whether a ParentTopic of an instance names this topic, though the instance may be gone.
    pub fn has_topic(&self, instance: &ObjectName, topic: &str) -> bool {
        let mut found = false;
        visit(&self.topics, |object| {
            found |= instance_of(object, &object.spec.instance_ref) == *instance && object.topic() == topic;
        });
        found
    }

    /// The pods of the StatefulSet with this UID.
    pub fn pods_of(&self, namespace: &str, stateful_set: &str) -> Vec<Arc<Pod>> {
        let theirs = |pod: &Arc<Pod>| {
            pod.namespace().as_deref() == Some(namespace)
                && controller(pod.meta()).is_some_and(|owner| owner.uid == stateful_set)
        };
        let mut pods: Vec<_> = self.pods.state().into_iter().filter(theirs).collect();
        pods.sort_by_key(|pod| pod.name_any());
        pods
    }
}

/// The objects of one kind that can be read and are wanted.
pub fn picked<K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static>(
    stores: &Stores<Read<K>>,
    wanted: impl Fn(&K) -> bool,
) -> Vec<K> {
    let mut found = Vec::new();
    visit(stores, |object| {
        if wanted(object) {
            found.push(object.clone());
        }
    });
    found
}

fn visit<K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static>(
    stores: &Stores<Read<K>>,
    mut each: impl FnMut(&K),
) {
    for object in stores.state() {
        if let Ok(object) = &object.0 {
            each(object);
        }
    }
}

/// The instance that an object names.
pub fn instance_of<K: Resource>(object: &K, named: &InstanceRef) -> ObjectName {
    let own = name_of(Kind::MqttInstance, object).namespace;
    let namespace = named.namespace.clone().unwrap_or(own);
    ObjectName { kind: Kind::MqttInstance, namespace, name: named.name.clone() }
}

/// The instance that a pod says it is of.
fn pods_instance(pod: &Pod) -> Option<ObjectName> {
    let name = pod.labels().get("app.kubernetes.io/instance")?.clone();
    Some(ObjectName { kind: Kind::MqttInstance, namespace: pod.namespace()?, name })
}

fn collect<K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static>(
    into: &mut Vec<Owned>,
    stores: &Stores<K>,
    kind: (&'static str, &'static str),
    namespace: &str,
    uid: &str,
) {
    let found = stores.state();
    into.extend(found.iter().filter_map(|object| owned_one(object.meta(), kind, namespace, uid)));
}

fn owned_one(
    metadata: &ObjectMeta,
    (group_version, kind): (&'static str, &'static str),
    namespace: &str,
    uid: &str,
) -> Option<Owned> {
    let here = metadata.namespace.as_deref() == Some(namespace);
    let owned = controller(metadata).is_some_and(|owner| owner.uid == uid);
    let name = metadata.name.as_ref().filter(|_| here && owned && metadata.deletion_timestamp.is_none())?;
    Some(Owned { item: Item::new(kind, namespace, name), group_version, uid: metadata.uid.clone()? })
}

fn controller(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

fn same_but_for_status(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    let parts = |metadata: &ObjectMeta| {
        let ObjectMeta { uid, generation, annotations, finalizers, deletion_timestamp, .. } =
            metadata.clone();
        (uid, generation, annotations, finalizers, deletion_timestamp)
    };
    parts(one) == parts(other)
}

/// What a change of an object of ours sets off.
#[derive(Clone)]
pub(crate) struct Children {
    queue: Arc<Queue>,
    writer: Arc<Writer>,
    stays: Stays,
}

impl Children {
    /// What a change of one of the four kinds sets off.
    fn ours<K: Kept + Resource<DynamicType = ()> + Clone>(
        &self,
        listed: &Arc<Notify>,
        kind: Kind,
        named: impl Fn(&K) -> Option<&InstanceRef> + Clone + Send + Sync + 'static,
    ) -> impl Fn(Seen<'_, Read<K>>) + Clone + Send + Sync + 'static {
        let (Self { queue, writer, stays }, listed) = (self.clone(), listed.clone());
        move |seen| {
            let object = match seen {
                // A status that was written, by us as a rule.
                Seen::Changed(object, Some(before)) if same_but_for_status(object.meta(), before.meta()) => {
                    return;
                }
                Seen::Changed(object, _) => {
                    stays.lock().remove(&name_of(kind, object));
                    object
                }
                Seen::Gone(object) => {
                    let name = name_of(kind, object);
                    writer.gone(&name);
                    if object.0.as_ref().is_ok_and(Kept::stays) {
                        stays.lock().insert(name);
                    }
                    object
                }
                Seen::Listed => return listed.notify_one(),
            };
            match &object.0 {
                Ok(object) => {
                    let instance = named(object).map(|named| instance_of(object, named));
                    queue.add(instance.unwrap_or_else(|| name_of(kind, object)));
                }
                Err(_) => queue.add(name_of(kind, object)),
            }
            match kind {
                // Another instance may have waited for its Kafka.
                Kind::MqttInstance => listed.notify_one(),
                // Its topic in Kafka, too.
                Kind::ParentTopic => queue.add(name_of(kind, object)),
                Kind::MqttUser | Kind::TopicGrant => {}
            }
        }
    }

    fn of<K: Resource<DynamicType = ()>>(
        &self,
        kind: &'static str,
    ) -> impl Fn(Seen<'_, K>) + Clone + Send + Sync + 'static {
        let children = self.clone();
        move |seen| match seen {
            Seen::Changed(object, _) => children.seen(kind, object.meta(), true),
            Seen::Gone(object) => children.seen(kind, object.meta(), false),
            // Whatever went meanwhile was not told.
            Seen::Listed => children.writer.ledger.doubt(|item| item.kind == kind),
        }
    }

    fn pods(&self) -> impl Fn(Seen<'_, Pod>) + Clone + Send + Sync + 'static {
        let queue = self.queue.clone();
        move |seen| {
            let (Seen::Changed(pod, _) | Seen::Gone(pod)) = seen else { return };
            pods_instance(pod).into_iter().for_each(|instance| queue.add(instance));
        }
    }

    /// One object of ours was seen as it is now, or for the last time.
    pub(crate) fn seen(&self, kind: &str, metadata: &ObjectMeta, there: bool) {
        let (Some(namespace), Some(name)) = (&metadata.namespace, &metadata.name) else { return };
        let version = metadata.resource_version.as_deref().filter(|_| there);
        self.writer.ledger.seen(&Item::new(kind, namespace, name), version);
        let owner = controller(metadata).filter(|owner| owner.kind == Kind::MqttInstance.name());
        if let Some(owner) = owner {
            self.changed(ObjectName {
                kind: Kind::MqttInstance,
                namespace: namespace.clone(),
                name: owner.name.clone(),
            });
        }
    }

    pub(crate) fn changed(&self, instance: ObjectName) {
        self.queue.add(instance);
    }

    pub(crate) fn doubt_secrets(&self, namespace: &str) {
        self.writer.ledger.doubt(|item| item.kind == "Secret" && item.namespace == namespace);
    }
}
