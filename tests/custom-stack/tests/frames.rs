//! Frames over a stack that this crate does not know.
#![allow(missing_docs)]

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use custom_stack::{InPackets, Packet, PacketCodec};
use futures_util::{SinkExt, StreamExt, stream};
use kohakuriver_tunnel::transport::{Carrier, FrameTransport, ReceiveError, Received};
use kohakuriver_tunnel::wire::{ClientId, DecodeError, Frame, Proto};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_util::codec::Framed;
use tokio_util::sync::PollSender;

type Frames = FrameTransport<Framed<DuplexStream, PacketCodec>, InPackets>;

fn pair() -> (Frames, Frames) {
    let (near, far) = tokio::io::duplex(4096);
    let frames =
        |socket| FrameTransport::new(Framed::new(socket, PacketCodec::default()), InPackets);
    (frames(near), frames(far))
}

fn data(payload: impl Into<Bytes>) -> Frame {
    let (proto, id) = (Proto::Tcp, ClientId(1));
    let payload = payload.into();
    Frame::Data { proto, id, payload }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, future).await.expect("in time")
}

#[tokio::test]
async fn frames_and_ready_made_messages_pass_both_ways() {
    let (mut near, mut far) = pair();
    for size in [0, 1, 65_526, 65_527, 65_528, 200_000, 1024 * 1024] {
        let frame = data(vec![7; size]);
        let ask = async {
            near.send(frame.clone()).await.unwrap();
            assert_eq!(near.next().await.unwrap().unwrap(), frame);
        };
        let answer = async {
            let frame = far.next().await.unwrap().unwrap();
            far.send(frame.to_bytes()).await.unwrap();
        };
        soon(async { tokio::join!(ask, answer) }).await;
    }
}

#[tokio::test]
async fn what_is_no_frame_is_told_apart_and_the_frames_around_it_arrive() {
    let (mut near, mut far) = pair();
    let packets = [
        Packet::Ping,
        Packet::Binary(data("one").to_bytes().into()),
        Packet::Text("CONNECTED".into()),
        Packet::Binary(b"short".into()),
        Packet::Pong,
        Packet::Binary(data("two").to_bytes().into()),
        Packet::Close,
        Packet::Binary(data("too late").to_bytes().into()),
    ];
    for packet in packets {
        soon(near.transport_mut().feed(packet)).await.unwrap();
    }
    soon(near.flush()).await.unwrap();

    assert_eq!(soon(far.next()).await.unwrap().unwrap(), data("one"));
    assert!(matches!(
        soon(far.next()).await,
        Some(Err(ReceiveError::Text(text))) if text == "CONNECTED"
    ));
    assert!(matches!(
        soon(far.next()).await,
        Some(Err(ReceiveError::Decode(DecodeError::Truncated { len: 5 })))
    ));
    assert_eq!(soon(far.next()).await.unwrap().unwrap(), data("two"));
    assert!(soon(far.next()).await.is_none());
    assert!(soon(far.next()).await.is_none());
}

#[tokio::test]
async fn a_failure_of_the_stack_is_the_transports_and_closing_ends_the_stream() {
    let (mut near, mut far) = pair();
    let socket = near.transport_mut().get_mut();
    soon(socket.write_all(b"x\0\0")).await.unwrap();
    match soon(far.next()).await {
        Some(Err(ReceiveError::Transport(error))) => assert_eq!(error.to_string(), "unknown tag"),
        other => panic!("expected the failure, got {other:?}"),
    }

    let (mut near, mut far) = pair();
    soon(near.send(data("last"))).await.unwrap();
    soon(near.close()).await.unwrap();
    assert_eq!(soon(far.next()).await.unwrap().unwrap(), data("last"));
    assert!(soon(far.next()).await.is_none());
}

/// Another crate's message type, and ends that only send or only receive.
#[tokio::test]
async fn frames_pass_over_a_channel_of_vectors() {
    struct Vectors;

    impl Carrier for Vectors {
        type Message = Vec<u8>;

        fn binary(&mut self, message: Bytes) -> Vec<u8> {
            message.into()
        }

        fn classify(&mut self, message: Vec<u8>) -> Received<Vec<u8>> {
            Received::Message(message.into())
        }
    }

    let (sender, mut receiver) = mpsc::channel(1);
    let messages = stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let mut sending = FrameTransport::new(PollSender::new(sender), Vectors);
    let mut receiving = FrameTransport::new(messages.map(Ok::<_, Infallible>), Vectors);
    let send = async {
        for i in 0..100 {
            sending.send(data(vec![i])).await.unwrap();
        }
        sending.close().await.unwrap();
    };
    let receive = async {
        for i in 0..100 {
            let frame = receiving.next().await.unwrap().unwrap();
            assert_eq!(frame, data(vec![i]));
        }
        assert!(receiving.next().await.is_none());
    };
    soon(async { tokio::join!(send, receive) }).await;
}

#[tokio::test]
async fn a_transport_that_must_stay_pinned_goes_in_boxed() {
    let packets = stream::unfold(0, async |i| {
        tokio::task::yield_now().await;
        let packet = Packet::Binary(data(vec![i]).to_bytes().into());
        (i < 3).then_some((Ok::<_, Infallible>(packet), i + 1))
    });
    let frames = FrameTransport::new(Box::pin(packets), InPackets);
    let frames: Vec<_> = soon(frames.map(Result::unwrap).collect()).await;
    assert_eq!(frames, [data(vec![0]), data(vec![1]), data(vec![2])]);
}
