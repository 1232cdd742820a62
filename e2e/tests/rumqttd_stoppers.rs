//! What stops rumqttd leaves this broker as it was.

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{
    Broker, Manifests,
    rumqttd_stoppers::{CONNECTIONS, STOPPERS, Target},
};
use serde_json::json;

#[test]
fn nothing_that_stops_rumqttd_stops_this_broker() -> Result<()> {
    let manifests = Manifests::new()
        .instance(json!({"limits": {"connections": CONNECTIONS}}))
        .user("ops", "ops-secret")
        .grant("ops-all", "ops", &[("pubsub", "#")]);
    let broker = Broker::start(&manifests)?;
    let target = Target { v3: broker.mqtt, v5: broker.mqtt, login: Some(("ops", "ops-secret")) };
    for (what, stopper) in STOPPERS {
        target.survives(stopper).context(what)?;
    }
    let panics = broker.log_lines(&["panicked"])?;
    ensure!(panics.is_empty(), "{panics:?}");
    Ok(())
}
