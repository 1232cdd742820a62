//! Slow and busy devices: who is too slow loses its oldest messages, and nobody else is held up for it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{
    Broker, Client, Dialogue, Driver, Login, Manifests, PATIENCE, Packet, Version, wait_until, wire,
};
use serde_json::{Value, json};

/// More than a session may have waiting.
const COUNT: usize = 6_000;

fn manifests() -> Manifests {
    Manifests::new()
        .parent("readings")
        .user("ops", "ops-secret")
        .grant("ops-all", "ops", &[("pubsub", "#")])
        .instance(json!({"session": {"onlineMessages": 200}}))
}

fn login(id: &str) -> Login {
    Login::new(Version::V5, id).user("ops", "ops-secret")
}

fn dropped(broker: &Broker) -> Result<u64> {
    let (_, counters) = broker.get("/v1/counters")?;
    let counters: Value = serde_json::from_str(&counters)?;
    counters.get("queue_full_drops").and_then(Value::as_u64).context("no counter queue_full_drops")
}

#[test]
fn clients_that_flood_themselves_and_each_other_get_every_message_in_order() -> Result<()> {
    let broker = Broker::start(&manifests())?;
    let mut clients = Vec::new();
    for (id, reads) in [("a", "to/a"), ("b", "to/b"), ("self", "to/self")] {
        let mut client = Client::connect(Driver::MqttJs, &broker, &login(id))?;
        ensure!(client.subscribe(reads, 1)? == [1]);
        clients.push(client);
    }
    for number in 0..COUNT {
        for (client, topic) in clients.iter_mut().zip(["to/b", "to/a", "to/self"]) {
            client.publish_soon(topic, number.to_string().as_bytes(), 1, false)?;
        }
    }
    for (index, client) in clients.iter_mut().enumerate() {
        for number in 0..COUNT {
            let message = client.message().with_context(|| format!("{number} of client {index}"))?;
            ensure!(message.payload == number.to_string().as_bytes(), "at {number} came {message:?}");
        }
    }
    ensure!(dropped(&broker)? == 0, "{} messages were dropped", dropped(&broker)?);
    Ok(())
}

#[test]
fn a_device_that_does_not_read_holds_its_publishers_up_once_and_then_loses_its_oldest() -> Result<()> {
    let broker = Broker::start(&manifests())?;
    let (mut stalled, _) = Dialogue::connect(broker.mqtt, &login("stalled"))?;
    stalled.subscribe("news", 1)?;
    let mut publisher = Client::connect(Driver::MqttJs, &broker, &login("publisher"))?;
    let mut reader = Client::connect(Driver::MqttJs, &broker, &login("reader"))?;
    ensure!(reader.subscribe("news", 1)? == [1]);
    // It never acknowledges: its window fills, then its queue.
    let start = Instant::now();
    let mut last = 0;
    for number in 0..COUNT {
        last = publisher.publish_soon("news", number.to_string().as_bytes(), 1, false)?;
    }
    publisher.published(last, Duration::from_secs(40))?;
    ensure!(start.elapsed() < Duration::from_secs(30), "the publisher was held up for {:?}", start.elapsed());
    for number in 0..COUNT {
        let message = reader.message()?;
        ensure!(message.payload == number.to_string().as_bytes(), "at {number} the reader got {message:?}");
    }
    wait_until("drops to be counted", PATIENCE, || Ok((dropped(&broker)? > 0).then_some(())))?;
    broker.wait_for_log(&["WARN", "too slow"])?;
    Ok(())
}

#[test]
fn what_waits_in_a_full_socket_goes_on_when_the_device_reads_again() -> Result<()> {
    let broker = Broker::start(&manifests())?;
    let (mut reader, _) = Dialogue::connect(broker.mqtt, &login("reader"))?;
    reader.subscribe("big", 0)?;
    let mut publisher = Client::connect(Driver::MqttJs, &broker, &login("publisher"))?;
    let payload = vec![b'x'; 100_000];
    let mut last = 0;
    // More than the kernel's buffers hold, less than the session's queue.
    for _ in 0..150 {
        last = publisher.publish_soon("big", &payload, 1, false)?;
    }
    publisher.published(last, PATIENCE)?;
    for number in 0..150 {
        let packet = reader.read().with_context(|| format!("message {number}"))?;
        ensure!(matches!(packet, Packet::Publish { .. }), "message {number}: {packet:?}");
    }
    // Nothing else woke it: the last of them came by themselves.
    reader.send(&wire::disconnect())?;
    ensure!(reader.read()? == Packet::Closed);
    Ok(())
}
