//! Pipes of the kernel. Bytes move through them from socket to socket (`splice`), and are not
//! copied into the program and out again. Only Linux has such pipes.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use kohakuriver_tunnel::mux::Budget;
use parking_lot::Mutex;
#[cfg(target_os = "linux")]
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
    input: File,
    output: File,
}

impl Ends {
    #[cfg(target_os = "linux")]
    fn open() -> io::Result<Self> {
        let (output, input) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        fcntl_setpipe_size(&input, PIPE)?;
        let (input, output) = (input.into(), output.into());
        Ok(Self { input, output })
    }

    #[cfg(not(target_os = "linux"))]
    fn open() -> io::Result<Self> {
        Err(ErrorKind::Unsupported.into())
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
        let input = &self.ends.input;
        let most = most.min(PIPE);
        let fill = || from.try_io(Interest::READABLE, || shift(from, input, most));
        self.held = ready!(poll_io(|| from.poll_read_ready(cx), fill))?;
        Poll::Ready(Ok(self.held))
    }

    /// Moves bytes out of the pipe into a socket, and returns their number.
    ///
    /// # Errors
    /// The socket failed, or the system does not splice (see [`is_refusal`]).
    pub fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        let (output, held) = (&self.ends.output, self.held);
        let drain = || to.try_io(Interest::WRITABLE, || shift(output, to, held));
        match ready!(poll_io(|| to.poll_write_ready(cx), drain))? {
            0 => Poll::Ready(Err(ErrorKind::WriteZero.into())),
            moved => {
                self.held = held.saturating_sub(moved);
                Poll::Ready(Ok(moved))
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

/// Moves up to `most` bytes between a pipe and a socket.
#[cfg(target_os = "linux")]
fn shift(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    Ok(splice(from, None, to, None, most, SpliceFlags::NONBLOCK)?)
}

#[cfg(not(target_os = "linux"))]
fn shift<F, T>(_from: F, _to: T, _most: usize) -> io::Result<usize> {
    Err(ErrorKind::Unsupported.into())
}

/// Tries until it succeeds or fails. While the socket is not ready, it wakes the task later.
fn poll_io(
    mut poll_ready: impl FnMut() -> Poll<io::Result<()>>,
    try_io: impl Fn() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(poll_ready())?;
        match try_io() {
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            tried => return Poll::Ready(tried),
        }
    }
}
