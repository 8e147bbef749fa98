//! The wish to end: SIGINT and SIGTERM, or Ctrl-C.

use std::io;

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::tunnel;

/// The signals from now on.
pub struct Stop {
    #[cfg(unix)]
    interrupt: Signal,
    #[cfg(unix)]
    terminate: Signal,
}

impl Stop {
    /// Registers for the signals.
    ///
    /// # Errors
    /// The system does not let it.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            interrupt: signal(SignalKind::interrupt())?,
            #[cfg(unix)]
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Does `work` until it ends or a signal comes; then tunnels end in good order, or at once at a second signal.
    /// `None` when it was a signal.
    pub async fn unless_told<T>(mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => return Some(done),
            signal = self.signal() => tracing::info!("{signal}: ending"),
        }
        // By now the work is dropped, and nothing new begins.
        tunnel::end_all(self.signal()).await;
        None
    }

    #[cfg(unix)]
    async fn signal(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }

    #[cfg(not(unix))]
    async fn signal(&mut self) -> &'static str {
        let _ = tokio::signal::ctrl_c().await;
        "Ctrl-C"
    }
}
