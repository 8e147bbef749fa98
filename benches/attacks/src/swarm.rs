//! The attackers: a process of their own, so that killing it ends all of their connections.

use std::future::Future;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::attacks::Attack;

pub type Work = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// The targets of an attacker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Field {
    pub host: u16,
    pub runner: u16,
    /// Where the attacker itself serves, if it has replaced a server.
    pub hostile: u16,
    /// A port that neither accepts nor refuses.
    pub silent: u16,
    /// A port that refuses.
    pub refusing: u16,
    /// A service that sends without end.
    pub flood: u16,
    pub connections: usize,
    /// Source addresses that the connections come from.
    pub addresses: usize,
    /// When it stops by itself.
    pub seconds: u64,
}

/// Counters of the attackers, reported five times a second.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Connections held: past their handshake, if there is one.
    pub held: u64,
    pub most_held: u64,
    pub opened: u64,
    pub failed: u64,
    pub sent: u64,
}

static HELD: AtomicU64 = AtomicU64::new(0);
static MOST_HELD: AtomicU64 = AtomicU64::new(0);
static OPENED: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);

/// A connection that is held until this is dropped.
pub struct Held(());

impl Held {
    pub fn new() -> Self {
        OPENED.fetch_add(1, Relaxed);
        let held = HELD.fetch_add(1, Relaxed) + 1;
        MOST_HELD.fetch_max(held, Relaxed);
        Self(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(1, Relaxed);
    }
}

/// Attacks until the time is over.
pub fn run(attack: &'static Attack, field: Field) -> io::Result<()> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let limit = Duration::from_secs(field.seconds);
    let attacking = attacking(attack, Arc::new(field));
    let ended = runtime.block_on(async { timeout(limit, attacking).await });
    // Does not wait for tasks that are still running.
    runtime.shutdown_background();
    ended.unwrap_or(Ok(()))
}

async fn attacking(attack: &'static Attack, field: Arc<Field>) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    if let Some(serve) = attack.server {
        let socket = small_socket()?;
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv4Addr::LOCALHOST, field.hostile).into())?;
        let listener = socket.listen(1024)?;
        tasks.spawn(serving(listener, serve));
    }
    if let Some(join) = attack.agent {
        let field = field.clone();
        tasks.spawn(async move { again(move || join(field.clone(), 0)).await });
        sleep(Duration::from_millis(300)).await;
    }
    tasks.spawn(tell());
    if let Some(connect) = attack.client {
        for number in 0..field.connections {
            let field = field.clone();
            tasks.spawn(async move { again(move || connect(field.clone(), number)).await });
            if number % 10 == 9 {
                sleep(Duration::from_millis(1)).await;
            }
        }
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn again(work: impl Fn() -> Work) {
    loop {
        if work().await.is_err() {
            FAILED.fetch_add(1, Relaxed);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn serving(listener: TcpListener, serve: fn(TcpStream) -> Work) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve(stream))),
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn tell() {
    loop {
        let tally = Tally {
            held: HELD.load(Relaxed),
            most_held: MOST_HELD.load(Relaxed),
            opened: OPENED.load(Relaxed),
            failed: FAILED.load(Relaxed),
            sent: SENT.load(Relaxed),
        };
        if let Ok(line) = serde_json::to_string(&tally) {
            let mut out = io::stdout().lock();
            if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
                return;
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// A socket with small buffers, also for the connections that it accepts.
///
/// The memory of real attackers' sockets is their own. Here it would count against the limit for
/// all sockets of the machine, and beyond that limit Linux drops what others send.
fn small_socket() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_send_buffer_size(32 << 10)?;
    socket.set_recv_buffer_size(4096)?;
    Ok(socket)
}

/// Connects from one of the attackers' addresses.
pub async fn connect(field: &Field, port: u16, number: usize) -> io::Result<TcpStream> {
    let socket = small_socket()?;
    socket.set_nodelay(true)?;
    let last = u8::try_from(1 + number % field.addresses.clamp(1, 250)).unwrap_or(1);
    socket.bind((Ipv4Addr::new(127, 0, 2, last), 0).into())?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    timeout(Duration::from_secs(10), socket.connect(address)).await?
}

/// Writes the same bytes again and again, and reads nothing.
pub async fn pour(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    loop {
        stream.write_all(bytes).await?;
        SENT.fetch_add(bytes.len() as u64, Relaxed);
        tokio::task::yield_now().await;
    }
}
