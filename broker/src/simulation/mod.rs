//! Whole nodes, as they are shipped, in one thread on a clock that jumps: run from a seed, over a simulated store and
//! connections in memory, against model clients, while everything goes wrong that may.
//!
//! | part | owns |
//! |---|---|
//! | [`machine`] | clock, chance and tasks of one process run; freezes and kills it |
//! | [`net`] | connections in memory |
//! | [`links`] | what nodes pass on to each other beside the store |
//! | [`client`] | a device that keeps to the protocol |
//! | [`ledger`] | what was promised, the rules, and what of them was exercised |
//! | [`faults`] | what goes wrong |
//! | [`world`] | all of it together, and what is asked of it |
//!
//! The same seed gives the same events. A failure names its seed: `SIM_SEED=17 cargo test -p mqtt-broker simulation`
//! runs it again. `SIM_SEEDS=5000` runs more of them, and `SOAK_MINUTES=60` as many as there is time for, from anywhere.

mod client;
mod faults;
mod ledger;
mod links;
mod machine;
mod net;
pub(crate) mod world;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::time::sleep;

use self::{
    ledger::{Event, Exercised, FAULTS, RULES},
    world::World,
};
use crate::{outside::Mistake, session::relay::Relay};

const SEEDS: u64 = 1000;
const OPERATIONS: usize = 2000;
const MOST_FAULTS: usize = 25;
/// Times that everything comes to rest and is checked.
const RESTS: usize = 4;
/// Events that are shown at a violation; all of them with `SIM_SEED`.
const SHOWN: usize = 60;

/// What came of one seed.
struct Report {
    hash: u64,
    events: Vec<Event>,
    exercised: Exercised,
    violation: Option<String>,
    faults: usize,
    used: Used,
}

/// What spared the log something, by the nodes that were there at the end.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    /// Messages that links have brought.
    links: u64,
    /// Publishes that were routed without a barrier.
    leases: u64,
}

impl std::ops::AddAssign for Used {
    fn add_assign(&mut self, other: Used) {
        self.links += other.links;
        self.leases += other.leases;
    }
}

/// `kept`: events that are kept.
fn run(seed: u64, kept: usize, mistake: Option<Mistake>) -> Report {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let world = World::new(seed, kept, mistake).await;
        for operation in 0..OPERATIONS {
            sleep(world.millis(0..25)).await;
            world.operate();
            if operation % (OPERATIONS / MOST_FAULTS) == 10 {
                faults::begin(&world, FAULTS[world.below(FAULTS.len())]);
            }
            if (operation + 1) % (OPERATIONS / RESTS) == 0 {
                world.rest().await;
            }
            if world.ledger.lock().violation.is_some() {
                break;
            }
        }
        let mut used = Used::default();
        for node in (0..world.places.len()).filter_map(|index| Some(world.running(index)?.node)) {
            let figures = node.relay.as_ref().map(Relay::figures);
            let links = figures.iter().flatten().filter(|(name, _)| *name == "passed_by_links");
            let links = links.map(|(_, times)| times).sum();
            used += Used { links, leases: node.sessions.routed_at_once() };
        }
        let mut ledger = world.ledger.lock();
        let exercised = std::mem::take(&mut ledger.exercised);
        let (hash, events, faults) = (ledger.hash(), ledger.events(), ledger.faults());
        Report { hash, events, exercised, violation: ledger.violation.take(), faults, used }
    })
}

/// Runs seeds on all cores; stops at the first violation, and at `until`. Returns what was exercised and used.
fn run_all(seeds: std::ops::Range<u64>, kept: usize, until: Option<Instant>) -> (Exercised, Used) {
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let (mut exercised, mut used) = (Exercised::new(), Used::default());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || until.is_some_and(|until| Instant::now() > until) {
                return (exercised, used);
            }
            let report = run(seed, kept, None);
            if let Some(violation) = report.violation {
                next.store(seeds.end, Ordering::Relaxed);
                panic!(
                    "seed {seed}: {violation}\nagain: SIM_SEED={seed} cargo test -p mqtt-broker simulation"
                );
            }
            assert!(report.faults >= 20, "seed {seed} has only {} faults", report.faults);
            used += report.used;
            for (what, times) in report.exercised {
                *exercised.entry(what).or_default() += times;
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let (mut all, mut all_used) = (Exercised::new(), Used::default());
        for worker in workers {
            let (exercised, used) = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            all_used += used;
            for (what, times) in exercised {
                *all.entry(what).or_default() += times;
            }
        }
        (all, all_used)
    })
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

#[test]
fn the_rules_hold_whatever_goes_wrong() {
    if let Some(seed) = from_env("SIM_SEED") {
        drop(run_all(seed..seed + 1, usize::MAX, None));
        return;
    }
    if let Some(minutes) = from_env("SOAK_MINUTES") {
        let first = u64::from(fastrand::u32(..));
        println!("seeds from {first} on for {minutes} min");
        drop(run_all(first..u64::MAX, SHOWN, Some(Instant::now() + Duration::from_secs(minutes * 60))));
        return;
    }
    let (exercised, used) = run_all(0..from_env("SIM_SEEDS").unwrap_or(SEEDS), SHOWN, None);
    // How often what was judged while what was wrong, for who asks with --nocapture.
    println!("{FAULTS:?}; {used:?}");
    assert!(used.links > 0 && used.leases > 0, "nothing goes the fast way: {used:?}");
    for rule in RULES {
        let times = FAULTS.map(|fault| exercised.get(&(rule, fault)).copied().unwrap_or(0));
        println!("{rule:?}: {times:?}");
    }
    for rule in RULES {
        for fault in FAULTS {
            let times = exercised.get(&(rule, fault)).copied().unwrap_or(0);
            assert!(times > 0, "{rule:?} was never judged while there was {fault:?}");
        }
    }
}

#[test]
fn mistakes_are_noticed() {
    for mistake in [
        Mistake::AckBeforeQueued,
        Mistake::AckWhenSent,
        Mistake::PubrelBeforeProgress,
        Mistake::SubackBeforeFilter,
        Mistake::RouteBeforeNote,
        Mistake::ResumeWithoutQueue,
        Mistake::ForgetRetained,
        Mistake::RouteOnOldView,
        Mistake::SharedClaimKey,
        Mistake::SubackBeforeAnnouncement,
        Mistake::DropNewest,
        Mistake::EndWithoutPassing,
        Mistake::LinkAheadOfLog,
        Mistake::ForgetUnconfirmed,
        Mistake::SubackBeforeRead,
        Mistake::LeaseBeforeRead,
    ] {
        let noticed = (0..SEEDS).find(|seed| run(*seed, 0, Some(mistake)).violation.is_some());
        // For who asks with --nocapture.
        println!("{mistake:?}: seed {noticed:?}");
        assert!(noticed.is_some(), "nobody noticed {mistake:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_events() {
    for seed in 0..20 {
        let (one, other) = (run(seed, usize::MAX, None), run(seed, usize::MAX, None));
        let differ = one.events.iter().zip(&other.events).find(|(one, other)| one != other);
        assert!(differ.is_none(), "seed {seed}: {differ:?}");
        assert_eq!(one.hash, other.hash, "seed {seed}");
    }
}
