//! Streams and flows go on after their transport is lost.

use super::*;

#[tokio::test]
async fn a_stream_survives_a_cut() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let (mux, driver) = server.client(mux::builder());
    let mut stream = first_stream(&mux, &mut accepted).await;
    assert!(mux.tunnel().is_attached());
    for cuts in 1..=5 {
        let mut changes = mux.tunnel().attachments();
        server.cut();
        resumed(&mut changes).await;
        ping_pong(&mut stream).await;
        assert_eq!(server.keeper.stats().resumed, cuts);
        assert_eq!(mux.tunnel().resume_stats().resumed, cuts);
    }
    assert!(accepted.try_recv().is_err(), "a new tunnel");
    drop((stream, mux));
    assert_eq!(within(driver).await.unwrap(), Ok(()));
    let driver = server.drivers.lock().unwrap().pop().unwrap();
    assert_eq!(within(driver).await.unwrap(), Err(TunnelError::Ended(None)));
    assert_eq!(server.keeper.stats().tunnels, 0);
}

/// Contents survive cuts after any number of packets, also while messages are sent again.
#[tokio::test(start_paused = true)]
async fn contents_survive_many_cuts() {
    let config = resume::Config::default().with_keep(Duration::from_secs(3600));
    let (mut server, mut accepted) = Server::new(config.clone());
    server.capacity.store(3, Ordering::Relaxed);
    let pieces = Config::default()
        .with_max_piece(1000)
        .with_contended_piece(1000);
    server.builder = mux::builder().config(pieces.clone());
    let (mux, driver) = server.client(mux::builder().config(pieces).resume(config));
    let first = mux.open_tcp(7).unwrap();
    let cutter = tokio::spawn({
        let server = server.clone();
        let tunnel = mux.tunnel().clone();
        async move {
            let mut changes = tunnel.attachments();
            for turn in 0_u64.. {
                // Each transport carries a few packets more than OPEN and OPENED.
                let wires = server.newest();
                let enough = 3 + noise(turn, 1)[0] as usize % 40;
                while wires[0].passed() + wires[1].passed() < enough {
                    tokio::task::yield_now().await;
                }
                match turn % 3 {
                    0 => wires[0].cut(),
                    1 => wires[1].cut(),
                    _ => server.cut(),
                }
                resumed(&mut changes).await;
            }
        }
    });
    echo(within_hours(accepted.recv()).await.unwrap());
    drop(first);
    within_hours(echoing(&mux, 8, 500_000).join_all()).await;
    let resumed = mux.tunnel().resume_stats();
    assert!(
        resumed.resumed > 100 && resumed.replayed > 100,
        "{resumed:?}"
    );
    cutter.abort();
    drop(mux);
    assert_eq!(within_hours(driver).await.unwrap(), Ok(()));
    assert!(accepted.try_recv().is_err());
}

/// As between an agent and its runner: the server opens connections at its client.
#[tokio::test]
async fn a_server_opens_connections_at_a_client_that_returns() {
    let (server, _accepted) = Server::new(resume::Config::default());
    let keeper = server.keeper.clone();
    let (muxes, mut opened) = mpsc::unbounded_channel();
    let wires = Arc::new(Mutex::new(Vec::new()));
    let dial = {
        let wires = Arc::clone(&wires);
        move || {
            let (near, far, both) = pipe(8);
            wires.lock().unwrap().push(both);
            let (keeper, muxes) = (keeper.clone(), muxes.clone());
            tokio::spawn(async move {
                let admitted = mux::builder().admit(&keeper, far, CARRIER, binding()).await;
                if let Ok(Admission::New(opening)) = admitted {
                    let (mux, driver) = opening.opener();
                    tokio::spawn(driver);
                    muxes.send(mux).unwrap();
                }
            });
            near
        }
    };
    let first = dial();
    let connector = move |_| ready(Ok(dial()));
    let (acceptor, driver) = mux::builder().resuming_acceptor(first, CARRIER, connector);
    tokio::spawn(driver);
    let tunnel = acceptor.tunnel().clone();
    echo(acceptor);
    let mux = within(opened.recv()).await.unwrap();
    let mut stream = mux.open_tcp(7).unwrap();
    ping_pong(&mut stream).await;
    for _ in 0..3 {
        let mut changes = tunnel.attachments();
        let last = wires.lock().unwrap().last().unwrap().clone();
        last[1].cut();
        stream.write_all(b"into the gap").await.unwrap();
        resumed(&mut changes).await;
        let mut got = [0; 12];
        within(stream.read_exact(&mut got)).await.unwrap();
        assert_eq!(&got, b"into the gap");
    }
}

/// No time passes for the session without a transport: neither keepalive nor linger.
#[tokio::test(start_paused = true)]
async fn the_sessions_time_stands_still_without_a_transport() {
    let config = resume::Config::default().with_keep(Duration::from_secs(7200));
    let (server, mut accepted) = Server::new(config.clone());
    let (mux, _driver) = server.client(mux::builder().resume(config));
    let mut stream = mux.open_tcp(7).unwrap();
    let mut acceptor = within(accepted.recv()).await.unwrap();
    let mut far = crate::tunnel::accept_tcp(&mut acceptor).await;
    stream.write_all(b"hello").await.unwrap();
    far.read_exact(&mut [0; 5]).await.unwrap();
    // Lingers: the far end never finishes.
    drop(stream);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut changes = mux.tunnel().attachments();
    server.refuses.store(3000, Ordering::Relaxed);
    server.cut();
    let resumption = resumed_in_hours(&mut changes).await;
    assert!(
        resumption.detached > Duration::from_secs(2000),
        "{resumption:?}"
    );
    assert_eq!(mux.tunnel().stats().streams, 1);
    assert_eq!(
        mux.tunnel().rtt().map(|rtt| rtt < Duration::from_secs(1)),
        Some(true)
    );
    tokio::time::sleep(Config::default().linger).await;
    assert_eq!(mux.tunnel().stats().streams, 0);
}

async fn resumed_in_hours(changes: &mut mux::Attachments) -> resume::Resumption {
    within_hours(async {
        loop {
            if let Attachment::Resumed(resumption) = changes.changed().await.unwrap() {
                return resumption;
            }
        }
    })
    .await
}

/// Datagrams are not sent again, and flows go on.
#[tokio::test]
async fn a_flow_goes_on_and_no_datagram_comes_twice() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let (mux, _driver) = server.client(mux::builder());
    let flow = mux.open_udp(53).unwrap();
    let mut acceptor = within(accepted.recv()).await.unwrap();
    let far = crate::tunnel::accept_udp(&mut acceptor).await;
    let mut last = None;
    for turn in 0..20_u8 {
        let mut changes = mux.tunnel().attachments();
        flow.send(Bytes::copy_from_slice(&[turn])).unwrap();
        if turn % 4 == 0 {
            server.cut();
            resumed(&mut changes).await;
            continue;
        }
        let got = within(far.recv()).await.unwrap()[0];
        assert!(last < Some(got), "{got} after {last:?}");
        last = Some(got);
        if got != turn {
            // One from before the cut.
            let got = within(far.recv()).await.unwrap()[0];
            assert_eq!(got, turn);
            last = Some(got);
        }
    }
}

/// Both rings are full and nobody reads; once somebody does, everything arrives. After a cut both
/// ends have more to send again than the transport takes, so they have to read meanwhile.
#[tokio::test]
async fn full_rings_and_stalled_readers_do_not_lock_up() {
    let config = resume::Config::default()
        .with_ring_min(512 << 10)
        .with_ring_max(512 << 10);
    let (mut server, mut accepted) = Server::new(config.clone());
    let pieces = Config::default()
        .with_max_piece(4000)
        .with_contended_piece(4000);
    server.builder = mux::builder().config(pieces.clone());
    server.capacity.store(100, Ordering::Relaxed);
    let (mux, _driver) = server.client(mux::builder().config(pieces).resume(config));
    const LEN: usize = 4 << 20;
    let streams: Vec<_> = (0..4).map(|_| mux.open_tcp(7).unwrap()).collect();
    let mut acceptor = within(accepted.recv()).await.unwrap();
    let mut ends = streams;
    for _ in 0..4 {
        ends.push(crate::tunnel::accept_tcp(&mut acceptor).await);
    }
    let mut readers = Vec::new();
    let mut writers = Vec::new();
    for (seed, end) in ends.into_iter().enumerate() {
        let (read, mut write) = end.into_split();
        readers.push(read);
        writers.push(tokio::spawn(async move {
            write.write_all(&noise(seed as u64 % 4, LEN)).await.unwrap();
            write.shutdown().await.unwrap();
        }));
    }
    // Nothing arrives, so nothing is acknowledged.
    server.newest().iter().for_each(|wire| wire.hold(true));
    for _ in 0..5 {
        run_others().await;
        server.capacity.store(2, Ordering::Relaxed);
        let mut changes = mux.tunnel().attachments();
        server.cut();
        resumed(&mut changes).await;
    }
    let reads = readers
        .into_iter()
        .enumerate()
        .map(|(seed, mut read)| async move {
            let mut got = Vec::new();
            within(read.read_to_end(&mut got)).await.unwrap();
            assert!(got == noise(seed as u64 % 4, LEN));
        });
    futures_util::future::join_all(reads).await;
    for writer in writers {
        within(writer).await.unwrap();
    }
}

/// Answers that wait stop the reading, but not of what opens the tunnel again.
#[tokio::test]
async fn a_client_full_of_answers_still_hears_opened() {
    let (dialled, mut pipes) = mpsc::unbounded_channel();
    let dial = move || {
        let (near, far, _) = pipe(4);
        dialled.send(far).unwrap();
        near
    };
    let first = dial();
    let connector = move |_| ready(Ok(dial()));
    let config = Config::default().with_max_replies(16);
    let builder = mux::builder().config(config);
    let (mux, driver) = builder.resuming_opener(first, CARRIER, connector);
    tokio::spawn(driver);
    let opened = |received| {
        Message::Opened(resume::Opened {
            instance: 1,
            tunnel: 2,
            secret: Secret::new([3; 16]),
            received,
            keep: 120,
            ring: 1 << 20,
        })
    };
    const PINGS: u64 = 200;
    let mut far = within(pipes.recv()).await.unwrap();
    assert!(matches!(hear(&mut far).await, Message::Open(_)));
    say(&mut far, opened(0)).await;
    let mut sent = 0;
    let mut changes = mux.tunnel().attachments();
    // As many as the client takes without an answer being read.
    for number in 0..PINGS {
        let mut ping = vec![6, 0, 0, 0, 0, 0, 0, 0];
        ping.extend(number.to_be_bytes());
        let ping = far.send(Packet::Binary(ping.into()));
        let limit = Duration::from_millis(200);
        if tokio::time::timeout(limit, ping).await.is_err() {
            break;
        }
        sent += 1;
    }
    assert!((16..PINGS).contains(&sent), "{sent}");
    drop(far);
    let mut far = within(pipes.recv()).await.unwrap();
    let Message::Open(again) = hear(&mut far).await else {
        panic!("no OPEN")
    };
    assert!(again.received >= 16);
    say(&mut far, opened(0)).await;
    resumed(&mut changes).await;
    for number in 0..again.received {
        let Some(Ok(Packet::Binary(pong))) = within(far.next()).await else {
            panic!("no answer")
        };
        assert_eq!((pong[0], &pong[8..]), (7, &number.to_be_bytes()[..]));
    }
}

/// What the old transport still holds when another one takes its place is sent again on that.
#[tokio::test]
async fn what_waits_in_an_old_transport_does_not_count_as_received() {
    let keeper = keeper(resume::Config::default());
    let admit = |transport| {
        let keeper = keeper.clone();
        let admitting = mux::builder();
        async move {
            admitting
                .admit(&keeper, transport, CARRIER, binding())
                .await
        }
    };
    let (mut first, transport, _) = pipe(8);
    let new = open(0, Secret::new([0; 16]), 1, 0);
    say(&mut first, Message::Open(new)).await;
    let Ok(Admission::New(opening)) = within(admit(transport)).await else {
        panic!("not admitted")
    };
    // It runs only where it is polled here.
    let (mut acceptor, mut driver) = opening.acceptor();
    assert!(futures_util::poll!(&mut driver).is_pending());
    let Message::Opened(opened) = hear(&mut first).await else {
        panic!("not opened")
    };
    let connect = Packet::Binary(Bytes::from_static(&[1, 0, 0, 0, 0, 1, 0, 80]));
    first.send(connect.clone()).await.unwrap();
    let (mut second, transport, _) = pipe(8);
    let again = open(opened.tunnel, opened.secret, 2, 0);
    say(&mut second, Message::Open(again)).await;
    tokio::spawn(admit(transport));
    run_others().await;
    assert!(futures_util::poll!(&mut driver).is_pending());
    let Message::Opened(opened) = hear(&mut second).await else {
        panic!("not opened")
    };
    assert_eq!(opened.received, 0);
    second.send(connect).await.unwrap();
    assert!(futures_util::poll!(&mut driver).is_pending());
    let tunnel = acceptor.tunnel().clone();
    let (received, violations) = (tunnel.resume_stats().received, tunnel.stats().violations);
    assert_eq!((received, violations), (1, 0));
    accept_tcp(&mut acceptor).await;
}
