//! Waiting on conditions: never a bare sleep, always a limit, and a failure that says what was waited for.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long a story waits for what should come soon, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

const STEP: Duration = Duration::from_millis(10);

/// Asks `look` again and again until it gives something, and fails when `limit` has passed.
///
/// An error from `look` counts as "not yet" and is told when the limit has passed.
pub fn wait_until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = look();
        if let Ok(Some(found)) = last {
            return Ok(found);
        }
        if start.elapsed() >= limit {
            match last {
                Err(error) => bail!("waited {limit:?} for {what}: {error:#}"),
                Ok(_) => bail!("waited {limit:?} for {what} in vain"),
            }
        }
        sleep(STEP);
    }
}
