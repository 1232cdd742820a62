//! `TopicGrant`: what a user may publish and subscribe to. What no grant allows is refused.

use kube::{
    CustomResource, KubeSchema,
    core::{Message, Rule},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    refs::{InstanceRef, UserRef},
    rules,
    status::Status,
};

/// What a grant shall allow.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "mqtt.dms.dev",
    version = "v1alpha1",
    kind = "TopicGrant",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    shortname = "mqttg",
    category = "mqtt",
    doc = "Lets a user publish or subscribe under topic filters. What no grant allows is refused.",
    printcolumn(name = "Instance", type_ = "string", json_path = ".spec.instanceRef.name"),
    printcolumn(name = "User", type_ = "string", json_path = ".spec.userRef.name"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(
        name = "Enforced",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Enforced\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct TopicGrantSpec {
    /// The instance it belongs to; immutable.
    #[x_kube(validation = rules::immutable("instanceRef"))]
    pub instance_ref: InstanceRef,
    /// The MqttUser that is allowed something, in the same namespace; immutable.
    #[x_kube(validation = rules::immutable("userRef"))]
    pub user_ref: UserRef,
    /// What it is allowed.
    #[schemars(length(min = 1, max = 100))]
    pub rules: Vec<GrantRule>,
}

/// One action on one filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrantRule {
    /// pub: publish; sub: subscribe; pubsub: both.
    pub action: Action,
    /// A topic filter with + and #; ${clientId} and ${username} stand for the connection's own. A subscription is
    /// allowed only if this covers all of its filter.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[^\x00]+$"))]
    #[x_kube(
        validation = on_filter("!self.contains('#') || self.indexOf('#') == self.size() - 1", "has '#' before its end; put '#' last"),
        validation = on_filter("self == '#' || self.endsWith('/#') || self.indexOf('#') != self.size() - 1", "has '#' beside other characters; give it a level of its own"),
        validation = on_filter("!self.contains('+') || !self.matches('[^/][+]|[+][^/]')", "has '+' beside other characters; give it a level of its own"),
        validation = on_filter(rules::KNOWN_PLACEHOLDERS.0, rules::KNOWN_PLACEHOLDERS.1),
        validation = on_filter("!self.startsWith('$share/')", "is a shared subscription; grant the filter behind the group's name"),
    )]
    pub filter: String,
}

/// What a rule allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Pub,
    Sub,
    PubSub,
}

/// A rule on a filter; the message begins with the filter.
fn on_filter(rule: &str, message: &str) -> Rule {
    Rule::new(rule)
        .message(Message::Expression(format!("'\"' + self + '\" {}'", message.replace('\'', "\\'"))))
}
