//! The last step of the chain, from a requested stream or flow to the socket of the service. The
//! agent does it inside the container, and the runner for targets that it reaches directly.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_tunnel::mux::{Incoming, IncomingTcp, IncomingUdp, RelayError, Tunnel};
use kohakuriver_tunnel::session::{Reason, Reset};
use kohakuriver_tunnel::wire::Proto;
use tokio::time::{Instant, timeout_at};

use super::ceilings::ServingCeilings;
use super::dials::{self, Dials, Parties, Party};
use super::flow::ServiceFlow;
use super::metrics::Counter;
use super::names::Names;
use super::net;

/// Time for a connection attempt: waiting for its turn, looking up the name, and the answer.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a service that reads nothing keeps the connection of a client that is gone.
pub const LAST_WORDS: Duration = Duration::from_secs(5);

/// Longest silence of a UDP peer that users can choose, in seconds.
pub const UDP_IDLE_MAX: u64 = 86_400;

/// Silence in both directions after which a flow and its socket are closed. Clients of version 2
/// close their flows themselves, after as long as their users chose.
pub const fn flow_idle(v2: bool) -> Duration {
    Duration::from_secs(if v2 { UDP_IDLE_MAX } else { 60 })
}

/// Connections to services, and what became of them.
#[derive(Debug)]
pub struct Served {
    pub parties: Parties,
    pub dials: Dials,
    names: Names,
    pub streams: Counter,
    pub flows: Counter,
    pub refused: Counter,
    /// Datagrams that the service's machine answered with "port unreachable".
    pub flow_refusals: Counter,
    /// Datagrams that could not be sent, for example because they are too large for the path.
    pub flow_failures: Counter,
}

impl Served {
    /// `rests`: an attempt that fails keeps its turn for a while, because each party is a session.
    /// For an agent each connection is a party, because only the runner knows the sessions and
    /// limits them.
    pub fn new(ceilings: ServingCeilings, rests: bool, names: Names) -> Self {
        Self {
            parties: Parties::default(),
            dials: Dials::new(ceilings, rests, Arc::default()),
            names,
            streams: Counter::default(),
            flows: Counter::default(),
            refused: Counter::default(),
            flow_refusals: Counter::default(),
            flow_failures: Counter::default(),
        }
    }
}

/// Connects a requested stream or flow of a tunnel to `host`, and returns when it has ended.
pub async fn incoming(
    incoming: Incoming,
    tunnel: &Tunnel,
    host: &str,
    v2: bool,
    served: &Served,
    party: Party,
) {
    match incoming {
        Incoming::Tcp(incoming) => stream(incoming, tunnel, host, served, party).await,
        Incoming::Udp(incoming) => flow(incoming, host, v2, served, party).await,
        other => reject(other, &unknown_kind(), served),
    }
}

/// Whether a tunnel of version 1 has ended while the reader of this stream paused. No other line
/// says whose pause it was.
pub fn is_over_pause(reset: &Reset, tunnel: &Tunnel) -> bool {
    reset.reason == Reason::Overflow && tunnel.close_reason().is_some()
}

/// Why something that is neither a stream nor a flow is refused.
pub fn unknown_kind() -> Reset {
    Reset::new(Reason::Denied, "only TCP and UDP are served here")
}

/// Connects a stream to the first address of `host` that answers.
async fn stream(incoming: IncomingTcp, tunnel: &Tunnel, host: &str, served: &Served, party: Party) {
    let port = incoming.port();
    let connect = async |addresses: Vec<_>| net::connect_any(&addresses).await;
    // Boxed, so that a connected stream does not keep what connecting needed.
    let dials = (served, party, Proto::Tcp);
    let (mut socket, _place) =
        match Box::pin(dial(port, incoming.abandoned(), host, dials, connect)).await {
            Ok(connected) => connected,
            Err(reset) => return reject(incoming.into(), &reset, served),
        };
    net::tune_app(&socket);
    served.streams.add(1);
    tracing::debug!(port, "connected");
    let grace = || tokio::time::sleep(LAST_WORDS);
    let stream = incoming.accept();
    match stream.relay_with_grace(&mut socket, grace).await {
        Ok(relayed) => {
            net::end_in_order(&socket);
            tracing::debug!(port, ?relayed, "ended");
        }
        Err(RelayError::Tunnel(reset)) if is_over_pause(&reset, tunnel) => {
            tracing::warn!("port {port}: {}", reset.text);
        }
        Err(RelayError::Tunnel(reset)) => tracing::debug!(port, "ended by the tunnel: {reset}"),
        Err(RelayError::Local(error)) => tracing::debug!(port, "ended by the service: {error}"),
        Err(error) => tracing::debug!(port, "ended: {error}"),
    }
}

/// Connects a flow to the first address of `host` that takes datagrams. In version 2 the other side
/// opens another flow if this end says that the port is refused.
async fn flow(incoming: IncomingUdp, host: &str, v2: bool, served: &Served, party: Party) {
    let port = incoming.port();
    let connect = async |addresses: Vec<SocketAddr>| {
        let first = addresses.first().ok_or_else(net::no_address)?;
        Ok((ServiceFlow::open(*first).await?, addresses))
    };
    let (abandoned, dials) = (incoming.abandoned(), (served, party, Proto::Udp));
    let dialled = Box::pin(dial(port, abandoned, host, dials, connect)).await;
    let ((socket, addresses), _place) = match dialled {
        Ok(connected) => connected,
        Err(reset) => return reject(incoming.into(), &reset, served),
    };
    served.flows.add(1);
    tracing::debug!(port, "flow opened");
    let flow = ServiceFlow::new(incoming.accept(), port, socket, &addresses, served);
    let ended = flow.run(v2).await;
    tracing::debug!(port, "flow ended: {ended}");
}

/// Calls `connect` with the addresses of `host`. Returns its result and a place among the
/// connections, unless that takes too long or the client gives up.
async fn dial<T>(
    port: u16,
    abandoned: impl Future<Output = ()>,
    host: &str,
    (served, party, proto): (&Served, Party, Proto),
    connect: impl AsyncFnOnce(Vec<SocketAddr>) -> io::Result<T>,
) -> Result<(T, dials::Socket), Reset> {
    let failed = |reason, text: &str| Reset::new(reason, &format!("port {port}: {text}"));
    let until = Instant::now() + CONNECT_TIMEOUT;
    let connecting = async {
        let turn = served.dials.turn(party, until).await?;
        let place = served.dials.socket(party, proto)?;
        let connected = async {
            let unknown = |error| io::Error::new(io::ErrorKind::NotFound, error);
            let addresses = net::resolve(&served.names, host, port);
            let addresses = addresses.await.map_err(unknown)?;
            connect(addresses).await
        };
        match timeout_at(until, connected).await {
            Ok(Ok(connected)) => {
                turn.succeeded();
                Ok((connected, place))
            }
            Ok(Err(error)) => Err(failed(reason(&error), &net::plain(&error))),
            Err(_) => {
                let text = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
                Err(failed(Reason::TimedOut, &text))
            }
        }
    };
    unless_abandoned(abandoned, connecting).await?
}

/// Does `work` unless the client gives up its request before.
pub async fn unless_abandoned<T>(
    abandoned: impl Future<Output = ()>,
    work: impl Future<Output = T>,
) -> Result<T, Reset> {
    tokio::select! {
        done = work => Ok(done),
        () = abandoned => Err(Reset::new(Reason::Gone, "given up by the client")),
    }
}

fn reject(incoming: Incoming, reset: &Reset, served: &Served) {
    tracing::debug!(port = incoming.port(), "not connected: {reset}");
    served.refused.add(1);
    incoming.reject(reset.reason, &reset.text);
}

/// The protocol's reason for a failed connection.
pub fn reason(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Reason::Refused,
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::AddrNotAvailable
        | io::ErrorKind::NotFound => Reason::Unreachable,
        io::ErrorKind::TimedOut => Reason::TimedOut,
        io::ErrorKind::PermissionDenied => Reason::Denied,
        _ => Reason::Unspecified,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::FutureExt;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn attempts_that_are_given_up_are_limited() {
        let ceilings = ServingCeilings {
            dials: 9,
            connections: 100,
        };
        let served = Served::new(ceilings, true, Names::default());
        let (flood, other) = (served.parties.party(), served.parties.party());
        for _ in 0..5 {
            let begun = Notify::new();
            let connect = async |_| {
                begun.notify_one();
                pending::<io::Result<()>>().await
            };
            let dials = (&served, flood, Proto::Tcp);
            let dialled = dial(80, begun.notified(), "127.0.0.1", dials, connect);
            assert!(dialled.await.is_err());
        }
        let until = Instant::now() + CONNECT_TIMEOUT;
        let at_once = |party| served.dials.turn(party, until).now_or_never();
        assert!(at_once(flood).is_none());
        assert!(at_once(other).is_some());
    }
}
