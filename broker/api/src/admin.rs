//! Messages of the broker's admin endpoint.

use serde::{Deserialize, Serialize};

/// One stored record as `records read` prints it, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordView {
    pub topic: String,
    pub partition: u32,
    pub offset: u64,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    pub key: Option<Text>,
    pub value: Option<Text>,
    pub headers: Vec<(String, Text)>,
}

/// Bytes as JSON: a string where they are UTF-8, else `{"base64": …}`, so that nothing is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Text {
    Utf8(String),
    Base64 { base64: String },
}

/// A record to append.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewRecord {
    #[serde(default)]
    pub key: Option<Text>,
    pub value: Option<Text>,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

/// Where an appended record stands; it is durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Appended {
    pub topic: String,
    pub partition: u32,
    pub offset: u64,
}

/// The ACL document in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AclView {
    pub generation: u64,
    /// [`crate::shards::hash`] of the document.
    pub hash: String,
    /// How many users it has.
    pub users: usize,
}

/// The config file in force, of `mqtt-broker run`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigView {
    /// [`crate::node::hash`] of its text.
    pub hash: String,
}
