use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use super::{CodecError, take_message};
use crate::wire::{DecodeError, Frame};

/// Size in bytes of the length before every message.
pub(crate) const PREFIX_LEN: usize = 4;

/// Least room made when a message misses more than this.
const READ_MIN: usize = 8 * 1024;

/// A length before each message: for TCP, Unix sockets, vsock and pipes (PROTOCOL.md section 3.2).
///
/// The length is a big-endian `u32`. It counts the bytes of the message that follows, header
/// included and length excluded, and is at most [`max_len`](Self::max_len) in both directions.
///
/// - The frames do not depend on how the bytes are split on their way.
/// - A delimited but malformed message is an item, `Err(DecodeError)`, and the next one follows.
/// - A length over the cap is [`CodecError::TooLong`] before memory is reserved for it. The error
///   repeats, because the following bytes cannot be delimited.
/// - The end of the stream inside a message is [`CodecError::Truncated`].
///
/// [`FramedRead`](tokio_util::codec::FramedRead) ends after a [`CodecError`].
///
/// A peer that announces a message and never sends it gains little. The decoder makes room for as
/// many bytes again as have arrived, at least 8 KiB, and never for more than one message at the
/// cap.
///
/// The [module](super) has examples.
#[derive(Debug, Clone)]
pub struct StreamCodec {
    max_len: usize,
}

impl StreamCodec {
    /// The cap of [`new`](Self::new): 1 MiB for a whole message, header included.
    ///
    /// Deployed WebSocket parts have the same limit, so every message that passes can be relayed to
    /// them.
    pub const DEFAULT_MAX_LEN: usize = 1024 * 1024;

    /// A codec with the [default cap](Self::DEFAULT_MAX_LEN).
    #[must_use]
    pub const fn new() -> Self {
        Self::with_max_len(Self::DEFAULT_MAX_LEN)
    }

    /// A codec for messages of at most `max_len` bytes, header included. The length field limits
    /// `max_len` to `u32::MAX`.
    ///
    /// The cap bounds what a peer can make the decoder hold. It is not negotiated, so both ends
    /// should use the same one.
    #[must_use]
    pub const fn with_max_len(max_len: usize) -> Self {
        let limit = u32::MAX as usize;
        let max_len = if max_len < limit { max_len } else { limit };
        Self { max_len }
    }

    /// The longest message in bytes, header included.
    #[must_use]
    pub const fn max_len(&self) -> usize {
        self.max_len
    }

    /// Looks for a whole message at the front of the buffer.
    pub(crate) fn find(&self, buffer: &[u8]) -> Result<Found, CodecError> {
        let Some(&prefix) = buffer.first_chunk::<PREFIX_LEN>() else {
            return Ok(Found::NoLength);
        };
        let max = self.max_len;
        // A length that `usize` cannot hold is over any cap.
        let len = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
        if len > max {
            return Err(CodecError::TooLong { len, max });
        }
        let missing = PREFIX_LEN.saturating_add(len).saturating_sub(buffer.len());
        Ok(match missing {
            0 => Found::Whole(len),
            _ => Found::Missing(missing),
        })
    }

    /// Checks that the stream ends between two messages, where `rest` is left of it.
    pub(crate) fn check_end(&self, rest: &[u8]) -> Result<(), CodecError> {
        let missing = match self.find(rest)? {
            Found::NoLength if rest.is_empty() => return Ok(()),
            Found::Whole(_) => return Ok(()),
            Found::NoLength => PREFIX_LEN - rest.len(),
            Found::Missing(missing) => missing,
        };
        Err(CodecError::Truncated { missing })
    }

    /// The length that stands before a message.
    pub(crate) fn prefix(&self, len: usize) -> Result<[u8; PREFIX_LEN], CodecError> {
        let max = self.max_len;
        match u32::try_from(len) {
            Ok(prefix) if len <= max => Ok(prefix.to_be_bytes()),
            _ => Err(CodecError::TooLong { len, max }),
        }
    }

    /// Checks and writes the length, and makes room for what follows.
    fn put_prefix(&self, len: usize, buffer: &mut BytesMut) -> Result<(), CodecError> {
        let prefix = self.prefix(len)?;
        buffer.reserve(PREFIX_LEN + len);
        buffer.put_slice(&prefix);
        Ok(())
    }
}

/// What is at the front of a buffer.
pub(crate) enum Found {
    /// A message of so many bytes, behind its length.
    Whole(usize),
    /// A part of one, so many bytes short.
    Missing(usize),
    /// Not even its length.
    NoLength,
}

impl Default for StreamCodec {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder for StreamCodec {
    type Item = Result<Frame, DecodeError>;
    type Error = CodecError;

    /// Takes the next message off the front of the buffer. `Ok(None)` when it is not complete.
    ///
    /// # Errors
    /// [`CodecError::TooLong`], on every further call too: the length is not consumed.
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Self::Item>, CodecError> {
        match self.find(buffer)? {
            Found::Whole(len) => {
                buffer.advance(PREFIX_LEN);
                Ok(Some(take_message(buffer, len)))
            }
            Found::Missing(missing) => {
                make_room(buffer, missing);
                Ok(None)
            }
            Found::NoLength => Ok(None),
        }
    }

    /// As [`decode`](Self::decode), at the end of the stream: an incomplete message is an error.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] and [`CodecError::Truncated`].
    fn decode_eof(&mut self, buffer: &mut BytesMut) -> Result<Option<Self::Item>, CodecError> {
        let item = self.decode(buffer)?;
        if item.is_none() {
            self.check_end(buffer)?;
        }
        Ok(item)
    }
}

impl<P: AsRef<[u8]>> Encoder<Frame<P>> for StreamCodec {
    type Error = CodecError;

    /// Appends the length and the encoded frame.
    ///
    /// # Errors
    /// [`CodecError::TooLong`]. Nothing was written then.
    fn encode(&mut self, frame: Frame<P>, buffer: &mut BytesMut) -> Result<(), CodecError> {
        self.put_prefix(frame.encoded_len(), buffer)?;
        // A `BytesMut` grows, so the encoder cannot run out of room.
        let _ = frame.encode(buffer);
        Ok(())
    }
}

impl Encoder<Bytes> for StreamCodec {
    type Error = CodecError;

    /// Appends the length and an encoded message, which stays unchanged.
    ///
    /// # Errors
    /// [`CodecError::TooLong`]. Nothing was written then.
    fn encode(&mut self, message: Bytes, buffer: &mut BytesMut) -> Result<(), CodecError> {
        self.put_prefix(message.len(), buffer)?;
        buffer.put_slice(&message);
        Ok(())
    }
}

/// Makes room for more of a message, in proportion to what has arrived of it.
///
/// `BytesMut::reserve` would double the whole allocation, consumed bytes included, and so pass the
/// cap.
fn make_room(buffer: &mut BytesMut, missing: usize) {
    let have = buffer.len();
    let spare = buffer.capacity() - have;
    let wanted = missing.min(have.max(READ_MIN));
    if spare >= wanted.min(READ_MIN / 2) || buffer.try_reclaim(wanted) {
        return;
    }
    let mut grown = BytesMut::with_capacity(have + wanted);
    grown.put_slice(buffer);
    *buffer = grown;
}
