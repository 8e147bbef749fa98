//! Unpredictable bytes for WebSocket keys and masks (RFC 6455 sections 4.1 and 5.3).
//!
//! The standard library keys its hash maps from the operating system, by a system call. That works
//! in an empty root directory too, where `/dev/urandom` is missing. A keyed hash under a new key
//! each time is as unpredictable as the key.

use std::hash::{BuildHasher, RandomState};

/// Unpredictable bytes.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    for part in bytes.chunks_mut(8) {
        let word = RandomState::new().hash_one(());
        for (byte, random) in part.iter_mut().zip(word.to_le_bytes()) {
            *byte = random;
        }
    }
    bytes
}
