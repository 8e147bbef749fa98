//! `StreamCodec` under arbitrary chunking, against a parser that sees all bytes at once.
//!
//! Input: one byte that chooses the cap, one byte for the number of chunk sizes, the chunk sizes,
//! then the bytes on the wire. Needs `bytes` and `tokio-util` with `codec`.

use bytes::{BufMut, Bytes, BytesMut};
use kohakuriver_tunnel::codec::{CodecError, StreamCodec};
use kohakuriver_tunnel::wire::{DecodeError, Frame};
use tokio_util::codec::{Decoder, Encoder};

type Item = Result<Frame, DecodeError>;

/// How a stream ends: well, with that many bytes missing, or with a length over the cap.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Clean,
    Truncated(usize),
    TooLong(usize),
}

/// For any chunks the frames equal those of the reference parser, and the decoder never makes room
/// for more than one message at the cap.
pub fn stream_codec(data: &[u8]) {
    let Some((&[cap, sizes], rest)) = data.split_first_chunk() else {
        return;
    };
    // Below and above the 4 KiB up to which payloads are copied, and beyond the first read.
    let cap = match cap {
        128.. => 20_000,
        _ => [16, 64, 300, 5000][usize::from(cap % 4)],
    };
    let (sizes, wire) = rest.split_at(usize::from(sizes).min(rest.len()));

    let (items, end) = decode(cap, sizes, wire);
    let (expected, expected_end) = reference(cap, wire);
    assert_eq!(items, expected);
    assert_eq!(end, expected_end);

    // Decoded messages encode to the same bytes, except for reserved fields, which decode as zero.
    let mut again = BytesMut::new();
    let frames: Vec<Frame> = items.into_iter().flatten().collect();
    let mut codec = StreamCodec::with_max_len(cap);
    for frame in &frames {
        codec
            .encode(frame.clone(), &mut again)
            .expect("within the cap");
    }
    let (items, end) = decode(cap, sizes, &again);
    assert_eq!(end, End::Clean);
    assert!(items.into_iter().map(Result::unwrap).eq(frames));
}

fn decode(cap: usize, sizes: &[u8], mut wire: &[u8]) -> (Vec<Item>, End) {
    let mut codec = StreamCodec::with_max_len(cap);
    let mut sizes = sizes.iter().cycle();
    let mut buffer = BytesMut::new();
    let mut items = Vec::new();
    let mut allowed = 4 + cap;
    while !wire.is_empty() {
        if buffer.capacity() == buffer.len() {
            // The room of a reader: at most the bytes buffered and 64 more.
            let mut roomier = BytesMut::with_capacity(buffer.len() + 64);
            roomier.put_slice(&buffer);
            buffer = roomier;
            allowed = allowed.max(buffer.capacity());
        }
        let size = sizes
            .next()
            .map_or(usize::MAX, |&size| usize::from(size) + 1);
        let spare = buffer.capacity() - buffer.len();
        let (chunk, later) = wire.split_at(size.min(spare).min(wire.len()));
        buffer.put_slice(chunk);
        wire = later;
        loop {
            let item = codec.decode(&mut buffer);
            assert!(
                buffer.capacity() <= allowed,
                "{} bytes of room",
                buffer.capacity()
            );
            match item {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(error) => return (items, end(error, cap)),
            }
        }
    }
    match codec.decode_eof(&mut buffer) {
        Ok(None) => (items, End::Clean),
        Ok(Some(item)) => panic!("{item:?} was there before the end"),
        Err(error) => (items, end(error, cap)),
    }
}

fn end(error: CodecError, cap: usize) -> End {
    match error {
        CodecError::Truncated { missing } => End::Truncated(missing),
        CodecError::TooLong { len, max } => {
            assert_eq!(max, cap);
            End::TooLong(len)
        }
        other => panic!("{other}"),
    }
}

fn reference(cap: usize, mut wire: &[u8]) -> (Vec<Item>, End) {
    let mut items = Vec::new();
    loop {
        let Some((prefix, rest)) = wire.split_first_chunk() else {
            let end = match wire.len() {
                0 => End::Clean,
                have => End::Truncated(4 - have),
            };
            return (items, end);
        };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > cap {
            return (items, End::TooLong(len));
        }
        let Some((message, rest)) = rest.split_at_checked(len) else {
            return (items, End::Truncated(len - rest.len()));
        };
        items.push(Frame::decode(Bytes::copy_from_slice(message)));
        wire = rest;
    }
}
