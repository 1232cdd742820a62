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
