//! Generated passwords through their life, and what hashing costs.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use mqtt_broker_api::acl::{AclDocument, PasswordHash};
use mqtt_operator::user::{
    hasher::{HashKey, Hasher},
    password::{Found, Plan, plan},
};
use mqtt_operator_api::{
    Kind,
    render::{Objects, Rendered, name_of, render},
    user::MqttUser,
};
use serde_json::{Value, json};

fn user(name: &str, annotation: Option<&str>, secret: Option<&str>) -> MqttUser {
    serde_json::from_value(json!({
        "apiVersion": "mqtt.dms.dev/v1alpha1", "kind": "MqttUser",
        "metadata": {"name": name, "namespace": "plant", "uid": format!("uid-of-{name}"),
                     "annotations": annotation.map(|value| json!({"mqtt.dms.dev/rotate-password": value}))},
        "spec": {"instanceRef": {"name": "meters"},
                 "passwordSecretRef": secret.map(|name| json!({"name": name, "key": "password"}))},
    }))
    .unwrap()
}

type Data = BTreeMap<String, Vec<u8>>;

fn data(entries: &[(&str, &str)]) -> Data {
    entries.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect()
}

/// What `[7; 32]` gives.
const NEW: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc";

#[test]
fn the_secret_of_a_generated_password_follows_its_user_and_no_one_else() {
    const OLD: &str = "old";
    let check =
        |what: &str, annotation, found: Option<&[(&str, &str)]>, expected: Option<&[(&str, &str)]>| {
            let found = found.map(data);
            let found = found.as_ref().map(|data| Found { owner: Some("uid-of-fleet"), data });
            let applied = match plan(&user("fleet", annotation, None), found, None, [7; 32]) {
                Plan::Keep => None,
                Plan::Apply(secret) => {
                    Some(secret.data.unwrap().into_iter().map(|(key, value)| (key, value.0)).collect())
                }
                Plan::Refuse(problem) => panic!("{what}: {problem:?}"),
            };
            assert_eq!(applied, expected.map(data), "{what}");
        };
    let name = ("username", "fleet");
    let (old, new, previous) = (("password", OLD), ("password", NEW), ("previous-password", OLD));
    let (one, two) = (("rotation", "1"), ("rotation", "2"));
    check("nothing there", None, None, Some(&[name, new]));
    check("nothing there, and a change asked for", Some("1"), None, Some(&[name, new, one]));
    check("all there", None, Some(&[name, old]), None);
    check("a password that a person put there", None, Some(&[name, old, ("more", "x")]), Some(&[name, old]));
    check("no password", None, Some(&[name]), Some(&[name, new]));
    check("an empty password", None, Some(&[name, ("password", "")]), Some(&[name, new]));
    check("no user name", None, Some(&[old]), Some(&[name, old]));
    check("a change asked for", Some("1"), Some(&[name, old]), Some(&[name, new, previous, one]));
    check("a change made", Some("1"), Some(&[name, new, previous, one]), None);
    check("a change made, the old password taken away", Some("1"), Some(&[name, new, one]), None);
    check(
        "the next change",
        Some("2"),
        Some(&[name, old, ("previous-password", "older"), one]),
        Some(&[name, new, previous, two]),
    );
    check("the change is over", None, Some(&[name, new, previous, one]), Some(&[name, new]));
    check("an annotation without a value", Some(""), Some(&[name, old]), None);

    for owner in [None, Some("uid-of-another")] {
        let there = data(&[name, old]);
        let plan = plan(&user("fleet", None, None), Some(Found { owner, data: &there }), None, [7; 32]);
        let Plan::Refuse(problem) = plan else { panic!("{owner:?}: {plan:?}") };
        assert_eq!(
            format!("{}: {}: {}", problem.object, problem.field, problem.message),
            "MqttUser plant/fleet: spec.passwordSecretRef: is missing, and Secret plant/fleet-mqtt, where a generated password would lie, is not of this user; name it here, or delete it"
        );
    }
}

/// Renders with the hasher; gives the number of Argon2id hashes that were not in the document before, too.
fn rendered(objects: &Objects, key: &HashKey, before: &AclDocument, most: usize) -> (Rendered, usize) {
    let mut hasher = Hasher::new(key, before, most);
    let rendered = render(objects, 1, |password| hasher.hash(password));
    let known: Vec<_> = before.users.iter().flat_map(|user| &user.passwords).collect();
    let all = rendered.acl.users.iter().flat_map(|user| &user.passwords);
    let new = all.filter(|hash| matches!(hash, PasswordHash::Argon2id(_)) && !known.contains(hash)).count();
    (rendered, new)
}

fn objects(users: Vec<MqttUser>, secrets: &[(&str, &[(&str, &str)])], generated: Option<&[&str]>) -> Objects {
    let instance = json!({"apiVersion": "mqtt.dms.dev/v1alpha1", "kind": "MqttInstance",
                          "metadata": {"name": "meters", "namespace": "plant"}, "spec": {}});
    let named = |users: &[&str]| -> BTreeSet<_> {
        users.iter().map(|name| name_of(Kind::MqttUser, &user(name, None, None))).collect()
    };
    Objects {
        instance: serde_json::from_value(instance).unwrap(),
        topics: vec![],
        users,
        grants: vec![],
        secrets: secrets
            .iter()
            .map(|(name, entries)| (("plant".to_owned(), (*name).to_owned()), data(entries)))
            .collect(),
        generated: generated.map(named),
    }
}

/// How each user's passwords are kept.
fn kept(rendered: &Rendered) -> Value {
    let kinds = |hashes: &[PasswordHash]| -> Vec<&str> {
        let kind = |hash: &PasswordHash| match hash {
            PasswordHash::SaltedSha256 { .. } => "fast",
            PasswordHash::Argon2id(_) => "slow",
        };
        hashes.iter().map(kind).collect()
    };
    rendered.acl.users.iter().map(|user| (user.username.clone(), json!(kinds(&user.passwords)))).collect()
}

#[test]
fn a_password_is_hashed_by_who_chose_it() {
    let users = ["made", "rotated", "weak", "foreign", "absent"].map(|name| user(name, None, None));
    let given = ["given", "copied"].map(|name| user(name, None, Some(name)));
    let secrets: &[(&str, &[(&str, &str)])] = &[
        ("made-mqtt", &[("username", "made"), ("password", NEW)]),
        ("rotated-mqtt", &[("password", NEW), ("previous-password", NEW), ("rotation", "1")]),
        ("weak-mqtt", &[("password", "password1")]),
        ("foreign-mqtt", &[("password", NEW)]),
        ("given", &[("password", "s3cret")]),
        ("copied", &[("password", NEW)]),
    ];
    let ours: &[&str] = &["made", "rotated", "weak", "absent"];
    let all = objects([&users[..], &given[..]].concat(), secrets, Some(ours));
    let (rendered, _) = rendered(&all, &HashKey::new(&[1; 32]).unwrap(), &AclDocument::default(), 10);
    assert_eq!(
        kept(&rendered),
        json!({"made": ["fast"], "rotated": ["fast", "fast"], "weak": ["slow"], "foreign": [], "absent": [],
               "given": ["slow"], "copied": ["slow"]})
    );
    assert_eq!(rendered.problems, []);
    let pending: Vec<_> = rendered.pending.iter().map(|user| user.name.as_str()).collect();
    assert_eq!(pending, ["absent", "foreign"]);

    // A folder of manifests generates nothing, and takes no Secret for a generated one.
    let all = objects(users[..1].to_vec(), &secrets[..1], None);
    let rendered = render(&all, 1, |_| panic!("nothing is to be hashed"));
    let problems: Vec<_> = rendered.problems.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(problems, ["is missing, so this user can't log in; name a Secret that holds its password"]);
}

#[test]
fn a_password_is_paid_for_once_also_after_a_restart() {
    let all = |first: &str, others: usize| {
        let users = (0..others).map(|number| user(&format!("u{number}"), None, Some("all"))).collect();
        objects(users, &[("all", &[("password", first)])], Some(&[]))
    };
    let key = || HashKey::new(&[1; 32]).unwrap();
    let nothing = AclDocument::default();
    let (first, new) = rendered(&all("s3cret", 1), &key(), &nothing, 10);
    assert_eq!((new, first.pending.len()), (1, 0));
    let check = |what: &str, objects: &Objects, key: &HashKey, expected: usize| {
        let (next, new) = rendered(objects, key, &first.acl, 0);
        assert_eq!((new, next.pending.len()), (expected, 0), "{what}");
        next.acl
    };
    assert_eq!(check("nothing changed", &all("s3cret", 1), &key(), 0), first.acl);
    // Who could log in before never waits, whatever a rendering may spend on new users.
    assert_ne!(check("a changed password", &all("S3cret", 1), &key(), 1), first.acl);
    check("another key", &all("s3cret", 1), &HashKey::new(&[2; 32]).unwrap(), 1);

    // Equal passwords in one Secret's key are one hash; that two users share a Secret is no secret.
    let (shared, new) = rendered(&all("s3cret", 3), &key(), &first.acl, 0);
    assert_eq!((new, shared.pending.len()), (0, 0));
    assert!(HashKey::new(b"short").is_none());
}

#[test]
fn many_new_users_come_in_over_several_renderings() {
    let names: Vec<_> = (0..5).map(|number| format!("u{number}")).collect();
    let secrets: Vec<_> = names.iter().map(|name| (name.as_str(), [("password", "s3cret")])).collect();
    let secrets: Vec<_> = secrets.iter().map(|(name, entries)| (*name, &entries[..])).collect();
    let all = objects(names.iter().map(|name| user(name, None, Some(name))).collect(), &secrets, Some(&[]));
    let key = HashKey::new(&[1; 32]).unwrap();
    let mut document = AclDocument::default();
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let (next, new) = rendered(&all, &key, &document, 2);
        assert_eq!(next.problems, []);
        seen.push((new, next.pending.len()));
        document = next.acl;
    }
    assert_eq!(seen, [(2, 3), (2, 1), (1, 0), (0, 0)]);
}
