//! A TCP port: each accepted connection becomes a stream of the tunnel.

use std::future::{pending, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use kohakuriver_tunnel::mux::{Mux, RelayError, Tunnel, TunnelStream};
use kohakuriver_tunnel::session::Reset;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep_until};

use crate::client::access::Access;
use crate::client::args::Forward;
use crate::client::lanes::Seat;
use crate::common::accept::Accepting;
use crate::common::net::{self, MaybeTls};
use crate::common::program::Failure;
use crate::common::retry;
use crate::common::serve::is_over_pause;

/// How long an application that reads nothing keeps a connection whose other end is gone.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves the port until dropped. All ports share the places: an application in a loop must not use
/// up the descriptors.
pub async fn serve(
    listener: TcpListener,
    forward: Forward,
    access: Access,
    places: Arc<Semaphore>,
) -> Failure {
    let forward = Arc::new(forward);
    let mut accepting = Accepting::on(listener);
    loop {
        let (socket, peer) = accepting.next().await;
        net::tune_accepted_app(&socket, peer);
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!("too many connections are open already: {peer} was reset");
            continue;
        };
        let connection = Connection {
            socket: socket.into(),
            peer,
            forward: Arc::clone(&forward),
            access: access.clone(),
            deadline: Instant::now() + forward.wait,
            _place: place,
        };
        match access.seat_now() {
            Some(seat) => seat.spawn(|seat| carry(connection, seat)),
            None => drop(tokio::spawn(wait(connection))),
        }
    }
}

/// From an application.
struct Connection {
    socket: MaybeTls,
    peer: SocketAddr,
    forward: Arc<Forward>,
    access: Access,
    deadline: Instant,
    _place: OwnedSemaphorePermit,
}

/// Waits for the tunnel.
async fn wait(mut connection: Connection) {
    match connection.access.seat(connection.deadline).await {
        Ok(seat) => seat.spawn(|seat| carry(connection, seat)),
        Err(reason) => refused(&connection.forward, &reason),
    }
}

fn refused(forward: &Forward, reason: &str) {
    tracing::warn!("port {}: {reason}", forward.remote);
}

/// Serves a connection, on the thread of the tunnel that it takes.
async fn carry(connection: Connection, seat: Seat) {
    let Connection {
        mut socket,
        peer,
        forward,
        access,
        deadline,
        _place,
    } = connection;
    let port = forward.remote;
    let (mux, stream) = match Box::pin(open(&forward, access, &seat, deadline)).await {
        Ok(opened) => opened,
        Err(reason) => return refused(&forward, &reason),
    };
    tracing::debug!(%peer, port, tunnel = seat.index, "connected");
    let grace = || tokio::time::sleep(LAST_WORDS);
    let established = stream.established();
    let ended = {
        let mut relaying = pin!(stream.relay_with_grace(&mut socket, grace));
        // Before the deadline CONNECTED does not matter, so it need not wake this task.
        match before(deadline, relaying.as_mut()).await {
            Some(ended) => Some(ended),
            None => tokio::select! {
                biased;
                ended = &mut relaying => Some(ended),
                in_time = Box::pin(is_established(established, mux.tunnel())) => match in_time {
                    true => Some(relaying.await),
                    false => None,
                },
            },
        }
    };
    let Some(ended) = ended else {
        return refused(
            &forward,
            "the tunnel was lost before the service had answered",
        );
    };
    match ended {
        Ok(relayed) => {
            net::end_in_order(socket.tcp());
            tracing::debug!(%peer, port, ?relayed, "ended");
        }
        Err(RelayError::Tunnel(reset)) => {
            let line = told(port, &reset);
            // The loss of the tunnel is logged once, not for each connection.
            let lost = mux.tunnel().close_reason().is_some();
            if lost && !is_over_pause(&reset, mux.tunnel()) {
                tracing::debug!("{line}");
            } else {
                tracing::warn!("{line}");
            }
        }
        Err(RelayError::Local(error)) => {
            tracing::debug!(%peer, port, "ended by the application: {error}");
        }
        Err(error) => tracing::debug!(%peer, port, "ended: {error}"),
    }
}

/// The output of `work`, unless the deadline comes first. It is polled for each message, so the
/// timer is polled only once and when it is over: it keeps the waker, which is that of the task.
async fn before<T>(deadline: Instant, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    let mut over = Box::pin(sleep_until(deadline));
    let mut is_set = false;
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        if !is_set || over.is_elapsed() {
            is_set = true;
            // It is not set if the budget of the task is used up.
            let mut over = unconstrained(over.as_mut());
            return Pin::new(&mut over).poll(cx).map(|()| None);
        }
        Poll::Pending
    })
    .await
}

/// Waits until a port has answered. False if the tunnel is without a WebSocket: it may be for long,
/// and nothing is lost yet.
async fn is_established(
    established: impl Future<Output = Result<(), Reset>>,
    tunnel: &Tunnel,
) -> bool {
    let overdue = async {
        let mut attachments = tunnel.attachments();
        while tunnel.is_attached() {
            if attachments.changed().await.is_none() {
                pending::<()>().await;
            }
        }
    };
    tokio::select! {
        biased;
        // The relay has the reset.
        _ = established => true,
        () = overdue => false,
    }
}

/// Opens a stream on the tunnel of this seat. If that has just ended, on the first one, which may
/// have to come up again.
async fn open(
    forward: &Forward,
    mut access: Access,
    seat: &Seat,
    deadline: Instant,
) -> Result<(Mux, TunnelStream), String> {
    if let Some(mux) = &seat.mux {
        if let Ok(stream) = mux.open_tcp(forward.remote) {
            return Ok((mux.clone(), stream));
        }
    }
    loop {
        let mux = access.up(deadline).await?;
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
