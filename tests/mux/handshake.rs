//! The start of a tunnel: the greeting, a refusal, and peers that send neither.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use kohakuriver_tunnel::mux::{self, ConnectError, Incoming, TunnelError};
use kohakuriver_tunnel::session::Config;
use kohakuriver_tunnel::transport::{CloseReason, Plain};
use kohakuriver_tunnel::wire::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::pipe::{Packet, Packets, Pipe, Wire, pipe};
use super::tunnel::{Link, Tungstenite, websockets, within};

/// A pipe with a scripted far end.
fn scripted(packets: impl IntoIterator<Item = Packet>) -> (Pipe, Pipe, Wire) {
    let (near, far, [_, back]) = pipe(100);
    for packet in packets {
        back.inject(packet);
    }
    (near, far, back)
}

async fn refused_by(packets: impl IntoIterator<Item = Packet>) -> ConnectError {
    let (near, _far, _) = scripted(packets);
    let connecting = mux::builder().connect(near, Packets::default());
    match within(connecting).await {
        Ok(_) => panic!("a tunnel began"),
        Err(error) => error,
    }
}

fn text(text: &str) -> Packet {
    Packet::Text(text.to_owned())
}

fn close(code: u16, text: &str) -> CloseReason {
    CloseReason::new(code, text)
}

#[tokio::test]
async fn a_greeted_tunnel_carries_streams() {
    let (client, server) = websockets().await;
    let serving = tokio::spawn(async move {
        let (mut acceptor, driver) = mux::builder().welcome(server, Tungstenite).await.unwrap();
        tokio::spawn(driver);
        let Some(Incoming::Tcp(incoming)) = acceptor.accept().await else {
            panic!("no stream")
        };
        incoming.accept().write_all(b"hello").await.unwrap();
        acceptor
    });
    // In a task of its own, as a program does.
    let connecting = tokio::spawn(mux::builder().connect(client, Tungstenite));
    let (mux, driver) = within(connecting).await.unwrap().unwrap();
    tokio::spawn(driver);
    let mut hello = String::new();
    let mut stream = mux.open_tcp(1).unwrap();
    within(stream.read_to_string(&mut hello)).await.unwrap();
    assert_eq!(hello, "hello");
    drop(within(serving).await.unwrap());
}

/// A server need not wait for the client before it sends.
#[tokio::test]
async fn what_comes_right_behind_the_greeting_is_not_lost() {
    let goaway = Packet::Binary(Bytes::from_static(&[9, 0, 0, 0, 0, 0, 0, 0]));
    let (near, _far, _) = scripted([Packet::Ping, text("CONNECTED"), goaway]);
    let (mux, driver) = within(mux::builder().connect(near, Packets::default()))
        .await
        .unwrap();
    tokio::spawn(driver);
    within(mux.tunnel().draining()).await;
    assert_eq!(mux.tunnel().close_reason(), None);
}

#[tokio::test]
async fn the_words_of_a_refusal_reach_the_caller() {
    let refusal = |reason: &str, code| ConnectError::Refused {
        reason: reason.to_owned(),
        code,
    };
    let bye = |code| Packet::Close(close(code, "bye"));
    let error = refused_by([text("Error: task 7 is not known"), bye(1008)]).await;
    assert_eq!(error, refusal("task 7 is not known", Some(1008)));
    assert_eq!(error.to_string(), "task 7 is not known");
    let json = r#"{"detail": "no"}"#;
    let error = refused_by([Packet::Pong, text(json), Packet::Ping, bye(1011)]).await;
    assert_eq!(error, refusal(json, Some(1011)));
    let error = refused_by([text("Error: \u{1b}[31mred\n")]).await;
    assert_eq!(error, refusal(" [31mred ", None));
    let long = format!("Error: {}", "x".repeat(100_000));
    let ConnectError::Refused { reason, .. } = refused_by([text(&long), bye(1008)]).await else {
        panic!("not refused")
    };
    assert_eq!(reason.len(), 1024);
}

#[tokio::test]
async fn what_is_no_greeting_is_told_apart() {
    let error = refused_by([Packet::Close(close(1013, "busy\u{7}"))]).await;
    assert_eq!(error, ConnectError::Closed(Some(close(1013, "busy "))));
    let message = Packet::Binary(Bytes::from_static(&[6, 0, 0, 0, 0, 0, 0, 0]));
    let error = refused_by([message, text("CONNECTED")]).await;
    assert_eq!(error, ConnectError::Unexpected);

    let (near, _far, back) = scripted([]);
    back.cut();
    let error = within(mux::builder().connect(near, Packets::default())).await;
    let broken = ConnectError::Transport("the pipe is broken".into());
    assert_eq!(error.map(drop), Err(broken));

    let (near, mut far, _) = scripted([]);
    far.close().await.unwrap();
    let error = within(mux::builder().connect(near, Packets::default())).await;
    assert_eq!(error.map(drop), Err(ConnectError::Closed(None)));
}

#[tokio::test(start_paused = true)]
async fn silence_and_pings_are_waited_for_no_longer_than_was_said() {
    for (limit, builder) in [
        (10, mux::builder()),
        (3, mux::builder().greeting_timeout(Duration::from_secs(3))),
    ] {
        let (near, _far, back) = scripted([]);
        let began = Instant::now();
        let pings = tokio::spawn(async move {
            loop {
                back.inject(Packet::Ping);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let error = builder.connect(near, Packets::default()).await;
        assert_eq!(error.map(drop), Err(ConnectError::TimedOut));
        assert_eq!(began.elapsed().as_secs(), limit);
        pings.abort();
    }
    // Nor does the wait for the close after a refusal, whatever comes instead.
    let began = Instant::now();
    let (near, _far, _) = scripted([text("Error: no"), text("never"), text("ending")]);
    let error = mux::builder().connect(near, Packets::default()).await;
    assert!(matches!(error, Err(ConnectError::Refused { .. })));
    assert_eq!(began.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_nothing_holds_up_neither_a_welcome_nor_a_refusal() {
    let full = || {
        let (near, far, [there, _]) = pipe(1);
        there.inject(text("in the way"));
        (near, far)
    };
    let began = Instant::now();
    let (near, _far) = full();
    let welcome = mux::builder().welcome(near, Packets::default()).await;
    assert_eq!(welcome.map(drop), Err(ConnectError::TimedOut));
    assert_eq!(began.elapsed().as_secs(), 10);

    let began = Instant::now();
    let (near, _far) = full();
    let refusing = mux::builder().refuse(near, Packets::default(), 1008, "no");
    refusing.await;
    assert_eq!(began.elapsed().as_secs(), 5);
    // A peer that reads, and then neither closes nor drops the connection.
    let (near, _far, _) = scripted([]);
    let began = Instant::now();
    let refusing = mux::builder().refuse(near, Packets::default(), 1008, "no");
    refusing.await;
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_does_not_wait_for_a_peer_that_goes_on_sending() {
    let large = Packet::Binary(Bytes::from(vec![0; 64 << 10]));
    for (packet, count) in [(Packet::Ping, 32), (text("more"), 32), (large, 5)] {
        for (count, seconds) in [(count - 1, 5), (count, 0)] {
            let (near, _far, _) = scripted(vec![packet.clone(); count]);
            let began = Instant::now();
            let refusing = mux::builder().refuse(near, Packets::default(), 1008, "no");
            refusing.await;
            assert_eq!(began.elapsed().as_secs(), seconds, "{count}");
        }
    }
}

/// A peer that floods meanwhile is read, and the refusal still ends in time.
#[tokio::test]
async fn a_flood_does_not_keep_a_refusal_from_ending() {
    let (near, mut far, [there, back]) = pipe(4);
    let flood = tokio::spawn(async move {
        loop {
            back.inject(Packet::Ping);
            back.inject(text("me first"));
            tokio::task::yield_now().await;
            if there.passed() >= 2 {
                break back;
            }
        }
    });
    let refusing = tokio::spawn(async move {
        mux::builder()
            .refuse(near, Packets::default(), 1008, "full")
            .await;
    });
    let back = within(flood).await.unwrap();
    assert_eq!(within(far.next()).await, Some(Ok(text("Error: full"))));
    let reason = close(1008, "full");
    assert_eq!(
        within(far.next()).await,
        Some(Ok(Packet::Close(reason.clone())))
    );
    back.inject(Packet::Close(reason));
    within(refusing).await.unwrap();
}

#[tokio::test]
async fn a_refusal_over_a_websocket_has_its_words_and_its_code() {
    let why = "no agent is connected for kohakuriver-vps-7 ".repeat(4);
    let (client, server) = websockets().await;
    let said = why.clone();
    let refusing = tokio::spawn(async move {
        let builder = mux::builder();
        builder.refuse(server, Tungstenite, 1011, &said).await;
    });
    let error = within(mux::builder().connect(client, Tungstenite)).await;
    let refused = ConnectError::Refused {
        reason: why,
        code: Some(1011),
    };
    assert_eq!(error.map(drop), Err(refused));
    within(refusing).await.unwrap();
}

/// As deployed parts close: with a code, in mid-session.
#[tokio::test]
async fn the_reason_of_a_close_reaches_the_driver() {
    let (client, mut server) = websockets().await;
    let (mux, driver) = mux::builder().opener(client, Tungstenite);
    let driver = tokio::spawn(driver);
    let frame = tokio_tungstenite::tungstenite::protocol::CloseFrame {
        code: 4001.into(),
        reason: "replaced".into(),
    };
    server.send(Message::Close(Some(frame))).await.unwrap();
    let ended = Err(TunnelError::Ended(Some(close(4001, "replaced"))));
    assert_eq!(within(mux.tunnel().closed()).await, ended);
    while let Some(Ok(_)) = within(server.next()).await {}
    assert_eq!(within(driver).await.unwrap(), ended);
}

#[tokio::test]
async fn a_tunnel_that_is_shut_down_with_a_reason_says_it() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let _open = tunnel.stream().await;
        tunnel.far.shutdown_with(4001, "replaced");
        let ended = Err(TunnelError::Ended(Some(close(4001, "replaced"))));
        assert_eq!(within(tunnel.near.tunnel().closed()).await, ended);
        assert_eq!(within(tunnel.far_driver).await.unwrap(), Ok(()));
    }
    // A WebSocket has room for 123 bytes.
    let tunnel = Link::WebSocket.v2().await;
    let why = "é".repeat(100);
    tunnel.far.shutdown_with(4001, &why);
    let ended = Err(TunnelError::Ended(Some(close(4001, &why[..122]))));
    assert_eq!(within(tunnel.near.tunnel().closed()).await, ended);
}

#[tokio::test]
async fn a_transport_without_texts_has_no_greeting() {
    let (near, far) = tokio::io::duplex(100);
    let connect = mux::builder().connect(mux::length_prefixed(near), Plain);
    assert_eq!(connect.await.map(drop), Err(ConnectError::NoTexts));
    let welcome = mux::builder().welcome(mux::length_prefixed(far), Plain);
    assert_eq!(welcome.await.map(drop), Err(ConnectError::NoTexts));
}

/// Ids pass through relays, so those of two clients of one container must differ (PROTOCOL.md
/// section 2.3).
#[tokio::test]
async fn the_first_id_is_random_unless_it_is_given() {
    let first_id = |config: Config| async move {
        let (near, mut far, _) = pipe(100);
        let (mux, driver) = mux::builder()
            .config(config)
            .opener(near, Packets::default());
        tokio::spawn(driver);
        let _stream = mux.open_tcp(1).unwrap();
        loop {
            if let Some(Ok(Packet::Binary(message))) = within(far.next()).await {
                if let Ok(Frame::Connect { id, .. }) = Frame::decode(message) {
                    return id.0;
                }
            }
        }
    };
    // The odds are 1 in 2^32 for each pair.
    let ids = [
        first_id(Config::default()).await,
        first_id(Config::default()).await,
    ];
    assert_ne!(ids[0], ids[1]);
    assert_ne!(ids[0].wrapping_add(1), ids[1], "counted up, not random");
    let mut config = Config::default();
    config.first_id = Some(7);
    assert_eq!(first_id(config).await, 7);
}
