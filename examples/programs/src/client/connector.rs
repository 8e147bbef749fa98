//! Opens a tunnel, and follows it through the losses of its WebSockets to its end.

use std::sync::Arc;

use hyper::header::HeaderMap;
use kohakuriver_tunnel::mux::{self, Attachment, Mux, Tunnel, TunnelError};
use kohakuriver_tunnel::session::clean_text;
use kohakuriver_tunnel::wire::Proto;
use tokio::sync::watch;

use crate::client::outage::Outage;
use crate::client::pace::Pace;
use crate::client::redial::Redial;
use crate::common::connection::Connection;
use crate::common::resume::sent_again;
use crate::common::route::Session;
use crate::common::tunnel::Upgraded;
use crate::common::url::Url;
use crate::common::words;
use crate::common::ws::{self, HandshakeError, Socket};

/// A task and its host.
#[derive(Clone)]
pub struct Destination {
    /// The host's base URL.
    pub host: Url,
    /// The URL of a session for any port, if the user wrote a whole one. It is used unchanged.
    pub whole: Option<Url>,
    pub task: String,
    pub connection: Connection,
}

/// The one port and protocol of a session; `None` for any.
pub type Only = Option<(u16, Proto)>;

/// Where a tunnel goes, and what the tunnels of a command share.
#[derive(Clone)]
pub struct Connector {
    pub destination: Arc<Destination>,
    pub url: Url,
    /// The session is for any port because there are several ports, and each can have its own
    /// session instead.
    pub splits: bool,
    /// For new tunnels. The next WebSockets of a tunnel have their own pace.
    pub pace: Pace,
    pub outage: Arc<Outage>,
    pub woken: watch::Receiver<()>,
}

/// A session that began.
pub struct Connected {
    pub mux: Mux,
    pub v2: bool,
}

/// Why a session could not begin.
#[derive(Debug)]
pub enum Refusal {
    /// The other side speaks version 1, in which ports do not share a session.
    EachItsOwn,
    /// Perhaps no session for any port is served.
    LacksPath(HandshakeError),
    Failed(HandshakeError),
}

/// How a tunnel ended for new connections.
pub struct Over {
    /// It had lost its WebSocket before.
    pub down: bool,
    pub cause: String,
}

impl Destination {
    /// The URL of a session.
    pub fn url(&self, only: Only) -> Url {
        let name = self.task.clone();
        let path = Session { name, only }.path(&self.task);
        self.whole.clone().unwrap_or_else(|| self.host.join(&path))
    }
}

impl Connector {
    /// The same for a tunnel on another thread.
    pub fn for_thread(&self) -> Self {
        let mut destination = Destination::clone(&self.destination);
        destination.connection.tunnels = destination.connection.tunnels.for_thread();
        Self {
            destination: Arc::new(destination),
            ..self.clone()
        }
    }

    /// Begins a session. The tunnel's driver is spawned on the caller's runtime.
    ///
    /// # Errors
    /// The host cannot be reached or refuses. A session that several ports share must speak version
    /// 2: in version 1 a paused reader of one port would hold up the others.
    pub async fn connect(&self) -> Result<Connected, Refusal> {
        let failed = |error: HandshakeError| match self.splits && error.may_lack_path() {
            true => Refusal::LacksPath(error),
            false => Refusal::Failed(error),
        };
        let upgraded = self.upgrade().await.map_err(failed)?;
        let (v2, resumable) = (upgraded.is_v2(), upgraded.resumable);
        let redial = Redial::new(self.clone());
        let redial = move |dial| redial.clone().connect(dial);
        let session = upgraded
            .connect(&self.destination.connection.tunnels, redial)
            .await;
        let (mux, driver) = session.map_err(|error| failed(error.into()))?;
        // Without a handle it closes the WebSocket.
        tokio::spawn(driver);
        // Only now the other side knows that no tunnel of before is to go on.
        if resumable && !mux.tunnel().confirmed().await {
            return Err(failed(never_opened(mux.tunnel())));
        }
        tracing::debug!(v2, "session begins at {}", self.url);
        if self.splits && !v2 {
            return Err(Refusal::EachItsOwn);
        }
        Ok(Connected { mux, v2 })
    }

    /// The next WebSocket of a session.
    ///
    /// # Errors
    /// The host cannot be reached or refuses, or the other side does not resume sessions.
    pub async fn reconnect(&self) -> Result<Socket, HandshakeError> {
        let upgraded = self.upgrade().await?;
        upgraded
            .reconnect(&self.destination.connection.tunnels)
            .await
    }

    async fn upgrade(&self) -> Result<Upgraded, HandshakeError> {
        let connection = &self.destination.connection;
        let (upgraded, _) = ws::connect(connection, &self.url, HeaderMap::new()).await?;
        Ok(upgraded)
    }

    /// One line that says why a session could not begin.
    pub fn told(&self, error: &HandshakeError) -> String {
        match error {
            HandshakeError::Refused { reason, status, .. } => {
                let host = self.destination.host.authority();
                let refused = if status.is_some() { "" } else { "refused: " };
                format!("the host {host} {refused}{reason}")
            }
            other => other.to_string(),
        }
    }

    /// Waits until the tunnel has ended or takes no new connections. `tell` is told why it is down
    /// when it has lost its WebSocket, and `None` when it is up.
    pub async fn outlast(&mut self, tunnel: &Tunnel, tell: impl Fn(Option<&str>)) -> Over {
        let mut attachments = tunnel.attachments();
        let mut changed = Some(tunnel.attachment());
        let mut down = false;
        while let Some(now) = changed {
            match now {
                Attachment::Detached(cause) if !down => {
                    down = true;
                    let cause = lost(&cause);
                    self.outage.begins(&cause);
                    tell(Some(&cause));
                }
                Attachment::Detached(_) => {}
                // One that was lost before the other side had answered begins anew.
                up => {
                    tell(None);
                    let again = match up {
                        Attachment::Resumed(again) => Some((again.messages, again.bytes)),
                        _ => None,
                    };
                    if std::mem::take(&mut down) {
                        self.outage.goes_on(again.unwrap_or_default());
                    } else if let Some(again) = again {
                        // The old WebSocket was still there, or lost just now.
                        let again = sent_again(again);
                        tracing::info!("the tunnel goes on over another WebSocket: {again}");
                    }
                }
            }
            changed = loop {
                tokio::select! {
                    () = tunnel.draining() => break None,
                    changed = attachments.changed() => break changed,
                    Ok(()) = self.woken.changed() => tunnel.probe(),
                }
            };
        }
        let cause = match tunnel.close_reason() {
            Some(Err(error @ (TunnelError::NotResumed(_) | TunnelError::NotConnected(_)))) => {
                error.to_string()
            }
            Some(Err(error)) => lost(&error),
            Some(Ok(())) => "the tunnel was closed".to_owned(),
            None => "the other side is about to end".to_owned(),
        };
        Over { down, cause }
    }
}

fn lost(cause: &TunnelError) -> String {
    format!("lost the tunnel: {}", words::tunnel(cause))
}

/// Why a tunnel ended before the other side had opened it.
fn never_opened(tunnel: &Tunnel) -> HandshakeError {
    match tunnel.close_reason() {
        Some(Err(TunnelError::Ended(Some(said)))) => mux::ConnectError::Refused {
            reason: clean_text(said.text.as_bytes()),
            code: Some(said.code),
        }
        .into(),
        // The words of `told` already.
        Some(Err(TunnelError::NotConnected(reason))) => HandshakeError::Unreachable(reason),
        Some(Err(error)) => {
            let error = words::tunnel(&error);
            HandshakeError::Unreachable(format!("the host did not begin the session: {error}"))
        }
        Some(Ok(())) | None => HandshakeError::Unreachable("the session was given up".to_owned()),
    }
}
