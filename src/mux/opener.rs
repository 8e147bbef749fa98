use super::shared::Handle;
use super::{Tunnel, TunnelDatagram, TunnelStream};
use crate::session::{Instant, OpenError, Session, StreamId};

/// Opens connections through a tunnel. Cheap to clone.
///
/// The opener's end of a tunnel stays up while a clone of this, a stream or a flow exists. It ends
/// in good order when the last of them is dropped.
///
/// ```
/// use kohakuriver_tunnel::mux::Mux;
/// use tokio::net::TcpListener;
///
/// /// Forwards a local port to port 80 at the other side.
/// async fn forward(mux: Mux, listener: TcpListener) -> std::io::Result<()> {
///     loop {
///         let (mut socket, _) = listener.accept().await?;
///         let stream = mux.open_tcp(80)?;
///         tokio::spawn(async move {
///             if stream.relay(&mut socket).await.is_err() {
///                 let _ = socket.set_zero_linger(); // dropped: a reset, and no clean end
///             }
///         });
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Mux {
    tunnel: Tunnel,
}

impl Mux {
    pub(super) fn new(tunnel: &Tunnel) -> Self {
        tunnel.shared.lock().handles += 1;
        let tunnel = tunnel.clone();
        Self { tunnel }
    }

    /// Opens a byte stream to `port` at the acceptor. Does not wait: data may be written
    /// immediately.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_tcp(&self, port: u16) -> Result<TunnelStream, OpenError> {
        let stream = self.open(|session, now| session.open_tcp(port, now))?;
        Ok(TunnelStream::new(stream))
    }

    /// Opens a datagram flow to `port` at the acceptor. Does not wait.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_udp(&self, port: u16) -> Result<TunnelDatagram, OpenError> {
        let flow = self.open(|session, now| session.open_udp(port, now))?;
        Ok(TunnelDatagram::new(flow))
    }

    /// The tunnel, for code that watches or ends it.
    #[must_use]
    pub const fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }

    fn open(
        &self,
        open: impl FnOnce(&mut Session, Instant) -> Result<StreamId, OpenError>,
    ) -> Result<Handle, OpenError> {
        let shared = &self.tunnel.shared;
        let now = shared.now();
        shared.with(|state| {
            let id = open(&mut state.session, now)?;
            Ok(Handle::new(shared, state, id))
        })
    }
}

impl Clone for Mux {
    fn clone(&self) -> Self {
        Self::new(&self.tunnel)
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        self.tunnel.shared.with(|state| state.handles -= 1);
    }
}
