//! When to try again: to connect, and to open something while a tunnel is being replaced.
//!
//! All clients of a server lose it in the same instant. The first wait is drawn evenly over a window
//! that is as long as their number demands, and short where they are few. Each later wait is a
//! multiple of the one before on average, up to a longest one, give or take half of it. So a server
//! that just restarts has its clients back at once. One that was away for longer has them spread,
//! whenever it comes back.

use std::time::Duration;

use kohakuriver_tunnel::session::OpenError;
use tokio::time::{Instant, sleep};

/// The first try comes within this where the clients are few.
const FIRST_WITHIN: Duration = Duration::from_millis(500);

/// About as many connections as a server sees in one second: a few times this is what one thread
/// does with TLS.
const CONNECTIONS_PER_SECOND: u32 = 500;

/// More clients than any server has. What a server says beyond that is not believed.
const CLIENTS_MAX: u32 = 100_000;

/// How long a client whose place was taken by another waits on average, the first time and at most.
/// It only asks whether the place is free by then, but each time somebody should look at the log.
const REPLACED_WAIT: Duration = Duration::from_secs(60);
const REPLACED_LONGEST: Duration = Duration::from_secs(300);

/// How soon to look for the successor of a tunnel that has ended.
const SUCCESSOR_AFTER: Duration = Duration::from_millis(20);

/// The waits of one client.
#[derive(Debug, Clone)]
pub struct Retry {
    /// How many times as long as the one before each wait is.
    growth: u32,
    /// The last wait on average, since the server was there for a while.
    last: Option<Duration>,
    /// How many clients the server has.
    clients: u32,
    replaced: Duration,
}

impl Retry {
    /// Of an agent: fast enough to spread few agents over seconds once the runner has been away for
    /// seconds.
    pub fn of_agent() -> Self {
        Self::growing_by(3)
    }

    /// Of a local client, for which somebody waits.
    pub fn of_client() -> Self {
        Self::growing_by(2)
    }

    fn growing_by(growth: u32) -> Self {
        Self {
            growth,
            last: None,
            clients: 1,
            replaced: REPLACED_WAIT,
        }
    }

    /// The server took the client; `clients` is how many it says it has.
    ///
    /// The first to come back to a restarted server are told of few. They remember half of what
    /// they were told before.
    pub fn connected(&mut self, clients: Option<u32>) {
        let told = clients.unwrap_or(1).clamp(1, CLIENTS_MAX);
        self.clients = told.max(self.clients / 2);
    }

    /// The connection held: the waits start over.
    pub fn held(&mut self) {
        self.last = None;
        self.replaced = REPLACED_WAIT;
    }

    /// How long to wait for a server that is away: on average `longest` at most.
    pub fn wait(&mut self, longest: Duration) -> Duration {
        let share = fastrand::f64();
        let window = Duration::from_secs(1) * self.clients / CONNECTIONS_PER_SECOND;
        let window = window.max(FIRST_WITHIN.min(longest));
        let Some(last) = self.last else {
            self.last = Some(window);
            return window.mul_f64(share);
        };
        let next = last.saturating_mul(self.growth).min(longest.max(window));
        self.last = Some(next);
        next.mul_f64(0.5 + share)
    }

    /// How long to wait for the place that another client has taken.
    pub fn wait_for_place(&mut self) -> Duration {
        let wait = self.replaced;
        self.replaced = wait.saturating_mul(2).min(REPLACED_LONGEST);
        wait.mul_f64(0.9 + fastrand::f64() / 5.0)
    }
}

/// Waits a moment where a tunnel has just ended and its successor may be on its way.
///
/// # Errors
/// Nothing could be opened for another reason, or it is too late.
pub async fn await_successor(error: OpenError, deadline: Instant) -> Result<(), OpenError> {
    match error {
        OpenError::Closed | OpenError::Draining if Instant::now() < deadline => {
            sleep(SUCCESSOR_AFTER).await;
            Ok(())
        }
        error => Err(error),
    }
}
