//! The tests' own Kubernetes: one node in namespaces of its own, brought up by `e2e/kubernetes/cluster`.
//!
//! It ends with its [`Node`], or with the test process, whatever way that ends. The thread that calls
//! [`Node::enter`] is on the node's network from then on, and so is every thread and program that it starts; the rest
//! of the machine keeps its own.

use std::{
    fs::{self, File},
    io::Read as _,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{self, Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    process::{Pid, Signal, geteuid, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{clients::root, wait_until};

const START_LIMIT: Duration = Duration::from_secs(120);
const NETWORK: &str = "ns/net";

/// A process of the control plane, or of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Etcd,
    ApiServer,
    ControllerManager,
    Kubelet,
}

impl Part {
    /// As `/proc/PID/comm` has it, which is cut at 15 bytes.
    fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller",
            Self::Kubelet => "kubelet",
        }
    }
}

pub(super) struct Node {
    folder: PathBuf,
    keeper: Child,
    /// Its end is the node's.
    end: Option<ChildStdin>,
}

impl Node {
    /// Starts it; [`Self::kubeconfig`] is there when this returns, and the API server soon.
    pub(super) fn start() -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "a Kubernetes of the tests' own needs root; or name another with KUBECONFIG"
        );
        let tools = super::tools()?;
        let name = format!("mqtt-e2e-{}", process::id());
        let folder = std::env::temp_dir().join(format!("mqtt-e2e-kubernetes-{}", process::id()));
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let log = File::create(folder.join("log"))?;
        // A group of its own: Ctrl-C leaves it the time to clean up.
        let mut keeper = Command::new("unshare")
            .args(["--net", "--mount"])
            .arg(root().join("e2e/kubernetes/cluster"))
            .args([&tools, &folder])
            .arg(name)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("starting unshare")?;
        let end = keeper.stdin.take();
        let mut node = Self { folder, keeper, end };
        let started = wait_until("the node's start", START_LIMIT, || {
            if let Some(status) = node.keeper.try_wait()? {
                return Ok(Some(Err(anyhow::anyhow!("the node ended at its start: {status}"))));
            }
            Ok(node.kubeconfig().exists().then_some(Ok(())))
        });
        match started.and_then(|started| started) {
            Ok(()) => Ok(node),
            Err(error) => Err(error.context(node.logs())),
        }
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// What the API server has noted of those who changed something, a JSON object a line.
    pub(super) fn audit(&self) -> Result<String> {
        fs::read_to_string(self.folder.join("audit.log")).context("reading the API server's audit log")
    }

    /// Puts the calling thread on the node's network.
    pub(super) fn enter(&self) -> Result<()> {
        let network = File::open(self.network()).context("opening the node's network")?;
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
            .context("entering the node's network")
    }

    /// Gives the container runtime the images of a docker-archive.
    pub(super) fn load(&self, archive: &Path) -> Result<()> {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.folder.join("containerd.sock"));
        ctr.args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
        super::run(&mut ctr, "").map(drop)
    }

    /// Sends a signal to a part. One that ends is started again at once.
    pub(super) fn signal(&self, part: Part, signal: Signal) -> Result<()> {
        let network = fs::read_link(self.network())?;
        let ours = |process: &Path| {
            let named = fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.trim() == part.name());
            named && fs::read_link(process.join(NETWORK)).is_ok_and(|link| link == network)
        };
        let Some(process) = processes()?.into_iter().find(|process| ours(process)) else {
            bail!("{} does not run", part.name())
        };
        send(&process, signal).with_context(|| format!("signalling {}", part.name()))
    }

    /// Sends a signal to all processes of a pod; if its container is about to start again, to those of the new one.
    pub(super) fn signal_pod(&self, uid: &str, signal: Signal) -> Result<()> {
        let mark = format!("/pod{uid}/");
        let ours = |process: &PathBuf| {
            let comm = fs::read_to_string(process.join("comm")).unwrap_or_default();
            let cgroups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
            comm.trim() != "pause" && cgroups.contains(&mark)
        };
        let found = wait_until(&format!("a process of pod {uid}"), START_LIMIT, || {
            let found: Vec<PathBuf> = processes()?.into_iter().filter(ours).collect();
            Ok((!found.is_empty()).then_some(found))
        })?;
        found.iter().try_for_each(|process| send(process, signal))
    }

    /// The end of what each part has logged.
    pub(super) fn logs(&self) -> String {
        let mut logs = vec![self.folder.join("log")];
        let parts = fs::read_dir(self.folder.join("logs")).into_iter().flatten().flatten();
        logs.extend(parts.map(|entry| entry.path()));
        logs.iter().map(|log| format!("{}:\n{}\n", log.display(), end_of(log))).collect()
    }

    fn network(&self) -> PathBuf {
        Path::new("/proc").join(self.keeper.id().to_string()).join(NETWORK)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.end.take());
        let _ = self.keeper.wait();
    }
}

/// The folders in `/proc` of all processes.
fn processes() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir("/proc")?.flatten();
    let numbered = |name: &std::ffi::OsStr| name.to_string_lossy().parse::<u32>().is_ok();
    Ok(entries.filter(|entry| numbered(&entry.file_name())).map(|entry| entry.path()).collect())
}

fn send(process: &Path, signal: Signal) -> Result<()> {
    let id = process.file_name().and_then(|name| name.to_string_lossy().parse().ok());
    let id = id.and_then(Pid::from_raw).context("no process ID")?;
    Ok(kill_process(id, signal)?)
}

fn end_of(log: &Path) -> String {
    let mut text = Vec::new();
    let _ = File::open(log).and_then(|mut log| log.read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(8)..).unwrap_or_default().join("\n")
}
