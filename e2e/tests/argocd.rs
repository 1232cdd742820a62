//! What Argo CD shows of our objects: the health scripts for it, run in a real Lua with no more libraries than it gives
//! them.

use std::fs;

use anyhow::{Context, Result, ensure};
use mlua::{Lua, LuaOptions, LuaSerdeExt as _, StdLib, Table};
use mqtt_broker_api::yaml::documents;
use mqtt_e2e::clients::root;
use serde_json::{Value, json};

const KINDS: [&str; 4] = ["MqttInstance", "ParentTopic", "MqttUser", "TopicGrant"];

/// The script of each kind, in the order of [`KINDS`].
fn scripts() -> Result<Vec<String>> {
    let text = fs::read_to_string(root().join("charts/mqtt-operator/argocd/argocd-cm.yaml"))?;
    let read =
        documents(&text).map_err(|error| anyhow::anyhow!("line {:?}: {}", error.line, error.message))?;
    let [patch] = read.as_slice() else { anyhow::bail!("{} documents", read.len()) };
    let data = patch.value.get("data").and_then(Value::as_object).context("no data")?;
    ensure!(data.len() == KINDS.len(), "keys {:?}", data.keys());
    KINDS
        .iter()
        .map(|kind| {
            let key = format!("resource.customizations.health.mqtt.dms.dev_{kind}");
            Ok(data.get(&key).and_then(Value::as_str).with_context(|| format!("no {key}"))?.to_owned())
        })
        .collect()
}

/// Status and message that a script gives an object.
fn health(script: &str, object: &Value) -> Result<(String, String)> {
    let lua = Lua::new_with(StdLib::TABLE, LuaOptions::default())?;
    lua.globals().set("obj", lua.to_value(object)?)?;
    let answer: Table = lua.load(script).eval()?;
    Ok((answer.get("status")?, answer.get("message")?))
}

/// An object of generation 3 whose status speaks of `observed`, with conditions (type, status, message).
fn object(observed: Option<u64>, conditions: &[(&str, &str, &str)]) -> Value {
    let conditions: Vec<Value> = conditions
        .iter()
        .map(|(kind, status, message)| json!({"type": kind, "status": status, "message": message, "reason": "Any"}))
        .collect();
    let mut status = json!({"conditions": conditions});
    if let (Some(observed), Some(fields)) = (observed, status.as_object_mut()) {
        fields.insert("observedGeneration".into(), observed.into());
    }
    json!({
        "apiVersion": "mqtt.dms.dev/v1alpha1",
        "metadata": {"name": "meters", "generation": 3},
        "status": status,
    })
}

#[test]
fn argo_cd_tells_what_is_in_force_from_what_is_on_its_way_and_what_somebody_must_mend() -> Result<()> {
    let mut deleted = object(Some(3), &[("Ready", "True", "serves")]);
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    let mut new = object(None, &[]);
    new.as_object_mut().context("no object")?.remove("status");
    let mut unsaid = object(Some(3), &[]);
    unsaid["status"].as_object_mut().context("no status")?.remove("conditions");

    let ready = ("Ready", "True", "serves");
    let not_ready = ("Ready", "False", "waits for its pod");
    let reconciling = ("Reconciling", "True", "a pod is starting");
    let at_rest = ("Reconciling", "False", "nothing to do");
    let stalled = ("Stalled", "True", "name a Secret that exists");
    let not_stalled = ("Stalled", "False", "nothing stops it");
    let table: &[(&str, Value, &str, &str)] = &[
        ("just created", new, "Progressing", "has not seen it"),
        ("conditions without a generation", object(None, &[ready]), "Progressing", "has not seen it"),
        ("seen, nothing said", unsaid, "Progressing", "has not said"),
        ("ready", object(Some(3), &[ready]), "Healthy", "serves"),
        ("ready and at rest", object(Some(3), &[not_stalled, at_rest, ready]), "Healthy", "serves"),
        ("ready once, changed since", object(Some(2), &[ready]), "Progressing", "latest change"),
        (
            "stalled once, mended since",
            object(Some(2), &[stalled, not_ready]),
            "Progressing",
            "latest change",
        ),
        ("stalled", object(Some(3), &[not_ready, stalled]), "Degraded", "name a Secret that exists"),
        ("stalled while it serves", object(Some(3), &[ready, stalled]), "Degraded", "name a Secret"),
        ("rolling over", object(Some(3), &[ready, reconciling]), "Progressing", "a pod is starting"),
        ("starting", object(Some(3), &[not_ready, reconciling]), "Progressing", "a pod is starting"),
        ("not ready, no more said", object(Some(3), &[not_ready]), "Progressing", "waits for its pod"),
        ("unknown", object(Some(3), &[("Ready", "Unknown", "not reached")]), "Progressing", "not reached"),
        ("on its way out", deleted, "Progressing", "deleted"),
    ];
    for (kind, script) in KINDS.iter().zip(scripts()?) {
        for (name, object, status, message) in table {
            let (found, said) =
                health(&script, object).with_context(|| format!("{kind}, {name}: the script fails"))?;
            ensure!(found == *status, "{kind}, {name}: {found}, {said}");
            ensure!(said.contains(message), "{kind}, {name}: says {said:?}, not {message:?}");
        }
    }
    Ok(())
}
