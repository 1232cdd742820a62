//! What the operator may do is what it does: its roles beside the API server's audit log.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{kubernetes::Request, wait_until};
use serde_json::{Value, json};

use crate::{
    PODS, SOON,
    meters::{Meters, grant, object},
};

/// Its kind comes with others; the story of that kind asks for all of it.
const ELSEWHERE: &str = "monitoring.coreos.com/servicemonitors";

/// A verb of RBAC on GROUP/RESOURCE.
type Right = (String, String);

#[test]
fn the_operator_uses_each_of_its_rights_and_lacks_none() -> Result<()> {
    let meters = Meters::empty_alone()?;
    let Meters { namespace, operator, .. } = &meters;
    let user = operator.user();
    let asked = || -> Result<Vec<Request>> {
        Ok(namespace.cluster().requests()?.into_iter().filter(|request| request.user == user).collect())
    };
    // Others may have taken its rights away for a while.
    let before = asked()?.len();
    let short_lived = object("ParentTopic", "short-lived", json!({"deletionPolicy": "Delete"}));
    meters.apply(json!({"deletionPolicy": "Delete"}), &[short_lived])?;
    meters.wait_until_all_are_ready()?;

    // What looks as if it had been its own once, and is not wanted: one of each kind.
    let instance = namespace.get("mqttinstance", "meters")?;
    let uid = instance.pointer("/metadata/uid").context("no UID")?;
    let owner = json!({
        "apiVersion": "mqtt.dms.dev/v1alpha1", "kind": "MqttInstance", "name": "meters", "uid": uid, "controller": true,
    });
    let labels = json!({"app.kubernetes.io/managed-by": "mqtt-operator"});
    let strays: Vec<Value> = strays()
        .into_iter()
        .map(|(version, kind, spec)| {
            let metadata = json!({"name": "stray", "labels": labels, "ownerReferences": [owner]});
            let mut stray = json!({"apiVersion": version, "kind": kind, "metadata": metadata});
            if let Some(spec) = spec {
                stray["spec"] = spec;
            }
            stray
        })
        .collect();
    namespace.apply_all(&strays)?;
    for (_, kind, _) in self::strays() {
        wait_until(&format!("the end of a stray {kind}"), PODS, || {
            Ok(namespace.get(kind, "stray").is_err().then_some(()))
        })?;
    }

    // The same is told twice, and a finalizer of an earlier version is taken away.
    namespace.apply(&grant("told-twice", "nobody", &[("pub", "a")]))?;
    let told = |condition: &str| namespace.wait(condition, "topicgrant/told-twice", SOON);
    told("condition=Stalled")?;
    namespace.apply(&object("MqttUser", "nobody", json!({})))?;
    told("condition=Ready")?;
    namespace.delete("mqttuser/nobody")?;
    told("condition=Stalled")?;
    let finalizer = json!({"metadata": {"finalizers": ["mqtt.dms.dev/kafka-topic"]}});
    namespace.patch("parenttopic", "short-lived", &finalizer)?;
    namespace.kubectl(&["delete", "parenttopic", "short-lived", "--timeout=30s"])?;
    namespace.kubectl(&["delete", "mqttinstance", "meters", "--timeout=30s"])?;
    wait_until("the end of what is remembered", PODS, || {
        Ok(operator.remembers(namespace.name(), "meters")?.is_none().then_some(()))
    })?;

    let asked = asked()?;
    let here = asked.get(before..).unwrap_or_default();
    let refused: Vec<_> = here.iter().filter(|request| request.lacks_right).collect();
    ensure!(refused.is_empty(), "it may not: {refused:?}");
    let used: BTreeSet<Right> = asked.iter().flat_map(rights_of).collect();
    let may = rights(&meters)?;
    let lacking: Vec<_> = here.iter().flat_map(rights_of).filter(|right| !may.contains(right)).collect();
    ensure!(lacking.is_empty(), "it does what its roles do not say: {lacking:?}");
    let superfluous: Vec<_> = may.difference(&used).filter(|(resource, _)| resource != ELSEWHERE).collect();
    ensure!(superfluous.is_empty(), "it may and never does: {superfluous:?}");
    println!("{} rights, all of them used in {} requests", may.len(), asked.len());
    Ok(())
}

/// Version, kind and spec of an object of each kind that an instance may own.
fn strays() -> Vec<(&'static str, &'static str, Option<Value>)> {
    let labels = json!({"stray": "yes"});
    let set = json!({
        "replicas": 0, "serviceName": "stray", "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "none", "image": "none"}]}},
    });
    vec![
        ("v1", "ConfigMap", None),
        ("v1", "Secret", None),
        ("v1", "Service", Some(json!({"selector": labels, "ports": [{"port": 1}]}))),
        ("apps/v1", "StatefulSet", Some(set)),
        (
            "policy/v1",
            "PodDisruptionBudget",
            Some(json!({"minAvailable": 1, "selector": {"matchLabels": labels}})),
        ),
        ("networking.k8s.io/v1", "NetworkPolicy", Some(json!({"podSelector": {"matchLabels": labels}}))),
    ]
}

/// What a request takes; server-side apply takes another right where there is no such object yet.
fn rights_of(request: &Request) -> Vec<Right> {
    let resource = format!("{}/{}", request.group, request.resource);
    let mut rights = vec![(resource.clone(), request.verb.clone())];
    if request.verb == "patch" && request.code == 201 {
        rights.push((resource, "create".into()));
    }
    rights
}

/// What the operator's roles say, wherever they count.
fn rights(meters: &Meters) -> Result<BTreeSet<Right>> {
    let cluster = meters.namespace.cluster();
    let text = cluster.kubectl(&[
        "get",
        "clusterroles,roles",
        "--namespace",
        meters.operator.namespace(),
        "--selector",
        "app.kubernetes.io/name=mqtt-operator",
        "--output",
        "json",
    ])?;
    let list: Value = serde_json::from_str(&text)?;
    let roles = list.get("items").and_then(Value::as_array).context("no items")?;
    let rules = roles.iter().filter_map(|role| role.get("rules")?.as_array()).flatten();
    let words = |rule: &Value, field: &str| -> Vec<String> {
        let all = rule.get(field).and_then(Value::as_array).into_iter().flatten();
        all.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut rights = BTreeSet::new();
    for rule in rules {
        for group in words(rule, "apiGroups") {
            for resource in words(rule, "resources") {
                let named = words(rule, "verbs").into_iter();
                rights.extend(named.map(|verb| (format!("{group}/{resource}"), verb)));
            }
        }
    }
    Ok(rights)
}
