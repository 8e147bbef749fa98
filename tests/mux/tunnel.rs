//! Two muxes joined by a transport, and helpers of the tests.

use std::future::Future;
use std::time::Duration;

use futures_util::{Sink, Stream};
use kohakuriver_tunnel::carrier;
use kohakuriver_tunnel::mux::{
    self, Acceptor, Builder, Incoming, Mux, TunnelDatagram, TunnelError, TunnelStream,
};
use kohakuriver_tunnel::session::{Config, Version};
use kohakuriver_tunnel::transport::Carrier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::protocol::Role as Side;

use super::pipe::{Packets, Wire, pipe};

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// The result of `future`. Fails after a time limit instead of hanging.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    within_limit(PATIENCE, future).await
}

pub(crate) async fn within_limit<F: Future>(limit: Duration, future: F) -> F::Output {
    match tokio::time::timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("nothing happened"),
    }
}

/// Until everything that this end has queued is with the transport.
pub(crate) async fn transmitted(tunnel: &mux::Tunnel) {
    within(async {
        while tunnel.stats().unsent > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Sends `len` bytes to the echo on each of so many streams at once, and compares what returns.
pub(crate) async fn echoes(mux: &Mux, streams: u64, len: usize) {
    let mut tasks = echoing(mux, streams, len);
    while let Some(task) = within(tasks.join_next()).await {
        task.unwrap();
    }
}

/// The tasks of [`echoes`].
pub(crate) fn echoing(mux: &Mux, streams: u64, len: usize) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for seed in 0..streams {
        let (mut read, mut write) = mux.open_tcp(7).unwrap().into_split();
        tasks.spawn(async move {
            let data = noise(seed, len);
            let sent = data.clone();
            let writer = tokio::spawn(async move {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            });
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.unwrap();
            writer.await.unwrap();
            assert!(got == data);
        });
    }
    tasks
}

/// Lets all other tasks do what they can do now.
pub(crate) async fn run_others() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

carrier!(pub(crate) Tungstenite: tungstenite::Message, close: tungstenite::protocol::CloseFrame);

/// The result of a driver.
pub(crate) type Ended = Result<(), TunnelError>;

/// A tunnel with both ends in this process.
pub(crate) struct Tunnel {
    /// Opens.
    pub(crate) near: Mux,
    /// Accepts.
    pub(crate) acceptor: Acceptor,
    pub(crate) far: mux::Tunnel,
    pub(crate) near_driver: JoinHandle<Ended>,
    pub(crate) far_driver: JoinHandle<Ended>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Pipe,
    WebSocket,
}

impl Link {
    pub(crate) const BOTH: [Self; 2] = [Self::Pipe, Self::WebSocket];

    pub(crate) async fn v2(self) -> Tunnel {
        self.tunnel(Version::V2, Config::default()).await
    }

    pub(crate) async fn tunnel(self, version: Version, config: Config) -> Tunnel {
        let builder = builder(version, config);
        self.built(builder.clone(), builder).await
    }

    pub(crate) async fn built(self, opening: Builder, accepting: Builder) -> Tunnel {
        match self {
            Self::Pipe => {
                let (near, far, _) = pipe(8);
                tunnel(near, far, Packets { probes: true }, opening, accepting)
            }
            Self::WebSocket => {
                let (near, far) = websockets().await;
                tunnel(near, far, Tungstenite, opening, accepting)
            }
        }
    }
}

pub(crate) fn builder(version: Version, config: Config) -> Builder {
    mux::builder().version(version).config(config)
}

/// A tunnel in memory, and its wires.
pub(crate) fn piped(version: Version, config: Config) -> (Tunnel, [Wire; 2]) {
    let (near, far, wires) = pipe(8);
    let carrier = Packets { probes: true };
    let builder = builder(version, config);
    let tunnel = tunnel(near, far, carrier, builder.clone(), builder);
    (tunnel, wires)
}

pub(crate) fn tunnel<T, C, E>(
    near: T,
    far: T,
    carrier: C,
    opening: Builder,
    accepting: Builder,
) -> Tunnel
where
    T: Stream<Item = Result<C::Message, E>> + Sink<C::Message, Error = E> + Unpin + Send + 'static,
    C: Carrier + Clone + Unpin + Send + 'static,
    C::Message: Send,
    E: std::fmt::Display + Send,
{
    let (near, driver) = opening.opener(near, carrier.clone());
    let near_driver = tokio::spawn(driver);
    let (acceptor, driver) = accepting.acceptor(far, carrier);
    let far_driver = tokio::spawn(driver);
    Tunnel {
        near,
        far: acceptor.tunnel().clone(),
        acceptor,
        near_driver,
        far_driver,
    }
}

/// The next connection, which is a stream.
pub(crate) async fn accept_tcp(acceptor: &mut Acceptor) -> TunnelStream {
    match within(acceptor.accept()).await {
        Some(Incoming::Tcp(incoming)) => incoming.accept(),
        other => panic!("no stream: {other:?}"),
    }
}

/// The next connection, which is a flow.
pub(crate) async fn accept_udp(acceptor: &mut Acceptor) -> TunnelDatagram {
    match within(acceptor.accept()).await {
        Some(Incoming::Udp(incoming)) => incoming.accept(),
        other => panic!("no flow: {other:?}"),
    }
}

/// Two ends of a TCP connection over loopback.
pub(crate) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

pub(crate) async fn websockets() -> (WebSocketStream<TcpStream>, WebSocketStream<TcpStream>) {
    let (near, far) = sockets().await;
    (
        WebSocketStream::from_raw_socket(near, Side::Client, None).await,
        WebSocketStream::from_raw_socket(far, Side::Server, None).await,
    )
}

impl Tunnel {
    /// A stream, both ends.
    pub(crate) async fn stream(&mut self) -> (TunnelStream, TunnelStream) {
        let near = self.near.open_tcp(80).unwrap();
        (near, accept_tcp(&mut self.acceptor).await)
    }

    /// A flow, both ends.
    pub(crate) async fn flow(&mut self) -> (TunnelDatagram, TunnelDatagram) {
        let near = self.near.open_udp(53).unwrap();
        (near, accept_udp(&mut self.acceptor).await)
    }

    /// Echoes every stream until the tunnel ends.
    pub(crate) fn echo(mut self) -> (Mux, JoinHandle<Ended>) {
        tokio::spawn(async move {
            while let Some(Incoming::Tcp(incoming)) = self.acceptor.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(incoming.accept());
                    // The other side checks how it ended.
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
            }
        });
        (self.near, self.near_driver)
    }
}

/// Bytes that depend on position and seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
