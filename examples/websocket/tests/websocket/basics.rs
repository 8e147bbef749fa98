//! Against tungstenite on the other end of a real socket, and against invalid bytes.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tunnel_websocket::{Error, Message, WebSocket};

use crate::support::{MAX, open, other, payload, sockets, within};

async fn pair(role: Role) -> (WebSocket<TcpStream>, WebSocketStream<TcpStream>) {
    let (near, far) = sockets().await;
    let theirs = WebSocketStream::from_raw_socket(far, other(role), None).await;
    (open(near, role, MAX), theirs)
}

const SIZES: [usize; 12] = [
    0, 1, 7, 125, 126, 1024, 1025, 65_535, 65_536, 65_544, 300_000, MAX,
];

#[tokio::test]
async fn every_size_arrives_both_ways_in_both_roles() {
    for role in [Role::Client, Role::Server] {
        let (ours, theirs) = pair(role).await;
        let (mut our_sink, mut our_stream) = ours.split();
        let (mut their_sink, mut their_stream) = theirs.split();
        let send = |seed: u8| SIZES.into_iter().map(move |len| payload(len, seed));
        within(async {
            tokio::join!(
                async {
                    for message in send(1) {
                        our_sink.send(Message::Binary(message)).await.unwrap();
                    }
                },
                async {
                    for message in send(2) {
                        their_sink.send(Message::Binary(message)).await.unwrap();
                    }
                },
                async {
                    for message in send(2) {
                        let received = our_stream.next().await.unwrap().unwrap();
                        assert_eq!(received, Message::Binary(message));
                    }
                },
                async {
                    for message in send(1) {
                        let received = their_stream.next().await.unwrap().unwrap();
                        assert_eq!(received, Message::Binary(message));
                    }
                },
            )
        })
        .await;
    }
}

/// Whoever gets a masked message may write to it, so a header is replaced without a copy.
#[tokio::test]
async fn messages_that_were_masked_share_no_memory() {
    let (mut ours, mut theirs) = pair(Role::Server).await;
    within(async {
        for seed in 0..20 {
            let message = Message::Binary(payload(20_000, seed));
            theirs.feed(message).await.unwrap();
        }
        theirs.flush().await.unwrap();
        let mut held = Vec::new();
        for _ in 0..20 {
            held.push(ours.next().await.unwrap().unwrap().into_data());
        }
        for (seed, message) in (0..).zip(held) {
            assert_eq!(message.try_into_mut().unwrap(), payload(20_000, seed));
        }
    })
    .await;
}

/// A message with other holders must not be masked in place.
#[tokio::test]
async fn a_shared_message_is_sent_and_stays_as_it_is() {
    let (mut ours, mut theirs) = pair(Role::Client).await;
    let message = payload(100_000, 3);
    let copy = message.clone();
    within(async {
        ours.send(Message::Binary(message)).await.unwrap();
        let received = theirs.next().await.unwrap().unwrap();
        assert_eq!(received.into_data(), copy);
    })
    .await;
    assert_eq!(copy, payload(100_000, 3));
}

#[tokio::test]
async fn fragments_are_joined_and_pings_between_them_answered() {
    for role in [Role::Client, Role::Server] {
        let (mut ours, mut theirs) = pair(role).await;
        let frame = |part: &'static [u8], kind, last| {
            Message::Frame(Frame::message(part, OpCode::Data(kind), last))
        };
        within(async {
            theirs
                .send(frame(b"one ", Data::Text, false))
                .await
                .unwrap();
            theirs.send(Message::Ping("hey".into())).await.unwrap();
            theirs
                .send(frame(b"two ", Data::Continue, false))
                .await
                .unwrap();
            theirs
                .send(frame(b"three", Data::Continue, true))
                .await
                .unwrap();
            assert_eq!(
                ours.next().await.unwrap().unwrap(),
                Message::Ping("hey".into())
            );
            assert_eq!(
                ours.next().await.unwrap().unwrap(),
                Message::text("one two three")
            );
            // The reader writes the answer too.
            tokio::select! {
                answer = theirs.next() => {
                    assert_eq!(answer.unwrap().unwrap(), Message::Pong("hey".into()));
                }
                more = ours.next() => panic!("{more:?}"),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn the_last_ping_of_a_flood_is_answered() {
    let (mut ours, mut theirs) = pair(Role::Server).await;
    within(async {
        for i in 0..10_000_u32 {
            theirs
                .feed(Message::Ping(Bytes::copy_from_slice(&i.to_be_bytes())))
                .await
                .unwrap();
        }
        theirs.send(Message::text("end")).await.unwrap();
        while ours.next().await.unwrap().unwrap() != Message::text("end") {}
        ours.send(Message::text("end")).await.unwrap();
        let mut last = None;
        loop {
            match theirs.next().await.unwrap().unwrap() {
                Message::Pong(payload) => last = Some(payload),
                other => break assert_eq!(other, Message::text("end")),
            }
        }
        assert_eq!(last.unwrap()[..], 9_999_u32.to_be_bytes());
    })
    .await;
}

#[tokio::test]
async fn the_closing_handshake_works_from_either_side() {
    let frame = || {
        Some(CloseFrame {
            code: CloseCode::Policy,
            reason: "not you".into(),
        })
    };
    for role in [Role::Client, Role::Server] {
        let (mut ours, mut theirs) = pair(role).await;
        within(async {
            theirs.send(Message::Close(frame())).await.unwrap();
            assert_eq!(ours.next().await.unwrap().unwrap(), Message::Close(frame()));
            assert!(ours.next().await.is_none());
            assert_eq!(
                theirs.next().await.unwrap().unwrap(),
                Message::Close(frame())
            );
        })
        .await;

        let (mut ours, mut theirs) = pair(role).await;
        within(async {
            ours.send(Message::Close(frame())).await.unwrap();
            // Nothing follows a close frame.
            ours.send(Message::text("late")).await.unwrap();
            assert_eq!(
                theirs.next().await.unwrap().unwrap(),
                Message::Close(frame())
            );
            theirs.flush().await.ok();
            assert_eq!(ours.next().await.unwrap().unwrap(), Message::Close(frame()));
            assert!(ours.next().await.is_none());
        })
        .await;
    }
}

/// The error that raw bytes from a client cause at our server.
async fn error_of(bytes: &[u8]) -> String {
    let (near, mut far) = sockets().await;
    let mut ours = open(near, Role::Server, MAX);
    far.write_all(bytes).await.unwrap();
    far.shutdown().await.unwrap();
    within(async {
        match ours.next().await {
            Some(Err(error)) => {
                assert!(ours.next().await.is_none(), "an error is the end");
                error.to_string()
            }
            other => panic!("{bytes:02x?} gave {other:?}"),
        }
    })
    .await
}

#[tokio::test]
async fn what_breaks_the_protocol_is_an_error_and_the_end() {
    let cases: [(&[u8], &str); 10] = [
        (&[0x82, 0x01, 7], "unmasked"),
        (&[0xc2, 0x80, 0, 0, 0, 0], "reserved bits"),
        (&[0x83, 0x80, 0, 0, 0, 0], "opcode 0x3"),
        (&[0x80, 0x80, 0, 0, 0, 0], "continuation"),
        (&[0x09, 0x80, 0, 0, 0, 0], "fragmented control"),
        (&[0x89, 0xfe, 0, 126, 0, 0, 0, 0], "control frame of 126"),
        (&[0x81, 0x81, 0, 0, 0, 0, 0xff], "UTF-8"),
        (&[0x88, 0x81, 0, 0, 0, 0, 3], "close frame of one"),
        (
            &[0x82, 0xff, 0, 0, 0, 0, 0, 0x20, 0, 1, 0, 0, 0, 0],
            "too long",
        ),
        (
            &[
                0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0,
            ],
            "too long",
        ),
    ];
    for (bytes, expected) in cases {
        let error = error_of(bytes).await;
        assert!(error.contains(expected), "{bytes:02x?}: {error}");
    }
    let cut = error_of(&[0x82, 0x85, 0, 0, 0, 0, b'h', b'e']).await;
    assert!(cut.contains("closing handshake"), "{cut}");
}

#[tokio::test]
async fn a_stream_of_small_fragments_is_bounded_by_the_message_limit() {
    let (near, mut far) = sockets().await;
    let mut ours = open(near, Role::Server, 1000);
    let writer = tokio::spawn(async move {
        let mut frame = vec![0x02, 0xe4, 0, 0, 0, 0];
        frame.extend_from_slice(&[1; 100]);
        loop {
            if far.write_all(&frame).await.is_err() {
                return;
            }
            frame[0] = 0x00;
        }
    });
    let error = within(ours.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }), "{error}");
    drop(ours);
    within(writer).await.unwrap();
}

#[tokio::test]
async fn what_was_read_with_the_handshake_comes_first() {
    let (near, mut far) = sockets().await;
    let read = Bytes::from_static(&[0x82, 3, b'o', b'n']);
    let mut ours = WebSocket::new(near, read, Role::Client, MAX);
    far.write_all(b"e\x82\x01!").await.unwrap();
    within(async {
        assert_eq!(
            ours.next().await.unwrap().unwrap().into_data()[..],
            b"one"[..]
        );
        assert_eq!(
            ours.next().await.unwrap().unwrap().into_data()[..],
            b"!"[..]
        );
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_waited_for() {
    let (mut ours, far) = {
        let (near, far) = sockets().await;
        (open(near, Role::Server, MAX), far)
    };
    let mut sent = 0_usize;
    let filled = tokio::time::timeout(Duration::from_millis(500), async {
        loop {
            ours.send(Message::Binary(payload(60_000, 1)))
                .await
                .unwrap();
            sent += 1;
        }
    });
    assert!(filled.await.is_err(), "it must not take messages for ever");
    // Accepted messages arrive once they are read.
    let reader = tokio::spawn(async move {
        let mut far = far;
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        all.len()
    });
    within(ours.flush()).await.unwrap();
    drop(ours);
    let received = within(reader).await.unwrap();
    assert!(received >= sent * 60_000);
}
