//! The brokers under test: how each is configured, started on its core, awaited and ended; and what is compared with
//! them that is no broker.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;
use serde::Serialize;
use tempfile::TempDir;

use crate::load::procfs;
use crate::wait_until;

const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// Its memory is what it is about once it has changed by less than this many KB for so long: ours writes out what it has read
/// of its journal within ten seconds, and gives the memory back.
const SETTLED_KB: u64 = 512;
const SETTLED_FOR: Duration = Duration::from_secs(14);
const LOOK_EVERY: Duration = Duration::from_secs(2);
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
/// The registered parent topic of scenes that store.
pub(super) const TOPIC: &str = "stored";
pub(super) const PARTITIONS: u32 = 3;
const USER: &str = "bench";
const PASSWORD: &str = "bench-password";

/// What can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Ours,
    Mosquitto,
    Rumqttd,
    /// No broker: a plain producer that sends Kafka what ours would store there.
    Bare,
}

/// Where our broker keeps its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    Folder,
    Kafka,
    /// So many nodes share it, with links between them. Publishers are at the first, subscribers at the second.
    KafkaOf(usize),
}

impl Store {
    pub(super) fn is_kafka(self) -> bool {
        self != Self::Folder
    }
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Ours, Self::Mosquitto, Self::Rumqttd, Self::Bare];

    pub(super) fn how_to_get(self) -> &'static str {
        match self {
            Self::Ours => "build it with cargo build --release -p mqtt-broker",
            Self::Mosquitto => "install Debian's mosquitto",
            Self::Rumqttd => "install it with cargo install rumqttd --version 0.20.0 --root .tools",
            Self::Bare => "build it with cargo build --release -p mqtt-e2e",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "ours",
            Self::Mosquitto => "mosquitto",
            Self::Rumqttd => "rumqttd",
            Self::Bare => "bare",
        })
    }
}

/// A running broker with a folder of its own; both end with this value.
pub(super) struct Broker {
    pub(super) addr: SocketAddr,
    /// User and password, where the broker asks for them.
    pub(super) login: Option<(&'static str, &'static str)>,
    kind: Kind,
    /// It can be started once more.
    command: Command,
    child: Child,
    home: TempDir,
}

impl Broker {
    /// Starts `binary` on `core` and waits until it takes connections. `kafka`: HOST:PORT of where ours keeps its log;
    /// absent: in its folder. `more`: what else ours is told.
    ///
    /// # Errors
    /// Its last line of log, when it ended or did not get ready in time.
    pub(super) fn start(
        kind: Kind,
        binary: &Path,
        core: usize,
        kafka: Option<&str>,
        more: &[String],
    ) -> anyhow::Result<Self> {
        let home = TempDir::with_prefix("mqtt-bench-").context("cannot make a folder for the broker")?;
        let log = File::create(home.path().join("log")).context("cannot make the broker's log")?;
        let mut command = Command::new("taskset");
        // taskset becomes the broker, so that the child's process is the broker's.
        command.args(["-c", &core.to_string()]).arg(binary).stdin(Stdio::null()).stderr(log.try_clone()?);
        let (login, peer) = match kind {
            Kind::Ours => {
                let manifests = home.path().join("manifests");
                fs::create_dir(&manifests)?;
                fs::write(manifests.join("bench.yaml"), our_manifests())?;
                command.args([
                    "standalone",
                    "--mqtt",
                    "127.0.0.1:0",
                    "--admin",
                    "127.0.0.1:0",
                    "--manifests",
                ]);
                command.arg(manifests).args(more).stdout(Stdio::piped());
                match kafka {
                    Some(kafka) => command.args(["--kafka", kafka]),
                    None => command.arg("--data").arg(home.path().join("data")),
                };
                (Some((USER, PASSWORD)), None)
            }
            Kind::Bare => bail!("{kind} is no broker"),
            Kind::Mosquitto | Kind::Rumqttd => {
                let addr = free_address()?;
                let (file, text) = match kind {
                    Kind::Mosquitto => ("mosquitto.conf", mosquitto_conf(addr)),
                    _ => ("rumqttd.toml", rumqttd_toml(addr)),
                };
                let config = home.path().join(file);
                fs::write(&config, text)?;
                command.arg("-c").arg(config).stdout(log);
                (None, Some(addr))
            }
        };
        let child = command.spawn().context("cannot run taskset (Debian's util-linux)")?;
        let addr = peer.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut broker = Self { addr, login, kind, command, child, home };
        broker.await_ready()?;
        Ok(broker)
    }

    /// So many nodes of ours on the same core, with links.
    pub(super) fn start_joined(
        nodes: usize,
        binary: &Path,
        core: usize,
        kafka: &str,
    ) -> anyhow::Result<Vec<Self>> {
        let addresses = (0..nodes).map(|_| free_address()).collect::<anyhow::Result<Vec<_>>>()?;
        let start = |(node, own): (usize, &SocketAddr)| {
            let mut more = vec![format!("--node=node-{node}"), format!("--peers={own}")];
            let others = addresses.iter().enumerate().filter(|(peer, _)| *peer != node);
            more.extend(others.map(|(peer, at)| format!("--peer=node-{peer}={at}")));
            Self::start(Kind::Ours, binary, core, Some(kafka), &more)
        };
        addresses.iter().enumerate().map(start).collect()
    }

    fn await_ready(&mut self) -> anyhow::Result<()> {
        let ready = match self.kind {
            Kind::Mosquitto | Kind::Rumqttd => self.takes_connections(self.addr),
            Kind::Ours | Kind::Bare => self.says_ready(),
        };
        let kind = self.kind;
        self.addr = ready.map_err(|e| match self.last_words() {
            Some(words) => anyhow!("{kind} {e}: {words}"),
            None => anyhow!("{kind} {e}"),
        })?;
        Ok(())
    }

    /// Kills it and starts it again with what it stored; how long that took until it was ready.
    pub(super) fn restart(&mut self) -> anyhow::Result<Duration> {
        self.child.kill().context("cannot kill the broker")?;
        self.child.wait().context("the broker does not end")?;
        let began = Instant::now();
        self.child = self.command.spawn().context("cannot run taskset (Debian's util-linux)")?;
        self.await_ready()?;
        Ok(began.elapsed())
    }

    /// What it has in memory, in KB, once that is about the same for a while.
    pub(super) fn settled_kb(&self) -> anyhow::Result<u64> {
        let look = || procfs::resident_kb(&self.pid().to_string()).map_err(anyhow::Error::from);
        let (until, mut since, mut seen) = (Instant::now() + SETTLES_WITHIN, Instant::now(), look()?);
        loop {
            thread::sleep(LOOK_EVERY);
            let now = look()?;
            if now.abs_diff(seen) >= SETTLED_KB {
                (since, seen) = (Instant::now(), now);
            }
            if since.elapsed() > SETTLED_FOR || Instant::now() > until {
                return Ok(now);
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last line of its log.
    pub(super) fn last_words(&self) -> Option<String> {
        let log = fs::read_to_string(self.home.path().join("log")).ok()?;
        log.lines().rfind(|line| !line.trim().is_empty()).map(str::to_owned)
    }

    fn takes_connections(&mut self, addr: SocketAddr) -> anyhow::Result<SocketAddr> {
        let taken = wait_until("a connection", STARTS_WITHIN, || {
            match TcpStream::connect_timeout(&addr, Duration::from_secs(1)) {
                Ok(_) => Ok(Some(Ok(addr))),
                Err(_) => Ok(self.child.try_wait()?.map(Err)),
            }
        });
        match taken {
            Ok(Ok(addr)) => Ok(addr),
            Ok(Err(status)) => bail!("ended at its start ({status})"),
            Err(_) => bail!("took no connection within {} s", STARTS_WITHIN.as_secs()),
        }
    }

    /// Our broker says where it listens: `ready mqtt=ADDR admin=ADDR`.
    fn says_ready(&mut self) -> anyhow::Result<SocketAddr> {
        let stdout = self.child.stdout.take().context("has no stdout")?;
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
            // Nobody listens any more when the wait is over; the rest is read so that the pipe never fills.
            let _ = tell.send(lines.next());
            lines.for_each(drop);
        });
        match told.recv_timeout(STARTS_WITHIN) {
            Ok(Some(line)) => {
                ready_address(&line).with_context(|| format!("said `{line}` instead of being ready"))
            }
            Ok(None) => bail!("ended at its start"),
            Err(_) => bail!("was not ready within {} s", STARTS_WITHIN.as_secs()),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Its data is a benchmark's: nothing is worth a graceful end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ready_address(line: &str) -> Option<SocketAddr> {
    let words = line.strip_prefix("ready ")?;
    words.split_whitespace().find_map(|word| word.strip_prefix("mqtt="))?.parse().ok()
}

fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot find a free port")?;
    Ok(listener.local_addr()?)
}

/// As shipped, with authentication and grants on; limits out of the way.
fn our_manifests() -> String {
    format!(
        "\
apiVersion: mqtt.dms.dev/v1alpha1
kind: MqttInstance
metadata: {{name: bench}}
spec:
  limits: {{connections: 100000, publishRate: 10000000, connectRate: 1000000, subscriptions: 1000000, packetSize: 256Ki}}
  session: {{onlineMessages: 100000}}
---
apiVersion: mqtt.dms.dev/v1alpha1
kind: ParentTopic
metadata: {{name: {TOPIC}}}
spec: {{instanceRef: {{name: bench}}, topic: {TOPIC}, type: Normal, partitions: {PARTITIONS}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: bench-password}}
stringData: {{password: {PASSWORD}}}
---
apiVersion: mqtt.dms.dev/v1alpha1
kind: MqttUser
metadata: {{name: {USER}}}
spec: {{instanceRef: {{name: bench}}, passwordSecretRef: {{name: bench-password, key: password}}}}
---
apiVersion: mqtt.dms.dev/v1alpha1
kind: TopicGrant
metadata: {{name: bench-everything}}
spec:
  instanceRef: {{name: bench}}
  userRef: {{name: {USER}}}
  rules:
  - {{action: pubsub, filter: \"#\"}}
"
    )
}

fn mosquitto_conf(addr: SocketAddr) -> String {
    format!(
        "\
listener {} {}
allow_anonymous true
max_queued_messages 100000
max_inflight_messages 1000
set_tcp_nodelay true
",
        addr.port(),
        addr.ip()
    )
}

fn rumqttd_toml(addr: SocketAddr) -> String {
    format!(
        "\
id = 0

[router]
id = 0
max_connections = 20000
max_outgoing_packet_count = 2000
max_segment_size = 104857600
max_segment_count = 10

[v4.1]
name = \"bench\"
listen = \"{addr}\"
next_connection_delay_ms = 0

[v4.1.connections]
connection_timeout_ms = 60000
max_payload_size = 262144
max_inflight_count = 1000
dynamic_filters = true
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_a_ready_broker_prints_gives_its_address() {
        let check = |line: &str, want: Option<&str>| {
            assert_eq!(ready_address(line), want.map(|addr| addr.parse().unwrap()), "{line}");
        };
        check("ready mqtt=127.0.0.1:4711 admin=127.0.0.1:4712", Some("127.0.0.1:4711"));
        check("ready admin=127.0.0.1:4712 mqtt=[::1]:1", Some("[::1]:1"));
        check("ready admin=127.0.0.1:4712", None);
        check("mqtt=127.0.0.1:4711", None);
        check("ready mqtt=somewhere", None);
    }
}
