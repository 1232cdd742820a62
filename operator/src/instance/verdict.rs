//! How an instance fares. Pure.
//!
//! | reason | whose turn | when |
//! |---|---|---|
//! | `Serving` | nobody's | a broker is ready, and the Services are there |
//! | `Conflict`, `Invalid`, `SecretNotFound`, `SecretUnusable`, `UserNotInForce` | a person's | the object, or what it names |
//! | `Forbidden`, `Refused`, `NameTaken` | a person's | the API server, or an object in the way |
//! | `ImageNotPulled`, `NotStarted`, `Crashing`, `Unschedulable` | a person's | a pod can't run |
//! | `BrokersNotReady` | a person's | a broker says for longer than [`PATIENCE`] why it is not ready |
//! | `Starting`, `Updating`, `WaitsForAddress` | ours | on its way |
//! | `Retrying` | ours | something did not work, and is tried again |

use std::time::Duration;

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Service};
use mqtt_operator_api::{instance::MqttInstance, render::Problem, status::Endpoints, workload::ServiceType};

use super::nodes::Broker;
use crate::{apply::Error, status::Verdict};

/// How long a broker may say why it is not ready before a person is asked for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// All that a verdict is made of.
pub struct Facts<'a> {
    pub instance: &'a MqttInstance,
    /// Of this instance alone.
    pub problems: &'a [&'a Problem],
    /// What could not be written.
    pub failed: Option<&'a Error>,
    pub stateful_set: Option<&'a StatefulSet>,
    pub brokers: &'a [Broker],
    /// The one that devices meet.
    pub service: Option<&'a Service>,
    /// How long no broker has been ready.
    pub unready: Duration,
    /// What a person should know, such as of fields that do not count yet.
    pub notes: &'a str,
}

pub fn verdict(facts: &Facts<'_>) -> Verdict {
    let Facts { problems, failed, brokers, .. } = facts;
    if let Some(verdict) = Verdict::of_problems(problems.iter().copied()) {
        return verdict;
    }
    if let Some(failed) = failed {
        return failed.verdict();
    }
    for broker in brokers.iter().filter(|broker| !broker.ending) {
        if let Some(trouble) = broker.trouble.as_ref().filter(|trouble| trouble.theirs) {
            return Verdict::stalled(&trouble.reason, format!("pod {}: {}", broker.pod, trouble.message));
        }
    }
    let said = brokers.iter().find_map(|broker| Some((&broker.pod, broker.said.as_ref()?)));
    let ready = brokers.iter().filter(|broker| broker.ready && !broker.ending).count();
    if ready == 0 {
        return match said {
            Some((pod, said)) if facts.unready > PATIENCE => {
                Verdict::stalled("BrokersNotReady", format!("pod {pod} is not ready: {said}"))
            }
            Some((pod, said)) => Verdict::reconciling("Starting", format!("pod {pod} is not ready: {said}")),
            None => Verdict::reconciling("Starting", "waits for a broker to be ready"),
        };
    }
    if let Some(waits) = rollout(facts.stateful_set) {
        return Verdict::reconciling("Updating", waits);
    }
    if waits_for_address(facts.instance, facts.service) {
        let message = "brokers serve inside the cluster, and the cluster has given the LoadBalancer no address yet; does it have any?";
        return Verdict::reconciling("WaitsForAddress", message);
    }
    let brokers = if ready == 1 { "1 broker is ready".into() } else { format!("{ready} brokers are ready") };
    let notes = if facts.notes.is_empty() { String::new() } else { format!("; {}", facts.notes) };
    Verdict::ready("Serving", brokers + &notes)
}

/// What an update of the pods waits for.
fn rollout(stateful_set: Option<&StatefulSet>) -> Option<String> {
    let Some(stateful_set) = stateful_set else { return Some("waits for the StatefulSet".into()) };
    let Some(status) = stateful_set.status.as_ref() else { return Some("waits for the StatefulSet".into()) };
    if status.observed_generation < stateful_set.metadata.generation {
        return Some("waits for the StatefulSet".into());
    }
    let wanted = stateful_set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let updated = if status.current_revision == status.update_revision {
        status.current_replicas.or(status.updated_replicas)
    } else {
        status.updated_replicas
    };
    let updated = updated.unwrap_or(0);
    (updated < wanted).then(|| format!("{updated} of {wanted} pods are as they shall be"))
}

fn waits_for_address(instance: &MqttInstance, service: Option<&Service>) -> bool {
    instance.spec.service.service_type == ServiceType::LoadBalancer && addresses(service).is_empty()
}

fn addresses(service: Option<&Service>) -> Vec<String> {
    let status = service.and_then(|service| service.status.as_ref()?.load_balancer.as_ref());
    let ingress = status.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    ingress.filter_map(|one| one.hostname.clone().or_else(|| one.ip.clone().map(bracketed))).collect()
}

fn bracketed(address: String) -> String {
    if address.contains(':') { format!("[{address}]") } else { address }
}

/// Where devices and applications find the instance.
pub fn endpoints(instance: &MqttInstance, service: Option<&Service>) -> Endpoints {
    let (Some(name), Some(namespace)) = (&instance.metadata.name, &instance.metadata.namespace) else {
        return Endpoints::default();
    };
    let listeners = &instance.spec.listeners;
    let mqtts = listeners.mqtts.as_ref().map(|mqtts| ("mqtts", mqtts.port));
    let ports: Vec<_> = [("mqtt", listeners.mqtt.port)].into_iter().chain(mqtts).collect();
    let mut devices = Vec::new();
    for host in [format!("{name}-mqtt.{namespace}.svc")].into_iter().chain(addresses(service)) {
        devices.extend(ports.iter().map(|(scheme, port)| format!("{scheme}://{host}:{port}")));
    }
    if instance.spec.service.service_type == ServiceType::NodePort {
        let open = service.and_then(|service| service.spec.as_ref()?.ports.as_ref());
        for port in open.into_iter().flatten() {
            if let (Some(scheme), Some(number)) = (&port.name, port.node_port) {
                devices.push(format!("{scheme}://NODE:{number}"));
            }
        }
    }
    let kafka = instance.spec.kafka.as_ref();
    let applications = kafka.map(|kafka| kafka.bootstrap_servers.clone()).unwrap_or_default();
    Endpoints { devices, applications }
}
