//! What the operator reports on an object.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The condition that says whether an object is in force.
pub const READY: &str = "Ready";
/// The condition that says that it comes right by itself.
pub const RECONCILING: &str = "Reconciling";
/// The condition that says that nothing changes until a person changes something.
pub const STALLED: &str = "Stalled";
/// The condition that says whether brokers have it in force, as they say themselves.
pub const ENFORCED: &str = "Enforced";

/// The status of ParentTopics, MqttUsers and TopicGrants.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The `metadata.generation` that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One condition a type; `Ready` says whether the object is in force, and if not, whose turn it is; `Enforced` whether
    /// every broker has said that it has it in force, and of users and grants since which generation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The status of an MqttInstance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    /// The `metadata.generation` that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One condition a type; `Ready` says whether the instance serves, and if not, whose turn it is; `Enforced` how many of
    /// its pods have the users and grants in force, and which have not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Where the instance is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Endpoints>,
    /// The generation of the users and grants that brokers are to have in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acl_generation: Option<i64>,
    /// One row a broker, by pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 99))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pod".into()]))]
    pub nodes: Vec<Node>,
}

/// Where an instance is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoints {
    /// By devices: mqtt://HOST:PORT, mqtts:// with TLS, ws:// and wss:// over WebSocket; first inside the cluster, then from outside.
    pub devices: Vec<String>,
    /// By applications: the bootstrap servers of Kafka.
    pub applications: Vec<String>,
}

/// One broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// The name of its pod.
    pub pod: String,
    /// Whether devices are let in.
    pub ready: bool,
    /// The generation of the users and grants in force there; absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acl_generation: Option<i64>,
    /// Why it is not ready; absent: it is, or that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
