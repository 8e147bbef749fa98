//! A tunnel over a byte stream: messages after their length.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use kohakuriver_tunnel::codec::CodecError;
use kohakuriver_tunnel::mux::{self, LengthPrefixed, TunnelError, length_prefixed};
use kohakuriver_tunnel::transport::Plain;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};

use super::counting::counts;
use super::tunnel::{echoes, noise, sockets, tunnel, within};

const MESSAGE_MAX: usize = 1 << 20;

/// A byte stream that passes few bytes at a time, with or without vectored writes.
#[derive(Debug)]
struct Narrow {
    inner: DuplexStream,
    most: usize,
    vectored: bool,
}

impl AsyncRead for Narrow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut part = vec![0; self.most.min(buf.remaining())];
        let mut part = ReadBuf::new(&mut part);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part))?;
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Narrow {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let part = &bytes[..self.most.min(bytes.len())];
        Pin::new(&mut self.inner).poll_write(cx, part)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        assert!(self.vectored, "it takes one at a time");
        let joined: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        self.poll_write(cx, &joined)
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

fn narrow(most: usize, vectored: bool) -> (LengthPrefixed<Narrow>, LengthPrefixed<Narrow>) {
    let (near, far) = duplex(100_000);
    let end = |inner| {
        length_prefixed(Narrow {
            inner,
            most,
            vectored,
        })
    };
    (end(near), end(far))
}

#[tokio::test]
async fn messages_arrive_whole_however_they_are_cut() {
    for vectored in [true, false] {
        for (most, largest) in [
            (1, 3000),
            (3, 3000),
            (4097, 100_000),
            (100_000, MESSAGE_MAX),
        ] {
            let sizes = [
                0,
                1,
                3,
                4,
                5,
                8,
                2999,
                4103,
                4104,
                4105,
                65_544,
                MESSAGE_MAX,
            ];
            let sizes = sizes.into_iter().filter(|size| *size <= largest);
            let messages: Vec<_> = sizes
                .cycle()
                .take(40)
                .enumerate()
                .map(|(seed, size)| Bytes::from(noise(seed as u64, size)))
                .collect();
            let (mut near, mut far) = narrow(most, vectored);
            let send = async {
                for message in &messages {
                    near.feed(message.clone()).await.unwrap();
                }
                near.close().await.unwrap();
            };
            let receive = async {
                let mut got = Vec::new();
                while let Some(message) = far.next().await {
                    got.push(message.unwrap());
                }
                got
            };
            let (_, got) = within(async { tokio::join!(send, receive) }).await;
            assert!(got == messages, "{most} at a time, vectored {vectored}");
        }
    }
}

#[tokio::test]
async fn a_message_too_long_to_send_is_refused_and_the_next_one_passes() {
    let (mut near, mut far) = narrow(1000, true);
    let long = Bytes::from(vec![0; MESSAGE_MAX + 1]);
    let error = near.send(long).await.unwrap_err();
    assert!(matches!(error, CodecError::TooLong { len, .. } if len == MESSAGE_MAX + 1));
    near.send(Bytes::from_static(b"short")).await.unwrap();
    assert_eq!(within(far.next()).await.unwrap().unwrap(), "short");
}

/// How a stream of these bytes ends, after one message.
/// The bound holds in both directions.
#[tokio::test]
async fn a_smaller_bound_refuses_longer_messages() {
    let (near, far) = duplex(1000);
    let mut small = LengthPrefixed::with_max_len(near, 100);
    let mut large = length_prefixed(far);
    let error = small.send(vec![1; 101].into()).await.unwrap_err();
    let too_long = |error| matches!(error, CodecError::TooLong { len: 101, max: 100 });
    assert!(too_long(error));
    for len in [100, 101] {
        large.send(vec![1; len].into()).await.unwrap();
    }
    assert_eq!(small.next().await.unwrap().unwrap().len(), 100);
    assert!(too_long(small.next().await.unwrap().unwrap_err()));
    // What is left is the byte stream.
    small.get_mut().write_all(b"bare").await.unwrap();
    small.into_inner().write_all(b"!").await.unwrap();
    let mut bare = [0; 5];
    large.get_mut().read_exact(&mut bare).await.unwrap();
    assert_eq!(&bare, b"bare!");
}

async fn end_of(rest: &[u8]) -> Option<CodecError> {
    let (near, mut far) = duplex(1000);
    let mut near = length_prefixed(near);
    far.write_all(b"\0\0\0\x02hi").await.unwrap();
    far.write_all(rest).await.unwrap();
    drop(far);
    assert_eq!(within(near.next()).await.unwrap().unwrap(), "hi");
    let end = within(near.next()).await.map(|end| end.unwrap_err());
    assert!(within(near.next()).await.is_none(), "ended for good");
    end
}

#[tokio::test]
async fn the_end_of_the_bytes_is_the_end_only_between_messages() {
    assert!(end_of(b"").await.is_none());
    for (rest, short) in [(&b"\0"[..], 3), (b"\0\0\0\x05", 5), (b"\0\0\0\x05abc", 2)] {
        let end = end_of(rest).await;
        assert!(matches!(end, Some(CodecError::Truncated { missing }) if missing == short));
    }
    for len in [MESSAGE_MAX as u32 + 1, u32::MAX] {
        let end = end_of(&len.to_be_bytes()).await;
        assert!(matches!(end, Some(CodecError::TooLong { .. })));
    }
}

/// What a byte stream is to be taken for, and whether it ends well.
fn parse(mut bytes: &[u8]) -> (Vec<&[u8]>, bool) {
    let mut messages = Vec::new();
    while let Some((prefix, rest)) = bytes.split_first_chunk() {
        let len = u32::from_be_bytes(*prefix) as usize;
        let Some((message, rest)) = rest.split_at_checked(len).filter(|_| len <= MESSAGE_MAX)
        else {
            break;
        };
        messages.push(message);
        bytes = rest;
    }
    (messages, bytes.is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_bytes_are_taken_for_the_same_messages_however_they_are_cut(
        parts in vec((vec(any::<u8>(), 0..5000), any::<bool>()), 0..8),
        cut in 1_usize..6000,
    ) {
        let mut bytes = Vec::new();
        for (part, whole) in parts {
            // Most of them as messages, the others as they are: mostly no length that makes sense.
            if whole {
                bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
            }
            bytes.extend_from_slice(&part);
        }
        let (expected, ends_well) = parse(&bytes);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let items: Vec<_> = runtime.block_on(async {
            let (near, mut far) = duplex(1 << 20);
            let narrow = Narrow { inner: near, most: cut, vectored: false };
            far.write_all(&bytes).await.unwrap();
            drop(far);
            length_prefixed(narrow).collect().await
        });
        let messages: Vec<_> = items.iter().filter_map(|item| item.as_deref().ok()).collect();
        prop_assert!(messages == expected);
        prop_assert_eq!(items.len(), expected.len() + usize::from(!ends_well));
        prop_assert_eq!(items.last().is_some_and(|item| item.is_err()), !ends_well);
    }
}

#[tokio::test]
async fn a_reader_that_pauses_holds_back_the_writer() {
    for vectored in [true, false] {
        let (mut near, mut far) = narrow(100_000, vectored);
        let message = Bytes::from(noise(1, 10_000));
        let mut sent = 0;
        while near.feed(message.clone()).now_or_never().is_some() {
            sent += message.len();
            assert!(sent < 1 << 20, "without end");
        }
        assert!(sent > 200_000, "{sent}");
        let receive = async {
            for _ in 0..sent / message.len() {
                assert_eq!(far.next().await.unwrap().unwrap(), message);
            }
        };
        within(async { tokio::join!(near.flush(), receive) })
            .await
            .0
            .unwrap();
    }
}

/// What a pair holds after 400 kB in messages of this length, when both ends are idle.
async fn held_after_burst(vectored: bool, len: usize) -> isize {
    let (mut near, mut far) = narrow(4_000, vectored);
    let message = Bytes::from(noise(1, len));
    let before = counts();
    let send = async {
        for _ in 0..400_000 / len {
            near.feed(message.clone()).await.unwrap();
        }
        near.flush().await.unwrap();
    };
    let receive = async {
        for _ in 0..400_000 / len {
            assert_eq!(far.next().await.unwrap().unwrap(), message);
        }
        // It holds no buffer while it waits.
        assert!(far.next().now_or_never().is_none());
    };
    within(async { tokio::join!(send, receive) }).await;
    (counts() - before).live
}

#[tokio::test]
async fn an_idle_tunnel_keeps_no_memory_of_a_burst() {
    for len in [1_000, 10_000, 200_000] {
        // Without copies there is only what the pipe between them keeps.
        let pipe = held_after_burst(true, len).await;
        let held = held_after_burst(false, len).await;
        println!("{held} bytes, {pipe} of the pipe");
        assert!(held - pipe < 10_000, "{held} bytes, {pipe} of the pipe");
    }
}

/// The sizes are between what is copied in any case and what is shared in any case.
#[tokio::test]
async fn a_message_in_a_queue_keeps_at_most_eight_times_its_length_alive() {
    for len in [4105, 20_000, 30_000, 64 << 10] {
        let (mut near, mut far) = narrow(100_000, true);
        let kept = Bytes::from(vec![1; len]);
        let read = Bytes::from(vec![2; 240 << 10]);
        let send = async {
            for _ in 0..20 {
                near.feed(kept.clone()).await.unwrap();
                near.feed(read.clone()).await.unwrap();
            }
            near.close().await.unwrap();
        };
        let before = counts();
        let receive = async {
            let mut queue = Vec::new();
            while let Some(message) = far.next().await {
                queue.extend(message.ok().filter(|message| message.len() == len));
            }
            queue
        };
        let (_, queue) = within(async { tokio::join!(send, receive) }).await;
        let live = (counts() - before).live;
        println!("{live} bytes for {} of {len}", queue.len());
        assert_eq!(queue.len(), 20);
        assert!(live < (8 * 20 * len + (1 << 20)) as isize, "{len}: {live}");
    }
}

#[tokio::test]
async fn a_tunnel_runs_over_tcp() {
    let (near, far) = sockets().await;
    let (near, far) = (length_prefixed(near), length_prefixed(far));
    let (mux, driver) = tunnel(near, far, Plain, mux::builder(), mux::builder()).echo();
    echoes(&mux, 10, 2 << 20).await;
    drop(mux);
    assert_eq!(within(driver).await.unwrap(), Ok(()));
}

#[tokio::test]
async fn a_peer_that_speaks_something_else_ends_the_tunnel() {
    let (near, mut far) = duplex(1000);
    let (mux, driver) = mux::builder().opener(length_prefixed(near), Plain);
    tokio::spawn(driver);
    far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let too_long = "message of 1195725856 bytes is longer than the 1048576 bytes allowed";
    let ended = TunnelError::Transport(too_long.into());
    assert_eq!(within(mux.tunnel().closed()).await, Err(ended));
}
