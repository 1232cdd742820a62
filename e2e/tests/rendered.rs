//! What `mqtt-operator render` prints, mounted as a kubelet would, is what `mqtt-broker run` serves from.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use mqtt_broker_api::yaml::documents;
use mqtt_e2e::{
    Authority, Broker, Login, Manifests, Tls, TlsVersion, Version, Volume, broker::built, tls::Pair,
};
use serde_json::{Value, json};

/// The objects that the operator makes of the manifests.
fn rendered(manifests: &Manifests) -> Result<Vec<Value>> {
    let folder = tempfile::tempdir()?;
    manifests.write_to(folder.path())?;
    let mut command = Command::new(built("mqtt-operator")?);
    command.args(["render", "--manifests"]).arg(folder.path()).stdin(Stdio::null());
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = documents(&String::from_utf8(output.stdout)?);
    let read = read.map_err(|error| anyhow::anyhow!("line {:?}: {}", error.line, error.message))?;
    Ok(read.into_iter().map(|document| document.value).collect())
}

fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no text at {pointer} in {value}"))
}

fn list<'a>(value: &'a Value, pointer: &str) -> Result<&'a Vec<Value>> {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.with_context(|| format!("no list at {pointer} in {value}"))
}

/// Name and text of what a ConfigMap or Secret holds; nothing if there is no such object.
fn files(objects: &[Value], kind: &str, name: &str) -> Result<Option<Vec<(String, String)>>> {
    let named = |object: &&Value| {
        object.get("kind").is_some_and(|k| k == kind)
            && text(object, "/metadata/name").is_ok_and(|n| n == name)
    };
    let Some(object) = objects.iter().find(named) else { return Ok(None) };
    let data = object.get("data").and_then(Value::as_object).context("no data")?;
    let read = |(key, value): (&String, &Value)| {
        let value = value.as_str().context("no text")?;
        let value = if kind == "Secret" { String::from_utf8(STANDARD.decode(value)?)? } else { value.into() };
        Ok((key.clone(), value))
    };
    data.iter().map(read).collect::<Result<_>>().map(Some)
}

/// What a volume holds. What is not optional must be there.
fn content(objects: &[Value], volume: &Value) -> Result<Vec<(String, String)>> {
    if let Some(config_map) = volume.get("configMap") {
        files(objects, "ConfigMap", text(config_map, "/name")?)?.context("no ConfigMap")
    } else if let Some(secret) = volume.get("secret") {
        files(objects, "Secret", text(secret, "/secretName")?)?.context("no Secret")
    } else {
        let mut all = Vec::new();
        for source in list(volume, "/projected/sources")? {
            let secret = source.get("secret").context("no Secret")?;
            let found = files(objects, "Secret", text(secret, "/name")?)?;
            ensure!(found.is_some() || secret.get("optional") == Some(&true.into()), "no {secret}");
            all.extend(found.into_iter().flatten());
        }
        Ok(all)
    }
}

/// Mounts all volumes of the pod below the folder, at the paths that the container sees.
fn mount(objects: &[Value], root: &Path) -> Result<Value> {
    let is_set = |object: &&Value| object.get("kind").is_some_and(|kind| kind == "StatefulSet");
    let set = objects.iter().find(is_set).context("no StatefulSet")?;
    let pod = set.pointer("/spec/template/spec").context("no pod")?;
    let container = pod.pointer("/containers/0").context("no container")?;
    for mount in list(container, "/volumeMounts")? {
        let named = |volume: &&Value| volume.get("name") == mount.get("name");
        let volume = list(pod, "/volumes")?.iter().find(named).context("no volume")?;
        let path = root.join(text(mount, "/mountPath")?.trim_start_matches('/'));
        let (parent, name) = (path.parent().context("no parent")?, path.file_name().context("no name")?);
        fs::create_dir_all(parent)?;
        let content = content(objects, volume).with_context(|| format!("mounting {volume}"))?;
        let content: Vec<_> = content.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        Volume::new(parent, &name.to_string_lossy())?.put(&content)?;
    }
    Ok(container.clone())
}

#[test]
fn what_the_operator_renders_is_what_a_pod_serves_from() -> Result<()> {
    let authority = Authority::new("site")?;
    let Pair { certificate, key } = authority.issue("meters")?;
    let manifests = Manifests::new()
        .instance(json!({
            "kafka": {"bootstrapServers": ["kafka-0.kafka:9092"]},
            "listeners": {"mqtts": {"secretRef": {"name": "meters-tls"}}},
        }))
        .secret_of("meters-tls", json!({"tls.crt": certificate, "tls.key": key}))
        .parent("readings")
        .user("fleet", "s3cret")
        .grant("fleet", "fleet", &[("pub", "readings/#"), ("sub", "commands/#")]);
    let root = tempfile::tempdir()?;
    let container = mount(&rendered(&manifests)?, root.path())?;
    let ["mqtt-broker", "run", "--config", file, "--node", "$(NODE_NAME)"] =
        list(&container, "/command")?.iter().filter_map(Value::as_str).collect::<Vec<_>>()[..]
    else {
        bail!("another command: {container}")
    };

    // The same config where its paths lie here, on free ports, and with a store of its own in place of Kafka.
    let here = |path: &str| root.path().join(path.trim_start_matches('/')).display().to_string();
    let config = fs::read_to_string(here(file))?.replace("/etc/mqtt", &here("/etc/mqtt"));
    let read = documents(&config).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let mut config = read.into_iter().next().context("no config")?.value;
    for (field, value) in [
        ("/instance/kafka", Value::Null),
        ("/instance/listeners/mqtt", "127.0.0.1:0".into()),
        ("/instance/listeners/mqtts", "127.0.0.1:0".into()),
        ("/instance/listeners/admin", "127.0.0.1:0".into()),
    ] {
        *config.pointer_mut(field).with_context(|| format!("no {field}"))? = value;
    }
    let fields = config.as_object_mut().context("no fields")?;
    fields.insert("data".into(), here("/data").into());
    // The store is this broker's alone, and there are no others to have links to.
    fields.remove("shared");
    fields.remove("peers").context("no peers")?;
    let file = root.path().join("node.json");
    fs::write(&file, config.to_string())?;

    let mut broker = Broker::run(tempfile::tempdir()?, &file)?;
    broker.ready()?;
    let fleet = Login::new(Version::V5, "meter-1").user("fleet", "s3cret");
    let tls = Tls::connect(broker.mqtts.context("no TLS listener")?, &authority.client(TlsVersion::V13))?;
    let mut meter = tls.login(&fleet)?;
    ensure!(meter.subscribe("commands/meter-1", 1)? == 1, "what is granted is refused");
    ensure!(meter.subscribe("readings/#", 1)? == 0x87, "what is not granted is allowed");
    let wrong = Login::new(Version::V5, "meter-2").user("fleet", "guessed");
    ensure!(mqtt_e2e::Dialogue::connect(broker.mqtt, &wrong).is_err(), "a wrong password is let in");
    Ok(())
}
