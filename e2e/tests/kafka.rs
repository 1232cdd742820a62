//! The Kafka that the stories run on does what they lean on: it starts, lets clients in by every door, and loses a
//! node without losing records.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use mqtt_broker_api::admin::{RecordView, Text};
use mqtt_e2e::{
    PATIENCE,
    kafka::{Kafka, KafkaOptions, Listener, Program, Version},
    wait_until,
};
use serde::Deserialize;
use serde_json::json;

/// A Java program starts, connects, and is answered; on a busy machine.
const JAVA: Duration = Duration::from_secs(30);
/// What the shortened timeouts of the cluster add up to, and as much again.
const FAILOVER: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
struct Stands {
    partition: u32,
    offset: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Consumed {
    #[serde(flatten)]
    record: RecordView,
    partition_of_key: u32,
}

/// Has the program send a record, its key the value, too.
fn produce(program: &mut Program, value: &str) -> Result<Stands> {
    program.tell(&json!({"key": value, "value": value, "headers": {"mqttTopic": "a"}}))?;
    program.next(JAVA)
}

#[test]
fn java_clients_get_in_by_every_listener_and_mechanism_and_with_a_wrong_password_by_none() -> Result<()> {
    let scram = (Listener::SaslSsl, "SCRAM-SHA-512");
    let all = [(Listener::Plaintext, ""), (Listener::Ssl, ""), (Listener::SaslSsl, "PLAIN"), scram];
    for (version, doors) in [(Version::Oldest, &[scram][..]), (Version::Current, &all)] {
        let kafka = Kafka::start(KafkaOptions { version, sasl_ssl: true, ..KafkaOptions::default() })?;
        kafka.create_topic("mq2mqtt", 3, &[])?;
        let mut sent = BTreeMap::new();
        for &(listener, mechanism) in doors {
            let mut check = || -> Result<()> {
                let settings = kafka.client_settings(listener, mechanism)?;
                let mut producer = Program::start("CloudProducer", &[&settings.to_string_lossy()])?;
                let value = format!("by {listener:?} {mechanism}");
                let stands = produce(&mut producer, &value)?;
                sent.insert((stands.partition, stands.offset), value);
                Ok(())
            };
            check().with_context(|| format!("{version:?} {listener:?} {mechanism}"))?;
        }
        let mut consumer = kafka.consumer("all", &["mq2mqtt"])?;
        for _ in doors {
            let Consumed { record, partition_of_key } = consumer.next(JAVA)?;
            let value = sent.remove(&(record.partition, record.offset)).context("a record of nobody's")?;
            ensure!(record.key == Some(Text::Utf8(value)), "{record:?}");
            ensure!(record.partition == partition_of_key, "not in {partition_of_key}: {record:?}");
        }

        kafka.set_password("SCRAM-SHA-512", "another")?;
        let settings = kafka.client_settings(Listener::SaslSsl, "SCRAM-SHA-512")?;
        let mut refused = Program::start("CloudProducer", &[&settings.to_string_lossy()])?;
        let error = produce(&mut refused, "late").err().context("a wrong password was let in")?;
        ensure!(format!("{error:#}").contains("SaslAuthenticationException"), "it ended so: {error:#}");
    }
    Ok(())
}

#[test]
fn a_leader_that_is_killed_or_frozen_is_replaced_and_comes_back_without_losing_a_record() -> Result<()> {
    let kafka = Kafka::start(KafkaOptions { nodes: 3, ..KafkaOptions::default() })?;
    kafka.create_topic("mq2mqtt", 1, &[("min.insync.replicas", "2")])?;
    let mut producer = kafka.producer()?;
    let mut sent = 0u32;
    let mut produce_one = || -> Result<()> {
        produce(&mut producer, &sent.to_string())?;
        sent += 1;
        Ok(())
    };
    let replaced = |old: usize| {
        wait_until("another leader", FAILOVER, || {
            Ok(kafka.leader("mq2mqtt", 0).ok().filter(|leader| *leader != old))
        })
    };
    produce_one()?;

    let killed = kafka.leader("mq2mqtt", 0)?;
    kafka.kill9(killed)?;
    replaced(killed)?;
    produce_one()?;
    kafka.start_node(killed)?;
    kafka.wait_until_up()?;
    kafka.wait_until_in_sync()?;

    kafka.move_leader("mq2mqtt", 0, killed)?;
    wait_until(
        "the leader's return",
        FAILOVER,
        || Ok((kafka.leader("mq2mqtt", 0)? == killed).then_some(())),
    )?;
    kafka.freeze(killed)?;
    replaced(killed)?;
    produce_one()?;
    kafka.thaw(killed)?;
    kafka.wait_until_in_sync()?;

    kafka.stop(killed)?;
    replaced(killed)?;
    produce_one()?;
    kafka.start_node(killed)?;
    kafka.wait_until_up()?;

    let mut consumer = kafka.consumer("all", &["mq2mqtt"])?;
    for number in 0..sent {
        let record: RecordView = consumer.next(JAVA)?;
        ensure!(record.value == Some(Text::Utf8(number.to_string())), "{number} of {sent}: {record:?}");
    }
    Ok(())
}

#[test]
fn topics_are_told_with_their_settings_and_cleared() -> Result<()> {
    let kafka = Kafka::start(KafkaOptions::default())?;
    kafka.create_topic("one", 2, &[("retention.ms", "3600000"), ("cleanup.policy", "compact")])?;
    kafka.create_topic("two", 1, &[])?;
    kafka.add_partitions("two", 3)?;
    kafka.set_topic("one", "retention.ms", None)?;
    kafka.set_topic("one", "min.compaction.lag.ms", Some("7"))?;
    let topics = kafka.topics()?;
    let told: Vec<(&str, usize)> =
        topics.iter().map(|(name, topic)| (name.as_str(), topic.partitions.len())).collect();
    ensure!(told == [("one", 2), ("two", 3)], "{told:?}");
    for (setting, expected) in
        [("retention.ms", "604800000"), ("cleanup.policy", "compact"), ("min.compaction.lag.ms", "7")]
    {
        let value = topics.get("one").and_then(|topic| topic.settings.get(setting)).cloned().flatten();
        ensure!(value.as_deref() == Some(expected), "{setting} is {value:?}");
    }
    kafka.clear()?;
    ensure!(kafka.topics()?.is_empty());
    Ok(())
}

#[test]
fn nothing_of_a_cluster_is_left_after_it() -> Result<()> {
    let kafka = Kafka::start(KafkaOptions::default())?;
    let settings = kafka.client_settings(Listener::Plaintext, "")?;
    let home = settings.parent().map(Path::to_owned).context("it is in a folder")?;
    let pid = std::fs::read_to_string(home.join("node-1/pid"))?;
    let process = Path::new("/proc").join(pid.trim());
    ensure!(process.exists() && kafka.members()?.len() == 1);
    kafka.freeze(1)?;
    drop(kafka);
    wait_until("the end of all of it", PATIENCE, || Ok((!process.exists() && !home.exists()).then_some(())))
}
