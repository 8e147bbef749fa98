//! Masking (RFC 6455 section 5.3).

/// Masks or unmasks in place.
pub(crate) fn apply_mask(payload: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    // In blocks, for which the compiler uses wide instructions.
    let mut blocks = payload.chunks_exact_mut(64);
    for block in &mut blocks {
        mask_words(block, wide);
    }
    let rest = mask_words(blocks.into_remainder(), wide);
    for (byte, key) in rest.iter_mut().zip(key.into_iter().cycle()) {
        *byte ^= key;
    }
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
        for len in 0..200 {
            let mut payload = vec![0xa5; len];
            apply_mask(&mut payload, key);
            let expected = key.iter().cycle().map(|key| 0xa5 ^ key);
            assert!(payload.iter().copied().eq(expected.take(len)), "{len}");
        }
    }
}
