//! Peers that break the protocol, or say too much.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use kohakuriver_tunnel::mux::{self, TunnelError};
use kohakuriver_tunnel::session::{Config, Reason, Version, Violation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use super::pipe::Packet;
use super::tunnel::{Tungstenite, accept_tcp, noise, piped, run_others, websockets, within};

#[tokio::test]
async fn text_in_the_middle_ends_the_tunnel() {
    let (mut tunnel, [there, _]) = piped(Version::V2, Config::default());
    let (mut near, _far) = tunnel.stream().await;
    there.inject(Packet::Text("Error: the \u{1b}runner is gone".into()));
    let unexpected = TunnelError::Unexpected("Error: the  runner is gone".into());
    assert_eq!(within(tunnel.far.closed()).await, Err(unexpected));
    assert!(within(near.read(&mut [0])).await.is_err());

    let (client, mut server) = websockets().await;
    let (mux, driver) = mux::builder().opener(client, Tungstenite);
    tokio::spawn(driver);
    let stream = mux.open_tcp(1).unwrap();
    server.send(Message::text("hello?")).await.unwrap();
    let unexpected = TunnelError::Unexpected("hello?".into());
    assert_eq!(within(mux.tunnel().closed()).await, Err(unexpected));
    let reset = within(stream.established()).await.unwrap_err();
    assert_eq!(reset.reason, Reason::Gone);
}

#[tokio::test]
async fn a_flood_of_pings_starves_nobody() {
    let (client, server) = websockets().await;
    let (mut acceptor, driver) = mux::builder().acceptor(server, Tungstenite);
    tokio::spawn(driver);
    let (mut sink, mut stream) = client.split();
    let drain = tokio::spawn(async move { while let Some(Ok(_)) = stream.next().await {} });
    let flood = tokio::spawn(async move {
        for turn in 0..20_000 {
            let ping = Message::Ping(Bytes::from_static(b"?"));
            sink.feed(ping).await.unwrap();
            if turn == 10_000 {
                let connect = Bytes::from_static(&[1, 0, 0, 0, 0, 5, 0, 80]);
                sink.send(Message::Binary(connect)).await.unwrap();
            }
        }
        sink.flush().await.unwrap();
        sink
    });
    let mut far = accept_tcp(&mut acceptor).await;
    far.write_all(b"alive").await.unwrap();
    let mut sink = within(flood).await.unwrap();
    let data = Bytes::from_static(&[3, 0, 0, 0, 0, 5, 0, 0, b'!']);
    sink.send(Message::Binary(data)).await.unwrap();
    let mut got = [0];
    within(far.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"!");
    drop((sink, far, acceptor));
    drain.abort();
}

#[tokio::test]
async fn garbage_is_counted_and_kills_nothing() {
    let (mut tunnel, [there, back]) = piped(Version::V2, Config::default());
    let (mut near, mut far) = tunnel.stream().await;
    for turn in 0..10_000_u64 {
        let garbage = noise(turn, turn as usize % 40);
        // Avoids events that would touch the stream.
        let names_it = garbage.get(2..6) == Some(&[0, 0, 0, 1]);
        if !names_it && garbage.first() != Some(&9) {
            there.inject(Packet::Binary(garbage.clone().into()));
            back.inject(Packet::Binary(garbage.into()));
        }
        if turn % 1000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    near.write_all(b"sane").await.unwrap();
    let mut got = [0; 4];
    within(far.read_exact(&mut got)).await.unwrap();
    far.write_all(b"also").await.unwrap();
    within(near.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"also");
    assert!(tunnel.near.tunnel().stats().violations > 1000);
    assert!(tunnel.near.tunnel().last_violation().is_some());
    assert!(tunnel.far.stats().violations > 1000);
}

#[tokio::test]
async fn a_violation_is_told_to_those_who_wait_for_one() {
    let (tunnel, [_, back]) = piped(Version::V2, Config::default());
    let watched = tunnel.near.tunnel().clone();
    for seen in 0..3 {
        let watched = watched.clone();
        let waiting = tokio::spawn(async move { watched.violation(seen).await });
        run_others().await;
        assert!(!waiting.is_finished());
        back.inject(Packet::Binary(Bytes::from_static(b"short")));
        let violation = within(waiting).await.unwrap();
        assert!(matches!(violation, Some(Violation::Malformed(_))));
    }
    // One that was missed is told at once.
    assert!(within(watched.violation(2)).await.is_some());
    watched.shutdown();
    assert_eq!(within(watched.violation(3)).await, None);
}
