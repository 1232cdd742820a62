//! What one broker process in a pod is told at its start: the instance's config, and where the rest is mounted.
//!
//! It is made for ConfigMaps and Secrets as volumes: whatever a path names may change while the process runs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::InstanceConfig;

/// The file of `mqtt-broker run --config FILE`, YAML or JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeConfig {
    pub instance: InstanceConfig,
    /// Other nodes of the instance serve devices from the same Kafka, and this one has a name: `--node`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// Where the shards of the ACL document are, as JSON: files, and folders whose `*.json` files count (hidden ones
    /// and folders inside do not). What is not there counts for nothing, so that a volume may be optional.
    pub acl: Vec<PathBuf>,
    /// The folder of what `instance.kafka` needs in secret, under the names [`KAFKA_CA`], [`KAFKA_CERTIFICATE`],
    /// [`KAFKA_KEY`] and [`KAFKA_PASSWORD`], as far as it needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka_secrets: Option<PathBuf>,
    /// There if and only if `instance.listeners.mqtts` or `wss` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// Links between the nodes of an instance that share its Kafka; absent: all goes through Kafka.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<Peers>,
    /// The folder of the embedded store: there if and only if `instance.kafka` is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
}

/// The SHA-256 of a config file's text, in lower-case hex: by it a broker says which one it has in force.
pub fn hash(text: &str) -> String {
    crate::sha256(text)
}

/// What the TLS listener shows and asks for, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsFiles {
    /// The broker's certificate, and those between it and its CA.
    pub certificate_file: PathBuf,
    /// Its private key, not encrypted.
    pub key_file: PathBuf,
    /// The CAs that devices' certificates must come from; absent: devices need none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<PathBuf>,
}

/// How nodes of an instance find each other, and know that it is they.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peers {
    /// Where this node listens for others, HOST:PORT.
    pub listen: String,
    /// Where another node listens, HOST:PORT, in which `${node}` stands for its name.
    pub address: String,
    /// A folder with the certificate that this node shows to others, whether it listens or calls, its key, and the CA that theirs
    /// come from, under the names [`PEERS_CERTIFICATE`], [`PEERS_KEY`] and [`PEERS_CA`]. The certificate must name the host
    /// of `address`.
    pub secrets: PathBuf,
}

/// The certificate of a node, with those between it and its CA, in PEM.
pub const PEERS_CERTIFICATE: &str = "tls.crt";
/// Its private key, in PEM, not encrypted.
pub const PEERS_KEY: &str = "tls.key";
/// The CA of all nodes of an instance, in PEM.
pub const PEERS_CA: &str = "ca.crt";

/// The CAs of Kafka's certificates.
pub const KAFKA_CA: &str = "ca.crt";
/// The certificate that is shown to Kafka.
pub const KAFKA_CERTIFICATE: &str = "tls.crt";
/// Its private key.
pub const KAFKA_KEY: &str = "tls.key";
/// The password of the login at Kafka; its bytes count exactly.
pub const KAFKA_PASSWORD: &str = "password";
