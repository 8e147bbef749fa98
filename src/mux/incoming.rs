use core::future::poll_fn;
use core::task::Poll;

use super::shared::{Awaited, Handle};
use super::{TunnelDatagram, TunnelStream};
use crate::session::{Reason, State};
use crate::wire::{ClientId, Proto};

/// A connection that the peer requests. Dropping it refuses the connection.
///
/// ```
/// use kohakuriver_tunnel::mux::Incoming;
/// use kohakuriver_tunnel::session::Reason;
///
/// fn serve(incoming: Incoming) {
///     match incoming {
///         Incoming::Tcp(incoming) if incoming.port() == 7 => {
///             let stream = incoming.accept();
///             tokio::spawn(async move {
///                 let (mut read, mut write) = tokio::io::split(stream);
///                 tokio::io::copy(&mut read, &mut write).await
///             });
///         }
///         other => other.reject(Reason::Denied, "only an echo is served here"),
///     }
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Incoming {
    /// A byte stream.
    Tcp(IncomingTcp),
    /// A datagram flow.
    Udp(IncomingUdp),
}

/// A byte stream that the peer requests. Dropping it refuses the stream.
///
/// ```
/// use kohakuriver_tunnel::mux::{IncomingTcp, TunnelStream};
/// use kohakuriver_tunnel::session::Reason;
///
/// fn accept(incoming: IncomingTcp) -> Option<TunnelStream> {
///     if incoming.port() < 1024 {
///         incoming.reject(Reason::Denied, "ports below 1024 are not served");
///         return None;
///     }
///     Some(incoming.accept())
/// }
/// ```
#[derive(Debug)]
pub struct IncomingTcp(Asked);

/// A datagram flow that the peer requests. Dropping it refuses the flow.
///
/// ```
/// use kohakuriver_tunnel::mux::IncomingUdp;
/// use kohakuriver_tunnel::session::Reset;
///
/// async fn echo(incoming: IncomingUdp) -> Result<(), Reset> {
///     let flow = incoming.accept();
///     loop {
///         flow.send(flow.recv().await?)?;
///     }
/// }
/// ```
#[derive(Debug)]
pub struct IncomingUdp(Asked);

/// State common to both kinds.
#[derive(Debug)]
struct Asked {
    handle: Handle,
    port: u16,
}

impl Incoming {
    pub(super) fn new(handle: Handle, proto: Proto, port: u16) -> Self {
        let asked = Asked { handle, port };
        match proto {
            Proto::Tcp => Self::Tcp(IncomingTcp(asked)),
            Proto::Udp => Self::Udp(IncomingUdp(asked)),
        }
    }

    /// Byte stream or datagrams.
    #[must_use]
    pub const fn proto(&self) -> Proto {
        match self {
            Self::Tcp(_) => Proto::Tcp,
            Self::Udp(_) => Proto::Udp,
        }
    }

    /// The requested port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.asked().port
    }

    /// The client id on the wire, for logs.
    #[must_use]
    pub fn id(&self) -> Option<ClientId> {
        self.asked().id()
    }

    /// As [`IncomingTcp::abandoned`].
    pub async fn abandoned(&self) {
        self.asked().abandoned().await;
    }

    /// Refuses the connection. The peer receives `reason` (v2) and `text`.
    pub fn reject(self, reason: Reason, text: &str) {
        self.asked().reject(reason, text);
    }

    const fn asked(&self) -> &Asked {
        match self {
            Self::Tcp(IncomingTcp(asked)) | Self::Udp(IncomingUdp(asked)) => asked,
        }
    }
}

impl IncomingTcp {
    /// Accepts the byte stream. If the peer gave up meanwhile, reading the stream returns the
    /// reset.
    #[must_use]
    pub fn accept(self) -> TunnelStream {
        TunnelStream::new(self.0.accept())
    }

    /// The requested port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.0.port
    }

    /// The client id on the wire, for logs.
    #[must_use]
    pub fn id(&self) -> Option<ClientId> {
        self.0.id()
    }

    /// Completes when the peer no longer wants the connection: it gave up, or the tunnel has ended.
    /// Useful while something slow, such as a dial, precedes accepting. Cancel safe. Only one task
    /// at a time may wait: a second one replaces the first.
    pub async fn abandoned(&self) {
        self.0.abandoned().await;
    }

    /// Refuses the connection. The peer receives `reason` (v2) and `text`.
    pub fn reject(self, reason: Reason, text: &str) {
        self.0.reject(reason, text);
    }
}

impl IncomingUdp {
    /// Accepts the datagram flow. If the peer gave up meanwhile, the flow returns the reset.
    #[must_use]
    pub fn accept(self) -> TunnelDatagram {
        TunnelDatagram::new(self.0.accept())
    }

    /// The requested port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.0.port
    }

    /// The client id on the wire, for logs.
    #[must_use]
    pub fn id(&self) -> Option<ClientId> {
        self.0.id()
    }

    /// As [`IncomingTcp::abandoned`].
    pub async fn abandoned(&self) {
        self.0.abandoned().await;
    }

    /// Refuses the connection. The peer receives `reason` (v2) and `text`.
    pub fn reject(self, reason: Reason, text: &str) {
        self.0.reject(reason, text);
    }
}

impl From<IncomingTcp> for Incoming {
    fn from(incoming: IncomingTcp) -> Self {
        Self::Tcp(incoming)
    }
}

impl From<IncomingUdp> for Incoming {
    fn from(incoming: IncomingUdp) -> Self {
        Self::Udp(incoming)
    }
}

impl Asked {
    fn accept(self) -> Handle {
        let now = self.handle.shared.now();
        self.handle.with(|state, id| {
            // The connection is already gone; the handle returns the reset.
            let _ = state.session.accept(id, now);
            state.wakers(id).is_established = true;
        });
        self.handle
    }

    fn reject(&self, reason: Reason, text: &str) {
        self.handle
            .with(|state, id| state.session.reset(id, reason, text));
    }

    fn id(&self) -> Option<ClientId> {
        let state = self.handle.shared.lock();
        state.session.client_id(self.handle.id)
    }

    async fn abandoned(&self) {
        poll_fn(|cx| {
            self.handle.poll(cx, Awaited::Readable, |state, id| {
                match state.session.state(id) {
                    None | Some(State::Closed) => Poll::Ready(()),
                    Some(_) => Poll::Pending,
                }
            })
        })
        .await;
    }
}
