//! What goes first when places or memory are short.

use super::*;

#[tokio::test]
async fn the_oldest_of_those_without_a_transport_goes_first() {
    let limits = KeeperLimits::default()
        .with_detached(4)
        .with_per_group(3)
        .with_per_peer(2);
    let keeper = Keeper::new(resume::Config::default(), limits, random());
    let mut tunnels = Vec::new();
    let mut start = async |group: &str, peer: &str| {
        let (mut near, far, _) = pipe(8);
        say(
            &mut near,
            Message::Open(open(0, Secret::new([0; 16]), 1, 0)),
        )
        .await;
        let binding = Binding::new("route", group, peer);
        let admitted = mux::builder().admit(&keeper, far, CARRIER, binding).await;
        let Ok(Admission::New(opening)) = admitted else {
            panic!("{admitted:?}")
        };
        let (acceptor, driver) = opening.acceptor();
        let tunnel = acceptor.tunnel().clone();
        tunnels.push((acceptor, tokio::spawn(driver)));
        let mut changes = tunnel.attachments();
        drop(near);
        // If there is no place at all, the tunnel ends instead.
        within(changes.changed()).await;
        tunnel
    };
    let evicted = async |tunnel: &mux::Tunnel| {
        let closed = within(tunnel.closed()).await;
        let Err(TunnelError::NotResumed(ended)) = closed else {
            panic!("{closed:?}")
        };
        assert_eq!(ended.reason, EndReason::Evicted);
    };
    let first = start("a", "1").await;
    let second = start("a", "1").await;
    let third = start("a", "1").await;
    evicted(&first).await;
    let fourth = start("a", "2").await;
    let fifth = start("a", "3").await;
    evicted(&second).await;
    let sixth = start("b", "4").await;
    let seventh = start("c", "5").await;
    evicted(&third).await;
    for kept in [&fourth, &fifth, &sixth, &seventh] {
        assert_eq!(kept.close_reason(), None);
    }
    let stats = keeper.stats();
    assert_eq!((stats.evicted, stats.detached, stats.tunnels), (3, 4, 4));
    assert!(keeper.evict_first());
    evicted(&fourth).await;
    assert!(keeper.has("route") && !keeper.has("other"));
}

/// What may be of nobody goes before what a client has that answered, however long that is away.
#[tokio::test]
async fn a_client_that_has_not_answered_goes_before_an_older_one_that_has() {
    let (mut server, mut accepted) = Server::new(resume::Config::default());
    let limits = KeeperLimits::default().with_detached(1);
    server.keeper = Keeper::new(resume::Config::default(), limits, random());
    let mut client = Liar::new(&server).await;
    let kept = within(accepted.recv()).await.unwrap();
    say(&mut client.pipe, Message::Ack { received: 0 }).await;
    assert!(within(kept.tunnel().confirmed()).await);
    let opened = client.opened;
    let mut changes = kept.tunnel().attachments();
    drop(client);
    within(changes.changed()).await.unwrap();

    drop(Liar::new(&server).await);
    let late = within(accepted.recv()).await.unwrap();
    let closed = within(late.tunnel().closed()).await;
    let Err(TunnelError::NotResumed(ended)) = closed else {
        panic!("{closed:?}")
    };
    assert_eq!(ended.reason, EndReason::Evicted);
    let next = open(opened.tunnel, opened.secret, 2, 0);
    let (answer, _pipe) = Liar::answer(&server, next).await;
    assert!(matches!(answer, Message::Opened(_)), "{answer:?}");
}

/// What a client without a transport does not read goes before what others hold.
#[tokio::test]
async fn a_bystander_is_not_reset_for_a_client_without_a_transport() {
    // The tunnel to an agent, whose end here may hold little.
    let (near, far, _) = pipe(8);
    let config = Config::default().with_receive_budget(1 << 20);
    let (agent, driver) = mux::builder().config(config).opener(near, CARRIER);
    tokio::spawn(driver);
    let (mut service, driver) = mux::builder().acceptor(far, CARRIER);
    tokio::spawn(driver);

    let (server, mut accepted) = Server::new(resume::Config::default());
    let (mux, _driver) = server.client(mux::builder());
    let mut client = mux.open_tcp(7).unwrap();
    let mut acceptor = within(accepted.recv()).await.unwrap();
    let leg = crate::tunnel::accept_tcp(&mut acceptor).await;
    tokio::spawn(leg.join(agent.open_tcp(7).unwrap()));
    let mut sender = crate::tunnel::accept_tcp(&mut service).await;
    sender.write_all(b"hello").await.unwrap();
    within(client.read_exact(&mut [0; 5])).await.unwrap();

    let mut bystander = agent.open_tcp(8).unwrap();
    let mut to_bystander = crate::tunnel::accept_tcp(&mut service).await;
    // Holds most, and is a little slow.
    to_bystander.write_all(&noise(1, 240_000)).await.unwrap();
    crate::tunnel::transmitted(acceptor.tunnel()).await;

    server.refuses.store(u32::MAX, Ordering::Relaxed);
    let mut changes = acceptor.tunnel().attachments();
    server.cut();
    let change = within(changes.changed()).await.unwrap();
    assert!(matches!(change, Attachment::Detached(_)), "{change:?}");
    // More than the client's leg takes.
    within(sender.write_all(&noise(2, 500_000))).await.unwrap();
    within(async {
        while agent.tunnel().stats().unread <= 240_000 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut others = Vec::new();
    let data = noise(3, 250_000);
    for _ in 0..3 {
        let reader = agent.open_tcp(9).unwrap();
        let mut to_reader = crate::tunnel::accept_tcp(&mut service).await;
        // Returns once the credit and the queues have room for it.
        within(to_reader.write_all(&data)).await.unwrap();
        others.push((reader, to_reader));
    }
    let error = within(sender.read(&mut [0])).await.unwrap_err();
    assert!(
        error.to_string().contains("too many bytes were not read"),
        "{error}"
    );
    assert_eq!(agent.tunnel().stats().resets, 1);
    let mut got = vec![0; 240_000];
    within(bystander.read_exact(&mut got)).await.unwrap();
    assert!(got == noise(1, 240_000));
    for (mut reader, _to_reader) in others {
        let mut got = vec![0; 250_000];
        within(reader.read_exact(&mut got)).await.unwrap();
        assert!(got == data);
    }
}

/// When memory is short for all tunnels, those without a transport end first.
#[tokio::test]
async fn a_tunnel_without_a_transport_goes_when_memory_is_short() {
    let budget = mux::Budget::new(8 << 20);
    let (mut server, mut accepted) = Server::new(resume::Config::default());
    server.builder = mux::builder().budget(&budget);
    let (mux, _driver) = server.client(mux::builder());
    let mut stream = first_stream(&mux, &mut accepted).await;
    let liar = Liar::new(&server).await;
    let gone = within(accepted.recv()).await.unwrap();
    let mut changes = gone.tunnel().attachments();
    drop(liar);
    within(changes.changed()).await.unwrap();
    ping_pong(&mut stream).await;
    assert_eq!(gone.tunnel().close_reason(), None);
    assert!(budget.take(5 << 20));
    ping_pong(&mut stream).await;
    let closed = within(gone.tunnel().closed()).await;
    assert!(
        matches!(closed, Err(TunnelError::NotResumed(_))),
        "{closed:?}"
    );
    assert_eq!(server.keeper.stats().evicted, 1);
    ping_pong(&mut stream).await;
}

/// Whoever notices it, here a tunnel that is not resumed: clients go first, however short they are
/// away, and then the tunnel that may carry streams of many users.
#[tokio::test]
async fn clients_without_a_transport_go_before_agents() {
    let budget = mux::Budget::new(8 << 20);
    let builder = mux::builder().budget(&budget);
    let (server, mut accepted) = Server::new(resume::Config::default());
    let (mut near, far, _) = pipe(8);
    say(
        &mut near,
        Message::Open(open(0, Secret::new([0; 16]), 1, 0)),
    )
    .await;
    let agents = keeper(resume::Config::default());
    let admitted = builder.clone().admit(&agents, far, CARRIER, binding());
    let Ok(Admission::New(opening)) = admitted.await else {
        panic!("not admitted")
    };
    let (agent, driver) = opening.opener();
    tokio::spawn(driver);
    let server = Server {
        builder: builder.clone(),
        ..server
    };
    let liar = Liar::new(&server).await;
    let client = within(accepted.recv()).await.unwrap();
    let ends = Arc::<Mutex<Vec<(&str, Ended)>>>::default();
    let leave = async |pipe: &mut Pipe, tunnel: &mux::Tunnel, name: &'static str| {
        say(pipe, Message::Ack { received: 0 }).await;
        assert!(within(tunnel.confirmed()).await);
        let mut changes = tunnel.attachments();
        pipe.close().await.unwrap();
        within(changes.changed()).await.unwrap();
        let (tunnel, ends) = (tunnel.clone(), Arc::clone(&ends));
        tokio::spawn(async move {
            let closed = tunnel.closed().await;
            ends.lock().unwrap().push((name, closed));
        });
    };
    leave(&mut near, agent.tunnel(), "agent").await;
    let Liar { mut pipe, .. } = liar;
    leave(&mut pipe, client.tunnel(), "client").await;

    let (mux, driver) = {
        let (near, far, _) = super::pipe(8);
        let (acceptor, driver) = builder.acceptor(far, CARRIER);
        tokio::spawn(driver);
        echo(acceptor);
        mux::builder().opener(near, CARRIER)
    };
    tokio::spawn(driver);
    let mut stream = mux.open_tcp(7).unwrap();
    ping_pong(&mut stream).await;
    assert!(ends.lock().unwrap().is_empty());
    assert!(budget.take(5 << 20));
    while ends.lock().unwrap().len() < 2 {
        ping_pong(&mut stream).await;
    }
    for (name, (first, ended)) in ["client", "agent"].iter().zip(&*ends.lock().unwrap()) {
        assert_eq!(name, first);
        let Err(TunnelError::NotResumed(ended)) = ended else {
            panic!("{ended:?}")
        };
        assert_eq!(ended.reason, EndReason::Evicted);
    }
}

/// The pauses of one that floods grow with the number of those that do.
#[tokio::test(start_paused = true)]
async fn a_flood_ends_with_its_transport() {
    let (mut server, mut accepted) = Server::new(resume::Config::default());
    let limits = KeeperLimits::default().with_per_peer(128);
    server.keeper = Keeper::new(resume::Config::default(), limits, random());
    server.builder = mux::builder().budget(&mux::Budget::new(1 << 30));
    let flood = |there: Wire| (0..64).for_each(|_| there.inject(Packet::Ping));
    let mut kept = Vec::new();
    for _ in 0..100 {
        let _liar = Liar::new(&server).await;
        kept.push(within(accepted.recv()).await.unwrap());
        flood(server.newest()[0].clone());
        run_others().await;
        server.cut();
    }
    run_others().await;
    assert_eq!(server.keeper.stats().detached, 100);
    let mut liar = Liar::new(&server).await;
    let mut pause = Duration::ZERO;
    for _ in 0..12 {
        let began = tokio::time::Instant::now();
        flood(server.newest()[0].clone());
        for _ in 0..64 {
            while within(liar.pipe.next()).await != Some(Ok(Packet::Pong)) {}
        }
        pause = began.elapsed();
    }
    assert!(pause < Duration::from_millis(100), "{pause:?}");
}
