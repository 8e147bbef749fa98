//! A TCP port: each accepted connection becomes a stream of the tunnel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_tunnel::mux::{Mux, RelayError, TunnelStream};
use kohakuriver_tunnel::session::Reset;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::client::args::Forward;
use crate::client::link::Link;
use crate::common::accept::Accepting;
use crate::common::net;
use crate::common::program::Failure;
use crate::common::retry;

/// Most connections of one port, including those that wait for the tunnel. Without the bound, an
/// application in a loop could use up the file descriptors.
const CONNECTIONS: usize = 16_000;

/// How long an application that reads nothing keeps a connection whose other end is gone.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves the port until dropped.
pub async fn serve(listener: TcpListener, forward: Forward, link: Link) -> Failure {
    let forward = Arc::new(forward);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut accepting = Accepting::on(listener);
    loop {
        let (socket, peer) = accepting.next().await;
        net::tune_app(&socket);
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!("{CONNECTIONS} connections are open already: {peer} was reset");
            net::reset_on_drop(&socket);
            continue;
        };
        let (forward, link) = (Arc::clone(&forward), link.clone());
        tokio::spawn(async move {
            connection(socket, peer, &forward, link).await;
            drop(place);
        });
    }
}

async fn connection(mut socket: TcpStream, peer: SocketAddr, forward: &Forward, link: Link) {
    let port = forward.remote;
    let (mux, stream) = match Box::pin(open(forward, link)).await {
        Ok(opened) => opened,
        Err(reason) => {
            tracing::warn!("port {port}: {reason}");
            return net::reset_on_drop(&socket);
        }
    };
    tracing::debug!(%peer, port, "connected");
    let grace = || tokio::time::sleep(LAST_WORDS);
    match stream.relay_with_grace(&mut socket, grace).await {
        Ok(relayed) => tracing::debug!(%peer, port, ?relayed, "ended"),
        Err(RelayError::Tunnel(reset)) => {
            let line = told(port, &reset);
            // The loss of the tunnel is logged once, not for each connection.
            if mux.tunnel().close_reason().is_some() {
                tracing::debug!("{line}");
            } else {
                tracing::warn!("{line}");
            }
            net::reset_on_drop(&socket);
        }
        Err(RelayError::Local(error)) => {
            tracing::debug!(%peer, port, "ended by the application: {error}");
        }
        Err(error) => tracing::debug!(%peer, port, "ended: {error}"),
    }
}

/// Opens a stream on the tunnel, which may have to come up again first.
async fn open(forward: &Forward, mut link: Link) -> Result<(Mux, TunnelStream), String> {
    let deadline = Instant::now() + forward.wait;
    loop {
        let mux = link.up(deadline).await?;
        match mux.open_tcp(forward.remote) {
            Ok(stream) => return Ok((mux, stream)),
            Err(error) => retry::await_successor(error, deadline)
                .await
                .map_err(|error| error.to_string())?,
        }
    }
}

/// One line on why a connection ended: the other side's words with the port, or the reason alone.
pub fn told(port: u16, reset: &Reset) -> String {
    let text = reset.text.trim();
    if text.is_empty() {
        format!("port {port}: {}", reset.reason)
    } else if text.starts_with("port ") {
        text.to_owned()
    } else {
        format!("port {port}: {text}")
    }
}
