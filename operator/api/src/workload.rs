//! How an instance runs on a cluster: the Service that devices meet, what its pods may be told besides, who watches it.
//!
//! A standalone broker reads none of it. What Kubernetes itself defines (affinity, a toleration) is kept as it was
//! written: repeating its schema here would only be one more that ages.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1, apimachinery::pkg::api::resource};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::refs::{NAMESPACE, SecretRef};

/// The Service through which devices reach the brokers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.loadBalancerSourceRanges) || self.type == 'LoadBalancer'")
        .message("only a LoadBalancer has source ranges; set type to LoadBalancer, or remove loadBalancerSourceRanges")
)]
pub struct Service {
    /// ClusterIP: reached inside the cluster alone. LoadBalancer: at an address of its own, which is how devices come
    /// in from outside. NodePort: at a port of every node.
    #[serde(rename = "type", default)]
    pub service_type: ServiceType,
    /// Annotations of the Service; this is how clouds are told what load balancer it shall be.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "annotations")]
    pub annotations: BTreeMap<String, String>,
    /// The addresses that may come in, such as 203.0.113.0/24; absent: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 43)))]
    #[x_kube(validation = Rule::new("self.all(range, isCIDR(range))")
        .message("each range is ADDRESS/BITS, such as 203.0.113.0/24"))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub load_balancer_source_ranges: Vec<String>,
}

/// Where a Service can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    #[default]
    ClusterIP,
    LoadBalancer,
    NodePort,
}

impl ServiceType {
    /// The type as Services spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::NodePort => "NodePort",
        }
    }
}

/// What the pods of an instance may be told besides. A change restarts them, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    /// The broker's image; absent: the one that goes with the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[^\s]+$"))]
    pub image: Option<String>,
    /// Secrets with logins for the image's registry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<SecretRef>,
    /// What the broker asks for and may use at most; absent: it asks for cpu 250m and memory 256Mi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Which nodes the pods want or avoid, as in pods; they are spread over zones and nodes as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "as_in_pods")]
    pub affinity: Option<Map<String, Value>>,
    /// Which taints of nodes the pods tolerate, as in pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "list_as_in_pods")]
    pub tolerations: Vec<Map<String, Value>>,
    /// The PriorityClass of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = crate::refs::NAME))]
    pub priority_class_name: Option<String>,
    /// More labels of the pods; app.kubernetes.io/ is the operator's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pods.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "annotations")]
    pub annotations: BTreeMap<String, String>,
    /// How much the broker logs; absent: info.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<LogLevel>,
}

/// What a container asks for and may use at most: amounts by name, such as cpu and memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Resources {
    /// What the scheduler reserves.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "amounts")]
    pub requests: BTreeMap<String, Amount>,
    /// What is never exceeded.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "amounts")]
    pub limits: BTreeMap<String, Amount>,
}

impl From<Resources> for v1::ResourceRequirements {
    fn from(Resources { requests, limits }: Resources) -> Self {
        let amounts = |amounts: BTreeMap<String, Amount>| {
            let some = (!amounts.is_empty()).then_some(amounts)?;
            Some(some.into_iter().map(|(name, amount)| (name, amount.into())).collect())
        };
        Self { requests: amounts(requests), limits: amounts(limits), claims: None }
    }
}

/// An amount of a resource as Kubernetes writes it: `2`, `250m`, `1.5Gi`. Written back as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Amount {
    Number(u32),
    Text(String),
}

impl From<Amount> for resource::Quantity {
    fn from(amount: Amount) -> Self {
        match amount {
            Amount::Number(number) => Self(number.to_string()),
            Amount::Text(text) => Self(text),
        }
    }
}

/// How much the broker logs, each level with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// The level as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Who watches an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Monitoring {
    /// Whether a ServiceMonitor tells the Prometheus Operator where the brokers are. Its definition
    /// (monitoring.coreos.com/v1) must be there.
    pub service_monitor: bool,
    /// Labels of the ServiceMonitor, by which a Prometheus picks those it reads.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels")]
    pub labels: BTreeMap<String, String>,
    /// The namespace of Prometheus, which may then reach the admin port as the operator's may; absent: none may.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAMESPACE))]
    pub namespace: Option<String>,
}

/// A name that may have a prefix, as keys of labels and annotations and names of resources are.
const QUALIFIED: &str = "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";

fn labels(_: &mut SchemaGenerator) -> Schema {
    map_of(
        json_schema!({"type": "string", "maxLength": 63, "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"}),
        &[(
            "!key.startsWith('app.kubernetes.io/')",
            "app.kubernetes.io/ is the operator's; choose other keys",
        )],
    )
}

fn annotations(_: &mut SchemaGenerator) -> Schema {
    map_of(json_schema!({"type": "string", "maxLength": 4096}), &[])
}

fn amounts(_: &mut SchemaGenerator) -> Schema {
    let amount = json_schema!({
        "x-kubernetes-int-or-string": true,
        "maxLength": 32,
        "pattern": AMOUNT,
    });
    map_of(amount, &[])
}

/// No signs, no exponents.
pub(crate) const AMOUNT: &str = r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?$";

/// A map whose keys have the form of those of labels, and further rules for each `key`.
fn map_of(values: Schema, rules: &[(&str, &str)]) -> Schema {
    let form = format!("key.size() <= 253 && key.matches('{QUALIFIED}')");
    let form = (form.as_str(), "keys are NAME or PREFIX/NAME, of letters, digits, '-', '_' and '.'");
    let rules: Vec<_> = [form]
        .iter()
        .chain(rules)
        .map(|(rule, message)| serde_json::json!({"rule": format!("self.all(key, {rule})"), "message": message}))
        .collect();
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": values,
        "x-kubernetes-validations": rules,
    })
}

fn as_in_pods(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

fn list_as_in_pods(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "maxItems": 64, "items": as_in_pods(generator)})
}
