//! Command line basics: one-line usage errors and the logging flag.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::num::ParseIntError;
use std::str::FromStr;
use std::time::Duration;

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

/// A number of a flag, from `LEAST` to `MOST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Within<const LEAST: u64, const MOST: u64>(pub u64);

impl<const LEAST: u64, const MOST: u64> Within<LEAST, MOST> {
    pub fn count(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    pub fn seconds(self) -> Duration {
        Duration::from_secs(self.0)
    }

    /// As bytes, if it is a number of KiB.
    pub fn kib(self) -> usize {
        self.count().saturating_mul(1 << 10)
    }

    /// As bytes, if it is a number of MiB.
    pub fn mib(self) -> usize {
        self.count().saturating_mul(1 << 20)
    }
}

impl<const LEAST: u64, const MOST: u64> FromStr for Within<LEAST, MOST> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number: i64 = text
            .parse()
            .map_err(|error: ParseIntError| error.to_string())?;
        match u64::try_from(number) {
            Ok(number) if (LEAST..=MOST).contains(&number) => Ok(Self(number)),
            _ => Err(format!("{number} is not in {LEAST}..={MOST}")),
        }
    }
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
pub fn parse_count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| "write a whole number, 1 or more".to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_beyond_its_bounds_is_refused_with_them() {
        let parse = |text: &str| text.parse::<Within<2, 1024>>();
        assert_eq!(parse("2").map(Within::kib), Ok(2 << 10));
        assert_eq!(parse("1024").map(Within::mib), Ok(1 << 30));
        for (text, said) in [
            ("1", "1 is not in 2..=1024"),
            ("1025", "1025 is not in 2..=1024"),
            ("-2", "-2 is not in 2..=1024"),
            ("4294967298", "4294967298 is not in 2..=1024"),
            ("2.5", "invalid digit found in string"),
        ] {
            assert_eq!(parse(text), Err(said.to_owned()), "{text}");
        }
    }
}
