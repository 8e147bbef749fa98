use alloc::sync::Arc;
use core::future::poll_fn;
use core::task::{Context, Poll};

use super::shared::{Handle, Mux, Shared, register};
use super::{TunnelDatagram, TunnelStream};
use crate::session::{Reason, Role, State};
use crate::wire::Proto;

/// Takes the connections that the other side opens. Dropping it refuses them.
///
/// At an opening end nothing ever comes, so there it does not keep the tunnel up.
#[derive(Debug)]
pub struct Acceptor {
    shared: Arc<Shared>,
    /// Counts as a handle that keeps the tunnel up.
    holds: bool,
}

impl Acceptor {
    pub(super) fn new(mux: &Mux, role: Role) -> Self {
        let shared = Arc::clone(&mux.shared);
        let holds = role == Role::Acceptor;
        shared.lock().handles += usize::from(holds);
        Self { shared, holds }
    }

    /// The next connection; `None` after the tunnel has ended. Cancel safe.
    pub async fn accept(&mut self) -> Option<Incoming> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// As [`accept`](Self::accept).
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        let mut state = self.shared.lock();
        if let Some((id, proto, port)) = state.incoming.pop_front() {
            let handle = Handle::new(&self.shared, &mut state, id);
            return Poll::Ready(Some(Incoming {
                handle,
                proto,
                port,
            }));
        }
        if state.closed.is_some() {
            return Poll::Ready(None);
        }
        register(&mut state.acceptor, cx);
        Poll::Pending
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.shared.with(|state| {
            state.accepting = false;
            state.handles -= usize::from(self.holds);
            while let Some((id, ..)) = state.incoming.pop_front() {
                let text = "nobody accepts connections here";
                state.session.reject(id, Reason::Denied, text);
            }
        });
    }
}

/// A connection the other side wants. Dropping it refuses it.
#[derive(Debug)]
pub struct Incoming {
    handle: Handle,
    proto: Proto,
    port: u16,
}

impl Incoming {
    /// Byte stream or datagrams.
    #[must_use]
    pub const fn proto(&self) -> Proto {
        self.proto
    }

    /// The port asked for.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The client id it has on the wire, for logs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        let state = self.handle.shared.lock();
        state.session.client_id(self.handle.id).map(|id| id.0)
    }

    /// Waits until nobody wants it any more: the other side gave it up, or the tunnel has ended. For whoever
    /// has something long to do before accepting. Cancel safe.
    pub async fn abandoned(&self) {
        poll_fn(|cx| {
            let mut state = self.handle.shared.lock();
            let id = self.handle.id;
            if state.session.state(id).is_none_or(|s| s == State::Closed) {
                return Poll::Ready(());
            }
            register(&mut state.wakers(id).read, cx);
            Poll::Pending
        })
        .await;
    }

    /// Accepts a byte stream. If the other side gave up meanwhile, the stream says so when it is read.
    ///
    /// A request for a datagram flow is refused: the stream is reset from its start.
    #[must_use]
    pub fn accept_tcp(self) -> TunnelStream {
        TunnelStream::new(self.accept_as(Proto::Tcp))
    }

    /// Accepts a datagram flow.
    ///
    /// A request for a byte stream is refused: the flow is reset from its start.
    #[must_use]
    pub fn accept_udp(self) -> TunnelDatagram {
        TunnelDatagram::new(self.accept_as(Proto::Udp))
    }

    fn accept_as(self, proto: Proto) -> Handle {
        let now = self.handle.shared.now();
        self.handle.with(|state, id| {
            if proto != self.proto {
                let text = match self.proto {
                    Proto::Tcp => "a byte stream was asked for, and only datagrams are served",
                    Proto::Udp => "datagrams were asked for, and only a byte stream is served",
                };
                return state.session.reset(id, Reason::Denied, text);
            }
            // Gone already: the handle will tell.
            let _ = state.session.accept(id, now);
            state.wakers(id).is_established = true;
        });
        self.handle
    }

    /// Refuses it: the other side learns `reason` (v2) and `text`.
    pub fn reject(self, reason: Reason, text: &str) {
        self.handle
            .with(|state, id| state.session.reset(id, reason, text));
    }
}
