//! Keeps this container registered at its runner and serves the runner's requests.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderValue};
use kohakuriver_tunnel::mux::TunnelError;
use tokio::time::Instant;

use crate::common::ceilings::ServingCeilings;
use crate::common::connection::Connection;
use crate::common::program::Failure;
use crate::common::retry::Retry;
use crate::common::serve::{self, Served};
use crate::common::tunnel::{self, Upgraded};
use crate::common::url::Url;
use crate::common::ws::{self, ConnectError};

/// Settings of the registration.
pub struct Settings {
    /// The whole `/ws/tunnel/{container}` URL.
    pub url: Url,
    pub connection: Connection,
    /// The waits between two attempts grow to twice this.
    pub reconnect_delay: Duration,
    /// Failed attempts in a row after which the agent gives up; 0 means never.
    pub max_reconnect: u32,
}

/// How a registration ended.
enum Ended {
    /// A newer agent of the same name has replaced this one.
    Replaced,
    Lost(String),
}

/// Registers again and again, until there is no point in trying.
pub async fn keep(settings: Settings) -> Failure {
    let served = Arc::new(Served::new(ServingCeilings::new()));
    let mut retry = Retry::of_agent();
    let mut woken = settings.connection.wake.subscribe();
    let mut failures = 0;
    let mut replaced = false;
    loop {
        let error = match register(&settings, replaced).await {
            Ok(registration) => {
                let since = Instant::now();
                retry.connected(registration.agents);
                tracing::info!(
                    v2 = registration.upgraded.is_v2(),
                    "registered at {}",
                    settings.url
                );
                let ended = serve(registration, &settings.connection.tunnels, &served).await;
                replaced = matches!(ended, Ended::Replaced);
                // A runner that drops the agent at once has not served it.
                if since.elapsed() > settings.reconnect_delay {
                    failures = 0;
                    retry.held();
                }
                if let Ended::Lost(cause) = ended {
                    tracing::warn!("lost the runner: {cause}");
                }
                None
            }
            Err(error) if replaced && error.is_taken() => Some(error),
            Err(error) if error.is_lasting() => {
                return Failure::refused(format!(
                    "the runner {} {error}",
                    settings.url.authority()
                ));
            }
            Err(error) => {
                tracing::warn!("{}", told(&error));
                Some(error)
            }
        };
        if let Some(error) = &error {
            failures += 1;
            if settings.max_reconnect > 0 && failures >= settings.max_reconnect {
                return Failure::refused(format!("giving up after {failures} tries: {error}"));
            }
        }
        let taken = error.is_none_or(|error| error.is_taken());
        let wait = match replaced && taken {
            true => retry.wait_for_place(),
            false => retry.wait(settings.reconnect_delay.saturating_mul(2)),
        };
        if replaced && taken {
            tracing::warn!(
                "replaced by a newer registration at {}: another agent runs with the same \
                 --container-id, so stop one of the two or rename it; looking again in {:.0} s",
                settings.url,
                wait.as_secs_f64()
            );
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Ok(()) = woken.changed() => {}
        }
    }
}

fn told(error: &ConnectError) -> String {
    match error {
        ConnectError::Refused { reason, .. } => format!("the runner {reason}"),
        other => other.to_string(),
    }
}

/// An agent's WebSocket and the runner's answer.
struct Registration {
    upgraded: Upgraded,
    /// How many agents the runner has.
    agents: Option<u32>,
}

/// Registers once. With `yields` the runner refuses if another agent of the name is registered.
async fn register(settings: &Settings, yields: bool) -> Result<Registration, ConnectError> {
    let mut more = HeaderMap::new();
    if yields {
        more.insert(ws::IF_FREE, HeaderValue::from_static("1"));
    }
    let Settings {
        url, connection, ..
    } = settings;
    let (upgraded, headers) = ws::connect(connection, url, more).await?;
    let agents = headers
        .get(ws::AGENTS)
        .and_then(|value| value.to_str().ok());
    Ok(Registration {
        upgraded,
        agents: agents.and_then(|number| number.parse().ok()),
    })
}

/// Serves the runner until the WebSocket ends.
async fn serve(
    registration: Registration,
    tunnels: &tunnel::Settings,
    served: &Arc<Served>,
) -> Ended {
    let v2 = registration.upgraded.is_v2();
    let (mut acceptor, driver) = registration.upgraded.acceptor(tunnels);
    let driver = tokio::spawn(driver);
    while let Some(incoming) = acceptor.accept().await {
        let served = Arc::clone(served);
        // Only the runner knows which session a connection belongs to, and it has shared them.
        let party = served.parties.party();
        tokio::spawn(
            async move { serve::incoming(incoming, "localhost", v2, &served, party).await },
        );
    }
    match driver.await {
        Ok(Err(TunnelError::Ended(Some(close)))) if close.code == ws::REPLACED => Ended::Replaced,
        Ok(ended) => Ended::Lost(tunnel::told(&ended)),
        Err(error) => Ended::Lost(error.to_string()),
    }
}
