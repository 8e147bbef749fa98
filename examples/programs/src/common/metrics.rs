//! Prometheus' text format, for a few plain counters.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::StatusCode;
use hyper::header::{self, HeaderValue};

use super::http::{self, Answer};
use super::log;

/// A number that only grows, or with [`Gauge`] one that also falls.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many of something there are now.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Counts one more until the guard is dropped.
    pub fn enter(&self) -> Inside<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Inside(self)
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One that is counted by a [`Gauge`].
#[derive(Debug)]
pub struct Inside<'a>(&'a Gauge);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The page that a scraper reads.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// Adds one metric with its samples; labels are written `{key="value"}`, or empty.
    #[must_use]
    pub fn metric(mut self, kind: &str, name: &str, help: &str, samples: &[(&str, u64)]) -> Self {
        let full = format!("kohakuriver_tunnel_{name}");
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {full} {help}\n# TYPE {full} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.0, "{full}{labels} {value}");
        }
        self
    }

    /// Adds the lines that the log lacks.
    #[must_use]
    pub fn log(self) -> Self {
        let (lost, limited) = log::missing();
        let lines = [
            (r#"{cause="unread"}"#, lost),
            (r#"{cause="limit"}"#, limited),
        ];
        self.metric(
            "counter",
            "log_lines_missing_total",
            "Log lines that nobody read in time, or that were too many of a kind.",
            &lines,
        )
    }

    pub fn answer(self) -> Answer {
        let mut answer = http::text(StatusCode::OK, self.0);
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        answer
    }
}
