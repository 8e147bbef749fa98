#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;
use crate::common::net;

/// More than the sockets of one direction hold.
const LONG: usize = 16 << 20;

const LIMIT: Duration = Duration::from_secs(60);

/// A client and a runner, joined.
struct Joined {
    client: TcpStream,
    runner: TcpStream,
    relays: Arc<Relays>,
    ended: JoinHandle<io::Result<()>>,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await;
    let pair = (near.unwrap(), listener.accept().await.unwrap().0);
    for stream in [&pair.0, &pair.1] {
        // With buffers of a fixed size. A host closes its sockets, and does not reset them.
        net::tune_app(stream);
        net::end_in_order(stream);
    }
    pair
}

async fn joined(pipes: usize) -> Joined {
    let relays = Arc::new(Relays::new(Budget::new(64 << 20), pipes));
    let (client, to_client) = pair().await;
    let (runner, to_runner) = pair().await;
    let shared = Arc::clone(&relays);
    let ended = tokio::spawn(async move {
        let client = (to_client.into(), Bytes::from_static(b"early up "));
        let runner = (to_runner.into(), Bytes::from_static(b"early down "));
        shared.join(client, runner).await
    });
    Joined {
        client,
        runner,
        relays,
        ended,
    }
}

/// Bytes of which no two pieces are alike.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Bytes charged for data, without those for unused buffers.
fn held(relays: &Relays) -> usize {
    relays.memory.held() - relays.pool.lock().len() * BUFFER
}

/// Sends all and ends the direction.
async fn send(stream: &mut TcpStream, bytes: &[u8]) {
    timeout(LIMIT, stream.write_all(bytes))
        .await
        .unwrap()
        .unwrap();
    stream.shutdown().await.unwrap();
}

/// Reads to the end, and begins when the sockets are full.
async fn receive(stream: &mut TcpStream) -> Vec<u8> {
    sleep(Duration::from_millis(200)).await;
    let mut bytes = Vec::new();
    let read = timeout(LIMIT, stream.read_to_end(&mut bytes)).await;
    read.unwrap().unwrap();
    bytes
}

/// The side that ends its direction first is once the client and once the runner. The other sends
/// as much after it has read the end.
async fn half_close(pipes: usize) {
    let sent = pattern(LONG);
    for client_first in [true, false] {
        let mut joined = joined(pipes).await;
        let (first, last) = match client_first {
            true => (&mut joined.client, &mut joined.runner),
            false => (&mut joined.runner, &mut joined.client),
        };
        let (early_first, early_last) = match client_first {
            true => (&b"early up "[..], &b"early down "[..]),
            false => (&b"early down "[..], &b"early up "[..]),
        };
        let ((), came) = tokio::join!(send(first, &sent), receive(last));
        assert!(came == [early_first, &sent].concat());
        // The other direction is still open, and carries as much.
        let ((), came) = tokio::join!(send(last, &sent), receive(first));
        assert!(came == [early_last, &sent].concat());
        timeout(LIMIT, joined.ended)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let relays = joined.relays;
        assert_eq!(relays.to_runner.value(), (9 + LONG) as u64);
        assert_eq!(relays.to_client.value(), (11 + LONG) as u64);
        assert_eq!(held(&relays), 0);
        #[cfg(target_os = "linux")]
        assert_eq!(relays.pipes.opened() > 0, pipes > 0);
    }
}

#[tokio::test]
async fn half_close_keeps_the_other_direction_through_pipes() {
    half_close(32).await;
}

#[tokio::test]
async fn half_close_keeps_the_other_direction_through_copies() {
    half_close(0).await;
}

#[tokio::test]
async fn a_slow_reader_stops_the_writer() {
    let mut joined = joined(32).await;
    let sent = pattern(LONG);
    let (early, mut most) = (b"early up ".len(), 0);
    // Nobody reads until the writer has been stuck for a while.
    let wrote = async {
        let mut rest = &sent[..];
        while let Ok(written) = timeout(Duration::from_millis(500), joined.client.write(rest)).await
        {
            rest = &rest[written.unwrap()..];
            most = most.max(held(&joined.relays));
        }
        rest.len()
    };
    let rest = wrote.await;
    assert!(rest > 0, "the kernel holds it all");
    assert!(most <= 512 * 1024, "{most} bytes are held");
    let rest = &sent[LONG - rest..];
    let ((), came) = tokio::join!(send(&mut joined.client, rest), receive(&mut joined.runner));
    assert!(came[early..] == sent);
    assert_eq!(held(&joined.relays), 0);
}

#[tokio::test]
async fn a_few_bytes_that_have_to_wait_cost_no_whole_buffer() {
    let mut joined = joined(32).await;
    let sent = pattern(LONG);
    let early = b"early down ".len();
    let relayed = |count: usize| joined.relays.to_client.value() == (early + count) as u64;
    let mut written = 0;
    // Nobody reads until a short piece has to wait.
    while held(&joined.relays) == 0 {
        joined
            .runner
            .write_all(&sent[written..written + 1024])
            .await
            .unwrap();
        written += 1024;
        while !relayed(written) && held(&joined.relays) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }
    let waiting = held(&joined.relays);
    assert!(waiting <= 1024, "{waiting} bytes are held");
    let rest = &sent[written..];
    let ((), came) = tokio::join!(send(&mut joined.runner, rest), receive(&mut joined.client));
    assert!(came[early..] == sent);
    assert_eq!(held(&joined.relays), 0);
}

#[tokio::test]
async fn what_a_pipe_holds_is_copied_where_a_socket_refuses_it() {
    let relays = Relays::new(Budget::new(64 << 20), 32);
    let (mut client, from_client) = pair().await;
    let Some(mut pipe) = relays.pipes.take() else {
        // Not on this system.
        return;
    };
    client.write_all(b"in a pipe").await.unwrap();
    let filled = poll_fn(|cx| pipe.poll_fill(cx, &from_client, 1 << 20)).await;
    assert_eq!(filled.unwrap(), 9);
    assert_eq!(pipe.copy_out().unwrap(), b"in a pipe");
    assert!(pipe.is_empty());
}

#[cfg(target_os = "linux")]
#[test]
fn pipes_are_bounded_and_few_are_kept() {
    let pipes = Pipes::new(6, Budget::new(64 << 20));
    let mut taken: Vec<_> = (0..8).map(|_| pipes.take()).collect();
    assert_eq!(taken.iter().flatten().count(), 6);
    taken.clear();
    assert!(pipes.opened() <= 4, "{} are kept", pipes.opened());
    // The budget bounds them too.
    let pipes = Pipes::new(6, Budget::new(3 << 20));
    let taken: Vec<_> = (0..8).map(|_| pipes.take()).collect();
    assert_eq!(taken.iter().flatten().count(), 4);
    drop(taken);
    // After a refusal there is none for a while.
    pipes.pause();
    assert!(pipes.take().is_none());
    assert!((0..1000).any(|_| pipes.take().is_some()));
}
