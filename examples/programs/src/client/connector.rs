//! Opens a tunnel, and follows it through the losses of its WebSockets to its end.

use std::sync::Arc;

use kohakuriver_tunnel::mux::{Attachment, Tunnel, TunnelError};
use tokio::sync::watch;

use crate::client::destination::{Connected, Destination, Refusal};
use crate::client::outage::Outage;
use crate::client::pace::Pace;
use crate::client::redial::Redial;
use crate::common::resume::sent_again;
use crate::common::url::Url;
use crate::common::words;

/// Where a tunnel goes, and what the tunnels of a command share.
#[derive(Clone)]
pub struct Connector {
    pub destination: Arc<Destination>,
    pub url: Url,
    /// The session is for any port because there are several ports, and each can have its own
    /// session instead.
    pub splits: bool,
    /// Of new tunnels. The next WebSockets of a tunnel have their own.
    pub pace: Pace,
    pub outage: Arc<Outage>,
    pub woken: watch::Receiver<()>,
}

/// How a tunnel ended for new connections.
pub struct Over {
    /// It had lost its WebSocket before.
    pub down: bool,
    pub cause: String,
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

    /// One attempt. The tunnel's driver is spawned on the caller's runtime.
    ///
    /// # Errors
    /// The host cannot be reached or refuses.
    pub async fn connect(&self) -> Result<Connected, Refusal> {
        let redial = Redial::new(self.clone());
        self.destination
            .connect(&self.url, self.splits, redial)
            .await
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
