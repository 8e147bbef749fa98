//! Reads files that were named on the command line.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Longest file that is read, in bytes. A longer one was named by mistake.
const FILE_MAX: u64 = 16 << 20;

/// All bytes of a file, of which there may be 16 MiB.
///
/// # Errors
/// It cannot be read, or has more. If the system knows that it has more, nothing is read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_open(File::open(path)?)
}

/// As [`read`], of an open file.
///
/// # Errors
/// As there.
pub fn read_open(file: File) -> io::Result<Vec<u8>> {
    let size = file.metadata()?.len();
    if size <= FILE_MAX {
        let mut bytes = Vec::new();
        file.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 <= FILE_MAX {
            return Ok(bytes);
        }
    }
    let size = match size {
        0..=FILE_MAX => String::new(),
        size => format!("{size} bytes, "),
    };
    let text = format!("it has {size}more than {FILE_MAX} bytes: see whether it is the right file");
    Err(io::Error::new(io::ErrorKind::FileTooLarge, text))
}
