//! What protects the pods of an instance: who may connect to them and where they may connect to, and how many may be
//! taken away at a time.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{
        networking::v1::{
            NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
            NetworkPolicyPort, NetworkPolicySpec,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{names::Frame, services::device_ports};

const DNS_PORT: u16 = 53;

/// Devices come from anywhere; to the admin port, which asks for no password, only the operator comes, and Prometheus
/// if the instance says where it is, and to that for peers only the instance's own pods. Out go DNS, Kafka and that alone.
pub(super) fn network_policy(frame: &Frame<'_>) -> NetworkPolicy {
    let spec = frame.spec();
    let devices = NetworkPolicyIngressRule {
        from: None,
        ports: Some(device_ports(frame).into_iter().map(|(_, number)| port("TCP", number)).collect()),
    };
    let namespaces: BTreeSet<&str> = [frame.options.operator_namespace.as_str()]
        .into_iter()
        .chain(spec.monitoring.namespace.as_deref())
        .collect();
    let admin = NetworkPolicyIngressRule {
        from: Some(namespaces.into_iter().map(pods_of_namespace).collect()),
        ports: Some(vec![port("TCP", spec.listeners.admin.port)]),
    };
    let dns =
        NetworkPolicyEgressRule { ports: Some(vec![port("UDP", DNS_PORT), port("TCP", DNS_PORT)]), to: None };
    let servers = spec.kafka.iter().flat_map(|kafka| &kafka.bootstrap_servers);
    let ports: BTreeSet<u16> = servers.filter_map(|server| server.rsplit_once(':')?.1.parse().ok()).collect();
    let kafka = NetworkPolicyEgressRule {
        ports: Some(ports.into_iter().map(|number| port("TCP", number)).collect()),
        to: None,
    };
    let own =
        NetworkPolicyPeer { pod_selector: Some(frame.label_selector()), ..NetworkPolicyPeer::default() };
    let (own, peers) = (Some(vec![own]), Some(vec![port("TCP", spec.listeners.peers.port)]));
    let from_peers = NetworkPolicyIngressRule { from: own.clone(), ports: peers.clone() };
    let to_peers = NetworkPolicyEgressRule { to: own, ports: peers };
    NetworkPolicy {
        metadata: frame.meta(frame.broker()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(frame.label_selector()),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ingress: Some(vec![devices, admin, from_peers]),
            egress: Some(vec![dns, kafka, to_peers]),
        }),
    }
}

/// One at a time may be taken away, one that is not ready in any case.
pub(super) fn disruption_budget(frame: &Frame<'_>) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: frame.meta(frame.broker()),
        spec: Some(PodDisruptionBudgetSpec {
            selector: Some(frame.label_selector()),
            max_unavailable: Some(IntOrString::Int(1)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            min_available: None,
        }),
        status: None,
    }
}

fn port(protocol: &str, number: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.into()),
        port: Some(IntOrString::Int(number.into())),
        end_port: None,
    }
}

fn pods_of_namespace(name: &str) -> NetworkPolicyPeer {
    let labels = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]);
    NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector { match_labels: Some(labels), match_expressions: None }),
        ..NetworkPolicyPeer::default()
    }
}
