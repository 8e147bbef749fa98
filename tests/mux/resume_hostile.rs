//! Peers of a tunnel that outlives its transports, which ask for more than they take.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use kohakuriver_tunnel::mux::{self, Admission, Binding, Keeper, KeeperLimits, TunnelError};
use kohakuriver_tunnel::resume::{self, EndReason, Message, Open, Secret};
use kohakuriver_tunnel::wire::{ClientId, Frame};

use super::pipe::{Packet, Packets, pipe};
use super::tunnel::noise;

/// Answers are kept until they are acknowledged, and a peer may ask for ever.
#[tokio::test(start_paused = true)]
async fn a_peer_that_asks_and_acknowledges_nothing_is_given_up() {
    let keeper = Keeper::new(
        resume::Config::default(),
        KeeperLimits::default(),
        |bytes| bytes.copy_from_slice(&noise(1, bytes.len())),
    );
    let (mut near, far, _) = pipe(64);
    let open = Open {
        tunnel: 0,
        secret: Secret::new([0; Secret::LEN]),
        attempt: 1,
        received: 0,
        keep: 120,
        ring: 1 << 20,
    };
    let open = Message::Open(open).to_bytes();
    near.send(Packet::Binary(open)).await.unwrap();
    let binding = Binding::new("route", "group", "peer");
    let admitted = mux::builder().admit(&keeper, far, Packets::default(), binding);
    let Ok(Admission::New(opening)) = admitted.await else {
        panic!("not admitted")
    };
    let (_acceptor, driver) = opening.acceptor();
    let driver = tokio::spawn(driver);
    let ping = Frame::Ping {
        id: ClientId::KEEPALIVE,
        payload: Bytes::from_static(&[b'?'; 125]),
    };
    let ping = Packet::Binary(ping.to_bytes());
    let (mut sink, mut stream) = near.split();
    let asking = tokio::spawn(async move { while sink.feed(ping.clone()).await.is_ok() {} });
    let mut most = 0;
    let limit = tokio::time::Instant::now() + Duration::from_secs(3600);
    loop {
        let packet = tokio::time::timeout_at(limit, stream.next()).await;
        let Ok(Some(Ok(Packet::Binary(message)))) = packet else {
            panic!("{packet:?} after {most} bytes")
        };
        if let Ok(Message::End { reason, .. }) = Message::decode(&message) {
            assert_eq!(reason, EndReason::Overflow);
            break;
        }
        most = most.max(keeper.stats().ring_bytes);
        assert!(most <= 6 << 20, "{most} bytes are kept");
    }
    assert!(most > 4 << 20);
    asking.abort();
    drop(stream);
    let Err(TunnelError::NotResumed(ended)) = driver.await.unwrap() else {
        panic!("the tunnel ended otherwise")
    };
    assert_eq!(ended.reason, EndReason::Overflow);
}
