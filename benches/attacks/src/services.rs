//! The environment of the programs: services, a silent port, a cluster's interface, and a switch in
//! front of a server that can be replaced by a hostile one.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::programs::TOKEN;

/// Time that the cluster takes to refuse an unknown caller.
const SLOW_ANSWER: Duration = Duration::from_secs(3);

/// An echo with a thread for each connection, so that other work in this process does not delay it.
pub fn echo() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo_one(stream));
        }
    });
    Ok(port)
}

fn echo_one(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    loop {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..len])?;
    }
}

/// A port that neither accepts nor refuses: its queue is full.
pub struct SilentPort {
    pub port: u16,
    _listener: Socket,
    _queued: Vec<Socket>,
}

impl SilentPort {
    pub fn new() -> io::Result<Self> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        listener.listen(0)?;
        let address = listener.local_addr()?;
        let port = address.as_socket().map_or(0, |address| address.port());
        let mut queued = Vec::new();
        for _ in 0..4 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            let _ = socket.connect(&address);
            queued.push(socket);
        }
        thread::sleep(Duration::from_millis(50));
        Ok(Self {
            port,
            _listener: listener,
            _queued: queued,
        })
    }
}

/// A port that refuses. It is reserved, so that no other process takes it.
pub fn refusing() -> io::Result<(Socket, u16)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    let port = socket.local_addr()?.as_socket().map_or(0, |at| at.port());
    Ok((socket, port))
}

/// Services for thousands of connections, on one thread.
pub struct Crowd {
    pub flood: u16,
    pub api: u16,
    /// The switch: accepts connections for the host or the runner, whichever `forward` or the agent
    /// looks for.
    pub turncoat: u16,
    turn: watch::Sender<u16>,
}

impl Crowd {
    /// `api_runner`: the runner that the cluster's interface names.
    pub fn start(api_runner: u16) -> io::Result<Self> {
        let (turn, turned) = watch::channel(0);
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(serve(api_runner, turned, tell));
        });
        let [flood, api, turncoat] = told.recv().map_err(io::Error::other)??;
        Ok(Self {
            flood,
            api,
            turncoat,
            turn,
        })
    }

    /// Redirects the switch: new connections go to `port`, and existing ones end.
    pub fn turn_to(&self, port: u16) {
        self.turn.send_replace(port);
    }
}

async fn serve(
    api_runner: u16,
    turned: watch::Receiver<u16>,
    tell: mpsc::Sender<io::Result<[u16; 3]>>,
) {
    let any = (Ipv4Addr::LOCALHOST, 0);
    let bind = async || {
        let listener = tokio::net::TcpListener::bind(any).await?;
        let port = listener.local_addr()?.port();
        io::Result::Ok((listener, port))
    };
    let bound = async { io::Result::Ok((bind().await?, bind().await?, bind().await?)) };
    let (flood, api, turncoat) = match bound.await {
        Ok(bound) => bound,
        Err(error) => return drop(tell.send(Err(error))),
    };
    let _ = tell.send(Ok([flood.1, api.1, turncoat.1]));
    tokio::join!(
        accept(flood.0, flood_one),
        accept(api.0, move |stream| answer(stream, api_runner)),
        accept(turncoat.0, move |stream| between(stream, turned.clone())),
    );
}

async fn accept<F>(listener: tokio::net::TcpListener, serve: impl Fn(tokio::net::TcpStream) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve(stream))),
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn flood_one(mut stream: tokio::net::TcpStream) -> io::Result<()> {
    // Little in the kernel, because the measurement is about the programs.
    SockRef::from(&stream).set_send_buffer_size(64 << 10)?;
    let piece = vec![0x5a; 64 << 10];
    loop {
        stream.write_all(&piece).await?;
        tokio::task::yield_now().await;
    }
}

/// The two answers of a cluster's interface that a host reads.
async fn answer(mut stream: tokio::net::TcpStream, runner: u16) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16 << 10 {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let known = head.contains(&format!("Bearer {TOKEN}"));
    let (status, body) = if !known {
        sleep(SLOW_ANSWER).await;
        ("401 Unauthorized", "{}".into())
    } else if head.starts_with("GET /api/nodes") {
        let url = format!("http://127.0.0.1:{runner}");
        let node = format!(r#"[{{"hostname":"node","url":"{url}","status":"online"}}]"#);
        ("200 OK", node)
    } else {
        let task = r#"{"task_type":"vps","status":"running","assigned_node":"node"}"#;
        ("200 OK", task.into())
    };
    let len = body.len();
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    stream.write_all(response.as_bytes()).await
}

async fn between(
    mut stream: tokio::net::TcpStream,
    mut turned: watch::Receiver<u16>,
) -> io::Result<()> {
    let port = *turned.borrow_and_update();
    let mut far = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.set_nodelay(true)?;
    far.set_nodelay(true)?;
    tokio::select! {
        copied = copy_bidirectional(&mut stream, &mut far) => copied.map(drop),
        _ = turned.changed() => Ok(()),
    }
}
