//! When the disk is full or fails: owns how the store notices, says so, and finds its way back.
//!
//! After a failed write the database takes no more. It stays open for readers until something can be written
//! again; then it is closed, its journals are copied (see [`super::db::DataDir::rewrite_journals`]) and it is
//! opened anew. What its journal kept of the batch that failed is then found by its offset, and not repeated.

use std::time::{Duration, Instant};

use fjall::PersistMode;

use super::{
    db::{Cause, Db, guarded},
    store::Store,
};
use crate::log::{Health, LogError};

const TRY_EVERY: Duration = Duration::from_secs(1);
const SAY_EVERY: Duration = Duration::from_secs(60);

impl Store {
    /// Returns true when appends work again, false when the store is to close first.
    pub(super) fn recover(&mut self, cause: Cause) -> bool {
        let since = Instant::now();
        let mut said = since;
        let mut text = self.failing(self.dir.probe().err().unwrap_or(cause));
        tracing::error!("{text}");
        loop {
            self.shared.health.send_if_modified(|health| {
                let now = Health::Failing(text.clone());
                let changed = *health != now;
                *health = now;
                changed
            });
            if said.elapsed() >= SAY_EVERY {
                said = Instant::now();
                tracing::error!("since {} s: {text}", since.elapsed().as_secs());
            }
            let (ensures, closing) = self.shared.queue.pause(TRY_EVERY);
            for ensure in ensures {
                // Who asked may have given up waiting.
                let _ = ensure.reply.send(Err(LogError::Store(text.clone())));
            }
            if closing {
                tracing::error!("the log is closed while it cannot write: what waits is not stored");
                return false;
            }
            match self.reopen() {
                Ok(()) => break,
                Err(cause) => text = self.failing(cause),
            }
        }
        self.shared.health.send_replace(Health::Working);
        tracing::info!(
            "the log in {} goes on after {} s",
            self.dir.path().display(),
            since.elapsed().as_secs()
        );
        true
    }

    fn reopen(&mut self) -> Result<(), Cause> {
        self.dir.probe()?;
        self.close_db();
        self.dir.rewrite_journals()?;
        let db = Db::open(&self.dir).map_err(|e| Cause(e.to_string()))?;
        guarded(|| {
            db.meta.insert("reopened", self.now().to_be_bytes())?;
            db.database.persist(PersistMode::SyncAll)
        })?;
        self.adopt(db).map_err(|e| Cause(e.to_string()))
    }

    fn failing(&self, cause: Cause) -> String {
        format!(
            "the log cannot write to {}: {}; appends wait, and go on once there is free space on a working disk",
            self.dir.path().display(),
            cause.0
        )
    }
}
