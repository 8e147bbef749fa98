//! Tunnels that outlive their transports: cuts, takeovers and refusals, over pipes and TCP.

mod cuts;
mod ends;
mod memory;
mod redial;
mod refusals;
mod room;

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use kohakuriver_tunnel::mux::{
    self, Acceptor, Admission, Attachment, Binding, Builder, ConnectFailure, Dial, Driver,
    Incoming, Keeper, KeeperLimits, Mux, Redial, TokioTimer, TunnelError, TunnelStream,
};
use kohakuriver_tunnel::resume::{self, EndReason, Message, Open, Secret};
use kohakuriver_tunnel::session::{Config, Reason};
use kohakuriver_tunnel::wire::{ClientId, Frame, Proto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::pipe::{Packet, Packets, Pipe, Wire, pipe};
use super::tunnel::{Ended, accept_tcp, echoing, noise, run_others, within, within_limit};

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
    /// For the next pipe.
    capacity: Arc<AtomicUsize>,
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
            capacity: Arc::new(AtomicUsize::new(8)),
            refuses: Arc::default(),
            dials: Arc::default(),
        };
        (server, accepted)
    }

    /// A pipe to this server.
    fn dial(&self) -> Pipe {
        let (near, far, wires) = pipe(self.capacity.load(Ordering::Relaxed));
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
                Ok(_) | Err(_) => None,
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
type ClientDriver = Driver<Pipe, Packets, TokioTimer, Redial<Connector>>;

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

/// A client's first stream, which is echoed.
async fn first_stream(mux: &Mux, accepted: &mut mpsc::UnboundedReceiver<Acceptor>) -> TunnelStream {
    let mut stream = mux.open_tcp(7).unwrap();
    echo(within(accepted.recv()).await.unwrap());
    ping_pong(&mut stream).await;
    stream
}

async fn ping_pong(stream: &mut TunnelStream) {
    stream.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    within(stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"ping");
}

/// As `within`, for tests on a paused clock.
async fn within_hours<F: Future>(future: F) -> F::Output {
    within_limit(Duration::from_secs(36_000), future).await
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
