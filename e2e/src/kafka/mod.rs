//! A real Kafka for the tests: one or three nodes on this machine, killed, frozen and restarted as a story needs.
//!
//! Each node is a process, broker and controller in one, run from the jars that `make tools` fetched. All of it ends
//! with its [`Kafka`], or with the test process, whatever way that ends. Nodes are counted from 1. What a test asks of
//! the cluster goes through Kafka's own Java client, so it is a second opinion on what the broker says.

mod admin;
mod home;
mod java;
mod node;
mod tls;

use std::{
    collections::{BTreeSet, hash_map::RandomState},
    fmt::Write as _,
    hash::{BuildHasher, Hasher},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use rustix::process::Signal;

pub use self::{
    admin::{Partition, Topic},
    java::Program,
};
use self::{
    home::Home,
    node::{Behind, Node, Ports},
    tls::Tls,
};
use crate::{passage::Passage, wait_until};

/// The user of the `SASL_SSL` listener, by PLAIN and by SCRAM.
pub const USER: &str = "mqtt-broker";
pub const PASSWORD: &str = "kafka-secret";

/// How many clients can be cut off, each for itself.
pub const WAYS: usize = 3;

const START_LIMIT: Duration = Duration::from_secs(60);

/// Ports that the system gives to nobody by itself.
const PORTS: std::ops::Range<u16> = 16_000..32_000;

#[derive(Clone, Copy, Debug)]
pub struct KafkaOptions {
    /// 1 or 3.
    pub nodes: usize,
    /// The address of this machine that all nodes serve on.
    pub host: Ipv4Addr,
    pub version: Version,
    /// Listeners `SASL_SSL` and `SSL`, too.
    pub sasl_ssl: bool,
    /// Prints the end of its log on standard error when it ends.
    pub shows_log: bool,
}

impl Default for KafkaOptions {
    fn default() -> Self {
        Self {
            nodes: 1,
            host: Ipv4Addr::LOCALHOST,
            version: Version::Current,
            sasl_ssl: false,
            shows_log: true,
        }
    }
}

/// A release that `make tools` has fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The oldest that the broker works with.
    Oldest,
    Current,
}

impl Version {
    /// The current release, or what `KAFKA_RELEASE` names, such as 3.6.2: `KAFKA_RELEASE=3.6.2 make e2e`.
    pub fn from_env() -> Result<Self> {
        match std::env::var("KAFKA_RELEASE") {
            Err(_) => Ok(Self::Current),
            Ok(number) => [Self::Oldest, Self::Current]
                .into_iter()
                .find(|version| version.number() == number)
                .with_context(|| format!("KAFKA_RELEASE={number}: `make tools` fetches no such release")),
        }
    }

    fn number(self) -> &'static str {
        match self {
            Self::Oldest => "3.6.2",
            Self::Current => "4.1.2",
        }
    }
}

/// A way to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    Plaintext,
    /// [`USER`] with PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
    SaslSsl,
    /// A client certificate is required.
    Ssl,
    /// Like `Plaintext`, by one of [`WAYS`] passages, which [`Kafka::cut`] shuts.
    Way(usize),
}

impl Listener {
    fn name(self) -> String {
        match self {
            Self::Plaintext => "PLAINTEXT".into(),
            Self::SaslSsl => "SASL_SSL".into(),
            Self::Ssl => "SSL".into(),
            Self::Way(number) => format!("WAY{number}"),
        }
    }
}

/// PEM texts that a client needs.
pub struct Pem {
    /// The authority that signed the nodes' certificates, and the client's.
    pub ca: String,
    pub certificate: String,
    pub key: String,
}

/// A running cluster.
pub struct Kafka {
    options: KafkaOptions,
    admin: Mutex<Option<Program>>,
    nodes: Vec<Mutex<Node>>,
    ports: Vec<Ports>,
    /// Of every node, those of each way.
    passages: Vec<Vec<Passage>>,
    tls: Option<Tls>,
    home: Home,
}

impl Kafka {
    /// Starts a new, empty cluster, and returns when all its nodes serve.
    pub fn start(options: KafkaOptions) -> Result<Self> {
        let home = Home::new()?;
        let tls = if options.sasl_ssl { Some(Tls::make(&home)?) } else { None };
        let (ports, passages) = free_ports(options)?;
        let make = |id| Node::make(id, &ports, options, tls.as_ref(), home.path());
        let nodes: Vec<Result<Node>> = thread::scope(|scope| {
            let formatting: Vec<_> = (1..=options.nodes).map(|id| scope.spawn(move || make(id))).collect();
            formatting
                .into_iter()
                .map(|node| node.join().unwrap_or_else(|_| Err(anyhow::anyhow!("formatting panicked"))))
                .collect()
        });
        let nodes = nodes.into_iter().map(|node| node.map(Mutex::new)).collect::<Result<_>>()?;
        let kafka = Self { options, admin: Mutex::new(None), nodes, ports, passages, tls, home };
        for node in &kafka.nodes {
            node.lock().start()?;
        }
        kafka.wait_until_up()?;
        Ok(kafka)
    }

    /// HOST:PORT of every node, without encryption or login.
    pub fn bootstrap(&self) -> String {
        self.bootstrap_of(Listener::Plaintext)
    }

    pub fn bootstrap_of(&self, listener: Listener) -> String {
        let host = self.options.host;
        let servers: Vec<String> =
            self.ports.iter().map(|ports| format!("{host}:{}", ports.of(listener))).collect();
        servers.join(",")
    }

    /// Copies that a topic of this cluster can have, 3 at most.
    pub fn copies(&self) -> usize {
        self.options.nodes.min(3)
    }

    /// What clients of the encrypted listeners need.
    pub fn pem(&self) -> Result<Pem> {
        self.tls.as_ref().context("started without sasl_ssl")?.for_clients()
    }

    /// SIGKILL.
    pub fn kill9(&self, node: usize) -> Result<()> {
        self.node(node)?.lock().kill9().with_context(|| format!("killing node {node}"))
    }

    /// Stops a node as an administrator would: leaderships first, then the process.
    pub fn stop(&self, node: usize) -> Result<()> {
        self.node(node)?.lock().stop().with_context(|| format!("stopping node {node}"))
    }

    /// Starts a node again that was stopped or killed; [`Self::wait_until_up`] says when it serves.
    pub fn start_node(&self, node: usize) -> Result<()> {
        self.node(node)?.lock().start().with_context(|| format!("starting node {node}"))
    }

    /// Halts a node: its connections stay open, and it says nothing.
    pub fn freeze(&self, node: usize) -> Result<()> {
        self.node(node)?.lock().signal(Signal::STOP).with_context(|| format!("freezing node {node}"))
    }

    /// Lets a frozen node go on.
    pub fn thaw(&self, node: usize) -> Result<()> {
        self.node(node)?.lock().signal(Signal::CONT).with_context(|| format!("thawing node {node}"))
    }

    /// Cuts one way to all nodes, or joins it again: what is sent meanwhile arrives then.
    pub fn cut(&self, way: usize, cut: bool) -> Result<()> {
        for of_node in &self.passages {
            of_node.get(way).with_context(|| format!("there is no way {way}"))?.gate.shut(cut);
        }
        Ok(())
    }

    /// Waits until the nodes that run, and no others, are members of the cluster and take connections.
    pub fn wait_until_up(&self) -> Result<()> {
        let up = wait_until("Kafka's nodes", START_LIMIT, || {
            let mut running = BTreeSet::new();
            for (id, node) in (1..).zip(&self.nodes) {
                let mut node = node.lock();
                match node.listens() {
                    Ok(false) if node.is_running() => return Ok(None),
                    Ok(false) => {}
                    Ok(true) => {
                        running.insert(id);
                    }
                    Err(error) => return Ok(Some(Err(error.context(format!("node {id}"))))),
                }
            }
            Ok((self.members()? == running).then_some(Ok(())))
        });
        up.and_then(|up| up).with_context(|| format!("Kafka's log ends so:\n{}", self.log_end()))
    }

    /// A client's settings as Java programs read them, from a file.
    /// `mechanism`: of SASL, for [`Listener::SaslSsl`].
    pub fn client_settings(&self, listener: Listener, mechanism: &str) -> Result<PathBuf> {
        let mut text = format!(
            "bootstrap.servers={}\nsecurity.protocol={}\n",
            self.bootstrap_of(listener),
            listener.name()
        );
        if listener != Listener::Plaintext {
            let tls = self.tls.as_ref().context("started without sasl_ssl")?;
            writeln!(text, "ssl.truststore.type=PEM\nssl.truststore.location={}", tls.ca.display())?;
            let (certificate, key) = &tls.client;
            let both = [std::fs::read_to_string(key)?, std::fs::read_to_string(certificate)?].concat();
            let both = self.home.write("client-both.pem", &both)?;
            writeln!(text, "ssl.keystore.type=PEM\nssl.keystore.location={}", both.display())?;
        }
        if listener == Listener::SaslSsl {
            let module =
                if mechanism == "PLAIN" { "plain.PlainLoginModule" } else { "scram.ScramLoginModule" };
            writeln!(text, "sasl.mechanism={mechanism}")?;
            writeln!(
                text,
                "sasl.jaas.config=org.apache.kafka.common.security.{module} required \
                 username=\"{USER}\" password=\"{PASSWORD}\";"
            )?;
        }
        self.home.write(&format!("client-{}-{mechanism}.properties", listener.name()), &text)
    }

    /// Runs `e2e/kafka/CloudProducer.java`, which sends what it is told to `mq2mqtt`.
    pub fn producer(&self) -> Result<Program> {
        let settings = self.client_settings(Listener::Plaintext, "")?;
        Program::start("CloudProducer", &[&settings.to_string_lossy()])
    }

    /// Runs `e2e/kafka/ParentConsumer.java`, which prints the records of topics as a member of a group.
    pub fn consumer(&self, group: &str, topics: &[&str]) -> Result<Program> {
        let settings = self.client_settings(Listener::Plaintext, "")?;
        Program::start("ParentConsumer", &[&[&*settings.to_string_lossy(), group], topics].concat())
    }

    /// The end of what each node has logged.
    pub fn log_end(&self) -> String {
        let mut text = String::new();
        for (id, node) in (1..).zip(&self.nodes) {
            let log = node.lock().log();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
            let _ = writeln!(text, "node {id}:\n{end}");
        }
        text
    }

    fn node(&self, node: usize) -> Result<&Mutex<Node>> {
        let found = node.checked_sub(1).and_then(|at| self.nodes.get(at));
        found.with_context(|| format!("there is no node {node}"))
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if self.options.shows_log {
            // The test runner keeps it to itself unless the story failed.
            eprintln!("Kafka's log ends so:\n{}", self.log_end());
        }
        for node in &self.nodes {
            let _ = node.lock().kill9();
        }
    }
}

/// Where nodes listen, and what leads there.
fn free_ports(KafkaOptions { nodes, host, .. }: KafkaOptions) -> Result<(Vec<Ports>, Vec<Vec<Passage>>)> {
    const OF_NODE: usize = 4 + WAYS;
    let width = usize::from(PORTS.end - PORTS.start);
    let first = usize::try_from(RandomState::new().build_hasher().finish() % width as u64)?;
    // Held until all are found, so that none is taken twice.
    let mut held = Vec::new();
    for port in PORTS.cycle().skip(first).take(width) {
        if held.len() == nodes * OF_NODE {
            break;
        }
        held.extend(TcpListener::bind((host, port)).ok());
    }
    ensure!(held.len() == nodes * OF_NODE, "too few free ports in {PORTS:?}");
    let free = held.iter().map(|socket| Ok(socket.local_addr()?.port())).collect::<Result<Vec<u16>>>()?;
    let (mut ports, mut passages) = (Vec::new(), Vec::new());
    for of_node in free.as_chunks::<OF_NODE>().0 {
        let [controller, plaintext, sasl_ssl, ssl, own @ ..] = *of_node;
        let open = |own| {
            let passage = Passage::open(TcpListener::bind((host, 0))?, SocketAddr::from((host, own)))?;
            Ok((Behind { own, passage: passage.address.port() }, passage))
        };
        let led = own.iter().map(|port| open(*port)).collect::<Result<Vec<_>>>()?;
        let (ways, lead): (Vec<_>, Vec<_>) = led.into_iter().unzip();
        let ways = <[Behind; WAYS]>::try_from(ways).ok().context("a way without a passage")?;
        ports.push(Ports { ways, controller, plaintext, sasl_ssl, ssl });
        passages.push(lead);
    }
    Ok((ports, passages))
}
