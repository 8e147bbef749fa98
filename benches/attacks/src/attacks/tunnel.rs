//! Attacks by tunnel messages: endless streams, data for unknown ids, useless credit.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

use super::websocket::{session, session_through_host, until_ended};
use super::{DIRECT, INSIDE, ROGUE};
use crate::swarm::{Field, Held, pour};
use crate::wire::{
    CLOSE, CONNECT, CONNECTED, DATA, OPEN, PING_MESSAGE, PONG_MESSAGE, Peer, RESUMABLE, V2, WINDOW,
    message,
};

const BATCH: usize = 64 << 10;
/// Streams of a session that sends early data, and of one that dials.
const EARLY: u32 = 16;
const DIALS: u32 = 50;

pub async fn early_v1(field: &Field, number: usize) -> io::Result<()> {
    early(session(field, number, DIRECT, None).await?, field.silent).await
}

pub async fn early_v2(field: &Field, number: usize) -> io::Result<()> {
    early(
        session(field, number, DIRECT, Some(V2)).await?,
        field.silent,
    )
    .await
}

pub async fn dials_direct(field: &Field, number: usize) -> io::Result<()> {
    dials(
        session(field, number, DIRECT, Some(V2)).await?,
        field.silent,
    )
    .await
}

pub async fn dials_inside(field: &Field, number: usize) -> io::Result<()> {
    dials(
        session(field, number, INSIDE, Some(V2)).await?,
        field.silent,
    )
    .await
}

pub async fn stray_ids(field: &Field, number: usize) -> io::Result<()> {
    let mut peer = session(field, number, DIRECT, Some(V2)).await?;
    let _held = Held::new();
    let mut id = 0x1234_5678_u32;
    let batch = peer.batch(BATCH, |peer, out| {
        for kind in [DATA, CLOSE, CONNECTED, WINDOW, 0x05, 0x7f] {
            id = id.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            peer.message(out, kind, id, 0, &[1; 4]);
        }
    });
    pour(&mut peer.stream, &batch).await
}

pub async fn connects(field: &Field, number: usize) -> io::Result<()> {
    let peer = session(field, number, DIRECT, Some(V2)).await?;
    let _held = Held::new();
    open_without_end(peer, field.refusing).await
}

pub async fn windows(field: &Field, number: usize) -> io::Result<()> {
    let mut peer = session(field, number, DIRECT, Some(V2)).await?;
    let _held = Held::new();
    let mut first = Vec::new();
    peer.message(&mut first, CONNECT, 1, field.silent, &[]);
    peer.stream.write_all(&first).await?;
    let batch = peer.batch(BATCH, |peer, out| {
        peer.message(out, WINDOW, 1, 0, &u32::MAX.to_be_bytes());
    });
    pour(&mut peer.stream, &batch).await
}

/// Four downloads a session, with the largest possible credit.
pub async fn deaf(field: &Field, number: usize) -> io::Result<()> {
    let mut peer = session(field, number, DIRECT, [None, Some(V2)][number % 2]).await?;
    let _held = Held::new();
    let mut out = Vec::new();
    for id in 1..=4 {
        peer.message(&mut out, CONNECT, id, field.flood, &[]);
        if number % 2 == 1 {
            peer.message(&mut out, WINDOW, id, 0, &(1_u32 << 30).to_be_bytes());
        }
    }
    peer.stream.write_all(&out).await?;
    std::future::pending().await
}

/// Four downloads a session, of which everything is read. The runner keeps what it sends until it
/// is acknowledged.
pub async fn no_acks(field: &Field, number: usize) -> io::Result<()> {
    let mut peer = session(field, number, DIRECT, Some(RESUMABLE)).await?;
    let _held = Held::new();
    let mut out = Vec::new();
    // A new tunnel, a secret of no meaning, the first attempt, nothing received; kept for 1 s, with
    // a ring of 1 MiB.
    let mut open = vec![0; 8 + 16];
    open.extend(1_u32.to_be_bytes());
    open.extend(0_u64.to_be_bytes());
    open.extend(1_u32.to_be_bytes());
    open.extend((1_u32 << 20).to_be_bytes());
    peer.message(&mut out, OPEN, 0, 0, &open);
    for id in 1..=4 {
        peer.message(&mut out, CONNECT, id, field.flood, &[]);
        peer.message(&mut out, WINDOW, id, 0, &(1_u32 << 30).to_be_bytes());
    }
    peer.stream.write_all(&out).await?;
    loop {
        let message = message(&mut peer).await?;
        if message.first() == Some(&PING_MESSAGE) {
            let mut out = Vec::new();
            let payload = message.get(8..).unwrap_or_default();
            peer.message(&mut out, PONG_MESSAGE, 0, 0, payload);
            peer.stream.write_all(&out).await?;
        }
    }
}

/// Sessions through the host that are quiet one by one: each sends one message at the same moments.
pub async fn in_step(field: &Field, number: usize) -> io::Result<()> {
    const EVERY: Duration = Duration::from_millis(250);
    let mut peer = session_through_host(field, number).await?;
    let _held = Held::new();
    let mut ping = Vec::new();
    peer.message(&mut ping, PING_MESSAGE, 0, 0, &[]);
    let mut dropped = vec![0; 4096];
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let late = now.unwrap_or_default().as_millis() % EVERY.as_millis();
        sleep(EVERY - Duration::from_millis(u64::try_from(late).unwrap_or(0))).await;
        peer.stream.write_all(&ping).await?;
        while let Ok(1..) = peer.stream.try_read(&mut dropped) {}
    }
}

/// Sessions to the container of the hostile agent that send as much as is accepted, and read
/// nothing.
pub async fn sessions_to_rogue(field: &Field, number: usize) -> io::Result<()> {
    let peer = session(field, number, ROGUE, [None, Some(V2)][number % 2]).await?;
    early(peer, 80).await
}

async fn early(mut peer: Peer, port: u16) -> io::Result<()> {
    let _held = Held::new();
    let mut out = Vec::new();
    for id in 1..=EARLY {
        peer.message(&mut out, CONNECT, id, port, &[]);
    }
    peer.stream.write_all(&out).await?;
    let mut batch = Vec::new();
    for id in 1..=EARLY {
        peer.message(&mut batch, DATA, id, 0, &[0x5a; 16 << 10]);
    }
    pour(&mut peer.stream, &batch).await
}

async fn dials(mut peer: Peer, port: u16) -> io::Result<()> {
    let _held = Held::new();
    let mut out = Vec::new();
    for id in 1..=DIALS {
        peer.message(&mut out, CONNECT, id, port, &[]);
    }
    peer.stream.write_all(&out).await?;
    until_ended(peer).await
}

pub async fn open_without_end(mut peer: Peer, port: u16) -> io::Result<()> {
    let mut id = 0;
    loop {
        let batch = peer.batch(BATCH, |peer, out| {
            id += 1;
            peer.message(out, CONNECT, id, port, &[]);
        });
        peer.stream.write_all(&batch).await?;
    }
}
