//! The next WebSocket of a tunnel that lost its own, or may have.

use std::sync::Arc;
use std::time::Duration;

use kohakuriver_tunnel::mux::{ConnectFailure, Dial};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::client::connector::Connector;
use crate::client::pace::Pace;
use crate::common::retry::longest_wait;
use crate::common::ws::{Downgrades, HandshakeError, Socket};

/// After a WebSocket that held this long the waits start over.
const HELD: Duration = Duration::from_secs(1);

/// Connects a tunnel again. Clones share their pace.
#[derive(Clone)]
pub struct Redial {
    to: Connector,
    waits: Arc<Mutex<Waits>>,
}

struct Waits {
    pace: Pace,
    connected: Instant,
    downgrades: Downgrades,
}

impl Redial {
    pub fn new(to: Connector) -> Self {
        let waits = Waits {
            pace: to.pace.of_another(),
            connected: Instant::now(),
            downgrades: Downgrades::default(),
        };
        let waits = Arc::new(Mutex::new(waits));
        Self { to, waits }
    }

    /// One attempt, after a wait.
    ///
    /// # Errors
    /// It failed. If this client is not let in any more, no other attempt follows.
    pub async fn connect(self, dial: Dial) -> Result<Socket, ConnectFailure> {
        // Attempts follow one another.
        let mut waits = self.waits.lock().await;
        waits.downgrades.begin(dial.attempt);
        let in_doubt = dial.attached && dial.attempt == 0;
        if in_doubt {
            waits.pace.pause_in_doubt().await;
        }
        if dial.attempt == 0 && waits.connected.elapsed() > HELD {
            waits.pace.held();
        }
        if !in_doubt {
            // Connections wait for the attempt.
            waits.pace.pause(false, longest_wait(dial)).await;
        }
        match self.to.reconnect().await {
            Ok(socket) => {
                waits.connected = Instant::now();
                waits.downgrades.reset();
                Ok(socket)
            }
            Err(error) => {
                let is_final = waits.downgrades.end_with(&error, &self.to.url);
                Err(self.failed(dial, &error, is_final))
            }
        }
    }

    fn failed(&self, dial: Dial, error: &HandshakeError, is_final: bool) -> ConnectFailure {
        let reason = self.to.told(error);
        if is_final {
            return ConnectFailure::last(&reason);
        }
        match error.is_answer() && !dial.attached {
            true => self.to.outage.refused(&reason),
            false => tracing::debug!("{reason}"),
        }
        ConnectFailure::again(&reason)
    }
}
