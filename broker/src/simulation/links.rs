//! Links between nodes, by what they promise: in order and each once as long as they stand. What gRPC does to it is
//! played here: delays, nodes that are cut off from each other, and links that break with what is on its way.

use std::{
    collections::BTreeSet,
    ops::Range,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mqtt_proto::durable::record::Boot;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, interval, sleep, sleep_until},
};

use super::world::{Running, World};
use crate::{
    outside::Simulated,
    peers::wire::{Answer, Ask, Call, HasRead, InTouch, Taken},
    session::{
        log::{ASK_EVERY, Giving, Hearing},
        relay::{BEAT, Relay},
    },
};

const LOOK_EVERY: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(100);
const DELAY: Range<u64> = 0..3;

/// Between two nodes, in both directions, whatever process runs they are.
pub(super) struct Path {
    is_cut: AtomicBool,
    mended: Notify,
    /// Told when all that stands on it breaks.
    broken: Notify,
    /// In milliseconds, one way.
    delay: Mutex<Range<u64>>,
}

/// One end of a link in one direction.
struct Arrivals<T> {
    sent: mpsc::UnboundedReceiver<(Instant, T)>,
    next: Option<(Instant, T)>,
    path: Arc<Path>,
}

/// The other.
struct Departures<T> {
    sent: mpsc::UnboundedSender<(Instant, T)>,
    path: Arc<Path>,
    random: fastrand::Rng,
}

impl Default for Path {
    fn default() -> Path {
        Path {
            is_cut: AtomicBool::new(false),
            mended: Notify::new(),
            broken: Notify::new(),
            delay: Mutex::new(DELAY),
        }
    }
}

impl Path {
    /// Nothing arrives while it is cut, and nobody is told.
    pub(super) fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::Relaxed);
        self.mended.notify_waiters();
    }

    pub(super) fn set_delay(&self, delay: Option<Range<u64>>) {
        *self.delay.lock() = delay.unwrap_or(DELAY);
    }

    pub(super) fn break_links(&self) {
        self.broken.notify_waiters();
    }

    async fn is_open(&self) {
        while self.is_cut.load(Ordering::Relaxed) {
            self.mended.notified().await;
        }
    }
}

fn pipe<T>(path: &Arc<Path>, random: fastrand::Rng) -> (Departures<T>, Arrivals<T>) {
    let (sent, arrives) = mpsc::unbounded_channel();
    (
        Departures { sent, path: path.clone(), random },
        Arrivals { sent: arrives, next: None, path: path.clone() },
    )
}

impl<T> Departures<T> {
    /// False if nobody is there any more.
    fn send(&mut self, item: T) -> bool {
        let delay = self.random.u64(self.path.delay.lock().clone());
        self.sent.send((Instant::now() + Duration::from_millis(delay), item)).is_ok()
    }
}

impl<T> Arrivals<T> {
    /// None at the end. What has come is not lost if nobody waits for it any more.
    async fn receive(&mut self) -> Option<T> {
        if self.next.is_none() {
            self.next = self.sent.recv().await;
        }
        let at = self.next.as_ref()?.0;
        sleep_until(at).await;
        self.path.is_open().await;
        self.next.take().map(|(_, item)| item)
    }
}

/// Keeps a link from one process run to each other that it knows of, as long as its machine runs.
pub(super) async fn keep_all(world: Arc<World>, from: usize, running: Running) {
    let mut dialled = BTreeSet::new();
    let mut ticks = interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        for (boot, (name, _)) in running.node.sessions.others() {
            let to: usize = name.parse().unwrap();
            if world.places[to].linked && dialled.insert(boot) {
                let kept = keep(world.clone(), (from, to), running.clone(), boot);
                running.machine.spawn(Box::pin(kept));
            }
        }
    }
}

/// Keeps a link to one process run until that is over.
async fn keep(world: Arc<World>, (from, to): (usize, usize), running: Running, boot: Boot) {
    let path = world.path(from, to);
    while running.node.sessions.others().contains_key(&boot) {
        path.is_open().await;
        let peer = world.running(to).filter(|peer| peer.node.boot == boot);
        if let Some(peer) = peer {
            tokio::select! {
                biased;
                () = path.broken.notified() => {}
                () = pass_on(&world, &path, &running, &peer) => {}
            }
        }
        sleep(world.millis(100..1000)).await;
    }
}

/// Makes a link, and passes on over it what is for the peer, as long as it stands.
async fn pass_on(world: &World, path: &Arc<Path>, running: &Running, peer: &Running) {
    let (mut calls, arriving) = pipe(path, world.fork());
    let (answers, mut answered) = pipe(path, world.fork());
    peer.machine.spawn(Box::pin(take(peer.clone(), running.node.boot, arriving, answers)));
    let Some(Answer::Taken(Taken { sequence })) = answered.receive().await else { return };
    let boot = peer.node.boot;
    let (Some(relay), Some(link)) = (&running.node.relay, Relay::join(&running.node, boot, sequence)) else {
        return;
    };
    let mut hearing = Hearing::new(running.node.clone(), boot);
    let (mut ticks, mut asks) = (interval(TICK), interval(ASK_EVERY));
    loop {
        let handed = relay.handed();
        while let Some(batch) = link.batch() {
            if !calls.send(Call::Batch(batch)) {
                return;
            }
        }
        tokio::select! {
            biased;
            answer = answered.receive() => match answer {
                Some(Answer::Taken(Taken { sequence })) => link.taken(sequence),
                Some(Answer::InTouch(InTouch {})) => relay.peer_is_in_touch("another"),
                Some(Answer::Lease(lease)) => hearing.lease(lease),
                Some(Answer::ReadOn(read_on)) => hearing.read_on(read_on).unwrap(),
                Some(Answer::Welcome(_)) | None => return,
            },
            () = handed => {}
            round = hearing.next() => {
                calls.send(Call::HasRead(HasRead { round }));
            }
            _ = asks.tick() => {
                if let Some(asked) = hearing.ask() {
                    calls.send(Call::Ask(Ask { asked }));
                }
            }
            _ = ticks.tick() => {
                if link.is_overdue() {
                    return;
                }
            }
        }
    }
}

/// The peer's end: says first what it has, then takes what comes.
async fn take(peer: Running, from: Boot, mut arriving: Arrivals<Call>, mut answers: Departures<Answer>) {
    let Some(relay) = &peer.node.relay else { return };
    let path = arriving.path.clone();
    let mut broken = pin!(path.broken.notified());
    let taken = relay.taken_of(from);
    let mut told = taken.get();
    answers.send(Answer::Taken(Taken { sequence: told }));
    let mut giving = Giving::new(peer.node.clone(), from);
    let mut ticks = interval(BEAT);
    loop {
        tokio::select! {
            biased;
            () = &mut broken => return,
            number = taken.reach(told + 1) => {
                told = number;
                // Nobody may be there to hear it. What has been sent is taken all the same.
                answers.send(Answer::Taken(Taken { sequence: told }));
            }
            read_on = giving.next() => {
                answers.send(Answer::ReadOn(read_on));
            }
            _ = ticks.tick() => {
                if relay.is_in_touch() {
                    answers.send(Answer::InTouch(InTouch {}));
                }
            }
            call = arriving.receive() => match call {
                Some(Call::Batch(batch)) => {
                    if relay.take_linked(&peer.node, from, &batch).await.is_err() {
                        return;
                    }
                }
                Some(Call::Ask(Ask { asked })) => {
                    if let Some(lease) = giving.give(asked) {
                        answers.send(Answer::Lease(lease));
                    }
                }
                Some(Call::HasRead(HasRead { round })) => giving.read(round),
                Some(Call::Hello(_)) | None => return,
            },
        }
    }
}
