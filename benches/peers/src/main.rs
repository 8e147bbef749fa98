//! Throughput of the mux beside `penguin-mux`, in turns in one process.
//!
//! `cargo run --release` in this folder. One stream over tungstenite, with writes of 32 KiB and
//! reads into 32 KiB, each run on its own tunnel: over loopback TCP one way and both ways at once,
//! and through a pipe of 1 MiB in memory. The figures are payload bytes of all directions per
//! second, the median of five. The peers take turns, so that other load affects both. To select the
//! congestion control, run it in a network namespace whose loopback routes name one: see
//! benches/tunnel/README.md.

use std::time::Instant;

use kohakuriver_tunnel::carrier;
use kohakuriver_tunnel::mux::{self, Incoming};
use penguin_mux::Multiplexor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex, split};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::protocol::Role as Side;

const WRITE: usize = 32 << 10;
const RUNS: usize = 5;

carrier!(Ws: tungstenite::Message, close: tungstenite::protocol::CloseFrame);

trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for T {}

#[derive(Clone, Copy)]
enum Peer {
    Ours,
    Penguin,
}

#[derive(Clone, Copy)]
enum Socket {
    Pipe,
    /// With the default socket options, as in the peer's own benchmark.
    AsItIs,
    /// With `TCP_NODELAY`, as both would be used.
    NoDelay,
}

#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    transport: Socket,
    both: bool,
    /// Bytes in each direction: about a second's work for the slower one.
    ours: usize,
    penguin: usize,
    target: f64,
}

const SHAPES: [Shape; 6] = [
    Shape {
        name: "loopback TCP, one way",
        transport: Socket::AsItIs,
        both: false,
        ours: 1 << 30,
        penguin: 512 << 20,
        target: 1.8,
    },
    Shape {
        name: "loopback TCP, both ways",
        transport: Socket::AsItIs,
        both: true,
        ours: 512 << 20,
        penguin: 64 << 20,
        target: 5.0,
    },
    Shape {
        name: "loopback TCP with NODELAY, one way",
        transport: Socket::NoDelay,
        both: false,
        ours: 1 << 30,
        penguin: 512 << 20,
        target: 1.8,
    },
    Shape {
        name: "loopback TCP with NODELAY, both ways",
        transport: Socket::NoDelay,
        both: true,
        ours: 512 << 20,
        penguin: 64 << 20,
        target: 5.0,
    },
    Shape {
        name: "1 MiB pipe, one way",
        transport: Socket::Pipe,
        both: false,
        ours: 1 << 30,
        penguin: 1 << 30,
        target: 1.3,
    },
    Shape {
        name: "1 MiB pipe, both ways",
        transport: Socket::Pipe,
        both: true,
        ours: 512 << 20,
        penguin: 64 << 20,
        target: 1.3,
    },
];

#[tokio::main]
async fn main() {
    // The congestion control affects loopback strongly. Both peers use the system's.
    let congestion = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    let congestion = congestion.unwrap_or_else(|_| "unknown".into());
    println!("congestion control of both peers: {}\n", congestion.trim());
    println!("| shape | ours GB/s | penguin-mux 0.8.4 GB/s | ratio | target |");
    println!("|---|---|---|---|---|");
    for shape in SHAPES {
        let (mut ours, mut penguin) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            ours.push(run(shape, Peer::Ours).await);
            penguin.push(run(shape, Peer::Penguin).await);
        }
        let (ours, penguin) = (median(ours), median(penguin));
        let (name, target) = (shape.name, shape.target);
        let ratio = ours / penguin;
        println!("| {name} | {ours:.2} | {penguin:.2} | {ratio:.2} | {target} |");
    }
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// GB/s of one run.
async fn run(shape: Shape, peer: Peer) -> f64 {
    if matches!(shape.transport, Socket::Pipe) {
        let (near, far) = duplex(1 << 20);
        return through(near, far, shape, peer).await;
    }
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    let nodelay = matches!(shape.transport, Socket::NoDelay);
    near.set_nodelay(nodelay).unwrap();
    far.set_nodelay(nodelay).unwrap();
    through(near, far, shape, peer).await
}

async fn through<S: Transport>(near: S, far: S, shape: Shape, peer: Peer) -> f64 {
    let near = WebSocketStream::from_raw_socket(near, Side::Client, None).await;
    let far = WebSocketStream::from_raw_socket(far, Side::Server, None).await;
    match peer {
        Peer::Ours => {
            let (opener, driver) = mux::builder().opener(near, Ws);
            tokio::spawn(driver);
            let (mut acceptor, driver) = mux::builder().acceptor(far, Ws);
            tokio::spawn(driver);
            let near = opener.open_tcp(80).unwrap();
            let Some(Incoming::Tcp(far)) = acceptor.accept().await else {
                panic!("no stream")
            };
            let far = far.accept();
            near.established().await.unwrap();
            measure(near.into_split(), far.into_split(), shape, shape.ours).await
        }
        Peer::Penguin => {
            let opener = Multiplexor::new(near, None, None);
            let acceptor = Multiplexor::new(far, None, None);
            let accepting = acceptor.accept_stream_channel();
            let (near, far) = tokio::join!(opener.new_stream_channel(&[], 80), accepting);
            let (near, far) = (split(near.unwrap()), split(far.unwrap()));
            measure(near, far, shape, shape.penguin).await
        }
    }
}

/// The acceptor's side sends, as a service does. With `both`, the opener's side sends too.
async fn measure<R, W>(near: (R, W), far: (R, W), shape: Shape, total: usize) -> f64
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    let (mut kept_read, mut kept_write) = (None, None);
    tasks.spawn(write(far.1, total));
    tasks.spawn(read(near.0, total));
    if shape.both {
        tasks.spawn(write(near.1, total));
        tasks.spawn(read(far.0, total));
    } else {
        kept_write = Some(near.1);
        kept_read = Some(far.0);
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    let seconds = began.elapsed().as_secs_f64();
    drop((kept_read, kept_write));
    let directions = if shape.both { 2.0 } else { 1.0 };
    directions * total as f64 / seconds / 1e9
}

async fn write<W: AsyncWrite + Unpin>(mut stream: W, total: usize) {
    let piece = vec![7; WRITE];
    for _ in 0..total / WRITE {
        stream.write_all(&piece).await.unwrap();
    }
    stream.shutdown().await.unwrap();
}

async fn read<R: AsyncRead + Unpin>(mut stream: R, total: usize) {
    let mut buffer = vec![0; WRITE];
    for _ in 0..total / WRITE {
        stream.read_exact(&mut buffer).await.unwrap();
    }
}
