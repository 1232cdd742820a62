//! Devices and web pages meet the broker over WebSocket: real clients, frames of every making, and those that keep to no
//! rule.

use std::{
    io::{ErrorKind, Read},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mqtt_e2e::{
    Authority, Broker, Client, Dialogue, Driver, Login, Manifests, PATIENCE, Packet, Tls, TlsVersion,
    Version, Ws, wait_until,
    ws::{REQUEST, ask, frame, socket},
};
use serde_json::{Value, json};

fn manifests(listeners: Value) -> Manifests {
    Manifests::new().instance(json!({"listeners": listeners})).user("fleet", "fleet-secret").grant(
        "fleet-all",
        "fleet",
        &[("pubsub", "#")],
    )
}

fn start() -> Result<Broker> {
    Broker::start_with(&manifests(json!({"ws": {}})), &["--ws", "127.0.0.1:0"])
}

fn ws(broker: &Broker) -> Result<SocketAddr> {
    broker.ws.context("no WebSocket listener")
}

fn fleet(version: Version, id: &str) -> Login {
    Login::new(version, id).user("fleet", "fleet-secret")
}

/// A client that was let in, over a WebSocket whose frames hold so many bytes.
fn connect(broker: &Broker, id: &str, piece: usize) -> Result<Dialogue> {
    let mut dialogue = Dialogue::over(Box::new(Ws::connect(ws(broker)?, piece)?), Version::V5);
    dialogue.send(&fleet(Version::V5, id).packet())?;
    match dialogue.read()? {
        Packet::ConnAck { code: 0, .. } => Ok(dialogue),
        other => bail!("not accepted: {other:?}"),
    }
}

#[test]
fn real_clients_publish_and_subscribe_over_websocket_with_and_without_tls() -> Result<()> {
    let authority = Authority::new("site")?;
    let pair = authority.issue("broker")?;
    let listeners = json!({"ws": {}, "wss": {}, "mqtts": {"secretRef": {"name": "meters-tls"}}});
    let manifests = manifests(listeners)
        .secret_of("meters-tls", json!({"tls.crt": pair.certificate, "tls.key": pair.key}));
    let flags = ["--ws", "--wss", "--mqtts"].map(|flag| [flag, "127.0.0.1:0"]).concat();
    let broker = Broker::start_with(&manifests, &flags)?;
    // Several frames and records of TLS, and none of them text.
    let large: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let pairs = [
        ((Driver::MqttJs, Version::V5, false), (Driver::Paho, Version::V3, true)),
        ((Driver::Paho, Version::V5, false), (Driver::MqttJs, Version::V3, true)),
        ((Driver::MqttJs, Version::V3, true), (Driver::MqttJs, Version::V5, false)),
    ];
    for (number, (publisher, subscriber)) in pairs.into_iter().enumerate() {
        let start = |(driver, version, tls): (Driver, Version, bool), id: String| {
            let login = fleet(version, &id).over_websocket();
            let client = authority.client(TlsVersion::V13);
            Client::connect(driver, &broker, &if tls { login.over_tls(&client) } else { login })
        };
        let check = || -> Result<()> {
            let mut subscriber = start(subscriber, format!("subscriber-{number}"))?;
            ensure!(subscriber.subscribe(&format!("pair/{number}"), 2)? == [2]);
            let mut publisher = start(publisher, format!("publisher-{number}"))?;
            for (qos, payload) in [(0, &b"small"[..]), (1, &large), (2, b"end")] {
                ensure!(publisher.publish(&format!("pair/{number}"), payload, qos)? == 0);
                let message = subscriber.message()?;
                ensure!((&*message.payload, message.qos) == (payload, qos), "at QoS {qos}");
            }
            publisher.disconnect()?;
            subscriber.disconnect()
        };
        check().with_context(|| format!("{publisher:?} to {subscriber:?}"))?;
    }
    Ok(())
}

#[test]
fn packets_arrive_whatever_frames_they_come_in() -> Result<()> {
    let broker = start()?;
    for piece in [1, 3, 100, 60_000] {
        let mut device = connect(&broker, "device", piece)?;
        ensure!(device.subscribe("t", 1)? == 1);
        for (payload, id) in [(vec![], 1), (b"x".to_vec(), 2), (vec![b'y'; 5000], 3)] {
            device.publish("t", &payload, 1, id)?;
            let mut answers = [device.read()?, device.read()?];
            answers.sort_by_key(|answer| matches!(answer, Packet::PubAck { .. }));
            let [Packet::Publish { payload: came, .. }, Packet::PubAck { id: acked, reason: 0 }] = &answers
            else {
                bail!("in frames of {piece}: {answers:?}");
            };
            ensure!((came, *acked) == (&payload, id), "in frames of {piece}: changed");
        }
        ensure!(device.ping()?.is_empty());
    }
    Ok(())
}

#[test]
fn fragments_are_one_stream_and_pings_and_closes_are_answered() -> Result<()> {
    let broker = start()?;
    let mut client = Ws::connect(ws(&broker)?, 1000)?;
    let connect = fleet(Version::V5, "device").packet();
    let (first, last) = connect.split_at(5);
    let fragments =
        [frame(0x02, first)?, frame(0x89, b"still there?")?, frame(0x00, b"")?, frame(0x80, last)?].concat();
    client.raw(&fragments)?;
    ensure!(client.control()? == (10, b"still there?".to_vec()));
    let mut connack = [0; 2];
    client.read_exact(&mut connack)?;
    ensure!(connack[0] == 0x20, "no CONNACK, but {connack:?}");
    let mut rest = vec![0; connack[1].into()];
    client.read_exact(&mut rest)?;
    client.raw(&frame(0x8a, b"unasked")?)?;
    client.raw(&frame(0x88, &[3, 233])?)?;
    ensure!(client.control()? == (8, vec![3, 233]), "the close was not answered with its code");
    ensure!(client.read(&mut [0])? == 0);
    Ok(())
}

#[test]
fn what_breaks_the_protocol_of_websocket_is_closed_with_its_code_and_counted() -> Result<()> {
    let broker = start()?;
    let connect = fleet(Version::V5, "device").packet();
    let cases = [
        ("text", frame(0x81, b"hello")?, 1003u16),
        ("no mask", vec![0x82, 1, 0x10], 1002),
        ("a reserved bit", frame(0xc2, b"x")?, 1002),
        ("a continuation of nothing", frame(0x80, b"x")?, 1002),
    ];
    for (what, bytes, code) in cases {
        let before = broker.counter("protocol_violations")?;
        for greeting in [&connect[..], b""] {
            let mut client = Ws::connect(ws(&broker)?, 1000)?;
            if !greeting.is_empty() {
                client.raw(&frame(0x82, greeting)?)?;
            }
            client.raw(&bytes)?;
            let (kind, payload) = client.control().with_context(|| what.to_owned())?;
            ensure!((kind, payload) == (8, code.to_be_bytes().to_vec()), "{what}");
        }
        wait_until("both to be counted", PATIENCE, || {
            Ok((broker.counter("protocol_violations")? == before + 2).then_some(()))
        })?;
    }
    broker.wait_for_log(&["closed: a WebSocket message is text"])?;
    Ok(())
}

#[test]
fn requests_that_open_no_websocket_are_told_why() -> Result<()> {
    let broker = Broker::start_with(
        &manifests(json!({"ws": {}, "origins": ["https://app.example"]})),
        &["--ws", "127.0.0.1:0"],
    )?;
    let protocol = "Sec-WebSocket-Protocol: mqtt\r\n";
    let cases = [
        (format!("{REQUEST}{protocol}\r\n"), "101"),
        (format!("{REQUEST}{protocol}Origin: https://app.example\r\n\r\n"), "101"),
        (format!("{REQUEST}{protocol}Origin: https://evil.example\r\n\r\n"), "403"),
        (format!("{REQUEST}\r\n"), "400"),
        ("GET / HTTP/1.1\r\nHost: broker\r\n\r\n".to_owned(), "426"),
        ("\x10\x0c\0\x04MQTT\x05\x02\0\0\0\r\n\r\n".to_owned(), "400"),
        (format!("{REQUEST}X: {}\r\n\r\n", "x".repeat(9000)), "431"),
    ];
    let mut refused = 0;
    for (request, status) in cases {
        let answer = ask(&mut socket(ws(&broker)?)?, &request)?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        refused += u64::from(status != "101");
    }
    wait_until("all refusals to be counted", PATIENCE, || {
        Ok((broker.counter("ws_handshakes_failed")? == refused).then_some(()))
    })?;
    // A change of origins is in force for the next request.
    broker.apply(&manifests(json!({"ws": {}, "origins": ["https://other.example"]})))?;
    wait_until("the new origins", PATIENCE, || {
        let request = format!("{REQUEST}{protocol}Origin: https://app.example\r\n\r\n");
        Ok(ask(&mut socket(ws(&broker)?)?, &request)?.starts_with("HTTP/1.1 403 ").then_some(()))
    })
}

#[test]
fn clients_that_never_finish_their_request_hold_nobody_up() -> Result<()> {
    let broker = start()?;
    let start = Instant::now();
    let mut stalled = Vec::new();
    for _ in 0..100 {
        let mut stream = socket(ws(&broker)?)?;
        std::io::Write::write_all(&mut stream, REQUEST.as_bytes())?;
        stalled.push(stream);
    }
    let asked = Instant::now();
    let mut device = connect(&broker, "device", 1000)?;
    ensure!(asked.elapsed() < Duration::from_secs(2), "a handshake took {:?}", asked.elapsed());
    for mut stream in stalled {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        match stream.read(&mut [0; 100]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => bail!("it was not closed, but {other:?}"),
        }
    }
    ensure!(start.elapsed() >= Duration::from_secs(9), "given up after {:?}", start.elapsed());
    ensure!(device.ping()?.is_empty());
    let told = broker.log_lines(&["WebSocket handshake failed", "not finished within 10 s"])?.len();
    ensure!((1..10).contains(&told), "{told} lines about 100 clients");
    Ok(())
}

#[test]
fn what_a_device_is_slow_to_read_arrives_whole() -> Result<()> {
    let broker = start()?;
    let mut slow = connect(&broker, "slow", 1000)?;
    ensure!(slow.subscribe("slow", 0)? == 0);
    let (mut publisher, _) = Dialogue::connect(broker.mqtt, &fleet(Version::V5, "publisher"))?;
    // More than sockets hold.
    let payloads: Vec<Vec<u8>> = (0..100).map(|n| vec![n; 120_000]).collect();
    for (payload, id) in payloads.iter().zip(1..) {
        publisher.publish("slow", payload, 1, id)?;
        let answer = publisher.read()?;
        ensure!(answer == Packet::PubAck { id, reason: 0 }, "answered {answer:?}");
    }
    for expected in &payloads {
        match slow.read()? {
            Packet::Publish { payload, .. } => ensure!(payload == *expected, "changed or out of order"),
            other => bail!("not a message: {other:?}"),
        }
    }
    ensure!(slow.ping()?.is_empty());
    Ok(())
}

#[test]
fn an_idle_websocket_takes_little_memory() -> Result<()> {
    const CONNECTIONS: u64 = 500;
    const MOST: u64 = 12;
    let broker = start()?;
    // What the first ones need belongs to the process.
    let mut idle = (0..50)
        .map(|number| connect(&broker, &format!("first-{number}"), 1000))
        .collect::<Result<Vec<_>>>()?;
    let before = broker.resident()?;
    for number in 0..CONNECTIONS {
        idle.push(connect(&broker, &format!("idle-{number}"), 1000)?);
    }
    let each = broker.resident()?.saturating_sub(before) / CONNECTIONS / 1024;
    ensure!(each <= MOST, "{each} KB an idle connection");
    Ok(())
}

#[test]
fn a_connection_over_tls_that_says_nothing_is_no_failed_handshake() -> Result<()> {
    let authority = Authority::new("site")?;
    let pair = authority.issue("broker")?;
    let listeners = json!({"wss": {}, "mqtts": {"secretRef": {"name": "meters-tls"}}});
    let manifests = manifests(listeners)
        .secret_of("meters-tls", json!({"tls.crt": pair.certificate, "tls.key": pair.key}));
    let broker = Broker::start_with(&manifests, &["--wss", "127.0.0.1:0", "--mqtts", "127.0.0.1:0"])?;
    for address in [broker.mqtts, broker.wss] {
        let address = address.context("no listener")?;
        for _ in 0..10 {
            drop(socket(address)?);
        }
        // Accepted after them, so that they have been looked at when it has failed.
        let mut garbage = socket(address)?;
        std::io::Write::write_all(&mut garbage, b"no TLS at all\r\n")?;
        let before = Instant::now();
        while garbage.read(&mut [0; 100]).is_ok_and(|bytes| bytes > 0) && before.elapsed() < PATIENCE {}
    }
    wait_until("the two that spoke no TLS to be counted", PATIENCE, || {
        Ok((broker.counter("tls_handshakes_failed")? >= 2).then_some(()))
    })?;
    ensure!(broker.counter("tls_handshakes_failed")? == 2);
    let client = authority.client(TlsVersion::V13);
    let stream = Ws::over(Box::new(Tls::connect(broker.wss.context("no wss")?, &client)?), 100)?;
    let mut device = Dialogue::over(Box::new(stream), Version::V5);
    device.send(&fleet(Version::V5, "device").packet())?;
    ensure!(matches!(device.read()?, Packet::ConnAck { code: 0, .. }));
    Ok(())
}
