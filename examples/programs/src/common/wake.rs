//! Hints that the machine or this process was asleep, so that the connections may be dead.
//!
//! The real-time clock goes on meanwhile. Setting it ahead gives a hint too, which does no harm.

use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::sleep;

/// How often the clock is read.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Two reads further apart than this are not just late because the machine is busy.
const ASLEEP: Duration = Duration::from_secs(5);

/// Watches for the hints in a task, as long as the program runs. Whoever subscribes receives them.
pub fn watched() -> watch::Sender<()> {
    let hints = watch::Sender::new(());
    tokio::spawn(watch_for(hints.clone()));
    hints
}

async fn watch_for(hints: watch::Sender<()>) {
    loop {
        let last = SystemTime::now();
        sleep(LOOK_EVERY).await;
        // An error says that the clock was set back.
        if last.elapsed().is_ok_and(|passed| passed > ASLEEP) {
            tracing::debug!("the machine or the process was asleep: looking at the connections");
            hints.send_replace(());
        }
    }
}
