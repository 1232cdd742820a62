//! Sessions: taken over, kept, dropped; wills; retained messages.

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{
    Broker, Client, Dialogue, Driver, Login, Manifests, PATIENCE, Packet, Store, Version,
    broker::{Stored, header},
    clients::Event,
    wait_until, wire,
};
use serde_json::json;

mqtt_e2e::on_every_store! {
    a_second_connection_with_the_same_client_id_closes_the_first,
    a_takeover_moves_a_persistent_session_with_its_subscriptions_and_what_is_in_flight,
    another_users_session_is_discarded_not_resumed,
    a_persistent_session_keeps_the_last_messages_while_its_device_is_away,
    a_clean_session_leaves_nothing_behind,
    a_session_is_gone_after_its_expiry,
    a_will_is_published_when_the_connection_breaks_and_only_then,
    a_will_that_no_grant_allows_is_not_published,
    a_retained_message_is_there_for_whoever_subscribes_later,
    an_unfinished_qos_2_delivery_goes_on_where_it_stood,
}

const VERSIONS: [Version; 2] = [Version::V3, Version::V5];

fn manifests() -> Manifests {
    Manifests::new()
        .parent("readings")
        .user("ops", "ops-secret")
        .grant("ops-all", "ops", &[("pubsub", "#")])
        .user("fleet", "fleet-secret")
        .grant("fleet-own", "fleet", &[("pubsub", "own/${clientId}")])
}

fn login(version: Version, id: &str) -> Login {
    Login::new(version, id).user("ops", "ops-secret")
}

fn a_second_connection_with_the_same_client_id_closes_the_first(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    for first in VERSIONS {
        for second in VERSIONS {
            let (mut old, _) = Dialogue::connect(broker.mqtt, &login(first, "twin"))?;
            let (mut new, _) = Dialogue::connect(broker.mqtt, &login(second, "twin"))?;
            if first == Version::V5 {
                let farewell = old.read()?;
                ensure!(farewell == Packet::Disconnect { reason: 0x8E }, "the first was told {farewell:?}");
            }
            ensure!(old.read()? == Packet::Closed, "the first lives on");
            ensure!(new.ping()?.is_empty());
        }
    }
    Ok(())
}

fn a_takeover_moves_a_persistent_session_with_its_subscriptions_and_what_is_in_flight(
    store: &Store,
) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    for version in VERSIONS {
        let own = login(version, "mover").persistent();
        let (mut old, _) = Dialogue::connect(broker.mqtt, &own)?;
        ensure!(old.subscribe("news", 1)? == 1);
        let (mut publisher, _) = Dialogue::connect(broker.mqtt, &login(version, "publisher"))?;
        publisher.publish("news", b"unacknowledged", 1, 1)?;
        let first = old.read()?;
        ensure!(matches!(first, Packet::Publish { dup: false, .. }), "came {first:?}");

        let (mut new, present) = Dialogue::connect(broker.mqtt, &own)?;
        ensure!(present, "no session");
        let again = new.read()?;
        let Packet::Publish { payload, dup, id, .. } = &again else { anyhow::bail!("came {again:?}") };
        ensure!(payload == b"unacknowledged" && *dup, "came {again:?}");
        new.send(&wire::puback(id.context("no packet identifier")?))?;
        publisher.publish("news", b"later", 1, 2)?;
        let later = new.read()?;
        ensure!(
            matches!(&later, Packet::Publish { payload, dup: false, .. } if payload == b"later"),
            "{later:?}"
        );
        // Leaves no session for the next version.
        Dialogue::connect(broker.mqtt, &login(version, "mover"))?;
    }
    Ok(())
}

fn another_users_session_is_discarded_not_resumed(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    for version in VERSIONS {
        let (mut owner, _) = Dialogue::connect(broker.mqtt, &login(version, "shared").persistent())?;
        ensure!(owner.subscribe("secrets", 1)? == 1);
        let other = Login::new(version, "shared").user("fleet", "fleet-secret").persistent();
        let (mut other, present) = Dialogue::connect(broker.mqtt, &other)?;
        ensure!(!present, "{version:?}: another user's session was resumed");
        let (mut publisher, _) = Dialogue::connect(broker.mqtt, &login(version, "publisher"))?;
        publisher.publish("secrets", b"x", 1, 1)?;
        ensure!(matches!(publisher.read()?, Packet::PubAck { .. }));
        ensure!(other.ping()?.is_empty(), "{version:?}: it got another user's messages");
    }
    Ok(())
}

fn a_persistent_session_keeps_the_last_messages_while_its_device_is_away(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    for (driver, version) in
        [(Driver::Paho, Version::V3), (Driver::Paho, Version::V5), (Driver::MqttJs, Version::V5)]
    {
        let own = login(version, &format!("sleeper-{driver:?}-{version:?}")).persistent();
        let mut sleeper = Client::connect(driver, &broker, &own)?;
        ensure!(sleeper.subscribe("news/#", 2)? == [2]);
        sleeper.disconnect()?;
        let (mut publisher, _) = Dialogue::connect(broker.mqtt, &login(Version::V3, "publisher"))?;
        publisher.publish("news/x", b"not kept: QoS 0", 0, 0)?;
        for number in 1..=15u16 {
            publisher.publish("news/x", number.to_string().as_bytes(), 1, number)?;
            ensure!(publisher.read()? == Packet::PubAck { id: number, reason: 0 });
        }
        let (mut sleeper, answer) = Client::try_connect(driver, &broker, &own)?;
        ensure!(answer == Event::Connected { session_present: true }, "{answer:?}");
        let mut got = Vec::new();
        for _ in 0..10 {
            got.push(String::from_utf8(sleeper.message()?.payload)?);
        }
        let expected: Vec<String> = (6..=15).map(|number| number.to_string()).collect();
        ensure!(got == expected, "{driver:?} {version:?} got {got:?}");
    }
    Ok(())
}

fn a_clean_session_leaves_nothing_behind(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    for version in VERSIONS {
        let (mut first, _) = Dialogue::connect(broker.mqtt, &login(version, "fresh"))?;
        ensure!(first.subscribe("news", 1)? == 1);
        first.send(&wire::disconnect())?;
        ensure!(first.read()? == Packet::Closed);
        let (mut publisher, _) = Dialogue::connect(broker.mqtt, &login(version, "publisher"))?;
        publisher.publish("news", b"x", 1, 1)?;
        ensure!(matches!(publisher.read()?, Packet::PubAck { .. }));
        let (mut second, present) = Dialogue::connect(broker.mqtt, &login(version, "fresh").persistent())?;
        ensure!(!present && second.ping()?.is_empty(), "{version:?}");
        // A clean connection discards a stored session, too.
        ensure!(second.subscribe("news", 1)? == 1);
        drop(second);
        let (_third, present) = Dialogue::connect(broker.mqtt, &login(version, "fresh"))?;
        ensure!(!present, "{version:?}: a clean connection took up a session");
        let (_fourth, present) = Dialogue::connect(broker.mqtt, &login(version, "fresh").persistent())?;
        ensure!(!present, "{version:?}: the stored session is still there");
    }
    Ok(())
}

fn a_session_is_gone_after_its_expiry(store: &Store) -> Result<()> {
    // Each look at a session takes it up again, so every look has one of its own.
    const LOOKS: usize = 300;
    let short = json!({"session": {"expiry": "1s"}});
    for (version, expiry, manifests) in [
        (Version::V3, 0, manifests().instance(short.clone())),
        (Version::V5, 3600, manifests().instance(short)),
        (Version::V5, 1, manifests()),
    ] {
        let broker = Broker::start_on(store, &manifests)?;
        let sleeper = |number: usize| {
            let own = login(version, &format!("sleeper-{number}"));
            Login { clean: false, expiry, ..own }
        };
        for number in 0..LOOKS {
            let (mut dialogue, _) = Dialogue::connect(broker.mqtt, &sleeper(number))?;
            dialogue.send(&wire::disconnect())?;
            ensure!(dialogue.read()? == Packet::Closed);
        }
        let (_, present) = Dialogue::connect(broker.mqtt, &sleeper(LOOKS - 1))?;
        ensure!(present, "{version:?} {expiry}: the last session was gone at once");
        let mut number = 0;
        wait_until("an expired session", PATIENCE, || {
            ensure!(number < LOOKS - 1, "every session was looked at");
            number += 1;
            let (_, present) = Dialogue::connect(broker.mqtt, &sleeper(number - 1))?;
            Ok((!present).then_some(()))
        })
        .with_context(|| format!("{version:?}, {expiry} s asked"))?;
    }
    Ok(())
}

fn a_will_is_published_when_the_connection_breaks_and_only_then(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    let (mut watcher, _) = Dialogue::connect(broker.mqtt, &login(Version::V3, "watcher"))?;
    ensure!(watcher.subscribe("readings/#", 1)? == 1);
    let mut wills = 0;
    for version in VERSIONS {
        let polite = login(version, "polite").will("readings/polite", b"never", 1);
        let (mut dialogue, _) = Dialogue::connect(broker.mqtt, &polite)?;
        dialogue.send(&wire::disconnect())?;
        ensure!(dialogue.read()? == Packet::Closed);

        let broken = login(version, "broken").will("readings/broken", b"\xff broke off", 1);
        drop(Dialogue::connect(broker.mqtt, &broken)?);
        let will = watcher.read()?;
        let Packet::Publish { topic, payload, qos: 1, retain: false, id: Some(id), .. } = &will else {
            anyhow::bail!("{version:?}: came {will:?}")
        };
        ensure!(topic == "readings/broken" && payload == b"\xff broke off", "{version:?}: came {will:?}");
        watcher.send(&wire::puback(*id))?;

        let silent =
            Login { keep_alive: 1, ..login(version, "silent").will("readings/silent", b"fell silent", 0) };
        let (mut silent, _) = Dialogue::connect(broker.mqtt, &silent)?;
        let will = watcher.read()?;
        ensure!(
            matches!(&will, Packet::Publish { topic, .. } if topic == "readings/silent"),
            "came {will:?}"
        );
        if version == Version::V5 {
            ensure!(silent.read()? == Packet::Disconnect { reason: 0x8D });
        }
        ensure!(silent.read()? == Packet::Closed);
        wills += 2;
        let records = broker.wait_for_records("readings", wills)?;
        ensure!(records.len() == wills, "stored {records:?}");
        for record in &records {
            let id = header(record, "clientId").unwrap_or_default();
            ensure!(Stored::of(record)?.topic == format!("readings/{id}"), "stored {record:?}");
        }
    }
    Ok(())
}

fn a_will_that_no_grant_allows_is_not_published(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    let (mut watcher, _) = Dialogue::connect(broker.mqtt, &login(Version::V3, "watcher"))?;
    ensure!(watcher.subscribe("#", 1)? == 1);
    for version in VERSIONS {
        let own = Login::new(version, "sneaky").user("fleet", "fleet-secret").will("own/other", b"boo", 0);
        // Whether it is refused at once or when it would be published is not this story's.
        drop(Dialogue::greet(broker.mqtt, &own).and_then(|mut dialogue| dialogue.read()));
        broker.wait_for_log(&["WARN", "sneaky"])?;
        let allowed =
            Login::new(version, "honest").user("fleet", "fleet-secret").will("own/honest", b"bye", 0);
        drop(Dialogue::connect(broker.mqtt, &allowed)?);
        let will = watcher.read()?;
        ensure!(matches!(&will, Packet::Publish { topic, .. } if topic == "own/honest"), "came {will:?}");
    }
    Ok(())
}

fn a_retained_message_is_there_for_whoever_subscribes_later(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    let mut early = Client::connect(Driver::Paho, &broker, &login(Version::V3, "early"))?;
    ensure!(early.subscribe("state/#", 1)? == [1]);
    let mut publisher = Client::connect(Driver::MqttJs, &broker, &login(Version::V5, "publisher"))?;
    ensure!(publisher.retain("state/1", b"old", 1)? == 0);
    ensure!(publisher.retain("state/1", b"open", 1)? == 0);
    ensure!(publisher.retain("state/2", b"gone", 1)? == 0);
    ensure!(publisher.retain("state/2", b"", 1)? == 0);
    for expected in [&b"old"[..], b"open", b"gone", b""] {
        let message = early.message()?;
        ensure!(message.payload == expected && !message.retain, "as it was published came {message:?}");
    }
    for driver in [Driver::Paho, Driver::MqttJs, Driver::Mosquitto] {
        for version in VERSIONS {
            let id = format!("late-{driver:?}-{version:?}");
            let mut late = Client::connect(driver, &broker, &login(version, &id))?;
            ensure!(late.subscribe("state/+", 1)? == [1]);
            let message = late.message()?;
            ensure!(message.payload == b"open" && message.retain, "{id} got {message:?}");
            ensure!(publisher.publish("state/3", b"end", 1)? == 0);
            let message = late.message()?;
            ensure!(message.payload == b"end", "{id} got {message:?}");
        }
    }
    Ok(())
}

fn an_unfinished_qos_2_delivery_goes_on_where_it_stood(store: &Store) -> Result<()> {
    let broker = Broker::start_on(store, &manifests())?;
    for version in VERSIONS {
        let own = login(version, "careful").persistent();
        let (mut first, _) = Dialogue::connect(broker.mqtt, &own)?;
        ensure!(first.subscribe("news", 2)? == 2);
        let (mut publisher, _) = Dialogue::connect(broker.mqtt, &login(version, "publisher"))?;
        publisher.publish("news", b"once", 2, 1)?;
        ensure!(publisher.read()? == Packet::PubRec { id: 1, reason: 0 });
        publisher.send(&wire::pubrel(1))?;
        ensure!(publisher.read()? == Packet::PubComp { id: 1, reason: 0 });
        let Packet::Publish { id: Some(id), qos: 2, .. } = first.read()? else {
            anyhow::bail!("no QoS 2 message")
        };
        drop(first);

        let (mut second, _) = Dialogue::connect(broker.mqtt, &own)?;
        let again = second.read()?;
        let same = matches!(&again, Packet::Publish { id: Some(other), dup: true, .. } if *other == id);
        ensure!(same, "{version:?}: came {again:?}");
        second.send(&wire::pubrec(id))?;
        ensure!(second.read()? == Packet::PubRel { id, reason: 0 });
        drop(second);

        let (mut third, _) = Dialogue::connect(broker.mqtt, &own)?;
        let release = third.read()?;
        ensure!(release == Packet::PubRel { id, reason: 0 }, "{version:?}: came {release:?}");
        third.send(&wire::pubcomp(id))?;
        ensure!(third.ping()?.is_empty());
        Dialogue::connect(broker.mqtt, &login(version, "careful"))?;
    }
    Ok(())
}
