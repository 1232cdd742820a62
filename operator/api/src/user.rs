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
    printcolumn(name = "Enforced", type_ = "string", json_path = ".status.conditions[?(@.type==\"Enforced\")].status"),
    printcolumn(name = "Remark", type_ = "string", json_path = ".spec.remark", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new(format!("{EFFECTIVE_NAME} == {}", EFFECTIVE_NAME.replace("self.", "oldSelf.")))
        .message("the user name of an MqttUser is immutable; make another MqttUser instead").field_path(".spec.username"),
    validation = Rule::new(format!("has(self.spec.passwordSecretRef) || size(self.metadata.name) <= {}", 253 - SUFFIX.len()))
        .message("the name is too long for the Secret of a generated password; shorten it, or set passwordSecretRef")
        .field_path(".spec.passwordSecretRef")
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
    /// Where the password is. Absent: the operator makes one and keeps it in a Secret of its own, named as this object
    /// with -mqtt behind it (type kubernetes.io/basic-auth; username and password, 256 random bits as text). Delete that
    /// Secret to get another password at once. To change over without a gap, set the annotation
    /// mqtt.dms.dev/rotate-password of this object to a new value: a new password is made, the old one moves to
    /// previous-password and stays valid until the annotation is removed or changed again.
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

    /// Where the operator keeps a password that it generates, in the namespace of this object.
    pub fn generated_secret_name(&self) -> String {
        self.name_any() + SUFFIX
    }
}

/// Keys of the Secret of a generated password: those of the type kubernetes.io/basic-auth, and one while it changes.
pub const USERNAME: &str = "username";
pub const PASSWORD: &str = "password";
pub const PREVIOUS_PASSWORD: &str = "previous-password";
/// The annotation of an MqttUser that asks for a new generated password.
pub const ROTATE: &str = "mqtt.dms.dev/rotate-password";

const SUFFIX: &str = "-mqtt";

const EFFECTIVE_NAME: &str = "(has(self.spec.username) ? self.spec.username : self.metadata.name)";
