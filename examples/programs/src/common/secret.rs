//! Secrets from files and variables: read once, whole or not at all, and never shown.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::program::Failure;

/// Most bytes of a file with a secret. Whatever is longer was named by mistake.
const SECRET_MAX: u64 = 4096;

/// One line of printable ASCII, and where it is from.
pub struct Secret {
    pub text: String,
    pub origin: String,
}

impl Secret {
    /// The secret in a file, else in a variable; `None` without either.
    ///
    /// # Errors
    /// It cannot be read, is empty, or others can read the file.
    pub fn find(what: &str, file: Option<&Path>, variable: &str) -> Result<Option<Self>, Failure> {
        let (text, origin) = match (file, std::env::var_os(variable)) {
            (Some(path), _) => (read(what, path, variable)?, path.display().to_string()),
            (None, None) => return Ok(None),
            (None, Some(value)) => (value.into_encoded_bytes(), variable.to_owned()),
        };
        let text = text.trim_ascii();
        // What somebody sets and leaves empty must not mean that nobody is checked.
        if text.is_empty() {
            return Err(Failure::usage(format!(
                "the {what} in {origin} is empty: write one into it, or do not give it at all"
            )));
        }
        match std::str::from_utf8(text) {
            Ok(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => {
                let text = text.to_owned();
                Ok(Some(Self { text, origin }))
            }
            _ => Err(Failure::usage(format!(
                "the {what} in {origin} is not one line of printable ASCII without blanks"
            ))),
        }
    }
}

fn read(what: &str, path: &Path, variable: &str) -> Result<Vec<u8>, Failure> {
    let unreadable = |error: io::Error| {
        let path = path.display();
        Failure::usage(format!("cannot read the {what} file {path}: {error}"))
    };
    let file = File::open(path).map_err(unreadable)?;
    if let Some(mode) = open_to_all(&file) {
        let path = path.display();
        return Err(Failure::usage(format!(
            "every user of this machine has access to the {what} file {path} (mode {mode:o}): \
             chmod 600 {path}, or give the {what} in {variable}"
        )));
    }
    let mut bytes = Vec::new();
    let read = file.take(SECRET_MAX + 1).read_to_end(&mut bytes);
    read.map_err(unreadable)?;
    if bytes.len() as u64 > SECRET_MAX {
        let path = path.display();
        return Err(Failure::usage(format!(
            "the {what} file {path} has more than {SECRET_MAX} bytes: name one that holds a {what} alone"
        )));
    }
    Ok(bytes)
}

/// The mode of a file to which everybody has access. A group may have it: that is how secrets are mounted
/// for a program that is not root.
#[cfg(unix)]
pub fn open_to_all(file: &File) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;
    const OTHERS: u32 = 0o007;
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let mode = metadata.permissions().mode() & 0o777;
    (mode & OTHERS != 0).then_some(mode)
}

/// Elsewhere modes say nothing.
#[cfg(not(unix))]
pub fn open_to_all(_file: &File) -> Option<u32> {
    None
}
