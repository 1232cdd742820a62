//! `ParentTopic`: a first topic level whose messages are stored, and the log topic they go to.

use kube::{
    CustomResource, KubeSchema, ResourceExt as _,
    core::{Message, Rule},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    duration::Duration,
    quantity::Quantity,
    refs::{InstanceRef, NAMESPACE_OR_ALL},
    rules,
    status::Status,
};

/// The topics that every instance has of its own; no parent topic may take their names.
pub const SYSTEM_TOPICS: [&str; 5] =
    ["mq2mqtt", "mq2mqtt-rejected", "mqtt-device-connect", "mqtt-device-disconnect", "mqtt-device-trace"];
/// Topics that brokers keep for themselves are named `__mqtt…`. Kafka's own begin with `__`, too, so no parent
/// topic's name does.
pub const INTERNAL_PREFIX: &str = "__";
/// What the names of ordered parent topics begin with, and no others.
pub const ORDERED_PREFIX: &str = "orderMsg2mq-";

/// What a parent topic shall be.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "mqtt.dms.dev",
    version = "v1alpha1",
    kind = "ParentTopic",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    shortname = "mqttpt",
    category = "mqtt",
    doc = "A first topic level whose messages are delivered and stored; under any other they are only delivered.",
    printcolumn(name = "Instance", type_ = "string", json_path = ".spec.instanceRef.name"),
    printcolumn(name = "Topic", type_ = "string", json_path = ".spec.topic"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Partitions", type_ = "integer", json_path = ".spec.partitions"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Enforced", type_ = "string", json_path = ".status.conditions[?(@.type==\"Enforced\")].status"),
    printcolumn(name = "Remark", type_ = "string", json_path = ".spec.remark", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = on_topic("TOPIC.size() <= 249 && TOPIC.matches('^[A-Za-z0-9._-]+$')",
        "may not name a parent topic: use 1 to 249 of letters, digits, dot, underscore and hyphen"),
    validation = on_topic("!(TOPIC in ['.', '..', 'mq2mqtt', 'mq2mqtt-rejected', 'mqtt-device-connect', 'mqtt-device-disconnect', 'mqtt-device-trace']) && !TOPIC.startsWith('__')",
        "is taken by the system, as is all that begins with __; choose another name"),
    validation = on_topic("self.spec.type != 'PartitionOrdered' || TOPIC.startsWith('orderMsg2mq-')",
        "has the type PartitionOrdered, so it must begin with orderMsg2mq-; rename it, or make it Normal"),
    validation = on_topic("self.spec.type != 'Normal' || !TOPIC.startsWith('orderMsg2mq-')",
        "begins with orderMsg2mq-, so its type must be PartitionOrdered; rename it, or change the type"),
    validation = Rule::new(format!("{EFFECTIVE_TOPIC} == {}", EFFECTIVE_TOPIC.replace("self.", "oldSelf.")))
        .message("the topic of a ParentTopic is immutable; make another ParentTopic instead").field_path(".spec.topic")
)]
#[x_kube(
    validation = Rule::new("self.type != 'PartitionOrdered' || oldSelf.type != 'PartitionOrdered' || self.partitions <= oldSelf.partitions")
        .message("the partitions of an ordered topic are fixed, as adding one would break the order; put the old number back")
        .field_path(".partitions")
)]
#[serde(rename_all = "camelCase")]
pub struct ParentTopicSpec {
    /// The instance it belongs to; immutable.
    #[x_kube(validation = rules::immutable("instanceRef"))]
    pub instance_ref: InstanceRef,
    /// The topic's name, which is also the log topic's; absent: the name of this object. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249))]
    pub topic: Option<String>,
    /// Whether all messages of one client stay in order; immutable.
    #[serde(rename = "type", default)]
    #[x_kube(validation = rules::immutable("type"))]
    pub ordering: Ordering,
    /// Partitions of the log topic: may grow, never shrink; fixed for PartitionOrdered.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 1000))]
    #[x_kube(validation = Rule::new("self >= oldSelf")
        .message("partitions may grow, never shrink; put the old number back"))]
    pub partitions: u32,
    /// How long stored records are kept.
    #[serde(default)]
    pub retention: Retention,
    /// What becomes of the log topic, and of all that is stored in it, when this object is deleted. Retain: it stays for good. Delete:
    /// it goes some seconds later; if the instance goes, too, when its own `deletionPolicy` and `retainFor` say so.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Which namespaces may be granted anything below this topic; absent: all whose objects the instance takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grants_from: Option<GrantsFrom>,
    /// A note for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub remark: Option<String>,
}

/// Normal: records are spread over the partitions. PartitionOrdered: all of one client's records go to one
/// partition, in the order the client sent them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Ordering {
    #[default]
    Normal,
    PartitionOrdered,
}

/// Retain: it stays. Delete: the operator deletes it. What is said with the field tells what, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    #[default]
    Retain,
    Delete,
}

/// Whose TopicGrants may reach below a parent topic. One of another namespace that does, by a wildcard or a placeholder, too, is
/// not in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrantsFrom {
    /// Namespaces besides that of this object and that of the instance, `*` standing for all; empty: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 63), regex(pattern = NAMESPACE_OR_ALL)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub namespaces: Vec<String>,
}

/// When stored records may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Retention {
    /// Older records may go.
    #[schemars(extend("x-kubernetes-validations" = [rules::time_between("1s", "876000h")]))]
    pub age: Duration,
    /// The oldest records may go while a partition has more than this; absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [rules::bytes_between("1Ki", "1Ei")]))]
    pub size: Option<Quantity>,
}

impl Default for Retention {
    fn default() -> Self {
        Self { age: Duration::hours(168), size: None }
    }
}

impl ParentTopic {
    /// The parent level and the log topic's name.
    pub fn topic(&self) -> String {
        self.spec.topic.clone().unwrap_or_else(|| self.name_any())
    }
}

fn three() -> u32 {
    3
}

const EFFECTIVE_TOPIC: &str = "(has(self.spec.topic) ? self.spec.topic : self.metadata.name)";

/// A rule of the object on its effective topic, `TOPIC`; the message begins with the topic's name.
fn on_topic(rule: &str, message: &str) -> Rule {
    Rule::new(rule.replace("TOPIC", EFFECTIVE_TOPIC))
        .message(Message::Expression(format!("'\"' + {EFFECTIVE_TOPIC} + '\" {message}'")))
        .field_path(".spec.topic")
}
