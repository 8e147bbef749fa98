//! Flows of datagrams.

use bytes::Bytes;
use kohakuriver_tunnel::session::{Config, Reason, Version};

use super::tunnel::{Link, accept_udp, noise, piped, within};

#[tokio::test]
async fn datagrams_of_every_size_keep_their_bounds() {
    const SIZES: [usize; 12] = [0, 1, 7, 8, 9, 512, 1472, 4095, 4096, 9000, 65_506, 65_507];
    for link in Link::BOTH {
        for version in [Version::V1, Version::V2] {
            let mut tunnel = link.tunnel(version, Config::default()).await;
            let (near, far) = tunnel.flow().await;
            for (seed, len) in (0..).zip(SIZES) {
                near.send(Bytes::from(noise(seed, len))).unwrap();
            }
            for (seed, len) in (0..).zip(SIZES) {
                let datagram = within(far.recv()).await.unwrap();
                assert!(datagram == noise(seed, len), "{len} bytes, {version:?}");
                far.send(datagram).unwrap();
            }
            for (seed, len) in (0..).zip(SIZES) {
                assert!(within(near.recv()).await.unwrap() == noise(seed, len));
            }
        }
    }
}

#[tokio::test]
async fn one_that_is_too_long_does_not_end_the_flow() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (near, far) = tunnel.flow().await;
        near.send(Bytes::from(noise(1, 65_508))).unwrap();
        near.send(Bytes::from_static(b"next")).unwrap();
        assert_eq!(within(far.recv()).await.unwrap()[..], *b"next");
        assert_eq!(tunnel.near.tunnel().stats().datagrams_dropped_sending, 1);
    }
}

#[tokio::test]
async fn the_oldest_are_dropped_and_counted() {
    let mut config = Config::default();
    config.datagram_queue = 10;
    let (mut tunnel, [there, _]) = piped(Version::V2, config);
    let (near, far) = tunnel.flow().await;
    // No other task runs between these, so all datagrams wait in the sender's queue.
    for number in 0..100_u8 {
        near.send(Bytes::from(vec![number])).unwrap();
    }
    for number in 90..100 {
        assert_eq!(within(far.recv()).await.unwrap()[..], [number]);
    }
    assert_eq!(tunnel.near.tunnel().stats().datagrams_dropped_sending, 90);

    // Now the receiver's queue: it reads only after all have arrived.
    for number in 0..100_u8 {
        let before = there.passed();
        near.send(Bytes::from(vec![number])).unwrap();
        while there.passed() == before {
            tokio::task::yield_now().await;
        }
    }
    within(async {
        while tunnel.far.stats().datagrams_dropped_receiving < 90 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for number in 90..100 {
        assert_eq!(within(far.recv()).await.unwrap()[..], [number]);
    }
    assert_eq!(tunnel.far.stats().datagrams_dropped_receiving, 90);
    let (near, far) = (tunnel.near.tunnel().stats(), tunnel.far.stats());
    assert_eq!((near.unsent, far.unread), (0, 0));
}

#[tokio::test]
async fn the_peer_of_a_dropped_flow_reads_to_the_end() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (near, far) = tunnel.flow().await;
        near.send(Bytes::from_static(b"bye")).unwrap();
        drop(near);
        assert_eq!(within(far.recv()).await.unwrap(), "bye");
        let reset = within(far.recv()).await.unwrap_err();
        assert_eq!(reset.reason, Reason::Gone);
        assert!(far.send(Bytes::new()).is_err());
    }
}

#[tokio::test]
async fn a_flow_is_reset_and_refused_with_a_reason() {
    let mut tunnel = Link::Pipe.v2().await;
    let (near, far) = tunnel.flow().await;
    far.reset(Reason::Unreachable, "no route");
    let reset = within(near.recv()).await.unwrap_err();
    assert_eq!(
        (reset.reason, &*reset.text),
        (Reason::Unreachable, "no route")
    );

    let refused = tunnel.near.open_udp(1).unwrap();
    let incoming = within(tunnel.acceptor.accept()).await.unwrap();
    incoming.reject(Reason::Denied, "");
    let reset = within(refused.recv()).await.unwrap_err();
    assert_eq!(reset.reason, Reason::Denied);
}

#[tokio::test]
async fn datagrams_may_go_ahead_of_the_answer() {
    let mut tunnel = Link::Pipe.v2().await;
    let near = tunnel.near.open_udp(53).unwrap();
    near.send(Bytes::from_static(b"query")).unwrap();
    let far = accept_udp(&mut tunnel.acceptor).await;
    assert_eq!(within(far.recv()).await.unwrap(), "query");
}
