//! How a tunnel begins to end, and ends.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use kohakuriver_tunnel::mux::{self, Closed, TunnelDatagram, TunnelStream};
use kohakuriver_tunnel::session::{Config, OpenError, Reason, Role, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use super::pipe::{Packet, Packets, pipe};
use super::tunnel::{Link, Tungstenite, Tunnel, noise, piped, websockets, within};

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
        assert_eq!(within(near_driver).await.unwrap(), Closed::Finished);
        // It may have been done by itself.
        let other = within(far_driver).await.unwrap();
        assert!(matches!(other, Closed::Ended | Closed::Finished));
    }
}

/// An opener is never asked for anything: its acceptor, forgotten in a variable, keeps nothing up.
#[tokio::test]
async fn the_acceptor_of_an_opener_does_not_hold_the_tunnel() {
    let (near, far, _) = pipe(1000);
    let (config, carrier) = (Config::default(), Packets::default());
    let (near_mux, _acceptor, near_driver) =
        mux::connect(near, carrier, Role::Opener, Version::V2, config.clone());
    let (_, acceptor, far_driver) = mux::connect(far, carrier, Role::Acceptor, Version::V2, config);
    let near_driver = tokio::spawn(near_driver);
    let far_driver = tokio::spawn(far_driver);
    drop(near_mux);
    assert_eq!(within(near_driver).await.unwrap(), Closed::Finished);
    assert_eq!(within(far_driver).await.unwrap(), Closed::Ended);
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

/// Accepted as what it is not, a connection fails at both ends instead of doing nothing.
#[tokio::test]
async fn what_is_accepted_as_the_wrong_kind_is_refused() {
    let mut tunnel = Link::Pipe.v2().await;
    let flow = tunnel.near.open_udp(53).unwrap();
    let mut accepted = within(tunnel.acceptor.accept()).await.unwrap().accept_tcp();
    let error = within(accepted.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    accepted.write_all(b"x").await.unwrap_err();
    let reset = within(flow.recv()).await.unwrap_err();
    assert_eq!(reset.reason, Reason::Denied);

    let stream = tunnel.near.open_tcp(80).unwrap();
    let accepted = within(tunnel.acceptor.accept()).await.unwrap().accept_udp();
    let reset = within(accepted.recv()).await.unwrap_err();
    assert_eq!(reset.reason, Reason::Denied);
    let reset = within(stream.established()).await.unwrap_err();
    assert_eq!(reset.reason, Reason::Denied);
}

/// Deployed runners pass ids through, so those of two clients must not meet.
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
        assert_eq!(within(near_driver).await.unwrap(), Closed::Finished);
        assert_eq!(within(far.closed()).await, Closed::Ended);
        assert!(within(acceptor.accept()).await.is_none());
        assert_eq!(far.is_closed(), Some(Closed::Ended));
        assert_eq!(within(far_driver).await.unwrap(), Closed::Ended);
    }
}

/// The first to go closes its side at once. What it said last must not be destroyed by what it no longer
/// reads.
#[tokio::test]
async fn what_was_said_last_arrives_though_its_sender_is_gone() {
    let config = Config::default();
    let (near, far, [_, back]) = pipe(1000);
    let carrier = Packets::default();
    let (opener, _, driver) = mux::connect(near, carrier, Role::Opener, Version::V2, config);
    let near_driver = tokio::spawn(driver);
    let config = Config::default();
    let (far, mut acceptor, driver) =
        mux::connect(far, carrier, Role::Acceptor, Version::V2, config);
    let far_driver = tokio::spawn(driver);

    let (mut read, mut write) = opener.open_tcp(1).unwrap().into_split();
    write.shutdown().await.unwrap();
    let mut service = within(acceptor.accept()).await.unwrap().accept_tcp();
    assert_eq!(within(service.read(&mut [0; 9])).await.unwrap(), 0);
    back.hold(true);
    let data = noise(5, 250_000);
    for piece in data.chunks(1000) {
        service.write_all(piece).await.unwrap();
        while far.stats().unsent > 0 {
            tokio::task::yield_now().await;
        }
    }
    drop((service, acceptor, far));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    back.hold(false);
    let mut got = Vec::new();
    within(read.read_to_end(&mut got)).await.unwrap();
    assert!(got == data);
    assert_eq!(within(far_driver).await.unwrap(), Closed::Finished);
    assert_eq!(within(near_driver).await.unwrap(), Closed::Ended);
}

#[tokio::test]
async fn drain_lets_streams_go_on_and_nothing_new_begin() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (mut near, mut far) = tunnel.stream().await;
        let watcher = tokio::spawn({
            let mux = tunnel.near.clone();
            async move { mux.draining().await }
        });
        let own = tokio::spawn({
            let mux = tunnel.far.clone();
            async move { mux.draining().await }
        });
        tokio::task::yield_now().await;
        tunnel.far.drain();
        within(own).await.unwrap();
        within(watcher).await.unwrap();
        assert_eq!(tunnel.near.open_tcp(1).unwrap_err(), OpenError::Draining);
        assert_eq!(tunnel.far.open_tcp(1).unwrap_err(), OpenError::NotOpener);
        near.write_all(b"still here").await.unwrap();
        let mut got = [0; 10];
        within(far.read_exact(&mut got)).await.unwrap();
        assert!(tunnel.near.is_closed().is_none());
    }
}

#[tokio::test]
async fn shutdown_resets_and_ends() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (mut near, mut far) = tunnel.stream().await;
        let waiting = tokio::spawn(async move { far.read(&mut [0; 9]).await });
        tokio::task::yield_now().await;
        tunnel.near.shutdown();
        assert_eq!(within(tunnel.near.closed()).await, Closed::Finished);
        let error = within(waiting).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(near.write_all(b"x").await.is_err());
        let closed = within(tunnel.far.closed()).await;
        assert_eq!(closed, Closed::Ended);
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
    let (mux, _, driver) = mux::connect(near, carrier, Role::Opener, Version::V2, config);
    let driver = tokio::spawn(driver);
    let _streams: Vec<_> = (0..9).map(|port| mux.open_tcp(port).unwrap()).collect();
    mux.shutdown();
    assert_eq!(within(mux.closed()).await, Closed::Finished);
    assert_eq!(within(driver).await.unwrap(), Closed::Finished);
}

/// Tasks that wait for everything there is to wait for.
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
        let mux = tunnel.near.clone();
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
            let mux = mux.clone();
            async move {
                mux.closed().await;
            }
        }));
        watchers.push(tokio::spawn(async move { mux.draining().await }));
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
    let closed = within(tunnel.near.closed()).await;
    assert_eq!(closed, Closed::Lost("the pipe is broken".into()));
    assert_eq!(within(tunnel.near_driver).await.unwrap(), closed);
}

#[tokio::test]
async fn a_dropped_driver_wakes_everyone() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let waiting = Waiting::on(&mut tunnel).await;
        tunnel.near_driver.abort();
        waiting.are_woken().await;
        assert_eq!(within(tunnel.near.closed()).await, Closed::Dropped);
        assert!(tunnel.near.open_tcp(1).is_err());
        within(tunnel.far.closed()).await;
    }
}

#[tokio::test]
async fn text_in_the_middle_ends_the_tunnel() {
    let (mut tunnel, [there, _]) = piped(Version::V2, Config::default());
    let (mut near, _far) = tunnel.stream().await;
    there.inject(Packet::Text("Error: the runner is gone".into()));
    assert!(matches!(within(tunnel.far.closed()).await, Closed::Lost(_)));
    assert!(within(near.read(&mut [0])).await.is_err());

    let (client, mut server) = websockets().await;
    let config = Config::default();
    let (mux, _, driver) = mux::connect(client, Tungstenite, Role::Opener, Version::V2, config);
    tokio::spawn(driver);
    let stream = mux.open_tcp(1).unwrap();
    server.send(Message::text("hello?")).await.unwrap();
    assert!(matches!(within(mux.closed()).await, Closed::Lost(_)));
    let reset = within(stream.established()).await.unwrap_err();
    assert_eq!(reset.reason, Reason::Gone);
}

#[tokio::test(start_paused = true)]
async fn a_dead_peer_is_noticed() {
    for version in [Version::V1, Version::V2] {
        let (near, _silent, _wires) = pipe(8);
        let carrier = Packets { probes: true };
        let config = Config::default();
        let (mux, _, driver) = mux::connect(near, carrier, Role::Opener, version, config);
        tokio::spawn(driver);
        let began = tokio::time::Instant::now();
        let mut stream = mux.open_tcp(1).unwrap();
        let error = stream.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(mux.closed().await, Closed::PeerDead);
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
            let join = || Config::default();
            let (mux, _a, driver) = mux::connect(near, carrier, Role::Opener, version, join());
            tokio::spawn(driver);
            let (_far, mut b, driver) = mux::connect(far, carrier, Role::Acceptor, version, join());
            tokio::spawn(driver);
            tokio::time::sleep(Duration::from_secs(3600)).await;
            assert_eq!(mux.is_closed(), None, "{version:?}, probes {probes}");
            let passed = wires[0].passed() + wires[1].passed();
            assert!(passed <= 1000, "{passed} messages in an idle hour");
            let stream = mux.open_tcp(1).unwrap();
            let _far = b.accept().await.unwrap().accept_tcp();
            stream.established().await.unwrap();
        }
    }
}

/// The deadline of a stream that nobody holds any more counts from when it was let go.
#[tokio::test(start_paused = true)]
async fn a_stream_let_go_after_a_silence_has_its_full_linger() {
    let mut config = Config::default();
    config.keepalive = None;
    let linger = config.linger;
    let (mut tunnel, _) = piped(Version::V2, config);
    let (mut near, _far) = tunnel.stream().await;
    near.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    drop(near);
    tokio::time::sleep(linger - Duration::from_millis(100)).await;
    assert_eq!(tunnel.near.stats().streams, 1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(tunnel.near.stats().streams, 0);
}

#[tokio::test]
async fn a_flood_of_pings_starves_nobody() {
    let (client, server) = websockets().await;
    let config = Config::default();
    let (_mux, mut acceptor, driver) =
        mux::connect(server, Tungstenite, Role::Acceptor, Version::V2, config);
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
    let mut far = within(acceptor.accept()).await.unwrap().accept_tcp();
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
        // Nothing that by chance speaks of the stream.
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
    assert!(tunnel.near.stats().violations > 1000);
    assert!(tunnel.far.stats().violations > 1000);
}
