//! How long a message may be incomplete while memory is short: it waits for memory, and holds some.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep};

use crate::limits::{INCOMPLETE_MAX, MEMORY_RETRY};

#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// When the message was first found to be incomplete.
    since: Option<Instant>,
    retry: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// No message is incomplete.
    pub(crate) fn reset(&mut self) {
        self.since = None;
    }

    /// Whether the message has been incomplete for too long.
    pub(crate) fn is_over(&mut self) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        since.elapsed() >= INCOMPLETE_MAX
    }

    /// Waits before the next attempt to get memory. False if that took too long, or there is no
    /// clock to wait by.
    pub(crate) fn poll_retry(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.is_over() || Handle::try_current().is_err() {
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
