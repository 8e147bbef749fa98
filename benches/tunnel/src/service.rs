//! The service behind every chain: TCP and UDP on one port. The first byte of a connection selects
//! its job.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use crate::pattern::{PIECE, Pattern};
use crate::socket;

/// Answers with one byte, then takes the next wish.
pub const READY: u8 = b'R';
/// Echoes everything.
pub const ECHO: u8 = b'E';
/// Receives and checks that many bytes, then answers with one byte.
pub const UPLOAD: u8 = b'U';
/// Sends that many bytes.
pub const DOWNLOAD: u8 = b'D';

/// Sends for that many milliseconds, then ends.
pub const FOR_A_TIME: u8 = b'T';

/// The answer to a correct upload, and to a damaged one.
pub const WHOLE: u8 = b'K';
pub const BROKEN: u8 = b'X';

static PATTERN: LazyLock<Pattern> = LazyLock::new(Pattern::new);

/// Serves until the process ends.
pub fn serve(port: u16) -> io::Result<()> {
    // Not in the time of the first transfer.
    LazyLock::force(&PATTERN);
    let listener = socket::listen(port, None)?;
    let datagrams = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
    thread::spawn(move || echo_datagrams(&datagrams));
    for stream in listener.incoming() {
        let stream = stream?;
        // Thousands of idle connections need only small stacks.
        let thread = thread::Builder::new().stack_size(256 << 10);
        // The client reports connections that fail.
        thread.spawn(move || serve_one(stream))?;
    }
    Ok(())
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((len, peer)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(buffer.get(..len).unwrap_or_default(), peer);
    }
}

fn serve_one(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut wish = [0; 1];
    stream.read_exact(&mut wish)?;
    if wish == [READY] {
        stream.write_all(&wish)?;
        stream.read_exact(&mut wish)?;
    }
    if wish == [ECHO] {
        // Small at first: most connections only wait.
        let mut buffer = vec![0; 512];
        loop {
            let len = stream.read(&mut buffer)?;
            if len == 0 {
                return Ok(());
            }
            stream.write_all(buffer.get(..len).unwrap_or_default())?;
            if len == buffer.len() && len < PIECE {
                buffer.resize(PIECE, 0);
            }
        }
    }
    let mut len = [0; 8];
    stream.read_exact(&mut len)?;
    let len = u64::from_be_bytes(len);
    if wish == [DOWNLOAD] {
        return PATTERN.send(&mut stream, len);
    }
    if wish == [FOR_A_TIME] {
        return PATTERN.send_for(&mut stream, Duration::from_millis(len));
    }
    let verdict = match PATTERN.receive(&mut stream, len) {
        Ok(()) => WHOLE,
        Err(_) => BROKEN,
    };
    stream.write_all(&[verdict])
}
