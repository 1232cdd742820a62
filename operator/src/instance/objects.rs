//! From what was built to what is in the cluster: what is wanted is applied, what is ours and no longer wanted goes.
//!
//! Promises: pods are not told to look for what they would not find. Where a Secret that they mount has not all of it yet,
//! their config and their template stay as they are, or are not made, until it has.

use std::collections::{HashMap, HashSet};

use mqtt_operator_api::instance::MqttInstance;
use serde_json::Value;

use super::build::{Built, Kept};
use crate::{
    apply::{Error, Item, Owner, Writer},
    digest,
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
    /// Pods wait for a Secret.
    pub(super) held: bool,
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
    let held = lacks(world, owner, &built.kept).await?;
    let (mut mounted, mut failed) = (Vec::new(), None);
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
        if held && matches!(item.kind.as_str(), "ConfigMap" | "StatefulSet") {
            continue;
        }
        let applied = writer.apply(owner, object, owned.contains_key(&item)).await;
        if matches!(item.kind.as_str(), "ConfigMap" | "Secret") {
            mounted.push(format!("{item}={}", applied.as_deref().unwrap_or_default()));
        }
        note(applied.map(drop).map_err(|error| explained(error, object)))?;
    }
    let kept = |item: &Item| item.kind == "Secret" && built.kept.iter().any(|kept| kept.name == item.name);
    for (item, owned) in owned.iter().filter(|(item, _)| !wanted.contains(item) && !kept(item)) {
        note(writer.delete(item, owned.group_version, &owned.uid).await)?;
    }
    if thorough && !instance.spec.monitoring.service_monitor {
        note(without_monitor(writer, owner, built).await)?;
    }
    mounted.sort();
    let mounted = digest::short(&mounted.join("\n"));
    Ok(Applied { mounted, failed, held })
}

/// Whether pods would look in vain for something in these Secrets.
async fn lacks(world: &World, owner: &Owner, kept: &[Kept]) -> Result<bool, Error> {
    for Kept { name, keys } in kept {
        let there = world.secrets.read(&(owner.object.namespace.clone(), name.clone())).await?;
        let there = there.filter(|there| there.owner.as_ref() == Some(&owner.uid));
        if there.is_none_or(|there| !keys.iter().all(|key| there.data.contains_key(*key))) {
            return Ok(true);
        }
    }
    Ok(false)
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
