//! Two instances on one Kafka, which is known by two names.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{PODS, meters::Meters};

#[test]
fn of_two_instances_on_one_kafka_the_older_has_it_by_whatever_name_the_other_calls_it() -> Result<()> {
    let meters = Meters::start(json!({}))?;
    let namespace = &meters.namespace;
    let servers = meters.kafka.servers();
    let (host, port) = servers.first().and_then(|server| server.rsplit_once(':')).context("no server")?;
    let port: u16 = port.parse()?;
    let ports = json!([{"name": "kafka", "port": port}]);
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": ports,
        "metadata": {"name": "alias", "labels": {"kubernetes.io/service-name": "alias"}},
        "endpoints": [{"addresses": [host], "conditions": {"ready": true}}],
    });
    let alias = format!("alias.{}.svc:{port}", namespace.name());
    let second = json!({
        "apiVersion": "mqtt.dms.dev/v1alpha1", "kind": "MqttInstance", "metadata": {"name": "second"},
        "spec": {"replicas": 1, "kafka": {"bootstrapServers": [alias], "replicationFactor": 1}},
    });
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "alias"}, "spec": {"ports": ports}});
    namespace.apply_all(&[service, slice])?;
    namespace.apply(&second)?;
    let message = meters.told("mqttinstance/second", "Stalled", "Conflict")?;
    let older = format!("MqttInstance {}/meters, which came first", namespace.name());
    ensure!(message.contains("Kafka cluster ") && message.contains(&older), "{message}");
    let pods = namespace.list("statefulsets", "app.kubernetes.io/instance=second")?;
    ensure!(pods.is_empty(), "it runs all the same: {pods:?}");
    meters.ready("mqttinstance/meters")?;

    namespace.delete("mqttinstance/meters")?;
    meters.told_within(PODS, "mqttinstance/second", "Ready", "Serving").map(drop)
}
