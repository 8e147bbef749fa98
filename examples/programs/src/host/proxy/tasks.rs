//! Tasks from a TOML file that is read again whenever it changes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Deserialize;

use super::place::TaskPlace;
use crate::common::program::Failure;
use crate::common::reread::Reread;
use crate::common::url::check_name;
use crate::common::{files, net};

pub struct TaskFile(Reread<Arc<HashMap<String, TaskPlace>>>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    #[serde(default)]
    tasks: HashMap<String, String>,
}

impl TaskFile {
    /// Reads the file for the first time. `flags` are the tasks of the command line, which count if
    /// the file has them too.
    ///
    /// # Errors
    /// Names the file and says what is wrong with it.
    pub fn open(path: PathBuf, flags: HashMap<String, TaskPlace>) -> Result<Self, Failure> {
        let files = vec![path.clone()];
        let told = Mutex::new(Vec::new());
        let read = move || {
            let places = read(&path).map_err(Failure::usage)?;
            let overruled = overruled(&places, &flags);
            let mut told = told.lock();
            if *told != overruled && !overruled.is_empty() {
                tracing::warn!(
                    "{} has other places than --task for {}: those of --task count",
                    path.display(),
                    overruled.join(", ")
                );
            }
            *told = overruled;
            Ok(Arc::new(places))
        };
        Reread::new(files, read).map(Self)
    }

    /// Where the task runs; `None` if the file does not say it.
    pub async fn find(&self, task: &str) -> Option<TaskPlace> {
        self.0.current().await.get(task).cloned()
    }
}

/// The tasks that are at another place by `flags`, in order.
fn overruled(
    places: &HashMap<String, TaskPlace>,
    flags: &HashMap<String, TaskPlace>,
) -> Vec<String> {
    let flags = flags.iter();
    let other = |(task, place): &(_, _)| places.get(*task).is_some_and(|listed| listed != *place);
    let mut tasks: Vec<String> = flags.filter(other).map(|(task, _)| task.clone()).collect();
    tasks.sort_unstable();
    tasks
}

fn read(path: &Path) -> Result<HashMap<String, TaskPlace>, String> {
    let unusable = |what: &str| format!("cannot use the task file {}: {what}", path.display());
    let bytes = files::read(path).map_err(|error| unusable(&net::plain(&error)))?;
    let text = String::from_utf8(bytes).map_err(|_| unusable("it is no UTF-8 text"))?;
    let contents: Contents = toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = 1 + before.unwrap_or_default().matches('\n').count();
        unusable(&format!("line {line}: {}", error.message()))
    })?;
    let place = |(task, place): (String, String)| {
        check_name("task id", &task)?;
        let place = TaskPlace::parse(&place).map_err(|wrong| format!("task {task}: {wrong}"))?;
        Ok((task, place))
    };
    let places = contents.tasks.into_iter().map(place);
    let places = places.collect::<Result<_, String>>();
    places.map_err(|wrong| unusable(&wrong))
}
