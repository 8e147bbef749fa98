//! Counters, and a page of them in the text format of Prometheus.
//!
//! The crate `prometheus-client` writes OpenMetrics, which names counters in another way.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::StatusCode;
use hyper::header::{self, HeaderValue};

use super::http::{self, Answer};
use super::log::Log;

/// A number that only grows.
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

/// The current number of something.
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

/// Counted by a [`Gauge`] until dropped.
#[derive(Debug)]
pub struct Inside<'a>(&'a Gauge);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The page for a scraper.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// Adds a gauge.
    #[must_use]
    pub fn gauge(mut self, name: &str, help: &str, value: u64) -> Self {
        let full = self.head("gauge", name, help);
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{full} {value}");
        self
    }

    /// Adds counters of one name that differ in the value of `label`.
    #[must_use]
    pub fn counters(mut self, name: &str, help: &str, label: &str, by: &[(&str, u64)]) -> Self {
        let full = self.head("counter", name, help);
        for (value, count) in by {
            let _ = writeln!(self.0, "{full}{{{label}=\"{value}\"}} {count}");
        }
        self
    }

    /// Adds a counter.
    #[must_use]
    pub fn counter(self, name: &str, help: &str, counter: &Counter) -> Self {
        self.count(name, help, counter.value())
    }

    /// Adds a counter that is kept elsewhere.
    #[must_use]
    pub fn count(mut self, name: &str, help: &str, value: u64) -> Self {
        let full = self.head("counter", name, help);
        let _ = writeln!(self.0, "{full} {value}");
        self
    }

    /// Adds a part that another module writes.
    #[must_use]
    pub fn with(self, add: impl FnOnce(Self) -> Self) -> Self {
        add(self)
    }

    /// Adds the number of lines that are missing in the log.
    #[must_use]
    pub fn log(self, log: &Log) -> Self {
        let (unread, limit) = log.missing();
        self.counters(
            "log_lines_missing_total",
            "Log lines that nobody read in time, or that were too many of a kind.",
            "cause",
            &[("unread", unread), ("limit", limit)],
        )
    }

    pub fn answer(self) -> Answer {
        let mut answer = http::text(StatusCode::OK, self.0);
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        answer
    }

    fn head(&mut self, kind: &str, name: &str, help: &str) -> String {
        let full = format!("kohakuriver_tunnel_{name}");
        let _ = writeln!(self.0, "# HELP {full} {help}\n# TYPE {full} {kind}");
        full
    }
}
