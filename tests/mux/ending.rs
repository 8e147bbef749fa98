//! A tunnel that is closed as a whole, by either end.

use std::time::Duration;

use futures_util::FutureExt;
use kohakuriver_tunnel::mux::TunnelError;
use kohakuriver_tunnel::session::OpenError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::tunnel::{Link, within};

#[tokio::test]
async fn closing_waits_for_what_is_open_and_lets_nothing_new_begin() {
    for link in Link::BOTH {
        for by_opener in [true, false] {
            let mut tunnel = link.v2().await;
            let (mut near, mut far) = tunnel.stream().await;
            let (closer, other) = match by_opener {
                true => (tunnel.near.tunnel().clone(), tunnel.far.clone()),
                false => (tunnel.far.clone(), tunnel.near.tunnel().clone()),
            };
            let closing = tokio::spawn(async move { closer.close().await });
            within(tunnel.near.tunnel().draining()).await;
            assert_eq!(tunnel.near.open_tcp(1).unwrap_err(), OpenError::Draining);
            near.write_all(b"still here").await.unwrap();
            let mut got = [0; 10];
            within(far.read_exact(&mut got)).await.unwrap();
            assert!(!closing.is_finished());
            drop((near, far));
            // The remaining handles do not keep it up.
            assert_eq!(within(closing).await.unwrap(), Ok(()));
            let ended = within(other.closed()).await;
            assert!(matches!(ended, Err(TunnelError::Ended(_))), "{ended:?}");
            drop(tunnel);
        }
    }
}

/// A handle of what has ended needs no tunnel, and can still be read.
#[tokio::test]
async fn closing_does_not_wait_for_handles_of_ended_streams() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (mut near, mut far) = tunnel.stream().await;
        let refused = tunnel.near.open_tcp(1).unwrap();
        drop(within(tunnel.acceptor.accept()).await);
        within(refused.established()).await.unwrap_err();
        far.write_all(b"the end").await.unwrap();
        for end in [&mut near, &mut far] {
            end.shutdown().await.unwrap();
        }
        let closed = within(tunnel.near.tunnel().close()).await;
        assert_eq!(closed, Ok(()));
        let mut got = String::new();
        within(near.read_to_string(&mut got)).await.unwrap();
        assert_eq!(got, "the end");
        drop((refused, far));
    }
}

#[tokio::test]
async fn closing_an_idle_tunnel_is_over_at_once() {
    for link in Link::BOTH {
        let tunnel = link.v2().await;
        assert_eq!(within(tunnel.near.tunnel().close()).await, Ok(()));
        assert_eq!(within(tunnel.near_driver).await.unwrap(), Ok(()));
        assert!(within(tunnel.far_driver).await.unwrap().is_err());
        // Again, after the end.
        assert_eq!(tunnel.near.tunnel().close().now_or_never(), Some(Ok(())));
    }
}

#[tokio::test]
async fn a_close_that_is_given_up_goes_on_and_a_shutdown_hurries_it() {
    let mut tunnel = Link::Pipe.v2().await;
    let (_near, _far) = tunnel.stream().await;
    let closing = timeout(Duration::from_millis(20), tunnel.near.tunnel().close());
    closing.await.unwrap_err();
    assert_eq!(tunnel.near.open_tcp(1).unwrap_err(), OpenError::Draining);
    tunnel.near.tunnel().shutdown();
    assert_eq!(within(tunnel.near.tunnel().closed()).await, Ok(()));
}

/// The peer reads nothing, so the tunnel does not end yet.
#[tokio::test]
async fn a_tunnel_that_nobody_needs_any_more_drains() {
    let mut tunnel = Link::Pipe.v2().await;
    let (mut near, _far) = tunnel.stream().await;
    let watched = tunnel.near.tunnel().clone();
    let waiting = tokio::spawn({
        let watched = watched.clone();
        async move { watched.draining().await }
    });
    let write = near.write_all(&[7; 1 << 20]);
    assert!(timeout(Duration::from_millis(50), write).await.is_err());
    assert!(!waiting.is_finished());
    drop((near, tunnel.near));
    within(waiting).await.unwrap();
    assert_eq!(watched.close_reason(), None);
}
