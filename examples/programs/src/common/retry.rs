//! When to retry: connecting, and opening something while a tunnel is being replaced.
//!
//! All clients lose a server at the same moment. The first wait is drawn uniformly from a window
//! whose length depends on their number. Each later wait is drawn from a range that is a multiple
//! of the one before, up to a maximum. A server that only restarts therefore has its clients back
//! at once. After a longer outage they come back spread over time, whenever the server returns.

use std::time::Duration;

use kohakuriver_tunnel::mux::Dial;
use kohakuriver_tunnel::session::OpenError;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// The first attempt comes within this if the clients are few.
const FIRST_WITHIN: Duration = Duration::from_millis(500);

/// About as many connections as a server gets in a second. One thread handles a few times as many
/// with TLS.
const CONNECTIONS_PER_SECOND: u32 = 500;

/// More clients than any server has. A larger number from a server is not believed.
const CLIENTS_MAX: u32 = 100_000;

/// Mean wait of a client that another one has replaced, or that is refused for a lasting reason:
/// the first time, and at most. Each time somebody should look at the log.
const LONG_WAIT: Duration = Duration::from_secs(60);
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// How soon to check for the successor of a tunnel that has ended.
const SUCCESSOR_AFTER: Duration = Duration::from_millis(20);

/// Fewest attempts while a tunnel is kept.
const ATTEMPTS_WITHIN_KEEP: u32 = 16;

/// The waits of one client.
#[derive(Debug, Clone)]
pub struct Retry {
    /// The ratio of one range to the one before.
    growth: u32,
    /// Where a range begins, as a fraction of `last`. It is as long as `last`.
    least: f64,
    /// Sets the last range, unless the waits start over.
    last: Option<Duration>,
    /// Number of clients of the server.
    clients: u32,
    /// The next long wait.
    long: Duration,
    /// The end of a wait after which no attempt was made yet.
    due: Option<Instant>,
}

impl Retry {
    /// For an agent: give or take half of a mean. This spreads even few agents over seconds once
    /// the runner has been away for seconds.
    pub fn of_agent() -> Self {
        Self::new(3, 0.5)
    }

    /// For a local client, which somebody waits for: full jitter (PROTOCOL.md section 4.1).
    pub fn of_client() -> Self {
        Self::new(2, 0.0)
    }

    fn new(growth: u32, least: f64) -> Self {
        Self {
            growth,
            least,
            last: None,
            clients: 1,
            long: LONG_WAIT,
            due: None,
        }
    }

    /// The server accepted the client, and may have said how many it has.
    ///
    /// The first clients of a restarted server are told a small number, so they keep half of the
    /// number before.
    pub fn connected(&mut self, clients: Option<u32>) {
        let told = clients.unwrap_or(1).clamp(1, CLIENTS_MAX);
        self.clients = told.max(self.clients / 2);
    }

    /// The connection was stable, so the waits start over.
    pub fn held(&mut self) {
        self.last = None;
        self.long = LONG_WAIT;
    }

    /// The wait before the next attempt. The ranges grow to `longest`: a client waits at most that
    /// long, an agent half of it longer.
    pub fn wait(&mut self, longest: Duration) -> Duration {
        self.wait_within(longest, Duration::MAX)
    }

    /// As [`wait`](Self::wait), from a first range of at most `most`, however many clients there
    /// are.
    fn wait_within(&mut self, longest: Duration, most: Duration) -> Duration {
        let share = fastrand::f64();
        let window = Duration::from_secs(1) * self.clients / CONNECTIONS_PER_SECOND;
        let window = window.max(FIRST_WITHIN.min(longest)).min(most);
        let Some(last) = self.last else {
            self.last = Some(window);
            return window.mul_f64(share);
        };
        let next = last.saturating_mul(self.growth).min(longest.max(window));
        self.last = Some(next);
        next.mul_f64(self.least + share)
    }

    /// When the next attempt is due, after a [`wait`](Self::wait) from a first range of at most
    /// `most`. The same time until there was an [`attempt`](Self::attempt): the tunnel for which it
    /// was to be may be over before.
    pub fn due(&mut self, longest: Duration, most: Duration) -> Instant {
        match self.due {
            Some(due) => due,
            None => {
                let wait = self.wait_within(longest, most);
                *self.due.insert(Instant::now() + wait)
            }
        }
    }

    /// There is an attempt now.
    pub fn attempt(&mut self) {
        self.due = None;
    }

    /// The wait for a place that another client has taken, or until a lasting refusal may be over.
    pub fn wait_long(&mut self) -> Duration {
        let wait = self.long;
        self.long = wait.saturating_mul(2).min(LONGEST_WAIT);
        wait.mul_f64(0.9 + fastrand::f64() / 5.0)
    }
}

/// Longest wait between two attempts while connections wait for the next WebSocket: enough attempts
/// fit into the time for which they are kept.
pub fn longest_wait(dial: Dial) -> Duration {
    dial.keep / ATTEMPTS_WITHIN_KEEP
}

/// Waits a moment before an attempt for a tunnel that still has its WebSocket, since many clients
/// may have the same doubt. A machine that has woken up, which `woken` tells, is alone with it.
pub async fn pause_in_doubt(woken: &mut watch::Receiver<()>) {
    let wait = FIRST_WITHIN.mul_f64(fastrand::f64());
    let _ = timeout(wait, woken.changed()).await;
}

/// Waits a moment after nothing could be opened because the tunnel has just ended: its successor
/// may be connecting.
///
/// # Errors
/// The error, if it has another reason or the deadline has passed.
pub async fn await_successor(error: OpenError, deadline: Instant) -> Result<(), OpenError> {
    match error {
        OpenError::Closed | OpenError::Draining if Instant::now() < deadline => {
            sleep(SUCCESSOR_AFTER).await;
            Ok(())
        }
        error => Err(error),
    }
}
