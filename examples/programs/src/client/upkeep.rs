//! Keeps the tunnels of a command up: waits for the first one if asked to, and reconnects when one
//! is lost. After the first success only the user ends it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use kohakuriver_tunnel::mux::Mux;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::client::access::{Access, State};
use crate::client::connector::{Connector, Destination, Only, Refusal};
use crate::client::lanes::Lanes;
use crate::client::outage::Outage;
use crate::client::pace::Pace;
use crate::common::program::Failure;

/// After a tunnel that held this long the waits start over.
const HELD: Duration = Duration::from_secs(10);

/// In a reconnect, attempts refused as if no session for several ports were served, before each
/// port gets its own. There was one before.
const LACKING: u32 = 5;

/// The limit of a wait that has none.
const FOREVER: Duration = Duration::from_secs(365 * 86_400);

/// A session's first tunnel and its ports.
pub struct Upkeep {
    connector: Connector,
    ports: Vec<Port>,
    lanes: Arc<Lanes>,
    /// The tunnel, from its first connection to its end.
    mux: Option<Mux>,
}

struct Port {
    only: Only,
    state: watch::Sender<State>,
}

impl Upkeep {
    /// The upkeep of the tunnels of these ports, not connected yet, and the access of each port.
    pub fn new(
        destination: Destination,
        ports: impl Iterator<Item = Only>,
        lanes: Arc<Lanes>,
    ) -> (Self, Vec<Access>) {
        let host = destination.host.authority();
        let outage = Outage::new(format!("task {} at {host}", destination.task));
        let down = || State::Down("not connected yet".to_owned());
        let port = |only| Port {
            only,
            state: watch::Sender::new(down()),
        };
        let ports: Vec<Port> = ports.map(port).collect();
        let wanted = Arc::new(watch::Sender::new(()));
        let access = |port: &Port| Access::new(port.state.subscribe(), Arc::clone(&wanted));
        let accesses = ports.iter().map(access).collect();
        let first = ports.first().and_then(|port| port.only);
        let several = ports.iter().any(|port| port.only != first);
        let woken = destination.connection.wake.subscribe();
        let upkeep = Self {
            connector: Connector {
                url: destination.url(first.filter(|_| !several)),
                splits: several && destination.whole.is_none(),
                destination: Arc::new(destination),
                pace: Pace::new(wanted.subscribe(), woken.clone()),
                outage: Arc::new(outage),
                woken,
            },
            ports,
            lanes,
            mux: None,
        };
        (upkeep, accesses)
    }

    /// Connects for the first time; `wait` is that of the [command](crate::client::args::Command).
    /// Returns the upkeeps: one, or one for each session.
    ///
    /// # Errors
    /// The host cannot be reached or refuses, and waiting was not asked for or does not help.
    pub async fn begin(self, wait: Option<Option<Duration>>) -> Result<Vec<Self>, Failure> {
        let limit = wait.flatten().unwrap_or(FOREVER);
        let deadline = Instant::now() + limit;
        self.begin_by(wait.is_some(), limit, deadline).await
    }

    async fn begin_by(
        mut self,
        waits: bool,
        limit: Duration,
        deadline: Instant,
    ) -> Result<Vec<Self>, Failure> {
        let mut last = None;
        loop {
            let error = match timeout_at(deadline, self.connect()).await {
                Ok(Ok(())) => return Ok(vec![self]),
                Ok(Err(Refusal::EachItsOwn | Refusal::LacksPath(_))) => {
                    let split = self.split().into_iter();
                    let begun = split.map(|one| one.begin_by(waits, limit, deadline));
                    let begun = Box::pin(try_join_all(begun)).await?;
                    return Ok(begun.into_iter().flatten().collect());
                }
                Ok(Err(Refusal::Failed(error))) => error,
                Err(_) => return Err(self.gave_up(limit, last)),
            };
            let reason = self.connector.told(&error);
            if !waits || error.is_forbidden() {
                return Err(Failure::refused(reason));
            }
            self.connector.outage.waits(&reason);
            last = Some(reason);
            let pause = self.connector.pace.pause(error.is_lasting(), Duration::MAX);
            if timeout_at(deadline, pause).await.is_err() {
                return Err(self.gave_up(limit, last));
            }
        }
    }

    /// Keeps the tunnel up after the first connection, and opens others beside it.
    pub async fn keep(mut self) -> Infallible {
        let lanes = Arc::clone(&self.lanes);
        let split = tokio::select! {
            never = lanes.tend(self.connector.clone()) => match never {},
            split = self.keep_first() => split,
        };
        lanes.close();
        Box::pin(join_all(split.into_iter().map(Self::keep))).await;
        std::future::pending().await
    }

    /// Keeps the first tunnel up until each port needs its own.
    async fn keep_first(&mut self) -> Vec<Self> {
        let outage = Arc::clone(&self.connector.outage);
        loop {
            if let Some(mux) = self.mux.take() {
                let since = Instant::now();
                self.outlast(&mux).await;
                if since.elapsed() > HELD {
                    self.connector.pace.held();
                }
            }
            let mut refused = false;
            let mut lacking = 0;
            loop {
                self.connector.pace.pause(refused, Duration::MAX).await;
                let error = match self.connect().await {
                    Ok(()) => break outage.ends(),
                    // A proxy whose servers restart answers so too.
                    Err(Refusal::LacksPath(error)) if lacking < LACKING => {
                        lacking += 1;
                        error
                    }
                    Err(Refusal::EachItsOwn | Refusal::LacksPath(_)) => {
                        let split = self.split();
                        outage.spreads(split.len());
                        return split;
                    }
                    Err(Refusal::Failed(error)) => error,
                };
                let reason = self.connector.told(&error);
                if error.is_answer() {
                    outage.refused(&reason);
                } else {
                    tracing::debug!("{reason}");
                }
                tell(&self.ports, &State::Down(reason));
                refused = error.is_lasting();
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Refusal> {
        let connected = self.connector.connect().await?;
        self.lanes.first(&connected);
        tell(
            &self.ports,
            &State::Up(connected.mux.clone(), Arc::clone(&self.lanes)),
        );
        self.mux = Some(connected.mux);
        Ok(())
    }

    /// Waits until the tunnel has ended or takes no new connections. The ports are down then, and
    /// while the tunnel waits for its next WebSocket.
    async fn outlast(&mut self, mux: &Mux) {
        let (ports, lanes) = (&self.ports, &self.lanes);
        let over = self.connector.outlast(mux.tunnel(), |down| {
            let state = match down {
                Some(cause) => State::Down(cause.to_owned()),
                None => State::Up(mux.clone(), Arc::clone(lanes)),
            };
            tell(ports, &state);
        });
        let over = over.await;
        match over.down {
            true => self.connector.outage.gives_up(&over.cause),
            false => self.connector.outage.begins(&over.cause),
        }
        tell(&self.ports, &State::Down(over.cause));
    }

    /// One upkeep for each remote port, instead of this one.
    fn split(&mut self) -> Vec<Self> {
        tracing::debug!("a tunnel for each port");
        let mut split: Vec<Self> = Vec::new();
        for port in std::mem::take(&mut self.ports) {
            let url = self.connector.destination.url(port.only);
            match split.iter_mut().find(|one| one.connector.url == url) {
                Some(one) => one.ports.push(port),
                None => split.push(Self {
                    connector: Connector {
                        url,
                        splits: false,
                        pace: self.connector.pace.of_another(),
                        ..self.connector.clone()
                    },
                    ports: vec![port],
                    lanes: self.lanes.of_another(),
                    mux: None,
                }),
            }
        }
        split
    }

    fn gave_up(&self, limit: Duration, last: Option<String>) -> Failure {
        let Destination { host, task, .. } = &*self.connector.destination;
        let last = last.unwrap_or_else(|| format!("no answer from {}", host.authority()));
        Failure::refused(format!(
            "{last}; no longer waiting for task {task} after {} s",
            limit.as_secs()
        ))
    }
}

fn tell(ports: &[Port], state: &State) {
    for port in ports {
        port.state.send_replace(state.clone());
    }
}
