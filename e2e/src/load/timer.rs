//! A timer that ends a wait for sockets to the microsecond, where epoll's own timeout counts milliseconds.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Of no connection.
const TOKEN: Token = Token(usize::MAX - 1);

/// Its event says nothing but that the wait is over, so it is never read.
pub(super) struct Timer(OwnedFd);

impl Timer {
    pub(super) fn new(registry: &Registry) -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        registry.register(&mut SourceFd(&fd.as_raw_fd()), TOKEN, Interest::READABLE)?;
        Ok(Self(fd))
    }

    /// Fires once after so long; zero: not at all.
    pub(super) fn set(&self, after: Duration) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: after.subsec_nanos().into(),
        };
        timerfd_settime(
            &self.0,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: zero, it_value: value },
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use mio::{Events, Poll};

    use super::*;

    #[test]
    fn a_wait_ends_with_the_timer_each_time_it_is_set() {
        let mut poll = Poll::new().unwrap();
        let timer = Timer::new(poll.registry()).unwrap();
        let mut events = Events::with_capacity(1);
        for micros in [300, 50, 2000] {
            let (begun, after) = (Instant::now(), Duration::from_micros(micros));
            timer.set(after).unwrap();
            poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
            assert_eq!(events.iter().map(|event| event.token()).collect::<Vec<_>>(), [TOKEN]);
            assert!(begun.elapsed() >= after, "{micros} µs");
        }
    }
}
