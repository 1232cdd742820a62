//! Drives rumqttc by JSON lines; `clients.rs` describes them.

use std::{
    collections::{HashMap, VecDeque},
    io::BufRead,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use rumqttc::Outgoing;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Connect {
    host: String,
    port: u16,
    version: u8,
    client_id: String,
    username: Option<String>,
    password: Option<String>,
    clean: bool,
    expiry: u32,
    keep_alive: u64,
    will: Option<Will>,
}

#[derive(Deserialize)]
struct Will {
    topic: String,
    payload: String,
    qos: u8,
    retain: bool,
}

/// What both versions' clients can do.
enum Library {
    Version3(rumqttc::Client),
    Version5(rumqttc::v5::Client),
}

/// Tags of publishes: without an identifier yet, in order, and with one.
#[derive(Default)]
struct Tags {
    coming: VecDeque<(u64, u8)>,
    sent: HashMap<u16, u64>,
}

type Shared = Arc<Mutex<Tags>>;

fn main() -> Result<()> {
    let tags = Shared::default();
    let mut library = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let command: Value = serde_json::from_str(&line)?;
        let text = |name: &str| command.get(name).and_then(Value::as_str).unwrap_or_default();
        let number = |name: &str| command.get(name).and_then(Value::as_u64).unwrap_or_default();
        if text("do") == "connect" {
            library = Some(connect(serde_json::from_str(&line)?, &tags)?);
            continue;
        }
        let library = library.as_ref().context("not connected")?;
        let qos = u8::try_from(number("qos"))?;
        match text("do") {
            "subscribe" => match library {
                Library::Version3(client) => client.subscribe(text("filter"), rumqttc::qos(qos)?)?,
                Library::Version5(client) => client.subscribe(text("filter"), level(qos)?)?,
            },
            "unsubscribe" => match library {
                Library::Version3(client) => client.unsubscribe(text("filter"))?,
                Library::Version5(client) => client.unsubscribe(text("filter"))?,
            },
            "publish" => {
                tags.lock().unwrap_or_else(PoisonError::into_inner).coming.push_back((number("tag"), qos));
                let retain = command.get("retain").and_then(Value::as_bool).unwrap_or_default();
                let payload = STANDARD.decode(text("payload"))?;
                match library {
                    Library::Version3(client) => {
                        client.publish(text("topic"), rumqttc::qos(qos)?, retain, payload)?;
                    }
                    Library::Version5(client) => {
                        client.publish(text("topic"), level(qos)?, retain, payload)?
                    }
                }
            }
            "disconnect" => match library {
                Library::Version3(client) => client.disconnect()?,
                Library::Version5(client) => client.disconnect()?,
            },
            other => bail!("no such command: {other}"),
        }
    }
    Ok(())
}

fn level(qos: u8) -> Result<rumqttc::v5::mqttbytes::QoS> {
    rumqttc::v5::mqttbytes::qos(qos).context("no such QoS")
}

fn connect(connect: Connect, tags: &Shared) -> Result<Library> {
    let keep_alive = Duration::from_secs(connect.keep_alive);
    let (id, host, port) = (connect.client_id, connect.host, connect.port);
    let credentials = connect.username.zip(connect.password);
    let tags = tags.clone();
    if connect.version == 5 {
        let mut options = rumqttc::v5::MqttOptions::new(id, host, port);
        options.set_keep_alive(keep_alive).set_clean_start(connect.clean);
        options.set_session_expiry_interval(Some(connect.expiry));
        if let Some((username, password)) = credentials {
            options.set_credentials(username, password);
        }
        if let Some(will) = connect.will {
            let payload = STANDARD.decode(will.payload)?;
            let qos = level(will.qos)?;
            options.set_last_will(rumqttc::v5::mqttbytes::v5::LastWill::new(
                will.topic,
                payload,
                qos,
                will.retain,
                None,
            ));
        }
        let (client, mut connection) = rumqttc::v5::Client::new(options, 10);
        thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(rumqttc::v5::Event::Outgoing(outgoing)) => sent(&tags, &outgoing),
                    Ok(rumqttc::v5::Event::Incoming(packet)) => version5(&tags, packet),
                    Err(rumqttc::v5::ConnectionError::ConnectionRefused(_)) => refused(),
                    Err(_) => closed(),
                }
            }
        });
        return Ok(Library::Version5(client));
    }
    let mut options = rumqttc::MqttOptions::new(id, host, port);
    options.set_keep_alive(keep_alive).set_clean_session(connect.clean);
    if let Some((username, password)) = credentials {
        options.set_credentials(username, password);
    }
    if let Some(will) = connect.will {
        let payload = STANDARD.decode(will.payload)?;
        options.set_last_will(rumqttc::LastWill::new(
            will.topic,
            payload,
            rumqttc::qos(will.qos)?,
            will.retain,
        ));
    }
    let (client, mut connection) = rumqttc::Client::new(options, 10);
    thread::spawn(move || {
        for event in connection.iter() {
            match event {
                Ok(rumqttc::Event::Outgoing(outgoing)) => sent(&tags, &outgoing),
                Ok(rumqttc::Event::Incoming(packet)) => version3(&tags, packet),
                Err(rumqttc::ConnectionError::ConnectionRefused(_)) => refused(),
                Err(_) => closed(),
            }
        }
    });
    Ok(Library::Version3(client))
}

fn version3(tags: &Shared, packet: rumqttc::Packet) {
    use rumqttc::{Packet, SubscribeReasonCode};
    match packet {
        Packet::ConnAck(connack) => {
            say(json!({"event": "connected", "sessionPresent": connack.session_present}))
        }
        Packet::Publish(publish) => {
            message(publish.topic.as_bytes(), &publish.payload, publish.qos as u8, publish.retain)
        }
        Packet::PubAck(ack) => published(tags, ack.pkid, true),
        Packet::PubComp(ack) => published(tags, ack.pkid, true),
        Packet::SubAck(suback) => subscribed(suback.return_codes.iter().map(|code| match code {
            SubscribeReasonCode::Success(qos) => *qos as u8,
            SubscribeReasonCode::Failure => 0x80,
        })),
        Packet::UnsubAck(_) => say(json!({"event": "unsubscribed", "reasons": []})),
        _ => {}
    }
}

fn version5(tags: &Shared, packet: rumqttc::v5::mqttbytes::v5::Packet) {
    use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason, PubRecReason, SubscribeReasonCode};
    match packet {
        Packet::ConnAck(connack) => {
            say(json!({"event": "connected", "sessionPresent": connack.session_present}))
        }
        Packet::Publish(publish) => {
            message(&publish.topic, &publish.payload, publish.qos as u8, publish.retain);
        }
        Packet::PubAck(ack) => {
            let taken = matches!(ack.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers);
            published(tags, ack.pkid, taken);
        }
        Packet::PubRec(ack)
            if !matches!(ack.reason, PubRecReason::Success | PubRecReason::NoMatchingSubscribers) =>
        {
            published(tags, ack.pkid, false);
        }
        Packet::PubComp(ack) => published(tags, ack.pkid, true),
        Packet::SubAck(suback) => subscribed(suback.return_codes.iter().map(|code| match code {
            SubscribeReasonCode::Success(qos) => *qos as u8,
            _ => 0x80,
        })),
        Packet::UnsubAck(_) => say(json!({"event": "unsubscribed", "reasons": []})),
        _ => {}
    }
}

fn sent(tags: &Shared, outgoing: &Outgoing) {
    let Outgoing::Publish(id) = outgoing else { return };
    let mut tags = tags.lock().unwrap_or_else(PoisonError::into_inner);
    match tags.coming.pop_front() {
        Some((tag, 0)) => say(json!({"event": "published", "tag": tag, "reason": 0})),
        Some((tag, _)) => drop(tags.sent.insert(*id, tag)),
        None => {}
    }
}

fn published(tags: &Shared, id: u16, taken: bool) {
    let tag = tags.lock().unwrap_or_else(PoisonError::into_inner).sent.remove(&id);
    if let Some(tag) = tag {
        say(json!({"event": "published", "tag": tag, "reason": if taken { 0 } else { 0x80 }}));
    }
}

fn message(topic: &[u8], payload: &[u8], qos: u8, retain: bool) {
    let topic = String::from_utf8_lossy(topic);
    say(
        json!({"event": "message", "topic": topic, "payload": STANDARD.encode(payload), "qos": qos, "retain": retain}),
    );
}

fn subscribed(reasons: impl Iterator<Item = u8>) {
    say(json!({"event": "subscribed", "reasons": reasons.collect::<Vec<_>>()}));
}

fn refused() -> ! {
    say(json!({"event": "refused", "reason": 0x80}));
    std::process::exit(0);
}

/// It would connect again by itself.
fn closed() -> ! {
    say(json!({"event": "closed", "reason": 0}));
    std::process::exit(0);
}

fn say(event: Value) {
    println!("{event}");
}
