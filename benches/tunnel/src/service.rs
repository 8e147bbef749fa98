//! The service behind every chain: TCP and UDP on one port. A connection's first byte says what it wants.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use crate::pattern::{PIECE, Pattern};

/// Everything comes back.
pub const ECHO: u8 = b'E';
/// So many bytes are taken and checked, then answered with one byte.
pub const UPLOAD: u8 = b'U';
/// So many bytes are sent.
pub const DOWNLOAD: u8 = b'D';

/// The answer to an upload that came whole, and to one that did not.
pub const WHOLE: u8 = b'K';
pub const BROKEN: u8 = b'X';

/// Serves until the process ends.
pub fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let datagrams = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
    thread::spawn(move || echo_datagrams(&datagrams));
    for stream in listener.incoming() {
        let stream = stream?;
        // Thousands of idle connections need no deep stacks.
        let thread = thread::Builder::new().stack_size(256 << 10);
        // A connection that fails concerns the client, which tells.
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
    if wish == [ECHO] {
        // Small until there is need: most of these only wait.
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
    let pattern = Pattern::new();
    if wish == [DOWNLOAD] {
        return pattern.send(&mut stream, len);
    }
    let verdict = match pattern.receive(&mut stream, len) {
        Ok(()) => WHOLE,
        Err(_) => BROKEN,
    };
    stream.write_all(&[verdict])
}
