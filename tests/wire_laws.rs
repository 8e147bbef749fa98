//! The laws of the wire format (see the documentation of `wire`) as properties.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

use bytes::{BufMut, Bytes, BytesMut};
use kohakuriver_tunnel::wire::{
    BufferTooSmall, Chunk, ClientId, DecodeError, Frame, HEADER_LEN, Header, HeadroomBuf, Kind,
    Proto, RawFrame,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

fn proto() -> impl Strategy<Value = Proto> {
    select(vec![Proto::Tcp, Proto::Udp])
}

fn id() -> impl Strategy<Value = ClientId> {
    prop_oneof![Just(1), Just(u32::MAX), 1..=u32::MAX].prop_map(ClientId)
}

fn any_id() -> impl Strategy<Value = ClientId> {
    prop_oneof![Just(ClientId::KEEPALIVE), id()]
}

fn payload() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        4 => vec(any::<u8>(), 0..64),
        1 => vec(any::<u8>(), 0..5000),
    ]
    .prop_map(Bytes::from)
}

fn header() -> impl Strategy<Value = Header> {
    (select(Kind::ALL), proto(), any_id(), any::<u16>()).prop_map(|(kind, proto, id, port)| {
        Header {
            kind,
            proto,
            id,
            port,
        }
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    let text = prop_oneof![
        3 => any::<String>().prop_map(Bytes::from),
        1 => payload(),
    ];
    prop_oneof![
        1 => (proto(), id(), any::<u16>()).prop_map(|(proto, id, port)| Frame::Connect {
            proto,
            id,
            port
        }),
        1 => (proto(), id()).prop_map(|(proto, id)| Frame::Connected { proto, id }),
        4 => (proto(), id(), payload())
            .prop_map(|(proto, id, payload)| Frame::Data { proto, id, payload }),
        1 => (proto(), id()).prop_map(|(proto, id)| Frame::Close { proto, id }),
        2 => (proto(), id(), any::<u16>(), text).prop_map(|(proto, id, code, text)| {
            Frame::Error { proto, id, code, text }
        }),
        1 => (any_id(), payload()).prop_map(|(id, payload)| Frame::Ping { id, payload }),
        1 => (any_id(), payload()).prop_map(|(id, payload)| Frame::Pong { id, payload }),
        1 => (id(), any::<u32>()).prop_map(|(id, credit)| Frame::Window { id, credit }),
        1 => Just(Frame::GoAway),
    ]
}

/// Bytes that are often a message: noise, noise after a plausible header, and slightly changed
/// messages.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let plausible = (
        0..=10u8,
        0..=2u8,
        any_id(),
        prop_oneof![Just(0), any::<u16>()],
        vec(any::<u8>(), 0..16),
    )
        .prop_map(|(kind, proto, ClientId(id), port, payload)| {
            let mut message = vec![kind, proto];
            message.put_u32(id);
            message.put_u16(port);
            message.extend(payload);
            message
        });
    let bent = (frame(), any::<Index>(), any::<u8>(), any::<Index>()).prop_map(
        |(frame, at, byte, cut)| {
            let mut message = Vec::from(frame.to_bytes());
            let at = at.index(message.len());
            message[at] ^= byte;
            message.truncate(cut.index(4 * message.len()));
            message
        },
    );
    prop_oneof![vec(any::<u8>(), 0..32), plausible, bent]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    // Law 1.

    #[test]
    fn raw_view_gives_back_what_it_got(bytes in vec(any::<u8>(), 0..64)) {
        match RawFrame::new(bytes.clone()) {
            Ok(raw) => {
                prop_assert!(bytes.len() >= HEADER_LEN);
                prop_assert_eq!(raw.into_inner(), bytes);
            }
            Err(error) => {
                prop_assert!(bytes.len() < HEADER_LEN);
                prop_assert_eq!(error, DecodeError::Truncated { len: bytes.len() });
            }
        }
    }

    #[test]
    fn raw_view_rewrites_the_id_and_nothing_else(
        bytes in vec(any::<u8>(), HEADER_LEN..64),
        id in any_id(),
    ) {
        let mut raw = RawFrame::new(bytes.clone()).unwrap();
        let old = raw.id();
        raw.set_id(id);
        prop_assert_eq!(raw.id(), id);
        let changed = raw.into_inner();
        prop_assert_eq!(&changed[..2], &bytes[..2]);
        prop_assert_eq!(&changed[2..6], &id.0.to_be_bytes()[..]);
        prop_assert_eq!(&changed[6..], &bytes[6..]);
        let mut raw = RawFrame::new(changed).unwrap();
        raw.set_id(old);
        prop_assert_eq!(raw.into_inner(), bytes);
    }

    #[test]
    fn raw_view_and_frame_see_the_same(message in message()) {
        let (Ok(raw), Ok(frame)) = (RawFrame::new(&message[..]), Frame::decode(&message[..])) else {
            return Ok(());
        };
        let header = raw.header().unwrap();
        prop_assert_eq!(frame.kind(), header.kind);
        prop_assert_eq!(header.to_bytes(), raw.header_bytes());
        prop_assert_eq!(Frame::from_parts(header, raw.payload()), Ok(frame));
    }

    // Law 2.

    #[test]
    fn header_round_trips(header in header()) {
        prop_assert_eq!(Header::from_bytes(header.to_bytes()), Ok(header));
    }

    #[test]
    fn header_bytes_round_trip(
        bytes in any::<[u8; HEADER_LEN]>(),
        kind in 0..=10u8,
        proto in 0..=2u8,
    ) {
        let [_, _, rest @ ..] = bytes;
        let [i0, i1, i2, i3, p0, p1] = rest;
        for bytes in [bytes, [kind, proto, i0, i1, i2, i3, p0, p1]] {
            match Header::from_bytes(bytes) {
                Ok(header) => prop_assert_eq!(header.to_bytes(), bytes),
                Err(DecodeError::UnknownKind(kind)) => {
                    prop_assert_eq!(kind, bytes[0]);
                    prop_assert!(!(1..=9).contains(&kind));
                }
                Err(DecodeError::UnknownProto(proto)) => {
                    prop_assert_eq!(proto, bytes[1]);
                    prop_assert!(proto > 1);
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }

    #[test]
    fn frame_round_trips_through_every_form(frame in frame(), extra in 0..4usize) {
        let message = frame.to_bytes();
        prop_assert_eq!(message.len(), frame.encoded_len());
        prop_assert_eq!(Frame::decode(message.clone()), Ok(frame.clone()));
        let borrowed = Frame::decode(&message[..]).unwrap();
        prop_assert_eq!(&borrowed.map_payload(Bytes::copy_from_slice), &frame);

        let mut slice = vec![0xee; message.len() + extra];
        prop_assert_eq!(frame.encode_to_slice(&mut slice), Ok(message.len()));
        prop_assert_eq!(&slice[..message.len()], &message[..]);
        prop_assert!(slice[message.len()..].iter().all(|&byte| byte == 0xee));

        let mut appended = BytesMut::from(&b"before"[..]);
        frame.encode(&mut appended).unwrap();
        prop_assert_eq!(&appended[6..], &message[..]);

        if !matches!(frame, Frame::Window { .. }) {
            let sealed = Chunk::from(frame.payload()).seal(frame.header());
            prop_assert_eq!(&sealed, &message);
            let shared = Bytes::copy_from_slice(frame.payload());
            prop_assert_eq!(Chunk::from(shared).seal(frame.header()), message);
        }
    }

    #[test]
    fn too_small_a_destination_stays_untouched(frame in frame(), room in any::<Index>()) {
        let needed = frame.encoded_len();
        let available = room.index(needed);
        let too_small = Err(BufferTooSmall { needed, available });
        let mut slice = vec![0xee; available];
        prop_assert_eq!(frame.encode_to_slice(&mut slice).map(|_| ()), too_small);
        prop_assert!(slice.iter().all(|&byte| byte == 0xee));
        prop_assert_eq!(frame.encode(&mut &mut slice[..]), too_small);
        prop_assert!(slice.iter().all(|&byte| byte == 0xee));
        let mut limited = Vec::new().limit(available);
        prop_assert_eq!(frame.encode(&mut limited), too_small);
        prop_assert!(limited.into_inner().is_empty());
    }

    // Laws 3 and 4.

    #[test]
    fn strict_decoding_is_a_bijection(message in message()) {
        let Ok(frame) = Frame::decode_strict(&message[..]) else {
            return Ok(());
        };
        prop_assert_eq!(frame.to_bytes(), &message[..]);
        prop_assert_eq!(Frame::decode(&message[..]), Ok(frame));
    }

    #[test]
    fn strict_decoding_takes_what_was_encoded(frame in frame()) {
        let message = frame.to_bytes();
        match Frame::decode_strict(message) {
            Ok(again) => prop_assert_eq!(again, frame),
            Err(DecodeError::InvalidUtf8 { valid_up_to }) => {
                prop_assert_eq!(frame.kind(), Kind::Error);
                let error = std::str::from_utf8(frame.payload()).unwrap_err();
                prop_assert_eq!(error.valid_up_to(), valid_up_to);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn lenient_decoding_has_a_fixed_point(message in message()) {
        let strict = Frame::decode_strict(&message[..]);
        let frame = match Frame::decode(&message[..]) {
            Ok(frame) => frame,
            // Messages that both decoders refuse, they refuse for the same reason.
            Err(error) => {
                prop_assert_eq!(strict, Err(error));
                return Ok(());
            }
        };
        let once = frame.to_bytes();
        prop_assert!(once.len() <= message.len());
        prop_assert_eq!(Frame::decode(&once[..]), Ok(frame));
        prop_assert_eq!(Frame::decode(&once[..]).unwrap().to_bytes(), once.clone());
        // Strict decoding refuses exactly what encoding would change, and ERROR text that is not
        // UTF-8.
        match strict {
            Ok(_) => prop_assert_eq!(&once[..], &message[..]),
            Err(DecodeError::InvalidUtf8 { .. }) => {}
            Err(_) => prop_assert_ne!(&once[..], &message[..]),
        }
    }

    #[test]
    fn every_view_agrees_on_any_bytes(message in message()) {
        let bytes = Bytes::from(message.clone());
        let own = |frame: Frame<&[u8]>| frame.map_payload(Bytes::copy_from_slice);
        prop_assert_eq!(Frame::decode(&message[..]).map(own), Frame::decode(bytes.clone()));
        prop_assert_eq!(Frame::decode_strict(&message[..]).map(own), Frame::decode_strict(bytes));
    }

    #[test]
    fn errors_name_the_offending_value(message in message()) {
        let Err(error) = Frame::decode_strict(&message[..]) else {
            return Ok(());
        };
        let text = error.to_string();
        let raw = RawFrame::new(&message[..]);
        let value = match error {
            DecodeError::Truncated { .. } => message.len().to_string(),
            DecodeError::UnknownKind(_) => format!("0x{:02x}", message[0]),
            DecodeError::UnknownProto(_) | DecodeError::ReservedProto(_) => {
                format!("0x{:02x}", message[1])
            }
            DecodeError::ZeroId(_) => raw.unwrap().header().unwrap().kind.to_string(),
            DecodeError::ReservedPort { .. } => format!("0x{:04x}", raw.unwrap().port()),
            DecodeError::ReservedId { .. } => format!("0x{:08x}", raw.unwrap().id().0),
            DecodeError::WindowLength { .. } | DecodeError::ReservedPayload { .. } => {
                (message.len() - HEADER_LEN).to_string()
            }
            DecodeError::InvalidUtf8 { .. } => {
                std::str::from_utf8(&message[HEADER_LEN..]).unwrap_err().valid_up_to().to_string()
            }
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        prop_assert!(text.contains(&value), "{:?} lacks {:?}", text, value);
    }

    // Law 5.

    #[test]
    fn shared_decoding_points_into_the_message(frame in frame()) {
        let message = frame.to_bytes();
        let decoded = Frame::decode(message.clone()).unwrap();
        if !decoded.payload().is_empty() {
            prop_assert_eq!(decoded.payload().as_ptr(), message[HEADER_LEN..].as_ptr());
        }
        if let Ok(strict) = Frame::decode_strict(message.clone()) {
            let payload = strict.payload();
            let start = message[HEADER_LEN..].as_ptr();
            prop_assert!(payload.is_empty() || payload.as_ptr() == start);
        }
        let borrowed = Frame::decode(&message[..]).unwrap();
        let payload = borrowed.payload();
        let start = message[HEADER_LEN..].as_ptr();
        prop_assert!(payload.is_empty() || payload.as_ptr() == start);
    }

    #[test]
    fn sealing_behind_headroom_moves_nothing(
        reads in vec((vec(any::<u8>(), 1..300), 0..3u8), 1..20),
        capacity in 0..400usize,
        header in header(),
    ) {
        let mut buffer = HeadroomBuf::with_capacity(capacity);
        let mut pinned = Vec::new();
        for (read, how) in reads {
            let room = buffer.spare(read.len());
            prop_assert!(room.has_remaining_mut());
            let read = &read[..room.remaining_mut().min(read.len())];
            let mut room = room;
            room.put_slice(read);
            prop_assert_eq!(buffer.filled(), read);
            let at = buffer.filled().as_ptr();
            let chunk = match how {
                0 => buffer.split(),
                1 => buffer.take(),
                _ => buffer.copy(),
            };
            prop_assert_eq!(chunk.payload(), read);
            prop_assert_eq!(chunk.payload().as_ptr() == at, how != 2);
            let payload_at = chunk.payload().as_ptr();
            prop_assert!(buffer.filled().is_empty());
            let message = chunk.seal(header);
            prop_assert_eq!(&message[..HEADER_LEN], &header.to_bytes()[..]);
            prop_assert_eq!(&message[HEADER_LEN..], read);
            prop_assert_eq!(message[HEADER_LEN..].as_ptr(), payload_at);
            pinned.push((message, read.to_vec()));
        }
        // Later reads went into other memory.
        for (message, read) in pinned {
            prop_assert_eq!(&message[HEADER_LEN..], &read[..]);
        }
    }

    #[test]
    fn reads_add_up_in_one_chunk(
        reads in vec(vec(any::<u8>(), 0..100), 0..10),
        capacity in 0..400usize,
        copy_max in 0..400usize,
    ) {
        let mut buffer = HeadroomBuf::with_capacity(capacity);
        let mut expected = Vec::new();
        for read in reads {
            let mut room = buffer.spare(read.len());
            prop_assert!(read.is_empty() || room.has_remaining_mut());
            let read = &read[..room.remaining_mut().min(read.len())];
            room.put_slice(read);
            expected.extend_from_slice(read);
            prop_assert_eq!(buffer.filled(), &expected[..]);
        }
        prop_assert_eq!(buffer.next_chunk(copy_max).into_payload(), expected);
    }

    #[test]
    fn split_chunk_keeps_order_and_place(
        payload in vec(any::<u8>(), 0..300),
        cuts in vec(0..120usize, 0..5),
        header in header(),
    ) {
        let mut rest = Chunk::copied(&payload);
        let mut together = Vec::new();
        for (i, cut) in cuts.into_iter().enumerate() {
            let at = rest.payload().as_ptr();
            let front = rest.split_to(cut);
            prop_assert_eq!(front.len(), cut.min(payload.len() - together.len()));
            prop_assert_eq!(front.is_empty(), front.payload().is_empty());
            prop_assert!(front.is_empty() || front.payload().as_ptr() == at);
            let piece = front.payload().to_vec();
            let message = front.seal(header);
            prop_assert_eq!(&message[HEADER_LEN..], &piece[..]);
            prop_assert!(i > 0 || piece.is_empty() || message[HEADER_LEN..].as_ptr() == at);
            together.extend(piece);
        }
        together.extend_from_slice(&rest.into_payload());
        prop_assert_eq!(together, payload);
    }

    #[test]
    fn appending_never_moves_the_payload(
        payload in vec(any::<u8>(), 0..50),
        room in 0..100usize,
        more in vec(vec(any::<u8>(), 0..60), 0..6),
    ) {
        let mut chunk = Chunk::copied_with_room(&payload, room);
        let at = chunk.payload().as_ptr();
        let mut expected = payload;
        for part in more {
            let taken = chunk.append(&part);
            prop_assert!(taken <= part.len());
            expected.extend_from_slice(&part[..taken]);
            prop_assert_eq!(chunk.payload(), &expected[..]);
            prop_assert_eq!(chunk.payload().as_ptr(), at);
        }
        prop_assert!(Chunk::from(Bytes::from(expected)).append(b"more") == 0);
    }
}

#[test]
fn untouched_headroom_seals_to_an_empty_message() {
    for take in [HeadroomBuf::split, HeadroomBuf::take, HeadroomBuf::copy] {
        let mut buffer = HeadroomBuf::with_capacity(16);
        let header = Frame::<Bytes>::GoAway.header();
        assert_eq!(take(&mut buffer).seal(header), header.to_bytes()[..]);
        assert!(take(&mut buffer).into_payload().is_empty());
    }
}
