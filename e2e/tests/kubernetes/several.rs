//! Several brokers of one instance: any of them may go, all may be replaced by those of the next version, and their number may
//! change, while devices publish.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{
    Dialogue, Fleet, FleetOptions, Login, Packet,
    fleet::{Entry, Repeats},
    wait_until,
};
use serde_json::{Value, json};

use crate::{
    JAVA, PODS, SOON,
    meters::{Meters, grant, meter, object, ops},
    passwords::generated,
};

const NAMES: [&str; 3] = ["meters-broker-0", "meters-broker-1", "meters-broker-2"];
/// No device that comes back at once may wait longer for an answer while pods are replaced in order.
const HELD_UP: Duration = Duration::from_secs(5);

#[test]
fn nothing_is_lost_when_pods_die_are_replaced_or_are_fewer_or_more() -> Result<()> {
    let small = json!({"requests": {"cpu": "50m", "memory": "64Mi"}});
    let load = [
        object("MqttUser", "load", json!({})),
        grant("load", "load", &[("pub", "readings/#"), ("pub", "orderMsg2mq-readings/#")]),
    ];
    // Alone: how long a device waits depends on who else is at work.
    let meters = Meters::empty_alone()?;
    let images = meters.namespace.cluster().images();
    meters.apply(json!({"replicas": 3, "pod": {"resources": small, "image": images.before}}), &load)?;
    meters.wait_until_all_are_ready()?;
    let namespace = &meters.namespace;
    let serving = |what: &str| {
        wait_until(what, PODS, || {
            let told = meters.told("mqttinstance/meters", "Ready", "Serving")?;
            Ok(told.contains(what).then_some(()))
        })
    };
    serving("3 brokers are ready")?;
    let at_all_pods = || {
        let all =
            || Ok(meters.enforced("mqttinstance", "meters")?.starts_with("True 3/3 pods at ").then_some(()));
        wait_until("users and grants to be in force at every pod", SOON, all)
    };
    at_all_pods()?;
    let version =
        || namespace.get("topicgrant", "load").map(|grant| grant["metadata"]["resourceVersion"].clone());
    let enforced = version()?;
    let certificate = || namespace.get("secret", "meters-broker-peers").map(|secret| secret["data"].clone());
    let issued = certificate()?;
    let login = meter(1).persistent();
    let connect = || -> Result<(Dialogue, bool)> {
        wait_until("a broker to let the device in", SOON, || {
            Ok(Dialogue::connect(meters.endpoint()?.mqtt, &login).ok())
        })
    };
    let (mut device, _) = connect()?;
    ensure!(device.subscribe("commands/meter-1", 1)? == 1, "a subscription is refused");
    drop(device);
    let password = generated(namespace, "load-mqtt", "password")?;
    let options = FleetOptions {
        devices: 16,
        rate: 40,
        burst: 1,
        user: "load".into(),
        password,
        ..FleetOptions::default()
    };
    let fleet = Fleet::start(meters.endpoint()?.mqtt, options)?;
    fleet.wait_for_acks(100, SOON)?;
    // Each pod is replaced, in order, by one of this version.
    let from = fleet.now();
    namespace.patch("mqttinstance", "meters", &json!({"spec": {"pod": {"image": images.broker}}}))?;
    wait_until("new pods", PODS, || {
        let is_new = |pod: &Value| {
            pod.pointer("/spec/containers/0/image").and_then(Value::as_str) == Some(&images.broker)
        };
        let pods = NAMES.iter().map(|pod| namespace.get("pod", pod)).collect::<Result<Vec<_>>>();
        Ok(pods.is_ok_and(|pods| pods.iter().all(is_new)).then_some(()))
    })?;
    serving("3 brokers are ready")?;
    at_all_pods()?;
    ensure!(version()? == enforced, "a grant was written though only pods were replaced");
    fleet.wait_for_acks(100, SOON)?;
    let replaced = from..fleet.now();
    what_passes_takes_links(&meters)?;
    ensure!(connect()?.1, "its session is gone with new pods");
    // Whichever has it.
    for pod in NAMES {
        namespace.kubectl(&["delete", "pod", pod, "--grace-period=0", "--force"])?;
        ensure!(connect()?.1, "its session is gone with {pod}");
    }
    for (replicas, what) in [(1, "1 broker is ready"), (3, "3 brokers are ready")] {
        namespace.patch("mqttinstance", "meters", &json!({"spec": {"replicas": replicas}}))?;
        serving(what)?;
        ensure!(connect()?.1, "its session is gone once {what}");
    }
    ensure!(certificate()? == issued, "the certificate for links was made anew while it was good");
    let ledger = fleet.stop(PODS)?;
    let waits = ledger.devices.iter().flat_map(|device| &device.published);
    let waits = waits.filter(|published| replaced.contains(&published.sent));
    let longest = waits.filter_map(|published| Some(published.acked? - published.sent)).max();
    let longest = longest.unwrap_or_default();
    println!(
        "{} messages; while pods were replaced, one waited {longest:?} for its answer",
        ledger.published()
    );
    ensure!(longest <= HELD_UP, "a device waited {longest:?} while pods were replaced");
    let mut application = meters.kafka.consumer("books", &["readings", "orderMsg2mq-readings"])?;
    let (mut entries, mut found) = (Vec::new(), BTreeSet::new());
    while found.len() < ledger.published() {
        // The books say what is missing then.
        let Ok(record) = application.next(JAVA) else { break };
        let entry = Entry::of(&record)?;
        found.insert((entry.client_id.clone(), entry.payload.clone()));
        entries.push(entry);
    }
    ledger.ensure_kept(&entries, Repeats::SameId)
}

/// Nobody has done anything for it: pods have links to each other, and by them goes what clean sessions get from other pods.
fn what_passes_takes_links(meters: &Meters) -> Result<()> {
    const NOTICES: u16 = 50;
    let namespace = &meters.namespace;
    let counter = |pod: &str, name: &str| -> Result<u64> {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}:9090/proxy/v1/counters", namespace.name());
        let counters: Value = serde_json::from_str(&namespace.kubectl(&["get", "--raw", &path])?)?;
        counters.get(name).and_then(Value::as_u64).with_context(|| format!("{pod} has no {name}"))
    };
    let connect = |pod: &str, login: &Login| -> Result<Dialogue> {
        let found = namespace.get("pod", pod)?;
        let address = found.pointer("/status/podIP").and_then(Value::as_str).context("no address")?;
        Ok(Dialogue::connect(SocketAddr::new(address.parse()?, 1883), login)?.0)
    };
    for pod in NAMES {
        wait_until(
            &format!("links of {pod}"),
            SOON,
            || Ok((counter(pod, "peer_links")? == 2).then_some(())),
        )?;
    }
    let [first, second, third] = NAMES;
    let mut devices = [connect(second, &meter(2))?, connect(third, &meter(3))?];
    for device in &mut devices {
        ensure!(device.subscribe("notices/#", 1)? == 1, "a subscription is refused");
    }
    let mut desk = connect(first, &ops("desk"))?;
    let (by_links, through_log) = (counter(first, "passed_by_links")?, counter(first, "passed_through_log")?);
    for number in 1..=NOTICES {
        desk.publish("notices/all", &number.to_be_bytes(), 1, number)?;
        let answer = desk.read()?;
        ensure!(matches!(answer, Packet::PubAck { id, reason: 0 } if id == number), "{answer:?}");
    }
    for device in &mut devices {
        for number in 1..=NOTICES {
            let packet = device.read()?;
            let expected = number.to_be_bytes();
            ensure!(
                matches!(&packet, Packet::Publish { payload, .. } if payload[..] == expected),
                "{number} was due: {packet:?}"
            );
        }
    }
    let passed = counter(first, "passed_by_links")? - by_links;
    ensure!(passed == 2 * u64::from(NOTICES), "{passed} messages went by links");
    let logged = counter(first, "passed_through_log")? - through_log;
    ensure!(logged == 0, "{logged} messages went through Kafka");
    Ok(())
}
