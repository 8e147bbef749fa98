//! Tunnels that outlive their transports: cuts, takeovers and refusals, over pipes and TCP.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use kohakuriver_tunnel::mux::{
    self, Acceptor, Admission, Attachment, Binding, Builder, ConnectFailure, Dial, Incoming,
    Keeper, KeeperLimits, Mux, Redial, ResumingDriver, TunnelError, TunnelStream,
};
use kohakuriver_tunnel::resume::{self, EndReason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::pipe::{Packets, Pipe, Wire, pipe};
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
