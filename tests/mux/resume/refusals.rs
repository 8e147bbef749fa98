//! Transports that are refused.

use std::sync::OnceLock;

use super::*;

#[tokio::test]
async fn forged_stale_and_replayed_opens_change_nothing() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let (mux, _driver) = server.client(mux::builder());
    let mut stream = first_stream(&mux, &mut accepted).await;
    let mut liar = Liar::new(&server).await;
    let _acceptor = within(accepted.recv()).await.unwrap();
    let opened = liar.opened;
    for turn in 0..300 {
        let attempt = turn + 2;
        let forged = Secret::new([turn as u8; 16]);
        let (answer, _pipe) = Liar::answer(&server, open(opened.tunnel, forged, attempt, 0)).await;
        assert_eq!(reason(&answer), EndReason::Unknown);
        let unknown = opened.tunnel ^ 1 << (turn % 64);
        let (answer, _pipe) = Liar::answer(&server, open(unknown, opened.secret, 9, 0)).await;
        assert_eq!(reason(&answer), EndReason::Unknown);
        let (answer, _pipe) = Liar::answer(&server, open(opened.tunnel, opened.secret, 1, 0)).await;
        assert_eq!(reason(&answer), EndReason::Stale);
    }
    let stats = server.keeper.stats();
    assert_eq!((stats.refused_unknown, stats.refused_stale), (600, 300));
    assert_eq!((stats.resumed, stats.detached, stats.tunnels), (0, 0, 2));
    // The old transport is still the tunnel's.
    let ping = Bytes::from_static(&[6, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
    liar.pipe.send(Packet::Binary(ping.clone())).await.unwrap();
    let Some(Ok(Packet::Binary(pong))) = within(liar.pipe.next()).await else {
        panic!("no answer")
    };
    assert_eq!((pong[0], &pong[1..]), (7, &ping[1..]));
    ping_pong(&mut stream).await;
    assert_eq!(mux.tunnel().attachment(), Attachment::First);
}

/// A secret is good for its tunnel's route alone.
#[tokio::test]
async fn another_route_does_not_get_the_tunnel() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let liar = Liar::new(&server).await;
    let _acceptor = within(accepted.recv()).await.unwrap();
    let (mut near, far, _) = pipe(8);
    let admitted = tokio::spawn({
        let keeper = server.keeper.clone();
        async move {
            let mut binding = binding();
            binding.route = "forward/task/80/udp".into();
            mux::builder().admit(&keeper, far, CARRIER, binding).await
        }
    });
    let stolen = open(liar.opened.tunnel, liar.opened.secret, 2, 0);
    say(&mut near, Message::Open(stolen)).await;
    assert_eq!(reason(&hear(&mut near).await), EndReason::Unknown);
    // A new tunnel may follow on the same transport.
    say(
        &mut near,
        Message::Open(open(0, Secret::new([0; 16]), 1, 0)),
    )
    .await;
    match within(admitted).await.unwrap() {
        Ok(Admission::New(opening)) => {
            let refused = opening.refuse(EndReason::Limit, 1013, "no place is left");
            let refused = tokio::spawn(refused);
            let Message::End { reason, text } = hear(&mut near).await else {
                panic!("no end")
            };
            assert_eq!((reason, &*text), (EndReason::Limit, "no place is left"));
            let Some(Ok(Packet::Close(close))) = within(near.next()).await else {
                panic!("no close")
            };
            assert_eq!(close.code, 1013);
            drop(near);
            within(refused).await.unwrap();
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(server.keeper.stats().tunnels, 1);
}

/// A client may send a ring of messages behind its OPEN. Unread, they could destroy the reason.
#[tokio::test(start_paused = true)]
async fn a_refusal_reads_what_the_client_had_sent_and_no_flood() {
    let connects = vec![Packet::Binary(Bytes::from_static(&[1, 0, 0, 0, 0, 1, 0, 80])); 10_000];
    // The last one crosses the bound of a ring.
    let uploads = vec![Packet::Binary(vec![0; 130_908].into()); 9];
    let pings = vec![Packet::Ping; 16 << 10];
    let more = vec![Packet::Binary(vec![0; 64 << 10].into()); 21];
    for (sent, seconds) in [(connects, 5), (uploads, 5), (pings, 0), (more, 0)] {
        let (server, _accepted) = Server::new(resume::Config::default());
        let (_near, far, [there, _]) = pipe(8);
        let asks = Message::Open(open(0, Secret::new([0; 16]), 1, 0));
        there.inject(Packet::Binary(asks.to_bytes()));
        for packet in sent {
            there.inject(packet);
        }
        let admitted = mux::builder().admit(&server.keeper, far, CARRIER, binding());
        let Ok(Admission::New(opening)) = admitted.await else {
            panic!("not asked for a tunnel")
        };
        let began = tokio::time::Instant::now();
        opening.refuse(EndReason::Limit, 1013, "no place").await;
        assert_eq!(began.elapsed().as_secs(), seconds);
    }
}

#[tokio::test(start_paused = true)]
async fn a_transport_without_open_is_not_kept() {
    let (server, _accepted) = Server::new(resume::Config::default());
    let admit = |far| {
        let keeper = server.keeper.clone();
        tokio::spawn(async move { mux::builder().admit(&keeper, far, CARRIER, binding()).await })
    };
    // Silence, and pings that are no OPEN.
    let (_near, far, [there, _]) = pipe(8);
    for _ in 0..100 {
        there.inject(Packet::Ping);
    }
    let began = tokio::time::Instant::now();
    let error = admit(far).await.unwrap().unwrap_err();
    assert_eq!(error, mux::ConnectError::TimedOut);
    assert_eq!(began.elapsed().as_secs(), 10);
    // Something else.
    for packet in [
        Packet::Text("hello".into()),
        Packet::Binary(Bytes::from_static(&[1, 0, 0, 0, 0, 1, 0, 80])),
        Packet::Binary(Message::Ack { received: 0 }.to_bytes()),
        Packet::Binary(Bytes::from_static(&[10])),
    ] {
        let (mut near, far, [there, _]) = pipe(8);
        there.inject(packet);
        let admitted = admit(far);
        assert_eq!(reason(&hear(&mut near).await), EndReason::Protocol);
        drop(near);
        let error = admitted.await.unwrap().unwrap_err();
        assert_eq!(error, mux::ConnectError::Unexpected);
    }
    // The end.
    let (near, far, _) = pipe(8);
    drop(near);
    let error = admit(far).await.unwrap().unwrap_err();
    assert!(
        matches!(error, mux::ConnectError::Closed(None)),
        "{error:?}"
    );
}

/// With two transports of one client, the later attempt wins, in whatever order they arrive.
#[tokio::test]
async fn of_two_transports_the_later_attempt_wins() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let liar = Liar::new(&server).await;
    let _acceptor = within(accepted.recv()).await.unwrap();
    let Liar { opened, mut pipe } = liar;
    let (answer, mut third) = Liar::answer(&server, open(opened.tunnel, opened.secret, 3, 0)).await;
    let Message::Opened(next) = answer else {
        panic!("{answer:?}")
    };
    // The first transport was dropped, the second comes too late.
    assert!(!matches!(within(pipe.next()).await, Some(Ok(_))));
    let (answer, _second) = Liar::answer(&server, open(opened.tunnel, opened.secret, 2, 0)).await;
    assert_eq!(reason(&answer), EndReason::Stale);
    // The answer may have been lost: the old secret is still good.
    let (answer, mut fourth) =
        Liar::answer(&server, open(opened.tunnel, opened.secret, 4, 0)).await;
    assert!(matches!(answer, Message::Opened(_)), "{answer:?}");
    assert!(!matches!(within(third.next()).await, Some(Ok(_))));
    // It is not, once the client has shown that it has the new one.
    let Message::Opened(last) = answer else {
        panic!()
    };
    assert_ne!(next.secret, last.secret);
    say(&mut fourth, Message::Ack { received: 0 }).await;
    let ping = Bytes::from_static(&[6, 0, 0, 0, 0, 0, 0, 0]);
    fourth.send(Packet::Binary(ping)).await.unwrap();
    within(fourth.next()).await.unwrap().unwrap();
    for secret in [opened.secret, next.secret] {
        let (answer, _pipe) = Liar::answer(&server, open(opened.tunnel, secret, 5, 0)).await;
        assert_eq!(reason(&answer), EndReason::Unknown);
    }
    let (answer, _fifth) = Liar::answer(&server, open(opened.tunnel, last.secret, 5, 0)).await;
    assert!(matches!(answer, Message::Opened(_)), "{answer:?}");
}

#[tokio::test]
async fn counts_that_do_not_fit_end_the_tunnel() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let liar = Liar::new(&server).await;
    let _acceptor = within(accepted.recv()).await.unwrap();
    let too_many = open(liar.opened.tunnel, liar.opened.secret, 2, 1000);
    let (answer, _pipe) = Liar::answer(&server, too_many).await;
    assert_eq!(reason(&answer), EndReason::Gap);
    let driver = server.drivers.lock().unwrap().pop().unwrap();
    let ended = within(driver).await.unwrap();
    assert!(
        matches!(ended, Err(TunnelError::NotResumed(_))),
        "{ended:?}"
    );
    let stats = server.keeper.stats();
    assert_eq!((stats.gaps, stats.tunnels), (1, 0));
}

/// The tunnel ends while a transport for it is under way.
#[tokio::test]
async fn a_transport_for_a_tunnel_that_has_just_ended_is_refused() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let liar = Liar::new(&server).await;
    let acceptor = within(accepted.recv()).await.unwrap();
    let mut pipe = server.dial();
    let late = open(liar.opened.tunnel, liar.opened.secret, 2, 0);
    say(&mut pipe, Message::Open(late)).await;
    // Before the task that admits the transport has run.
    server.drivers.lock().unwrap().pop().unwrap().abort();
    assert_eq!(reason(&hear(&mut pipe).await), EndReason::Unknown);
    assert_eq!(server.keeper.stats().tunnels, 0);
    drop(acceptor);
}

/// END and the end of the transport come together: it is not polled after its end.
#[tokio::test]
async fn a_transport_that_refuses_and_ends_is_not_read_again() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let connector = |_| {
        let (near, far, [_, back]) = pipe(8);
        let (reason, text) = (EndReason::Unknown, String::new());
        let end = Message::End { reason, text };
        back.inject(Packet::Binary(end.to_bytes()));
        drop(far);
        ready(Ok(near))
    };
    let builder = mux::builder();
    let (mux, driver) = builder.resuming_opener(server.dial(), CARRIER, connector);
    let driver = tokio::spawn(driver);
    let _stream = first_stream(&mux, &mut accepted).await;
    server.cut();
    let ended = within(driver).await.unwrap();
    assert!(
        matches!(&ended, Err(TunnelError::NotResumed(ended)) if ended.by_peer),
        "{ended:?}"
    );
}

/// It is foreign code, so no lock of the keeper's tunnels is held while it runs.
#[tokio::test]
async fn the_source_of_randomness_may_look_at_its_keeper() {
    let (mut server, mut accepted) = Server::new(resume::Config::default());
    let kept = Arc::new(OnceLock::<Keeper<Pipe>>::new());
    let mut random = random();
    let looking = Arc::clone(&kept);
    let curious = move |bytes: &mut [u8]| {
        random(bytes);
        let _ = looking.get().map(Keeper::stats);
    };
    let keeper = Keeper::new(resume::Config::default(), KeeperLimits::default(), curious);
    kept.get_or_init(|| keeper.clone());
    server.keeper = keeper;
    let (mux, _driver) = server.client(mux::builder());
    let mut stream = first_stream(&mux, &mut accepted).await;
    let mut changes = mux.tunnel().attachments();
    server.cut();
    resumed(&mut changes).await;
    ping_pong(&mut stream).await;
}
