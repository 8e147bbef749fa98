//! Lines on stdout and stderr that never wait for whoever reads them.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Lines that wait for a slow reader; more are dropped and counted. Some hundred kilobytes at most.
const LINES_WAITING: usize = 1024;

/// How long the end of the program, and the first announcement, wait for a reader.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// Least time between two lines that say how many were lost.
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Diagnostics.
pub static STDERR: LazyLock<Output> =
    LazyLock::new(|| Output::new("stderr", io::stderr(), Some(super::log::tell_lost)));

/// What scripts wait for.
pub static STDOUT: LazyLock<Output> = LazyLock::new(|| Output::new("stdout", io::stdout(), None));

/// A stream of lines, written by a thread of its own.
pub struct Output {
    queue: NonBlocking,
    given: AtomicU64,
    written: Arc<Written>,
    stuck: AtomicBool,
    /// Kept for as long as the program runs: without it the thread ends.
    _guard: WorkerGuard,
}

/// How many lines the thread has written.
#[derive(Default)]
struct Written {
    lines: Mutex<u64>,
    more: Condvar,
}

/// The end of the queue where the thread is.
struct Writer<W> {
    to: W,
    written: Arc<Written>,
    dropped: Arc<OnceLock<ErrorCounter>>,
    told: u64,
    told_at: Option<Instant>,
    tell: Option<fn(u64)>,
}

impl Output {
    fn new(name: &str, to: impl Write + Send + 'static, tell: Option<fn(u64)>) -> Self {
        let written = Arc::<Written>::default();
        let dropped = Arc::<OnceLock<ErrorCounter>>::default();
        let writer = Writer {
            to,
            written: Arc::clone(&written),
            dropped: Arc::clone(&dropped),
            told: 0,
            told_at: None,
            tell,
        };
        let (queue, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(LINES_WAITING)
            .thread_name(name)
            .finish(writer);
        // The first and only time it is set.
        let _ = dropped.set(queue.error_counter());
        Self {
            queue,
            given: AtomicU64::new(0),
            written,
            stuck: AtomicBool::new(false),
            _guard: guard,
        }
    }

    /// Takes lines, each in one write.
    pub fn writer(&'static self) -> Line {
        Line(self)
    }

    /// Hands a line over. It is dropped and counted when too many wait.
    pub fn line(&'static self, text: &str) {
        let _ = self.writer().write(format!("{text}\n").as_bytes());
    }

    /// Waits until all lines are written, for a second at most. Once a reader has let that pass, not again.
    pub fn flush(&self) {
        if !self.stuck.load(Ordering::Relaxed) && !self.drained() {
            self.stuck.store(true, Ordering::Relaxed);
        }
    }

    /// Lines that were dropped.
    pub fn lost(&self) -> u64 {
        self.queue.error_counter().dropped_lines() as u64
    }

    fn drained(&self) -> bool {
        let waiting = |written: &mut u64| {
            let kept = self
                .given
                .load(Ordering::Acquire)
                .saturating_sub(self.lost());
            *written < kept
        };
        let written = self.written.lines.lock();
        let written = written.unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .written
            .more
            .wait_timeout_while(written, FLUSH_WITHIN, waiting);
        waited.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }
}

/// Takes lines, each in one write.
pub struct Line(&'static Output);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.given.fetch_add(1, Ordering::AcqRel);
        self.0.queue.clone().write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W> Writer<W> {
    fn tell_lost(&mut self) {
        let dropped = self.dropped.get().map_or(0, ErrorCounter::dropped_lines) as u64;
        let lately = |at: Instant| at.elapsed() < TELL_AGAIN_AFTER;
        let Some(tell) = self.tell.filter(|_| dropped > self.told) else {
            return;
        };
        if !self.told_at.is_some_and(lately) {
            tell(dropped - self.told);
            self.told = dropped;
            self.told_at = Some(Instant::now());
        }
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.tell_lost();
        // A reader that has gone is no reason to end.
        let _ = self.to.write_all(line).and_then(|()| self.to.flush());
        let mut lines = self
            .written
            .lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *lines += 1;
        self.written.more.notify_all();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
