//! What is refused gets its own answer and one log line, and nobody else notices.

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{
    Broker, Client, Dialogue, Driver, Login, Manifests, PATIENCE, Packet, Version, clients::Event,
    wait_until, wire,
};
use serde_json::json;

/// What is sent once the connection stands, or instead of a proper login.
enum Sent {
    Login(Login),
    Bytes(Vec<u8>),
}

/// One refusal: who sends what, and all the broker answers; `Closed` last, or the connection lives on.
struct Case {
    what: &'static str,
    client_id: String,
    version: Version,
    sent: Sent,
    answers: Vec<Packet>,
    /// What the log line tells beside the client ID.
    told: &'static str,
}

fn manifests() -> Manifests {
    Manifests::new()
        .parent("readings")
        .user("fleet", "fleet-secret")
        .grant("fleet-own", "fleet", &[("pub", "readings/${clientId}/#"), ("sub", "commands/${clientId}")])
        .user("ops", "ops-secret")
        .grant("ops-all", "ops", &[("pubsub", "#")])
}

/// A client that must not notice anything.
struct Witness {
    dialogue: Dialogue,
    said: u16,
}

impl Witness {
    fn new(broker: &Broker) -> Result<Self> {
        let login = Login::new(Version::V5, "witness").user("ops", "ops-secret");
        let (mut dialogue, _) = Dialogue::connect(broker.mqtt, &login)?;
        ensure!(dialogue.subscribe("witness", 1)? == 1);
        Ok(Self { dialogue, said: 0 })
    }

    /// A message to itself arrives, and nothing else does.
    fn is_undisturbed(&mut self) -> Result<()> {
        self.said += 1;
        let said = self.said.to_string();
        self.dialogue.publish("witness", said.as_bytes(), 0, 0)?;
        match self.dialogue.read()? {
            Packet::Publish { payload, .. } if payload == said.as_bytes() => Ok(()),
            other => anyhow::bail!("the witness got {other:?}"),
        }
    }
}

#[test]
fn what_is_refused_gets_its_answer_and_one_log_line_and_nobody_else_notices() -> Result<()> {
    let broker = Broker::start(&manifests())?;
    let mut witness = Witness::new(&broker)?;
    for case in cases() {
        let context = format!("{} ({:?})", case.what, case.version);
        check(&broker, case).and_then(|()| witness.is_undisturbed()).context(context)?;
    }
    let topics = broker.records("readings").unwrap_or_default();
    ensure!(topics.is_empty(), "a refused message was stored: {topics:?}");
    Ok(())
}

fn check(broker: &Broker, case: Case) -> Result<()> {
    let logged = broker.log()?.len();
    let login = Login::new(case.version, &case.client_id).user("fleet", "fleet-secret");
    let mut dialogue = match case.sent {
        Sent::Login(login) => Dialogue::greet(broker.mqtt, &login)?,
        Sent::Bytes(bytes) => {
            let (mut dialogue, _) = Dialogue::connect(broker.mqtt, &login)?;
            dialogue.send(&bytes)?;
            dialogue
        }
    };
    for expected in &case.answers {
        let answer = dialogue.read()?;
        ensure!(answer == *expected, "answered {answer:?}, not {expected:?}");
    }
    if case.answers.last() != Some(&Packet::Closed) {
        let more = dialogue.ping()?;
        ensure!(more.is_empty(), "after its answer came {more:?}");
    }
    let warnings = |log: &str| -> Vec<String> {
        log.get(logged..)
            .unwrap_or_default()
            .lines()
            .filter(|line| line.contains("WARN"))
            .map(str::to_owned)
            .collect()
    };
    let lines = wait_until("a line in the log", PATIENCE, || {
        let lines = warnings(&broker.log()?);
        Ok((!lines.is_empty()).then_some(lines))
    })?;
    ensure!(lines.len() == 1, "logged {lines:#?}");
    let id: String = case.client_id.chars().take(20).collect();
    ensure!(lines.iter().all(|line| line.contains(&id) && line.contains(case.told)), "logged {lines:?}");
    Ok(())
}

fn cases() -> Vec<Case> {
    use Version::{V3, V5};
    let mut cases = Vec::new();
    for version in [V3, V5] {
        let of = |v3: Packet, v5: Packet| if version == V3 { v3 } else { v5 };
        let closed = |reason: u8| match version {
            Version::V31 | V3 => vec![Packet::Closed],
            V5 => vec![Packet::Disconnect { reason }, Packet::Closed],
        };
        let refused = |v3: u8, v5: u8| {
            let code = if version == V3 { v3 } else { v5 };
            vec![Packet::ConnAck { session_present: false, code }, Packet::Closed]
        };
        let long = "x".repeat(129);
        let login = |id: &str| Login::new(version, id);
        let mut case = |what, client_id: &str, sent, answers, told| {
            cases.push(Case { what, client_id: client_id.to_owned(), version, sent, answers, told });
        };
        let publish =
            |topic: &[u8], qos, size| wire::publish(version, topic, &vec![b'x'; size], qos, 7, false);
        let subscribe = |filter| wire::subscribe(version, 7, &[(filter, 1)]);

        case(
            "a packet of 200 KB",
            "meter-large",
            Sent::Bytes(publish(b"readings/meter-large/x", 1, 200 << 10)),
            closed(0x95),
            "packet",
        );
        case(
            "a client ID of 129 characters",
            &long,
            Sent::Login(login(&long).user("fleet", "fleet-secret")),
            refused(2, 0x85),
            "client ID",
        );
        case(
            "a wrong password",
            "meter-guess",
            Sent::Login(login("meter-guess").user("fleet", "fleet-secreT")),
            refused(4, 0x86),
            "password",
        );
        case(
            "an unknown user",
            "meter-stranger",
            Sent::Login(login("meter-stranger").user("nobody", "fleet-secret")),
            refused(4, 0x86),
            "unknown user",
        );
        case("no credentials", "meter-shy", Sent::Login(login("meter-shy")), refused(5, 0x87), "credentials");
        case(
            "a QoS 1 publish without a grant",
            "meter-1",
            Sent::Bytes(publish(b"readings/meter-2/x", 1, 3)),
            vec![of(Packet::Closed, Packet::PubAck { id: 7, reason: 0x87 })],
            "readings/meter-2/x",
        );
        case(
            "a QoS 2 publish without a grant",
            "meter-2",
            Sent::Bytes(publish(b"readings/meter-1/x", 2, 3)),
            vec![of(Packet::Closed, Packet::PubRec { id: 7, reason: 0x87 })],
            "readings/meter-1/x",
        );
        case(
            "a QoS 0 publish without a grant",
            "meter-3",
            Sent::Bytes(publish(b"readings/meter-1/y", 0, 3)),
            if version == V3 { vec![Packet::Closed] } else { vec![] },
            "readings/meter-1/y",
        );
        case(
            "a subscription without a grant",
            "meter-4",
            Sent::Bytes(subscribe("commands/meter-5")),
            vec![Packet::SubAck { id: 7, reasons: vec![if version == V3 { 0x80 } else { 0x87 }] }],
            "commands/meter-5",
        );
        case(
            "a filter wider than its grant",
            "meter-5",
            Sent::Bytes(subscribe("commands/#")),
            vec![Packet::SubAck { id: 7, reasons: vec![if version == V3 { 0x80 } else { 0x87 }] }],
            "commands/#",
        );
        case(
            "a topic with NUL",
            "meter-6",
            Sent::Bytes(publish(b"readings/meter-6/\0", 1, 3)),
            closed(0x81),
            "topic",
        );
        case(
            "a wildcard in PUBLISH",
            "meter-7",
            Sent::Bytes(publish(b"readings/meter-7/#", 1, 3)),
            closed(0x90),
            "topic",
        );
        for id in ["#", "+", "a/b", "meter#"] {
            let topic = format!("readings/{id}/x").replace(['#', '+'], "y");
            case(
                "a publish with a client ID that would widen its grant",
                id,
                Sent::Bytes(publish(topic.as_bytes(), 1, 3)),
                vec![of(Packet::Closed, Packet::PubAck { id: 7, reason: 0x87 })],
                "readings/",
            );
        }
        for id in ["#", "+"] {
            case(
                "a subscription with a client ID that would widen its grant",
                id,
                Sent::Bytes(wire::subscribe(version, 7, &[(&format!("commands/{id}"), 1)])),
                vec![Packet::SubAck { id: 7, reasons: vec![if version == V3 { 0x80 } else { 0x87 }] }],
                "commands/",
            );
        }
    }
    cases
}

#[test]
fn real_clients_understand_how_they_are_refused() -> Result<()> {
    let broker = Broker::start(&manifests())?;
    for driver in [Driver::Paho, Driver::MqttJs] {
        for version in [Version::V3, Version::V5] {
            let check = || -> Result<()> {
                let wrong = Login::new(version, "meter-1").user("fleet", "guess");
                let (_, answer) = Client::try_connect(driver, &broker, &wrong)?;
                ensure!(answer == Event::Refused { reason: 0x86 }, "a wrong password: {answer:?}");

                let login = Login::new(version, "meter-1").user("fleet", "fleet-secret");
                let mut client = Client::connect(driver, &broker, &login)?;
                let reasons = client.subscribe("commands/#", 1)?;
                let expected = if version == Version::V3 { 0x80 } else { 0x87 };
                ensure!(reasons == [expected], "a subscription without a grant: {reasons:?}");
                if version == Version::V5 {
                    let reason = client.publish("readings/meter-2/x", b"1", 1)?;
                    ensure!(reason == 0x87, "a publish without a grant: {reason:#x}");
                    ensure!(client.publish("readings/meter-1/x", b"1", 1)? == 0, "it can't go on");
                } else {
                    client.publish_soon("readings/meter-2/x", b"1", 1, false)?;
                    client.closed()?;
                }
                Ok(())
            };
            check().with_context(|| format!("{driver:?} {version:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_client_id_of_128_characters_and_a_packet_of_just_128_kb_are_taken() -> Result<()> {
    let broker = Broker::start(&manifests())?;
    for version in [Version::V3, Version::V5] {
        for id in ["x".repeat(128), "电".repeat(128)] {
            let login = Login::new(version, &id).user("ops", "ops-secret");
            let (mut dialogue, _) = Dialogue::connect(broker.mqtt, &login)?;
            let whole = |size: usize| wire::publish(version, b"a", &vec![b'x'; size], 1, 9, false);
            let overhead = whole(100 << 10).len() - (100 << 10);
            let largest = whole((128 << 10) - overhead);
            ensure!(largest.len() == 128 << 10);
            dialogue.send(&largest)?;
            let answer = dialogue.read()?;
            // 0x10 (v5): nobody subscribes.
            let taken = matches!(answer, Packet::PubAck { id: 9, reason: 0 | 0x10 });
            ensure!(taken, "{version:?}: answered {answer:?}");
        }
    }
    Ok(())
}

#[test]
fn an_anonymous_connection_acts_as_the_instances_anonymous_user() -> Result<()> {
    let manifests = manifests()
        .instance(json!({"auth": {"anonymousUser": "guest"}, "kafka": {"bootstrapServers": ["kafka-0.kafka:9092"]}}))
        .user_without_password("guest")
        .grant("guest-news", "guest", &[("sub", "news/#")]);
    let broker = Broker::start(&manifests)?;
    let (mut dialogue, _) = Dialogue::connect(broker.mqtt, &Login::new(Version::V3, "visitor"))?;
    ensure!(dialogue.subscribe("news/today", 1)? == 1);
    ensure!(dialogue.subscribe("readings/#", 1)? == 0x80);
    let mut dialogue = Dialogue::greet(broker.mqtt, &Login::new(Version::V3, "liar").user("guest", ""))?;
    let answer = dialogue.read()?;
    ensure!(
        answer == Packet::ConnAck { session_present: false, code: 4 },
        "with a made-up password: {answer:?}"
    );
    Ok(())
}

#[test]
fn what_came_before_a_violation_is_still_acknowledged() -> Result<()> {
    let broker = Broker::start(&manifests())?;
    for version in [Version::V3, Version::V5] {
        let login = Login::new(version, "meter-1").user("ops", "ops-secret");
        let (mut dialogue, _) = Dialogue::connect(broker.mqtt, &login)?;
        let mut bytes = wire::publish(version, b"free/x", b"good", 1, 5, false);
        // A packet that only a server may send.
        bytes.extend(wire::packet(0xD0, b""));
        dialogue.send(&bytes)?;
        let answer = dialogue.read()?;
        ensure!(matches!(answer, Packet::PubAck { id: 5, reason: 0 | 0x10 }), "{version:?}: {answer:?}");
        if version == Version::V5 {
            let answer = dialogue.read()?;
            ensure!(answer == Packet::Disconnect { reason: 0x82 }, "told {answer:?}");
        }
        ensure!(dialogue.read()? == Packet::Closed);
    }
    Ok(())
}
