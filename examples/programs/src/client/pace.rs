//! When to try to reach the host again.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::common::retry::{self, Retry};

/// Longest wait between two attempts to reach the host.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The same after a refusal that an immediate retry will not change, such as an unknown task.
const LONGEST_REFUSED: Duration = Duration::from_secs(30);

/// When an application wants the tunnel, the next attempt comes within this.
const HURRIED: Duration = Duration::from_secs(1);

/// But a host that refuses is asked no more often than this.
const HURRIED_REFUSED: Duration = Duration::from_secs(5);

/// The waits of one tunnel between its attempts.
#[derive(Clone)]
pub struct Pace {
    retry: Retry,
    wanted: watch::Receiver<()>,
    woken: watch::Receiver<()>,
}

impl Pace {
    /// `wanted` changes when an application wants the tunnel, `woken` when the machine wakes up.
    pub fn new(wanted: watch::Receiver<()>, woken: watch::Receiver<()>) -> Self {
        Self {
            retry: Retry::of_client(),
            wanted,
            woken,
        }
    }

    /// The pace of another tunnel of the command.
    pub fn of_another(&self) -> Self {
        Self::new(self.wanted.clone(), self.woken.clone())
    }

    /// The tunnel was stable, so the waits start over. When the machine woke up meanwhile does not
    /// matter any more.
    pub fn held(&mut self) {
        self.retry.held();
        self.woken.mark_unchanged();
    }

    /// Waits a moment before an attempt for a tunnel that still has its WebSocket.
    pub async fn pause_in_doubt(&mut self) {
        retry::pause_in_doubt(&mut self.woken).await;
    }

    /// Waits before the next attempt, for at most `most`; less if an application wants the tunnel,
    /// and no longer when the machine wakes up. `refused` if an immediate retry would be refused.
    pub async fn pause(&mut self, refused: bool, most: Duration) {
        let (longest, spacing) = match refused {
            true => (LONGEST_REFUSED, HURRIED_REFUSED),
            false => (LONGEST_WAIT, Duration::ZERO),
        };
        let start = Instant::now();
        let until = start + self.retry.wait(longest.min(most));
        let hurried = async {
            if let Ok(Ok(())) = timeout_at(until, self.wanted.changed()).await {
                let earliest = Instant::now().max(start + spacing);
                sleep_until(until.min(earliest + HURRIED.mul_f64(fastrand::f64()))).await;
            }
        };
        tokio::select! {
            () = hurried => {}
            Ok(()) = self.woken.changed() => {}
        }
    }
}
