//! Tunnels that outlive their transports: cuts, takeovers and refusals, over pipes and TCP.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use kohakuriver_tunnel::mux::{
    self, Acceptor, Admission, Attachment, Binding, Builder, ConnectFailure, Dial, Incoming,
    Keeper, KeeperLimits, Mux, Redial, ResumingDriver, TunnelError, TunnelStream,
};
use kohakuriver_tunnel::resume::{self, EndReason, Message, Open, Secret};
use kohakuriver_tunnel::session::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::pipe::{Packet, Packets, Pipe, Wire, pipe};
use super::tunnel::{Ended, noise, within};

const CARRIER: Packets = Packets { probes: true };

fn binding() -> Binding {
    Binding::new("forward/task/80/tcp", "container", "192.0.2.1")
}

/// Bytes that nobody needs to guess here.
fn random() -> impl FnMut(&mut [u8]) + Send {
    let mut seed = 0;
    move |bytes| {
        seed += 1;
        bytes.copy_from_slice(&noise(seed, bytes.len()));
    }
}

fn keeper(config: resume::Config) -> Keeper<Pipe> {
    Keeper::new(config, KeeperLimits::default(), random())
}

/// A server that admits pipes, and the wires of each that was dialled.
#[derive(Clone)]
struct Server {
    keeper: Keeper<Pipe>,
    builder: Builder,
    acceptors: mpsc::UnboundedSender<Acceptor>,
    drivers: Arc<Mutex<Vec<JoinHandle<Ended>>>>,
    wires: Arc<Mutex<Vec<[Wire; 2]>>>,
    capacity: usize,
    refuses: Arc<AtomicU32>,
    dials: Arc<Mutex<Vec<Dial>>>,
}

impl Server {
    fn new(config: resume::Config) -> (Self, mpsc::UnboundedReceiver<Acceptor>) {
        let (acceptors, accepted) = mpsc::unbounded_channel();
        let server = Self {
            keeper: keeper(config),
            builder: mux::builder(),
            acceptors,
            drivers: Arc::default(),
            wires: Arc::default(),
            capacity: 8,
            refuses: Arc::default(),
            dials: Arc::default(),
        };
        (server, accepted)
    }

    /// A pipe to this server.
    fn dial(&self) -> Pipe {
        let (near, far, wires) = pipe(self.capacity);
        self.wires.lock().unwrap().push(wires);
        self.serve(far);
        near
    }

    fn serve(&self, far: Pipe) -> JoinHandle<Option<EndReason>> {
        let server = self.clone();
        tokio::spawn(async move {
            let builder = server.builder.clone();
            let admitted = builder.admit(&server.keeper, far, CARRIER, binding());
            match admitted.await {
                Ok(Admission::New(opening)) => {
                    let (acceptor, driver) = opening.acceptor();
                    server.drivers.lock().unwrap().push(tokio::spawn(driver));
                    server.acceptors.send(acceptor).unwrap();
                    None
                }
                Ok(Admission::Refused(reason)) => Some(reason),
                Ok(Admission::Resumed) | Err(_) => None,
            }
        })
    }

    /// Connects again, unless dialling fails as often as it was told to.
    fn connector(&self) -> impl FnMut(Dial) -> Connecting + Send + use<> {
        let server = self.clone();
        move |dial| {
            server.dials.lock().unwrap().push(dial);
            let left = server.refuses.load(Ordering::Relaxed);
            if left > 0 {
                server.refuses.store(left - 1, Ordering::Relaxed);
                return Box::pin(ready(Err(ConnectFailure::again("the server is away"))));
            }
            Box::pin(ready(Ok(server.dial())))
        }
    }

    fn client(&self, builder: Builder) -> (Mux, JoinHandle<Ended>) {
        let (mux, driver) = self.client_driver(builder);
        (mux, tokio::spawn(driver))
    }

    fn client_driver(&self, builder: Builder) -> (Mux, ClientDriver) {
        let connector: Connector = Box::new(self.connector());
        builder.resuming_opener(self.dial(), CARRIER, connector)
    }

    fn cut(&self) {
        let wires = self.wires.lock().unwrap();
        for wire in wires.last().unwrap() {
            wire.cut();
        }
    }

    /// The wires of the newest pipe, to the server and back.
    fn newest(&self) -> [Wire; 2] {
        self.wires.lock().unwrap().last().unwrap().clone()
    }
}

type Connecting = Pin<Box<dyn Future<Output = Result<Pipe, ConnectFailure>> + Send>>;
type Connector = Box<dyn FnMut(Dial) -> Connecting + Send>;
type ClientDriver = ResumingDriver<Pipe, Packets, Redial<Connector>>;

/// Echoes every stream.
fn echo(mut acceptor: Acceptor) {
    tokio::spawn(async move {
        while let Some(Incoming::Tcp(incoming)) = acceptor.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(incoming.accept());
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
}

async fn resumed(changes: &mut mux::Attachments) -> resume::Resumption {
    loop {
        match within(changes.changed())
            .await
            .expect("the tunnel has ended")
        {
            Attachment::Resumed(resumption) => return resumption,
            Attachment::Detached(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn ping_pong(stream: &mut TunnelStream) {
    stream.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    within(stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"ping");
}

#[tokio::test]
async fn a_stream_survives_a_cut() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let (mux, driver) = server.client(mux::builder());
    let mut stream = mux.open_tcp(7).unwrap();
    echo(within(accepted.recv()).await.unwrap());
    ping_pong(&mut stream).await;
    assert!(mux.tunnel().is_attached());
    for cuts in 1..=5 {
        let mut changes = mux.tunnel().attachments();
        server.cut();
        resumed(&mut changes).await;
        ping_pong(&mut stream).await;
        assert_eq!(server.keeper.stats().resumed, cuts);
        assert_eq!(mux.tunnel().resumption().resumed, cuts);
    }
    assert!(accepted.try_recv().is_err(), "a new tunnel");
    drop((stream, mux));
    assert_eq!(within(driver).await.unwrap(), Ok(()));
    let driver = server.drivers.lock().unwrap().pop().unwrap();
    assert_eq!(within(driver).await.unwrap(), Err(TunnelError::Ended(None)));
    assert_eq!(server.keeper.stats().tunnels, 0);
}

/// Resumes at once, whatever the pace of other attempts.
const FAST: Duration = Duration::from_millis(1);

/// Contents survive cuts after any number of packets, also while messages are sent again.
#[tokio::test(start_paused = true)]
async fn contents_survive_many_cuts() {
    let config = resume::Config::default().with_keep(Duration::from_secs(3600));
    let (mut server, mut accepted) = Server::new(config.clone());
    server.capacity = 3;
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
    within_hours(echoes_of(&mux, 8, 500_000)).await;
    let resumed = mux.tunnel().resumption();
    assert!(
        resumed.resumed > 100 && resumed.replayed > 100,
        "{resumed:?}"
    );
    cutter.abort();
    drop(mux);
    assert_eq!(within_hours(driver).await.unwrap(), Ok(()));
    assert!(accepted.try_recv().is_err());
}

/// As `within`, for tests on a paused clock.
async fn within_hours<F: Future>(future: F) -> F::Output {
    let limit = Duration::from_secs(36_000);
    match tokio::time::timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("nothing happened"),
    }
}

/// As `echoes`, on a paused clock.
async fn echoes_of(mux: &Mux, streams: u64, len: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for seed in 0..streams {
        let (mut read, mut write) = mux.open_tcp(7).unwrap().into_split();
        tasks.spawn(async move {
            let data = noise(seed, len);
            let sent = data.clone();
            let writer = tokio::spawn(async move {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            });
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.unwrap();
            writer.await.unwrap();
            assert!(got == data);
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
}

/// The old transport neither reads nor writes, and nobody has said so: the client connects before
/// it gives it up, and the server drops it without a word.
#[tokio::test(start_paused = true)]
async fn a_silent_transport_is_replaced_before_it_counts_as_dead() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let (mux, _driver) = server.client(mux::builder());
    let mut stream = mux.open_tcp(7).unwrap();
    echo(within(accepted.recv()).await.unwrap());
    ping_pong(&mut stream).await;
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

#[tokio::test(start_paused = true)]
async fn a_probe_replaces_a_dead_transport_at_once() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let (mux, _driver) = server.client(mux::builder());
    let mut stream = mux.open_tcp(7).unwrap();
    echo(within(accepted.recv()).await.unwrap());
    ping_pong(&mut stream).await;
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
    let mut stream = mux.open_tcp(7).unwrap();
    echo(within(accepted.recv()).await.unwrap());
    ping_pong(&mut stream).await;
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
    let mut stream = mux.open_tcp(7).unwrap();
    echo(within(accepted.recv()).await.unwrap());
    ping_pong(&mut stream).await;
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
    let mut stream = mux.open_tcp(7).unwrap();
    echo(within(accepted.recv()).await.unwrap());
    ping_pong(&mut stream).await;
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
    let mut stream = mux.open_tcp(7).unwrap();
    echo(within(accepted.recv()).await.unwrap());
    ping_pong(&mut stream).await;
    // While the old transport is there, the word is not needed.
    mux.tunnel().probe();
    ping_pong(&mut stream).await;
    server.cut();
    let ended = within(driver).await.unwrap();
    let text = "the token was  revoked".to_owned();
    assert_eq!(ended, Err(TunnelError::NotConnected(text)));
}

#[tokio::test(start_paused = true)]
async fn without_a_transport_a_shutdown_ends_the_tunnel_at_once() {
    for end in ["shutdown", "drop", "driver", "close"] {
        let (server, mut accepted) = Server::new(resume::Config::default());
        let connector = |_| std::future::pending::<Result<Pipe, ConnectFailure>>();
        let builder = mux::builder();
        let (mux, driver) = builder.resuming_opener(server.dial(), CARRIER, connector);
        let driver = tokio::spawn(driver);
        let mut stream = mux.open_tcp(7).unwrap();
        echo(within(accepted.recv()).await.unwrap());
        ping_pong(&mut stream).await;
        let tunnel = mux.tunnel().clone();
        let mut changes = tunnel.attachments();
        if end != "shutdown" && end != "driver" {
            stream.shutdown().await.unwrap();
            within(stream.read(&mut [0])).await.unwrap();
            drop(stream);
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

/// The server's end cleans up after a client that never returns: soon without connections.
#[tokio::test(start_paused = true)]
async fn a_tunnel_without_a_client_ends_after_its_keep() {
    for (with_stream, seconds) in [(true, 120), (false, 10)] {
        let (server, mut accepted) = Server::new(resume::Config::default());
        let (mux, driver) = server.client(mux::builder());
        let mut stream = mux.open_tcp(7).unwrap();
        echo(within(accepted.recv()).await.unwrap());
        ping_pong(&mut stream).await;
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

/// A client that only speaks the layer, so that it can lie.
struct Liar {
    pipe: Pipe,
    opened: resume::Opened,
}

fn open(tunnel: u64, secret: Secret, attempt: u32, received: u64) -> Open {
    Open {
        tunnel,
        secret,
        attempt,
        received,
        keep: 120,
        ring: 1 << 20,
    }
}

async fn say(pipe: &mut Pipe, message: Message) {
    pipe.send(Packet::Binary(message.to_bytes())).await.unwrap();
}

/// The next message of the layer.
async fn hear(pipe: &mut Pipe) -> Message {
    loop {
        match within(pipe.next()).await.unwrap().unwrap() {
            Packet::Binary(message) if resume::is_layer(&message) => {
                return Message::decode(&message).unwrap();
            }
            Packet::Binary(_) | Packet::Ping | Packet::Pong => {}
            other => panic!("{other:?}"),
        }
    }
}

impl Liar {
    async fn new(server: &Server) -> Self {
        let mut pipe = server.dial();
        say(
            &mut pipe,
            Message::Open(open(0, Secret::new([0; 16]), 1, 0)),
        )
        .await;
        let Message::Opened(opened) = hear(&mut pipe).await else {
            panic!("not opened")
        };
        Self { pipe, opened }
    }

    /// What the server answers to an OPEN on a transport of its own.
    async fn answer(server: &Server, open: Open) -> (Message, Pipe) {
        let mut pipe = server.dial();
        say(&mut pipe, Message::Open(open)).await;
        (hear(&mut pipe).await, pipe)
    }
}

fn reason(message: &Message) -> EndReason {
    match message {
        Message::End { reason, .. } => *reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn forged_stale_and_replayed_opens_change_nothing() {
    let (server, mut accepted) = Server::new(resume::Config::default());
    let (mux, _driver) = server.client(mux::builder());
    let mut stream = mux.open_tcp(7).unwrap();
    echo(within(accepted.recv()).await.unwrap());
    ping_pong(&mut stream).await;
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

/// Of two transports of one client the later attempt wins, in whatever order they arrive.
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
    for _ in 0..server.capacity {
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
    assert!(keeper.evict_oldest());
    evicted(&fourth).await;
    assert!(keeper.has("route") && !keeper.has("other"));
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
    let mut far = super::tunnel::accept_tcp(&mut acceptor).await;
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
    let far = super::tunnel::accept_udp(&mut acceptor).await;
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

/// Both rings are full and nobody reads; once somebody does, everything arrives.
#[tokio::test]
async fn full_rings_and_stalled_readers_do_not_lock_up() {
    let config = resume::Config::default()
        .with_ring_min(64 << 10)
        .with_ring_max(64 << 10);
    let (server, mut accepted) = Server::new(config.clone());
    let (mux, _driver) = server.client(mux::builder().resume(config));
    const LEN: usize = 4 << 20;
    let streams: Vec<_> = (0..4).map(|_| mux.open_tcp(7).unwrap()).collect();
    let mut acceptor = within(accepted.recv()).await.unwrap();
    let mut ends = streams;
    for _ in 0..4 {
        ends.push(super::tunnel::accept_tcp(&mut acceptor).await);
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
    for _ in 0..5 {
        super::tunnel::run_others().await;
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

/// The client's driver can be spawned on any runtime.
#[test]
fn drivers_are_send() {
    fn check<T: Send>() {}
    check::<ClientDriver>();
    check::<ResumingDriver<Pipe, Packets, mux::Kept<Pipe>>>();
    check::<Keeper<Pipe>>();
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
    let leg = super::tunnel::accept_tcp(&mut acceptor).await;
    tokio::spawn(leg.join(agent.open_tcp(7).unwrap()));
    let mut sender = super::tunnel::accept_tcp(&mut service).await;
    sender.write_all(b"hello").await.unwrap();
    within(client.read_exact(&mut [0; 5])).await.unwrap();

    let mut bystander = agent.open_tcp(8).unwrap();
    let mut to_bystander = super::tunnel::accept_tcp(&mut service).await;
    // Holds most, and is a little slow.
    to_bystander.write_all(&noise(1, 240_000)).await.unwrap();
    super::tunnel::transmitted(acceptor.tunnel()).await;

    server.refuses.store(u32::MAX, Ordering::Relaxed);
    let mut changes = acceptor.tunnel().attachments();
    server.cut();
    let change = within(changes.changed()).await.unwrap();
    assert!(matches!(change, Attachment::Detached(_)), "{change:?}");
    // More than the client's leg takes.
    within(sender.write_all(&noise(2, 400_000))).await.unwrap();
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
        let mut to_reader = super::tunnel::accept_tcp(&mut service).await;
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
    let mut stream = mux.open_tcp(7).unwrap();
    echo(within(accepted.recv()).await.unwrap());
    ping_pong(&mut stream).await;
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
