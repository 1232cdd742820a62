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
use crate::{
    broker::{before, built},
    clients::root,
};

/// CAs that this machine trusts; what a story meets is signed by its own.
const CAS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The tag of what the commit before made.
const BEFORE: &str = "before";
const IMAGES: [Image; 3] = [
    Image { target: "broker", tag: "e2e" },
    Image { target: "operator", tag: "e2e" },
    Image { target: "broker", tag: BEFORE },
];

/// By the Dockerfile's target, and its own tag.
struct Image {
    target: &'static str,
    tag: &'static str,
}

/// Names of images as a pod spec has them.
#[derive(Clone, Debug)]
pub struct Images {
    pub broker: String,
    pub operator: String,
    /// The broker of the commit before.
    pub before: String,
}

impl Images {
    /// Those that are named by `MQTT_BROKER_IMAGE`, `MQTT_OPERATOR_IMAGE` and `MQTT_BROKER_IMAGE_BEFORE`, and are in a registry
    /// that pods pull from.
    pub(super) fn named() -> Result<Self> {
        let of = |name| std::env::var(name).with_context(|| format!("{name} is needed beside KUBECONFIG"));
        Ok(Self {
            broker: of("MQTT_BROKER_IMAGE")?,
            operator: of("MQTT_OPERATOR_IMAGE")?,
            before: of("MQTT_BROKER_IMAGE_BEFORE")?,
        })
    }

    /// Builds them.
    pub(super) fn build() -> Result<Built> {
        let folder = tempfile::tempdir()?;
        let home = folder.path();
        let archives = thread::scope(|scope| {
            let built = IMAGES.map(|image| scope.spawn(move || image.build(home)));
            let built =
                built.map(|image| image.join().unwrap_or_else(|_| anyhow::bail!("building panicked")));
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
        let [broker, operator, before] = IMAGES.map(|image| image.name());
        Ok(Images { broker, operator, before })
    }
}

impl Image {
    fn name(&self) -> String {
        format!("mqtt.test/mqtt-{}:{}", self.target, self.tag)
    }

    /// Builds it from a folder of its own in this one.
    fn build(&self, home: &Path) -> Result<PathBuf> {
        let folder = home.join(self.target).join(self.tag);
        fs::create_dir_all(&folder)?;
        let binary = format!("mqtt-{}", self.target);
        let built = if self.tag == BEFORE { before()? } else { built(&binary)? };
        // Without symbols, a fifth of the size.
        super::run(Command::new("strip").arg("-o").arg(folder.join(binary)).arg(built), "")?;
        let cas = folder.join("ca-certificates.crt");
        if Path::new(CAS).exists() {
            fs::copy(CAS, cas).map(drop)?
        } else {
            fs::write(cas, "")?
        }
        let archive = folder.join("image.tar");
        let mut image = Command::new(root().join("e2e/kubernetes/image"));
        image.arg(super::tools()?).arg(&folder).arg("--file").arg(root().join("Dockerfile"));
        image.args(["--build-arg", "BASE=localhost/debian", "--target", self.target, "--tag"]);
        image.arg(format!("docker-archive:{}:{}", archive.display(), self.name()));
        super::run(&mut image, "").with_context(|| format!("building the image {}", self.name()))?;
        Ok(archive)
    }
}
