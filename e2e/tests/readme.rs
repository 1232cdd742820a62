//! What the README shows works: its manifests load, its commands run, its make targets exist.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use mqtt_e2e::{Broker, Dialogue, Login, Manifests, Version, broker::binary, clients::root};

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

fn manifests_of_the_readme() -> Result<Manifests> {
    let mut manifests = Manifests::new().without("MqttInstance", "meters");
    for (number, block) in blocks("yaml")?.iter().enumerate() {
        manifests = manifests.file(&format!("block-{number}.yaml"), block);
    }
    Ok(manifests)
}

#[test]
fn the_manifests_in_the_readme_make_a_service_together() -> Result<()> {
    let broker = Broker::start(&manifests_of_the_readme()?)?;
    let meter = Login::new(Version::V5, "meter-1").user("fleet", "change-me");
    let (mut meter, _) = Dialogue::connect(broker.mqtt, &meter)?;
    ensure!(meter.subscribe("commands/meter-1", 1)? == 1);
    ensure!(meter.subscribe("commands/meter-2", 1)? == 0x87);
    let (mut guest, _) = Dialogue::connect(broker.mqtt, &Login::new(Version::V3, "visitor"))?;
    ensure!(guest.subscribe("notices/today", 0)? == 0);
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

#[test]
fn the_commands_in_the_readme_run() -> Result<()> {
    let broker = Broker::start(&manifests_of_the_readme()?)?;
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
            let manifest = root().join("broker/Cargo.toml");
            ensure!(fs::read_to_string(manifest)?.contains(&format!("name = \"{name}\"")), "no crate {name}");
            return Ok(());
        }
        ["target/release/mqtt-broker", "standalone", flags @ ..] => {
            let help = Command::new(binary()?).args(["standalone", "--help"]).output()?;
            let help = String::from_utf8(help.stdout)?;
            for flag in flags.iter().filter(|word| word.starts_with("--")) {
                ensure!(help.contains(flag), "no flag {flag} in:\n{help}");
            }
            return Ok(());
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
