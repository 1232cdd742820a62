//! A device on Paho, in a process of its own: takes QoS 2 from meters, publishes to one of them with QoS 1.

use std::{collections::HashMap, net::SocketAddr, time::Instant};

use anyhow::{Result, ensure};
use mqtt_e2e::{Client, Driver, Login, Version, clients::Event};

use super::{GATEWAYS, METERS, PACE, PASSWORD, USER, book::Book, gateway, meter, topic_of};

/// Messages without an acknowledgement, at most.
const WINDOW: usize = 20;

pub(crate) struct Gateway {
    name: String,
    /// Who gets what it publishes.
    to: String,
    client: Client,
    /// Tag of a publish → its number.
    tags: HashMap<u64, usize>,
    due: Instant,
    online: bool,
    /// It is connected, and what it had published before it was is acknowledged. Paho sends that again after it has called
    /// itself connected; what is published meanwhile would overtake it.
    settled: bool,
}

impl Gateway {
    pub(crate) fn start(broker: SocketAddr, number: usize, book: &Book) -> Result<Self> {
        let name = gateway(number);
        let version = if number.is_multiple_of(2) { Version::V3 } else { Version::V5 };
        let login = Login::new(version, &name).user(USER, PASSWORD).persistent().reconnecting();
        let mut client = Client::connect(Driver::Paho, broker, &login)?;
        let granted = client.subscribe(&topic_of(&name), 2)?;
        ensure!(granted == [2], "{name}: its SUBSCRIBE was answered {granted:?}");
        book.is_online(&name);
        // Those meters that publish to gateways get nothing of other meters.
        let to = meter(number * (METERS / GATEWAYS) / 2 * 2);
        Ok(Self { name, to, client, tags: HashMap::new(), due: Instant::now(), settled: true, online: true })
    }

    /// Takes in what came, and publishes the next message if it is due.
    pub(crate) fn turn(&mut self, book: &Book, publishes: bool) -> Result<()> {
        for event in self.client.drain()? {
            match event {
                Event::Message(message) => book.deliver(&self.name, &message.payload)?,
                Event::Published { tag, reason: 0 | 0x10 } => {
                    if let Some(number) = self.tags.remove(&tag) {
                        book.acknowledge(&self.name, number);
                    }
                }
                Event::Closed { .. } => {
                    (self.online, self.settled) = (false, false);
                    book.is_offline(&self.name);
                }
                Event::Connected { session_present: true } => {
                    self.online = true;
                    book.is_online(&self.name);
                }
                // The log was too slow for its claim: it tries again.
                Event::Refused { reason: 3 | 0x88 } => {}
                other => book.accuse(format!("{}: {other:?}", self.name)),
            }
        }
        self.settled |= self.online && self.tags.is_empty();
        if publishes && self.settled && self.due <= Instant::now() && self.tags.len() < WINDOW {
            let (number, payload) = book.publish(&self.name, &self.to, 1);
            let tag = self.client.publish_soon(&topic_of(&self.to), payload.as_bytes(), 1, false)?;
            self.tags.insert(tag, number);
            self.due = Instant::now() + PACE;
        }
        Ok(())
    }
}
