//! Throughput of the wire layer per payload size, beside `memcpy` of the same number of bytes in
//! the same run.
//!
//! `cargo bench --bench codec`. Decoding does not touch the payload, so its throughput grows with
//! the payload without bound. Encoding into a slice, copying and filling a buffer cannot be faster
//! than `memcpy`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

use std::hint::black_box;

use bytes::{BufMut, Bytes};
use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use kohakuriver_tunnel::wire::{Chunk, ClientId, Frame, HEADER_LEN, HeadroomBuf, Proto};

const SIZES: [usize; 5] = [0, 64, 1024, 16 * 1024, 64 * 1024];

type Take = fn(&mut HeadroomBuf) -> Chunk;

fn data<P>(payload: P) -> Frame<P> {
    Frame::Data {
        proto: Proto::Tcp,
        id: ClientId(7),
        payload,
    }
}

/// Counts whole messages, because an empty payload has a header too.
fn per_size(
    criterion: &mut Criterion,
    name: &str,
    bench: impl Fn(&mut BenchmarkGroup<'_, WallTime>, usize, &[u8]),
) {
    let mut group = criterion.benchmark_group(name);
    for size in SIZES {
        let payload = vec![0x5a; size];
        group.throughput(Throughput::Bytes((HEADER_LEN + size) as u64));
        let message = vec![0x5a; HEADER_LEN + size];
        let mut copy = message.clone();
        group.bench_function(BenchmarkId::new("memcpy", size), |bencher| {
            bencher.iter(|| black_box(&mut copy[..]).copy_from_slice(black_box(&message)));
        });
        bench(&mut group, size, &payload);
    }
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    per_size(criterion, "decode", |group, size, payload| {
        let message = data(payload).to_bytes();
        group.bench_function(BenchmarkId::new("borrowed", size), |bencher| {
            bencher.iter(|| Frame::decode(black_box(&message[..])).unwrap());
        });
        group.bench_function(BenchmarkId::new("shared", size), |bencher| {
            bencher.iter(|| Frame::decode(black_box(message.clone())).unwrap());
        });
        group.bench_function(BenchmarkId::new("strict", size), |bencher| {
            bencher.iter(|| Frame::decode_strict(black_box(&message[..])).unwrap());
        });
    });
}

fn encode(criterion: &mut Criterion) {
    per_size(criterion, "encode", |group, size, payload| {
        let frame = data(payload);
        let mut out = vec![0; frame.encoded_len()];
        group.bench_function(BenchmarkId::new("slice", size), |bencher| {
            bencher.iter(|| black_box(&frame).encode_to_slice(black_box(&mut out)));
        });
        group.bench_function(BenchmarkId::new("to_bytes", size), |bencher| {
            bencher.iter(|| black_box(&frame).to_bytes());
        });
        let header = frame.header();
        let shared = Bytes::copy_from_slice(payload);
        group.bench_function(BenchmarkId::new("seal_shared", size), |bencher| {
            bencher.iter(|| Chunk::from(black_box(shared.clone())).seal(header));
        });
    });
}

/// Reads into the buffer, takes the bytes out, and makes a message. `memcpy` stands in for the
/// socket.
fn headroom(criterion: &mut Criterion) {
    let takes: [(_, Take); 3] = [
        ("split", HeadroomBuf::split),
        ("take", HeadroomBuf::take),
        ("copy", HeadroomBuf::copy),
    ];
    per_size(criterion, "headroom", |group, size, payload| {
        let header = data(payload).header();
        for (name, take) in takes {
            let mut buffer = HeadroomBuf::with_capacity(size);
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| {
                    buffer.spare(size).put_slice(black_box(payload));
                    take(&mut buffer).seal(header)
                });
            });
        }
    });
}

criterion_group!(benches, decode, encode, headroom);
criterion_main!(benches);
