//! The network between nodes: frames are late, lost, repeated and overtaken, and two nodes may be cut off from each other.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::sleep;

use super::machine::Machine;
use crate::{
    node::Node,
    outside::Simulated,
    peers::{Wire, link::Frame},
};

/// How frames travel, until it changes.
#[derive(Clone, Copy)]
pub(super) struct Roads {
    /// At most this many milliseconds.
    pub(super) delay: u64,
    /// How many of a hundred are lost, and come twice.
    pub(super) lost: u32,
    pub(super) twice: u32,
}

pub(super) const GOOD: Roads = Roads { delay: 3, lost: 1, twice: 2 };

pub(super) struct Between {
    random: Mutex<fastrand::Rng>,
    state: Mutex<State>,
}

struct State {
    /// Process runs by their boot.
    ends: BTreeMap<u64, End>,
    /// Pairs of nodes that are cut off from each other.
    cuts: Vec<(usize, usize)>,
    roads: Roads,
}

#[derive(Clone)]
struct End {
    place: usize,
    node: Weak<Node>,
    machine: Arc<Machine>,
}

/// What one process run has of it.
pub(super) struct Exit {
    between: Arc<Between>,
    place: usize,
}

impl Between {
    pub(super) fn new(random: fastrand::Rng) -> Arc<Between> {
        let state = State { ends: BTreeMap::new(), cuts: Vec::new(), roads: GOOD };
        Arc::new(Between { random: Mutex::new(random), state: Mutex::new(state) })
    }

    pub(super) fn exit(self: &Arc<Self>, place: usize) -> Arc<dyn Wire> {
        Arc::new(Exit { between: self.clone(), place })
    }

    pub(super) fn enter(&self, place: usize, node: &Arc<Node>, machine: &Arc<Machine>) {
        let end = End { place, node: Arc::downgrade(node), machine: machine.clone() };
        self.state.lock().ends.insert(node.boot, end);
    }

    pub(super) fn leave(&self, place: usize) {
        self.state.lock().ends.retain(|_, end| end.place != place);
    }

    pub(super) fn set_roads(&self, roads: Roads) {
        self.state.lock().roads = roads;
    }

    /// Cuts two nodes off from each other, or lets them be.
    pub(super) fn cut(&self, pair: (usize, usize), cut: bool) {
        let cuts = &mut self.state.lock().cuts;
        match cuts.iter().position(|known| *known == pair) {
            Some(at) if !cut => drop(cuts.remove(at)),
            None if cut => cuts.push(pair),
            _ => {}
        }
    }
}

impl State {
    fn is_cut(&self, one: usize, other: usize) -> bool {
        self.cuts.iter().any(|(a, b)| (*a, *b) == (one, other) || (*a, *b) == (other, one))
    }
}

impl Wire for Exit {
    fn send(&self, frame: Frame) {
        let (roads, end) = {
            let state = self.between.state.lock();
            let Some(end) = state.ends.get(&frame.to).cloned() else { return };
            if state.is_cut(self.place, end.place) {
                return;
            }
            (state.roads, end)
        };
        let mut random = self.between.random.lock();
        let times = if random.u32(0..100) < roads.twice { 2 } else { 1 };
        for _ in 0..times {
            if random.u32(0..100) < roads.lost {
                continue;
            }
            let (delay, end, frame) = (random.u64(0..roads.delay), end.clone(), frame.clone());
            let (between, from) = (self.between.clone(), self.place);
            tokio::spawn(async move {
                sleep(Duration::from_millis(delay)).await;
                if between.state.lock().is_cut(from, end.place) {
                    return;
                }
                end.machine.spawn(Box::pin(async move {
                    if let Some(node) = end.node.upgrade()
                        && let Some(peers) = &node.peers
                    {
                        peers.take(&node, frame);
                    }
                }));
            });
        }
    }
}
