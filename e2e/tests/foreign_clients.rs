//! Clients that nobody here wrote, one table over all: they connect, subscribe, publish, come back and leave wills.

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{Broker, Client, Dialogue, Driver, Login, Manifests, Packet, Version, clients::Event};

/// All but mosquitto's, which can do one thing at a time; the stories of `delivered_and_stored` have them.
const DRIVERS: [Driver; 5] =
    [Driver::Paho, Driver::PahoJava, Driver::PahoGo, Driver::MqttJs, Driver::Rumqttc];
const VERSIONS: [Version; 2] = [Version::V3, Version::V5];
/// Those that still speak MQTT 3.1.
const OLD: [(Driver, Version); 2] = [(Driver::Paho, Version::V31), (Driver::MqttJs, Version::V31)];

fn manifests() -> Manifests {
    Manifests::new().user("ops", "ops-secret").grant("ops-all", "ops", &[("pubsub", "#")])
}

fn login(version: Version, id: &str) -> Login {
    Login::new(version, id).user("ops", "ops-secret")
}

#[test]
fn every_client_and_version_subscribes_publishes_recovers_a_session_and_leaves_a_will() -> Result<()> {
    let broker = Broker::start(&manifests())?;
    let (mut witness, _) = Dialogue::connect(broker.mqtt, &login(Version::V5, "witness"))?;
    let now = DRIVERS.into_iter().flat_map(|driver| VERSIONS.map(|version| (driver, version)));
    for (driver, version) in now.chain(OLD) {
        let own = format!("{driver:?}-{version:?}");
        sends_to_itself(&broker, driver, version, &own)
            .and_then(|()| comes_back(&broker, driver, version, &own, &mut witness))
            .and_then(|()| leaves_a_will(&broker, driver, version, &own, &mut witness))
            .context(own)?;
    }
    Ok(())
}

#[test]
fn clients_of_mqtt_3_1_that_do_one_thing_at_a_time_publish_and_subscribe() -> Result<()> {
    let broker = Broker::start(&manifests())?;
    let own = |id: &str| login(Version::V31, id);
    for qos in [0, 1, 2] {
        let mut subscriber = Client::connect(Driver::Mosquitto, &broker, &own(&format!("sub-{qos}")))?;
        ensure!(subscriber.subscribe("old/+", qos)? == [qos]);
        let mut publisher = Client::connect(Driver::Mosquitto, &broker, &own(&format!("pub-{qos}")))?;
        ensure!(publisher.publish("old/x", "é".as_bytes(), qos)? == 0);
        let message = subscriber.message()?;
        ensure!(message.payload == "é".as_bytes() && message.qos == qos, "came {message:?}");
    }
    Ok(())
}

fn sends_to_itself(broker: &Broker, driver: Driver, version: Version, own: &str) -> Result<()> {
    let mut client = Client::connect(driver, broker, &login(version, own))?;
    for qos in [0, 1, 2] {
        let topic = format!("{own}/{qos}");
        ensure!(client.subscribe(&topic, qos)? == [qos], "QoS {qos} was not granted");
        let payload = format!("é {qos}");
        let reason = client.publish(&topic, payload.as_bytes(), qos)?;
        ensure!(reason == 0, "QoS {qos} was answered {reason:#x}");
        let message = client.message()?;
        ensure!(message.topic == topic && message.payload == payload.as_bytes(), "came {message:?}");
        ensure!(message.qos == qos && !message.retain, "came {message:?}");
    }
    client.unsubscribe(&format!("{own}/1"))?;
    client.publish(&format!("{own}/1"), b"unheard", 1)?;
    client.publish(&format!("{own}/2"), b"heard", 2)?;
    let message = client.message()?;
    ensure!(message.payload == b"heard", "came {message:?}");
    client.disconnect()
}

fn comes_back(
    broker: &Broker,
    driver: Driver,
    version: Version,
    own: &str,
    publisher: &mut Dialogue,
) -> Result<()> {
    let kept = login(version, own).persistent();
    let (mut client, came) = Client::try_connect(driver, broker, &kept)?;
    ensure!(came == Event::Connected { session_present: false }, "at first: {came:?}");
    ensure!(client.subscribe(&format!("{own}/+"), 2)? == [2]);
    client.break_off()?;
    for (qos, id) in [(1, 1), (2, 2)] {
        publisher.publish(&format!("{own}/waits"), format!("{qos}").as_bytes(), qos, id)?;
        let answer = publisher.read()?;
        let taken = matches!(answer, Packet::PubAck { reason: 0, .. } | Packet::PubRec { reason: 0, .. });
        ensure!(taken, "the publisher was told {answer:?}");
    }
    publisher.send(&mqtt_e2e::wire::pubrel(2))?;
    ensure!(matches!(publisher.read()?, Packet::PubComp { id: 2, .. }));
    let (mut client, came) = Client::try_connect(driver, broker, &kept)?;
    // CONNACK of MQTT 3.1 does not tell.
    let told = version != Version::V31;
    ensure!(came == Event::Connected { session_present: told }, "at its return: {came:?}");
    for qos in [1, 2] {
        let message = client.message()?;
        ensure!(message.qos == qos && message.payload == format!("{qos}").as_bytes(), "came {message:?}");
    }
    client.disconnect()
}

fn leaves_a_will(
    broker: &Broker,
    driver: Driver,
    version: Version,
    own: &str,
    witness: &mut Dialogue,
) -> Result<()> {
    let topic = format!("wills/{own}");
    ensure!(witness.subscribe(&topic, 1)? == 1);
    let client = Client::connect(driver, broker, &login(version, own).will(&topic, b"gone", 1))?;
    client.break_off()?;
    match witness.read()? {
        Packet::Publish { payload, id: Some(id), .. } if payload == b"gone" => {
            witness.send(&mqtt_e2e::wire::puback(id))
        }
        other => anyhow::bail!("its will: {other:?}"),
    }
}
