//! Those who wait for what is done for all of them at once: who comes while it is under way is in the next round.

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::log::{Completion, Outcome};

/// See the module. One task does it.
#[derive(Default)]
pub(super) struct Rounds {
    waiting: Mutex<Vec<Completion>>,
    asked: Notify,
}

impl Rounds {
    /// `done` is told at the end of the next round.
    pub(super) fn join(&self, done: Completion) {
        self.waiting.lock().push(done);
        self.asked.notify_one();
    }

    /// The next round is asked for by somebody who does not wait.
    pub(super) fn ask(&self) {
        self.asked.notify_one();
    }

    /// Those of the next round, once it is asked for. It may have been for those of the last one: then there is nobody.
    pub(super) async fn next(&self) -> Vec<Completion> {
        self.asked.notified().await;
        std::mem::take(&mut *self.waiting.lock())
    }
}

/// A round is over.
pub(super) fn tell(waiting: Vec<Completion>) {
    waiting.into_iter().for_each(|done| done.sink.appended(done.token, Outcome::Durable(0)));
}
