//! `MqttUser`: who may connect to an instance, and with which passwords.

use kube::{CustomResource, KubeSchema, ResourceExt as _};
use serde::{Deserialize, Serialize};

use crate::{
    refs::{InstanceRef, SecretKeyRef},
    rules,
    status::Status,
};

/// What a user shall be.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "mqtt.dms.dev",
    version = "v1alpha1",
    kind = "MqttUser",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    shortname = "mqttu",
    category = "mqtt",
    doc = "A user name with its passwords. It may do nothing until a TopicGrant allows it.",
    printcolumn(name = "Instance", type_ = "string", json_path = ".spec.instanceRef.name"),
    printcolumn(name = "Username", type_ = "string", json_path = ".spec.username"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Remark", type_ = "string", json_path = ".spec.remark", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new(format!("{EFFECTIVE_NAME} == {}", EFFECTIVE_NAME.replace("self.", "oldSelf.")))
        .message("the user name of an MqttUser is immutable; make another MqttUser instead").field_path(".spec.username")
)]
#[x_kube(
    validation = Rule::new("!has(self.previousPasswordSecretRef) || has(self.passwordSecretRef)")
        .message("a previous password needs a current one beside it; set passwordSecretRef")
        .field_path(".previousPasswordSecretRef")
)]
#[serde(rename_all = "camelCase")]
pub struct MqttUserSpec {
    /// The instance it belongs to; immutable.
    #[x_kube(validation = rules::immutable("instanceRef"))]
    pub instance_ref: InstanceRef,
    /// The name that devices log in with; absent: the name of this object. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[^\x00-\x1f\x7f]+$"))]
    pub username: Option<String>,
    /// Where the password is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKeyRef>,
    /// A second password that is also accepted, while devices move from it to the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_password_secret_ref: Option<SecretKeyRef>,
    /// Client IDs this user may connect with, * standing for any run of characters; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 256)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub client_ids: Vec<String>,
    /// A note for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub remark: Option<String>,
}

impl MqttUser {
    /// The name that devices log in with.
    pub fn username(&self) -> String {
        self.spec.username.clone().unwrap_or_else(|| self.name_any())
    }
}

const EFFECTIVE_NAME: &str = "(has(self.spec.username) ? self.spec.username : self.metadata.name)";
