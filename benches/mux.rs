//! The mux over tungstenite: through a pipe of 1 MiB in memory and over loopback TCP.
//!
//! `cargo bench --bench mux`. Writes of 32 KiB by `AsyncWrite`, read by `AsyncRead` into 64 KiB;
//! both ends and all their tasks in one runtime of two threads. `both ways` counts the bytes of
//! both directions. The floor beside it is the same shape on a bare TCP connection.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kohakuriver_tunnel::carrier;
use kohakuriver_tunnel::mux::{self, Incoming, Mux, TunnelStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::protocol::Role as Side;

const WRITE: usize = 32 << 10;
const READ: usize = 64 << 10;
const TOTAL: usize = 32 << 20;

carrier!(Ws: tungstenite::Message, close: tungstenite::protocol::CloseFrame);

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// A stream through a tunnel over a byte transport, and what keeps the tunnel up.
async fn tunnel<S>(near: S, far: S) -> (TunnelStream, TunnelStream, Mux)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let near = WebSocketStream::from_raw_socket(near, Side::Client, None).await;
    let far = WebSocketStream::from_raw_socket(far, Side::Server, None).await;
    let (mux, driver) = mux::builder().opener(near, Ws);
    tokio::spawn(driver);
    let (mut acceptor, driver) = mux::builder().acceptor(far, Ws);
    tokio::spawn(driver);
    let near = mux.open_tcp(80).unwrap();
    let Some(Incoming::Tcp(far)) = acceptor.accept().await else {
        panic!("no stream")
    };
    let far = far.accept();
    near.established().await.unwrap();
    (near, far, mux)
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S) {
    let piece = vec![7; WRITE];
    for _ in 0..TOTAL / WRITE {
        stream.write_all(&piece).await.unwrap();
    }
    stream.flush().await.unwrap();
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) {
    let mut buffer = vec![0; READ];
    let mut left = TOTAL;
    while left > 0 {
        let most = left.min(READ);
        left -= stream.read(&mut buffer[..most]).await.unwrap();
    }
}

/// One end of a connection, to be used by one task at a time.
struct End<R, W> {
    read: Arc<Mutex<R>>,
    write: Arc<Mutex<W>>,
}

impl<R, W> End<R, W>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    fn new((read, write): (R, W)) -> Self {
        Self {
            read: Arc::new(Mutex::new(read)),
            write: Arc::new(Mutex::new(write)),
        }
    }

    fn writes(&self) -> impl Future<Output = ()> + Send + 'static {
        let half = Arc::clone(&self.write);
        async move { write(&mut *half.lock().await).await }
    }

    fn reads(&self) -> impl Future<Output = ()> + Send + 'static {
        let half = Arc::clone(&self.read);
        async move { read(&mut *half.lock().await).await }
    }

    async fn write_64(&self) {
        self.write.lock().await.write_all(&[7; 64]).await.unwrap();
    }

    async fn read_64(&self) {
        let mut buffer = [0; 64];
        self.read
            .lock()
            .await
            .read_exact(&mut buffer)
            .await
            .unwrap();
    }
}

/// One way, both ways and round trips on one pair of ends.
fn shapes<R, W>(criterion: &mut Criterion, runtime: &Runtime, name: &str, near: (R, W), far: (R, W))
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let (near, far) = (End::new(near), End::new(far));
    let together = |tasks: Vec<tokio::task::JoinHandle<()>>| {
        runtime.block_on(async {
            for task in tasks {
                task.await.unwrap();
            }
        });
    };
    let mut group = criterion.benchmark_group(format!("mux/{name}"));
    group.throughput(Throughput::Bytes(TOTAL as u64));
    group.bench_function("one way", |bencher| {
        bencher.iter(|| {
            together(vec![
                runtime.spawn(near.writes()),
                runtime.spawn(far.reads()),
            ]);
        });
    });
    group.throughput(Throughput::Bytes(2 * TOTAL as u64));
    group.bench_function("both ways", |bencher| {
        bencher.iter(|| {
            together(vec![
                runtime.spawn(near.writes()),
                runtime.spawn(far.reads()),
                runtime.spawn(far.writes()),
                runtime.spawn(near.reads()),
            ]);
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("round trip of 64 bytes", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                near.write_64().await;
                far.read_64().await;
                far.write_64().await;
                near.read_64().await;
            });
        });
    });
    group.finish();
}

fn all(criterion: &mut Criterion) {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (near, far) = duplex(1 << 20);
    let (near, far, _pipe) = runtime.block_on(tunnel(near, far));
    let (near, far) = (near.into_split(), far.into_split());
    shapes(criterion, &runtime, "1 MiB pipe", near, far);
    let (near, far, _tcp) = runtime.block_on(async {
        let (near, far) = sockets().await;
        tunnel(near, far).await
    });
    let (near, far) = (near.into_split(), far.into_split());
    shapes(criterion, &runtime, "loopback TCP", near, far);
    let (near, far) = runtime.block_on(sockets());
    let (near, far) = (near.into_split(), far.into_split());
    shapes(criterion, &runtime, "floor, bare TCP", near, far);
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
}

criterion_group! {
    name = mux;
    config = short();
    targets = all
}
criterion_main!(mux);
