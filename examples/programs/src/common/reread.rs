//! Values from files, which are read again when a file has changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, oneshot};

use super::program::Failure;

/// A value from files. It is read again when the time or the size of one of them has changed.
#[derive(Clone)]
pub struct Reread<T>(Arc<Inner<T>>);

struct Inner<T> {
    files: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T, Failure> + Send + Sync>,
    now: Mutex<Now<T>>,
}

struct Now<T> {
    value: T,
    /// The state of each file before the value was read.
    stamps: Vec<Option<Stamp>>,
    /// Any change makes other stamps.
    settled: bool,
    /// The last failure, which was logged.
    told: Option<String>,
}

/// The time of the last change, and the size.
type Stamp = (SystemTime, u64);

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
        let now = Mutex::new(Now {
            value: read()?,
            settled: are_settled(&stamps),
            stamps,
            told: None,
        });
        let read = Box::new(read);
        Ok(Self(Arc::new(Inner { files, read, now })))
    }

    /// The value of now; the last one if the files cannot be used. That is logged once.
    pub async fn current(&self) -> T {
        let mut now = self.0.now.lock().await;
        let stamps = stamps(&self.0.files);
        if now.settled && now.stamps == stamps {
            return now.value.clone();
        }
        match self.read_aside().await {
            Ok(value) => {
                if now.told.is_some() || now.stamps != stamps {
                    tracing::info!("read {} again", self.names());
                }
                *now = Now {
                    value,
                    settled: are_settled(&stamps),
                    stamps,
                    told: None,
                };
            }
            Err(error) => {
                // What is wrong may be the mode of the file, which the stamp does not show.
                now.settled = false;
                let error = error.to_string();
                if now.told.as_ref() != Some(&error) {
                    tracing::warn!("{error}; keeping what was read before");
                    now.told = Some(error);
                }
            }
        }
        now.value.clone()
    }

    /// Reads without blocking this thread: the disk may be slow.
    async fn read_aside(&self) -> Result<T, Failure> {
        let (tell, told) = oneshot::channel();
        let inner = Arc::clone(&self.0);
        // The result is in the channel: nobody answers if no thread can be had.
        let _ = thread::Builder::new().spawn(move || tell.send((inner.read)()));
        told.await.unwrap_or_else(|_| (self.0.read)())
    }

    fn names(&self) -> String {
        let names = self.0.files.iter().map(|file| file.display().to_string());
        names.collect::<Vec<_>>().join(" and ")
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

    use super::*;

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
