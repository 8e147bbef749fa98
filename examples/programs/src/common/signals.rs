//! The signals that end a program: SIGINT, SIGTERM and SIGHUP, or Ctrl-C.

#[cfg(unix)]
use std::future::poll_fn;
use std::io;
#[cfg(unix)]
use std::task::Poll;
use std::time::Duration;

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// Signals within this time have one cause: shell and kernel each send one when a terminal closes,
/// and a service manager sends SIGHUP right after SIGTERM.
const ONE_CAUSE: Duration = Duration::from_millis(200);

const HANG_UP: &str = "SIGHUP";

/// The signals from now on, with their names.
pub struct Signals {
    #[cfg(unix)]
    heeded: Vec<(&'static str, Signal)>,
}

impl Signals {
    /// Registers for the signals.
    ///
    /// # Errors
    /// The system does not allow it.
    #[cfg(unix)]
    pub fn listen() -> io::Result<Self> {
        let mut heeded = vec![
            ("SIGINT", signal(SignalKind::interrupt())?),
            ("SIGTERM", signal(SignalKind::terminate())?),
        ];
        if !ignores_hang_up() {
            heeded.push((HANG_UP, signal(SignalKind::hangup())?));
        }
        Ok(Self { heeded })
    }

    /// Waits for a signal and returns its name.
    #[cfg(unix)]
    pub async fn next(&mut self) -> &'static str {
        poll_fn(|cx| {
            for (name, signal) in &mut self.heeded {
                if signal.poll_recv(cx).is_ready() {
                    return Poll::Ready(*name);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Waits for a signal of somebody who does not want to wait. SIGHUP is none, and neither is a
    /// signal with the cause of the first one, which has just come.
    pub async fn again(&mut self) {
        let first = Instant::now();
        while self.next().await == HANG_UP || first.elapsed() < ONE_CAUSE {}
    }

    #[cfg(not(unix))]
    pub fn listen() -> io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    pub async fn next(&mut self) -> &'static str {
        let _ = tokio::signal::ctrl_c().await;
        "Ctrl-C"
    }
}

/// Whether SIGHUP was ignored when the program began, as under `nohup`. It then stays ignored. Only
/// Linux says so in a file; elsewhere the program leaves the signal alone.
#[cfg(unix)]
fn ignores_hang_up() -> bool {
    /// The lowest bit of the mask is signal 1.
    const SIGHUP: u64 = 1;
    let status = std::fs::read_to_string("/proc/self/status");
    let ignored = status.ok().and_then(|status| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    });
    ignored.map_or(cfg!(not(target_os = "linux")), |mask| mask & SIGHUP != 0)
}
