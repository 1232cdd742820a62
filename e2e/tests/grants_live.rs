//! Manifests change while the broker runs: rights come and go within a second, connections that keep theirs
//! notice nothing, and a mistake changes nothing but the log.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{
    Broker, Client, Dialogue, Driver, Login, Manifests, Packet, Store, Version, wait_until, wire,
};
use serde_json::json;

mqtt_e2e::on_every_store! {
    a_grant_added_live_is_good_at_once_and_one_removed_ends_what_it_allowed,
    a_user_removed_is_disconnected_and_others_stay,
    a_password_is_rotated_without_a_moment_in_which_a_device_is_refused,
    a_user_bound_to_client_ids_connects_with_no_others,
    a_parent_topic_registered_live_is_stored_from_then_on,
    a_mistake_made_live_is_told_in_the_log_and_the_last_good_state_stays_in_force,
}

const VERSIONS: [Version; 2] = [Version::V3, Version::V5];
/// A second is promised; a busy test machine gets one more.
const PROMPT: Duration = Duration::from_secs(2);

fn manifests() -> Manifests {
    Manifests::new()
        .user("ops", "ops-secret")
        .grant("ops-all", "ops", &[("pubsub", "#")])
        .user("fleet", "fleet-secret")
        .grant("fleet-basic", "fleet", &[("pubsub", "kept/#")])
}

fn fleet(version: Version, id: &str) -> Login {
    Login::new(version, id).user("fleet", "fleet-secret")
}

fn ops(id: &str) -> Login {
    Login::new(Version::V5, id).user("ops", "ops-secret")
}

fn a_grant_added_live_is_good_at_once_and_one_removed_ends_what_it_allowed(store: &Store) -> Result<()> {
    for version in VERSIONS {
        let broker = Broker::start_on(store, &manifests())?;
        let (mut device, _) = Dialogue::connect(broker.mqtt, &fleet(version, "meter-7"))?;
        let (mut publisher, _) = Dialogue::connect(broker.mqtt, &ops("publisher"))?;
        ensure!(device.subscribe("kept/x", 1)? == 1);
        ensure!(device.subscribe("more/x", 1)? >= 0x80, "there is no grant yet");

        broker.apply(&manifests().grant("fleet-more", "fleet", &[("pubsub", "more/#")]))?;
        wait_until("the new grant", PROMPT, || Ok((device.subscribe("more/x", 1)? == 1).then_some(())))?;
        ensure!(device.ping()?.is_empty());
        device.publish("more/y", b"", 1, 3)?;
        let answer = device.read()?;
        ensure!(matches!(answer, Packet::PubAck { id: 3, reason: 0 | 0x10 }), "answered {answer:?}");

        broker.apply(&manifests())?;
        wait_until("the end of the subscription", PROMPT, || {
            publisher.publish("more/x", b"x", 0, 0)?;
            publisher.publish("kept/x", b"x", 0, 0)?;
            // One connection's messages come in its order: what comes first says whether more/x still reaches.
            let Packet::Publish { topic, .. } = device.read()? else { anyhow::bail!("no message") };
            if topic == "more/x" {
                device.read()?;
                return Ok(None);
            }
            Ok(Some(()))
        })?;
        ensure!(device.subscribe("more/x", 1)? >= 0x80, "it can subscribe again");
        ensure!(device.ping()?.is_empty(), "the connection keeps what it has a right to");
        device.publish("more/y", b"", 1, 4)?;
        let answer = device.read()?;
        let refused = match version {
            Version::V31 | Version::V3 => answer == Packet::Closed,
            Version::V5 => answer == Packet::PubAck { id: 4, reason: 0x87 },
        };
        ensure!(refused, "the publish was answered {answer:?}");
    }
    Ok(())
}

fn a_user_removed_is_disconnected_and_others_stay(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    let (mut witness, _) = Dialogue::connect(broker.mqtt, &ops("witness"))?;
    let mut devices = Vec::new();
    for version in VERSIONS {
        devices.push(Dialogue::connect(broker.mqtt, &fleet(version, &format!("meter-{version:?}")))?.0);
    }
    let mut paho = Client::connect(Driver::Paho, &broker, &fleet(Version::V5, "meter-paho"))?;

    let without = manifests().without("TopicGrant", "fleet-basic").without("MqttUser", "fleet");
    let start = Instant::now();
    broker.apply(&without)?;
    for device in &mut devices {
        if device.version() == Version::V5 {
            let farewell = device.read()?;
            ensure!(farewell == Packet::Disconnect { reason: 0x87 }, "told {farewell:?}");
        }
        ensure!(device.read()? == Packet::Closed);
        ensure!(start.elapsed() < PROMPT, "it took {:?}", start.elapsed());
    }
    ensure!(paho.closed()? == 0x87);
    ensure!(witness.ping()?.is_empty());
    let answer = Dialogue::greet(broker.mqtt, &fleet(Version::V5, "meter-late"))?.read()?;
    ensure!(matches!(answer, Packet::ConnAck { code: 0x86, .. }), "answered {answer:?}");

    broker.apply(&manifests())?;
    wait_until("the user's return", PROMPT, || {
        Ok(Dialogue::connect(broker.mqtt, &fleet(Version::V3, "meter-late")).ok())
    })?;
    Ok(())
}

fn a_password_is_rotated_without_a_moment_in_which_a_device_is_refused(store: &Store) -> Result<()> {
    let both = |new: &str, old: Option<&str>| {
        let manifests =
            manifests().secret("new-password", new).secret("old-password", old.unwrap_or("unused"));
        let mut spec = json!({
            "instanceRef": {"name": "meters"}, "passwordSecretRef": {"name": "new-password", "key": "password"},
        });
        if let (Some(_), Some(fields)) = (old, spec.as_object_mut()) {
            fields.insert(
                "previousPasswordSecretRef".into(),
                json!({"name": "old-password", "key": "password"}),
            );
        }
        manifests.object("MqttUser", "fleet", spec)
    };
    let can_log_in = |broker: &Broker, password: &str| -> Result<bool> {
        let login = Login::new(Version::V5, "prober").user("fleet", password);
        let answer = Dialogue::greet(broker.mqtt, &login)?.read()?;
        Ok(answer == Packet::ConnAck { session_present: false, code: 0 })
    };
    let broker = Broker::start_on(store, &both("first", None))?;
    ensure!(can_log_in(&broker, "first")? && !can_log_in(&broker, "second")?);

    broker.apply(&both("second", Some("first")))?;
    wait_until("both passwords", PROMPT, || Ok(can_log_in(&broker, "second")?.then_some(())))?;
    ensure!(can_log_in(&broker, "first")?);

    broker.apply(&both("second", None))?;
    wait_until("the end of the old one", PROMPT, || Ok((!can_log_in(&broker, "first")?).then_some(())))?;
    ensure!(can_log_in(&broker, "second")?);
    Ok(())
}

fn a_user_bound_to_client_ids_connects_with_no_others(store: &Store) -> Result<()> {
    let broker = Broker::start_on(
        store,
        &manifests().user_with("fleet", "fleet-secret", json!({"clientIds": ["meter-*", "hub"]})),
    )?;
    for version in VERSIONS {
        for (id, allowed) in
            [("meter-7", true), ("meter-", true), ("hub", true), ("hub2", false), ("xmeter-7", false)]
        {
            let answer = Dialogue::greet(broker.mqtt, &fleet(version, id))?.read()?;
            let code = match (allowed, version) {
                (true, _) => 0,
                (false, Version::V31 | Version::V3) => 5,
                (false, Version::V5) => 0x87,
            };
            let expected = Packet::ConnAck { session_present: false, code };
            ensure!(answer == expected, "{version:?} {id}: answered {answer:?}");
        }
    }
    Ok(())
}

fn a_parent_topic_registered_live_is_stored_from_then_on(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    let mut publisher = Client::connect(Driver::Paho, &broker, &ops("publisher"))?;
    ensure!(publisher.publish("later/x", b"before", 1)? == 0x10, "nobody is there for it");
    broker.apply(&manifests().parent("later"))?;
    let records = wait_until("a stored message", PROMPT, || {
        publisher.publish("later/x", b"after", 1)?;
        let records = broker.records("later")?;
        Ok((!records.is_empty()).then_some(records))
    })?;
    let before = records.iter().any(|record| format!("{record:?}").contains("before"));
    ensure!(!before, "what came before was stored: {records:?}");
    Ok(())
}

/// A mistake, and what its line must name.
struct Mistake {
    what: &'static str,
    file: &'static str,
    manifests: Manifests,
    named: &'static [&'static str],
}

fn mistakes() -> Vec<Mistake> {
    let grant = |spec| manifests().object("TopicGrant", "broken", spec);
    let instance_ref = json!({"name": "meters"});
    let one = |what, file, manifests, named| Mistake { what, file, manifests, named };
    vec![
        one(
            "YAML that is none",
            "broken.yaml",
            manifests().file("broken.yaml", "kind: [TopicGrant\nmetadata: {"),
            &[],
        ),
        one(
            "an unknown kind",
            "broken.yaml",
            manifests().file(
                "broken.yaml",
                "apiVersion: mqtt.dms.dev/v1alpha1\nkind: TopicGrand\nmetadata: {name: x}\n",
            ),
            &["TopicGrand"],
        ),
        one(
            "a field that isn't there",
            "topicgrant-broken.yaml",
            grant(json!({"instanceRef": instance_ref, "userRef": {"name": "fleet"}, "rules": [
                {"action": "pub", "filter": "a", "filtre": "b"}]})),
            &["filtre"],
        ),
        one(
            "a filter that is none",
            "topicgrant-broken.yaml",
            grant(json!({"instanceRef": instance_ref, "userRef": {"name": "fleet"}, "rules": [
                {"action": "pub", "filter": "a/#/b"}]})),
            &["filter"],
        ),
        one(
            "an action that is none",
            "topicgrant-broken.yaml",
            grant(json!({"instanceRef": instance_ref, "userRef": {"name": "fleet"}, "rules": [
                {"action": "publish", "filter": "a"}]})),
            &["action"],
        ),
        one(
            "a user that isn't there",
            "topicgrant-broken.yaml",
            grant(json!({"instanceRef": instance_ref, "userRef": {"name": "fleat"}, "rules": [
                {"action": "pub", "filter": "a"}]})),
            &["userRef", "fleat"],
        ),
        one(
            "a Secret that isn't there",
            "mqttuser-fleet.yaml",
            manifests().without("Secret", "fleet-password"),
            &["passwordSecretRef", "fleet-password"],
        ),
        one(
            "an ordered parent without its prefix",
            "parenttopic-readings.yaml",
            manifests().ordered_parent("readings"),
            &["orderMsg2mq-"],
        ),
        one(
            "a parent with a system topic's name",
            "parenttopic-mq2mqtt.yaml",
            manifests().parent("mq2mqtt"),
            &["mq2mqtt"],
        ),
        one(
            "a second instance",
            "mqttinstance-second.yaml",
            manifests().object("MqttInstance", "second", json!({})),
            &["MqttInstance"],
        ),
        one(
            "a limit that is no number",
            "mqttinstance-meters.yaml",
            manifests().instance(json!({"limits": {"connections": "many"}})),
            &["connections"],
        ),
    ]
}

#[test]
fn a_broker_with_a_mistake_in_its_manifests_does_not_start_and_says_what_to_do() -> Result<()> {
    for mistake in mistakes() {
        let refusal = Broker::refusal(&mistake.manifests).context(mistake.what)?;
        ensure!(refusal.code == Some(2), "{}: ended with {:?}", mistake.what, refusal.code);
        check_lines(&mistake, &refusal.stderr)?;
    }
    let refusal = Broker::refusal(&manifests().without("MqttInstance", "meters"))?;
    ensure!(refusal.code == Some(2) && refusal.stderr.contains("MqttInstance"), "{}", refusal.stderr);
    Ok(())
}

#[test]
fn every_mistake_is_told_at_once_a_line_each() -> Result<()> {
    let refusal = Broker::refusal(
        &manifests()
            .ordered_parent("readings")
            .object(
                "TopicGrant",
                "broken",
                json!({"instanceRef": {"name": "meters"}, "userRef": {"name": "nobody"}, "rules": [
                {"action": "pub", "filter": "a/#/b"}, {"action": "fly", "filter": "a"}]}),
            )
            .file("broken.yaml", "a: [b"),
    )?;
    for file in ["parenttopic-readings.yaml", "topicgrant-broken.yaml", "broken.yaml"] {
        let count = refusal.stderr.lines().filter(|line| line.contains(file)).count();
        ensure!(count >= 1, "no line about {file} in:\n{}", refusal.stderr);
    }
    Ok(())
}

fn a_mistake_made_live_is_told_in_the_log_and_the_last_good_state_stays_in_force(
    store: &Store,
) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    let (mut device, _) = Dialogue::connect(broker.mqtt, &fleet(Version::V3, "meter-7"))?;
    for mistake in mistakes() {
        let check = |device: &mut Dialogue| -> Result<()> {
            let logged = broker.log()?.len();
            // With a change that would be good by itself: it must not come halfway in.
            broker.apply(&mistake.manifests.clone().grant("fleet-more", "fleet", &[("pubsub", "more/#")]))?;
            let new = wait_until("a line in the log", PROMPT, || {
                let new = broker.log()?.get(logged..).unwrap_or_default().to_owned();
                Ok(new.contains(mistake.file).then_some(new))
            })?;
            check_lines(&mistake, &new)?;
            ensure!(device.subscribe("kept/x", 1)? == 1, "a right was lost");
            ensure!(device.subscribe("more/x", 1)? >= 0x80, "half of the change is in force");
            device.publish("kept/y", b"x", 1, 5)?;
            ensure!(device.read()? == Packet::PubAck { id: 5, reason: 0 });
            Ok(())
        };
        check(&mut device).context(mistake.what)?;
    }
    broker.apply(&manifests().grant("fleet-more", "fleet", &[("pubsub", "more/#")]))?;
    wait_until("the mended manifests", PROMPT, || Ok((device.subscribe("more/x", 1)? == 1).then_some(())))?;
    device.send(&wire::disconnect())?;
    Ok(())
}

/// One line tells the mistake: its file, and what the reader must know to mend it.
fn check_lines(mistake: &Mistake, text: &str) -> Result<()> {
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(mistake.file)).collect();
    ensure!(lines.len() == 1, "{}: {} lines name {} in:\n{text}", mistake.what, lines.len(), mistake.file);
    for word in mistake.named {
        ensure!(lines.iter().all(|line| line.contains(word)), "{}: {word} is not in {lines:?}", mistake.what);
    }
    Ok(())
}
