//! Lines on stdout and stderr. A thread for each writes them, so that no reader stops the program.

use std::fs;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder};

use super::net;
use super::program::Failure;

/// Lines that wait for a slow reader; more are dropped and counted. At most a few hundred KB.
const LINES_WAITING: usize = 1024;

/// Longest wait of a flush for the reader.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// How often a flush checks whether the lines are written.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A stream of lines.
pub struct Output {
    queue: NonBlocking,
    queued: AtomicU64,
    written: Arc<AtomicU64>,
    /// Whether a flush has already waited in vain.
    stuck: AtomicBool,
}

/// The thread's end of the queue.
struct Writer<W> {
    to: W,
    written: Arc<AtomicU64>,
}

impl Output {
    /// # Errors
    /// The system does not allow the thread.
    pub fn new(name: &str, to: impl Write + Send + 'static) -> Result<Self, Failure> {
        try_thread().map_err(|error| {
            let reason = net::plain(&error);
            Failure::failed(format!(
                "cannot start the thread for {name}: {reason}; raise the limit of processes"
            ))
        })?;
        let written = Arc::<AtomicU64>::default();
        let writer = Writer {
            to,
            written: Arc::clone(&written),
        };
        let (queue, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(LINES_WAITING)
            .thread_name(name)
            .finish(writer);
        // Dropping the guard would write to stderr, and block if nobody reads.
        std::mem::forget(guard);
        Ok(Self {
            queue,
            queued: AtomicU64::new(0),
            written,
            stuck: AtomicBool::new(false),
        })
    }

    /// Queues a line.
    pub fn line(&self, text: &str) {
        let mut output = self;
        let _ = output.write(format!("{text}\n").as_bytes());
    }

    /// Waits until all lines are written, but only once if the reader does not read.
    pub fn flush(&self) {
        let until = Instant::now() + FLUSH_WITHIN;
        let queued = self.queued.load(Ordering::Relaxed);
        while self.written.load(Ordering::Acquire) + self.lost() < queued {
            if self.stuck.load(Ordering::Relaxed) || Instant::now() > until {
                return self.stuck.store(true, Ordering::Relaxed);
            }
            sleep(LOOK_EVERY);
        }
    }

    /// Lines that were dropped.
    pub fn lost(&self) -> u64 {
        self.queue.error_counter().dropped_lines() as u64
    }
}

/// Tries to start a thread, because the crate panics where it cannot start its own. Then waits
/// until the system does not count that thread any more.
fn try_thread() -> io::Result<()> {
    let threads = || fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let before = threads();
    let _ = thread::Builder::new().spawn(|| ())?.join();
    let until = Instant::now() + FLUSH_WITHIN;
    while threads() > before && Instant::now() < until {
        sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Each call queues one line.
impl Write for &Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.queued.fetch_add(1, Ordering::Relaxed);
        self.queue.clone().write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A reader that is gone is no reason to end.
        let _ = self.to.write_all(line).and_then(|()| self.to.flush());
        self.written.fetch_add(1, Ordering::Release);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
