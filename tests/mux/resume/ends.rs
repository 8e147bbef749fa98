//! Ends of tunnels, with and without a transport.

use std::future::poll_fn;
use std::pin::pin;

use super::super::cancel::restless;
use super::*;

#[tokio::test]
async fn futures_that_watch_are_dropped_at_every_poll() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let (mux, _driver) = server.client(mux::builder());
    let acceptor = within(accepted.recv()).await.unwrap();
    assert!(restless!(acceptor.tunnel().confirmed()));
    let mut changes = mux.tunnel().attachments();
    let watching = tokio::spawn(async move {
        while let Some(change) = restless!(changes.changed()) {
            if let Attachment::Resumed(_) = change {
                return changes;
            }
        }
        panic!("the tunnel has ended");
    });
    run_others().await;
    server.cut();
    let mut changes = watching.await.unwrap();
    mux.tunnel().shutdown();
    assert_eq!(restless!(changes.changed()), None);
}

#[tokio::test(start_paused = true)]
async fn without_a_transport_a_shutdown_ends_the_tunnel_at_once() {
    for end in ["shutdown", "drop", "driver", "close"] {
        let (server, mut accepted) = Server::new(resume::Config::default());
        let connector = |_| std::future::pending::<Result<Pipe, ConnectFailure>>();
        let builder = mux::builder();
        let (mux, driver) = builder.resuming_opener(server.dial(), CARRIER, connector);
        let driver = tokio::spawn(driver);
        let stream = first_stream(&mux, &mut accepted).await;
        let tunnel = mux.tunnel().clone();
        let mut changes = tunnel.attachments();
        if end != "shutdown" && end != "driver" {
            server.newest()[0].hold(true);
            stream.reset(Reason::Reset, "");
            drop(stream);
            run_others().await;
        }
        server.cut();
        let change = within(changes.changed()).await.unwrap();
        assert!(matches!(change, Attachment::Detached(_)), "{change:?}");
        assert!(!tunnel.is_attached());
        match end {
            "shutdown" => tunnel.shutdown(),
            "driver" => driver.abort(),
            "close" => drop(tokio::spawn({
                let tunnel = tunnel.clone();
                async move { tunnel.close().await }
            })),
            _ => drop(mux),
        }
        let began = tokio::time::Instant::now();
        let closed = within(tunnel.closed()).await;
        let seconds = began.elapsed().as_secs();
        match end {
            "driver" => assert_eq!((closed, seconds), (Err(TunnelError::Dropped), 0)),
            "shutdown" => assert_eq!((closed, seconds), (Ok(()), 0)),
            // What the peer may have missed is kept, but not for long without connections.
            _ => {
                assert!(
                    matches!(closed, Err(TunnelError::NotResumed(_))),
                    "{closed:?}"
                );
                assert_eq!(seconds, 10);
            }
        }
    }
}

/// Nothing is owed to the peer, and nobody can use the tunnel.
#[tokio::test(start_paused = true)]
async fn without_a_transport_an_unused_tunnel_ends_with_its_last_handle() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let connector = |_| std::future::pending::<Result<Pipe, ConnectFailure>>();
    let builder = mux::builder();
    let (mux, driver) = builder.resuming_opener(server.dial(), CARRIER, connector);
    let driver = tokio::spawn(driver);
    let acceptor = within(accepted.recv()).await.unwrap();
    assert!(within(acceptor.tunnel().confirmed()).await && mux.tunnel().confirmed().await);
    let mut changes = mux.tunnel().attachments();
    server.cut();
    within(changes.changed()).await.unwrap();
    let began = tokio::time::Instant::now();
    drop(mux);
    assert_eq!(within(driver).await.unwrap(), Ok(()));
    assert_eq!(began.elapsed(), Duration::ZERO);
    // The server's end waits as long as any without connections.
    let ended = within_hours(acceptor.tunnel().closed()).await;
    assert!(
        matches!(ended, Err(TunnelError::NotResumed(_))),
        "{ended:?}"
    );
    assert_eq!(began.elapsed().as_secs(), 10);
}

/// A peer's end in good order looks as it does without resumption, and nobody connects again.
#[tokio::test]
async fn a_shutdown_of_the_server_is_an_end_and_no_loss() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let (mux, driver) = server.client(mux::builder());
    let mut stream = mux.open_tcp(7).unwrap();
    let acceptor = within(accepted.recv()).await.unwrap();
    let far = acceptor.tunnel().clone();
    echo(acceptor);
    ping_pong(&mut stream).await;
    far.shutdown_with(4001, "another agent took the place");
    match within(driver).await.unwrap() {
        Err(TunnelError::Ended(Some(reason))) => {
            assert_eq!(
                (reason.code, &*reason.text),
                (4001, "another agent took the place")
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(server.dials.lock().unwrap().is_empty());
    let driver = server.drivers.lock().unwrap().pop().unwrap();
    assert_eq!(within(driver).await.unwrap(), Ok(()));
    assert_eq!(server.keeper.stats().tunnels, 0);
}

/// Its place is taken, which the client also knows if it does not get the close.
#[tokio::test]
async fn a_tunnel_that_was_replaced_knows_it_without_the_close() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let mut liar = Liar::new(&server).await;
    let acceptor = within(accepted.recv()).await.unwrap();
    acceptor.tunnel().shutdown_with(4001, "another agent");
    assert_eq!(reason(&hear(&mut liar.pipe).await), EndReason::Replaced);

    let (near, mut far, _wires) = pipe(8);
    let connector = |_| std::future::pending::<Result<Pipe, ConnectFailure>>();
    let (_mux, driver) = mux::builder().resuming_opener(near, CARRIER, connector);
    let driver = tokio::spawn(driver);
    assert!(matches!(hear(&mut far).await, Message::Open(_)));
    say(&mut far, Message::Opened(liar.opened)).await;
    let (reason, text) = (EndReason::Replaced, String::new());
    say(&mut far, Message::End { reason, text }).await;
    drop(far);
    match within(driver).await.unwrap() {
        Err(TunnelError::NotResumed(ended)) => assert_eq!(ended.reason, EndReason::Replaced),
        other => panic!("{other:?}"),
    }
}

/// The transport accepts nothing for longer than a shutdown waits. When it does again, the server
/// hears of the end first, and does not wait for the client.
#[tokio::test(start_paused = true)]
async fn a_shutdown_that_the_transport_does_not_take_is_told_when_it_does() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let (mux, driver) = server.client(mux::builder());
    let mut stream = mux.open_tcp(7).unwrap();
    let mut acceptor = within(accepted.recv()).await.unwrap();
    let unread = accept_tcp(&mut acceptor).await;
    let [there, _] = server.newest();
    there.hold(true);
    for _ in 0..2 * server.capacity.load(Ordering::Relaxed) {
        // More than the pipe takes.
        stream.write_all(&[1; 10_000]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    mux.tunnel().shutdown();
    assert_eq!(within(mux.tunnel().closed()).await, Ok(()));
    there.hold(false);
    let far = server.drivers.lock().unwrap().pop().unwrap();
    let ended = within(far).await.unwrap();
    assert_eq!(ended, Err(TunnelError::Ended(None)));
    assert_eq!(within(driver).await.unwrap(), Ok(()));
    drop((stream, unread));
}

/// As above, when the end was behind messages that were sent again.
#[tokio::test(start_paused = true)]
async fn an_end_that_waits_for_the_transport_is_told_when_a_shutdown_gives_up() {
    let (near, mut far, wires) = pipe(64);
    let (next, mut next_far, _wires) = pipe(2);
    let mut next = Some(next);
    let connector = move |_| {
        let next = next.take().unwrap();
        async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(next)
        }
    };
    let (mux, driver) = mux::builder().resuming_opener(near, CARRIER, connector);
    let driver = tokio::spawn(driver);
    assert!(matches!(hear(&mut far).await, Message::Open(_)));
    let mut opened = resume::Opened {
        instance: 1,
        tunnel: 1,
        secret: Secret::new([1; 16]),
        received: 0,
        keep: 120,
        ring: 1 << 20,
    };
    say(&mut far, Message::Opened(opened)).await;
    let tunnel = mux.tunnel().clone();
    assert!(within(tunnel.confirmed()).await);
    for _ in 0..4 {
        let stream = mux.open_tcp(7).unwrap();
        run_others().await;
        stream.reset(Reason::Reset, "");
        drop(stream);
        run_others().await;
    }
    let mut changes = tunnel.attachments();
    for wire in wires {
        wire.cut();
    }
    within(changes.changed()).await.unwrap();
    drop(mux);
    assert!(matches!(hear(&mut next_far).await, Message::Open(_)));
    opened.received = 1;
    say(&mut next_far, Message::Opened(opened)).await;
    run_others().await;
    tunnel.shutdown();
    assert_eq!(within(tunnel.closed()).await, Ok(()));
    assert_eq!(reason(&hear(&mut next_far).await), EndReason::Closed);
    drop(next_far);
    assert_eq!(within(driver).await.unwrap(), Ok(()));
}

/// An agent is mostly replaced because its transport is stuck.
#[tokio::test(start_paused = true)]
async fn a_replaced_tunnel_whose_transport_was_stuck_says_so() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let mut liar = Liar::new(&server).await;
    let mut acceptor = within(accepted.recv()).await.unwrap();
    let (proto, id, port) = (Proto::Tcp, ClientId(1), 7);
    let connect = Frame::<Bytes>::Connect { proto, id, port };
    let connect = Packet::Binary(connect.to_bytes());
    liar.pipe.send(connect).await.unwrap();
    let mut stream = accept_tcp(&mut acceptor).await;
    for _ in 0..2 * server.capacity.load(Ordering::Relaxed) {
        // More than the pipe takes.
        stream.write_all(&[1; 100]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    acceptor.tunnel().shutdown_with(4001, "another agent");
    assert_eq!(within(acceptor.tunnel().closed()).await, Ok(()));
    assert_eq!(reason(&hear(&mut liar.pipe).await), EndReason::Replaced);
}

/// The server's end cleans up after a client that never returns: soon without connections.
#[tokio::test(start_paused = true)]
async fn a_tunnel_without_a_client_ends_after_its_keep() {
    for (with_stream, seconds) in [(true, 120), (false, 10)] {
        let (server, mut accepted) = Server::new(resume::Config::default());
        let (mux, driver) = server.client(mux::builder());
        let mut stream = first_stream(&mux, &mut accepted).await;
        if !with_stream {
            stream.shutdown().await.unwrap();
            within(stream.read(&mut [0])).await.unwrap();
            drop(stream);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        driver.abort();
        let began = tokio::time::Instant::now();
        let far = server.drivers.lock().unwrap().pop().unwrap();
        let ended = within_hours(far).await.unwrap();
        let Err(TunnelError::NotResumed(ended)) = ended else {
            panic!("{ended:?}")
        };
        assert_eq!(ended.reason, EndReason::Expired);
        assert_eq!(began.elapsed().as_secs(), seconds);
        let stats = server.keeper.stats();
        assert_eq!((stats.expired, stats.tunnels, stats.detached), (1, 0, 0));
        assert_eq!(stats.ring_bytes, 0);
    }
}

/// Its last stream goes while it has no transport, so nothing else wakes its driver.
#[tokio::test(start_paused = true)]
async fn a_tunnel_that_becomes_idle_without_a_client_ends_soon() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let (mux, driver) = server.client(mux::builder());
    let mut stream = mux.open_tcp(7).unwrap();
    let mut acceptor = within(accepted.recv()).await.unwrap();
    let mut held = accept_tcp(&mut acceptor).await;
    for end in [&mut stream, &mut held] {
        end.shutdown().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    driver.abort();
    let began = tokio::time::Instant::now();
    tokio::time::sleep(Duration::from_secs(5)).await;
    drop(held);
    let far = server.drivers.lock().unwrap().pop().unwrap();
    within_hours(far).await.unwrap().unwrap_err();
    assert_eq!(began.elapsed().as_secs(), 10);
}

/// A loss that was overcome is not the cause of what happens later.
#[tokio::test]
async fn an_end_is_not_blamed_on_an_old_loss() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let liar = Liar::new(&server).await;
    let acceptor = within(accepted.recv()).await.unwrap();
    let mut changes = acceptor.tunnel().attachments();
    server.cut();
    within(changes.changed()).await.unwrap();
    let next = open(liar.opened.tunnel, liar.opened.secret, 2, 0);
    let (_, mut pipe) = Liar::answer(&server, next).await;
    say(&mut pipe, Message::Ack { received: 9 }).await;
    match within(acceptor.tunnel().closed()).await {
        Err(TunnelError::NotResumed(ended)) => {
            assert_eq!(ended.text, "more was acknowledged than sent");
        }
        other => panic!("{other:?}"),
    }
}

/// Longer than a tunnel without connections is kept.
fn client_away_for_a_minute(server: &Server) -> Mux {
    let first = server.dial();
    let server = server.clone();
    let late = move |_| {
        let server = server.clone();
        async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok(server.dial())
        }
    };
    let (mux, driver) = mux::builder().resuming_opener(first, CARRIER, late);
    tokio::spawn(driver);
    mux
}

/// A reply is complete, and its stream is over at the server before anything of it arrives.
#[tokio::test(start_paused = true)]
async fn a_reply_that_was_not_delivered_is_kept_as_long_as_a_stream() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let mux = client_away_for_a_minute(&server);
    let mut stream = mux.open_tcp(7).unwrap();
    let mut acceptor = within(accepted.recv()).await.unwrap();
    let mut served = accept_tcp(&mut acceptor).await;
    stream.shutdown().await.unwrap();
    assert_eq!(within(served.read(&mut [0])).await.unwrap(), 0);
    server.newest()[1].hold(true);
    served.write_all(b"a reply").await.unwrap();
    served.shutdown().await.unwrap();
    drop(served);
    run_others().await;
    server.cut();
    let mut reply = Vec::new();
    within_hours(stream.read_to_end(&mut reply)).await.unwrap();
    assert_eq!(reply, b"a reply");
}

/// The service's connection is freed when the client is back, not when the tunnel is given up.
#[tokio::test(start_paused = true)]
async fn a_reset_without_a_transport_is_told_on_the_next() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let mux = client_away_for_a_minute(&server);
    let stream = mux.open_tcp(7).unwrap();
    let mut acceptor = within(accepted.recv()).await.unwrap();
    let mut served = accept_tcp(&mut acceptor).await;
    let mut changes = mux.tunnel().attachments();
    server.cut();
    within(changes.changed()).await.unwrap();
    stream.reset(Reason::Reset, "by the application");
    drop(stream);
    let began = tokio::time::Instant::now();
    within_hours(served.read(&mut [0])).await.unwrap_err();
    assert_eq!(began.elapsed().as_secs(), 60);
    assert!(mux.tunnel().is_attached());
}

/// The server has ended the tunnel and could not say so: the client hears it on the next transport.
#[tokio::test]
async fn an_end_that_the_old_transport_does_not_take_goes_to_the_next() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let mut liar = Liar::new(&server).await;
    let acceptor = within(accepted.recv()).await.unwrap();
    acceptor.tunnel().drain();
    let goaway = within(liar.pipe.next()).await.unwrap().unwrap();
    assert!(matches!(goaway, Packet::Binary(message) if message[0] == 9));
    say(&mut liar.pipe, Message::Ack { received: 1 }).await;
    // The driver reads it.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    for _ in 0..server.capacity.load(Ordering::Relaxed) {
        server.newest()[1].inject(Packet::Ping);
    }
    drop(acceptor);
    let next = open(liar.opened.tunnel, liar.opened.secret, 2, 1);
    let (answer, _pipe) = Liar::answer(&server, next).await;
    assert_eq!(reason(&answer), EndReason::Closed);
    let driver = server.drivers.lock().unwrap().pop().unwrap();
    assert_eq!(within(driver).await.unwrap(), Ok(()));
    assert_eq!(server.keeper.stats().tunnels, 0);
}
