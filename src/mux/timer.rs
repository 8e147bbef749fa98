use alloc::boxed::Box;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::time::Instant;

/// The one thing the driver needs of a runtime.
pub trait Timer: Unpin {
    /// Wakes the task when `deadline` has passed, if it has not. Replaces what was asked before.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()>;

    /// The current time, on the clock the deadlines are of.
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// tokio's clock. Needs its time driver.
#[derive(Debug, Default)]
pub struct TokioTimer {
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    armed: Option<Instant>,
}

impl Timer for TokioTimer {
    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let at = tokio::time::Instant::from_std(deadline);
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if self.armed != Some(deadline) {
            sleep.as_mut().reset(at);
            self.armed = Some(deadline);
        }
        sleep.as_mut().poll(cx)
    }

    /// tokio's, so that a paused clock is the tunnel's too.
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}
