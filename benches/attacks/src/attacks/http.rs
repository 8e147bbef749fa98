//! Attacks before a WebSocket exists.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::swarm::{Field, Held, connect};

pub async fn keep_alive(field: &Field, number: usize) -> io::Result<()> {
    let mut stream = connect(field, field.host, number).await?;
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    let _held = Held::new();
    until_ended(stream).await
}

pub async fn slow_heads(field: &Field, number: usize) -> io::Result<()> {
    let mut stream = connect(field, field.host, number).await?;
    let _held = Held::new();
    stream
        .write_all(b"GET /api/tunnel/1 HTTP/1.1\r\nHost: ")
        .await?;
    loop {
        sleep(Duration::from_millis(500)).await;
        stream.write_all(b"a").await?;
    }
}

pub async fn stalled_tls(field: &Field, number: usize) -> io::Result<()> {
    // The header of a TLS record with a ClientHello of 512 bytes, and nothing after it.
    const BEGUN: [u8; 9] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc];
    let mut stream = connect(field, field.host, number).await?;
    stream.write_all(&BEGUN).await?;
    let _held = Held::new();
    until_ended(stream).await
}

/// Half of them without credentials, half with invalid ones.
pub async fn strangers(field: &Field, number: usize) -> io::Result<()> {
    let token = if number % 2 == 0 {
        String::new()
    } else {
        format!("Authorization: Bearer stranger-{number}\r\n")
    };
    ask(field, number, "/api/tunnel/1", &token).await
}

pub async fn refusals(field: &Field, number: usize) -> io::Result<()> {
    ask(field, number, &format!("/api/tunnel/nobody-{number}"), "").await
}

/// Requests a session and holds it until refused.
async fn ask(field: &Field, number: usize, path: &str, more: &str) -> io::Result<()> {
    let mut stream = connect(field, field.host, number).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let _held = Held::new();
    until_ended(stream).await
}

async fn until_ended(mut stream: TcpStream) -> io::Result<()> {
    let mut dropped = [0; 1024];
    while stream.read(&mut dropped).await? > 0 {}
    Ok(())
}
