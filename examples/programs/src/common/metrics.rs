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

/// The page for a scraper. The names of counters end in `_total`, those of gauges do not.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// Adds a number.
    #[must_use]
    pub fn one(mut self, name: &str, help: &str, value: u64) -> Self {
        let full = self.head(name, help);
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{full} {value}");
        self
    }

    /// Adds numbers of one name that differ in the value of `label`.
    #[must_use]
    pub fn each(mut self, name: &str, help: &str, label: &str, by: &[(&str, u64)]) -> Self {
        let full = self.head(name, help);
        for (value, count) in by {
            let _ = writeln!(self.0, "{full}{{{label}=\"{value}\"}} {count}");
        }
        self
    }

    /// Adds the number of lines that are missing in the log.
    #[must_use]
    pub fn log(self, log: &Log) -> Self {
        let (unread, limit) = log.missing();
        self.each(
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

    fn head(&mut self, name: &str, help: &str) -> String {
        let full = format!("kohakuriver_tunnel_{name}");
        let kind = match name.ends_with("_total") {
            true => "counter",
            false => "gauge",
        };
        let _ = writeln!(self.0, "# HELP {full} {help}\n# TYPE {full} {kind}");
        full
    }
}
