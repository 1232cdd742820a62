//! Cloud applications use Kafka's own Java client, beside the broker: they send to devices and read what devices sent.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use mqtt_broker_api::admin::{RecordView, Text};
use mqtt_e2e::{
    Broker, Client, Driver, Login, Manifests, Store, Version,
    broker::{Stored, header, key},
    clients::Event,
    kafka::{Listener, PASSWORD, Program, USER},
    on_kafka,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// A Java program starts, connects, and is answered; on a busy machine.
const JAVA: Duration = Duration::from_secs(30);

const PARENT: &str = "readings";
const ORDERED: &str = "orderMsg2mq-readings";

fn manifests() -> Manifests {
    Manifests::new()
        .parent(PARENT)
        .ordered_parent(ORDERED)
        .user("fleet", "fleet-secret")
        .grant("fleet-readings", "fleet", &[("pub", "readings/#"), ("pub", "orderMsg2mq-readings/#")])
        .grant("fleet-commands", "fleet", &[("sub", "commands/${clientId}")])
        .user("ops", "ops-secret")
        .grant("ops-all", "ops", &[("sub", "#")])
}

fn device(id: &str) -> Login {
    Login::new(Version::V5, id).user("fleet", "fleet-secret")
}

/// Has the application send a record to `mq2mqtt`, and waits until Kafka has it.
fn send(application: &mut Program, headers: &[(&str, &str)], value: &str) -> Result<()> {
    let headers: BTreeMap<_, _> = headers.iter().copied().collect();
    application.tell(&json!({"value": value, "headers": headers}))?;
    let _stands: Value = application.next(JAVA)?;
    Ok(())
}

#[test]
fn what_a_java_application_sends_reaches_devices_as_its_headers_say() -> Result<()> {
    on_kafka(|store| {
        let broker = Broker::start_on(store, &manifests())?;
        let mut application = store.cluster()?.producer()?;
        let mut witness = Client::connect(
            Driver::Paho,
            &broker,
            &Login::new(Version::V5, "witness").user("ops", "ops-secret"),
        )?;
        ensure!(witness.subscribe("commands/#", 2)? == [2]);

        let away = device("meter-8").persistent();
        let mut sleeper = Client::connect(Driver::Paho, &broker, &away)?;
        ensure!(sleeper.subscribe("commands/meter-8", 2)? == [2]);
        sleeper.disconnect()?;
        // Header qoslevel, header cleanSession, QoS of the message, and whether it waits for who is away.
        let table = [
            (None, None, 1, true),
            (Some("0"), None, 0, false),
            (Some("1"), Some("false"), 1, true),
            (Some("2"), Some("false"), 2, true),
            (Some("2"), Some("true"), 2, false),
        ];
        let mut waiting = Vec::new();
        for (level, clean, qos, waits) in table {
            let payload = format!("{level:?} {clean:?} for 电表");
            let mut headers = vec![("mqttTopic", "commands/meter-8")];
            headers.extend(level.map(|level| ("qoslevel", level)));
            headers.extend(clean.map(|clean| ("cleanSession", clean)));
            send(&mut application, &headers, &payload)?;
            let message = witness.message().with_context(|| payload.clone())?;
            ensure!(message.topic == "commands/meter-8" && message.payload == payload.as_bytes());
            ensure!(message.qos == qos && !message.retain, "{payload}: came {message:?}");
            if waits {
                waiting.push(payload);
            }
        }
        let (mut sleeper, answer) = Client::try_connect(Driver::Paho, &broker, &away)?;
        ensure!(answer == Event::Connected { session_present: true }, "{answer:?}");
        send(&mut application, &[("mqttTopic", "commands/meter-8")], "last")?;
        waiting.push("last".to_owned());
        let mut got = Vec::new();
        for _ in 0..waiting.len() {
            got.push(String::from_utf8(sleeper.message()?.payload)?);
        }
        // A QoS 2 message is handed on when its exchange is over, a later QoS 1 message maybe before it.
        got.sort_unstable();
        waiting.sort_unstable();
        ensure!(got == waiting, "the device got {got:?}, not {waiting:?}");
        Ok(())
    })
}

#[test]
fn a_java_application_finds_what_was_rejected_with_the_reason() -> Result<()> {
    on_kafka(|store| {
        let broker = Broker::start_on(store, &manifests())?;
        let cluster = store.cluster()?;
        let mut application = cluster.producer()?;
        let mut rejections = cluster.consumer("operations", &["mq2mqtt-rejected"])?;
        for (what, headers, named) in [
            ("no topic", &[("qoslevel", "1")][..], "mqttTopic"),
            ("a wildcard", &[("mqttTopic", "commands/#")], "mqttTopic"),
            ("QoS 3", &[("mqttTopic", "commands/x"), ("qoslevel", "3")], "qoslevel"),
            ("maybe", &[("mqttTopic", "commands/x"), ("cleanSession", "maybe")], "cleanSession"),
        ] {
            send(&mut application, headers, what)?;
            let record: RecordView = rejections.next(JAVA).context(what)?;
            ensure!(record.value == Some(Text::Utf8(what.to_owned())), "{what}: {record:?}");
            let reason = header(&record, "reason").context("no reason")?;
            ensure!(reason.contains(named), "the reason {reason:?} does not name {named}");
            for (name, text) in headers {
                ensure!(header(&record, name) == Some(text), "the header {name} is lost: {record:?}");
            }
        }
        drop(broker);
        Ok(())
    })
}

/// A record, and where the Java client itself would have put it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Consumed {
    #[serde(flatten)]
    record: RecordView,
    partition_of_key: Option<u32>,
}

#[test]
fn a_java_consumer_group_reads_what_devices_sent_in_the_partitions_it_would_choose_itself() -> Result<()> {
    const EACH: usize = 10;
    const DEVICES: [&str; 4] = ["meter-1", "meter-2", "meter-5", "电表"];
    on_kafka(|store| {
        let broker = Broker::start_on(store, &manifests())?;
        let mut application = store.cluster()?.consumer("billing", &[PARENT, ORDERED])?;
        for id in DEVICES {
            let mut client = Client::connect(Driver::Paho, &broker, &device(id))?;
            for parent in [PARENT, ORDERED] {
                for number in 0..EACH {
                    let qos = 1 + u8::try_from(number % 2)?;
                    let reason =
                        client.publish(&format!("{parent}/{qos}"), number.to_string().as_bytes(), qos)?;
                    ensure!(reason == 0, "answered {reason:#x}");
                }
            }
        }
        let mut all = Vec::new();
        for count in 0..EACH * DEVICES.len() * 2 {
            let next: Consumed = application.next(JAVA).with_context(|| format!("after {count} records"))?;
            all.push(next);
        }
        for parent in [PARENT, ORDERED] {
            for id in DEVICES {
                let own: Vec<&Consumed> = all
                    .iter()
                    .filter(|one| one.record.topic == parent && header(&one.record, "clientId") == Some(id))
                    .collect();
                check(parent, id, &own, EACH).with_context(|| format!("{id} under {parent}: {own:#?}"))?;
            }
        }
        Ok(())
    })
}

fn check(parent: &str, id: &str, own: &[&Consumed], count: usize) -> Result<()> {
    let mut numbers = Vec::new();
    for Consumed { record, partition_of_key } in own {
        let stored = Stored::of(record)?;
        let qos = header(record, "qoslevel").context("no qoslevel")?;
        ensure!(stored.client_id == id && stored.topic == format!("{parent}/{qos}"), "{stored:?}");
        ensure!(header(record, "mqttTopic") == Some(&stored.topic), "{:?}", record.headers);
        ensure!(header(record, "messageId").is_some_and(|id| !id.is_empty()), "{:?}", record.headers);
        ensure!(record.timestamp > 1_600_000_000_000, "the timestamp {}", record.timestamp);
        if parent == ORDERED {
            ensure!(key(record) == Some(id), "the key {:?}", record.key);
            ensure!(*partition_of_key == Some(record.partition), "Java would choose {partition_of_key:?}");
        } else {
            ensure!(record.key.is_none(), "the key {:?}", record.key);
        }
        numbers.push(stored.payload.parse::<usize>()?);
    }
    // One partition comes in its order; those of a Normal parent come as they like.
    if parent != ORDERED {
        numbers.sort_unstable();
    }
    ensure!(numbers == (0..count).collect::<Vec<_>>(), "came {numbers:?}");
    Ok(())
}

#[test]
fn the_broker_gets_into_kafka_by_every_listener_and_mechanism() -> Result<()> {
    on_kafka(|store| {
        let cluster = store.cluster()?;
        let pem = cluster.pem()?;
        let secret = |name: &str, data: Value| {
            let document =
                json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data});
            (format!("secret-{name}.yaml"), document.to_string())
        };
        let secrets = [
            secret("kafka-ca", json!({"ca.crt": pem.ca})),
            secret("kafka-client", json!({"tls.crt": pem.certificate, "tls.key": pem.key})),
            secret("kafka-login", json!({"password": PASSWORD})),
        ];
        let ca = json!({"name": "kafka-ca", "key": "ca.crt"});
        let login = |mechanism: &str| {
            json!({
                "tls": {"caSecretRef": ca},
                "sasl": {"mechanism": mechanism, "username": USER,
                         "passwordSecretRef": {"name": "kafka-login", "key": "password"}},
            })
        };
        let certificate =
            json!({"tls": {"caSecretRef": ca, "certificateSecretRef": {"name": "kafka-client"}}});
        for (listener, kafka) in [
            (Listener::SaslSsl, login("PLAIN")),
            (Listener::SaslSsl, login("SCRAM-SHA-256")),
            (Listener::SaslSsl, login("SCRAM-SHA-512")),
            (Listener::Ssl, certificate),
        ] {
            let what = format!("{listener:?} {kafka}");
            let mut manifests = manifests().instance(json!({"kafka": kafka}));
            for (file, text) in &secrets {
                manifests = manifests.file(file, text);
            }
            let check = || -> Result<()> {
                let store = Store::Kafka(cluster.clone(), listener);
                let broker = Broker::start_on(&store, &manifests)?;
                let mut client = Client::connect(Driver::Paho, &broker, &device("meter-7"))?;
                ensure!(client.publish("readings/x", b"1.5", 1)? == 0);
                let count = broker.records(PARENT)?.len();
                ensure!(count == 1, "{count} records, not one");
                Ok(())
            };
            check().context(what)?;
        }
        Ok(())
    })
}
