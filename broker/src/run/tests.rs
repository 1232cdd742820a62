//! Configs and shards as they are mounted, and what becomes of them.

use std::{fs, path::Path};

use mqtt_broker_api::{acl::AclUser, shards::split};
use rcgen::generate_simple_self_signed;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A config with every file it names, in the folder.
fn mount(dir: &Path) -> Value {
    let write = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
    for folder in ["acl", "kafka"] {
        fs::create_dir(dir.join(folder)).unwrap();
    }
    for (name, text) in [("ca.crt", "CA"), ("tls.crt", "C"), ("tls.key", "K"), ("password", "s3cret\n")] {
        write(&format!("kafka/{name}"), text);
    }
    let made = generate_simple_self_signed(vec!["mqtt.example".into()]).unwrap();
    write("tls.crt", &made.cert.pem());
    write("tls.key", &made.signing_key.serialize_pem());
    write("clients.crt", &made.cert.pem());
    put_acl(dir, &acl(1), 10_000);
    json!({
        "instance": {
            "instance": "plant/meters",
            "limits": {"connections": 10, "publishRate": 0, "subscriptions": 10, "packetSize": 1000,
                       "clientIdLength": 10, "characters": "Any"},
            "session": {"expirySeconds": 1, "offlineMessages": 1, "onlineMessages": 1},
            "listeners": {"mqtt": "[::]:1883", "mqtts": "[::]:8085", "admin": "[::]:9090"},
            "kafka": {"bootstrapServers": ["k:1"], "replicationFactor": 1, "tls": {"ca": true, "certificate": true},
                      "sasl": {"mechanism": "PLAIN", "username": "mqtt"}},
        },
        "acl": [dir.join("acl"), dir.join("optional")],
        "kafkaSecrets": dir.join("kafka"),
        "tls": {"certificateFile": dir.join("tls.crt"), "keyFile": dir.join("tls.key"),
                "clientCaFile": dir.join("clients.crt")},
    })
}

fn acl(generation: u64) -> AclDocument {
    let user = |name: String| AclUser {
        username: name,
        passwords: Vec::new(),
        client_ids: Vec::new(),
        rules: Vec::new(),
    };
    AclDocument { generation, anonymous_user: None, users: (0..9).map(|n| user(format!("u{n}"))).collect() }
}

/// Writes the shards over what is there.
fn put_acl(dir: &Path, document: &AclDocument, limit: usize) {
    for shard in split(document, limit).unwrap() {
        let file = dir.join(format!("acl/acl-{}.json", shard.shard.index));
        fs::write(file, serde_json::to_string(&shard).unwrap()).unwrap();
    }
}

/// Loads a config, changed as told, from YAML with one field a line, and compares the problems; DIR stands for the
/// folder.
fn check(what: &str, change: impl FnOnce(&mut Value, &Path), expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = mount(dir.path());
    change(&mut config, dir.path());
    let text = match &config {
        Value::String(text) => text.clone(),
        config => serde_json::to_string_pretty(config).unwrap(),
    };
    let problems = load(&dir, &text).err().unwrap_or_default();
    let path = dir.path().display().to_string();
    let lines: Vec<_> = problems.iter().map(|line| line.replace(&path, "DIR")).collect();
    assert_eq!(lines, expected, "{what}");
    assert!(lines.iter().all(|line| !line.contains('\n') && !line.contains("s3cret")), "{what}: {lines:?}");
}

fn load(dir: &TempDir, text: &str) -> Result<Documents, Vec<String>> {
    fs::write(dir.path().join("node.yaml"), text).unwrap();
    Run::new(dir.path().join("node.yaml")).load()
}

#[test]
fn a_bad_config_is_told_in_one_line_a_problem() {
    let without = |pointer: &'static str| {
        move |config: &mut Value, _: &Path| {
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            assert!(config.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name).is_some());
        }
    };
    check("a good one", |_, _| {}, &[]);
    check(
        "no YAML",
        |config, _| *config = json!("a: 1\nb: [1,\nc: 2\n"),
        &["DIR/node.yaml: line 2: is no YAML: unclosed bracket '['; mend it from there"],
    );
    check(
        "two documents",
        |config, _| *config = json!("a: 1\n---\nb: 1\n"),
        &["DIR/node.yaml: has 2 documents; write one"],
    );
    check("an empty file", |config, _| *config = json!(""), &["DIR/node.yaml: has 0 documents; write one"]);
    check(
        "a field of another kind",
        |config, _| config["instance"]["limits"]["packetSize"] = json!("128Ki"),
        &[
            "DIR/node.yaml: line 26: instance.limits.packetSize: invalid type: string \"128Ki\", expected u32; mend it",
        ],
    );
    check(
        "a field that is not known",
        |config, _| config["instance"]["session"]["expiry"] = json!(1),
        &[
            "DIR/node.yaml: line 36: instance.session.expiry: unknown field `expiry`, expected one of `expirySeconds`, `offlineMessages`, `onlineMessages`, `sharing`, `responseInformation`; mend it",
        ],
    );
    check(
        "a field that is missing",
        without("/instance/limits/connections"),
        &["DIR/node.yaml: line 22: instance.limits: missing field `connections`; mend it"],
    );
    check("no ACL", without("/acl"), &["DIR/node.yaml: line 1: missing field `acl`; mend it"]);
    check(
        "an ACL that is nowhere",
        |config, _| config["acl"] = json!([]),
        &["DIR/node.yaml: line 2: acl: is empty; name the folder that the shards of the ACL document are in"],
    );
    check(
        "a certificate without a listener",
        without("/instance/listeners/mqtts"),
        &[
            "DIR/node.yaml: line 41: tls: has no listener; set instance.listeners.mqtts or wss, or remove this",
        ],
    );
    check(
        "a listener without a certificate",
        without("/tls"),
        &[
            "DIR/node.yaml: line 1: tls: is missing; name the certificate for instance.listeners.mqtts and wss, or remove those",
        ],
    );
    check(
        "no store",
        without("/instance/kafka"),
        &["DIR/node.yaml: line 1: data: is missing; name a folder to store in, or set instance.kafka"],
    );
    check(
        "two stores",
        |config, _| config["data"] = json!("/data"),
        &["DIR/node.yaml: line 6: data: stands beside instance.kafka; remove one of the two"],
    );
    check(
        "no secrets for Kafka",
        without("/kafkaSecrets"),
        &[
            "DIR/node.yaml: line 1: kafkaSecrets: is missing; name the folder of ca.crt for instance.kafka.tls.ca",
            "DIR/node.yaml: line 1: kafkaSecrets: is missing; name the folder of tls.crt for instance.kafka.tls.certificate",
            "DIR/node.yaml: line 1: kafkaSecrets: is missing; name the folder of tls.key for instance.kafka.tls.certificate",
            "DIR/node.yaml: line 1: kafkaSecrets: is missing; name the folder of password for instance.kafka.sasl",
        ],
    );
    check(
        "no password for Kafka",
        |_, dir| fs::remove_file(dir.join("kafka/password")).unwrap(),
        &[
            "DIR/kafka/password: can't be read: No such file or directory (os error 2); put readable UTF-8 there",
        ],
    );
    check(
        "no certificate",
        |_, dir| fs::write(dir.join("tls.crt"), "s3cret").unwrap(),
        &["DIR/tls.crt: the certificate can't be used: there is no certificate in PEM in it"],
    );
    check(
        "no key",
        |_, dir| fs::remove_file(dir.join("tls.key")).unwrap(),
        &["DIR/tls.key: can't be read: No such file or directory (os error 2); put readable UTF-8 there"],
    );
    check(
        "no CA of devices",
        |_, dir| fs::write(dir.join("clients.crt"), "").unwrap(),
        &["DIR/clients.crt: the CA can't be used: there is no certificate in PEM in it"],
    );
}

#[test]
fn what_is_mounted_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let config = mount(dir.path());
    let documents = load(&dir, &config.to_string()).unwrap();
    assert_eq!(documents.warnings, [""; 0]);
    assert_eq!(documents.acl, Some(acl(1)));
    let text = |text: &str| Some(text.to_owned());
    let secrets =
        KafkaSecrets { ca: text("CA"), certificate: text("C"), key: text("K"), password: text("s3cret\n") };
    assert_eq!(documents.kafka_secrets, secrets);
    assert!(documents.tls.is_some() && documents.data.is_none());
}

#[test]
fn an_acl_that_is_not_complete_leaves_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.yaml");
    fs::write(&file, mount(dir.path()).to_string()).unwrap();
    let mut run = Run::new(file);
    let path = dir.path().display().to_string();
    let mut check = |what: &str, change: &dyn Fn(&Path), generation: Option<u64>, told: &str| {
        change(dir.path());
        let documents = run.load().unwrap();
        assert_eq!(documents.acl.map(|acl| acl.generation), generation, "{what}");
        assert_eq!(documents.warnings.join("\n").replace(&path, "DIR"), told, "{what}");
    };
    let empty = |dir: &Path| {
        fs::remove_dir_all(dir.join("acl")).unwrap();
        fs::create_dir(dir.join("acl")).unwrap();
    };
    check(
        "none at the start",
        &empty,
        None,
        "acl: there are no shards in DIR/acl, DIR/optional; nobody is let in before it is complete",
    );
    check("a complete one", &|dir| put_acl(dir, &acl(1), 350), Some(1), "");
    check(
        "none any more",
        &empty,
        Some(1),
        "acl: there are no shards in DIR/acl, DIR/optional; generation 1 stays in force",
    );
    check("two shards", &|dir| put_acl(dir, &acl(2), 350), Some(2), "");
    check(
        "a mixture",
        &|dir| {
            let old = fs::read(dir.join("acl/acl-1.json")).unwrap();
            put_acl(dir, &acl(3), 350);
            fs::write(dir.join("acl/acl-1.json"), old).unwrap();
        },
        Some(2),
        "acl: the shards of generation 2 and generation 3 are of two documents in DIR/acl, DIR/optional; generation 2 stays in force",
    );
    check("the rest of it", &|dir| put_acl(dir, &acl(3), 350), Some(3), "");
    check(
        "a file that is none",
        &|dir| fs::write(dir.join("acl/acl-1.json"), "{\n\"generation\": -1}").unwrap(),
        Some(3),
        "acl: DIR/acl/acl-1.json: line 2: generation: invalid value: integer `-1`, expected u64 at line 2 column 16; generation 3 stays in force",
    );
    check(
        "a password in the place of its hash",
        &|dir| {
            let shard = fs::read_to_string(dir.join("acl/acl-0.json")).unwrap();
            let shard =
                shard.replacen("{\"username\":\"u0\"", "{\"username\":\"u0\",\"passwords\":[\"s3cret\"]", 1);
            fs::write(dir.join("acl/acl-1.json"), shard).unwrap();
        },
        Some(3),
        "acl: DIR/acl/acl-1.json: line 1: users[0].passwords[0]: is no password hash; generation 3 stays in force",
    );
}

#[test]
fn a_certificate_that_can_t_be_used_leaves_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.yaml");
    fs::write(&file, mount(dir.path()).to_string()).unwrap();
    let mut run = Run::new(file);
    let first = run.load().unwrap().tls.unwrap();
    let key = fs::read(dir.path().join("tls.key")).unwrap();
    fs::write(dir.path().join("tls.key"), "s3cret").unwrap();
    let documents = run.load().unwrap();
    assert!(Arc::ptr_eq(&first, &documents.tls.unwrap()));
    let path = dir.path().display();
    assert_eq!(
        documents.warnings,
        [format!(
            "{path}/tls.key: the private key can't be used: there is none in PEM in it, without a password; the last good one stays in use"
        )]
    );
    fs::write(dir.path().join("tls.key"), key).unwrap();
    let documents = run.load().unwrap();
    assert!(documents.warnings.is_empty() && Arc::ptr_eq(&first, &documents.tls.unwrap()));
}
