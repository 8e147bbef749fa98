//! The bearer token: read once, sent as a header, never logged.

use std::path::{Path, PathBuf};

use clap::Args;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};

use super::http::BadRequest;
use super::program::Failure;

/// The variable that holds the token when no file is named.
const VARIABLE: &str = "KOHAKURIVER_TUNNEL_TOKEN";

#[derive(Args, Debug, Clone)]
pub struct TokenArgs {
    /// File that holds the token (one line); else the variable KOHAKURIVER_TUNNEL_TOKEN.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

impl TokenArgs {
    /// The value of the `Authorization` header, marked as sensitive.
    ///
    /// # Errors
    /// The file cannot be read, or the token is not printable ASCII.
    pub fn header(&self) -> Result<Option<HeaderValue>, Failure> {
        header_from(self.token_file.as_deref(), VARIABLE)
    }
}

/// The `Authorization` header for the token in a file, else in a variable.
///
/// # Errors
/// The file cannot be read or is empty, or the token is not printable ASCII.
pub fn header_from(file: Option<&Path>, variable: &str) -> Result<Option<HeaderValue>, Failure> {
    let (token, origin) = match file {
        Some(path) => (read(path)?, path.display().to_string()),
        None => match std::env::var(variable) {
            Ok(token) if token.trim().is_empty() => return Ok(None),
            Ok(token) => (token, variable.to_owned()),
            Err(std::env::VarError::NotPresent) => return Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => return Err(unusable(variable)),
        },
    };
    let token = token.trim();
    // A file that somebody names and leaves empty must not mean that nobody is checked.
    let printable = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    let value = HeaderValue::from_str(&format!("Bearer {token}"));
    match value {
        Ok(mut value) if printable => {
            value.set_sensitive(true);
            Ok(Some(value))
        }
        _ => Err(unusable(&origin)),
    }
}

/// Compares without telling by its time how much was right.
pub fn same(expected: &HeaderValue, given: Option<&HeaderValue>) -> bool {
    let (expected, given) = (
        expected.as_bytes(),
        given.map_or(&[][..], HeaderValue::as_bytes),
    );
    let mut difference = expected.len() ^ given.len();
    for (index, byte) in given.iter().enumerate() {
        let wanted = expected.get(index).copied().unwrap_or_default();
        difference |= usize::from(byte ^ wanted);
    }
    std::hint::black_box(difference) == 0
}

/// What a caller without the right token is told.
pub fn demanded() -> BadRequest {
    let line = "a valid token is needed: give --token-file or KOHAKURIVER_TUNNEL_TOKEN";
    BadRequest::new(StatusCode::UNAUTHORIZED, line).with(header::WWW_AUTHENTICATE, "Bearer")
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| {
        Failure::usage(format!(
            "cannot read the token file {}: {error}",
            path.display()
        ))
    })
}

fn unusable(origin: &str) -> Failure {
    Failure::usage(format!(
        "the token in {origin} is not one line of printable ASCII"
    ))
}
