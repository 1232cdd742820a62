//! What holds for whatever is built.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::{collections::BTreeSet, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::{FULL, MINIMAL, built, good, options, parent, user};
use k8s_openapi::api::core::v1::{PodSpec, Secret};
use mqtt_broker_api::{
    node::{
        KAFKA_CA, KAFKA_CERTIFICATE, KAFKA_KEY, KAFKA_PASSWORD, NodeConfig, PEERS_CA, PEERS_CERTIFICATE,
        PEERS_KEY,
    },
    shards,
    yaml::documents,
};
use mqtt_operator::{
    cli::yaml,
    instance::build::{ACL_SHARDS, Built, Options},
};
use serde_json::Value;

fn pod(built: &Built) -> PodSpec {
    built.stateful_set.spec.clone().unwrap().template.spec.unwrap()
}

#[test]
fn the_pods_do_not_notice_users_grants_and_parents() {
    let many: String = (0..20).map(|n| user(&format!("user-{n}"))).collect();
    for instance in [MINIMAL, FULL] {
        let before = good(instance, &options()).1;
        for (what, added, shard_bytes) in [
            ("a user with a grant", user("fleet"), 10_000),
            ("parents", parent("readings") + &parent("events"), 10_000),
            ("users over several shards", many.clone(), 700),
        ] {
            let after = good(&[instance, &added].concat(), &Options { shard_bytes, ..options() }).1;
            assert_eq!(after.stateful_set, before.stateful_set, "{what}");
            assert!(
                (&after.acl, &after.config) != (&before.acl, &before.config),
                "{what} changed nothing at all"
            );
            assert!(shard_bytes > 1000 || after.acl.len() > 3, "{what}: {} shards", after.acl.len());
        }
        let other_secrets = instance
            .replace("s3cret", "other")
            .replace("caSecretRef: {name: kafka,", "caSecretRef: {name: devices,")
            .replace("key: ca.pem", "key: ca.crt");
        assert_eq!(good(&other_secrets, &options()).1.stateful_set, before.stateful_set, "other Secrets");
        let image = Options { image: "mqtt-broker:2".into(), ..options() };
        let own_image = instance == FULL;
        assert_eq!(good(instance, &image).1.stateful_set == before.stateful_set, own_image, "the image");
    }
}

/// The rules of the PodSecurity profile `restricted` that a pod breaks, and those that we add to it.
fn broken(pod: &PodSpec) -> Vec<String> {
    let mut broken = Vec::new();
    let mut rule = |kept: bool, rule: &str| {
        if !kept {
            broken.push(rule.to_owned());
        }
    };
    rule(!pod.host_network.unwrap_or_default(), "hostNetwork");
    rule(!pod.host_pid.unwrap_or_default() && !pod.host_ipc.unwrap_or_default(), "hostPID, hostIPC");
    rule(pod.automount_service_account_token == Some(false), "no service account token");
    let security = pod.security_context.clone().unwrap_or_default();
    rule(security.run_as_non_root == Some(true) && security.run_as_user > Some(0), "runAsNonRoot");
    rule(security.seccomp_profile.is_some_and(|profile| profile.type_ == "RuntimeDefault"), "seccomp");
    let safe = |name: &str| name == "net.ipv4.ip_unprivileged_port_start";
    rule(security.sysctls.iter().flatten().all(|sysctl| safe(&sysctl.name)), "sysctls");
    for volume in pod.volumes.iter().flatten() {
        let allowed = volume.config_map.is_some() || volume.secret.is_some() || volume.projected.is_some();
        rule(allowed && volume.host_path.is_none(), &format!("volume {}", volume.name));
    }
    for container in pod.init_containers.iter().flatten().chain(&pod.containers) {
        let security = container.security_context.clone().unwrap_or_default();
        let capabilities = security.capabilities.unwrap_or_default();
        rule(security.allow_privilege_escalation == Some(false), "allowPrivilegeEscalation");
        rule(security.privileged != Some(true), "privileged");
        rule(security.read_only_root_filesystem == Some(true), "readOnlyRootFilesystem");
        rule(security.run_as_non_root != Some(false) && security.run_as_user != Some(0), "runAsNonRoot");
        rule(capabilities.drop == Some(vec!["ALL".into()]) && capabilities.add.is_none(), "capabilities");
        rule(container.ports.iter().flatten().all(|port| port.host_port.is_none()), "hostPort");
        let read_only = container.volume_mounts.iter().flatten().all(|mount| mount.read_only == Some(true));
        rule(read_only, "mounts are read-only");
    }
    broken
}

#[test]
fn every_pod_meets_the_profile_restricted() {
    for instance in [MINIMAL, FULL] {
        let mut pod = pod(&good(instance, &options()).1);
        assert!(!pod.containers.is_empty());
        assert_eq!(broken(&pod), Vec::<String>::new());
        pod.containers[0].security_context = None;
        pod.automount_service_account_token = None;
        assert_eq!(
            broken(&pod),
            [
                "no service account token",
                "allowPrivilegeEscalation",
                "readOnlyRootFilesystem",
                "capabilities"
            ]
        );
    }
}

#[test]
fn what_is_secret_is_in_secrets_alone() {
    let (rendered, built) = good(&[FULL, &user("fleet")].concat(), &options());
    let acl = serde_json::to_value(&rendered.acl).unwrap();
    let hash = &acl["users"][0]["passwords"][0]["saltedSha256"];
    let mut hidden = vec!["s3cret".to_owned()];
    hidden.extend(["salt", "digest"].map(|part| hash[part].as_str().unwrap().to_owned()));
    hidden.extend(["s3cret", "3cret-", "cret-o"].map(|part| STANDARD.encode(part)));
    let (mut seen, mut others) = (0, 0);
    for object in built.objects().unwrap() {
        let text = yaml(&object).unwrap();
        if object["kind"] != "Secret" {
            others += 1;
            for hidden in &hidden {
                assert!(!text.contains(hidden), "{hidden} in {text}");
            }
            continue;
        }
        let secret: Secret = serde_json::from_value(object).unwrap();
        let values: Vec<_> = secret.data.iter().flatten().map(|(_, value)| &value.0).collect();
        seen += values.iter().filter(|value| hidden.iter().any(|hidden| contains(value, hidden))).count();
    }
    assert_eq!((seen, others), (11, 7), "values with secrets, and objects without");
}

fn contains(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}

/// The config that the pods read.
fn node_config(built: &Built) -> NodeConfig {
    let data = built.config.data.clone().unwrap();
    let container = &pod(built).containers[0];
    let mut words = container.command.iter().flatten().skip_while(|word| *word != "--config");
    let file = Path::new(words.nth(1).unwrap());
    let folder = file.parent().unwrap().to_str().unwrap();
    let mount = container.volume_mounts.iter().flatten().find(|mount| mount.mount_path == folder).unwrap();
    assert_eq!(mount.name, "config");
    let text = &data[file.file_name().unwrap().to_str().unwrap()];
    let [document] = <[_; 1]>::try_from(documents(text).unwrap()).unwrap();
    serde_json::from_value(document.value).unwrap()
}

#[test]
fn the_config_is_what_a_broker_reads_and_names_what_is_mounted() {
    for manifests in [MINIMAL.to_owned(), [FULL, &user("fleet"), &parent("readings")].concat()] {
        let (rendered, built) = good(&manifests, &options());
        let config = node_config(&built);
        let mut instance = config.instance.clone();
        assert_eq!(
            instance.listeners.admin.strip_prefix("[::]:"),
            rendered.config.listeners.admin.strip_prefix("127.0.0.1:")
        );
        instance.listeners.admin = rendered.config.listeners.admin.clone();
        assert_eq!(instance, rendered.config);
        assert_eq!(config.data, None);
        assert_eq!(config.tls.is_some(), rendered.config.listeners.mqtts.is_some());
        assert_eq!(config.kafka_secrets.is_some(), built.kafka.is_some());

        let pod = pod(&built);
        let mounts: Vec<_> = pod.containers[0].volume_mounts.iter().flatten().collect();
        let named_by = |path: &Path| {
            let mount = mounts.iter().find(|mount| path.starts_with(&mount.mount_path)).unwrap();
            pod.volumes.iter().flatten().find(|volume| volume.name == mount.name).unwrap().clone()
        };
        let listed: Vec<_> = named_by(&config.acl[0])
            .projected
            .unwrap()
            .sources
            .unwrap()
            .into_iter()
            .map(|source| source.secret.unwrap())
            .collect();
        assert_eq!((config.acl.len(), listed.len()), (1, ACL_SHARDS));
        assert!(listed.iter().all(|source| source.optional == Some(true)));
        let shard = built.acl[0].metadata.name.clone().unwrap();
        assert!(listed.iter().any(|source| source.name == shard), "{shard}");
        if let Some(folder) = &config.kafka_secrets {
            let secret = built.kafka.as_ref().unwrap();
            assert_eq!(named_by(folder).secret.unwrap().secret_name, secret.metadata.name);
            let keys: BTreeSet<_> = secret.data.iter().flatten().map(|(key, _)| key.as_str()).collect();
            assert_eq!(keys, BTreeSet::from([KAFKA_CA, KAFKA_CERTIFICATE, KAFKA_KEY, KAFKA_PASSWORD]));
        }
        if let Some(tls) = &config.tls {
            let secret = built.tls.as_ref().unwrap();
            for file in [&tls.certificate_file, &tls.key_file, tls.client_ca_file.as_ref().unwrap()] {
                assert_eq!(named_by(file).secret.unwrap().secret_name, secret.metadata.name);
                let key = file.file_name().unwrap().to_str().unwrap();
                assert!(secret.data.as_ref().unwrap().contains_key(key), "{key}");
            }
        }
        let secret = built.peers.as_ref().unwrap();
        let keys: BTreeSet<_> = secret.data.iter().flatten().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, BTreeSet::from([PEERS_CERTIFICATE, PEERS_KEY, PEERS_CA]));
        // A single replica gets others without a restart.
        let mounted = pod.volumes.iter().flatten().find(|volume| volume.name == "peers").unwrap();
        assert_eq!(mounted.secret.as_ref().unwrap().secret_name, secret.metadata.name);
        assert_eq!(config.peers.is_some(), config.shared);
        let listens_for_peers = config.peers.as_ref().map(|peers| {
            assert_eq!(named_by(&peers.secrets), *mounted);
            let host = "${node}.meters-nodes.plant.svc:";
            let port = peers.address.strip_prefix(host).unwrap();
            assert_eq!(peers.listen, format!("[::]:{port}"));
            &peers.listen
        });
        let default = "[::]:7883".to_owned();
        let listeners = [
            listens_for_peers.or(Some(&default)),
            Some(&config.instance.listeners.mqtt),
            config.instance.listeners.mqtts.as_ref(),
            config.instance.listeners.ws.as_ref(),
            config.instance.listeners.wss.as_ref(),
            Some(&config.instance.listeners.admin),
        ];
        let listens: BTreeSet<String> =
            listeners.into_iter().flatten().map(|address| address.replace("[::]:", "")).collect();
        let ports = pod.containers[0].ports.iter().flatten().map(|port| port.container_port.to_string());
        assert_eq!(ports.collect::<BTreeSet<_>>(), listens);
    }
}

#[test]
fn the_shards_are_the_acl_under_the_names_that_pods_mount() {
    let users: String = (0..20).map(|n| user(&format!("user-{n}"))).collect();
    let (rendered, built) = good(&[MINIMAL, &users].concat(), &Options { shard_bytes: 700, ..options() });
    let mut keys = BTreeSet::new();
    let shards = built.acl.iter().map(|secret| {
        let [(key, value)] = <[_; 1]>::try_from(secret.data.iter().flatten().collect::<Vec<_>>()).unwrap();
        assert!(key.ends_with(".json") && keys.insert(key.clone()), "{key}");
        assert!(value.0.len() <= 700);
        serde_json::from_slice(&value.0).unwrap()
    });
    assert_eq!(shards::join(shards.collect()), Ok(rendered.acl));
    assert!(keys.len() > 3, "{keys:?}");
}

/// Builds from the manifests, and compares the problems.
fn check(what: &str, manifests: &str, options: &Options, expected: &[&str]) {
    let problems = built(manifests, options).1.err().unwrap_or_default();
    let lines: Vec<_> = problems.iter().map(|p| format!("{} {}: {}", p.object, p.field, p.message)).collect();
    assert_eq!(lines, expected, "{what}");
}

#[test]
fn what_can_not_be_built_is_told_with_its_field() {
    let with = |pod: &str| format!("{MINIMAL}  pod: {pod}\n");
    let users: String = (0..60).map(|n| user(&format!("user-{n:02}"))).collect();
    check("all in order", MINIMAL, &options(), &[]);
    check(
        "no Kafka",
        &MINIMAL
            .lines()
            .filter(|line| !line.contains("kafka:"))
            .map(|line| format!("{line}\n"))
            .collect::<String>(),
        &options(),
        &[
            "MqttInstance plant/meters spec.kafka: is missing; on a cluster all that is stored is kept in Kafka: say where it is",
        ],
    );
    check(
        "an affinity that is none",
        &with("{affinity: {nodeAffinity: [a]}, tolerations: [{key: a}, {key: b, operater: Exists}]}"),
        &options(),
        &[
            "MqttInstance plant/meters spec.pod.affinity: can't be read: invalid type: sequence, expected NodeAffinity; mend it",
            "MqttInstance plant/meters spec.pod.tolerations[1].operater: is not known in pods; remove or rename it",
        ],
    );
    check(
        "a field deep down that is not known",
        &with(
            "{affinity: {podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, podAffinityTerm: {topologyKey: a, zone: b}}]}}}",
        ),
        &options(),
        &[
            "MqttInstance plant/meters spec.pod.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.zone: is not known in pods; remove or rename it",
        ],
    );
    check(
        "more users than fit",
        &[MINIMAL, &users].concat(),
        &Options { shard_bytes: 500, ..options() },
        &[
            "MqttInstance plant/meters : the 60 users and their grants fill 60 Secrets, and 32 at most can be mounted; grant more by ${clientId} and wildcards, or spread the users over several instances",
        ],
    );
}

#[test]
fn what_is_incomplete_is_kept_as_it_is() {
    let names = |secrets: &[&Option<Secret>]| secrets.iter().filter(|secret| secret.is_some()).count();
    let of_kafka = ("meters-broker-kafka", &[KAFKA_CA, KAFKA_CERTIFICATE, KAFKA_KEY, KAFKA_PASSWORD][..]);
    let of_listener = ("meters-broker-tls", &["tls.crt", "tls.key", "ca.crt"][..]);
    let of_peers = ("meters-broker-peers", &[PEERS_CERTIFICATE, PEERS_KEY, PEERS_CA][..]);
    let key_of_listener = "  tls.key: \"-----BEGIN PRIVATE KEY-----\\ns3cret-key\\n\"\n";
    let ca_of_peers = "  ca.crt: \"-----BEGIN CERTIFICATE-----\\ns3cret-peers-ca\\n\"\n";
    for (what, key, kept, there) in [
        ("all there", "nothing", None, 3),
        ("no password for Kafka", "  password: s3cret-kafka-password\n", Some(of_kafka), 2),
        ("no key for the listener", key_of_listener, Some(of_listener), 2),
        ("no CA for peers", ca_of_peers, Some(of_peers), 2),
    ] {
        let (rendered, built) = built(&FULL.replace(key, ""), &options());
        let built = built.unwrap();
        assert_eq!(rendered.problems.len(), kept.iter().len(), "{what}: {:?}", rendered.problems);
        let names_and_keys = built.kept.iter().map(|kept| (kept.name.as_str(), kept.keys.as_slice()));
        assert_eq!(names_and_keys.collect::<Vec<_>>(), Vec::from_iter(kept), "{what}");
        assert_eq!(names(&[&built.kafka, &built.tls, &built.peers]), there, "{what}");
    }
}

#[test]
fn all_objects_belong_to_the_instance_and_are_found_by_its_labels() {
    let (_, built) = good(&[FULL, &user("fleet")].concat(), &options());
    let mut named = BTreeSet::new();
    for object in built.objects().unwrap() {
        let metadata = &object["metadata"];
        assert_eq!(metadata["namespace"], "plant");
        assert_eq!(metadata["labels"]["app.kubernetes.io/instance"], "meters");
        assert_eq!(metadata["labels"]["app.kubernetes.io/managed-by"], "mqtt-operator");
        let owner = serde_json::json!([{"apiVersion": "mqtt.dms.dev/v1alpha1", "kind": "MqttInstance", "name": "meters",
            "uid": "6d1c0f0e-0000-4000-8000-000000000001", "controller": true}]);
        assert_eq!(metadata["ownerReferences"], owner);
        assert!(object["apiVersion"].is_string());
        let name = (object["kind"].to_string(), metadata["name"].to_string());
        assert!(named.insert(name.clone()), "{name:?} twice");
    }
    let set = built.stateful_set.spec.unwrap();
    let labels = set.template.metadata.unwrap().labels.unwrap();
    for (key, value) in set.selector.match_labels.unwrap() {
        assert_eq!(labels.get(&key), Some(&value), "the selector finds the pods");
    }
    assert_eq!(labels["team"], "plant");
}

#[test]
fn as_many_brokers_run_as_are_asked_for_and_know_whether_there_are_others() {
    for (instance, replicas) in [(MINIMAL, 1), (FULL, 3)] {
        let built = good(instance, &options()).1;
        assert_eq!(node_config(&built).shared, replicas > 1);
        let spec = built.stateful_set.spec.unwrap();
        assert_eq!(spec.replicas, Some(replicas));
        let container = spec.template.spec.unwrap().containers.remove(0);
        assert!(container.command.unwrap().ends_with(&["--node".into(), "$(NODE_NAME)".into()]));
    }
}

/// The ports that a rule of the NetworkPolicy lets through, and the namespaces it lets in.
fn lets_in(rule: &Value) -> (Vec<u64>, Vec<&str>) {
    let each = |field: &str| rule[field].as_array().into_iter().flatten();
    let namespace = "/namespaceSelector/matchLabels/kubernetes.io~1metadata.name";
    (
        each("ports").filter_map(|port| port["port"].as_u64()).collect(),
        each("from").filter_map(|peer| peer.pointer(namespace)?.as_str()).collect(),
    )
}

#[test]
fn devices_come_from_anywhere_to_the_admin_port_only_who_must_and_to_that_for_peers_the_instances_pods() {
    for (instance, devices, admin, from, kafka, peers) in [
        (MINIMAL, vec![1883], 9090, vec!["mqtt-operator"], vec![9092], 7883),
        (FULL, vec![2883, 443, 8083, 444], 9091, vec!["monitoring", "mqtt-operator"], vec![9093, 9094], 7884),
    ] {
        let policy = serde_json::to_value(good(instance, &options()).1.network_policy).unwrap();
        let spec = &policy["spec"];
        let all = |rules: &Value| rules.as_array().unwrap().clone();
        let (mut ingress, mut egress) = (all(&spec["ingress"]), all(&spec["egress"]));
        for (rules, whom) in [(&mut ingress, "from"), (&mut egress, "to")] {
            let rule = rules.pop().unwrap();
            assert_eq!(
                (&rule["ports"][0]["port"], rule["ports"].as_array().unwrap().len()),
                (&peers.into(), 1)
            );
            // Of the same namespace, as no other is named.
            assert_eq!(rule[whom], serde_json::json!([{"podSelector": spec["podSelector"]}]));
        }
        assert_eq!(ingress.iter().map(lets_in).collect::<Vec<_>>(), [(devices, vec![]), (vec![admin], from)]);
        assert!(ingress[0].get("from").is_none());
        assert_eq!(egress.iter().map(lets_in).collect::<Vec<_>>(), [(vec![53, 53], vec![]), (kafka, vec![])]);
        assert_eq!(spec["policyTypes"], serde_json::json!(["Ingress", "Egress"]));
    }
}
