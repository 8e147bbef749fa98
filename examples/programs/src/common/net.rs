//! Sockets: their options, connecting to the first address that answers, ending with a reset.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::select_all;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsStream;
use tokio_util::either::Either;

use super::names::Names;
use super::{threads, words};

/// How long an address may be silent before the next one is tried beside it.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// Most addresses of a name that are tried at once. Each takes a descriptor.
const ATTEMPTS: usize = 2;

/// Unsent bytes that the kernel may hold for a tunnel's socket. A keystroke cannot overtake them,
/// so they are few.
#[cfg(target_os = "linux")]
const NOT_SENT_MAX: u32 = 128 * 1024;

type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// A socket, with TLS or without, that follows its task.
///
/// A socket of tokio is watched by the runtime that it was made on. If another thread polled it,
/// that thread would sleep until the first one has seen what happened and wakes it. So whichever
/// thread of the program polls this one, that thread's runtime watches it.
#[derive(Debug)]
pub struct MaybeTls {
    stream: Stream,
    /// Position of the thread whose runtime watches it.
    watched_by: usize,
}

impl From<TcpStream> for MaybeTls {
    /// For a stream that was made on the calling thread.
    fn from(stream: TcpStream) -> Self {
        Self::new(Either::Left(stream))
    }
}

impl From<TlsStream<TcpStream>> for MaybeTls {
    /// For a stream that was made on the calling thread.
    fn from(stream: TlsStream<TcpStream>) -> Self {
        Self::new(Either::Right(Box::new(stream)))
    }
}

impl MaybeTls {
    fn new(stream: Stream) -> Self {
        let watched_by = threads::position();
        Self { stream, watched_by }
    }

    pub fn is_tls(&self) -> bool {
        matches!(self.stream, Either::Right(_))
    }

    /// The TCP socket.
    pub fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Either::Left(stream) => stream,
            Either::Right(stream) => stream.get_ref().0,
        }
    }

    /// The TCP socket, watched by the calling thread's runtime.
    ///
    /// # Errors
    /// There is TLS on it, or this runtime cannot watch it.
    pub fn into_tcp(mut self) -> io::Result<TcpStream> {
        self.here()?;
        match self.stream {
            Either::Left(stream) => Ok(stream),
            Either::Right(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Ends the socket by a reset when it is dropped: the other side sees a failure, not an empty
    /// reply.
    pub fn reset_on_drop(&self) {
        let _ = SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
    }

    fn here(&mut self) -> io::Result<Pin<&mut Stream>> {
        if self.watched_by != threads::position() {
            self.follow()?;
        }
        Ok(Pin::new(&mut self.stream))
    }

    /// Has the socket watched by the calling thread's runtime.
    #[cold]
    fn follow(&mut self) -> io::Result<()> {
        // By a second descriptor, as nothing else could be in the stream's place meanwhile.
        let socket = SockRef::from(self.tcp()).try_clone()?;
        let followed = TcpStream::from_std(socket.into())?;
        match &mut self.stream {
            Either::Left(stream) => *stream = followed,
            Either::Right(stream) => *stream.get_mut().0 = followed,
        }
        self.watched_by = threads::position();
        Ok(())
    }
}

impl AsyncRead for MaybeTls {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.get_mut().here()?.poll_read(cx, buffer);
        read.map_err(words::connection)
    }
}

impl AsyncWrite for MaybeTls {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().here()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().here()?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().here()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().here()?.poll_shutdown(cx)
    }
}

/// Sets the options of a socket between two programs: no Nagle, TCP keepalive for when nothing else
/// would notice a dead peer, and little unsent data in the kernel.
pub fn tune_link(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    // An option that this system lacks is not needed for correctness.
    let _ = socket.set_tcp_nodelay(true);
    keep_alive(&socket);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_notsent_lowat(NOT_SENT_MAX);
    if is_on_this_machine(stream) {
        unpace(&socket);
    }
}

fn keep_alive(socket: &SockRef<'_>) {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10));
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// Bytes that the kernel may hold for an application or a service, each way. The path is short, so
/// more would not be faster, and would let one side run ahead and evict other data from the caches.
/// Measured: a sixth less CPU time per byte than with the kernel's own choice of megabytes.
const APP_BUFFER: usize = 256 * 1024;

/// How the names of the kernel's pacing algorithms begin: `bbr`, and its later versions.
#[cfg(target_os = "linux")]
const PACING: &[u8] = b"bbr";

/// Whether an accepted socket has the options of its listener.
const INHERITS: bool = cfg!(target_os = "linux");

/// Sets the options of a service's socket, which this program has connected. Until
/// [`end_in_order`](end_in_order), it ends by a reset, also if its task is dropped or the process
/// is killed: a part must not look like the whole.
pub fn tune_app(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    set_app_options(&socket);
    set_path_options(&socket, is_on_this_machine(stream));
}

/// As [`tune_app`], for an application's socket, which a listener from [`bind_app`] has accepted.
pub fn tune_accepted_app(stream: &TcpStream, peer: SocketAddr) {
    let socket = SockRef::from(stream);
    if !INHERITS {
        set_app_options(&socket);
    }
    set_path_options(&socket, is_same_machine(stream, peer));
}

fn set_app_options(socket: &SockRef<'_>) {
    let _ = socket.set_linger(Some(Duration::ZERO));
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_send_buffer_size(APP_BUFFER);
    let _ = socket.set_recv_buffer_size(APP_BUFFER);
}

fn set_path_options(socket: &SockRef<'_>, on_this_machine: bool) {
    match on_this_machine {
        true => unpace(socket),
        // Otherwise one that vanished while it was idle would stay for ever.
        false => keep_alive(socket),
    }
}

fn is_on_this_machine(stream: &TcpStream) -> bool {
    let peer = stream.peer_addr();
    peer.is_ok_and(|peer| is_same_machine(stream, peer))
}

fn is_same_machine(stream: &TcpStream, peer: SocketAddr) -> bool {
    let local = || stream.local_addr();
    peer.ip().is_loopback() || local().is_ok_and(|local| local.ip() == peer.ip())
}

/// Turns pacing off between two programs of one machine. There is nothing to congest, but BBR arms
/// a timer for every few segments, which takes a sixth of a program's CPU time. Every Linux has
/// `reno` and lets everybody choose it. A socket with another algorithm keeps it.
#[cfg_attr(not(target_os = "linux"), expect(unused_variables))]
fn unpace(socket: &SockRef<'_>) {
    #[cfg(target_os = "linux")]
    if socket
        .tcp_congestion()
        .is_ok_and(|name| name.starts_with(PACING))
    {
        let _ = socket.set_tcp_congestion(b"reno");
    }
}

/// The error for an answer that does not let this side through.
pub fn answer(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

/// Whether an error is from an answer, also one in a TLS handshake, and not from the network.
pub fn is_answer(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

/// The other side has everything: the socket is closed and not reset.
pub fn end_in_order(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(None);
}

/// Binds without listening: until [`listen_on`], connections are refused and do not hang. No other
/// program that does the same can have the address meanwhile.
fn bind_tcp(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if socket.bind(address).is_err() {
        // Connections that have ended may linger there, but they have the option.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        // Two sockets with it could both bind, and one of them would fail later.
        #[cfg(unix)]
        socket.set_reuseaddr(false)?;
    }
    Ok(socket)
}

/// Listens on what is bound.
pub fn listen_on(socket: TcpSocket, backlog: u32) -> io::Result<TcpListener> {
    // Accepted connections have it too, so that they do not keep the next program from binding.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.listen(backlog)
}

/// As [`bind_tcp`], for applications.
pub fn bind_app(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = bind_tcp(address)?;
    if INHERITS {
        set_app_options(&SockRef::from(&socket));
    }
    Ok(socket)
}

/// Listens with a backlog for a burst of browsers or of clients that reconnect. Returns the address
/// too.
pub fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = listen_on(bind_tcp(address)?, 4096)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Connects to a name or an address.
pub async fn connect(names: &Names, host: &str, port: u16) -> io::Result<TcpStream> {
    connect_any(&resolve(names, host, port).await?).await
}

/// Connects to the address that answers first. Earlier ones have a head start.
pub async fn connect_any(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    first_of(addresses, TcpStream::connect).await
}

/// At most [`ATTEMPTS`] at a time: the oldest gives way to the next.
async fn first_of<F, T>(
    addresses: &[SocketAddr],
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut waiting = addresses.iter().copied();
    let mut attempts = VecDeque::new();
    let mut failure = None;
    loop {
        if let Some(address) = waiting.next() {
            if attempts.len() == ATTEMPTS {
                attempts.pop_front();
            }
            attempts.push_back(Box::pin(connect(address)));
        }
        if attempts.is_empty() {
            return Err(failure.unwrap_or_else(no_address));
        }
        let first = async {
            let (ended, index, _) = select_all(&mut attempts).await;
            (ended, index)
        };
        tokio::select! {
            (ended, index) = first => {
                match ended {
                    Ok(connected) => return Ok(connected),
                    Err(error) => failure.get_or_insert(error),
                };
                drop(attempts.remove(index));
            }
            () = tokio::time::sleep(NEXT_ADDRESS_AFTER), if waiting.len() > 0 => {}
        }
    }
}

pub fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the name has no address")
}

/// The addresses of a name. Literals and `localhost` need no resolver and work in an empty root.
pub async fn resolve(names: &Names, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        // Both: a service may listen on only one of them.
        let loopbacks = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        return Ok(loopbacks
            .map(|address| SocketAddr::new(address, port))
            .to_vec());
    }
    let mut addresses = names.look_up(host).await?;
    for address in &mut addresses {
        address.set_port(port);
    }
    Ok(addresses)
}

/// Limits the time of `work`. A timeout is an `io::Error` like every other failure.
pub async fn within<T>(
    limit: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let late = |_| {
        let text = format!("no answer within {} s", limit.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    };
    tokio::time::timeout(limit, work).await.unwrap_or_else(late)
}

/// The text of an I/O error, beginning in lower case.
pub fn plain(error: &io::Error) -> String {
    let mut text = without_number(error.to_string());
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    match text.is_empty() {
        true => "failed".to_owned(),
        false => text,
    }
}

/// The text without what Rust puts behind that of an I/O error: ` (os error 111)`.
pub fn without_number(mut text: String) -> String {
    if let Some(at) = text.find(" (os error ") {
        text.truncate(at);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn an_accepted_socket_has_the_options_of_one_that_was_connected() {
        let listener = bind_app((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = listener.listen(1).unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (accepted, connected) = tokio::join!(listener.accept(), connecting);
        let ((accepted, peer), connected) = (accepted.unwrap(), connected.unwrap());
        tune_accepted_app(&accepted, peer);
        tune_app(&connected);
        let options = |stream| {
            let socket = SockRef::from(stream);
            let buffers = (socket.send_buffer_size(), socket.recv_buffer_size());
            (
                socket.linger().unwrap(),
                socket.tcp_nodelay().unwrap(),
                (buffers.0.unwrap(), buffers.1.unwrap()),
            )
        };
        assert_eq!(options(&accepted), options(&connected));
        assert_eq!(options(&accepted).0, Some(Duration::ZERO));
        assert!(options(&accepted).1);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_peer_that_vanished_is_noticed_after_half_a_minute() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (accepted, connected) = tokio::join!(listener.accept(), connecting);
        let (link, app) = (accepted.unwrap().0, connected.unwrap());
        let app = SockRef::from(&app);
        // On one machine the kernel tells.
        set_path_options(&app, true);
        assert!(!app.keepalive().unwrap());
        tune_link(&link);
        set_path_options(&app, false);
        for socket in [SockRef::from(&link), app] {
            assert!(socket.keepalive().unwrap());
            let after = socket.tcp_keepalive_time().unwrap();
            assert_eq!(after, Duration::from_secs(30));
        }
    }

    /// Counts while it is there.
    struct Open<'a>(&'a Cell<usize>);

    impl Drop for Open<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() - 1);
        }
    }

    #[tokio::test]
    async fn however_many_addresses_are_silent_two_sockets_are_open() {
        const ANSWERS: u16 = 4;
        let (open, most) = (&Cell::new(0), &Cell::new(0));
        let connect = |address: SocketAddr| {
            open.set(open.get() + 1);
            most.set(most.get().max(open.get()));
            let socket = Open(open);
            async move {
                let _socket = socket;
                match address.port() {
                    ANSWERS => Ok(()),
                    _ => std::future::pending().await,
                }
            }
        };
        let addresses = (0..=ANSWERS).map(|port| (Ipv4Addr::LOCALHOST, port).into());
        let addresses: Vec<_> = addresses.collect();
        first_of(&addresses, connect).await.unwrap();
        assert_eq!((most.get(), open.get()), (ATTEMPTS, 0));
    }

    #[tokio::test]
    async fn the_next_address_is_tried_beside_a_silent_one() {
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let silent = bind_tcp(any).unwrap().listen(0).unwrap();
        let listener = bind_tcp(any).unwrap().listen(1).unwrap();
        let addresses = [&silent, &listener].map(|one| one.local_addr().unwrap());
        let mut queued = Vec::new();
        // While its queue is full, it neither accepts nor refuses.
        let connect = || within(Duration::from_millis(300), TcpStream::connect(addresses[0]));
        let mut timeouts = 0;
        while timeouts < 3 {
            match connect().await {
                Ok(stream) => {
                    queued.push(stream);
                    timeouts = 0;
                }
                Err(_) => timeouts += 1,
            }
        }
        let connecting = connect_any(&addresses);
        let stream = within(Duration::from_secs(30), connecting).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), addresses[1]);
    }
}
