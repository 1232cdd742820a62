//! Two MqttUsers of one user name.

use anyhow::{Result, ensure};
use mqtt_e2e::{Login, Version, wait_until};
use serde_json::json;

use crate::{
    SOON,
    meters::{Meters, grant, meter, object},
    passwords::generated,
};

#[test]
fn of_two_users_of_one_name_the_older_has_it_and_the_younger_takes_over_when_that_goes() -> Result<()> {
    let meters = Meters::start(json!({}))?;
    let namespace = &meters.namespace;
    let mut device = meters.connect(&meter(1))?;
    namespace.apply_all(&[
        object("MqttUser", "another-fleet", json!({"username": "fleet"})),
        grant("another-fleet", "another-fleet", &[("sub", "alarms/#")]),
    ])?;
    let message = meters.told("mqttuser/another-fleet", "Stalled", "Conflict")?;
    ensure!(message.contains(&format!("MqttUser {}/fleet, which came first", namespace.name())), "{message}");
    meters.told("topicgrant/another-fleet", "Stalled", "UserNotInForce")?;
    for good in ["mqttinstance/meters", "mqttuser/fleet", "topicgrant/fleet-readings"] {
        meters.ready(good)?;
    }
    ensure!(device.subscribe("alarms/x", 1)? == 0x87, "the older one has the rights of the younger");
    ensure!(device.subscribe("commands/meter-1", 1)? == 1, "the older one has lost its own");
    let younger = || -> Result<Login> {
        let password = generated(namespace, "another-fleet-mqtt", "password")?;
        Ok(Login::new(Version::V5, "prober").user("fleet", &password))
    };
    ensure!(!meters.lets_in(&younger()?)?, "the password of the younger one lets in");

    namespace.delete("mqttuser/fleet")?;
    meters.ready("mqttuser/another-fleet")?;
    meters.ready("topicgrant/another-fleet")?;
    ensure!(meters.lets_in(&younger()?)? && !meters.lets_in(&meter(1))?, "ready, but not in force");
    ensure!(meters.connect(&younger()?)?.subscribe("alarms/x", 1)? == 1, "its grant is not in force");
    meters.told("topicgrant/fleet-readings", "Stalled", "UserNotInForce")?;

    // The first one comes back as the younger of the two.
    namespace.apply(&object(
        "MqttUser",
        "fleet",
        json!({"passwordSecretRef": {"name": "fleet-password", "key": "password"}}),
    ))?;
    meters.told("mqttuser/fleet", "Stalled", "Conflict")?;
    wait_until("the younger one", SOON, || Ok((!meters.lets_in(&meter(1))?).then_some(())))?;
    meters.ready("mqttuser/another-fleet")
}
