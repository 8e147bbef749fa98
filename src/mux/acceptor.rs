use core::future::poll_fn;
use core::task::{Context, Poll};

use super::shared::{Handle, register};
use super::{Incoming, IncomingTcp, Tunnel};
use crate::session::Reason;

/// Accepts the connections that the peer opens. Dropping it refuses further ones.
///
/// The acceptor's end of a tunnel stays up while this, a stream or a flow exists. It ends in good
/// order when the last of them is dropped.
///
/// ```
/// use kohakuriver_tunnel::mux::{Acceptor, Incoming};
/// use kohakuriver_tunnel::session::Reason;
/// use tokio::net::TcpStream;
///
/// /// Serves what listens on this machine.
/// async fn serve(mut acceptor: Acceptor) {
///     while let Some(incoming) = acceptor.accept().await {
///         tokio::spawn(async move {
///             let Incoming::Tcp(incoming) = incoming else { return };
///             match TcpStream::connect(("127.0.0.1", incoming.port())).await {
///                 Ok(mut service) => {
///                     if incoming.accept().relay(&mut service).await.is_err() {
///                         let _ = service.set_zero_linger(); // dropped: a reset, and no clean end
///                     }
///                 }
///                 Err(error) => incoming.reject(Reason::Refused, &error.kind().to_string()),
///             }
///         });
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Acceptor {
    tunnel: Tunnel,
}

impl Acceptor {
    pub(super) fn new(tunnel: &Tunnel) -> Self {
        let mut state = tunnel.shared.lock();
        state.handles += 1;
        state.requests.accepting = true;
        drop(state);
        let tunnel = tunnel.clone();
        Self { tunnel }
    }

    /// The next connection; `None` after the tunnel has ended. Cancel safe.
    pub async fn accept(&mut self) -> Option<Incoming> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// The next byte stream, for programs that serve no datagrams: earlier requests for flows are
    /// refused. `None` after the tunnel has ended. Cancel safe.
    pub async fn accept_tcp(&mut self) -> Option<IncomingTcp> {
        loop {
            match self.accept().await? {
                Incoming::Tcp(incoming) => return Some(incoming),
                flow @ Incoming::Udp(_) => {
                    flow.reject(Reason::Denied, "only byte streams are served here");
                }
            }
        }
    }

    /// As [`accept`](Self::accept).
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        let shared = &self.tunnel.shared;
        let mut state = shared.lock();
        if let Some((id, proto, port)) = state.requests.queue.pop_front() {
            let handle = Handle::new(shared, &mut state, id);
            return Poll::Ready(Some(Incoming::new(handle, proto, port)));
        }
        if state.closed.is_some() {
            return Poll::Ready(None);
        }
        let replaced = register(&mut state.requests.acceptor, cx);
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    /// The tunnel, for code that watches or ends it.
    #[must_use]
    pub const fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        let waker = self.tunnel.shared.with(|state| {
            state.requests.accepting = false;
            state.handles -= 1;
            while let Some((id, ..)) = state.requests.queue.pop_front() {
                let text = "nobody accepts connections here";
                state.session.reject(id, Reason::Denied, text);
            }
            state.requests.acceptor.take()
        });
        // As with `register`.
        drop(waker);
    }
}
