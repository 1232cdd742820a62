//! The folder of a cluster, and its keeper: a shell that outlives the test process by a moment.
//!
//! When the test process ends, whatever way, the keeper's standard input ends; then it kills every process whose ID
//! stands in `NODE/pid` and removes the folder. It has a process group of its own, so that Ctrl-C leaves it its work.

use std::{
    fs,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context, Result};

const KEEPER: &str =
    r#"read -r _; cat "$1"/*/pid 2>/dev/null | xargs -r kill -KILL 2>/dev/null; rm -rf "$1""#;

pub(super) struct Home {
    path: PathBuf,
    keeper: Child,
    end: Option<ChildStdin>,
}

impl Home {
    pub(super) fn new() -> Result<Self> {
        let path = tempfile::Builder::new().prefix("kafka-").tempdir()?.keep();
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("starting sh")?;
        let end = keeper.stdin.take();
        Ok(Self { path, keeper, end })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A file in the folder.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(mut end) = self.end.take() {
            let _ = end.write_all(b"\n");
        }
        let _ = self.keeper.wait();
    }
}
