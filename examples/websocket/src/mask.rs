//! Masking (RFC 6455 section 5.3).

use bytes::Bytes;

use crate::limits::SMALL;

/// Masks or unmasks in place.
pub(crate) fn apply_mask(payload: &mut [u8], key: [u8; 4]) {
    let wide = widened(key);
    // In blocks, for which the compiler uses wide instructions.
    let mut blocks = payload.chunks_exact_mut(BLOCK);
    for block in &mut blocks {
        mask_words(block, wide);
    }
    let rest = mask_words(blocks.into_remainder(), wide);
    for (byte, key) in rest.iter_mut().zip(key.into_iter().cycle()) {
        *byte ^= key;
    }
}

/// Writes the payload masked to `to`, which has its length. One pass costs little more than masking
/// in place; a copy that is masked afterwards costs twice that.
pub(crate) fn copy_masked(payload: &[u8], key: [u8; 4], to: &mut [u8]) {
    let wide = widened(key);
    let mut from = payload.chunks_exact(BLOCK);
    let mut into = to.chunks_exact_mut(BLOCK);
    for (from, into) in (&mut from).zip(&mut into) {
        for (from, into) in from.chunks_exact(8).zip(into.chunks_exact_mut(8)) {
            if let Ok(bytes) = <[u8; 8]>::try_from(from) {
                into.copy_from_slice(&(u64::from_ne_bytes(bytes) ^ wide).to_ne_bytes());
            }
        }
    }
    // Whole blocks leave the key as it is.
    let rest = from.remainder().iter().zip(into.into_remainder());
    for ((from, into), key) in rest.zip(key.into_iter().cycle()) {
        *into = from ^ key;
    }
}

/// The payload unmasked, in memory of its own. One pass, as [`copy_masked`], if it is long.
pub(crate) fn unmasked(payload: &[u8], key: [u8; 4]) -> Bytes {
    if payload.len() <= SMALL {
        // `Bytes` allocates once more for memory that is longer than its content.
        let mut copy = payload.to_vec();
        apply_mask(&mut copy, key);
        return copy.into();
    }
    let wide = widened(key);
    let words = payload.chunks_exact(8);
    // Whole words leave the key as it is.
    let rest = words.remainder().iter().zip(key.into_iter().cycle());
    let rest = rest.map(|(byte, key)| byte ^ key);
    // Of words, because memory for bytes would have to be written before.
    let mut copy = Vec::with_capacity(payload.len().div_ceil(8));
    copy.extend(words.map(|word| {
        let word = <[u8; 8]>::try_from(word).map_or(0, u64::from_ne_bytes);
        (word ^ wide).to_ne_bytes()
    }));
    let mut copy = copy.into_flattened();
    copy.extend(rest);
    copy.into()
}

/// A multiple of a word.
const BLOCK: usize = 64;

fn widened([a, b, c, d]: [u8; 4]) -> u64 {
    u64::from_ne_bytes([a, b, c, d, a, b, c, d])
}

/// Masks whole words. The remainder is shorter than a word.
#[inline]
fn mask_words(payload: &mut [u8], wide: u64) -> &mut [u8] {
    let mut words = payload.chunks_exact_mut(8);
    for word in &mut words {
        if let Ok(bytes) = <[u8; 8]>::try_from(&*word) {
            word.copy_from_slice(&(u64::from_ne_bytes(bytes) ^ wide).to_ne_bytes());
        }
    }
    words.into_remainder()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_meets_its_part_of_the_key() {
        let key = [0x12, 0x34, 0x56, 0x78];
        for len in (0..200).chain(SMALL - 10..SMALL + 200) {
            let mut payload = vec![0xa5; len];
            apply_mask(&mut payload, key);
            let expected = key.iter().cycle().map(|key| 0xa5 ^ key);
            assert!(payload.iter().copied().eq(expected.take(len)), "{len}");
            let mut copy = vec![0; len];
            copy_masked(&vec![0xa5; len], key, &mut copy);
            assert_eq!(copy, payload);
            let copy = Vec::from(unmasked(&vec![0xa5; len], key));
            assert_eq!(copy, payload);
            assert!(len > SMALL || copy.capacity() == len, "{len}");
        }
    }
}
