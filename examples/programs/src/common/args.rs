//! Command line basics: one-line usage errors and the logging flag.

use std::ffi::OsString;

use clap::error::{Error, ErrorKind};
use clap::{Args, Parser, ValueEnum};

use super::program::Failure;

/// Flags that every program has.
#[derive(Args, Debug, Clone)]
pub struct LogArgs {
    /// How diagnostics are written to stderr; what is logged is chosen by RUST_LOG (for example `debug`).
    /// Of one kind, 20 lines a second are shown and the rest is counted; debug and trace have no limit.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What came of reading the command line.
pub enum Parsed<A> {
    Run(A),
    /// `--help` or `--version`: print this and end well.
    Print(String),
}

/// Reads a command line; every usage error becomes one line that ends in `hint`.
pub fn parse<A: Parser>(
    words: impl IntoIterator<Item = OsString>,
    hint: &str,
) -> Result<Parsed<A>, Failure> {
    match A::try_parse_from(words) {
        Ok(args) => Ok(Parsed::Run(args)),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                Ok(Parsed::Print(error.render().to_string()))
            }
            _ => Err(Failure::usage(format!("{}; {hint}", one_line(&error)))),
        },
    }
}

/// Clap's message without its usage block, on one line.
fn one_line(error: &Error) -> String {
    let rendered = error.render().to_string();
    let mut line = String::new();
    for part in rendered.lines().map(str::trim) {
        if part.starts_with("Usage:") || part.starts_with("For more information") {
            break;
        }
        // How to pass a flag as a value is never what was meant here.
        if part.is_empty() || part.starts_with("tip: to pass") {
            continue;
        }
        let part = part.strip_prefix("error: ").unwrap_or(part);
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(part);
    }
    line
}

/// The first name that is there twice.
pub fn twice<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = std::collections::HashSet::new();
    let mut names = names;
    names.find(|name| !seen.insert(*name))
}
