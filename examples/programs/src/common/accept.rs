//! Accepts connections, and keeps trying while there are no file descriptors for them.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

use super::net;

/// Pause after a failure such as "too many open files", which would otherwise repeat at once.
const PAUSE: Duration = Duration::from_millis(100);

/// Time between two warnings about it.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Accepting {
    listener: TcpListener,
    complained: Option<Instant>,
}

impl Accepting {
    pub fn on(listener: TcpListener) -> Self {
        let complained = None;
        Self {
            listener,
            complained,
        }
    }

    /// The next connection. After a failure it waits and tries again.
    pub async fn next(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok(accepted) => return accepted,
                // The peer was gone before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.complain(&error);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn complain(&mut self, error: &io::Error) {
        let lately = |said: Instant| said.elapsed() < COMPLAIN_EVERY;
        if !self.complained.is_some_and(lately) {
            self.complained = Some(Instant::now());
            tracing::warn!(
                "cannot accept connections now: {} (still trying; said once a minute)",
                net::plain(error)
            );
        }
    }
}
