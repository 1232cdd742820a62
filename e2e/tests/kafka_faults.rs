//! What befalls Kafka, and what devices notice of it: acks may pause; what was acknowledged is there, in order.
//!
//! One Kafka of three nodes, three copies, two of which must be there for a write. For each fault of the table a fleet
//! publishes at a pace while it strikes; once with the broker left alone and once with it killed in the middle.

use std::{
    ops::RangeInclusive,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mqtt_e2e::{
    Broker, Dialogue, Fleet, FleetOptions, Login, Manifests, Packet, Store, Version,
    fleet::{Entry, Repeats},
    kafka::{Kafka, KafkaOptions},
    wait_until, wire,
};

/// For acks to come again once a fault is over, and for all to be acknowledged after the end.
const RECOVERY: Duration = Duration::from_secs(60);
/// A client that wants its session kept is told so long after its CONNECT at the latest that it can't be.
const REFUSAL: Duration = Duration::from_secs(7);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What the broker may grow by while Kafka takes nothing.
const GROWTH: u64 = 64 << 20;
/// How long a message between two clean sessions may take, whatever Kafka does.
const PROMPT: Duration = Duration::from_secs(2);
/// The nodes' numbers.
const NODES: [usize; 3] = [1, 2, 3];

struct Fault {
    name: &'static str,
    strike: fn(&Kafka, &Place) -> Result<()>,
    heal: fn(&Kafka, &Place) -> Result<()>,
    /// Seconds from strike to heal; absent: until acks come again.
    lasts: Option<u64>,
    /// The fleet's longest time without any ack, in milliseconds, where the broker is left alone.
    pause: RangeInclusive<u64>,
    /// Kafka takes nothing at all: the broker must say so.
    away: bool,
}

/// The ordered parent. A fault of a partition strikes its first one.
const PLACE: &str = "orderMsg2mq-readings";

/// Who leads the partition that a fault strikes.
struct Place {
    leader: usize,
    /// The two that don't lead it.
    others: Vec<usize>,
}

const FAULTS: &[Fault] = &[
    Fault {
        name: "a partition's leader moves",
        strike: |kafka, place| {
            let Some(next) = place.others.first() else { bail!("there is one node") };
            kafka.move_leader(PLACE, 0, *next)
        },
        heal: |_, _| Ok(()),
        lasts: None,
        pause: 0..=10_000,
        away: false,
    },
    Fault {
        name: "a partition's leader is killed",
        strike: |kafka, place| kafka.kill9(place.leader),
        heal: |kafka, place| kafka.start_node(place.leader),
        lasts: None,
        pause: 500..=30_000,
        away: false,
    },
    Fault {
        name: "a partition's leader is frozen for 10 s",
        strike: |kafka, place| kafka.freeze(place.leader),
        heal: |kafka, place| kafka.thaw(place.leader),
        lasts: Some(10),
        pause: 2_000..=30_000,
        away: false,
    },
    Fault {
        name: "two of three nodes are killed for 10 s",
        strike: |kafka, place| place.others.iter().try_for_each(|node| kafka.kill9(*node)),
        heal: |kafka, place| place.others.iter().try_for_each(|node| kafka.start_node(*node)),
        lasts: Some(10),
        pause: 9_000..=40_000,
        away: true,
    },
    Fault {
        name: "all of Kafka is killed for 20 s",
        strike: |kafka, _| NODES.into_iter().try_for_each(|node| kafka.kill9(node)),
        heal: |kafka, _| NODES.into_iter().try_for_each(|node| kafka.start_node(node)),
        lasts: Some(20),
        pause: 15_000..=60_000,
        away: true,
    },
];

#[test]
fn what_was_acknowledged_is_stored_in_order_whatever_befalls_kafka_and_the_broker() -> Result<()> {
    let kafka = Arc::new(Kafka::start(KafkaOptions { nodes: 3, ..KafkaOptions::default() })?);
    for fault in FAULTS {
        for killed in [false, true] {
            let begun = Instant::now();
            let what = if killed { "the broker is killed in the middle" } else { "the broker is left alone" };
            let play = if killed { Run::killed } else { Run::alone };
            let told = Run::start(&kafka).and_then(|run| play(run, &kafka, fault));
            let told = told.with_context(|| format!("{}; {what}", fault.name))?;
            eprintln!("{}; {what}: {told}; {:.0} s", fault.name, begun.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

/// One row of the table being played, from before the fault to after it.
struct Run {
    options: FleetOptions,
    broker: Broker,
    fleet: Fleet,
    place: Place,
    /// When the fault strikes, on the fleet's clock.
    struck: Duration,
}

impl Run {
    /// A broker of its own on an empty Kafka, and the load at its pace.
    fn start(kafka: &Arc<Kafka>) -> Result<Self> {
        let manifests = Manifests::new()
            .parent("readings")
            .ordered_parent(PLACE)
            .user("fleet", "fleet-secret")
            .grant("fleet-all", "fleet", &[("pub", "#")])
            .user("ops", "ops-secret")
            .grant("ops-all", "ops", &[("pubsub", "#")]);
        let broker = Broker::start_on(&Store::kafka(kafka), &manifests)?;
        let leader = kafka.leader(PLACE, 0)?;
        let others = NODES.into_iter().filter(|node| *node != leader).collect();
        let options = FleetOptions::default();
        let fleet = Fleet::start(broker.mqtt, options.clone())?;
        fleet.wait_for_pace(RECOVERY)?;
        let struck = fleet.now();
        Ok(Self { options, broker, fleet, place: Place { leader, others }, struck })
    }

    /// The fault alone: what needs no Kafka goes on, and nobody is disconnected.
    fn alone(self, kafka: &Kafka, fault: &Fault) -> Result<String> {
        let mut witness = Witness::connect(&self.broker)?;
        let memory = self.broker.resident()?;
        (fault.strike)(kafka, &self.place)?;
        if fault.away {
            self.ensure_it_says_that_kafka_is_away(&mut witness)?;
        }
        match fault.lasts {
            Some(seconds) => {
                let end = self.struck + Duration::from_secs(seconds);
                self.hold(&mut witness, || Ok(self.fleet.now() >= end))?;
            }
            None => {
                self.hold(&mut witness, || Ok(kafka.leader(PLACE, 0)? != self.place.leader))?;
                let acked = self.fleet.acked();
                self.hold(&mut witness, || Ok(self.fleet.acked() > acked + 2000))?;
            }
        }
        let grown = self.broker.resident()?.saturating_sub(memory);
        ensure!(grown <= GROWTH, "the broker grew by {grown} bytes while Kafka took nothing");
        (fault.heal)(kafka, &self.place)?;
        self.fleet.wait_for_acks(2000, RECOVERY)?;
        witness.exchange()?;
        if fault.away {
            self.broker.wait_for_log(&["Kafka at ", "is back after"])?;
        }
        let devices = self.options.devices as u64;
        let report = self.finish(kafka, devices..=devices, fault.pause.clone())?;
        Ok(format!("{report}, {:.1} MB more memory", grown as f64 / 1e6))
    }

    /// The fault with the broker killed while it lasts, and started again at once.
    fn killed(mut self, kafka: &Kafka, fault: &Fault) -> Result<String> {
        let middle = self.struck + Duration::from_secs(fault.lasts.unwrap_or_default()) / 2;
        let end = self.struck + Duration::from_secs(fault.lasts.unwrap_or_default());
        let mut witness = Witness::connect(&self.broker)?;
        (fault.strike)(kafka, &self.place)?;
        self.hold(&mut witness, || Ok(self.fleet.now() >= middle))?;
        drop(witness);
        self.broker.kill9()?;
        let (broker, fleet, place) = (&mut self.broker, &self.fleet, &self.place);
        // A broker that starts waits for Kafka, so the fault has to end meanwhile.
        thread::scope(|scope| {
            let restart = scope.spawn(|| broker.restart());
            wait_until("the fault's end", RECOVERY, || Ok((fleet.now() >= end).then_some(())))?;
            (fault.heal)(kafka, place)?;
            restart.join().unwrap_or_else(|_| bail!("the restart panicked"))
        })?;
        self.fleet.wait_for_acks(2000, RECOVERY)?;
        let devices = self.options.devices as u64;
        self.finish(kafka, 2 * devices..=u64::MAX, 0..=u64::MAX)
    }

    /// Until the fault is to end: clean traffic goes on, and the broker stays ready.
    fn hold(&self, witness: &mut Witness, is_over: impl Fn() -> Result<bool>) -> Result<()> {
        let begun = Instant::now();
        loop {
            witness.exchange()?;
            let (status, reason) = self.broker.get("/readyz")?;
            ensure!(status == 200, "/readyz: {status} {reason}");
            if is_over()? {
                return Ok(());
            }
            ensure!(begun.elapsed() < RECOVERY, "the fault goes on after {RECOVERY:?}");
            thread::sleep(LOOK_EVERY);
        }
    }

    /// In the log and on /readyz with a reason, and to newcomers that want a session kept, by refusing them.
    fn ensure_it_says_that_kafka_is_away(&self, witness: &mut Witness) -> Result<()> {
        self.broker.wait_for_log(&["ERROR", "Kafka at ", "is away: "])?;
        let (status, reason) = self.broker.get("/readyz")?;
        ensure!(status == 200 && reason.contains("is away"), "/readyz: {status} {reason:?}");
        let begun = Instant::now();
        let greet = |version| {
            let login =
                Login::new(version, &format!("newcomer-{version:?}")).user("ops", "ops-secret").persistent();
            Dialogue::greet(self.broker.mqtt, &login)
        };
        for (mut newcomer, code) in [(greet(Version::V3)?, 3), (greet(Version::V5)?, 0x88)] {
            let answer = newcomer.read()?;
            let refused = Packet::ConnAck { session_present: false, code };
            ensure!(answer == refused, "{:?}: answered {answer:?}", newcomer.version());
        }
        ensure!(begun.elapsed() < REFUSAL, "refused after {:?}", begun.elapsed());
        witness.exchange()
    }

    /// Ends the load and checks the books; reports the figures.
    fn finish(
        self,
        kafka: &Kafka,
        connects: RangeInclusive<u64>,
        pause: RangeInclusive<u64>,
    ) -> Result<String> {
        let ledger = self.fleet.stop(RECOVERY)?;
        kafka.wait_until_up()?;
        kafka.wait_until_in_sync()?;
        let mut entries = Vec::new();
        for parent in &self.options.parents {
            // Right after a fault the command may be told to ask again.
            for record in wait_until("the records", RECOVERY, || self.broker.records(parent).map(Some))? {
                entries.push(Entry::of(&record)?);
            }
        }
        ledger.ensure_kept(&entries, Repeats::SameId)?;
        let felt = ledger.longest_pause(self.struck, ledger.lasted).0;
        let report = format!(
            "{} numbers, {} repeated, {} records, {} connections, pause {felt:.1?}",
            ledger.published(),
            ledger.resent(),
            entries.len(),
            ledger.connects,
        );
        let timeline = || format!("{report}; acks a second: {:?}", ledger.acks_per_second());
        ensure!(connects.contains(&ledger.connects), "connections not in {connects:?}: {}", timeline());
        ensure!(pause.contains(&(felt.as_millis() as u64)), "pause not in {pause:?} ms: {}", timeline());
        Ok(report)
    }
}

/// Two clean sessions that talk to each other under no parent topic: Kafka is no part of that.
struct Witness {
    publisher: Dialogue,
    subscriber: Dialogue,
}

impl Witness {
    fn connect(broker: &Broker) -> Result<Self> {
        let login = |who| Login::new(Version::V5, who).user("ops", "ops-secret");
        let (publisher, _) = Dialogue::connect(broker.mqtt, &login("speaker"))?;
        let (mut subscriber, _) = Dialogue::connect(broker.mqtt, &login("listener"))?;
        ensure!(subscriber.subscribe("chatter", 1)? == 1);
        Ok(Self { publisher, subscriber })
    }

    /// One message of QoS 0 and one of QoS 1, there and acknowledged.
    fn exchange(&mut self) -> Result<()> {
        let begun = Instant::now();
        for qos in [0, 1] {
            self.publisher.publish("chatter", b"still here", qos, 1)?;
            let heard = self.subscriber.read()?;
            let Packet::Publish { payload, id, qos: with, .. } = &heard else {
                bail!("instead of a message of QoS {qos}: {heard:?}")
            };
            ensure!((payload.as_slice(), *with) == (b"still here".as_slice(), qos), "{heard:?}");
            if let Some(id) = id {
                self.subscriber.send(&wire::puback(*id))?;
                let answer = self.publisher.read()?;
                ensure!(answer == Packet::PubAck { id: 1, reason: 0 }, "answered {answer:?}");
            }
        }
        ensure!(begun.elapsed() < PROMPT, "clean traffic took {:?}", begun.elapsed());
        Ok(())
    }
}
