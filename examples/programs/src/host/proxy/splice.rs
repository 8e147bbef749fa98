//! Pipes of the kernel. Bytes move through them from socket to socket (`splice`), and are not
//! copied into the program and out again.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use kohakuriver_tunnel::mux::Budget;
use parking_lot::Mutex;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Most bytes in a pipe.
const PIPE: usize = 512 * 1024;

/// Empty pipes kept for the next bytes.
const POOLED: usize = 4;

/// How many requests get no pipe after the system has refused one.
const PAUSE: usize = 1000;

/// The pipes of a thread.
pub struct Pipes {
    most: usize,
    memory: Budget,
    pool: Mutex<Vec<Arc<Ends>>>,
    /// Pipes that exist.
    open: AtomicUsize,
    /// Requests that get none.
    pause: AtomicUsize,
}

impl Pipes {
    /// At most `most` at once. `memory` is charged for those in use.
    pub fn new(most: usize, memory: Budget) -> Self {
        Self {
            most,
            memory,
            pool: Mutex::default(),
            open: AtomicUsize::new(0),
            pause: AtomicUsize::new(0),
        }
    }

    /// An empty pipe, if there is one left, memory for what it holds, and the system allows it.
    pub fn take(&self) -> Option<Pipe<'_>> {
        let pause = self.pause.load(Ordering::Relaxed);
        if pause > 0 {
            self.pause.store(pause - 1, Ordering::Relaxed);
            return None;
        }
        if !self.memory.take(PIPE) {
            return None;
        }
        let pooled = self.pool.lock().pop();
        let Some(ends) = pooled.or_else(|| self.open()) else {
            self.memory.give_back(PIPE);
            return None;
        };
        Some(Pipe {
            ends,
            held: 0,
            pipes: self,
        })
    }

    /// Nobody gets a pipe for a while.
    pub fn pause(&self) {
        self.pause.store(PAUSE, Ordering::Relaxed);
    }

    /// Pipes that exist.
    #[cfg(test)]
    pub fn opened(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn open(&self) -> Option<Arc<Ends>> {
        if self.open.fetch_add(1, Ordering::Relaxed) < self.most {
            match Ends::open() {
                Ok(ends) => return Some(Arc::new(ends)),
                // No descriptor is left, or the user has as much memory in pipes as allowed. A pipe
                // of less than the full size would need many calls.
                Err(error) => {
                    tracing::debug!("no pipe: {error}");
                    self.pause();
                }
            }
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

struct Ends {
    input: OwnedFd,
    output: File,
}

impl Ends {
    fn open() -> io::Result<Self> {
        let (output, input) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        fcntl_setpipe_size(&input, PIPE)?;
        let output = output.into();
        Ok(Self { input, output })
    }
}

/// A pipe in use. Dropping it returns it to the pool, or closes it if it holds bytes.
pub struct Pipe<'a> {
    ends: Arc<Ends>,
    /// Bytes in it.
    held: usize,
    pipes: &'a Pipes,
}

impl Pipe<'_> {
    /// Moves up to `most` bytes from a socket into the empty pipe.
    ///
    /// 0 says that the input has ended, or that urgent data comes next; a read tells which.
    ///
    /// # Errors
    /// The socket failed, or the system does not splice (see [`is_refusal`]).
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        // A full pipe would look like a socket without data.
        debug_assert_eq!(self.held, 0);
        let most = most.min(PIPE);
        loop {
            ready!(from.poll_read_ready(cx))?;
            let input = &self.ends.input;
            let fill = || {
                Ok(splice(
                    from,
                    None,
                    input,
                    None,
                    most,
                    SpliceFlags::NONBLOCK,
                )?)
            };
            match from.try_io(Interest::READABLE, fill) {
                Ok(moved) => {
                    self.held = moved;
                    return Poll::Ready(Ok(moved));
                }
                Err(error) if is_transient(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Moves bytes out of the pipe into a socket, and returns their number.
    ///
    /// # Errors
    /// The socket failed, or the system does not splice (see [`is_refusal`]).
    pub fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        let held = self.held;
        loop {
            ready!(to.poll_write_ready(cx))?;
            let output = &self.ends.output;
            let drain = || Ok(splice(output, None, to, None, held, SpliceFlags::NONBLOCK)?);
            match to.try_io(Interest::WRITABLE, drain) {
                Ok(0) => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                Ok(moved) => {
                    self.held = held.saturating_sub(moved);
                    return Poll::Ready(Ok(moved));
                }
                Err(error) if is_transient(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Copies its bytes out of it, for a socket that does not take them from a pipe.
    ///
    /// # Errors
    /// The pipe cannot be read.
    pub fn copy_out(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.held];
        (&self.ends.output).read_exact(&mut bytes)?;
        self.held = 0;
        Ok(bytes)
    }

    /// Whether no bytes are in it.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }
}

impl Drop for Pipe<'_> {
    fn drop(&mut self) {
        self.pipes.memory.give_back(PIPE);
        if self.is_empty() {
            let mut pool = self.pipes.pool.lock();
            if pool.len() < POOLED {
                pool.push(Arc::clone(&self.ends));
                return;
            }
        }
        self.pipes.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether an error says that bytes do not move through a pipe here, not that a socket failed: an
/// old or restricted system, or a rule that forbids it.
pub fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::InvalidInput | ErrorKind::PermissionDenied | ErrorKind::Unsupported
    )
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
