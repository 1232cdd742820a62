//! The machine that one process run is on: owns its clock, its chance and all its tasks, and can stop or kill them.

use std::{
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
};

use mqtt_proto::message::Millis;
use parking_lot::Mutex;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    log::{BoxFuture, sim::cluster::EPOCH},
    outside::Simulated,
};

pub(super) struct Machine {
    began: Instant,
    /// How far its clock is off, in milliseconds.
    skew: Mutex<i64>,
    random: Mutex<fastrand::Rng>,
    gate: Arc<Gate>,
    tasks: Mutex<Tasks>,
    me: Weak<Machine>,
}

#[derive(Default)]
struct Tasks {
    running: JoinSet<()>,
    panics: Vec<String>,
}

/// Lets tasks run, or not.
#[derive(Default)]
struct Gate(Mutex<(Stance, Vec<Waker>)>);

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stance {
    #[default]
    Running,
    Frozen,
    Dead,
}

impl Machine {
    /// `began`: when the simulation did.
    pub(super) fn new(began: Instant, random: fastrand::Rng, skew: i64) -> Arc<Machine> {
        Arc::new_cyclic(|me| Machine {
            began,
            skew: Mutex::new(skew),
            random: Mutex::new(random),
            gate: Arc::default(),
            tasks: Mutex::default(),
            me: me.clone(),
        })
    }

    pub(super) fn set_skew(&self, skew: i64) {
        *self.skew.lock() = skew;
    }

    /// Nothing of it runs until it is thawed, as after SIGSTOP; time goes on.
    pub(super) fn freeze(&self) {
        self.gate.0.lock().0 = Stance::Frozen;
    }

    pub(super) fn thaw(&self) {
        let parked = {
            let mut gate = self.gate.0.lock();
            gate.0 = Stance::Running;
            std::mem::take(&mut gate.1)
        };
        parked.into_iter().for_each(Waker::wake);
    }

    /// Nothing of it runs ever again, as after SIGKILL.
    pub(super) fn kill(&self) {
        self.gate.0.lock().0 = Stance::Dead;
        self.tasks.lock().running.abort_all();
    }

    /// What its tasks panicked with.
    pub(super) fn panics(&self) -> Vec<String> {
        let mut tasks = self.tasks.lock();
        tasks.reap();
        std::mem::take(&mut tasks.panics)
    }
}

impl Simulated for Machine {
    fn wall(&self) -> Millis {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap();
        (EPOCH + since).saturating_add_signed(*self.skew.lock())
    }

    fn random(&self) -> u64 {
        self.random.lock().u64(..)
    }

    fn spawn(&self, future: BoxFuture<'static, ()>) {
        let task = Task { gate: self.gate.clone(), _machine: self.me.upgrade(), future };
        let mut tasks = self.tasks.lock();
        tasks.reap();
        tasks.running.spawn(task);
    }
}

impl Tasks {
    fn reap(&mut self) {
        while let Some(ended) = self.running.try_join_next() {
            match ended {
                Err(error) if error.is_panic() => self.panics.push(format!("a task of a node: {error}")),
                _ => {}
            }
        }
    }
}

struct Task {
    gate: Arc<Gate>,
    /// A machine is there as long as anything of it is.
    _machine: Option<Arc<Machine>>,
    future: BoxFuture<'static, ()>,
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        {
            let mut gate = self.gate.0.lock();
            match gate.0 {
                Stance::Running => {}
                Stance::Dead => return Poll::Ready(()),
                Stance::Frozen => {
                    gate.1.push(context.waker().clone());
                    return Poll::Pending;
                }
            }
        }
        self.future.as_mut().poll(context)
    }
}
