//! Attacks by WebSocket frames: control frames, fragments, endless messages.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::DIRECT;
use crate::swarm::{Field, Held, connect, pour};
use crate::wire::{self, BINARY, BINARY_BEGINS, CONTINUES, PING, Peer, V2};

const BATCH: usize = 64 << 10;

/// A session at the runner, past its `CONNECTED`.
pub async fn session(
    field: &Field,
    number: usize,
    container: &str,
    version: Option<&str>,
) -> io::Result<Peer> {
    let stream = connect(field, field.runner, number).await?;
    let path = format!("/api/tunnel/{container}");
    let mut peer = wire::upgrade(stream, &path, version).await?;
    wire::begun(&mut peer).await?;
    Ok(peer)
}

pub async fn pings_session(field: &Field, number: usize) -> io::Result<()> {
    let peer = session(field, number, DIRECT, Some(V2)).await?;
    let _held = Held::new();
    pings(peer).await
}

pub async fn pings_agent(field: &Field, number: usize) -> io::Result<()> {
    let stream = connect(field, field.runner, number).await?;
    let peer = wire::upgrade(stream, &format!("/ws/tunnel/crowd-{number}"), None).await?;
    let _held = Held::new();
    pings(peer).await
}

/// A session through the host, past its `CONNECTED`.
pub async fn session_through_host(field: &Field, number: usize) -> io::Result<Peer> {
    let stream = connect(field, field.host, number).await?;
    let mut peer = wire::upgrade(stream, "/api/tunnel/1", Some(V2)).await?;
    wire::begun(&mut peer).await?;
    Ok(peer)
}

pub async fn pings_host(field: &Field, number: usize) -> io::Result<()> {
    let peer = session_through_host(field, number).await?;
    let _held = Held::new();
    pings(peer).await
}

pub async fn continuations(field: &Field, number: usize) -> io::Result<()> {
    let peer = session(field, number, DIRECT, Some(V2)).await?;
    let _held = Held::new();
    parts(peer, &[]).await
}

pub async fn fragments(field: &Field, number: usize) -> io::Result<()> {
    let peer = session(field, number, DIRECT, Some(V2)).await?;
    let _held = Held::new();
    parts(peer, &[0]).await
}

pub async fn partial(field: &Field, number: usize) -> io::Result<()> {
    held_back(session(field, number, DIRECT, Some(V2)).await?).await
}

pub async fn partial_refused(field: &Field, number: usize) -> io::Result<()> {
    let stream = connect(field, field.host, number).await?;
    held_back(wire::upgrade(stream, "/api/tunnel/nobody", Some(V2)).await?).await
}

/// A message whose last byte does not come.
async fn held_back(mut peer: Peer) -> io::Result<()> {
    const LEN: usize = 1 << 20;
    let _held = Held::new();
    let mut header = Vec::new();
    peer.header(&mut header, BINARY, LEN as u64);
    peer.stream.write_all(&header).await?;
    peer.stream.write_all(&vec![0; LEN - 1]).await?;
    until_ended(peer).await
}

/// A session through the host to the hostile runner, whose client reads nothing.
pub async fn session_of_rogue(field: &Field, number: usize) -> io::Result<()> {
    let stream = connect(field, field.host, number).await?;
    let mut peer = wire::upgrade(stream, "/api/tunnel/3", Some(V2)).await?;
    let _held = Held::new();
    let mut batch = Vec::new();
    peer.frame(&mut batch, BINARY, &vec![0; BATCH]);
    pour(&mut peer.stream, &batch).await
}

pub async fn pings(mut peer: Peer) -> io::Result<()> {
    let batch = peer.batch(BATCH, |peer, out| peer.frame(out, PING, &[0; 125]));
    pour(&mut peer.stream, &batch).await
}

/// A message in fragments of `payload` that never ends.
pub async fn parts(mut peer: Peer, payload: &[u8]) -> io::Result<()> {
    let mut first = Vec::new();
    peer.frame(&mut first, BINARY_BEGINS, &[0]);
    peer.stream.write_all(&first).await?;
    let batch = peer.batch(BATCH, |peer, out| peer.frame(out, CONTINUES, payload));
    pour(&mut peer.stream, &batch).await
}

/// Reads everything until the other side ends it.
pub async fn until_ended(mut peer: Peer) -> io::Result<()> {
    let mut dropped = vec![0; 4096];
    while peer.stream.read(&mut dropped).await? > 0 {}
    Ok(())
}
