//! Moves raw bytes between two sockets, both ways.
//!
//! A direction reads into a buffer from a pool and writes at once. It keeps the buffer only while
//! the other socket does not take all. An idle session therefore holds no buffer, and a blocked
//! direction holds one, of the size of what has to wait if that is little.
//!
//! While much comes at once, a direction between plain TCP sockets uses a pipe of the kernel in
//! place of the buffer.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use kohakuriver_tunnel::mux::Budget;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::splice::{self, Pipe, Pipes};
use crate::common::metrics::{Counter, Gauge, Inside};
use crate::common::net::MaybeTls;

/// Bytes per read, which is also the most that one direction of a session holds.
const BUFFER: usize = 256 * 1024;

/// Bytes per read when the process has exhausted its budget.
const SMALL_BUFFER: usize = 4 * 1024;

/// Most bytes that one direction moves before the task yields. A socket alone would let it move 16
/// MiB.
const LONGEST_TURN: usize = 512 * 1024;

/// Fewest bytes of a turn.
const SHORTEST_TURN: usize = 16 * 1024;

/// Bytes that all directions with data share in one round of turns, which takes some milliseconds.
/// Otherwise hundreds of flooding sessions would make the others wait for seconds.
const ROUND: usize = 4 * 1024 * 1024;

/// A read of this many bytes makes a direction use pipes. Fewer are copied faster.
const MUCH: usize = 64 * 1024;

/// At most so many bytes that have to wait are copied into a buffer of their size, because a whole
/// one would be charged for them.
const FEW: usize = 32 * 1024;

/// With fewer bytes than this in a pipe, a direction copies again.
const LITTLE: usize = 16 * 1024;

/// Unused buffers kept for the next reads, and charged, so that a read does not change what other
/// threads count too.
const POOLED: usize = 4;

/// How long one direction may outlive the other. After one side has closed, a WebSocket has little
/// left to send.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// Shared by all sessions of a host's thread.
pub struct Relays {
    /// For data that was read and waits to be written.
    memory: Budget,
    pool: Mutex<Vec<Box<[u8]>>>,
    pipes: Pipes,
    /// Directions that used their whole turn and wait for the next.
    waiting: Gauge,
    pub to_runner: Counter,
    pub to_client: Counter,
}

impl Relays {
    /// At most `pipes` pipes at once.
    pub fn new(memory: Budget, pipes: usize) -> Self {
        Self {
            pipes: Pipes::new(pipes, memory.clone()),
            memory,
            pool: Mutex::default(),
            waiting: Gauge::default(),
            to_runner: Counter::default(),
            to_client: Counter::default(),
        }
    }

    /// Relays until both directions have ended. Each side comes with the bytes already read from
    /// it.
    ///
    /// # Errors
    /// One socket failed. Both are reset, so that neither peer takes a cut stream for a whole one.
    pub async fn join(
        &self,
        (mut client, from_client): (MaybeTls, Bytes),
        (mut runner, from_runner): (MaybeTls, Bytes),
    ) -> io::Result<()> {
        let mut up = Direction::new(from_client, &self.to_runner, self);
        let mut down = Direction::new(from_runner, &self.to_client, self);
        let mut poll_both = |cx: &mut Context<'_>| {
            let up = up.poll(cx, &mut client, &mut runner)?;
            let down = down.poll(cx, &mut runner, &mut client)?;
            Ok((up.is_ready(), down.is_ready()))
        };
        let mut ended = poll_fn(|cx| match poll_both(cx) {
            Ok((false, false)) => Poll::Pending,
            ended => Poll::Ready(ended.map(drop)),
        })
        .await;
        if ended.is_ok() {
            let rest = poll_fn(|cx| match poll_both(cx) {
                Ok((true, true)) => Poll::Ready(Ok(())),
                Ok(_) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            });
            let late = |_| {
                let text = "one side closed and the other went on";
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            };
            ended = timeout(LAST_WORDS, rest).await.unwrap_or_else(late);
        }
        drop((up, down));
        if ended.is_err() {
            client.reset_on_drop();
            runner.reset_on_drop();
        }
        ended
    }
}

struct Direction<'a> {
    state: State<'a>,
    counter: &'a Counter,
    relays: &'a Relays,
    /// Much came at once.
    bulk: bool,
    /// Counted in [`Relays::waiting`].
    waits: Option<Inside<'a>>,
}

/// `Early -> Reading <-> Holding, Piped`, at the end of the input `-> Closing -> Closed`.
enum State<'a> {
    /// Bytes that are written before more are read: those from before the relay began, and those
    /// of a pipe that the other socket refuses.
    Early(Bytes),
    Reading,
    /// Bytes read but not yet accepted by the other socket: `buffer[start..end]`.
    Holding {
        buffer: Buffer<'a>,
        start: usize,
        end: usize,
    },
    /// Bytes in a pipe, not yet accepted by the other socket.
    Piped(Pipe<'a>),
    Closing,
    Closed,
}

impl<'a> Direction<'a> {
    fn new(early: Bytes, counter: &'a Counter, relays: &'a Relays) -> Self {
        let state = State::Early(early);
        Self {
            state,
            counter,
            relays,
            bulk: false,
            waits: None,
        }
    }

    /// Moves what can be moved now. Ready when the input has ended and the other side was told.
    ///
    /// The work is bounded: other sessions have their turn after this one.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut MaybeTls,
        to: &mut MaybeTls,
    ) -> Poll<io::Result<()>> {
        self.waits = None;
        let waiting = usize::try_from(self.relays.waiting.value()).unwrap_or(ROUND);
        let turn = (ROUND / (waiting + 1)).clamp(SHORTEST_TURN, LONGEST_TURN);
        let mut moved = 0;
        loop {
            if moved >= turn {
                self.waits = Some(self.relays.waiting.enter());
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if matches!(self.state, State::Closed) {
                return Poll::Ready(Ok(()));
            }
            moved += ready!(self.poll_step(cx, from, to, turn))?;
        }
    }

    /// The step of the current state. Reads at most `most` bytes. Returns the number of bytes that
    /// were moved from a buffer or pipe.
    fn poll_step(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut MaybeTls,
        to: &mut MaybeTls,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        match &mut self.state {
            State::Early(bytes) => {
                while !bytes.is_empty() {
                    let written = ready!(write(cx, to, bytes))?;
                    self.counter.add(written as u64);
                    bytes::Buf::advance(bytes, written);
                }
                self.state = State::Reading;
            }
            State::Reading => self.state = ready!(self.poll_read(cx, from, to, most))?,
            State::Holding { buffer, start, end } => {
                let rest = buffer.bytes.get(*start..*end).unwrap_or_default();
                if rest.is_empty() {
                    self.state = State::Reading;
                } else if let Poll::Ready(written) = write(cx, to, rest) {
                    let written = written?;
                    self.counter.add(written as u64);
                    *start += written;
                    return Poll::Ready(Ok(written));
                } else {
                    let few = rest.len();
                    if let Some(copy) = buffer.copy_of_few(rest) {
                        (*buffer, *start, *end) = (copy, 0, few);
                    }
                    return Poll::Pending;
                }
            }
            State::Piped(pipe) if pipe.is_empty() => self.state = State::Reading,
            State::Piped(pipe) => match ready!(pipe.poll_drain(cx, to.tcp())) {
                Ok(written) => {
                    self.counter.add(written as u64);
                    return Poll::Ready(Ok(written));
                }
                Err(error) if splice::is_refusal(&error) => {
                    let bytes = pipe.copy_out()?;
                    self.stop_splicing(&error);
                    self.state = State::Early(bytes.into());
                }
                Err(error) => return Poll::Ready(Err(error)),
            },
            State::Closing => {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.state = State::Closed;
            }
            State::Closed => {}
        }
        Poll::Ready(Ok(0))
    }

    /// Reads at most `most` bytes into a pipe or a buffer, and returns the next state.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut MaybeTls,
        to: &mut MaybeTls,
        most: usize,
    ) -> Poll<io::Result<State<'a>>> {
        let plain = !from.is_tls() && !to.is_tls();
        let pipe = (self.bulk && plain).then(|| self.relays.pipes.take());
        if let Some(mut pipe) = pipe.flatten() {
            match ready!(pipe.poll_fill(cx, from.tcp(), most)) {
                Ok(read @ 1..) => {
                    self.bulk = read >= LITTLE;
                    return Poll::Ready(Ok(State::Piped(pipe)));
                }
                // The read below tells whether the input has ended.
                Ok(0) => {}
                Err(error) if splice::is_refusal(&error) => self.stop_splicing(&error),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let mut buffer = Buffer::take(self.relays);
        let most = buffer.bytes.len().min(most);
        let mut filled = ReadBuf::new(buffer.bytes.get_mut(..most).unwrap_or_default());
        let read = Pin::new(&mut *from).poll_read(cx, &mut filled);
        let end = filled.filled().len();
        match read {
            Poll::Ready(Ok(())) if end > 0 => {
                self.bulk = end >= MUCH;
                let start = 0;
                Poll::Ready(Ok(State::Holding { buffer, start, end }))
            }
            Poll::Ready(Ok(())) => Poll::Ready(Ok(State::Closing)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                drop(buffer);
                // A TLS socket may hold records back until it is flushed.
                match Pin::new(to).poll_flush(cx) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    _ => Poll::Pending,
                }
            }
        }
    }

    fn stop_splicing(&mut self, error: &io::Error) {
        tracing::debug!("bytes are copied, because the system does not splice: {error}");
        self.bulk = false;
        self.relays.pipes.pause();
    }
}

fn write(cx: &mut Context<'_>, to: &mut MaybeTls, bytes: &[u8]) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(to).poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        other => Poll::Ready(other),
    }
}

/// A buffer for what was read. Dropping it returns it to the pool or the budget.
struct Buffer<'a> {
    bytes: Box<[u8]>,
    /// What it costs of the budget. Small buffers of an exhausted one cost nothing.
    charged: usize,
    relays: &'a Relays,
}

impl<'a> Buffer<'a> {
    /// For one read.
    fn take(relays: &'a Relays) -> Self {
        let pooled = relays.pool.lock().pop();
        let new = |size| vec![0; size].into_boxed_slice();
        let whole = pooled.or_else(|| relays.memory.take(BUFFER).then(|| new(BUFFER)));
        let charged = whole.as_ref().map_or(0, |bytes| bytes.len());
        Self {
            bytes: whole.unwrap_or_else(|| new(SMALL_BUFFER)),
            charged,
            relays,
        }
    }

    /// A buffer of its own for `rest`, if that saves most of this one.
    fn copy_of_few(&self, rest: &[u8]) -> Option<Self> {
        if self.charged < BUFFER || rest.len() > FEW {
            return None;
        }
        let charged = match self.relays.memory.take(rest.len()) {
            true => rest.len(),
            false if rest.len() <= SMALL_BUFFER => 0,
            false => return None,
        };
        Some(Self {
            bytes: rest.into(),
            charged,
            relays: self.relays,
        })
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        if self.charged == BUFFER {
            let mut pool = self.relays.pool.lock();
            if pool.len() < POOLED {
                return pool.push(std::mem::take(&mut self.bytes));
            }
        }
        self.relays.memory.give_back(self.charged);
    }
}

#[cfg(test)]
mod tests;
