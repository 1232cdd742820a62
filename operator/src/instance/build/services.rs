//! The Service that devices meet, and the headless one that gives pods their names.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use mqtt_operator_api::workload;

use super::names::Frame;

/// Names of ports, of containers as of Services.
pub(super) const MQTT: &str = "mqtt";
pub(super) const MQTTS: &str = "mqtts";
pub(super) const WS: &str = "ws";
pub(super) const WSS: &str = "wss";
pub(super) const ADMIN: &str = "admin";
pub(super) const PEERS: &str = "peers";

/// The ports that devices may use.
pub(super) fn device_ports(frame: &Frame<'_>) -> Vec<(&'static str, u16)> {
    let listeners = &frame.spec().listeners;
    let mqtts = listeners.mqtts.as_ref().map(|mqtts| (MQTTS, mqtts.port));
    let ws = listeners.ws.as_ref().map(|ws| (WS, ws.port));
    let wss = listeners.wss.as_ref().map(|wss| (WSS, wss.port));
    [(MQTT, listeners.mqtt.port)].into_iter().chain(mqtts).chain(ws).chain(wss).collect()
}

pub(super) fn client(frame: &Frame<'_>) -> Service {
    let workload::Service { service_type, annotations, load_balancer_source_ranges } = &frame.spec().service;
    let mut metadata = frame.meta(frame.client_service());
    metadata.annotations = (!annotations.is_empty()).then(|| annotations.clone());
    let ranges = load_balancer_source_ranges;
    let spec = ServiceSpec {
        type_: Some(service_type.name().into()),
        load_balancer_source_ranges: (!ranges.is_empty()).then(|| ranges.clone()),
        ports: Some(device_ports(frame).into_iter().map(port).collect()),
        ..common(frame)
    };
    Service { metadata, spec: Some(spec), ..Service::default() }
}

pub(super) fn headless(frame: &Frame<'_>) -> Service {
    let spec = ServiceSpec {
        cluster_ip: Some("None".into()),
        // The operator asks a broker that is not ready, too, what it has loaded; and others call it to have links at once.
        publish_not_ready_addresses: Some(true),
        ports: Some(vec![port((ADMIN, frame.spec().listeners.admin.port))]),
        ..common(frame)
    };
    Service { metadata: frame.meta(frame.headless_service()), spec: Some(spec), ..Service::default() }
}

fn common(frame: &Frame<'_>) -> ServiceSpec {
    ServiceSpec {
        selector: Some(frame.selector()),
        ip_family_policy: Some("PreferDualStack".into()),
        ..ServiceSpec::default()
    }
}

fn port((name, number): (&str, u16)) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        port: number.into(),
        protocol: Some("TCP".into()),
        target_port: Some(IntOrString::String(name.into())),
        ..ServicePort::default()
    }
}
