//! Watches of one kind, and what they have told so far.

use std::{fmt::Debug, sync::Arc};

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        reflector::{ObjectRef, Store, store::Writer},
        watcher::{Config, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::task::AbortHandle;

/// One watch lasts so long: a connection that died without a word is found out.
const WATCH_SECONDS: u32 = 80;

/// Where is watched.
pub(super) struct Scope {
    pub(super) client: Client,
    /// Empty: everywhere.
    pub(super) namespaces: Vec<String>,
}

/// What a watch tells.
pub(super) enum Seen<'a, K> {
    /// As it is now, and as it was known before.
    Changed(&'a K, Option<&'a K>),
    Gone(&'a K),
    /// All was listed anew; some may have gone without a word.
    Listed,
}

impl Scope {
    /// Tells `on` each thing after the stores have it.
    pub(super) fn watch<K>(
        &self,
        labels: Option<&str>,
        on: impl Fn(Seen<'_, K>) + Clone + Send + Sync + 'static,
    ) -> Stores<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let apis = match self.namespaces.as_slice() {
            [] => vec![Api::all(self.client.clone())],
            some => some.iter().map(|namespace| Api::namespaced(self.client.clone(), namespace)).collect(),
        };
        Stores(apis.into_iter().map(|api| Watched::begin(api, labels, on.clone())).collect())
    }
}

/// All objects of a kind, from one watch or from one a namespace.
pub struct Stores<K: Resource<DynamicType = ()> + 'static>(Vec<Watched<K>>);

impl<K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static> Stores<K> {
    pub fn state(&self) -> Vec<Arc<K>> {
        self.0.iter().flat_map(|watched| watched.store.state()).collect()
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let reference = ObjectRef::new(name).within(namespace);
        self.0.iter().find_map(|watched| watched.store.get(&reference))
    }

    pub(super) async fn ready(&self) {
        for watched in &self.0 {
            watched.ready().await;
        }
    }
}

/// One watch; it ends with this.
pub(super) struct Watched<K: Resource<DynamicType = ()> + 'static> {
    pub(super) store: Store<K>,
    task: AbortHandle,
}

impl<K: Resource<DynamicType = ()> + 'static> Drop for Watched<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K> Watched<K>
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    pub(super) fn begin(
        api: Api<K>,
        labels: Option<&str>,
        on: impl Fn(Seen<'_, K>) + Send + Sync + 'static,
    ) -> Self
    where
        K: Debug + DeserializeOwned,
    {
        let mut config = Config::default().timeout(WATCH_SECONDS);
        if let Some(labels) = labels {
            config = config.labels(labels);
        }
        let mut writer = Writer::<K>::default();
        let store = writer.as_reader();
        let task = tokio::spawn(async move {
            // Of annotations, one that kubectl writes holds all of a Secret.
            let events = watcher(api, config).default_backoff().modify(|object| {
                object.managed_fields_mut().clear();
                object.annotations_mut().remove("kubectl.kubernetes.io/last-applied-configuration");
            });
            pin_mut!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        let before = match &event {
                            Event::Apply(object) => writer.as_reader().get(&ObjectRef::from_obj(object)),
                            _ => None,
                        };
                        writer.apply_watcher_event(&event);
                        tell(&event, before.as_deref(), &on, &writer.as_reader());
                    }
                    Err(error) => tracing::warn!("watching {}: {error}", K::plural(&())),
                }
            }
        });
        Self { store, task: task.abort_handle() }
    }

    pub(super) async fn ready(&self) {
        // The writer lives as long as this.
        let _ = self.store.wait_until_ready().await;
    }
}

fn tell<K: Resource<DynamicType = ()> + Clone>(
    event: &Event<K>,
    before: Option<&K>,
    on: &impl Fn(Seen<'_, K>),
    store: &Store<K>,
) {
    match event {
        Event::Apply(object) => on(Seen::Changed(object, before)),
        Event::Delete(object) => on(Seen::Gone(object)),
        Event::Init | Event::InitApply(_) => {}
        Event::InitDone => {
            on(Seen::Listed);
            store.state().iter().for_each(|object| on(Seen::Changed(object, None)));
        }
    }
}
