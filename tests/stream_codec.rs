//! `StreamCodec` and `MessageCodec` as tokio-util drives them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use kohakuriver_tunnel::codec::{CodecError, MessageCodec, StreamCodec};
use kohakuriver_tunnel::wire::{ClientId, DecodeError, Frame, Proto};
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::UdpSocket;
use tokio_util::codec::{Decoder, Encoder, FramedRead};
use tokio_util::udp::UdpFramed;

type Item = Result<Frame, DecodeError>;

fn data(payload: impl Into<Bytes>) -> Frame {
    Frame::Data {
        proto: Proto::Tcp,
        id: ClientId(1),
        payload: payload.into(),
    }
}

fn prefixed(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).unwrap();
    [&len.to_be_bytes(), message].concat()
}

/// Feeds `wire` in pieces and collects the items, as `FramedRead` does.
fn decode(
    codec: &mut StreamCodec,
    pieces: impl IntoIterator<Item = impl AsRef<[u8]>>,
) -> (Vec<Item>, Result<(), CodecError>) {
    let mut buffer = BytesMut::new();
    let mut items = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece.as_ref());
        loop {
            match codec.decode(&mut buffer) {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(error) => return (items, Err(error)),
            }
        }
    }
    loop {
        match codec.decode_eof(&mut buffer) {
            Ok(Some(item)) => items.push(item),
            Ok(None) => return (items, Ok(())),
            Err(error) => return (items, Err(error)),
        }
    }
}

#[test]
fn the_framing_is_a_big_endian_u32_and_the_message() {
    let mut wire = BytesMut::new();
    let frame = data("hi");
    StreamCodec::new().encode(frame, &mut wire).unwrap();
    StreamCodec::new()
        .encode(Bytes::from_static(b"ready-made"), &mut wire)
        .unwrap();
    let expected = b"\0\0\0\x0a\x03\0\0\0\0\x01\0\0hi\0\0\0\x0aready-made";
    assert_eq!(wire[..], expected[..]);
}

#[test]
fn the_default_cap_is_one_mebibyte_header_included() {
    let mut codec = StreamCodec::default();
    assert_eq!(codec.max_len(), 1_048_576);
    let mut wire = BytesMut::new();

    let longest = data(vec![7; 1_048_576 - 8]);
    codec.encode(longest.clone(), &mut wire).unwrap();
    assert_eq!(wire.len(), 4 + 1_048_576);
    assert_eq!(codec.decode(&mut wire).unwrap(), Some(Ok(longest)));

    let error = codec
        .encode(data(vec![7; 1_048_576 - 7]), &mut wire)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "message of 1048577 bytes is longer than the 1048576 bytes allowed"
    );
    assert!(wire.is_empty(), "nothing was written");
}

#[test]
fn a_length_over_the_cap_reserves_nothing_and_never_resynchronises() {
    for (len, max) in [(101_u32, 100), (u32::MAX, 100), (u32::MAX, 1 << 20)] {
        let mut codec = StreamCodec::with_max_len(max);
        let mut wire = BytesMut::new();
        wire.extend_from_slice(&len.to_be_bytes());
        for _ in 0..3 {
            let before = wire.capacity();
            match codec.decode(&mut wire) {
                Err(CodecError::TooLong { len: l, max: m }) => {
                    assert_eq!((l, m), (len as usize, max));
                }
                other => panic!("expected TooLong, got {other:?}"),
            }
            assert_eq!(wire.capacity(), before);
            // Would be a frame if the length were skipped.
            wire.extend_from_slice(&prefixed(&data("x").to_bytes()));
        }
        assert!(matches!(
            codec.decode_eof(&mut wire),
            Err(CodecError::TooLong { .. })
        ));
    }
}

#[test]
fn an_announced_message_that_never_comes_reserves_little() {
    let mut codec = StreamCodec::with_max_len(1 << 30);
    let mut wire = BytesMut::from(&(1_u32 << 30).to_be_bytes()[..]);
    assert!(codec.decode(&mut wire).unwrap().is_none());
    assert!(wire.capacity() < 9 * 1024, "{}", wire.capacity());
}

#[test]
fn the_decoder_never_makes_room_for_more_than_one_message_at_the_cap() {
    let cap = 100_000;
    let mut codec = StreamCodec::with_max_len(cap);
    let sizes = (0..cap - 8).step_by(997).flat_map(|size| [size, 5]);
    let wire: Vec<u8> = sizes
        .flat_map(|size| prefixed(&data(vec![7; size]).to_bytes()))
        .collect();
    let mut buffer = BytesMut::with_capacity(1500);
    let (mut rest, mut items, mut moved) = (&wire[..], 0, 0);
    while !rest.is_empty() {
        // Into the available room, as a read does.
        let spare = buffer.capacity() - buffer.len();
        let (piece, later) = rest.split_at(rest.len().min(spare).min(1499));
        assert!(!piece.is_empty(), "the decoder made no room");
        buffer.extend_from_slice(piece);
        rest = later;
        let start = buffer.as_ptr();
        while codec.decode(&mut buffer).unwrap().is_some() {
            items += 1;
        }
        assert!(buffer.capacity() <= 4 + cap);
        if start != buffer.as_ptr() {
            moved += buffer.len();
        }
        if buffer.len() < 4 {
            buffer.reserve(4);
        }
    }
    assert_eq!(items, 2 * (cap - 8).div_ceil(997));
    assert!(moved < 3 * wire.len(), "moved {moved} of {}", wire.len());
}

#[test]
fn truncation_tells_how_much_is_missing() {
    let wire = prefixed(&data("hello").to_bytes());
    for end in 1..wire.len() {
        let (items, result) = decode(&mut StreamCodec::new(), [&wire[..end]]);
        assert_eq!(items, []);
        let expected = if end < 4 { 4 - end } else { wire.len() - end };
        match result {
            Err(CodecError::Truncated { missing }) => assert_eq!(missing, expected),
            other => panic!("cut at {end}: expected Truncated, got {other:?}"),
        }
    }
    let (_, result) = decode(&mut StreamCodec::new(), [&wire[..10]]);
    assert_eq!(
        result.unwrap_err().to_string(),
        "stream ended inside a message, 7 bytes short"
    );
    let (items, result) = decode(&mut StreamCodec::new(), [[]; 0]);
    assert!(items.is_empty() && result.is_ok(), "an empty stream is one");
}

#[test]
fn a_caller_may_take_a_malformed_message_for_the_end() {
    fn frame(item: Item) -> Result<Frame, CodecError> {
        Ok(item?)
    }
    let error = frame(Err(DecodeError::UnknownKind(0x7f))).unwrap_err();
    assert_eq!(error.to_string(), "unknown message type 0x7f");
}

/// Messages, some of them malformed.
fn message() -> impl Strategy<Value = Bytes> {
    let payload = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        1 => (4000_usize..12_000).prop_map(|len| vec![7; len]),
    ];
    prop_oneof![
        3 => payload.prop_map(|payload| data(payload).to_bytes()),
        1 => (1_u32.., any::<u16>()).prop_map(|(id, port)| {
            let (proto, id) = (Proto::Udp, ClientId(id));
            Frame::<Bytes>::Connect { proto, id, port }.to_bytes()
        }),
        2 => prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from),
    ]
}

/// `wire` cut at each of `cuts`.
fn pieces<'a>(wire: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
    cuts.extend([0, wire.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|w| &wire[w[0]..w[1]]).collect()
}

proptest! {
    #[test]
    fn any_split_of_the_bytes_gives_the_same_frames(
        messages in prop::collection::vec(message(), 0..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        tail in 0_usize..30,
    ) {
        let mut codec = StreamCodec::with_max_len(20_000);
        let mut wire = BytesMut::new();
        for message in &messages {
            codec.encode(message.clone(), &mut wire).unwrap();
        }
        // The beginning of another message.
        let last = prefixed(&data(vec![0; 20]).to_bytes());
        let tail = tail.min(last.len() - 1);
        wire.extend_from_slice(&last[..tail]);

        let (items, result) = decode(&mut codec, pieces(&wire, &cuts));
        let expected: Vec<Item> = messages.into_iter().map(Frame::decode).collect();
        prop_assert_eq!(items, expected);
        match result {
            Ok(()) => prop_assert_eq!(tail, 0),
            Err(CodecError::Truncated { missing }) => {
                let expected = if tail < 4 { 4 - tail } else { last.len() - tail };
                prop_assert_eq!((tail > 0, missing), (true, expected));
            }
            Err(other) => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn any_bytes_split_anyhow_give_what_they_give_in_one_piece(
        wire in prop::collection::vec(prop_oneof![4 => Just(0), 1 => 0_u8..12], 0..200),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut codec = StreamCodec::with_max_len(300);
        let (whole, at_once) = decode(&mut codec, [&wire]);
        let (split, in_parts) = decode(&mut codec, pieces(&wire, &cuts));
        prop_assert_eq!(whole, split);
        prop_assert_eq!(format!("{at_once:?}"), format!("{in_parts:?}"));
    }
}

/// A reader that returns one byte at a time.
struct Trickle<R>(R);

impl<R: AsyncRead + Unpin> AsyncRead for Trickle<R> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let mut one = [0];
        let mut byte = ReadBuf::new(&mut one);
        std::task::ready!(std::pin::Pin::new(&mut self.0).poll_read(cx, &mut byte))?;
        buf.put_slice(byte.filled());
        std::task::Poll::Ready(Ok(()))
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, future).await.unwrap()
}

#[tokio::test]
async fn framed_read_goes_on_after_a_malformed_message_and_ends_after_truncation() {
    let (mut near, far) = tokio::io::duplex(7);
    let wire = [
        prefixed(&data("one").to_bytes()),
        prefixed(b""),
        prefixed(b"no frame"),
        prefixed(&data("two").to_bytes()),
        vec![0, 0, 0, 10, 3],
    ]
    .concat();
    let writer = tokio::spawn(async move { near.write_all(&wire).await });

    let mut frames = FramedRead::new(Trickle(far), StreamCodec::new());
    assert_eq!(soon(frames.next()).await.unwrap().unwrap(), Ok(data("one")));
    assert_eq!(
        soon(frames.next()).await.unwrap().unwrap(),
        Err(DecodeError::Truncated { len: 0 })
    );
    assert_eq!(
        soon(frames.next()).await.unwrap().unwrap(),
        Err(DecodeError::UnknownKind(b'n'))
    );
    assert_eq!(soon(frames.next()).await.unwrap().unwrap(), Ok(data("two")));
    assert!(matches!(
        soon(frames.next()).await,
        Some(Err(CodecError::Truncated { missing: 9 }))
    ));
    assert!(soon(frames.next()).await.is_none());
    soon(writer).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_empty_or_malformed_datagram_is_an_item_and_the_next_one_arrives() {
    let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    let (near, far) = (bind().await.unwrap(), bind().await.unwrap());
    let from = near.local_addr().unwrap();
    let to = far.local_addr().unwrap();
    let mut near = UdpFramed::new(near, MessageCodec::new());
    let mut far = UdpFramed::new(far, MessageCodec::new());

    let large = data(vec![7; 60_000]);
    let sent = [
        (Bytes::new(), Err(DecodeError::Truncated { len: 0 })),
        (data("").to_bytes(), Ok(data(""))),
        (Bytes::new(), Err(DecodeError::Truncated { len: 0 })),
        (Bytes::new(), Err(DecodeError::Truncated { len: 0 })),
        ("no frame".into(), Err(DecodeError::UnknownKind(b'n'))),
        (large.to_bytes(), Ok(large.clone())),
        (data("last").to_bytes(), Ok(data("last"))),
    ];
    for (message, expected) in sent {
        soon(near.send((message, to))).await.unwrap();
        let (item, address) = soon(far.next()).await.unwrap().unwrap();
        assert_eq!((item, address), (expected, from));
    }
    soon(near.send((large.clone(), to))).await.unwrap();
    let (item, _) = soon(far.next()).await.unwrap().unwrap();
    assert_eq!(item, Ok(large));
}
