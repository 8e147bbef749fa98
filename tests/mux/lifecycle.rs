//! How a tunnel drains and ends.

use std::io;
use std::time::Duration;

use kohakuriver_tunnel::mux::{self, Incoming, TunnelDatagram, TunnelError, TunnelStream};
use kohakuriver_tunnel::session::{Config, OpenError, Reason, Reset, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::pipe::{Packets, pipe};
use super::tunnel::{
    Ended, Link, Tunnel, accept_tcp, builder, noise, piped, run_others, transmitted, within,
};

/// The peer's end, as it looks without a reason.
const ENDED: Ended = Err(TunnelError::Ended(None));

#[tokio::test]
async fn the_last_handle_ends_the_tunnel() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (mut near, mut far) = tunnel.stream().await;
        let Tunnel {
            near: mux,
            near_driver,
            far_driver,
            ..
        } = tunnel;
        near.write_all(b"the end").await.unwrap();
        drop(mux);
        assert!(!near_driver.is_finished());
        drop(near);
        let mut got = String::new();
        within(far.read_to_string(&mut got)).await.unwrap();
        assert_eq!(got, "the end");
        drop(far);
        assert_eq!(within(near_driver).await.unwrap(), Ok(()));
        // The driver may have done it already.
        let other = within(far_driver).await.unwrap();
        assert!(matches!(other, Ok(()) | Err(TunnelError::Ended(_))));
    }
}

/// A `Tunnel` handle of any end keeps nothing up.
#[tokio::test]
async fn the_tunnels_handle_does_not_hold_it() {
    let (near, far, _) = pipe(1000);
    let carrier = Packets::default();
    let (near_mux, near_driver) = mux::builder().opener(near, carrier);
    let (acceptor, far_driver) = mux::builder().acceptor(far, carrier);
    let near = [near_mux.tunnel().clone(), near_driver.tunnel().clone()];
    let far = [acceptor.tunnel().clone(), far_driver.tunnel().clone()];
    let near_driver = tokio::spawn(near_driver);
    let far_driver = tokio::spawn(far_driver);
    drop(near_mux);
    assert_eq!(within(near_driver).await.unwrap(), Ok(()));
    assert_eq!(within(far_driver).await.unwrap(), ENDED);
    for (near, far) in near.iter().zip(far) {
        assert_eq!(near.close_reason(), Some(Ok(())));
        assert_eq!(within(far.closed()).await, ENDED);
    }
    drop(acceptor);
}

#[tokio::test]
async fn shutdown_and_flush_of_a_reset_stream_fail() {
    let mut tunnel = Link::Pipe.v2().await;
    let (mut near, far) = tunnel.stream().await;
    near.write_all(b"lost").await.unwrap();
    near.flush().await.unwrap();
    far.reset(Reason::Refused, "no");
    within(near.read(&mut [0])).await.unwrap_err();
    for ended in [near.flush().await, near.shutdown().await] {
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}

/// A program that only serves streams drops all other handles, and the peer is informed.
#[tokio::test]
async fn what_is_not_served_is_refused() {
    let mut tunnel = Link::Pipe.v2().await;
    let flow = tunnel.near.open_udp(53).unwrap();
    let stream = tunnel.near.open_tcp(80).unwrap();
    let server = tokio::spawn(async move {
        let mut served = Vec::new();
        while let Some(incoming) = tunnel.acceptor.accept().await {
            if let Incoming::Tcp(incoming) = incoming {
                served.push(incoming.accept());
            }
        }
    });
    let reset = within(flow.recv()).await.unwrap_err();
    assert_eq!(reset.reason, Reason::Refused);
    within(stream.established()).await.unwrap();
    server.abort();
}

#[tokio::test]
async fn what_is_asked_for_can_be_refused_as_either_kind() {
    let mut tunnel = Link::Pipe.v2().await;
    let stream = tunnel.near.open_tcp(80).unwrap();
    let flow = tunnel.near.open_udp(53).unwrap();
    let Some(Incoming::Tcp(incoming)) = within(tunnel.acceptor.accept()).await else {
        panic!("no stream")
    };
    assert_eq!(incoming.port(), 80);
    assert!(incoming.id().is_some());
    incoming.reject(Reason::Denied, "no stream here");
    let Some(Incoming::Udp(incoming)) = within(tunnel.acceptor.accept()).await else {
        panic!("no flow")
    };
    assert_eq!(incoming.port(), 53);
    assert!(incoming.id().is_some());
    Incoming::from(incoming).reject(Reason::Denied, "no flow here");
    let reset = within(stream.established()).await.unwrap_err();
    assert_eq!(reset, Reset::new(Reason::Denied, "no stream here"));
    let reset = within(flow.recv()).await.unwrap_err();
    assert_eq!(reset, Reset::new(Reason::Denied, "no flow here"));
}

/// Deployed runners pass ids through, so the ids of two clients must differ.
#[tokio::test]
async fn the_ids_of_two_openers_do_not_meet() {
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let mut tunnel = Link::Pipe.v2().await;
        for _ in 0..20 {
            let _stream = tunnel.near.open_tcp(1).unwrap();
            let incoming = within(tunnel.acceptor.accept()).await.unwrap();
            assert!(seen.insert(incoming.id().unwrap()));
        }
    }
}

#[tokio::test]
async fn the_other_side_sees_the_end() {
    for link in Link::BOTH {
        let Tunnel {
            near,
            far,
            mut acceptor,
            near_driver,
            far_driver,
        } = link.v2().await;
        drop(near);
        assert_eq!(within(near_driver).await.unwrap(), Ok(()));
        let closed = within(far.closed()).await;
        assert!(matches!(closed, Err(TunnelError::Ended(_))));
        assert!(within(acceptor.accept()).await.is_none());
        assert_eq!(far.close_reason(), Some(closed.clone()));
        assert_eq!(within(far_driver).await.unwrap(), closed);
    }
}

/// The first end to finish closes its side at once. Unread input must not destroy its last data.
#[tokio::test]
async fn what_was_said_last_arrives_though_its_sender_is_gone() {
    let (near, far, [_, back]) = pipe(1000);
    let carrier = Packets::default();
    let (opener, driver) = mux::builder().opener(near, carrier);
    let near_driver = tokio::spawn(driver);
    let (mut acceptor, driver) = mux::builder().acceptor(far, carrier);
    let far_driver = tokio::spawn(driver);

    let (mut read, mut write) = opener.open_tcp(1).unwrap().into_split();
    write.shutdown().await.unwrap();
    let mut service = accept_tcp(&mut acceptor).await;
    assert_eq!(within(service.read(&mut [0; 9])).await.unwrap(), 0);
    back.hold(true);
    let data = noise(5, 250_000);
    for piece in data.chunks(1000) {
        service.write_all(piece).await.unwrap();
        transmitted(acceptor.tunnel()).await;
    }
    drop((service, acceptor));
    run_others().await;
    back.hold(false);
    let mut got = Vec::new();
    within(read.read_to_end(&mut got)).await.unwrap();
    assert!(got == data);
    assert_eq!(within(far_driver).await.unwrap(), Ok(()));
    assert_eq!(within(near_driver).await.unwrap(), ENDED);
}

#[tokio::test]
async fn drain_lets_streams_go_on_and_nothing_new_begin() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (mut near, mut far) = tunnel.stream().await;
        let watcher = tokio::spawn({
            let near = tunnel.near.tunnel().clone();
            async move { near.draining().await }
        });
        let own = tokio::spawn({
            let far = tunnel.far.clone();
            async move { far.draining().await }
        });
        tokio::task::yield_now().await;
        tunnel.far.drain();
        within(own).await.unwrap();
        within(watcher).await.unwrap();
        assert_eq!(tunnel.near.open_tcp(1).unwrap_err(), OpenError::Draining);
        near.write_all(b"still here").await.unwrap();
        let mut got = [0; 10];
        within(far.read_exact(&mut got)).await.unwrap();
        assert_eq!(tunnel.near.tunnel().close_reason(), None);
    }
}

#[tokio::test]
async fn shutdown_resets_and_ends() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (mut near, mut far) = tunnel.stream().await;
        let waiting = tokio::spawn(async move { far.read(&mut [0; 9]).await });
        tokio::task::yield_now().await;
        tunnel.near.tunnel().shutdown();
        assert_eq!(within(tunnel.near.tunnel().closed()).await, Ok(()));
        let error = within(waiting).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(near.write_all(b"x").await.is_err());
        let closed = within(tunnel.far.closed()).await;
        assert!(matches!(closed, Err(TunnelError::Ended(_))));
        let refused = tunnel.near.open_tcp(1).unwrap_err();
        assert!(matches!(refused, OpenError::Closed | OpenError::Draining));
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_a_peer_that_does_not_read() {
    let mut config = Config::default();
    config.keepalive = None;
    let (near, _far, _wires) = pipe(1);
    let carrier = Packets::default();
    let (mux, driver) = mux::builder().config(config).opener(near, carrier);
    let driver = tokio::spawn(driver);
    let _streams: Vec<_> = (0..9).map(|port| mux.open_tcp(port).unwrap()).collect();
    let began = tokio::time::Instant::now();
    mux.tunnel().shutdown();
    assert_eq!(within(mux.tunnel().closed()).await, Ok(()));
    let passed = began.elapsed();
    assert!(passed <= Duration::from_secs(1), "{passed:?}");
    assert_eq!(within(driver).await.unwrap(), Ok(()));
}

/// Tasks that wait for every kind of event.
struct Waiting {
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Waiting {
    async fn on(tunnel: &mut Tunnel) -> Self {
        let (reader, _far) = tunnel.stream().await;
        let (writer, far_end) = tunnel.stream().await;
        let (near_flow, _far_flow) = tunnel.flow().await;
        let unanswered = tunnel.near.open_tcp(9).unwrap();
        let (mut read, _write) = reader.into_split();
        let (_read, mut write) = writer.into_split();
        let watched = tunnel.near.tunnel().clone();
        let mut watchers: Vec<tokio::task::JoinHandle<()>> = Vec::new();
        watchers.push(tokio::spawn(async move {
            let _keep = (_far, _write);
            read.chunk().await.unwrap_err();
        }));
        watchers.push(tokio::spawn(async move {
            let _keep = (far_end, _read);
            while write.write_all(&[0; 10_000]).await.is_ok() {}
            write.capacity().await.unwrap_err();
        }));
        watchers.push(tokio::spawn(async move {
            let _keep: TunnelDatagram = _far_flow;
            near_flow.recv().await.unwrap_err();
        }));
        watchers.push(tokio::spawn(async move {
            let unanswered: TunnelStream = unanswered;
            unanswered.established().await.unwrap_err();
        }));
        watchers.push(tokio::spawn({
            let watched = watched.clone();
            async move {
                watched.closed().await.unwrap_err();
            }
        }));
        watchers.push(tokio::spawn(async move { watched.draining().await }));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(watchers.iter().all(|watcher| !watcher.is_finished()));
        Self { tasks: watchers }
    }

    async fn are_woken(self) {
        for task in self.tasks {
            within(task).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_cut_transport_wakes_everyone() {
    let (mut tunnel, wires) = piped(Version::V2, Config::default());
    let waiting = Waiting::on(&mut tunnel).await;
    for wire in wires {
        wire.cut();
    }
    waiting.are_woken().await;
    let closed = within(tunnel.near.tunnel().closed()).await;
    let broken = TunnelError::Transport("the pipe is broken".into());
    assert_eq!(closed, Err(broken));
    assert_eq!(within(tunnel.near_driver).await.unwrap(), closed);
}

#[tokio::test]
async fn a_dropped_driver_wakes_everyone() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let waiting = Waiting::on(&mut tunnel).await;
        tunnel.near_driver.abort();
        waiting.are_woken().await;
        let closed = within(tunnel.near.tunnel().closed()).await;
        assert_eq!(closed, Err(TunnelError::Dropped));
        assert!(tunnel.near.open_tcp(1).is_err());
        within(tunnel.far.closed()).await.unwrap_err();
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_peer_is_noticed() {
    for version in [Version::V1, Version::V2] {
        let (near, _silent, _wires) = pipe(8);
        let carrier = Packets { probes: true };
        let (mux, driver) = mux::builder().version(version).opener(near, carrier);
        tokio::spawn(driver);
        let began = tokio::time::Instant::now();
        let mut stream = mux.open_tcp(1).unwrap();
        let error = stream.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(mux.tunnel().closed().await, Err(TunnelError::PeerDead));
        let passed = began.elapsed().as_secs();
        assert!((29..=31).contains(&passed), "{version:?}: {passed} s");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_lives() {
    for probes in [true, false] {
        for version in [Version::V1, Version::V2] {
            let (near, far, wires) = pipe(8);
            let carrier = Packets { probes };
            let builder = builder(version, Config::default());
            let (mux, driver) = builder.clone().opener(near, carrier);
            tokio::spawn(driver);
            let (mut acceptor, driver) = builder.acceptor(far, carrier);
            tokio::spawn(driver);
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let closed = mux.tunnel().close_reason();
            assert_eq!(closed, None, "{version:?}, probes {probes}");
            let passed = wires[0].passed() + wires[1].passed();
            assert!(passed <= 1000, "{passed} messages in an idle hour");
            let stream = mux.open_tcp(1).unwrap();
            let _far = accept_tcp(&mut acceptor).await;
            stream.established().await.unwrap();
        }
    }
}

/// A tunnel without other deadlines, and the ends of a stream of which the near one has finished.
async fn half_closed() -> (Tunnel, [TunnelStream; 2], Duration) {
    let mut config = Config::default();
    config.keepalive = None;
    let linger = config.linger;
    let (mut tunnel, _) = piped(Version::V2, config);
    let (mut near, far) = tunnel.stream().await;
    near.shutdown().await.unwrap();
    (tunnel, [near, far], linger)
}

/// The deadline of a released stream counts from its release.
#[tokio::test(start_paused = true)]
async fn a_stream_let_go_after_a_silence_has_its_full_linger() {
    let (tunnel, [near, _far], linger) = half_closed().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    drop(near);
    tokio::time::sleep(linger - Duration::from_millis(100)).await;
    assert_eq!(tunnel.near.tunnel().stats().streams, 1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(tunnel.near.tunnel().stats().streams, 0);
}

/// So has one that is let go after the timer was set for another, which ended by itself.
#[tokio::test(start_paused = true)]
async fn a_timer_that_is_no_longer_needed_hides_no_deadline() {
    let (mut tunnel, [near, _far], linger) = half_closed().await;
    let (ending, other) = tunnel.stream().await;
    drop(ending);
    tokio::time::sleep(linger / 2).await;
    drop(other);
    tokio::time::sleep(2 * linger).await;
    assert_eq!(tunnel.near.tunnel().stats().streams, 1);
    drop(near);
    tokio::time::sleep(linger + Duration::from_millis(100)).await;
    assert_eq!(tunnel.near.tunnel().stats().streams, 0);
}
