//! The StatefulSet that runs the brokers of an instance.
//!
//! Its pods meet the PodSecurity profile `restricted`. The template names what is mounted, never its content.

use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetSpec},
        core::v1::{
            Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource,
            HTTPGetAction, LocalObjectReference, ObjectFieldSelector, PodSecurityContext, PodSpec,
            PodTemplateSpec, Probe, ProjectedVolumeSource, ResourceRequirements, SeccompProfile,
            SecretProjection, SecretVolumeSource, SecurityContext, Sysctl, Toleration,
            TopologySpreadConstraint, Volume, VolumeMount, VolumeProjection,
        },
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use kube::core::ObjectMeta;
use mqtt_broker_api::config::InstanceConfig;
use mqtt_operator_api::render::Problem;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{
    ACL_SHARDS,
    config::{
        ACL_FOLDER, CONFIG_FOLDER, CONFIG_KEY, KAFKA_FOLDER, PEERS_FOLDER, TLS_FOLDER, has_kafka_secrets,
    },
    names::Frame,
    services::{ADMIN, PEERS, device_ports},
};

/// How long a broker may take to end its sessions.
const GRACE_SECONDS: i64 = 60;
/// Nobody in particular; any but root's would do.
const USER: i64 = 65532;
/// Read by the owner and the group, which is the broker's.
const MODE: i32 = 0o440;

/// What can't be read of the overrides is left out, and a problem.
pub(super) fn stateful_set(
    frame: &Frame<'_>,
    config: &InstanceConfig,
    problems: &mut Vec<Problem>,
) -> StatefulSet {
    let pod = &frame.spec().pod;
    let mut labels = pod.labels.clone();
    labels.extend(frame.labels());
    let annotations = (!pod.annotations.is_empty()).then(|| pod.annotations.clone());
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels), annotations, ..ObjectMeta::default() }),
        spec: Some(pod_spec(frame, config, problems)),
    };
    StatefulSet {
        metadata: frame.meta(frame.broker()),
        spec: Some(StatefulSetSpec {
            replicas: Some(i32::try_from(frame.spec().replicas).unwrap_or(i32::MAX)),
            service_name: Some(frame.headless_service()),
            selector: frame.label_selector(),
            pod_management_policy: Some("Parallel".into()),
            template,
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

fn pod_spec(frame: &Frame<'_>, config: &InstanceConfig, problems: &mut Vec<Problem>) -> PodSpec {
    let pod = &frame.spec().pod;
    let mounted = mounted(frame, config);
    let affinity = pod.affinity.as_ref().and_then(|written| {
        as_in_pods::<Affinity>(written)
            .map_err(|(field, message)| {
                problems.push(frame.problem(&format!("spec.pod.affinity{field}"), message));
            })
            .ok()
    });
    let mut tolerations = Vec::new();
    for (i, written) in pod.tolerations.iter().enumerate() {
        match as_in_pods::<Toleration>(written) {
            Ok(toleration) => tolerations.push(toleration),
            Err((field, message)) => {
                problems.push(frame.problem(&format!("spec.pod.tolerations[{i}]{field}"), message));
            }
        }
    }
    let pull_secrets: Vec<_> =
        pod.image_pull_secrets.iter().map(|s| LocalObjectReference { name: s.name.clone() }).collect();
    let spread = ["topology.kubernetes.io/zone", "kubernetes.io/hostname"];
    PodSpec {
        containers: vec![container(frame, &mounted)],
        volumes: Some(mounted.into_iter().map(|(volume, _)| volume).collect()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(pod_security(frame)),
        topology_spread_constraints: Some(spread.iter().map(|key| spread_over(frame, key)).collect()),
        image_pull_secrets: some_of(pull_secrets),
        affinity,
        tolerations: some_of(tolerations),
        priority_class_name: pod.priority_class_name.clone(),
        ..PodSpec::default()
    }
}

fn container(frame: &Frame<'_>, mounted: &[(Volume, &'static str)]) -> Container {
    let pod = &frame.spec().pod;
    let mount = |(volume, folder): &(Volume, &'static str)| VolumeMount {
        name: volume.name.clone(),
        mount_path: (*folder).into(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let listeners = &frame.spec().listeners;
    let within = [(ADMIN, listeners.admin.port), (PEERS, listeners.peers.port)];
    let ports = device_ports(frame).into_iter().chain(within);
    let log_level = pod.log_level.map(|level| EnvVar {
        name: "MQTT_LOG".into(),
        value: Some(level.name().into()),
        value_from: None,
    });
    let node_name = EnvVar {
        name: "NODE_NAME".into(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: "metadata.name".into(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
    };
    let config = format!("{CONFIG_FOLDER}/{CONFIG_KEY}");
    Container {
        name: "broker".into(),
        image: Some(pod.image.as_ref().unwrap_or(&frame.options.image).clone()),
        command: Some(
            ["mqtt-broker", "run", "--config", &config, "--node", "$(NODE_NAME)"].map(str::to_owned).into(),
        ),
        env: Some(log_level.into_iter().chain([node_name]).collect()),
        ports: Some(ports.map(port).collect()),
        resources: Some(pod.resources.clone().map_or_else(default_resources, ResourceRequirements::from)),
        volume_mounts: Some(mounted.iter().map(mount).collect()),
        security_context: Some(container_security()),
        // The start is over once the admin endpoint answers; from then on silence for a minute is death.
        startup_probe: Some(probe("/healthz", 1, 60)),
        liveness_probe: Some(probe("/healthz", 10, 6)),
        readiness_probe: Some(probe("/readyz", 5, 2)),
        ..Container::default()
    }
}

/// Each volume, and the folder where it is mounted.
fn mounted(frame: &Frame<'_>, config: &InstanceConfig) -> Vec<(Volume, &'static str)> {
    let config_map = Volume {
        name: "config".into(),
        config_map: Some(ConfigMapVolumeSource {
            name: frame.config(),
            default_mode: Some(MODE),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    let acl = Volume {
        name: "acl".into(),
        projected: Some(ProjectedVolumeSource {
            sources: Some((0..ACL_SHARDS).map(|shard| optional(frame.acl(shard))).collect()),
            default_mode: Some(MODE),
        }),
        ..Volume::default()
    };
    let secret = |name: &str, secret_name: String| Volume {
        name: name.into(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret_name),
            default_mode: Some(MODE),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    let kafka =
        has_kafka_secrets(config.kafka.as_ref()).then(|| (secret("kafka", frame.kafka()), KAFKA_FOLDER));
    let tls = config.listeners.mqtts.as_ref().map(|_| (secret("tls", frame.tls()), TLS_FOLDER));
    // With a single replica, too, which looks at none of it: to get others restarts no pod.
    let peers = (secret("peers", frame.peers()), PEERS_FOLDER);
    [(config_map, CONFIG_FOLDER), (acl, ACL_FOLDER), peers].into_iter().chain(kafka).chain(tls).collect()
}

fn optional(secret: String) -> VolumeProjection {
    VolumeProjection {
        secret: Some(SecretProjection { name: secret, optional: Some(true), items: None }),
        ..VolumeProjection::default()
    }
}

fn port((name, number): (&str, u16)) -> ContainerPort {
    ContainerPort {
        name: Some(name.into()),
        container_port: number.into(),
        protocol: Some("TCP".into()),
        ..ContainerPort::default()
    }
}

fn probe(path: &str, period_seconds: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String(ADMIN.into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        failure_threshold: Some(failures),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

fn default_resources() -> ResourceRequirements {
    let requests = [("cpu", "250m"), ("memory", "256Mi")];
    let requests = requests.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())));
    ResourceRequirements { requests: Some(requests.into()), ..ResourceRequirements::default() }
}

fn pod_security(frame: &Frame<'_>) -> PodSecurityContext {
    let listeners = &frame.spec().listeners;
    let devices = device_ports(frame).into_iter().map(|(_, port)| port);
    let low = devices.chain([listeners.admin.port, listeners.peers.port]).any(|port| port < 1024);
    let any_port = Sysctl { name: "net.ipv4.ip_unprivileged_port_start".into(), value: "0".into() };
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        seccomp_profile: Some(seccomp()),
        sysctls: low.then(|| vec![any_port]),
        ..PodSecurityContext::default()
    }
}

fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
        seccomp_profile: Some(seccomp()),
        ..SecurityContext::default()
    }
}

fn seccomp() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }
}

/// Evenly as far as it goes: a cluster of one zone or node runs all the same.
fn spread_over(frame: &Frame<'_>, key: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        topology_key: key.into(),
        max_skew: 1,
        when_unsatisfiable: "ScheduleAnyway".into(),
        label_selector: Some(frame.label_selector()),
        ..TopologySpreadConstraint::default()
    }
}

fn some_of<T>(items: Vec<T>) -> Option<Vec<T>> {
    (!items.is_empty()).then_some(items)
}

/// Reads what is written as in pods; or tells the field below and what is wrong. Fields that pods do not have are
/// wrong, too: in silence they would be dropped.
fn as_in_pods<T: DeserializeOwned + Serialize>(written: &Map<String, Value>) -> Result<T, (String, String)> {
    let written = Value::Object(written.clone());
    let unreadable = |error: serde_json::Error| (String::new(), format!("can't be read: {error}; mend it"));
    let read: T = serde_json::from_value(written.clone()).map_err(unreadable)?;
    match lost(&written, &serde_json::to_value(&read).map_err(unreadable)?) {
        None => Ok(read),
        Some(field) => Err((field, "is not known in pods; remove or rename it".into())),
    }
}

/// The first field that is in one and not in the other.
fn lost(written: &Value, read: &Value) -> Option<String> {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => written.iter().find_map(|(name, value)| {
            let below = read.get(name).map_or(Some(String::new()), |read| lost(value, read))?;
            Some(format!(".{name}{below}"))
        }),
        (Value::Array(written), Value::Array(read)) => written
            .iter()
            .zip(read)
            .enumerate()
            .find_map(|(i, (written, read))| Some(format!("[{i}]{}", lost(written, read)?))),
        _ => None,
    }
}
