//! Command line basics: one-line usage errors and the logging flag.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::num::NonZeroUsize;

use clap::error::Error;
use clap::{Args, ValueEnum};

/// Flags that every program has.
#[derive(Args, Debug, Clone, PartialEq)]
pub struct LogArgs {
    /// Format of the log on stderr. RUST_LOG chooses what is logged, for example `debug`, or
    /// `warn,NAME=debug` with the name of this program. Of one kind, 20 lines a second are shown
    /// and the rest is counted; debug and trace have no limit.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Clap's message without its usage block, on one line.
pub fn one_line(error: &Error) -> String {
    let rendered = error.render().to_string();
    let is_end =
        |part: &str| part.starts_with("Usage:") || part.starts_with("For more information");
    let parts = rendered.lines().map(str::trim);
    let parts: Vec<&str> = parts
        .take_while(|part| !is_end(part))
        // Nobody here means to pass a flag as a value.
        .filter(|part| !part.is_empty() && !part.starts_with("tip: to pass"))
        .map(|part| part.strip_prefix("error: ").unwrap_or(part))
        .collect();
    parts.join(" ")
}

/// Parses an address to listen on.
///
/// # Errors
/// Says what to write.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let form = "write an IP address and a port, for example 127.0.0.1:8000 or [::]:8000";
    text.parse().map_err(|_| form.to_owned())
}

/// Parses a number that must not be 0.
///
/// # Errors
/// Says what to write.
pub fn parse_count(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .map_err(|_| "write a whole number, 1 or more".to_owned())
}

/// The value of an environment variable, unless it is empty.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The first name that occurs twice.
pub fn twice<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = HashSet::new();
    names.find(|name| !seen.insert(*name))
}
