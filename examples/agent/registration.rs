//! Keeps this container registered at its runner, and serves what the runner asks for.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;
use kohakuriver_tunnel::session::Role;
use kohakuriver_tunnel::wire::Proto;
use tokio::time::Instant;

use crate::common::program::Failure;
use crate::common::serve::{self, Served};
use crate::common::tls::Dialer;
use crate::common::tunnel;
use crate::common::url::Url;
use crate::common::ws::{self, ConnectError, Socket};

/// What the registration needs to know.
pub struct Settings {
    /// The whole `/ws/tunnel/{container}` URL.
    pub url: Url,
    pub token: Option<HeaderValue>,
    pub dialer: Dialer,
    pub tunnels: tunnel::Settings,
    /// Mean wait before a try to reconnect.
    pub reconnect_delay: Duration,
    /// Failed tries in a row after which it gives up; 0 never does.
    pub max_reconnect: u32,
}

/// When to try again after the runner was lost.
///
/// All agents of a runner lose it in the same instant. The first wait is drawn evenly over the whole
/// interval, and the later ones are as long as the interval, give or take a tenth: so at whatever moment
/// the runner is back, its agents are spread over the interval that follows. Waits that are all drawn
/// from zero would bunch them: up to e times as many in one second.
struct Retry {
    interval: Duration,
    /// Waited since the runner was last there.
    waited: bool,
}

/// Registers, again and again, until it is pointless.
pub async fn keep(settings: Settings) -> Failure {
    let served = Arc::new(Served::default());
    let mut retry = Retry::new(settings.reconnect_delay);
    let mut failures = 0;
    loop {
        match ws::connect(&settings.dialer, &settings.url, settings.token.as_ref()).await {
            Ok((socket, v2)) => {
                let since = Instant::now();
                tracing::info!(v2, "registered at {}", settings.url);
                let ended = serve(socket, v2, &settings.tunnels, &served).await;
                tracing::warn!("lost the runner: {ended}");
                retry.waited = false;
                // A runner that takes the agent and drops it at once has not served it.
                if since.elapsed() > settings.reconnect_delay {
                    failures = 0;
                }
            }
            Err(error) if error.is_lasting() => {
                return Failure::refused(format!(
                    "the runner {} {error}",
                    settings.url.authority()
                ));
            }
            Err(error) => {
                tracing::warn!("{}", told(&error));
                failures += 1;
                if settings.max_reconnect > 0 && failures >= settings.max_reconnect {
                    return Failure::refused(format!("giving up after {failures} tries: {error}"));
                }
            }
        }
        tokio::time::sleep(retry.wait()).await;
    }
}

fn told(error: &ConnectError) -> String {
    match error {
        ConnectError::Refused { reason, .. } => format!("the runner {reason}"),
        other => other.to_string(),
    }
}

impl Retry {
    fn new(delay: Duration) -> Self {
        let interval = delay.saturating_mul(2);
        let waited = false;
        Self { interval, waited }
    }

    fn wait(&mut self) -> Duration {
        let share = fastrand::f64();
        let again = std::mem::replace(&mut self.waited, true);
        let factor = if again { 0.9 + share / 5.0 } else { share };
        self.interval.mul_f64(factor)
    }
}

/// Serves the runner until the WebSocket ends; says how that came.
async fn serve(
    socket: Socket,
    v2: bool,
    tunnels: &tunnel::Settings,
    served: &Arc<Served>,
) -> String {
    let (mux, mut acceptor, driver) = tunnel::over(socket, Role::Acceptor, v2, tunnels);
    // The acceptor keeps the tunnel up.
    drop(mux);
    let driver = tokio::spawn(driver);
    while let Some(incoming) = acceptor.accept().await {
        let served = Arc::clone(served);
        tokio::spawn(async move {
            match incoming.proto() {
                Proto::Tcp => serve::stream(incoming, "localhost", &served).await,
                Proto::Udp => serve::flow(incoming, "localhost", &served).await,
            }
        });
    }
    match driver.await {
        Ok(closed) => closed.to_string(),
        Err(error) => error.to_string(),
    }
}
