//! Shared subscriptions: a group's message goes to one member, and what a member leaves behind to another.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use mqtt_e2e::{Broker, Dialogue, Login, Manifests, PATIENCE, Packet, Store, Version, wait_until, wire};
use serde_json::json;

mqtt_e2e::on_every_store! {
    each_message_of_a_group_reaches_one_member_and_every_plain_subscription,
    members_are_chosen_as_the_instance_says,
    what_a_member_that_leaves_has_not_acknowledged_goes_to_another,
    what_waits_for_a_member_that_is_away_goes_to_one_that_is_there,
    what_waits_for_a_member_that_loses_its_grant_while_it_is_away_goes_to_others,
    a_group_without_anybody_there_keeps_its_messages_for_those_who_come_back,
    groups_are_groups_again_after_the_broker_was_killed,
}

const VERSIONS: [Version; 2] = [Version::V3, Version::V5];
const GROUP: &str = "$share/pool/work/+";

fn manifests() -> Manifests {
    Manifests::new()
        .user("ops", "ops-secret")
        .grant("ops-all", "ops", &[("pubsub", "#")])
        .user("fleet", "fleet-secret")
        .grant("fleet-work", "fleet", &[("sub", "work/#")])
}

fn login(version: Version, id: &str) -> Login {
    Login::new(version, id).user("ops", "ops-secret")
}

/// A session that has asked for the group at this QoS.
fn member(broker: &Broker, login: &Login, qos: u8) -> Result<Dialogue> {
    let (mut member, _) = Dialogue::connect(broker.mqtt, login)?;
    let granted = member.subscribe(GROUP, qos)?;
    ensure!(granted == qos, "{} was granted {granted:#x}", login.client_id);
    Ok(member)
}

/// Publishes numbers at this QoS, each acknowledged before the next.
fn publish(publisher: &mut Dialogue, numbers: std::ops::RangeInclusive<u16>, qos: u8) -> Result<()> {
    for number in numbers {
        publisher.publish("work/x", number.to_string().as_bytes(), qos, number)?;
        let answer = publisher.read()?;
        ensure!(
            matches!(answer, Packet::PubAck { reason: 0, .. } | Packet::PubRec { reason: 0, .. }),
            "{number}: {answer:?}"
        );
        if qos == 2 {
            publisher.send(&wire::pubrel(number))?;
            ensure!(publisher.read()? == Packet::PubComp { id: number, reason: 0 });
        }
    }
    Ok(())
}

/// The next messages of a session, as many as expected; it acknowledges those of QoS 1 if it `answers`.
fn read(from: &mut Dialogue, count: usize, answers: bool) -> Result<Vec<u16>> {
    let mut numbers = Vec::new();
    while numbers.len() < count {
        match from.read()? {
            Packet::Publish { payload, id, qos, .. } => {
                numbers.push(String::from_utf8(payload)?.parse()?);
                if let (Some(id), 1, true) = (id, qos, answers) {
                    from.send(&wire::puback(id))?;
                }
            }
            other => bail!("came {other:?} after {numbers:?}"),
        }
    }
    Ok(numbers)
}

fn each_message_of_a_group_reaches_one_member_and_every_plain_subscription(store: &Store) -> Result<()> {
    for version in VERSIONS {
        for persistent in [false, true] {
            let broker = Broker::start_on(store, &manifests())?;
            let own = |id: &str| match persistent {
                true => login(version, id).persistent(),
                false => login(version, id),
            };
            let mut members = Vec::new();
            for id in ["a", "b", "c"] {
                members.push(member(&broker, &own(id), 1)?);
            }
            // The first of them also for itself, and a second group.
            let mut plain = Dialogue::connect(broker.mqtt, &own("plain"))?.0;
            ensure!(plain.subscribe("work/#", 1)? == 1 && plain.subscribe("$share/other/work/#", 1)? == 1);
            let (mut publisher, _) = Dialogue::connect(broker.mqtt, &login(version, "publisher"))?;
            publish(&mut publisher, 1..=30, 1)?;
            for (member, first) in members.iter_mut().zip(1..) {
                let expected: Vec<u16> = (first..=30).step_by(3).collect();
                let got = read(member, 10, true)?;
                ensure!(got == expected, "{version:?} {persistent}: {first} got {got:?}");
                ensure!(member.ping()?.is_empty(), "{version:?} {persistent}: {first} got more");
            }
            let mut got = read(&mut plain, 60, true)?;
            got.sort_unstable();
            let twice: Vec<u16> = (1..=30).flat_map(|number| [number, number]).collect();
            ensure!(got == twice && plain.ping()?.is_empty(), "{version:?} {persistent}: for itself {got:?}");
        }
    }
    Ok(())
}

fn members_are_chosen_as_the_instance_says(store: &Store) -> Result<()> {
    for sharing in ["HashClientId", "Sticky"] {
        let instance = json!({"session": {"sharing": sharing}});
        let broker = Broker::start_on(store, &manifests().instance(instance))?;
        let mut members = Vec::new();
        for id in ["a", "b", "c", "d"] {
            members.push(member(&broker, &login(Version::V5, id), 1)?);
        }
        let mut whose = Vec::new();
        for id in ["one", "two", "three", "four", "five", "six"] {
            let (mut publisher, _) = Dialogue::connect(broker.mqtt, &login(Version::V3, id))?;
            publish(&mut publisher, 1..=5, 1)?;
            let mut of_this = Vec::new();
            for (index, member) in members.iter_mut().enumerate() {
                // What was acknowledged is in the queue of its member.
                let came = wait_for_messages(member)?;
                if came > 0 {
                    of_this.push((index, came));
                }
            }
            let [(index, 5)] = of_this[..] else { bail!("{sharing}: {id} went to {of_this:?}") };
            whose.push(index);
        }
        let different: BTreeSet<_> = whose.iter().collect();
        let is_so = if sharing == "Sticky" { different.len() == 1 } else { different.len() > 1 };
        ensure!(is_so, "{sharing}: {whose:?}");
        if sharing == "Sticky" {
            // Until that one goes.
            let mut gone = members.remove(whose.first().copied().unwrap_or_default());
            gone.send(&wire::disconnect())?;
            ensure!(gone.read()? == Packet::Closed);
            let (mut publisher, _) = Dialogue::connect(broker.mqtt, &login(Version::V3, "seven"))?;
            publish(&mut publisher, 1..=5, 1)?;
            let mut counts = Vec::new();
            for member in &mut members {
                counts.push(wait_for_messages(member)?);
            }
            counts.sort_unstable();
            ensure!(counts == [0, 0, 5], "{counts:?}");
        }
    }
    Ok(())
}

/// How many messages had come when two pings were answered; they are acknowledged.
fn wait_for_messages(member: &mut Dialogue) -> Result<usize> {
    let mut came = 0;
    for _ in 0..2 {
        for packet in member.ping()? {
            let Packet::Publish { id, .. } = packet else { bail!("came {packet:?}") };
            came += 1;
            if let Some(id) = id {
                member.send(&wire::puback(id))?;
            }
        }
    }
    Ok(came)
}

/// How a member may leave.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    Drops,
    SaysGoodbye,
    LosesItsGrant,
    LosesItsUser,
    StartsAnew,
    Unsubscribes,
}

fn what_a_member_that_leaves_has_not_acknowledged_goes_to_another(store: &Store) -> Result<()> {
    use Leaves::{Drops, LosesItsGrant, LosesItsUser, SaysGoodbye, StartsAnew, Unsubscribes};
    for version in VERSIONS {
        for (leaves, persistent) in [
            (Drops, false),
            (SaysGoodbye, false),
            (LosesItsUser, false),
            (LosesItsUser, true),
            (StartsAnew, false),
            (StartsAnew, true),
            (Drops, true),
            // They acknowledge no more and then drop.
            (LosesItsGrant, false),
            (LosesItsGrant, true),
            (Unsubscribes, false),
            (Unsubscribes, true),
        ] {
            let what = format!("{version:?} {leaves:?} {persistent}");
            let broker = Broker::start_on(store, &manifests())?;
            let own = |id: &str| {
                let own = Login::new(version, id).user("fleet", "fleet-secret");
                if persistent { own.persistent() } else { own }
            };
            let mut leaver = member(&broker, &own("leaver"), 1)?;
            let (mut publisher, _) = Dialogue::connect(broker.mqtt, &login(version, "publisher"))?;
            publish(&mut publisher, 1..=5, 1)?;
            ensure!(read(&mut leaver, 5, false)? == [1, 2, 3, 4, 5]);
            let stays = login(version, "stays").persistent();
            let mut stays = member(&broker, &stays, 1)?;
            match leaves {
                Drops => drop(leaver),
                SaysGoodbye => {
                    leaver.send(&wire::disconnect())?;
                    ensure!(leaver.read()? == Packet::Closed);
                }
                LosesItsUser => {
                    let left = manifests().without("MqttUser", "fleet").without("TopicGrant", "fleet-work");
                    broker.apply(&left)?;
                }
                LosesItsGrant => {
                    broker.apply(&manifests().without("TopicGrant", "fleet-work"))?;
                    broker.wait_for_log(&["its grant was removed", GROUP])?;
                    drop(leaver);
                }
                StartsAnew => drop(Dialogue::connect(broker.mqtt, &Login { clean: true, ..own("leaver") })?),
                Unsubscribes => {
                    leaver.send(&wire::unsubscribe(version, 2, GROUP))?;
                    ensure!(leaver.read()? == Packet::UnsubAck { id: 2 });
                    drop(leaver);
                }
            }
            let got = read(&mut stays, 5, true)?;
            ensure!(got == [1, 2, 3, 4, 5], "{what}: got {got:?}");
            publish(&mut publisher, 6..=7, 1)?;
            let got = read(&mut stays, 2, true)?;
            ensure!(got == [6, 7] && stays.ping()?.is_empty(), "{what}: then {got:?}");
        }
    }
    Ok(())
}

fn what_waits_for_a_member_that_is_away_goes_to_one_that_is_there(store: &Store) -> Result<()> {
    for version in VERSIONS {
        let broker = Broker::start_on(store, &manifests())?;
        let own = login(version, "away").persistent();
        let mut away = member(&broker, &own, 2)?;
        let (mut publisher, _) = Dialogue::connect(broker.mqtt, &login(version, "publisher"))?;
        publish(&mut publisher, 1..=3, 1)?;
        publish(&mut publisher, 4..=5, 2)?;
        ensure!(read(&mut away, 5, false)? == [1, 2, 3, 4, 5]);
        drop(away);
        // Nobody else is in the log: it stays, as what waits for one in no log ends with the broker.
        let mut clean = member(&broker, &login(version, "clean"), 1)?;
        ensure!(
            clean.ping()?.is_empty(),
            "{version:?}: it went to a session that the broker's death would end"
        );
        let mut there = member(&broker, &login(version, "there").persistent(), 1)?;
        let got = read(&mut there, 3, true)?;
        ensure!(got == [1, 2, 3] && there.ping()?.is_empty(), "{version:?}: got {got:?}");
        // QoS 2 goes on where it began.
        let (mut away, present) = Dialogue::connect(broker.mqtt, &own)?;
        ensure!(present);
        let got = read(&mut away, 2, false)?;
        ensure!(got == [4, 5] && away.ping()?.is_empty(), "{version:?}: QoS 2 {got:?}");
    }
    Ok(())
}

fn what_waits_for_a_member_that_loses_its_grant_while_it_is_away_goes_to_others(store: &Store) -> Result<()> {
    for version in VERSIONS {
        let broker = Broker::start_on(store, &manifests())?;
        let stays = login(version, "stays").persistent();
        drop(member(&broker, &stays, 1)?);
        let own = Login::new(version, "away").user("fleet", "fleet-secret").persistent();
        let mut away = member(&broker, &own, 1)?;
        let (mut publisher, _) = Dialogue::connect(broker.mqtt, &login(version, "publisher"))?;
        publish(&mut publisher, 1..=5, 1)?;
        ensure!(read(&mut away, 5, false)? == [1, 2, 3, 4, 5]);
        away.send(&wire::disconnect())?;
        ensure!(away.read()? == Packet::Closed);
        let in_force = broker.get("/v1/acl")?;
        broker.apply(&manifests().without("TopicGrant", "fleet-work"))?;
        wait_until("the grant is gone", PATIENCE, || Ok((broker.get("/v1/acl")? != in_force).then_some(())))?;
        // It is no member any more, and none of its messages waits for its return.
        let (mut away, present) = Dialogue::connect(broker.mqtt, &own)?;
        ensure!(present && away.ping()?.is_empty(), "{version:?}: it was sent them again");
        let (mut stays, present) = Dialogue::connect(broker.mqtt, &stays)?;
        ensure!(present);
        let got = read(&mut stays, 5, true)?;
        ensure!(got == [1, 2, 3, 4, 5] && stays.ping()?.is_empty(), "{version:?}: got {got:?}");
    }
    Ok(())
}

fn a_group_without_anybody_there_keeps_its_messages_for_those_who_come_back(store: &Store) -> Result<()> {
    for version in VERSIONS {
        let broker = Broker::start_on(store, &manifests())?;
        let owns = ["a", "b"].map(|id| login(version, id).persistent());
        for own in &owns {
            let mut device = member(&broker, own, 1)?;
            device.send(&wire::disconnect())?;
            ensure!(device.read()? == Packet::Closed);
        }
        let (mut publisher, _) = Dialogue::connect(broker.mqtt, &login(version, "publisher"))?;
        publish(&mut publisher, 1..=8, 1)?;
        // The first to come gets all: its own, and what waits for the other.
        let (mut first, present) = Dialogue::connect(broker.mqtt, &owns[1])?;
        ensure!(present);
        let mut got = read(&mut first, 8, true)?;
        got.sort_unstable();
        ensure!(got == (1..=8).collect::<Vec<_>>() && first.ping()?.is_empty(), "{version:?}: got {got:?}");
        let (mut second, _) = Dialogue::connect(broker.mqtt, &owns[0])?;
        ensure!(second.ping()?.is_empty(), "{version:?}: again");
    }
    Ok(())
}

fn groups_are_groups_again_after_the_broker_was_killed(store: &Store) -> Result<()> {
    for version in VERSIONS {
        let mut broker = Broker::start_on(store, &manifests())?;
        let owns = ["a", "b"].map(|id| login(version, id).persistent());
        let mut members = Vec::new();
        for own in &owns {
            members.push(member(&broker, own, 1)?);
        }
        let (mut publisher, _) = Dialogue::connect(broker.mqtt, &login(version, "publisher"))?;
        publish(&mut publisher, 1..=6, 1)?;
        for (member, numbers) in members.iter_mut().zip([[1, 3, 5], [2, 4, 6]]) {
            ensure!(read(member, 3, false)? == numbers);
        }
        broker.kill9()?;
        broker.restart()?;
        let (mut publisher, _) = Dialogue::connect(broker.mqtt, &login(version, "publisher"))?;
        publish(&mut publisher, 7..=8, 1)?;
        // Whoever comes first may get what the other had not acknowledged: all of it comes, to one or the other.
        let (mut first, present) = Dialogue::connect(broker.mqtt, &owns[0])?;
        ensure!(present, "{version:?}: no session");
        let mut got = BTreeSet::new();
        wait_until("all that was not acknowledged", PATIENCE, || {
            if let Some(Packet::Publish { payload, id: Some(id), .. }) = first.read_within(PATIENCE)? {
                got.insert(String::from_utf8(payload)?.parse::<u16>()?);
                first.send(&wire::puback(id))?;
            }
            Ok((got.len() == 8).then_some(()))
        })?;
        let (mut second, present) = Dialogue::connect(broker.mqtt, &owns[1])?;
        ensure!(present && second.ping()?.is_empty(), "{version:?}: again");
        publish(&mut publisher, 9..=12, 1)?;
        let (first, second) = (read(&mut first, 2, true)?, read(&mut second, 2, true)?);
        let all: BTreeSet<u16> = first.iter().chain(&second).copied().collect();
        ensure!(all == (9..=12).collect(), "{version:?}: {first:?} and {second:?}");
    }
    Ok(())
}
