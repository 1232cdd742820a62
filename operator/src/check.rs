//! `mqtt-operator check`: whether an operator is at work here, asked of the API server alone.
//!
//! Promises: it changes nothing, reads no object of the four kinds, and has told what is missing within [`PATIENCE`].
//! A Lease counts as held when it is renewed while one looks: clocks of two machines are never compared.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::Lease,
    apimachinery::pkg::apis::meta::v1::{APIResource, APIResourceList},
};
use kube::{Api, Client};
use mqtt_operator_api::{GROUP, Kind, VERSION};
use tokio::time::{Instant, sleep, timeout};

/// How long a fresh installation may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);
/// How long one answer is waited for.
const ANSWER: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Missing {
    #[error("the API server could not be asked for {0}")]
    Answer(String),
    #[error(
        "{0} is not served by the API server; install the chart with crds.install=true, or apply the files in crds/"
    )]
    Kind(Kind),
    #[error("there is no Lease {0}; does the operator's pod run, and may it make one?")]
    Lease(String),
    #[error("Lease {0} is held by nobody; does the operator's pod run?")]
    Holder(String),
    #[error("Lease {0} is held by {1}, but not renewed; what does that pod's log say?")]
    Renewal(String, String),
}

/// Waits until all is there, and says who acts; else what is missing last.
pub async fn check(client: Client, namespace: &str, lease: &str) -> Result<String, Missing> {
    let until = Instant::now() + PATIENCE;
    let mut first = None;
    loop {
        let found = match served(&client).await {
            Ok(()) => renewed(&client, namespace, lease, &mut first).await,
            Err(missing) => Err(missing),
        };
        if found.is_ok() || Instant::now() >= until {
            return found;
        }
        sleep(PAUSE).await;
    }
}

async fn served(client: &Client) -> Result<(), Missing> {
    let group = format!("{GROUP}/{VERSION}");
    let list = answer(&group, client.list_api_group_resources(&group)).await?;
    let APIResourceList { resources, .. } = list.unwrap_or_default();
    all_kinds(&resources)
}

fn all_kinds(resources: &[APIResource]) -> Result<(), Missing> {
    let missing = |kind: &Kind| !resources.iter().any(|resource| resource.kind == kind.name());
    Kind::ALL.into_iter().find(missing).map_or(Ok(()), |kind| Err(Missing::Kind(kind)))
}

/// `first` is the Lease as it was first seen.
async fn renewed(
    client: &Client,
    namespace: &str,
    name: &str,
    first: &mut Option<Lease>,
) -> Result<String, Missing> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let path = format!("{namespace}/{name}");
    let found = answer(&format!("Lease {path}"), leases.get(name)).await?;
    let lease = found.ok_or_else(|| Missing::Lease(path.clone()))?;
    let before = first.get_or_insert_with(|| lease.clone());
    acts(before, &lease, path)
}

/// Who holds a Lease that was renewed between two looks.
fn acts(before: &Lease, now: &Lease, path: String) -> Result<String, Missing> {
    let spec = now.spec.as_ref();
    let holder = spec.and_then(|spec| spec.holder_identity.clone()).filter(|holder| !holder.is_empty());
    let holder = holder.ok_or_else(|| Missing::Holder(path.clone()))?;
    let time = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
    if time(before) == time(now) {
        return Err(Missing::Renewal(path, holder));
    }
    Ok(holder)
}

/// What the API server says, or nothing where it knows of no such thing.
async fn answer<T>(
    what: &str,
    asked: impl Future<Output = Result<T, kube::Error>>,
) -> Result<Option<T>, Missing> {
    match timeout(ANSWER, asked).await {
        Ok(Ok(found)) => Ok(Some(found)),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(None),
        Ok(Err(error)) => Err(Missing::Answer(format!("{what}: {error}"))),
        Err(_) => Err(Missing::Answer(format!("{what}: no answer in {} s", ANSWER.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn lease(spec: Value) -> Lease {
        serde_json::from_value(json!({"metadata": {"name": "mqtt-operator"}, "spec": spec})).unwrap()
    }

    #[test]
    fn an_operator_acts_when_its_lease_is_renewed_while_one_looks() {
        let early = json!({"holderIdentity": "a", "renewTime": "2026-01-01T00:00:00.000000Z"});
        let late = json!({"holderIdentity": "a", "renewTime": "2026-01-01T00:00:03.000000Z"});
        let given_up = json!({"holderIdentity": "", "renewTime": "2026-01-01T00:00:03.000000Z"});
        let check = |before: &Value, now: &Value, expected: Result<&str, Missing>| {
            let found = acts(&lease(before.clone()), &lease(now.clone()), "ops/mqtt-operator".into());
            assert_eq!(found, expected.map(str::to_owned), "{before} then {now}");
        };
        let path = || "ops/mqtt-operator".to_owned();
        check(&early, &late, Ok("a"));
        check(&early, &early, Err(Missing::Renewal(path(), "a".into())));
        check(&early, &given_up, Err(Missing::Holder(path())));
        check(&json!({}), &json!({}), Err(Missing::Holder(path())));
    }

    #[test]
    fn a_kind_that_is_not_served_is_named() {
        let served = |kinds: &[&str]| -> Vec<APIResource> {
            let resource = |kind: &&str| json!({"kind": kind, "name": kind.to_lowercase(), "namespaced": true, "singularName": "", "verbs": []});
            kinds.iter().map(|kind| serde_json::from_value(resource(kind)).unwrap()).collect()
        };
        let check = |kinds: &[&str], expected| assert_eq!(all_kinds(&served(kinds)), expected, "{kinds:?}");
        check(&["MqttInstance", "ParentTopic", "MqttUser", "TopicGrant"], Ok(()));
        check(&["MqttInstance", "MqttUser", "TopicGrant"], Err(Missing::Kind(Kind::ParentTopic)));
        check(&[], Err(Missing::Kind(Kind::MqttInstance)));
    }
}
