//! The whole chain as processes on loopback, with services at its end.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::program::Program;
use crate::{LIMIT, soon};

/// The container of task 42.
pub const CONTAINER: &str = "kohakuriver-vps-42";

/// Host and runner; forwards and agents are started later.
pub struct Chain {
    pub host: Program,
    pub runner: Program,
}

impl Chain {
    /// With a runner that dials the container itself, at 127.0.0.1.
    pub fn direct() -> Self {
        Self::with_runner(&["--target", &format!("{CONTAINER}=127.0.0.1")])
    }

    /// With a runner that needs the container's agent.
    pub fn for_agents() -> Self {
        Self::with_runner(&[])
    }

    pub fn with_runner(args: &[&str]) -> Self {
        let runner = start_runner("127.0.0.1:0", args);
        let host = host_at("127.0.0.1:0", &runner.address(), &[]);
        Self { host, runner }
    }

    /// Kills the host and starts it again at its address.
    pub fn restart_host(&mut self) {
        let (address, runner) = (self.host.address(), self.runner.address());
        self.host.kill();
        self.host = host_at(&address, &runner, &[]);
    }

    pub fn host_url(&self) -> String {
        format!("ws://{}", self.host.address())
    }

    /// A running forward of task 42 and any free local port, unless `args` say otherwise.
    pub fn forward(&self, remote: u16, args: &[&str]) -> Program {
        let forward = self.start_forward(remote, args);
        forward.address();
        forward
    }

    /// As [`forward`](Self::forward), without waiting.
    pub fn start_forward(&self, remote: u16, args: &[&str]) -> Program {
        let (url, remote) = (self.host_url(), remote.to_string());
        let mut words = vec!["--host", &url, "42", &remote, "--local-port", "0"];
        words.extend(args);
        Program::start("forward", &words)
    }

    /// A registered agent of the container.
    pub fn agent(&self) -> Program {
        start_agent(&self.runner.address())
    }
}

/// A host at an address, for task 42 at this runner.
pub fn host_at(address: &str, runner: &str, more: &[&str]) -> Program {
    let task = format!("42={CONTAINER}@http://{runner}");
    let args = ["--listen", address, "--task", &task];
    let host = Program::start("host", &[&args[..], more].concat());
    host.address();
    host
}

pub fn start_runner(listen: &str, args: &[&str]) -> Program {
    let mut words = vec!["--listen", listen];
    words.extend(args);
    let runner = Program::start("runner", &words);
    runner.address();
    runner
}

pub fn start_agent(runner: &str) -> Program {
    agent_at(&format!("ws://{runner}"), &["--reconnect-delay", "0.5"])
}

/// An agent that has registered at this URL.
pub fn agent_at(url: &str, more: &[&str]) -> Program {
    let args = ["--runner-url", url, "--container-id", CONTAINER];
    let agent = Program::start("agent", &[&args[..], more].concat());
    agent.complaint("registered at");
    agent
}

/// Connects to a forward's port.
pub async fn connect(forward: &Program) -> TcpStream {
    let address = forward.address();
    soon("connect", TcpStream::connect(address)).await.unwrap()
}

/// Accepts connections and passes each to `serve`, until the test ends.
pub async fn service<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    service_at("127.0.0.1:0", serve).await
}

/// As [`service`], at an address.
pub async fn service_at<F>(
    address: &str,
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// A port that neither accepts nor refuses: its queue is full.
pub struct SilentPort {
    address: SocketAddr,
    _listener: socket2::Socket,
    _queued: Vec<socket2::Socket>,
}

impl SilentPort {
    pub fn open() -> Self {
        use socket2::{Domain, Socket, Type};
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        // Several in a row: one alone may time out on a busy machine.
        let mut timeouts = 0;
        while timeouts < 3 {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let connected = client.connect_timeout(&address.into(), Duration::from_millis(300));
            queued.push(client);
            timeouts = match connected {
                Ok(()) => 0,
                Err(_) => timeouts + 1,
            };
        }
        Self {
            address,
            _listener: listener,
            _queued: queued,
        }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

/// Echoes until the connection ends.
pub async fn echo(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

/// A UDP echo service.
pub async fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(serve_udp_echo(socket));
    address
}

pub async fn serve_udp_echo(socket: UdpSocket) {
    let mut buffer = vec![0; 65_536];
    while let Ok((len, peer)) = socket.recv_from(&mut buffer).await {
        let _ = socket.send_to(&buffer[..len], peer).await;
    }
}

/// Sends until the echo comes: a datagram may get lost, but not always.
pub async fn echoed(socket: &UdpSocket, datagram: &[u8]) {
    eventually("an echo", Duration::from_secs(20), || async {
        socket.send(datagram).await.unwrap();
        let mut reply = vec![0; 65_536];
        let received = socket.recv(&mut reply);
        let limit = Duration::from_millis(500);
        let len = tokio::time::timeout(limit, received).await.ok()?.unwrap();
        (reply[..len] == *datagram).then_some(())
    })
    .await;
}

/// Reads to the end, then answers with the same bytes in reverse order.
pub async fn reverse(mut stream: TcpStream) {
    let mut request = Vec::new();
    stream.read_to_end(&mut request).await.unwrap();
    request.reverse();
    stream.write_all(&request).await.unwrap();
}

/// Sends `len` bytes to [`reverse`], ends that direction, and expects the answer.
pub async fn expect_reverse(forward: &Program, len: usize) {
    let mut request = pattern(5, len);
    let mut stream = connect(forward).await;
    soon("upload", stream.write_all(&request)).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut reply = Vec::new();
    soon("reply", stream.read_to_end(&mut reply)).await.unwrap();
    request.reverse();
    assert!(reply == request, "{} bytes came back", reply.len());
}

/// Writes `message` and expects it back.
pub async fn expect_echo(stream: &mut TcpStream, message: &[u8]) {
    soon("write", stream.write_all(message)).await.unwrap();
    let mut reply = vec![0; message.len()];
    soon("echo", stream.read_exact(&mut reply)).await.unwrap();
    assert!(reply == message, "the echo differs");
}

/// Reads until the connection ends; returns how: `None` for an orderly end.
pub async fn ending(stream: &mut TcpStream) -> Option<ErrorKind> {
    let mut rest = Vec::new();
    let ended = soon("the connection's end", stream.read_to_end(&mut rest)).await;
    ended.err().map(|error| error.kind())
}

/// Bytes that depend on position and seed.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The value of a metric of a program, `name` with its labels.
pub async fn metric(program: &Program, name: &str) -> u64 {
    let mut stream = TcpStream::connect(program.address()).await.unwrap();
    let request = b"GET /metrics HTTP/1.0\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut page = String::new();
    soon("metrics", stream.read_to_string(&mut page))
        .await
        .unwrap();
    let start = format!("kohakuriver_tunnel_{name} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("no {name} in {page}"))
        .parse()
        .unwrap()
}

/// Waits until a metric has this value.
pub async fn expect_metric(program: &Program, name: &str, value: u64) {
    eventually(&format!("{name} {value}"), LIMIT, || async {
        (metric(program, name).await == value).then_some(())
    })
    .await;
}

/// Retries until it works, for things that recover by themselves.
pub async fn eventually<T, F>(what: &str, limit: Duration, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let end = tokio::time::Instant::now() + limit;
    loop {
        if let Some(done) = attempt().await {
            return done;
        }
        assert!(
            tokio::time::Instant::now() < end,
            "{what}: not within {limit:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
