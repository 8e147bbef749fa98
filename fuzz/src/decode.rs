//! Raw, lenient and strict decoding of one message against the laws of the wire format.

use bytes::{BufMut, Bytes};
use kohakuriver_tunnel::wire::{
    BufferTooSmall, Chunk, DecodeError, Frame, HEADER_LEN, Header, HeadroomBuf, RawFrame,
};

/// The input is the message.
pub fn decode(data: &[u8]) {
    raw(data);
    headroom(data);

    let lenient = Frame::decode(data);
    let strict = Frame::decode_strict(data);
    let shared = Bytes::copy_from_slice(data);
    assert_eq!(lenient.map(own), Frame::decode(shared.clone()));
    assert_eq!(strict.map(own), Frame::decode_strict(shared.clone()));

    match lenient {
        // Messages that both decoders refuse, they refuse for the same reason.
        Err(error) => assert_eq!(strict, Err(error)),
        Ok(frame) => {
            let again = encode(frame);
            assert!(again.len() <= data.len());
            assert_eq!(Frame::decode(&again[..]), Ok(frame));
            match strict {
                Ok(strict) => {
                    assert_eq!(strict, frame);
                    assert_eq!(again, data);
                }
                Err(DecodeError::InvalidUtf8 { valid_up_to }) => {
                    assert!(std::str::from_utf8(&frame.payload()[..valid_up_to]).is_ok());
                    assert!(std::str::from_utf8(frame.payload()).is_err());
                }
                Err(_) => assert_ne!(again, data),
            }
            let shared_frame = Frame::decode(shared.clone()).expect("decoded above");
            for payload in [frame.payload(), shared_frame.payload()] {
                let whole = [data.as_ptr_range(), shared.as_ptr_range()];
                let inside = |range: &std::ops::Range<*const u8>| {
                    payload.as_ptr() == range.start.wrapping_add(HEADER_LEN)
                        && payload.as_ptr_range().end == range.end
                };
                assert!(payload.is_empty() || whole.iter().any(inside), "copied");
            }
        }
    }
}

fn raw(data: &[u8]) {
    let Ok(mut raw) = RawFrame::new(data.to_vec()) else {
        assert!(data.len() < HEADER_LEN);
        return;
    };
    let id = raw.id();
    assert_eq!(raw.header_bytes(), data[..HEADER_LEN]);
    assert_eq!(raw.payload(), &data[HEADER_LEN..]);
    if let Ok(header) = raw.header() {
        assert_eq!(header.to_bytes(), raw.header_bytes());
        assert_eq!(Header::from_bytes(header.to_bytes()), Ok(header));
        assert_eq!(
            Frame::from_parts(header, raw.payload()),
            Frame::decode(data)
        );
    }
    raw.set_id(kohakuriver_tunnel::wire::ClientId(!id.0));
    raw.set_id(id);
    assert_eq!(raw.into_inner(), data);
}

/// Reads what follows the header behind headroom, in parts whose lengths, and how they are taken,
/// the input says. Such a payload is never moved, and what is read later changes no message.
fn headroom(data: &[u8]) {
    let Some((header, mut rest)) = data.split_first_chunk() else {
        return;
    };
    let Ok(header) = Header::from_bytes(*header) else {
        return;
    };
    let mut buffer = HeadroomBuf::with_capacity(header.port.into());
    let mut messages = Vec::new();
    while let Some(&first) = rest.first() {
        let mut room = buffer.spare(1 + usize::from(first / 4));
        let read = &rest[..room.remaining_mut().min(rest.len())];
        assert!(!read.is_empty(), "no room");
        room.put_slice(read);
        rest = &rest[read.len()..];
        assert_eq!(buffer.filled(), read);
        let at = buffer.filled().as_ptr();
        let chunk = match first % 4 {
            0 => buffer.split(),
            1 => buffer.take(),
            2 => buffer.copy(),
            _ => buffer.next_chunk(0),
        };
        let payload_at = chunk.payload().as_ptr();
        assert!(
            payload_at == at || first % 4 == 2,
            "moved out of the buffer"
        );
        let message = chunk.seal(header);
        assert_eq!(message[..HEADER_LEN], header.to_bytes());
        assert_eq!(message[HEADER_LEN..].as_ptr(), payload_at, "moved to seal");
        messages.push((message, read));
    }
    for (message, read) in messages {
        assert_eq!(&message[HEADER_LEN..], read);
    }
}

/// Encodes in every form. All forms must give the same bytes.
fn encode(frame: Frame<&[u8]>) -> Bytes {
    let bytes = frame.to_bytes();
    let len = bytes.len();
    assert_eq!(len, frame.encoded_len());

    let mut slice = vec![0xee; len + 1];
    assert_eq!(frame.encode_to_slice(&mut slice), Ok(len));
    assert_eq!((&slice[..len], slice[len]), (&bytes[..], 0xee));
    let mut short = vec![0xee; len - 1];
    let too_small = BufferTooSmall {
        needed: len,
        available: len - 1,
    };
    assert_eq!(frame.encode_to_slice(&mut short), Err(too_small));
    assert!(short.iter().all(|&byte| byte == 0xee));

    if !matches!(frame, Frame::Window { .. }) {
        assert_eq!(Chunk::copied(frame.payload()).seal(frame.header()), bytes);
    }
    bytes
}

fn own(frame: Frame<&[u8]>) -> Frame {
    frame.map_payload(Bytes::copy_from_slice)
}
