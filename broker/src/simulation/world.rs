//! A whole world from one seed: nodes on one store, clients, and what is asked of them.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering as Atomic},
    },
    time::Duration,
};

use bytes::BytesMut;
use mqtt_broker_api::{
    acl::{AclDocument, AclUser, Action, Rule as AclRule},
    config::{
        Characters, InstanceConfig, Limits, Listeners, Ordering, Parent, Retention, SessionRules, Sharing,
    },
};
use mqtt_proto::codec::{Connect, Packet, QoS, Subscribe, SubscribeFilter, Version, decode, split_frame};
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    client::{Client, Kind},
    faults,
    ledger::{GROUPS, Ledger, NO_CAP, Rule},
    links::{self, Path},
    machine::Machine,
    net::{self, ClientEnd, Wire},
};
use crate::{
    connection,
    log::{
        BoxFuture,
        sim::{SimLog, cluster::Cluster},
    },
    node::Node,
    outside::{Mistake, Outside, Simulated},
    process::make_node,
    server,
    session::{self, retained::RetainedLog},
};

const NODES: usize = 3;
const CLIENTS: usize = 12;
/// The longest way of an acknowledgement and of what it lets come, on a slow link.
const SLOWEST: Duration = Duration::from_secs(4);
/// Of the session log.
const PARTITIONS: u32 = 3;
const FILTERS: [&str; 8] = ["t/#", "t/+", "t/1", "t/2", "m/#", "+/2", "n/+", "#"];
const RETAINED: &str = "r/#";

pub(super) struct World {
    pub(super) random: Mutex<fastrand::Rng>,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) devices: Vec<Device>,
    pub(super) places: Vec<Place>,
    /// Between two nodes, the lower first.
    paths: BTreeMap<(usize, usize), Arc<Path>>,
    /// Faults that go on.
    pub(super) troubles: AtomicUsize,
    began: Instant,
    connections: AtomicU32,
    config: InstanceConfig,
    acl: AclDocument,
    /// Records that may wait for the store before it has no room.
    room: usize,
    /// What its nodes do wrong.
    mistake: Option<Mistake>,
}

/// A client, and what makes it look up.
pub(super) struct Device {
    client: Mutex<Client>,
    pub(super) poke: Notify,
}

/// Where a node runs, or will run again.
#[derive(Default)]
pub(super) struct Place {
    /// It has links, with others that have.
    pub(super) linked: bool,
    pub(super) running: Mutex<Option<Running>>,
    pub(super) away: Mutex<bool>,
}

/// One process run of a node.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) node: Arc<Node>,
    pub(super) log: Arc<SimLog>,
    pub(super) machine: Arc<Machine>,
}

impl World {
    pub(super) async fn new(seed: u64, kept: usize, mistake: Option<Mistake>) -> Arc<World> {
        let mut random = fastrand::Rng::with_seed(seed);
        let tight = random.u32(0..4) == 0;
        let (offline, online) = if tight { (10, 15) } else { (NO_CAP, NO_CAP) };
        // The embedded store has one node.
        let nodes = if random.u32(0..5) == 0 { 1 } else { NODES };
        let room = if random.u32(0..4) == 0 { 20 } else { 10_000 };
        let ledger = Arc::new(Mutex::new(Ledger::new(offline, kept)));
        let told = ledger.clone();
        let landed = Box::new(move |topic: &str, partition: u32, stored: &crate::log::StoredRecord| {
            if !matches!(topic, "m" | "n") {
                return;
            }
            let mut ledger = told.lock();
            ledger.event("store", partition as usize, "has a record at", stored.offset);
            let value: serde_json::Value =
                serde_json::from_slice(stored.record.value.as_deref().unwrap_or_default()).unwrap();
            let number = value["payload"].as_str().unwrap().trim_end_matches('.').parse().unwrap();
            let headers = &stored.record.headers;
            let id = headers.iter().find(|(name, _)| &name[..] == b"messageId").map(|(_, id)| id.clone());
            ledger.landed(number, std::str::from_utf8(&id.unwrap()).unwrap());
        });
        let began = Instant::now();
        let world = Arc::new(World {
            cluster: Cluster::new(random.fork(), landed),
            ledger,
            devices: (0..CLIENTS).map(|index| Device::new(index, &mut random)).collect(),
            places: (0..nodes).map(|_| Place { linked: random.u32(0..5) > 0, ..Place::default() }).collect(),
            paths: (0..nodes).flat_map(|to| (0..to).map(move |from| ((from, to), Arc::default()))).collect(),
            troubles: AtomicUsize::new(0),
            began,
            connections: AtomicU32::new(0),
            config: config(u32::try_from(offline).unwrap(), u32::try_from(online).unwrap()),
            acl: acl(),
            room,
            mistake,
            random: Mutex::new(random),
        });
        for index in 0..nodes {
            world.start(index).await;
        }
        for index in 0..CLIENTS {
            tokio::spawn(live(world.clone(), index));
        }
        world
    }

    pub(super) fn fork(&self) -> fastrand::Rng {
        self.random.lock().fork()
    }

    /// The node that a client connects to: often the one from before.
    fn pick(&self, index: usize) -> usize {
        let (moves, node) = (self.below(3) == 0, self.below(self.places.len()));
        let mut client = self.client(index);
        client.node = if moves { node } else { client.node % self.places.len() };
        client.node
    }

    /// A number below `bound`.
    pub(super) fn below(&self, bound: usize) -> usize {
        self.random.lock().usize(0..bound)
    }

    pub(super) fn millis(&self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.lock().u64(range))
    }

    pub(super) fn path(&self, one: usize, other: usize) -> Arc<Path> {
        self.paths[&(one.min(other), one.max(other))].clone()
    }

    pub(super) fn running(&self, index: usize) -> Option<Running> {
        self.places[index].running.lock().clone()
    }

    /// Starts a process run of a node; returns when it serves.
    pub(super) fn start(self: &Arc<Self>, index: usize) -> BoxFuture<'static, ()> {
        // It comes round to itself, so its type must have an end.
        let world = self.clone();
        Box::pin(async move { world.start_node(index).await })
    }

    async fn start_node(self: Arc<Self>, index: usize) {
        let machine = Machine::new(self.began, self.fork(), 0);
        let outside = Outside { simulated: Some(machine.clone()), mistake: self.mistake };
        let log = SimLog::new(self.cluster.clone(), outside.clone(), self.fork(), self.room);
        log.set_away(*self.places[index].away.lock());
        let name = index.to_string();
        let place =
            session::log::Place { node: &name, partitions: PARTITIONS, shared: self.places.len() > 1 };
        let node = loop {
            match make_node(outside.clone(), log.clone(), place, &self.config, &self.acl).await {
                Ok(Ok(node)) => break node,
                Ok(Err(problems)) => assert!(problems.may_pass, "{:?}", problems.lines),
                Err(crate::log::LogError::Store(_)) => {}
                Err(error) => panic!("a node can't start: {error}"),
            }
            log.set_away(*self.places[index].away.lock());
            sleep(Duration::from_secs(1)).await;
        };
        log.set_away(*self.places[index].away.lock());
        server::background(&node).into_iter().for_each(|task| machine.spawn(task));
        self.ledger.lock().serves(index, node.boot);
        tokio::spawn(faults::follow_end(self.clone(), index, node.clone()));
        let running = Running { node, log, machine };
        if self.places[index].linked {
            running.machine.spawn(Box::pin(links::keep_all(self.clone(), index, running.clone())));
        }
        *self.places[index].running.lock() = Some(running);
    }

    /// A connection to a node, and the process run that it leads to.
    fn dial(&self, index: usize) -> Option<(ClientEnd, u64)> {
        let Running { node, machine, .. } = self.running(index)?;
        let mut random = self.fork();
        let window = if random.u32(0..5) == 0 { 2000 } else { 100_000 };
        let (client, stream, _) = net::connect(index, random, 0..3, window);
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let (newcomer, _) = node.admission.meet(peer, 1000);
        machine.spawn(Box::pin(connection::serve(node.clone(), stream, newcomer)));
        Some((client, node.boot))
    }

    /// Client and ledger together.
    pub(super) fn with<R>(&self, index: usize, act: impl FnOnce(&mut Client, &mut Ledger) -> R) -> R {
        let (mut client, mut ledger) = (self.devices[index].client.lock(), self.ledger.lock());
        act(&mut client, &mut ledger)
    }

    pub(super) fn client(&self, index: usize) -> MutexGuard<'_, Client> {
        self.devices[index].client.lock()
    }

    /// The nodes that a client has a connection to.
    fn connected(&self, index: usize) -> Vec<usize> {
        let client = self.client(index);
        // Who was told nothing so far has not been let in.
        let is_open = |wire: &&Arc<Wire>| wire.node_closed().is_none() && wire.node_wrote().is_some();
        client.wires.iter().filter(is_open).map(|wire| wire.node).collect()
    }

    /// One thing that a device or its owner does.
    pub(super) fn operate(&self) {
        let index = self.below(CLIENTS);
        let choice = self.below(100);
        let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][self.below(4)];
        let (number, filter) = (self.below(6), FILTERS[self.below(FILTERS.len())]);
        let group = &GROUPS[self.below(GROUPS.len())];
        let group_qos = group.qos[self.below(group.qos.len())];
        let device = &self.devices[index];
        self.with(index, |client, ledger| match choice {
            0..40 => client.publish(ledger, &format!("t/{number}"), qos, false, false),
            40..52 => client.publish(ledger, &format!("m/{}", number % 3), qos, false, false),
            52..62 => client.publish(ledger, &format!("n/{}", number % 3), qos, false, false),
            62..72 => {
                let qos = if number % 2 == 0 { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
                client.publish(ledger, &format!("r/{index}/{}", number % 2), qos, true, number == 5);
            }
            72..80 => client.subscribe(ledger, filter, qos),
            80..84 => client.subscribe(ledger, group.name, group_qos),
            84..86 => client.unsubscribe(ledger, filter),
            86..87 => client.unsubscribe(ledger, group.name),
            87..91 if client.is_online() => {
                client.wanted = false;
                client.disconnect(ledger, number == 0);
            }
            91..92 => {
                client.cleans = true;
                if let Some(link) = &client.link {
                    link.wire.close();
                }
                client.lost(ledger);
            }
            _ => client.wanted = true,
        });
        device.poke.notify_one();
    }

    /// Waits until all that was begun has ended, and checks what must hold then.
    pub(super) async fn rest(&self) {
        let ended =
            self.eventually(Duration::from_secs(120), || self.troubles.load(Atomic::Relaxed) == 0).await;
        if !ended {
            assert!(self.ledger.lock().violation.is_some(), "faults end by themselves");
            return;
        }
        let (since, calm) = (self.ledger.lock().rested(), Instant::now());
        for index in 0..CLIENTS {
            self.with(index, |client, ledger| {
                client.wanted = true;
                client.recover();
                // Nobody told it that its node is gone.
                if client.link.as_ref().is_some_and(|link| link.wire.node_closed().is_some()) {
                    client.lost(ledger);
                }
            });
            self.devices[index].poke.notify_one();
        }
        let all = |holds: fn(&Client) -> bool| self.devices.iter().all(|device| holds(&device.client.lock()));
        let came = self.eventually(Duration::from_secs(10), || all(Client::is_online)).await;
        self.judge(Rule::Online, since, came, || {
            "not all clients are online 10 s after the last fault".to_owned()
        });
        let quiet = |client: &Client| client.is_done() && client.heard_publish.elapsed() > SLOWEST;
        // Who has heard nothing for long may be about to, from a node that has just got its store back.
        let is_over = || calm.elapsed() > SLOWEST && all(quiet);
        let done = self.eventually(Duration::from_secs(100), is_over).await;
        self.judge(Rule::Online, since, done, || "something is never answered, or never ends".to_owned());
        if !done || !came {
            return;
        }
        self.ledger.lock().settle();
        for index in 0..CLIENTS {
            // A former one may wait a moment for its client to hear the last word.
            self.eventually(Duration::from_secs(3), || self.connected(index).len() == 1).await;
            let open = self.connected(index);
            self.judge(Rule::OneConnection, since, open.len() == 1, || {
                format!("client {index} has connections to the nodes {open:?}")
            });
        }
        for index in 0..self.places.len() {
            // A node may have heard only now that it was over.
            let mut found = self.probe(index).await;
            for _ in 0..5 {
                if found.is_none() {
                    sleep(Duration::from_secs(1)).await;
                    found = self.probe(index).await;
                }
            }
            match found {
                Some(found) => self.ledger.lock().found_retained(index, &found, since),
                None => {
                    self.judge(Rule::Online, since, false, || format!("node {index} lets no new client in"))
                }
            }
        }
        self.compare(since).await;
        // What a session left that has ended is given to others a moment later.
        let has_come = || self.ledger.lock().due_to_groups().1.is_none();
        self.eventually(Duration::from_secs(60), has_come).await;
        let mut ledger = self.ledger.lock();
        ledger.settle_shared();
        ledger.rests();
    }

    /// Compares what the nodes know with what a reader knows that reads the log now.
    async fn compare(&self, since: u64) {
        let until = Instant::now() + Duration::from_secs(60);
        let log = SimLog::new(self.cluster.clone(), Outside::default(), self.fork(), self.room);
        loop {
            let sessions = session::log::summaries(&*log).await;
            let retained = RetainedLog::fresh_summary(&*log).await;
            let mut wrong = None;
            for index in 0..self.places.len() {
                let Some(Running { node, .. }) = self.running(index) else { continue };
                let known = node.sessions.summaries();
                for (found, expected) in known.iter().flatten().zip(sessions.iter().flatten()) {
                    if found != expected {
                        wrong = Some(format!("node {index} knows {found}\nnot {expected}"));
                    }
                }
                if known != sessions {
                    wrong.get_or_insert_with(|| format!("node {index} knows {known:#?}\nnot {sessions:#?}"));
                }
                let known = node.retained.summary();
                if known != retained {
                    wrong = Some(format!("node {index} retains {known:#?}\nnot {retained:#?}"));
                }
            }
            let waits = sessions.iter().flatten().find(|line| line.contains(": queue of"));
            let is_late = Instant::now() > until;
            if is_late || (wrong.is_none() && waits.is_none()) {
                self.judge(Rule::SameState, since, wrong.is_none(), || wrong.unwrap_or_default());
                self.judge(Rule::Finished, since, waits.is_none(), || {
                    format!("though all are online and quiet: {}", waits.cloned().unwrap_or_default())
                });
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    fn judge(&self, rule: Rule, since: u64, holds: bool, what: impl FnOnce() -> String) {
        let mut ledger = self.ledger.lock();
        ledger.judged(rule, since);
        if !holds {
            ledger.violate(rule, what());
        }
    }

    async fn eventually(&self, patience: Duration, mut holds: impl FnMut() -> bool) -> bool {
        let until = Instant::now() + patience;
        while !holds() {
            if Instant::now() > until || self.ledger.lock().violation.is_some() {
                return false;
            }
            sleep(Duration::from_millis(100)).await;
        }
        true
    }

    /// What a new client finds retained: message by topic.
    async fn probe(&self, index: usize) -> Option<BTreeMap<String, u32>> {
        let (mut end, _) = self.dial(index)?;
        let connect = Connect {
            version: Version::V311,
            clean_start: true,
            keep_alive: 0,
            client_id: "probe",
            will: None,
            username: None,
            password: None,
            properties: Default::default(),
        };
        let filter = SubscribeFilter {
            filter: RETAINED,
            qos: QoS::AtMostOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: Default::default(),
        };
        let filters = [filter].into_iter().collect();
        let subscribe = Subscribe { packet_id: 1, subscription_id: None, filters, user: Vec::new() };
        let mut out = BytesMut::new();
        Packet::Connect(connect).encode(Version::V311, &mut out);
        Packet::Subscribe(subscribe).encode(Version::V311, &mut out);
        end.wire.send(out.freeze());
        let (mut unread, mut granted, mut found) = (BytesMut::new(), false, BTreeMap::new());
        while let Ok(Some(bytes)) = timeout(Duration::from_secs(1), end.receive()).await {
            unread.extend_from_slice(&bytes);
            let mut used = 0;
            while let Some((frame, length)) = split_frame(&unread[used..], u32::MAX).unwrap() {
                match decode(frame, Version::V311).unwrap() {
                    Packet::SubAck(_) => granted = true,
                    Packet::Publish(publish) if publish.retain => {
                        let number = std::str::from_utf8(publish.payload).unwrap().trim_end_matches('.');
                        found.insert(publish.topic.to_owned(), number.parse().unwrap());
                    }
                    _ => {}
                }
                used += length;
            }
            let _ = unread.split_to(used);
        }
        end.wire.close();
        granted.then_some(found)
    }
}

impl Device {
    fn new(index: usize, random: &mut fastrand::Rng) -> Device {
        let version = [Version::V311, Version::V5, Version::V5][random.usize(0..3)];
        let kind = Kind {
            index,
            version,
            // MQTT 3.1.1 has the instance's.
            expiry: match version {
                Version::V5 => [0, 20, 3600, 3600][random.usize(0..4)],
                _ => [0, 3600][random.usize(0..2)],
            },
            keep_alive: [0, 10, 60][random.usize(0..3)],
            receive_maximum: [3, 20, 1000][random.usize(0..3)],
        };
        Device { client: Mutex::new(Client::new(kind, random.fork())), poke: Notify::new() }
    }
}

/// A client's life: online as long as it shall be.
async fn live(world: Arc<World>, index: usize) {
    let device = &world.devices[index];
    loop {
        while !world.client(index).wanted {
            device.poke.notified().await;
        }
        let node = world.pick(index);
        if let Some((end, boot)) = world.dial(node) {
            let connection = world.connections.fetch_add(1, Atomic::Relaxed);
            world.with(index, |client, ledger| client.begin(ledger, end.wire.clone(), connection, boot));
            serve(&world, index, end, connection).await;
        }
        sleep(world.millis(50..500)).await;
    }
}

/// One connection of a client, to its end.
async fn serve(world: &World, index: usize, mut end: ClientEnd, connection: u32) {
    let device = &world.devices[index];
    loop {
        let deadline = world.client(index).deadline();
        let at = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        let goes_on = tokio::select! {
            biased;
            bytes = end.receive() => match bytes {
                Some(bytes) => world.with(index, |client, ledger| {
                    client.link.as_ref().is_some_and(|link| link.connection == connection)
                        && client.hear(ledger, &bytes)
                }),
                None => false,
            },
            () = device.poke.notified() => true,
            () = sleep_until(at) => world.client(index).tick(),
        };
        let is_mine = world.client(index).link.as_ref().is_some_and(|link| link.connection == connection);
        if !is_mine {
            // It was left alone: it went on elsewhere.
            return;
        }
        if !goes_on {
            end.wire.close();
            world.with(index, Client::lost);
            return;
        }
    }
}

pub(crate) fn config(offline: u32, online: u32) -> InstanceConfig {
    let parent = |topic: &str, ordering| Parent {
        topic: topic.to_owned(),
        ordering,
        partitions: 2,
        retention: Retention::default(),
    };
    InstanceConfig {
        instance: "simulation/one".to_owned(),
        limits: Limits {
            connections: 1000,
            publish_rate: 100_000,
            delivery_rate: None,
            subscriptions: 10_000,
            connect_rate: 0,
            connections_per_address: None,
            memory: None,
            packet_size: 65_536,
            client_id_length: 100,
            keep_alive_seconds: None,
            characters: Characters::Any,
        },
        session: SessionRules {
            expiry_seconds: 3600,
            offline_messages: offline,
            online_messages: online,
            sharing: Sharing::RoundRobin,
            response_information: None,
        },
        expires_at: None,
        groups: Vec::new(),
        parents: vec![parent("m", Ordering::PartitionOrdered), parent("n", Ordering::Normal)],
        listeners: Listeners::default(),
        kafka: None,
    }
}

pub(crate) fn acl() -> AclDocument {
    let rule = AclRule { action: Action::PubSub, filter: "#".to_owned() };
    let user = AclUser {
        username: "anyone".to_owned(),
        passwords: Vec::new(),
        client_ids: Vec::new(),
        rules: vec![rule],
    };
    AclDocument { generation: 1, anonymous_user: Some("anyone".to_owned()), users: vec![user] }
}
