//! The config file of the pods, and the paths at which it and what it names are mounted.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use mqtt_broker_api::{
    config::{InstanceConfig, Kafka, Listeners},
    node::{self, NodeConfig, Peers, TlsFiles},
};
use mqtt_operator_api::render::Problem;

use super::{names::Frame, secrets};

pub(super) const CONFIG_FOLDER: &str = "/etc/mqtt/config";
pub(super) const CONFIG_KEY: &str = "node.yaml";
pub(super) const ACL_FOLDER: &str = "/etc/mqtt/acl";
pub(super) const KAFKA_FOLDER: &str = "/etc/mqtt/kafka";
pub(super) const TLS_FOLDER: &str = "/etc/mqtt/tls";
pub(super) const PEERS_FOLDER: &str = "/etc/mqtt/peers";

/// The ConfigMap with the config file, and the hash of that file.
pub(super) fn config_map(frame: &Frame<'_>, config: &InstanceConfig) -> Result<(ConfigMap, String), Problem> {
    let text = serde_saphyr::to_string(&node_config(frame, config))
        .map_err(|error| frame.problem("spec", format!("can't be written as YAML: {error}")))?;
    let hash = node::hash(&text);
    let config_map = ConfigMap {
        metadata: frame.meta(frame.config()),
        data: Some(BTreeMap::from([(CONFIG_KEY.to_owned(), text)])),
        ..ConfigMap::default()
    };
    Ok((config_map, hash))
}

/// Whether connections to Kafka need something that is secret.
pub(super) fn has_kafka_secrets(kafka: Option<&Kafka>) -> bool {
    kafka.is_some_and(|kafka| kafka.sasl.is_some() || kafka.tls.is_some_and(|tls| tls.ca || tls.certificate))
}

fn node_config(frame: &Frame<'_>, config: &InstanceConfig) -> NodeConfig {
    let listeners = &frame.spec().listeners;
    let tls = listeners.mqtts.as_ref().map(|mqtts| TlsFiles {
        certificate_file: format!("{TLS_FOLDER}/{}", secrets::TLS_CERTIFICATE).into(),
        key_file: format!("{TLS_FOLDER}/{}", secrets::TLS_KEY).into(),
        client_ca_file: mqtts
            .client_ca_secret_ref
            .as_ref()
            .map(|_| format!("{TLS_FOLDER}/{}", secrets::TLS_CLIENT_CA).into()),
    });
    let shared = frame.spec().replicas > 1;
    let port = listeners.peers.port;
    let peers = shared.then(|| Peers {
        listen: format!("[::]:{port}"),
        // Nodes are called as their pods are.
        address: format!("${{node}}.{}:{port}", frame.nodes_domain()),
        secrets: PEERS_FOLDER.into(),
    });
    // Probes and the operator come from other addresses; the NetworkPolicy keeps others away.
    let listeners = Listeners { admin: format!("[::]:{}", listeners.admin.port), ..config.listeners.clone() };
    NodeConfig {
        instance: InstanceConfig { listeners, ..config.clone() },
        shared,
        acl: vec![ACL_FOLDER.into()],
        kafka_secrets: has_kafka_secrets(config.kafka.as_ref()).then(|| KAFKA_FOLDER.into()),
        tls,
        peers,
        data: None,
    }
}
