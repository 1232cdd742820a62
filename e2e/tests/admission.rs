//! Who is let near, and how fast: the connect rate, connections without a CONNECT, addresses, wrong passwords, memory, and
//! proxies that say whom they speak for.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mqtt_e2e::{
    Authority, Broker, Client, Dialogue, Driver, Login, Manifests, PATIENCE, Packet, Tls, TlsVersion,
    Version, Ws, wait_until, ws::socket,
};
use serde_json::{Value, json};

const VERSIONS: [Version; 2] = [Version::V3, Version::V5];

fn manifests(spec: Value) -> Manifests {
    Manifests::new().instance(spec).user("fleet", "fleet-secret").user("other", "other-secret").grant(
        "fleet-all",
        "fleet",
        &[("pubsub", "#")],
    )
}

fn fleet(version: Version, id: &str) -> Login {
    Login::new(version, id).user("fleet", "fleet-secret")
}

/// The code in CONNACK.
fn answer(broker: SocketAddr, login: &Login) -> Result<(Dialogue, u8)> {
    let mut dialogue = Dialogue::greet(broker, login)?;
    match dialogue.read()? {
        Packet::ConnAck { code, .. } => Ok((dialogue, code)),
        other => bail!("no CONNACK, but {other:?}"),
    }
}

/// Whether the other side has closed.
fn is_closed(stream: &mut TcpStream) -> Result<bool> {
    stream.set_nonblocking(true)?;
    match stream.read(&mut [0; 10]) {
        Ok(read) => Ok(read == 0),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
        Err(_) => Ok(true),
    }
}

#[test]
fn connections_beyond_the_rate_wait_and_none_is_dropped() -> Result<()> {
    const COUNT: u32 = 150;
    const RATE: u32 = 50;
    let broker = Broker::start(&manifests(json!({"limits": {"connectRate": RATE}})))?;
    let start = Instant::now();
    let sockets = (0..COUNT).map(|_| socket(broker.mqtt)).collect::<Result<Vec<_>>>()?;
    for (mut socket, number) in sockets.into_iter().zip(0..) {
        socket.write_all(&fleet(Version::V3, &format!("device-{number}")).packet())?;
        let mut connack = [0; 4];
        socket.read_exact(&mut connack).with_context(|| format!("connection {number}"))?;
        ensure!(connack == [0x20, 2, 0, 0], "connection {number}: {connack:?}");
    }
    // What a tenth of a second allows comes at once.
    let least = Duration::from_secs(1) * (COUNT - RATE / 5) / RATE;
    ensure!(start.elapsed() >= least, "all were accepted after {:?}", start.elapsed());
    ensure!(broker.counter("connect_rate_pauses")? > 0);
    let told = u64::try_from(broker.log_lines(&["more connections come than may in a second"])?.len())?;
    ensure!(
        (1..=start.elapsed().as_secs() + 2).contains(&told),
        "told {told} times in {:?}",
        start.elapsed()
    );
    Ok(())
}

#[test]
fn of_too_many_connections_without_a_connect_the_oldest_give_way_and_devices_come_in() -> Result<()> {
    const RATE: usize = 100;
    const SILENT: usize = 400;
    let broker = Broker::start(&manifests(json!({"limits": {"connectRate": RATE}})))?;
    let mut silent = (0..SILENT).map(|_| socket(broker.mqtt)).collect::<Result<Vec<_>>>()?;
    let (mut device, code) = answer(broker.mqtt, &fleet(Version::V5, "device"))?;
    ensure!(code == 0, "refused with {code:#x}");
    // All were accepted before the device, and twice the rate may wait.
    let expected = SILENT + 1 - 2 * RATE;
    ensure!(broker.counter("half_open_evicted")? >= expected as u64 - 10);
    let closed = |sockets: &mut [TcpStream]| -> Result<usize> {
        let mut count = 0;
        for socket in sockets {
            count += usize::from(is_closed(socket)?);
        }
        Ok(count)
    };
    let (old, young) = silent.split_at_mut(SILENT - 2 * RATE);
    wait_until("the oldest to be closed", PATIENCE, || Ok((closed(old)? == old.len()).then_some(())))?;
    ensure!(device.ping()?.is_empty());
    let told = broker.log_lines(&["too many connections without a CONNECT"])?.len();
    ensure!((1..20).contains(&told), "told {told} times");
    // The others are closed when their time is over.
    wait_until("the rest to be closed", Duration::from_secs(20), || {
        Ok((closed(young)? == young.len()).then_some(()))
    })
}

#[test]
fn an_address_gets_no_more_connections_than_it_may_have() -> Result<()> {
    let broker = Broker::start(&manifests(
        json!({"limits": {"connectionsPerAddress": 2}, "listeners": {"proxyProtocol": ["mqtt"]}}),
    ))?;
    let from = |address: &str, version, id: &str| -> Result<(Dialogue, u8)> {
        let mut dialogue = Dialogue::open(broker.mqtt, version)?;
        dialogue.send(format!("PROXY TCP4 {address} 127.0.0.1 4660 1883\r\n").as_bytes())?;
        dialogue.send(&fleet(version, id).packet())?;
        match dialogue.read()? {
            Packet::ConnAck { code, .. } => Ok((dialogue, code)),
            other => bail!("no CONNACK, but {other:?}"),
        }
    };
    for (version, refused) in [(Version::V3, 3), (Version::V5, 0x97)] {
        let before = broker.counter("connections_over_address_limit")?;
        let (first, code) = from("203.0.113.1", version, "first")?;
        ensure!(code == 0);
        let (_second, code) = from("203.0.113.1", version, "second")?;
        ensure!(code == 0);
        let (_, code) = from("203.0.113.1", version, "third")?;
        ensure!(code == refused, "{code:#x}");
        ensure!(broker.counter("connections_over_address_limit")? == before + 1);
        let (_, code) = from("203.0.113.2", version, "other")?;
        ensure!(code == 0, "another address has its own");
        let (again, code) = from("203.0.113.1", version, "first")?;
        ensure!(code == 0, "who takes its own connection over takes no more room");
        drop((first, again));
        wait_until("room", PATIENCE, || Ok((from("203.0.113.1", version, "third")?.1 == 0).then_some(())))?;
        wait_until("all to be gone", PATIENCE, || {
            drop((from("203.0.113.1", version, "second")?, ()));
            Ok((broker.counter("connections")? <= 1).then_some(()))
        })?;
    }
    broker.wait_for_log(&["its address has 2 connections already", "203.0.113.1"])?;
    Ok(())
}

#[test]
fn who_keeps_trying_passwords_of_a_user_from_one_address_is_slowed_down() -> Result<()> {
    let broker = Broker::start(&manifests(json!({})))?;
    let guess = |number: u32| Login::new(Version::V5, "guesser").user("fleet", &format!("guess-{number}"));
    for number in 0..11 {
        let (_, code) = answer(broker.mqtt, &guess(number))?;
        ensure!(code == 0x86, "{code:#x}");
    }
    ensure!(broker.counter("logins_slowed")? == 0, "a few wrong ones cost nothing");
    let start = Instant::now();
    let (done, results) = channel();
    for number in 0..20 {
        let (done, login, mqtt) = (done.clone(), guess(100 + number), broker.mqtt);
        thread::spawn(move || done.send(answer(mqtt, &login).map(|(_, code)| (code, start.elapsed()))));
    }
    let results = results.iter().take(20).collect::<Result<Vec<_>>>()?;
    let busy = results.iter().filter(|(code, _)| *code == 0x89).count();
    ensure!(busy >= 10 && results.iter().all(|(code, _)| matches!(code, 0x86 | 0x89)), "{results:?}");
    let slow = results.iter().filter(|(code, _)| *code == 0x86);
    let soon = slow.filter(|(_, after)| *after < Duration::from_millis(900)).count();
    ensure!(soon <= 1, "guesses are answered at once: {results:?}");
    ensure!(broker.counter("logins_slowed")? == 20);
    let start = Instant::now();
    let (_, code) = answer(broker.mqtt, &Login::new(Version::V5, "o").user("other", "other-secret"))?;
    ensure!(code == 0 && start.elapsed() < Duration::from_secs(1), "another user: {code:#x}");
    broker.wait_for_log(&["wrong passwords come too often"])?;
    Ok(())
}

#[test]
fn where_memory_is_short_newcomers_are_refused_and_then_those_for_whom_most_waits_go() -> Result<()> {
    const MOST: u64 = 96;
    let broker =
        Broker::start(&manifests(json!({"limits": {"memory": format!("{MOST}Mi"), "packetSize": "1Mi"}})))?;
    let (mut deaf, _) = Dialogue::connect(broker.mqtt, &fleet(Version::V5, "deaf"))?;
    ensure!(deaf.subscribe("flood", 1)? == 1);
    let (mut publisher, _) = Dialogue::connect(broker.mqtt, &fleet(Version::V5, "publisher"))?;
    let (mut refused, mut most) = ([false; 2], 0);
    let mut id = 0;
    while broker.counter("connections_shed")? == 0 {
        id += 1;
        ensure!(id < 2000, "nobody was closed, at {} MiB", broker.resident()? >> 20);
        // Slowly where newcomers are about to be refused: the broker looks at its memory ten times a second.
        let is_near = broker.resident()? >> 20 > MOST * 8 / 10;
        let size = if is_near && refused != [true; 2] { 30_000 } else { 300_000 };
        publisher.publish("flood", &vec![b'x'; size], 1, id)?;
        let answered = publisher.read()?;
        ensure!(matches!(answered, Packet::PubAck { reason: 0 | 0x10, .. }), "answered {answered:?}");
        most = most.max(broker.resident()?);
        if broker.resident()? >> 20 > MOST * 9 / 10 {
            for ((version, code), refused) in
                [(Version::V3, 3), (Version::V5, 0x89)].into_iter().zip(&mut refused)
            {
                let found = answer(broker.mqtt, &fleet(version, "newcomer"))?.1;
                *refused |= found == code;
                ensure!(found == 0 || found == code, "{found:#x}");
            }
        }
    }
    ensure!(refused == [true; 2], "nobody was refused before");
    ensure!(most >> 20 < MOST * 2, "{} MiB of {MOST} MiB", most >> 20);
    ensure!(publisher.ping()?.is_empty(), "somebody else was closed");
    wait_until("newcomers to be let in again", Duration::from_secs(30), || {
        let codes =
            VERSIONS.map(|version| answer(broker.mqtt, &fleet(version, "newcomer")).map(|(_, code)| code));
        Ok(codes.iter().all(|code| code.as_ref().is_ok_and(|code| *code == 0)).then_some(()))
    })?;
    ensure!(broker.counter("connections_shed")? == 1 && broker.counter("connects_without_memory")? > 0);
    broker.wait_for_log(&["closed: memory is short", "deaf"])?;
    Ok(())
}

#[test]
fn behind_a_proxy_devices_are_known_by_their_own_address() -> Result<()> {
    let authority = Authority::new("site")?;
    let pair = authority.issue("broker")?;
    let spec = json!({"listeners": {
        "mqtts": {"secretRef": {"name": "meters-tls"}}, "ws": {}, "wss": {}, "proxyProtocol": ["mqtt", "ws", "wss"],
    }});
    let manifests =
        manifests(spec).secret_of("meters-tls", json!({"tls.crt": pair.certificate, "tls.key": pair.key}));
    let flags = ["--ws", "--wss", "--mqtts"].map(|flag| [flag, "127.0.0.1:0"]).concat();
    let broker = Broker::start_with(&manifests, &flags)?;
    let binary = {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
        header.extend("2001:db8::9".parse::<std::net::Ipv6Addr>()?.octets());
        header.extend([0; 16]);
        header.extend([0x12, 0x34, 7, 0x5b]);
        header
    };
    let text = b"PROXY TCP4 203.0.113.7 127.0.0.1 4660 1883\r\n".to_vec();
    let (ws, wss) = (broker.ws.context("no ws")?, broker.wss.context("no wss")?);
    for (name, header, address) in [("v1", &text, "203.0.113.7:4660"), ("v2", &binary, "[2001:db8::9]:4660")]
    {
        let open = |at: SocketAddr| -> Result<TcpStream> {
            let mut socket = socket(at)?;
            socket.write_all(header)?;
            Ok(socket)
        };
        let tls = Tls::over(open(wss)?, &authority.client(TlsVersion::V13))?;
        let devices = [
            ("tcp", Dialogue::over(Box::new(open(broker.mqtt)?), Version::V5)),
            ("ws", Dialogue::over(Box::new(Ws::over(Box::new(open(ws)?), 100)?), Version::V5)),
            ("wss", Dialogue::over(Box::new(Ws::over(Box::new(tls), 100)?), Version::V5)),
        ];
        for (over, mut device) in devices {
            let id = format!("{over}-{name}");
            device.send(&fleet(Version::V5, &id).packet())?;
            ensure!(matches!(device.read()?, Packet::ConnAck { code: 0, .. }), "{id}");
            wait_until(&format!("{id} in the trace"), PATIENCE, || {
                let output = broker.command(&["trace", &id, "--json"], "")?;
                Ok(String::from_utf8(output.stdout)?
                    .contains(&format!("\"address\":\"{address}\""))
                    .then_some(()))
            })?;
        }
    }
    // The listener that was not named takes no header, and those that were take nothing without.
    let mut plain = Tls::connect(broker.mqtts.context("no mqtts")?, &authority.client(TlsVersion::V13))?;
    plain.write_all(&fleet(Version::V5, "direct").packet())?;
    ensure!(plain.read(&mut [0; 1])? == 1);
    for greeting in [fleet(Version::V5, "direct").packet(), b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        let before = broker.counter("proxy_headers_missing")?;
        let mut socket = socket(broker.mqtt)?;
        socket.write_all(&greeting)?;
        wait_until("the refusal", PATIENCE, || is_closed(&mut socket).map(|closed| closed.then_some(())))?;
        ensure!(broker.counter("proxy_headers_missing")? == before + 1);
    }
    broker.wait_for_log(&["connection refused: there is no PROXY header"])?;
    Ok(())
}

#[test]
fn devices_come_in_over_both_families_of_addresses() -> Result<()> {
    let broker =
        Broker::start_at("[::]:0", &manifests(json!({"listeners": {"ws": {}}})), &["--ws", "[::1]:0"])?;
    let port = broker.mqtt.port();
    for (number, host) in ["127.0.0.1", "::1"].into_iter().enumerate() {
        let at = SocketAddr::new(host.parse()?, port);
        let endpoint = mqtt_e2e::clients::Endpoint { mqtt: at, mqtts: None, ws: broker.ws, wss: None };
        let mut subscriber =
            Client::connect(Driver::Mosquitto, endpoint, &fleet(Version::V5, &format!("s-{number}")))?;
        ensure!(subscriber.subscribe("both", 1)? == [1]);
        let mut publisher =
            Client::connect(Driver::Mosquitto, endpoint, &fleet(Version::V3, &format!("p-{number}")))?;
        ensure!(publisher.publish("both", b"x", 1)? == 0);
        ensure!(subscriber.message()?.payload == b"x");
        wait_until("the address as devices have it", PATIENCE, || {
            let output = broker.command(&["trace", &format!("p-{number}"), "--json"], "")?;
            let start = if host == "::1" { "\"address\":\"[::1]:" } else { "\"address\":\"127.0.0.1:" };
            Ok(String::from_utf8(output.stdout)?.contains(start).then_some(()))
        })?;
    }
    let mut device = Dialogue::over(Box::new(Ws::connect(broker.ws.context("no ws")?, 100)?), Version::V5);
    device.send(&fleet(Version::V5, "ws").packet())?;
    ensure!(matches!(device.read()?, Packet::ConnAck { code: 0, .. }));
    Ok(())
}
