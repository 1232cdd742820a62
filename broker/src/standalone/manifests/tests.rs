//! Folders of manifests and what becomes of them.

use std::fs;

use mqtt_broker_api::{acl::Action, config::Ordering};
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
    Manifests::new(dir.path()).unwrap().load()
}

/// Loads the files and compares the lines of the problems, in which `DIR` stands for the folder.
fn check(what: &str, files: &[(&str, &str)], expected: &[&str]) {
    let dir = folder(files);
    let problems = load(&dir).err().unwrap_or_default();
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
            "DIR/b.yaml: document 1 (MqttUser fleet), line 6: spec.passwordSecretRef.key: Secret default/fleet-password has no key \"passwd\"; add it, or name another key",
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
    let problems = Manifests::new(&missing).unwrap().load().unwrap_err();
    let line = problems.iter().map(ToString::to_string).collect::<String>();
    assert!(
        line.starts_with(&format!("{}: this folder can't be read: No such file", missing.display())),
        "{line}"
    );
}

#[test]
fn the_examples_load() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut manifests = Manifests::new(&dir).unwrap();
    let Loaded { config, acl, warnings } = manifests.load().unwrap_or_else(|problems| {
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
fn only_a_change_makes_a_new_generation() {
    let dir = folder(&[("a.yaml", INSTANCE), ("b.yaml", FLEET), ("c.yaml", GRANT)]);
    let mut manifests = Manifests::new(dir.path()).unwrap();
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
        let mut manifests = Manifests::new(dir.path()).unwrap();
        let acl = manifests.load().unwrap().acl;
        let salt = salt(
            &manifests.salts,
            "default",
            &SecretKeyRef { name: "fleet-password".into(), key: "password".into() },
        );
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
