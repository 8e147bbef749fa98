use alloc::sync::Arc;
use core::future::poll_fn;
use core::time::Duration;

use super::shared::{Shared, TunnelState};
use super::watchers::Watch;
use super::{Attachment, Attachments, TunnelError};
use crate::resume;
use crate::session::{Stats, Violation};

/// A whole tunnel, for code that watches or ends it.
///
/// It does not keep the tunnel up. [`Mux::tunnel`](super::Mux::tunnel),
/// [`Acceptor::tunnel`](super::Acceptor::tunnel) and [`Driver::tunnel`](super::Driver::tunnel)
/// return it. Cheap to clone.
///
/// ```
/// use kohakuriver_tunnel::mux::{self, TunnelError};
/// use kohakuriver_tunnel::transport::Plain;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (near, far) = tokio::io::duplex(1 << 16);
/// let (mux, driver) = mux::builder().opener(mux::length_prefixed(near), Plain);
/// let opening = tokio::spawn(driver);
/// let (acceptor, driver) = mux::builder().acceptor(mux::length_prefixed(far), Plain);
/// tokio::spawn(driver);
///
/// let tunnel = acceptor.tunnel().clone();
/// assert_eq!(mux.tunnel().close().await, Ok(())); // lets open streams end first
/// assert_eq!(opening.await.unwrap(), Ok(()));
/// assert_eq!(tunnel.closed().await, Err(TunnelError::Ended(None)));
/// assert_eq!(tunnel.stats().opened, 0);
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Tunnel {
    pub(super) shared: Arc<Shared>,
}

impl Tunnel {
    /// Stops new connections; open streams continue. The peer is informed (v2, PROTOCOL.md section
    /// 5.7).
    pub fn drain(&self) {
        self.shared.waking(TunnelState::drain);
    }

    /// Ends the tunnel in good order: [drains](Self::drain) it, and waits for the open streams to
    /// end, and for flows to be dropped. This continues if the future is dropped. The
    /// [`Driver`](super::Driver) then closes the transport, which may take some seconds more: await
    /// it before the program exits.
    ///
    /// It waits as long as a stream lasts. Bound the wait, and end the remaining streams by
    /// [`shutdown`](Self::shutdown).
    ///
    /// # Errors
    /// [`TunnelError`] if the tunnel ended before that.
    pub async fn close(&self) -> Result<(), TunnelError> {
        self.shared.with(|state| state.closing = true);
        self.drain();
        self.closed().await
    }

    /// Resets every stream and ends the tunnel within 1 s, even if the transport accepts nothing.
    /// As after [`close`](Self::close), the driver may take longer to close the transport.
    pub fn shutdown(&self) {
        self.shared
            .waking(|state, wake| state.shut_down(None, wake));
    }

    /// As [`shutdown`](Self::shutdown), and closes the transport with a code and a reason if it has
    /// such messages ([`Carrier::close`](crate::transport::Carrier::close), PROTOCOL.md section
    /// 4.1).
    pub fn shutdown_with(&self, code: u16, why: &str) {
        let goodbye = Some((code, why.into()));
        self.shared
            .waking(|state, wake| state.shut_down(goodbye, wake));
    }

    /// Measures the round trip; see [`rtt`](Self::rtt). v2 only.
    pub fn ping(&self) {
        self.shared.with(|state| state.session.ping());
    }

    /// Waits for the end of the tunnel and returns how it ended, as the [`Driver`](super::Driver)
    /// does. The transport may still be closing; await the driver for that. Cancel safe.
    ///
    /// # Errors
    /// [`TunnelError`] unless this end finished: all handles were dropped, or the tunnel was closed
    /// or shut down.
    pub async fn closed(&self) -> Result<(), TunnelError> {
        let mut watch = self.watch();
        poll_fn(|cx| watch.poll(cx, |state| state.closed.clone())).await
    }

    /// Waits until either end takes no new connections, or the tunnel has ended. Cancel safe.
    pub async fn draining(&self) {
        let mut watch = self.watch();
        let over = |state: &TunnelState| state.session.is_draining() || state.closed.is_some();
        poll_fn(|cx| watch.poll(cx, |state| over(state).then_some(()))).await;
    }

    /// Waits until there are more violations by the peer than `seen`
    /// ([`Stats::violations`]), and returns the last one; `None` once the tunnel has ended. Cancel
    /// safe.
    ///
    /// ```
    /// use kohakuriver_tunnel::mux::Tunnel;
    ///
    /// /// The peer decides how often: write few of them to a log.
    /// async fn report(tunnel: Tunnel) {
    ///     let mut seen = 0;
    ///     while let Some(violation) = tunnel.violation(seen).await {
    ///         seen = tunnel.stats().violations;
    ///         println!("{seen} violations, the last one: {violation}");
    ///     }
    /// }
    /// ```
    pub async fn violation(&self, seen: u64) -> Option<Violation> {
        let mut watch = self.watch();
        let outcome = |state: &TunnelState| match state.session.stats().violations > seen {
            true => Some(state.session.last_violation()),
            false => state.closed.as_ref().map(|_| None),
        };
        poll_fn(|cx| watch.poll(cx, outcome)).await
    }

    /// How the tunnel ended, as [`closed`](Self::closed) returns it; `None` while it is up.
    #[must_use]
    pub fn close_reason(&self) -> Option<Result<(), TunnelError>> {
        self.shared.lock().closed.clone()
    }

    /// Counters of the tunnel.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.lock().session.stats()
    }

    /// The last violation by the peer, if any. At most one stream was reset for it.
    /// [`Stats::violations`] counts them.
    #[must_use]
    pub fn last_violation(&self) -> Option<Violation> {
        self.shared.lock().session.last_violation()
    }

    /// The round trip to the peer, once measured. v2 only.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.shared.lock().session.rtt()
    }

    /// Whether the tunnel has a transport. False after its end.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        let state = self.shared.lock();
        state.closed.is_none() && !state.attached.is_detached()
    }

    /// Waits until the peer of a tunnel that is [resumed](super::Builder::resume) has answered.
    /// False if the tunnel ended before. Cancel safe.
    ///
    /// A server awaits it before a new tunnel takes the place of another one: what its peer sent
    /// first may have been held on the way, and the peer be gone (PROTOCOL.md section 5.10).
    pub async fn confirmed(&self) -> bool {
        let mut watch = self.watch();
        let outcome = |state: &TunnelState| match state.attached.confirmed {
            true => Some(state.closed.is_none()),
            false => state.closed.as_ref().map(|_| false),
        };
        poll_fn(|cx| watch.poll(cx, outcome)).await
    }

    /// Whether the tunnel has a transport, and how that changed last.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        self.shared.lock().attached.last.clone()
    }

    /// Changes of [`attachment`](Self::attachment) from now on.
    #[must_use]
    pub fn attachments(&self) -> Attachments {
        Attachments::new(self.clone())
    }

    /// Probes the peer at once, for a program that has a reason to doubt the path: the machine was
    /// asleep, or its address changed. If the peer is not heard within one keepalive interval, it
    /// counts as dead; without [`Config::keepalive`](crate::session::Config::keepalive) it never
    /// does. A client's tunnel that is [resumed](super::Builder::resume) also connects at
    /// once, and goes on with the new transport unless the peer answers on the old one first.
    pub fn probe(&self) {
        let now = self.shared.now();
        self.shared.with(|state| state.session.probe(now));
    }

    /// Whether the peer was probed, by [`probe`](Self::probe) or after a keepalive interval of
    /// silence, and has not been heard since. What is opened now may be lost.
    #[must_use]
    pub fn is_probing(&self) -> bool {
        self.shared.lock().session.is_probing()
    }

    /// Counters of the messages that are counted, kept and sent again, if the tunnel is resumed.
    #[must_use]
    pub fn resume_stats(&self) -> resume::Stats {
        self.shared.lock().attached.stats
    }

    /// Bytes sent and kept for the peer until it acknowledges them, each message with 64 bytes for
    /// its place. 0 unless the tunnel is resumed.
    #[must_use]
    pub fn ring_bytes(&self) -> usize {
        self.shared.lock().attached.ring
    }

    fn watch(&self) -> Watch<'_> {
        Watch::new(&self.shared)
    }
}
