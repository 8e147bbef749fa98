use alloc::sync::Arc;
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::shared::{Awaited, Handle, Shared};
use crate::session::{Instant, Reason, Recv, Reset, SendError, StreamError, StreamStats};
use crate::wire::Chunk;

/// A byte stream through the tunnel.
///
/// `shutdown` ends this direction only. Dropping the stream ends it gracefully: written data still
/// arrives, and if the peer continues to send, the stream is reset.
///
/// It implements tokio's `AsyncRead` and `AsyncWrite`, so it can be used like a socket. For code on
/// other runtimes (smol, async-std), which uses the traits of `futures-io`, `tokio_util::compat`
/// converts it. Errors are [`io::Error`]s of a matching kind that contain the [`Reset`]
/// ([`get_ref`](io::Error::get_ref), [`into_inner`](io::Error::into_inner)).
///
/// ```
/// use std::io;
///
/// use kohakuriver_tunnel::mux::Mux;
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// async fn sorted(mux: &Mux, lines: &str) -> io::Result<String> {
///     let mut stream = mux.open_tcp(7)?;
///     stream.write_all(lines.as_bytes()).await?; // no need to wait for the answer
///     stream.shutdown().await?; // the reply can still come
///     let mut reply = String::new();
///     stream.read_to_string(&mut reply).await?;
///     Ok(reply)
/// }
/// ```
#[derive(Debug)]
pub struct TunnelStream {
    read: ReadHalf,
    write: WriteHalf,
}

/// The receiving direction of a [`TunnelStream`].
///
/// Dropping it alone discards data that still arrives.
///
/// ```
/// use kohakuriver_tunnel::mux::TunnelStream;
/// use kohakuriver_tunnel::session::Reset;
///
/// /// Counts what comes, without a copy.
/// async fn count(stream: TunnelStream) -> Result<usize, Reset> {
///     let (mut read, _write) = stream.into_split();
///     let mut bytes = 0;
///     while let Some(chunk) = read.chunk().await? {
///         bytes += chunk.len();
///     }
///     Ok(bytes)
/// }
/// ```
pub struct ReadHalf {
    handle: Arc<Handle>,
    chunk: Bytes,
    /// The last chunk was all that had come.
    drained: bool,
}

/// The sending direction of a [`TunnelStream`].
///
/// Dropping it ends this direction in good order. If not everything was sent,
/// [`reset`](Self::reset) the stream first, or the peer takes a part for the whole.
///
/// Besides `AsyncWrite`, which copies, it sends chunks that were read behind headroom:
///
/// ```
/// use kohakuriver_tunnel::mux::WriteHalf;
/// use kohakuriver_tunnel::session::{Reason, SendError};
/// use kohakuriver_tunnel::wire::HeadroomBuf;
/// use tokio::io::{AsyncRead, AsyncReadExt};
///
/// /// Sends a file; no byte of it is moved.
/// async fn send(mut file: impl AsyncRead + Unpin, mut write: WriteHalf) -> std::io::Result<()> {
///     let mut buffer = HeadroomBuf::with_capacity(64 << 10);
///     loop {
///         let capacity = write.capacity().await?;
///         match file.read_buf(&mut buffer.spare(capacity)).await {
///             Ok(0) => return Ok(write.finish()),
///             Ok(_) => {}
///             Err(error) => {
///                 write.reset(Reason::Reset, "the file cannot be read");
///                 return Err(error);
///             }
///         }
///         let mut chunk = buffer.split();
///         // Another stream may take the room meanwhile.
///         while let Err(SendError::Blocked(back)) = write.send(chunk) {
///             chunk = back;
///             write.capacity().await?;
///         }
///     }
/// }
/// ```
#[derive(Debug)]
pub struct WriteHalf {
    handle: Arc<Handle>,
    /// It had to wait for room, so room may be kept for it.
    waited: bool,
}

impl TunnelStream {
    pub(super) fn new(handle: Handle) -> Self {
        let handle = Arc::new(handle);
        Self {
            read: ReadHalf {
                handle: Arc::clone(&handle),
                chunk: Bytes::new(),
                drained: false,
            },
            write: WriteHalf {
                handle,
                waited: false,
            },
        }
    }

    /// Waits until the peer has accepted the connection. Writing does not require this. Cancel
    /// safe. Only one task at a time may wait: a second one replaces the first.
    ///
    /// The future does not borrow the stream, so it may wait beside a relay.
    ///
    /// # Errors
    /// [`Reset`] if it was refused, or released meanwhile.
    pub fn established(&self) -> impl Future<Output = Result<(), Reset>> + use<> {
        let handle = Arc::downgrade(&self.read.handle);
        poll_fn(move |cx| {
            let Some(handle) = handle.upgrade() else {
                return Poll::Ready(Err(Reset::new(Reason::Gone, "")));
            };
            handle.poll(cx, Awaited::Established, |state, id| {
                if state.wakers(id).is_established {
                    return Poll::Ready(Ok(()));
                }
                match state.session.reset_of(id) {
                    Some(reset) => Poll::Ready(Err(reset.clone())),
                    None => Poll::Pending,
                }
            })
        })
    }

    /// Ends both directions at once. The peer receives `reason` (v2) and `text`.
    pub fn reset(&self, reason: Reason, text: &str) {
        self.write.reset(reason, text);
    }

    /// Counters of the stream.
    #[must_use]
    pub fn stats(&self) -> Option<StreamStats> {
        self.write.stats()
    }

    /// Whether the stream's tunnel waits for a transport.
    pub(super) fn is_detached(&self) -> bool {
        self.read.handle.shared.is_detached()
    }

    /// Whether this stream goes before others when memory is short.
    pub(super) fn set_expendable(&self, expendable: bool) {
        let handle = &self.read.handle;
        handle.with(|state, id| state.session.set_expendable(id, expendable));
    }

    /// Splits the stream into its directions. It is released when both are dropped.
    #[must_use]
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        (self.read, self.write)
    }

    /// Both directions, for use at the same time.
    pub fn split(&mut self) -> (&mut ReadHalf, &mut WriteHalf) {
        (&mut self.read, &mut self.write)
    }
}

/// Without the bytes that were not read.
impl fmt::Debug for ReadHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadHalf")
            .field("handle", &self.handle)
            .field("rest", &self.chunk.len())
            .finish()
    }
}

impl ReadHalf {
    /// The next bytes without a copy; `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// [`Reset`], after all data from before it.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Reset> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// As [`chunk`](Self::chunk).
    ///
    /// # Errors
    /// [`Reset`], after all data from before it.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Reset>> {
        let chunk = ready!(self.poll_headed(cx, 0))?;
        Poll::Ready(Ok(chunk.map(Chunk::into_payload)))
    }

    /// As [`poll_chunk`](Self::poll_chunk), with the headroom that the chunk may have. The caller
    /// still has `kept` bytes of earlier chunks.
    pub(super) fn poll_headed(
        &mut self,
        cx: &mut Context<'_>,
        kept: usize,
    ) -> Poll<Result<Option<Chunk>, Reset>> {
        if !self.chunk.is_empty() {
            return Poll::Ready(Ok(Some(core::mem::take(&mut self.chunk).into())));
        }
        let Handle { shared, id } = &*self.handle;
        let mut state = shared.lock();
        if state.session.has_nothing_new(*id, kept) {
            let replaced = state.register(*id, Awaited::Readable, cx);
            drop(state);
            drop(replaced);
            return Poll::Pending;
        }
        let mut now = Instant::default();
        if state.session.is_stalled_by(*id) {
            // A clock is foreign code, so it is not read under the lock.
            drop(state);
            now = shared.now();
            state = shared.lock();
        }
        let taken = match state.session.take_chunk(*id, kept, now) {
            Some(chunk) => {
                let held = kept + chunk.len();
                self.drained = state.session.has_nothing_new(*id, held);
                Poll::Ready(Ok(Some(chunk)))
            }
            None => match state.session.end_of_data(*id) {
                Ok(Recv::Finished) => Poll::Ready(Ok(None)),
                Ok(Recv::Blocked | Recv::Data(_)) => Poll::Pending,
                Err(error) => Poll::Ready(Err(reset_of(error))),
            },
        };
        let replaced = match taken {
            Poll::Pending => state.register(*id, Awaited::Readable, cx),
            Poll::Ready(_) => None,
        };
        Shared::release(state);
        drop(replaced);
        taken
    }

    /// Whether the last chunk was all that had come. Then reading on could only wait.
    pub(super) fn is_drained(&self) -> bool {
        self.drained
    }

    /// Waits for a reset without reading: for code that cannot accept data now, or has read to the
    /// end.
    ///
    /// Ready as soon as the reset is known, even if there is data from before it.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Reset> {
        self.handle.poll(cx, Awaited::Readable, |state, id| {
            match state.session.reset_of(id) {
                Some(reset) => Poll::Ready(reset.clone()),
                None => Poll::Pending,
            }
        })
    }

    /// Counters of the stream, of both directions.
    #[must_use]
    pub fn stats(&self) -> Option<StreamStats> {
        self.handle.stats()
    }

    /// Whether received bytes were dropped because memory was short. Chunks from before are a part
    /// of what nobody gets as a whole, and they count as dropped, too.
    pub(super) fn has_lost(&self) -> bool {
        self.handle.shared.lock().session.has_lost(self.handle.id)
    }
}

impl WriteHalf {
    /// Waits until at least one byte can be sent; returns the right number of bytes for one
    /// message. Cancel safe.
    ///
    /// # Errors
    /// [`Reset`], also if this direction was shut down.
    pub async fn capacity(&mut self) -> Result<usize, Reset> {
        poll_fn(|cx| self.poll_capacity(cx)).await
    }

    /// As [`capacity`](Self::capacity).
    ///
    /// # Errors
    /// [`Reset`], also if this direction was shut down.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Reset>> {
        let handle = &self.handle;
        // Asking changes nothing in the session, so the driver need not look at it.
        match handle.shared.lock().session.send_capacity(handle.id) {
            Ok(0) => {}
            known => return Poll::Ready(known.map_err(send_reset)),
        }
        let capacity = handle.poll(cx, Awaited::Writable, |state, id| {
            match state.session.send_capacity(id).map_err(send_reset)? {
                0 => {
                    state.session.request_writable(id);
                    Poll::Pending
                }
                capacity => Poll::Ready(Ok(capacity)),
            }
        });
        self.waited |= capacity.is_pending();
        capacity
    }

    /// There is nothing to send now: others get the room that may be kept for this stream.
    ///
    /// A write or [`capacity`](Self::capacity) that had to wait stays in line for the tunnel's
    /// [`send_budget`](crate::session::Config::send_budget) when its future is dropped, so that it
    /// keeps its place if it is made again. When its turn comes, one message's room is kept for the
    /// stream until it sends, or everything that is queued was transmitted. Call this if it will
    /// not send soon.
    pub fn pass(&mut self) {
        if core::mem::take(&mut self.waited) {
            self.handle
                .with(|state, id| state.session.cancel_writable(id));
        }
    }

    /// Sends bytes without a copy: at most as many as [`capacity`](Self::capacity) returned.
    ///
    /// If they have an owner ([`Bytes::from_owner`]), it is dropped under the tunnel's lock, so its
    /// `drop` must not use the tunnel.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send(&mut self, chunk: Chunk) -> Result<(), SendError> {
        let outcome = self.handle.with(|state, id| state.session.send(id, chunk));
        self.waited |= matches!(outcome, Err(SendError::Blocked(_)));
        outcome
    }

    /// Sends as much of the chunk as there is room for, at least one byte. Returns how many bytes;
    /// the chunk keeps the rest.
    ///
    /// # Errors
    /// [`SendError`], never `Blocked`.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Chunk,
    ) -> Poll<Result<usize, SendError>> {
        self.handle.poll(cx, Awaited::Writable, |state, id| {
            match state.session.send_part(id, chunk)? {
                0 if !chunk.is_empty() => Poll::Pending,
                sent => Poll::Ready(Ok(sent)),
            }
        })
    }

    /// Ends this direction after the data sent so far.
    pub fn finish(&mut self) {
        self.handle.with(|state, id| state.session.finish(id));
    }

    /// Ends both directions of the stream at once, as [`TunnelStream::reset`].
    pub fn reset(&self, reason: Reason, text: &str) {
        self.handle
            .with(|state, id| state.session.reset(id, reason, text));
    }

    /// Counters of the stream, of both directions.
    #[must_use]
    pub fn stats(&self) -> Option<StreamStats> {
        self.handle.stats()
    }

    /// Waits until all sent data was transmitted, or dropped by a reset.
    pub(super) fn poll_transmitted(&mut self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.handle.shared.lock();
        if state.unsent(self.handle.id) == 0 {
            return Poll::Ready(());
        }
        let replaced = state.register_transmitted(self.handle.id, cx);
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    /// Bytes sent and not yet transmitted.
    pub(super) fn unsent(&self) -> u64 {
        self.handle.shared.lock().unsent(self.handle.id) as u64
    }

    fn unless_reset(&self) -> io::Result<()> {
        let state = self.handle.shared.lock();
        match state.session.reset_of(self.handle.id) {
            Some(reset) => Err(io_error(reset.clone())),
            None => Ok(()),
        }
    }
}

impl Drop for ReadHalf {
    fn drop(&mut self) {
        self.handle.with(|state, id| state.session.discard(id));
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        self.finish();
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let Some(mut chunk) = ready!(self.poll_chunk(cx)).map_err(io_error)? else {
            return Poll::Ready(Ok(()));
        };
        let len = chunk.len().min(buf.remaining());
        buf.put_slice(&chunk.split_to(len));
        self.chunk = chunk;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let written = self.handle.poll(cx, Awaited::Writable, |state, id| {
            let sent = state.session.send_slice(id, bytes);
            match sent? {
                0 => Poll::Pending,
                sent => Poll::Ready(Ok(sent)),
            }
        });
        self.waited |= written.is_pending();
        written
    }

    /// The driver flushes by itself. Returns an error if the stream was reset, because written data
    /// may be lost.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.unless_reset())
    }

    /// As [`finish`](Self::finish). Returns an error if the stream was reset, because written data
    /// may be lost.
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(self.unless_reset())
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }
}

/// The error as an [`io::Error`] that contains the [`Reset`].
pub(super) fn io_error(reset: Reset) -> io::Error {
    io::Error::new(kind_of(&reset), reset)
}

pub(super) fn kind_of(reset: &Reset) -> io::ErrorKind {
    match reset.reason {
        Reason::Refused => io::ErrorKind::ConnectionRefused,
        Reason::Unreachable => io::ErrorKind::HostUnreachable,
        Reason::TimedOut => io::ErrorKind::TimedOut,
        Reason::Denied => io::ErrorKind::PermissionDenied,
        Reason::NoAgent => io::ErrorKind::NotConnected,
        _ => io::ErrorKind::ConnectionReset,
    }
}

pub(super) fn reset_of(error: StreamError) -> Reset {
    match error {
        StreamError::Reset(reset) => reset,
        // The session knows the stream as long as its handle exists.
        other => Reset::new(Reason::Gone, &alloc::format!("{other}")),
    }
}

pub(super) fn send_reset(error: SendError) -> Reset {
    match error {
        SendError::Reset(reset) => reset,
        other => Reset::new(Reason::Gone, &alloc::format!("{other}")),
    }
}

impl From<Reset> for io::Error {
    fn from(reset: Reset) -> Self {
        io_error(reset)
    }
}

impl From<SendError> for io::Error {
    /// "Would block" without credit or room, "broken pipe" if this direction was finished. The
    /// error contains the [`SendError`], or the [`Reset`] if it is one.
    fn from(error: SendError) -> Self {
        let kind = match error {
            SendError::Reset(reset) => return io_error(reset),
            SendError::Blocked(_) => io::ErrorKind::WouldBlock,
            SendError::TooLong(_) => io::ErrorKind::InvalidInput,
            SendError::NotAccepted | SendError::Unknown => io::ErrorKind::NotConnected,
            SendError::Finished => io::ErrorKind::BrokenPipe,
        };
        Self::new(kind, error)
    }
}
