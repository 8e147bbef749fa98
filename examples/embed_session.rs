//! A tunnel without a runtime: one thread, a blocking WebSocket, and a `Session` driven by hand.
//!
//! Asks a web service behind a runner for a page and prints the answer.
//!
//! ```text
//! cargo run --example runner -- --target vm-7=127.0.0.1
//! cargo run --example embed_session -- ws://127.0.0.1:8001/api/tunnel/vm-7 8080
//! ```

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::Duration;

use kohakuriver_tunnel::session::{
    Config, Event, Greeting, Instant, Recv, Role, Session, StreamId, Transmit, Version,
};
use tokio_tungstenite::tungstenite::stream::MaybeTlsStream;
use tokio_tungstenite::tungstenite::{self, ClientRequestBuilder, Message, WebSocket};

type Socket = WebSocket<MaybeTlsStream<TcpStream>>;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("usage: embed_session URL PORT")?;
    let port = arguments.next().ok_or("usage: embed_session URL PORT")?;

    let (mut socket, version) = connect(&url)?;
    // The session has no clock. Any that only moves forward will do.
    let start = std::time::Instant::now();
    let now = || Instant::default() + start.elapsed();
    let mut session = Session::new(Role::Opener, version, Config::default(), now());

    let stream = session.open_tcp(port.parse()?, now())?;
    // The first 64 KiB need not wait for the connection to be made.
    session.send_slice(stream, b"GET / HTTP/1.0\r\n\r\n")?;

    while !take_events(&mut session, stream, now())? {
        // Whatever was done to the session may have given it something to send.
        while let Some(transmit) = session.poll_transmit(now()) {
            socket.write(match transmit {
                Transmit::Message(message) => Message::Binary(message),
                Transmit::Ping => Message::Ping(Vec::new().into()),
                other => return Err(format!("cannot send {other:?}").into()),
            })?;
        }
        socket.flush()?;
        // Sending can make events too: a writer that waited may go on.
        if session.has_event() {
            continue;
        }
        // What comes is read at once here. Whoever lets it wait asks `can_receive` before this.
        let deadline = session.poll_timeout();
        let wait = deadline.map_or(Duration::from_secs(60), |deadline| deadline - now());
        match receive(&mut socket, wait)? {
            Some(Message::Binary(message)) => {
                // A breach is counted, and one stream at most was reset for it.
                let _ = session.handle_message(now(), message);
            }
            Some(Message::Close(_)) => return Err("the other side closed the tunnel".into()),
            Some(Message::Text(_)) => return Err("the other side sent a text".into()),
            Some(_) => session.handle_activity(now()), // a ping or a pong: the peer lives
            None => {}
        }
        session.handle_timeout(now());
    }
    session.release(stream, now());
    socket.close(None)?;
    Ok(())
}

/// Looks at what happened, and says whether the stream is at its end.
fn take_events(
    session: &mut Session,
    stream: StreamId,
    now: Instant,
) -> Result<bool, Box<dyn Error>> {
    while let Some(event) = session.poll_event() {
        match event {
            Event::PeerDead => return Err("the other side is silent".into()),
            // An event says only that there is something to look at.
            Event::Readable(_) => loop {
                match session.recv(stream, now)? {
                    Recv::Data(bytes) => std::io::stdout().write_all(&bytes)?,
                    Recv::Blocked => break,
                    Recv::Finished => return Ok(true),
                }
            },
            _ => {}
        }
    }
    Ok(false)
}

/// Makes a WebSocket, agrees on a version, and waits for the greeting.
fn connect(url: &str) -> Result<(Socket, Version), Box<dyn Error>> {
    let request = ClientRequestBuilder::new(url.parse()?).with_sub_protocol(Version::OFFER);
    let (mut socket, answer) = tungstenite::connect(request)?;
    let chosen = answer.headers().get("sec-websocket-protocol");
    let version = Version::answered(chosen.and_then(|value| value.to_str().ok()))?;
    if let MaybeTlsStream::Plain(tcp) = socket.get_ref() {
        tcp.set_nodelay(true)?; // or a small message waits for the peer's delayed acknowledgement
    }
    let until = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let wait = until.saturating_duration_since(std::time::Instant::now());
        match receive(&mut socket, wait)? {
            Some(Message::Ping(_) | Message::Pong(_)) => {}
            Some(message) => {
                return match Greeting::parse(message.to_text()?) {
                    Greeting::Connected => Ok((socket, version)),
                    Greeting::Refused(reason) => Err(reason.into()),
                };
            }
            None if wait.is_zero() => return Err("no greeting within 10 s".into()),
            None => {}
        }
    }
}

/// The next message, or `None` after `wait`.
fn receive(socket: &mut Socket, wait: Duration) -> Result<Option<Message>, Box<dyn Error>> {
    let MaybeTlsStream::Plain(tcp) = socket.get_ref() else {
        return Err("set the timeout of the socket below TLS here".into());
    };
    tcp.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
    match socket.read() {
        Ok(message) => Ok(Some(message)),
        Err(tungstenite::Error::Io(error))
            if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
