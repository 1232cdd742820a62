//! What was acknowledged survives SIGKILL: devices publish on while the broker dies and comes back, again and again.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use mqtt_broker_api::admin::RecordView;
use mqtt_e2e::{
    Broker, Client, Driver, Login, Manifests, Store, Version,
    broker::{Stored, header},
    clients::Event,
    wait_until,
};

mqtt_e2e::on_every_store! {
    every_acknowledged_message_is_stored_though_the_broker_is_killed_again_and_again,
}

/// Messages of each device.
const EACH: usize = 600;
const KILLS: usize = 4;
const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

struct Device {
    id: String,
    qos: u8,
    /// The parent it publishes under.
    parent: &'static str,
    client: Client,
    /// Tag of a publish → its number.
    tags: BTreeMap<u64, usize>,
    acked: BTreeSet<usize>,
}

impl Device {
    fn start(
        broker: &Broker,
        driver: Driver,
        version: Version,
        qos: u8,
        parent: &'static str,
    ) -> Result<Self> {
        let id = format!("meter-{driver:?}-{version:?}-{qos}-{parent}");
        let login = Login::new(version, &id).user("fleet", "fleet-secret").persistent().reconnecting();
        let client = Client::connect(driver, broker, &login)?;
        Ok(Self { id, qos, parent, client, tags: BTreeMap::new(), acked: BTreeSet::new() })
    }

    fn publish_all(&mut self) -> Result<()> {
        for number in 0..EACH {
            let topic = format!("{}/{}", self.parent, self.id);
            let tag = self.client.publish_soon(&topic, number.to_string().as_bytes(), self.qos, false)?;
            self.tags.insert(tag, number);
        }
        Ok(())
    }

    fn unacked(&self) -> Vec<usize> {
        (0..EACH).filter(|number| !self.acked.contains(number)).collect()
    }

    /// Takes in the acks that came; returns how many there are now.
    fn acks(&mut self) -> Result<usize> {
        for event in self.client.drain()? {
            if let Event::Published { tag, reason } = event {
                ensure!(reason == 0 || reason == 0x10, "{}: answered {reason:#x}", self.id);
                self.acked.extend(self.tags.get(&tag));
            }
        }
        Ok(self.acked.len())
    }
}

fn every_acknowledged_message_is_stored_though_the_broker_is_killed_again_and_again(
    store: &Store,
) -> Result<()> {
    let manifests = Manifests::new()
        .parent("readings")
        .ordered_parent("orderMsg2mq-readings")
        .user("fleet", "fleet-secret")
        .grant("fleet-all", "fleet", &[("pub", "#")]);
    let mut broker = Broker::start_on(store, &manifests)?;
    // QoS 2 is MQTT.js's: Paho 2.1 forgets, after a failed attempt to reconnect, that it has released a message, and
    // publishes it anew. No broker can tell that from a new message.
    let mut devices = vec![
        Device::start(&broker, Driver::Paho, Version::V3, 1, "orderMsg2mq-readings")?,
        Device::start(&broker, Driver::MqttJs, Version::V3, 2, "orderMsg2mq-readings")?,
        Device::start(&broker, Driver::Paho, Version::V5, 1, "orderMsg2mq-readings")?,
        Device::start(&broker, Driver::MqttJs, Version::V5, 2, "orderMsg2mq-readings")?,
        Device::start(&broker, Driver::MqttJs, Version::V5, 1, "readings")?,
        Device::start(&broker, Driver::MqttJs, Version::V5, 2, "readings")?,
    ];
    for device in &mut devices {
        device.publish_all()?;
    }
    let total = EACH * devices.len();
    let mut acked = |at_least: usize| {
        wait_until(&format!("{at_least} acks"), LIMIT, || {
            let mut count = 0;
            for device in &mut devices {
                count += device.acks()?;
            }
            Ok((count >= at_least).then_some(count))
        })
    };
    let mut killed_mid_stream = 0;
    for kill in 1..=KILLS {
        let count = acked(total * kill / (KILLS + 1))?;
        killed_mid_stream += usize::from(count < total);
        broker.kill9()?;
        broker.restart()?;
    }
    ensure!(killed_mid_stream == KILLS, "the stream was over after {killed_mid_stream} kills");
    if let Err(error) = acked(total) {
        let left: Vec<String> =
            devices.iter().map(|device| format!("{} lacks {:?}", device.id, device.unacked())).collect();
        bail!("{error:#}: {}", left.join(", "));
    }

    for parent in ["readings", "orderMsg2mq-readings"] {
        let records = broker.records(parent)?;
        for device in devices.iter().filter(|device| device.parent == parent) {
            check(&records, device).with_context(|| device.id.clone())?;
        }
    }
    Ok(())
}

/// Everything is there: QoS 2 once, and under an ordered parent each first copy in the order of its publish.
fn check(all: &[RecordView], device: &Device) -> Result<()> {
    let mut records: Vec<&RecordView> =
        all.iter().filter(|record| header(record, "clientId") == Some(&device.id)).collect();
    records.sort_by_key(|record| (record.partition, record.offset));
    let mut numbers = Vec::new();
    for record in records.iter().copied() {
        numbers.push(Stored::of(record)?.payload.parse::<usize>()?);
    }
    let mut seen = BTreeSet::new();
    let first: Vec<usize> = numbers.iter().copied().filter(|number| seen.insert(*number)).collect();
    let missing: Vec<usize> = (0..EACH).filter(|number| !seen.contains(number)).collect();
    ensure!(missing.is_empty(), "acknowledged and not stored: {missing:?}");
    if device.qos == 2 {
        let mut once = BTreeSet::new();
        let twice: Vec<&usize> = numbers.iter().filter(|number| !once.insert(**number)).collect();
        ensure!(twice.is_empty(), "stored more than once: {twice:?}");
    }
    if device.parent.starts_with("orderMsg2mq-") {
        let partitions: BTreeSet<u32> = records.iter().map(|record| record.partition).collect();
        ensure!(partitions.len() == 1, "in the partitions {partitions:?}");
        ensure!(first.is_sorted(), "out of order: {first:?}");
    }
    Ok(())
}
