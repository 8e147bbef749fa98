//! When an agent tries again after it has lost its runner.
//!
//! All agents of a runner lose it in the same instant. The first wait is drawn evenly over a window
//! that is as long as their number demands, and short where they are few. Each later wait is three
//! times as long on average, up to a longest one, give or take half of it. So a runner that just
//! restarts has its agents back at once; and at whatever moment one is back that was away for
//! longer, its agents are spread.

use std::time::Duration;

/// The first try comes within this where the agents are few.
const FIRST_WITHIN: Duration = Duration::from_millis(500);

/// About as many registrations as a runner sees in one second: a few times this is what one thread
/// does with TLS.
const REGISTRATIONS_PER_SECOND: u32 = 500;

/// How much longer each wait is than the one before: fast enough to spread few agents over seconds
/// once the runner has been away for seconds.
const GROWTH: u32 = 3;

/// More agents than any runner has: what a runner says beyond that is not believed.
const AGENTS_MAX: u32 = 100_000;

/// How long an agent that was replaced by a newer one waits on average, the first time and at most.
/// It only asks whether the place is free by then, but each time somebody should look at the log.
const REPLACED_WAIT: Duration = Duration::from_secs(60);
const REPLACED_LONGEST: Duration = Duration::from_secs(300);

/// The waits of one agent.
#[derive(Debug, Clone)]
pub struct Retry {
    /// What the waits for a runner that stays away grow to.
    interval: Duration,
    /// The last of them, since the runner was there for a while.
    last: Option<Duration>,
    /// How many agents the runner has.
    agents: u32,
    replaced: Duration,
}

impl Retry {
    /// With twice this as the longest wait.
    pub fn new(delay: Duration) -> Self {
        Self {
            interval: delay.saturating_mul(2),
            last: None,
            agents: 1,
            replaced: REPLACED_WAIT,
        }
    }

    /// The runner took the agent; `agents` is how many it says it has.
    ///
    /// The first to come back to a restarted runner are told of few. They remember half of what
    /// they were told before.
    pub fn registered(&mut self, agents: Option<u32>) {
        let told = agents.unwrap_or(1).clamp(1, AGENTS_MAX);
        self.agents = told.max(self.agents / 2);
    }

    /// The registration held: the waits start over.
    pub fn held(&mut self) {
        self.last = None;
        self.replaced = REPLACED_WAIT;
    }

    /// How long to wait for a runner that is away.
    pub fn wait(&mut self) -> Duration {
        let share = fastrand::f64();
        let window = Duration::from_secs(1) * self.agents / REGISTRATIONS_PER_SECOND;
        let window = window.max(FIRST_WITHIN.min(self.interval));
        let Some(last) = self.last else {
            self.last = Some(window);
            return window.mul_f64(share);
        };
        let next = last.saturating_mul(GROWTH).min(self.interval.max(window));
        self.last = Some(next);
        next.mul_f64(0.5 + share)
    }

    /// How long to wait for the place that a newer agent has taken.
    pub fn wait_for_place(&mut self) -> Duration {
        let wait = self.replaced;
        self.replaced = wait.saturating_mul(2).min(REPLACED_LONGEST);
        wait.mul_f64(0.9 + fastrand::f64() / 5.0)
    }
}
