//! The devices on rumqttc: those with an even number publish with QoS 2 to a gateway, the others with QoS 1 to the next
//! meter. All run on one thread of their own.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use anyhow::Result;
use mqtt_e2e::wait_until;
use parking_lot::Mutex;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS};
use tokio::time::sleep;

use super::{
    GATEWAYS, LIMIT, METERS, PACE, PASSWORD, USER,
    book::Book,
    crew::{self, Crew},
    gateway, meter, topic_of,
};

/// Messages without an acknowledgement, at most.
const WINDOW: usize = 20;
/// rumqttc repeats by packet identifier after a lost connection: in order, as long as these have not gone round.
const IDENTIFIERS: u16 = 4000;

pub(crate) struct Meters {
    publishes: Arc<AtomicBool>,
    crew: Crew,
}

struct Meter {
    name: String,
    to: String,
    qos: QoS,
    client: AsyncClient,
    book: Arc<Book>,
    /// How many of all meters have subscribed.
    subscribed: Arc<AtomicUsize>,
    sent: Mutex<Sent>,
}

/// Numbers that are with rumqttc.
#[derive(Default)]
struct Sent {
    /// Those without a packet identifier, in order.
    waiting: VecDeque<usize>,
    by_id: HashMap<u16, OnItsWay>,
    /// Connections so far.
    connections: u32,
}

/// A message that has its packet identifier.
struct OnItsWay {
    number: usize,
    /// The connection on which it was sent last.
    sent_on: u32,
    /// The broker said so.
    received: bool,
}

impl Meters {
    /// Returns when all have subscribed; they do not publish yet.
    pub(crate) fn start(broker: SocketAddr, book: &Arc<Book>) -> Result<Self> {
        let publishes = Arc::new(AtomicBool::new(false));
        let subscribed = Arc::new(AtomicUsize::new(0));
        let (may_publish, book, count) = (publishes.clone(), book.clone(), subscribed.clone());
        let crew = Crew::start("meters", move |tasks| {
            for number in 0..METERS {
                let (meter, events) = Meter::new(number, broker, &book, &count);
                let meter = Arc::new(meter);
                tasks.spawn(meter.clone().live(events));
                tasks.spawn(meter.publish(may_publish.clone()));
            }
        })?;
        wait_until("all meters to have subscribed", LIMIT, || {
            Ok((subscribed.load(Ordering::Relaxed) == METERS).then_some(()))
        })?;
        Ok(Self { publishes, crew })
    }

    /// They publish from now on, or no more.
    pub(crate) fn publish(&self, publishes: bool) {
        self.publishes.store(publishes, Ordering::Relaxed);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.crew.has_ended()
    }
}

impl Meter {
    fn new(
        number: usize,
        broker: SocketAddr,
        book: &Arc<Book>,
        subscribed: &Arc<AtomicUsize>,
    ) -> (Self, EventLoop) {
        let name = meter(number);
        let mut options = MqttOptions::new(&name, broker.ip().to_string(), broker.port());
        options.set_credentials(USER, PASSWORD).set_clean_session(false).set_inflight(IDENTIFIERS);
        let (client, events) = AsyncClient::new(options, WINDOW + 1);
        let (to, qos) = match number % 2 {
            0 => (gateway(number / 2 % GATEWAYS), QoS::ExactlyOnce),
            _ => (meter((number + 2) % METERS), QoS::AtLeastOnce),
        };
        let (book, subscribed) = (book.clone(), subscribed.clone());
        (Self { name, to, qos, client, book, subscribed, sent: Mutex::default() }, events)
    }

    /// Subscribes, and keeps its connection up.
    async fn live(self: Arc<Self>, events: EventLoop) {
        let asked = self.client.subscribe(topic_of(&self.name), QoS::AtLeastOnce).await;
        if let Err(error) = asked {
            self.book.accuse(format!("{}: {error}", self.name));
        }
        crew::live(&self.name, &self.book, events, |event| self.take(event)).await;
    }

    fn take(&self, event: Event) {
        let sent = &self.sent;
        match event {
            Event::Incoming(Packet::ConnAck(answer)) => {
                sent.lock().connections += 1;
                self.book.is_online(&self.name);
                if !answer.session_present && self.book.open_of(&self.name) > 0 {
                    self.book.accuse(format!("{}: its session is gone", self.name));
                }
            }
            Event::Incoming(Packet::SubAck(_)) => drop(self.subscribed.fetch_add(1, Ordering::Relaxed)),
            Event::Incoming(Packet::Publish(publish)) => {
                if let Err(error) = self.book.deliver(&self.name, &publish.payload) {
                    self.book.accuse(format!("{}: {error:#}", self.name));
                }
            }
            Event::Outgoing(Outgoing::Publish(id)) => self.sends(id),
            Event::Incoming(Packet::PubRec(rumqttc::PubRec { pkid })) => {
                if let Some(of) = sent.lock().by_id.get_mut(&pkid) {
                    of.received = true;
                }
            }
            Event::Incoming(Packet::PubAck(rumqttc::PubAck { pkid }))
            | Event::Incoming(Packet::PubComp(rumqttc::PubComp { pkid })) => {
                if let Some(of) = sent.lock().by_id.remove(&pkid) {
                    self.book.acknowledge(&self.name, of.number);
                }
            }
            _ => {}
        }
    }

    /// A message goes out, for the first time or again. rumqttc puts what it had sent on a lost connection behind what it
    /// had not sent again so far: what is overtaken so may come late.
    fn sends(&self, id: u16) {
        let Sent { waiting, by_id, connections } = &mut *self.sent.lock();
        // One that has its number already is sent again.
        let number = by_id.get(&id).map(|of| of.number).or_else(|| waiting.pop_front());
        let Some(number) = number else { return };
        for of in by_id.values() {
            if of.number < number && of.sent_on < *connections && !of.received {
                self.book.excuse(&self.name, of.number);
            }
        }
        by_id.insert(id, OnItsWay { number, sent_on: *connections, received: false });
    }

    async fn publish(self: Arc<Self>, may_publish: Arc<AtomicBool>) {
        let topic = topic_of(&self.to);
        loop {
            sleep(PACE).await;
            if !may_publish.load(Ordering::Relaxed) || self.book.open_of(&self.name) >= WINDOW {
                continue;
            }
            let mut sent = self.sent.lock();
            let (number, payload) = self.book.publish(&self.name, &self.to, self.qos as u8);
            sent.waiting.push_back(number);
            if let Err(error) = self.client.try_publish(&topic, self.qos, false, payload) {
                self.book.accuse(format!("{}: {error}", self.name));
            }
        }
    }
}
