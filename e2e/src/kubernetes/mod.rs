//! A real Kubernetes for the stories, and what a user does there with kubectl and Helm.
//!
//! A test process shares one [`Cluster`], started when the first story asks for it: a node of its own ([`node`]), or
//! the one that `KUBECONFIG` names, with `MQTT_BROKER_IMAGE`, `MQTT_BROKER_IMAGE_BEFORE` and `MQTT_OPERATOR_IMAGE` to pull from a registry and
//! `KAFKA` as bootstrap servers that both its pods and the tests reach. Then addresses of its Services must be reachable
//! from here, and stories take turns on that Kafka: RUST_TEST_THREADS=1.

mod audit;
mod crowd;
mod images;
mod kafka;
mod namespace;
mod node;
mod operator;

use std::{
    ffi::OsString,
    io::{Seek as _, Write as _},
    net::Ipv4Addr,
    path::PathBuf,
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use rustix::process::Signal;

use self::node::Node;
pub use self::{
    audit::Request,
    crowd::Crowd,
    images::Images,
    kafka::{Consumer, PodKafka},
    namespace::Namespace,
    node::Part,
    operator::{Operator, Scoped},
};
use crate::{clients::root, wait_until};

/// The node's own address, which its pods reach.
const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 1);

/// How long the control plane takes to come up, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(120);

/// More than any command takes that does not hang.
const COMMAND_LIMIT: &str = "180";

/// Stories share the cluster, but for one that harms all of it.
static CALM: RwLock<()> = RwLock::new(());

/// Held as long as a story goes on.
enum Calm {
    Shared(#[expect(dead_code, reason = "held, not read")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held, not read")] RwLockWriteGuard<'static, ()>),
}

pub struct Cluster {
    kubeconfig: OsString,
    images: Images,
    /// Absent: somebody else's.
    node: Option<Node>,
}

impl Cluster {
    /// This process's cluster. The calling thread is on its network from now on, and so are the threads and programs
    /// that it starts.
    pub fn shared() -> Result<&'static Self> {
        static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
        let start = || Self::start().map_err(|error| format!("{error:#}"));
        let cluster = CLUSTER.get_or_init(start).as_ref().map_err(|error| anyhow!("{error}"))?;
        if let Some(node) = &cluster.node {
            node.enter()?;
        }
        Ok(cluster)
    }

    fn start() -> Result<Self> {
        if let Some(kubeconfig) = std::env::var_os("KUBECONFIG") {
            return Ok(Self { kubeconfig, images: Images::named()?, node: None });
        }
        let node = Node::start()?;
        let images = Images::build().and_then(|built| built.load_into(&node));
        let images = images.with_context(|| node.logs())?;
        let kubeconfig = node.kubeconfig().into_os_string();
        let cluster = Self { kubeconfig, images, node: Some(node) };
        cluster.node()?.enter()?;
        cluster.wait_until_up().with_context(|| cluster.node.as_ref().map(Node::logs).unwrap_or_default())?;
        Ok(cluster)
    }

    /// Waits until the API server serves and every node takes pods.
    pub fn wait_until_up(&self) -> Result<()> {
        wait_until("the cluster's nodes", START_LIMIT, || {
            self.kubectl(&["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s"]).map(Some)
        })
        .map(drop)
    }

    /// A new namespace for one story.
    pub fn namespace(&'static self) -> Result<Namespace> {
        Namespace::make(self, Some(Calm::Shared(CALM.read_recursive())))
    }

    /// The same for a story that harms the whole cluster: no other namespace is in use meanwhile.
    pub fn namespace_alone(&'static self) -> Result<Namespace> {
        Namespace::make(self, Some(Calm::Alone(CALM.write())))
    }

    pub fn images(&self) -> &Images {
        &self.images
    }

    /// A Kafka for the pods of one story: a new one, or what is named by `KAFKA`.
    pub fn kafka(&self) -> Result<PodKafka> {
        match self.node {
            Some(_) => PodKafka::start(NODE_ADDRESS),
            None => PodKafka::named(),
        }
    }

    /// `kubectl ARGUMENTS`; what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// The same with text on its standard input.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        run(self.command("kubectl")?.args(arguments), input)
    }

    /// `helm ARGUMENTS`; what it prints.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        run(self.command("helm")?.args(arguments), "")
    }

    /// Halts a part: its connections stay open, and it says nothing. [`Self::thaw`] lets it go on.
    pub fn freeze(&self, part: Part) -> Result<()> {
        self.node()?.signal(part, Signal::STOP)
    }

    pub fn thaw(&self, part: Part) -> Result<()> {
        self.node()?.signal(part, Signal::CONT)
    }

    /// SIGKILL. The part is started again at once; [`Self::wait_until_up`] says when it serves.
    pub fn kill9(&self, part: Part) -> Result<()> {
        self.node()?.signal(part, Signal::KILL)
    }

    /// Sends a signal to the processes of a pod, as nothing inside the cluster could.
    pub fn signal_pod(&self, namespace: &str, pod: &str, signal: Signal) -> Result<()> {
        let uid = self.kubectl(&[
            "--namespace",
            namespace,
            "get",
            "pod",
            pod,
            "--output",
            "jsonpath={.metadata.uid}",
        ])?;
        self.node()?.signal_pod(&uid, signal)
    }

    fn node(&self) -> Result<&Node> {
        self.node.as_ref().context("this can't be done to a cluster of somebody else: run without KUBECONFIG")
    }

    /// Whether names of Services are known here without further ado, as in a pod.
    fn is_ours(&self) -> bool {
        self.node.is_some()
    }

    /// Lets what a command runs find kubectl, Helm and this cluster.
    fn on_its_path<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command> {
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", tools()?.join("bin").display());
        Ok(command.env("PATH", path).env("KUBECONFIG", &self.kubeconfig))
    }

    fn command(&self, program: &str) -> Result<Command> {
        let program = tools()?.join("bin").join(program);
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", COMMAND_LIMIT]).arg(program).env("KUBECONFIG", &self.kubeconfig);
        Ok(command)
    }
}

/// What `make tools` made of `e2e/kubernetes`.
fn tools() -> Result<PathBuf> {
    let tools = root().join(".tools/kubernetes");
    ensure!(tools.join("made").exists(), "no Kubernetes in {}: run `make tools`", tools.display());
    Ok(tools)
}

/// Runs a command; what it prints on standard output, or an error with all that it said.
fn run(command: &mut Command, input: &str) -> Result<String> {
    // A file, because a pipe would have to be written while the others are read.
    let mut stdin = tempfile::tempfile()?;
    stdin.write_all(input.as_bytes())?;
    stdin.rewind()?;
    let program = PathBuf::from(command.get_program()).display().to_string();
    let output = command.stdin(Stdio::from(stdin)).output().with_context(|| format!("starting {program}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if !output.status.success() {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let said = [text(&output.stdout), text(&output.stderr)].join("\n");
        anyhow::bail!("{program} {}: {}: {}", words.join(" "), output.status, said.trim());
    }
    Ok(text(&output.stdout))
}
