//! A fleet of publishing devices that keeps books: what was sent, what was acknowledged, and when.
//!
//! All devices share one thread, each a task of its own: it keeps one persistent session, publishes numbered payloads
//! at its pace while connected, and after any end of its connection comes back and repeats what was open. A broker
//! that is away or unavailable is part of the plan; an answer that no broker may give ends the device, and
//! [`Fleet::stop`] tells it. What fell due in an outage is left out, but for its end.

mod device;
pub mod ledger;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};

use self::device::Device;
pub use self::{
    device::{Published, Role},
    ledger::{Account, Breach, Entry, Ledger, Repeats},
};
use crate::{Login, Packet, Version, wait_until, wire};

/// Between the end of a connection and the next attempt: doubled at each that fails, up to the second.
const BACKOFF: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(200)];
/// For the connection, and for each write: a window of numbers fits into any socket's buffer.
const SOCKET_LIMIT: Duration = Duration::from_secs(5);
/// For CONNACK: a broker may try for seconds to make a session before it says that it can't.
const CONNACK_LIMIT: Duration = Duration::from_secs(20);

/// The part of the pace asked for that counts as real load: a busy machine has room below it.
const REAL_LOAD: f64 = 0.7;
const PACE_OVER: Duration = Duration::from_secs(2);
/// What fell due longer ago is left out.
const MADE_UP_FOR: Duration = Duration::from_millis(500);

/// Who publishes what, and how fast.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    pub devices: usize,
    /// Messages a second, of all devices together.
    pub rate: u32,
    /// Messages that a device publishes at once: several of one client are then on their way together.
    pub burst: u32,
    /// Parent topics: the devices publish under them in turn.
    pub parents: Vec<String>,
    pub user: String,
    pub password: String,
}

/// A running fleet; it ends with this value.
pub struct Fleet {
    shared: Arc<Shared>,
    /// Set: publish no more, and end once all is acknowledged or the time has come.
    stop: watch::Sender<Option<Instant>>,
    thread: JoinHandle<Result<Vec<Ended>>>,
}

struct Shared {
    broker: SocketAddr,
    options: FleetOptions,
    start: Instant,
    published: AtomicU64,
    acked: AtomicU64,
    connects: AtomicU64,
    refused: AtomicU64,
}

/// A device at its end, and what the broker did wrong.
struct Ended {
    device: Device,
    wrong: Option<String>,
}

/// How a connection ended.
enum End {
    /// By the device: it is done.
    Settled,
    /// By the other side, or it was never made.
    Lost,
    /// The broker did what it may not.
    Wrong(String),
}

impl Default for FleetOptions {
    /// 50 devices, 2000 messages a second, half of the devices under an ordered parent.
    fn default() -> Self {
        Self {
            devices: 50,
            rate: 2000,
            burst: 4,
            parents: vec!["readings".into(), "orderMsg2mq-readings".into()],
            user: "fleet".into(),
            password: "fleet-secret".into(),
        }
    }
}

impl FleetOptions {
    /// Every parent has devices of either QoS and version, where there are four devices or more for it.
    pub fn roles(&self) -> Vec<Role> {
        let role = |(number, parent): (usize, &String)| {
            let (qos, version) = match number / self.parents.len() % 4 {
                0 => (1, Version::V3),
                1 => (2, Version::V5),
                2 => (1, Version::V5),
                _ => (2, Version::V3),
            };
            Role { client_id: format!("fleet-{number}"), version, qos, parent: parent.clone() }
        };
        (0..self.devices).zip(self.parents.iter().cycle()).map(role).collect()
    }
}

impl Fleet {
    /// Starts to connect and publish; the broker need not be there yet.
    pub fn start(broker: SocketAddr, options: FleetOptions) -> Result<Self> {
        let some =
            options.devices > 0 && options.rate > 0 && options.burst > 0 && !options.parents.is_empty();
        ensure!(some, "a fleet that publishes nothing");
        let roles = options.roles();
        let shared = Arc::new(Shared {
            broker,
            options,
            start: Instant::now(),
            published: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            connects: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let (stop, stopping) = watch::channel(None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = run_all(shared.clone(), roles, stopping);
        let thread = thread::Builder::new().name("fleet".into()).spawn(move || runtime.block_on(run))?;
        Ok(Self { shared, stop, thread })
    }

    /// Time since the start: the ledger's clock.
    pub fn now(&self) -> Duration {
        self.shared.start.elapsed()
    }

    pub fn published(&self) -> u64 {
        self.shared.published.load(Relaxed)
    }

    pub fn acked(&self) -> u64 {
        self.shared.acked.load(Relaxed)
    }

    /// CONNECTs answered that the broker is unavailable.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Relaxed)
    }

    /// Waits until `more` messages than now are acknowledged.
    pub fn wait_for_acks(&self, more: u64, limit: Duration) -> Result<()> {
        let wanted = self.acked() + more;
        let what = format!("{more} more acks");
        wait_until(&what, limit, || Ok((self.acked() >= wanted || self.thread.is_finished()).then_some(())))?;
        ensure!(self.acked() >= wanted, "the fleet has ended");
        Ok(())
    }

    /// Waits until acks have come at [`REAL_LOAD`] of the pace asked for, over [`PACE_OVER`].
    pub fn wait_for_pace(&self, limit: Duration) -> Result<()> {
        let wanted = REAL_LOAD * f64::from(self.shared.options.rate);
        let mut last = (Instant::now(), self.acked());
        wait_until(&format!("{wanted:.0} acks a second"), limit, || {
            let (since, acked) = last;
            let passed = since.elapsed();
            if passed < PACE_OVER {
                return Ok(None);
            }
            last = (Instant::now(), self.acked());
            let rate = (self.acked() - acked) as f64 / passed.as_secs_f64();
            ensure!(rate >= wanted, "{rate:.0} at last");
            Ok(Some(()))
        })
    }

    /// Publishes no more, waits until all is acknowledged, and tells what happened.
    ///
    /// # Errors
    /// Something is still open after `limit`, or the broker gave an answer that it may not.
    pub fn stop(self, limit: Duration) -> Result<Ledger> {
        self.stop.send_replace(Some(Instant::now() + limit));
        let Ok(ended) = self.thread.join() else { bail!("the fleet's thread panicked") };
        let ended = ended?;
        let wrong: Vec<String> = ended
            .iter()
            .filter_map(|end| Some(format!("{:?}: {}", end.device.role, end.wrong.as_ref()?)))
            .collect();
        ensure!(wrong.is_empty(), "the broker answered wrongly:\n{}", wrong.join("\n"));
        let open: Vec<String> = ended.iter().filter_map(|end| end.device.open()).collect();
        ensure!(open.is_empty(), "not acknowledged {limit:?} after the end:\n{}", open.join("\n"));
        let account = |end: Ended| Account { role: end.device.role, published: end.device.published };
        Ok(Ledger {
            devices: ended.into_iter().map(account).collect(),
            lasted: self.shared.start.elapsed(),
            connects: self.shared.connects.load(Relaxed),
            refused: self.shared.refused.load(Relaxed),
        })
    }
}

async fn run_all(
    shared: Arc<Shared>,
    roles: Vec<Role>,
    stopping: watch::Receiver<Option<Instant>>,
) -> Result<Vec<Ended>> {
    let mut tasks = JoinSet::new();
    let count = u32::try_from(roles.len())?;
    let pace = Duration::from_secs(1) * count * shared.options.burst / shared.options.rate;
    for (place, role) in (0u32..).zip(roles) {
        // Evenly over one step of the pace, so that the devices don't all publish at once.
        let first = shared.start + pace * place / count;
        let task = Task { shared: shared.clone(), stopping: stopping.clone(), pace, due: first };
        tasks.spawn(task.run(Device::new(role)));
    }
    let mut ended = Vec::new();
    while let Some(end) = tasks.join_next().await {
        ended.push(end.context("a device's task ended early")?);
    }
    Ok(ended)
}

/// One device's life.
struct Task {
    shared: Arc<Shared>,
    stopping: watch::Receiver<Option<Instant>>,
    /// Between two bursts.
    pace: Duration,
    /// When the next burst is due.
    due: Instant,
}

impl Task {
    async fn run(mut self, mut device: Device) -> Ended {
        let stopping = self.stopping.clone();
        let wrong = tokio::select! {
            wrong = self.stay_connected(&mut device) => wrong,
            () = time_is_up(stopping) => None,
        };
        Ended { device, wrong }
    }

    /// Until all is done, or the broker has done wrong.
    async fn stay_connected(&mut self, device: &mut Device) -> Option<String> {
        let [shortest, longest] = BACKOFF;
        let mut backoff = shortest;
        loop {
            if self.is_stopping() && device.is_settled() {
                return None;
            }
            let stream = match self.connect(&device.role).await {
                Ok(stream) => stream,
                Err(End::Wrong(what)) => return Some(what),
                Err(End::Settled | End::Lost) => {
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(longest);
                    continue;
                }
            };
            backoff = shortest;
            match self.talk(stream, device).await {
                End::Settled => return None,
                End::Lost => sleep(backoff).await,
                End::Wrong(what) => return Some(what),
            }
        }
    }

    async fn connect(&self, role: &Role) -> Result<Connection, End> {
        let FleetOptions { user, password, .. } = &self.shared.options;
        let login = Login::new(role.version, &role.client_id).user(user, password).persistent();
        let stream = within(SOCKET_LIMIT, TcpStream::connect(self.shared.broker)).await?;
        // Without it small packets wait for each other's acks.
        stream.set_nodelay(true).map_err(|_| End::Lost)?;
        let mut connection = Connection { stream, version: role.version, input: Vec::new() };
        connection.send(&login.packet()).await?;
        let answer = timeout(CONNACK_LIMIT, connection.packet()).await.map_err(|_| End::Lost)??;
        match (answer, role.version) {
            (Packet::ConnAck { code: 0, .. }, _) => {
                self.shared.connects.fetch_add(1, Relaxed);
                Ok(connection)
            }
            (Packet::ConnAck { code: 3, .. }, Version::V3)
            | (Packet::ConnAck { code: 0x88, .. }, Version::V5) => {
                self.shared.refused.fetch_add(1, Relaxed);
                Err(End::Lost)
            }
            (other, _) => Err(End::Wrong(format!("CONNECT was answered {other:?}"))),
        }
    }

    /// One connection, from after its CONNACK to its end.
    async fn talk(&mut self, mut connection: Connection, device: &mut Device) -> End {
        let mut out = Vec::new();
        device.repeat(&mut out);
        loop {
            if !out.is_empty() {
                if let Err(end) = connection.send(&out).await {
                    return end;
                }
                out.clear();
            }
            let stopping = self.is_stopping();
            if stopping && device.is_settled() {
                // A failure here changes nothing: all is acknowledged.
                let _ = connection.send(&wire::disconnect()).await;
                return End::Settled;
            }
            tokio::select! {
                packet = connection.packet() => {
                    if let Err(end) = packet.and_then(|packet| self.take(device, packet, &mut out)) {
                        return end;
                    }
                }
                () = sleep_until(self.due.into()), if !stopping && device.has_room() => {
                    let now = Instant::now();
                    for _ in 0..self.shared.options.burst {
                        if device.has_room() {
                            device.publish(now - self.shared.start, &mut out);
                            self.shared.published.fetch_add(1, Relaxed);
                        }
                    }
                    let oldest = now.checked_sub(MADE_UP_FOR).unwrap_or(now);
                    self.due = (self.due + self.pace).max(oldest);
                }
                _ = self.stopping.changed(), if !stopping => {}
            }
        }
    }

    fn take(&self, device: &mut Device, packet: Packet, out: &mut Vec<u8>) -> Result<(), End> {
        match packet {
            Packet::Closed | Packet::Disconnect { .. } => return Err(End::Lost),
            packet => {
                let over = matches!(packet, Packet::PubAck { .. } | Packet::PubComp { .. });
                let answer = device.answer(self.shared.start.elapsed(), packet, out);
                answer.map_err(|wrong| End::Wrong(wrong.to_string()))?;
                self.shared.acked.fetch_add(u64::from(over), Relaxed);
            }
        }
        Ok(())
    }

    fn is_stopping(&self) -> bool {
        // Without its owner the fleet has nobody to publish for.
        self.stopping.borrow().is_some() || self.stopping.has_changed().is_err()
    }
}

/// A connection of tokio's, in packets.
struct Connection {
    stream: TcpStream,
    version: Version,
    input: Vec<u8>,
}

impl Connection {
    /// The next packet, or [`Packet::Closed`]. Nothing is lost if this is given up between two polls.
    async fn packet(&mut self) -> Result<Packet, End> {
        loop {
            match wire::decode(self.version, &self.input) {
                Ok(Some((packet, used))) => {
                    self.input.drain(..used);
                    return Ok(packet);
                }
                Ok(None) => {}
                Err(error) => return Err(End::Wrong(format!("{error:#}"))),
            }
            if self.stream.read_buf(&mut self.input).await.map_err(|_| End::Lost)? == 0 {
                return Ok(Packet::Closed);
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), End> {
        within(SOCKET_LIMIT, self.stream.write_all(bytes)).await
    }
}

/// A socket's operation that fails or takes too long means the connection is lost.
async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> Result<T, End> {
    timeout(limit, work).await.ok().and_then(Result::ok).ok_or(End::Lost)
}

/// Waits until the fleet is told to stop and its time for that is over, or it has no owner any more.
async fn time_is_up(mut stopping: watch::Receiver<Option<Instant>>) {
    if let Ok(Some(end)) = stopping.wait_for(Option::is_some).await.map(|end| *end) {
        sleep_until(end.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
    };

    use super::*;

    /// What a broker says to the first packets of one connection, of which CONNECT is one, before it closes it.
    type Answers = fn(Packet) -> Vec<u8>;

    const CONNACK: [u8; 4] = [0x20, 2, 0, 0];

    /// A broker that answers `count` packets of each connection with what the script says of it; its last entry
    /// stands for all that come.
    fn broker(script: &'static [(usize, Answers)]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let connections = script.iter().chain(std::iter::repeat(script.last().unwrap()));
            for (stream, (count, answer)) in listener.incoming().zip(connections) {
                let mut stream = stream.unwrap();
                let mut input = Vec::new();
                for _ in 0..*count {
                    let packet = loop {
                        if let Some((packet, used)) = wire::decode(Version::V3, &input).unwrap() {
                            input.drain(..used);
                            break packet;
                        }
                        let mut chunk = [0; 100];
                        let read = stream.read(&mut chunk).unwrap();
                        if read == 0 {
                            return;
                        }
                        input.extend(&chunk[..read]);
                    };
                    stream.write_all(&answer(packet)).unwrap();
                }
            }
        });
        address
    }

    fn acknowledge(packet: Packet) -> Vec<u8> {
        match packet {
            Packet::Publish { id: Some(id), .. } => wire::puback(id),
            _ => CONNACK.into(),
        }
    }

    fn start(broker: SocketAddr) -> Fleet {
        let parents = vec!["readings".to_owned()];
        Fleet::start(broker, FleetOptions { devices: 1, rate: 100, burst: 1, parents, ..Default::default() })
            .unwrap()
    }

    #[test]
    fn a_device_comes_back_from_refusals_and_losses_and_repeats_what_was_open() {
        const SCRIPT: &[(usize, Answers)] = &[
            (1, |_| vec![0x20, 2, 0, 3]),
            (3, |packet| match packet {
                Packet::Publish { .. } => Vec::new(),
                _ => CONNACK.into(),
            }),
            (usize::MAX, |packet| match packet {
                // These two it had seen before; without DUP they would be others.
                Packet::Publish { id: Some(1 | 2), dup: false, .. } => wire::puback(99),
                packet => acknowledge(packet),
            }),
        ];
        let fleet = start(broker(SCRIPT));
        fleet.wait_for_acks(10, Duration::from_secs(10)).unwrap();
        let ledger = fleet.stop(Duration::from_secs(10)).unwrap();
        let times: Vec<u32> = ledger.devices[0].published.iter().map(|published| published.times).collect();
        assert_eq!((ledger.refused, ledger.connects, &times[..2]), (1, 2, &[2, 2][..]));
    }

    #[test]
    fn what_is_not_acknowledged_in_time_and_what_is_answered_wrongly_is_told() {
        let check = |script, told: &str| {
            let fleet = start(broker(script));
            wait_until("a publish", Duration::from_secs(10), || Ok((fleet.published() > 0).then_some(())))
                .unwrap();
            let error = fleet.stop(Duration::from_millis(300)).unwrap_err().to_string();
            assert!(error.contains(told) && error.contains("fleet-0"), "{error}");
        };
        const SILENT: &[(usize, Answers)] = &[(usize::MAX, |packet| match packet {
            Packet::Publish { .. } => Vec::new(),
            _ => CONNACK.into(),
        })];
        const ASTRAY: &[(usize, Answers)] = &[(usize::MAX, |packet| match packet {
            Packet::Publish { .. } => wire::puback(99),
            _ => CONNACK.into(),
        })];
        check(SILENT, "not acknowledged");
        check(ASTRAY, "answers nothing that is due");
    }
}
