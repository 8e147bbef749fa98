use core::future::poll_fn;
use core::task::{Context, Poll};

use bytes::Bytes;

use super::shared::{Awaited, Handle, TunnelState};
use super::stream::{reset_of, send_reset};
use crate::session::{Reason, Recv, Reset, SendError, StreamStats};
use crate::wire::Chunk;

/// A datagram flow through the tunnel. Dropping it ends the flow.
///
/// ```
/// use kohakuriver_tunnel::mux::Mux;
///
/// /// Asks a name server at the other side.
/// async fn ask(mux: &Mux, query: Vec<u8>) -> std::io::Result<Vec<u8>> {
///     let flow = mux.open_udp(53)?;
///     flow.send(query)?;
///     Ok(flow.recv().await?.into())
/// }
/// ```
#[derive(Debug)]
pub struct TunnelDatagram {
    handle: Handle,
}

impl TunnelDatagram {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle }
    }

    /// Sends one datagram, which may be empty. Never waits: when the flow's queue is full, its
    /// oldest datagrams are dropped and counted in [`Stats`](crate::session::Stats). This one is if
    /// [`Config::datagram_budget`](crate::session::Config::datagram_budget) is reached, or it is
    /// longer than [`MAX_DATAGRAM`](crate::session::MAX_DATAGRAM). For an owner of the bytes the
    /// rule of [`WriteHalf::send`](super::WriteHalf::send) holds.
    ///
    /// # Errors
    /// [`Reset`] when the flow has ended.
    pub fn send(&self, datagram: impl Into<Chunk>) -> Result<(), Reset> {
        let datagram = datagram.into();
        let send = |state: &mut TunnelState, id| state.session.send_datagram(id, datagram);
        match self.handle.with(send) {
            Ok(()) | Err(SendError::TooLong(_)) => Ok(()),
            Err(error) => Err(send_reset(error)),
        }
    }

    /// The next datagram. Cancel safe. Only one task at a time may wait: a second one replaces the
    /// first.
    ///
    /// # Errors
    /// [`Reset`] when the flow has ended, also when the peer closed it ([`Reason::Gone`]).
    pub async fn recv(&self) -> Result<Bytes, Reset> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// As [`recv`](Self::recv).
    ///
    /// # Errors
    /// [`Reset`] when the flow has ended.
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Reset>> {
        let now = self.handle.shared.now();
        self.handle.poll(cx, Awaited::Readable, |state, id| {
            let reset = match state.session.recv(id, now) {
                Ok(Recv::Data(datagram)) => return Poll::Ready(Ok(datagram)),
                Ok(Recv::Blocked) => return Poll::Pending,
                Ok(Recv::Finished) => Reset::new(Reason::Gone, "closed by the other side"),
                Err(error) => reset_of(error),
            };
            Poll::Ready(Err(reset))
        })
    }

    /// Counters of the flow.
    #[must_use]
    pub fn stats(&self) -> Option<StreamStats> {
        self.handle.stats()
    }

    /// Ends the flow with a reason.
    pub fn reset(&self, reason: Reason, text: &str) {
        self.handle
            .with(|state, id| state.session.reset(id, reason, text));
    }
}
