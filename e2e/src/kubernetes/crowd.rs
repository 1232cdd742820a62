//! Many objects at once, through the API and several at a time: what a GitOps controller does, and kubectl, which waits between
//! its requests, does not.

use anyhow::{Context, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, DynamicObject, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use super::Namespace;

/// Requests that are under way at a time.
const AT_A_TIME: usize = 16;

/// A client of the API for one namespace.
pub struct Crowd {
    runtime: Runtime,
    client: Client,
    namespace: String,
}

impl Namespace {
    pub fn crowd(&self) -> Result<Crowd> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let kubeconfig = Kubeconfig::read_from(&self.cluster().kubeconfig)?;
        let options = KubeConfigOptions::default();
        let config = runtime.block_on(Config::from_custom_kubeconfig(kubeconfig, &options))?;
        let client = runtime.block_on(async { Client::try_from(config) })?;
        Ok(Crowd { runtime, client, namespace: self.name().to_owned() })
    }
}

impl Crowd {
    /// Creates all of them, in order as they are taken up.
    pub fn create(&self, objects: &[Value]) -> Result<()> {
        let create = |object: Value| async move {
            let word = |name| object.get(name).and_then(Value::as_str).unwrap_or_default();
            let api = self.api(word("apiVersion"), word("kind"));
            let object: DynamicObject = serde_json::from_value(object)?;
            api.create(&PostParams::default(), &object).await.context("creating").map(drop)
        };
        let all = stream::iter(objects.iter().cloned().map(create)).buffered(AT_A_TIME);
        self.runtime.block_on(all.try_collect::<Vec<()>>()).map(drop)
    }

    /// Deletes one of ours.
    pub fn delete(&self, kind: &str, name: &str) -> Result<()> {
        let api = self.api(OURS, kind);
        self.runtime.block_on(api.delete(name, &DeleteParams::default())).context("deleting").map(drop)
    }

    /// All of one of our kinds; each with its `metadata` and what else it has.
    pub fn list(&self, kind: &str) -> Result<Vec<DynamicObject>> {
        let api = self.api(OURS, kind);
        Ok(self.runtime.block_on(api.list(&ListParams::default()))?.items)
    }

    fn api(&self, version: &str, kind: &str) -> Api<DynamicObject> {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
    }
}

const OURS: &str = "mqtt.dms.dev/v1alpha1";
