//! An operator that was installed for some namespaces sees and may do nothing anywhere else.

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    PODS,
    meters::{Meters, meter, object},
};

#[test]
fn an_operator_of_some_namespaces_acts_there_and_has_no_right_anywhere_else() -> Result<()> {
    let meters = Meters::empty_alone()?;
    let Meters { namespace, operator, .. } = &meters;
    let cluster = namespace.cluster();
    let elsewhere = namespace.another()?;
    let scoped = operator.only_in(&[namespace.name()])?;
    let noted = cluster.writes()?.len();

    let may = |verb: &str, what: &str, place: &str| -> Result<bool> {
        let asked = ["auth", "can-i", verb, what, "--as", &operator.user(), "--namespace", place];
        match cluster.kubectl(&asked) {
            Ok(said) => Ok(said == "yes"),
            Err(refused) if format!("{refused:#}").contains(": no") => Ok(false),
            Err(error) => bail!("{error:#}"),
        }
    };
    for (verb, what) in
        [("list", "mqttinstances.mqtt.dms.dev"), ("get", "secrets"), ("patch", "statefulsets.apps")]
    {
        ensure!(may(verb, what, namespace.name())?, "it may not {verb} {what} where it is to act");
        ensure!(!may(verb, what, elsewhere.name())?, "it may {verb} {what} elsewhere");
    }
    let of_release = "app.kubernetes.io/instance=mqtt-operator";
    let kinds = "clusterroles,clusterrolebindings";
    let everywhere = cluster.kubectl(&["get", kinds, "--selector", of_release, "--output", "name"])?;
    ensure!(everywhere.is_empty(), "{everywhere}");

    elsewhere.apply(&object("MqttUser", "gateway", json!({})))?;
    meters.apply(json!({}), &[])?;
    meters.wait_until_all_are_ready()?;
    ensure!(meters.lets_in(&meter(1))?);
    let user = elsewhere.get("mqttuser", "gateway")?;
    ensure!(user.pointer("/status").is_none_or(Value::is_null), "it acts elsewhere: {user}");
    let written = cluster.writes()?.split_off(noted);
    let mine = || written.iter().filter(|write| write.user == operator.user());
    ensure!(mine().any(|write| write.namespace == namespace.name()), "the API server notes nothing");
    let astray = mine().find(|write| write.namespace == elsewhere.name());
    ensure!(astray.is_none(), "{astray:?}");

    // Installed for all namespaces again, it has nothing to mend here, and sees to what is there.
    let before = meters.pod()?;
    drop(scoped);
    let reason = "jsonpath={.status.conditions[?(@.type==\"Stalled\")].reason}=InstanceNotFound";
    elsewhere.wait(reason, "mqttuser/gateway", PODS)?;
    meters.wait_until_all_are_ready()?;
    ensure!(meters.pod()? == before, "the pod was restarted");
    Ok(())
}
