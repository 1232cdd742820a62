//! What is built, byte for byte: for each input the file of its name in `golden/`.

#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::{FULL, MINIMAL, good, options, parent, user};
use mqtt_operator::{
    cli::yaml,
    instance::build::Options,
    user::password::{Found, Plan, plan},
};
use mqtt_operator_api::user::MqttUser;
use serde_json::{Value, json};

/// Builds from the manifests and compares with `golden/NAME.yaml`.
fn check(name: &str, manifests: &str, options: &Options) {
    let (_, built) = good(manifests, options);
    compare(name, &built.objects().unwrap());
}

fn compare(name: &str, objects: &[Value]) {
    let text: String = objects.iter().map(|object| yaml(object).unwrap()).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.yaml"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    let different = golden.lines().zip(text.lines()).position(|(old, new)| old != new);
    let line = different.unwrap_or(golden.lines().count().min(text.lines().count())) + 1;
    assert!(
        golden == text,
        "{name} is built otherwise from line {line} of {} on. If that is meant: UPDATE_GOLDEN=1 cargo test -p mqtt-operator --test golden, and read the difference",
        path.display()
    );
}

#[test]
fn an_instance_that_says_nothing_but_where_kafka_is() {
    check("minimal", MINIMAL, &options());
}

#[test]
fn an_instance_that_says_all_there_is_to_say() {
    check("full", &[FULL, &user("fleet"), &parent("readings")].concat(), &options());
}

#[test]
fn an_instance_with_an_address_of_its_own_for_devices() {
    let service = "  service:
    type: LoadBalancer
    annotations: {cloud.example/balancer: external}
    loadBalancerSourceRanges: [203.0.113.0/24, \"2001:db8::/32\"]
";
    check("load_balancer", &[MINIMAL, service].concat(), &options());
}

#[test]
fn an_instance_that_logs_in_to_kafka_without_tls() {
    let sasl =
        "sasl: {mechanism: SCRAM-SHA-256, username: mqtt, passwordSecretRef: {name: fleet, key: password}}";
    let manifests = MINIMAL.replace("replicationFactor: 1", &format!("replicationFactor: 1, {sasl}"));
    check("no_kafka_tls", &[&manifests, &*user("fleet")].concat(), &options());
}

#[test]
fn an_acl_that_takes_three_shards() {
    let users: String = ["a", "b", "c", "d", "e"].map(user).concat();
    check("three_acl_shards", &[MINIMAL, &users].concat(), &Options { shard_bytes: 650, ..options() });
}

#[test]
fn a_password_that_is_generated_and_one_that_replaces_it() {
    let user = |annotations: Value| -> MqttUser {
        serde_json::from_value(json!({
            "apiVersion": "mqtt.dms.dev/v1alpha1", "kind": "MqttUser",
            "metadata": {"name": "fleet", "namespace": "plant", "uid": "u-1", "annotations": annotations},
            "spec": {"instanceRef": {"name": "meters"}, "username": "fleet of plant"},
        }))
        .unwrap()
    };
    let Plan::Apply(first) = plan(&user(json!({})), None, None, [1; 32]) else { panic!() };
    let data: BTreeMap<_, _> =
        first.data.clone().unwrap().into_iter().map(|(key, value)| (key, value.0)).collect();
    let found = Found { owner: Some("u-1"), data: &data };
    let rotated = user(json!({"mqtt.dms.dev/rotate-password": "2026-11"}));
    let Plan::Apply(second) = plan(&rotated, Some(found), None, [2; 32]) else { panic!() };
    let objects = [first, second].map(|secret| serde_json::to_value(secret).unwrap());
    compare("generated_password", &objects);
}

#[test]
fn every_golden_file_belongs_to_an_input() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected =
        ["full", "generated_password", "load_balancer", "minimal", "no_kafka_tls", "three_acl_shards"];
    assert_eq!(names, expected.map(|name| format!("{name}.yaml")));
}
