use bytes::{BufMut, Bytes, BytesMut};

use super::{BufferTooSmall, Frame, HEADER_LEN};

impl<P: AsRef<[u8]>> Frame<P> {
    /// Bytes the encoded frame takes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        match self {
            Self::Window { .. } => HEADER_LEN + 4,
            _ => HEADER_LEN.saturating_add(self.payload().len()),
        }
    }

    /// Encodes into the front of `out` and returns how many bytes were written.
    ///
    /// # Errors
    /// [`BufferTooSmall`]. Nothing was written then.
    #[inline]
    pub fn encode_to_slice(&self, out: &mut [u8]) -> Result<usize, BufferTooSmall> {
        let needed = self.encoded_len();
        let too_small = BufferTooSmall {
            needed,
            available: out.len(),
        };
        let out = out.get_mut(..needed).ok_or(too_small)?;
        let (header, body) = out.split_first_chunk_mut().ok_or(too_small)?;
        *header = self.header().to_bytes();
        match self {
            Self::Window { credit, .. } => {
                *body.first_chunk_mut().ok_or(too_small)? = credit.to_be_bytes();
            }
            _ => {
                let payload = self.payload();
                let body = body.get_mut(..payload.len()).ok_or(too_small)?;
                body.copy_from_slice(payload);
            }
        }
        Ok(needed)
    }

    /// Appends the encoded frame to `out`.
    ///
    /// # Errors
    /// [`BufferTooSmall`] when `out` cannot grow. Nothing was written then.
    pub fn encode(&self, out: &mut impl BufMut) -> Result<(), BufferTooSmall> {
        let needed = self.encoded_len();
        let available = out.remaining_mut();
        if available < needed {
            return Err(BufferTooSmall { needed, available });
        }
        out.put_slice(&self.header().to_bytes());
        match self {
            Self::Window { credit, .. } => out.put_u32(*credit),
            _ => out.put_slice(self.payload()),
        }
        Ok(())
    }

    /// The encoded frame in an allocation of its own.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.encoded_len());
        // A `BytesMut` grows, so the encoder cannot run out of room.
        let _ = self.encode(&mut out);
        out.freeze()
    }
}
