//! Several brokers of one instance: any of them may go, and their number may change.

use anyhow::{Result, ensure};
use mqtt_e2e::{Dialogue, wait_until};
use serde_json::json;

use crate::{
    PODS, SOON,
    meters::{Meters, meter},
};

#[test]
fn sessions_go_on_when_a_pod_dies_and_when_there_are_fewer_or_more_pods() -> Result<()> {
    let small = json!({"requests": {"cpu": "50m", "memory": "64Mi"}});
    let meters = Meters::start(json!({"replicas": 3, "pod": {"resources": small}}))?;
    let namespace = &meters.namespace;
    let serving = |what: &str| {
        wait_until(what, PODS, || {
            let told = meters.told("mqttinstance/meters", "Ready", "Serving")?;
            Ok(told.contains(what).then_some(()))
        })
    };
    serving("3 brokers are ready")?;
    let login = meter(1).persistent();
    let connect = || -> Result<(Dialogue, bool)> {
        wait_until("a broker to let the device in", SOON, || {
            Ok(Dialogue::connect(meters.endpoint()?.mqtt, &login).ok())
        })
    };
    let (mut device, _) = connect()?;
    ensure!(device.subscribe("commands/meter-1", 1)? == 1, "a subscription is refused");
    drop(device);
    // Whichever has it.
    for pod in ["meters-broker-0", "meters-broker-1", "meters-broker-2"] {
        namespace.kubectl(&["delete", "pod", pod, "--grace-period=0", "--force"])?;
        ensure!(connect()?.1, "its session is gone with {pod}");
    }
    for (replicas, what) in [(1, "1 broker is ready"), (3, "3 brokers are ready")] {
        namespace.patch("mqttinstance", "meters", &json!({"spec": {"replicas": replicas}}))?;
        serving(what)?;
        ensure!(connect()?.1, "its session is gone once {what}");
    }
    Ok(())
}
