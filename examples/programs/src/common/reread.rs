//! Values from files, which are read again when a file has changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::net;
use super::program::Failure;
use super::threads;

/// Most looks at the files without a pause, and the time after which there may be one more. Anybody
/// who connects causes one.
const AT_ONCE: u32 = 64;
const EVERY: Duration = Duration::from_millis(100);

/// Longest wait for a look. The disk may be slow or gone.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

/// A value from files. It is read again when the time or the size of one of them has changed.
#[derive(Clone)]
pub struct Reread<T>(Arc<Inner<T>>);

struct Inner<T> {
    files: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T, Failure> + Send + Sync>,
    now: Mutex<Now<T>>,
    looked: Notify,
}

struct Now<T> {
    value: T,
    /// The state of each file before the value was read.
    stamps: Vec<Option<Stamp>>,
    /// Any change makes other stamps.
    settled: bool,
    /// The last failure, which was logged.
    told: Option<String>,
    /// How long to wait for the look that is under way.
    looking: Option<Instant>,
    /// When there could be [`AT_ONCE`] looks again.
    rested: Instant,
}

/// The time of the last change, and the size.
type Stamp = (SystemTime, u64);

/// What a thread does for a look.
type Look = Box<dyn FnOnce() + Send>;

/// The look that is under way, until its end or a panic of `read`.
struct Looking<'a, T>(&'a Inner<T>);

impl<T: Clone + Send + 'static> Reread<T> {
    /// What `read` makes of the files, now and later. It is called on another thread later.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn new(
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, Failure> + Send + Sync + 'static,
    ) -> Result<Self, Failure> {
        let stamps = stamps(&files);
        let now = Now {
            value: read()?,
            settled: are_settled(&stamps),
            stamps,
            told: None,
            looking: None,
            rested: Instant::now(),
        };
        Ok(Self(Arc::new(Inner {
            files,
            read: Box::new(read),
            now: Mutex::new(now),
            looked: Notify::new(),
        })))
    }

    /// The current value; the last one if the files cannot be used or not be read in time, which is
    /// logged once. Of many callers a few look, so it may be 0.1 s old.
    pub async fn current(&self) -> T {
        let looked = pin!(self.0.looked.notified());
        if let Some(until) = self.look(threads::aside) {
            let _ = timeout_at(until, looked).await;
        }
        let mut now = self.0.now.lock();
        if now.looking.is_some_and(|until| until <= Instant::now()) {
            now.tell(format!("reading {} takes long", self.names()));
        }
        now.value.clone()
    }

    /// Begins a look, unless one is under way or there were enough. It does not block this thread.
    /// Returns how long to wait for it.
    fn look(&self, spawn: impl FnOnce(Look) -> io::Result<()>) -> Option<Instant> {
        let mut now = self.0.now.lock();
        let time = Instant::now();
        let rested = now.rested.max(time) + EVERY;
        if now.looking.is_none() && !self.0.files.is_empty() && rested <= time + EVERY * AT_ONCE {
            let this = self.clone();
            match spawn(Box::new(move || this.look_aside())) {
                Ok(()) => now.looking = Some(time + LOOK_WITHIN),
                Err(error) => {
                    let (names, why) = (self.names(), net::plain(&error));
                    now.tell(format!("cannot start a thread to read {names}: {why}"));
                }
            }
            now.rested = rested;
        }
        now.looking
    }

    fn look_aside(&self) {
        let _looking = Looking(&self.0);
        let stamps = stamps(&self.0.files);
        let now = self.0.now.lock();
        let is_new = !now.settled || now.stamps != stamps;
        drop(now);
        let read = is_new.then(|| (self.0.read)());
        let mut now = self.0.now.lock();
        match read {
            None => {
                // A look that was late itself proves nothing.
                let in_time = now.looking.is_some_and(|until| Instant::now() < until);
                if in_time && now.told.take().is_some() {
                    tracing::info!("{} can be read again", self.names());
                }
            }
            Some(Ok(value)) => {
                if now.told.take().is_some() || now.stamps != stamps {
                    tracing::info!("read {} again", self.names());
                }
                now.value = value;
                now.settled = are_settled(&stamps);
                now.stamps = stamps;
            }
            Some(Err(error)) => {
                // What is wrong may be the mode of the file, which the stamp does not show.
                now.settled = false;
                now.tell(error.to_string());
            }
        }
    }

    fn names(&self) -> String {
        let names = self.0.files.iter().map(|file| file.display().to_string());
        names.collect::<Vec<_>>().join(" and ")
    }
}

impl<T> Drop for Looking<'_, T> {
    fn drop(&mut self) {
        self.0.now.lock().looking = None;
        self.0.looked.notify_waiters();
    }
}

impl<T> Now<T> {
    fn tell(&mut self, error: String) {
        if self.told.as_ref() != Some(&error) {
            tracing::warn!("{error}; keeping what was read before");
            self.told = Some(error);
        }
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |file: &Path| {
        let file = fs::metadata(file).ok()?;
        Some((file.modified().ok()?, file.len()))
    };
    files.iter().map(|file| stamp(file)).collect()
}

/// Whether all files have been the same for a while: a change right after another can have the same
/// time.
fn are_settled(stamps: &[Option<Stamp>]) -> bool {
    const SETTLED: Duration = Duration::from_secs(2);
    let is_settled = |(changed, _): &Stamp| changed.elapsed().is_ok_and(|age| age >= SETTLED);
    stamps
        .iter()
        .all(|stamp| stamp.as_ref().is_some_and(is_settled))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use tokio::time::{sleep, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    struct Text(PathBuf);

    impl Text {
        fn new(name: &str) -> Self {
            let name = format!("tunnel-reread-{}-{name}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        /// Writes it, as last changed `age` ago.
        fn write(&self, text: &str, age: Duration) {
            fs::write(&self.0, text).unwrap();
            let file = File::options().write(true).open(&self.0).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }

        fn reread(&self) -> Reread<String> {
            let path = self.0.clone();
            let read = move || match fs::read_to_string(&path) {
                Ok(text) if text != "bad" => Ok(text),
                _ => Err(Failure::usage("it is bad")),
            };
            Reread::new(vec![self.0.clone()], read).unwrap()
        }
    }

    impl Drop for Text {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_change_that_has_the_time_and_size_of_the_one_before_is_seen() {
        let text = Text::new("twice");
        text.write("one", Duration::ZERO);
        let time = fs::metadata(&text.0).unwrap().modified().unwrap();
        let reread = text.reread();
        text.write("two", Duration::ZERO);
        let file = File::options().write(true).open(&text.0).unwrap();
        file.set_modified(time).unwrap();
        assert_eq!(reread.current().await, "two");
    }

    #[tokio::test]
    async fn many_callers_do_not_all_read_a_file_of_the_future() {
        let text = Text::new("future");
        text.write("one", Duration::ZERO);
        let file = File::options().write(true).open(&text.0).unwrap();
        file.set_modified(SystemTime::now() + HOUR).unwrap();
        let reads = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&reads);
        let read = move || Ok(counted.fetch_add(1, Ordering::Relaxed));
        let reread = Reread::new(vec![text.0.clone()], read).unwrap();
        for _ in 0..1000 {
            reread.current().await;
        }
        assert!(reads.load(Ordering::Relaxed) < 500);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_file_that_cannot_be_read_now() {
        let text = Text::new("hanging");
        text.write("one", HOUR);
        let (release, held) = mpsc::channel();
        release.send("one").unwrap();
        let held = Mutex::new(held);
        let read = move || Ok(held.lock().recv().unwrap_or("the end"));
        let reread = Reread::new(vec![text.0.clone()], read).unwrap();
        text.write("three", HOUR);
        assert_eq!(timeout(LIMIT, reread.current()).await, Ok("one"));
        release.send("three").unwrap();
        while reread.current().await != "three" {}
    }

    #[tokio::test]
    async fn a_look_that_cannot_begin_is_told_until_one_ends() {
        let text = Text::new("threads");
        text.write("one", HOUR);
        let reread = text.reread();
        let told = || reread.0.now.lock().told.clone();
        let until = reread.look(|_| Err(io::ErrorKind::WouldBlock.into()));
        assert_eq!(until, None);
        assert!(told().is_some_and(|told| told.contains(&reread.names())));
        let over = async {
            while told().is_some() {
                sleep(EVERY).await;
                reread.current().await;
            }
        };
        assert_eq!(timeout(LIMIT, over).await, Ok(()));
    }

    #[tokio::test]
    async fn a_panic_does_not_end_the_looks() {
        let text = Text::new("panic");
        text.write("one", HOUR);
        let reads = AtomicUsize::new(0);
        let read = move || match reads.fetch_add(1, Ordering::Relaxed) {
            1 => panic!("as a test"),
            read => Ok(read),
        };
        let reread = Reread::new(vec![text.0.clone()], read).unwrap();
        text.write("three", HOUR);
        assert_eq!(reread.current().await, 0);
        let later = async {
            while reread.current().await != 2 {
                sleep(EVERY).await;
            }
        };
        assert_eq!(timeout(LIMIT, later).await, Ok(()));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_used_changes_nothing() {
        let text = Text::new("unusable");
        text.write("one", HOUR);
        let reread = text.reread();
        text.write("bad", HOUR / 2);
        assert_eq!(reread.current().await, "one");
        fs::remove_file(&text.0).unwrap();
        assert_eq!(reread.current().await, "one");
        text.write("three", HOUR);
        assert_eq!(reread.current().await, "three");
    }
}
