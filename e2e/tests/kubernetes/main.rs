//! Stories on a real Kubernetes, in namespaces that enforce the PodSecurity profile `restricted`.

mod around;
mod by_hand;
mod certificates;
mod ends;
mod faults;
mod first_use;
mod gitops;
mod grants;
mod lifecycle;
mod meters;
mod passwords;
mod rest;
mod rights;
mod rivals;
mod scale;
mod scope;
mod several;
mod steps;
mod topics;
mod users;
mod whose_turn;

use std::{path::Path, time::Duration};

use anyhow::{Result, anyhow};
use mqtt_broker_api::yaml::documents;
use serde_json::Value;

/// A Java program starts, connects, and is answered.
const JAVA: Duration = Duration::from_secs(30);

/// A pod is made, starts and is ready, on a busy machine.
const PODS: Duration = Duration::from_secs(120);

/// A changed object is seen, and what follows from it is in force.
const SOON: Duration = Duration::from_secs(20);

/// The objects in a YAML text.
fn objects(text: &str) -> Result<Vec<Value>> {
    let read = documents(text).map_err(|error| anyhow!("line {:?}: {}", error.line, error.message))?;
    Ok(read.into_iter().map(|document| document.value).collect())
}

/// The objects in a folder of manifests, as these files have them.
fn objects_in(folder: &Path) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        all.extend(objects(&std::fs::read_to_string(entry?.path())?)?);
    }
    Ok(all)
}
