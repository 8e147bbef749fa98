//! Peers of a tunnel that outlives its transports, which ask for more than they take.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use kohakuriver_tunnel::mux::{
    self, Acceptor, Admission, Binding, Budget, ConnectFailure, Keeper, KeeperLimits, TunnelError,
};
use kohakuriver_tunnel::resume::{self, EndReason, Message, Open, Secret};
use kohakuriver_tunnel::session::Config;
use kohakuriver_tunnel::wire::{ClientId, Frame, Proto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::pipe::{Packet, Packets, Pipe, pipe};
use super::tunnel::noise;

fn keeper() -> Keeper<Pipe> {
    Keeper::new(
        resume::Config::default(),
        KeeperLimits::default(),
        |bytes| bytes.copy_from_slice(&noise(1, bytes.len())),
    )
}

fn open() -> Packet {
    let open = Open {
        tunnel: 0,
        secret: Secret::new([0; Secret::LEN]),
        attempt: 1,
        received: 0,
        keep: 120,
        ring: 1 << 20,
    };
    Packet::Binary(Message::Open(open).to_bytes())
}

/// Answers are kept until they are acknowledged, and a peer may ask for ever.
#[tokio::test(start_paused = true)]
async fn a_peer_that_asks_and_acknowledges_nothing_is_given_up() {
    let keeper = keeper();
    let (mut near, far, _) = pipe(64);
    near.send(open()).await.unwrap();
    let binding = Binding::new("route", "group", "peer");
    let admitted = mux::builder().admit(&keeper, far, Packets::default(), binding);
    let Ok(Admission::New(opening)) = admitted.await else {
        panic!("not admitted")
    };
    let (_acceptor, driver) = opening.acceptor();
    let driver = tokio::spawn(driver);
    let ping = Frame::Ping {
        id: ClientId::KEEPALIVE,
        payload: Bytes::from_static(&[b'?'; 125]),
    };
    let ping = Packet::Binary(ping.to_bytes());
    let (mut sink, mut stream) = near.split();
    let asking = tokio::spawn(async move { while sink.feed(ping.clone()).await.is_ok() {} });
    let mut most = 0;
    let limit = tokio::time::Instant::now() + Duration::from_secs(3600);
    loop {
        let packet = tokio::time::timeout_at(limit, stream.next()).await;
        let Ok(Some(Ok(Packet::Binary(message)))) = packet else {
            panic!("{packet:?} after {most} bytes")
        };
        if let Ok(Message::End { reason, .. }) = Message::decode(&message) {
            assert_eq!(reason, EndReason::Overflow);
            break;
        }
        most = most.max(keeper.stats().ring_bytes);
        assert!(most <= 6 << 20, "{most} bytes are kept");
    }
    assert!(most > 4 << 20);
    asking.abort();
    drop(stream);
    let Err(TunnelError::NotResumed(ended)) = driver.await.unwrap() else {
        panic!("the tunnel ended otherwise")
    };
    assert_eq!(ended.reason, EndReason::Overflow);
}

const DOWNLOAD: u16 = 80;
const LITTLE: usize = 40_000;

/// Sends without end, or a little on another port.
async fn serve(mut acceptor: Acceptor) {
    while let Some(incoming) = acceptor.accept_tcp().await {
        let is_endless = incoming.port() == DOWNLOAD;
        let mut stream = incoming.accept();
        tokio::spawn(async move {
            let len = if is_endless { 1 << 30 } else { LITTLE };
            for _ in 0..len / LITTLE {
                if stream.write_all(&noise(7, LITTLE)).await.is_err() {
                    return;
                }
            }
            let _ = stream.shutdown().await;
        });
    }
}

fn admit(keeper: &Keeper<Pipe>, budget: &Budget, far: Pipe) {
    let (keeper, builder) = (keeper.clone(), mux::builder().budget(budget));
    tokio::spawn(async move {
        let binding = Binding::new("route", "group", "peer");
        let admitted = builder.admit(&keeper, far, Packets::default(), binding);
        if let Ok(Admission::New(opening)) = admitted.await {
            let (acceptor, driver) = opening.acceptor();
            tokio::join!(serve(acceptor), driver).1.ok();
        }
    });
}

/// Reads and answers everything, and acknowledges nothing. Returns how its tunnel ended.
async fn download(mut near: Pipe) -> EndReason {
    let id = ClientId(1);
    let (proto, port) = (Proto::Tcp, DOWNLOAD);
    near.send(open()).await.unwrap();
    let connect = Frame::<Bytes>::Connect { proto, id, port };
    near.send(Packet::Binary(connect.to_bytes())).await.unwrap();
    while let Some(Ok(Packet::Binary(message))) = near.next().await {
        if let Ok(Message::End { reason, .. }) = Message::decode(&message) {
            return reason;
        }
        let answer = match Frame::decode(message) {
            Ok(Frame::Data { payload, .. }) => Frame::Window {
                id,
                credit: u32::try_from(payload.len()).unwrap(),
            },
            Ok(Frame::Ping { id, payload }) => Frame::Pong { id, payload },
            _ => continue,
        };
        let _ = near.send(Packet::Binary(answer.to_bytes())).await;
    }
    panic!("no END")
}

/// What is kept for peers that do not acknowledge is within the budget, and they pay for it.
#[tokio::test(start_paused = true)]
async fn peers_that_acknowledge_nothing_end_when_memory_is_short() {
    const PEERS: usize = 16;
    let (keeper, budget) = (keeper(), Budget::new(6 << 20));
    let (near, far, _) = pipe(8);
    admit(&keeper, &budget, far);
    let again = |_| std::future::ready(Err(ConnectFailure::again("no other")));
    let builder = mux::builder().resume(resume::Config::default());
    let (honest, driver) = builder.resuming_opener(near, Packets::default(), again);
    tokio::spawn(driver);
    let mut peers = tokio::task::JoinSet::new();
    for _ in 0..PEERS {
        let (near, far, _) = pipe(8);
        admit(&keeper, &budget, far);
        peers.spawn(download(near));
    }
    let begin = tokio::time::Instant::now();
    let mut most = 0;
    while begin.elapsed() < Duration::from_secs(60) {
        let mut stream = honest.open_tcp(DOWNLOAD + 1).unwrap();
        let mut got = Vec::new();
        let asked = tokio::time::Instant::now();
        stream.read_to_end(&mut got).await.unwrap();
        assert!(got == noise(7, LITTLE));
        assert!(asked.elapsed() < Duration::from_secs(1));
        most = most.max(budget.held());
        assert!(most <= budget.limit(), "{most} bytes are held");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(most > budget.limit() / 2, "{most} bytes at most");
    assert!(budget.held() <= budget.limit() / 2);
    let ended: Vec<_> = std::iter::from_fn(|| peers.try_join_next()).collect();
    assert!(!ended.is_empty());
    for ended in ended {
        assert_eq!(ended.unwrap(), EndReason::Overflow);
    }
}

/// Reads half a megabit a second and acknowledges it, for a minute.
async fn read_slowly(mut near: Pipe) {
    let id = ClientId(1);
    let (proto, port) = (Proto::Tcp, DOWNLOAD);
    near.send(open()).await.unwrap();
    let opened = near.next().await;
    assert!(matches!(opened, Some(Ok(Packet::Binary(_)))), "{opened:?}");
    let ack = |received| Packet::Binary(Message::Ack { received }.to_bytes());
    near.send(ack(0)).await.unwrap();
    let connect = Frame::<Bytes>::Connect { proto, id, port };
    let credit = 4 << 20;
    let window = Frame::<Bytes>::Window { id, credit };
    for frame in [connect, window] {
        near.send(Packet::Binary(frame.to_bytes())).await.unwrap();
    }
    let (mut received, mut debt) = (0, 0);
    let begin = tokio::time::Instant::now();
    while begin.elapsed() < Duration::from_secs(60) {
        let Some(Ok(Packet::Binary(message))) = near.next().await else {
            panic!("the transport ended")
        };
        let len = message.len();
        tokio::time::sleep(Duration::from_micros(len as u64 * 16)).await;
        if let Ok(message) = Message::decode(&message) {
            assert!(!matches!(message, Message::End { .. }), "{message:?}");
            continue;
        }
        received += 1;
        debt += len;
        let answer = match Frame::decode(message) {
            Ok(Frame::Data { payload, .. }) => Frame::Window {
                id,
                credit: u32::try_from(payload.len()).unwrap(),
            },
            Ok(Frame::Ping { id, payload }) => {
                debt += 256 << 10;
                Frame::Pong { id, payload }
            }
            _ => continue,
        };
        near.send(Packet::Binary(answer.to_bytes())).await.unwrap();
        if debt >= 256 << 10 {
            debt = 0;
            near.send(ack(received)).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_peer_that_acknowledges_is_kept_while_memory_is_short() {
    let (keeper, budget) = (keeper(), Budget::new(12 << 20));
    // Their shares leave little for one tunnel.
    let mut others = Vec::new();
    for _ in 0..16 {
        let (near, far, _) = pipe(8);
        let config = Config::default().with_keepalive(None);
        let builder = mux::builder().config(config).budget(&budget);
        let (acceptor, driver) = builder.acceptor(far, Packets::default());
        others.push((near, acceptor, tokio::spawn(driver)));
    }
    let (near, far, _) = pipe(64);
    admit(&keeper, &budget, far);
    let slow = tokio::spawn(read_slowly(near));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(keeper.stats().ring_bytes >= 1 << 20);
    assert!(budget.take(13 << 19) && budget.held() > budget.limit() / 2);
    slow.await.unwrap();
    assert!(keeper.stats().ring_bytes < 512 << 10);
    assert!(budget.held() > budget.limit() / 2);
}
