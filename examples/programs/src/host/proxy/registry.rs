//! Sources that know the tasks.

use std::collections::HashMap;

use futures_util::future::BoxFuture;
use hyper::StatusCode;
use hyper::header::HeaderValue;

use crate::common::url::{Url, is_name};

/// A source of tasks: flags, a file, a cluster's API.
pub trait Registry: Send + Sync {
    /// Where the task runs; `None` if this source does not know it.
    ///
    /// `caller` is the `Authorization` header of the client.
    ///
    /// # Errors
    /// The task is known, but this caller cannot reach it now.
    fn find<'a>(
        &'a self,
        task: &'a str,
        caller: Option<&'a HeaderValue>,
    ) -> BoxFuture<'a, Result<Option<TaskPlace>, Refusal>>;

    /// Whether `find` checks the caller. If not, the host demands its own token.
    fn checks_callers(&self) -> bool {
        false
    }
}

/// A container and its runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPlace {
    pub container: String,
    pub runner: Url,
}

impl TaskPlace {
    /// Parses `CONTAINER@RUNNER-URL`.
    ///
    /// # Errors
    /// Says what is wrong without repeating it: a URL may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (container, runner) = text
            .split_once('@')
            .ok_or("the place is not of the form CONTAINER@RUNNER-URL")?;
        if !is_name(container) {
            return Err(
                "the container's name is not of letters, digits, dots, dashes and underscores"
                    .to_owned(),
            );
        }
        let runner = Url::parse_base(runner)?;
        let container = container.to_owned();
        Ok(Self { container, runner })
    }
}

/// Why there is no session, in the words of a deployed host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    /// The WebSocket close code.
    pub code: u16,
    /// The HTTP status that takes the place of the upgrade, where waiting does not help the caller.
    pub status: Option<StatusCode>,
}

impl Refusal {
    /// A refusal by rule: unknown, not running, not allowed, runner offline (close code 1008).
    pub fn policy(reason: impl Into<String>) -> Self {
        Self::new(reason.into(), 1008, None)
    }

    /// A refusal of this caller, who shows the wrong token: 401 or 403.
    pub fn of_caller(status: StatusCode, reason: impl Into<String>) -> Self {
        Self::new(reason.into(), 1008, Some(status))
    }

    /// A failure: something that should answer does not (close code 1011).
    pub fn failure(reason: impl Into<String>) -> Self {
        Self::new(reason.into(), 1011, None)
    }

    const fn new(reason: String, code: u16, status: Option<StatusCode>) -> Self {
        Self {
            reason,
            code,
            status,
        }
    }
}

/// Tasks given on the command line.
#[derive(Debug)]
pub struct FixedTasks(HashMap<String, TaskPlace>);

impl FixedTasks {
    pub fn new(tasks: impl IntoIterator<Item = (String, TaskPlace)>) -> Self {
        Self(tasks.into_iter().collect())
    }
}

impl Registry for FixedTasks {
    fn find<'a>(
        &'a self,
        task: &'a str,
        _caller: Option<&'a HeaderValue>,
    ) -> BoxFuture<'a, Result<Option<TaskPlace>, Refusal>> {
        let place = self.0.get(task).cloned();
        Box::pin(async move { Ok(place) })
    }
}
