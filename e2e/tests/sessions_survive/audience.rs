//! Who only listens, on rumqttc: clean devices, each to what one meter gets, and persistent ones that share all that anybody
//! gets. They subscribe with QoS 1. All run on one thread of their own.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use mqtt_e2e::wait_until;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};

use super::{
    LIMIT, MEMBERS, METERS, PASSWORD, USER, WATCHERS,
    book::Book,
    crew::{self, Crew},
    meter, topic_of,
};

const SHARED: &str = "$share/watch/to/#";

struct Listener {
    name: String,
    /// The meter that a clean device watches; absent: it shares.
    watched: Option<String>,
    client: AsyncClient,
    book: Arc<Book>,
}

/// Returns when all have subscribed.
pub(crate) fn start(broker: SocketAddr, book: &Arc<Book>) -> Result<Crew> {
    let kept = book.clone();
    let crew = Crew::start("audience", move |tasks| {
        let watchers = (0..WATCHERS).map(|number| Some(meter(number % METERS)));
        for (number, watched) in watchers.chain((0..MEMBERS).map(|_| None)).enumerate() {
            let (listener, events) = Listener::new(number, watched, broker, &kept);
            tasks.spawn(listener.live(events));
        }
    })?;
    wait_until("the audience to have subscribed", LIMIT, || {
        Ok((book.listens() == WATCHERS + MEMBERS).then_some(()))
    })?;
    Ok(crew)
}

impl Listener {
    fn new(
        number: usize,
        watched: Option<String>,
        broker: SocketAddr,
        book: &Arc<Book>,
    ) -> (Self, EventLoop) {
        let name = if watched.is_some() { format!("watcher-{number}") } else { format!("member-{number}") };
        let mut options = MqttOptions::new(&name, broker.ip().to_string(), broker.port());
        options.set_credentials(USER, PASSWORD).set_clean_session(watched.is_some());
        let (client, events) = AsyncClient::new(options, 10);
        (Self { name, watched, client, book: book.clone() }, events)
    }

    async fn live(self, events: EventLoop) {
        crew::live(&self.name, &self.book, events, |event| self.take(event)).await;
    }

    fn take(&self, event: Event) {
        match event {
            Event::Incoming(Packet::ConnAck(answer)) => {
                self.book.is_online(&self.name);
                let filter = self.watched.as_deref().map_or_else(|| SHARED.to_owned(), topic_of);
                if answer.session_present {
                    return;
                }
                if self.watched.is_none() && self.book.is_listening(&self.name) {
                    self.book.accuse(format!("{}: its session is gone", self.name));
                }
                if let Err(error) = self.client.try_subscribe(filter, QoS::AtLeastOnce) {
                    self.book.accuse(format!("{}: {error}", self.name));
                }
            }
            Event::Incoming(Packet::SubAck(_)) => self.book.listen(&self.name, self.watched.as_deref()),
            Event::Incoming(Packet::Publish(publish)) => {
                if let Err(error) = self.book.hear(&self.name, &publish.payload) {
                    self.book.accuse(format!("{}: {error:#}", self.name));
                }
            }
            _ => {}
        }
    }
}
