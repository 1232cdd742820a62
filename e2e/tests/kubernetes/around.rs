//! What this small cluster can't do by itself (balance loads, scrape metrics, keep traffic apart) is asked of it in words
//! that it understands: the API server checks what the operator and the chart make against the kinds' own definitions.

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{clients::root, kubernetes::Namespace};
use serde_json::{Value, json};

use crate::{
    PODS,
    meters::{Meters, SERVICE},
};

fn at<'a>(object: &'a Value, pointer: &str) -> &'a Value {
    object.pointer(pointer).unwrap_or(&Value::Null)
}

/// The definition of the kind ServiceMonitor, as its own authors publish it.
fn install_service_monitors(namespace: &Namespace) -> Result<()> {
    let definition = root().join(".tools/servicemonitors.yaml").to_string_lossy().into_owned();
    let cluster = namespace.cluster();
    cluster.kubectl(&["apply", "--server-side", "-f", &definition])?;
    let crd = "crd/servicemonitors.monitoring.coreos.com";
    cluster.kubectl(&["wait", "--for=condition=Established", crd, "--timeout=30s"]).map(drop)
}

#[test]
fn a_load_balancer_a_service_monitor_and_a_network_policy_are_asked_for_as_their_kinds_want_it() -> Result<()>
{
    let meters = Meters::empty()?;
    let namespace = &meters.namespace;
    let ranges = json!(["203.0.113.0/24"]);
    let spec = json!({
        "monitoring": {"serviceMonitor": true, "labels": {"release": "prometheus"}, "namespace": "monitoring"},
        "pod": {
            "labels": {"team": "iot"}, "tolerations": [{"key": "iot", "operator": "Exists"}],
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        },
    });
    meters.apply(spec, &[])?;
    // Nobody has installed the Prometheus Operator yet.
    let message = meters.told_within(PODS, "mqttinstance/meters", "Stalled", "Refused")?;
    ensure!(message.contains("ServiceMonitor"), "{message}");
    install_service_monitors(namespace)?;

    // Public access is switched on later, and takes no restart. This cluster has no addresses to give.
    meters.ready("mqttinstance/meters")?;
    let before = meters.pod()?;
    let public = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges, "annotations": {"cloud.example/tier": "a"}});
    namespace.patch("mqttinstance", "meters", &json!({"spec": {"service": public}}))?;
    meters.told_within(PODS, "mqttinstance/meters", "Reconciling", "WaitsForAddress")?;
    let given = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}});
    let patch = ["patch", "service", SERVICE, "--subresource", "status", "--patch"];
    namespace.kubectl(&[&patch[..], &[&given.to_string()]].concat())?;
    meters.ready("mqttinstance/meters")?;
    let instance = namespace.get("mqttinstance", "meters")?;
    let devices = at(&instance, "/status/endpoints/devices");
    let public = json!("mqtt://203.0.113.7:1883");
    ensure!(devices.as_array().is_some_and(|all| all.contains(&public)), "{devices}");
    ensure!(meters.pod()? == before, "the pod was restarted");

    let service = namespace.get("service", SERVICE)?;
    ensure!(*at(&service, "/spec/loadBalancerSourceRanges") == ranges, "{service}");
    ensure!(at(&service, "/spec/ipFamilyPolicy") == "PreferDualStack", "{service}");
    ensure!(at(&service, "/metadata/annotations/cloud.example~1tier") == "a", "{service}");
    let policy = namespace.get("networkpolicy", "meters-broker")?;
    let pods = at(&policy, "/spec/podSelector/matchLabels").as_object().context("no selector")?.clone();
    let selector: Vec<String> =
        pods.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    ensure!(namespace.list("pods", &selector.join(","))?.len() == 1, "{selector:?}");
    let monitor = namespace.get("servicemonitor", "meters-broker")?;
    ensure!(at(&monitor, "/metadata/labels/release") == "prometheus", "{monitor}");
    ensure!(at(&monitor, "/spec/endpoints/0/port") == "admin", "{monitor}");
    let budget = namespace.get("poddisruptionbudget", "meters-broker")?;
    ensure!(at(&budget, "/status/expectedPods") == 1, "{budget}");

    // The chart's own.
    let chart = root().join("charts/mqtt-operator").to_string_lossy().into_owned();
    let template =
        ["template", "watcher", &chart, "--kube-version", "1.34.0", "--set", "serviceMonitor.enabled=true"];
    let template =
        namespace.helm(&[&template[..], &["--show-only", "templates/servicemonitor.yaml"]].concat())?;
    let applied = namespace.kubectl_with(&["apply", "--dry-run=server", "-f", "-"], &template)?;
    ensure!(applied.contains("servicemonitor.monitoring.coreos.com/watcher"), "{applied}");
    ensure!(!applied.contains("Warning"), "{applied}");
    Ok(())
}
