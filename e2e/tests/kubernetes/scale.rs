//! Thousands of users and grants: in force soon, then at rest, and taken back one by one while devices publish.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use mqtt_e2e::{
    Dialogue, Fleet, FleetOptions, Login, Packet, Version,
    fleet::{Entry, Repeats},
    kubernetes::Crowd,
    wait_until,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::{
    JAVA, PODS, SOON,
    meters::{Meters, grant, object},
    passwords::generated,
    rest::rests,
};

const NAMES: [&str; 3] = ["meters-broker-0", "meters-broker-1", "meters-broker-2"];
/// Some of the users have a password of their own, the others a generated one.
const USERS: usize = 2_000;
const CHOSEN: usize = 500;
const GRANTS: usize = 5_000;
/// Grants of one user, which are taken back, and how soon one follows the other.
const REVOKED: usize = 500;
const APART: Duration = Duration::from_millis(100);

/// After the last of them was created.
const ENFORCED: Duration = Duration::from_secs(120);
/// A grant that is taken back is refused at every pod after this time.
const IN_FORCE: Duration = Duration::from_secs(5);
/// Of the operator, in bytes.
const MEMORY: f64 = 150.0 * 1024.0 * 1024.0;
/// How often a device tries whether a grant is still there.
const TRY: Duration = Duration::from_millis(20);

#[test]
fn thousands_of_users_and_grants_are_in_force_soon_and_taken_back_sooner() -> Result<()> {
    let small = json!({"requests": {"cpu": "50m", "memory": "64Mi"}});
    let load = [
        object("MqttUser", "load", json!({})),
        grant("load", "load", &[("pub", "readings/#"), ("pub", "orderMsg2mq-readings/#")]),
    ];
    // Alone: how long it takes depends on who else is at work.
    let meters = Meters::empty_alone()?;
    meters.apply(json!({"replicas": 3, "pod": {"resources": small}}), &load)?;
    meters.wait_until_all_are_ready()?;
    let namespace = &meters.namespace;
    let at_all_pods = || {
        let all =
            || Ok(meters.enforced("mqttinstance", "meters")?.starts_with("True 3/3 pods at ").then_some(()));
        wait_until("users and grants to be in force at every pod", PODS, all)
    };
    at_all_pods()?;

    let crowd = namespace.crowd()?;
    let password = generated(namespace, "load-mqtt", "password")?;
    let login = Login::new(Version::V5, "comes-again").user("load", &password);
    let began = Instant::now();
    crowd.create(&(0..CHOSEN).map(secret).collect::<Vec<_>>())?;
    crowd.create(&(0..USERS).map(user).collect::<Vec<_>>())?;
    crowd.create(&(0..GRANTS).map(grant_of).collect::<Vec<_>>())?;
    println!("{} objects created in {:?}", CHOSEN + USERS + GRANTS, began.elapsed());
    let (created, mut shut_out) = (Instant::now(), 0);
    wait_until("all of them to be enforced", ENFORCED, || {
        let (users, grants) = (enforced(&crowd, "MqttUser")?, enforced(&crowd, "TopicGrant")?);
        println!("{users} users and {grants} grants are enforced after {:?}", created.elapsed());
        shut_out += usize::from(!meters.lets_in(&login)?);
        // With those of the examples.
        Ok((users >= USERS && grants >= GRANTS).then_some(()))
    })?;
    ensure!(shut_out == 0, "who was there before was shut out {shut_out} times");
    let memory = meters.operator.metric("process_resident_memory_bytes")?;
    println!("all enforced after {:?}; the operator has {:.0} MB", created.elapsed(), memory / 1e6);
    ensure!(memory <= MEMORY, "the operator has {memory} bytes in memory");
    rests(&meters)?;

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
    let took = take_back(&meters, &crowd)?;
    let of =
        |share: usize| took.get((took.len() * share / 100).min(took.len() - 1)).copied().unwrap_or_default();
    println!("{} were taken back: p50 {:?}, p99 {:?}, longest {:?}", took.len(), of(50), of(99), of(100));
    ensure!(of(100) <= IN_FORCE, "a grant that was taken back was in force for {:?}", of(100));

    // What is in force stays so, and nobody says it again, while pods are replaced.
    at_all_pods()?;
    let said = || -> Result<usize> {
        let here = |write: &&_| is_of_members(write) && write.namespace == namespace.name();
        Ok(namespace.cluster().writes()?.iter().filter(here).count())
    };
    let before = said()?;
    let more = json!({"requests": {"cpu": "51m", "memory": "64Mi"}});
    namespace.patch("mqttinstance", "meters", &json!({"spec": {"pod": {"resources": more}}}))?;
    wait_until("new pods", PODS, || {
        let is_new =
            |pod: &Value| pod.pointer("/spec/containers/0/resources/requests/cpu") == Some(&"51m".into());
        let pods = NAMES.iter().map(|pod| namespace.get("pod", pod)).collect::<Result<Vec<_>>>();
        Ok(pods.is_ok_and(|pods| pods.iter().all(is_new)).then_some(()))
    })?;
    meters.told_within(PODS, "mqttinstance/meters", "Ready", "Serving")?;
    at_all_pods()?;
    ensure!(said()? == before, "{} statuses were written though only pods were replaced", said()? - before);

    let ledger = fleet.stop(PODS)?;
    let mut application = meters.kafka.consumer("books", &["readings", "orderMsg2mq-readings"])?;
    let mut entries = Vec::new();
    while entries.len() < ledger.published() {
        // The books say what is missing then.
        let Ok(record) = application.next(JAVA) else { break };
        entries.push(Entry::of(&record)?);
    }
    ledger.ensure_kept(&entries, Repeats::SameId)
}

fn is_of_members(write: &mqtt_e2e::kubernetes::Request) -> bool {
    write.resource == "topicgrants/status" || write.resource == "mqttusers/status"
}

fn name_of(user: usize) -> String {
    format!("crowd-{user:04}")
}

fn password_of(user: usize) -> String {
    format!("password-of-{user:04}")
}

fn secret(user: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name_of(user)},
        "stringData": {"password": password_of(user)},
    })
}

fn user(user: usize) -> Value {
    let chosen = json!({"passwordSecretRef": {"name": name_of(user), "key": "password"}});
    object("MqttUser", &name_of(user), if user < CHOSEN { chosen } else { json!({}) })
}

/// The first are of one user and are taken back, the others of all others.
fn grant_of(number: usize) -> Value {
    let user = if number < REVOKED { 0 } else { 1 + number % (USERS - 1) };
    let filter = format!("crowd/{number}/#");
    grant(&format!("crowd-{number:04}"), &name_of(user), &[("pubsub", &filter)])
}

/// How many of the crowd's objects of a kind say that they are enforced.
fn enforced(crowd: &Crowd, kind: &str) -> Result<usize> {
    let is_enforced = |status: &Value| {
        let conditions = status.get("conditions").and_then(Value::as_array);
        conditions.into_iter().flatten().any(|condition| {
            condition.get("type") == Some(&"Enforced".into())
                && condition.get("status") == Some(&"True".into())
        })
    };
    let all = crowd.list(kind)?;
    let ours = all
        .iter()
        .filter(|object| object.metadata.name.as_ref().is_some_and(|name| name.starts_with("crowd-")));
    Ok(ours.filter(|object| object.data.get("status").is_some_and(is_enforced)).count())
}

/// Deletes grants in an order of chance, one after the other, while a device at each pod tries all that were deleted. Answers
/// how long each was still in force where it was so longest, the shortest time first.
fn take_back(meters: &Meters, crowd: &Crowd) -> Result<Vec<Duration>> {
    let mut order: Vec<usize> = (0..REVOKED).collect();
    fastrand::shuffle(&mut order);
    let deleted = Mutex::new(BTreeMap::new());
    let all_deleted = AtomicBool::new(false);
    let devices = NAMES.iter().map(|pod| {
        let found = meters.namespace.get("pod", pod)?;
        let address = found.pointer("/status/podIP").and_then(Value::as_str).context("no address")?;
        let login = Login::new(Version::V5, &format!("tries-{pod}")).user(&name_of(0), &password_of(0));
        Ok(Dialogue::connect(SocketAddr::new(address.parse()?, 1883), &login)?.0)
    });
    let mut devices = devices.collect::<Result<Vec<_>>>()?;
    for device in &mut devices {
        ensure!(order.iter().all(|grant| matches!(may(device, *grant), Ok(true))), "a grant is not in force");
    }
    let refused = thread::scope(|scope| {
        let (deleted, all_deleted) = (&deleted, &all_deleted);
        let watches: Vec<_> = devices
            .into_iter()
            .map(|device| scope.spawn(move || watch(device, deleted, all_deleted)))
            .collect();
        let removed = order.iter().try_for_each(|grant| {
            crowd.delete("TopicGrant", &format!("crowd-{grant:04}"))?;
            deleted.lock().insert(*grant, Instant::now());
            thread::sleep(APART);
            Ok(())
        });
        all_deleted.store(true, Ordering::Release);
        let watched =
            watches.into_iter().map(|watch| watch.join().map_err(|_| anyhow!("a device panicked"))?);
        let watched = watched.collect::<Result<Vec<_>>>();
        removed.and(watched)
    })?;
    let deleted = deleted.lock();
    let mut took: Vec<Duration> = Vec::new();
    for (grant, at) in &*deleted {
        let each =
            refused.iter().map(|refused| refused.get(grant).map(|when| when.saturating_duration_since(*at)));
        took.push(
            each.collect::<Option<Vec<_>>>()
                .and_then(|all| all.into_iter().max())
                .context("one is still in force")?,
        );
    }
    took.sort();
    Ok(took)
}

/// When each deleted grant was refused first.
fn watch(
    mut device: Dialogue,
    deleted: &Mutex<BTreeMap<usize, Instant>>,
    all_deleted: &AtomicBool,
) -> Result<BTreeMap<usize, Instant>> {
    let (mut refused, start) = (BTreeMap::new(), Instant::now());
    loop {
        let is_last = all_deleted.load(Ordering::Acquire);
        let tried: Vec<usize> =
            deleted.lock().keys().filter(|grant| !refused.contains_key(*grant)).copied().collect();
        if is_last && tried.is_empty() {
            return Ok(refused);
        }
        for grant in tried {
            if !may(&mut device, grant)? {
                refused.insert(grant, Instant::now());
            }
        }
        ensure!(start.elapsed() < 3 * PODS, "{} of {} are refused", refused.len(), deleted.lock().len());
        thread::sleep(TRY);
    }
}

/// Whether a device may publish what a grant lets it.
fn may(device: &mut Dialogue, grant: usize) -> Result<bool> {
    device.publish(&format!("crowd/{grant}/x"), b"x", 1, 1)?;
    match device.read()? {
        Packet::PubAck { id: 1, reason: 0x87 } => Ok(false),
        Packet::PubAck { id: 1, reason: 0 | 0x10 } => Ok(true),
        packet => Err(anyhow!("{packet:?}")),
    }
}
