//! Tasks in a TOML file that is read again whenever it changes.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use hyper::header::HeaderValue;
use serde::Deserialize;

use crate::host::args::check_task;
use crate::host::proxy::registry::{Refusal, Registry, TaskPlace};

pub struct TaskFile {
    path: PathBuf,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    tasks: HashMap<String, TaskPlace>,
    stamp: Option<Stamp>,
}

/// What changes when a file does: an editor replaces it, a script appends to it.
#[derive(PartialEq, Eq, Clone, Copy)]
struct Stamp {
    modified: SystemTime,
    len: u64,
    file: u64,
}

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
    /// A sentence that names the file and what is wrong with it.
    pub fn open(path: PathBuf) -> Result<Self, String> {
        let stamp = stamp(&path);
        let tasks = read(&path)?;
        let loaded = Mutex::new(Loaded { tasks, stamp });
        Ok(Self { path, loaded })
    }

    fn current(&self, task: &str) -> Option<TaskPlace> {
        let mut loaded = match self.loaded.lock() {
            Ok(loaded) => loaded,
            Err(broken) => broken.into_inner(),
        };
        let stamp = stamp(&self.path);
        if stamp != loaded.stamp {
            loaded.stamp = stamp;
            match read(&self.path) {
                Ok(tasks) => {
                    tracing::info!(tasks = tasks.len(), "read {}", self.path.display());
                    loaded.tasks = tasks;
                }
                // Half an edit must not take away every task.
                Err(reason) => tracing::warn!("keeping the tasks as they were: {reason}"),
            }
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

fn read(path: &Path) -> Result<HashMap<String, TaskPlace>, String> {
    let wrong = |what: String| format!("cannot use the task file {}: {what}", path.display());
    let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let contents: Contents = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| {
            1 + text
                .bytes()
                .take(span.start)
                .filter(|b| *b == b'\n')
                .count()
        });
        wrong(format!("line {line}: {}", error.message()))
    })?;
    contents
        .tasks
        .into_iter()
        .map(|(task, place)| {
            check_task(&task)?;
            let place =
                TaskPlace::parse(&place).map_err(|wrong| format!("task {task}: {wrong}"))?;
            Ok((task, place))
        })
        .collect::<Result<_, String>>()
        .map_err(wrong)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        modified: metadata.modified().ok()?,
        len: metadata.len(),
        file: file_number(&metadata),
    })
}

#[cfg(unix)]
fn file_number(metadata: &Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    metadata.ino()
}

#[cfg(not(unix))]
fn file_number(_metadata: &Metadata) -> u64 {
    0
}
