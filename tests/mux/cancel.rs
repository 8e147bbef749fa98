//! Every future is dropped at every poll in which it is pending, and made again: nothing is lost or
//! duplicated.

use std::future::{Future, poll_fn};
use std::pin::pin;

use bytes::Bytes;
use kohakuriver_tunnel::mux::{
    self, Acceptor, Incoming, IncomingTcp, Mux, TunnelError, TunnelStream,
};
use kohakuriver_tunnel::session::Reason;
use kohakuriver_tunnel::wire::Chunk;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::pipe::{Packets, pipe};
use super::tunnel::{Ended, noise, run_others, within};

/// Waits for the result of the expression's future, although each one is dropped after one poll.
macro_rules! fickle {
    ($future:expr) => {
        within(poll_fn(|cx| pin!($future).poll(cx))).await
    };
}

/// As [`fickle`], for futures that remove their waker when dropped.
macro_rules! restless {
    ($future:expr) => {
        within(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            pin!($future).poll(cx)
        }))
        .await
    };
}
pub(crate) use restless;

/// A tunnel through the smallest pipe. Its drivers are dropped and made again as far as possible:
/// each poll is of a new borrow.
fn tunnel() -> (Mux, Acceptor, [JoinHandle<Ended>; 2]) {
    let (near, far, _) = pipe(1);
    let carrier = Packets::default();
    let (near, mut driver) = mux::builder().opener(near, carrier);
    let near_driver = tokio::spawn(async move { fickle!(&mut driver) });
    let (acceptor, mut driver) = mux::builder().acceptor(far, carrier);
    let far_driver = tokio::spawn(async move { fickle!(&mut driver) });
    (near, acceptor, [near_driver, far_driver])
}

async fn incoming(acceptor: &mut Acceptor) -> IncomingTcp {
    match fickle!(acceptor.accept()) {
        Some(Incoming::Tcp(incoming)) => incoming,
        other => panic!("no stream: {other:?}"),
    }
}

async fn stream(near: &Mux, acceptor: &mut Acceptor) -> (TunnelStream, TunnelStream) {
    let near = near.open_tcp(1).unwrap();
    let far = incoming(acceptor).await.accept();
    fickle!(near.established()).unwrap();
    (near, far)
}

#[tokio::test]
async fn reads_and_writes() {
    let (near, mut acceptor, _drivers) = tunnel();
    let (near, far) = stream(&near, &mut acceptor).await;
    let data = noise(1, 2 << 20);
    let sent = data.clone();
    let (_read, mut write) = near.into_split();
    let writer = tokio::spawn(async move {
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let piece = &rest[..rest.len().min(50_001)];
            let len = fickle!(write.write(piece)).unwrap();
            rest = &rest[len..];
        }
        fickle!(write.flush()).unwrap();
        fickle!(write.shutdown()).unwrap();
        write
    });
    let (mut read, _write) = far.into_split();
    let mut got = Vec::new();
    let mut buffer = vec![0; 10_007];
    loop {
        match fickle!(read.read(&mut buffer)).unwrap() {
            0 => break,
            len => got.extend_from_slice(&buffer[..len]),
        }
    }
    assert!(got == data);
    writer.await.unwrap();
}

#[tokio::test]
async fn chunks_and_capacity() {
    let (near, mut acceptor, _drivers) = tunnel();
    let (near, far) = stream(&near, &mut acceptor).await;
    let data = noise(2, 2 << 20);
    let sent = data.clone();
    let (_read, mut write) = near.into_split();
    let writer = tokio::spawn(async move {
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let capacity = fickle!(write.capacity()).unwrap();
            let (piece, left) = rest.split_at(capacity.min(rest.len()));
            write.send(Chunk::copied(piece)).unwrap();
            rest = left;
        }
        write.finish();
        write
    });
    let (mut read, _write) = far.into_split();
    let mut got = Vec::new();
    while let Some(chunk) = fickle!(read.chunk()).unwrap() {
        got.extend_from_slice(&chunk);
        // Some of it byte by byte: the rest of a chunk stays with the half.
        if let Ok(byte) = fickle!(read.read_u8()) {
            got.push(byte);
        }
    }
    assert!(got == data);
    writer.await.unwrap();
}

#[tokio::test]
async fn accept_and_established() {
    let (near, mut acceptor, _drivers) = tunnel();
    let opener = tokio::spawn(async move {
        let mut streams = Vec::new();
        for port in 0..300 {
            let stream = near.open_tcp(port).unwrap();
            if port % 3 == 0 {
                fickle!(stream.established()).unwrap();
            }
            streams.push(stream);
        }
        for stream in &streams {
            fickle!(stream.established()).unwrap();
        }
        (near, streams)
    });
    let mut accepted = Vec::new();
    for port in 0..300 {
        let incoming = incoming(&mut acceptor).await;
        assert_eq!(incoming.port(), port);
        accepted.push(incoming.accept());
    }
    within(opener).await.unwrap();
}

#[tokio::test]
async fn accept_tcp_and_abandoned() {
    let (near, mut acceptor, _drivers) = tunnel();
    let flow = near.open_udp(1).unwrap();
    let wanted = near.open_tcp(2).unwrap();
    let unwanted = near.open_tcp(3).unwrap();
    assert_eq!(fickle!(acceptor.accept_tcp()).unwrap().port(), 2);
    assert!(fickle!(flow.recv()).is_err(), "flows are refused");
    let incoming = fickle!(acceptor.accept_tcp()).unwrap();
    let abandoned = tokio::spawn(async move { fickle!(incoming.abandoned()) });
    run_others().await;
    assert!(!abandoned.is_finished());
    unwanted.reset(Reason::Reset, "not any more");
    abandoned.await.unwrap();
    drop(wanted);
}

#[tokio::test]
async fn datagrams() {
    let (near, mut acceptor, _drivers) = tunnel();
    let near = near.open_udp(1).unwrap();
    let Some(Incoming::Udp(incoming)) = fickle!(acceptor.accept()) else {
        panic!("no flow")
    };
    let far = incoming.accept();
    let echo = tokio::spawn(async move {
        while let Ok(datagram) = fickle!(far.recv()) {
            far.send(datagram).unwrap();
        }
    });
    for number in 0..500_u64 {
        // Two in flight, so that one may be lost beside the other.
        for half in [number * 2, number * 2 + 1] {
            near.send(Bytes::copy_from_slice(&half.to_be_bytes()))
                .unwrap();
        }
        for half in [number * 2, number * 2 + 1] {
            let datagram = fickle!(near.recv()).unwrap();
            assert_eq!(datagram[..], half.to_be_bytes());
        }
    }
    drop(near);
    within(echo).await.unwrap();
}

#[tokio::test]
async fn the_end() {
    let (near, acceptor, [near_driver, far_driver]) = tunnel();
    let far = acceptor.tunnel().clone();
    let draining = tokio::spawn({
        let near = near.tunnel().clone();
        async move { restless!(near.draining()) }
    });
    let closed = tokio::spawn(async move { restless!(far.closed()) });
    tokio::task::yield_now().await;
    let violation = tokio::spawn({
        let near = near.tunnel().clone();
        async move { restless!(near.violation(0)) }
    });
    assert!(!draining.is_finished() && !closed.is_finished());
    near.tunnel().drain();
    draining.await.unwrap();
    assert_eq!(restless!(near.tunnel().close()), Ok(()));
    assert_eq!(violation.await.unwrap(), None);
    drop(near);
    let ended = Err(TunnelError::Ended(None));
    assert_eq!(closed.await.unwrap(), ended);
    assert_eq!(within(near_driver).await.unwrap(), Ok(()));
    assert_eq!(within(far_driver).await.unwrap(), ended);
}

/// A reader that waits in one task passes its stream to another, which is woken.
#[tokio::test]
async fn a_future_dropped_in_one_task_is_made_in_another() {
    let (near, mut acceptor, _drivers) = tunnel();
    let (near, mut far) = stream(&near, &mut acceptor).await;
    let (mut read, _write) = near.into_split();
    for turn in 0..100_u8 {
        let first = tokio::spawn(async move {
            let nothing = futures_util::poll!(pin!(read.chunk()));
            assert!(nothing.is_pending());
            read
        });
        read = within(first).await.unwrap();
        let second = tokio::spawn(async move {
            let chunk = within(read.chunk()).await;
            (read, chunk)
        });
        tokio::task::yield_now().await;
        far.write_all(&[turn]).await.unwrap();
        let (back, chunk) = within(second).await.unwrap();
        assert_eq!(chunk, Ok(Some(Bytes::copy_from_slice(&[turn]))));
        read = back;
    }
}
