//! Grants change while devices are connected: what is given and what is taken away is in force within seconds, and a
//! mistake takes nothing from anybody.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use mqtt_e2e::{Dialogue, Packet, kubernetes::Cluster, wait_until};
use serde_json::{Value, json};

use crate::{
    SOON,
    meters::{Meters, grant, meter, object, ops},
};

/// How soon what a grant allowed must end when it is gone.
const REVOKED: Duration = Duration::from_secs(5);

/// The next message that a subscriber gets.
fn heard(subscriber: &mut Dialogue) -> Result<String> {
    match subscriber.read()? {
        Packet::Publish { topic, .. } => Ok(topic),
        other => bail!("not a message: {other:?}"),
    }
}

#[test]
fn a_grant_that_is_added_or_revoked_is_in_force_within_seconds_for_who_is_connected() -> Result<()> {
    let meters = Meters::start(json!({}))?;
    let (mut desk, mut device) = (meters.connect(&ops("desk"))?, meters.connect(&meter(1))?);
    ensure!(desk.subscribe("commands/+", 0)? == 0 && desk.subscribe("alarms/#", 0)? == 0x87);

    let start = Instant::now();
    meters.namespace.apply_all(&[
        grant("ops-alarms", "ops", &[("sub", "alarms/#")]),
        grant("fleet-alarms", "fleet", &[("pub", "alarms/${clientId}"), ("pub", "commands/${clientId}")]),
    ])?;
    wait_until("the new grant", SOON, || Ok((desk.subscribe("alarms/#", 0)? == 0).then_some(())))?;
    println!("a grant is in force {:?} after kubectl apply began", start.elapsed());
    meters.ready("topicgrant/ops-alarms")?;
    meters.ready("topicgrant/fleet-alarms")?;
    for (kind, name, told) in
        [("topicgrant", "ops-alarms", "True generation "), ("mqttinstance", "meters", "True 1/1 pods at ")]
    {
        let found = meters.enforced(kind, name)?;
        ensure!(found.starts_with(told), "{kind}/{name} says {found:?}");
    }
    device.publish("alarms/meter-1", b"cover opened", 0, 0)?;
    ensure!(heard(&mut desk)? == "alarms/meter-1");

    let start = Instant::now();
    meters.namespace.delete("topicgrant/ops-alarms")?;
    let gone = Instant::now();
    wait_until("the end of the subscription", SOON, || {
        device.publish("alarms/meter-1", b"x", 0, 0)?;
        device.publish("commands/meter-1", b"x", 0, 0)?;
        // Messages of one connection come in its order: what comes first says whether alarms still reach the desk.
        if heard(&mut desk)? == "alarms/meter-1" {
            heard(&mut desk)?;
            return Ok(None);
        }
        Ok(Some(()))
    })?;
    println!(
        "a subscription ends {:?} after kubectl delete began, {:?} after it ended",
        start.elapsed(),
        gone.elapsed()
    );
    ensure!(start.elapsed() <= REVOKED, "{:?}", start.elapsed());
    ensure!(desk.subscribe("alarms/#", 0)? == 0x87, "it can be subscribed to again");
    ensure!(device.ping()?.is_empty() && desk.ping()?.is_empty(), "who is connected stays");
    Ok(())
}

#[test]
fn a_bad_grant_is_refused_or_says_why_it_is_not_in_force_and_takes_nothing_from_anybody() -> Result<()> {
    let meters = Meters::start(json!({}))?;
    let namespace = &meters.namespace;
    let mut device = meters.connect(&meter(1))?;
    ensure!(device.subscribe("commands/meter-1", 1)? == 1);

    // What can be told from the object alone never gets in.
    for (filter, told) in [
        ("alarms/#/now", "put '#' last"),
        ("alarms#", "level of its own"),
        ("alarms/a+", "level of its own"),
        ("alarms/${name}", "only ${clientId} and ${username} are known"),
        ("$share/all/alarms", "grant the filter behind"),
        ("", "at least 1"),
    ] {
        let refused = namespace.apply(&grant("bad", "fleet", &[("pub", filter)]));
        let Err(refused) = refused else { bail!("{filter:?} is accepted") };
        ensure!(format!("{refused:#}").contains(told), "{filter:?}: {refused:#}");
    }

    // What depends on others is told on the object, and on nobody else's.
    namespace.apply_all(&[
        grant("for-nobody", "nobody", &[("pub", "alarms/#")]),
        with_instance(grant("astray", "fleet", &[("pub", "alarms/#")]), json!({"name": "other"})),
    ])?;
    let message = meters.told("topicgrant/for-nobody", "Stalled", "UserNotInForce")?;
    ensure!(message.contains("nobody"), "{message}");
    let message = meters.told("topicgrant/astray", "Stalled", "InstanceNotFound")?;
    ensure!(message.contains("other"), "{message}");

    // Nobody grants himself anything from a namespace that the instance does not allow.
    let foreign = Cluster::shared()?.namespace()?;
    let here = json!({"name": "meters", "namespace": namespace.name()});
    foreign.apply_all(&[
        with_instance(object("MqttUser", "thief", json!({})), here.clone()),
        with_instance(grant("loot", "thief", &[("pubsub", "#")]), here),
    ])?;
    let reason = "jsonpath={.status.conditions[?(@.type==\"Stalled\")].reason}=NotAllowed";
    for object in ["mqttuser/thief", "topicgrant/loot"] {
        foreign.wait(reason, object, SOON)?;
    }

    ensure!(device.subscribe("alarms/x", 1)? == 0x87, "a bad grant is in force");
    device.publish("readings/meter-1/kwh", b"1", 1, 2)?;
    let answer = device.read()?;
    ensure!(answer == Packet::PubAck { id: 2, reason: 0 }, "a right was lost: {answer:?}");
    for good in ["mqttinstance/meters", "mqttuser/fleet", "topicgrant/fleet-readings", "topicgrant/ops-all"] {
        meters.ready(good)?;
    }

    // What was wrong comes right when the other object comes.
    namespace.apply(&object("MqttUser", "nobody", json!({})))?;
    meters.ready("topicgrant/for-nobody")?;

    // Where the instance takes a namespace's objects, who owns a parent topic still has a say.
    let topic =
        |from: Value| namespace.patch("parenttopic", "readings", &json!({"spec": {"grantsFrom": from}}));
    topic(json!({"namespaces": []}))?;
    let allowed = json!({"spec": {"allowedNamespaces": [foreign.name()]}});
    namespace.patch("mqttinstance", "meters", &allowed)?;
    foreign.wait("condition=Ready", "mqttuser/thief", SOON)?;
    foreign.wait(reason, "topicgrant/loot", SOON)?;
    topic(json!({"namespaces": [foreign.name()]}))?;
    foreign.wait("condition=Enforced", "topicgrant/loot", SOON)
}

fn with_instance(mut object: Value, instance: Value) -> Value {
    if let Some(named) = object.pointer_mut("/spec/instanceRef") {
        *named = instance;
    }
    object
}
