//! From what was built to what is in the cluster: what is wanted is applied, what is ours and no longer wanted goes.

use std::collections::{HashMap, HashSet};

use mqtt_operator_api::instance::MqttInstance;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::build::Built;
use crate::{
    apply::{Error, Item, Owner, Writer},
    watch::World,
};

/// The kind that is not watched, for its definition need not be there.
const SERVICE_MONITOR: (&str, &str) = ("monitoring.coreos.com/v1", "ServiceMonitor");

/// How it went.
pub(super) struct Applied {
    /// Names the content of all that pods mount.
    pub(super) mounted: String,
    /// The first thing that did not work; the others were done.
    pub(super) failed: Option<Error>,
}

pub(super) async fn apply(
    writer: &Writer,
    world: &World,
    owner: &Owner,
    instance: &MqttInstance,
    built: &Built,
    thorough: bool,
) -> Result<Applied, Error> {
    let unwritten =
        |error: serde_json::Error| Error::Later { what: "write the objects".into(), why: error.to_string() };
    let objects = built.objects().map_err(unwritten)?;
    let namespace = &owner.object.namespace;
    let owned: HashMap<Item, _> =
        world.owned_by(namespace, &owner.uid).into_iter().map(|owned| (owned.item.clone(), owned)).collect();
    let wanted: HashSet<Item> = objects.iter().map(Item::of).collect();
    let mut mounted = Vec::new();
    let mut failed = None;
    let mut note = |outcome: Result<(), Error>| match outcome {
        Err(Error::Lost) => Err(Error::Lost),
        Err(error) => {
            failed.get_or_insert(error);
            Ok(())
        }
        Ok(()) => Ok(()),
    };
    for object in &objects {
        let item = Item::of(object);
        let applied = writer.apply(owner, object, owned.contains_key(&item)).await;
        if matches!(item.kind.as_str(), "ConfigMap" | "Secret") {
            mounted.push(format!("{item}={}", applied.as_deref().unwrap_or_default()));
        }
        note(applied.map(drop).map_err(|error| explained(error, object)))?;
    }
    let kept = |item: &Item| item.kind == "Secret" && built.kept.contains(&item.name);
    for (item, owned) in owned.iter().filter(|(item, _)| !wanted.contains(item) && !kept(item)) {
        note(writer.delete(item, owned.group_version, &owned.uid).await)?;
    }
    if thorough && !instance.spec.monitoring.service_monitor {
        note(without_monitor(writer, owner, built).await)?;
    }
    mounted.sort();
    let digest = Sha256::digest(mounted.join("\n"));
    let mounted = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Ok(Applied { mounted, failed })
}

async fn without_monitor(writer: &Writer, owner: &Owner, built: &Built) -> Result<(), Error> {
    let name = built.stateful_set.metadata.name.clone().unwrap_or_default();
    let (group_version, kind) = SERVICE_MONITOR;
    let item = Item::new(kind, &owner.object.namespace, &name);
    match writer.find(owner, &item, group_version).await? {
        Some(uid) => writer.delete(&item, group_version, &uid).await,
        None => Ok(()),
    }
}

/// Says what a person can do where the API server does not.
fn explained(error: Error, object: &Value) -> Error {
    match error {
        Error::Theirs { reason: "Refused", what, why }
            if object.get("kind").is_some_and(|kind| kind == SERVICE_MONITOR.1) =>
        {
            let why = format!(
                "{why}; install the definitions of the Prometheus Operator, or set spec.monitoring.serviceMonitor to false"
            );
            Error::Theirs { reason: "Refused", what, why }
        }
        error => error,
    }
}
