//! Ten thousand connections that mean no good, and a hundred devices that notice next to nothing of it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use mqtt_e2e::{
    Broker, Login, Manifests, Version,
    hostile::attack,
    load::{self, Latency, Options, Plan, Report},
    wait_until,
};
use serde_json::json;

const HOSTILE: usize = 10_000;
/// Some are always on their way to be there again.
const ON_THEIR_WAY: usize = 400;
/// Messages a second of the honest.
const RATE: u32 = 500;
/// Seconds.
const QUIET: u32 = 10;
const ATTACKED: u32 = 25;
const MEMORY: u64 = 20 << 20;
const AFTERWARDS: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

/// A hundred devices, each publisher with a subscriber of its own, at QoS 1.
fn honest(broker: &Broker, seconds: u32) -> Result<Plan> {
    let line = format!(
        "mqtt-load --addr {} --qos 1 --rate {RATE} --sleep --warmup 2 --duration {seconds} --timeout 120 --topic honest \
         --username fleet --password fleet-secret p2p --pairs 50",
        broker.mqtt
    );
    Ok(Plan::try_from(Line::try_parse_from(line.split_whitespace())?.options)?)
}

/// Nothing was lost; how long messages took.
fn judged(report: &Report) -> Result<Latency> {
    let failures = report.failures();
    ensure!(failures.is_empty() && report.kept_pace(), "{failures:?}, {report:?}");
    report.latency.context("no latencies")
}

#[test]
fn ten_thousand_hostile_connections_neither_slow_devices_down_nor_leave_anything_behind() -> Result<()> {
    let manifests = Manifests::new()
        // So that all of them can be there at once.
        .instance(json!({"limits": {"connectRate": 4000}}))
        .user("fleet", "fleet-secret")
        .grant("fleet-honest", "fleet", &[("pubsub", "honest/#")])
        .user("rogue", "rogue-secret")
        .grant("rogue-noise", "rogue", &[("pubsub", "noise/#")]);
    let broker = Broker::start(&manifests)?;
    let quiet = judged(&load::run(&honest(&broker, QUIET)?)?)?;
    let memory = broker.resident()?;
    let heard = broker.counter("messages_received")?;
    let over = AtomicBool::new(false);
    let login = Login::new(Version::V3, "rogue").user("rogue", "rogue-secret");
    let (attacked, attack) = thread::scope(|scope| {
        let attacker = scope.spawn(|| attack(broker.mqtt, HOSTILE + ON_THEIR_WAY, &login, &over));
        let report = honest(&broker, ATTACKED).and_then(|plan| Ok(load::run(&plan)?));
        over.store(true, Ordering::Relaxed);
        let attack = attacker.join().map_err(|_| anyhow::anyhow!("the attacker panicked"))??;
        Ok::<_, anyhow::Error>((report?, attack))
    })?;
    let closed = Instant::now();
    let most = broker.resident()?;
    println!("quiet {quiet:?}, attacked {:?}, {attack:?}, memory {memory} then {most}", attacked.latency);
    ensure!(attack.most_at_once >= HOSTILE && attack.closed > HOSTILE as u64, "hardly an attack: {attack:?}");
    let heard = broker.counter("messages_received")? - heard;
    ensure!(heard > u64::from(2 * RATE * ATTACKED), "those who read nothing said hardly anything: {heard}");
    let attacked = judged(&attacked)?;
    let bound = (3.0 * quiet.p99_us).max(50_000.0);
    ensure!(attacked.p99_us <= bound, "p99 was {} µs, quiet {} µs", attacked.p99_us, quiet.p99_us);
    wait_until("the memory to be given back", AFTERWARDS, || {
        Ok((broker.resident()? <= memory + MEMORY).then_some(()))
    })
    .with_context(|| format!("{memory} bytes before, {:?} now", broker.resident()))?;
    println!("given back after {:?}", closed.elapsed());
    let panics = broker.log_lines(&["panicked"])?;
    ensure!(panics.is_empty(), "{panics:?}");
    Ok(())
}
