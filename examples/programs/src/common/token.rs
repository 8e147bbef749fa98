//! The bearer token, as a header. It is never logged.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use subtle::ConstantTimeEq;

use super::http::{self, Answer, BadRequest};
use super::program::Failure;
use super::secret::Secret;

/// The variable with the token, if no file is named.
const VARIABLE: &str = "KOHAKURIVER_TUNNEL_TOKEN";

/// The header's value before the token.
const PREFIX: &str = "Bearer ";

#[derive(Args, Debug, Clone, PartialEq)]
pub struct TokenArgs {
    /// File with the token (one line), which not every user may read [default: the variable
    /// KOHAKURIVER_TUNNEL_TOKEN].
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl TokenArgs {
    /// The value of the `Authorization` header, marked as sensitive.
    ///
    /// # Errors
    /// The file cannot be read, or the token is not printable ASCII.
    pub fn header(&self) -> Result<Option<HeaderValue>, Failure> {
        header_from(self.token_file.as_deref(), VARIABLE)
    }

    /// The token of a program that connects.
    ///
    /// # Errors
    /// As [`header`](Self::header).
    pub fn credential(&self) -> Result<Credential, Failure> {
        let header = self.header()?;
        Ok(Credential(Arc::new(Inner {
            file: self.token_file.clone(),
            now: Mutex::new(Now {
                header,
                told: false,
            }),
        })))
    }
}

/// The token of a program that connects. Its file is read again for each connection, because a
/// token may be replaced while the program runs.
#[derive(Clone)]
pub struct Credential(Arc<Inner>);

struct Inner {
    file: Option<PathBuf>,
    now: Mutex<Now>,
}

struct Now {
    header: Option<HeaderValue>,
    /// It was logged that the file cannot be used.
    told: bool,
}

impl Credential {
    /// The value of the `Authorization` header; the last one if the file cannot be used now.
    pub fn header(&self) -> Option<HeaderValue> {
        let Inner { file, now } = &*self.0;
        let mut now = now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = file {
            match header_from(Some(file), VARIABLE) {
                Ok(header) => {
                    if now.header != header {
                        tracing::info!("the token in {} has changed", file.display());
                    }
                    let told = false;
                    *now = Now { header, told };
                }
                Err(error) if !now.told => {
                    now.told = true;
                    tracing::warn!("{error}; keeping the token as it was");
                }
                Err(_) => {}
            }
        }
        now.header.clone()
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

/// The answer to a caller whose token somebody else has refused, with 401 or 403.
pub fn refused(status: StatusCode, reason: String) -> Answer {
    let mut answer = http::text(status, reason);
    if status == StatusCode::UNAUTHORIZED {
        let bearer = HeaderValue::from_static("Bearer");
        answer
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, bearer);
    }
    answer
}

/// The answer to a caller without the right token.
pub fn demanded() -> BadRequest {
    let line = "a valid token is needed: give --token-file or KOHAKURIVER_TUNNEL_TOKEN";
    BadRequest::new(StatusCode::UNAUTHORIZED, line).with(header::WWW_AUTHENTICATE, "Bearer")
}
