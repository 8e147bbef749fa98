//! Keeps this container registered at its runner and serves the runner's requests.

use std::fmt::Display;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use hyper::header::{HeaderMap, HeaderValue};
use kohakuriver_tunnel::mux::{Attachment, ConnectFailure, Dial, Tunnel, TunnelError};
use kohakuriver_tunnel::resume::EndReason;
use tokio::sync::Mutex;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use crate::common::ceilings::{ServingCeilings, usable};
use crate::common::connection::Connection;
use crate::common::names::Names;
use crate::common::program::Failure;
use crate::common::resume;
use crate::common::retry::{Retry, longest_wait, pause_in_doubt};
use crate::common::serve::{self, Served};
use crate::common::tunnel::{self, Upgraded};
use crate::common::url::Url;
use crate::common::words;
use crate::common::ws::{self, Downgrades, HandshakeError, Socket};

/// Settings of the registration.
pub struct Settings {
    /// The whole `/ws/tunnel/{container}` URL.
    pub url: Url,
    pub connection: Connection,
    /// The waits between two attempts grow to twice this on average.
    pub reconnect_delay: Duration,
    /// Failed attempts in a row after which the agent gives up; 0 means never.
    pub max_reconnect: u32,
    pub names: Names,
}

/// How a registration ended.
enum Ended {
    /// A newer agent of the same name has replaced this one.
    Replaced,
    /// The runner, which has just answered, does not know the tunnel any more. A newer agent may
    /// have replaced this one meanwhile.
    Unknown(String),
    /// The runner has not taken the new tunnel.
    Refused(String),
    Lost(String),
}

/// Attempts to connect, of new registrations and of those that go on.
struct Tries {
    retry: Retry,
    /// In a row.
    failures: u32,
    /// When the WebSocket that is there was connected.
    connected: Option<Instant>,
    downgrades: Downgrades,
    /// The tunnel was connected again, after a wait.
    redialled: bool,
    /// Hints that the machine woke up, of which none was heeded yet.
    woken: Receiver<()>,
}

/// Registers again and again. An agent that was registered once gives up only if it is told to:
/// what refuses it may be temporary, and nobody may be there to start it again.
pub async fn keep(settings: Settings) -> Failure {
    let settings = Arc::new(settings);
    let ceilings = ServingCeilings::new(usable(1));
    let served = Arc::new(Served::new(ceilings, false, settings.names.clone()));
    let tries = Arc::new(Mutex::new(Tries {
        retry: Retry::of_agent(),
        failures: 0,
        connected: None,
        downgrades: Downgrades::default(),
        redialled: false,
        woken: settings.connection.wake.subscribe(),
    }));
    let resume = &settings.connection.tunnels.resume;
    let keep = resume.as_ref().map_or(Duration::ZERO, |resume| resume.keep);
    let mut woken = settings.connection.wake.subscribe();
    let mut replaced = false;
    // Since then it takes the place of no other agent.
    let mut yields: Option<Instant> = None;
    let mut was_registered = false;
    loop {
        let registered = register(&settings, yields.is_some()).await;
        let error = match registered {
            Ok(registration) => {
                was_registered = true;
                let yielded = yields.is_some();
                let ended = serve(registration, &settings, &tries, &served, yielded).await;
                woken.mark_unchanged();
                replaced = matches!(ended, Ended::Replaced);
                let answered = matches!(ended, Ended::Unknown(_));
                yields = (replaced || answered).then(Instant::now);
                if let Some(failure) = tries.lock().await.ended(&ended, &settings) {
                    return failure;
                }
                if answered {
                    // It has waited for this attempt already.
                    continue;
                }
                None
            }
            Err(error) if replaced && error.is_taken() => Some(error),
            Err(error) if error.is_lasting() && !was_registered && !error.may_be_early() => {
                return Failure::refused(format!(
                    "the runner {} {error}",
                    settings.url.authority()
                ));
            }
            Err(error) => {
                tracing::warn!("{}", told(&error));
                // At first the name may be taken by a tunnel of this agent, which the runner keeps.
                replaced |= error.is_taken() && yields.is_some_and(|since| since.elapsed() > keep);
                Some(error)
            }
        };
        let mut tries = tries.lock().await;
        if let Some(error) = &error {
            tries.failures += 1;
            if tries.gives_up(&settings) {
                return tries.gave_up(error);
            }
        }
        let is_lasting = |error: &HandshakeError| error.is_lasting() && !error.is_taken();
        let lasting = error.as_ref().is_some_and(is_lasting);
        let taken = replaced && error.is_none_or(|error| error.is_taken());
        let wait = match taken || lasting {
            true => tries.retry.wait_long(),
            false => tries.due(&settings, Duration::MAX, Duration::MAX) - Instant::now(),
        };
        if taken {
            tracing::warn!(
                "replaced by a newer registration at {}: another agent runs with the same \
                 --container-id, so stop one of the two or rename it; looking again in {:.0} s",
                settings.url,
                wait.as_secs_f64()
            );
        }
        pause(&mut woken, wait).await;
        tries.retry.attempt();
    }
}

/// Waits before an attempt, unless the machine has woken up.
async fn pause(woken: &mut Receiver<()>, wait: Duration) {
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        Ok(()) = woken.changed() => {}
    }
}

impl Tries {
    /// A new tunnel has its WebSocket.
    fn registered(&mut self, agents: Option<u32>) {
        self.redialled = false;
        self.connected(agents);
    }

    fn connected(&mut self, agents: Option<u32>) {
        self.connected = Some(Instant::now());
        self.retry.connected(agents);
    }

    /// The WebSocket is lost, or there is doubt. A runner that drops the agent at once has not
    /// served it.
    fn lost(&mut self, settings: &Settings) {
        let held = |at: Instant| at.elapsed() > settings.reconnect_delay;
        if self.connected.is_some_and(held) {
            self.failures = 0;
            self.retry.held();
        }
    }

    /// A registration has ended. Returns a failure if no other is tried.
    fn ended(&mut self, ended: &Ended, settings: &Settings) -> Option<Failure> {
        self.lost(settings);
        self.failures += u32::from(matches!(ended, Ended::Refused(_)));
        if let Ended::Lost(cause) | Ended::Unknown(cause) | Ended::Refused(cause) = ended {
            if self.gives_up(settings) {
                return Some(self.gave_up(cause));
            }
            tracing::warn!("lost the runner: {cause}");
        }
        None
    }

    fn due(&mut self, settings: &Settings, longest: Duration, most: Duration) -> Instant {
        let usual = settings.reconnect_delay.saturating_mul(2);
        self.retry.due(usual.min(longest), most)
    }

    fn gives_up(&self, settings: &Settings) -> bool {
        settings.max_reconnect > 0 && self.failures >= settings.max_reconnect
    }

    fn gave_up(&self, error: &dyn Display) -> Failure {
        let failures = self.failures;
        Failure::refused(format!("giving up after {failures} tries: {error}"))
    }
}

fn told(error: &HandshakeError) -> String {
    match error {
        HandshakeError::Refused { reason, .. } => format!("the runner {reason}"),
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
async fn register(settings: &Settings, yields: bool) -> Result<Registration, HandshakeError> {
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

/// The next WebSocket of a registration that goes on, after a wait. `yields` as for [`register`].
///
/// # Errors
/// It failed. If the agent is not let in any more, no other attempt follows.
async fn reconnect(
    settings: Arc<Settings>,
    tries: Arc<Mutex<Tries>>,
    dial: Dial,
    yields: bool,
) -> Result<Socket, ConnectFailure> {
    let mut tries = tries.lock().await;
    tries.downgrades.begin(dial.attempt);
    if dial.attempt == 0 {
        tries.lost(&settings);
    }
    if !dial.attached {
        tries.connected = None;
    }
    if dial.attached && dial.attempt == 0 {
        pause_in_doubt(&mut tries.woken).await;
    } else {
        let due = tries.due(&settings, longest_wait(dial), dial.keep / 2);
        let wait = due - Instant::now();
        pause(&mut settings.connection.wake.subscribe(), wait).await;
    }
    tries.retry.attempt();
    tries.redialled = true;
    let registered = register(&settings, yields).await;
    let resumed = registered.and_then(|Registration { upgraded, agents }| {
        tries.connected(agents);
        let socket = upgraded.resumed(&settings.connection.tunnels)?;
        tries.downgrades.reset();
        Ok(socket)
    });
    resumed.map_err(|error| {
        let reason = told(&error);
        if tries.downgrades.end_with(&error, &settings.url) {
            return ConnectFailure::last(&reason);
        }
        tries.failures += 1;
        if !dial.attached && tries.gives_up(&settings) {
            return ConnectFailure::last(&reason);
        }
        match dial.attached {
            true => tracing::debug!("{reason}"),
            false => tracing::warn!("{reason}"),
        }
        ConnectFailure::again(&reason)
    })
}

/// Serves the runner until the tunnel ends.
async fn serve(
    registration: Registration,
    settings: &Arc<Settings>,
    tries: &Arc<Mutex<Tries>>,
    served: &Arc<Served>,
    yields: bool,
) -> Ended {
    let v2 = registration.upgraded.is_v2();
    tries.lock().await.registered(registration.agents);
    tracing::info!(v2, "registered at {}", settings.url);
    let opening = Arc::new(OnceLock::new());
    let redial = {
        let (settings, tries) = (Arc::clone(settings), Arc::clone(tries));
        let opening = Arc::clone(&opening);
        move |dial| {
            // One that is open has the agent's place.
            let yields = yields && !opening.get().is_some_and(is_open);
            reconnect(Arc::clone(&settings), Arc::clone(&tries), dial, yields)
        }
    };
    let tunnels = &settings.connection.tunnels;
    let (mut acceptor, driver) = registration.upgraded.acceptor(tunnels, redial);
    let tunnel = opening.get_or_init(|| acceptor.tunnel().clone()).clone();
    let driver = tokio::spawn(driver);
    let accepting = async {
        while let Some(incoming) = acceptor.accept().await {
            let (served, tunnel) = (Arc::clone(served), tunnel.clone());
            // Only the runner knows which session a connection belongs to, and it has shared them.
            let party = served.parties.party();
            tokio::spawn(async move {
                serve::incoming(incoming, &tunnel, "localhost", v2, &served, party).await;
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        () = watch(&tunnel, settings) => {}
    }
    match driver.await {
        Ok(Err(TunnelError::Ended(Some(close)))) if close.code == ws::REPLACED => Ended::Replaced,
        Ok(Err(TunnelError::NotResumed(ended))) => match ended.reason {
            EndReason::Replaced => Ended::Replaced,
            EndReason::Unknown if ended.by_peer => match tries.lock().await.redialled {
                true => Ended::Unknown(ended.to_string()),
                false => Ended::Refused(ended.to_string()),
            },
            _ => Ended::Lost(ended.to_string()),
        },
        Ok(ended) => Ended::Lost(tunnel::told(&ended)),
        Err(error) => Ended::Lost(error.to_string()),
    }
}

/// Whether the runner has answered.
fn is_open(tunnel: &Tunnel) -> bool {
    tunnel.confirmed().now_or_never() == Some(true)
}

/// Says when the tunnel waits for its next WebSocket and when it goes on, until it ends.
async fn watch(tunnel: &Tunnel, settings: &Settings) {
    let mut attachments = tunnel.attachments();
    let mut woken = settings.connection.wake.subscribe();
    loop {
        let changed = tokio::select! {
            changed = attachments.changed() => changed,
            Ok(()) = woken.changed() => {
                tunnel.probe();
                continue;
            }
        };
        match changed {
            Some(Attachment::Detached(cause)) => {
                let cause = words::tunnel(&cause);
                tracing::warn!("lost the runner: {cause}; the connections wait for it");
            }
            Some(changed) => tracing::info!("the tunnel {}", resume::told(&changed)),
            None => return,
        }
    }
}
