//! Secrets that objects of ours name: read by name, noticed when they change, come or go.
//!
//! Promises: of all Secrets of a namespace in use only metadata is held; values are, of those alone that were asked for,
//! and are read again when their resourceVersion has changed; a change of one puts those who asked for it in the queue.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, Resource as _, ResourceExt as _, core::PartialObjectMeta, runtime::reflector::ObjectRef,
};
use mqtt_operator_api::render::ObjectName;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::{
    Children, controller,
    stores::{Seen, Watched},
};
use crate::{
    apply::{Error, PATIENCE},
    batch,
};

/// How long the first list of a namespace may take.
const LIST: Duration = Duration::from_secs(15);
/// Secrets that are read at a time.
const AT_A_TIME: usize = 8;

/// Namespace and name.
pub type SecretName = (String, String);

pub struct Secrets {
    client: Client,
    children: Children,
    namespaces: Mutex<HashMap<String, Arc<Watched<PartialObjectMeta<Secret>>>>>,
    values: Mutex<HashMap<SecretName, (String, Arc<Value>)>>,
    asked: Arc<Mutex<Asked>>,
}

/// What one Secret holds, and who controls it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Value {
    pub owner: Option<String>,
    pub data: BTreeMap<String, Vec<u8>>,
}

/// Which instances asked for a Secret.
#[derive(Default)]
struct Asked(HashMap<SecretName, HashSet<ObjectName>>);

impl Secrets {
    pub(super) fn new(client: Client, children: Children) -> Self {
        Self {
            client,
            children,
            namespaces: Mutex::default(),
            values: Mutex::default(),
            asked: Arc::default(),
        }
    }

    /// Those of the Secrets that are there. From now on a change of any of them is told to this instance, and to it no
    /// change of others that it asked for before.
    pub async fn fetch(
        &self,
        instance: &ObjectName,
        wanted: &BTreeSet<SecretName>,
    ) -> Result<BTreeMap<SecretName, Arc<Value>>, Error> {
        self.asked.lock().set(instance, wanted);
        let namespaces: BTreeSet<&str> = wanted
            .iter()
            .map(|(namespace, _)| namespace.as_str())
            .chain([instance.namespace.as_str()])
            .collect();
        for namespace in namespaces {
            self.watched(namespace).await?;
        }
        let reads = wanted
            .iter()
            .map(|name| async move { Ok::<_, Error>((name.clone(), self.read(name).await?)) }.boxed());
        let mut found = BTreeMap::new();
        for one in batch::all(Box::new(reads), AT_A_TIME).await {
            if let (name, Some(value)) = one? {
                found.insert(name, value);
            }
        }
        Ok(found)
    }

    /// One Secret's value, if there is such a Secret.
    pub async fn read(&self, name: &SecretName) -> Result<Option<Arc<Value>>, Error> {
        let store = self.watched(&name.0).await?;
        let reference = ObjectRef::new(&name.1).within(&name.0);
        let Some(metadata) = store.store.get(&reference) else {
            self.values.lock().remove(name);
            return Ok(None);
        };
        let version = metadata.resource_version().unwrap_or_default();
        let held =
            self.values.lock().get(name).filter(|(held, _)| *held == version).map(|(_, value)| value.clone());
        if held.is_some() {
            return Ok(held);
        }
        self.read_now(name).await
    }

    /// The same, asked of the API server.
    pub async fn read_now(&self, name: &SecretName) -> Result<Option<Arc<Value>>, Error> {
        let what = format!("get Secret {}/{}", name.0, name.1);
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &name.0);
        let found = match timeout(PATIENCE, secrets.get_opt(&name.1)).await {
            Ok(found) => found.map_err(|error| Error::of(&what, &error))?,
            Err(_) => return Err(Error::timeout(&what, PATIENCE)),
        };
        Ok(found.map(|secret| self.hold(name.clone(), secret)))
    }

    /// Takes over a Secret that was read or written just now.
    pub fn hold(&self, name: SecretName, secret: Secret) -> Arc<Value> {
        let owner = controller(secret.meta()).map(|owner| owner.uid.clone());
        let version = secret.resource_version().unwrap_or_default();
        let data = secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect();
        let value = Arc::new(Value { owner, data });
        self.values.lock().insert(name, (version, value.clone()));
        value
    }

    /// The instance is gone.
    pub fn release(&self, instance: &ObjectName) {
        self.asked.lock().set(instance, &BTreeSet::new());
    }

    /// Forgets what nobody asks for any more, and watches no namespace besides those that are in use.
    pub fn prune(&self, in_use: &BTreeSet<&str>) {
        let asked = self.asked.lock();
        self.values.lock().retain(|name, _| asked.0.contains_key(name));
        let named: HashSet<&str> = asked.0.keys().map(|(namespace, _)| namespace.as_str()).collect();
        self.namespaces
            .lock()
            .retain(|namespace, _| named.contains(namespace.as_str()) || in_use.contains(namespace.as_str()));
    }

    /// The metadata of all Secrets of a namespace in use.
    pub(super) fn each(&self, namespace: &str, mut each: impl FnMut(&PartialObjectMeta<Secret>)) {
        let watched = self.namespaces.lock().get(namespace).cloned();
        for secret in watched.iter().flat_map(|watched| watched.store.state()) {
            each(&secret);
        }
    }

    /// The watch of a namespace, once it has listed it.
    async fn watched(&self, namespace: &str) -> Result<Arc<Watched<PartialObjectMeta<Secret>>>, Error> {
        let watched = self
            .namespaces
            .lock()
            .entry(namespace.to_owned())
            .or_insert_with(|| Arc::new(self.begin(namespace)))
            .clone();
        match timeout(LIST, watched.ready()).await {
            Ok(()) => Ok(watched),
            Err(_) => Err(Error::timeout(&format!("list Secrets in {namespace}"), LIST)),
        }
    }

    fn begin(&self, namespace: &str) -> Watched<PartialObjectMeta<Secret>> {
        let api = Api::namespaced(self.client.clone(), namespace);
        let (children, asked, here) = (self.children.clone(), self.asked.clone(), namespace.to_owned());
        Watched::begin(api, None, move |seen: Seen<'_, PartialObjectMeta<Secret>>| {
            let (secret, there) = match seen {
                Seen::Changed(secret, _) => (secret, true),
                Seen::Gone(secret) => (secret, false),
                Seen::Listed => {
                    children.doubt_secrets(&here);
                    return asked
                        .lock()
                        .all_in(&here)
                        .into_iter()
                        .for_each(|instance| children.changed(instance));
                }
            };
            children.seen("Secret", secret.meta(), there);
            let name = (here.clone(), secret.name_any());
            let instances = asked.lock().0.get(&name).cloned().unwrap_or_default();
            instances.into_iter().for_each(|instance| children.changed(instance));
        })
    }
}

impl Asked {
    fn set(&mut self, instance: &ObjectName, wanted: &BTreeSet<SecretName>) {
        self.0.retain(|name, instances| {
            if !wanted.contains(name) {
                instances.remove(instance);
            }
            !instances.is_empty()
        });
        for name in wanted {
            self.0.entry(name.clone()).or_default().insert(instance.clone());
        }
    }

    fn all_in(&self, namespace: &str) -> HashSet<ObjectName> {
        let here = self.0.iter().filter(|((other, _), _)| other == namespace);
        here.flat_map(|(_, instances)| instances.iter().cloned()).collect()
    }
}
