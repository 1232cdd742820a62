//! The four resource kinds of `mqtt.dms.dev/v1alpha1`: what people write in manifests, and what follows from it.
//!
//! - [`instance`], [`parent_topic`], [`user`], [`grant`]: one kind each, with the rules that one object can break
//!   ([`workload`]: what an instance says of its pods and Services);
//! - [`validate`]: those rules applied to a plain JSON object, as the API server would;
//! - [`render`]: from a full set of objects to the documents a broker is steered by;
//! - [`manifests`]: a folder of them, and what is wrong in it, with lines;
//! - [`crds`]: the CustomResourceDefinitions; [`json_schema`]: the same as JSON schemas.
//!
//! There is no Kubernetes client here. The operator, the standalone broker and the command line share this crate.

// kube's derive repeats our public structs inside functions, where the lint takes them for unreachable.
#![allow(unreachable_pub)]
// Printer columns share their `type_`, which the lint takes for a mistake.
#![allow(clippy::duplicated_attributes)]

pub mod crds;
pub mod duration;
pub mod grant;
pub mod instance;
pub mod json_schema;
pub mod manifests;
pub mod parent_topic;
pub mod quantity;
pub mod refs;
pub mod render;
mod rules;
pub mod status;
pub mod user;
pub mod validate;
pub mod workload;

use std::fmt;

/// The API group of all four kinds.
pub const GROUP: &str = "mqtt.dms.dev";
/// The only version so far.
pub const VERSION: &str = "v1alpha1";
/// Where an object without a namespace counts as being.
pub const DEFAULT_NAMESPACE: &str = "default";

/// One of the four kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    MqttInstance,
    ParentTopic,
    MqttUser,
    TopicGrant,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::MqttInstance, Self::ParentTopic, Self::MqttUser, Self::TopicGrant];

    /// The kind as manifests spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MqttInstance => "MqttInstance",
            Self::ParentTopic => "ParentTopic",
            Self::MqttUser => "MqttUser",
            Self::TopicGrant => "TopicGrant",
        }
    }

    /// The kind that manifests spell so.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
