//! How an instance fares. Pure.
//!
//! | reason | whose turn | when |
//! |---|---|---|
//! | `Serving` | nobody's | a broker is ready, and the Services are there |
//! | `Conflict`, `Invalid`, `SecretNotFound`, `SecretUnusable`, `UserNotInForce` | a person's | the object, or what it names |
//! | `Forbidden`, `Refused`, `NameTaken` | a person's | the API server, or an object in the way |
//! | `ImageNotPulled`, `NotStarted`, `Crashing`, `Unschedulable` | a person's | a pod can't run |
//! | `BrokersNotReady` | a person's | a broker says for longer than [`PATIENCE`] why it is not ready |
//! | `Expired` | a person's | `spec.expiresAt` is over |
//! | `Paused` | a person's | `spec.paused` is true |
//! | `Starting`, `Updating`, `WaitsForAddress` | ours | on its way |
//! | `Retrying` | ours | something did not work, and is tried again |

use std::time::Duration;

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::Service},
    jiff::Timestamp,
};
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
    /// Pods wait for a Secret that one of the problems is about.
    pub held: bool,
    pub stateful_set: Option<&'a StatefulSet>,
    pub brokers: &'a [Broker],
    /// The one that devices meet.
    pub service: Option<&'a Service>,
    /// How long no broker has been ready.
    pub unready: Duration,
    pub now: Timestamp,
}

/// Nothing is changed for now.
pub fn paused() -> Verdict {
    let message = "spec.paused is true, so nothing of the instance is changed, and brokers go on as they are; set it to false";
    Verdict::stalled("Paused", message)
}

pub fn verdict(facts: &Facts<'_>) -> Verdict {
    let Facts { problems, failed, brokers, .. } = facts;
    if let Some(mut verdict) = Verdict::of_problems(problems.iter().copied()) {
        if facts.held {
            let until = if brokers.is_empty() {
                "no broker starts before"
            } else {
                "until then brokers go on as they are"
            };
            verdict.message = format!("{}. {until}", verdict.message);
        }
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
    if let Some(at) = facts.instance.spec.expires_at.as_ref().filter(|at| at.0 <= facts.now) {
        let message = format!(
            "expired at {}: devices are refused, and what is stored stays; move spec.expiresAt",
            at.0
        );
        return Verdict::stalled("Expired", message);
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
    Verdict::ready("Serving", brokers)
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
        status.current_replicas.max(status.updated_replicas)
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
    let more = [
        ("mqtts", listeners.mqtts.as_ref().map(|mqtts| mqtts.port)),
        ("ws", listeners.ws.as_ref().map(|ws| ws.port)),
        ("wss", listeners.wss.as_ref().map(|wss| wss.port)),
    ];
    let more = more.into_iter().filter_map(|(scheme, port)| Some((scheme, port?)));
    let ports: Vec<_> = [("mqtt", listeners.mqtt.port)].into_iter().chain(more).collect();
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

#[cfg(test)]
mod tests {
    use mqtt_operator_api::{Kind, render::name_of};
    use serde_json::{Value, json};

    use super::*;
    use crate::{instance::nodes::Trouble, status::Turn};

    fn instance(service: &str) -> MqttInstance {
        serde_json::from_value(json!({
            "metadata": {"name": "meters", "namespace": "plant"},
            "spec": {"service": {"type": service},
                     "listeners": {"mqtts": {"port": 8883, "secretRef": {"name": "tls"}}, "ws": {"port": 8083}},
                     "kafka": {"bootstrapServers": ["kafka:9092"]}},
        }))
        .unwrap()
    }

    fn instance_until(end: &str) -> MqttInstance {
        let mut instance = instance("ClusterIP");
        instance.spec.expires_at = serde_json::from_value(json!(end)).unwrap();
        instance
    }

    fn service(more: &Value) -> Service {
        let mut service = json!({"spec": {"ports": [{"name": "mqtt", "port": 1883, "nodePort": 31883}]}});
        service["status"] = more.clone();
        serde_json::from_value(service).unwrap()
    }

    fn stateful_set(updated: i32, revision: &str) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"generation": 2},
            "spec": {"replicas": 1, "selector": {}, "template": {}, "serviceName": "nodes"},
            "status": {"observedGeneration": 2, "replicas": 1, "currentReplicas": 1 - updated, "updatedReplicas": updated,
                       "currentRevision": "1", "updateRevision": revision},
        }))
        .unwrap()
    }

    fn broker(ready: bool) -> Broker {
        let pod = "meters-broker-0".into();
        Broker { pod, ready, ending: false, trouble: None, said: None, acl: None, config: None }
    }

    fn facts<'a>(
        instance: &'a MqttInstance,
        stateful_set: &'a StatefulSet,
        brokers: &'a [Broker],
    ) -> Facts<'a> {
        let (stateful_set, unready) = (Some(stateful_set), Duration::ZERO);
        Facts {
            instance,
            problems: &[],
            failed: None,
            held: false,
            stateful_set,
            brokers,
            service: None,
            unready,
            now: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn an_instance_is_ready_once_a_broker_is_and_else_says_whose_turn_it_is() {
        let (plain, balanced) = (instance("ClusterIP"), instance("LoadBalancer"));
        let (done, updating) = (stateful_set(1, "1"), stateful_set(0, "2"));
        let check = |what: &str, facts: &Facts<'_>, turn: Turn, reason: &str, part: &str| {
            let found = verdict(facts);
            assert_eq!((found.turn, found.reason.as_str()), (turn, reason), "{what}: {found:?}");
            assert!(found.message.contains(part), "{what}: {found:?}");
        };
        let (ready, unready) = ([broker(true)], [broker(false)]);
        let serving = || facts(&plain, &done, &ready);
        check("all is well", &serving(), Turn::Nobody, "Serving", "1 broker is ready");
        check("no pod", &facts(&plain, &done, &[]), Turn::Ours, "Starting", "waits for a broker");
        check(
            "a pod that starts",
            &facts(&plain, &done, &unready),
            Turn::Ours,
            "Starting",
            "waits for a broker",
        );
        let ending = [Broker { ending: true, ..broker(true) }];
        check("a pod that ends", &facts(&plain, &done, &ending), Turn::Ours, "Starting", "waits");
        let says = [Broker { said: Some("Kafka is away".into()), ..broker(false) }];
        check(
            "it says why",
            &facts(&plain, &done, &says),
            Turn::Ours,
            "Starting",
            "pod meters-broker-0 is not ready: Kafka is away",
        );
        let ends = instance_until("1970-01-01T00:00:00Z");
        let over = "expired at 1970-01-01T00:00:00Z: devices are refused";
        check("its end has come", &facts(&ends, &done, &ready), Turn::Theirs, "Expired", over);
        let goes_on = instance_until("1970-01-01T00:00:01Z");
        check("its end is to come", &facts(&goes_on, &done, &ready), Turn::Nobody, "Serving", "1 broker");
        let long = Facts { unready: PATIENCE * 2, ..facts(&plain, &done, &says) };
        check("it says so for long", &long, Turn::Theirs, "BrokersNotReady", "Kafka is away");
        let trouble = Trouble {
            theirs: true,
            reason: "ImageNotPulled".into(),
            message: "image x can't be pulled".into(),
        };
        let broken = [Broker { trouble: Some(trouble), ..broker(false) }];
        check("a bad image", &facts(&plain, &done, &broken), Turn::Theirs, "ImageNotPulled", "image x");
        check("an update", &facts(&plain, &updating, &ready), Turn::Ours, "Updating", "0 of 1 pods");
        check(
            "no address yet",
            &facts(&balanced, &done, &ready),
            Turn::Ours,
            "WaitsForAddress",
            "LoadBalancer",
        );
        let refused =
            Error::Theirs { reason: "Forbidden", what: "apply Service a/b".into(), why: "no".into() };
        check(
            "it is not let",
            &Facts { failed: Some(&refused), ..serving() },
            Turn::Theirs,
            "Forbidden",
            "apply Service a/b: no",
        );
        let problem = Problem {
            object: name_of(Kind::MqttInstance, &plain),
            field: "spec.listeners.mqtts.secretRef.name".into(),
            message: "there is no Secret plant/tls; create it".into(),
        };
        check(
            "a problem",
            &Facts { problems: &[&problem], ..serving() },
            Turn::Theirs,
            "SecretNotFound",
            "no Secret plant/tls",
        );
        let held = Facts { problems: &[&problem], held: true, ..serving() };
        check(
            "pods wait for it",
            &held,
            Turn::Theirs,
            "SecretNotFound",
            "create it. until then brokers go on",
        );
        let new = Facts { brokers: &[], ..held };
        check("new ones, too", &new, Turn::Theirs, "SecretNotFound", "create it. no broker starts before");
    }

    #[test]
    fn endpoints_are_those_that_devices_and_applications_use() {
        let check = |kind: &str, status: Value, more: &[&str]| {
            let found = endpoints(&instance(kind), Some(&service(&status)));
            let inside = [
                "mqtt://meters-mqtt.plant.svc:1883",
                "mqtts://meters-mqtt.plant.svc:8883",
                "ws://meters-mqtt.plant.svc:8083",
            ];
            assert_eq!(found.devices, [&inside[..], more].concat(), "{kind} {status}");
            assert_eq!(found.applications, ["kafka:9092"]);
        };
        check("ClusterIP", json!({}), &[]);
        check("NodePort", json!({}), &["mqtt://NODE:31883"]);
        check("LoadBalancer", json!({}), &[]);
        let ingress =
            json!({"loadBalancer": {"ingress": [{"ip": "2001:db8::1"}, {"hostname": "mqtt.example"}]}});
        check(
            "LoadBalancer",
            ingress,
            &[
                "mqtt://[2001:db8::1]:1883",
                "mqtts://[2001:db8::1]:8883",
                "ws://[2001:db8::1]:8083",
                "mqtt://mqtt.example:1883",
                "mqtts://mqtt.example:8883",
                "ws://mqtt.example:8083",
            ],
        );
    }
}
