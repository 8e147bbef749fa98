//! Secrets from files and variables. They are read when they are needed and never shown.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::net;
use super::program::Failure;

/// Longest file with a secret, in bytes. A longer one was named by mistake.
const SECRET_MAX: u64 = 4096;

/// One line of printable ASCII, and where it comes from.
pub struct Secret {
    pub text: String,
    pub origin: String,
}

impl Secret {
    /// The secret in a file, or else in a variable; `None` without both.
    ///
    /// # Errors
    /// The secret cannot be read, is empty, or other users can read the file.
    pub fn find(what: &str, file: Option<&Path>, variable: &str) -> Result<Option<Self>, Failure> {
        let (text, origin) = match (file, std::env::var_os(variable)) {
            (Some(path), _) => (read(what, path)?, path.display().to_string()),
            (None, None) => return Ok(None),
            (None, Some(value)) => (value.into_encoded_bytes(), variable.to_owned()),
        };
        let text = text.trim_ascii();
        // An empty secret must not mean that nobody is checked.
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

fn read(what: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let unreadable = |error: io::Error| {
        let (path, reason) = (path.display(), net::plain(&error));
        Failure::usage(format!("cannot read the {what} file {path}: {reason}"))
    };
    let file = File::open(path).map_err(unreadable)?;
    check_mode(&file, &format!("{what} file"), path)?;
    let mut bytes = Vec::new();
    let read = file.take(SECRET_MAX + 1).read_to_end(&mut bytes);
    read.map_err(unreadable)?;
    if bytes.len() as u64 > SECRET_MAX {
        let path = path.display();
        return Err(Failure::usage(format!(
            "the {what} file {path} has more than {SECRET_MAX} bytes: \
             name one that holds only a {what}"
        )));
    }
    Ok(bytes)
}

/// Refuses a file that everybody can read, write or execute. A group may have access: secrets are
/// mounted that way for programs that do not run as root.
///
/// # Errors
/// Says how to mend it, in a container too.
pub fn check_mode(file: &File, what: &str, path: &Path) -> Result<(), Failure> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        const OTHERS: u32 = 0o007;
        let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file);
        let mode = metadata.map_or(0, |metadata| metadata.permissions().mode() & 0o777);
        if mode & OTHERS != 0 {
            let path = path.display();
            return Err(Failure::usage(format!(
                "every user has access to the {what} {path} (mode {mode:o}): chmod 600 {path}, or \
                 mount it with defaultMode: 0400 (Kubernetes) or mode: 0400 (Compose)"
            )));
        }
    }
    #[cfg(not(unix))]
    let _ = (file, what, path);
    Ok(())
}
