//! Without an operator: what `mqtt-operator render` prints is applied by hand, and serves.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{
    Client, Dialogue, Driver, Login, Version,
    broker::{Stored, built},
    clients::{Endpoint, root},
    kubernetes::{Cluster, Namespace, PodKafka},
    wait_until,
};
use serde_json::{Value, json};

use crate::{JAVA, SOON, objects, objects_in};

/// The objects that the operator makes of `examples/` for a namespace and the cluster's Kafka.
fn rendered(namespace: &Namespace, kafka: &PodKafka) -> Result<Vec<Value>> {
    let cluster = namespace.cluster();
    let folder = tempfile::tempdir()?;
    for (number, mut object) in objects_in(&root().join("examples"))?.into_iter().enumerate() {
        put(&mut object, "/metadata", "namespace", namespace.name().into())?;
        if object.get("kind").is_some_and(|kind| kind == "MqttInstance") {
            let kafka = json!({"bootstrapServers": kafka.servers(), "replicationFactor": 1});
            put(&mut object, "/spec", "kafka", kafka)?;
            put(&mut object, "/spec", "replicas", 1.into())?;
        }
        fs::write(folder.path().join(format!("{number}.yaml")), object.to_string())?;
    }
    let mut render = Command::new(built("mqtt-operator")?);
    render.args(["render", "--image", &cluster.images().broker, "--manifests"]).arg(folder.path());
    let output = render.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    objects(&String::from_utf8(output.stdout)?)
}

fn put(object: &mut Value, place: &str, field: &str, value: Value) -> Result<()> {
    let place = object.pointer_mut(place).and_then(Value::as_object_mut).context("no such place")?;
    place.insert(field.to_owned(), value);
    Ok(())
}

#[test]
fn what_is_rendered_runs_as_a_restricted_pod_that_devices_reach_and_kafka_gets_their_readings() -> Result<()>
{
    let cluster = Cluster::shared()?;
    let (kafka, namespace) = (cluster.kafka()?, cluster.namespace()?);
    for object in rendered(&namespace, &kafka)? {
        namespace.apply(&object)?;
    }
    namespace.kubectl(&["rollout", "status", "statefulset/meters-broker", "--timeout", "120s"])?;
    let mqtt = SocketAddr::new(namespace.address("meters-mqtt")?, 1883);
    let login = Login::new(Version::V5, "meter-1").user("fleet", "demo-only-fleet");
    // The Service may lead there a moment later.
    wait_until("the Service", SOON, || Ok(Dialogue::connect(mqtt, &login).ok()))?;
    let mut meter =
        Client::connect(Driver::Mosquitto, Endpoint { mqtt, mqtts: None, ws: None, wss: None }, &login)?;
    ensure!(meter.publish("readings/meter-1/kwh", b"17", 1)? == 0);
    let record = kafka.consumer("application", &["readings"])?.next(JAVA)?;
    let stored = Stored::of(&record)?;
    ensure!((stored.topic.as_str(), stored.payload.as_str()) == ("readings/meter-1/kwh", "17"), "{stored:?}");
    Ok(())
}

#[test]
fn a_pod_that_runs_as_root_is_refused_and_the_kinds_are_accepted() -> Result<()> {
    let namespace = Cluster::shared()?.namespace()?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root"},
        "spec": {"containers": [{"name": "root", "image": namespace.cluster().images().broker}]},
    });
    let refused = namespace.apply(&pod).err().context("a pod that may be root is accepted")?;
    ensure!(format!("{refused:#}").contains("violates PodSecurity \"restricted"), "{refused:#}");
    let crds = |folder: &Path| {
        let folder = folder.to_string_lossy().into_owned();
        namespace.kubectl(&["apply", "--server-side", "--dry-run=server", "-f", &folder])
    };
    let applied = crds(&root().join("crds"))?;
    ensure!(applied.lines().count() == 4 && !applied.contains("Warning"), "{applied}");
    Ok(())
}
