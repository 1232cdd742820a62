//! A device's message reaches its subscribers and its stored topic, whatever client, version and QoS it has.

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{
    Broker, Client, Driver, Login, Manifests, Store, Version,
    broker::{Stored, header, key},
};

mqtt_e2e::on_every_store! {
    a_message_of_any_client_version_and_qos_is_delivered_and_stored,
    clients_of_different_libraries_and_versions_understand_each_other,
    a_message_under_no_registered_parent_is_delivered_and_not_stored,
    the_first_level_that_is_not_empty_names_the_parent,
    payload_bytes_reach_subscribers_and_come_back_from_the_record_unchanged,
    all_messages_of_one_client_under_an_ordered_parent_stand_in_one_partition_in_its_order,
    records_can_be_read_from_an_offset_and_followed,
}

const DRIVERS: [Driver; 3] = [Driver::Paho, Driver::MqttJs, Driver::Mosquitto];

/// A fleet that may publish everything, and an application that may subscribe to everything.
fn fleet() -> Manifests {
    Manifests::new()
        .parent("readings")
        .ordered_parent("orderMsg2mq-readings")
        .user("fleet", "fleet-secret")
        .grant("fleet-all", "fleet", &[("pub", "#")])
        .user("ops", "ops-secret")
        .grant("ops-all", "ops", &[("sub", "#")])
}

fn device(version: Version, id: &str) -> Login {
    Login::new(version, id).user("fleet", "fleet-secret")
}

fn application(version: Version, id: &str) -> Login {
    Login::new(version, id).user("ops", "ops-secret")
}

fn a_message_of_any_client_version_and_qos_is_delivered_and_stored(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &fleet())?;
    let mut stored = 0;
    for (driver, version) in
        DRIVERS.into_iter().flat_map(|driver| [Version::V3, Version::V5].map(|version| (driver, version)))
    {
        let check = |qos: u8, count: usize| -> Result<()> {
            let topic = format!("readings/{driver:?}/{version:?}/{qos}");
            let mut subscriber = Client::connect(driver, &broker, &application(version, "application"))?;
            let granted = subscriber.subscribe(&format!("readings/{driver:?}/+/{qos}"), qos)?;
            ensure!(granted == [qos], "granted {granted:?}");
            let mut publisher = Client::connect(driver, &broker, &device(version, "meter-7"))?;
            let payload = format!("{{\"kWh\": {qos}.5}}");
            let reason = publisher.publish(&topic, payload.as_bytes(), qos)?;
            ensure!(reason == 0, "the publish was answered {reason:#x}");

            let message = subscriber.message()?;
            ensure!(message.topic == topic && message.payload == payload.as_bytes(), "came {message:?}");
            ensure!(message.qos == qos && !message.retain, "came {message:?}");

            let records = broker.wait_for_records("readings", count)?;
            ensure!(records.len() == count, "{} records, not {count}", records.len());
            let record = records
                .iter()
                .find(|record| header(record, "mqttTopic") == Some(&topic))
                .with_context(|| format!("no record with the header mqttTopic={topic} in {records:?}"))?;
            let stored = Stored::of(record)?;
            ensure!((stored.ts - now()).abs() < 60_000, "stored {stored:?}");
            let expected = Stored {
                client_id: "meter-7".to_owned(),
                topic: topic.clone(),
                payload: payload.clone(),
                ts: stored.ts,
                encoding: None,
            };
            ensure!(stored == expected, "stored {stored:?}");
            ensure!(record.key.is_none(), "a record of a Normal parent has the key {:?}", record.key);
            ensure!(header(record, "qoslevel") == Some(&qos.to_string()), "headers {:?}", record.headers);
            ensure!(header(record, "clientId") == Some("meter-7"), "headers {:?}", record.headers);
            ensure!(
                header(record, "messageId").is_some_and(|id| !id.is_empty()),
                "headers {:?}",
                record.headers
            );
            Ok(())
        };
        for qos in [0, 1, 2] {
            stored += 1;
            check(qos, stored).with_context(|| format!("{driver:?}, {version:?}, QoS {qos}"))?;
        }
    }
    let records = broker.records("readings")?;
    let mut ids: Vec<&str> = records.iter().filter_map(|record| header(record, "messageId")).collect();
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == stored, "{stored} messages have only {} messageIds", ids.len());
    Ok(())
}

fn clients_of_different_libraries_and_versions_understand_each_other(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &fleet())?;
    let mut subscribers = Vec::new();
    for driver in DRIVERS {
        for version in [Version::V3, Version::V5] {
            let id = format!("application-{driver:?}-{version:?}");
            let mut subscriber = Client::connect(driver, &broker, &application(version, &id))?;
            ensure!(subscriber.subscribe("#", 2)? == [2]);
            subscribers.push(subscriber);
        }
    }
    for driver in DRIVERS {
        for version in [Version::V3, Version::V5] {
            let payload = format!("from {driver:?} {version:?}");
            let mut publisher = Client::connect(driver, &broker, &device(version, "meter-7"))?;
            ensure!(publisher.publish("readings/all", payload.as_bytes(), 2)? == 0);
            for subscriber in &mut subscribers {
                let message = subscriber.message().with_context(|| payload.clone())?;
                ensure!(message.payload == payload.as_bytes() && message.qos == 2, "came {message:?}");
            }
        }
    }
    Ok(())
}

fn a_message_under_no_registered_parent_is_delivered_and_not_stored(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &fleet())?;
    let mut subscriber = Client::connect(Driver::Paho, &broker, &application(Version::V5, "application"))?;
    subscriber.subscribe("chatter/#", 1)?;
    let mut publisher = Client::connect(Driver::MqttJs, &broker, &device(Version::V3, "meter-7"))?;
    ensure!(publisher.publish("chatter/7", b"hello", 1)? == 0);
    ensure!(publisher.publish("readings/7", b"1.5", 1)? == 0);

    ensure!(subscriber.message()?.payload == b"hello");
    let records = broker.wait_for_records("readings", 1)?;
    ensure!(records.len() == 1, "stored {records:?}");
    let refused = broker.command(&["records", "read", "chatter"], "")?;
    let said = String::from_utf8(refused.stderr)?;
    ensure!(!refused.status.success() && refused.stdout.is_empty(), "chatter was stored");
    ensure!(said.contains("chatter") && said.trim().lines().count() == 1, "it said {said:?}");
    Ok(())
}

fn the_first_level_that_is_not_empty_names_the_parent(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &fleet())?;
    let mut publisher = Client::connect(Driver::Paho, &broker, &device(Version::V3, "meter-7"))?;
    let stored = ["readings", "readings/a", "/readings/b", "readings/", "/readings"];
    let not_stored = ["readings2/a", "xreadings", "a/readings", "Readings/a"];
    for topic in stored.iter().chain(&not_stored) {
        ensure!(publisher.publish(topic, b"x", 1)? == 0, "{topic}");
    }
    let mut topics = Vec::new();
    for record in broker.wait_for_records("readings", stored.len())? {
        topics.push(Stored::of(&record)?.topic);
    }
    topics.sort_unstable();
    let mut expected = stored.map(str::to_owned);
    expected.sort_unstable();
    ensure!(topics == expected, "stored {topics:?}");
    Ok(())
}

fn payload_bytes_reach_subscribers_and_come_back_from_the_record_unchanged(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &fleet())?;
    let payloads: [(&str, Vec<u8>); 8] = [
        ("text", b"1.5 kWh".to_vec()),
        ("JSON", b"{\"a\": \"\\u00e9\"}".to_vec()),
        ("wide characters", "电表 ⚡ é".as_bytes().to_vec()),
        ("quotes and control characters", b"\"\\\n\r\t\x00\x1f\x7f".to_vec()),
        ("nothing", Vec::new()),
        ("all bytes", (0..=255).collect()),
        ("UTF-8 broken off", "é".as_bytes().iter().copied().take(1).collect()),
        ("100 KB", b"\xff\x00".repeat(50_000)),
    ];
    let mut subscriber = Client::connect(Driver::Paho, &broker, &application(Version::V3, "application"))?;
    subscriber.subscribe("readings/#", 1)?;
    let mut publisher = Client::connect(Driver::MqttJs, &broker, &device(Version::V5, "meter-7"))?;
    for (count, (what, payload)) in payloads.iter().enumerate() {
        let mut check = || -> Result<()> {
            ensure!(publisher.publish(&format!("readings/{count}"), payload, 1)? == 0);
            ensure!(subscriber.message()?.payload == *payload, "other bytes were delivered");
            let records = broker.wait_for_records("readings", count + 1)?;
            let record = records
                .iter()
                .find(|record| header(record, "mqttTopic") == Some(&format!("readings/{count}")))
                .context("no record")?;
            let stored = Stored::of(record)?;
            ensure!(stored.bytes()? == *payload, "other bytes were stored");
            let is_text = std::str::from_utf8(payload).is_ok();
            ensure!(
                is_text == stored.encoding.is_none(),
                "text is stored as text, the rest as base64: {stored:?}"
            );
            Ok(())
        };
        check().context(*what)?;
    }
    Ok(())
}

fn all_messages_of_one_client_under_an_ordered_parent_stand_in_one_partition_in_its_order(
    store: &Store,
) -> Result<()> {
    const EACH: usize = 50;
    // Partition of three, as Kafka's Java client computes it: murmur2 of the key.
    const CLIENTS: [(&str, u32); 4] = [("meter-1", 1), ("meter-2", 2), ("meter-5", 0), ("电表", 2)];
    let broker = Broker::start_on(store, &fleet())?;
    let mut publishers = Vec::new();
    for (id, _) in CLIENTS {
        publishers.push(Client::connect(Driver::Paho, &broker, &device(Version::V5, id))?);
    }
    for count in 0..EACH {
        for publisher in &mut publishers {
            let payload = count.to_string();
            publisher.publish_soon(
                "orderMsg2mq-readings/x",
                payload.as_bytes(),
                1 + (count % 2) as u8,
                false,
            )?;
        }
    }
    let records = broker.wait_for_records("orderMsg2mq-readings", EACH * CLIENTS.len())?;
    for (id, partition) in CLIENTS {
        let mut own: Vec<_> = records.iter().filter(|record| key(record) == Some(id)).collect();
        own.sort_by_key(|record| record.offset);
        let partitions: Vec<u32> = own.iter().map(|record| record.partition).collect();
        ensure!(partitions == vec![partition; EACH], "{id} is in the partitions {partitions:?}");
        let mut payloads = Vec::new();
        for record in own {
            payloads.push(Stored::of(record)?.payload.parse::<usize>()?);
        }
        ensure!(payloads == (0..EACH).collect::<Vec<_>>(), "{id} stands as {payloads:?}");
    }
    Ok(())
}

fn records_can_be_read_from_an_offset_and_followed(store: &Store) -> Result<()> {
    use std::io::{BufRead, BufReader};
    let broker = Broker::start_on(store, &fleet())?;
    let mut publisher = Client::connect(Driver::Paho, &broker, &device(Version::V3, "meter-7"))?;
    for count in 0..4 {
        publisher.publish("orderMsg2mq-readings/x", format!("{count}").as_bytes(), 1)?;
    }
    let all = broker.wait_for_records("orderMsg2mq-readings", 4)?;
    let third = all.get(2).context("a third record")?.offset.to_string();

    let mut follower =
        broker.spawn(&["records", "read", "orderMsg2mq-readings", "--from", &third, "--follow"])?;
    let (sender, lines) = std::sync::mpsc::channel();
    let output = follower.stdout.take().context("no output")?;
    std::thread::spawn(move || {
        BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    let next = || -> Result<String> {
        let record = serde_json::from_str(&lines.recv_timeout(mqtt_e2e::PATIENCE)?)?;
        Ok(Stored::of(&record)?.payload)
    };
    let first_two = [next()?, next()?];
    publisher.publish("orderMsg2mq-readings/x", b"live", 1)?;
    let live = next();
    follower.kill()?;
    follower.wait()?;
    ensure!(first_two == ["2", "3"] && live? == "live", "followed {first_two:?}");
    Ok(())
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
