use alloc::collections::VecDeque;
use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::io::{self, IoSlice};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_core::Stream;
use futures_sink::Sink;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use crate::codec::{COPY_MAX, CodecError, Found, PREFIX_LEN, StreamCodec};
use crate::wire::HEADER_LEN;

/// A transport over any byte stream: TCP, TLS, a Unix socket, vsock, a channel of SSH (PROTOCOL.md
/// section 3.2).
///
/// A big-endian `u32` before each message gives its length, at most 1 MiB;
/// [`LengthPrefixed::with_max_len`] sets another bound. The carrier is
/// [`Plain`](crate::transport::Plain). It has no texts, so such a tunnel begins without a greeting.
///
/// The byte stream has tokio's `AsyncRead` and `AsyncWrite`. `tokio_util::compat` converts one with
/// the traits of `futures-io`, as those of smol and async-std are.
///
/// ```
/// # #[cfg(unix)] {
/// use kohakuriver_tunnel::mux::{self, Incoming};
/// use kohakuriver_tunnel::transport::Plain;
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio::net::UnixStream;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (near, far) = UnixStream::pair()?;
/// let (mux, driver) = mux::builder().opener(mux::length_prefixed(near), Plain);
/// tokio::spawn(driver);
/// let (mut acceptor, driver) = mux::builder().acceptor(mux::length_prefixed(far), Plain);
/// tokio::spawn(driver);
///
/// let mut stream = mux.open_tcp(7)?;
/// stream.write_all(b"hello").await?;
/// let Some(Incoming::Tcp(incoming)) = acceptor.accept().await else { panic!() };
/// let mut hello = [0; 5];
/// incoming.accept().read_exact(&mut hello).await?;
/// assert_eq!(&hello, b"hello");
/// # Ok(())
/// # }
/// # main().unwrap();
/// # }
/// ```
pub fn length_prefixed<S>(io: S) -> LengthPrefixed<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    LengthPrefixed::with_max_len(io, StreamCodec::DEFAULT_MAX_LEN)
}

impl<S: AsyncWrite> LengthPrefixed<S> {
    /// As [`length_prefixed`], for messages of at most `max_len` bytes, header included; at most
    /// `u32::MAX`.
    ///
    /// It bounds what a peer can make this end hold of one message. It is not negotiated: a longer
    /// message ends the tunnel, at whichever end has the lower bound. So it must be at least
    /// [`max_piece`](crate::session::Config::max_piece) of either end and 8 bytes for the header
    /// (130,908 bytes by default), and 65,515 bytes if there are flows. For less, lower `max_piece`
    /// at both ends.
    ///
    /// ```
    /// use kohakuriver_tunnel::mux::{self, Incoming, LengthPrefixed};
    /// use kohakuriver_tunnel::transport::Plain;
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (near, far) = tokio::io::duplex(64 << 10);
    /// let [near, far] = [near, far].map(|io| LengthPrefixed::with_max_len(io, 128 << 10));
    /// assert_eq!(near.max_len(), 131_072);
    /// let (mux, driver) = mux::builder().opener(near, Plain);
    /// tokio::spawn(driver);
    /// let (mut acceptor, driver) = mux::builder().acceptor(far, Plain);
    /// tokio::spawn(driver);
    ///
    /// let mut stream = mux.open_tcp(7)?;
    /// tokio::spawn(async move { stream.write_all(&[0; 1 << 20]).await });
    /// let Some(Incoming::Tcp(incoming)) = acceptor.accept().await else { panic!() };
    /// let mut bulk = Vec::new();
    /// incoming.accept().read_to_end(&mut bulk).await?;
    /// assert_eq!(bulk.len(), 1 << 20);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_max_len(io: S, max_len: usize) -> Self {
        Self {
            vectored: io.is_write_vectored(),
            io,
            codec: StreamCodec::with_max_len(max_len),
            input: BytesMut::new(),
            allocated: 0,
            read_size: READ_MIN,
            ended: false,
            queue: VecDeque::new(),
            buffer: BytesMut::new(),
            queued: 0,
            written: 0,
        }
    }
}

/// Bytes that one read asks for. Grows while reads fill the buffer.
const READ_MIN: usize = 8 << 10;
const READ_MAX: usize = 256 << 10;

/// A message keeps at most so many times its length alive.
const PINNED_MAX: usize = 8;

/// Bytes that may wait to be written before more are refused.
const QUEUE_BYTES: usize = 128 << 10;

/// Largest buffer for writing that is kept while nothing waits.
const KEPT_BUFFER: usize = 8 << 10;

/// Messages in one write.
const BATCH: usize = 16;

/// A `Stream` and `Sink` of messages over a byte stream: see [`length_prefixed`].
///
/// Messages of up to 4 KiB, or of less than an eighth of the read buffer, are copied out of it, so
/// that one in a queue keeps at most eight times its length alive; others share it. Room is made
/// for bytes that arrived, not for an announced length. Messages are written without a copy if the
/// byte stream accepts several slices at once (`is_write_vectored`).
///
/// # Errors
/// [`CodecError::TooLong`] and [`CodecError::Truncated`] are the peer's fault, [`CodecError::Io`]
/// is the byte stream's. The stream ends after any of them.
///
/// ```
/// use futures_util::{SinkExt, StreamExt};
/// use kohakuriver_tunnel::mux::length_prefixed;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (near, far) = tokio::io::duplex(64);
/// let (mut near, mut far) = (length_prefixed(near), length_prefixed(far));
/// near.send("message".into()).await?;
/// assert_eq!(far.next().await.ok_or("end")??, "message");
/// # Ok(())
/// # }
/// ```
pub struct LengthPrefixed<S> {
    io: S,
    codec: StreamCodec,
    /// Bytes read and not yet returned.
    input: BytesMut,
    /// Size of the allocation that `input` is the rest of.
    allocated: usize,
    read_size: usize,
    ended: bool,
    vectored: bool,
    /// Messages to write, each after its length, if the byte stream accepts slices.
    queue: VecDeque<Bytes>,
    /// Lengths and messages to write, if it does not.
    buffer: BytesMut,
    /// Bytes that wait in either.
    queued: usize,
    /// Bytes written of the first entry in the queue, including its length.
    written: usize,
}

/// Without the bytes under way.
impl<S: fmt::Debug> fmt::Debug for LengthPrefixed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LengthPrefixed")
            .field("io", &self.io)
            .field("read", &self.input.len())
            .field("queued", &self.queued)
            .finish_non_exhaustive()
    }
}

impl<S> LengthPrefixed<S> {
    /// The byte stream, for instance to set an option of its socket.
    pub const fn get_ref(&self) -> &S {
        &self.io
    }

    /// The byte stream. Bytes that are read from it or written to it directly break the tunnel.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.io
    }

    /// The byte stream, without what was read and not returned, or queued and not written.
    pub fn into_inner(self) -> S {
        self.io
    }

    /// The longest message in bytes, header included.
    #[must_use]
    pub const fn max_len(&self) -> usize {
        self.codec.max_len()
    }

    fn take(&mut self, len: usize) -> Bytes {
        self.input.advance(PREFIX_LEN);
        if len <= HEADER_LEN + COPY_MAX || len < self.allocated / PINNED_MAX {
            let message = Bytes::copy_from_slice(self.input.get(..len).unwrap_or_default());
            self.input.advance(len);
            message
        } else {
            self.input.split_to(len).freeze()
        }
    }

    /// Makes room to read `missing` more bytes, or some if the number is unknown.
    fn make_room(&mut self, missing: usize) {
        let have = self.input.len();
        let spare = self.input.capacity() - have;
        // In proportion to the bytes that arrived: announcing a length costs the peer nothing.
        let wanted = self.read_size.max(missing.min(have));
        if spare >= missing.clamp(READ_MIN / 2, wanted) || self.input.try_reclaim(wanted) {
            return;
        }
        // `reserve` would double an allocation shared with other messages.
        let mut grown = BytesMut::with_capacity(have + wanted);
        grown.put_slice(&self.input);
        self.allocated = grown.capacity();
        self.input = grown;
    }
}

impl<S: AsyncRead + Unpin> LengthPrefixed<S> {
    /// Reads more; returns false at the end.
    fn poll_read(&mut self, cx: &mut Context<'_>, missing: usize) -> Poll<io::Result<bool>> {
        self.make_room(missing);
        let room = self.input.capacity() - self.input.len();
        let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input);
        if read.is_pending() && self.input.is_empty() {
            // An idle tunnel should hold no buffer.
            self.input = BytesMut::new();
            self.allocated = 0;
        }
        let len = ready!(read)?;
        if len == room {
            self.read_size = (self.read_size * 2).min(READ_MAX);
        } else if len < self.read_size / 4 {
            self.read_size = (self.read_size / 2).max(READ_MIN);
        }
        Poll::Ready(Ok(len > 0))
    }
}

impl<S: AsyncWrite + Unpin> LengthPrefixed<S> {
    /// Writes until no more than `rest` bytes wait.
    fn poll_drain(&mut self, cx: &mut Context<'_>, rest: usize) -> Poll<Result<(), CodecError>> {
        while self.queued > rest {
            let len = ready!(self.poll_write(cx))?;
            if len == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
            }
            self.queued -= len;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes once.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, CodecError>> {
        if !self.vectored {
            let len = ready!(Pin::new(&mut self.io).poll_write(cx, &self.buffer))?;
            self.buffer.advance(len);
            return Poll::Ready(Ok(len));
        }
        let mut prefixes = [[0; PREFIX_LEN]; BATCH];
        for (prefix, message) in prefixes.iter_mut().zip(&self.queue) {
            *prefix = self.codec.prefix(message.len())?;
        }
        let mut slices = [IoSlice::new(&[]); 2 * BATCH];
        let parts = prefixes.iter().zip(&self.queue);
        let parts = parts.flat_map(|(prefix, message)| [&prefix[..], &message[..]]);
        let mut skip = self.written;
        for (slice, part) in slices.iter_mut().zip(parts) {
            let done = skip.min(part.len());
            skip -= done;
            *slice = IoSlice::new(part.get(done..).unwrap_or_default());
        }
        let len = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices))?;
        self.written += len;
        while let Some(front) = self.queue.front() {
            let whole = PREFIX_LEN + front.len();
            if self.written < whole {
                break;
            }
            self.written -= whole;
            self.queue.pop_front();
        }
        Poll::Ready(Ok(len))
    }
}

impl<S: AsyncRead + Unpin> Stream for LengthPrefixed<S> {
    type Item = Result<Bytes, CodecError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let outcome = loop {
            let missing = match this.codec.find(&this.input) {
                Ok(Found::Whole(len)) => return Poll::Ready(Some(Ok(this.take(len)))),
                Ok(Found::Missing(missing)) => missing,
                Ok(Found::NoLength) => 0,
                Err(error) => break Err(error),
            };
            match ready!(this.poll_read(cx, missing)) {
                Ok(true) => {}
                Ok(false) => break this.codec.check_end(&this.input),
                Err(error) => break Err(error.into()),
            }
        };
        this.ended = true;
        Poll::Ready(outcome.err().map(Err))
    }
}

impl<S: AsyncWrite + Unpin> Sink<Bytes> for LengthPrefixed<S> {
    type Error = CodecError;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), CodecError>> {
        self.get_mut().poll_drain(cx, QUEUE_BYTES)
    }

    /// # Errors
    /// [`CodecError::TooLong`] for more than [`max_len`](LengthPrefixed::max_len). Nothing was
    /// queued then.
    fn start_send(self: Pin<&mut Self>, message: Bytes) -> Result<(), CodecError> {
        let this = self.get_mut();
        let prefix = this.codec.prefix(message.len())?;
        this.queued += PREFIX_LEN + message.len();
        if this.vectored {
            this.queue.push_back(message);
        } else {
            this.buffer.put_slice(&prefix);
            this.buffer.put_slice(&message);
        }
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), CodecError>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx, 0))?;
        // An idle tunnel should hold no large buffer. Only its allocation is left of what it held.
        if this.buffer.try_reclaim(KEPT_BUFFER + 1) {
            this.buffer = BytesMut::new();
        }
        ready!(Pin::new(&mut this.io).poll_flush(cx))?;
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), CodecError>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx, 0))?;
        ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}
