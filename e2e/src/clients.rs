//! Real clients that nobody here wrote, each in a process of its own: Eclipse Paho for three languages, MQTT.js, rumqttc,
//! mosquitto's.
//!
//! A driver in `e2e/clients` reads one command a line on standard input and writes one event a line on
//! standard output, both as JSON, payloads in base64. The commands are `connect`, `subscribe`, `unsubscribe`,
//! `publish` and `disconnect`; the events are [`Event`]. Reason codes are MQTT 5's in every version. The
//! process ends with its [`Client`].

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Broker, Login, PATIENCE, broker::built};

/// Which library drives the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// For Python.
    Paho,
    PahoJava,
    PahoGo,
    MqttJs,
    Rumqttc,
    /// mosquitto_pub and mosquitto_sub: a publisher or a subscriber of one filter, not both.
    Mosquitto,
}

/// What a driver tells.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Event {
    Connected {
        session_present: bool,
    },
    Refused {
        reason: u8,
    },
    Subscribed {
        reasons: Vec<u8>,
    },
    Unsubscribed {
        reasons: Vec<u8>,
    },
    /// The answer to the publish of that tag: its ack, or for QoS 0 that it was written.
    Published {
        tag: u64,
        reason: u8,
    },
    Message(Message),
    Closed {
        reason: u8,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Message {
    pub topic: String,
    #[serde(deserialize_with = "from_base64")]
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
}

/// Where a client connects to.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    pub mqtt: SocketAddr,
    pub mqtts: Option<SocketAddr>,
    pub ws: Option<SocketAddr>,
    pub wss: Option<SocketAddr>,
}

impl From<&Broker> for Endpoint {
    fn from(broker: &Broker) -> Self {
        Self { mqtt: broker.mqtt, mqtts: broker.mqtts, ws: broker.ws, wss: broker.wss }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(mqtt: SocketAddr) -> Self {
        Self { mqtt, mqtts: None, ws: None, wss: None }
    }
}

/// A driver's process.
pub struct Client {
    driver: Driver,
    name: String,
    process: Child,
    commands: ChildStdin,
    events: Receiver<Result<Event>>,
    /// Events that came while another was waited for.
    aside: VecDeque<Event>,
    tags: u64,
}

impl Client {
    /// Starts the driver and connects; a refusal is an error.
    pub fn connect(driver: Driver, to: impl Into<Endpoint>, login: &Login) -> Result<Self> {
        match Self::try_connect(driver, to, login)? {
            (client, Event::Connected { .. }) => Ok(client),
            (client, other) => bail!("{} could not connect: {other:?}", client.name),
        }
    }

    /// Starts the driver and returns it with [`Event::Connected`] or [`Event::Refused`].
    pub fn try_connect(driver: Driver, to: impl Into<Endpoint>, login: &Login) -> Result<(Self, Event)> {
        let to = to.into();
        let mut client = Self::start(driver, &login.client_id)?;
        let address = match (login.websocket, &login.tls) {
            (false, None) => Some(to.mqtt),
            (false, Some(_)) => to.mqtts,
            (true, None) => to.ws,
            (true, Some(_)) => to.wss,
        };
        let address = address.context("the broker has no such listener")?;
        client.command(json!({
            "do": "connect", "host": address.ip().to_string(), "port": address.port(),
            "webSocket": login.websocket,
            "tls": login.tls.as_ref().map(crate::ClientTls::to_json),
            "version": login.version.level(), "clientId": login.client_id,
            "username": login.username, "password": login.password,
            "clean": login.clean, "expiry": login.expiry, "keepAlive": login.keep_alive,
            "reconnect": login.reconnect,
            "will": login.will.as_ref().map(|will| json!({
                "topic": will.topic, "payload": STANDARD.encode(&will.payload),
                "qos": will.qos, "retain": will.retain,
            })),
        }))?;
        let answer = client.expect("the connection's answer", PATIENCE, |event| {
            matches!(event, Event::Connected { .. } | Event::Refused { .. })
        })?;
        Ok((client, answer))
    }

    fn start(driver: Driver, name: &str) -> Result<Self> {
        let drivers = root().join("e2e/clients");
        let (program, arguments) = match driver {
            Driver::Paho => (root().join(".tools/venv/bin/python"), vec![drivers.join("drive_paho.py")]),
            Driver::PahoJava => {
                let classes = root().join(".tools/paho-java");
                let path = format!("{}:{}", classes.display(), classes.join("*").display());
                // Quick to start, as it is used for a moment.
                let quick = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", &path, "DrivePaho"];
                (PathBuf::from("java"), quick.map(PathBuf::from).to_vec())
            }
            Driver::PahoGo => (root().join(".tools/bin/drive-paho-go"), vec![]),
            Driver::MqttJs => (PathBuf::from("node"), vec![drivers.join("drive_mqttjs.mjs")]),
            // An example, so that it is built with the tests and no binary of ours depends on rumqttc.
            Driver::Rumqttc => (built("examples/drive_rumqttc")?, vec![]),
            Driver::Mosquitto => {
                (root().join(".tools/venv/bin/python"), vec![drivers.join("drive_mosquitto.py")])
            }
        };
        let mut process = Command::new(&program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}: run `make tools`", program.display()))?;
        let commands = process.stdin.take().context("no standard input")?;
        let output = process.stdout.take().context("no standard output")?;
        let (sender, events) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let event = line.map_err(anyhow::Error::from).and_then(|line| {
                    serde_json::from_str(&line).with_context(|| format!("a driver's line: {line}"))
                });
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        let name = format!("{driver:?} client {name}");
        Ok(Self { driver, name, process, commands, events, aside: VecDeque::new(), tags: 0 })
    }

    /// Subscribes and returns the SUBACK's codes.
    pub fn subscribe(&mut self, filter: &str, qos: u8) -> Result<Vec<u8>> {
        self.command(json!({"do": "subscribe", "filter": filter, "qos": qos}))?;
        match self.expect("a SUBACK", PATIENCE, |event| matches!(event, Event::Subscribed { .. }))? {
            Event::Subscribed { reasons } => Ok(reasons),
            other => bail!("{}: {other:?}", self.name),
        }
    }

    /// Unsubscribes and waits for the answer.
    pub fn unsubscribe(&mut self, filter: &str) -> Result<()> {
        self.command(json!({"do": "unsubscribe", "filter": filter}))?;
        self.expect("an UNSUBACK", PATIENCE, |event| matches!(event, Event::Unsubscribed { .. }))?;
        Ok(())
    }

    /// Publishes, waits for the ack, and returns its reason code.
    pub fn publish(&mut self, topic: &str, payload: &[u8], qos: u8) -> Result<u8> {
        let tag = self.publish_soon(topic, payload, qos, false)?;
        self.published(tag, PATIENCE)
    }

    /// Publishes with the retain flag, and waits for the ack.
    pub fn retain(&mut self, topic: &str, payload: &[u8], qos: u8) -> Result<u8> {
        let tag = self.publish_soon(topic, payload, qos, true)?;
        self.published(tag, PATIENCE)
    }

    /// Publishes without waiting, and returns the tag that its [`Event::Published`] will have.
    pub fn publish_soon(&mut self, topic: &str, payload: &[u8], qos: u8, retain: bool) -> Result<u64> {
        self.tags += 1;
        self.command(json!({
            "do": "publish", "tag": self.tags, "topic": topic, "payload": STANDARD.encode(payload),
            "qos": qos, "retain": retain,
        }))?;
        Ok(self.tags)
    }

    /// Waits for the ack of a tag, and returns its reason code.
    pub fn published(&mut self, tag: u64, limit: Duration) -> Result<u8> {
        let wanted = |event: &Event| matches!(event, Event::Published { tag: other, .. } if *other == tag);
        match self.expect(&format!("the ack of publish {tag}"), limit, wanted)? {
            Event::Published { reason, .. } => Ok(reason),
            other => bail!("{}: {other:?}", self.name),
        }
    }

    /// Waits for the next message.
    pub fn message(&mut self) -> Result<Message> {
        self.message_within(PATIENCE)
    }

    pub fn message_within(&mut self, limit: Duration) -> Result<Message> {
        match self.expect("a message", limit, |event| matches!(event, Event::Message(_)))? {
            Event::Message(message) => Ok(message),
            other => bail!("{}: {other:?}", self.name),
        }
    }

    /// Waits until the connection is closed by the other side, and returns the reason code (v5; else not 0 at most).
    pub fn closed(&mut self) -> Result<u8> {
        match self.expect("the connection's end", PATIENCE, |event| matches!(event, Event::Closed { .. }))? {
            Event::Closed { reason } => Ok(reason),
            other => bail!("{}: {other:?}", self.name),
        }
    }

    /// Says goodbye and waits until that is done.
    pub fn disconnect(mut self) -> Result<()> {
        self.command(json!({"do": "disconnect"}))?;
        self.closed()?;
        Ok(())
    }

    /// SIGKILL: the connection breaks off without a DISCONNECT (not for mosquitto's, whose processes are more than one).
    pub fn break_off(mut self) -> Result<()> {
        ensure!(self.driver != Driver::Mosquitto, "{} can't be broken off", self.name);
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Events that came and were not asked for yet.
    pub fn drain(&mut self) -> Result<Vec<Event>> {
        let mut events: Vec<Event> = self.aside.drain(..).collect();
        while let Ok(event) = self.events.try_recv() {
            events.push(event?);
        }
        Ok(events)
    }

    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// Waits for the first event of the wanted kind; others are put aside, in order.
    pub fn expect(&mut self, what: &str, limit: Duration, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        if let Some(at) = self.aside.iter().position(&wanted) {
            return self.aside.remove(at).context("it was there");
        }
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) => match event? {
                    event if wanted(&event) => return Ok(event),
                    event => self.aside.push_back(event),
                },
                Err(error) => {
                    let name = &self.name;
                    bail!("{name} waited {limit:?} for {what}: {error}; it only saw {:?}", self.aside)
                }
            }
        }
    }

    fn command(&mut self, command: Value) -> Result<()> {
        writeln!(self.commands, "{command}").with_context(|| format!("{} has ended", self.name))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The mosquitto driver ends its own children when its standard input ends.
        if self.driver == Driver::Mosquitto {
            let _ = self.commands.write_all(b"{\"do\":\"disconnect\"}\n");
        } else {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// The checkout's root.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

fn from_base64<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map_err(serde::de::Error::custom)
}
