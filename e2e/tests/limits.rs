//! Limits of the instance: each has its own answer, and none loses a message.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{
    Broker, Client, Dialogue, Driver, Login, Manifests, PATIENCE, Packet, Store, Version, wait_until, wire,
};
use serde_json::{Value, json};

mqtt_e2e::on_every_store! {
    a_connection_over_the_limit_is_refused_until_there_is_room,
    a_subscription_over_the_limit_is_refused_until_there_is_room,
    publishes_over_the_rate_are_slowed_down_and_none_is_lost,
    deliveries_over_the_rate_wait_and_none_is_lost,
    strict_characters_refuse_what_the_guide_does_not_name,
    what_is_larger_than_the_instances_packet_size_is_refused,
    a_keep_alive_longer_than_the_instances_is_shortened_where_the_client_can_be_told,
}

const VERSIONS: [Version; 2] = [Version::V3, Version::V5];

fn limited(limits: Value) -> Manifests {
    Manifests::new().instance(json!({"limits": limits})).user("ops", "ops-secret").grant(
        "ops-all",
        "ops",
        &[("pubsub", "#")],
    )
}

fn login(version: Version, id: &str) -> Login {
    Login::new(version, id).user("ops", "ops-secret")
}

fn a_connection_over_the_limit_is_refused_until_there_is_room(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &limited(json!({"connections": 3})))?;
    let mut open = Vec::new();
    for number in 0..3 {
        open.push(Dialogue::connect(broker.mqtt, &login(Version::V5, &number.to_string()))?.0);
    }
    for version in VERSIONS {
        let mut refused = Dialogue::greet(broker.mqtt, &login(version, "late"))?;
        let answer = refused.read()?;
        let codes: &[u8] = if version == Version::V3 { &[3] } else { &[0x97, 0x9F] };
        let told = matches!(answer, Packet::ConnAck { code, .. } if codes.contains(&code));
        ensure!(told, "{version:?}: answered {answer:?}");
        ensure!(refused.read()? == Packet::Closed);
    }
    broker.wait_for_log(&["WARN", "late", "connection"])?;
    for dialogue in &mut open {
        ensure!(dialogue.ping()?.is_empty());
    }
    // One more of a client that is there takes no more room.
    let (_again, _) = Dialogue::connect(broker.mqtt, &login(Version::V5, "2"))?;
    drop(open.remove(0));
    wait_until("room for a connection", PATIENCE, || {
        Ok(Dialogue::connect(broker.mqtt, &login(Version::V3, "late")).ok())
    })?;
    Ok(())
}

fn a_subscription_over_the_limit_is_refused_until_there_is_room(store: &Store) -> Result<()> {
    for version in VERSIONS {
        let broker = Broker::start_on(store, &limited(json!({"subscriptions": 3})))?;
        let refused = if version == Version::V3 { 0x80 } else { 0x97 };
        let (mut one, _) = Dialogue::connect(broker.mqtt, &login(version, "one"))?;
        one.send(&wire::subscribe(version, 5, &[("a", 0), ("b", 1), ("c/#", 2), ("d", 0)]))?;
        let answer = one.read()?;
        ensure!(answer == Packet::SubAck { id: 5, reasons: vec![0, 1, 2, refused] }, "answered {answer:?}");
        broker.wait_for_log(&["WARN", "one", "subscription"])?;
        ensure!(one.subscribe("a", 2)? == 2, "one that is there takes no more room");
        let (mut two, _) = Dialogue::connect(broker.mqtt, &login(version, "two"))?;
        ensure!(two.subscribe("e", 1)? == refused, "the limit is the instance's");

        one.send(&wire::unsubscribe(version, 6, "a"))?;
        ensure!(one.read()? == Packet::UnsubAck { id: 6 });
        ensure!(two.subscribe("e", 1)? == 1, "room was made");
        ensure!(two.subscribe("f", 1)? == refused, "for one");
        drop(one);
        wait_until("room after a clean session went", PATIENCE, || {
            Ok((two.subscribe("f", 1)? == 1).then_some(()))
        })?;
    }
    Ok(())
}

fn publishes_over_the_rate_are_slowed_down_and_none_is_lost(store: &Store) -> Result<()> {
    const RATE: usize = 500;
    const COUNT: usize = 2000;
    let broker = Broker::start_on(store, &limited(json!({"publishRate": RATE})).parent("readings"))?;
    for (driver, version, qos) in
        [(Driver::Paho, Version::V3, 1), (Driver::MqttJs, Version::V5, 2), (Driver::Paho, Version::V5, 0)]
    {
        let mut subscriber = Client::connect(Driver::Paho, &broker, &login(Version::V3, "subscriber"))?;
        ensure!(subscriber.subscribe("readings/#", qos)? == [qos]);
        let mut publisher = Client::connect(driver, &broker, &login(version, "publisher"))?;
        let start = Instant::now();
        for number in 0..COUNT {
            publisher.publish_soon("readings/x", number.to_string().as_bytes(), qos, false)?;
        }
        for number in 0..COUNT {
            let message =
                subscriber.message().with_context(|| format!("{number} of {COUNT} at QoS {qos}"))?;
            ensure!(message.payload == number.to_string().as_bytes(), "at {number} came {message:?}");
        }
        let took = start.elapsed().as_secs_f64();
        // What may go at once after a pause is at most a second's worth.
        let least = (COUNT - RATE) as f64 / RATE as f64;
        ensure!(took > least * 0.95, "{COUNT} messages at {RATE} a second took only {took:.2} s");
        ensure!(took < least * 2.0 + 5.0, "{COUNT} messages at {RATE} a second took {took:.2} s");
    }
    broker.wait_for_log(&["WARN", "rate"])?;
    Ok(())
}

fn deliveries_over_the_rate_wait_and_none_is_lost(store: &Store) -> Result<()> {
    const RATE: usize = 500;
    const COUNT: usize = 1500;
    let broker = Broker::start_on(store, &limited(json!({"deliveryRate": RATE})))?;
    let mut subscribers = ["one", "other"]
        .map(|id| Client::connect(Driver::Paho, &broker, &login(Version::V5, id)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    for subscriber in &mut subscribers {
        ensure!(subscriber.subscribe("news", 1)? == [1]);
    }
    let mut publisher = Client::connect(Driver::Paho, &broker, &login(Version::V5, "publisher"))?;
    let start = Instant::now();
    for number in 0..COUNT {
        publisher.publish_soon("news", number.to_string().as_bytes(), 1, false)?;
    }
    for subscriber in &mut subscribers {
        for number in 0..COUNT {
            let message = subscriber.message().with_context(|| format!("{number} of {COUNT}"))?;
            ensure!(message.payload == number.to_string().as_bytes(), "at {number} came {message:?}");
        }
    }
    let took = start.elapsed().as_secs_f64();
    // The rate is that of both together; what may go at once is at most a second's worth.
    let least = (2 * COUNT - RATE) as f64 / RATE as f64;
    ensure!(took > least * 0.95, "{COUNT} messages to each of two at {RATE} a second took only {took:.2} s");
    ensure!(took < least * 2.0 + 5.0, "{COUNT} messages to each of two at {RATE} a second took {took:.2} s");
    Ok(())
}

fn strict_characters_refuse_what_the_guide_does_not_name(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &limited(json!({"characters": "Strict"})))?;
    let good = ["meter-7", "A_b-9", "GID-home@@device_1", "a/b/c", "/a", "x"];
    let bad = ["meter 7", "meter.7", "a@b", "电表", "a$b", "a:b", "meter\u{7f}"];
    for version in VERSIONS {
        for text in good {
            let (mut dialogue, _) = Dialogue::connect(broker.mqtt, &login(version, text))
                .with_context(|| format!("client ID {text}"))?;
            ensure!(dialogue.subscribe(text, 0)? == 0, "the filter {text}");
            dialogue.publish(text, b"x", 0, 0)?;
            let echo = dialogue.read()?;
            ensure!(
                matches!(&echo, Packet::Publish { topic, .. } if topic == text),
                "the topic {text}: {echo:?}"
            );
        }
        for text in bad {
            let refused = Dialogue::greet(broker.mqtt, &login(version, text))?.read()?;
            let code = if version == Version::V3 { 2 } else { 0x85 };
            ensure!(
                refused == Packet::ConnAck { session_present: false, code },
                "client ID {text}: {refused:?}"
            );

            let (mut dialogue, _) = Dialogue::connect(broker.mqtt, &login(version, "meter-7"))?;
            let code = dialogue.subscribe(&format!("a/{text}"), 0)?;
            ensure!(code >= 0x80, "the filter a/{text} was granted");
            dialogue.publish(&format!("a/{text}"), b"x", 1, 9)?;
            let answer = dialogue.read()?;
            let refused = match version {
                Version::V31 | Version::V3 => answer == Packet::Closed,
                Version::V5 => matches!(answer, Packet::PubAck { id: 9, reason: 0x90 }),
            };
            ensure!(refused, "the topic a/{text}: answered {answer:?}");
        }
        let (mut dialogue, _) = Dialogue::connect(broker.mqtt, &login(version, "meter-7"))?;
        for filter in ["#", "+", "a/+/b", "a/#"] {
            ensure!(dialogue.subscribe(filter, 0)? == 0, "the filter {filter}");
        }
    }
    Ok(())
}

fn what_is_larger_than_the_instances_packet_size_is_refused(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &limited(json!({"packetSize": "4Ki", "clientIdLength": 8})))?;
    for version in VERSIONS {
        let (mut dialogue, _) = Dialogue::connect(broker.mqtt, &login(version, "12345678"))?;
        dialogue.publish("a", &[b'x'; 4000], 1, 1)?;
        ensure!(matches!(dialogue.read()?, Packet::PubAck { id: 1, reason: 0 | 0x10 }));
        dialogue.publish("a", &[b'x'; 4100], 1, 2)?;
        if version == Version::V5 {
            ensure!(dialogue.read()? == Packet::Disconnect { reason: 0x95 });
        }
        ensure!(dialogue.read()? == Packet::Closed);
        let refused = Dialogue::greet(broker.mqtt, &login(version, "123456789"))?.read()?;
        ensure!(matches!(refused, Packet::ConnAck { code: 2 | 0x85, .. }), "{refused:?}");
    }
    Ok(())
}

fn a_keep_alive_longer_than_the_instances_is_shortened_where_the_client_can_be_told(
    store: &Store,
) -> Result<()> {
    let broker = Broker::start_on(store, &limited(json!({"keepAlive": "1s"})))?;
    // Server Keep Alive: one second.
    const TOLD: [u8; 3] = [0x13, 0, 1];
    let own = |version, id: &str, keep_alive| Login { keep_alive, ..login(version, id) };
    let mut kept = Vec::new();
    for (version, asked) in [(Version::V31, 0), (Version::V3, 0), (Version::V3, 60)] {
        kept.push(Dialogue::connect(broker.mqtt, &own(version, &format!("{version:?}-{asked}"), asked))?.0);
    }
    let mut silent = Vec::new();
    for asked in [0, 2, 65_535, 1] {
        let mut stream = TcpStream::connect(broker.mqtt)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&own(Version::V5, &format!("silent-{asked}"), asked).packet())?;
        let connack = packet(&mut stream)?;
        let told = connack.windows(TOLD.len()).any(|at| at == TOLD);
        ensure!(told == (asked != 1), "{asked}: it was told {connack:02x?}");
        silent.push(stream);
    }
    for stream in &mut silent {
        let last = packet(stream)?;
        ensure!(matches!(last[..], [0xE0, _, 0x8D, ..]), "{last:02x?}");
    }
    // They were silent for longer.
    for dialogue in &mut kept {
        ensure!(dialogue.ping()?.is_empty());
    }
    Ok(())
}

/// The bytes of the next packet, a short one.
fn packet(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    let mut body = vec![0; usize::from(head[1])];
    stream.read_exact(&mut body)?;
    Ok([head.to_vec(), body].concat())
}
