//! What an instance may say of its pods and Services, and its own name.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use mqtt_operator_api::{Kind, instance::MqttInstance, validate::Validator};
use serde_json::{Value, json};

/// Each case: a name, what stands in the spec, and the beginning of the only problem there is, or none. What has no
/// problem can be read, and is written back as it was.
fn check(cases: &[(&str, Value, Option<&str>)]) {
    let validator = Validator::new().unwrap();
    for (name, spec, expected) in cases {
        let object = json!({"apiVersion": "mqtt.dms.dev/v1alpha1", "kind": "MqttInstance",
                            "metadata": {"name": name}, "spec": spec});
        let found: Vec<_> = validator.check(Kind::MqttInstance, &object, None);
        let lines: Vec<_> = found.iter().map(|found| format!("{}: {}", found.field, found.message)).collect();
        match expected {
            None => {
                assert!(lines.is_empty(), "{name} {spec}: {lines:#?}");
                let read: MqttInstance = serde_json::from_value(object).unwrap();
                let written = serde_json::to_value(read.spec).unwrap();
                for (field, value) in spec.as_object().unwrap() {
                    let mut written = written[field].clone();
                    if value.get("type").is_none() && value.get("serviceMonitor").is_none() {
                        let map = written.as_object_mut().unwrap();
                        map.retain(|key, _| value.get(key).is_some());
                    }
                    assert_eq!(&written, value, "{name}");
                }
            }
            Some(start) => assert!(
                lines.len() == 1 && lines[0].starts_with(start),
                "{name} {spec}: {lines:#?}, not {start:?}"
            ),
        }
    }
}

fn pod(pod: Value) -> Value {
    json!({"pod": pod})
}

#[test]
fn a_name_of_an_instance_fits_into_host_names() {
    let wrong = Some(": the name of an MqttInstance is part of host names: use up to 45");
    check(&[
        ("m", json!({}), None),
        ("meters-2", json!({}), None),
        (&"m".repeat(45), json!({}), None),
        (&"m".repeat(46), json!({}), wrong),
        ("2-meters", json!({}), wrong),
        ("meters.plant", json!({}), wrong),
    ]);
}

#[test]
fn a_service_is_held_to_its_bounds() {
    let ranges =
        |of: &str, ranges: Value| json!({"service": {"type": of, "loadBalancerSourceRanges": ranges}});
    check(&[
        ("a", json!({"service": {"type": "NodePort"}}), None),
        (
            "a",
            json!({"service": {"type": "LoadBalancer", "annotations": {"cloud.example/kind": "nlb, internal"}}}),
            None,
        ),
        (
            "a",
            json!({"service": {"type": "ExternalName"}}),
            Some("spec.service.type: \"ExternalName\" is not one of"),
        ),
        ("a", ranges("LoadBalancer", json!(["203.0.113.0/24", "2001:db8::/32"])), None),
        (
            "a",
            ranges("NodePort", json!(["203.0.113.0/24"])),
            Some("spec.service: only a LoadBalancer has source ranges"),
        ),
        (
            "a",
            json!({"service": {"loadBalancerSourceRanges": ["203.0.113.0/24"]}}),
            Some("spec.service: only a LoadBalancer has source ranges"),
        ),
        (
            "a",
            ranges("LoadBalancer", json!(["203.0.113.0"])),
            Some("spec.service.loadBalancerSourceRanges: each range is ADDRESS/BITS"),
        ),
        (
            "a",
            ranges("LoadBalancer", json!(["203.0.113.0/33"])),
            Some("spec.service.loadBalancerSourceRanges: each range is ADDRESS/BITS"),
        ),
        (
            "a",
            json!({"service": {"annotations": {"no key": "x"}}}),
            Some("spec.service.annotations: keys are NAME or PREFIX/NAME"),
        ),
    ]);
}

#[test]
fn overrides_of_pods_are_held_to_their_bounds() {
    let many: BTreeMap<_, _> = (0..65).map(|n| (format!("l{n}"), "x")).collect();
    check(&[
        (
            "a",
            pod(json!({
                "image": "registry.example:5000/mqtt-broker@sha256:0123", "imagePullSecrets": [{"name": "registry"}],
                "resources": {"requests": {"cpu": 2, "memory": "1.5Gi", "example.com/gpu": "1"},
                              "limits": {"memory": "2Gi", "hugepages-2Mi": "0"}},
                "affinity": {"nodeAffinity": {"anything": [{"goes": true}]}},
                "tolerations": [{"key": "dedicated", "operator": "Exists"}, {}],
                "priorityClassName": "high", "labels": {"team": "plant", "example.com/cost": ""},
                "annotations": {"example.com/note": "ä b"}, "logLevel": "debug",
            })),
            None,
        ),
        ("a", pod(json!({"image": "a b"})), Some("spec.pod.image: \"a b\" has characters")),
        (
            "a",
            pod(json!({"resources": {"requests": {"cpu": "-1"}}})),
            Some("spec.pod.resources.requests.cpu: \"-1\" is not an amount"),
        ),
        (
            "a",
            pod(json!({"resources": {"requests": {"cpu": 0.5}}})),
            Some("spec.pod.resources.requests.cpu: must be a whole number or text"),
        ),
        ("a", pod(json!({"resources": {"claims": []}})), Some("spec.pod.resources.claims: is not known")),
        ("a", pod(json!({"tolerations": {}})), Some("spec.pod.tolerations: must be a list")),
        ("a", pod(json!({"affinity": []})), Some("spec.pod.affinity: must be a map of fields")),
        ("a", pod(json!({"labels": {"team": "a b"}})), Some("spec.pod.labels.team: \"a b\" has characters")),
        (
            "a",
            pod(json!({"labels": {"app.kubernetes.io/name": "x"}})),
            Some("spec.pod.labels: app.kubernetes.io/ is the operator's"),
        ),
        ("a", pod(json!({"labels": many})), Some("spec.pod.labels: has 65 entries, and may have 64")),
        (
            "a",
            pod(json!({"logLevel": "INFO"})),
            Some("spec.pod.logLevel: \"INFO\" is not one of error, warn"),
        ),
        ("a", pod(json!({"nodeSelector": {}})), Some("spec.pod.nodeSelector: is not known")),
    ]);
}

#[test]
fn monitoring_is_held_to_its_bounds() {
    check(&[
        (
            "a",
            json!({"monitoring": {"serviceMonitor": true, "labels": {"release": "prometheus"}, "namespace": "monitoring"}}),
            None,
        ),
        (
            "a",
            json!({"monitoring": {"serviceMonitor": "yes"}}),
            Some("spec.monitoring.serviceMonitor: must be true or false"),
        ),
        (
            "a",
            json!({"monitoring": {"namespace": "A"}}),
            Some("spec.monitoring.namespace: \"A\" is not a namespace"),
        ),
    ]);
}
