//! When to try again: exponential backoff with full jitter.
//!
//! Full jitter, so that a thousand clients of a server that restarts do not come back in one second.

use std::time::Duration;

/// Waits that grow from `first`, each drawn evenly from zero up.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(first: Duration) -> Self {
        let next = first;
        Self { first, next }
    }

    /// How long to wait before the next attempt: `cap` at most, which may differ from call to call.
    pub fn wait(&mut self, cap: Duration) -> Duration {
        let longest = self.next.min(cap);
        self.next = longest.saturating_mul(2);
        longest.mul_f64(fastrand::f64())
    }

    /// The connection held: the next failure starts over.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}
