//! The images that stories run: of the binaries that cargo built beside the test, by the Dockerfile that a user builds.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::node::Node;
use crate::{broker::built, clients::root};

/// CAs that this machine trusts; what a story meets is signed by its own.
const CAS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Names of images as a pod spec has them.
#[derive(Clone, Debug)]
pub struct Images {
    pub broker: String,
    pub operator: String,
}

impl Images {
    /// Those that are named by `MQTT_BROKER_IMAGE` and `MQTT_OPERATOR_IMAGE`, and are in a registry that pods pull from.
    pub(super) fn named() -> Result<Self> {
        let of = |name| std::env::var(name).with_context(|| format!("{name} is needed beside KUBECONFIG"));
        Ok(Self { broker: of("MQTT_BROKER_IMAGE")?, operator: of("MQTT_OPERATOR_IMAGE")? })
    }

    /// Builds both.
    pub(super) fn build() -> Result<Built> {
        let folder = tempfile::tempdir()?;
        // Without symbols, a fifth of the size.
        for binary in ["mqtt-broker", "mqtt-operator"] {
            super::run(
                Command::new("strip").arg("-o").arg(folder.path().join(binary)).arg(built(binary)?),
                "",
            )?;
        }
        let cas = folder.path().join("ca-certificates.crt");
        if Path::new(CAS).exists() {
            fs::copy(CAS, cas).map(drop)?
        } else {
            fs::write(cas, "")?
        }
        let archives = thread::scope(|scope| {
            let targets =
                ["broker", "operator"].map(|target| scope.spawn(|| build_one(folder.path(), target)));
            let built =
                targets.map(|target| target.join().unwrap_or_else(|_| anyhow::bail!("building panicked")));
            built.into_iter().collect::<Result<Vec<_>>>()
        })?;
        Ok(Built { archives, _folder: folder })
    }
}

/// Images in files, until this goes.
pub(super) struct Built {
    archives: Vec<PathBuf>,
    _folder: TempDir,
}

impl Built {
    pub(super) fn load_into(&self, node: &Node) -> Result<Images> {
        node.load(&super::tools()?.join("pause.tar"))?;
        self.archives.iter().try_for_each(|archive| node.load(archive))?;
        Ok(Images { broker: name("broker"), operator: name("operator") })
    }
}

fn name(target: &str) -> String {
    format!("mqtt.test/mqtt-{target}:e2e")
}

fn build_one(folder: &Path, target: &str) -> Result<PathBuf> {
    let archive = folder.join(format!("{target}.tar"));
    let mut image = Command::new(root().join("e2e/kubernetes/image"));
    image.arg(super::tools()?).arg(folder).arg("--file").arg(root().join("Dockerfile"));
    image.args(["--build-arg", "BASE=localhost/debian", "--target", target, "--tag"]);
    image.arg(format!("docker-archive:{}:{}", archive.display(), name(target)));
    super::run(&mut image, "").with_context(|| format!("building the image of the {target}"))?;
    Ok(archive)
}
