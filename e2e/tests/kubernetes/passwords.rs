//! Passwords that the operator generates.

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use mqtt_e2e::{Login, Version, kubernetes::Namespace, wait_until};
use serde_json::{Value, json};

use crate::{
    SOON,
    meters::{Meters, object},
};

/// A value in the Secret of a user.
pub(crate) fn generated(namespace: &Namespace, secret: &str, key: &str) -> Result<String> {
    let secret = namespace.get("secret", secret)?;
    let value = secret.pointer(&format!("/data/{key}")).and_then(Value::as_str);
    let value = value.with_context(|| format!("no {key} in it"))?;
    Ok(String::from_utf8(STANDARD.decode(value)?)?)
}

#[test]
fn a_generated_password_lets_in_and_stays_valid_while_it_is_rotated() -> Result<()> {
    let meters = Meters::start_with(json!({}), &[object("MqttUser", "gateway", json!({}))])?;
    let namespace = &meters.namespace;
    let gateway = |password: &str| Login::new(Version::V5, "prober").user("gateway", password);
    let (user, first) = (
        generated(namespace, "gateway-mqtt", "username")?,
        generated(namespace, "gateway-mqtt", "password")?,
    );
    ensure!(user == "gateway" && first.len() >= 43, "{user}, {} characters", first.len());
    ensure!(meters.lets_in(&gateway(&first))? && !meters.lets_in(&gateway("wrong"))?);
    let mut stays = meters.connect(&Login::new(Version::V5, "stays").user("gateway", &first))?;

    let rotate = |value: &str| format!("mqtt.dms.dev/rotate-password{value}");
    namespace.kubectl(&["annotate", "mqttuser", "gateway", &rotate("=1")])?;
    wait_until("the second password", SOON, || {
        let second = generated(namespace, "gateway-mqtt", "password")?;
        Ok((second != first && meters.lets_in(&gateway(&second))?).then_some(()))
    })?;
    let second = generated(namespace, "gateway-mqtt", "password")?;
    ensure!(generated(namespace, "gateway-mqtt", "previous-password")? == first);
    ensure!(meters.lets_in(&gateway(&first))?, "devices that have the old one are shut out");

    namespace.kubectl(&["annotate", "mqttuser", "gateway", &rotate("-")])?;
    wait_until("the end of the first", SOON, || Ok((!meters.lets_in(&gateway(&first))?).then_some(())))?;
    ensure!(meters.lets_in(&gateway(&second))?);
    ensure!(stays.ping()?.is_empty(), "who was in is thrown out");

    // A Secret that somebody deletes is made anew, with another password.
    namespace.delete("secret/gateway-mqtt")?;
    wait_until("the third password", SOON, || {
        let third = generated(namespace, "gateway-mqtt", "password")?;
        Ok((third != second && meters.lets_in(&gateway(&third))?).then_some(()))
    })
}
