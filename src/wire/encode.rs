use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{BufferTooSmall, Frame, HEADER_LEN};

/// Longest part of an encoded frame before its payload: the header and the credit of a WINDOW.
const PREFIX_MAX: usize = HEADER_LEN + 4;

impl<P: AsRef<[u8]>> Frame<P> {
    /// Bytes the encoded frame takes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        match self {
            Self::Window { .. } => PREFIX_MAX,
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

    /// The encoded frame as a [`Buf`] of two parts, for vectored writes. Does not copy the payload.
    #[must_use]
    pub fn into_buf(self) -> EncodedFrame<P> {
        let mut prefix = [0; PREFIX_MAX];
        let [h0, h1, h2, h3, h4, h5, h6, h7] = self.header().to_bytes();
        let mut prefix_len = HEADER_LEN;
        let mut credit = [0; 4];
        if let Self::Window { credit: c, .. } = self {
            credit = c.to_be_bytes();
            prefix_len = PREFIX_MAX;
        }
        let [c0, c1, c2, c3] = credit;
        prefix.copy_from_slice(&[h0, h1, h2, h3, h4, h5, h6, h7, c0, c1, c2, c3]);
        EncodedFrame {
            prefix,
            prefix_len,
            position: 0,
            frame: self,
        }
    }
}

/// A frame as a [`Buf`] of two chunks. Made by [`Frame::into_buf`].
#[derive(Debug, Clone)]
pub struct EncodedFrame<P> {
    prefix: [u8; PREFIX_MAX],
    prefix_len: usize,
    position: usize,
    frame: Frame<P>,
}

impl<P: AsRef<[u8]>> EncodedFrame<P> {
    fn prefix_left(&self) -> &[u8] {
        self.prefix
            .get(self.position..self.prefix_len)
            .unwrap_or_default()
    }

    fn payload_left(&self) -> &[u8] {
        let read = self.position.saturating_sub(self.prefix_len);
        self.frame.payload().get(read..).unwrap_or_default()
    }
}

impl<P: AsRef<[u8]>> Buf for EncodedFrame<P> {
    fn remaining(&self) -> usize {
        self.prefix_left().len() + self.payload_left().len()
    }

    fn chunk(&self) -> &[u8] {
        match self.prefix_left() {
            [] => self.payload_left(),
            prefix => prefix,
        }
    }

    #[cfg(feature = "std")]
    fn chunks_vectored<'a>(&'a self, dst: &mut [std::io::IoSlice<'a>]) -> usize {
        let parts = [self.prefix_left(), self.payload_left()];
        let filled = parts.into_iter().filter(|part| !part.is_empty());
        dst.iter_mut()
            .zip(filled)
            .map(|(slot, part)| *slot = std::io::IoSlice::new(part))
            .count()
    }

    fn advance(&mut self, count: usize) {
        assert!(
            count <= self.remaining(),
            "advanced past the end of a frame"
        );
        self.position += count;
    }
}
