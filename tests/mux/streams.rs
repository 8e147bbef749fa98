//! One stream.

use std::error::Error;
use std::io;

use bytes::Bytes;
use kohakuriver_tunnel::mux::Incoming;
use kohakuriver_tunnel::session::{Reason, Reset, State, Version};
use kohakuriver_tunnel::wire::{Chunk, Proto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::tunnel::{Link, noise, run_others, within};

#[tokio::test]
async fn what_is_written_comes_back() {
    for link in Link::BOTH {
        for version in [Version::V1, Version::V2] {
            let (mux, _) = link.tunnel(version, Default::default()).await.echo();
            let (mut read, mut write) = mux.open_tcp(7).unwrap().into_split();
            let data = noise(1, 3 << 20);
            let sent = data.clone();
            let writer = tokio::spawn(async move {
                for piece in sent.chunks(10_007) {
                    write.write_all(piece).await.unwrap();
                }
                // Kept, because in v1 an opener that closes is taken to be gone.
                write
            });
            let mut back = vec![0; data.len()];
            within(read.read_exact(&mut back)).await.unwrap();
            assert!(back == data, "{link:?} {version:?}");
            drop(writer.await.unwrap());
        }
    }
}

#[tokio::test]
async fn a_stream_and_a_flow_count_what_they_carry() {
    let mut tunnel = Link::Pipe.v2().await;
    let (mut near, mut far) = tunnel.stream().await;
    let (flow, far_flow) = tunnel.flow().await;
    near.write_all(&[7; 1000]).await.unwrap();
    flow.send(Bytes::from_static(b"datagram")).unwrap();
    within(far.read_exact(&mut [0; 400])).await.unwrap();
    within(far_flow.recv()).await.unwrap();
    let (sent, received) = (near.stats().unwrap(), far.stats().unwrap());
    assert_eq!(
        (sent.bytes_sent, sent.unsent, sent.state),
        (1000, 0, State::Open)
    );
    // What is left of a chunk is with its half, and counts as read.
    assert_eq!((received.bytes_received, received.unread), (1000, 0));
    assert_eq!(flow.stats().unwrap().bytes_sent, 8);
    assert_eq!(far_flow.stats().unwrap().bytes_received, 8);
    assert_eq!(tunnel.far.stats().bytes_received, 1008);
    assert_eq!(tunnel.far.last_violation(), None);
    let (read, write) = far.into_split();
    assert_eq!(
        (read.stats(), write.stats()),
        (Some(received), Some(received))
    );
}

#[tokio::test]
async fn half_close_keeps_the_reply() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (mut near, mut far) = tunnel.stream().await;
        near.write_all(b"request").await.unwrap();
        near.shutdown().await.unwrap();
        let mut request = Vec::new();
        within(far.read_to_end(&mut request)).await.unwrap();
        assert_eq!(request, b"request");

        let reply = noise(2, 1 << 20);
        let sent = reply.clone();
        let service = tokio::spawn(async move {
            far.write_all(&sent).await.unwrap();
            far.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        within(near.read_to_end(&mut got)).await.unwrap();
        assert!(got == reply);
        service.await.unwrap();
        let error = near.write_all(b"more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}

#[tokio::test]
async fn a_dropped_write_half_is_an_end_and_the_read_half_goes_on() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (near, mut far) = tunnel.stream().await;
        let (mut read, mut write) = near.into_split();
        write.write_all(b"question").await.unwrap();
        drop(write);
        let mut question = String::new();
        within(far.read_to_string(&mut question)).await.unwrap();
        assert_eq!(question, "question");
        far.write_all(b"answer").await.unwrap();
        drop(far);
        let mut answer = String::new();
        within(read.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer, "answer");
    }
}

#[tokio::test]
async fn chunks_mix_with_reads_and_writes() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (near, far) = tunnel.stream().await;
        let (_, mut write) = near.into_split();
        let (mut read, _keep) = far.into_split();
        let data = noise(3, 700_000);
        let sent = data.clone();
        let sender = tokio::spawn(async move {
            let mut rest = &sent[..];
            for turn in 0.. {
                if rest.is_empty() {
                    break;
                }
                let capacity = write.capacity().await.unwrap();
                let (piece, left) = rest.split_at(capacity.min(rest.len()).min(30_011));
                match turn % 3 {
                    0 => write.send(Chunk::copied(piece)).unwrap(),
                    1 => write.send(Bytes::copy_from_slice(piece).into()).unwrap(),
                    _ => write.write_all(piece).await.unwrap(),
                }
                rest = left;
            }
            write.finish();
        });
        let mut got = Vec::new();
        let mut small = [0; 777];
        loop {
            let len = within(read.read(&mut small)).await.unwrap();
            got.extend_from_slice(&small[..len]);
            let Some(chunk) = within(read.chunk()).await.unwrap() else {
                break;
            };
            got.extend_from_slice(&chunk);
        }
        assert!(got == data);
        sender.await.unwrap();
    }
}

#[tokio::test]
async fn a_reset_tells_its_reason_after_what_came_before() {
    let kinds = [
        (Reason::Refused, io::ErrorKind::ConnectionRefused),
        (Reason::Unreachable, io::ErrorKind::HostUnreachable),
        (Reason::TimedOut, io::ErrorKind::TimedOut),
        (Reason::Denied, io::ErrorKind::PermissionDenied),
        (Reason::NoAgent, io::ErrorKind::NotConnected),
        (Reason::Limit, io::ErrorKind::ConnectionReset),
        (Reason::Overflow, io::ErrorKind::ConnectionReset),
        (Reason::Reset, io::ErrorKind::ConnectionReset),
        (Reason::Gone, io::ErrorKind::ConnectionReset),
    ];
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        for (reason, kind) in kinds {
            let (mut near, mut far) = tunnel.stream().await;
            far.write_all(b"first").await.unwrap();
            let mut first = [0; 5];
            within(near.read_exact(&mut first)).await.unwrap();
            far.reset(reason, "because");
            let error = within(near.read(&mut first)).await.unwrap_err();
            assert_eq!(error.kind(), kind);
            let reset = error.get_ref().unwrap().downcast_ref::<Reset>().unwrap();
            assert_eq!(*reset, Reset::new(reason, "because"));
            assert!(
                !(error.get_ref().unwrap() as &dyn Error)
                    .to_string()
                    .is_empty()
            );
            let error = near.write_all(b"too late").await.unwrap_err();
            assert_eq!(error.kind(), kind);
            // The end that reset it sees the reset too.
            assert!(within(far.read(&mut first)).await.is_err());
        }
    }
}

#[tokio::test]
async fn a_stream_that_is_dropped_ends_the_wait_for_its_answer() {
    let tunnel = Link::Pipe.v2().await;
    let stream = tunnel.near.open_tcp(1).unwrap();
    let answer = tokio::spawn(stream.established());
    run_others().await;
    assert!(!answer.is_finished());
    drop(stream);
    assert_eq!(
        within(answer).await.unwrap().unwrap_err().reason,
        Reason::Gone
    );
}

#[tokio::test]
async fn established_says_yes_or_why_not() {
    for link in Link::BOTH {
        for version in [Version::V1, Version::V2] {
            let mut tunnel = link.tunnel(version, Default::default()).await;
            let near = tunnel.near.open_tcp(22).unwrap();
            let incoming = within(tunnel.acceptor.accept()).await.unwrap();
            assert_eq!((incoming.proto(), incoming.port()), (Proto::Tcp, 22));
            assert!(incoming.id().is_some());
            let Incoming::Tcp(incoming) = incoming else {
                panic!("no stream")
            };
            let far = incoming.accept();
            within(near.established()).await.unwrap();
            within(far.established()).await.unwrap();

            let refused = tunnel.near.open_tcp(23).unwrap();
            let incoming = within(tunnel.acceptor.accept()).await.unwrap();
            incoming.reject(Reason::Refused, "no telnet");
            let reset = within(refused.established()).await.unwrap_err();
            assert!(reset.text.contains("no telnet"));
            if version == Version::V2 {
                assert_eq!(reset.reason, Reason::Refused);
            }

            let ignored = tunnel.near.open_tcp(24).unwrap();
            drop(within(tunnel.acceptor.accept()).await.unwrap());
            within(ignored.established()).await.unwrap_err();
        }
    }
}

#[tokio::test]
async fn a_dropped_stream_delivers_and_tells_the_peer_to_stop() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (mut near, mut far) = tunnel.stream().await;
        let data = noise(4, 200_000);
        near.write_all(&data).await.unwrap();
        drop(near);
        let mut got = Vec::new();
        within(far.read_to_end(&mut got)).await.unwrap();
        assert!(got == data);
        let error = within(async {
            loop {
                if let Err(error) = far.write_all(&[0; 1000]).await {
                    break error;
                }
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(error.await.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_dropped_acceptor_refuses() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        // It keeps the tunnel up.
        let _stream = tunnel.stream().await;
        let queued = tunnel.near.open_tcp(1).unwrap();
        within(async {
            while tunnel.far.stats().opened == 1 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        drop(tunnel.acceptor);
        let later = tunnel.near.open_udp(2).unwrap();
        let reset = within(queued.established()).await.unwrap_err();
        assert_eq!(reset.reason, Reason::Denied);
        let reset = within(later.recv()).await.unwrap_err();
        assert_eq!(reset.reason, Reason::Denied);
    }
}

#[tokio::test]
async fn empty_reads_and_writes_do_nothing() {
    let mut tunnel = Link::Pipe.v2().await;
    let (mut near, mut far) = tunnel.stream().await;
    assert_eq!(near.write(&[]).await.unwrap(), 0);
    assert_eq!(near.read(&mut []).await.unwrap(), 0);
    near.flush().await.unwrap();
    near.write_all(b"x").await.unwrap();
    let mut byte = [0];
    within(far.read_exact(&mut byte)).await.unwrap();
    assert_eq!(&byte, b"x");
}

/// A drop would look like a complete file.
#[tokio::test]
async fn a_writer_that_fails_resets_its_stream() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (near, mut far) = tunnel.stream().await;
        let (mut read, mut write) = near.into_split();
        write.write_all(b"half a fi").await.unwrap();
        let mut part = [0; 9];
        within(far.read_exact(&mut part)).await.unwrap();
        write.reset(Reason::Reset, "the file cannot be read");
        drop(write);
        let error = within(far.read(&mut [0])).await.unwrap_err();
        let reset = error.get_ref().unwrap().downcast_ref::<Reset>().unwrap();
        let expected = Reset::new(Reason::Reset, "the file cannot be read");
        assert_eq!(reset, &expected);
        assert_eq!(within(read.chunk()).await, Err(expected));
    }
}
