//! `mqtt-operator render` as a person runs it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use common::{FULL, MINIMAL, user};
use mqtt_broker_api::yaml::documents;
use serde_json::Value;
use tempfile::TempDir;

fn folder(manifests: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("all.yaml"), manifests).unwrap();
    folder
}

fn render(folder: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mqtt-operator"));
    command.args(["render", "--manifests"]).arg(folder).args(more).output().unwrap()
}

/// Renders, and gives back the objects and what was said beside.
fn objects(manifests: &str, more: &[&str]) -> (Vec<Value>, String) {
    let output = render(folder(manifests).path(), more);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{}: {said}", output.status);
    let read = documents(&String::from_utf8(output.stdout).unwrap()).unwrap();
    (read.into_iter().map(|document| document.value).collect(), said)
}

/// Renders what is wrong, and compares the lines, in which `DIR` stands for the folder.
fn check(what: &str, manifests: &str, expected: &[&str]) {
    let folder = folder(manifests);
    let output = render(folder.path(), &[]);
    let said = String::from_utf8(output.stderr).unwrap().replace(&folder.path().display().to_string(), "DIR");
    assert_eq!(said.lines().collect::<Vec<_>>(), expected, "{what}");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{what}");
}

#[test]
fn what_is_printed_is_what_is_built() {
    let kinds = |objects: &[Value]| {
        objects.iter().map(|object| object["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let others =
        ["Service", "Service", "NetworkPolicy", "PodDisruptionBudget", "StatefulSet", "ServiceMonitor"];
    let manifests = [FULL, &user("fleet")].concat();
    let (all, said) = objects(&manifests, &["--image", "registry.example/mqtt-broker:2"]);
    assert_eq!(kinds(&all), [&["ConfigMap", "Secret", "Secret", "Secret", "Secret"][..], &others].concat());
    assert_eq!(said, "");
    let (without, _) = objects(&manifests, &["--without-secrets"]);
    assert_eq!(kinds(&without), [&["ConfigMap"][..], &others].concat());
}

#[test]
fn flags_say_what_is_the_same_for_all_instances() {
    let flags = ["--image", "registry.example/mqtt-broker:2", "--operator-namespace", "op"];
    let (objects, said) = objects(MINIMAL, &flags);
    assert_eq!(said, "");
    let of = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
    let container = &of("StatefulSet")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "registry.example/mqtt-broker:2");
    let peer = &of("NetworkPolicy")["spec"]["ingress"][1]["from"][0];
    assert_eq!(peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], "op");
}

#[test]
fn a_mistake_is_told_with_file_line_and_field() {
    let whole = "DIR/all.yaml: document 1 (MqttInstance meters)";
    check(
        "a wrong value",
        &MINIMAL.replace("replicas: 1", "replicas: 0"),
        &[&format!("{whole}, line 5: spec.replicas: is 0, and must be 1 at least; raise it")],
    );
    check(
        "a name of nobody",
        &[MINIMAL, &user("fleet").replace("userRef: {name: fleet}", "userRef: {name: flet}")].concat(),
        &[
            "DIR/all.yaml: document 4 (TopicGrant fleet), line 21: spec.userRef.name: there is no MqttUser plant/flet; create it, or name another one",
        ],
    );
    check(
        "what can't be built",
        &[MINIMAL, "  pod: {affinity: {nodeAfinity: {}}}\n"].concat(),
        &[&format!(
            "{whole}, line 7: spec.pod.affinity.nodeAfinity: is not known in pods; remove or rename it"
        )],
    );
    check("nothing", "", &["DIR: there is no MqttInstance in any *.yaml file here; add one"]);
}
