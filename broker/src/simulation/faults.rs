//! What goes wrong, to whom and for how long.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::sleep;

use super::{
    client::Client,
    ledger::Fault,
    world::{Running, World},
};
use crate::{log::sim::Weather, node::Node};

/// Begins a fault, which ends by itself.
pub(super) fn begin(world: &Arc<World>, fault: Fault) {
    world.troubles.fetch_add(1, Ordering::Relaxed);
    let world = world.clone();
    tokio::spawn(async move {
        let place = world.below(world.places.len());
        let device = world.below(world.devices.len());
        let of_client = matches!(
            fault,
            Fault::Cut | Fault::Reset | Fault::Vanish | Fault::SlowLink | Fault::Takeover | Fault::Stall
        );
        let index = if of_client { device } else { place };
        let number = world.ledger.lock().fault_begins(fault, index);
        if of_client {
            strike_client(&world, fault, index).await;
        } else {
            strike_node(&world, fault, index).await;
        }
        world.ledger.lock().fault_ends(number);
        world.troubles.fetch_sub(1, Ordering::Relaxed);
    });
}

async fn strike_client(world: &World, fault: Fault, index: usize) {
    let Some(wire) = world.client(index).link.as_ref().map(|link| link.wire.clone()) else { return };
    match fault {
        Fault::Cut => {
            wire.cut(true);
            sleep(world.millis(500..15_000)).await;
            wire.cut(false);
        }
        Fault::SlowLink => {
            wire.set_delay(100..1500);
            sleep(world.millis(1000..8000)).await;
            wire.set_delay(0..3);
        }
        Fault::Stall => {
            world.client(index).stalled = true;
            sleep(world.millis(500..9000)).await;
            world.client(index).recover();
        }
        Fault::Reset => {
            wire.reset();
            leave(world, index);
        }
        Fault::Vanish => {
            wire.vanish();
            leave(world, index);
        }
        // It comes again while the node thinks that it is still there.
        _ => leave(world, index),
    }
}

fn leave(world: &World, index: usize) {
    world.with(index, Client::lost);
    world.devices[index].poke.notify_one();
}

async fn strike_node(world: &Arc<World>, fault: Fault, index: usize) {
    let Some(Running { log, machine, .. }) = world.running(index) else { return };
    let calm = Weather::default;
    match fault {
        Fault::Crash => crash(world, index).await,
        Fault::Freeze => {
            machine.freeze();
            sleep(world.millis(500..12_000)).await;
            machine.thaw();
        }
        Fault::ClockSkew => {
            let far = world.below(8) == 0;
            let skew = if far { 400_000 } else { world.below(60_000) };
            let skew = i64::try_from(skew).unwrap() * if world.below(2) == 0 { 1 } else { -1 };
            machine.set_skew(skew);
            sleep(world.millis(500..if far { 5000 } else { 20_000 })).await;
            machine.set_skew(0);
        }
        Fault::StoreAway | Fault::NodeWithoutStore => {
            let all = fault == Fault::StoreAway;
            let whom = || (0..world.places.len()).filter(|other| all || *other == index);
            whom().for_each(|index| cut_off(world, index, true));
            sleep(world.millis(500..15_000)).await;
            for index in whom() {
                cut_off(world, index, false);
                sleep(world.millis(0..2000)).await;
            }
        }
        Fault::SlowStore | Fault::Repeats | Fault::Breaks => {
            log.set_weather(match fault {
                Fault::SlowStore => Weather { latency: 50..1500, ..calm() },
                Fault::Repeats => Weather { repeats: 0.5, latency: 0..50, ..calm() },
                _ => Weather { breaks: 0.2, stale: true, ..calm() },
            });
            sleep(world.millis(1000..10_000)).await;
            log.set_weather(calm());
        }
        Fault::Compaction => {
            world.cluster.compact();
        }
        _ => strike_links(world, fault, index).await,
    }
}

/// Between this node and another.
async fn strike_links(world: &World, fault: Fault, index: usize) {
    let other = world.below(world.places.len());
    if other == index {
        return;
    }
    let path = world.path(index, other);
    match fault {
        Fault::Apart => {
            path.cut(true);
            sleep(world.millis(500..15_000)).await;
            path.cut(false);
        }
        Fault::SlowLinks => {
            path.set_delay(Some(100..1500));
            sleep(world.millis(1000..8000)).await;
            path.set_delay(None);
        }
        _ => path.break_links(),
    }
}

fn cut_off(world: &World, index: usize, away: bool) {
    *world.places[index].away.lock() = away;
    if let Some(running) = world.running(index) {
        running.log.set_away(away);
    }
}

async fn crash(world: &Arc<World>, index: usize) {
    let silently = world.below(3) == 0;
    let pause = world.millis(200..4000);
    let Some(running) = world.places[index].running.lock().take() else { return };
    begin_anew(world, index, running, silently, pause).await;
}

/// A node was told that it is over.
pub(super) async fn follow_end(world: Arc<World>, index: usize, node: Arc<Node>) {
    node.sessions.ended().await;
    let running = {
        let mut place = world.places[index].running.lock();
        if !place.as_ref().is_some_and(|running| Arc::ptr_eq(&running.node, &node)) {
            return;
        }
        place.take()
    };
    drop(node);
    world.troubles.fetch_add(1, Ordering::Relaxed);
    if let Some(running) = running {
        world.ledger.lock().event("node", index, "is over", running.node.boot);
        let pause = world.millis(50..500);
        begin_anew(&world, index, running, false, pause).await;
    }
    world.troubles.fetch_sub(1, Ordering::Relaxed);
}

async fn begin_anew(world: &Arc<World>, index: usize, running: Running, silently: bool, pause: Duration) {
    let Running { log, machine, .. } = running;
    for device in 0..world.devices.len() {
        let client = world.client(device);
        client.wires.iter().filter(|wire| wire.node == index).for_each(|wire| wire.node_dies(silently));
    }
    log.crash();
    machine.kill();
    sleep(pause).await;
    let panics = machine.panics();
    assert!(panics.is_empty(), "{panics:?}");
    sleep(Duration::from_millis(1)).await;
    world.start(index).await;
}
