//! What one object can prove wrong about itself, at creation and at update.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use common::{check, merged, problems};
use kube::core::cel;
use mqtt_operator_api::{Kind, crds};
use serde_json::{Value, json};

#[test]
fn an_instance_is_held_to_its_bounds() {
    check(
        Kind::MqttInstance,
        &json!({}),
        &[
            (json!({}), None),
            (
                json!({"replicas": 3,
                    "limits": {"connections": 100_000, "publishRate": 20_000, "subscriptions": 100_000,
                               "packetSize": "128Ki", "clientIdLength": 128, "characters": "Any"},
                    "session": {"expiry": "2h", "offlineMessages": 10, "onlineMessages": 1000, "sharing": "RoundRobin"},
                    "kafka": {"bootstrapServers": ["kafka-0.kafka:9092"], "replicationFactor": 3},
                    "auth": {"anonymousUser": "guest"}, "groups": ["GID-home"]}),
                None,
            ),
            (json!({"replicas": 0}), Some("spec.replicas: is 0, and must be 1 at least; raise it")),
            (json!({"replicas": "3"}), Some("spec.replicas: must be a whole number, not text")),
            (json!({"replicas": 1.5}), Some("spec.replicas: must be a whole number, not a number")),
            (json!({"replicas": null}), Some("spec.replicas: has no value; give it one")),
            (
                json!({"replcas": 3}),
                Some("spec.replcas: is not known; remove or rename it (known here: allowedNam"),
            ),
            (json!({"allowedNamespaces": ["plant-a", "*"]}), None),
            (
                json!({"allowedNamespaces": ["plant-*"]}),
                Some("spec.allowedNamespaces[0]: \"plant-*\" has characters"),
            ),
            (
                json!({"allowedNamespaces": ["a", "a"]}),
                Some("spec.allowedNamespaces[1]: \"a\" stands here twice"),
            ),
            (json!({"expiresAt": "2036-01-31T12:00:00Z", "paused": true}), None),
            (json!({"expiresAt": "2036-01-31T12:00:00.5+08:00"}), None),
            (
                json!({"expiresAt": "2036-01-31"}),
                Some("spec.expiresAt: \"2036-01-31\" is not a point in time"),
            ),
            (json!({"limits": {"memory": "64Mi", "connectRate": 1, "connectionsPerAddress": 1}}), None),
            (json!({"limits": {"memory": "1Mi"}}), Some("spec.limits.memory: must lie between 64Mi and 1Ti")),
            (json!({"limits": {"connectRate": 0}}), Some("spec.limits.connectRate: is 0")),
            (json!({"limits": {"connections": 0}}), Some("spec.limits.connections: is 0")),
            (json!({"limits": {"publishRate": 0}}), Some("spec.limits.publishRate: is 0")),
            (json!({"limits": {"deliveryRate": 0}}), Some("spec.limits.deliveryRate: is 0")),
            (json!({"limits": {"deliveryRate": 500}}), None),
            (json!({"limits": {"subscriptions": 0}}), Some("spec.limits.subscriptions: is 0")),
            (json!({"limits": {"clientIdLength": 0}}), Some("spec.limits.clientIdLength: is 0")),
            (json!({"limits": {"keepAlive": "20m"}}), None),
            (
                json!({"limits": {"keepAlive": "0s"}}),
                Some("spec.limits.keepAlive: must lie between 1s and 65535s"),
            ),
            (
                json!({"limits": {"keepAlive": "19h"}}),
                Some("spec.limits.keepAlive: must lie between 1s and 65535s"),
            ),
            (
                json!({"limits": {"characters": "Some"}}),
                Some("spec.limits.characters: \"Some\" is not one of Any, Strict"),
            ),
            (json!({"limits": {"packetSize": 131_072}}), None),
            (
                json!({"limits": {"packetSize": "127"}}),
                Some("spec.limits.packetSize: must lie between 128 and 256Mi"),
            ),
            (
                json!({"limits": {"packetSize": 127}}),
                Some("spec.limits.packetSize: must lie between 128 and 256Mi"),
            ),
            (
                json!({"limits": {"packetSize": "257Mi"}}),
                Some("spec.limits.packetSize: must lie between 128 and 256Mi"),
            ),
            (
                json!({"limits": {"packetSize": "128KB"}}),
                Some("spec.limits.packetSize: \"128KB\" is not an amount of bytes"),
            ),
            (
                json!({"limits": {"packetSize": true}}),
                Some("spec.limits.packetSize: must be a whole number or text"),
            ),
            (json!({"session": {"expiry": "0s"}}), None),
            (json!({"retainFor": "1s", "deletionPolicy": "Delete"}), None),
            (json!({"retainFor": "0s"}), Some("spec.retainFor: must lie between 1s and 876000h")),
            (
                json!({"session": {"expiry": "2 hours"}}),
                Some("spec.session.expiry: \"2 hours\" is not a duration"),
            ),
            (
                json!({"session": {"expiry": "8761h"}}),
                Some("spec.session.expiry: must lie between 0s and 8760h"),
            ),
            (json!({"session": {"offlineMessages": 0}}), None),
            (json!({"session": {"offlineMessages": -1}}), Some("spec.session.offlineMessages: is -1")),
            (json!({"session": {"onlineMessages": 0}}), Some("spec.session.onlineMessages: is 0")),
            (json!({"session": {"sharing": "HashClientId"}}), None),
            (
                json!({"session": {"sharing": "Random"}}),
                Some("spec.session.sharing: \"Random\" is not one of RoundRobin, HashClientId, Sticky"),
            ),
            (json!({"session": {"responseInformation": "r/${clientId}/${username}$"}}), None),
            (
                json!({"session": {"responseInformation": "r/${clientid}"}}),
                Some("spec.session.responseInformation: has an unknown placeholder; only ${clientId}"),
            ),
            (
                json!({"session": {"responseInformation": "r/\n"}}),
                Some("spec.session.responseInformation: \"r/\\n\" has characters"),
            ),
            (json!({"listeners": {"serverReference": "mqtt.example:1883 [::1]:1883"}}), None),
            (
                json!({"listeners": {"serverReference": "mqtt.example, other.example"}}),
                Some("spec.listeners.serverReference: \"mqtt.example, other.example\" has characters"),
            ),
            (json!({"kafka": {}}), Some("spec.kafka.bootstrapServers: is missing; add it")),
            (json!({"kafka": {"bootstrapServers": []}}), Some("spec.kafka.bootstrapServers: has 0 entries")),
            (json!({"kafka": {"bootstrapServers": ["[::1]:9092", "10.0.0.1:9092"]}}), None),
            (
                json!({"kafka": {"bootstrapServers": ["kafka"]}}),
                Some("spec.kafka.bootstrapServers: each server is HOST:PORT"),
            ),
            (
                json!({"kafka": {"bootstrapServers": ["k:1"], "replicationFactor": 0}}),
                Some("spec.kafka.replicationFactor: is 0"),
            ),
            (
                json!({"groups": ["GID-home", "GID-home"]}),
                Some("spec.groups[1]: \"GID-home\" stands here twice"),
            ),
            (json!({"groups": ["a@@b"]}), Some("spec.groups[0]: \"a@@b\" has characters")),
            (
                json!({"auth": {"anonymousUser": "Guest"}}),
                Some("spec.auth.anonymousUser: \"Guest\" is not a name"),
            ),
        ],
    );
}

#[test]
fn kafka_is_reached_as_its_administrators_ask() {
    let password = json!({"name": "kafka", "key": "password"});
    let sasl = |change: Value| {
        let sasl = json!({"mechanism": "SCRAM-SHA-512", "username": "mqtt", "passwordSecretRef": password});
        json!({"kafka": {"sasl": merged(sasl, change)}})
    };
    check(
        Kind::MqttInstance,
        &json!({"kafka": {"bootstrapServers": ["kafka:9093"]}}),
        &[
            (json!({"kafka": {"rack": "eu-central-1a"}}), None),
            (json!({"kafka": {"rack": ""}}), Some("spec.kafka.rack: is empty")),
            (json!({"kafka": {"rack": "r".repeat(255)}}), None),
            (json!({"kafka": {"rack": "r".repeat(256)}}), Some("spec.kafka.rack: has 256 characters")),
            (json!({"kafka": {"rack": "a\u{0}"}}), Some("spec.kafka.rack: \"a\\0\" has characters")),
            (json!({"kafka": {"tls": {}}}), None),
            (
                json!({"kafka": {"tls": {"caSecretRef": {"name": "kafka-ca", "key": "ca.crt"},
                                         "certificateSecretRef": {"name": "kafka-user"}}}}),
                None,
            ),
            (
                json!({"kafka": {"tls": {"caSecretRef": {"name": "kafka-ca"}}}}),
                Some("spec.kafka.tls.caSecretRef.key: is missing; add it"),
            ),
            (
                json!({"kafka": {"tls": {"certificateSecretRef": {}}}}),
                Some("spec.kafka.tls.certificateSecretRef.name: is missing; add it"),
            ),
            (
                json!({"kafka": {"tls": {"certificateSecretRef": {"name": "Kafka"}}}}),
                Some("spec.kafka.tls.certificateSecretRef.name: \"Kafka\" is not a name"),
            ),
            (
                json!({"kafka": {"tls": {"certificateSecretRef": {"name": "kafka-user", "key": "user.crt"}}}}),
                Some(
                    "spec.kafka.tls.certificateSecretRef.key: is not known; remove or rename it (known here: name)",
                ),
            ),
            (
                json!({"kafka": {"tls": {"insecure": true}}}),
                Some(
                    "spec.kafka.tls.insecure: is not known; remove or rename it (known here: caSecretRef, cert",
                ),
            ),
            (
                json!({"kafka": {"tls": true}}),
                Some("spec.kafka.tls: must be a map of fields, not true or false"),
            ),
            (sasl(json!({})), None),
            (sasl(json!({"mechanism": "PLAIN"})), None),
            (sasl(json!({"mechanism": "SCRAM-SHA-256"})), None),
            (
                sasl(json!({"mechanism": "GSSAPI"})),
                Some(
                    "spec.kafka.sasl.mechanism: \"GSSAPI\" is not one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512",
                ),
            ),
            (sasl(json!({"username": ""})), Some("spec.kafka.sasl.username: is empty")),
            (
                sasl(json!({"username": "u".repeat(256)})),
                Some("spec.kafka.sasl.username: has 256 characters, and may have 255"),
            ),
            (
                sasl(json!({"username": "mqtt\n"})),
                Some("spec.kafka.sasl.username: \"mqtt\\n\" has characters"),
            ),
            (sasl(json!({"password": "secret"})), Some("spec.kafka.sasl.password: is not known")),
            (
                json!({"kafka": {"sasl": {"mechanism": "PLAIN", "passwordSecretRef": password}}}),
                Some("spec.kafka.sasl.username: is missing; add it"),
            ),
            (
                json!({"kafka": {"sasl": {"mechanism": "PLAIN", "username": "mqtt"}}}),
                Some("spec.kafka.sasl.passwordSecretRef: is missing; add it"),
            ),
            (
                json!({"kafka": {"sasl": {"username": "mqtt", "passwordSecretRef": password}}}),
                Some("spec.kafka.sasl.mechanism: is missing; add it"),
            ),
        ],
    );
}

#[test]
fn a_parent_topic_is_named_and_sized_so_that_a_log_can_keep_it() {
    let long = "a".repeat(250);
    check(
        Kind::ParentTopic,
        &json!({"instanceRef": {"name": "meters"}}),
        &[
            (json!({}), None),
            (json!({"topic": "Readings_1.x-y", "type": "Normal", "partitions": 12, "remark": "all"}), None),
            (json!({"topic": "orderMsg2mq-readings", "type": "PartitionOrdered"}), None),
            (
                json!({"topic": "readings", "type": "PartitionOrdered"}),
                Some(
                    "spec.topic: \"readings\" has the type PartitionOrdered, so it must begin with orderMsg2mq-",
                ),
            ),
            (
                json!({"type": "PartitionOrdered"}),
                Some("spec.topic: \"sample\" has the type PartitionOrdered"),
            ),
            (
                json!({"topic": "orderMsg2mq-readings"}),
                Some("spec.topic: \"orderMsg2mq-readings\" begins with orderMsg2mq-, so its type must be"),
            ),
            (
                json!({"type": "Ordered"}),
                Some("spec.type: \"Ordered\" is not one of Normal, PartitionOrdered"),
            ),
            (json!({"topic": ""}), Some("spec.topic: is empty")),
            (json!({"topic": "a/b"}), Some("spec.topic: \"a/b\" may not name a parent topic")),
            (json!({"topic": "é"}), Some("spec.topic: \"é\" may not name a parent topic")),
            (json!({"topic": long}), Some("spec.topic: has 250 characters, and may have 249")),
            (json!({"topic": "."}), Some("spec.topic: \".\" is taken by the system")),
            (json!({"topic": ".."}), Some("spec.topic: \"..\" is taken by the system")),
            (json!({"topic": "mq2mqtt"}), Some("spec.topic: \"mq2mqtt\" is taken by the system")),
            (json!({"topic": "mq2mqtt-rejected"}), Some("spec.topic: \"mq2mqtt-rejected\" is taken")),
            (json!({"topic": "mqtt-device-connect"}), Some("spec.topic: \"mqtt-device-connect\" is taken")),
            (json!({"topic": "mqtt-device-trace"}), Some("spec.topic: \"mqtt-device-trace\" is taken")),
            (
                json!({"topic": "mqtt-device-disconnect"}),
                Some("spec.topic: \"mqtt-device-disconnect\" is taken"),
            ),
            (json!({"topic": "__mqtt-sessions"}), Some("spec.topic: \"__mqtt-sessions\" is taken")),
            (json!({"topic": "__consumer_offsets"}), Some("spec.topic: \"__consumer_offsets\" is taken")),
            (json!({"topic": "mqtt-devices"}), None),
            (json!({"partitions": 0}), Some("spec.partitions: is 0")),
            (json!({"retention": {"age": "720h", "size": "10Gi"}}), None),
            (json!({"retention": {"size": 1_073_741_824}}), None),
            (
                json!({"retention": {"age": "500ms"}}),
                Some("spec.retention.age: must lie between 1s and 876000h"),
            ),
            (json!({"retention": {"size": "1"}}), Some("spec.retention.size: must lie between 1Ki and 1Ei")),
            (json!({"grantsFrom": {}}), None),
            (json!({"grantsFrom": {"namespaces": ["plant-a", "*"]}}), None),
            (
                json!({"grantsFrom": {"namespaces": ["a.b"]}}),
                Some("spec.grantsFrom.namespaces[0]: \"a.b\" has characters"),
            ),
            (json!({"instanceRef": {"name": "M"}}), Some("spec.instanceRef.name: \"M\" is not a name")),
            (
                json!({"instanceRef": {"name": "m", "namespace": "a.b"}}),
                Some("spec.instanceRef.namespace: \"a.b\" is not a namespace"),
            ),
        ],
    );
    for (name, expected) in [
        ("readings", vec![]),
        (
            "mq2mqtt",
            vec![
                "spec.topic: \"mq2mqtt\" is taken by the system, as is all that begins with __; choose another name",
            ],
        ),
    ] {
        let found = problems(Kind::ParentTopic, name, json!({"instanceRef": {"name": "meters"}}), None);
        assert_eq!(found, expected, "a topic that takes the name of its object, {name}");
    }
}

#[test]
fn a_user_whose_password_is_generated_leaves_room_for_the_name_of_its_secret() {
    let password = json!({"name": "fleet-password", "key": "password"});
    for (length, secret, expected) in [
        (248, None, None),
        (
            249,
            None,
            Some(
                "spec.passwordSecretRef: the name is too long for the Secret of a generated password; shorten it, or set passwordSecretRef",
            ),
        ),
        (249, Some(&password), None),
    ] {
        let mut spec = json!({"instanceRef": {"name": "meters"}});
        if let Some(secret) = secret {
            spec["passwordSecretRef"] = secret.clone();
        }
        let found = problems(Kind::MqttUser, &"u".repeat(length), spec, None);
        assert_eq!(found, Vec::from_iter(expected), "{length} letters, {secret:?}");
    }
}

#[test]
fn a_user_is_named_and_gets_its_passwords_from_secrets() {
    let password = json!({"name": "fleet-password", "key": "password"});
    check(
        Kind::MqttUser,
        &json!({"instanceRef": {"name": "meters"}}),
        &[
            (json!({}), None),
            (
                json!({"username": "Zähler 1", "passwordSecretRef": password, "clientIds": ["meter-*"], "remark": "x"}),
                None,
            ),
            (json!({"passwordSecretRef": password, "previousPasswordSecretRef": password}), None),
            (
                json!({"previousPasswordSecretRef": password}),
                Some("spec.previousPasswordSecretRef: a previous password needs a current one"),
            ),
            (
                json!({"passwordSecretRef": {"name": "a"}}),
                Some("spec.passwordSecretRef.key: is missing; add it"),
            ),
            (
                json!({"passwordSecretRef": {"name": "a", "key": "a b"}}),
                Some("spec.passwordSecretRef.key: \"a b\" has characters"),
            ),
            (json!({"password": "secret"}), Some("spec.password: is not known")),
            (json!({"username": ""}), Some("spec.username: is empty")),
            (json!({"username": "a\u{0}"}), Some("spec.username: \"a\\0\" has characters")),
            (json!({"username": 5}), Some("spec.username: must be text, not a number; put it in quotes")),
            (json!({"clientIds": [""]}), Some("spec.clientIds[0]: is empty")),
            (json!({"clientIds": ["a", "a"]}), Some("spec.clientIds[1]: \"a\" stands here twice")),
            (json!({"clientIds": "meter-*"}), Some("spec.clientIds: must be a list, not text")),
        ],
    );
}

#[test]
fn a_grant_s_filters_are_well_formed() {
    let rule = |filter: &str| json!({"rules": [{"action": "sub", "filter": "a"}, {"action": "pub", "filter": filter}]});
    let mut cases = vec![
        (json!({"rules": []}), Some("spec.rules: has 0 entries, and needs 1 at least")),
        (
            json!({"rules": [{"action": "all", "filter": "a"}]}),
            Some("spec.rules[0].action: \"all\" is not one of pub, sub, pubsub"),
        ),
        (json!({"rules": [{"action": "pub"}]}), Some("spec.rules[0].filter: is missing")),
        (
            json!({"rules": vec![json!({"action": "pub", "filter": "a"}); 101]}),
            Some("spec.rules: has 101 entries, and may have 100"),
        ),
        (
            json!({"rules": [{"action": "pub", "filter": "a"}], "userRef": {"name": "fleet", "namespace": "b"}}),
            Some("spec.userRef.namespace: is not known"),
        ),
    ];
    for filter in [
        "#",
        "+",
        "/",
        "a",
        "a/#",
        "/#",
        "+/#",
        "a/+/b",
        "+/+",
        "a//b",
        "$SYS/#",
        "größe/+",
        "orderMsg2mq-readings/${clientId}/#",
        "commands/${clientId}",
        "x-${username}-${clientId}/+",
        "$",
        "a$",
        "$a/b",
        "$${clientId}",
        "{a}",
        "a$$/b",
    ] {
        cases.push((rule(filter), None));
    }
    for (filter, expected) in [
        ("", "spec.rules[1].filter: is empty"),
        ("a/#/b", "spec.rules[1].filter: \"a/#/b\" has '#' before its end; put '#' last"),
        ("##", "spec.rules[1].filter: \"##\" has '#' before its end"),
        ("a#", "spec.rules[1].filter: \"a#\" has '#' beside other characters; give it a level of its own"),
        (
            "a/b+",
            "spec.rules[1].filter: \"a/b+\" has '+' beside other characters; give it a level of its own",
        ),
        ("+a/b", "spec.rules[1].filter: \"+a/b\" has '+' beside"),
        ("++", "spec.rules[1].filter: \"++\" has '+' beside"),
        (
            "a/${clientid}",
            "spec.rules[1].filter: \"a/${clientid}\" has an unknown placeholder; only ${clientId} and ${username} are known",
        ),
        ("${", "spec.rules[1].filter: \"${\" has an unknown placeholder"),
        (
            "${user${clientId}name}",
            "spec.rules[1].filter: \"${user${clientId}name}\" has an unknown placeholder",
        ),
        (
            "$share/g/a",
            "spec.rules[1].filter: \"$share/g/a\" is a shared subscription; grant the filter behind the group's name",
        ),
        ("a\u{0}b", "spec.rules[1].filter: \"a\\0b\" has characters"),
    ] {
        cases.push((rule(filter), Some(expected)));
    }
    check(
        Kind::TopicGrant,
        &json!({"instanceRef": {"name": "meters"}, "userRef": {"name": "fleet"}}),
        &cases,
    );
}

#[test]
fn an_update_may_change_what_does_not_make_another_thing_of_it() {
    let topic = json!({"instanceRef": {"name": "meters"}, "partitions": 3});
    let ordered = json!({"instanceRef": {"name": "meters"}, "topic": "orderMsg2mq-r", "type": "PartitionOrdered", "partitions": 3});
    let user = json!({"instanceRef": {"name": "meters"}, "username": "fleet"});
    let grant = json!({"instanceRef": {"name": "meters"}, "userRef": {"name": "fleet"}, "rules": [{"action": "pub", "filter": "a"}]});
    let elsewhere = json!({"instanceRef": {"name": "others"}});
    for (kind, old, change, expected) in [
        (Kind::MqttInstance, json!({}), json!({"replicas": 5, "session": {"expiry": "1h"}}), None),
        (Kind::ParentTopic, topic.clone(), json!({"partitions": 6, "remark": "more"}), None),
        (Kind::ParentTopic, topic.clone(), json!({"topic": "sample"}), None),
        (
            Kind::ParentTopic,
            topic.clone(),
            json!({"partitions": 2}),
            Some("spec.partitions: partitions may grow, never shrink"),
        ),
        (
            Kind::ParentTopic,
            topic.clone(),
            elsewhere.clone(),
            Some("spec.instanceRef: instanceRef is immutable"),
        ),
        (
            Kind::ParentTopic,
            topic,
            json!({"topic": "other"}),
            Some("spec.topic: the topic of a ParentTopic is immutable"),
        ),
        (Kind::ParentTopic, ordered.clone(), json!({"retention": {"age": "1h"}}), None),
        (
            Kind::ParentTopic,
            ordered,
            json!({"partitions": 4}),
            Some("spec.partitions: the partitions of an ordered topic are fixed"),
        ),
        (
            Kind::MqttUser,
            user.clone(),
            json!({"passwordSecretRef": {"name": "a", "key": "b"}, "clientIds": ["x"]}),
            None,
        ),
        (
            Kind::MqttUser,
            user.clone(),
            json!({"username": "other"}),
            Some("spec.username: the user name of an MqttUser is immutable"),
        ),
        (Kind::MqttUser, user, elsewhere.clone(), Some("spec.instanceRef: instanceRef is immutable")),
        (Kind::TopicGrant, grant.clone(), json!({"rules": [{"action": "sub", "filter": "b/#"}]}), None),
        (Kind::TopicGrant, grant.clone(), elsewhere, Some("spec.instanceRef: instanceRef is immutable")),
        (
            Kind::TopicGrant,
            grant,
            json!({"userRef": {"name": "other"}}),
            Some("spec.userRef: userRef is immutable"),
        ),
    ] {
        let found = problems(kind, "sample", merged(old.clone(), change.clone()), Some(old.clone()));
        match expected {
            None => assert!(found.is_empty(), "{kind} {old} + {change}: {found:#?}"),
            Some(start) => assert!(
                found.len() == 1 && found[0].starts_with(start),
                "{kind} {old} + {change}: {found:#?}"
            ),
        }
    }
    // A change of type also breaks the rule that ties names to types, so it shows as two problems.
    let found = problems(
        Kind::ParentTopic,
        "sample",
        json!({"instanceRef": {"name": "meters"}, "type": "PartitionOrdered"}),
        Some(json!({"instanceRef": {"name": "meters"}, "type": "Normal"})),
    );
    assert!(
        found.contains(&"spec.type: type is immutable; make another object instead".to_owned()),
        "{found:#?}"
    );
}

#[test]
fn all_that_is_wrong_with_an_object_is_told_at_once() {
    let found = problems(
        Kind::TopicGrant,
        "Sample",
        json!({"instanceRef": {}, "userRef": {"name": "fleet"}, "rules": [{"action": "x", "filter": ""}], "more": 1}),
        None,
    );
    let fields: Vec<_> = found.iter().filter_map(|line| line.split(": ").next()).collect();
    assert_eq!(
        fields,
        [
            "metadata.name",
            "spec.instanceRef.name",
            "spec.more",
            "spec.rules[0].action",
            "spec.rules[0].filter"
        ],
        "{found:#?}"
    );
}

#[test]
fn every_rule_compiles_says_what_to_do_and_is_cheap() {
    fn check(schema: &Value, path: &str) -> usize {
        let compiled = cel::compile_schema(schema);
        assert!(!compiled.has_errors(), "{path}: {:?}", compiled.compilation_errors());
        let rules = schema.get("x-kubernetes-validations").and_then(Value::as_array);
        for rule in rules.into_iter().flatten() {
            let text = rule["rule"].as_str().unwrap();
            let warnings = cel::estimate_rule_cost(text, &compiled);
            assert!(warnings.is_empty(), "{path}: {warnings:#?}");
            assert!(rule.get("message").or(rule.get("messageExpression")).is_some(), "{path}: {text}");
        }
        let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        let items = schema.get("items").into_iter();
        rules.map_or(0, Vec::len)
            + properties.map(|(name, property)| check(property, &format!("{path}.{name}"))).sum::<usize>()
            + items.map(|items| check(items, &format!("{path}[]"))).sum::<usize>()
    }
    for (kind, rules) in
        [(Kind::MqttInstance, 25), (Kind::ParentTopic, 11), (Kind::MqttUser, 4), (Kind::TopicGrant, 7)]
    {
        assert_eq!(check(&crds::schema(kind).unwrap(), kind.name()), rules, "rules of {kind}");
    }
}
