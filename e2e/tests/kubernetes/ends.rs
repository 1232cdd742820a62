//! What becomes of what an instance leaves: taken back, or swept, and nothing hangs meanwhile.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use mqtt_broker_api::topics;
use mqtt_e2e::{Dialogue, Login, Version, clients::root, wait_until};
use serde_json::{Value, json};

use crate::{
    SOON,
    meters::{Meters, POD, grant, object},
    passwords::generated,
};

/// How long `kubectl delete` may take.
const ENDS: &str = "--timeout=60s";
/// Pods end, the operator sees it, and Kafka forgets topics.
const SWEPT: Duration = Duration::from_secs(90);
/// What brokers keep for themselves.
const OWN: [&str; 3] = ["__mqtt-sessions", "__mqtt-retained", "mqtt-device-connect"];

/// What the README says to run.
fn how_to_see_it() -> Result<String> {
    let text = fs::read_to_string(root().join("README.md"))?;
    let blocks = text.split("```shell\n").skip(1).filter_map(|block| block.split("```").next());
    let found = blocks.into_iter().find(|block| block.contains("mqtt.dms.dev/kept"));
    Ok(found.context("README does not say how to see what is kept")?.to_owned())
}

#[test]
fn what_an_instance_leaves_is_taken_back_or_swept_and_holds_up_no_deletion() -> Result<()> {
    let more = [
        object("MqttUser", "gateway", json!({})),
        grant("gateway", "gateway", &[("pubsub", "notices/#")]),
        object("ParentTopic", "short-lived", json!({"deletionPolicy": "Delete"})),
    ];
    // Alone: the operator is away for a while.
    let meters = Meters::empty_alone()?;
    let Meters { namespace, operator, kafka } = &meters;
    let kafka = kafka.admin()?;
    let start = |spec: Value| {
        meters.apply(spec, &more)?;
        meters.wait_until_all_are_ready()
    };
    let gateway = || -> Result<Login> {
        let password = generated(namespace, "gateway-mqtt", "password")?;
        Ok(Login::new(Version::V5, "keeps").user("gateway", &password).persistent())
    };
    let there = |topics: &[&str]| -> Result<bool> {
        let all: BTreeSet<String> = kafka.topics()?.into_keys().collect();
        Ok(topics.iter().all(|topic| all.contains(*topic)))
    };
    let swept = |what: &str| {
        wait_until(what, SWEPT, || {
            let all = kafka.topics()?;
            let left: Vec<_> =
                OWN.iter().chain(&["short-lived"]).filter(|topic| all.contains_key(**topic)).collect();
            ensure!(left.is_empty(), "{left:?} are there");
            Ok(operator.remembers(namespace.name(), "meters")?.is_none().then_some(()))
        })?;
        ensure!(there(&["readings"])?, "{what}: a topic is gone that was to stay");
        Ok(())
    };
    let delete = |objects: &[&str]| {
        for kind in objects {
            namespace.kubectl(&["delete", kind, "--all", ENDS])?;
        }
        namespace.kubectl(&["wait", "--for=delete", &format!("pod/{POD}"), ENDS]).map(drop)
    };
    start(json!({}))?;
    let login = gateway()?;
    let (mut device, _) = Dialogue::connect(meters.endpoint()?.mqtt, &login)?;
    ensure!(device.subscribe("notices/all", 1)? == 1, "a subscription is refused");
    drop(device);

    // It is kept, and the next one of the same name goes on where it was.
    delete(&["mqttinstance", "topicgrant", "mqttuser", "parenttopic"])?;
    let kept = wait_until("what is remembered of the instance", SOON, || {
        let found = operator.remembers(namespace.name(), "meters")?;
        Ok(found.and_then(|found| Some(found.get("mqtt.dms.dev/swept-after")?.as_str()?.to_owned())))
    })?;
    println!("gone, and swept after {kept}");
    let listed = namespace.shell(&how_to_see_it()?)?;
    let line = listed.lines().find(|line| line.starts_with(&format!("{}/meters ", namespace.name())));
    ensure!(line.is_some_and(|line| line.ends_with(&kept)), "{kept} is not in {listed}");
    ensure!(there(&OWN)? && there(&["short-lived", "readings"])?, "something is gone already");
    start(json!({}))?;
    let again = gateway()?;
    ensure!(again.password == login.password, "its users have other passwords now");
    ensure!(Dialogue::connect(meters.endpoint()?.mqtt, &again)?.1, "its sessions are gone");
    ensure!(there(&["short-lived"])?);

    // It has had its time; this time topics go first.
    namespace.patch("mqttinstance", "meters", &json!({"spec": {"retainFor": "3s"}}))?;
    meters.told("mqttinstance/meters", "Ready", "Serving")?;
    delete(&["parenttopic", "topicgrant", "mqttuser", "mqttinstance"])?;
    swept("the end of an instance that had its time")?;

    // At once. The topic goes with its object, whenever that goes.
    start(json!({"deletionPolicy": "Delete"}))?;
    ensure!(gateway()?.password != login.password, "a password outlived its time");
    delete(&["mqttinstance"])?;
    wait_until("the end of what is its own", SWEPT, || {
        let all = kafka.topics()?;
        Ok(topics::ALL.iter().all(|topic| !all.contains_key(*topic)).then_some(()))
    })?;
    ensure!(there(&["short-lived"])?, "its object is there");
    // Somebody thinks better of it, and again, and is not waited for.
    let policy = |policy: &str| {
        let patch = json!({"spec": {"deletionPolicy": policy}});
        namespace.patch("parenttopic", "short-lived", &patch)
    };
    policy("Retain")?;
    delete(&["parenttopic"])?;
    wait_until("the end of the record", SWEPT, || {
        Ok(operator.remembers(namespace.name(), "meters")?.is_none().then_some(()))
    })?;
    ensure!(there(&["short-lived"])?, "it was to stay");

    // Whoever deletes the record keeps what it is about.
    start(json!({}))?;
    delete(&["mqttinstance"])?;
    let record = || {
        let found = operator.remembers(namespace.name(), "meters")?;
        Ok(found.filter(|found| found.get("mqtt.dms.dev/swept-after").is_some()).map(drop))
    };
    wait_until("the record", SOON, record)?;
    operator.kubectl(&["delete", "secrets", "--selector", "mqtt.dms.dev/kept"])?;

    // The namespace goes while there is neither an operator nor Kafka.
    start(json!({"deletionPolicy": "Delete"}))?;
    operator.scale(0)?;
    kafka.freeze(1)?;
    namespace.cluster().kubectl(&["delete", "namespace", namespace.name(), "--timeout=120s"])?;
    operator.scale(2)?;
    namespace.cluster().wait_until_up()?;
    ensure!(operator.remembers(namespace.name(), "meters")?.is_some(), "forgotten though nothing was swept");
    kafka.thaw(1)?;
    swept("the end of a namespace")
}
