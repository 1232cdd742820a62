//! The only writer: everything that the operator changes in a cluster, but for its Lease, goes through here.
//!
//! Promises: nothing is written unless this process leads ([`Fence`]); an object that is there and is not its owner's is
//! never touched; what is as it was applied is not written again, at a resync neither ([`ledger`]); a status is written only when it changes
//! ([`status`]); every write ends within [`PATIENCE`], and an [`Error`] says whose turn it is.

mod error;
mod events;
pub mod ledger;
mod status;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use k8s_openapi::{
    ByteString,
    api::core::v1::{Pod, Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
    core::{ApiResource, DynamicObject, GroupVersionKind, ObjectMeta},
};
use mqtt_operator_api::{Kind, render::ObjectName};
use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};
use tokio::time::timeout;

pub use self::{
    error::Error,
    ledger::{Item, Ledger},
    status::Subject,
};
use self::{events::Events, ledger::Known, status::Statuses};
use crate::{digest::digest, leader::Fence};

/// Who writes, as the API server's `managedFields` tell it.
pub const MANAGER: &str = "mqtt-operator";
/// The annotation of a pod that makes its kubelet mount what has changed.
const MOUNTED: &str = "mqtt.dms.dev/mounted";
/// How long one write may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Whom an object belongs to.
#[derive(Clone, Debug)]
pub struct Owner {
    pub object: ObjectName,
    pub uid: String,
}

impl Owner {
    fn owns(&self, references: &[OwnerReference]) -> bool {
        references.iter().any(|owner| owner.controller == Some(true) && owner.uid == self.uid)
    }
}

pub struct Writer {
    client: Client,
    fence: Arc<Fence>,
    pub ledger: Ledger,
    statuses: Statuses,
    events: Events,
    /// Tests let the process die after so many changes; zero: it lives.
    dies_after: AtomicU64,
}

impl Writer {
    /// `identity` is told in events.
    pub fn new(client: Client, fence: Arc<Fence>, identity: &str) -> Self {
        let events = Events::new(client.clone(), identity);
        let (ledger, statuses) = (Ledger::default(), Statuses::default());
        Self { client, fence, ledger, statuses, events, dies_after: AtomicU64::new(0) }
    }

    /// The process dies as by `kill -9` after so many changes.
    pub fn dying_after(self, changes: u64) -> Self {
        Self { dies_after: AtomicU64::new(changes), ..self }
    }

    /// Something was changed, in the cluster or in Kafka.
    pub fn step(&self, what: &str) {
        if self.dies_after.load(Relaxed) > 0 && self.dies_after.fetch_sub(1, Relaxed) == 1 {
            eprintln!("dies after: {what}");
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }

    /// Brings one object in line, by server-side apply; what it does not name is left as others want it. Answers its
    /// resourceVersion. `known`: it has been seen to be its owner's.
    pub async fn apply(&self, owner: &Owner, object: &Value, known: bool) -> Result<String, Error> {
        let (item, wanted) = (Item::of(object), digest(&object.to_string()));
        let as_applied = match self.ledger.known(&item, wanted) {
            Known::AsApplied(version) => return Ok(version),
            Known::AsAppliedAt(version) => Some(version),
            Known::Otherwise => None,
        };
        let api = self.objects(object, &item);
        if as_applied.is_some() || !known {
            let there = self.refuse_foreign(&api, owner, &item).await?;
            if let Some(version) = as_applied.filter(|version| there.as_ref() == Some(version)) {
                self.ledger.applied(item, wanted, version.clone());
                return Ok(version);
            }
        }
        let what = format!("apply {item}");
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(object);
        let applied = self.write(&what, api.patch(&item.name, &params, &patch)).await?;
        let version = applied.metadata.resource_version.unwrap_or_default();
        tracing::debug!("{what}: version {version}");
        self.ledger.applied(item, wanted, version.clone());
        Ok(version)
    }

    /// The same for a Secret that was seen to be its owner's or not to be there, or is the operator's own; answers it whole.
    pub async fn apply_secret(&self, namespace: &str, secret: &Secret) -> Result<Secret, Error> {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let params = PatchParams::apply(MANAGER).force();
        let what = format!("apply Secret {namespace}/{name}");
        self.write(&what, secrets.patch(name, &params, &Patch::Apply(secret))).await
    }

    /// Takes away what is no longer wanted. What is there under its name by now, but is another object, stays.
    pub async fn delete(&self, item: &Item, group_version: &str, uid: &str) -> Result<(), Error> {
        let object = json!({"apiVersion": group_version, "kind": item.kind});
        let api = self.objects(&object, item);
        let preconditions = Preconditions { uid: Some(uid.into()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        let what = format!("delete {item}");
        let deleted = async { api.delete(&item.name, &params).await.map(drop) };
        match self.write(&what, absent_is_fine(deleted)).await {
            Err(Error::Later { why, .. }) if why.contains("Precondition") => Ok(()),
            outcome => outcome.inspect(|()| tracing::info!("{item} is no longer wanted, and deleted")),
        }
    }

    /// The UID of an object of its owner's that is not watched, if it is there.
    pub async fn find(
        &self,
        owner: &Owner,
        item: &Item,
        group_version: &str,
    ) -> Result<Option<String>, Error> {
        let api = self.objects(&json!({"apiVersion": group_version, "kind": item.kind}), item);
        let what = format!("get {item}");
        let found = self.ask(&what, async {
            match api.get_opt(&item.name).await {
                // A kind that the API server does not know.
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
                found => found,
            }
        });
        let metadata = found.await?.map(|found| found.metadata);
        let theirs =
            metadata.filter(|metadata| owner.owns(metadata.owner_references.as_deref().unwrap_or_default()));
        Ok(theirs.and_then(|metadata| metadata.uid))
    }

    /// Makes a pod's kubelet look at what it mounts. `mounted` says what that is by now.
    pub async fn nudge(&self, namespace: &str, pod: &str, mounted: &str) -> Result<(), Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let patch = json!({"metadata": {"annotations": {MOUNTED: mounted}}});
        let (params, patch) = (
            PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() },
            Patch::Merge(&patch),
        );
        let what = format!("annotate Pod {namespace}/{pod}");
        let patched = async { pods.patch(pod, &params, &patch).await.map(drop) };
        self.write(&what, absent_is_fine(patched)).await
    }

    /// What a pod was nudged with last.
    pub fn nudged(pod: &Pod) -> Option<&str> {
        pod.metadata.annotations.as_ref()?.get(MOUNTED).map(String::as_str)
    }

    /// The finalizers of an object of ours, at the version at which they were seen.
    pub async fn set_finalizers(
        &self,
        object: &ObjectName,
        version: &str,
        finalizers: &[String],
    ) -> Result<(), Error> {
        let api = self.ours(object);
        let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}});
        let (params, patch) = (
            PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() },
            Patch::Merge(&patch),
        );
        let patched = async { api.patch(&object.name, &params, &patch).await.map(drop) };
        self.write(&format!("change the finalizers of {object}"), absent_is_fine(patched)).await
    }

    /// Those of the operator's own that a label selector matches.
    pub async fn list_own(&self, namespace: &str, selector: &str) -> Result<Vec<Secret>, Error> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let (what, params) = (format!("list Secrets in {namespace}"), ListParams::default().labels(selector));
        Ok(self.ask(&what, secrets.list(&params)).await?.items)
    }

    /// Whether one is there.
    pub async fn has_own(&self, namespace: &str, name: &str) -> Result<bool, Error> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("get Secret {namespace}/{name}");
        Ok(self.ask(&what, secrets.get_metadata_opt(name)).await?.is_some())
    }

    /// For what is changed elsewhere than in the cluster: an error once this process leads no longer.
    pub fn leads(&self) -> Result<(), Error> {
        self.fence.left().map(drop).ok_or(Error::Lost)
    }

    pub async fn delete_own(&self, namespace: &str, name: &str) -> Result<(), Error> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let deleted = async { secrets.delete(name, &DeleteParams::default()).await.map(drop) };
        self.write(&format!("delete Secret {namespace}/{name}"), absent_is_fine(deleted)).await
    }

    /// Whether an object of ours is there: asked of the API server, for what is done otherwise can't be undone.
    pub async fn is_there(&self, object: &ObjectName) -> Result<bool, Error> {
        let (what, api) = (format!("get {object}"), self.ours(object));
        Ok(self.ask(&what, api.get_opt(&object.name)).await?.is_some())
    }

    /// A Secret of the operator's own: what lies there, or what was put there because nothing was.
    pub async fn keep_secret(
        &self,
        namespace: &str,
        name: &str,
        key: &str,
        value: &[u8],
    ) -> Result<Option<Vec<u8>>, Error> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("get Secret {namespace}/{name}");
        let found = self.ask(&what, secrets.get_opt(name)).await?;
        if let Some(found) = found {
            return Ok(found.data.and_then(|mut data| data.remove(key)).map(|value| value.0));
        }
        let made = Secret {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            data: Some([(key.to_owned(), ByteString(value.to_vec()))].into()),
            ..Secret::default()
        };
        let what = format!("create Secret {namespace}/{name}");
        self.write(&what, secrets.create(&PostParams::default(), &made)).await?;
        Ok(Some(value.to_vec()))
    }

    /// The resourceVersion of its owner's object, if it is there.
    async fn refuse_foreign(
        &self,
        api: &Api<DynamicObject>,
        owner: &Owner,
        item: &Item,
    ) -> Result<Option<String>, Error> {
        let what = format!("get {item}");
        let found = self.ask(&what, async {
            match api.get_opt(&item.name).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
                found => found,
            }
        });
        let Some(found) = found.await? else { return Ok(None) };
        let references = found.metadata.owner_references.unwrap_or_default();
        if owner.owns(&references) {
            return Ok(found.metadata.resource_version);
        }
        let kind = owner.object.kind.name();
        if references.iter().any(|other| {
            other.controller == Some(true) && other.kind == kind && other.name == owner.object.name
        }) {
            let why = format!("belongs to a deleted {kind} of the same name, and goes soon");
            return Err(Error::Later { what: format!("{item}"), why });
        }
        let why = format!(
            "is there and does not belong to {}; delete it, or give one of the two another name",
            owner.object
        );
        Err(Error::Theirs { reason: "NameTaken", what: format!("{item}"), why })
    }

    /// An Api for the object's kind, where the item is.
    fn objects(&self, object: &Value, item: &Item) -> Api<DynamicObject> {
        let group_version = object.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
        let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &item.kind));
        Api::namespaced_with(self.client.clone(), &item.namespace, &kind)
    }

    /// An Api for one of the four kinds.
    fn ours(&self, object: &ObjectName) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &object.namespace, &resource(object.kind))
    }

    /// Runs one write, while this process leads.
    async fn write<T>(
        &self,
        what: &str,
        written: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Error> {
        let left = self.fence.left().ok_or(Error::Lost)?;
        let outcome = run(what, left.min(PATIENCE), written).await;
        self.step(what);
        outcome
    }

    async fn ask<T>(
        &self,
        what: &str,
        asked: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Error> {
        run(what, PATIENCE, asked).await
    }
}

async fn run<T>(
    what: &str,
    limit: Duration,
    done: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Error> {
    match timeout(limit, done).await {
        Ok(outcome) => outcome.map_err(|error| Error::of(what, &error)),
        Err(_) => Err(Error::timeout(what, limit)),
    }
}

/// It is gone already.
async fn absent_is_fine(done: impl Future<Output = Result<(), kube::Error>>) -> Result<(), kube::Error> {
    match done.await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        outcome => outcome,
    }
}

fn resource(kind: Kind) -> ApiResource {
    let (group, version) = (mqtt_operator_api::GROUP, mqtt_operator_api::VERSION);
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind.name()))
}
