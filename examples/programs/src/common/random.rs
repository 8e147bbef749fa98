//! What must not be foreseen.

pub use tunnel_websocket::random;

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
