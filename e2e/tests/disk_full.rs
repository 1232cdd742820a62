//! A full disk: nothing is acknowledged that is not stored, the broker says so, and goes on when there is space.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mqtt_e2e::{
    Broker, Dialogue, Login, Manifests, PATIENCE, Packet, Version,
    broker::{Stored, header},
    wait_until,
};

/// A small disk of its own, gone with the story.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn new(megabytes: u32) -> Result<Self> {
        let path = tempfile::tempdir()?.keep();
        let disk = Self { path };
        let size = format!("size={megabytes}m");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&disk.path).status()?;
        ensure!(status.success(), "mounting a small disk takes root");
        Ok(disk)
    }

    fn fill(&self) -> Result<()> {
        let mut file = File::create(self.filler())?;
        while file.write_all(&[0; 64 * 1024]).is_ok() {}
        while file.write_all(&[0; 512]).is_ok() {}
        Ok(())
    }

    fn make_space(&self) -> Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    fn data(&self) -> PathBuf {
        self.path.join("data")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        let _ = fs::remove_dir(Path::new(&self.path));
    }
}

#[test]
fn a_full_disk_holds_acks_back_until_there_is_space() -> Result<()> {
    const LARGE: usize = 100_000;
    let manifests = Manifests::new().parent("readings").user("ops", "ops-secret").grant(
        "ops-all",
        "ops",
        &[("pubsub", "#")],
    );
    let disk = SmallDisk::new(256)?;
    let mut broker = Broker::start_with_data(&manifests, &disk.data())?;
    ensure!(broker.get("/readyz")?.0 == 200 && broker.get("/healthz")?.0 == 200);
    let login = Login::new(Version::V3, "meter-7").user("ops", "ops-secret");
    let (mut publisher, _) = Dialogue::connect(broker.mqtt, &login)?;
    let (mut witness, _) =
        Dialogue::connect(broker.mqtt, &Login::new(Version::V5, "witness").user("ops", "ops-secret"))?;
    ensure!(witness.subscribe("chatter", 1)? == 1);

    disk.fill()?;
    // The store may have reserved space before; that, too, comes to an end.
    let mut acked = 0u16;
    let waiting = loop {
        let id = acked + 1;
        ensure!(id < 4000, "400 MB were acknowledged on a full disk of 256 MB");
        publisher.publish("readings/meter-7", format!("{id} {}", "x".repeat(LARGE)).as_bytes(), 1, id)?;
        match publisher.read_within(Duration::from_secs(2))? {
            Some(Packet::PubAck { id: other, reason: 0 }) if other == id => acked = id,
            None => break id,
            other => anyhow::bail!("publish {id} was answered {other:?}"),
        }
    };
    let (status, reason) = wait_until("readiness to go", PATIENCE, || {
        let (status, reason) = broker.get("/readyz")?;
        Ok((status != 200).then_some((status, reason)))
    })?;
    ensure!(
        status == 503 && !reason.is_empty() && reason.lines().count() == 1,
        "/readyz: {status} {reason:?}"
    );
    ensure!(broker.get("/healthz")?.0 == 200, "it lives on");
    broker.wait_for_log(&["space"])?;
    witness.publish("chatter", b"still here", 0, 0)?;
    let echo = witness.read()?;
    ensure!(
        matches!(&echo, Packet::Publish { payload, .. } if payload == b"still here"),
        "QoS 0 goes on: {echo:?}"
    );

    disk.make_space()?;
    let answer = publisher.read_within(Duration::from_secs(30))?.context("no ack though there is space")?;
    ensure!(answer == Packet::PubAck { id: waiting, reason: 0 }, "answered {answer:?}");
    wait_until("readiness", PATIENCE, || Ok((broker.get("/readyz")?.0 == 200).then_some(())))?;
    let check = |broker: &Broker| -> Result<()> {
        let mut numbers = Vec::new();
        for record in broker.records("readings")? {
            ensure!(header(&record, "clientId") == Some("meter-7"));
            let stored = Stored::of(&record)?;
            numbers.push(stored.payload.split(' ').next().unwrap_or_default().parse::<u16>()?);
        }
        numbers.sort_unstable();
        ensure!(
            numbers == (1..=waiting).collect::<Vec<_>>(),
            "stored {numbers:?}, acknowledged 1 to {waiting}"
        );
        Ok(())
    };
    check(&broker)?;
    broker.kill9()?;
    broker.restart()?;
    check(&broker).context("after a kill and a restart")
}
