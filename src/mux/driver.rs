use core::fmt::{self, Display};
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use futures_core::Stream;
use futures_sink::Sink;

use super::engine::Engine;
use super::path::Direct;
use super::resuming::Resuming;
use super::source::Source;
use super::{Timer, TokioTimer, Tunnel, TunnelError};
use crate::resume::Link;
use crate::transport::Carrier;

/// Runs a tunnel: a future that owns the transport, for any executor. It completes when the tunnel
/// ends.
///
/// Dropping it ends the tunnel at once, without a word to the peer.
///
/// ```
/// use kohakuriver_tunnel::mux::{self, TunnelError};
/// use kohakuriver_tunnel::transport::Plain;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (socket, far) = tokio::io::duplex(1 << 16);
/// let (mux, driver) = mux::builder().opener(mux::length_prefixed(socket), Plain);
/// let driver = tokio::spawn(driver);
/// drop(far); // the other side goes away
/// assert_eq!(driver.await.unwrap(), Err(TunnelError::Ended(None)));
/// # drop(mux);
/// # }
/// ```
#[must_use = "nothing moves unless the driver is polled"]
pub struct Driver<T, C: Carrier, R = TokioTimer> {
    engine: Engine<Direct<T, C>, R>,
}

impl<T, C: Carrier, R> Driver<T, C, R> {
    pub(super) fn new(transport: T, carrier: C, timer: R, tunnel: Tunnel) -> Self {
        let path = Direct { transport, carrier };
        let engine = Engine::new(path, timer, tunnel);
        Self { engine }
    }

    /// The tunnel, for code that watches or ends it.
    #[must_use]
    pub const fn tunnel(&self) -> &Tunnel {
        &self.engine.tunnel
    }
}

impl<T: fmt::Debug, C: Carrier + fmt::Debug, R> fmt::Debug for Driver<T, C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = &self.engine;
        f.debug_struct("Driver").field("engine", engine).finish()
    }
}

impl<T, C, R, E> Future for Driver<T, C, R>
where
    T: Stream<Item = Result<C::Message, E>> + Sink<C::Message, Error = E> + Unpin,
    C: Carrier,
    R: Timer,
    E: Display,
{
    /// `Ok` if this end finished: all handles were dropped, or the tunnel was closed or shut down.
    type Output = Result<(), TunnelError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        Pin::new(&mut self.engine).poll(cx)
    }
}

/// Runs a tunnel that outlives its transports, as a [`Driver`] runs one that does not.
/// [`Connect`](super::Connect) and [`Keeper`](super::Keeper) have examples.
///
/// When a transport is lost, it waits for the next one of its source: [`Redial`](super::Redial) at
/// the client, [`Kept`](super::Kept) at the server. Handles and streams stay as they are. Without a
/// transport, a [`shutdown`](Tunnel::shutdown) ends it at once. Dropping it ends this end alone:
/// the peer keeps its own for as long as it waits for a transport.
#[must_use = "nothing moves unless the driver is polled"]
pub struct ResumingDriver<T, C: Carrier, S, R = TokioTimer> {
    engine: Engine<Resuming<T, C, S>, R>,
}

impl<T, C: Carrier, S: Source<Transport = T>, R> ResumingDriver<T, C, S, R> {
    pub(super) fn new(
        transport: T,
        carrier: C,
        link: Link,
        source: S,
        timer: R,
        tunnel: Tunnel,
    ) -> Self {
        let path = Resuming::new(transport, carrier, link, source);
        let engine = Engine::new(path, timer, tunnel);
        Self { engine }
    }
}

impl<T, C: Carrier, S, R> ResumingDriver<T, C, S, R> {
    /// The tunnel, for code that watches or ends it.
    #[must_use]
    pub const fn tunnel(&self) -> &Tunnel {
        &self.engine.tunnel
    }
}

impl<T, C, S, R> fmt::Debug for ResumingDriver<T, C, S, R>
where
    T: fmt::Debug,
    C: Carrier + fmt::Debug,
    S: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = &self.engine;
        f.debug_struct("ResumingDriver")
            .field("engine", engine)
            .finish()
    }
}

impl<T, C, S, R, E> Future for ResumingDriver<T, C, S, R>
where
    T: Stream<Item = Result<C::Message, E>> + Sink<C::Message, Error = E> + Unpin,
    C: Carrier,
    S: Source<Transport = T>,
    R: Timer,
    E: Display,
{
    /// As that of [`Driver`]. [`TunnelError::NotResumed`] and [`TunnelError::NotConnected`]: the
    /// transport was lost, and there was no other in time.
    type Output = Result<(), TunnelError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        Pin::new(&mut self.engine).poll(cx)
    }
}
