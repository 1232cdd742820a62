//! `mqtt-broker run`, what pods run: steered by mounted files that change at once, in parts or for the worse.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mqtt_broker_api::{
    acl::{AclDocument, AclUser, Action, Argon2id, PasswordHash, Rule},
    admin::{AclView, ConfigView},
    node,
    shards::{self, AclShard},
};
use mqtt_e2e::{
    Authority, Broker, Dialogue, Login, Manifests, Packet, Tls, TlsVersion, Version, Volume, tls::Pair,
    wait_until,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A change is in force within a second; a busy test machine gets one more.
const PROMPT: Duration = Duration::from_secs(2);

/// What is mounted into a pod.
struct Mounts {
    home: TempDir,
    config: Volume,
    acl: Volume,
    tls: Volume,
}

impl Mounts {
    fn new() -> Result<Self> {
        let home = tempfile::tempdir()?;
        let volume = |name| Volume::new(home.path(), name);
        Ok(Self { config: volume("config")?, acl: volume("acl")?, tls: volume("tls")?, home })
    }

    /// A config on free ports that stores on the disk; without TLS if no certificate is mounted.
    fn document(&self) -> Value {
        let with_tls = self.tls.file("tls.crt").exists();
        json!({
            "instance": {
                "instance": "plant/meters",
                "limits": {"connections": 100, "publishRate": 0, "subscriptions": 100, "packetSize": 100_000,
                           "clientIdLength": 100, "characters": "Any"},
                "session": {"expirySeconds": 60, "offlineMessages": 10, "onlineMessages": 1000},
                "listeners": {"mqtt": "127.0.0.1:0", "admin": "127.0.0.1:0",
                              "mqtts": with_tls.then_some("127.0.0.1:0")},
            },
            "acl": [self.acl.path()],
            "data": self.home.path().join("data"),
            "tls": with_tls.then(|| json!({
                "certificateFile": self.tls.file("tls.crt"), "keyFile": self.tls.file("tls.key"),
            })),
        })
    }

    fn put_config(&self, document: &Value) -> Result<()> {
        self.config.put(&[("node.yaml", &text_of(document)?)])
    }

    fn put_acl(&self, shards: &[AclShard]) -> Result<()> {
        let files = shards
            .iter()
            .enumerate()
            .map(|(number, shard)| Ok((format!("acl-{number}.json"), serde_json::to_string(shard)?)))
            .collect::<Result<Vec<_>>>()?;
        let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        self.acl.put(&files)
    }

    fn put_certificate(&self, pair: &Pair) -> Result<()> {
        self.tls.put(&[("tls.crt", &pair.certificate), ("tls.key", &pair.key)])
    }

    /// Starts without waiting; the mounts stay where they are.
    fn start(&self) -> Result<Broker> {
        Broker::run(tempfile::tempdir()?, &self.config.file("node.yaml"))
    }
}

/// Everybody is `guest`, and may use these topics; other users are there so that it has two shards.
fn acl(generation: u64, filters: &[&str]) -> Result<Vec<AclShard>> {
    let rules = |filters: &[&str]| {
        filters.iter().map(|&filter| Rule { action: Action::PubSub, filter: filter.into() }).collect()
    };
    let user = |name: &str, filters: &[&str]| AclUser {
        username: name.into(),
        passwords: Vec::new(),
        client_ids: Vec::new(),
        rules: rules(filters),
    };
    let document = AclDocument {
        generation,
        anonymous_user: Some("guest".into()),
        users: vec![
            user("another", &["a/long/filter/so/that/there/are/two/shards/#"]),
            user("guest", filters),
        ],
    };
    let shards = shards::split(&document, 330)?;
    ensure!(shards.len() == 2, "{} shards", shards.len());
    Ok(shards)
}

/// What the admin endpoint says is in force.
fn in_force(broker: &Broker) -> Result<AclView> {
    let (status, body) = broker.get("/v1/acl")?;
    ensure!(status == 200, "{status}: {body}");
    Ok(serde_json::from_str(&body)?)
}

/// The config file.
fn text_of(document: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(document)?)
}

/// Waits until the admin endpoint says that this config file is in force.
fn wait_for_config(broker: &Broker, document: &Value) -> Result<()> {
    let expected = node::hash(&text_of(document)?);
    wait_until("the config", PROMPT, || {
        let (status, body) = broker.get("/v1/config")?;
        ensure!(status == 200, "{status}: {body}");
        Ok((serde_json::from_str::<ConfigView>(&body)?.hash == expected).then_some(()))
    })
}

fn wait_for_generation(broker: &Broker, shards: &[AclShard]) -> Result<()> {
    let first = shards.first().context("no shard")?;
    let expected = AclView { generation: first.generation, hash: first.hash.clone(), users: 2 };
    wait_until("the generation", PROMPT, || Ok((in_force(broker)? == expected).then_some(())))
}

#[test]
fn a_grant_changed_by_a_switch_of_links_is_in_force_and_a_mixture_never() -> Result<()> {
    let mounts = Mounts::new()?;
    mounts.put_config(&mounts.document())?;
    let mut broker = mounts.start()?;

    // Nobody is let in before the whole ACL is there, and whoever asks is told.
    let line = broker.wait_for_log(&["not ready", "/readyz"])?;
    let admin = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).context("no address")?;
    broker.admin = admin.parse::<SocketAddr>().with_context(|| format!("the address {admin}"))?;
    let waits = |path: &str, why: &str| -> Result<()> {
        let (status, body) = broker.get(path)?;
        ensure!((status, body.contains(why)) == (503, true), "{path}: {status} {body}");
        Ok(())
    };
    ensure!(broker.get("/healthz")?.0 == 200);
    for path in ["/readyz", "/v1/acl", "/v1/config", "/v1/counters"] {
        waits(path, "there are no shards")?;
    }
    let first = acl(1, &["kept/#"])?;
    mounts.put_acl(first.get(..1).context("no shard")?)?;
    wait_until("the news of a missing shard", PROMPT, || Ok(waits("/readyz", "shard 1 of 2").ok()))?;
    mounts.put_acl(&first)?;
    broker.ready()?;
    ensure!(broker.get("/readyz")?.0 == 200);
    wait_for_generation(&broker, &first)?;

    let (mut device, _) = Dialogue::connect(broker.mqtt, &Login::new(Version::V5, "meter-1"))?;
    ensure!(device.subscribe("kept/x", 1)? == 1 && device.subscribe("more/x", 1)? == 0x87);
    let second = acl(2, &["kept/#", "more/#"])?;
    mounts.put_acl(&second)?;
    wait_for_generation(&broker, &second)?;
    ensure!(device.subscribe("more/x", 1)? == 1, "the connection stays and has the new grant");

    let third = acl(3, &["kept/#"])?;
    let mixed = [third.first(), second.get(1)].into_iter().flatten().cloned().collect::<Vec<_>>();
    mounts.put_acl(&mixed)?;
    let line = broker.wait_for_log(&["generation 2 stays in force"])?;
    ensure!(line.contains("the shards of generation 2 and generation 3"), "{line}");
    let tampered = third.iter().cloned().map(|mut shard| {
        shard.users.iter_mut().flat_map(|user| &mut user.rules).for_each(|rule| rule.filter = "#".into());
        shard
    });
    mounts.put_acl(&tampered.collect::<Vec<_>>())?;
    broker.wait_for_log(&["generation 2 stays in force", "not what was written"])?;
    wait_for_generation(&broker, &second)?;
    ensure!(device.subscribe("more/y", 1)? == 1 && device.subscribe("other", 1)? == 0x87);

    mounts.put_acl(&third)?;
    wait_for_generation(&broker, &third)?;
    ensure!(device.subscribe("more/z", 1)? == 0x87);
    ensure!(device.subscribe("kept/z", 1)? == 1);
    ensure!(broker.stop()?.success());
    Ok(())
}

/// One user with an Argon2id hash (both digests are of the reference implementation's own tests).
fn with_password(generation: u64, digest: &str) -> Result<Vec<AclShard>> {
    let salt = "736f6d6573616c74".to_owned();
    let hash = Argon2id { memory_kib: 65536, passes: 2, lanes: 1, salt, digest: digest.into() };
    let passwords = vec![PasswordHash::Argon2id(hash)];
    let user = AclUser { username: "fleet".into(), passwords, client_ids: Vec::new(), rules: Vec::new() };
    let document = AclDocument { generation, anonymous_user: None, users: vec![user] };
    Ok(shards::split(&document, shards::SHARD_BYTES)?)
}

#[test]
fn a_fleet_that_logs_in_at_once_costs_one_password_hash() -> Result<()> {
    let mounts = Mounts::new()?;
    mounts.put_config(&mounts.document())?;
    let first = "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7";
    mounts.put_acl(&with_password(1, first)?)?;
    let mut broker = mounts.start()?;
    broker.ready()?;

    let login = |version, number: usize, password: &str| {
        Dialogue::greet(broker.mqtt, &Login::new(version, &format!("meter-{number}")).user("fleet", password))
    };
    let answer = |version, number, password: &str| -> Result<u8> {
        match login(version, number, password)?.read()? {
            Packet::ConnAck { code, .. } => Ok(code),
            other => anyhow::bail!("{other:?}"),
        }
    };
    let mut fleet = (0..50).map(|n| login(Version::V5, n, "password")).collect::<Result<Vec<_>>>()?;
    for device in &mut fleet {
        let answer = device.read()?;
        ensure!(matches!(answer, Packet::ConnAck { code: 0, .. }), "{answer:?}");
    }
    ensure!(answer(Version::V5, 100, "Password")? == 0x86);
    ensure!(answer(Version::V3, 101, "Password")? == 4);
    let counters: Value = serde_json::from_str(&broker.get("/v1/counters")?.1)?;
    ensure!(counters.get("password_hashes") == Some(&json!(1)), "{counters}");

    let second = "0b84d652cf6b0c4beaef0dfe278ba6a80df6696281d7e0d2891b817d8c458fde";
    mounts.put_acl(&with_password(2, second)?)?;
    wait_until("the new password", PROMPT, || Ok((in_force(&broker)?.generation == 2).then_some(())))?;
    ensure!(answer(Version::V5, 102, "password")? == 0x86, "the old password is gone");
    ensure!(answer(Version::V5, 103, "differentpassword")? == 0);
    ensure!(fleet.iter_mut().all(|device| device.ping().is_ok()), "who is in stays");
    ensure!(!broker.log()?.contains("ifferentpassword"), "a password is in the log");
    Ok(())
}

#[test]
fn a_standalone_broker_tells_which_acl_is_in_force_too() -> Result<()> {
    let manifests = Manifests::new().user("fleet", "fleet-secret");
    let broker = Broker::start(&manifests)?;
    let first = in_force(&broker)?;
    ensure!((first.generation, first.users, first.hash.len()) == (1, 1, 64), "{first:?}");
    ensure!(broker.get("/v1/config")?.0 == 404, "it has a config file");
    broker.apply(&manifests.user("ops", "ops-secret"))?;
    wait_until("the next generation", PROMPT, || Ok((in_force(&broker)?.generation == 2).then_some(())))?;
    let second = in_force(&broker)?;
    ensure!(second.users == 2 && second.hash != first.hash, "{second:?}");
    Ok(())
}

#[test]
fn a_bad_config_is_refused_in_one_line_and_a_bad_change_leaves_the_last_good_one() -> Result<()> {
    let mounts = Mounts::new()?;
    mounts.put_acl(&acl(1, &["#"])?)?;
    let good = mounts.document();
    let bad = |pointer: &str, value: Value| -> Result<Value> {
        let mut document = good.clone();
        *document.pointer_mut(pointer).context("no such field")? = value;
        Ok(document)
    };
    let cases = [
        (bad("/instance/limits/packetSize", json!("large"))?, ": instance.limits.packetSize: invalid type"),
        (bad("/data", Value::Null)?, ": data: is missing; name a folder"),
        (bad("/instance/listeners/mqtts", json!("127.0.0.1:0"))?, ": tls: is missing; name the certificate"),
    ];
    for (document, told) in &cases {
        mounts.put_config(document)?;
        let refusal = Broker::refusal_to_run(&mounts.config.file("node.yaml"))?;
        ensure!(refusal.code == Some(2), "{told}: ended with {:?}", refusal.code);
        let lines: Vec<&str> = refusal.stderr.lines().collect();
        let [line] = lines.as_slice() else { anyhow::bail!("{told}: not one line: {lines:?}") };
        ensure!(line.contains("node.yaml: line ") && line.contains(told), "{line}");
    }

    mounts.put_config(&good)?;
    let mut broker = mounts.start()?;
    broker.ready()?;
    ensure!(broker.mqtts.is_none());
    wait_for_config(&broker, &good)?;
    let (mut device, _) = Dialogue::connect(broker.mqtt, &Login::new(Version::V5, "meter-1"))?;
    for (document, told) in &cases {
        mounts.put_config(document)?;
        broker.wait_for_log(&["config not applied, the last good state stays", told])?;
        ensure!(device.ping()?.is_empty());
    }
    wait_for_config(&broker, &good)?;
    let changed = bad("/instance/limits/clientIdLength", json!(3))?;
    mounts.put_config(&changed)?;
    wait_for_config(&broker, &changed)?;
    wait_until("the new limit", PROMPT, || {
        let answer = Dialogue::greet(broker.mqtt, &Login::new(Version::V5, "meter-2"))?.read()?;
        Ok(matches!(answer, Packet::ConnAck { code: 0x85, .. }).then_some(()))
    })?;
    Ok(())
}

/// As pods listen, whichever addresses their cluster gives them.
#[test]
fn a_listener_on_all_addresses_serves_ipv6_as_it_serves_ipv4() -> Result<()> {
    let authority = Authority::new("site")?;
    let mounts = Mounts::new()?;
    mounts.put_certificate(&authority.issue_for("meters", &["::1".into()])?)?;
    mounts.put_acl(&acl(1, &["kept/#"])?)?;
    let mut document = mounts.document();
    for listener in ["mqtt", "mqtts", "admin"] {
        let place = document.pointer_mut(&format!("/instance/listeners/{listener}"));
        *place.context("no listener")? = json!("[::]:0");
    }
    mounts.put_config(&document)?;
    let mut broker = mounts.start()?;
    broker.ready()?;
    let mqtts = broker.mqtts.context("no TLS listener")?;
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let at = |port| SocketAddr::new(address, port);
        let login = Login::new(Version::V5, "meter-1");
        let (mut device, _) = Dialogue::connect(at(broker.mqtt.port()), &login)?;
        ensure!(device.subscribe("kept/x", 1)? == 1, "{address}");
        let client = authority.client(TlsVersion::V13);
        ensure!(Tls::connect(at(mqtts.port()), &client)?.login(&login)?.ping()?.is_empty(), "{address}");
        broker.admin.set_ip(address);
        ensure!(broker.get("/readyz")?.0 == 200, "{address}");
    }
    Ok(())
}

#[test]
fn a_certificate_in_a_mounted_secret_is_rotated_and_a_bad_one_takes_nothing_away() -> Result<()> {
    let authority = Authority::new("site")?;
    let (first, second) = (authority.issue("first")?, authority.issue("second")?);
    let mounts = Mounts::new()?;
    mounts.put_certificate(&first)?;
    mounts.put_acl(&acl(1, &["kept/#"])?)?;
    mounts.put_config(&mounts.document())?;
    let mut broker = mounts.start()?;
    broker.ready()?;
    let mqtts = broker.mqtts.context("no TLS listener")?;
    let shown = || -> Result<_> {
        Tls::connect(mqtts, &authority.client(TlsVersion::V13))?.seen().context("no certificate")
    };
    ensure!(shown()? == first.der()?);
    let stays = Tls::connect(mqtts, &authority.client(TlsVersion::V13))?;
    let mut stays = stays.login(&Login::new(Version::V5, "stays"))?;

    mounts.put_certificate(&Pair { key: first.key.clone(), ..second.clone() })?;
    let line = broker.wait_for_log(&["tls.key", "the last good one stays in use"])?;
    ensure!(line.contains("not that of the certificate"), "{line}");
    ensure!(shown()? == first.der()?);
    // A good change beside the bad certificate is in force all the same.
    let grown = acl(2, &["kept/#", "more/#"])?;
    mounts.put_acl(&grown)?;
    wait_for_generation(&broker, &grown)?;

    mounts.put_certificate(&second)?;
    wait_until("the new certificate", PROMPT, || Ok((shown()? == second.der()?).then_some(())))?;
    ensure!(stays.subscribe("more/x", 1)? == 1 && stays.ping()?.is_empty());
    let secret = second.key.lines().nth(1).context("no key")?;
    ensure!(!broker.log()?.contains(secret), "a key is in the log");
    ensure!(
        fs::read_dir(mounts.home.path().join("data"))?.next().is_some(),
        "the store is where it was told"
    );
    Ok(())
}
