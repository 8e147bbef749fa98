//! A stream joined with a local connection.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use kohakuriver_tunnel::mux::{RelayError, Relayed, TunnelStream};
use kohakuriver_tunnel::session::{Config, Reason, Reset, Version};
use kohakuriver_tunnel::wire::Chunk;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf, duplex};
use tokio::task::JoinHandle;

use super::tunnel::{Link, Tunnel, noise, sockets, transmitted, within};

type Outcome = JoinHandle<Result<Relayed, RelayError>>;

/// Relays `stream` with `local`, which is dropped with the relay.
fn relay<S>(stream: TunnelStream, mut local: S) -> Outcome
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move { stream.relay(&mut local).await })
}

#[derive(Debug, Clone, Copy)]
enum Local {
    Memory,
    Tcp,
}

trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection for S {}

impl Local {
    async fn pair(self) -> (Box<dyn Connection>, Box<dyn Connection>) {
        match self {
            Self::Memory => {
                let (near, far) = duplex(100_000);
                (Box::new(near), Box::new(far))
            }
            Self::Tcp => {
                let (near, far) = sockets().await;
                (Box::new(near), Box::new(far))
            }
        }
    }
}

/// A tunnel with relays at both ends, and the connections behind them.
async fn joined(
    tunnel: &mut Tunnel,
    local: Local,
) -> (Box<dyn Connection>, Box<dyn Connection>, [Outcome; 2]) {
    let (near, far) = tunnel.stream().await;
    let (client, near_local) = local.pair().await;
    let (service, far_local) = local.pair().await;
    let relays = [relay(near, near_local), relay(far, far_local)];
    (client, service, relays)
}

async fn speak(mut write: impl AsyncWrite + Unpin, seed: u64, len: usize) {
    let block = noise(seed, 1 << 20);
    let mut left = len;
    while left > 0 {
        let piece = &block[..left.min(block.len())];
        within(write.write_all(piece)).await.unwrap();
        left -= piece.len();
    }
    write.shutdown().await.unwrap();
}

async fn listen(mut read: impl AsyncRead + Unpin, seed: u64, len: usize) {
    let block = noise(seed, 1 << 20);
    let mut got = vec![0; block.len()];
    let mut left = len;
    while left > 0 {
        let piece = left.min(block.len());
        within(read.read_exact(&mut got[..piece])).await.unwrap();
        assert!(got[..piece] == block[..piece]);
        left -= piece;
    }
    assert_eq!(within(read.read(&mut got)).await.unwrap(), 0);
}

/// Both ways at once; each direction ends separately.
async fn exchange(len: usize, link: Link, local: Local) {
    let mut tunnel = link.v2().await;
    let (client, service, relays) = joined(&mut tunnel, local).await;
    let (client_read, client_write) = tokio::io::split(client);
    let (service_read, service_write) = tokio::io::split(service);
    let tasks = [
        tokio::spawn(speak(client_write, 1, len)),
        tokio::spawn(listen(service_read, 1, len)),
        tokio::spawn(speak(service_write, 2, len)),
        tokio::spawn(listen(client_read, 2, len)),
    ];
    for task in tasks {
        task.await.unwrap();
    }
    let len = len as u64;
    for relay in relays {
        let relayed = within(relay).await.unwrap().unwrap();
        assert_eq!((relayed.sent, relayed.received), (len, len));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes_each_way_over_tcp() {
    exchange(64 << 20, Link::WebSocket, Local::Tcp).await;
}

#[tokio::test]
async fn sixty_four_mebibytes_each_way_in_memory() {
    exchange(64 << 20, Link::Pipe, Local::Memory).await;
}

#[tokio::test]
async fn a_relay_keeps_the_reply_after_a_half_close() {
    for (link, local) in [(Link::Pipe, Local::Tcp), (Link::WebSocket, Local::Memory)] {
        let mut tunnel = link.v2().await;
        let (client, service, relays) = joined(&mut tunnel, local).await;
        let (client_read, client_write) = tokio::io::split(client);
        let (service_read, service_write) = tokio::io::split(service);
        speak(client_write, 1, 100_000).await;
        listen(service_read, 1, 100_000).await;
        let reply = speak(service_write, 2, 1 << 20);
        tokio::join!(reply, listen(client_read, 2, 1 << 20));
        for relay in relays {
            within(relay).await.unwrap().unwrap();
        }
    }
}

/// A local connection that counts writes and fails on request.
struct Faulty {
    inner: tokio::io::DuplexStream,
    fail_read: bool,
    fail_write: bool,
    buffered: Vec<u8>,
}

impl Faulty {
    fn new(inner: tokio::io::DuplexStream) -> Self {
        Self {
            inner,
            fail_read: false,
            fail_write: false,
            buffered: Vec::new(),
        }
    }
}

impl AsyncRead for Faulty {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.fail_read {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Faulty {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.fail_write {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.buffered.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while !this.buffered.is_empty() {
            let len = match Pin::new(&mut this.inner).poll_write(cx, &this.buffered) {
                Poll::Ready(len) => len?,
                Poll::Pending => return Poll::Pending,
            };
            this.buffered.drain(..len);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.as_mut().poll_flush(cx) {
            Poll::Ready(_) => Pin::new(&mut self.inner).poll_shutdown(cx),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[tokio::test]
async fn a_local_failure_resets_the_other_side() {
    for link in Link::BOTH {
        for (fail_read, fail_write) in [(true, false), (false, true)] {
            let mut tunnel = link.v2().await;
            let (near, mut far) = tunnel.stream().await;
            let (_client, local) = duplex(100);
            let mut local = Faulty::new(local);
            (local.fail_read, local.fail_write) = (fail_read, fail_write);
            let relay = relay(near, local);
            far.write_all(b"hello?").await.unwrap();
            let error = within(relay).await.unwrap().unwrap_err();
            assert!(matches!(error, RelayError::Local(_)), "{error}");
            let error = within(far.read(&mut [0])).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }
}

#[tokio::test]
async fn what_came_before_a_reset_is_still_written() {
    for link in Link::BOTH {
        for buffered in [false, true] {
            let mut tunnel = link.v2().await;
            let (near, far) = tunnel.stream().await;
            let (mut client, local) = duplex(1000);
            let (mut read, mut write) = far.into_split();
            let relay = match buffered {
                true => relay(near, Faulty::new(local)),
                false => relay(near, local),
            };
            let data = noise(6, 150_000);
            write.write_all(&data).await.unwrap();
            transmitted(&tunnel.far).await;
            // The client has read nothing yet, so most of it is still in flight.
            let stream = tokio::spawn(async move {
                let _ = read.chunk().await;
            });
            tunnel.far.shutdown();
            let mut got = Vec::new();
            within(client.read_to_end(&mut got)).await.unwrap();
            assert!(got == data, "{} of {} bytes", got.len(), data.len());
            let error = within(relay).await.unwrap().unwrap_err();
            assert!(matches!(error, RelayError::Tunnel(_)), "{error}");
            within(stream).await.unwrap();
        }
    }
}

/// The local side is silent and the tunnel's direction has ended: only the reset can be noticed.
#[tokio::test]
async fn a_reset_after_the_end_of_its_direction_is_noticed() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (near, mut far) = tunnel.stream().await;
        let (mut client, local) = duplex(1000);
        let relay = relay(near, local);
        far.write_all(b"done").await.unwrap();
        far.shutdown().await.unwrap();
        let mut got = String::new();
        within(client.read_to_string(&mut got)).await.unwrap();
        assert!(!relay.is_finished());
        far.reset(Reason::TimedOut, "waited long enough");
        let Err(RelayError::Tunnel(reset)) = within(relay).await.unwrap() else {
            panic!("not the tunnel's fault")
        };
        assert_eq!(reset.reason, Reason::TimedOut);
    }
}

/// A local side that has a buffer, as TLS has, may take the last bytes and still not pass them on.
#[tokio::test(start_paused = true)]
async fn grace_bounds_what_a_local_side_with_a_buffer_keeps() {
    for ends_before in [false, true] {
        let mut tunnel = Link::Pipe.v2().await;
        let (near, mut far) = tunnel.stream().await;
        let (_silent, local) = duplex(1);
        let mut local = BufWriter::new(local);
        let relay = tokio::spawn(async move {
            let grace = || tokio::time::sleep(Duration::from_secs(1));
            near.relay_with_grace(&mut local, grace).await
        });
        far.write_all(b"nobody reads this").await.unwrap();
        if ends_before {
            far.shutdown().await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        far.reset(Reason::TimedOut, "waited long enough");
        let Err(RelayError::Tunnel(reset)) = within(relay).await.unwrap() else {
            panic!("not the tunnel's fault")
        };
        assert_eq!(reset.reason, Reason::TimedOut);
    }
}

/// Many relays on many threads compete for one small budget: data read by one must not be lost when
/// another takes the room meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn relays_that_share_a_budget_lose_nothing() {
    let mut config = Config::default();
    config.send_budget = 16 << 10;
    let tunnel = Link::Pipe.tunnel(Version::V2, config).await;
    let (mux, _) = tunnel.echo();
    many(mux, 40, 200_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_relayed_streams_keep_apart() {
    for link in Link::BOTH {
        let (mux, _) = link.v2().await.echo();
        many(mux, 100, 200_000).await;
    }
}

async fn many(mux: kohakuriver_tunnel::mux::Mux, count: u64, len: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for seed in 0..count {
        let (client, local) = sockets().await;
        let relay = relay(mux.open_tcp(7).unwrap(), local);
        tasks.spawn(async move {
            let (read, write) = client.into_split();
            let speaker = tokio::spawn(speak(write, seed, len));
            listen(read, seed, len).await;
            speaker.await.unwrap();
            let relayed = within(relay).await.unwrap().unwrap();
            assert_eq!(relayed.sent, len as u64);
            assert_eq!(relayed.received, len as u64);
        });
    }
    while let Some(task) = within(tasks.join_next()).await {
        task.unwrap();
    }
}

#[tokio::test]
async fn a_refusal_reaches_the_relay() {
    let mut tunnel = Link::Pipe.v2().await;
    let near = tunnel.near.open_tcp(1).unwrap();
    let (_client, local) = duplex(10);
    let relay = relay(near, local);
    let incoming = within(tunnel.acceptor.accept()).await.unwrap();
    incoming.reject(Reason::Refused, "");
    let error = within(relay).await.unwrap().unwrap_err();
    assert!(matches!(error, RelayError::Tunnel(reset) if reset.reason == Reason::Refused));
}

/// The peer must not take a part for the whole.
#[tokio::test]
async fn a_dropped_relay_resets_the_stream() {
    let dropped = Reset::new(Reason::Reset, "the relay was dropped");
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (near, far) = tunnel.stream().await;
        let (mut client, local) = duplex(1000);
        let relay = relay(near, local);
        client.write_all(b"half a sent").await.unwrap();
        let (mut read, mut write) = far.into_split();
        let first = within(read.chunk()).await.unwrap();
        assert_eq!(first, Some(Bytes::from_static(b"half a sent")));
        relay.abort();
        assert_eq!(within(read.chunk()).await, Err(dropped.clone()));
        within(async {
            while write.send(Chunk::copied(b"?")).is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await;

        let (never_polled, far) = tunnel.stream().await;
        let (_client, mut local) = duplex(1000);
        drop(never_polled.relay(&mut local));
        let (mut read, _write) = far.into_split();
        assert_eq!(within(read.chunk()).await, Err(dropped.clone()));
    }
}

/// One direction has ended in good order, and the other has not.
#[tokio::test]
async fn a_relay_dropped_after_a_half_close_resets_the_stream() {
    for from_tunnel in [true, false] {
        let mut tunnel = Link::Pipe.v2().await;
        let (near, far) = tunnel.stream().await;
        let (mut client, local) = duplex(1000);
        let relay = relay(near, local);
        let (mut read, mut write) = far.into_split();
        if from_tunnel {
            write.shutdown().await.unwrap();
            assert_eq!(within(client.read(&mut [0])).await.unwrap(), 0);
        } else {
            client.shutdown().await.unwrap();
            assert_eq!(within(read.chunk()).await, Ok(None));
        }
        relay.abort();
        within(relay).await.unwrap_err();
        let reset = within(poll_fn(|cx| read.poll_reset(cx))).await;
        assert_eq!(reset.text, "the relay was dropped");
    }
}

/// A local side; at every second read of it another stream takes all the room.
struct Contender {
    rival: kohakuriver_tunnel::mux::WriteHalf,
    reads: usize,
}

impl AsyncRead for Contender {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.reads += 1;
        if self.reads <= 20 {
            buf.put_slice(&[self.reads as u8; 1000]);
        }
        // Not at the first read: a stream with an empty queue always has some room.
        let full = self.reads % 2 == 0;
        while full
            && Pin::new(&mut self.rival)
                .poll_write(cx, &[0; 1000])?
                .is_ready()
        {}
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Contender {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn what_was_read_is_kept_though_another_took_the_room() {
    let mut config = Config::default();
    config.send_budget = 8 << 10;
    let mut tunnel = Link::Pipe.tunnel(Version::V2, config).await;
    let (near, mut far) = tunnel.stream().await;
    let (rival, mut rival_far) = tunnel.stream().await;
    tokio::spawn(async move { while rival_far.read(&mut [0; 9000]).await.is_ok_and(|n| n > 0) {} });
    let (_read, rival) = rival.into_split();
    let relay = relay(near, Contender { rival, reads: 0 });
    let mut got = Vec::new();
    within(far.read_to_end(&mut got)).await.unwrap();
    let all: Vec<u8> = (1..=20).flat_map(|read| [read; 1000]).collect();
    assert!(got == all, "{} bytes", got.len());
    drop(far);
    assert_eq!(within(relay).await.unwrap().unwrap().sent, 20_000);
}
