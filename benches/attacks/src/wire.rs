//! WebSocket frames and tunnel messages written by hand, because no library writes invalid ones.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1_smol::Sha1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// First bytes of frames: FIN and opcode.
pub const BINARY: u8 = 0x82;
pub const TEXT: u8 = 0x81;
pub const PING: u8 = 0x89;
/// The first frame of a message in several, and one in its middle.
pub const BINARY_BEGINS: u8 = 0x02;
pub const CONTINUES: u8 = 0x00;

/// Types of tunnel messages.
pub const CONNECT: u8 = 0x01;
pub const CONNECTED: u8 = 0x02;
pub const DATA: u8 = 0x03;
pub const CLOSE: u8 = 0x04;
pub const WINDOW: u8 = 0x08;

pub const PING_MESSAGE: u8 = 0x06;
pub const PONG_MESSAGE: u8 = 0x07;
pub const OPEN: u8 = 0x0a;

pub const V2: &str = "kohakuriver-tunnel.v2";
pub const RESUMABLE: &str = "kohakuriver-tunnel.v2.resume";

/// Longest head of a request or a response that is accepted.
const HEAD_MAX: usize = 16 << 10;

/// A WebSocket after its handshake.
pub struct Peer {
    pub stream: TcpStream,
    /// Clients mask. A key of zeros leaves the payload unchanged.
    pub masks: bool,
}

impl Peer {
    /// Appends a frame header for a payload of this length. The payload need not follow.
    pub fn header(&self, out: &mut Vec<u8>, first: u8, len: u64) {
        let mask = if self.masks { 0x80 } else { 0 };
        out.push(first);
        match (u8::try_from(len), u16::try_from(len)) {
            (Ok(short @ 0..=125), _) => out.push(mask | short),
            (_, Ok(len)) => {
                out.push(mask | 126);
                out.extend(len.to_be_bytes());
            }
            _ => {
                out.push(mask | 127);
                out.extend(len.to_be_bytes());
            }
        }
        if self.masks {
            out.extend([0; 4]);
        }
    }

    pub fn frame(&self, out: &mut Vec<u8>, first: u8, payload: &[u8]) {
        self.header(out, first, payload.len() as u64);
        out.extend(payload);
    }

    /// Appends a tunnel message of TCP.
    pub fn message(&self, out: &mut Vec<u8>, kind: u8, id: u32, port: u16, payload: &[u8]) {
        self.header(out, BINARY, 8 + payload.len() as u64);
        out.extend([kind, 0]);
        out.extend(id.to_be_bytes());
        out.extend(port.to_be_bytes());
        out.extend(payload);
    }

    /// Repeats the bytes that `one` makes, in a buffer of about `len` bytes.
    pub fn batch(&self, len: usize, mut one: impl FnMut(&Self, &mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 1024);
        while out.len() < len {
            one(self, &mut out);
        }
        out
    }
}

/// Requests an upgrade. `Err` if it is refused.
pub async fn upgrade(
    mut stream: TcpStream,
    path: &str,
    protocol: Option<&str>,
) -> io::Result<Peer> {
    let protocol = protocol.map_or(String::new(), |name| {
        format!("Sec-WebSocket-Protocol: {name}\r\n")
    });
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let head = head(&mut stream).await?;
    if !head.starts_with("HTTP/1.1 101") {
        return Err(io::Error::other("no upgrade"));
    }
    Ok(Peer {
        stream,
        masks: true,
    })
}

/// Grants an upgrade, in the version that is offered.
pub async fn grant(mut stream: TcpStream) -> io::Result<Peer> {
    let head = head(&mut stream).await?;
    let key = header_of(&head, "sec-websocket-key").ok_or(io::ErrorKind::InvalidData)?;
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = STANDARD.encode(hash.digest().bytes());
    let offered = header_of(&head, "sec-websocket-protocol");
    let protocol = offered.map_or(String::new(), |_| {
        format!("Sec-WebSocket-Protocol: {V2}\r\n")
    });
    let response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{protocol}\r\n"
    );
    stream.write_all(response.as_bytes()).await?;
    Ok(Peer {
        stream,
        masks: false,
    })
}

/// The payload of the next frame of the runner, which is not masked.
pub async fn message(peer: &mut Peer) -> io::Result<Vec<u8>> {
    let stream = &mut peer.stream;
    let _first = stream.read_u8().await?;
    let len = match stream.read_u8().await? & 0x7f {
        126 => u64::from(stream.read_u16().await?),
        127 => stream.read_u64().await?,
        short => u64::from(short),
    };
    let mut payload = vec![0; usize::try_from(len.min(2 << 20)).unwrap_or(0)];
    stream.read_exact(&mut payload).await?;
    Ok(payload)
}

/// Reads the text at the start of a session.
pub async fn begun(peer: &mut Peer) -> io::Result<()> {
    let mut header = [0; 2];
    peer.stream.read_exact(&mut header).await?;
    let mut text = vec![0; usize::from(header[1] & 0x7f)];
    peer.stream.read_exact(&mut text).await?;
    if text == b"CONNECTED" {
        Ok(())
    } else {
        Err(io::Error::other("no session"))
    }
}

/// Byte by byte, because the bytes after the head belong to the caller.
async fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > HEAD_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn header_of<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.trim())
}
