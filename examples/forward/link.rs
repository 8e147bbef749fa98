//! The tunnel to the host, kept up: connects, and connects again when it is lost.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;
use kohakuriver_tunnel::mux::Mux;
use kohakuriver_tunnel::session::Role;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::common::backoff::Backoff;
use crate::common::program::Failure;
use crate::common::tls::Dialer;
use crate::common::tunnel;
use crate::common::url::Url;
use crate::common::ws::{self, ConnectError};

/// Longest first and longest ever wait between two tries.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Longest wait while an application waits for the tunnel.
const WANTED_WAIT: Duration = Duration::from_secs(1);

/// A tunnel that held this long was a good one: the waits start over.
const HELD: Duration = Duration::from_secs(10);

/// What uses the tunnel.
#[derive(Clone)]
pub struct Link {
    state: watch::Receiver<State>,
    wanted: Arc<Notify>,
}

/// Where a session is to be had, and what is shown for it.
#[derive(Clone)]
pub struct Destination {
    pub url: Url,
    pub token: Option<HeaderValue>,
    pub dialer: Dialer,
}

/// What keeps it up.
pub struct Keeper {
    destination: Destination,
    state: watch::Sender<State>,
    wanted: Arc<Notify>,
}

#[derive(Clone)]
enum State {
    Up(Mux),
    /// The cause of the loss or of the last failed try.
    Down(String),
}

/// Connects for the first time.
///
/// # Errors
/// The host cannot be reached or refuses, whatever the reason: whoever started this sees it at once.
pub async fn connect(destination: Destination) -> Result<(Link, Keeper), ConnectError> {
    let mux = destination.connect().await?;
    let state = watch::Sender::new(State::Up(mux));
    let wanted = Arc::new(Notify::new());
    let link = Link {
        state: state.subscribe(),
        wanted: Arc::clone(&wanted),
    };
    let keeper = Keeper {
        destination,
        state,
        wanted,
    };
    Ok((link, keeper))
}

impl Destination {
    async fn connect(&self) -> Result<Mux, ConnectError> {
        let Self { url, token, dialer } = self;
        let (mut socket, v2) = ws::connect(dialer, url, token.as_ref()).await?;
        ws::expect_connected(&mut socket).await?;
        tracing::debug!(v2, "session begins at {url}");
        let (mux, acceptor, driver) = tunnel::over(socket, Role::Opener, v2);
        // Nobody connects from the other side.
        drop(acceptor);
        tokio::spawn(driver);
        Ok(mux)
    }
}

impl Link {
    /// The tunnel, waited for until `deadline` when it is down.
    ///
    /// # Errors
    /// Why it is down.
    pub async fn up(&mut self, deadline: Instant) -> Result<Mux, String> {
        loop {
            let down = match &*self.state.borrow_and_update() {
                State::Up(mux) if mux.is_closed().is_none() => return Ok(mux.clone()),
                State::Up(_) => "the tunnel has just ended".to_owned(),
                State::Down(cause) => cause.clone(),
            };
            self.wanted.notify_one();
            match tokio::time::timeout_at(deadline, self.state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(down),
            }
        }
    }

    /// The tunnel if it is up now.
    pub fn now(&self) -> Option<Mux> {
        match &*self.state.borrow() {
            State::Up(mux) => Some(mux.clone()),
            State::Down(_) => None,
        }
    }
}

impl Keeper {
    /// Keeps the tunnel up until the other side refuses for good.
    pub async fn keep(self) -> Failure {
        let url = &self.destination.url;
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            let up = match &*self.state.borrow() {
                State::Up(mux) => Some(mux.clone()),
                State::Down(_) => None,
            };
            if let Some(mux) = up {
                let since = Instant::now();
                let cause = lost(&mux).await;
                tracing::warn!("{cause}; reconnecting to {}", url);
                self.state.send_replace(State::Down(cause));
                if since.elapsed() > HELD {
                    backoff.reset();
                }
            }
            self.pause(backoff.wait()).await;
            match self.destination.connect().await {
                Ok(mux) => {
                    tracing::info!("reconnected to {}", url);
                    self.state.send_replace(State::Up(mux));
                }
                Err(error) if error.is_lasting() => return refused(url, &error),
                Err(error) => {
                    tracing::debug!("{error}");
                    self.state.send_replace(State::Down(error.to_string()));
                }
            }
        }
    }

    /// Waits, but not long once an application wants the tunnel.
    async fn pause(&self, wait: Duration) {
        let until = Instant::now() + wait;
        if tokio::time::timeout_at(until, self.wanted.notified())
            .await
            .is_ok()
        {
            let soon = Instant::now() + WANTED_WAIT.mul_f64(fastrand::f64());
            tokio::time::sleep_until(until.min(soon)).await;
        }
    }
}

/// The failure to show when a host refuses or cannot be reached.
pub fn refused(url: &Url, error: &ConnectError) -> Failure {
    match error {
        ConnectError::Unreachable(reason) => Failure::refused(reason.clone()),
        ConnectError::Refused { reason, .. } => {
            Failure::refused(format!("the host {} refused: {reason}", url.authority()))
        }
    }
}

/// Waits until the tunnel has ended, or takes no new connections any more.
async fn lost(mux: &Mux) -> String {
    mux.draining().await;
    match mux.is_closed() {
        Some(closed) => format!("lost the tunnel: {closed}"),
        None => "the other side is about to end".to_owned(),
    }
}
