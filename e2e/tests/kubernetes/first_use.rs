//! What the README tells a first user to do: install the chart, apply the examples, connect devices.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{Authority, Client, Driver, broker::Stored, clients::root};
use serde_json::json;

use crate::{
    JAVA, PODS,
    meters::{Meters, POD, SERVICE, TLS, certificate, meter},
};

/// A pod is made anew, and devices find it.
const RETURN: Duration = Duration::from_secs(90);

/// The command lines of the README's chapter, up to the first that only shows what else can be done.
fn commands() -> Result<Vec<String>> {
    let text = fs::read_to_string(root().join("README.md"))?;
    let (_, chapter) = text.split_once("\n## On Kubernetes\n").context("no such chapter")?;
    let blocks = chapter.split("```shell\n").skip(1).take(2);
    let lines = blocks.filter_map(|block| block.split("```").next()).flat_map(str::lines);
    Ok(lines.map(str::to_owned).collect())
}

#[test]
fn what_the_readme_says_makes_a_service_and_its_devices_return_when_all_pods_are_killed() -> Result<()> {
    let meters = Meters::empty()?;
    let Meters { namespace, kafka, operator, .. } = &meters;
    let servers = kafka.servers().join("\", \"");
    let mut ran = 0;
    for line in commands()?.iter().filter(|line| !line.starts_with("helm install")) {
        // This Kafka has one node.
        let line = line.replace("kafka.example:9092", &servers).replace("Factor\": 3", "Factor\": 1");
        let line = line.replace("-f examples", &format!("-f {}", root().join("examples").display()));
        if line.starts_with("mosquitto_pub") {
            meters.wait_until_reached()?;
        }
        let printed = namespace.shell(&line).with_context(|| format!("`{line}`"))?;
        match line.as_str() {
            "kubectl get mqtt" => ensure!(printed.contains("Serving"), "{printed}"),
            line if line.starts_with("helm test") => {
                ensure!(printed.contains("Succeeded"), "{printed}");
            }
            _ => {}
        }
        ran += 1;
    }
    ensure!(ran == 6, "{ran} commands");
    ensure!(operator.pods()?.len() == 2, "not two operators");

    let authority = Authority::new("plant")?;
    namespace.apply(&certificate(&authority, namespace)?.1)?;
    let mqtts = json!({"spec": {"listeners": {"mqtts": {"secretRef": {"name": TLS}}}}});
    namespace.patch("mqttinstance", "meters", &mqtts)?;
    meters.wait_until_all_are_ready()?;
    let ca = authority.ca().to_string_lossy().into_owned();
    let ways: [(&str, &str, &[&str]); 2] =
        [("18", "1883", &[]), ("19", "8085", &["--cafile", &ca, "--tls-alpn", "mqtt"])];
    for (reading, port, more) in ways {
        let to: &[&str] =
            &["-h", SERVICE, "-p", port, "-u", "fleet", "-P", "demo-only-fleet", "-i", "meter-1"];
        let what: &[&str] = &["-t", "readings/meter-1/kwh", "-m", reading, "-q", "1", "-V", "mqttv5"];
        namespace.run("mosquitto_pub", &[to, what, more].concat())?;
    }
    let mut application = kafka.consumer("application", &["readings"])?;
    let mut readings = Vec::new();
    for _ in 0..3 {
        let stored = Stored::of(&application.next(JAVA)?)?;
        ensure!(stored.topic == "readings/meter-1/kwh", "{stored:?}");
        readings.push(stored.payload);
    }
    readings.sort();
    ensure!(readings == ["17", "18", "19"], "{readings:?}");

    let login = meter(2).reconnecting();
    let mut device = Client::connect(Driver::Paho, meters.endpoint()?, &login)?;
    ensure!(device.publish("readings/meter-2/kwh", b"1", 1)? == 0);
    let (before, _) = meters.pod()?;
    // Whichever of them has it.
    let all = ["delete", "pod", "--selector", "app.kubernetes.io/name=mqtt-broker"];
    namespace.kubectl(&[&all[..], &["--force", "--grace-period=0"]].concat())?;
    device.closed()?;
    let tag = device.publish_soon("readings/meter-2/kwh", b"2", 1, false)?;
    ensure!(device.published(tag, RETURN)? == 0, "the device can't go on");
    namespace.wait("condition=Ready", &format!("pod/{POD}"), PODS)?;
    ensure!(meters.pod()?.0 != before, "the same pod");
    for expected in ["1", "2"] {
        let stored = Stored::of(&application.next(JAVA)?)?;
        ensure!(stored.client_id == "meter-2" && stored.payload == expected, "{stored:?}");
    }
    meters.wait_until_all_are_ready()
}
