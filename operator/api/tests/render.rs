//! From a set of objects to the documents a broker is steered by.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use mqtt_broker_api::{
    acl::{AclDocument, AclUser, Action, PasswordHash, Rule},
    config::{self, InstanceConfig, KafkaSecrets, TlsSecrets},
};
use mqtt_operator_api::render::{Objects, Rendered, hash, render};
use serde_json::{Value, json};

/// Renders objects given as JSON: `instance` alone, the others as lists, secrets as `[namespace, name, key, value]`.
fn rendered(objects: &Value) -> Rendered {
    fn list<T: serde::de::DeserializeOwned>(objects: &Value, kind: &str, field: &str) -> Vec<T> {
        let items = objects[field].as_array().cloned().unwrap_or_default();
        items
            .into_iter()
            .map(|item| {
                let mut object = json!({"apiVersion": "mqtt.dms.dev/v1alpha1", "kind": kind});
                object.as_object_mut().unwrap().extend(item.as_object().cloned().unwrap());
                serde_json::from_value(object).unwrap()
            })
            .collect()
    }
    let mut secrets = mqtt_operator_api::render::Secrets::new();
    for secret in objects["secrets"].as_array().into_iter().flatten() {
        let text = |i: usize| secret[i].as_str().unwrap().to_owned();
        // Bytes that are no UTF-8 stand there as a list of numbers.
        let value = match &secret[3] {
            Value::String(text) => text.clone().into_bytes(),
            bytes => serde_json::from_value(bytes.clone()).unwrap(),
        };
        secrets.entry((text(0), text(1))).or_default().insert(text(2), value);
    }
    let instance =
        objects.get("instance").cloned().unwrap_or(json!({"metadata": {"name": "meters"}, "spec": {}}));
    let objects = Objects {
        instance: list(&json!({"i": [instance]}), "MqttInstance", "i").remove(0),
        topics: list(objects, "ParentTopic", "topics"),
        users: list(objects, "MqttUser", "users"),
        grants: list(objects, "TopicGrant", "grants"),
        secrets,
        generated: None,
    };
    render(&objects, 7, |password| Some(hash(SALT, password.value)))
}

const SALT: [u8; 16] = [7; 16];

fn user(name: &str) -> Value {
    json!({"metadata": {"name": name},
           "spec": {"instanceRef": {"name": "meters"}, "passwordSecretRef": {"name": "passwords", "key": name}}})
}

fn grant(name: &str, user: &str, filter: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"instanceRef": {"name": "meters"}, "userRef": {"name": user},
           "rules": [{"action": "pubsub", "filter": filter}]}})
}

/// A user or a topic in another namespace than the instance's.
fn foreign(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "city"},
           "spec": {"instanceRef": {"name": "meters", "namespace": "default"}}})
}

fn foreign_grant(name: &str, user: &str) -> Value {
    let mut grant = foreign(name);
    grant["spec"]["userRef"] = json!({"name": user});
    grant["spec"]["rules"] = json!([{"action": "pubsub", "filter": "#"}]);
    grant
}

fn topic(name: &str, created: &str, topic: &str) -> Value {
    json!({"metadata": {"name": name, "creationTimestamp": created},
           "spec": {"instanceRef": {"name": "meters"}, "topic": topic}})
}

#[test]
fn a_whole_set_becomes_two_documents() {
    let set = json!({
        "instance": {"metadata": {"name": "meters", "namespace": "plant"}, "spec": {
            "limits": {"packetSize": "64Ki", "deliveryRate": 9, "keepAlive": "89500ms", "characters": "Strict"},
            "session": {"expiry": "1h30m", "responseInformation": "replies/${clientId}"}, "auth": {"anonymousUser": "guest"}, "groups": ["GID-home"], "allowedNamespaces": ["default"], "expiresAt": "2027-01-31T12:00:00+08:00",
            "kafka": {"bootstrapServers": ["kafka-0.kafka:9092"]}, "listeners": {"mqtt": {"port": 2883}, "serverReference": "mqtt.example:1883"},
        }},
        "topics": [
            {"metadata": {"name": "readings", "namespace": "plant"}, "spec": {"instanceRef": {"name": "meters"}}},
            {"metadata": {"name": "ordered"}, "spec": {
                "instanceRef": {"name": "meters", "namespace": "plant"}, "topic": "orderMsg2mq-readings",
                "type": "PartitionOrdered", "partitions": 6, "retention": {"age": "24h", "size": "10Gi"}}},
        ],
        "users": [
            {"metadata": {"name": "guest", "namespace": "plant"}, "spec": {"instanceRef": {"name": "meters"}}},
            {"metadata": {"name": "fleet", "namespace": "plant"}, "spec": {
                "instanceRef": {"name": "meters"}, "username": "Fleet", "clientIds": ["meter-*"],
                "passwordSecretRef": {"name": "fleet", "key": "new"},
                "previousPasswordSecretRef": {"name": "fleet", "key": "old"}}},
        ],
        "grants": [
            {"metadata": {"name": "b", "namespace": "plant"}, "spec": {
                "instanceRef": {"name": "meters"}, "userRef": {"name": "fleet"},
                "rules": [{"action": "sub", "filter": "commands/${clientId}"}]}},
            {"metadata": {"name": "a", "namespace": "plant"}, "spec": {
                "instanceRef": {"name": "meters"}, "userRef": {"name": "fleet"},
                "rules": [{"action": "pub", "filter": "readings/#"}, {"action": "pubsub", "filter": "x"}]}},
        ],
        "secrets": [["plant", "fleet", "new", "n3w\n"], ["plant", "fleet", "old", "0ld"]],
    });
    let rule = |action, filter: &str| Rule { action, filter: filter.into() };
    let Rendered { config, kafka_secrets, tls_secrets, peers_secrets, acl, pending, problems } =
        rendered(&set);
    assert_eq!((pending.len(), problems), (0, vec![]));
    assert_eq!((kafka_secrets, tls_secrets, peers_secrets), (KafkaSecrets::default(), None, None));
    assert_eq!(
        acl,
        AclDocument {
            generation: 7,
            anonymous_user: Some("guest".into()),
            users: vec![
                AclUser {
                    username: "Fleet".into(),
                    passwords: vec![hash(SALT, b"n3w\n"), hash(SALT, b"0ld")],
                    client_ids: vec!["meter-*".into()],
                    rules: vec![
                        rule(Action::Pub, "readings/#"),
                        rule(Action::PubSub, "x"),
                        rule(Action::Sub, "commands/${clientId}"),
                    ],
                },
                AclUser { username: "guest".into(), passwords: vec![], client_ids: vec![], rules: vec![] },
            ],
        }
    );
    assert_eq!(
        config,
        InstanceConfig {
            instance: "plant/meters".into(),
            limits: config::Limits {
                connections: 100_000,
                publish_rate: 20_000,
                delivery_rate: Some(9),
                subscriptions: 100_000,
                connect_rate: 2000,
                connections_per_address: None,
                memory: None,
                packet_size: 65_536,
                client_id_length: 128,
                keep_alive_seconds: Some(90),
                characters: config::Characters::Strict,
            },
            session: config::SessionRules {
                expiry_seconds: 5_400,
                offline_messages: 10,
                online_messages: 1000,
                sharing: config::Sharing::RoundRobin,
                response_information: Some("replies/${clientId}".into()),
            },
            expires_at: Some(1_801_368_000),
            groups: vec!["GID-home".into()],
            parents: vec![
                config::Parent {
                    topic: "orderMsg2mq-readings".into(),
                    ordering: config::Ordering::PartitionOrdered,
                    partitions: 6,
                    retention: config::Retention { seconds: Some(86_400), bytes: Some(10 << 30) },
                },
                config::Parent {
                    topic: "readings".into(),
                    ordering: config::Ordering::Normal,
                    partitions: 3,
                    retention: config::Retention { seconds: Some(604_800), bytes: None },
                },
            ],
            listeners: config::Listeners {
                mqtt: "[::]:2883".into(),
                admin: "127.0.0.1:9090".into(),
                server_reference: Some("mqtt.example:1883".into()),
                ..config::Listeners::default()
            },
            kafka: Some(config::Kafka {
                bootstrap_servers: vec!["kafka-0.kafka:9092".into()],
                replication_factor: 3,
                rack: None,
                tls: None,
                sasl: None,
            }),
        }
    );
}

#[test]
fn the_order_of_objects_changes_nothing() {
    let set = |reverse: bool| {
        let mut users = vec![user("a"), user("b")];
        let mut grants = vec![grant("x", "a", "x"), grant("y", "a", "y"), grant("z", "b", "z")];
        let mut topics =
            vec![topic("t", "2026-01-01T00:00:00Z", "t"), topic("s", "2026-01-02T00:00:00Z", "t")];
        if reverse {
            users.reverse();
            grants.reverse();
            topics.reverse();
        }
        let secrets = json!([["default", "passwords", "a", "1"], ["default", "passwords", "b", "2"]]);
        rendered(&json!({"users": users, "grants": grants, "topics": topics, "secrets": secrets}))
    };
    assert_eq!(set(false), set(true));
}

#[test]
fn a_password_is_kept_as_the_sha_256_of_salt_and_password() {
    let PasswordHash::SaltedSha256 { salt, digest } = hash(*b"0123456789abcdef", b"secret") else { panic!() };
    assert_eq!(salt, "30313233343536373839616263646566");
    // printf 0123456789abcdefsecret | sha256sum
    assert_eq!(digest, "c5310e3d1e5823ef77ce3a5804988a72fc60c307a0c8959f3461e202e4a8d814");
}

#[test]
fn objects_of_another_namespace_count_where_the_instance_allows_that() {
    for (allowed, counts) in [(json!(["city"]), true), (json!(["*"]), true), (json!(["plant", "cit"]), false)]
    {
        let rendered = rendered(&json!({
            "instance": {"metadata": {"name": "meters"}, "spec": {"allowedNamespaces": allowed, "auth": {}}},
            "users": [foreign("guest")], "grants": [foreign_grant("all", "guest")], "topics": [foreign("alarms")],
        }));
        let rules = rendered.acl.users.iter().map(|user| user.rules.len()).sum::<usize>();
        let found = (rendered.config.parents.len(), rendered.acl.users.len(), rules);
        assert_eq!(found, if counts { (1, 1, 1) } else { (0, 0, 0) }, "{allowed}");
    }
}

#[test]
fn a_grant_counts_below_a_parent_topic_where_its_owners_let_its_namespace() {
    for (from, rules) in [(json!({"namespaces": ["city"]}), 1), (json!({}), 0)] {
        let guarded = json!({"metadata": {"name": "t"}, "spec": {"instanceRef": {"name": "meters"}, "grantsFrom": from}});
        let found = rendered(&json!({
            "instance": {"metadata": {"name": "meters"}, "spec": {"allowedNamespaces": ["*"], "auth": {}}},
            "topics": [guarded], "users": [foreign("other")], "grants": [foreign_grant("all", "other")],
        }));
        assert_eq!(found.acl.users.iter().map(|user| user.rules.len()).sum::<usize>(), rules, "{from}");
        let told = found.problems.iter().any(|problem| problem.field == "spec.rules[0].filter");
        assert!(told == (rules == 0), "{:?}", found.problems);
    }
}

#[test]
fn a_problem_of_one_object_takes_nothing_from_the_others() {
    let good_user = |rules: Vec<Rule>| AclUser {
        username: "good".into(),
        passwords: vec![hash(SALT, b"secret")],
        client_ids: vec![],
        rules,
    };
    for (what, add, expected) in [
        ("nothing wrong", json!({}), vec![]),
        (
            "a grant to nobody",
            json!({"grants": [grant("g", "nobody", "a")]}),
            vec![
                "TopicGrant default/g: spec.userRef.name: there is no MqttUser default/nobody; create it, or name another one",
            ],
        ),
        (
            "objects of another instance",
            json!({"users": [{"metadata": {"name": "u"}, "spec": {"instanceRef": {"name": "others"}}}],
                   "grants": [{"metadata": {"name": "g"}, "spec": {"instanceRef": {"name": "meters", "namespace": "b"},
                               "userRef": {"name": "good"}, "rules": [{"action": "pub", "filter": "a"}]}}]}),
            vec![
                "MqttUser default/u: spec.instanceRef: names MqttInstance default/others, but the only one here is default/meters; name that one, or remove this",
                "TopicGrant default/g: spec.instanceRef: names MqttInstance b/meters, but the only one here is default/meters; name that one, or remove this",
            ],
        ),
        (
            "objects of a namespace that the instance knows nothing of",
            json!({"users": [foreign("thief")], "grants": [foreign_grant("loot", "thief")], "topics": [foreign("stolen")]}),
            vec![
                "ParentTopic city/stolen: spec.instanceRef.namespace: MqttInstance default/meters takes no objects from namespace city; name it in its spec.allowedNamespaces, or make this one there",
                "MqttUser city/thief: spec.instanceRef.namespace: MqttInstance default/meters takes no objects from namespace city; name it in its spec.allowedNamespaces, or make this one there",
                "TopicGrant city/loot: spec.instanceRef.namespace: MqttInstance default/meters takes no objects from namespace city; name it in its spec.allowedNamespaces, or make this one there",
            ],
        ),
        (
            "a topic claimed twice: the older has it",
            json!({"topics": [topic("young", "2026-02-01T00:00:00Z", "t"), topic("old", "2026-01-01T00:00:00Z", "t")]}),
            vec![
                "ParentTopic default/young: spec.topic: the parent topic \"t\" belongs to ParentTopic default/old, which came first; remove one of the two",
            ],
        ),
        (
            "a user name claimed twice: the first has it, and the other's grants are void",
            json!({"users": [{"metadata": {"name": "second"}, "spec": {"instanceRef": {"name": "meters"}, "username": "good"}}],
                   "grants": [grant("g", "second", "a")]}),
            vec![
                "MqttUser default/second: spec.username: the user name \"good\" belongs to MqttUser default/good, which came first; remove one of the two",
                "TopicGrant default/g: spec.userRef.name: MqttUser default/second is not in force, so this grants nothing; see what is wrong with it",
            ],
        ),
        (
            "a Secret that is not there",
            json!({"users": [{"metadata": {"name": "u"}, "spec": {"instanceRef": {"name": "meters"},
                              "passwordSecretRef": {"name": "none", "key": "password"}}}]}),
            vec![
                "MqttUser default/u: spec.passwordSecretRef.name: there is no Secret default/none; create it, or name another one",
            ],
        ),
        (
            "keys that are not there, or empty",
            json!({"users": [{"metadata": {"name": "u"}, "spec": {"instanceRef": {"name": "meters"},
                              "passwordSecretRef": {"name": "passwords", "key": "none"},
                              "previousPasswordSecretRef": {"name": "passwords", "key": "empty"}}}]}),
            vec![
                "MqttUser default/u: spec.passwordSecretRef.key: Secret default/passwords has no key \"none\"; add it, or change the reference",
                "MqttUser default/u: spec.previousPasswordSecretRef.key: Secret default/passwords has nothing under \"empty\"; put the password there",
            ],
        ),
        (
            "a user who can't log in",
            json!({"users": [{"metadata": {"name": "u"}, "spec": {"instanceRef": {"name": "meters"}}}]}),
            vec![
                "MqttUser default/u: spec.passwordSecretRef: is missing, so this user can't log in; name a Secret that holds its password",
            ],
        ),
        (
            "an anonymous user who is not there",
            json!({"instance": {"metadata": {"name": "meters"}, "spec": {"auth": {"anonymousUser": "guest"}}}}),
            vec![
                "MqttInstance default/meters: spec.auth.anonymousUser: no MqttUser \"guest\" of this instance is in force in namespace default, so connections without credentials are refused; create it, or remove the field",
            ],
        ),
    ] {
        let mut set = json!({
            "users": [user("good")], "grants": [grant("good", "good", "mine/#")],
            "secrets": [["default", "passwords", "good", "secret"], ["default", "passwords", "empty", ""]],
        });
        for (field, value) in add.as_object().unwrap() {
            match (set.get_mut(field), value) {
                (Some(Value::Array(list)), Value::Array(more)) => list.extend(more.iter().cloned()),
                _ => set[field] = value.clone(),
            }
        }
        let Rendered { acl, problems, .. } = rendered(&set);
        let problems: Vec<_> =
            problems.iter().map(|p| format!("{}: {}: {}", p.object, p.field, p.message)).collect();
        assert_eq!(problems, expected, "{what}");
        let good: Vec<_> = acl.users.into_iter().filter(|user| user.username == "good").collect();
        assert_eq!(
            good,
            [good_user(vec![Rule { action: Action::PubSub, filter: "mine/#".into() }])],
            "{what}"
        );
    }
}

const CERTIFICATE: &str =
    "# who it is\n-----BEGIN CERTIFICATE-----\r\nTUlJQg==\r\n-----END CERTIFICATE-----\r\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nTUlJRQ==\n-----END PRIVATE KEY-----\n";

/// An instance in the namespace `plant` with every field of spec.kafka.
fn instance_with_kafka() -> Value {
    json!({"metadata": {"name": "meters", "namespace": "plant"}, "spec": {"kafka": {
        "bootstrapServers": ["kafka:9093"], "replicationFactor": 2, "rack": "zone-a",
        "tls": {"caSecretRef": {"name": "kafka-ca", "key": "ca.crt"}, "certificateSecretRef": {"name": "kafka-user"}},
        "sasl": {"mechanism": "SCRAM-SHA-256", "username": "mqtt",
                 "passwordSecretRef": {"name": "kafka-login", "key": "password"}},
    }}})
}

#[test]
fn kafka_s_secrets_stand_beside_the_config_and_never_in_it() {
    let secrets = json!([
        ["plant", "kafka-ca", "ca.crt", CERTIFICATE],
        ["plant", "kafka-user", "tls.crt", format!("{KEY}{CERTIFICATE}")],
        ["plant", "kafka-user", "tls.key", KEY],
        ["plant", "kafka-login", "password", "s3cret größe\n"],
    ]);
    let whole = rendered(&json!({"instance": instance_with_kafka(), "secrets": secrets}));
    assert_eq!(whole.problems, []);
    let kafka = config::Kafka {
        bootstrap_servers: vec!["kafka:9093".into()],
        replication_factor: 2,
        rack: Some("zone-a".into()),
        tls: Some(config::KafkaTls { ca: true, certificate: true }),
        sasl: Some(config::KafkaSasl {
            mechanism: config::SaslMechanism::ScramSha256,
            username: "mqtt".into(),
        }),
    };
    assert_eq!(whole.config.kafka.as_ref(), Some(&kafka));
    assert_eq!(
        whole.kafka_secrets,
        KafkaSecrets {
            ca: Some(CERTIFICATE.into()),
            certificate: Some(format!("{KEY}{CERTIFICATE}")),
            key: Some(KEY.into()),
            password: Some("s3cret größe\n".into()),
        }
    );

    for form in ["RSA PRIVATE", "EC PRIVATE"] {
        let key = KEY.replace("PRIVATE", form);
        let mut secrets = secrets.clone();
        secrets[2][3] = json!(key);
        let other = rendered(&json!({"instance": instance_with_kafka(), "secrets": secrets}));
        assert_eq!((other.problems, other.kafka_secrets.key), (vec![], Some(key)), "{form}");
    }

    // Without references there are no secrets, though the Secrets are there.
    let mut instance = instance_with_kafka();
    instance["spec"]["kafka"]["tls"] = json!({});
    instance["spec"]["kafka"].as_object_mut().unwrap().remove("sasl");
    let bare = rendered(&json!({"instance": instance, "secrets": secrets}));
    assert_eq!(bare.problems, []);
    let tls = Some(config::KafkaTls { ca: false, certificate: false });
    assert_eq!(bare.config.kafka, Some(config::Kafka { tls, sasl: None, ..kafka }));
    assert_eq!(bare.kafka_secrets, KafkaSecrets::default());
}

#[test]
fn a_kafka_secret_that_can_t_serve_is_a_problem_of_the_instance() {
    let login = json!(["plant", "kafka-login", "password", "s3cret"]);
    let ca = json!(["plant", "kafka-ca", "ca.crt", CERTIFICATE]);
    let certificate = json!(["plant", "kafka-user", "tls.crt", CERTIFICATE]);
    let key = json!(["plant", "kafka-user", "tls.key", KEY]);
    let good = [&ca, &certificate, &key, &login];
    // Each case: the Secrets' values that take the place of good ones of the same key (null: none at all).
    let check = |what: &str, changes: &[(&Value, Value)], expected: &[&str]| {
        let values: Vec<Value> = good
            .iter()
            .filter_map(|&value| {
                let change = changes.iter().find(|(changed, _)| *changed == value);
                let mut value = value.clone();
                match change {
                    Some((_, Value::Null)) => return None,
                    Some((_, instead)) => value[3] = instead.clone(),
                    None => {}
                }
                Some(value)
            })
            .collect();
        let Rendered { problems, kafka_secrets, .. } =
            rendered(&json!({"instance": instance_with_kafka(), "secrets": values}));
        let lines: Vec<_> =
            problems.iter().map(|p| format!("{}: {}: {}", p.object, p.field, p.message)).collect();
        let expected: Vec<_> =
            expected.iter().map(|line| format!("MqttInstance plant/meters: spec.kafka.{line}")).collect();
        assert_eq!(lines, expected, "{what}");
        let found = [
            (&ca, &kafka_secrets.ca),
            (&certificate, &kafka_secrets.certificate),
            (&key, &kafka_secrets.key),
            (&login, &kafka_secrets.password),
        ];
        for (value, found) in found {
            let changed = changes.iter().any(|(changed, _)| *changed == value);
            assert_eq!(found.is_none(), changed, "{what}: {}", value[2]);
        }
    };
    check("nothing wrong", &[], &[]);
    check(
        "no Secret at all, told once for the two halves of a pair",
        &[(&ca, Value::Null), (&certificate, Value::Null), (&key, Value::Null), (&login, Value::Null)],
        &[
            "tls.caSecretRef.name: there is no Secret plant/kafka-ca; create it, or name another one",
            "tls.certificateSecretRef.name: there is no Secret plant/kafka-user; create it, or name another one",
            "sasl.passwordSecretRef.name: there is no Secret plant/kafka-login; create it, or name another one",
        ],
    );
    check(
        "half a pair",
        &[(&key, Value::Null)],
        &[
            "tls.certificateSecretRef: Secret plant/kafka-user has no key \"tls.key\"; add it, or change the reference",
        ],
    );
    check(
        "empty values",
        &[(&ca, json!("")), (&certificate, json!("")), (&key, json!("")), (&login, json!(""))],
        &[
            "tls.caSecretRef.key: Secret plant/kafka-ca has nothing under \"ca.crt\"; put a certificate in PEM there",
            "tls.certificateSecretRef: Secret plant/kafka-user has nothing under \"tls.crt\"; put a certificate in PEM there",
            "tls.certificateSecretRef: Secret plant/kafka-user has nothing under \"tls.key\"; put a private key in PEM there",
            "sasl.passwordSecretRef.key: Secret plant/kafka-login has nothing under \"password\"; put the password there",
        ],
    );
    check(
        "bytes that are no text",
        &[(&ca, json!([0x30, 0x82, 0xff])), (&login, json!("s3cret\0"))],
        &[
            "tls.caSecretRef.key: the value of \"ca.crt\" in Secret plant/kafka-ca is no text; put UTF-8 there",
            "sasl.passwordSecretRef.key: the value of \"password\" in Secret plant/kafka-login is no text; put UTF-8 there",
        ],
    );
    check(
        "certificate and key in each other's place, and a CA whose lines were folded into one",
        &[
            (&ca, json!(CERTIFICATE.replace("\r\n", " "))),
            (&certificate, json!(KEY)),
            (&key, json!(CERTIFICATE)),
        ],
        &[
            "tls.caSecretRef.key: the value of \"ca.crt\" in Secret plant/kafka-ca has no line -----BEGIN CERTIFICATE-----; put certificates in PEM there",
            "tls.certificateSecretRef: the value of \"tls.crt\" in Secret plant/kafka-user has no line -----BEGIN CERTIFICATE-----; put certificates in PEM there",
            "tls.certificateSecretRef: the value of \"tls.key\" in Secret plant/kafka-user has no line -----BEGIN PRIVATE KEY-----; put a private key in PEM there",
        ],
    );
    for encrypted in [
        KEY.replace("PRIVATE", "ENCRYPTED PRIVATE"),
        KEY.replace("PRIVATE", "RSA PRIVATE").replace("TUlJ", "Proc-Type: 4,ENCRYPTED\n\nTUlJ"),
    ] {
        check(
            "an encrypted key",
            &[(&key, json!(encrypted))],
            &[
                "tls.certificateSecretRef: the value of \"tls.key\" in Secret plant/kafka-user is an encrypted private key; put the key there without a password",
            ],
        );
    }
}

#[test]
fn what_the_tls_listener_shows_stands_beside_the_config() {
    let certificate = json!(["plant", "meters-tls", "tls.crt", CERTIFICATE]);
    let key = json!(["plant", "meters-tls", "tls.key", KEY]);
    let ca = json!(["plant", "devices", "ca.crt", CERTIFICATE]);
    let check =
        |what: &str, mutual: bool, secrets: &[&Value], expected: Option<TlsSecrets>, told: &[&str]| {
            let mut mqtts = json!({"port": 8883, "secretRef": {"name": "meters-tls"}});
            if mutual {
                mqtts["clientCaSecretRef"] = json!({"name": "devices", "key": "ca.crt"});
            }
            let instance = json!({"metadata": {"name": "meters", "namespace": "plant"},
                              "spec": {"listeners": {"mqtts": mqtts}}});
            let Rendered { config, tls_secrets, problems, .. } =
                rendered(&json!({"instance": instance, "secrets": secrets}));
            assert_eq!(config.listeners.mqtts.as_deref(), Some("[::]:8883"), "{what}");
            assert_eq!(tls_secrets, expected, "{what}");
            let lines: Vec<_> = problems.iter().map(|p| format!("{}: {}", p.field, p.message)).collect();
            assert_eq!(lines, told, "{what}");
        };
    let pair = |client_ca| Some(TlsSecrets { certificate: CERTIFICATE.into(), key: KEY.into(), client_ca });
    check("all there", false, &[&certificate, &key], pair(None), &[]);
    check("devices with certificates", true, &[&certificate, &key, &ca], pair(Some(CERTIFICATE.into())), &[]);
    check(
        "a missing CA lets nobody in",
        true,
        &[&certificate, &key],
        None,
        &[
            "spec.listeners.mqtts.clientCaSecretRef.name: there is no Secret plant/devices; create it, or name another one",
        ],
    );
    check(
        "no Secret",
        false,
        &[],
        None,
        &[
            "spec.listeners.mqtts.secretRef.name: there is no Secret plant/meters-tls; create it, or name another one",
        ],
    );
    check(
        "half a pair, and that in the wrong place",
        false,
        &[&json!(["plant", "meters-tls", "tls.crt", KEY])],
        None,
        &[
            "spec.listeners.mqtts.secretRef: the value of \"tls.crt\" in Secret plant/meters-tls has no line -----BEGIN CERTIFICATE-----; put certificates in PEM there",
            "spec.listeners.mqtts.secretRef: Secret plant/meters-tls has no key \"tls.key\"; add it, or change the reference",
        ],
    );
}

#[test]
fn brokers_show_each_other_what_one_secret_holds_all_of() {
    let instance = json!({"metadata": {"name": "meters", "namespace": "plant"},
                          "spec": {"listeners": {"peers": {"secretRef": {"name": "peers"}}}}});
    let whole = [("tls.crt", CERTIFICATE), ("tls.key", KEY), ("ca.crt", CERTIFICATE)];
    let check = |secrets: &[(&str, &str)], told: &[&str]| {
        let secrets: Vec<_> =
            secrets.iter().map(|(key, text)| json!(["plant", "peers", key, text])).collect();
        let Rendered { peers_secrets, problems, .. } =
            rendered(&json!({"instance": instance, "secrets": secrets}));
        let lines: Vec<_> = problems.iter().map(|p| format!("{}: {}", p.field, p.message)).collect();
        assert_eq!(lines, told);
        assert_eq!(peers_secrets.is_some(), told.is_empty());
        assert!(peers_secrets.is_none_or(|secrets| secrets.client_ca.is_some()));
    };
    check(&whole, &[]);
    check(
        &whole[..2],
        &[
            "spec.listeners.peers.secretRef: Secret plant/peers has no key \"ca.crt\"; add it, or change the reference",
        ],
    );
    check(
        &[],
        &[
            "spec.listeners.peers.secretRef.name: there is no Secret plant/peers; create it, or name another one",
        ],
    );
}
