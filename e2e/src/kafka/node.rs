//! One Kafka process: its settings, its start, its end, and the signals between.

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::TcpStream,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{KafkaOptions, Listener, PASSWORD, USER, WAYS, java::java, tls::Tls};
use crate::wait_until;

/// How long a process may take to end that was asked to.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Any cluster's: it need only be the same at each node.
const CLUSTER: &str = "MkU3OEVBNTcwNTJENDM2Qg";

/// Where a node listens: ports of the cluster's address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    /// Each is told to clients as the passage that leads there.
    pub(super) ways: [Behind; WAYS],
    pub(super) controller: u16,
    pub(super) plaintext: u16,
    pub(super) sasl_ssl: u16,
    pub(super) ssl: u16,
}

/// A port that clients reach through another one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behind {
    pub(super) own: u16,
    pub(super) passage: u16,
}

impl Ports {
    /// By which clients reach it.
    pub(super) fn of(self, listener: Listener) -> u16 {
        match listener {
            Listener::Way(number) => self.ways.get(number).map_or(0, |way| way.passage),
            Listener::Plaintext => self.plaintext,
            Listener::SaslSsl => self.sasl_ssl,
            Listener::Ssl => self.ssl,
        }
    }

    /// Where it listens itself.
    pub(super) fn binds(self, listener: Listener) -> u16 {
        match listener {
            Listener::Way(number) => self.ways.get(number).map_or(0, |way| way.own),
            _ => self.of(listener),
        }
    }
}

pub(super) struct Node {
    pub(super) ports: Ports,
    options: KafkaOptions,
    folder: PathBuf,
    /// Absent: not running.
    process: Option<Child>,
}

impl Node {
    /// Writes the settings of node `id` of the cluster, and formats its folder.
    pub(super) fn make(
        id: usize,
        cluster: &[Ports],
        options: KafkaOptions,
        tls: Option<&Tls>,
        home: &Path,
    ) -> Result<Self> {
        let folder = home.join(format!("node-{id}"));
        fs::create_dir(&folder)?;
        let ports = *id.checked_sub(1).and_then(|at| cluster.get(at)).context("nodes are counted from 1")?;
        let settings = folder.join("server.properties");
        fs::write(&settings, properties(id, cluster, options, tls, &folder.join("data"))?)?;
        let mut format = java(options.version, "64m")?;
        format
            .args(["kafka.tools.StorageTool", "format", "--cluster-id", CLUSTER, "--config"])
            .arg(&settings);
        if tls.is_some() {
            for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
                format.args(["--add-scram", &format!("{mechanism}=[name={USER},password={PASSWORD}]")]);
            }
        }
        let output = format.output().context("starting java: a JDK of 17 or later is needed")?;
        let said = [output.stdout, output.stderr].concat();
        ensure!(output.status.success(), "formatting node {id}:\n{}", String::from_utf8_lossy(&said));
        Ok(Self { ports, options, folder, process: None })
    }

    pub(super) fn start(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "it still runs");
        let java = java(self.options.version, "400m")?;
        let log = File::options().create(true).append(true).open(self.folder.join("log"))?;
        // The ID is on record before there is anything to kill. A group of its own: Ctrl-C is the keeper's business.
        let process = Command::new("sh")
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.folder.join("pid"))
            .arg(java.get_program())
            .args(java.get_args())
            .arg("kafka.Kafka")
            .arg(self.folder.join("server.properties"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("starting Kafka")?;
        self.process = Some(process);
        Ok(())
    }

    /// Whether it runs and takes connections; an error if it ended by itself.
    pub(super) fn listens(&mut self) -> Result<bool> {
        let Some(process) = &mut self.process else { return Ok(false) };
        if let Some(status) = process.try_wait()? {
            anyhow::bail!("it ended by itself: {status}");
        }
        Ok(TcpStream::connect((self.options.host, self.ports.plaintext)).is_ok())
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// SIGTERM: it hands its leaderships over, and ends.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let process = self.process.as_mut().context("it does not run")?;
        wait_until("the node's end", STOP_LIMIT, || Ok(process.try_wait()?))?;
        self.ended()
    }

    pub(super) fn kill9(&mut self) -> Result<()> {
        let process = self.process.as_mut().context("it does not run")?;
        process.kill()?;
        process.wait()?;
        self.ended()
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process.as_ref().context("it does not run")?;
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).context("no process ID")?;
        Ok(kill_process(pid, signal)?)
    }

    fn ended(&mut self) -> Result<()> {
        self.process = None;
        fs::remove_file(self.folder.join("pid"))?;
        Ok(())
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

/// A small broker and controller in one, quick to notice that a peer is gone.
fn properties(
    id: usize,
    cluster: &[Ports],
    options: KafkaOptions,
    tls: Option<&Tls>,
    data: &Path,
) -> Result<String> {
    let host = options.host;
    let own = id.checked_sub(1).and_then(|at| cluster.get(at)).context("nodes are counted from 1")?;
    let copies = cluster.len().min(3);
    let voters: Vec<String> =
        (1..).zip(cluster).map(|(id, ports)| format!("{id}@{host}:{}", ports.controller)).collect();
    let mut open = match tls {
        Some(_) => vec![Listener::Plaintext, Listener::SaslSsl, Listener::Ssl],
        None => vec![Listener::Plaintext],
    };
    open.extend((0..WAYS).map(Listener::Way));
    let at = |port: &dyn Fn(Listener) -> u16| {
        let urls = open.iter().map(|listener| format!("{}://{host}:{}", listener.name(), port(*listener)));
        urls.collect::<Vec<_>>().join(",")
    };
    let advertised = at(&|listener| own.of(listener));
    let listeners = at(&|listener| own.binds(listener));
    let ways: Vec<String> =
        (0..WAYS).map(|number| format!("{}:PLAINTEXT", Listener::Way(number).name())).collect();
    let mut text = format!(
        "process.roles=broker,controller\n\
         node.id={id}\n\
         controller.quorum.voters={}\n\
         controller.listener.names=CONTROLLER\n\
         listeners=CONTROLLER://{host}:{},{}\n\
         advertised.listeners={}\n\
         listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,{}\n\
         inter.broker.listener.name=PLAINTEXT\n\
         log.dirs={}\n\
         offsets.topic.replication.factor={copies}\n\
         offsets.topic.num.partitions=1\n\
         transaction.state.log.replication.factor={copies}\n\
         transaction.state.log.min.isr=1\n\
         transaction.state.log.num.partitions=1\n",
        voters.join(","),
        own.controller,
        listeners,
        advertised,
        ways.join(","),
        data.display(),
    );
    text.push_str(
        "auto.create.topics.enable=true\n\
         group.initial.rebalance.delay.ms=0\n\
         broker.heartbeat.interval.ms=500\n\
         broker.session.timeout.ms=3000\n\
         controller.quorum.election.timeout.ms=500\n\
         controller.quorum.election.backoff.max.ms=500\n\
         controller.quorum.fetch.timeout.ms=1500\n\
         controller.quorum.request.timeout.ms=1000\n\
         replica.lag.time.max.ms=3000\n\
         log.retention.check.interval.ms=1000\n\
         log.segment.delete.delay.ms=1000\n\
         log.cleaner.backoff.ms=1000\n\
         log.cleaner.dedupe.buffer.size=8388608\n\
         num.network.threads=2\n\
         num.io.threads=4\n",
    );
    if let Some(tls) = tls {
        write!(
            text,
            "ssl.keystore.type=PEM\n\
             ssl.keystore.location={}\n\
             ssl.truststore.type=PEM\n\
             ssl.truststore.location={}\n\
             listener.name.ssl.ssl.client.auth=required\n\
             listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
             listener.name.sasl_ssl.plain.sasl.jaas.config=\
             org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";\n",
            tls.server.display(),
            tls.ca.display(),
        )?;
        for mechanism in ["scram-sha-256", "scram-sha-512"] {
            writeln!(
                text,
                "listener.name.sasl_ssl.{mechanism}.sasl.jaas.config=\
                 org.apache.kafka.common.security.scram.ScramLoginModule required;"
            )?;
        }
    }
    Ok(text)
}
