use super::header::field;
use super::{ClientId, DecodeError, HEADER_LEN, Header};

/// A message as a relay sees it: any bytes of at least a header, kept unchanged.
///
/// It keeps unknown types, unknown protocols and reserved fields. A relay reads the id, rewrites it
/// in place and passes the message on.
///
/// ```
/// use kohakuriver_tunnel::wire::{ClientId, RawFrame};
///
/// let mut raw = RawFrame::new([0x7f, 9, 0, 0, 0, 1, 0, 0, b'?'])?;
/// raw.set_id(ClientId(7));
/// assert_eq!(raw.into_inner(), [0x7f, 9, 0, 0, 0, 7, 0, 0, b'?']);
/// # Ok::<(), kohakuriver_tunnel::wire::DecodeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawFrame<B> {
    bytes: B,
}

impl<B: AsRef<[u8]>> RawFrame<B> {
    /// Wraps a message of at least [`HEADER_LEN`] bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] when it is shorter.
    pub fn new(bytes: B) -> Result<Self, DecodeError> {
        match bytes.as_ref().len() {
            len if len < HEADER_LEN => Err(DecodeError::Truncated { len }),
            _ => Ok(Self { bytes }),
        }
    }

    /// The bytes of the message. Only [`set_id`](Self::set_id) changes them.
    pub fn into_inner(self) -> B {
        self.bytes
    }

    /// Rewrites the client id in place.
    pub fn set_id(&mut self, id: ClientId)
    where
        B: AsMut<[u8]>,
    {
        if let Some(field) = self.bytes.as_mut().get_mut(field::ID) {
            field.copy_from_slice(&id.0.to_be_bytes());
        }
    }

    /// The type byte, which may be unknown.
    #[must_use]
    pub fn kind_byte(&self) -> u8 {
        self.header_bytes()[field::KIND]
    }

    /// The protocol byte, which may be unknown.
    #[must_use]
    pub fn proto_byte(&self) -> u8 {
        self.header_bytes()[field::PROTO]
    }

    /// The client id.
    #[must_use]
    pub fn id(&self) -> ClientId {
        let [_, _, i0, i1, i2, i3, _, _] = self.header_bytes();
        ClientId(u32::from_be_bytes([i0, i1, i2, i3]))
    }

    /// The port field.
    #[must_use]
    pub fn port(&self) -> u16 {
        let [.., p0, p1] = self.header_bytes();
        u16::from_be_bytes([p0, p1])
    }

    /// The bytes after the header.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.bytes.as_ref().get(HEADER_LEN..).unwrap_or_default()
    }

    /// The header, if its type and protocol are known.
    ///
    /// # Errors
    /// As [`Header::from_bytes`].
    pub fn header(&self) -> Result<Header, DecodeError> {
        Header::from_bytes(self.header_bytes())
    }

    /// The header's eight bytes.
    #[must_use]
    pub fn header_bytes(&self) -> [u8; HEADER_LEN] {
        // `new` checked the length. If an `AsRef` returns fewer bytes later, they read as zeros.
        self.bytes
            .as_ref()
            .first_chunk()
            .copied()
            .unwrap_or_default()
    }
}
