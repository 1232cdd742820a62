//! The broker on Kafka as an administrator knows it: topics made, kept in line or refused, passwords rotated, a topic
//! deleted under load, and the oldest release that is supported.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use mqtt_e2e::{
    Broker, Client, Driver, Login, Manifests, Store, Version,
    broker::Stored,
    kafka::{self, Kafka, KafkaOptions, Listener},
    on_kafka, wait_until,
};
use serde_json::{Value, json};

/// Kafka restarts, or a new login is tried, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

fn manifests() -> Manifests {
    Manifests::new().parent("readings").parent("alarms").user("fleet", "fleet-secret").grant(
        "fleet-all",
        "fleet",
        &[("pubsub", "#")],
    )
}

fn device(broker: &Broker, id: &str) -> Result<Client> {
    let login = Login::new(Version::V5, id).user("fleet", "fleet-secret");
    Client::connect(Driver::Paho, broker, &login)
}

/// The parent `readings` with other settings.
fn readings(spec: &Value) -> Manifests {
    let mut all = json!({"instanceRef": {"name": "meters"}, "topic": "readings", "type": "Normal"});
    if let (Value::Object(all), Value::Object(spec)) = (&mut all, spec.clone()) {
        all.extend(spec);
    }
    manifests().object("ParentTopic", "readings", all)
}

/// A broker that does not start on the topics as they are, and the line it said.
fn refusal(broker: &mut Broker, part: &str) -> Result<String> {
    let Err(error) = broker.restart() else { bail!("it started") };
    let text = format!("{error:#}");
    let line = text.lines().find(|line| line.contains(part));
    line.map(str::to_owned).with_context(|| format!("no line with {part:?} in {text}"))
}

#[test]
fn topics_are_made_with_what_they_promise() -> Result<()> {
    on_kafka(|store| {
        let kafka = store.cluster()?;
        let _broker =
            Broker::start_on(store, &readings(&json!({"retention": {"age": "1h"}, "partitions": 4})))?;
        let check = |topic: &str, partitions: usize, settings: &[(&str, &str)]| -> Result<()> {
            let found = kafka.topic(topic)?;
            ensure!(found.partitions.len() == partitions, "{topic}: {} partitions", found.partitions.len());
            for (name, value) in settings {
                let is = found.settings.get(*name).cloned().flatten();
                ensure!(is.as_deref() == Some(*value), "{topic}: {name} is {is:?}, not {value}");
            }
            Ok(())
        };
        let kept = [
            ("cleanup.policy", "delete"),
            ("min.insync.replicas", "1"),
            ("unclean.leader.election.enable", "false"),
        ];
        let latest = [
            ("cleanup.policy", "compact"),
            ("message.timestamp.type", "CreateTime"),
            ("message.timestamp.before.max.ms", "300000"),
            ("message.timestamp.after.max.ms", "300000"),
            ("min.compaction.lag.ms", "60000"),
            ("max.compaction.lag.ms", "600000"),
            ("segment.bytes", "33554432"),
            ("min.cleanable.dirty.ratio", "0.2"),
            ("delete.retention.ms", "900000"),
        ];
        check(
            "readings",
            4,
            &[&kept[..], &[("retention.ms", "3600000"), ("retention.bytes", "-1")]].concat(),
        )?;
        for topic in [
            "mq2mqtt",
            "mq2mqtt-rejected",
            "mqtt-device-connect",
            "mqtt-device-disconnect",
            "mqtt-device-trace",
        ] {
            check(topic, 3, &[&kept[..], &[("retention.ms", "604800000")]].concat())?;
        }
        check("__mqtt-sessions", 12, &latest)?;
        check("__mqtt-retained", 3, &latest)?;
        check("__mqtt-positions", 1, &latest)
    })
}

#[test]
fn what_the_manifests_say_of_a_topic_is_brought_in_line_and_nothing_else_of_it_changes() -> Result<()> {
    on_kafka(|store| {
        let kafka = store.cluster()?;
        let broker = Broker::start_on(store, &manifests())?;
        kafka.set_topic("readings", "segment.ms", Some("123456789"))?;
        broker.apply(&readings(&json!({"retention": {"age": "2h"}, "partitions": 5})))?;
        wait_until("the topic as the manifests say", LIMIT, || {
            let topic = kafka.topic("readings")?;
            let is = |name: &str| topic.settings.get(name).cloned().flatten().unwrap_or_default();
            let done = topic.partitions.len() == 5 && is("retention.ms") == "7200000";
            ensure!(is("segment.ms") == "123456789", "segment.ms was reset to {:?}", is("segment.ms"));
            Ok(done.then_some(()))
        })?;
        // All of its partitions are used.
        let mut client = device(&broker, "meter-1")?;
        wait_until("records in five partitions", LIMIT, || {
            // Messages in a row may share a partition.
            for _ in 0..32 {
                ensure!(client.publish("readings/x", b"1", 1)? == 0);
            }
            let mut partitions: Vec<u32> =
                broker.records("readings")?.iter().map(|record| record.partition).collect();
            partitions.sort_unstable();
            partitions.dedup();
            Ok((partitions.len() == 5).then_some(()))
        })
    })
}

#[test]
fn a_topic_that_does_not_keep_the_promise_is_refused_in_one_line_with_its_remedy() -> Result<()> {
    on_kafka(|store| {
        let kafka = store.cluster()?;
        let mut broker = Broker::start_on(store, &manifests())?;
        let mut check = |topic: &str, setting: &str, value: &str, expected: &str| -> Result<()> {
            broker.stop()?;
            kafka.set_topic(topic, setting, Some(value))?;
            let wrong = format!("Kafka topic {topic} has {setting}={value} instead of {expected}");
            let line = refusal(&mut broker, &wrong)?;
            ensure!(line.contains(&format!("--add-config {setting}={expected}")), "{line}");
            kafka.set_topic(topic, setting, Some(expected))?;
            broker.restart()
        };
        check("readings", "unclean.leader.election.enable", "true", "false")?;
        check("__mqtt-sessions", "cleanup.policy", "delete", "compact")?;
        check("__mqtt-positions", "message.timestamp.before.max.ms", "3600000", "300000")
    })
}

#[test]
fn more_copies_than_nodes_are_refused_in_one_line() -> Result<()> {
    on_kafka(|store| {
        let mut broker = Broker::start_on(store, &manifests())?;
        broker.stop()?;
        store.cluster()?.clear()?;
        let three =
            json!({"kafka": {"bootstrapServers": [store.cluster()?.bootstrap()], "replicationFactor": 3}});
        manifests().instance(three).write_to(&broker.manifests())?;
        let line = refusal(&mut broker, "replicationFactor")?;
        let expected = "3 copies were asked for and 1 Kafka nodes are up: start more, or lower spec.kafka.replicationFactor";
        ensure!(line.contains(expected), "{line}");
        Ok(())
    })
}

#[test]
fn a_deleted_topic_stops_no_other_and_is_made_anew() -> Result<()> {
    on_kafka(|store| {
        let broker = Broker::start_on(store, &manifests())?;
        let (mut one, mut other) = (device(&broker, "meter-1")?, device(&broker, "meter-2")?);
        ensure!(one.publish("readings/x", b"before", 1)? == 0);
        ensure!(other.publish("alarms/x", b"before", 1)? == 0);
        store.cluster()?.delete_topics(&["readings"])?;
        let waiting = one.publish_soon("readings/x", b"after", 1, false)?;
        for i in 0..20 {
            ensure!(other.publish("alarms/x", format!("{i}").as_bytes(), 1)? == 0);
        }
        ensure!(one.published(waiting, LIMIT)? == 0);
        let payload = |broker: &Broker| -> Result<Option<Vec<String>>> {
            let records = broker.records("readings")?;
            let payloads: Result<Vec<String>> =
                records.iter().map(|record| Ok(Stored::of(record)?.payload)).collect();
            Ok(payloads.ok().filter(|payloads| !payloads.is_empty()))
        };
        let kept = wait_until("the topic made anew", LIMIT, || payload(&broker))?;
        ensure!(kept.iter().all(|payload| payload == "after"), "kept {kept:?}");
        ensure!(broker.log_lines(&["refuses topic alarms"])?.is_empty(), "the other topic was stopped");
        Ok(())
    })
}

#[test]
fn commands_from_the_cloud_go_on_though_their_topic_was_deleted() -> Result<()> {
    on_kafka(|store| {
        let broker = Broker::start_on(store, &manifests())?;
        let mut client = device(&broker, "meter-1")?;
        ensure!(client.subscribe("commands/#", 1)? == [1]);
        for command in ["one", "two"] {
            broker.append_mq2mqtt(&[("mqttTopic", "commands/x")], command)?;
            ensure!(client.message()?.payload == command.as_bytes());
        }
        store.cluster()?.delete_topics(&["mq2mqtt"])?;
        wait_until("mq2mqtt made anew", LIMIT, || {
            Ok(store.cluster()?.topics()?.contains_key("mq2mqtt").then_some(()))
        })?;
        let mut application = store.cluster()?.producer()?;
        application.tell(&json!({"value": "three", "headers": {"mqttTopic": "commands/x"}}))?;
        ensure!(client.message_within(LIMIT)?.payload == b"three");
        Ok(())
    })
}

/// The instance on a listener with a login, its password in a Secret.
fn with_password(kafka: &Kafka, password: &str) -> Result<Manifests> {
    let instance = json!({"kafka": {
        "bootstrapServers": ["unused:1"],
        "tls": {"caSecretRef": {"name": "kafka-ca", "key": "ca.crt"}},
        "sasl": {
            "mechanism": "SCRAM-SHA-512",
            "username": kafka::USER,
            "passwordSecretRef": {"name": "kafka-login", "key": "password"},
        },
    }});
    let secret = |name: &str, key: &str, value: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {key: value},
        })
        .to_string()
    };
    Ok(manifests()
        .instance(instance)
        .file("secret-kafka-ca.yaml", &secret("kafka-ca", "ca.crt", &kafka.pem()?.ca))
        .file("secret-kafka-login.yaml", &secret("kafka-login", "password", password)))
}

#[test]
fn a_password_is_rotated_without_a_restart_and_a_wrong_one_loses_nothing() -> Result<()> {
    let kafka = Arc::new(Kafka::start(KafkaOptions { sasl_ssl: true, ..KafkaOptions::default() })?);
    let store = Store::Kafka(Arc::clone(&kafka), Listener::SaslSsl);
    let broker = Broker::start_on(&store, &with_password(&kafka, kafka::PASSWORD)?)?;
    let mut client = device(&broker, "meter-1")?;
    ensure!(client.publish("readings/x", b"before", 1)? == 0);

    // The login that Kafka knows no more is refused at the next connection, and waits for the right one.
    kafka.set_password("SCRAM-SHA-512", "new-secret")?;
    broker.apply(&with_password(&kafka, "wrong-secret")?)?;
    let during = client.publish_soon("readings/x", b"during", 1, false)?;
    let line = broker.wait_for_log(&["is away"])?;
    ensure!(
        line.contains("Authentication") || line.contains("authentication"),
        "the reason is missing: {line}"
    );
    broker.apply(&with_password(&kafka, "new-secret")?)?;
    ensure!(client.published(during, LIMIT)? == 0);
    ensure!(client.publish("readings/x", b"after", 1)? == 0);

    let mut payloads = Vec::new();
    for record in broker.records("readings")? {
        payloads.push(Stored::of(&record)?.payload);
    }
    payloads.sort_unstable();
    ensure!(payloads == ["after", "before", "during"], "stored {payloads:?}");
    let log = broker.log()?;
    for secret in [kafka::PASSWORD, "wrong-secret", "new-secret"] {
        ensure!(!log.contains(secret), "a password stands in the log");
    }
    Ok(())
}

#[test]
fn the_oldest_supported_kafka_keeps_the_same_promises() -> Result<()> {
    let options = KafkaOptions { version: kafka::Version::Oldest, ..KafkaOptions::default() };
    let kafka = Arc::new(Kafka::start(options)?);
    let mut broker = Broker::start_on(&Store::kafka(&kafka), &manifests().ordered_parent("orderMsg2mq-a"))?;
    let mut client = device(&broker, "meter-1")?;
    for qos in [0, 1, 2] {
        for topic in ["readings/x", "orderMsg2mq-a/x"] {
            ensure!(client.publish(topic, &[b'0' + qos], qos)? == 0, "{topic} at QoS {qos}");
        }
    }
    ensure!(client.subscribe("commands/#", 1)? == [1]);
    broker.append_mq2mqtt(&[("mqttTopic", "commands/x")], "on")?;
    ensure!(client.message()?.payload == b"on");
    broker.kill9()?;
    broker.restart()?;
    for topic in ["readings", "orderMsg2mq-a"] {
        ensure!(broker.wait_for_records(topic, 3)?.len() == 3, "{topic}");
    }
    ensure!(device(&broker, "meter-1")?.publish("readings/x", b"after", 2)? == 0);
    Ok(())
}
