//! A tree of manifests in Git, applied and pruned again and again, as a GitOps controller does.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use mqtt_e2e::clients::root;
use serde_json::{Value, json};

use crate::{
    PODS,
    meters::{Meters, object},
    objects_in,
};

const KINDS: [&str; 4] = ["mqttinstance", "parenttopic", "mqttuser", "topicgrant"];

#[test]
fn a_tree_that_is_applied_again_changes_nothing_and_what_left_it_is_pruned() -> Result<()> {
    let meters = Meters::empty()?;
    let namespace = &meters.namespace;
    let tree = tempfile::tempdir()?;
    let write = |name: &str, object: &Value| fs::write(tree.path().join(name), object.to_string());
    let mut ours = Vec::new();
    for (number, mut object) in objects_in(&root().join("examples"))?.into_iter().enumerate() {
        if object.get("kind") == Some(&"MqttInstance".into()) {
            let spec = object.pointer_mut("/spec").and_then(Value::as_object_mut).context("no spec")?;
            spec.insert("kafka".into(), meters.on_kafka());
            spec.insert("replicas".into(), 1.into());
        }
        let name = format!("{number}.json");
        write(&name, &object)?;
        if object.get("kind") != Some(&"Secret".into()) {
            ours.push(tree.path().join(name).display().to_string());
        }
    }
    write("alarms.json", &object("ParentTopic", "alarms", json!({})))?;
    let folder = tree.path().display();
    let apply = || {
        namespace.shell(&format!(
            "export KUBECTL_APPLYSET=true\nkubectl apply --server-side --prune --applyset=configmaps/tree -f {folder}"
        ))
    };
    // With what others have put in them: status, defaults, managed fields.
    let versions = || -> Result<BTreeMap<String, Value>> {
        let mut all = BTreeMap::new();
        for kind in KINDS {
            for object in namespace.list(kind, "")? {
                let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
                let version = object.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
                all.insert(format!("{kind}/{name}"), version);
            }
        }
        Ok(all)
    };
    apply()?;
    namespace.wait_all("condition=Ready", "mqtt", PODS)?;
    namespace.wait_all("condition=Enforced", "mqtt", PODS)?;
    let before = versions()?;
    ensure!(before.contains_key("parenttopic/alarms") && before.len() > 6, "{before:?}");
    // By somebody else: as who applied it, kubectl would take its own label away. Of Secrets it can't compare `stringData`.
    let mut compare = vec!["diff", "--server-side", "--field-manager=looks"];
    compare.extend(ours.iter().flat_map(|file| ["-f", file]));
    let differs = namespace.kubectl(&compare)?;
    ensure!(differs.is_empty(), "what is in force is not what is in the tree: {differs}");
    apply()?;
    ensure!(versions()? == before, "applied again: {:?}, before {before:?}", versions()?);

    fs::remove_file(tree.path().join("alarms.json"))?;
    apply()?;
    let left = versions()?;
    ensure!(!left.contains_key("parenttopic/alarms"), "what left the tree is there: {left:?}");
    // The instance tells what its brokers have loaded by now.
    let mut others = left.iter().filter(|(object, _)| !object.starts_with("mqttinstance/"));
    ensure!(
        others.all(|(object, version)| before.get(object) == Some(version)),
        "{left:?}, before {before:?}"
    );
    ensure!(meters.kafka.admin()?.topics()?.contains_key("alarms"), "its records went with it");
    Ok(())
}
