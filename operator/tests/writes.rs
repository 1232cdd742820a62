//! What is written to an API server, by whom, and what is not.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod fake_api;

use std::sync::Arc;

use fake_api::FakeApi;
use mqtt_operator::{
    apply::{Error, Owner, Subject, Writer},
    leader::{Candidate, Error as Lost, Fence},
    status::Verdict,
};
use mqtt_operator_api::{Kind, render::ObjectName};
use serde_json::{Map, Value, json};

const SERVICE: &str = "/api/v1/namespaces/plant/services/meters-mqtt";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/ops/leases/mqtt-operator";
const USER: &str = "/apis/mqtt.dms.dev/v1alpha1/namespaces/plant/mqttusers/fleet";

fn owner() -> Owner {
    let object = ObjectName { kind: Kind::MqttInstance, namespace: "plant".into(), name: "meters".into() };
    Owner { object, uid: "7".into() }
}

fn service(port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "meters-mqtt", "namespace": "plant", "ownerReferences": [owned_by("meters", "7")]},
        "spec": {"ports": [{"port": port}]},
    })
}

fn owned_by(name: &str, uid: &str) -> Value {
    json!({"apiVersion": "mqtt.dms.dev/v1alpha1", "kind": "MqttInstance", "name": name, "uid": uid, "controller": true})
}

fn candidate(api: &FakeApi, identity: &str) -> Candidate {
    Candidate::new(api.client(), "ops", "mqtt-operator", identity)
}

/// A writer that leads.
async fn leader(api: &FakeApi) -> (Writer, Candidate, Arc<Fence>) {
    let (fence, candidate) = (Arc::new(Fence::default()), candidate(api, "a"));
    candidate.acquire(&fence, || ()).await;
    api.asked();
    (Writer::new(api.client(), fence.clone(), "a"), candidate, fence)
}

#[tokio::test]
async fn what_is_as_it_should_be_is_not_written_again() {
    let api = FakeApi::default();
    let (writer, ..) = leader(&api).await;
    let apply = async |object: &Value| writer.apply(&owner(), object, false).await.unwrap();
    let version = apply(&service(1883)).await;
    assert_eq!(api.asked(), [format!("GET {SERVICE}"), format!("PATCH {SERVICE}")]);
    assert_eq!(apply(&service(1883)).await, version);
    assert_eq!(api.asked(), [""; 0]);
    // At a resync it is looked at.
    let resync = async || {
        writer.ledger.doubt(|item| item.name == "meters-mqtt");
        apply(&service(1883)).await
    };
    assert_eq!(resync().await, version);
    assert_eq!(api.asked(), [format!("GET {SERVICE}")], "nobody has changed it");
    assert_eq!(apply(&service(1883)).await, version);
    assert_eq!(api.asked(), [""; 0], "it was looked at");
    for (what, theirs) in [("changed", Some(json!({"port": 99}))), ("deleted", None)] {
        match theirs {
            Some(ports) => {
                let mut changed = api.get(SERVICE).unwrap();
                changed["spec"]["ports"] = json!([ports]);
                api.put(SERVICE, changed);
            }
            None => api.remove(SERVICE),
        }
        resync().await;
        assert_eq!(api.asked(), [format!("GET {SERVICE}"), format!("PATCH {SERVICE}")], "{what}");
        assert_eq!(api.get(SERVICE).unwrap()["spec"]["ports"][0]["port"], 1883, "{what}");
    }
    apply(&service(1884)).await;
    assert_eq!(api.get(SERVICE).unwrap()["spec"]["ports"][0]["port"], 1884);
}

#[tokio::test]
async fn what_is_not_its_owners_is_never_touched_and_its_name_is_told() {
    for (what, references, reason) in [
        ("somebody's own", json!([]), "NameTaken"),
        ("of another instance", json!([owned_by("other", "8")]), "NameTaken"),
        ("of an instance that was deleted, and goes by itself", json!([owned_by("meters", "6")]), "Retrying"),
    ] {
        let api = FakeApi::default();
        let (writer, ..) = leader(&api).await;
        let theirs = json!({"metadata": {"name": "meters-mqtt", "ownerReferences": references}, "spec": {"mine": true}});
        api.put(SERVICE, theirs);
        let before = api.get(SERVICE);
        let refused = writer.apply(&owner(), &service(1883), false).await.unwrap_err();
        assert_eq!(refused.verdict().reason, reason, "{what}: {refused}");
        assert!(refused.to_string().contains("Service plant/meters-mqtt"), "{what}: {refused}");
        assert_eq!(api.get(SERVICE), before, "{what}");
    }
}

#[tokio::test]
async fn who_does_not_lead_writes_nothing() {
    let api = FakeApi::default();
    let idle = Writer::new(api.client(), Arc::new(Fence::default()), "b");
    assert_eq!(idle.apply(&owner(), &service(1883), true).await, Err(Error::Lost));
    let (writer, candidate, fence) = leader(&api).await;
    candidate.release(&fence).await;
    api.asked();
    assert_eq!(writer.apply(&owner(), &service(1883), true).await, Err(Error::Lost));
    assert_eq!(writer.nudge("plant", "meters-broker-0", "x").await, Err(Error::Lost));
    assert_eq!(api.asked(), [""; 0]);
    assert_eq!(api.get(LEASE).unwrap()["spec"]["holderIdentity"], "", "given back");
}

#[tokio::test]
async fn a_status_is_written_when_it_changes_and_what_is_no_longer_so_is_taken_away() {
    let api = FakeApi::default();
    let (writer, ..) = leader(&api).await;
    let object = ObjectName { kind: Kind::MqttUser, namespace: "plant".into(), name: "fleet".into() };
    api.put(USER, json!({"metadata": {"name": "fleet"}}));
    let say = async |verdict: &Verdict, more: Value| {
        let subject = Subject { object: &object, uid: "1", generation: Some(3), seen: &Value::Null };
        let more: Map<_, _> = more.as_object().unwrap().clone();
        writer.say(&subject, verdict, more).await.unwrap();
        api.asked().into_iter().filter(|asked| asked.ends_with("/status")).count()
    };
    let ready = Verdict::ready("InForce", "devices may log in");
    assert_eq!(say(&ready, json!({"nodes": [1]})).await, 1);
    assert_eq!(say(&ready, json!({"nodes": [1]})).await, 0, "said already, though no watch has told so yet");
    // At a resync what the watch has seen counts.
    let said = api.get(USER).unwrap()["status"].clone();
    for (what, seen, writes) in
        [("as it was said", &said, 0), ("changed by somebody", &json!({"nodes": [7]}), 1)]
    {
        writer.forget_status(|_| true);
        let subject = Subject { object: &object, uid: "1", generation: Some(3), seen };
        writer.say(&subject, &ready, [("nodes".to_owned(), json!([1]))].into_iter().collect()).await.unwrap();
        let asked: Vec<_> = api.asked().into_iter().filter(|asked| asked.ends_with("/status")).collect();
        assert_eq!(asked.len(), writes, "{what}: {asked:?}");
    }
    assert_eq!(say(&ready, json!({})).await, 1);
    let status = api.get(USER).unwrap()["status"].clone();
    assert_eq!((&status["observedGeneration"], &status["nodes"]), (&json!(3), &Value::Null));
    assert_eq!(status["conditions"][0]["reason"], "InForce");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_not_renewed_is_taken_over_and_its_holder_finds_out() {
    let api = FakeApi::default();
    let (first, second) = (candidate(&api, "a"), candidate(&api, "b"));
    let (a, b) = (Fence::default(), Fence::default());
    let lease = first.acquire(&a, || ()).await;
    assert!(a.left().is_some() && b.left().is_none());
    let waited = tokio::time::Instant::now();
    second.acquire(&b, || ()).await;
    assert!(waited.elapsed().as_secs() >= 15, "taken over after {:?}", waited.elapsed());
    assert_eq!(api.get(LEASE).unwrap()["spec"]["holderIdentity"], "b");
    // It wakes, and would renew what it held.
    let lost = first.keep(lease, &a).await;
    assert!(matches!(lost, Lost::Taken { ref holder, .. } if holder == "b"), "{lost}");
    assert!(a.left().is_none() && b.left().is_some());
    assert_eq!(api.get(LEASE).unwrap()["spec"]["holderIdentity"], "b");
}

#[tokio::test(start_paused = true)]
async fn who_is_started_again_under_its_own_name_need_not_wait() {
    let api = FakeApi::default();
    let (before, after) = (Fence::default(), Fence::default());
    candidate(&api, "a").acquire(&before, || ()).await;
    let started = tokio::time::Instant::now();
    candidate(&api, "a").acquire(&after, || ()).await;
    assert_eq!(started.elapsed().as_secs(), 0);
    assert_eq!(api.get(LEASE).unwrap()["spec"]["leaseTransitions"], 1);
}
