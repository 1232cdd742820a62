//! An instance ends and is renewed, and is left alone while somebody works on it.

use anyhow::{Result, ensure};
use mqtt_e2e::{Packet, wait_until};
use serde_json::{Value, json};

use crate::{
    SOON,
    meters::{Meters, grant, meter},
};

#[test]
fn an_instance_that_has_expired_refuses_devices_until_it_is_renewed_and_restarts_nothing() -> Result<()> {
    let meters = Meters::start(json!({"expiresAt": "2036-01-31T12:00:00Z"}))?;
    let before = meters.pod()?;
    let until =
        |at: Value| meters.namespace.patch("mqttinstance", "meters", &json!({"spec": {"expiresAt": at}}));
    let mut device = meters.connect(&meter(1))?;
    until(json!("2026-01-31T12:00:00Z"))?;
    let message = meters.told("mqttinstance/meters", "Stalled", "Expired")?;
    ensure!(message.contains("move spec.expiresAt"), "{message}");
    let told = device.read()?;
    ensure!(matches!(told, Packet::Disconnect { reason: 0x98, .. }), "{told:?}");
    ensure!(!meters.lets_in(&meter(1))?, "a device is let in after the end");
    until(Value::Null)?;
    meters.ready("mqttinstance/meters")?;
    wait_until("devices are let in again", SOON, || Ok(meters.lets_in(&meter(1))?.then_some(())))?;
    ensure!(meters.pod()? == before, "the pod was restarted");
    Ok(())
}

#[test]
fn while_an_instance_is_paused_nothing_of_it_is_put_back_and_devices_are_served() -> Result<()> {
    let meters = Meters::start(json!({}))?;
    let namespace = &meters.namespace;
    let pause =
        |paused: bool| namespace.patch("mqttinstance", "meters", &json!({"spec": {"paused": paused}}));
    pause(true)?;
    meters.told("mqttinstance/meters", "Stalled", "Paused")?;
    let budget = "poddisruptionbudget/meters-broker";
    namespace.delete(budget)?;
    namespace.apply(&grant("ops-alarms", "ops", &[("sub", "alarms/#")]))?;
    meters.told("topicgrant/ops-alarms", "Reconciling", "InstanceNotReady")?;
    ensure!(namespace.get("poddisruptionbudget", "meters-broker").is_err(), "it was put back");
    ensure!(meters.lets_in(&meter(1))?, "devices are refused");
    pause(false)?;
    meters.ready("mqttinstance/meters")?;
    meters.ready("topicgrant/ops-alarms")?;
    wait_until("what was deleted", SOON, || {
        Ok(namespace.get("poddisruptionbudget", "meters-broker").ok().map(drop))
    })
}
