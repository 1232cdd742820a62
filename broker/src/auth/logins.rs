//! Logins whose passwords take time to check: where that is computed, how often, and in which order.
//!
//! Promises: it never runs on a connection's thread; a user's password is computed once, however many devices log in
//! with it and however often; as many hashes run at once as there are cores, so that they take that many times 19 MiB
//! (the memory of one hash as the operator makes them; 64 MiB at most) and no more. A user has one login in the queue
//! for the cores at a time and few behind it: who tries passwords of one user delays a login of another by one hash,
//! and devices of that user whose password is known come in all the same. The queue is bounded: beyond it, and for
//! whom it took too long, the answer is Server busy.

use std::{collections::HashMap, sync::Arc, thread::available_parallelism, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout_at},
};

use super::{
    Access, Checked, LoginError, User,
    password::{Fingerprint, Key, Slow},
};
use crate::{counters::Counter, outside::Outside};

/// How long a device waits for its password to be checked.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);
/// Different passwords of one user that wait at once. A user has two at most, while one is replaced.
const A_USER: usize = 8;
/// Passwords that wait at once for each core: what can be computed in the time that devices wait.
const A_CORE: usize = 256;
/// The document may change under a login; one that sees it change this often is told to come again.
const TRIES: usize = 3;

pub(crate) struct Logins {
    key: Key,
    shared: Arc<Shared>,
}

/// What a device gave; none: neither name nor password.
pub(crate) type Credentials<'a> = Option<(&'a str, &'a [u8])>;

struct Shared {
    outside: Outside,
    cores: Arc<Semaphore>,
    capacity: usize,
    lines: Mutex<Lines>,
    /// Hashes computed.
    hashes: Counter,
}

/// All that waits and runs.
#[derive(Default)]
struct Lines {
    users: HashMap<Box<str>, Line>,
    flights: usize,
    next_number: u64,
}

/// The passwords of one user that wait for an answer.
struct Line {
    turn: Arc<Semaphore>,
    flights: Vec<Flight>,
}

/// One password that is being checked, for all that gave it.
struct Flight {
    number: u64,
    fingerprint: Fingerprint,
    hashes: Vec<Arc<Slow>>,
    /// Gets the answer; dropped without one when the computation failed.
    answer: watch::Sender<Option<bool>>,
}

impl Logins {
    pub(crate) fn new(outside: Outside) -> Result<Logins, getrandom::Error> {
        Self::with_cores(outside, available_parallelism().map_or(1, usize::from))
    }

    pub(super) fn with_cores(outside: Outside, cores: usize) -> Result<Logins, getrandom::Error> {
        let shared = Shared {
            outside,
            cores: Arc::new(Semaphore::new(cores)),
            capacity: cores * A_CORE,
            lines: Mutex::default(),
            hashes: Counter::default(),
        };
        Ok(Logins { key: Key::random()?, shared: Arc::new(shared) })
    }

    /// How many hashes were computed.
    pub(crate) fn hashes(&self) -> u64 {
        self.shared.hashes.get()
    }

    /// Who a connection is, and under which settings: those in force when it became known.
    pub(crate) async fn login<S: AsRef<Access>>(
        &self,
        current: impl Fn() -> Arc<S>,
        credentials: Credentials<'_>,
        client_id: &str,
    ) -> Result<(Arc<S>, Arc<User>), LoginError> {
        let deadline = Instant::now() + PATIENCE;
        let fingerprint = credentials.map(|(name, password)| self.key.fingerprint(name, password));
        for _ in 0..TRIES {
            let settings = current();
            let given = credentials.zip(fingerprint.as_ref());
            let given = given.map(|((name, password), fingerprint)| (name, password, fingerprint));
            let hashes = match settings.as_ref().as_ref().check(given, client_id)? {
                Checked::User(user) => return Ok((settings, user)),
                Checked::Unknown(hashes) => hashes,
            };
            let Some((name, password, fingerprint)) = given else { return Err(LoginError::NoCredentials) };
            let mut answer = self.shared.board(name, password, *fingerprint, hashes)?;
            let answer = timeout_at(deadline, answer.wait_for(Option::is_some))
                .await
                .map_err(|_| LoginError::TooSlow)?
                .map_err(|_| LoginError::Busy)?;
            if *answer == Some(false) {
                return Err(LoginError::BadCredentials);
            }
            // It was right: whether it still is, the settings of now say.
        }
        Err(LoginError::Busy)
    }
}

impl Shared {
    /// Joins the flight that finds out about this password, or begins it.
    fn board(
        self: &Arc<Self>,
        name: &str,
        password: &[u8],
        fingerprint: Fingerprint,
        hashes: Vec<Arc<Slow>>,
    ) -> Result<watch::Receiver<Option<bool>>, LoginError> {
        let mut lines = self.lines.lock();
        if let Some(line) = lines.users.get(name) {
            if let Some(flight) = line.flights.iter().find(|flight| flight.is(&fingerprint, &hashes)) {
                return Ok(flight.answer.subscribe());
            }
            if line.flights.len() >= A_USER {
                return Err(LoginError::Busy);
            }
        }
        if lines.flights >= self.capacity {
            return Err(LoginError::Busy);
        }
        lines.flights += 1;
        lines.next_number += 1;
        let number = lines.next_number;
        let line = lines
            .users
            .entry(name.into())
            .or_insert_with(|| Line { turn: Arc::new(Semaphore::new(1)), flights: Vec::new() });
        let (answer, answered) = watch::channel(None);
        line.flights.push(Flight { number, fingerprint, hashes: hashes.clone(), answer: answer.clone() });
        let seat = Seat { shared: self.clone(), name: name.into(), number };
        let work = Work { password: password.to_vec(), fingerprint, hashes };
        self.outside.spawn(seat.fly(line.turn.clone(), work, answer));
        Ok(answered)
    }
}

impl Flight {
    fn is(&self, fingerprint: &Fingerprint, hashes: &[Arc<Slow>]) -> bool {
        let same = |(a, b): (&Arc<Slow>, &Arc<Slow>)| Arc::ptr_eq(a, b);
        self.fingerprint == *fingerprint
            && self.hashes.len() == hashes.len()
            && self.hashes.iter().zip(hashes).all(same)
    }
}

/// A flight's place in its line; given up when dropped.
struct Seat {
    shared: Arc<Shared>,
    name: Box<str>,
    number: u64,
}

/// What is to be found out.
struct Work {
    password: Vec<u8>,
    fingerprint: Fingerprint,
    hashes: Vec<Arc<Slow>>,
}

impl Seat {
    /// Waits for the user's turn, then for a core; both are first come, first served.
    async fn fly(self, turn: Arc<Semaphore>, work: Work, answer: watch::Sender<Option<bool>>) {
        let Ok(_turn) = turn.acquire().await else { return };
        let Ok(core) = self.shared.cores.clone().acquire_owned().await else { return };
        if self.leave_if(|| answer.receiver_count() == 0) {
            // All have waited too long and are gone.
            return;
        }
        let shared = self.shared.clone();
        let computed = tokio::task::spawn_blocking(move || {
            // Held until the memory is given back, whatever becomes of the task that waits.
            let _core = core;
            work.run(&shared.hashes)
        });
        match computed.await {
            Ok(Ok(right)) => {
                answer.send_replace(Some(right));
            }
            Ok(Err(error)) => tracing::error!(user = &*self.name, "a password can't be checked: {error}"),
            Err(error) => tracing::error!(user = &*self.name, "the check of a password broke off: {error}"),
        }
    }

    /// Nobody joins a flight that has left.
    fn leave_if(&self, condition: impl FnOnce() -> bool) -> bool {
        let mut lines = self.shared.lines.lock();
        let leaves = condition();
        if leaves {
            lines.remove(&self.name, self.number);
        }
        leaves
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave_if(|| true);
    }
}

impl Lines {
    fn remove(&mut self, name: &str, number: u64) {
        let Some(line) = self.users.get_mut(name) else { return };
        if let Some(index) = line.flights.iter().position(|flight| flight.number == number) {
            line.flights.swap_remove(index);
            self.flights -= 1;
        }
        if line.flights.is_empty() {
            self.users.remove(name);
        }
    }
}

impl Work {
    /// Whether the password is one of them. Blocks.
    fn run(self, computed: &Counter) -> Result<bool, argon2::Error> {
        for hash in &self.hashes {
            let right = match hash.knows(&self.fingerprint) {
                Some(known) => known,
                None => {
                    computed.add(1);
                    hash.compute(&self.password, &self.fingerprint)?
                }
            };
            if right {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
