//! A hostile agent towards the runner.

use std::io;

use tokio::io::AsyncWriteExt;

use super::ROGUE;
use super::websocket::until_ended;
use crate::swarm::{Field, connect};
use crate::wire::{self, CONNECT, CONNECTED, DATA, Peer, WINDOW, message};

/// Streams that are flooded.
const FLOODED: usize = 1000;

async fn register(field: &Field) -> io::Result<Peer> {
    let stream = connect(field, field.runner, 0).await?;
    wire::upgrade(stream, &format!("/ws/tunnel/{ROGUE}"), None).await
}

pub async fn silent(field: &Field, _: usize) -> io::Result<()> {
    until_ended(register(field).await?).await
}

pub async fn deaf(field: &Field, _: usize) -> io::Result<()> {
    let _peer = register(field).await?;
    std::future::pending().await
}

/// Every kind of message, with ids that were and were not allocated.
pub async fn garbage(field: &Field, _: usize) -> io::Result<()> {
    let mut peer = register(field).await?;
    let mut id = 0_u32;
    loop {
        let batch = peer.batch(64 << 10, |peer, out| {
            id = id.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            for id in [id, id % 1000] {
                for kind in [0x00, CONNECT, 0x05, 0x09, 0x7f, WINDOW, CONNECTED, DATA] {
                    peer.message(out, kind, id, 80, &id.to_be_bytes());
                }
            }
        });
        peer.stream.write_all(&batch).await?;
        tokio::task::yield_now().await;
    }
}

/// Accepts every request and sends DATA on all streams, regardless of what the other side reads.
pub async fn flood(field: &Field, _: usize) -> io::Result<()> {
    let mut peer = register(field).await?;
    let mut ids = Vec::new();
    while ids.len() < FLOODED.min(field.connections) {
        let message = message(&mut peer).await?;
        if let [CONNECT, _, a, b, c, d, ..] = message[..] {
            let id = u32::from_be_bytes([a, b, c, d]);
            let mut out = Vec::new();
            peer.message(&mut out, CONNECTED, id, 0, &[]);
            peer.stream.write_all(&out).await?;
            ids.push(id);
        }
    }
    loop {
        for id in &ids {
            let mut out = Vec::new();
            peer.message(&mut out, DATA, *id, 0, &[0x5a; 16 << 10]);
            peer.stream.write_all(&out).await?;
        }
        tokio::task::yield_now().await;
    }
}
