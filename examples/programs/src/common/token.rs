//! The bearer token, as a header. It is never logged.

use std::path::{Path, PathBuf};

use clap::Args;
use hyper::StatusCode;
use hyper::header::HeaderValue;
use subtle::ConstantTimeEq;

use super::http::BadRequest;
use super::program::Failure;
use super::reread::Reread;
use super::secret::Secret;

/// The variable with the token, if no file is named.
const VARIABLE: &str = "KOHAKURIVER_TUNNEL_TOKEN";

/// The header's value before the token.
const PREFIX: &str = "Bearer ";

/// The value of the `Authorization` header, if there is a token.
pub type Token = Reread<Option<HeaderValue>>;

#[derive(Args, Debug, Clone, PartialEq)]
pub struct TokenArgs {
    /// File with the token (one line), which not every user may read [default: the variable
    /// KOHAKURIVER_TUNNEL_TOKEN].
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

    /// As [`header`](Self::header), read again when the file has changed.
    ///
    /// # Errors
    /// As there.
    pub fn token(&self) -> Result<Token, Failure> {
        let args = self.clone();
        let files = self.token_file.clone().into_iter().collect();
        Token::new(files, move || args.header())
    }
}

/// The `Authorization` header for the token in a file, or else in a variable.
///
/// # Errors
/// The token cannot be read, is empty or not printable ASCII, or everybody can read the file.
pub fn header_from(file: Option<&Path>, variable: &str) -> Result<Option<HeaderValue>, Failure> {
    let Some(Secret { text, origin }) = Secret::find("token", file, variable)? else {
        return Ok(None);
    };
    let mut value = HeaderValue::try_from(format!("{PREFIX}{text}"))
        .map_err(|_| Failure::usage(format!("the token in {origin} cannot be sent")))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Whether `header` is the header for `token`.
pub fn holds(header: &HeaderValue, token: &str) -> bool {
    header.as_bytes().strip_prefix(PREFIX.as_bytes()) == Some(token.as_bytes())
}

/// Compares in constant time.
pub fn same(expected: &HeaderValue, given: Option<&HeaderValue>) -> bool {
    given.is_some_and(|given| expected.as_bytes().ct_eq(given.as_bytes()).into())
}

/// The answer to a caller without the right token.
pub fn demanded() -> BadRequest {
    let line = "a valid token is needed: give --token-file or KOHAKURIVER_TUNNEL_TOKEN";
    BadRequest::new(StatusCode::UNAUTHORIZED, line)
}
