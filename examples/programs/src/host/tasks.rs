//! Tasks from a TOML file that is read again whenever it changes.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use hyper::header::HeaderValue;
use serde::Deserialize;

use crate::common::net;
use crate::common::url::check_name;
use crate::host::proxy::registry::{Refusal, Registry, TaskPlace};

pub struct TaskFile {
    path: PathBuf,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    tasks: HashMap<String, TaskPlace>,
    /// The last text of the file, usable or not.
    text: String,
    /// The file's state when the text was read. `None` if it may change once more and look the
    /// same.
    stamp: Option<Stamp>,
}

type Stamp = (SystemTime, u64);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    #[serde(default)]
    tasks: HashMap<String, String>,
}

impl TaskFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// Names the file and says what is wrong with it.
    pub fn open(path: PathBuf) -> Result<Self, String> {
        let stamp = stamp(&path);
        let text = read(&path)?;
        let tasks = parse(&path, &text)?;
        let loaded = Mutex::new(Loaded { tasks, text, stamp });
        Ok(Self { path, loaded })
    }

    fn current(&self, task: &str) -> Option<TaskPlace> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.path);
        if stamp.is_some() && stamp == loaded.stamp {
            return loaded.tasks.get(task).cloned();
        }
        loaded.stamp = stamp;
        match read(&self.path) {
            Ok(text) if text == loaded.text => {}
            Ok(text) => {
                match parse(&self.path, &text) {
                    Ok(tasks) => {
                        tracing::info!(tasks = tasks.len(), "read {}", self.path.display());
                        loaded.tasks = tasks;
                    }
                    // A half-finished edit must not remove every task.
                    Err(reason) => tracing::warn!("keeping the tasks as they were: {reason}"),
                }
                loaded.text = text;
            }
            Err(reason) => tracing::warn!("keeping the tasks as they were: {reason}"),
        }
        loaded.tasks.get(task).cloned()
    }
}

impl Registry for TaskFile {
    fn find<'a>(
        &'a self,
        task: &'a str,
        _caller: Option<&'a HeaderValue>,
    ) -> BoxFuture<'a, Result<Option<TaskPlace>, Refusal>> {
        let place = self.current(task);
        Box::pin(async move { Ok(place) })
    }
}

/// The time of the last change and the size, once the file has been the same for a while: a change
/// right after another can have the same time.
fn stamp(path: &Path) -> Option<Stamp> {
    const SETTLED: Duration = Duration::from_secs(2);
    let file = fs::metadata(path).ok()?;
    let changed = file.modified().ok()?;
    let settled = changed.elapsed().is_ok_and(|age| age >= SETTLED);
    settled.then_some((changed, file.len()))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| unusable(path, &net::plain(&error)))
}

fn parse(path: &Path, text: &str) -> Result<HashMap<String, TaskPlace>, String> {
    let contents: Contents = toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = 1 + before.unwrap_or_default().matches('\n').count();
        unusable(path, &format!("line {line}: {}", error.message()))
    })?;
    let place = |(task, place): (String, String)| {
        check_name("task id", &task)?;
        let place = TaskPlace::parse(&place).map_err(|wrong| format!("task {task}: {wrong}"))?;
        Ok((task, place))
    };
    let places = contents.tasks.into_iter().map(place);
    let places = places.collect::<Result<_, String>>();
    places.map_err(|wrong| unusable(path, &wrong))
}

fn unusable(path: &Path, what: &str) -> String {
    format!("cannot use the task file {}: {what}", path.display())
}
