//! The session alone: two ends joined by a loop, no I/O, no runtime.
//!
//! `cargo bench --bench session`. Each figure counts both ends: send, transmit, receive and read.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

use std::hint::black_box;
use std::time::Duration;

use bytes::BufMut;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kohakuriver_tunnel::session::{
    Config, Event, Instant, Recv, Role, Session, StreamId, Transmit, Version,
};
use kohakuriver_tunnel::wire::HeadroomBuf;

/// Two sessions and a clock that ticks with every message.
struct Pair {
    opener: Session,
    acceptor: Session,
    micros: u64,
}

impl Pair {
    fn new() -> Self {
        let end = |role| Session::new(role, Version::V2, Config::default(), Instant::default());
        Self {
            opener: end(Role::Opener),
            acceptor: end(Role::Acceptor),
            micros: 0,
        }
    }

    /// Delivers everything that either end has to send. Skips the acceptor's events.
    fn exchange(&mut self) {
        loop {
            self.micros += 1;
            let now = Instant::from_micros(self.micros);
            let mut silent = true;
            while let Some(Transmit::Message(message)) = self.opener.poll_transmit(now) {
                self.acceptor.handle_message(now, message).unwrap();
                silent = false;
            }
            while let Some(Transmit::Message(message)) = self.acceptor.poll_transmit(now) {
                self.opener.handle_message(now, message).unwrap();
                silent = false;
            }
            if silent {
                return;
            }
        }
    }

    /// One stream, by the handles of both ends.
    fn open(&mut self) -> (StreamId, StreamId) {
        let now = Instant::from_micros(self.micros);
        let near = self.opener.open_tcp(80, now).unwrap();
        self.exchange();
        let far = loop {
            if let Some(Event::Incoming { stream, .. }) = self.acceptor.poll_event() {
                break stream;
            }
        };
        self.acceptor.accept(far, now).unwrap();
        self.exchange();
        while self.opener.poll_event().is_some() {}
        (near, far)
    }

    /// Reads what has arrived and returns the credit.
    fn read(&mut self, far: StreamId) -> usize {
        let now = Instant::from_micros(self.micros);
        let mut len = 0;
        while let Ok(Recv::Data(bytes)) = self.acceptor.recv(far, now) {
            len += black_box(bytes).len();
        }
        while self.acceptor.poll_event().is_some() {}
        len
    }
}

fn messages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("session/message");
    for len in [64, 1 << 10, 16 << 10, 64 << 10] {
        group.throughput(Throughput::Bytes(len as u64));
        let payload = vec![7; len];
        group.bench_function(BenchmarkId::new("copied", len), |bencher| {
            let mut pair = Pair::new();
            let (near, far) = pair.open();
            bencher.iter(|| {
                assert_eq!(pair.opener.send_slice(near, &payload).unwrap(), len);
                pair.exchange();
                assert_eq!(pair.read(far), len);
                pair.exchange();
            });
        });
        group.bench_function(BenchmarkId::new("behind headroom", len), |bencher| {
            let mut pair = Pair::new();
            let (near, far) = pair.open();
            let mut buffer = HeadroomBuf::with_capacity(256 << 10);
            bencher.iter(|| {
                // Filled as reads from a socket would fill it, which use up the rest of a buffer
                // first.
                let mut rest = &payload[..];
                while !rest.is_empty() {
                    let mut spare = buffer.spare(rest.len());
                    let (piece, left) = rest.split_at(spare.remaining_mut());
                    spare.put_slice(piece);
                    rest = left;
                    pair.opener.send(near, buffer.next_chunk(4096)).unwrap();
                }
                pair.exchange();
                assert_eq!(pair.read(far), len);
                pair.exchange();
            });
        });
    }
    group.finish();
}

fn streams(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("session/streams");
    group.throughput(Throughput::Elements(1));
    group.bench_function("open, accept, close both ways, release", |bencher| {
        let mut pair = Pair::new();
        bencher.iter(|| {
            let (near, far) = pair.open();
            pair.opener.finish(near);
            pair.exchange();
            pair.acceptor.finish(far);
            pair.exchange();
            let now = Instant::from_micros(pair.micros);
            pair.opener.release(near, now);
            pair.acceptor.release(far, now);
            while pair.opener.poll_event().is_some() {}
            while pair.acceptor.poll_event().is_some() {}
        });
    });

    const STREAMS: usize = 1000;
    const PIECE: usize = 1 << 10;
    group.throughput(Throughput::Bytes((STREAMS * PIECE) as u64));
    group.bench_function("1,000 in turn, 1 KiB each", |bencher| {
        let mut pair = Pair::new();
        let streams: Vec<_> = (0..STREAMS).map(|_| pair.open()).collect();
        let payload = [7; PIECE];
        bencher.iter(|| {
            for (near, _) in &streams {
                assert_eq!(pair.opener.send_slice(*near, &payload).unwrap(), PIECE);
            }
            pair.exchange();
            for (_, far) in &streams {
                assert_eq!(pair.read(*far), PIECE);
            }
            pair.exchange();
        });
    });
    group.finish();
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! {
    name = session;
    config = short();
    targets = messages, streams
}
criterion_main!(session);
