//! The certificate of the TLS listener comes and is renewed, as cert-manager would do it: in its Secret.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{Authority, Tls, TlsVersion, wait_until};
use serde_json::json;

use crate::{
    PODS, SOON,
    meters::{Meters, SERVICE, TLS, certificate, meter},
};

#[test]
fn a_certificate_comes_late_and_is_renewed_without_a_dropped_connection_and_a_bad_one_changes_nothing()
-> Result<()> {
    let authority = Authority::new("plant")?;
    let meters = Meters::empty()?;
    let namespace = &meters.namespace;
    let (first, secret) = certificate(&authority, namespace)?;
    // Its Secret is still to come: no broker starts that would wait for it.
    meters.apply(json!({"listeners": {"mqtts": {"secretRef": {"name": TLS}}}}), &[])?;
    let message = meters.told_within(PODS, "mqttinstance/meters", "Stalled", "SecretNotFound")?;
    ensure!(message.contains(TLS) && message.contains("no broker starts before"), "{message}");
    ensure!(namespace.list("statefulsets", "app.kubernetes.io/instance=meters")?.is_empty(), "pods are made");
    let message = meters.told("mqttuser/fleet", "Reconciling", "InstanceNotReady")?;
    ensure!(message.contains("meters"), "{message}");
    namespace.apply(&secret)?;
    meters.wait_until_all_are_ready()?;
    let before = meters.pod()?;
    ensure!(before.1 == 0, "the broker was started {} times in vain", before.1);

    let mqtts = meters.endpoint()?.mqtts.context("no TLS")?;
    let client = authority.client(TlsVersion::V13);
    let shown = || Tls::connect_by_name(mqtts, SERVICE, &client)?.seen().context("no certificate");
    ensure!(shown()? == first.der()?);
    let mut stays = Tls::connect_by_name(mqtts, SERVICE, &client)?.login(&meter(1))?;

    let (second, secret) = certificate(&authority, namespace)?;
    let start = Instant::now();
    namespace.apply(&secret)?;
    wait_until("the new certificate", SOON, || Ok((shown()? == second.der()?).then_some(())))?;
    println!("a renewed certificate is shown {:?} after kubectl apply began", start.elapsed());
    ensure!(stays.ping()?.is_empty(), "the connection was disturbed");

    for (key, told) in [("none", "private key"), (first.key.as_str(), "not the key of the certificate")] {
        namespace.patch("secret", TLS, &json!({"stringData": {"tls.key": key}}))?;
        wait_until(told, SOON, || {
            let message = meters.told("mqttinstance/meters", "Stalled", "SecretUnusable")?;
            Ok((message.contains(TLS) && message.contains(told)).then_some(()))
        })?;
        ensure!(shown()? == second.der()?, "a certificate that can't be used is in use");
    }
    namespace.delete(&format!("secret/{TLS}"))?;
    let message = meters.told("mqttinstance/meters", "Stalled", "SecretNotFound")?;
    ensure!(!message.contains("until then"), "pods wait for what they have: {message}");
    ensure!(shown()? == second.der()?, "what was in force is taken away with its Secret");
    let (third, secret) = certificate(&authority, namespace)?;
    namespace.apply(&secret)?;
    meters.ready("mqttinstance/meters")?;
    wait_until("the third certificate", SOON, || Ok((shown()? == third.der()?).then_some(())))?;
    ensure!(stays.ping()?.is_empty() && meters.pod()? == before, "something was restarted");
    Ok(())
}
