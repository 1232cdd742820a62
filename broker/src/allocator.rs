//! The process's memory: how it is allotted, and how it goes back to the machine.
//!
//! What is freed must be seen to be free, for newcomers are refused while the process has too much. Each thread keeps what it
//! allotted, also when another thread has freed it, until it allots more of that size: so a thread that has nothing to do gives
//! all of that back.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// glibc's keeps what was freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// It takes a look at all that the thread has.
const EVERY: Duration = Duration::from_secs(2);

thread_local! {
    static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Gives back what is free of this thread's memory. For who is about to wait.
pub(crate) fn tidy() {
    if LAST.get().is_none_or(|last| last.elapsed() >= EVERY) {
        LAST.set(Some(Instant::now()));
        #[allow(unsafe_code, reason = "mimalloc has no other way to say so")]
        // SAFETY: it may be called at any time on any thread, and takes no pointer.
        unsafe {
            libmimalloc_sys::mi_collect(true);
        }
    }
}
