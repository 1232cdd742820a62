//! The examples, in force in a namespace of their own on a Kafka of their own: where most stories begin.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{
    Authority, Dialogue, Login, Packet, Version,
    clients::{Endpoint, root},
    kubernetes::{Cluster, Namespace, Operator, PodKafka},
    tls::Pair,
    wait_until,
};
use serde_json::{Value, json};

use crate::{PODS, SOON, objects_in};

/// The one broker's pod.
pub(crate) const POD: &str = "meters-broker-0";
/// The Service that devices meet.
pub(crate) const SERVICE: &str = "meters-mqtt";
/// The Secret with the certificate of the TLS listener.
pub(crate) const TLS: &str = "meters-tls";

// Dropped in this order: pods first, then what they talk to.
pub(crate) struct Meters {
    pub(crate) namespace: Namespace,
    pub(crate) kafka: PodKafka,
    pub(crate) operator: &'static Operator,
}

impl Drop for Meters {
    fn drop(&mut self) {
        // The test runner shows this only for a story that failed.
        eprintln!("the operator:\n{}", self.operator.state());
    }
}

impl Meters {
    /// All is in force; `spec` goes into that of the MqttInstance.
    pub(crate) fn start(spec: Value) -> Result<Self> {
        Self::start_with(spec, &[])
    }

    /// The same with more objects.
    pub(crate) fn start_with(spec: Value, more: &[Value]) -> Result<Self> {
        let meters = Self::empty()?;
        meters.apply(spec, more)?;
        meters.wait_until_all_are_ready()?;
        Ok(meters)
    }

    /// Nothing is in the namespace yet.
    pub(crate) fn empty() -> Result<Self> {
        let cluster = Cluster::shared()?;
        Ok(Self { operator: cluster.operator()?, kafka: cluster.kafka()?, namespace: cluster.namespace()? })
    }

    /// The same while no other story goes on.
    pub(crate) fn empty_alone() -> Result<Self> {
        let cluster = Cluster::shared()?;
        let namespace = cluster.namespace_alone()?;
        Ok(Self { operator: cluster.operator()?, kafka: cluster.kafka()?, namespace })
    }

    /// `kubectl apply` of the examples on this Kafka.
    pub(crate) fn apply(&self, spec: Value, more: &[Value]) -> Result<()> {
        let mut objects = objects_in(&root().join("examples"))?;
        let instance = objects.iter_mut().find(|object| object.get("kind") == Some(&"MqttInstance".into()));
        let fields = instance.and_then(|instance| instance.pointer_mut("/spec")?.as_object_mut());
        let fields = fields.context("no instance")?;
        fields.insert("kafka".into(), self.on_kafka());
        // Most stories look at one pod.
        fields.insert("replicas".into(), 1.into());
        fields.extend(spec.as_object().cloned().unwrap_or_default());
        objects.extend_from_slice(more);
        self.namespace.apply_all(&objects)
    }

    /// `spec.kafka` for this Kafka.
    pub(crate) fn on_kafka(&self) -> Value {
        json!({"bootstrapServers": self.kafka.servers(), "replicationFactor": 1})
    }

    pub(crate) fn wait_until_all_are_ready(&self) -> Result<()> {
        self.namespace.wait_all("condition=Ready", "mqtt", PODS)?;
        self.wait_until_reached()
    }

    /// Waits until the Service leads to the broker: nodes learn a moment later than we do that a pod is ready.
    pub(crate) fn wait_until_reached(&self) -> Result<()> {
        let Endpoint { mqtt, .. } = self.endpoint()?;
        wait_until("the Service", SOON, || Ok(TcpStream::connect_timeout(&mqtt, SOON).ok()))?;
        Ok(())
    }

    /// Waits until an object (`KIND/NAME`) says so: `turn` is the condition that holds; returns the message.
    pub(crate) fn told(&self, object: &str, turn: &str, reason: &str) -> Result<String> {
        self.told_within(SOON, object, turn, reason)
    }

    pub(crate) fn told_within(
        &self,
        limit: Duration,
        object: &str,
        turn: &str,
        reason: &str,
    ) -> Result<String> {
        let condition = format!("jsonpath={{.status.conditions[?(@.type==\"{turn}\")].reason}}={reason}");
        let waited = self.namespace.wait(&condition, object, limit);
        let (kind, name) = object.split_once('/').context("not KIND/NAME")?;
        let found = self.namespace.get(kind, name)?;
        let status = found.pointer("/status").unwrap_or(&Value::Null);
        waited.with_context(|| format!("{object} says {status}"))?;
        let conditions = status.pointer("/conditions").and_then(Value::as_array).context("no conditions")?;
        let held: Vec<&str> = conditions
            .iter()
            .filter(|condition| condition.get("status") == Some(&"True".into()))
            .filter_map(|condition| condition.get("type")?.as_str())
            .filter(|held| *held != "Enforced")
            .collect();
        ensure!(held == [turn], "{object} says {status}");
        let seen = (status.pointer("/observedGeneration"), found.pointer("/metadata/generation"));
        ensure!(seen.0 == seen.1, "{object} says {status} of another generation than {:?}", seen.1);
        let of_turn = conditions.iter().find(|condition| condition.get("type") == Some(&turn.into()));
        let message = of_turn.and_then(|condition| condition.get("message")?.as_str());
        Ok(message.context("no message")?.to_owned())
    }

    /// What an object says of whether brokers have it in force.
    pub(crate) fn enforced(&self, kind: &str, name: &str) -> Result<String> {
        let found = self.namespace.get(kind, name)?;
        let conditions = found.pointer("/status/conditions").and_then(Value::as_array);
        let enforced = |condition: &&Value| condition.get("type") == Some(&"Enforced".into());
        let condition = conditions.and_then(|all| all.iter().find(enforced)).context("nothing is said")?;
        let part = |field| condition.get(field).and_then(Value::as_str).unwrap_or_default();
        Ok(format!("{} {}", part("status"), part("message")))
    }

    /// Waits until an object is ready again, or for the first time.
    pub(crate) fn ready(&self, object: &str) -> Result<()> {
        self.namespace.wait("condition=Ready", object, SOON)
    }

    /// Where devices connect.
    pub(crate) fn endpoint(&self) -> Result<Endpoint> {
        let address = self.namespace.address(SERVICE)?;
        let port = |port| SocketAddr::new(address, port);
        Ok(Endpoint { mqtt: port(1883), mqtts: Some(port(8085)), ws: None, wss: None })
    }

    pub(crate) fn connect(&self, login: &Login) -> Result<Dialogue> {
        Ok(Dialogue::connect(self.endpoint()?.mqtt, login)?.0)
    }

    /// Whether the broker lets somebody in with this login.
    pub(crate) fn lets_in(&self, login: &Login) -> Result<bool> {
        let answer = Dialogue::greet(self.endpoint()?.mqtt, login)?.read()?;
        Ok(matches!(answer, Packet::ConnAck { code: 0, .. }))
    }

    /// The broker's pod, as nothing of it was restarted: its UID and how often its container was started again.
    pub(crate) fn pod(&self) -> Result<(String, u64)> {
        let pod = self.namespace.get("pod", POD)?;
        let uid = pod.pointer("/metadata/uid").and_then(Value::as_str).context("no UID")?;
        let restarts = pod.pointer("/status/containerStatuses/0/restartCount").and_then(Value::as_u64);
        Ok((uid.to_owned(), restarts.context("no container")?))
    }
}

/// A meter of the examples.
pub(crate) fn meter(number: u32) -> Login {
    Login::new(Version::V5, &format!("meter-{number}")).user("fleet", "demo-only-fleet")
}

/// The operations desk of the examples.
pub(crate) fn ops(client_id: &str) -> Login {
    Login::new(Version::V5, client_id).user("ops", "demo-only-ops")
}

/// A certificate for the names by which a broker in this namespace is known, as its Secret.
pub(crate) fn certificate(authority: &Authority, namespace: &Namespace) -> Result<(Pair, Value)> {
    let hosts = [SERVICE.to_owned(), format!("{SERVICE}.{}.svc", namespace.name())];
    let pair = authority.issue_for("meters", &hosts)?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": TLS}, "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": pair.certificate, "tls.key": pair.key},
    });
    Ok((pair, secret))
}

/// A TopicGrant for a user of the examples; rules are (action, filter).
pub(crate) fn grant(name: &str, user: &str, rules: &[(&str, &str)]) -> Value {
    let rules: Vec<Value> =
        rules.iter().map(|(action, filter)| json!({"action": action, "filter": filter})).collect();
    json!({
        "apiVersion": "mqtt.dms.dev/v1alpha1", "kind": "TopicGrant", "metadata": {"name": name},
        "spec": {"instanceRef": {"name": "meters"}, "userRef": {"name": user}, "rules": rules},
    })
}

/// An object of one of the four kinds that belongs to the instance of the examples.
pub(crate) fn object(kind: &str, name: &str, spec: Value) -> Value {
    let mut all = json!({"instanceRef": {"name": "meters"}});
    if let (Some(all), Value::Object(spec)) = (all.as_object_mut(), spec) {
        all.extend(spec);
    }
    json!({
        "apiVersion": "mqtt.dms.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": all,
    })
}
