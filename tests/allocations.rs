//! The number of allocations of the wire layer, counted by an allocator of its own.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

mod counting;

use std::hint::black_box;

use bytes::{BufMut, Bytes};
use counting::{Counts, counts};
use kohakuriver_tunnel::wire::{
    Chunk, ClientId, Frame, HEADER_LEN, HeadroomBuf, Kind, Proto, RawFrame,
};

const SIZES: [usize; 6] = [0, 1, 64, 1024, 64 * 1024, 1024 * 1024];

/// The allocations of `work`, and the size of the largest.
fn allocations<T>(work: impl FnOnce() -> T) -> (T, usize, usize) {
    let before = counts();
    let result = black_box(work());
    let Counts { calls, largest, .. } = counts() - before;
    (result, calls, largest)
}

fn none<T>(work: impl FnOnce() -> T) -> T {
    let (result, count, _) = allocations(work);
    assert_eq!(count, 0, "allocations");
    result
}

fn frames(size: usize) -> Vec<Frame> {
    let (proto, id) = (Proto::Tcp, ClientId(7));
    let payload = Bytes::from(vec![0x61; size]);
    let text = payload.clone();
    vec![
        Frame::Connect {
            proto,
            id,
            port: 80,
        },
        Frame::Connected { proto, id },
        Frame::Data {
            proto,
            id,
            payload: payload.clone(),
        },
        Frame::Close { proto, id },
        Frame::Error {
            proto,
            id,
            code: 0,
            text,
        },
        Frame::Ping {
            id,
            payload: payload.clone(),
        },
        Frame::Pong { id, payload },
        Frame::Window { id, credit: 1 },
        Frame::GoAway,
    ]
}

#[test]
fn the_counter_counts() {
    let (_, count, largest) = allocations(|| Vec::<u8>::with_capacity(100));
    assert_eq!((count, largest), (1, 100));
}

#[test]
fn decoding_a_slice_allocates_nothing() {
    for frame in SIZES.into_iter().flat_map(frames) {
        let message = frame.to_bytes();
        none(|| Frame::decode(&message[..]).unwrap());
        none(|| Frame::decode_strict(&message[..]).unwrap());
        none(|| RawFrame::new(&message[..]).unwrap().header().unwrap());
    }
}

#[test]
fn decoding_shared_bytes_allocates_nothing() {
    for frame in SIZES.into_iter().flat_map(frames) {
        // Both kinds of `Bytes`: one owns a vector, one shares a buffer.
        for message in [
            Bytes::from(Vec::from(frame.to_bytes())),
            frame.to_bytes().slice(..),
        ] {
            // The first `clone` shares the vector and allocates; decoding does not.
            let (first, second) = (message.clone(), message);
            let decoded = none(|| Frame::decode(first).unwrap());
            none(|| drop(decoded));
            none(|| Frame::decode_strict(second).unwrap());
        }
    }
}

#[test]
fn refusing_a_message_allocates_nothing() {
    for message in [
        &[][..],
        &[0xff; 8],
        &[3, 9, 0, 0, 0, 1, 0, 0],
        &[3, 0, 0, 0, 0, 0, 0, 0],
        &[8, 0, 0, 0, 0, 1, 0, 0, 1],
        &[4, 0, 0, 0, 0, 1, 0, 1],
        &[5, 0, 0, 0, 0, 1, 0, 1, 0xff],
    ] {
        let shared = Bytes::copy_from_slice(message);
        none(|| Frame::decode_strict(message).unwrap_err());
        none(|| Frame::decode_strict(shared).unwrap_err());
    }
}

#[test]
fn encoding_into_a_slice_allocates_nothing() {
    let mut out = vec![0; 2 * 1024 * 1024];
    for frame in SIZES.into_iter().flat_map(frames) {
        let written = none(|| frame.encode_to_slice(&mut out).unwrap());
        assert_eq!(written, frame.encoded_len());
        none(|| frame.encode(&mut &mut out[..]).unwrap());
        none(|| frame.encode_to_slice(&mut out[..7]).unwrap_err());
    }
}

#[test]
fn encoding_into_new_bytes_allocates_the_message_once() {
    for frame in SIZES.into_iter().flat_map(frames) {
        let (message, count, largest) = allocations(|| frame.to_bytes());
        assert_eq!(count, 1, "{frame:?}");
        assert_eq!(largest, message.len());
    }
}

#[test]
fn sealing_in_place_allocates_nothing_in_steady_state() {
    for size in SIZES {
        let read = vec![0x5a; size];
        let header = data_header();
        let mut buffer = HeadroomBuf::with_capacity(size);
        let cycle = |buffer: &mut HeadroomBuf| {
            buffer.spare(size).put_slice(&read);
            let message = buffer.split().seal(header);
            assert_eq!(message.len(), HEADER_LEN + size);
        };
        // The buffer, and its first sharing.
        cycle(&mut buffer);
        cycle(&mut buffer);
        none(|| (0..100).for_each(|_| cycle(&mut buffer)));
    }
}

#[test]
fn sealing_short_reads_in_place_allocates_nothing_in_steady_state() {
    // Reads of changing length, each at most half of the buffer, so that several share one
    // allocation.
    let capacity = 64 * 1024;
    let read = vec![0x5a; capacity];
    let mut buffer = HeadroomBuf::with_capacity(capacity);
    let cycle = |buffer: &mut HeadroomBuf, i: usize| {
        let len = 1 + i * 7919 % (capacity / 2);
        let mut room = buffer.spare(capacity);
        let len = len.min(room.remaining_mut());
        room.put_slice(&read[..len]);
        drop(buffer.split().seal(data_header()));
    };
    (0..10).for_each(|i| cycle(&mut buffer, i));
    none(|| (10..1000).for_each(|i| cycle(&mut buffer, i)));
}

#[test]
fn a_message_that_is_kept_costs_one_buffer_and_stays_whole() {
    let size = 1024;
    let mut buffer = HeadroomBuf::with_capacity(size);
    let mut kept = Vec::with_capacity(100);
    for byte in 0..100 {
        let (message, count, largest) = allocations(|| {
            buffer.spare(size).put_bytes(byte, size);
            buffer.split().seal(data_header())
        });
        // The buffer, and the record that shares it.
        assert!(count <= 2, "{count} allocations");
        assert!(largest <= HEADER_LEN + size, "{largest} bytes");
        kept.push(message);
    }
    for (byte, message) in (0..).zip(&kept) {
        assert!(message[HEADER_LEN..].iter().all(|&b| b == byte));
    }
}

#[test]
fn copying_a_small_read_allocates_just_its_size() {
    let mut buffer = HeadroomBuf::with_capacity(64 * 1024);
    buffer.spare(100).put_slice(&[1; 100]);
    let (message, count, largest) = allocations(|| buffer.copy().seal(data_header()));
    assert_eq!(message.len(), 108);
    assert_eq!((count, largest), (1, 108));
    none(|| buffer.spare(100).put_slice(&[2; 100]));

    let (message, count, largest) = allocations(|| Chunk::copied(b"hi").seal(data_header()));
    assert_eq!((message.len(), count, largest), (10, 1, 10));
}

fn data_header() -> kohakuriver_tunnel::wire::Header {
    kohakuriver_tunnel::wire::Header {
        kind: Kind::Data,
        proto: Proto::Tcp,
        id: ClientId(7),
        port: 0,
    }
}
