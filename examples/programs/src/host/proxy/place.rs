//! Where a task runs, or why it cannot be reached.

use hyper::StatusCode;

use crate::common::url::{Url, is_name};

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
