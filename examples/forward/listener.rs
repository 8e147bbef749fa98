//! Local ports: bound first, announced when their tunnels are up.

use futures_util::future::try_join_all;
use socket2::SockRef;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::task::JoinSet;

use crate::args::Forward;
use crate::common::net;
use crate::common::program::{Failure, announce};
use crate::common::route::Proto;
use crate::link::{self, Keeper, Link};
use crate::{flows, streams};

/// Bytes of datagrams the kernel may hold for a UDP port, if the system allows.
const UDP_BUFFER: usize = 4 << 20;

enum Bound {
    Tcp(TcpSocket),
    Udp(UdpSocket),
}

/// Forwards until the other side refuses for good.
///
/// # Errors
/// A port is taken, the host cannot be reached or refuses.
pub async fn forward(forwards: Vec<Forward>) -> Result<(), Failure> {
    // Bound but not listening: until the tunnel is up an application is refused, not kept waiting.
    let bound = forwards.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
    let links = connect(&forwards).await?;
    let mut work = JoinSet::new();
    for ((forward, bound), (link, keeper)) in forwards.into_iter().zip(bound).zip(links) {
        if let Some(keeper) = keeper {
            work.spawn(keeper.keep());
        }
        match bound {
            Bound::Tcp(socket) => {
                let listener = socket
                    .listen(1024)
                    .map_err(|error| taken(&forward, &error))?;
                announce(&ready_line(&forward, listener.local_addr())?);
                work.spawn(streams::serve(listener, forward, link));
            }
            Bound::Udp(socket) => {
                announce(&ready_line(&forward, socket.local_addr())?);
                work.spawn(flows::serve(socket, forward, link));
            }
        }
    }
    match work.join_next().await {
        Some(Ok(failure)) => Err(failure),
        Some(Err(error)) => Err(Failure::failed(format!("a task failed: {error}"))),
        None => Ok(()),
    }
}

/// One tunnel per URL: ports that share a URL share the tunnel.
async fn connect(forwards: &[Forward]) -> Result<Vec<(Link, Option<Keeper>)>, Failure> {
    let mut destinations: Vec<_> = forwards.iter().map(|f| &f.destination).collect();
    destinations.sort_by_key(|destination| (destination.url.authority(), destination.url.target()));
    destinations.dedup_by(|one, other| one.url == other.url);
    let connecting = destinations.into_iter().map(|destination| async move {
        let url = &destination.url;
        match link::connect(destination.clone()).await {
            Ok((link, keeper)) => Ok((url, link, Some(keeper))),
            Err(error) => Err(link::refused(url, &error)),
        }
    });
    let mut connected = try_join_all(connecting).await?;
    let link_of = |forward: &Forward| {
        let found = connected
            .iter_mut()
            .find(|(url, ..)| **url == forward.destination.url);
        found
            .map(|(_, link, keeper)| (link.clone(), keeper.take()))
            .ok_or_else(|| Failure::failed("a port has no tunnel"))
    };
    forwards.iter().map(link_of).collect()
}

fn bind(forward: &Forward) -> Result<Bound, Failure> {
    let bound = match forward.proto {
        Proto::Tcp => net::bind_tcp(forward.local).map(Bound::Tcp),
        Proto::Udp => std::net::UdpSocket::bind(forward.local).and_then(|socket| {
            socket.set_nonblocking(true)?;
            let _ = SockRef::from(&socket).set_recv_buffer_size(UDP_BUFFER);
            let _ = SockRef::from(&socket).set_send_buffer_size(UDP_BUFFER);
            UdpSocket::from_std(socket).map(Bound::Udp)
        }),
    };
    bound.map_err(|error| taken(forward, &error))
}

fn taken(forward: &Forward, error: &std::io::Error) -> Failure {
    let Forward { local, proto, .. } = forward;
    let reason = net::plain(error);
    Failure::failed(format!(
        "cannot listen on {local} ({proto}): {reason}; choose another local port with --local-port N or {}:N, 0 takes a free one",
        forward.remote
    ))
}

fn ready_line(
    forward: &Forward,
    local: std::io::Result<std::net::SocketAddr>,
) -> Result<String, Failure> {
    let local = local.map_err(|error| taken(forward, &error))?;
    let Forward {
        proto,
        task,
        remote,
        ..
    } = forward;
    Ok(format!(
        "Listening on {local} ({proto}) -> task {task} port {remote}"
    ))
}
