//! A namespace for one story, which enforces the PodSecurity profile `restricted` and goes when the story is over.

use std::{
    net::IpAddr,
    path::Path,
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Calm, Cluster};
use crate::wait_until;

pub struct Namespace {
    cluster: &'static Cluster,
    name: String,
    _calm: Calm,
}

impl Namespace {
    pub(super) fn make(cluster: &'static Cluster, calm: Calm) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let name = format!("story-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        });
        cluster.kubectl_with(&["create", "-f", "-"], &object.to_string())?;
        let namespace = Self { cluster, name, _calm: calm };
        // Pods are refused until their service account is there.
        wait_until("the service account", Duration::from_secs(30), || {
            namespace.get("serviceaccount", "default").map(Some)
        })?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn cluster(&self) -> &'static Cluster {
        self.cluster
    }

    /// `kubectl --namespace NAME ARGUMENTS`; what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// The same with text on its standard input.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.cluster.kubectl_with(&[&["--namespace", &self.name], arguments].concat(), input)
    }

    /// `helm --namespace NAME ARGUMENTS`; what it prints.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.helm(&[&["--namespace", &self.name], arguments].concat())
    }

    /// `kubectl apply` of one object.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.kubectl_with(&["apply", "-f", "-"], &object.to_string()).map(drop)
    }

    /// `kubectl apply` of a file or a folder.
    pub fn apply_files(&self, path: &Path) -> Result<()> {
        self.kubectl(&["apply", "-f", &path.to_string_lossy()]).map(drop)
    }

    /// A merge patch.
    pub fn patch(&self, kind: &str, name: &str, patch: &Value) -> Result<()> {
        self.kubectl(&["patch", kind, name, "--type", "merge", "--patch", &patch.to_string()]).map(drop)
    }

    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let text = self.kubectl(&["get", kind, name, "--output", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("{kind} {name}: {text}"))
    }

    /// All of a kind that a label selector matches.
    pub fn list(&self, kind: &str, selector: &str) -> Result<Vec<Value>> {
        let text = self.kubectl(&["get", kind, "--selector", selector, "--output", "json"])?;
        let mut list: Value = serde_json::from_str(&text)?;
        let items = list.get_mut("items").and_then(Value::as_array_mut).context("no items")?;
        Ok(std::mem::take(items))
    }

    /// `kubectl wait --for=CONDITION`.
    pub fn wait(&self, condition: &str, object: &str, limit: Duration) -> Result<()> {
        let (condition, limit) = (format!("--for={condition}"), format!("--timeout={}s", limit.as_secs()));
        self.kubectl(&["wait", &condition, object, &limit]).map(drop)
    }

    /// The address of a Service inside the cluster, which this thread reaches.
    pub fn address(&self, service: &str) -> Result<IpAddr> {
        let found = self.get("service", service)?;
        let address = found.pointer("/spec/clusterIP").and_then(Value::as_str).context("no address")?;
        address.parse().with_context(|| format!("the address of {service}: {address}"))
    }

    /// What a person would look at first.
    fn state(&self) -> String {
        let told = |arguments: &[&str]| self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}"));
        [
            told(&["get", "all", "--output", "wide"]),
            told(&["get", "events", "--sort-by", "lastTimestamp"]),
            told(&["logs", "--selector", "app.kubernetes.io/part-of=mqtt", "--prefix", "--tail", "30"]),
        ]
        .join("\n")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The test runner shows this only for a story that failed.
        eprintln!("namespace {}:\n{}", self.name, self.state());
        let _ = self.kubectl(&["delete", "pods", "--all", "--force", "--grace-period=0"]);
        let _ = self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}
