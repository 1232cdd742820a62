//! What `/metrics` says is what the clients did.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{Broker, Dialogue, Login, Manifests, PATIENCE, Packet, Store, Version, wait_until};

mqtt_e2e::on_every_store! {
    what_clients_did_is_counted_exactly,
}

fn manifests() -> Manifests {
    Manifests::new().user("fleet", "fleet-secret").grant(
        "fleet",
        "fleet",
        &[("sub", "meters/#"), ("pub", "meters/#")],
    )
}

fn login(id: &str) -> Login {
    Login::new(Version::V5, id).user("fleet", "fleet-secret")
}

/// Values by name and labels, as they stand before the value.
fn scrape(broker: &Broker) -> Result<BTreeMap<String, f64>> {
    let (status, text) = broker.get("/metrics")?;
    ensure!(status == 200 && text.ends_with("# EOF"), "{status}: {text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
        Ok((name.to_owned(), value.parse().with_context(|| line.to_owned())?))
    };
    samples.map(sample).collect()
}

fn what_clients_did_is_counted_exactly(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    let (mut reader, _) = Dialogue::connect(broker.mqtt, &login("reader").persistent())?;
    ensure!(reader.subscribe("meters/#", 1)? == 1);
    let (mut meter, _) = Dialogue::connect(broker.mqtt, &login("meter"))?;
    let mut id = 0;
    for (qos, count, payload) in [(0, 3, "ten bytes!"), (1, 5, "four"), (2, 2, "!")] {
        for _ in 0..count {
            id += 1;
            meter.publish("meters/7", payload.as_bytes(), qos, id)?;
            ensure!(qos == 0 || !matches!(meter.read()?, Packet::Closed), "the publisher was closed");
            ensure!(matches!(reader.read()?, Packet::Publish { .. }));
        }
    }
    meter.publish("secrets/7", b"", 1, id + 1)?;
    meter.read()?;
    let mut stranger = Dialogue::greet(broker.mqtt, &login("stranger").user("fleet", "wrong"))?;
    ensure!(matches!(stranger.read()?, Packet::ConnAck { code: 0x86, .. }));

    let expected = [
        ("mqtt_connections", 2.0),
        ("mqtt_sessions", 1.0),
        ("mqtt_subscriptions", 1.0),
        ("mqtt_messages_received_total{qos=\"0\"}", 3.0),
        // What is refused was taken in, too.
        ("mqtt_messages_received_total{qos=\"1\"}", 6.0),
        ("mqtt_messages_received_total{qos=\"2\"}", 2.0),
        ("mqtt_payload_bytes_received_total{qos=\"0\"}", 30.0),
        ("mqtt_payload_bytes_received_total{qos=\"1\"}", 20.0),
        ("mqtt_payload_bytes_received_total{qos=\"2\"}", 2.0),
        ("mqtt_messages_sent_total{qos=\"0\"}", 3.0),
        ("mqtt_messages_sent_total{qos=\"1\"}", 7.0),
        ("mqtt_messages_sent_total{qos=\"2\"}", 0.0),
        ("mqtt_payload_bytes_sent_total{qos=\"1\"}", 22.0),
        ("mqtt_publishes_refused_total", 1.0),
        ("mqtt_connections_refused_total{reason=\"credentials\"}", 1.0),
        ("mqtt_connections_refused_total{reason=\"limit\"}", 0.0),
        ("mqtt_log_away", 0.0),
    ];
    // Connections that have gone are counted out in a moment.
    wait_until("the counts", PATIENCE, || {
        let scraped = scrape(&broker)?;
        for (name, value) in expected {
            ensure!(scraped.get(name) == Some(&value), "{name} is not {value}: {scraped:#?}");
        }
        ensure!(scraped.keys().any(|name| name.starts_with("mqtt_build_info{version=")), "{scraped:#?}");
        let kafka = scraped.get("mqtt_kafka_brokers_up").copied();
        ensure!(kafka.is_some() == matches!(store, Store::Kafka(..)), "{scraped:#?}");
        Ok(Some(()))
    })
}
