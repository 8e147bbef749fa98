//! Contents that can be checked at the speed of a memory comparison.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

/// Bytes of one read or write.
pub const PIECE: usize = 64 << 10;

/// The pattern repeats after a prime number of bytes, so a lost, duplicated or moved piece does not
/// match.
const PERIOD: usize = 65_521;

pub struct Pattern(Vec<u8>);

impl Pattern {
    pub fn new() -> Self {
        let mut state = 0x9e37_79b9_u32;
        let mut bytes: Vec<u8> = Vec::with_capacity(PERIOD + PIECE);
        for _ in 0..PERIOD {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            bytes.push(state as u8);
        }
        bytes.extend_from_within(..PIECE.min(PERIOD));
        bytes.resize(PERIOD + PIECE, 0);
        for at in PERIOD..bytes.len() {
            bytes[at] = bytes[at - PERIOD];
        }
        Self(bytes)
    }

    /// The bytes at `at` in an endless repetition: at most `len` bytes and one piece.
    pub fn at(&self, at: u64, len: u64) -> &[u8] {
        let start = (at % PERIOD as u64) as usize;
        let len = len.min(PIECE as u64) as usize;
        &self.0[start..start + len]
    }

    pub fn send(&self, to: &mut impl Write, len: u64) -> io::Result<()> {
        let mut at = 0;
        while at < len {
            let piece = self.at(at, len - at);
            to.write_all(piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Sends until that much time is over. At least one piece.
    pub fn send_for(&self, to: &mut impl Write, time: Duration) -> io::Result<()> {
        let start = Instant::now();
        let mut at = 0;
        loop {
            let piece = self.at(at, PIECE as u64);
            to.write_all(piece)?;
            at += piece.len() as u64;
            if start.elapsed() >= time {
                return Ok(());
            }
        }
    }

    /// Reads exactly `len` bytes.
    ///
    /// # Errors
    /// The connection's error, or `InvalidData` that names the position of the first difference.
    pub fn receive(&self, from: &mut impl Read, len: u64) -> io::Result<()> {
        if self.receive_all(&mut from.take(len))? < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Reads to the end and gives the number of bytes.
    ///
    /// # Errors
    /// As for `receive`.
    pub fn receive_all(&self, from: &mut impl Read) -> io::Result<u64> {
        let mut buffer = vec![0; PIECE];
        let mut at = 0;
        loop {
            let read = from.read(&mut buffer)?;
            if read == 0 {
                return Ok(at);
            }
            if buffer[..read] != *self.at(at, read as u64) {
                let text = format!("wrong contents within {read} bytes from {at}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            at += read as u64;
        }
    }
}
