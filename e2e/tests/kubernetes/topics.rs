//! ParentTopics and their Kafka topics.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mqtt_e2e::{Packet, broker::Stored, kafka::Topic, wait_until};
use serde_json::json;

use crate::{
    JAVA, SOON,
    meters::{Meters, grant, meter, object},
};

/// What Kafka has is looked at once in the operator's resync, which is 45 s here.
const RESYNC: Duration = Duration::from_secs(90);

/// A broker has mounted and loaded a changed config, and has said so, and the instance has not gone as well.
const FORGOTTEN: Duration = Duration::from_secs(90);

fn setting<'a>(topic: &'a Topic, name: &str) -> Option<&'a str> {
    topic.settings.get(name)?.as_deref()
}

#[test]
fn a_topic_is_made_adopted_grown_put_back_and_goes_only_where_that_was_asked_for() -> Result<()> {
    // Alone, for it takes its time: the Kafkas of all stories say that they are one cluster, and the later instance waits.
    let meters = Meters::empty_alone()?;
    meters.apply(json!({}), &[])?;
    meters.wait_until_all_are_ready()?;
    let (namespace, kafka) = (&meters.namespace, meters.kafka.admin()?);
    let made = kafka.topic("readings")?;
    ensure!(made.partitions.len() == 3 && setting(&made, "retention.ms") == Some("604800000"), "{made:?}");

    // One that is there already is taken over, and that is said; it grows.
    kafka.create_topic("alarms", 2, &[("retention.ms", "1000")])?;
    namespace.apply_all(&[
        object("ParentTopic", "alarms", json!({"partitions": 4, "retention": {"age": "1h"}})),
        object("ParentTopic", "short-lived", json!({"deletionPolicy": "Delete"})),
        object("ParentTopic", "readings-again", json!({"topic": "readings"})),
    ])?;
    let message = meters.told("parenttopic/readings-again", "Stalled", "Conflict")?;
    ensure!(message.contains("readings"), "{message}");
    for good in ["alarms", "short-lived", "readings"] {
        meters.ready(&format!("parenttopic/{good}"))?;
    }
    let adopted = kafka.topic("alarms")?;
    ensure!(
        adopted.partitions.len() == 4 && setting(&adopted, "retention.ms") == Some("3600000"),
        "{adopted:?}"
    );
    namespace.patch("parenttopic", "alarms", &json!({"spec": {"partitions": 5}}))?;
    wait_until("growth", SOON, || Ok((kafka.topic("alarms")?.partitions.len() == 5).then_some(())))?;

    // One that goes: as soon as the broker says that it has forgotten it, else it would make it anew.
    ensure!(kafka.topics()?.contains_key("short-lived"), "no topic to delete");
    let start = Instant::now();
    namespace.kubectl(&["delete", "parenttopic", "short-lived", "--timeout=5s"])?;
    wait_until("the topic's end", FORGOTTEN, || {
        Ok((!kafka.topics()?.contains_key("short-lived")).then_some(()))
    })?;
    println!("a topic is deleted {:?} after kubectl delete began", start.elapsed());

    kafka.set_topic("alarms", "retention.ms", Some("1000"))?;
    wait_until("the setting that was changed behind the operator's back", RESYNC, || {
        Ok((setting(&kafka.topic("alarms")?, "retention.ms") == Some("3600000")).then_some(()))
    })?;

    // One that is ready is in force: what comes under it from then on is stored.
    namespace.apply(&grant("late", "fleet", &[("pub", "late/#")]))?;
    meters.ready("topicgrant/late")?;
    let mut device = meters.connect(&meter(1))?;
    namespace.apply(&object("ParentTopic", "late", json!({})))?;
    meters.ready("parenttopic/late")?;
    device.publish("late/1", b"at once", 1, 7)?;
    ensure!(device.read()? == Packet::PubAck { id: 7, reason: 0 }, "nobody stores it, or nobody takes it");
    let record = meters.kafka.consumer("application", &["late"])?.next(JAVA)?;
    let stored = Stored::of(&record)?;
    ensure!((stored.topic.as_str(), stored.payload.as_str()) == ("late/1", "at once"), "{stored:?}");

    // Of two that claim one topic the second takes over when the first is gone, and records are kept.
    let before = kafka.topic("readings")?;
    namespace.kubectl(&["delete", "parenttopic", "readings", "alarms", "--timeout=30s"])?;
    meters.ready("parenttopic/readings-again")?;
    let kept = kafka.topics()?;
    ensure!(kept.contains_key("alarms"), "a topic that was to be kept is gone: {kept:?}");
    ensure!(!kept.contains_key("short-lived"), "a broker has made it anew: {kept:?}");
    ensure!(kept.get("readings") == Some(&before), "{kept:?}");
    Ok(())
}
