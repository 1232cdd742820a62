//! A namespace for one story, which enforces the PodSecurity profile `restricted` and goes when the story is over.

use std::{
    io::Write as _,
    net::IpAddr,
    path::Path,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::{Calm, Cluster};
use crate::wait_until;

/// Where the cluster's own DNS is.
const DNS: &str = "10.96.0.10";

/// Runs a program with another `/etc/resolv.conf`, which nobody else sees.
const WITH_NAMES: &str = r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#;

/// Seconds that such a program may take.
const PROGRAM_LIMIT: &str = "180";

pub struct Namespace {
    cluster: &'static Cluster,
    name: String,
    /// As pods have it in `/etc/resolv.conf`.
    names: NamedTempFile,
    /// Absent: its story holds it with another namespace.
    _calm: Option<Calm>,
}

impl Namespace {
    pub(super) fn make(cluster: &'static Cluster, calm: Option<Calm>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let name = format!("story-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        });
        cluster.kubectl_with(&["create", "-f", "-"], &object.to_string())?;
        let mut names = NamedTempFile::new()?;
        writeln!(
            names,
            "nameserver {DNS}\nsearch {name}.svc.cluster.local svc.cluster.local\noptions ndots:5"
        )?;
        let namespace = Self { cluster, name, names, _calm: calm };
        // Pods are refused until their service account is there.
        wait_until("the service account", Duration::from_secs(30), || {
            namespace.get("serviceaccount", "default").map(Some)
        })?;
        Ok(namespace)
    }

    /// Another one for the same story; to go before this does.
    pub fn another(&self) -> Result<Self> {
        Self::make(self.cluster, None)
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

    /// The same of several.
    pub fn apply_all(&self, objects: &[Value]) -> Result<()> {
        self.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}))
    }

    pub fn delete(&self, object: &str) -> Result<()> {
        self.kubectl(&["delete", object, "--timeout=30s"]).map(drop)
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

    /// The same of all objects of a kind, or of a category.
    pub fn wait_all(&self, condition: &str, kind: &str, limit: Duration) -> Result<()> {
        let (condition, limit) = (format!("--for={condition}"), format!("--timeout={}s", limit.as_secs()));
        self.kubectl(&["wait", &condition, kind, "--all", &limit]).map(drop)
    }

    /// The address of a Service inside the cluster, which this thread reaches.
    pub fn address(&self, service: &str) -> Result<IpAddr> {
        let found = self.get("service", service)?;
        let address = found.pointer("/spec/clusterIP").and_then(Value::as_str).context("no address")?;
        address.parse().with_context(|| format!("the address of {service}: {address}"))
    }

    /// Runs a program that finds Services by name, as one in a pod would; what it prints.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", PROGRAM_LIMIT]);
        if self.cluster.is_ours() {
            command.args(["unshare", "--mount", "sh", "-c", WITH_NAMES]).arg(self.names.path());
        }
        super::run(self.cluster.on_its_path(&mut command)?.arg(program).args(arguments), "")
    }

    /// Runs a line of a shell whose kubectl is in this namespace, as a user's would be; what it prints.
    pub fn shell(&self, line: &str) -> Result<String> {
        let script = format!("kubectl() {{ command kubectl --namespace {} \"$@\"; }}\n{line}", self.name);
        self.run("sh", &["-ec", &script])
    }

    /// What a person would look at first.
    fn state(&self) -> String {
        let told = |arguments: &[&str]| self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}"));
        [
            told(&["get", "all", "--output", "wide"]),
            told(&["get", "mqtt", "--output", "yaml"]),
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
