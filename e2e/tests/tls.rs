//! Devices meet the broker over TLS: real clients of both versions, a certificate that is rotated while they stay,
//! certificates of their own, and clients that never finish.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mqtt_e2e::{
    Authority, Broker, Client, ClientTls, Dialogue, Driver, Login, Manifests, PATIENCE, Packet, Tls,
    TlsVersion::{self, V12, V13},
    Version,
    tls::Pair,
    wait_until,
};
use serde_json::{Value, json};

/// A change is in force within a second; a busy test machine gets one more.
const PROMPT: Duration = Duration::from_secs(2);

/// A service with a TLS listener that shows this certificate.
fn manifests(pair: &Pair, more: Value) -> Manifests {
    let mut mqtts = json!({"secretRef": {"name": "meters-tls"}});
    if let (Some(fields), Value::Object(more)) = (mqtts.as_object_mut(), more) {
        fields.extend(more);
    }
    Manifests::new()
        .instance(json!({"listeners": {"mqtts": mqtts}}))
        .secret_of("meters-tls", json!({"tls.crt": pair.certificate, "tls.key": pair.key}))
        .user("fleet", "fleet-secret")
        .grant("fleet-all", "fleet", &[("pubsub", "#")])
}

fn fleet(version: Version, id: &str) -> Login {
    Login::new(version, id).user("fleet", "fleet-secret")
}

fn mqtts(broker: &Broker) -> Result<SocketAddr> {
    broker.mqtts.context("no TLS listener")
}

fn connect(broker: &Broker, client: &ClientTls, id: &str) -> Result<Dialogue> {
    Tls::connect(mqtts(broker)?, client)?.login(&fleet(Version::V5, id))
}

#[test]
fn real_clients_publish_and_subscribe_over_both_versions_of_tls() -> Result<()> {
    let authority = Authority::new("site")?;
    let broker = Broker::start_with_tls(&manifests(&authority.issue("broker")?, json!({})))?;
    // Several records of TLS, and none of them text.
    let large: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let pairs = [
        ((Driver::Mosquitto, Version::V3, V12), (Driver::MqttJs, Version::V5, V13)),
        ((Driver::Paho, Version::V5, V13), (Driver::Mosquitto, Version::V3, V13)),
        ((Driver::MqttJs, Version::V3, V12), (Driver::Paho, Version::V5, V12)),
    ];
    for (number, (publisher, subscriber)) in pairs.into_iter().enumerate() {
        let start = |(driver, version, tls): (Driver, Version, TlsVersion), id: String| {
            Client::connect(driver, &broker, &fleet(version, &id).over_tls(&authority.client(tls)))
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
fn what_a_device_is_slow_to_read_arrives_whole() -> Result<()> {
    let authority = Authority::new("site")?;
    let broker = Broker::start_with_tls(&manifests(&authority.issue("broker")?, json!({})))?;
    for version in [V12, V13] {
        let stream = Tls::connect(mqtts(&broker)?, &authority.client(version))?;
        ensure!((stream.version(), stream.protocol()) == (Some(version), Some(&b"mqtt"[..])));
        let mut slow = stream.login(&fleet(Version::V5, "slow"))?;
        ensure!(slow.subscribe("slow", 0)? == 0);
        let (mut publisher, _) = Dialogue::connect(broker.mqtt, &fleet(Version::V5, "publisher"))?;
        // More than sockets and TLS hold.
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
    }
    Ok(())
}

#[test]
fn what_a_full_socket_leaves_with_tls_is_sent_once_the_device_reads_on() -> Result<()> {
    let authority = Authority::new("site")?;
    let broker = Broker::start_with_tls(&manifests(&authority.issue("broker")?, json!({})))?;
    let stream = Tls::connect(mqtts(&broker)?, &authority.client(V13))?;
    let device = stream.address()?;
    let mut slow = stream.login(&fleet(Version::V5, "slow"))?;
    ensure!(slow.subscribe("slow", 0)? == 0);
    let (mut publisher, _) = Dialogue::connect(broker.mqtt, &fleet(Version::V5, "publisher"))?;
    let (mut sent, mut queued) = (0, 0);
    loop {
        publisher.publish("slow", &[b'x'; 8000], 0, 0)?;
        sent += 1;
        wait_until("the message to be sent", PATIENCE, || {
            Ok((counter(&broker, "messages_sent")? == sent).then_some(()))
        })?;
        let now = unsent(mqtts(&broker)?, device)?;
        // The device's window is shut, and nothing of this message went into the socket: it is full.
        if now > 100_000 && now == queued {
            break;
        }
        ensure!(sent < 5000, "the socket never is full: {now} bytes wait in it");
        queued = now;
    }
    for number in 0..sent {
        let message = slow.read().with_context(|| format!("message {number} of {sent}"))?;
        ensure!(matches!(message, Packet::Publish { .. }), "not a message: {message:?}");
    }
    Ok(())
}

fn counter(broker: &Broker, name: &str) -> Result<u64> {
    let counters: Value = serde_json::from_str(&broker.get("/v1/counters")?.1)?;
    counters.get(name).and_then(Value::as_u64).with_context(|| format!("no counter {name}"))
}

/// Bytes that wait in the broker's socket for a device to take them, as Linux counts them (proc(5), /proc/net/tcp).
fn unsent(broker: SocketAddr, device: SocketAddr) -> Result<u64> {
    let (broker, device) = (format!(":{:04X}", broker.port()), format!(":{:04X}", device.port()));
    let table = fs::read_to_string("/proc/net/tcp")?;
    let socket = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(
        |fields| matches!(fields.as_slice(), [_, local, remote, ..] if local.ends_with(&broker) && remote.ends_with(&device)),
    );
    let queues = socket.and_then(|fields| fields.get(4).copied()).context("no such socket")?;
    let (unsent, _) = queues.split_once(':').context("no queues")?;
    Ok(u64::from_str_radix(unsent, 16)?)
}

#[test]
fn a_rotated_certificate_meets_new_connections_and_closes_none() -> Result<()> {
    let authority = Authority::new("site")?;
    let (first, second) = (authority.issue("first")?, authority.issue("second")?);
    let broker = Broker::start_with_tls(&manifests(&first, json!({})))?;
    let shown = |version| -> Result<_> {
        Tls::connect(mqtts(&broker)?, &authority.client(version))?.seen().context("no certificate")
    };
    ensure!(shown(V12)? == first.der()? && shown(V13)? == first.der()?);
    let mut stays =
        [V12, V13].map(|version| connect(&broker, &authority.client(version), &format!("stays-{version:?}")));
    let real = fleet(Version::V3, "real").over_tls(&authority.client(V13));
    let mut real = Client::connect(Driver::MqttJs, &broker, &real)?;

    broker.apply(&manifests(&second, json!({})))?;
    wait_until("the new certificate", PROMPT, || Ok((shown(V13)? == second.der()?).then_some(())))?;
    ensure!(shown(V12)? == second.der()?);

    let torn = Pair { key: first.key.clone(), ..second.clone() };
    broker.apply(&manifests(&torn, json!({})))?;
    let line = broker.wait_for_log(&["mqttinstance-meters.yaml", "not that of the certificate"])?;
    ensure!(line.contains("spec.listeners.mqtts.secretRef.name"), "{line}");
    ensure!(shown(V13)? == second.der()?, "a bad certificate took the good one away");

    for device in &mut stays {
        let device = device.as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        ensure!(device.ping()?.is_empty(), "an old connection was disturbed");
    }
    ensure!(real.publish("still/here", b"", 1)? <= 0x10);
    ensure!(real.drain()?.is_empty(), "a real client was disturbed");
    Ok(())
}

#[test]
fn where_devices_need_certificates_those_of_the_right_authority_are_let_in() -> Result<()> {
    let (site, devices, strangers) =
        (Authority::new("site")?, Authority::new("devices")?, Authority::new("strangers")?);
    let mutual =
        manifests(&site.issue("broker")?, json!({"clientCaSecretRef": {"name": "devices", "key": "ca.crt"}}))
            .secret_of("devices", json!({"ca.crt": devices.pem()}));
    let broker = Broker::start_with_tls(&mutual)?;
    let (known, stranger) = (devices.issue("meter-1")?, strangers.issue("meter-1")?);
    let failed = || counter(&broker, "tls_handshakes_failed");
    for version in [V12, V13] {
        let with = |pair: &Pair| site.client_with(version, "device", pair);
        connect(&broker, &with(&known)?, "known").with_context(|| format!("{version:?}"))?;
        let wrong = Tls::connect(mqtts(&broker)?, &with(&known)?)?
            .login(&Login::new(Version::V5, "known").user("fleet", "wrong"));
        ensure!(wrong.is_err(), "a certificate is no password");
        for (what, client) in [("none", site.client(version)), ("a stranger's", with(&stranger)?)] {
            let before = failed()?;
            ensure!(connect(&broker, &client, "refused").is_err(), "{version:?}: let in with {what}");
            wait_until(
                "the refusal to be counted",
                PATIENCE,
                || Ok((failed()? == before + 1).then_some(())),
            )?;
        }
        let real = |pair: &Pair| -> Result<u8> {
            let login = fleet(Version::V3, "real").over_tls(&with(pair)?);
            Client::connect(Driver::Mosquitto, &broker, &login)?.publish("x", b"x", 1)
        };
        ensure!(real(&known)? == 0 && real(&stranger)? != 0);
    }
    broker.wait_for_log(&["TLS handshake failed", "peer=127.0.0.1"])?;
    Ok(())
}

#[test]
fn a_certificate_may_name_the_user() -> Result<()> {
    let (site, devices) = (Authority::new("site")?, Authority::new("devices")?);
    let fields =
        json!({"clientCaSecretRef": {"name": "devices", "key": "ca.crt"}, "userFromCertificate": true});
    let manifests = manifests(&site.issue("broker")?, fields)
        .secret_of("devices", json!({"ca.crt": devices.pem()}))
        .user("meter-7", "meter-secret")
        .grant("meter-7", "meter-7", &[("sub", "commands/${username}")]);
    let broker = Broker::start_with_tls(&manifests)?;
    let client = |name: &str| site.client_with(V13, name, &devices.issue(name)?);
    let login = |name: &str, login: &Login| Tls::connect(mqtts(&broker)?, &client(name)?)?.login(login);
    let bare = Login::new(Version::V5, "device");
    let mut device = login("meter-7", &bare)?;
    ensure!(device.subscribe("commands/meter-7", 1)? == 1, "it is not the certificate's user");
    ensure!(device.subscribe("commands/fleet", 1)? == 0x87);
    login("meter-7", &bare.clone().user("meter-7", "no matter"))?;
    ensure!(login("meter-7", &fleet(Version::V5, "device")).is_err(), "it named another user");
    ensure!(login("stranger", &bare).is_err(), "there is no such user");
    // Elsewhere passwords are asked for as ever.
    let (plain, _) = Dialogue::connect(broker.mqtt, &fleet(Version::V5, "plain"))?;
    drop(plain);
    ensure!(Dialogue::connect(broker.mqtt, &bare).is_err());
    let expires = counter(&broker, "tls_certificate_expires_at")?;
    ensure!(expires > 4_000_000_000, "the certificates of these tests last for ever, not until {expires}");
    Ok(())
}

#[test]
fn a_certificate_that_expires_soon_is_told() -> Result<()> {
    let authority = Authority::new("site")?;
    let broker = Broker::start_with_tls(&manifests(&authority.issue_until("broker", 5)?, json!({})))?;
    broker.wait_for_log(&["the TLS certificate expires in", "replace it"])?;
    broker.apply(&manifests(&authority.issue_until("broker", -1)?, json!({})))?;
    broker.wait_for_log(&["the TLS certificate has expired"])?;
    let lines = broker.log_lines(&["the TLS certificate"])?.len();
    ensure!(lines == 2, "told {lines} times");
    Ok(())
}

#[test]
fn clients_that_never_finish_their_handshake_hold_nobody_up() -> Result<()> {
    let authority = Authority::new("site")?;
    let broker = Broker::start_with_tls(&manifests(&authority.issue("broker")?, json!({})))?;
    let start = Instant::now();
    let mut stalled = Vec::new();
    for number in 0..100 {
        let mut socket = TcpStream::connect(mqtts(&broker)?)?;
        if number % 2 == 0 {
            // The head of a ClientHello whose body never comes.
            socket.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3])?;
        }
        stalled.push(socket);
    }
    let asked = Instant::now();
    let mut device = connect(&broker, &authority.client(V13), "device")?;
    ensure!(asked.elapsed() < PROMPT, "a handshake took {:?}", asked.elapsed());
    for mut socket in stalled {
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        match socket.read(&mut [0; 100]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => bail!("it was not closed, but {other:?}"),
        }
    }
    ensure!(start.elapsed() >= Duration::from_secs(9), "given up after {:?}", start.elapsed());
    ensure!(device.ping()?.is_empty());
    let told = broker.log_lines(&["TLS handshake failed", "not finished within 10 s"])?.len();
    ensure!((1..10).contains(&told), "{told} lines about 100 clients");
    Ok(())
}

#[test]
fn an_idle_connection_over_tls_takes_little_memory() -> Result<()> {
    const CONNECTIONS: u64 = 500;
    const MOST: u64 = 20;
    let authority = Authority::new("site")?;
    let broker = Broker::start_with_tls(&manifests(&authority.issue("broker")?, json!({})))?;
    let client = authority.client(V13);
    // What the first ones need belongs to the process.
    let mut idle = (0..50)
        .map(|number| connect(&broker, &client, &format!("first-{number}")))
        .collect::<Result<Vec<_>>>()?;
    let before = broker.resident()?;
    for number in 0..CONNECTIONS {
        idle.push(connect(&broker, &client, &format!("idle-{number}"))?);
    }
    let each = broker.resident()?.saturating_sub(before) / CONNECTIONS / 1024;
    ensure!(each <= MOST, "{each} KB an idle connection");
    Ok(())
}
