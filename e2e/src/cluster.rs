//! Several brokers on one Kafka, with links between each two, and before them what a Service is in a cluster: one address that leads
//! to any node that answers.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    Broker, Manifests, PATIENCE, Store,
    broker::{binary, free_address},
    kafka::Listener,
    passage::{Gate, Passage, join},
    wait_until,
};

/// How often nodes are asked whether they take devices, and how long an answer may take.
const ASK_EVERY: Duration = Duration::from_millis(250);
const ANSWER: Duration = Duration::from_millis(500);

/// See the module. Its nodes are named `node-0` and on.
pub struct Cluster {
    pub nodes: Vec<Broker>,
    pub front: Front,
    /// By the number of the node that calls, and of the one that is called.
    links: BTreeMap<(usize, usize), Passage>,
}

impl Cluster {
    /// Returns when all nodes serve. The store must be Kafka; each node goes there a way of its own.
    pub fn start(store: &Store, manifests: &Manifests, count: usize) -> Result<Self> {
        Self::start_of(&binary()?, store, manifests, count)
    }

    /// The same of another program than the broker under test.
    pub fn start_of(program: &Path, store: &Store, manifests: &Manifests, count: usize) -> Result<Self> {
        Self::begin(program, store, manifests, &vec![None; count])
    }

    /// The same with a node for each folder with its certificate for others, if it has one.
    pub fn start_with(store: &Store, manifests: &Manifests, tls: &[Option<&Path>]) -> Result<Self> {
        Self::begin(&binary()?, store, manifests, tls)
    }

    fn begin(program: &Path, store: &Store, manifests: &Manifests, tls: &[Option<&Path>]) -> Result<Self> {
        let kafka = store.cluster()?;
        kafka.clear()?;
        let peers = tls.iter().map(|_| free_address()).collect::<Result<Vec<_>>>()?;
        let mut links = BTreeMap::new();
        let mut start = |(number, (own, tls)): (usize, (&SocketAddr, &Option<&Path>))| {
            let way = Store::Kafka(kafka.clone(), Listener::Way(number));
            let mut flags = vec!["--peers".to_owned(), own.to_string()];
            for (other, to) in peers.iter().enumerate().filter(|(other, _)| *other != number) {
                let passage = Passage::open(TcpListener::bind("127.0.0.1:0")?, *to)?;
                flags.extend(["--peer".to_owned(), format!("node-{other}={}", passage.address)]);
                links.insert((number, other), passage);
            }
            if let Some(folder) = tls {
                flags.extend(["--peers-tls".to_owned(), folder.display().to_string()]);
            }
            Broker::start_beside(program, &way, manifests, &format!("node-{number}"), &flags)
        };
        let nodes = peers.iter().zip(tls).enumerate().map(&mut start).collect::<Result<Vec<_>>>()?;
        let addresses = nodes.iter().map(|node| (node.mqtt, node.admin)).collect();
        Ok(Self { nodes, front: Front::open(addresses)?, links })
    }

    /// Lets nothing through between two nodes but what goes through Kafka, in either direction and without a word, or lets it
    /// through again.
    pub fn cut(&self, one: usize, other: usize, cut: bool) {
        for pair in [(one, other), (other, one)] {
            self.links.get(&pair).into_iter().for_each(|link| link.gate.shut(cut));
        }
    }

    /// Waits until a node has so many links to others in use.
    pub fn wait_for_links(&self, number: usize, count: u64) -> Result<()> {
        let node = self.nodes.get(number).with_context(|| format!("no node {number}"))?;
        wait_until(&format!("{count} links of node {number}"), PATIENCE, || {
            Ok((node.counter("peer_links")? == count).then_some(()))
        })
    }

    /// The node with this number.
    pub fn node(&mut self, number: usize) -> Result<&mut Broker> {
        self.nodes.get_mut(number).with_context(|| format!("no node {number}"))
    }
}

/// Passes connections on to nodes that are ready, in turn. Connections stay where they are until one end closes.
pub struct Front {
    pub address: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Front {
    /// Each node has an address for devices, and one where it says whether it is ready.
    fn open(nodes: Vec<(SocketAddr, SocketAddr)>) -> Result<Self> {
        let socket = TcpListener::bind("127.0.0.1:0")?;
        let address = socket.local_addr()?;
        let over = Arc::new(AtomicBool::new(false));
        let ready: Arc<BTreeMap<SocketAddr, AtomicBool>> =
            Arc::new(nodes.iter().map(|(mqtt, _)| (*mqtt, AtomicBool::new(true))).collect());
        for (mqtt, admin) in nodes {
            let (ready, over) = (ready.clone(), over.clone());
            thread::spawn(move || {
                while !over.load(Relaxed) {
                    let answers = is_ready(admin).unwrap_or(false);
                    ready.get(&mqtt).into_iter().for_each(|known| known.store(answers, Relaxed));
                    thread::sleep(ASK_EVERY);
                }
            });
        }
        let next = AtomicUsize::new(0);
        let (ends, open) = (over.clone(), Arc::new(Gate::default()));
        thread::spawn(move || {
            for device in socket.incoming().flatten() {
                if ends.load(Relaxed) {
                    return;
                }
                let turn = next.fetch_add(1, Relaxed);
                let all = ready.iter().filter(|(_, ready)| ready.load(Relaxed)).map(|(mqtt, _)| *mqtt);
                let mut all: Vec<_> = all.collect();
                if !all.is_empty() {
                    let first = turn % all.len();
                    all.rotate_left(first);
                }
                // Refused by all: the device hears it at once.
                let Some(node) = all.iter().find_map(|mqtt| TcpStream::connect_timeout(mqtt, ANSWER).ok())
                else {
                    continue;
                };
                let _ = join(device, node, &open);
            }
        });
        Ok(Self { address, over })
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        // So that it looks.
        let _ = TcpStream::connect(self.address);
    }
}

fn is_ready(admin: SocketAddr) -> io::Result<bool> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect_timeout(&admin, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    Ok(answer.ends_with(b"200"))
}
