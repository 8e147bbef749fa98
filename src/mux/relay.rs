use alloc::collections::VecDeque;
use core::cell::Cell;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use super::grace::Grace;
use super::stream::{ReadHalf, TunnelStream, WriteHalf, kind_of};
use crate::session::{Reason, Reset, SendError};
use crate::wire::{Chunk, HeadroomBuf};

/// Reads of at most this many bytes are copied, so that they do not pin a whole read buffer.
const COPY_MAX: usize = 4096;
/// Most bytes that one read asks for.
const READ_BUFFER: usize = 256 << 10;
/// Most bytes and chunks taken from the tunnel for one write to the local side. A stalled local
/// side holds this in addition to the session's bounds. It counts for the process's.
const WRITE_BATCH: usize = 128 << 10;
const WRITE_SLICES: usize = 16;

std::thread_local! {
    /// Shared by all relays of a thread. It is empty whenever none of them runs.
    static BUFFER: Cell<Option<HeadroomBuf>> = const { Cell::new(None) };
}

/// Bytes that a relay, or a join, has carried.
///
/// ```
/// use kohakuriver_tunnel::mux::{Relayed, TunnelStream};
/// use tokio::net::TcpStream;
///
/// async fn serve(stream: TunnelStream, mut service: TcpStream) {
///     match stream.relay(&mut service).await {
///         Ok(Relayed { sent, received, .. }) => println!("{received} in, {sent} out"),
///         Err(error) => println!("{error}"),
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Relayed {
    /// Bytes from the local side into the tunnel.
    pub sent: u64,
    /// Bytes from the tunnel to the local side.
    pub received: u64,
}

/// Which side a relay failed at.
///
/// ```
/// use kohakuriver_tunnel::mux::{RelayError, TunnelStream};
/// use tokio::net::TcpStream;
///
/// async fn serve(stream: TunnelStream, mut service: TcpStream) {
///     if let Err(RelayError::Tunnel(reset)) = stream.relay(&mut service).await {
///         println!("the other side: {reset}");
///     }
/// }
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The tunnel side failed, or the connection behind it.
    #[error(transparent)]
    Tunnel(#[from] Reset),
    /// The local side failed. The peer was informed.
    #[error("local connection: {0}")]
    Local(#[from] io::Error),
}

impl From<RelayError> for io::Error {
    /// The error has the kind of the [`Reset`] or of the local error, and contains the
    /// [`RelayError`].
    fn from(error: RelayError) -> Self {
        let kind = match &error {
            RelayError::Tunnel(reset) => kind_of(reset),
            RelayError::Local(error) => error.kind(),
        };
        Self::new(kind, error)
    }
}

impl TunnelStream {
    /// Joins the stream with a local connection until both directions have ended. Each direction
    /// ends separately.
    ///
    /// Bytes read from the local side go into the transport's message without a copy, and bytes
    /// from the tunnel into the local write. An idle relay holds no buffer. If the local side
    /// fails, the stream is reset. If the future is dropped before its end, the stream is reset:
    /// bytes in between are lost, and a part must not look like the whole.
    ///
    /// If the tunnel fails, earlier data is still written, unless the stream was reset here because
    /// memory was short. The caller should then reset the local side: a TCP socket by a linger time
    /// of zero before it is dropped. A Unix socket has no reset. Its peer sees the same end as
    /// after an orderly one, so only the protocol above can tell them apart.
    ///
    /// # Errors
    /// [`RelayError`].
    pub fn relay<S>(self, local: &mut S) -> impl Future<Output = Result<Relayed, RelayError>>
    where
        S: AsyncRead + AsyncWrite + Unpin + ?Sized,
    {
        self.relay_with_grace(local, core::future::pending)
    }

    /// As [`relay`](Self::relay), with a time limit for a local side that does not read the data
    /// received before a reset of the tunnel.
    ///
    /// `grace` makes the timer. It is called again after each write, so that a slow local side gets
    /// everything. Without the limit, a service that has stopped reading would keep the connections
    /// of all clients that gave up on it.
    ///
    /// # Errors
    /// [`RelayError`].
    pub fn relay_with_grace<S, F>(
        self,
        local: &mut S,
        grace: impl FnMut() -> F,
    ) -> impl Future<Output = Result<Relayed, RelayError>>
    where
        S: AsyncRead + AsyncWrite + Unpin + ?Sized,
        F: Future<Output = ()>,
    {
        // Not in the future's body: it may be dropped before its first poll.
        let mut relay = Relay {
            stream: self,
            sending: true,
            receiving: true,
            outbound: Outbound::default(),
            inbound: Inbound::default(),
        };
        let mut grace = Grace::new(grace);
        poll_fn(move |cx| {
            if let Poll::Ready(outcome) = relay.poll(cx, local) {
                relay.inform(&outcome);
                return Poll::Ready(outcome);
            }
            let reset = ready!(relay.poll_undelivered(cx));
            if !relay.drop_uncounted() {
                ready!(grace.poll(cx, relay.inbound.written));
            }
            Poll::Ready(Err(reset.into()))
        })
    }
}

struct Relay {
    stream: TunnelStream,
    sending: bool,
    receiving: bool,
    outbound: Outbound,
    inbound: Inbound,
}

/// Bytes on their way from the local side to the tunnel.
#[derive(Debug, Default)]
struct Outbound {
    /// Read from the local side but refused by the tunnel, because other streams took the room
    /// meanwhile.
    refused: Option<Chunk>,
    sent: u64,
}

impl Relay {
    fn poll<S>(&mut self, cx: &mut Context<'_>, local: &mut S) -> Poll<Result<Relayed, RelayError>>
    where
        S: AsyncRead + AsyncWrite + Unpin + ?Sized,
    {
        let (read, write) = self.stream.split();
        if self.sending {
            match poll_send(cx, local, write, &mut self.outbound) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.sending = false,
                Poll::Ready(Err(RelayError::Tunnel(_))) if self.receiving => {
                    // Data from before the reset is written first; then the other direction returns
                    // the reset.
                    self.sending = false;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        if self.receiving {
            ready!(poll_receive(cx, local, read, &mut self.inbound))?;
            self.receiving = false;
        }
        if self.sending {
            // The local side may be silent for long, and a reset must not wait for it.
            read.poll_reset(cx).map(|reset| Err(reset.into()))
        } else {
            Poll::Ready(Ok(Relayed {
                sent: self.outbound.sent,
                received: self.inbound.written,
            }))
        }
    }

    /// Resets the stream if the local side failed.
    fn inform(&self, outcome: &Result<Relayed, RelayError>) {
        if let Err(RelayError::Local(error)) = outcome {
            // Only the kind: the error's text may contain local names.
            let text = alloc::format!("{}", error.kind());
            self.stream.reset(Reason::Reset, &text);
        }
    }

    /// Ready with the tunnel's reset if the local side does not accept earlier data.
    fn poll_undelivered(&mut self, cx: &mut Context<'_>) -> Poll<Reset> {
        if self.receiving && self.inbound.is_undelivered() {
            self.stream.split().0.poll_reset(cx)
        } else {
            Poll::Pending
        }
    }

    /// Drops what was received if the session has dropped the rest: it does not count as held any
    /// more. Returns whether that is so.
    fn drop_uncounted(&mut self) -> bool {
        let has_lost = self.stream.split().0.has_lost();
        if has_lost {
            self.inbound.chunks.clear();
        }
        has_lost
    }
}

impl Drop for Relay {
    /// Has no effect on a stream that has ended.
    fn drop(&mut self) {
        if self.sending || self.receiving {
            self.stream.reset(Reason::Reset, "the relay was dropped");
        }
    }
}

/// Local side to tunnel, until the local side ends.
fn poll_send<S>(
    cx: &mut Context<'_>,
    local: &mut S,
    write: &mut WriteHalf,
    outbound: &mut Outbound,
) -> Poll<Result<(), RelayError>>
where
    S: AsyncRead + Unpin + ?Sized,
{
    let mut capacity = 0;
    loop {
        if capacity <= COPY_MAX {
            capacity = ready!(write.poll_capacity(cx))?;
        }
        let chunk = match outbound.refused.take() {
            Some(chunk) => chunk,
            None => match poll_chunk(cx, local, capacity)? {
                Poll::Ready(Some(chunk)) => chunk,
                Poll::Ready(None) => {
                    write.finish();
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => {
                    write.pass();
                    return Poll::Pending;
                }
            },
        };
        let len = chunk.len();
        // After a small read there is rarely more, so what is left of the capacity will do.
        capacity = match len <= COPY_MAX {
            true => capacity.saturating_sub(len),
            false => 0,
        };
        match write.send(chunk) {
            Ok(()) => outbound.sent += len as u64,
            Err(SendError::Blocked(chunk)) => {
                outbound.refused = Some(chunk);
                capacity = 0;
            }
            Err(error) => return Poll::Ready(Err(super::stream::send_reset(error).into())),
        }
    }
}

/// Reads at most `limit` bytes behind headroom; `None` at the end.
fn poll_chunk<S>(
    cx: &mut Context<'_>,
    local: &mut S,
    limit: usize,
) -> Poll<io::Result<Option<Chunk>>>
where
    S: AsyncRead + Unpin + ?Sized,
{
    let new = || HeadroomBuf::with_capacity(READ_BUFFER);
    let mut buffer = BUFFER.take().unwrap_or_else(new);
    let mut spare = buffer.spare(limit);
    let read = poll_read_buf(Pin::new(local), cx, &mut spare);
    let chunk = match &read {
        Poll::Ready(Ok(1..)) => Some(buffer.next_chunk(COPY_MAX)),
        _ => None,
    };
    BUFFER.set(Some(buffer));
    read.map_ok(|_| chunk)
}

/// Tunnel to local side, until the tunnel ends.
fn poll_receive<S>(
    cx: &mut Context<'_>,
    local: &mut S,
    read: &mut ReadHalf,
    inbound: &mut Inbound,
) -> Poll<Result<(), RelayError>>
where
    S: AsyncWrite + Unpin + ?Sized,
{
    loop {
        while !inbound.chunks.is_empty() {
            ready!(inbound.poll_write(cx, local))?;
        }
        match inbound.gather(cx, read) {
            Poll::Pending if inbound.chunks.is_empty() => {
                if inbound.unflushed && Pin::new(&mut *local).poll_flush(cx)?.is_ready() {
                    inbound.unflushed = false;
                }
                return Poll::Pending;
            }
            Poll::Ready(Err(reset)) if inbound.chunks.is_empty() => {
                if inbound.unflushed {
                    ready!(Pin::new(local).poll_flush(cx))?;
                }
                return Poll::Ready(Err(reset.into()));
            }
            Poll::Ready(Ok(())) if inbound.chunks.is_empty() => {
                inbound.ending = true;
                ready!(Pin::new(local).poll_shutdown(cx))?;
                return Poll::Ready(Ok(()));
            }
            _ => {}
        }
    }
}

/// Bytes on their way from the tunnel to the local side.
#[derive(Debug, Default)]
struct Inbound {
    chunks: VecDeque<Bytes>,
    unflushed: bool,
    /// All was received, and the local side is told so.
    ending: bool,
    written: u64,
}

impl Inbound {
    /// Whether the local side has not accepted everything, or may hold some of it in a buffer.
    fn is_undelivered(&self) -> bool {
        !self.chunks.is_empty() || self.unflushed || self.ending
    }

    /// Takes received data for one write. Ready at the end of the stream.
    fn gather(&mut self, cx: &mut Context<'_>, read: &mut ReadHalf) -> Poll<Result<(), Reset>> {
        let mut bytes = 0;
        while bytes < WRITE_BATCH && self.chunks.len() < WRITE_SLICES {
            let Some(chunk) = ready!(read.poll_headed(cx, bytes))? else {
                return Poll::Ready(Ok(()));
            };
            bytes += chunk.len();
            self.chunks.push_back(chunk.into_payload());
            if read.is_drained() {
                // It is asked again after the write, and waits then.
                break;
            }
        }
        Poll::Pending
    }

    /// Writes once.
    fn poll_write<S>(&mut self, cx: &mut Context<'_>, local: &mut S) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin + ?Sized,
    {
        let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            *slice = IoSlice::new(chunk);
            count += 1;
        }
        let slices = slices.get(..count).unwrap_or_default();
        let mut len = ready!(Pin::new(local).poll_write_vectored(cx, slices))?;
        if len == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.written += len as u64;
        self.unflushed = true;
        while let Some(front) = self.chunks.front_mut().filter(|_| len > 0) {
            let part = len.min(front.len());
            front.advance(part);
            len -= part;
            if front.is_empty() {
                self.chunks.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}
