//! The JSON schemas in crds/schemas, as kubeconform applies them to manifests before these are committed.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use mqtt_e2e::clients::root;

/// Exit and words of kubeconform on a manifest. It knows our schemas alone, and passes over Secrets.
fn kubeconform(manifest: &str) -> Result<(bool, String)> {
    let schemas = root().join("crds/schemas/{{ .ResourceKind }}{{ .KindSuffix }}.json");
    let mut command = Command::new(root().join(".tools/bin/kubeconform"));
    command.args(["-strict", "-skip", "Secret", "-schema-location"]).arg(schemas).arg("-");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("starting kubeconform; `make tools` builds it")?;
    child.stdin.take().context("no input")?.write_all(manifest.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

fn example(name: &str) -> Result<String> {
    fs::read_to_string(root().join("examples").join(name)).context(name.to_owned())
}

#[test]
fn the_examples_pass() -> Result<()> {
    for entry in fs::read_dir(root().join("examples"))?.collect::<Result<Vec<_>, _>>()? {
        let (passes, said) = kubeconform(&fs::read_to_string(entry.path())?)?;
        ensure!(passes, "{}: {said}", entry.path().display());
    }
    Ok(())
}

#[test]
fn what_an_api_server_would_drop_or_refuse_is_found_before() -> Result<()> {
    // File, what stands in it, what it becomes, and what names the mistake.
    let cases = [
        ("instance.yaml", "packetSize:", "packetsize:", "packetsize"),
        ("instance.yaml", "spec:", "specs:", "specs"),
        ("instance.yaml", "replicas: 3", "replicas: three", "/spec/replicas"),
        ("instance.yaml", "characters: Any", "characters: Some", "/spec/limits/characters"),
        ("instance.yaml", "packetSize: 128Ki", "packetSize: 128 KB", "/spec/limits/packetSize"),
        ("topics.yaml", "partitions: 3", "partition: 3", "partition"),
        ("topics.yaml", "type: PartitionOrdered", "type: Ordered", "/spec/type"),
        ("topics.yaml", "retention: {age: 168h}", "retention: {time: 168h}", "time"),
        ("users.yaml", "clientIds: [", "clientIDs: [", "clientIDs"),
        ("grants.yaml", "action: pubsub", "action: both", "/spec/rules"),
        ("grants.yaml", "userRef:", "user:", "user"),
        ("grants.yaml", "kind: TopicGrant", "kind: TopicGrants", "TopicGrants"),
    ];
    for (file, given, changed, named) in cases {
        let text = example(file)?;
        ensure!(text.contains(given), "{file} has no {given:?}");
        let (passes, said) = kubeconform(&text.replace(given, changed))?;
        ensure!(!passes, "{file} passes with {changed:?}");
        ensure!(said.contains(named), "{file} with {changed:?}: {said}");
    }
    Ok(())
}

#[test]
fn a_size_may_be_a_number_or_a_text() -> Result<()> {
    let (passes, said) = kubeconform(&example("instance.yaml")?.replace("128Ki", "131072"))?;
    ensure!(passes, "{said}");
    Ok(())
}
