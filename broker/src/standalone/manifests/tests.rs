//! Folders of manifests and what becomes of them.

use std::fs;

use mqtt_broker_api::{
    acl::Action,
    config::{self, Ordering},
};
use mqtt_operator_api::refs::SecretKeyRef;
use serde_json::json;
use tempfile::TempDir;

use super::*;

const INSTANCE: &str = "apiVersion: mqtt.dms.dev/v1alpha1
kind: MqttInstance
metadata: {name: meters}
spec: {replicas: 1}
";
const FLEET: &str = "apiVersion: mqtt.dms.dev/v1alpha1
kind: MqttUser
metadata: {name: fleet}
spec:
  instanceRef: {name: meters}
  passwordSecretRef: {name: fleet-password, key: password}
---
apiVersion: v1
kind: Secret
metadata: {name: fleet-password}
stringData: {password: s3cret}
";
const GRANT: &str = "apiVersion: mqtt.dms.dev/v1alpha1
kind: TopicGrant
metadata: {name: fleet-readings}
spec:
  instanceRef: {name: meters}
  userRef: {name: fleet}
  rules:
  - {action: pub, filter: readings/#}
";

fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

fn load(dir: &TempDir) -> Result<Loaded, Vec<ManifestProblem>> {
    Manifests::new(dir.path(), Store::Embedded).unwrap().load()
}

/// Loads the files and compares the lines of the problems, in which `DIR` stands for the folder.
fn check(what: &str, files: &[(&str, &str)], expected: &[&str]) {
    check_with(Store::Embedded, what, files, expected);
}

fn check_with(store: Store, what: &str, files: &[(&str, &str)], expected: &[&str]) {
    let dir = folder(files);
    let problems = Manifests::new(dir.path(), store).unwrap().load().err().unwrap_or_default();
    let path = dir.path().display().to_string();
    let lines: Vec<_> = problems.iter().map(|problem| problem.to_string().replace(&path, "DIR")).collect();
    assert_eq!(lines, expected, "{what}");
    assert!(lines.iter().all(|line| !line.contains('\n') && !line.contains("s3cret")), "{what}: {lines:?}");
}

#[test]
fn a_bad_manifest_is_told_in_one_line_a_problem() {
    let good = ("a.yaml", INSTANCE);
    check("good ones", &[good, ("b.yml", FLEET), ("c.yaml", GRANT)], &[]);
    check("an empty folder", &[], &["DIR: there is no MqttInstance in any *.yaml file here; add one"]);
    check(
        "other files, and hidden ones, are not read",
        &[good, ("b.json", "{"), (".c.yaml", "{"), ("README.md", "{")],
        &[],
    );
    check(
        "empty documents count for nothing",
        &[("a.yaml", &format!("---\n# nothing\n---\n{INSTANCE}---\n"))],
        &[],
    );
    check(
        "a filter that is none",
        &[
            good,
            ("b.yaml", FLEET),
            (
                "grants.yaml",
                &format!("{GRANT}---\n{}", GRANT.replace("fleet-r", "r").replace("readings/#", "a/#/b")),
            ),
        ],
        &[
            "DIR/grants.yaml: document 2 (TopicGrant readings), line 17: spec.rules[0].filter: \"a/#/b\" has '#' before its end; put '#' last",
        ],
    );
    check(
        "a field that does not exist, and one that is missing",
        &[
            good,
            ("b.yaml", FLEET),
            ("c.yaml", &GRANT.replace("  userRef: {name: fleet}\n", "  user: fleet\n")),
        ],
        &[
            "DIR/c.yaml: document 1 (TopicGrant fleet-readings), line 4: spec.userRef: is missing; add it",
            "DIR/c.yaml: document 1 (TopicGrant fleet-readings), line 6: spec.user: is not known; remove or rename it (known here: instanceRef, rules, userRef)",
        ],
    );
    check(
        "kinds that are not read here",
        &[
            good,
            (
                "b.yaml",
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n---\nkind: MqttUser\n---\njust text\n",
            ),
        ],
        &[
            "DIR/b.yaml: document 1 (ConfigMap x), line 2: kind: \"ConfigMap\" of apiVersion \"v1\" is not known here; write MqttInstance, ParentTopic, MqttUser, TopicGrant of mqtt.dms.dev/v1alpha1, or Secret of v1, or remove the document",
            "DIR/b.yaml: document 2 (MqttUser), line 5: kind: \"MqttUser\" of apiVersion \"\" is not known here; write MqttInstance, ParentTopic, MqttUser, TopicGrant of mqtt.dms.dev/v1alpha1, or Secret of v1, or remove the document",
            "DIR/b.yaml: document 3, line 7: kind: \"\" of apiVersion \"\" is not known here; write MqttInstance, ParentTopic, MqttUser, TopicGrant of mqtt.dms.dev/v1alpha1, or Secret of v1, or remove the document",
        ],
    );
    check(
        "a file that is no YAML, beside one with a wrong value",
        &[good, ("b.yaml", "a: [1\nb: 2\n"), ("c.yaml", &INSTANCE.replace("replicas: 1", "replicas: many"))],
        &[
            "DIR/b.yaml: line 2: is no YAML: illegal placement of ':' indicator; mend it from there",
            "DIR/c.yaml: document 1 (MqttInstance meters), line 4: spec.replicas: must be a whole number, not text",
            "DIR/c.yaml: document 1 (MqttInstance meters), line 3: metadata.name: a broker serves one MqttInstance, and there is one in DIR/a.yaml, document 1; remove one of the two",
        ],
    );
    check(
        "the same object twice",
        &[good, ("b.yaml", FLEET), ("c.yaml", GRANT), ("d.yaml", GRANT)],
        &[
            "DIR/d.yaml: document 1 (TopicGrant fleet-readings), line 3: metadata.name: an object of this kind and name is in DIR/c.yaml, document 1, too; remove one of the two",
        ],
    );
    check(
        "what objects mean to each other is told for all files at once",
        &[
            good,
            ("b.yaml", &FLEET.replace("key: password", "key: passwd")),
            (
                "c.yaml",
                &GRANT
                    .replace("userRef: {name: fleet}", "userRef: {name: nobody}")
                    .replace("readings/#", "a#"),
            ),
        ],
        &[
            "DIR/c.yaml: document 1 (TopicGrant fleet-readings), line 8: spec.rules[0].filter: \"a#\" has '#' beside other characters; give it a level of its own",
            "DIR/b.yaml: document 1 (MqttUser fleet), line 6: spec.passwordSecretRef.key: Secret default/fleet-password has no key \"passwd\"; add it, or change the reference",
            "DIR/c.yaml: document 1 (TopicGrant fleet-readings), line 6: spec.userRef.name: there is no MqttUser default/nobody; create it, or name another one",
        ],
    );
    check(
        "passwords that are no text or no base64",
        &[
            good,
            ("b.yaml", FLEET),
            (
                "c.yaml",
                "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ndata:\n  password: s3cret!\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: two}\nstringData: {password: 12345}\n",
            ),
        ],
        &[
            "DIR/c.yaml: document 1 (Secret x), line 5: data.password: is no base64; encode it, or move it to stringData",
            "DIR/c.yaml: document 2 (Secret two), line 10: stringData.password: must be text, not a number; put it in quotes",
        ],
    );
}

#[test]
fn a_folder_that_is_not_there_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none");
    let problems = Manifests::new(&missing, Store::Embedded).unwrap().load().unwrap_err();
    let line = problems.iter().map(ToString::to_string).collect::<String>();
    assert!(
        line.starts_with(&format!("{}: this folder can't be read: No such file", missing.display())),
        "{line}"
    );
}

#[test]
fn the_examples_load() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut manifests = Manifests::new(&dir, Store::Embedded).unwrap();
    let Loaded { config, acl, warnings, .. } = manifests.load().unwrap_or_else(|problems| {
        panic!("{}", problems.iter().map(|p| format!("{p}\n")).collect::<String>())
    });
    let parents: Vec<_> =
        config.parents.iter().map(|p| (p.topic.as_str(), p.ordering, p.partitions)).collect();
    assert_eq!(
        parents,
        [("orderMsg2mq-readings", Ordering::PartitionOrdered, 3), ("readings", Ordering::Normal, 3)]
    );
    let users: Vec<_> =
        acl.users.iter().map(|u| (u.username.as_str(), u.passwords.len(), u.rules.len())).collect();
    assert_eq!(users, [("fleet", 1, 4), ("guest", 0, 1), ("ops", 1, 4)]);
    assert_eq!(acl.anonymous_user.as_deref(), Some("guest"));
    assert_eq!(config.instance, "default/meters");
    assert_eq!(config.kafka, None, "one machine keeps records itself");
    assert_eq!(
        warnings,
        [
            "MqttInstance default/meters: spec.replicas is 3, but a standalone broker is one node",
            "MqttInstance default/meters: spec.kafka is ignored: records are kept here, in one copy (replicationFactor 3 is capped at 1)",
        ]
    );
}

#[test]
fn what_is_said_of_peers_counts_on_a_cluster_alone_secrets_included() {
    let ignored = "MqttInstance default/meters: spec.listeners.peers is ignored: --peers and --peer say where nodes are";
    for (peers, expected) in [
        ("{}", &[][..]),
        ("{port: 7883}", &[]),
        ("{port: 7884}", &[ignored]),
        ("{secretRef: {name: nowhere}}", &[ignored]),
    ] {
        let instance = INSTANCE.replace("1}", &format!("1, listeners: {{peers: {peers}}}}}"));
        let dir = folder(&[("a.yaml", &instance)]);
        let loaded = Manifests::new(dir.path(), Store::Embedded).unwrap().load().unwrap();
        assert_eq!(loaded.warnings, expected, "{peers}");
    }
}

#[test]
fn only_a_change_makes_a_new_generation() {
    let dir = folder(&[("a.yaml", INSTANCE), ("b.yaml", FLEET), ("c.yaml", GRANT)]);
    let mut manifests = Manifests::new(dir.path(), Store::Embedded).unwrap();
    let mut generation = |content: Option<&str>| {
        if let Some(content) = content {
            fs::write(dir.path().join("c.yaml"), content).unwrap();
        }
        manifests.load().map(|loaded| loaded.acl.generation).ok()
    };
    assert_eq!(generation(None), Some(1), "the first load");
    assert_eq!(generation(None), Some(1), "nothing changed, salts included");
    assert_eq!(generation(Some(&GRANT.replace("pub,", "sub,"))), Some(2), "a changed grant");
    assert_eq!(generation(Some("kind: [")), None, "a bad manifest");
    assert_eq!(generation(Some(GRANT)), Some(3), "changed again");
}

#[test]
fn a_mounted_config_map_is_read_through_its_links() {
    let dir = tempfile::tempdir().unwrap();
    let version = dir.path().join("..2026_01_01");
    fs::create_dir(&version).unwrap();
    fs::write(version.join("all.yaml"), format!("{INSTANCE}---\n{FLEET}---\n{GRANT}")).unwrap();
    std::os::unix::fs::symlink("..2026_01_01", dir.path().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/all.yaml", dir.path().join("all.yaml")).unwrap();
    fs::create_dir(dir.path().join("more.yaml")).unwrap();
    let acl = load(&dir).unwrap().acl;
    let rules: Vec<_> =
        acl.users.iter().flat_map(|user| &user.rules).map(|r| (r.action, r.filter.as_str())).collect();
    assert_eq!(rules, [(Action::Pub, "readings/#")]);
}

#[test]
fn a_secret_s_data_and_text_give_the_same_password() {
    let hash_of = |secret: &str| {
        let secret = FLEET.replace("stringData: {password: s3cret}", secret);
        let dir = folder(&[("a.yaml", INSTANCE), ("b.yaml", &secret)]);
        let mut manifests = Manifests::new(dir.path(), Store::Embedded).unwrap();
        let acl = manifests.load().unwrap().acl;
        let secret_ref = SecretKeyRef { name: "fleet-password".into(), key: "password".into() };
        let salt = manifests.salts.salt("default", &secret_ref);
        (acl.users.into_iter().flat_map(|user| user.passwords).collect::<Vec<_>>(), salt)
    };
    for (secret, password) in [
        ("stringData: {password: s3cret}", "s3cret"),
        ("data: {password: czNjcmV0}", "s3cret"),
        ("data: {password: bm90IHRoaXM=}\nstringData: {password: s3cret}", "s3cret"),
        ("data: {password: czNjcmV0Cg==}", "s3cret\n"),
        ("stringData:\n  password: |\n    s3cret", "s3cret\n"),
    ] {
        let (hashes, salt) = hash_of(secret);
        assert_eq!(hashes, [render::hash(salt, password.as_bytes())], "{secret}");
    }
}

const WITH_KAFKA: &str = "apiVersion: mqtt.dms.dev/v1alpha1
kind: MqttInstance
metadata: {name: meters}
spec:
  replicas: 1
  kafka:
    bootstrapServers: [production:9093]
    rack: zone-a
    tls:
      caSecretRef: {name: kafka, key: ca.crt}
      certificateSecretRef: {name: kafka}
    sasl:
      mechanism: PLAIN
      username: mqtt
      passwordSecretRef: {name: kafka, key: password}
";
const KAFKA_SECRET: &str = "apiVersion: v1
kind: Secret
metadata: {name: kafka}
stringData:
  password: s3cret
  ca.crt: |
    -----BEGIN CERTIFICATE-----
    Y2E=
    -----END CERTIFICATE-----
  tls.crt: |
    -----BEGIN CERTIFICATE-----
    Y3J0
    -----END CERTIFICATE-----
  tls.key: |
    -----BEGIN PRIVATE KEY-----
    a2V5
    -----END PRIVATE KEY-----
";

fn at_these_addresses() -> Store {
    Store::Kafka(vec!["a:9092".into(), "b:9092".into()])
}

#[test]
fn kafka_s_secrets_are_needed_only_where_kafka_keeps_the_records() {
    let kafka = ("a.yaml", WITH_KAFKA);
    let wrong_key = KAFKA_SECRET.replace("  password:", "  passwd:").replace("  tls.key:", "  user.key:");
    let bad_pem = KAFKA_SECRET.replace("-----BEGIN ", "----- BEGIN ");
    let broken_field = WITH_KAFKA.replace("mechanism: PLAIN", "mechanism: GSSAPI");
    let not_one_of = "DIR/a.yaml: document 1 (MqttInstance meters), line 13: spec.kafka.sasl.mechanism: \"GSSAPI\" is not one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512; write one of them";
    let check_both = |what: &str, files: &[(&str, &str)], expected: &[&str]| {
        check_with(at_these_addresses(), what, files, expected);
        check_with(Store::Embedded, what, files, &[]);
    };
    check_both("all there", &[kafka, ("s.yaml", KAFKA_SECRET)], &[]);
    check_both(
        "no Secret",
        &[kafka],
        &[
            "DIR/a.yaml: document 1 (MqttInstance meters), line 10: spec.kafka.tls.caSecretRef.name: there is no Secret default/kafka; create it, or name another one",
            "DIR/a.yaml: document 1 (MqttInstance meters), line 11: spec.kafka.tls.certificateSecretRef.name: there is no Secret default/kafka; create it, or name another one",
            "DIR/a.yaml: document 1 (MqttInstance meters), line 15: spec.kafka.sasl.passwordSecretRef.name: there is no Secret default/kafka; create it, or name another one",
        ],
    );
    check_both(
        "a Secret in another namespace",
        &[
            ("a.yaml", &WITH_KAFKA.replace("{name: kafka, key: ca.crt}", "{name: elsewhere, key: ca.crt}")),
            (
                "s.yaml",
                &format!(
                    "{KAFKA_SECRET}---\n{}",
                    KAFKA_SECRET.replace("{name: kafka}", "{name: elsewhere, namespace: other}")
                ),
            ),
        ],
        &[
            "DIR/a.yaml: document 1 (MqttInstance meters), line 10: spec.kafka.tls.caSecretRef.name: there is no Secret default/elsewhere; create it, or name another one",
        ],
    );
    check_both(
        "other keys",
        &[kafka, ("s.yaml", &wrong_key)],
        &[
            "DIR/a.yaml: document 1 (MqttInstance meters), line 11: spec.kafka.tls.certificateSecretRef: Secret default/kafka has no key \"tls.key\"; add it, or change the reference",
            "DIR/a.yaml: document 1 (MqttInstance meters), line 15: spec.kafka.sasl.passwordSecretRef.key: Secret default/kafka has no key \"password\"; add it, or change the reference",
        ],
    );
    check_both(
        "bad PEM",
        &[kafka, ("s.yaml", &bad_pem)],
        &[
            "DIR/a.yaml: document 1 (MqttInstance meters), line 10: spec.kafka.tls.caSecretRef.key: the value of \"ca.crt\" in Secret default/kafka has no line -----BEGIN CERTIFICATE-----; put certificates in PEM there",
            "DIR/a.yaml: document 1 (MqttInstance meters), line 11: spec.kafka.tls.certificateSecretRef: the value of \"tls.crt\" in Secret default/kafka has no line -----BEGIN CERTIFICATE-----; put certificates in PEM there",
            "DIR/a.yaml: document 1 (MqttInstance meters), line 11: spec.kafka.tls.certificateSecretRef: the value of \"tls.key\" in Secret default/kafka has no line -----BEGIN PRIVATE KEY-----; put a private key in PEM there",
        ],
    );
    // What a cluster would refuse is refused with either store.
    for store in [at_these_addresses(), Store::Embedded] {
        check_with(
            store,
            "a bad field",
            &[("a.yaml", &broken_field), ("s.yaml", KAFKA_SECRET)],
            &[not_one_of],
        );
    }
}

#[test]
fn the_store_decides_what_becomes_of_spec_kafka() {
    let bare = config::Kafka {
        bootstrap_servers: vec!["a:9092".into(), "b:9092".into()],
        replication_factor: 1,
        rack: None,
        tls: None,
        sasl: None,
    };
    let sasl = Some(config::KafkaSasl { mechanism: config::SaslMechanism::Plain, username: "mqtt".into() });
    let no_tls = config::Kafka { replication_factor: 3, rack: Some("zone-a".into()), sasl, ..bare.clone() };
    let whole =
        config::Kafka { tls: Some(config::KafkaTls { ca: true, certificate: true }), ..no_tls.clone() };
    let secrets = KafkaSecrets {
        ca: Some("-----BEGIN CERTIFICATE-----\nY2E=\n-----END CERTIFICATE-----\n".into()),
        certificate: Some("-----BEGIN CERTIFICATE-----\nY3J0\n-----END CERTIFICATE-----\n".into()),
        key: Some("-----BEGIN PRIVATE KEY-----\na2V5\n-----END PRIVATE KEY-----\n".into()),
        password: Some("s3cret".into()),
    };
    let password_alone = KafkaSecrets { password: secrets.password.clone(), ..KafkaSecrets::default() };
    let without_tls = |spec: &str| {
        let (before, rest) = spec.split_once("    tls:\n").unwrap();
        let (_, after) = rest.split_once("    sasl:\n").unwrap();
        format!("{before}    sasl:\n{after}")
    };
    let scram = |kafka: &config::Kafka| {
        let mut kafka = kafka.clone();
        kafka.sasl.as_mut().unwrap().mechanism = config::SaslMechanism::ScramSha512;
        kafka
    };
    let plain_text = "spec.kafka.sasl: PLAIN without tls sends the password unencrypted; add spec.kafka.tls, or use SCRAM-SHA-512";
    let one_copy = "there is no spec.kafka: Kafka keeps records in one copy (replicationFactor 1), and is used without TLS and login";
    let ignored =
        "spec.kafka is ignored: records are kept here, in one copy (replicationFactor 3 is capped at 1)";
    let cases = [
        (Store::Embedded, INSTANCE.to_owned(), None, KafkaSecrets::default(), None),
        (Store::Embedded, WITH_KAFKA.to_owned(), None, KafkaSecrets::default(), Some(ignored)),
        (at_these_addresses(), INSTANCE.to_owned(), Some(bare), KafkaSecrets::default(), Some(one_copy)),
        (at_these_addresses(), WITH_KAFKA.to_owned(), Some(whole), secrets, None),
        (
            at_these_addresses(),
            without_tls(WITH_KAFKA),
            Some(no_tls.clone()),
            password_alone.clone(),
            Some(plain_text),
        ),
        (
            at_these_addresses(),
            without_tls(WITH_KAFKA).replace("PLAIN", "SCRAM-SHA-512"),
            Some(scram(&no_tls)),
            password_alone,
            None,
        ),
    ];
    for (store, instance, kafka, secrets, warning) in cases {
        let what = format!("{store:?} with\n{instance}");
        let dir = folder(&[("a.yaml", &instance), ("s.yaml", KAFKA_SECRET)]);
        let loaded = Manifests::new(dir.path(), store).unwrap().load().unwrap();
        assert_eq!(loaded.config.kafka, kafka, "{what}");
        assert_eq!(loaded.kafka_secrets, secrets, "{what}");
        let expected: Vec<_> =
            warning.iter().map(|text| format!("MqttInstance default/meters: {text}")).collect();
        assert_eq!(loaded.warnings, expected, "{what}");
        assert!(!format!("{loaded:?}").contains("s3cret"), "{what}");
    }
}

#[test]
fn a_rotated_password_of_kafka_is_loaded() {
    let dir = folder(&[("a.yaml", WITH_KAFKA), ("s.yaml", KAFKA_SECRET)]);
    let mut manifests = Manifests::new(dir.path(), at_these_addresses()).unwrap();
    let before = manifests.load().unwrap();
    fs::write(dir.path().join("s.yaml"), KAFKA_SECRET.replace("s3cret", "an0ther")).unwrap();
    let after = manifests.load().unwrap();
    assert_eq!(after.kafka_secrets.password.as_deref(), Some("an0ther"));
    assert_eq!(after.config, before.config, "the secret is no part of it");
    assert_eq!(after.acl, before.acl, "users are not concerned");
}

#[test]
fn the_certificate_for_devices_is_held_to_what_tls_needs() {
    let made = rcgen::generate_simple_self_signed(vec!["mqtt.example".into()]).unwrap();
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let instance = INSTANCE.replace(
        "replicas: 1",
        "replicas: 1, listeners: {mqtts: {secretRef: {name: tls}, clientCaSecretRef: {name: tls, key: ca.crt}}}",
    );
    let secret = |key: &str, ca: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tls"},
               "stringData": {"tls.crt": made.cert.pem(), "tls.key": key, "ca.crt": ca}})
        .to_string()
    };
    let good = secret(&made.signing_key.serialize_pem(), &made.cert.pem());
    let dir = folder(&[("a.yaml", &instance), ("b.yaml", &good)]);
    let mut manifests = Manifests::new(dir.path(), Store::Embedded).unwrap();
    let loaded = manifests.load().unwrap();
    assert_eq!(loaded.config.listeners.mqtts.as_deref(), Some("[::]:8085"));
    let (first, again) = (loaded.tls.unwrap(), manifests.load().unwrap().tls.unwrap());
    assert!(Arc::ptr_eq(&first, &again), "the same Secret keeps what clients resume with");

    let empty = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";
    let at = "DIR/a.yaml: document 1 (MqttInstance meters), line 4: spec.listeners.mqtts";
    check(
        "the key of another certificate",
        &[("a.yaml", &instance), ("b.yaml", &secret(&other, &made.cert.pem()))],
        &[&format!(
            "{at}.secretRef.name: the private key can't be used: it is not that of the certificate; put another one there"
        )],
    );
    check(
        "a CA that is none",
        &[("a.yaml", &instance), ("b.yaml", &secret(&made.signing_key.serialize_pem(), empty))],
        &[&format!(
            "{at}.clientCaSecretRef.key: the CA can't be used: invalid peer certificate: BadEncoding; put another one there"
        )],
    );
}
