use core::fmt;
use core::hint::black_box;

/// The proof that a client may take a tunnel over: 128 bits at random (PROTOCOL.md section 5.10).
///
/// Comparing takes the same time whatever differs. `Debug` shows nothing of it.
///
/// ```
/// use kohakuriver_tunnel::resume::Secret;
///
/// let secret = Secret::new([7; 16]);
/// assert!(secret == Secret::new([7; 16]) && secret != Secret::new([8; 16]));
/// assert_eq!(format!("{secret:?}"), "Secret(..)");
/// ```
#[derive(Clone, Copy)]
pub struct Secret([u8; Self::LEN]);

impl Secret {
    /// Length in bytes.
    pub const LEN: usize = 16;

    /// The secret with these bytes. They must come from a cryptographic source of randomness.
    #[must_use]
    pub const fn new(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the message that carries them.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; Self::LEN] {
        self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(&other.0);
        // The barrier keeps the compiler from stopping at the first difference.
        let differs = pairs.fold(0, |all, (a, b)| black_box(all | (a ^ b)));
        differs == 0
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_in_any_bit_counts() {
        let secret = Secret::new([0xa5; 16]);
        assert_eq!(secret, secret.clone());
        for bit in 0..128 {
            let mut bytes = secret.to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(secret, Secret::new(bytes));
        }
    }
}
