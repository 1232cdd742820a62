//! Connections that mean no good, many at once, from one thread: each does one kind of mischief, and begins again when it
//! is closed.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::Result;
use mio::{Events, Interest, Poll, Token, net::TcpStream};

use crate::{Login, wire};

/// Connections opened a second, so that they don't take turns with each other alone.
const OPENED_A_SECOND: f64 = 2000.0;
const TICK: Duration = Duration::from_millis(10);
/// Between two bytes, or two messages, of one connection.
const PACE: Duration = Duration::from_secs(1);
/// Of a message that nobody reads: more than sockets take waits before long.
const PAYLOAD: usize = 8 * 1024;

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mischief {
    /// Sends bytes that are no packet.
    Garbage,
    /// Sends the first half of a CONNECT, and no more.
    HalfPacket,
    /// Sends what could become a CONNECT, a byte a second.
    SlowBytes,
    SaysNothing,
    /// Logs in, subscribes to what it publishes, a message a second, and reads nothing.
    ReadsNothing,
}

impl Mischief {
    /// One of those that stay for a while.
    fn staying(number: usize) -> Mischief {
        match number % 4 {
            0 => Mischief::HalfPacket,
            1 => Mischief::SlowBytes,
            2 => Mischief::SaysNothing,
            _ => Mischief::ReadsNothing,
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attack {
    pub opened: u64,
    /// By the broker.
    pub closed: u64,
    pub most_at_once: usize,
}

struct Seat {
    mischief: Mischief,
    number: usize,
    stream: Option<TcpStream>,
    /// Not sent yet.
    out: Vec<u8>,
    next: Instant,
}

/// Keeps `staying` of them open until `over`, and a tenth as many that are closed at once; those that log in do so as `login`
/// says, each with a client ID of its own.
pub fn attack(broker: SocketAddr, staying: usize, login: &Login, over: &AtomicBool) -> Result<Attack> {
    let connections = staying + staying / 10;
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let began = Instant::now();
    let seat = |number: usize| Seat {
        mischief: if number < staying { Mischief::staying(number) } else { Mischief::Garbage },
        number,
        stream: None,
        out: Vec::new(),
        next: began,
    };
    let mut seats: Vec<Seat> = (0..connections).map(seat).collect();
    let mut closed: VecDeque<usize> = (0..connections).collect();
    let mut attack = Attack::default();
    let mut turn = 0;
    while !over.load(Ordering::Relaxed) {
        poll.poll(&mut events, Some(TICK)).or_else(|error| match error.kind() {
            ErrorKind::Interrupted => Ok(()),
            _ => Err(error),
        })?;
        for event in &events {
            let Some(seat) = seats.get_mut(event.token().0) else { continue };
            if seat.stream.is_some() && !seat.goes_on(event.is_readable()) {
                seat.stream = None;
                attack.closed += 1;
                closed.push_back(event.token().0);
            }
        }
        let may_open = began.elapsed().as_secs_f64() * OPENED_A_SECOND - attack.opened as f64;
        for _ in 0..may_open as usize {
            let Some(seat) = closed.pop_front().and_then(|number| seats.get_mut(number)) else { break };
            seat.open(broker, login, &poll)?;
            attack.opened += 1;
        }
        attack.most_at_once = attack.most_at_once.max(connections - closed.len());
        // A tenth of them a tick: each has its turn ten times a second.
        let now = Instant::now();
        for _ in 0..connections.div_ceil(10) {
            turn = (turn + 1) % connections;
            if let Some(seat) = seats.get_mut(turn).filter(|seat| seat.stream.is_some() && seat.next <= now) {
                seat.next = now + PACE;
                seat.again();
            }
        }
    }
    Ok(attack)
}

impl Seat {
    fn open(&mut self, broker: SocketAddr, login: &Login, poll: &Poll) -> Result<()> {
        let mut stream = TcpStream::connect(broker)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream, Token(self.number), interest)?;
        self.stream = Some(stream);
        let login = Login { client_id: format!("{}-{}", login.client_id, self.number), ..login.clone() };
        let connect = login.packet();
        self.out = match self.mischief {
            Mischief::Garbage => (0..200).map(|at| (at * 7 + self.number % 251) as u8).collect(),
            Mischief::HalfPacket => connect.iter().take(connect.len() / 2).copied().collect(),
            Mischief::SlowBytes | Mischief::SaysNothing => Vec::new(),
            Mischief::ReadsNothing => {
                let own = self.topic();
                [connect, wire::subscribe(login.version, 1, &[(&own, 1)])].concat()
            }
        };
        self.next = Instant::now() + PACE;
        Ok(())
    }

    fn topic(&self) -> String {
        format!("noise/{}", self.number)
    }

    /// False once it is closed.
    fn goes_on(&mut self, readable: bool) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        if readable && self.mischief != Mischief::ReadsNothing {
            match stream.read(&mut [0; 512]) {
                Ok(0) => return false,
                Err(error) if error.kind() != ErrorKind::WouldBlock => return false,
                _ => {}
            }
        }
        self.flush()
    }

    fn flush(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        while !self.out.is_empty() {
            match stream.write(&self.out) {
                Ok(written) => drop(self.out.drain(..written)),
                Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected),
            }
        }
        true
    }

    /// Its next byte or message. What the socket does not take, or that it is closed, is told by its next event.
    fn again(&mut self) {
        match self.mischief {
            Mischief::SlowBytes => self.out.push(0x10),
            Mischief::ReadsNothing if self.out.is_empty() => {
                let (topic, payload) = (self.topic(), [b'x'; PAYLOAD]);
                self.out = wire::publish(wire::Version::V3, topic.as_bytes(), &payload, 0, 0, false);
            }
            _ => return,
        }
        self.flush();
    }
}
