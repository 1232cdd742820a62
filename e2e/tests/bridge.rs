//! From the cloud to devices through `mq2mqtt`, and presence of devices for the cloud.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{
    Broker, Client, Dialogue, Driver, Login, Manifests, Packet, Store, Version,
    broker::{header, key, value},
    clients::Event,
};
use serde::Deserialize;

mqtt_e2e::on_every_store! {
    a_record_from_the_cloud_reaches_its_device_with_the_qos_of_its_header,
    a_record_waits_for_a_persistent_session_unless_it_says_clean_session,
    a_record_with_bad_headers_is_put_aside_with_its_reason_and_holds_nothing_up,
    records_appended_before_a_kill_reach_their_device_after_it,
    a_devices_coming_and_going_is_told_under_its_client_id,
}

type Headers = &'static [(&'static str, &'static str)];

fn manifests() -> Manifests {
    Manifests::new()
        .parent("commands")
        .user("fleet", "fleet-secret")
        .grant("fleet-commands", "fleet", &[("sub", "commands/${clientId}")])
        .user("ops", "ops-secret")
        .grant("ops-all", "ops", &[("pubsub", "#")])
}

fn device(version: Version, id: &str) -> Login {
    Login::new(version, id).user("fleet", "fleet-secret")
}

/// Online, subscribed to everything: what it has received, every session has been given.
fn witness(broker: &Broker) -> Result<Client> {
    let login = Login::new(Version::V5, "witness").user("ops", "ops-secret");
    let mut witness = Client::connect(Driver::Paho, broker, &login)?;
    ensure!(witness.subscribe("#", 2)? == [2]);
    Ok(witness)
}

fn a_record_from_the_cloud_reaches_its_device_with_the_qos_of_its_header(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    for driver in [Driver::Paho, Driver::MqttJs, Driver::Mosquitto] {
        for version in [Version::V3, Version::V5] {
            let mut client = Client::connect(driver, &broker, &device(version, "meter-7"))?;
            ensure!(client.subscribe("commands/meter-7", 2)? == [2]);
            for (level, qos) in [(None, 1), (Some("0"), 0), (Some("1"), 1), (Some("2"), 2)] {
                let mut headers = vec![("mqttTopic", "commands/meter-7")];
                headers.extend(level.map(|level| ("qoslevel", level)));
                let payload = format!("{{\"open\": {qos}}}\nfor 电表");
                broker.append_mq2mqtt(&headers, &payload)?;
                let message =
                    client.message().with_context(|| format!("{driver:?} {version:?} {level:?}"))?;
                ensure!(message.topic == "commands/meter-7", "came {message:?}");
                ensure!(message.payload == payload.as_bytes(), "came {message:?}");
                ensure!(message.qos == qos && !message.retain, "came {message:?}");
            }
        }
    }
    let stored = broker.records("commands")?;
    ensure!(stored.is_empty(), "a message from the cloud was stored again: {stored:?}");
    ensure!(broker.records("mq2mqtt")?.len() == 24);
    Ok(())
}

fn a_record_waits_for_a_persistent_session_unless_it_says_clean_session(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    let mut witness = witness(&broker)?;
    for version in [Version::V3, Version::V5] {
        let login = device(version, &format!("meter-{version:?}")).persistent();
        let topic = format!("commands/{}", login.client_id);
        let mut client = Client::connect(Driver::Paho, &broker, &login)?;
        ensure!(client.subscribe(&topic, 2)? == [2]);
        client.disconnect()?;
        let appended = [
            ("by default", vec![]),
            ("only online", vec![("cleanSession", "true")]),
            ("kept", vec![("cleanSession", "false"), ("qoslevel", "2")]),
            ("QoS 0", vec![("cleanSession", "false"), ("qoslevel", "0")]),
        ];
        for (payload, headers) in appended {
            let headers: Vec<_> = [("mqttTopic", topic.as_str())].into_iter().chain(headers).collect();
            broker.append_mq2mqtt(&headers, payload)?;
            let message = witness.message()?;
            ensure!(message.payload == payload.as_bytes(), "the witness got {message:?}");
        }
        let (mut client, answer) = Client::try_connect(Driver::Paho, &broker, &login)?;
        ensure!(answer == Event::Connected { session_present: true }, "{answer:?}");
        broker.append_mq2mqtt(&[("mqttTopic", &topic), ("cleanSession", "true")], "live")?;
        witness.message()?;
        // A QoS 2 message is handed on when its exchange is over, a later QoS 1 message maybe before it.
        let mut got = BTreeSet::new();
        for _ in 0..3 {
            got.insert(String::from_utf8(client.message()?.payload)?);
        }
        ensure!(
            got == BTreeSet::from(["by default", "kept", "live"].map(String::from)),
            "{version:?} got {got:?}"
        );
    }
    Ok(())
}

fn a_record_with_bad_headers_is_put_aside_with_its_reason_and_holds_nothing_up(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    let mut witness = witness(&broker)?;
    let bad: [(&str, Headers, &str); 8] = [
        ("no topic", &[("qoslevel", "1")], "mqttTopic"),
        ("an empty topic", &[("mqttTopic", "")], "mqttTopic"),
        ("a wildcard", &[("mqttTopic", "commands/#")], "mqttTopic"),
        ("another wildcard", &[("mqttTopic", "commands/+/x")], "mqttTopic"),
        ("a topic of the broker's own", &[("mqttTopic", "$SYS/x")], "mqttTopic"),
        ("QoS 3", &[("mqttTopic", "commands/x"), ("qoslevel", "3")], "qoslevel"),
        ("QoS high", &[("mqttTopic", "commands/x"), ("qoslevel", "high")], "qoslevel"),
        (
            "a clean session of maybe",
            &[("mqttTopic", "commands/x"), ("cleanSession", "maybe")],
            "cleanSession",
        ),
    ];
    for (count, (what, headers, named)) in bad.iter().enumerate() {
        let check = |witness: &mut Client| -> Result<()> {
            broker.append_mq2mqtt(headers, what)?;
            // More than there are partitions, so that one follows in the same.
            for _ in 0..4 {
                broker.append_mq2mqtt(&[("mqttTopic", "commands/x")], "next")?;
                let message = witness.message()?;
                ensure!(message.payload == b"next", "came {message:?}");
            }
            let rejected = broker.wait_for_records("mq2mqtt-rejected", count + 1)?;
            ensure!(rejected.len() == count + 1, "rejected {rejected:#?}");
            let record = rejected
                .iter()
                .find(|record| matches!(&record.value, Some(mqtt_broker_api::admin::Text::Utf8(text)) if text == what))
                .with_context(|| format!("not among {rejected:#?}"))?;
            let reason = header(record, "reason").context("no reason")?;
            ensure!(reason.contains(named), "the reason {reason:?} does not name {named}");
            for (name, text) in *headers {
                ensure!(header(record, name) == Some(text), "the header {name} is lost: {record:?}");
            }
            Ok(())
        };
        check(&mut witness).context(*what)?;
    }
    broker.wait_for_log(&["WARN", "mq2mqtt", "rejected"])?;
    Ok(())
}

fn records_appended_before_a_kill_reach_their_device_after_it(store: &Store) -> Result<()> {
    let mut broker = Broker::start_on(store, &manifests())?;
    for number in 0..20 {
        broker.append_mq2mqtt(&[("mqttTopic", "commands/meter-7")], &number.to_string())?;
        if number % 5 == 4 {
            broker.kill9()?;
            broker.restart()?;
        }
    }
    let count = broker.records("mq2mqtt")?.len();
    ensure!(count == 20, "{count} of 20 records are there");
    Ok(())
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Presence {
    clientid: String,
    ts: i64,
}

fn a_devices_coming_and_going_is_told_under_its_client_id(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    let mut told = 0;
    for version in [Version::V3, Version::V5] {
        let id = format!("meter-{version:?}");
        for goodbye in [true, false] {
            told += 1;
            let (mut dialogue, _) = Dialogue::connect(broker.mqtt, &device(version, &id))?;
            check_presence(&broker, "mqtt-device-connect", told, &id)?;
            if goodbye {
                dialogue.send(&mqtt_e2e::wire::disconnect())?;
                ensure!(dialogue.read()? == Packet::Closed);
            } else {
                drop(dialogue);
            }
            check_presence(&broker, "mqtt-device-disconnect", told, &id)?;
        }
    }
    let refused = Dialogue::greet(broker.mqtt, &Login::new(Version::V5, "stranger"))?.read()?;
    ensure!(matches!(refused, Packet::ConnAck { code, .. } if code != 0));
    ensure!(broker.records("mqtt-device-connect")?.len() == told, "a refused connection was told");
    Ok(())
}

fn check_presence(broker: &Broker, topic: &str, count: usize, id: &str) -> Result<()> {
    let records = broker.wait_for_records(topic, count)?;
    ensure!(records.len() == count, "{topic}: {records:#?}");
    let latest = records.iter().max_by_key(|record| (record.timestamp, record.offset)).context("none")?;
    ensure!(key(latest) == Some(id), "{topic}: the key of {latest:?}");
    let presence: Presence = value(latest)?;
    ensure!(presence.clientid == id && presence.ts > 1_600_000_000_000, "{topic}: {presence:?}");
    Ok(())
}
