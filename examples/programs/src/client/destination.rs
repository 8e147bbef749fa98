//! Where the sessions of a command are opened.

use hyper::header::HeaderMap;
use kohakuriver_tunnel::mux::{self, Mux, Tunnel, TunnelError};
use kohakuriver_tunnel::session::clean_text;
use kohakuriver_tunnel::wire::Proto;

use crate::client::redial::Redial;
use crate::common::connection::Connection;
use crate::common::route::Session;
use crate::common::url::Url;
use crate::common::words;
use crate::common::ws::{self, ConnectError, Socket};

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

/// Why a session could not begin.
#[derive(Debug)]
pub enum Refusal {
    /// The other side speaks version 1, in which ports do not share a session.
    EachItsOwn,
    /// Perhaps no session for any port is served.
    LacksPath(ConnectError),
    Failed(ConnectError),
}

/// A session that began.
pub struct Connected {
    pub mux: Mux,
    pub v2: bool,
}

impl Destination {
    /// The URL of a session.
    pub fn url(&self, only: Only) -> Url {
        let name = self.task.clone();
        let path = Session { name, only }.path(&self.task);
        self.whole.clone().unwrap_or_else(|| self.host.join(&path))
    }

    /// Begins a session, which `redial` connects again. One that several ports share must speak
    /// version 2: in version 1 a paused reader of one port would hold up the others.
    ///
    /// # Errors
    /// The host cannot be reached or refuses.
    pub async fn connect(
        &self,
        url: &Url,
        shared: bool,
        redial: Redial,
    ) -> Result<Connected, Refusal> {
        let failed = |error: ConnectError| match shared && error.may_lack_path() {
            true => Refusal::LacksPath(error),
            false => Refusal::Failed(error),
        };
        let connecting = ws::connect(&self.connection, url, HeaderMap::new());
        let (upgraded, _) = connecting.await.map_err(failed)?;
        let (v2, resumable) = (upgraded.is_v2(), upgraded.resumable);
        let redial = move |dial| redial.clone().connect(dial);
        let session = upgraded.connect(&self.connection.tunnels, redial).await;
        let (mux, driver) = session.map_err(|error| failed(error.into()))?;
        // Without a handle it closes the WebSocket.
        tokio::spawn(driver);
        // Only now the other side knows that no tunnel of before is to go on.
        if resumable && !mux.tunnel().confirmed().await {
            return Err(failed(never_opened(mux.tunnel())));
        }
        tracing::debug!(v2, "session begins at {url}");
        if shared && !v2 {
            return Err(Refusal::EachItsOwn);
        }
        Ok(Connected { mux, v2 })
    }

    /// The next WebSocket of a session.
    ///
    /// # Errors
    /// The host cannot be reached or refuses, or the other side does not resume sessions.
    pub async fn reconnect(&self, url: &Url) -> Result<Socket, ConnectError> {
        let connecting = ws::connect(&self.connection, url, HeaderMap::new());
        let (upgraded, _) = connecting.await?;
        upgraded.reconnect(&self.connection.tunnels).await
    }

    /// One line that says why a session could not begin.
    pub fn told(&self, error: &ConnectError) -> String {
        match error {
            ConnectError::Refused { reason, status, .. } => {
                let refused = if status.is_some() { "" } else { "refused: " };
                format!("the host {} {refused}{reason}", self.host.authority())
            }
            other => other.to_string(),
        }
    }
}

/// Why a tunnel ended before the other side had opened it.
fn never_opened(tunnel: &Tunnel) -> ConnectError {
    match tunnel.close_reason() {
        Some(Err(TunnelError::Ended(Some(said)))) => mux::ConnectError::Refused {
            reason: clean_text(said.text.as_bytes()),
            code: Some(said.code),
        }
        .into(),
        // The words of `told` already.
        Some(Err(TunnelError::NotConnected(reason))) => ConnectError::Unreachable(reason),
        Some(Err(error)) => {
            let error = words::tunnel(&error);
            ConnectError::Unreachable(format!("the host did not begin the session: {error}"))
        }
        Some(Ok(())) | None => ConnectError::Unreachable("the session was given up".to_owned()),
    }
}
