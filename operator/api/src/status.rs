//! What the operator reports on an object.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// The condition that says whether an object is in force.
pub const READY: &str = "Ready";
/// The condition that says that it comes right by itself.
pub const RECONCILING: &str = "Reconciling";
/// The condition that says that nothing changes until a person changes something.
pub const STALLED: &str = "Stalled";

/// The status of each of the four kinds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The `metadata.generation` that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One condition a type; `Ready` says whether the object is in force, and if not, whose turn it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
