//! What people get wrong: their object says whose turn it is and what to do, and comes right without a restart.

use anyhow::{Result, ensure};
use mqtt_e2e::{Authority, clients::root, wait_until};
use serde_json::{Value, json};

use crate::{
    PODS, SOON,
    meters::{Meters, TLS, certificate, grant, meter, ops},
};

#[test]
fn a_wrong_kafka_address_and_missing_secrets_are_told_and_come_right_without_a_restart() -> Result<()> {
    let meters = Meters::empty()?;
    let namespace = &meters.namespace;
    // As they are, the examples name a Kafka that is not here.
    namespace.apply_files(&root().join("examples"))?;
    let message = meters.told_within(PODS, "mqttinstance/meters", "Stalled", "BrokersNotReady")?;
    ensure!(message.contains("kafka-0.kafka:9092"), "{message}");
    let before = meters.pod()?;
    namespace.patch("mqttinstance", "meters", &json!({"spec": {"kafka": meters.on_kafka()}}))?;
    meters.wait_until_all_are_ready()?;
    ensure!(meters.pod()? == before, "the pod was restarted");

    // A listener whose Secret is still to come: until then the pod is left alone, and what else changes is in force.
    let mut stays = meters.connect(&ops("early"))?;
    let mqtts = json!({"spec": {"listeners": {"mqtts": {"secretRef": {"name": TLS}}}}});
    namespace.patch("mqttinstance", "meters", &mqtts)?;
    let message = meters.told("mqttinstance/meters", "Stalled", "SecretNotFound")?;
    ensure!(message.contains(TLS) && message.contains("spec.listeners.mqtts.secretRef.name"), "{message}");
    namespace.apply(&grant("ops-meanwhile", "ops", &[("sub", "alarms/meanwhile")]))?;
    meters.ready("topicgrant/ops-meanwhile")?;
    ensure!(stays.subscribe("alarms/meanwhile", 0)? == 0, "ready, but not in force");
    ensure!(meters.pod()? == before, "the pod was restarted before there is a certificate");
    namespace.apply(&certificate(&Authority::new("plant")?, namespace)?.1)?;
    meters.wait_until_all_are_ready()?;

    // A Secret with another name than the user says.
    let before = meters.pod()?;
    let mut stays = meters.connect(&ops("desk"))?;
    let password = namespace.get("secret", "fleet-password")?;
    // What happens again is one event that counts. It may have happened when the examples came, the user before its Secret.
    let counted = || -> Result<u64> {
        let told: Vec<Value> = namespace.list("events.v1.events.k8s.io", "")?;
        let mut told = told.into_iter().filter(|event| {
            event.pointer("/regarding/name") == Some(&"fleet".into())
                && event.get("reason") == Some(&"SecretNotFound".into())
        });
        let (event, more) = (told.next(), told.count());
        ensure!(more == 0, "{} events of one reason", more + 1);
        let Some(event) = event else { return Ok(0) };
        ensure!(event.get("type") == Some(&"Warning".into()), "{event}");
        Ok(event.pointer("/series/count").and_then(Value::as_u64).unwrap_or(1))
    };
    for is_last in [false, true] {
        meters.ready("mqttuser/fleet")?;
        let former = counted()?;
        namespace.delete("secret/fleet-password")?;
        let message = meters.told("mqttuser/fleet", "Stalled", "SecretNotFound")?;
        ensure!(message.contains("fleet-password"), "{message}");
        wait_until("the event", SOON, || Ok((counted()? == former + 1).then_some(())))?;
        if !is_last {
            namespace.apply(&json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "fleet-password"}, "data": password.get("data"),
            }))?;
            meters.ready("mqttuser/fleet")?;
        }
    }
    wait_until("the end of the password", SOON, || Ok((!meters.lets_in(&meter(1))?).then_some(())))?;
    let renamed = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "password-of-the-fleet"},
        "stringData": {"password": "demo-only-fleet"},
    });
    namespace.apply(&renamed)?;
    let named = json!({"spec": {"passwordSecretRef": {"name": "password-of-the-fleet"}}});
    namespace.patch("mqttuser", "fleet", &named)?;
    meters.ready("mqttuser/fleet")?;
    ensure!(meters.lets_in(&meter(1))?, "ready, but not let in");
    ensure!(stays.ping()?.is_empty() && meters.pod()? == before, "others were disturbed");
    Ok(())
}
