//! What the README shows works: its manifests load, its commands run, its make targets exist.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use mqtt_broker_api::{acl::AclDocument, shards};
use mqtt_e2e::{
    Authority, Broker, Dialogue, Login, Manifests, Tls, TlsVersion, Version,
    broker::{binary, built},
    clients::root,
    tls::Pair,
};
use serde_json::json;

/// The README's fenced blocks of one language.
fn blocks(language: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(root().join("README.md"))?;
    let mut found = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines() {
        match &mut open {
            None if line == format!("```{language}") => open = Some(String::new()),
            Some(_) if line == "```" => found.extend(open.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
            None => {}
        }
    }
    ensure!(open.is_none(), "a block is not closed");
    ensure!(!found.is_empty(), "no {language} block");
    Ok(found)
}

/// Whether a YAML block holds manifests; else it is a config.
fn is_manifest(block: &str) -> bool {
    block.starts_with("apiVersion:")
}

/// With the certificate that they name.
fn manifests_of_the_readme(pair: &Pair) -> Result<Manifests> {
    let mut manifests = Manifests::new()
        .without("MqttInstance", "meters")
        .secret_of("meters-tls", json!({"tls.crt": pair.certificate, "tls.key": pair.key}));
    for (number, block) in blocks("yaml")?.iter().filter(|block| is_manifest(block)).enumerate() {
        manifests = manifests.file(&format!("block-{number}.yaml"), block);
    }
    Ok(manifests)
}

/// A broker on the README's manifests.
fn start() -> Result<Broker> {
    let flags = ["--mqtts", "--ws", "--wss"].map(|flag| [flag, "127.0.0.1:0"]).concat();
    Broker::start_with(&manifests_of_the_readme(&Authority::new("site")?.issue("meters")?)?, &flags)
}

#[test]
fn the_manifests_in_the_readme_make_a_service_together() -> Result<()> {
    let broker = start()?;
    ensure!(broker.mqtts.is_some(), "there is no TLS listener");
    let meter = Login::new(Version::V5, "meter-1").user("fleet", "change-me");
    let (mut meter, _) = Dialogue::connect(broker.mqtt, &meter)?;
    ensure!(meter.subscribe("commands/meter-1", 1)? == 1);
    ensure!(meter.subscribe("commands/meter-2", 1)? == 0x87);
    let (mut guest, _) = Dialogue::connect(broker.mqtt, &Login::new(Version::V3, "visitor"))?;
    ensure!(guest.subscribe("notices/today", 0)? == 0);
    Ok(())
}

#[test]
fn the_config_in_the_readme_is_what_a_pod_can_run() -> Result<()> {
    let all = blocks("yaml")?;
    let configs: Vec<&String> = all.iter().filter(|block| !is_manifest(block)).collect();
    let [config] = configs.as_slice() else { bail!("{} configs", configs.len()) };
    let mounts = tempfile::tempdir()?;
    let path = |name: &str| mounts.path().join(name).display().to_string();
    for folder in ["acl", "tls"] {
        fs::create_dir(path(folder))?;
    }
    let authority = Authority::new("site")?;
    let Pair { certificate, key } = authority.issue("meters")?;
    fs::write(path("tls/tls.crt"), certificate)?;
    fs::write(path("tls/tls.key"), key)?;
    for shard in shards::split(&AclDocument::default(), shards::SHARD_BYTES)? {
        fs::write(path("acl/0.json"), serde_json::to_string(&shard)?)?;
    }
    // On this machine's own folders and free ports.
    let mut text = config.replace("/etc/mqtt", &path("")).replace("/var/lib/mqtt", &path("data"));
    for port in ["1883", "8085", "9090"] {
        ensure!(text.contains(&format!("\"[::]:{port}\"")), "no listener on {port}");
        text = text.replace(&format!("[::]:{port}"), "127.0.0.1:0");
    }
    fs::write(path("node.yaml"), text)?;
    let mut broker = Broker::run(tempfile::tempdir()?, &mounts.path().join("node.yaml"))?;
    broker.ready()?;
    Tls::connect(broker.mqtts.context("no TLS listener")?, &authority.client(TlsVersion::V13))?;
    Ok(())
}

#[test]
fn the_examples_start_a_broker() -> Result<()> {
    let mut manifests = Manifests::new().without("MqttInstance", "meters");
    for entry in fs::read_dir(root().join("examples"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        manifests = manifests.file(&name, &fs::read_to_string(&path)?);
    }
    Broker::start(&manifests).map(drop)
}

/// What needs a cluster is only looked at here; `kubernetes/first_use.rs` runs it on one.
#[test]
fn the_commands_for_a_cluster_name_what_is_there() -> Result<()> {
    let mut looked_at = 0;
    for line in blocks("shell")?.iter().flat_map(|block| block.lines()) {
        let words: Vec<&str> = line.split_whitespace().map(|word| word.trim_matches('\'')).collect();
        let ours = ["charts/", "crds/", "examples"];
        for word in words.iter().filter(|word| ours.iter().any(|folder| word.starts_with(folder))) {
            // As kubeconform names the schema of a kind.
            let path = word.replace("{{.ResourceKind}}{{.KindSuffix}}", "mqttuser-mqtt-v1alpha1");
            ensure!(root().join(&path).exists(), "`{line}`: there is no {path}");
            looked_at += 1;
        }
        if let ["helm", "install", arguments @ ..] = words.as_slice() {
            let mut helm = Command::new(root().join(".tools/kubernetes/bin/helm"));
            helm.args(["template", "--kube-version", "1.34.0"]).args(arguments).current_dir(root());
            let output = helm.output()?;
            ensure!(output.status.success(), "`{line}`: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    ensure!(looked_at >= 3, "only {looked_at} paths");
    Ok(())
}

#[test]
fn the_commands_in_the_readme_run() -> Result<()> {
    let broker = start()?;
    let mut ran = 0;
    for line in blocks("sh")?.iter().flat_map(|block| block.lines()) {
        run(&broker, line).with_context(|| format!("`{line}`"))?;
        ran += 1;
    }
    ensure!(ran >= 5, "only {ran} commands");
    Ok(())
}

/// Runs one command line, with the broker's own addresses in place of those it names. What would build or test
/// everything again, or serve for ever, is only looked at.
fn run(broker: &Broker, line: &str) -> Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let status = match words.as_slice() {
        ["make", target] => {
            Command::new("make").args(["-n", target]).current_dir(root()).stdout(Stdio::null()).status()?
        }
        ["cargo", "build", "--release", "-p", name] => {
            let folder = name.strip_prefix("mqtt-").context("another's crate")?;
            let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml"))?;
            ensure!(manifest.contains(&format!("name = \"{name}\"")), "no crate {name}");
            return Ok(());
        }
        ["target/release/mqtt-broker", "standalone", flags @ ..] => {
            return knows("standalone", flags);
        }
        ["mqtt-broker", "run", flags @ ..] => {
            return knows("run", flags);
        }
        ["mqtt-operator", "render", arguments @ ..] => {
            let mut command = Command::new(built("mqtt-operator")?);
            command.arg("render").args(arguments).current_dir(root()).stdout(Stdio::null()).status()?
        }
        ["mqtt-broker", ..] => {
            let folder: PathBuf = binary()?.parent().context("no folder")?.to_owned();
            let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
            let line = line.replace("127.0.0.1:9090", &broker.admin.to_string());
            Command::new("sh").args(["-c", &line]).env("PATH", path).stdout(Stdio::null()).status()?
        }
        _ => bail!("no way to run it is known here"),
    };
    ensure!(status.success(), "ended with {status}");
    Ok(())
}

/// Whether a command that serves for ever takes these flags.
fn knows(command: &str, words: &[&str]) -> Result<()> {
    let help = Command::new(binary()?).args([command, "--help"]).output()?;
    let help = String::from_utf8(help.stdout)?;
    for flag in words.iter().filter(|word| word.starts_with("--")) {
        ensure!(help.contains(flag), "no flag {flag} in:\n{help}");
    }
    Ok(())
}
