//! Who asked what of the cluster: the API server's audit log, of service accounts alone, and of those but the operator's only what
//! was changed.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::Cluster;

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// RFC 3339, in UTC with microseconds: it sorts as text.
    pub at: String,
    /// Such as `system:serviceaccount:mqtt-operator:mqtt-operator`.
    pub user: String,
    /// Who sent it, if that was a pod.
    pub pod: Option<String>,
    pub verb: String,
    pub group: String,
    /// Its plural, with `/status` where that was changed.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    /// Of HTTP.
    pub code: u16,
    /// Whoever sent it had no right to; what is forbidden for another reason, as in a namespace that goes, is not meant.
    pub lacks_right: bool,
}

impl Request {
    fn changes(&self) -> bool {
        !["get", "list", "watch"].contains(&self.verb.as_str())
    }

    /// Whether it took effect.
    pub fn is_done(&self) -> bool {
        (200..300).contains(&self.code)
    }
}

impl Cluster {
    /// All changes that service accounts asked for, the first one first.
    pub fn writes(&self) -> Result<Vec<Request>> {
        Ok(self.requests()?.into_iter().filter(Request::changes).collect())
    }

    /// All that is noted.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let text = self.node()?.audit()?;
        // The last line may be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| read(line).with_context(|| line.to_owned())).collect()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    request_received_timestamp: String,
    verb: String,
    user: User,
    #[serde(default)]
    object_ref: ObjectRef,
    response_status: Status,
    #[serde(default)]
    annotations: Value,
}

#[derive(Deserialize)]
struct User {
    username: String,
    #[serde(default)]
    extra: Value,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ObjectRef {
    api_group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize)]
struct Status {
    code: u16,
}

fn read(line: &str) -> Result<Request> {
    let Event { request_received_timestamp, verb, user, object_ref, response_status, annotations } =
        serde_json::from_str(line)?;
    let ObjectRef { api_group, resource, subresource, namespace, name } = object_ref;
    let below = if subresource.is_empty() { "" } else { "/" };
    let pod = user.extra.pointer("/authentication.kubernetes.io~1pod-name/0").and_then(Value::as_str);
    Ok(Request {
        at: request_received_timestamp,
        pod: pod.map(str::to_owned),
        user: user.username,
        verb,
        group: api_group,
        resource: format!("{resource}{below}{subresource}"),
        namespace,
        name,
        code: response_status.code,
        lacks_right: annotations.get("authorization.k8s.io/decision") == Some(&"forbid".into()),
    })
}
