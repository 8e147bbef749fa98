//! How long a message may be incomplete while memory is short: it waits for memory, and holds some.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep};

use crate::limits::{INCOMPLETE_MAX, LOOK_EVERY, MEMORY_RETRY, STEP_MAX, WAIT_MAX};

#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// When the message was first found to be incomplete.
    since: Option<Instant>,
    /// When that was found last.
    looked: Option<Instant>,
    /// Since the first time, in which this end did not look, and after which bytes of the peer were
    /// read.
    unread: Duration,
    /// The same, after which none were read yet: the peer was silent, or there is no memory.
    pending: Duration,
    /// Bytes came since the last look.
    progress: bool,
    retry: Option<Pin<Box<Sleep>>>,
    /// Kept from message to message: a timer for each would cost more than one that fires in vain.
    next_look: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// No message is incomplete.
    pub(crate) fn reset(&mut self) {
        self.since = None;
        self.looked = None;
        self.unread = Duration::ZERO;
        self.pending = Duration::ZERO;
        self.progress = false;
    }

    /// Bytes came.
    pub(crate) fn progressed(&mut self) {
        self.progress = true;
    }

    /// Whether the message has been incomplete for too long. The task is woken to look again.
    pub(crate) fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if Handle::try_current().is_ok() {
            let next_look = self
                .next_look
                .get_or_insert_with(|| Box::pin(sleep(LOOK_EVERY)));
            while next_look.as_mut().poll(cx).is_ready() {
                next_look.as_mut().reset(Instant::now() + LOOK_EVERY);
            }
        }
        self.look().saturating_sub(self.unread) >= INCOMPLETE_MAX
    }

    /// For how long the message has been incomplete.
    fn look(&mut self) -> Duration {
        let now = Instant::now();
        let gap = now - self.looked.replace(now).unwrap_or(now);
        self.pending += gap.saturating_sub(STEP_MAX);
        if mem::take(&mut self.progress) {
            self.unread += mem::take(&mut self.pending);
        }
        now - *self.since.get_or_insert(now)
    }

    /// Waits before the next attempt to get memory. False if that took too long, or there is no
    /// clock to wait by.
    pub(crate) fn poll_retry(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let waited = self.look().saturating_sub(self.unread + self.pending);
        if waited >= WAIT_MAX || Handle::try_current().is_err() {
            return Poll::Ready(false);
        }
        let retry = self
            .retry
            .get_or_insert_with(|| Box::pin(sleep(MEMORY_RETRY)));
        ready!(retry.as_mut().poll(cx));
        self.retry = None;
        Poll::Ready(true)
    }
}
