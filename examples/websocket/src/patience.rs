//! How long a message may be incomplete while memory is short: it waits for memory, and holds some.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep};

use crate::limits::{INCOMPLETE_MAX, LOOK_EVERY, MEMORY_RETRY};

#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// For how long the message has been incomplete while this end was reading.
    waited: Duration,
    /// The last look at the incomplete message.
    looked: Option<Instant>,
    next_look: Option<Pin<Box<Sleep>>>,
    retry: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// No message is incomplete.
    pub(crate) fn reset(&mut self) {
        self.waited = Duration::ZERO;
        self.looked = None;
    }

    /// Whether the message has been incomplete for too long.
    pub(crate) fn is_over(&mut self) -> bool {
        let now = Instant::now();
        if let Some(before) = self.looked.replace(now) {
            // The rest was a pause of this end, in which the message could not be completed.
            self.waited += (now - before).min(LOOK_EVERY);
        }
        self.waited >= INCOMPLETE_MAX
    }

    /// Has the task woken for the next look, if there is a clock.
    pub(crate) fn look_again(&mut self, cx: &mut Context<'_>) {
        if self.next_look.is_none() && Handle::try_current().is_ok() {
            self.next_look = Some(Box::pin(sleep(LOOK_EVERY)));
        }
        let Some(next) = &mut self.next_look else {
            return;
        };
        while next.as_mut().poll(cx).is_ready() {
            next.as_mut().reset(Instant::now() + LOOK_EVERY);
        }
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
