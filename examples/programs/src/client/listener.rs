//! Local ports: bound first, announced once their tunnels are up.

use std::io::ErrorKind;
use std::sync::Arc;

use kohakuriver_tunnel::wire::Proto;
use socket2::SockRef;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::client::args::{Command, Forward};
use crate::client::lanes::Lanes;
use crate::client::upkeep::Upkeep;
use crate::client::{flows, streams};
use crate::common::ceilings::applications;
use crate::common::net;
use crate::common::program::{Failure, Process};

/// Bytes of datagrams that the kernel may hold for a UDP port, if the system allows.
const UDP_BUFFER: usize = 4 << 20;

/// The error of a system without the address's family, such as IPv6.
#[cfg(unix)]
const NO_SUCH_FAMILY: i32 = libc::EAFNOSUPPORT;
#[cfg(not(unix))]
const NO_SUCH_FAMILY: i32 = 10_047;

enum Bound {
    Tcp(TcpSocket),
    Udp(UdpSocket),
}

/// Forwards until the user ends it.
///
/// # Errors
/// A port is in use. At the start also: the host cannot be reached or refuses.
pub async fn forward(command: Command, process: &Process) -> Result<(), Failure> {
    let ports = command.ports;
    // Bound but not listening: until the tunnel is up, applications are refused and do not hang.
    let bound = ports.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
    let (upkeep, accesses) = Upkeep::new(
        command.destination,
        ports.iter().map(|port| Some((port.remote, port.proto))),
        Lanes::on(&process.threads, command.tunnels),
    );
    let upkeeps = upkeep.begin(command.wait_for_task).await?;
    let places = Arc::new(Semaphore::new(applications(process.threads.count())));
    let mut work = JoinSet::new();
    for upkeep in upkeeps {
        work.spawn(async { match upkeep.keep().await {} });
    }
    for ((forward, bound), access) in ports.into_iter().zip(bound).zip(accesses) {
        match bound {
            Bound::Tcp(socket) => {
                let listener = net::listen_on(socket, 1024);
                let listener = listener.map_err(|error| taken(&forward, &error))?;
                process.announce(&ready_line(&forward, listener.local_addr())?);
                let places = Arc::clone(&places);
                work.spawn(streams::serve(listener, forward, access, places));
            }
            Bound::Udp(socket) => {
                process.announce(&ready_line(&forward, socket.local_addr())?);
                work.spawn(flows::serve(socket, forward, access));
            }
        }
    }
    match work.join_next().await {
        Some(Ok(failure)) => Err(failure),
        Some(Err(error)) => Err(Failure::failed(format!("a task failed: {error}"))),
        None => Ok(()),
    }
}

fn bind(forward: &Forward) -> Result<Bound, Failure> {
    let bound = match forward.proto {
        Proto::Tcp => net::bind_app(forward.local).map(Bound::Tcp),
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
    let elsewhere =
        error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(NO_SUCH_FAMILY);
    let remedy = match error.kind() {
        ErrorKind::AddrInUse | ErrorKind::PermissionDenied => format!(
            "; choose another local port with --local-port N or {}:N, 0 takes a free one",
            forward.remote
        ),
        _ if elsewhere => "; give an address of this machine with --local-host".to_owned(),
        _ if reason.starts_with("too many open files") => "; raise ulimit -n".to_owned(),
        _ => String::new(),
    };
    Failure::failed(format!(
        "cannot listen on {local} ({proto}): {reason}{remedy}"
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

#[cfg(all(test, unix))]
mod tests {
    use std::io::Error;
    use std::time::Duration;

    use super::*;

    #[test]
    fn another_address_is_asked_for_only_where_it_helps() {
        let forward = Forward {
            local: ([127, 0, 0, 1], 80).into(),
            proto: Proto::Tcp,
            remote: 80,
            task: "42".to_owned(),
            wait: Duration::ZERO,
            udp_idle: Duration::ZERO,
            udp_peers: 1,
        };
        for (number, flag) in [
            (libc::EADDRINUSE, "--local-port"),
            (libc::EACCES, "--local-port"),
            (libc::EADDRNOTAVAIL, "--local-host"),
            (libc::EAFNOSUPPORT, "--local-host"),
            (libc::EMFILE, "ulimit -n"),
        ] {
            let line = taken(&forward, &Error::from_raw_os_error(number)).to_string();
            assert!(line.contains(flag), "{line}");
        }
        let line = taken(&forward, &Error::from_raw_os_error(libc::ENOBUFS)).to_string();
        assert!(!line.contains(';'), "{line}");
    }
}
