use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Clock;
use crate::session::Instant;

/// The clocks of a tunnel: that of its timer, and that of its session, which can stop.
///
/// A session's times are about the peer. While no transport is attached, the peer cannot be heard,
/// so no time passes for the session. A tunnel that ends with its transport needs no second clock.
#[derive(Debug)]
pub(super) struct TunnelClock {
    timer: Arc<dyn Clock>,
    pauses: Option<Mutex<Pauses>>,
    /// It was stopped at least once. Until then both times are the same.
    was_stopped: AtomicBool,
}

/// The same moment by both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) session: Instant,
    pub(super) timer: Instant,
}

#[derive(Debug, Default)]
struct Pauses {
    /// Sum of those that are over.
    past: Duration,
    /// The session's time while it stands still.
    stopped_at: Option<Instant>,
}

impl TunnelClock {
    pub(super) const fn running(timer: Arc<dyn Clock>) -> Self {
        Self {
            timer,
            pauses: None,
            was_stopped: AtomicBool::new(false),
        }
    }

    pub(super) fn stoppable(timer: Arc<dyn Clock>) -> Self {
        Self {
            timer,
            pauses: Some(Mutex::default()),
            was_stopped: AtomicBool::new(false),
        }
    }

    /// The session's time.
    pub(super) fn now(&self) -> Instant {
        self.read().session
    }

    /// Both times.
    pub(super) fn read(&self) -> Now {
        self.at(self.timer.now())
    }

    /// Both times when it is `timer` by the timer's clock, not long ago.
    pub(super) fn at(&self, timer: Instant) -> Now {
        let session = match self.pauses() {
            None => timer,
            Some(pauses) => pauses.session_time(timer),
        };
        Now { session, timer }
    }

    /// The timer's time.
    pub(super) fn timer_now(&self) -> Instant {
        self.timer.now()
    }

    /// Converts the session's time to the timer's. `None` while the session's stands still.
    pub(super) fn timer_time(&self, at: Instant) -> Option<Instant> {
        let Some(pauses) = self.pauses() else {
            return Some(at);
        };
        pauses.stopped_at.is_none().then(|| at + pauses.past)
    }

    /// Stops the session's time. No effect if it stands still already.
    pub(super) fn stop(&self) {
        if let Some(pauses) = &self.pauses {
            let now = self.timer.now();
            let mut pauses = lock(pauses);
            pauses.stopped_at = Some(pauses.session_time(now));
            self.was_stopped.store(true, Ordering::Release);
        }
    }

    /// The session's time goes on from where it was stopped. No effect if it runs.
    pub(super) fn go_on(&self) {
        if let Some(pauses) = &self.pauses {
            let now = self.timer.now();
            let mut pauses = lock(pauses);
            if let Some(at) = pauses.stopped_at.take() {
                pauses.past = now - at;
            }
        }
    }

    /// The pauses, if there was one.
    #[inline]
    fn pauses(&self) -> Option<MutexGuard<'_, Pauses>> {
        let was_stopped = self.was_stopped.load(Ordering::Acquire);
        self.pauses.as_ref().filter(|_| was_stopped).map(lock)
    }
}

impl Pauses {
    fn session_time(&self, timer: Instant) -> Instant {
        let running = || Instant::default() + (timer - (Instant::default() + self.past));
        self.stopped_at.unwrap_or_else(running)
    }
}

fn lock(pauses: &Mutex<Pauses>) -> MutexGuard<'_, Pauses> {
    // No code panics under the lock.
    pauses.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Debug, Default)]
    struct Seconds(AtomicUsize);

    impl Clock for Seconds {
        fn now(&self) -> Instant {
            Instant::from_micros(self.0.load(Ordering::Relaxed) as u64 * 1_000_000)
        }
    }

    #[test]
    fn pauses_do_not_count() {
        let at = |seconds: u64| Instant::from_micros(seconds * 1_000_000);
        let timer = Arc::new(Seconds(AtomicUsize::new(1000)));
        let pass = |seconds| timer.0.fetch_add(seconds, Ordering::Relaxed);
        let clock = TunnelClock::stoppable(timer.clone());
        assert_eq!(clock.now(), at(1000));
        for (stopped, running) in [(5, 3), (0, 0), (7, 2)] {
            let began = clock.now();
            clock.stop();
            pass(stopped);
            clock.stop();
            assert_eq!((clock.now(), clock.timer_time(began)), (began, None));
            clock.go_on();
            clock.go_on();
            pass(running);
            assert_eq!(clock.now() - began, Duration::from_secs(running as u64));
            assert_eq!(clock.timer_time(clock.now()), Some(timer.now()));
        }
        assert_eq!((clock.timer_now(), clock.now()), (at(1017), at(1005)));
        let clock = TunnelClock::running(timer);
        clock.stop();
        assert_eq!(
            (clock.now(), clock.timer_time(at(9))),
            (at(1017), Some(at(9)))
        );
    }
}
