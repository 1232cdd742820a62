//! A machine beside the simulated store, with that one's clock and without chance.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::cluster::Cluster;
use crate::{log::BoxFuture, outside::Simulated};

pub(crate) struct Still {
    cluster: Arc<Cluster>,
    next: AtomicU64,
    behind: AtomicU64,
}

impl Still {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Arc<Still> {
        Arc::new(Still { cluster, next: AtomicU64::new(100), behind: AtomicU64::new(0) })
    }

    /// Its clock is so many milliseconds behind from now on.
    pub(crate) fn fall_behind(&self, millis: u64) {
        self.behind.store(millis, Ordering::Relaxed);
    }
}

impl Simulated for Still {
    fn wall(&self) -> u64 {
        self.cluster.wall() - self.behind.load(Ordering::Relaxed)
    }

    fn random(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }
}
