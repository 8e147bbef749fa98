use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::task::Wake;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use crate::session::Instant;

/// Used on platforms where the sum would overflow.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The clock of a tunnel's driver and all of its handles.
///
/// It must not go backwards. Its origin is arbitrary: only differences matter.
///
/// ```
/// use kohakuriver_tunnel::mux::Clock;
/// use kohakuriver_tunnel::session::Instant;
///
/// # fn performance_now() -> f64 { 12.5 }
/// /// Milliseconds since the page was loaded, as a browser's `performance.now()` counts.
/// #[derive(Debug)]
/// struct PageClock;
///
/// impl Clock for PageClock {
///     fn now(&self) -> Instant {
///         Instant::from_micros((performance_now() * 1000.0) as u64)
///     }
/// }
/// assert_eq!(PageClock.now().as_micros(), 12_500);
/// ```
pub trait Clock: fmt::Debug + Send + Sync {
    /// The current time.
    fn now(&self) -> Instant;
}

/// What the driver needs of a runtime: a clock, and a wake-up at a given time.
///
/// [`TokioTimer`] is tokio's. For another runtime, or in a browser, write a few lines:
///
/// ```
/// use std::pin::Pin;
/// use std::sync::Arc;
/// use std::task::{Context, Poll};
///
/// use kohakuriver_tunnel::mux::{Clock, SystemClock, Timer};
/// use kohakuriver_tunnel::session::Instant;
/// # /// As that of `async-io`.
/// # struct Sleep(std::time::Instant);
/// # impl Sleep {
/// #     fn set_at(&mut self, at: std::time::Instant) { self.0 = at; }
/// # }
/// # impl Future for Sleep {
/// #     type Output = std::time::Instant;
/// #     fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::time::Instant> {
/// #         Poll::Ready(self.0)
/// #     }
/// # }
///
/// struct MyTimer {
///     clock: SystemClock,
///     sleep: Sleep, // of the runtime
/// }
///
/// impl Timer for MyTimer {
///     fn clock(&mut self) -> Arc<dyn Clock> {
///         Arc::new(self.clock)
///     }
///
///     fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
///         self.sleep.set_at(self.clock.at(deadline));
///         Pin::new(&mut self.sleep).poll(cx).map(|_| ())
///     }
/// }
/// ```
pub trait Timer: Unpin {
    /// The clock of the deadlines. Every call returns a clock with the same time.
    fn clock(&mut self) -> Arc<dyn Clock>;

    /// Ready when `deadline` has passed; otherwise wakes the task then. Replaces an earlier
    /// deadline. The same deadline may be asked for again after it was ready: a timer may be early.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()>;
}

/// The operating system's clock, for the [`Timer`] of a runtime without its own clock.
///
/// Not for `wasm32-unknown-unknown`, where the standard library has no clock and
/// [`start`](Self::start) panics.
///
/// ```
/// use kohakuriver_tunnel::mux::{Clock, SystemClock};
///
/// let clock = SystemClock::start();
/// let now = clock.now();
/// assert!(clock.at(now) <= std::time::Instant::now());
/// ```
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    origin: std::time::Instant,
}

impl SystemClock {
    /// A clock whose current time is zero.
    #[must_use]
    pub fn start() -> Self {
        let origin = std::time::Instant::now();
        Self { origin }
    }

    /// Converts a time of this clock to the standard library's.
    #[must_use]
    pub fn at(&self, instant: Instant) -> std::time::Instant {
        let since = instant - Instant::default();
        let far = || self.origin + FAR;
        self.origin.checked_add(since).unwrap_or_else(far)
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::default() + self.origin.elapsed()
    }
}

/// tokio's timer, the default of [`builder`](super::builder).
///
/// The driver needs a runtime with the time driver (`enable_time`). A paused clock
/// (`tokio::time::pause`) pauses the tunnel too.
///
/// ```
/// use std::time::Duration;
///
/// use kohakuriver_tunnel::mux::{self, TunnelError};
/// use kohakuriver_tunnel::transport::Plain;
///
/// #[tokio::main(flavor = "current_thread", start_paused = true)]
/// async fn main() {
///     let (socket, _silent) = tokio::io::duplex(64);
///     let (_mux, driver) = mux::builder().opener(mux::length_prefixed(socket), Plain);
///     // Half a minute, which takes no time.
///     assert_eq!(driver.await, Err(TunnelError::PeerDead));
/// }
/// ```
#[derive(Debug, Default)]
pub struct TokioTimer {
    clock: Option<TokioClock>,
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    armed: Option<Instant>,
    alarm: Option<Arc<Alarm>>,
}

/// Wakes the task of a timer. Until then nothing has changed, and the timer need not be polled: it
/// also wakes the task if it refuses a poll, so that other tasks run first.
#[derive(Debug)]
struct Alarm {
    task: Waker,
    has_rung: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct TokioClock {
    origin: tokio::time::Instant,
}

impl TokioTimer {
    /// Initialized late, because some targets have no tokio time.
    fn started(&mut self) -> TokioClock {
        *self.clock.get_or_insert_with(|| TokioClock {
            origin: tokio::time::Instant::now(),
        })
    }
}

/// A timer of the same clock without a deadline.
impl Clone for TokioTimer {
    fn clone(&self) -> Self {
        Self {
            clock: self.clock,
            ..Self::default()
        }
    }
}

impl Timer for TokioTimer {
    fn clock(&mut self) -> Arc<dyn Clock> {
        Arc::new(self.started())
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let is_set = self.alarm.as_ref().is_some_and(|alarm| alarm.is_set(cx));
        if is_set && self.armed == Some(deadline) {
            return Poll::Pending;
        }
        let origin = self.started().origin;
        let since = deadline - Instant::default();
        let at = origin.checked_add(since).unwrap_or_else(|| origin + FAR);
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if self.armed != Some(deadline) {
            sleep.as_mut().reset(at);
            self.armed = Some(deadline);
        }
        let known = self.alarm.take().filter(|alarm| alarm.is_for(cx));
        let alarm = known.unwrap_or_else(|| Alarm::of(cx));
        let waker = Waker::from(Arc::clone(&alarm));
        alarm.has_rung.store(false, Ordering::Release);
        let elapsed = sleep.as_mut().poll(&mut Context::from_waker(&waker));
        self.alarm = Some(alarm).filter(|_| elapsed.is_pending());
        elapsed
    }
}

impl Alarm {
    fn of(cx: &Context<'_>) -> Arc<Self> {
        Arc::new(Self {
            task: cx.waker().clone(),
            has_rung: AtomicBool::new(false),
        })
    }

    fn is_for(&self, cx: &Context<'_>) -> bool {
        self.task.will_wake(cx.waker())
    }

    /// Whether the task still waits for it.
    fn is_set(&self, cx: &Context<'_>) -> bool {
        !self.has_rung.load(Ordering::Acquire) && self.is_for(cx)
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_rung.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Instant {
        Instant::default() + self.origin.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use core::future::poll_fn;

    use tokio::task::coop;

    use super::*;

    /// tokio refuses to poll a timer in a task that has done much, and then does not set it.
    #[tokio::test(start_paused = true)]
    async fn a_timer_whose_first_poll_was_refused_fires() {
        let mut timer = TokioTimer::default();
        let deadline = timer.clock().now() + Duration::from_secs(1);
        let mut polls = 0;
        let fires = poll_fn(|cx| {
            polls += 1;
            let refuses = polls == 1;
            while refuses && coop::has_budget_remaining() {
                let consumed = Box::pin(coop::consume_budget()).as_mut().poll(cx);
                assert!(consumed.is_ready());
            }
            timer.poll_deadline(cx, deadline)
        });
        let limit = Duration::from_secs(2);
        tokio::time::timeout(limit, fires).await.unwrap();
        assert_eq!(polls, 3);
    }
}
