//! The threads of a program, each with a single-threaded runtime.
//!
//! A task stays on the thread that it was spawned on. What tasks share for each message is kept
//! [once per thread](PerThread), so threads meet only where connections begin and end. A socket
//! follows its task ([`MaybeTls`](net::MaybeTls)).

use std::cell::Cell;
use std::future::pending;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::args::Within;
use super::net;
use super::program::{Failure, raise_file_limit};

/// Most threads, which are more than the cores that a few sockets can occupy.
const MOST: usize = 256;

/// File descriptors that a thread's runtime holds.
pub const DESCRIPTORS: usize = 4;

/// How long the end of the program waits for the other threads to drop their tasks.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// Polls of tasks before an event loop looks at its sockets. With tokio's 61, a message would wait
/// for 61 polls of busy tasks before the task that it is for even counts as ready.
const EVENT_INTERVAL: u32 = 4;

thread_local! {
    /// Position in [`Threads`]. The main thread, and any that is not of the program, has 0.
    static POSITION: Cell<usize> = const { Cell::new(0) };
}

/// Flags of a program that uses several threads.
#[derive(Args, Debug, Clone, Copy, PartialEq)]
pub struct ThreadArgs {
    /// Threads that carry connections [default: as many as the cores that this process may use, or
    /// one for each 16 open files if that is less].
    #[arg(long, value_name = "N")]
    threads: Option<Within<1, { MOST as u64 }>>,
}

impl ThreadArgs {
    pub fn count(self) -> usize {
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        let usual = || usual(cores(), raise_file_limit());
        self.threads.map_or_else(usual, Within::count)
    }
}

/// The default. The runtimes take a quarter of the file descriptors at most.
fn usual(cores: usize, files: usize) -> usize {
    cores.min(files / (4 * DESCRIPTORS)).clamp(1, MOST)
}

/// The threads that tasks can be spawned on, the main one first. Cheap to clone.
#[derive(Clone)]
pub struct Threads(Arc<[Thread]>);

/// One of the [`Threads`].
pub struct Thread {
    runtime: Handle,
    /// Tasks from [`spawn`](Self::spawn) that have not ended.
    load: TaskTracker,
    /// Microseconds for which it was busy, when [`Threads::least_loaded`] last looked.
    was_busy: AtomicU64,
}

/// The threads of a program besides the main one.
pub struct Workers {
    stop: CancellationToken,
    /// The name of each thread that has ended.
    ended: mpsc::UnboundedReceiver<String>,
}

/// A value for each thread.
pub struct PerThread<T>(Box<[Line<T>]>);

/// Keeps the values of two threads from sharing a cache line, or two that are fetched together.
#[repr(align(128))]
struct Line<T>(T);

impl Threads {
    /// The calling thread, which runs the runtime, and more up to `count`.
    ///
    /// # Errors
    /// The system does not allow so many threads or file descriptors.
    pub fn start(count: usize) -> Result<(Self, Workers), Failure> {
        let stop = CancellationToken::new();
        let (ending, ended) = mpsc::unbounded_channel();
        let mut threads = vec![Thread::of(&Handle::current())];
        for position in 1..count {
            let runtime = runtime("choose fewer threads with --threads N, or raise ulimit -n")?;
            threads.push(Thread::of(runtime.handle()));
            let stopped = stop.clone().cancelled_owned();
            start_thread(position, ending.clone(), move || runtime.block_on(stopped))?;
        }
        Ok((Self(threads.into()), Workers { stop, ended }))
    }

    /// The calling thread alone.
    pub fn single() -> Self {
        Self([Thread::of(&Handle::current())].into())
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The calling thread.
    pub fn here(&self) -> &Thread {
        self.at(position())
    }

    /// The thread of whatever has this name.
    pub fn of(&self, name: &str) -> &Thread {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let position = hasher.finish() % self.count() as u64;
        self.at(usize::try_from(position).unwrap_or_default())
    }

    /// The thread with fewest tasks that were spawned through its [`Thread`]. Of several, the one
    /// that was least busy since the last call: one connection may be idle, and another bulk.
    pub fn least_loaded(&self) -> &Thread {
        let load = |thread: &&Thread| (thread.load.len(), thread.busy_since());
        let least = self.0.iter().min_by_key(load);
        least.unwrap_or_else(|| self.at(0))
    }

    /// Makes a value for each thread.
    pub fn each<T>(&self, mut make: impl FnMut() -> T) -> PerThread<T> {
        PerThread(self.0.iter().map(|_| Line(make())).collect())
    }

    /// Tasks that have not ended, however they were spawned.
    pub fn alive_tasks(&self) -> usize {
        let alive = |thread: &Thread| thread.runtime.metrics().num_alive_tasks();
        self.0.iter().map(alive).sum()
    }

    /// The thread at a position; the main one has 0.
    pub fn at(&self, position: usize) -> &Thread {
        at(&self.0, position)
    }
}

impl Thread {
    fn of(runtime: &Handle) -> Self {
        Self {
            runtime: runtime.clone(),
            load: TaskTracker::new(),
            was_busy: AtomicU64::new(0),
        }
    }

    /// Microseconds for which it was busy since the last call.
    fn busy_since(&self) -> u64 {
        let total = self.runtime.metrics().worker_total_busy_duration(0);
        let total = u64::try_from(total.as_micros()).unwrap_or(u64::MAX);
        total.saturating_sub(self.was_busy.swap(total, Ordering::Relaxed))
    }

    /// Runs a task on this thread.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.load.spawn_on(task, &self.runtime);
    }

    /// Runs a task of a set on this thread.
    pub fn spawn_in<T: Send + 'static>(
        &self,
        set: &mut JoinSet<T>,
        task: impl Future<Output = T> + Send + 'static,
    ) -> AbortHandle {
        set.spawn_on(self.load.track_future(task), &self.runtime)
    }
}

impl Workers {
    /// Waits until a thread ends although nothing has stopped it.
    pub async fn failed(&mut self) -> Failure {
        match self.ended.recv().await {
            Some(name) => Failure::failed(format!("the thread {name} has ended by a panic")),
            None => pending().await,
        }
    }

    /// Drops the tasks of the threads and ends these.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let all = async { while self.ended.recv().await.is_some() {} };
        // One that is blocked, for example by a file system, ends with the process.
        let _ = timeout(STOP_WITHIN, all).await;
    }
}

impl<T> PerThread<T> {
    /// The value of the calling thread.
    pub fn here(&self) -> &T {
        &at(&self.0, position()).0
    }

    /// The values of all threads.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|line| &line.0)
    }
}

/// What belongs to the thread at a position, or to the main thread if there is no such position.
#[expect(clippy::indexing_slicing, reason = "there is a main thread")]
fn at<T>(each: &[T], position: usize) -> &T {
    each.get(position).unwrap_or(&each[0])
}

/// The position of the calling thread among the threads of the program.
pub fn position() -> usize {
    POSITION.get()
}

/// The runtime of one thread.
///
/// # Errors
/// The system has no file descriptors for it. Says so with this remedy.
pub fn runtime(remedy: &str) -> Result<Runtime, Failure> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build();
    runtime.map_err(|error| {
        let reason = net::plain(&error);
        Failure::failed(format!("cannot start an event loop: {reason}; {remedy}"))
    })
}

/// Runs what may block on a thread of its own. The runtime's own threads for it are of no use: it
/// panics where the system allows no other thread.
///
/// # Errors
/// The system allows no other thread.
pub fn aside(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().spawn(work).map(drop)
}

/// A thread that tells its name when it ends, also by a panic.
fn start_thread(
    position: usize,
    ending: mpsc::UnboundedSender<String>,
    run: impl FnOnce() + Send + 'static,
) -> Result<(), Failure> {
    let name = format!("thread-{position}");
    let cannot = |error: io::Error| {
        let reason = net::plain(&error);
        Failure::failed(format!(
            "cannot start another thread beside {position}: {reason}; \
             choose fewer with --threads N, or raise the limit of processes"
        ))
    };
    let started = thread::Builder::new().name(name.clone()).spawn(move || {
        POSITION.set(position);
        let _ = panic::catch_unwind(AssertUnwindSafe(run));
        let _ = ending.send(name);
    });
    started.map(drop).map_err(cannot)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use tokio::sync::oneshot;

    use super::*;

    async fn position_of(thread: &Thread) -> usize {
        let (tell, told) = oneshot::channel();
        thread.spawn(async move { tell.send(position()).unwrap() });
        told.await.unwrap()
    }

    #[test]
    fn by_default_the_threads_leave_files_for_connections() {
        assert_eq!(usual(16, 1 << 20), 16);
        assert_eq!(usual(16, 64), 4);
        assert_eq!(usual(16, 8), 1);
        assert_eq!(usual(1000, 1 << 20), MOST);
    }

    #[tokio::test]
    async fn a_name_has_one_thread_and_names_have_all() {
        let (threads, workers) = Threads::start(3).unwrap();
        let mut seen = BTreeSet::new();
        for name in (0..64).map(|name| name.to_string()) {
            let position = position_of(threads.of(&name)).await;
            assert_eq!(position_of(threads.of(&name)).await, position);
            seen.insert(position);
        }
        assert_eq!(seen, BTreeSet::from([0, 1, 2]));
        workers.stop().await;
    }

    #[tokio::test]
    async fn tasks_are_spread_and_each_thread_has_its_value() {
        let (threads, workers) = Threads::start(4).unwrap();
        let values = Arc::new(threads.each(|| Mutex::new(Vec::new())));
        let mut ends = Vec::new();
        for task in 0..8 {
            let (end, ended) = oneshot::channel::<()>();
            let (tell, told) = oneshot::channel();
            let values = Arc::clone(&values);
            threads.least_loaded().spawn(async move {
                values.here().lock().unwrap().push(task);
                let _ = tell.send(position());
                let _ = ended.await;
            });
            ends.push((told.await.unwrap(), end));
        }
        let counts: Vec<_> = values.iter().map(|one| one.lock().unwrap().len()).collect();
        assert_eq!(counts, [2; 4]);
        // What ends makes room.
        ends.retain(|(position, _)| *position != 2);
        while !threads.0[2].load.is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(position_of(threads.least_loaded()).await, 2);
        workers.stop().await;
    }

    #[tokio::test]
    async fn of_threads_with_as_many_tasks_the_least_busy_is_taken() {
        let (threads, workers) = Threads::start(2).unwrap();
        for thread in &*threads.0 {
            let started = || thread.runtime.metrics().worker_total_busy_duration(0);
            threads.least_loaded();
            let before = started();
            let work = Duration::from_secs(1);
            thread.spawn(async move { thread::sleep(work) });
            // It is counted when the thread has nothing to do.
            while started() - before < work || !thread.load.is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let taken = threads.least_loaded();
            assert!(!std::ptr::eq(taken, thread));
        }
        workers.stop().await;
    }

    #[tokio::test]
    async fn stopping_drops_the_tasks() {
        let (threads, workers) = Threads::start(3).unwrap();
        let held = Arc::new(());
        for thread in &threads.0[1..] {
            let held = Arc::clone(&held);
            thread.spawn(async move {
                let _held = held;
                pending::<()>().await;
            });
        }
        workers.stop().await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn the_panic_of_a_thread_is_told() {
        let (ending, ended) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let mut workers = Workers { stop, ended };
        start_thread(7, ending, || panic!("as a test")).unwrap();
        let failure = workers.failed().await.to_string();
        assert!(failure.contains("thread-7"), "{failure}");
    }
}
