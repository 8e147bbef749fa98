//! A hostile host towards `forward`, a hostile runner towards host and agent.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::tunnel::open_without_end;
use super::websocket::{parts, pings, until_ended};
use crate::swarm::{Held, pour};
use crate::wire::{self, BINARY, Peer, TEXT};

const BATCH: usize = 64 << 10;

/// Grants a session, as a host or a runner does.
async fn session(stream: TcpStream) -> io::Result<Peer> {
    let mut peer = wire::grant(stream).await?;
    let mut text = Vec::new();
    peer.frame(&mut text, TEXT, b"CONNECTED");
    peer.stream.write_all(&text).await?;
    Ok(peer)
}

pub async fn session_pings(stream: TcpStream) -> io::Result<()> {
    let _held = Held::new();
    pings(session(stream).await?).await
}

pub async fn session_continuations(stream: TcpStream) -> io::Result<()> {
    let _held = Held::new();
    parts(session(stream).await?, &[]).await
}

pub async fn session_garbage(stream: TcpStream) -> io::Result<()> {
    let _held = Held::new();
    garbage(session(stream).await?).await
}

pub async fn session_giant(stream: TcpStream) -> io::Result<()> {
    let _held = Held::new();
    let mut peer = session(stream).await?;
    let mut header = Vec::new();
    peer.header(&mut header, BINARY, 1 << 62);
    peer.stream.write_all(&header).await?;
    pour(&mut peer.stream, &[0; BATCH]).await
}

pub async fn agent_pings(stream: TcpStream) -> io::Result<()> {
    let _held = Held::new();
    pings(wire::grant(stream).await?).await
}

pub async fn agent_continuations(stream: TcpStream) -> io::Result<()> {
    let _held = Held::new();
    parts(wire::grant(stream).await?, &[]).await
}

pub async fn agent_garbage(stream: TcpStream) -> io::Result<()> {
    let _held = Held::new();
    garbage(wire::grant(stream).await?).await
}

pub async fn agent_connects(stream: TcpStream) -> io::Result<()> {
    let _held = Held::new();
    // Port 1: nobody listens there.
    open_without_end(wire::grant(stream).await?, 1).await
}

pub async fn endless_head(mut stream: TcpStream) -> io::Result<()> {
    let _held = Held::new();
    stream
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\n")
        .await?;
    pour(&mut stream, &b"x-more: of the same\r\n".repeat(1000)).await
}

pub async fn continues(mut stream: TcpStream) -> io::Result<()> {
    let _held = Held::new();
    pour(&mut stream, &b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1000)).await
}

pub async fn drip(mut stream: TcpStream) -> io::Result<()> {
    let _held = Held::new();
    for byte in b"HTTP/1.1 101 Switching Protocols\r\n".iter().cycle() {
        stream.write_all(&[*byte]).await?;
        sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

pub async fn silent(stream: TcpStream) -> io::Result<()> {
    let _held = Held::new();
    let peer = Peer {
        stream,
        masks: false,
    };
    until_ended(peer).await
}

/// Pseudorandom bytes.
async fn garbage(mut peer: Peer) -> io::Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes: Vec<u8> = (0..BATCH)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[0]
        })
        .collect();
    pour(&mut peer.stream, &bytes).await
}
