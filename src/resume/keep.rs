use core::time::Duration;

use super::Config;
use crate::session::Instant;

/// How long the tunnel may still be without a transport.
#[derive(Debug)]
pub(super) struct Keep {
    /// When the last transport was lost.
    since: Option<Instant>,
    /// The first transport on which nothing was delivered of what waited: when it was opened, and
    /// how many messages the peer had received then.
    fruitless: Option<(Instant, u64)>,
    /// The peer's and this end's, whichever is shorter.
    keep: Duration,
    own: Duration,
    idle_keep: Duration,
}

impl Keep {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            since: None,
            fruitless: None,
            keep: config.keep,
            own: config.keep,
            idle_keep: config.idle_keep,
        }
    }

    /// The ends agreed on this many seconds.
    pub(super) fn agree(&mut self, seconds: u32) {
        self.keep = self.own.min(Duration::from_secs(u64::from(seconds)));
    }

    pub(super) const fn agreed(&self) -> Duration {
        self.keep
    }

    /// The transport is lost. A transport that was never opened changes nothing.
    pub(super) fn start(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// There is a transport. Returns for how long there was none.
    pub(super) fn stop(&mut self, now: Instant) -> Duration {
        self.since
            .take()
            .map_or(Duration::ZERO, |since| now - since)
    }

    /// The tunnel goes on. `received`: how many messages the peer has, if others wait for it.
    /// Returns false if nothing has reached it for too long, however many transports there were: a
    /// message that breaks every transport would break them for ever.
    pub(super) fn is_fruitful(&mut self, now: Instant, received: Option<u64>) -> bool {
        let before = self
            .fruitless
            .filter(|(_, before)| Some(*before) == received);
        self.fruitless = before.or(received.map(|received| (now, received)));
        before.is_none_or(|(since, _)| now - since < self.keep)
    }

    pub(super) fn over_at(&self, idle: bool) -> Option<Instant> {
        let keep = match idle {
            true => self.keep.min(self.idle_keep),
            false => self.keep,
        };
        self.since.map(|since| since + keep)
    }
}
