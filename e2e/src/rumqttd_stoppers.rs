//! What stops rumqttd 0.20: each thing is done to a broker here, and afterwards it must serve as before.
//!
//! A story does them to our broker; the example `rumqttd_stops` to rumqttd, for which `make rumqttd-stops` fetches it.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    Dialogue, Login, Packet, Version,
    wire::{self, disconnect, packet},
};

/// Connections that the broker is to be configured for.
pub const CONNECTIONS: usize = 20;

/// A broker that lets in whoever logs in so, a port for each version.
#[derive(Clone, Copy)]
pub struct Target {
    pub v3: SocketAddr,
    pub v5: SocketAddr,
    pub login: Option<(&'static str, &'static str)>,
}

/// Does it; an error tells what came instead of what a broker in order does.
pub type Stopper = fn(&Target) -> Result<()>;

/// Each with what it is.
pub const STOPPERS: [(&str, Stopper); 6] = [
    ("a topic that begins with a non-ASCII character, while there is a filter", non_ascii_topic),
    ("a persistent member of a shared subscription leaves with an unacknowledged message", member_leaves),
    ("ten subscribers leave under load of QoS 0", subscribers_leave_under_load),
    ("one connection over the limit, then its client ID again", one_over_the_limit),
    ("an MQTT 5 message with properties to an MQTT 3 subscriber", properties_to_version_3),
    ("CONNACK and UNSUBACK from a client", packets_of_a_server),
];

impl Target {
    /// Does it, and then sees that the broker serves.
    pub fn survives(&self, stopper: Stopper) -> Result<()> {
        stopper(self)?;
        self.serves().context("afterwards")
    }

    fn connect(&self, version: Version, id: &str) -> Result<Dialogue> {
        Ok(Dialogue::connect(self.address(version), &self.login(version, id))?.0)
    }

    fn login(&self, version: Version, id: &str) -> Login {
        let login = Login::new(version, id);
        match self.login {
            Some((name, password)) => login.user(name, password),
            None => login,
        }
    }

    fn address(&self, version: Version) -> SocketAddr {
        if version == Version::V3 { self.v3 } else { self.v5 }
    }

    /// Clients of both versions get in, and a message of each reaches itself.
    fn serves(&self) -> Result<()> {
        for version in [Version::V3, Version::V5] {
            let mut client = self.connect(version, "afterwards")?;
            client.subscribe("afterwards", 0)?;
            client.publish("afterwards", b"it serves", 0, 0)?;
            let came = client.read()?;
            ensure!(matches!(came, Packet::Publish { .. }), "{version:?}: {came:?}");
            client.send(&disconnect())?;
        }
        Ok(())
    }
}

fn non_ascii_topic(target: &Target) -> Result<()> {
    let mut subscriber = target.connect(Version::V3, "subscriber")?;
    subscriber.subscribe("a/b", 1)?;
    let mut publisher = target.connect(Version::V3, "publisher")?;
    publisher.publish("é/b", b"x", 1, 1)?;
    let answer = publisher.read()?;
    ensure!(matches!(answer, Packet::PubAck { .. }), "the publisher was told {answer:?}");
    ensure!(subscriber.ping()?.is_empty());
    Ok(())
}

fn member_leaves(target: &Target) -> Result<()> {
    let login = target.login(Version::V3, "member").persistent();
    let (mut member, _) = Dialogue::connect(target.v3, &login)?;
    let granted = member.subscribe("$share/group/shared", 1)?;
    let mut publisher = target.connect(Version::V3, "publisher")?;
    publisher.publish("shared", b"unacknowledged", 1, 1)?;
    let answer = publisher.read()?;
    ensure!(matches!(answer, Packet::PubAck { .. }), "the publisher was told {answer:?}");
    if granted < 0x80 {
        let came = member.read()?;
        ensure!(matches!(came, Packet::Publish { .. }), "the member got {came:?}");
    }
    member.send(&disconnect())?;
    ensure!(member.read()? == Packet::Closed);
    // To the same topic once more, now that nobody is there.
    publisher.publish("shared", b"next", 1, 2)?;
    let answer = publisher.read()?;
    ensure!(matches!(answer, Packet::PubAck { .. }), "the publisher was told {answer:?}");
    Ok(())
}

fn subscribers_leave_under_load(target: &Target) -> Result<()> {
    const ROUNDS: usize = 20;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let done = &done;
        let load = move |number: usize| -> Result<()> {
            let mut publisher = target.connect(Version::V3, &format!("publisher-{number}"))?;
            let burst: Vec<u8> = wire::publish(Version::V3, b"load", &[b'x'; 100], 0, 0, false).repeat(100);
            while !done.load(Ordering::Relaxed) {
                publisher.send(&burst)?;
            }
            publisher.ping()?;
            Ok(())
        };
        let loads: Vec<_> = (0..3).map(|number| scope.spawn(move || load(number))).collect();
        let come_and_go = || -> Result<()> {
            for round in 0..ROUNDS {
                let mut subscribers = Vec::new();
                for number in 0..10 {
                    let mut subscriber =
                        target.connect(Version::V3, &format!("subscriber-{round}-{number}"))?;
                    subscriber.subscribe("load", 0)?;
                    let came = subscriber.read()?;
                    ensure!(matches!(came, Packet::Publish { .. }), "a subscriber got {came:?}");
                    subscribers.push(subscriber);
                }
                // With what it was sent unread.
                for subscriber in &mut subscribers {
                    subscriber.send(&disconnect())?;
                }
            }
            Ok(())
        };
        let outcome = come_and_go();
        done.store(true, Ordering::Relaxed);
        loads.into_iter().fold(outcome, |outcome, load| {
            outcome.and(load.join().unwrap_or_else(|_| bail!("a publisher panicked")))
        })
    })
}

fn one_over_the_limit(target: &Target) -> Result<()> {
    let mut inside = Vec::new();
    for number in 0..CONNECTIONS {
        inside.push(target.connect(Version::V3, &format!("inside-{number}"))?);
    }
    for _ in 0..2 {
        let mut late = Dialogue::greet(target.v3, &target.login(Version::V3, "late"))?;
        let told = late.read()?;
        ensure!(matches!(told, Packet::Closed | Packet::ConnAck { code: 3, .. }), "one too many: {told:?}");
    }
    for client in &mut inside {
        ensure!(client.ping()?.is_empty());
    }
    for mut client in inside {
        client.send(&disconnect())?;
        ensure!(client.read()? == Packet::Closed);
    }
    Ok(())
}

fn properties_to_version_3(target: &Target) -> Result<()> {
    let mut subscriber = target.connect(Version::V3, "subscriber")?;
    subscriber.subscribe("properties", 0)?;
    let mut publisher = target.connect(Version::V5, "publisher")?;
    // A content type and a user property.
    publisher.send(&packet(0x30, b"\0\x0aproperties\x0b\x03\0\x01t\x26\0\x01k\0\x01vpayload"))?;
    let came = subscriber.read()?;
    ensure!(
        matches!(&came, Packet::Publish { payload, .. } if payload == b"payload"),
        "the subscriber got {came:?}"
    );
    Ok(())
}

fn packets_of_a_server(target: &Target) -> Result<()> {
    // More often than there may be connections, lest a place be lost each time.
    for number in 0..CONNECTIONS + 5 {
        for bytes in [packet(0x20, b"\0\0\0"), packet(0xB0, b"\0\x01\0\0")] {
            let mut client = target.connect(Version::V5, &format!("confused-{number}"))?;
            client.send(&bytes)?;
            let told = client.read()?;
            ensure!(told == Packet::Disconnect { reason: 0x82 }, "it was told {told:?}");
            ensure!(client.read()? == Packet::Closed);
        }
    }
    Ok(())
}
