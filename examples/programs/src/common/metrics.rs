//! Counters, and a page of them in the text format of Prometheus.
//!
//! The crate `prometheus-client` writes OpenMetrics, which names counters in another way.

use std::fmt::{self, Display, Write};
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

impl Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value().fmt(f)
    }
}

impl Display for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value().fmt(f)
    }
}

/// A metric's numbers by the value of its label; a single one without a label has "".
pub type Numbers<'a> = [(&'a str, &'a dyn Display)];

/// The page for a scraper. The names of counters end in `_total`, those of gauges do not.
#[derive(Debug, Default)]
pub struct Page(String);

/// Adds metrics to a [`Page`]: `name "help" = number;` or, with a label,
/// `name "help" by label { value: number, value: number };`.
macro_rules! metrics {
    ($page:ident: $(
        $name:ident $help:literal
        $(by $label:ident { $($value:ident: $count:expr),* $(,)? })? $(= $number:expr)?;
    )*) => {$(
        $page.add(
            stringify!($name),
            $help,
            concat!($(stringify!($label))?),
            &[$(("", &$number),)? $($((stringify!($value), &$count),)*)?],
        );
    )*};
}
pub(crate) use metrics;

impl Page {
    /// Adds a metric. `label` is empty if it has a single number.
    pub fn add(&mut self, name: &str, help: &str, label: &str, numbers: &Numbers<'_>) {
        let kind = match name.ends_with("_total") {
            true => "counter",
            false => "gauge",
        };
        let name = format!("kohakuriver_tunnel_{name}");
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (value, number) in numbers {
            let _ = match label {
                "" => writeln!(self.0, "{name} {number}"),
                _ => writeln!(self.0, "{name}{{{label}=\"{value}\"}} {number}"),
            };
        }
    }

    /// The page, with the number of lines that are missing in the log.
    pub fn answer(mut self, log: &Log) -> Answer {
        let (unread, limit) = log.missing();
        metrics! { self:
            log_lines_missing_total
                "Log lines that nobody read in time, or that were too many of a kind."
                by cause { unread: unread, limit: limit };
        }
        let mut answer = http::text(StatusCode::OK, self.0);
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        answer
    }
}
