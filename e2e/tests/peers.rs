//! Links between the nodes of a cluster: what clean devices get from other nodes comes over them, and through Kafka while two
//! nodes can't reach each other; once and in order, whichever way it takes. By them nodes give each other leases, which spare a
//! publish the way to Kafka. And by them a node knows whether it alone can't reach Kafka.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use mqtt_e2e::{
    Authority, Broker, Cluster, Dialogue, Login, Manifests, PATIENCE, Packet, Store, Version, on_kafka,
    wait_until, wire,
};

/// Longer than a node waits for a link.
const CUT: Duration = Duration::from_secs(3);
/// Longer than a node stays that is cut off from Kafka while others are not.
const WEATHER: Duration = Duration::from_secs(8);
/// Between two nodes that are back: the last one is soon enough for the first, which gives others three seconds.
const BETWEEN: Duration = Duration::from_millis(500);
/// How often it is looked at whether nodes are ready, while they must be.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Times that a node stands still.
const ATTEMPTS: usize = 5;
/// Messages that are published at a time.
const WINDOW: usize = 20;

fn manifests() -> Manifests {
    Manifests::new().user("fleet", "fleet-secret").grant("fleet-all", "fleet", &[("pubsub", "to/#")])
}

fn connect(cluster: &Cluster, node: usize, client_id: &str) -> Result<Dialogue> {
    let address = cluster.nodes.get(node).with_context(|| format!("no node {node}"))?.mqtt;
    let login = Login::new(Version::V5, client_id).user("fleet", "fleet-secret");
    Ok(Dialogue::connect(address, &login)?.0)
}

fn subscriber(cluster: &Cluster, node: usize, filter: &str) -> Result<Dialogue> {
    let mut device = connect(cluster, node, &format!("subscriber-{node}"))?;
    ensure!(device.subscribe(filter, 2)? < 0x80);
    Ok(device)
}

/// Publishes these numbers, some at a time, QoS 1 and 2 in turn; returns when all are acknowledged.
fn publish(device: &mut Dialogue, numbers: std::ops::Range<u16>) -> Result<()> {
    let numbers: Vec<u16> = numbers.collect();
    for some in numbers.chunks(WINDOW) {
        for number in some {
            let qos = 1 + u8::try_from(number % 2)?;
            device.publish("to/all", number.to_string().as_bytes(), qos, number + 1)?;
        }
        let mut left = some.len();
        while left > 0 {
            match device.read()? {
                Packet::PubAck { reason: 0, .. } | Packet::PubComp { reason: 0, .. } => left -= 1,
                Packet::PubRec { id, reason: 0 } => device.send(&wire::packet(0x62, &id.to_be_bytes()))?,
                other => return Err(anyhow!("{other:?}")),
            }
        }
    }
    Ok(())
}

/// Reads these numbers, each once, in order within its QoS, and acknowledges them.
fn receive(device: &mut Dialogue, numbers: std::ops::Range<u16>) -> Result<()> {
    let (mut even, mut odd): (Vec<u16>, Vec<u16>) =
        numbers.rev().partition(|number| number.is_multiple_of(2));
    while !even.is_empty() || !odd.is_empty() {
        match device.read()? {
            Packet::Publish { payload, id: Some(id), .. } => {
                let number: u16 = std::str::from_utf8(&payload)?.parse()?;
                let is_even = number.is_multiple_of(2);
                let next = if is_even { even.pop() } else { odd.pop() };
                ensure!(next == Some(number), "{number} came, {next:?} was due");
                let receipt = if is_even { 0x40 } else { 0x50 };
                device.send(&wire::packet(receipt, &id.to_be_bytes()))?;
            }
            Packet::PubRel { id, .. } => device.send(&wire::packet(0x70, &id.to_be_bytes()))?,
            other => return Err(anyhow!("{other:?}")),
        }
    }
    Ok(())
}

/// It has its connection, and no message comes.
fn nothing_more(device: &mut Dialogue) -> Result<()> {
    let more = device.ping()?;
    ensure!(!more.iter().any(|packet| matches!(packet, Packet::Publish { .. })), "{more:?}");
    Ok(())
}

#[test]
fn what_passes_between_nodes_takes_their_links_and_kafka_while_they_are_cut() -> Result<()> {
    on_kafka(|store: &Store| {
        let cluster = Cluster::start(store, &manifests(), 3)?;
        (0..3).try_for_each(|node| cluster.wait_for_links(node, 2))?;
        let mut b = subscriber(&cluster, 1, "to/#")?;
        let mut c = subscriber(&cluster, 2, "to/all")?;
        let mut publisher = connect(&cluster, 0, "publisher")?;
        let counters = || -> Result<(u64, u64)> {
            let node = cluster.nodes.first().context("no node")?;
            Ok((node.counter("passed_by_links")?, node.counter("passed_through_log")?))
        };
        publish(&mut publisher, 0..50)?;
        let (by_links, through_log) = counters()?;
        ensure!(
            by_links > 0 && by_links + through_log == 100,
            "{by_links} by links, {through_log} through Kafka"
        );
        // One of them can't be reached any more: the first message finds out, and all take the other way.
        cluster.cut(0, 1, true);
        publish(&mut publisher, 50..100)?;
        let apart = counters()?;
        ensure!(apart.1 >= through_log + 50, "{} through Kafka, {through_log} before", apart.1);
        cluster.cut(0, 1, false);
        cluster.wait_for_links(0, 2)?;
        publish(&mut publisher, 100..150)?;
        let together = counters()?;
        // One for each of both.
        ensure!(together.0 == apart.0 + 100, "{} by links, {} before", together.0, apart.0);
        receive(&mut b, 0..150)?;
        receive(&mut c, 0..150)?;
        [&mut b, &mut c].into_iter().try_for_each(nothing_more)
    })
}

#[test]
fn messages_under_way_come_once_and_in_order_while_a_link_is_cut_again_and_again() -> Result<()> {
    const MESSAGES: u16 = 6000;
    on_kafka(|store: &Store| {
        let cluster = Cluster::start(store, &manifests(), 3)?;
        (0..3).try_for_each(|node| cluster.wait_for_links(node, 2))?;
        let mut subscribers = [subscriber(&cluster, 1, "to/#")?, subscriber(&cluster, 2, "to/all")?];
        let mut publisher = connect(&cluster, 0, "publisher")?;
        let cluster = &cluster;
        thread::scope(|scope| {
            let publishing = scope.spawn(move || publish(&mut publisher, 0..MESSAGES));
            let receiving = subscribers.each_mut().map(|device| scope.spawn(|| receive(device, 0..MESSAGES)));
            while !publishing.is_finished() {
                cluster.cut(0, 1, true);
                thread::sleep(CUT);
                cluster.cut(0, 1, false);
                cluster.wait_for_links(0, 2)?;
            }
            publishing.join().map_err(|_| anyhow!("the publisher panicked"))??;
            for receiving in receiving {
                receiving.join().map_err(|_| anyhow!("a subscriber panicked"))??;
            }
            Ok(())
        })
    })
}

#[test]
fn who_subscribes_while_the_publishers_node_stands_still_gets_what_is_acknowledged_then() -> Result<()> {
    on_kafka(|store: &Store| {
        let cluster = Cluster::start(store, &manifests(), 3)?;
        let [standing, ..] = &cluster.nodes[..] else { unreachable!() };
        let by_lease = || standing.counter("publishes_by_lease");
        let mut acknowledged = 0;
        for attempt in 0..ATTEMPTS {
            (0..3).try_for_each(|node| cluster.wait_for_links(node, 2))?;
            let mut publisher = connect(&cluster, 0, "publisher")?;
            let before = by_lease()?;
            wait_until("publishes to be routed at once", PATIENCE, || {
                publisher.publish("to/nobody", b"now", 1, 6)?;
                let answer = publisher.read()?;
                ensure!(matches!(answer, Packet::PubAck { id: 6, .. }), "{answer:?}");
                Ok((by_lease()? > before).then_some(()))
            })?;
            let (mut device, topic) = (connect(&cluster, 1, "subscriber")?, format!("to/{attempt}"));
            standing.freeze(true)?;
            let granted = device.subscribe(&topic, 1)?;
            publisher.publish(&topic, b"later", 1, 7)?;
            standing.freeze(false)?;
            ensure!(granted < 0x80);
            // Who stood still for 3 s is over, as it may be on a busy machine: then nothing is acknowledged.
            if publisher.read()? == (Packet::PubAck { id: 7, reason: 0 }) {
                acknowledged += 1;
                let got = device.read()?;
                ensure!(
                    matches!(&got, Packet::Publish { payload, .. } if payload == b"later"),
                    "{got:?} came in the place of what was acknowledged"
                );
            }
        }
        ensure!(acknowledged > 0, "nothing was acknowledged in {ATTEMPTS} attempts");
        Ok(())
    })
}

#[test]
fn links_are_made_between_nodes_alone_that_show_a_certificate_of_their_ca() -> Result<()> {
    let folder = |authority: &Authority, name: &str| -> Result<tempfile::TempDir> {
        let folder = tempfile::tempdir()?;
        let pair = authority.issue(name)?;
        let write = |file: &str, text: &str| fs::write(folder.path().join(file), text);
        write("tls.crt", &pair.certificate)?;
        write("tls.key", &pair.key)?;
        write("ca.crt", &authority.pem())?;
        Ok(folder)
    };
    on_kafka(|store: &Store| {
        let (ours, others) = (Authority::new("ours")?, Authority::new("others")?);
        let folders = [folder(&ours, "a")?, folder(&ours, "b")?, folder(&others, "c")?];
        let folders: Vec<Option<&Path>> = folders.iter().map(|folder| Some(folder.path())).collect();
        let cluster = Cluster::start_with(store, &manifests(), &folders)?;
        cluster.wait_for_links(0, 1)?;
        cluster.wait_for_links(1, 1)?;
        let [a, _, c] = &cluster.nodes[..] else { unreachable!() };
        a.wait_for_log(&["no link to node node-2", "certificate"])?;
        ensure!(c.counter("peer_links")? == 0);
        // It serves all the same.
        let mut device = subscriber(&cluster, 2, "to/all")?;
        publish(&mut connect(&cluster, 0, "publisher")?, 0..10)?;
        receive(&mut device, 0..10)
    })
}

#[test]
fn a_node_that_alone_is_cut_off_from_kafka_sends_its_devices_away_and_where_all_are_they_stay() -> Result<()>
{
    on_kafka(|store: &Store| {
        let kafka = store.cluster()?;
        let cluster = Cluster::start(store, &manifests(), 3)?;
        (0..3).try_for_each(|node| cluster.wait_for_links(node, 2))?;
        let is_ready = |node: &Broker| Ok::<_, anyhow::Error>(node.get("/readyz")?.0 == 200);
        let all_are_ready = || -> Result<bool> {
            Ok(cluster.nodes.iter().map(is_ready).collect::<Result<Vec<_>>>()?.iter().all(|ready| *ready))
        };
        let [alone, others @ ..] = &cluster.nodes[..] else { unreachable!() };
        let mut device = subscriber(&cluster, 0, "to/all")?;

        kafka.cut(0, true)?;
        let told = device.read()?;
        ensure!(told == Packet::Disconnect { reason: 0x8B } && device.read()? == Packet::Closed, "{told:?}");
        alone.wait_for_log(&["the log has been out of reach", "devices are better off there"])?;
        ensure!(!is_ready(alone)?, "it is ready though it can do nothing");
        for other in others {
            ensure!(is_ready(other)?, "one that can be reached is not ready");
        }
        // The device finds all that is published meanwhile elsewhere.
        let mut device = subscriber(&cluster, 1, "to/all")?;
        publish(&mut connect(&cluster, 2, "publisher")?, 0..10)?;
        receive(&mut device, 0..10)?;
        kafka.cut(0, false)?;
        wait_until("all nodes to be ready", PATIENCE, || Ok(all_are_ready()?.then_some(())))?;

        (0..3).try_for_each(|node| cluster.wait_for_links(node, 2))?;
        (0..3).try_for_each(|node| kafka.cut(node, true))?;
        let stay_for = |time: Duration| -> Result<()> {
            let until = Instant::now() + time;
            while Instant::now() < until {
                ensure!(all_are_ready()?, "one is not ready though no other could do better");
                thread::sleep(LOOK_EVERY);
            }
            Ok(())
        };
        stay_for(WEATHER)?;
        nothing_more(&mut device)?;
        // They come back one after the other, which is no reason for the later ones to go.
        for node in 0..3 {
            kafka.cut(node, false)?;
            stay_for(BETWEEN)?;
        }
        publish(&mut connect(&cluster, 2, "publisher")?, 10..20)?;
        receive(&mut device, 10..20)
    })
}
