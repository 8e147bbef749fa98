//! Unpredictable bytes for WebSocket keys and masks (RFC 6455 sections 4.1 and 5.3).
//!
//! The standard library keys its hash maps from the operating system, by the system call alone: that works
//! in an empty root folder too, where `/dev/urandom` is missing. Its keyed hash of a new key each time is as
//! hard to foresee as the key.

use std::hash::{BuildHasher, RandomState};

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

/// Sixteen of them in base64: a `Sec-WebSocket-Key`.
pub fn websocket_key() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u128::from_be_bytes(random());
    // 128 bits are 21 letters and two bits, which begin the 22nd.
    let letter = |index: u32| {
        let six = (bits << (6 * index)) >> 122;
        let letter = ALPHABET.get(six as usize & 63);
        char::from(letter.copied().unwrap_or(b'A'))
    };
    (0..22).map(letter).chain(['=', '=']).collect()
}
