use bytes::{BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use super::{CodecError, take_message};
use crate::session::MAX_DATAGRAM;
use crate::wire::{DecodeError, Frame};

/// One buffer is one message: for carriers that keep boundaries (PROTOCOL.md section 3.3).
///
/// It is made for [`UdpFramed`]. Every datagram is consumed whole and gives exactly one item: a
/// frame, or the [`DecodeError`] of a malformed or empty datagram. The item comes with the sender's
/// address, and the stream continues.
///
/// Byte streams keep no boundaries and need a [`StreamCodec`](super::StreamCodec) instead.
///
/// Messages to send have at most [`max_len`](Self::max_len) bytes. A socket refuses a datagram that
/// is too long for it, and `UdpFramed` would offer it again for ever.
///
/// A datagram can be lost, duplicated or reordered, and so can its frame. The [module](super) has
/// an example.
///
/// [`UdpFramed`]: https://docs.rs/tokio-util/0.7/tokio_util/udp/struct.UdpFramed.html
#[derive(Debug, Clone)]
pub struct MessageCodec {
    max_len: usize,
    /// The current datagram gave its item. Distinguishes its empty remainder from an empty
    /// datagram.
    delivered: bool,
}

impl MessageCodec {
    /// The bound of [`new`](Self::new): 65,507 bytes for a whole message, header included, as a
    /// datagram over UDP/IPv4 has.
    pub const DEFAULT_MAX_LEN: usize = MAX_DATAGRAM;

    /// A codec for one socket, with the [default bound](Self::DEFAULT_MAX_LEN).
    #[must_use]
    pub const fn new() -> Self {
        Self::with_max_len(Self::DEFAULT_MAX_LEN)
    }

    /// A codec that sends messages of at most `max_len` bytes, header included.
    ///
    /// Unix datagrams, whose bound is the socket's send buffer, carry the longest datagram of a
    /// flow with 65,515.
    #[must_use]
    pub const fn with_max_len(max_len: usize) -> Self {
        Self {
            max_len,
            delivered: false,
        }
    }

    /// The longest message to send in bytes, header included.
    #[must_use]
    pub const fn max_len(&self) -> usize {
        self.max_len
    }

    fn check(&self, len: usize) -> Result<usize, CodecError> {
        let max = self.max_len;
        match len > max {
            true => Err(CodecError::TooLong { len, max }),
            false => Ok(len),
        }
    }
}

impl Default for MessageCodec {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder for MessageCodec {
    type Item = Result<Frame, DecodeError>;
    type Error = CodecError;

    /// Decodes the whole buffer as one message. `Ok(None)` when the buffer is empty.
    ///
    /// # Errors
    /// None. A malformed message is an item.
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Self::Item>, CodecError> {
        if buffer.is_empty() {
            return Ok(None);
        }
        self.delivered = true;
        let len = buffer.len();
        Ok(Some(take_message(buffer, len)))
    }

    /// As [`decode`](Self::decode), but an empty buffer is an empty datagram, unless the previous
    /// call took a datagram out of it. `UdpFramed` calls this function until it returns `Ok(None)`.
    ///
    /// # Errors
    /// None. A malformed message is an item.
    fn decode_eof(&mut self, buffer: &mut BytesMut) -> Result<Option<Self::Item>, CodecError> {
        if buffer.is_empty() && self.delivered {
            self.delivered = false;
            return Ok(None);
        }
        self.delivered = true;
        let len = buffer.len();
        Ok(Some(take_message(buffer, len)))
    }
}

impl<P: AsRef<[u8]>> Encoder<Frame<P>> for MessageCodec {
    type Error = CodecError;

    /// Appends the encoded frame.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] beyond [`max_len`](MessageCodec::max_len). Nothing was written.
    fn encode(&mut self, frame: Frame<P>, buffer: &mut BytesMut) -> Result<(), CodecError> {
        buffer.reserve(self.check(frame.encoded_len())?);
        // A `BytesMut` grows, so the encoder cannot run out of room.
        let _ = frame.encode(buffer);
        Ok(())
    }
}

impl Encoder<Bytes> for MessageCodec {
    type Error = CodecError;

    /// Appends an encoded message unchanged.
    ///
    /// # Errors
    /// As for a frame.
    fn encode(&mut self, message: Bytes, buffer: &mut BytesMut) -> Result<(), CodecError> {
        buffer.reserve(self.check(message.len())?);
        buffer.put_slice(&message);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{vec, vec::Vec};

    use super::*;
    use crate::wire::{ClientId, Proto};

    fn data(payload: Bytes) -> Frame {
        let (proto, id) = (Proto::Udp, ClientId(0xdead_beef));
        Frame::Data { proto, id, payload }
    }

    /// What `UdpFramed` does with one datagram.
    fn receive(codec: &mut MessageCodec, datagram: &[u8]) -> Vec<Result<Frame, DecodeError>> {
        let mut buffer = BytesMut::from(datagram);
        let items = core::iter::from_fn(|| codec.decode_eof(&mut buffer).unwrap());
        let items = items.take(3).collect();
        assert!(buffer.is_empty(), "the datagram is consumed whole");
        items
    }

    #[test]
    fn every_datagram_is_one_item() {
        let mut codec = MessageCodec::new();
        let small = data("hi".into());
        let large = data(vec![7; 9000].into());
        let datagrams = [
            (small.to_bytes(), Ok(small.clone())),
            (Bytes::new(), Err(DecodeError::Truncated { len: 0 })),
            (Bytes::new(), Err(DecodeError::Truncated { len: 0 })),
            (large.to_bytes(), Ok(large)),
            ("garbage".into(), Err(DecodeError::Truncated { len: 7 })),
            (vec![0x7f; 20].into(), Err(DecodeError::UnknownKind(0x7f))),
            (Bytes::new(), Err(DecodeError::Truncated { len: 0 })),
            (small.to_bytes(), Ok(small)),
        ];
        for (datagram, expected) in datagrams {
            assert_eq!(receive(&mut codec, &datagram), [expected]);
        }
    }

    #[test]
    fn a_small_frame_pins_no_read_buffer() {
        let mut buffer = BytesMut::with_capacity(64 * 1024);
        let start = buffer.as_ptr();
        let frame = data("hi".into());
        MessageCodec::new()
            .encode(frame.clone(), &mut buffer)
            .unwrap();
        let item = MessageCodec::new().decode(&mut buffer).unwrap();
        assert_eq!(item, Some(Ok(frame)));
        // Reclaims its own memory instead of allocating: nobody else holds it.
        assert!(buffer.try_reclaim(64 * 1024));
        buffer.put_u8(0);
        assert_eq!(buffer.as_ptr(), start);
    }

    #[test]
    fn nothing_buffered_is_no_message() {
        assert_eq!(
            MessageCodec::new().decode(&mut BytesMut::new()).unwrap(),
            None
        );
    }

    #[test]
    fn a_larger_bound_carries_the_longest_datagram_of_a_flow() {
        let mut codec = MessageCodec::with_max_len(MAX_DATAGRAM + 8);
        let mut buffer = BytesMut::new();
        let longest = data(vec![7; MAX_DATAGRAM].into());
        codec.encode(longest.clone(), &mut buffer).unwrap();
        assert_eq!(receive(&mut codec, &buffer), [Ok(longest)]);
        let longer = data(vec![7; MAX_DATAGRAM + 1].into());
        let refused = codec.encode(longer, &mut buffer);
        assert!(matches!(refused, Err(CodecError::TooLong { max, .. }) if max == codec.max_len()));
    }

    #[test]
    fn what_no_socket_sends_is_refused_and_nothing_is_written() {
        const MAX: usize = MessageCodec::DEFAULT_MAX_LEN;
        let mut codec = MessageCodec::new();
        let mut buffer = BytesMut::new();
        let longest = data(vec![7; MAX - 8].into());
        codec.encode(longest, &mut buffer).unwrap();
        assert_eq!(buffer.len(), MAX);
        let longer = Bytes::from(vec![7; MAX + 1]);
        for refused in [
            codec.encode(longer, &mut buffer),
            codec.encode(data(vec![7; MAX - 7].into()), &mut buffer),
        ] {
            let Err(CodecError::TooLong { len, max }) = refused else {
                panic!("{refused:?}")
            };
            assert_eq!((len, max, buffer.len()), (MAX + 1, MAX, MAX));
        }
    }
}
