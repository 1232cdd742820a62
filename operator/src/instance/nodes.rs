//! The brokers of an instance: what their pods say of themselves, and what they answer at their admin endpoint.

use std::{net::IpAddr, time::Duration};

use futures_util::future::{join, join_all};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt as _;
use mqtt_broker_api::admin::{AclView, ConfigView};
use mqtt_operator_api::status::Node;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// How long a broker may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// The longest answer that is read.
const ANSWER_BYTES: usize = 64 * 1024;
/// As much of an answer as a status shows.
const SHOWN_BYTES: usize = 512;

type Body = Empty<&'static [u8]>;

/// Asks brokers.
pub struct Asker(Client<HttpConnector, Body>);

/// One broker, as far as is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Broker {
    pub pod: String,
    /// Whether Kubernetes lets devices in.
    pub ready: bool,
    /// It has been told to end.
    pub ending: bool,
    /// What keeps the pod from running; none: it runs, or comes right by itself.
    pub trouble: Option<Trouble>,
    /// What it said at /readyz if it was not ready.
    pub said: Option<String>,
    /// The ACL document that it has in force.
    pub acl: Option<AclView>,
    /// The config that it has in force.
    pub config: Option<ConfigView>,
}

/// Why a pod does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// A person has to do something.
    pub theirs: bool,
    pub reason: String,
    pub message: String,
}

impl Default for Asker {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(ANSWER));
        Self(
            Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(30)).build(connector),
        )
    }
}

impl Asker {
    /// All at once; those that do not answer are known by what Kubernetes says.
    pub async fn ask(&self, pods: &[std::sync::Arc<Pod>], port: u16) -> Vec<Broker> {
        join_all(pods.iter().map(|pod| self.ask_one(pod, port))).await
    }

    async fn ask_one(&self, pod: &Pod, port: u16) -> Broker {
        let mut broker = of_pod(pod);
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()?.parse::<IpAddr>().ok());
        let running = broker.trouble.is_none() && !broker.ending;
        let Some(address) = address.filter(|_| running) else { return broker };
        let authority = match address {
            IpAddr::V4(address) => format!("{address}:{port}"),
            IpAddr::V6(address) => format!("[{address}]:{port}"),
        };
        let (acl, config) = join(self.get(&authority, "/v1/acl"), self.get(&authority, "/v1/config")).await;
        (broker.acl, broker.config) = (read(acl.as_ref()), read(config.as_ref()));
        if !broker.ready && acl.is_some() {
            let ready = self.get(&authority, "/readyz").await;
            broker.said = ready.filter(|(code, _)| *code != 200).map(|(_, text)| shown(&text));
        }
        broker
    }

    async fn get(&self, authority: &str, path: &str) -> Option<(u16, String)> {
        let uri = format!("http://{authority}{path}").parse().ok()?;
        let answer = async {
            let response = self.0.get(uri).await.ok()?;
            let code = response.status().as_u16();
            let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await.ok()?;
            Some((code, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
        };
        timeout(ANSWER, answer).await.ok().flatten()
    }
}

impl Broker {
    /// Whether it says that it has another ACL document or another config in force than these.
    pub fn is_behind(&self, generation: Option<u64>, config: Option<&str>) -> bool {
        self.acl.as_ref().is_some_and(|acl| Some(acl.generation) != generation)
            || self.config.as_ref().is_some_and(|said| config.is_some_and(|config| said.hash != config))
    }

    /// Its row in the status.
    pub fn row(&self) -> Node {
        let trouble = self.trouble.as_ref().map(|trouble| trouble.message.clone());
        Node {
            pod: self.pod.clone(),
            ready: self.ready,
            acl_generation: self.acl.as_ref().and_then(|acl| i64::try_from(acl.generation).ok()),
            message: trouble.or_else(|| self.said.clone()).filter(|_| !self.ready),
        }
    }
}

/// What Kubernetes knows of a broker.
pub fn of_pod(pod: &Pod) -> Broker {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.clone().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let unscheduled =
        conditions.clone().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    let unscheduled = unscheduled.map(|condition| Trouble {
        theirs: true,
        reason: "Unschedulable".into(),
        message: format!("no node takes it: {}", condition.message.clone().unwrap_or_default()),
    });
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let trouble = containers.filter_map(of_container).next();
    Broker {
        pod: pod.name_any(),
        ready,
        ending: pod.metadata.deletion_timestamp.is_some(),
        trouble: unscheduled.or(trouble).filter(|_| !ready),
        said: None,
        acl: None,
        config: None,
    }
}

fn read<T: DeserializeOwned>(answer: Option<&(u16, String)>) -> Option<T> {
    answer.filter(|(code, _)| *code == 200).and_then(|(_, text)| serde_json::from_str(text).ok())
}

fn of_container(status: &ContainerStatus) -> Option<Trouble> {
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    let said = waiting.message.as_deref().map(shown).filter(|said| !said.is_empty());
    let said = said.map_or_else(String::new, |said| format!(": {said}"));
    let trouble =
        |reason: &str, message: String| Some(Trouble { theirs: true, reason: reason.into(), message });
    match reason {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull"
        | "ImageInspectError" => {
            trouble("ImageNotPulled", format!("image {} can't be pulled{said}", status.image))
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            trouble("NotStarted", format!("its container can't be started{said}"))
        }
        "CrashLoopBackOff" => {
            let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
            let code = last.map_or_else(String::new, |last| format!(" with status {}", last.exit_code));
            trouble(
                "Crashing",
                format!("its broker ends again and again{code}; kubectl logs --previous says why"),
            )
        }
        _ => None,
    }
}

/// One line, not too long.
fn shown(text: &str) -> String {
    let mut line = text.trim().replace('\n', " ");
    line.truncate(line.floor_char_boundary(SHOWN_BYTES));
    line
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_keeps_a_pod_from_running_is_told_in_a_line() {
        let waiting = |reason: &str| {
            json!([{"name": "broker", "image": "x:1", "imageID": "", "ready": false, "restartCount": 3,
                    "state": {"waiting": {"reason": reason, "message": "because\nof it"}},
                    "lastState": {"terminated": {"exitCode": 2}}}])
        };
        let check = |containers: Value, conditions: Value, expected: Option<(&str, &str)>| {
            let pod = json!({"metadata": {"name": "p"}, "status": {"containerStatuses": containers, "conditions": conditions}});
            let broker = of_pod(&serde_json::from_value(pod).unwrap());
            let found =
                broker.trouble.as_ref().map(|trouble| (trouble.reason.as_str(), trouble.message.as_str()));
            assert_eq!(found, expected);
            assert_eq!(broker.row().message.as_deref(), expected.map(|(_, message)| message));
        };
        let none = || json!([]);
        check(none(), none(), None);
        check(waiting("ContainerCreating"), none(), None);
        check(
            waiting("ImagePullBackOff"),
            none(),
            Some(("ImageNotPulled", "image x:1 can't be pulled: because of it")),
        );
        check(
            waiting("CreateContainerConfigError"),
            none(),
            Some(("NotStarted", "its container can't be started: because of it")),
        );
        check(
            waiting("CrashLoopBackOff"),
            none(),
            Some((
                "Crashing",
                "its broker ends again and again with status 2; kubectl logs --previous says why",
            )),
        );
        let unscheduled =
            json!([{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]);
        check(none(), unscheduled, Some(("Unschedulable", "no node takes it: 0/3 nodes are available")));
        let ready = json!([{"type": "Ready", "status": "True"}]);
        check(waiting("CrashLoopBackOff"), ready, None);
    }
}
