//! When a client connects again, and how often.

use super::*;

/// Resumes at once, whatever the pace of other attempts.
const FAST: Duration = Duration::from_millis(1);

/// The old transport neither reads nor writes, and nobody has said so: the client connects before
/// it gives it up, and the server drops it without a word.
#[tokio::test(start_paused = true)]
async fn a_silent_transport_is_replaced_before_it_counts_as_dead() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let (mux, _driver) = server.client(mux::builder());
    let stream = first_stream(&mux, &mut accepted).await;
    let mut changes = mux.tunnel().attachments();
    for wire in server.newest() {
        wire.hold(true);
    }
    // Fills the pipe, so that it does not accept anything either.
    let (mut read, mut write) = stream.into_split();
    tokio::spawn(async move { write.write_all(&noise(1, 1 << 20)).await.unwrap() });
    let began = tokio::time::Instant::now();
    let change = within(changes.changed()).await.unwrap();
    assert!(matches!(change, Attachment::Resumed(_)), "{change:?}");
    let keepalive = Config::default().keepalive.unwrap();
    assert!(began.elapsed() < keepalive + Duration::from_secs(1));
    assert!(
        server
            .dials
            .lock()
            .unwrap()
            .iter()
            .all(|dial| dial.attached)
    );
    let mut got = vec![0; 1 << 20];
    within(read.read_exact(&mut got)).await.unwrap();
    assert!(got == noise(1, 1 << 20));
}

/// The next transport is there at the moment at which the old one would count as dead.
#[tokio::test(start_paused = true)]
async fn the_silence_of_a_transport_does_not_end_the_next() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let dead = tokio::time::Instant::now() + 2 * Config::default().keepalive.unwrap();
    let (first, next) = (server.dial(), server.clone());
    let connector = move |_| {
        let next = next.clone();
        async move {
            tokio::time::sleep_until(dead).await;
            Ok(next.dial())
        }
    };
    let (mux, driver) = mux::builder().resuming_opener(first, CARRIER, connector);
    tokio::spawn(driver);
    let mut stream = first_stream(&mux, &mut accepted).await;
    let mut changes = mux.tunnel().attachments();
    for wire in server.newest() {
        wire.hold(true);
    }
    let change = within(changes.changed()).await.unwrap();
    assert_eq!(tokio::time::Instant::now(), dead);
    match change {
        Attachment::Resumed(resumption) => assert_eq!(resumption.detached, Duration::ZERO),
        other => panic!("{other:?}"),
    }
    ping_pong(&mut stream).await;
    assert_eq!(server.wires.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_probe_replaces_a_dead_transport_at_once() {
    for config in [Config::default(), Config::default().with_keepalive(None)] {
        let (server, mut accepted) = Server::new(resume::Config::default());
        let (mux, _driver) = server.client(mux::builder().config(config));
        let mut stream = first_stream(&mux, &mut accepted).await;
        let mut changes = mux.tunnel().attachments();
        for wire in server.newest() {
            wire.hold(true);
        }
        let began = tokio::time::Instant::now();
        mux.tunnel().probe();
        resumed(&mut changes).await;
        assert!(began.elapsed() < Duration::from_millis(500));
        ping_pong(&mut stream).await;
    }
}

/// A connector knows for how long the two ends keep the tunnel, to try often enough.
#[tokio::test(start_paused = true)]
async fn the_connector_is_told_for_how_long_the_tunnel_is_kept() {
    let keep = |seconds| resume::Config::default().with_keep(Duration::from_secs(seconds));
    for (client, server, agreed) in [(120, 30, 30), (20, 30, 20)] {
        let (server, mut accepted) = Server::new(keep(server));
        let builder = mux::builder().resume(keep(client));
        let (mux, _driver) = server.client(builder);
        let _stream = first_stream(&mux, &mut accepted).await;
        let mut changes = mux.tunnel().attachments();
        server.cut();
        resumed(&mut changes).await;
        let dials = server.dials.lock().unwrap();
        let told: Vec<_> = dials.iter().map(|dial| dial.keep.as_secs()).collect();
        assert_eq!(told, [agreed]);
    }
}

/// The attempt is dropped when the peer answers on the old transport.
#[tokio::test(start_paused = true)]
async fn a_probe_that_is_answered_changes_nothing() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let dropped = Arc::new(AtomicU32::new(0));
    struct Counted(Arc<AtomicU32>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let connector = {
        let dropped = Arc::clone(&dropped);
        move |dial: Dial| {
            assert!(dial.attached);
            let counted = Counted(Arc::clone(&dropped));
            async move {
                let _counted = counted;
                std::future::pending::<Result<Pipe, ConnectFailure>>().await
            }
        }
    };
    let builder = mux::builder();
    let (mux, driver) = builder.resuming_opener(server.dial(), CARRIER, connector);
    tokio::spawn(driver);
    let mut stream = first_stream(&mux, &mut accepted).await;
    for probes in 1..4 {
        // The pace of attempts.
        tokio::time::sleep(Duration::from_secs(5)).await;
        mux.tunnel().probe();
        within(async {
            while dropped.load(Ordering::Relaxed) < probes {
                tokio::time::sleep(FAST).await;
            }
        })
        .await;
        ping_pong(&mut stream).await;
    }
    assert_eq!(mux.tunnel().attachment(), Attachment::First);
}

#[tokio::test(start_paused = true)]
async fn attempts_are_counted_paced_and_end_with_the_keep() {
    let keep = Duration::from_secs(60);
    let config = resume::Config::default().with_keep(keep);
    let (server, mut accepted) = Server::new(config.clone());
    let (mux, driver) = server.client(mux::builder().resume(config));
    let mut stream = first_stream(&mux, &mut accepted).await;
    let mut changes = mux.tunnel().attachments();
    server.refuses.store(7, Ordering::Relaxed);
    server.cut();
    let resumption = resumed(&mut changes).await;
    assert!(resumption.detached >= Duration::from_secs(1));
    let attempts: Vec<_> = server.dials.lock().unwrap().drain(..).collect();
    let numbers: Vec<_> = attempts.iter().map(|dial| dial.attempt).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7]);
    ping_pong(&mut stream).await;

    server.refuses.store(u32::MAX, Ordering::Relaxed);
    server.cut();
    let began = tokio::time::Instant::now();
    let ended = within_hours(driver).await.unwrap();
    let Err(TunnelError::NotResumed(ended)) = ended else {
        panic!("{ended:?}")
    };
    assert_eq!((ended.reason, ended.by_peer), (EndReason::Expired, false));
    let lasted = began.elapsed();
    assert!(
        lasted >= keep && lasted < keep + Duration::from_secs(1),
        "{lasted:?}"
    );
    // As often as allowed, which is once a second in the end.
    let dials = server.dials.lock().unwrap().len();
    assert!((50..=70).contains(&dials), "{dials}");
    assert!(stream.read(&mut [0]).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_hangs_is_asked_again() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let mut connect = server.connector();
    let connector = move |dial: Dial| -> Connecting {
        match dial.attempt {
            0 => Box::pin(std::future::pending()),
            _ => connect(dial),
        }
    };
    let builder = mux::builder().dial_timeout(Duration::from_secs(20));
    let (mux, driver) = builder.resuming_opener(server.dial(), CARRIER, connector);
    tokio::spawn(driver);
    let mut stream = first_stream(&mux, &mut accepted).await;
    let mut changes = mux.tunnel().attachments();
    server.cut();
    let resumption = resumed(&mut changes).await;
    assert!(resumption.detached >= Duration::from_secs(20));
    assert!(resumption.detached < Duration::from_secs(22));
    ping_pong(&mut stream).await;
}

#[tokio::test]
async fn the_last_word_of_a_connector_ends_the_tunnel() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let connector = |_| ready(Err(ConnectFailure::last("the token was \u{7}revoked")));
    let builder = mux::builder();
    let (mux, driver) = builder.resuming_opener(server.dial(), CARRIER, connector);
    let driver = tokio::spawn(driver);
    let mut stream = first_stream(&mux, &mut accepted).await;
    // While the old transport is there, the word is not needed.
    mux.tunnel().probe();
    ping_pong(&mut stream).await;
    server.cut();
    let ended = within(driver).await.unwrap();
    let text = "the token was  revoked".to_owned();
    assert_eq!(ended, Err(TunnelError::NotConnected(text)));
}

#[tokio::test(start_paused = true)]
async fn the_last_word_is_forgotten_when_the_old_transport_answers() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let asked = Arc::new(AtomicU32::new(0));
    let mut connect = server.connector();
    let connector = {
        let asked = Arc::clone(&asked);
        move |dial: Dial| -> Connecting {
            match asked.fetch_add(1, Ordering::Relaxed) {
                0 => Box::pin(ready(Err(ConnectFailure::last("no such task")))),
                _ => connect(dial),
            }
        }
    };
    let builder = mux::builder();
    let (mux, driver) = builder.resuming_opener(server.dial(), CARRIER, connector);
    tokio::spawn(driver);
    let mut stream = first_stream(&mux, &mut accepted).await;
    let mut changes = mux.tunnel().attachments();
    mux.tunnel().probe();
    within(async {
        while asked.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(FAST).await;
        }
    })
    .await;
    ping_pong(&mut stream).await;
    server.cut();
    resumed(&mut changes).await;
    ping_pong(&mut stream).await;
}

/// The client's driver can be spawned on any runtime.
#[test]
fn drivers_are_send() {
    fn check<T: Send>() {}
    check::<ClientDriver>();
    check::<Driver<Pipe, Packets, TokioTimer, mux::Kept<Pipe>>>();
    check::<Keeper<Pipe>>();
}
