//! Three nodes on one Kafka are one broker: whoever publishes on one reaches who subscribes on another, and any node serves any
//! device's session.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use mqtt_e2e::{
    Broker, Client, Cluster, Dialogue, Driver, Login, Manifests, PATIENCE, Packet, Store, Version, on_kafka,
    wait_until,
};
use serde_json::json;

fn manifests() -> Manifests {
    Manifests::new().user("fleet", "fleet-secret").grant("fleet-all", "fleet", &[("pubsub", "to/#")])
}

fn login(version: Version, client_id: &str) -> Login {
    Login::new(version, client_id).user("fleet", "fleet-secret")
}

#[test]
fn what_is_published_on_one_node_reaches_sessions_on_every_other() -> Result<()> {
    on_kafka(|store: &Store| {
        let cluster = Cluster::start(store, &manifests(), 3)?;
        let [a, b, c] = &cluster.nodes[..] else { unreachable!() };
        let mut publisher = Client::connect(Driver::Paho, a, &login(Version::V5, "publisher"))?;
        let mut clean = Client::connect(Driver::Paho, b, &login(Version::V5, "clean"))?;
        let kept = login(Version::V3, "kept").persistent();
        let mut persistent = Client::connect(Driver::Paho, c, &kept)?;
        clean.subscribe("to/+", 2)?;
        persistent.subscribe("to/#", 1)?;
        for qos in 0..3 {
            publisher.publish("to/all", format!("at {qos}").as_bytes(), qos)?;
        }
        for client in [&mut clean, &mut persistent] {
            for qos in 0..3 {
                let message = client.message()?;
                ensure!(message.payload == format!("at {qos}").as_bytes(), "{message:?}");
            }
        }
        // Away from one node, back at another.
        persistent.break_off()?;
        publisher.publish("to/all", b"meanwhile", 1)?;
        let mut persistent = Client::connect(Driver::Paho, b, &kept)?;
        let mut message = persistent.message()?;
        if message.payload == b"at 2" {
            // Its acknowledgement was under way when the connection broke off.
            message = persistent.message()?;
        }
        ensure!(message.payload == b"meanwhile", "{message:?}");
        // What is retained on one node is found on another.
        publisher.retain("to/kept", b"value", 1)?;
        let mut late = Client::connect(Driver::Paho, c, &login(Version::V5, "late"))?;
        late.subscribe("to/kept", 1)?;
        let message = late.message()?;
        ensure!(message.payload == b"value" && message.retain, "{message:?}");
        // A client that connects elsewhere leaves the node that it was at.
        let mut elsewhere = Client::connect(Driver::Paho, a, &login(Version::V5, "clean"))?;
        clean.closed()?;
        elsewhere.subscribe("to/one", 1)?;
        Ok(())
    })
}

#[test]
fn the_limits_are_those_of_all_nodes_together() -> Result<()> {
    on_kafka(|store: &Store| {
        let limits = json!({"limits": {"connections": 3, "subscriptions": 3, "publishRate": 1000}});
        let cluster = Cluster::start(store, &manifests().instance(limits), 2)?;
        let [a, b] = &cluster.nodes[..] else { unreachable!() };
        let figure = |broker: &Broker, name: &str| {
            let text = broker.get("/metrics")?.1;
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.map(str::to_owned).with_context(|| format!("no {name}"))
        };
        for broker in [a, b] {
            wait_until("half of the rate each", PATIENCE, || {
                Ok((figure(broker, "mqtt_publish_rate_limit")? == "500.0").then_some(()))
            })?;
        }
        // Of a session in the log, which all nodes know, and of one that its own node alone has.
        let (mut kept, _) = Dialogue::connect(a.mqtt, &login(Version::V5, "kept").persistent())?;
        ensure!(kept.subscribe("to/1", 1)? == 1);
        let (mut clean, _) = Dialogue::connect(a.mqtt, &login(Version::V5, "clean"))?;
        ensure!(clean.subscribe("to/2", 1)? == 1);
        let (mut last, _) = Dialogue::connect(b.mqtt, &login(Version::V5, "last"))?;
        // Each says every second what it uses.
        for (name, value) in [("mqtt_connections_elsewhere", "2.0"), ("mqtt_subscriptions_elsewhere", "1.0")]
        {
            wait_until(name, PATIENCE, || Ok((figure(b, name)? == value).then_some(())))?;
        }
        let answer = Dialogue::greet(b.mqtt, &login(Version::V5, "fourth"))?.read()?;
        ensure!(matches!(answer, Packet::ConnAck { code: 0x97, .. }), "there are three: {answer:?}");
        ensure!(last.subscribe("to/3", 1)? == 1, "there is room for one more subscription");
        ensure!(last.subscribe("to/4", 1)? == 0x97, "and for no other");
        Ok(())
    })
}

#[test]
fn a_node_that_ends_in_order_answers_what_it_read_and_lets_its_devices_go_one_after_the_other() -> Result<()>
{
    const DEVICES: usize = 10;
    on_kafka(|store: &Store| {
        let reference = json!({"listeners": {"serverReference": "other.example:1883"}});
        let mut cluster = Cluster::start(store, &manifests().instance(reference), 2)?;
        let address = cluster.node(0)?.mqtt;
        let connect = |number| {
            let (mut device, _) =
                Dialogue::connect(address, &login(Version::V5, &format!("device-{number}")))?;
            device.publish("to/nobody", b"x", 1, 1)?;
            Ok(device)
        };
        let devices = (0..DEVICES).map(connect).collect::<Result<Vec<_>>>()?;
        let mut raw = TcpStream::connect(address)?;
        raw.set_read_timeout(Some(PATIENCE))?;
        raw.write_all(&login(Version::V5, "raw").packet())?;
        raw.read_exact(&mut [0; 2])?;
        let told = |mut device: Dialogue| {
            let answer = device.read()?;
            ensure!(matches!(answer, Packet::PubAck { id: 1, .. }), "{answer:?}");
            Ok((device.read()?, Instant::now()))
        };
        let gone = thread::scope(|scope| {
            let ends: Vec<_> = devices.into_iter().map(|device| scope.spawn(|| told(device))).collect();
            let status = cluster.node(0)?.stop()?;
            ensure!(status.success(), "it ended with {status}");
            let told = ends.into_iter().map(|end| end.join().map_err(|_| anyhow!("a device panicked"))?);
            told.collect::<Result<Vec<_>>>()
        })?;
        let is_told = |packet: &Packet| matches!(packet, Packet::Disconnect { reason: 0x9c });
        ensure!(gone.iter().all(|(packet, _)| is_told(packet)), "{gone:?}");
        let mut last_word = Vec::new();
        raw.read_to_end(&mut last_word)?;
        // Its last property, the server reference.
        let named = b"\x1c\0\x12other.example:1883";
        ensure!(last_word.ends_with(named), "{}", last_word.escape_ascii());
        let (first, last) = (gone.iter().map(|(_, at)| *at).min(), gone.iter().map(|(_, at)| *at).max());
        let (first, last) = first.zip(last).context("nobody was told")?;
        ensure!(last - first > Duration::from_millis(200), "all within {:?}", last - first);
        Ok(())
    })
}
