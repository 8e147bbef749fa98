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
/// Messages have at most 65,507 bytes, as datagrams over UDP/IPv4 do. A socket refuses a longer
/// one, and `UdpFramed` would offer it again for ever.
///
/// A datagram can be lost, duplicated or reordered, and so can its frame. The [module](super) has
/// an example.
///
/// [`UdpFramed`]: https://docs.rs/tokio-util/0.7/tokio_util/udp/struct.UdpFramed.html
#[derive(Debug, Clone, Default)]
pub struct MessageCodec {
    /// The current datagram gave its item. Distinguishes its empty remainder from an empty
    /// datagram.
    delivered: bool,
}

impl MessageCodec {
    /// A codec for one socket.
    #[must_use]
    pub const fn new() -> Self {
        Self { delivered: false }
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

/// Most bytes of a message, header included.
const MAX: usize = MAX_DATAGRAM;

fn check(len: usize) -> Result<usize, CodecError> {
    match len > MAX {
        true => Err(CodecError::TooLong { len, max: MAX }),
        false => Ok(len),
    }
}

impl<P: AsRef<[u8]>> Encoder<Frame<P>> for MessageCodec {
    type Error = CodecError;

    /// Appends the encoded frame.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] beyond 65,507 bytes. Nothing was written.
    fn encode(&mut self, frame: Frame<P>, buffer: &mut BytesMut) -> Result<(), CodecError> {
        buffer.reserve(check(frame.encoded_len())?);
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
        buffer.reserve(check(message.len())?);
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
    fn what_no_socket_sends_is_refused_and_nothing_is_written() {
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
