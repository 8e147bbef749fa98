//! Lines on stdout and stderr. A thread for each writes them, so that no reader stops the program.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

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
    queue: SyncSender<Vec<u8>>,
    queued: AtomicU64,
    /// Those that were dropped.
    lost: AtomicU64,
    written: Arc<AtomicU64>,
    /// Whether a flush has already waited in vain.
    stuck: AtomicBool,
}

impl Output {
    /// # Errors
    /// The system does not allow the thread.
    pub fn new(name: &str, mut to: impl Write + Send + 'static) -> Result<Self, Failure> {
        let (queue, lines) = sync_channel::<Vec<u8>>(LINES_WAITING);
        let written = Arc::<AtomicU64>::default();
        let count = Arc::clone(&written);
        let writing = move || {
            for line in lines {
                // A reader that is gone is no reason to end.
                let _ = to.write_all(&line).and_then(|()| to.flush());
                count.fetch_add(1, Ordering::Release);
            }
        };
        let started = thread::Builder::new().name(name.to_owned()).spawn(writing);
        started.map_err(|error| {
            let reason = net::plain(&error);
            Failure::failed(format!(
                "cannot start the thread for {name}: {reason}; raise the limit of processes"
            ))
        })?;
        Ok(Self {
            queue,
            queued: AtomicU64::new(0),
            lost: AtomicU64::new(0),
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
        self.lost.load(Ordering::Relaxed)
    }
}

/// Each call queues one line.
impl Write for &Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.queued.fetch_add(1, Ordering::Relaxed);
        if let Err(TrySendError::Full(_)) = self.queue.try_send(line.to_vec()) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
