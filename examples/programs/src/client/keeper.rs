//! Keeps the tunnels of a command up: waits for the first one if asked to, and reconnects when one
//! is lost. After the first success only the user ends it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use kohakuriver_tunnel::mux::{Attachment, Mux, TunnelError};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::client::destination::{Destination, Only, Refusal};
use crate::client::link::{Link, State};
use crate::client::outage::Outage;
use crate::client::pace::Pace;
use crate::client::redial::Redial;
use crate::common::program::Failure;
use crate::common::resume::SentAgain;
use crate::common::url::Url;
use crate::common::words;
use crate::common::ws::ConnectError;

/// After a tunnel that held this long the waits start over.
const HELD: Duration = Duration::from_secs(10);

/// How a command begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// The first refusal ends it.
    AtOnce,
    /// Waits until the session begins, with or without a limit.
    Wait(Option<Duration>),
}

/// One tunnel and its ports.
pub struct Keeper {
    destination: Arc<Destination>,
    url: Url,
    ports: Vec<Port>,
    /// The session is for any port because there are several ports, and each can have its own
    /// session instead.
    splits: bool,
    pace: Pace,
    outage: Arc<Outage>,
    /// The tunnel, from its first connection to its end.
    mux: Option<Mux>,
    woken: watch::Receiver<()>,
}

struct Port {
    only: Only,
    state: watch::Sender<State>,
}

impl Keeper {
    /// A keeper for the tunnel of these ports, not connected yet, and a link for each port.
    pub fn new(destination: Destination, ports: impl Iterator<Item = Only>) -> (Self, Vec<Link>) {
        let host = destination.host.authority();
        let outage = Outage::new(format!("task {} at {host}", destination.task));
        let down = || State::Down("not connected yet".to_owned());
        let port = |only| Port {
            only,
            state: watch::Sender::new(down()),
        };
        let ports: Vec<Port> = ports.map(port).collect();
        let wanted = Arc::new(watch::Sender::new(()));
        let link = |port: &Port| Link::new(port.state.subscribe(), Arc::clone(&wanted));
        let links = ports.iter().map(link).collect();
        let first = ports.first().and_then(|port| port.only);
        let several = ports.iter().any(|port| port.only != first);
        let woken = destination.connection.wake.subscribe();
        let keeper = Self {
            url: destination.url(first.filter(|_| !several)),
            splits: several && destination.whole.is_none(),
            destination: Arc::new(destination),
            ports,
            pace: Pace::new(wanted.subscribe(), woken.clone()),
            outage: Arc::new(outage),
            mux: None,
            woken,
        };
        (keeper, links)
    }

    /// Connects for the first time. Returns the keepers: one, or one for each session.
    ///
    /// # Errors
    /// The host cannot be reached or refuses, and waiting was not asked for or does not help.
    pub async fn begin(self, begin: Begin) -> Result<Vec<Self>, Failure> {
        let deadline = match begin {
            Begin::Wait(Some(limit)) => Some(Instant::now() + limit),
            Begin::Wait(None) | Begin::AtOnce => None,
        };
        self.begin_by(begin, deadline).await
    }

    async fn begin_by(
        mut self,
        begin: Begin,
        deadline: Option<Instant>,
    ) -> Result<Vec<Self>, Failure> {
        let mut last = None;
        loop {
            let error = match before(deadline, self.connect()).await {
                Some(Ok(())) => return Ok(vec![self]),
                Some(Err(Refusal::EachItsOwn(why))) => {
                    tracing::debug!("a tunnel for each port: {why}");
                    let split = self.split().into_iter();
                    let begun = split.map(|one| one.begin_by(begin, deadline));
                    let begun = Box::pin(try_join_all(begun)).await?;
                    return Ok(begun.into_iter().flatten().collect());
                }
                Some(Err(Refusal::Failed(error))) => error,
                None => return Err(self.gave_up(begin, last)),
            };
            let reason = self.destination.told(&error);
            if begin == Begin::AtOnce || error.is_forbidden() {
                return Err(Failure::refused(reason));
            }
            self.outage.waits(&reason);
            last = Some(reason);
            let paused = before(deadline, self.pace.pause(error.is_lasting())).await;
            if paused.is_none() {
                return Err(self.gave_up(begin, last));
            }
        }
    }

    /// Keeps the tunnel up after the first connection.
    pub async fn keep(mut self) -> Infallible {
        let split = self.keep_in_one().await;
        Box::pin(join_all(split.into_iter().map(Self::keep))).await;
        std::future::pending().await
    }

    /// Keeps one tunnel up until each port needs its own.
    async fn keep_in_one(&mut self) -> Vec<Self> {
        loop {
            if let Some(mux) = self.mux.take() {
                let since = Instant::now();
                self.outlast(&mux).await;
                if since.elapsed() > HELD {
                    self.pace.held();
                }
            }
            let mut refused = false;
            loop {
                self.pace.pause(refused).await;
                match self.connect().await {
                    Ok(()) => break self.outage.ends(),
                    Err(Refusal::EachItsOwn(why)) => {
                        tracing::debug!("a tunnel for each port: {why}");
                        let split = self.split();
                        self.outage.spreads(split.len());
                        return split;
                    }
                    Err(Refusal::Failed(error)) => {
                        let reason = self.destination.told(&error);
                        if let ConnectError::Refused { .. } = error {
                            self.outage.refused(&reason);
                        } else {
                            tracing::debug!("{reason}");
                        }
                        self.tell(&State::Down(reason));
                        refused = error.is_lasting();
                    }
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Refusal> {
        let destination = Arc::clone(&self.destination);
        let (outage, pace) = (Arc::clone(&self.outage), self.pace.of_another());
        let redial = Redial::new(destination, self.url.clone(), outage, pace);
        let connecting = self.destination.connect(&self.url, self.splits, redial);
        let mux = connecting.await?;
        self.tell(&State::Up(mux.clone()));
        self.mux = Some(mux);
        Ok(())
    }

    /// Waits until the tunnel has ended or takes no new connections. The ports are down then, and
    /// while the tunnel waits for its next WebSocket.
    async fn outlast(&mut self, mux: &Mux) {
        let tunnel = mux.tunnel();
        let mut attachments = tunnel.attachments();
        let mut now = tunnel.attachment();
        let mut down = false;
        loop {
            match now {
                Attachment::Detached(cause) if !down => {
                    down = true;
                    let cause = lost(&cause);
                    self.outage.begins(&cause);
                    self.tell(&State::Down(cause));
                }
                Attachment::Resumed(resumption) if down => {
                    down = false;
                    self.tell(&State::Up(mux.clone()));
                    self.outage.goes_on(resumption.into());
                }
                // The old WebSocket was still there, or lost just now.
                Attachment::Resumed(resumption) => {
                    self.tell(&State::Up(mux.clone()));
                    let again = SentAgain::from(resumption);
                    tracing::info!("the tunnel goes on over another WebSocket: {again}");
                }
                _ => {}
            }
            let changed = loop {
                tokio::select! {
                    () = tunnel.draining() => break None,
                    changed = attachments.changed() => break changed,
                    Ok(()) = self.woken.changed() => tunnel.probe(),
                }
            };
            match changed {
                Some(changed) => now = changed,
                None => break,
            }
        }
        let cause = match tunnel.close_reason() {
            Some(Err(error @ (TunnelError::NotResumed(_) | TunnelError::NotConnected(_)))) => {
                error.to_string()
            }
            Some(Err(error)) => lost(&error),
            Some(Ok(())) => "the tunnel was closed".to_owned(),
            None => "the other side is about to end".to_owned(),
        };
        match down {
            true => self.outage.gives_up(&cause),
            false => self.outage.begins(&cause),
        }
        self.tell(&State::Down(cause));
    }

    /// One keeper for each remote port, instead of this one.
    fn split(&mut self) -> Vec<Self> {
        let mut split: Vec<Self> = Vec::new();
        for port in std::mem::take(&mut self.ports) {
            let url = self.destination.url(port.only);
            match split.iter_mut().find(|one| one.url == url) {
                Some(one) => one.ports.push(port),
                None => split.push(Self {
                    destination: Arc::clone(&self.destination),
                    url,
                    ports: vec![port],
                    splits: false,
                    pace: self.pace.of_another(),
                    outage: Arc::clone(&self.outage),
                    mux: None,
                    woken: self.woken.clone(),
                }),
            }
        }
        split
    }

    fn tell(&self, state: &State) {
        for port in &self.ports {
            port.state.send_replace(state.clone());
        }
    }

    fn gave_up(&self, begin: Begin, last: Option<String>) -> Failure {
        let silent = || format!("no answer from {}", self.destination.host.authority());
        let last = last.unwrap_or_else(silent);
        match begin {
            Begin::Wait(Some(limit)) => Failure::refused(format!(
                "{last}; no longer waiting for task {} after {} s",
                self.destination.task,
                limit.as_secs()
            )),
            Begin::Wait(None) | Begin::AtOnce => Failure::refused(last),
        }
    }
}

/// The result of `work`, or `None` at the deadline.
async fn before<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, work).await.ok(),
        None => Some(work.await),
    }
}

fn lost(cause: &TunnelError) -> String {
    format!("lost the tunnel: {}", words::tunnel(cause))
}
