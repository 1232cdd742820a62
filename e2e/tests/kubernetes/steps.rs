//! The operator dies at each step of its way: after whatever it changes, in the cluster or in Kafka.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use mqtt_e2e::wait_until;
use serde_json::json;

use crate::{
    PODS,
    meters::{Meters, object},
    passwords::generated,
};

/// When it has changed nothing for so long there is nothing left to do: brokers are asked again every three seconds.
const QUIET: Duration = Duration::from_secs(12);
/// In so many places at least; what goes on side by side does not come in the same order each time.
const LEAST: usize = 8;
/// More than there are.
const MOST: usize = 300;

#[test]
fn an_operator_that_dies_after_each_change_leaves_nothing_half_done_or_twice() -> Result<()> {
    let more = [
        object("MqttUser", "gateway", json!({})),
        object("ParentTopic", "short-lived", json!({"deletionPolicy": "Delete"})),
    ];
    let meters = Meters::empty_alone()?;
    let Meters { namespace, operator, kafka } = &meters;
    let kafka = kafka.admin()?;
    operator.scale(0)?;
    meters.apply(json!({"deletionPolicy": "Delete"}), &more)?;
    let mut passwords = BTreeSet::new();
    let mut until_quiet = |what: &str| -> Result<Vec<String>> {
        let mut steps = Vec::new();
        while let Some(step) = operator.dies_after(steps.len() + 1, QUIET)? {
            steps.push(step);
            passwords.extend(generated(namespace, "gateway-mqtt", "password").ok());
            ensure!(steps.len() < MOST, "{what} does not come to an end: {steps:?}");
        }
        println!("{what}: {} steps, {steps:?}", steps.len());
        Ok(steps)
    };
    let made = until_quiet("from nothing to all that is wanted")?;
    let different: BTreeSet<&String> = made.iter().collect();
    ensure!(different.len() >= LEAST, "it died in {} places alone: {different:?}", different.len());
    meters.wait_until_all_are_ready()?;
    ensure!(kafka.topics()?.contains_key("short-lived"));

    for kind in ["parenttopic", "mqttinstance"] {
        namespace.kubectl(&["delete", kind, "--all", "--timeout=30s"])?;
    }
    namespace.kubectl(&["wait", "--for=delete", "pods", "--all", "--timeout=60s"])?;
    let swept = until_quiet("to nothing")?;
    ensure!(swept.iter().any(|step| step.contains("Kafka topic")), "it died in no sweep: {swept:?}");
    ensure!(passwords.len() == 1, "{} passwords were made for one user", passwords.len());
    ensure!(operator.remembers(namespace.name(), "meters")?.is_none(), "something is still remembered");
    let left: BTreeSet<String> = kafka.topics()?.into_keys().collect();
    ensure!(!left.contains("short-lived") && !left.contains("__mqtt-sessions"), "{left:?}");
    let listed = |kinds: &str| namespace.list(kinds, "app.kubernetes.io/managed-by=mqtt-operator");
    wait_until("the end of what it owned", PODS, || {
        let left = listed("statefulsets,services,configmaps,poddisruptionbudgets,networkpolicies")?;
        Ok(left.is_empty().then_some(()))
    })?;
    operator.scale(2)
}
