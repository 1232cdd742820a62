//! The operator as a user installs it: its chart, once for the cluster, in a namespace that enforces the profile
//! `restricted`, and two of it.

use std::{
    fs,
    process::{Command, Stdio},
    sync::OnceLock,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::Cluster;
use crate::{broker::built, clients::root};

/// How often it is looked whether a process has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The namespace, the release, and what the chart calls the operator's Lease and Deployment.
const NAME: &str = "mqtt-operator";

/// Of two, one acts. What Kafka has is looked at more often than a user would want it, so that a story sees it.
const VALUES: [&str; 4] =
    ["replicas=2", "resync=45s", "log.format=text", "log.level=info,mqtt_operator=debug"];

pub struct Operator {
    cluster: &'static Cluster,
}

/// The operator, while it acts in some namespaces alone.
pub struct Scoped<'a>(&'a Operator);

impl Drop for Scoped<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.upgrade(&VALUES) {
            eprintln!("the operator could not be made to act everywhere again: {error:#}");
        }
    }
}

impl Cluster {
    /// This process's operator, installed when the first story asks for it.
    pub fn operator(&'static self) -> Result<&'static Operator> {
        static OPERATOR: OnceLock<Result<Operator, String>> = OnceLock::new();
        let install = || Operator::install(self).map_err(|error| format!("{error:#}"));
        OPERATOR.get_or_init(install).as_ref().map_err(|error| anyhow!("{error}"))
    }
}

impl Operator {
    fn install(cluster: &'static Cluster) -> Result<Self> {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": NAME, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        });
        cluster.kubectl_with(&["apply", "-f", "-"], &namespace.to_string())?;
        let operator = Self { cluster };
        operator.upgrade(&VALUES).with_context(|| operator.state())?;
        Ok(operator)
    }

    /// `helm upgrade --install` with these values beside the images.
    fn upgrade(&self, values: &[&str]) -> Result<()> {
        let chart = root().join("charts/mqtt-operator").to_string_lossy().into_owned();
        let images = self.cluster.images();
        let mut settings = Vec::new();
        for (place, image) in [("image", &images.operator), ("broker.image", &images.broker)] {
            let (repository, tag) = image.rsplit_once(':').context("an image without a tag")?;
            settings.push(format!("{place}.repository={repository}"));
            settings.push(format!("{place}.tag={tag}"));
        }
        let mut arguments = vec!["upgrade", "--install", NAME, &chart, "--namespace", NAME];
        arguments.extend(["--wait", "--timeout=150s"]);
        for setting in settings.iter().map(String::as_str).chain(values.iter().copied()) {
            arguments.extend(["--set", setting]);
        }
        // A comma would begin another value.
        let arguments: Vec<String> = arguments.iter().map(|argument| argument.replace(',', "\\,")).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.cluster.helm(&arguments).map(drop)
    }

    /// Lets it act in these namespaces alone, until what is returned goes. No other story may go on meanwhile.
    pub fn only_in(&self, namespaces: &[&str]) -> Result<Scoped<'_>> {
        let named = namespaces.iter().enumerate();
        let named: Vec<_> = named.map(|(i, name)| format!("watchNamespaces[{i}]={name}")).collect();
        let values = VALUES.iter().copied().chain(named.iter().map(String::as_str));
        let scoped = Scoped(self);
        self.upgrade(&values.collect::<Vec<_>>()).with_context(|| self.state())?;
        Ok(scoped)
    }

    /// `helm test`; what it prints.
    pub fn test(&self) -> Result<String> {
        self.cluster.helm(&["test", NAME, "--namespace", NAME, "--logs", "--timeout=120s"])
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["--namespace", NAME], arguments].concat())
    }

    pub fn namespace(&self) -> &'static str {
        NAME
    }

    /// Who writes: `system:serviceaccount:…`.
    pub fn user(&self) -> String {
        format!("system:serviceaccount:{NAME}:{NAME}")
    }

    /// The pod that acts now.
    pub fn leader(&self) -> Result<String> {
        let holder = self.kubectl(&["get", "lease", NAME, "--output", "jsonpath={.spec.holderIdentity}"])?;
        Some(holder).filter(|holder| !holder.is_empty()).context("the Lease is held by nobody")
    }

    /// A figure without labels of the pod that acts now.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let path = format!("/api/v1/namespaces/{NAME}/pods/{}:8080/proxy/metrics", self.leader()?);
        let text = self.cluster.kubectl(&["get", "--raw", &path])?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).with_context(|| format!("no {name} in {text}"))
    }

    /// Its pods.
    pub fn pods(&self) -> Result<Vec<Value>> {
        let text = self.kubectl(&["get", "pods", "--selector", SELECTOR, "--output", "json"])?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list.get("items").and_then(Value::as_array).context("no items")?.clone())
    }

    /// So many of them run from now on; waits for that.
    pub fn scale(&self, replicas: u32) -> Result<()> {
        self.kubectl(&["scale", &format!("deployment/{NAME}"), &format!("--replicas={replicas}")])?;
        match replicas {
            0 => self
                .kubectl(&["wait", "--for=delete", "pods", "--selector", SELECTOR, "--timeout=120s"])
                .map(drop),
            _ => self.wait_until_up(),
        }
    }

    /// A process of the operator beside the cluster, in the place of its pods, that dies after so many changes. Answers which was the
    /// last, or none if it has made no more for so long.
    pub fn dies_after(&self, changes: usize, limit: Duration) -> Result<Option<String>> {
        let said = NamedTempFile::new()?;
        let image = format!("--broker-image={}", self.cluster.images().broker);
        let mut command = Command::new(built("mqtt-operator")?);
        command.args([
            "run",
            "--namespace",
            NAME,
            "--identity",
            "dies",
            "--lease",
            NAME,
            "--address",
            "127.0.0.1:0",
        ]);
        command.args([image, format!("--dies-after={changes}")]).stdout(Stdio::null()).stderr(said.reopen()?);
        let mut process = self.cluster.on_its_path(&mut command)?.spawn()?;
        let start = Instant::now();
        while start.elapsed() < limit {
            if process.try_wait()?.is_some() {
                let said = fs::read_to_string(said.path())?;
                let what = said.lines().find_map(|line| line.strip_prefix("dies after: "));
                return Ok(Some(what.with_context(|| format!("it ended by itself: {said}"))?.to_owned()));
            }
            sleep(LOOK_AGAIN);
        }
        kill_process(Pid::from_child(&process), Signal::TERM)?;
        process.wait()?;
        Ok(None)
    }

    /// What it remembers of an instance, as its Secret's annotations tell it; none: nothing.
    pub fn remembers(&self, namespace: &str, instance: &str) -> Result<Option<Value>> {
        let text =
            self.kubectl(&["get", "secrets", "--selector", "mqtt.dms.dev/kept", "--output", "json"])?;
        let list: Value = serde_json::from_str(&text)?;
        let of = Value::from(format!("{namespace}/{instance}"));
        let annotations = |secret: &Value| secret.pointer("/metadata/annotations").cloned();
        let items = list.get("items").and_then(Value::as_array).context("no items")?;
        Ok(items.iter().filter_map(annotations).find(|found| found.get("mqtt.dms.dev/instance") == Some(&of)))
    }

    /// Waits until all of them are ready.
    pub fn wait_until_up(&self) -> Result<()> {
        self.kubectl(&["rollout", "status", &format!("deployment/{NAME}"), "--timeout=120s"]).map(drop)
    }

    /// What a person would look at first.
    pub fn state(&self) -> String {
        let told = |arguments: &[&str]| self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}"));
        [
            told(&["get", "pods,leases", "--output", "wide"]),
            told(&["logs", "--selector", SELECTOR, "--prefix", "--tail", "100"]),
        ]
        .join("\n")
    }
}

const SELECTOR: &str = "app.kubernetes.io/component=operator";
