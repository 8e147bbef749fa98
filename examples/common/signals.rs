//! The wish to end: SIGINT and SIGTERM.

use std::future::Future;
use std::io;

/// Registers for both signals now; the future resolves at the first of them.
#[cfg(unix)]
pub fn stop() -> io::Result<impl Future<Output = &'static str>> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        }
    })
}

/// Resolves at Ctrl-C.
#[cfg(not(unix))]
pub fn stop() -> io::Result<impl Future<Output = &'static str>> {
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
        "Ctrl-C"
    })
}
