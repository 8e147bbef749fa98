//! What the user is told while tunnels of a command are down: one line when the first is lost, one
//! for each reason of a refusal, one when all are up again. However many ports there are.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Most reasons that are told in one outage: they are the other side's words.
const REASONS: usize = 16;

/// Shared by all tunnels of a command.
pub struct Outage {
    /// What they lead to.
    to: String,
    now: Mutex<Now>,
}

struct Now {
    /// Tunnels that are down.
    down: usize,
    since: Instant,
    /// Reasons told already.
    told: HashSet<String>,
}

impl Outage {
    pub fn new(to: String) -> Self {
        let now = Now {
            down: 0,
            since: Instant::now(),
            told: HashSet::new(),
        };
        let now = Mutex::new(now);
        Self { to, now }
    }

    /// A tunnel is lost.
    pub fn begins(&self, cause: &str) {
        let mut now = self.lock();
        now.down += 1;
        if now.down == 1 {
            now.since = Instant::now();
            now.told.clear();
            tracing::warn!("{cause}; reconnecting to {}", self.to);
        }
    }

    /// A tunnel is up again.
    pub fn ends(&self) {
        let mut now = self.lock();
        now.down = now.down.saturating_sub(1);
        if now.down == 0 {
            let away = now.since.elapsed().as_secs_f64();
            tracing::info!("reconnected to {} after {away:.1} s", self.to);
        }
    }

    /// Several tunnels are to take the place of one that is down.
    pub fn spreads(&self, tunnels: usize) {
        let mut now = self.lock();
        now.down = (now.down + tunnels).saturating_sub(1);
    }

    /// What stands in the way of a first session that is waited for.
    pub fn waits(&self, reason: &str) {
        if self.is_news(reason) {
            tracing::warn!("{reason}; waiting for {}", self.to);
        }
    }

    /// The other side is there and refuses.
    pub fn refused(&self, reason: &str) {
        if self.is_news(reason) {
            tracing::warn!("{reason}; still trying");
        }
    }

    fn is_news(&self, reason: &str) -> bool {
        let told = &mut self.lock().told;
        told.len() < REASONS && told.insert(reason.to_owned())
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
