//! A stream without a reader, beside others.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use kohakuriver_tunnel::mux::{self, Budget, RelayError, TunnelError, TunnelStream};
use kohakuriver_tunnel::session::{Config, Reason, Version};
use kohakuriver_tunnel::wire::{ClientId, Frame, Header, Kind, Proto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::pipe::{Packet, Packets, pipe};
use super::tunnel::{Link, Tunnel, accept_tcp, echoes, noise, within};

/// Writes until the window is full.
async fn fill(stream: &mut (impl AsyncWriteExt + Unpin)) -> usize {
    let mut written = 0;
    let piece = noise(1, 32 << 10);
    let gap = Duration::from_secs(1);
    while let Ok(len) = tokio::time::timeout(gap, stream.write(&piece)).await {
        written += len.unwrap();
    }
    written
}

#[tokio::test]
async fn a_stalled_reader_stalls_only_itself() {
    for link in Link::BOTH {
        let mut tunnel = link.v2().await;
        let (mut stalled, stalled_far) = tunnel.stream().await;
        let written = fill(&mut stalled).await;
        assert!(written >= 256 << 10, "{written}");
        assert!(tunnel.far.stats().unread <= 256 << 10);

        let (mut near, mut far) = tunnel.stream().await;
        for turn in 0..200_u8 {
            let mut back = [0; 64];
            near.write_all(&[turn; 64]).await.unwrap();
            within(far.read_exact(&mut back)).await.unwrap();
            far.write_all(&back).await.unwrap();
            within(near.read_exact(&mut back)).await.unwrap();
            assert_eq!(back, [turn; 64]);
        }
        // Bulk too, beyond any window.
        let data = noise(2, 4 << 20);
        let sent = data.clone();
        let writer = tokio::spawn(async move {
            near.write_all(&sent).await.unwrap();
            near
        });
        let mut got = vec![0; data.len()];
        within(far.read_exact(&mut got)).await.unwrap();
        assert!(got == data);
        writer.await.unwrap();

        // The stalled stream is complete when it is read at last.
        let reader = tokio::spawn(async move {
            let mut stalled_far = stalled_far;
            let mut all = Vec::new();
            stalled_far.read_to_end(&mut all).await.unwrap();
            all.len()
        });
        stalled.write_all(&[9; 1000]).await.unwrap();
        stalled.shutdown().await.unwrap();
        assert_eq!(within(reader).await.unwrap(), written + 1000);
    }
}

#[tokio::test]
async fn v1_resets_only_the_slow_stream() {
    for link in Link::BOTH {
        let mut config = Config::default();
        config.v1_stream_buffer = 64 << 10;
        config.v1_stall = Duration::from_millis(100);
        let mut tunnel = link.tunnel(Version::V1, config).await;
        let (mut slow_near, mut slow_far) = tunnel.stream().await;
        let (mut near, mut far) = tunnel.stream().await;
        // The acceptor sends, as a service does: in v1 only the acceptor can give a reason.
        let flood = tokio::spawn(async move { while far_write(&mut slow_far).await.is_ok() {} });
        for turn in 0..50_u8 {
            let mut back = [0; 64];
            near.write_all(&[turn; 64]).await.unwrap();
            within(far.read_exact(&mut back)).await.unwrap();
            far.write_all(&back).await.unwrap();
            within(near.read_exact(&mut back)).await.unwrap();
        }
        within(flood).await.unwrap();
        let mut all = Vec::new();
        let error = within(slow_near.read_to_end(&mut all)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let reset = error.get_ref().unwrap().downcast_ref();
        let reset: &kohakuriver_tunnel::session::Reset = reset.unwrap();
        assert_eq!(reset.reason, Reason::Overflow);
        assert!(tunnel.near.tunnel().close_reason().is_none());
    }
}

async fn far_write(far: &mut (impl AsyncWriteExt + Unpin)) -> io::Result<()> {
    far.write_all(&[7; 10_000]).await
}

#[tokio::test(start_paused = true)]
async fn a_v1_reader_that_is_only_slow_is_kept() {
    let mut config = Config::default();
    config.v1_stream_buffer = 64 << 10;
    config.v1_stall = Duration::from_millis(500);
    let mut tunnel = Link::Pipe.tunnel(Version::V1, config).await;
    let (mut near, mut far) = tunnel.stream().await;
    let data = noise(3, 1 << 20);
    let sent = data.clone();
    let writer = tokio::spawn(async move {
        far.write_all(&sent).await.unwrap();
        far
    });
    let mut got = vec![0; data.len()];
    for piece in got.chunks_mut(100_000) {
        within(near.read_exact(piece)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(got == data);
    drop(within(writer).await.unwrap());
}

/// Thousands of streams that all wait for one budget complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shared_budget_strands_nobody() {
    for link in Link::BOTH {
        let mut config = Config::default();
        config.send_budget = 64 << 10;
        let (mux, _) = link.tunnel(Version::V2, config).await.echo();
        echoes(&mux, 50, 300_000).await;
    }
}

/// The initial windows of all are more than the session, or the process, may hold.
#[tokio::test]
async fn many_uploads_at_once_wait_for_slow_readers() {
    let config = Config::default().with_receive_budget(1 << 20);
    let small = mux::builder().config(config);
    let shared = mux::builder().budget(&Budget::new(3 << 20));
    for accepting in [small, shared] {
        let mut tunnel = Link::Pipe.built(mux::builder(), accepting).await;
        let mut streams = Vec::new();
        for _ in 0..16 {
            streams.push(tunnel.stream().await);
        }
        let data = noise(4, 400_000);
        let mut tasks = JoinSet::new();
        let mut readers = Vec::new();
        for (mut near, far) in streams {
            let sent = data.clone();
            tasks.spawn(async move {
                near.write_all(&sent).await.unwrap();
                near.shutdown().await.unwrap();
                assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
            });
            readers.push(far);
        }
        within(async {
            while tunnel.far.stats().unread < 7 << 17 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        for mut far in readers {
            let sent = data.clone();
            tasks.spawn(async move {
                let mut all = Vec::new();
                far.read_to_end(&mut all).await.unwrap();
                assert!(all == sent);
                far.shutdown().await.unwrap();
            });
        }
        within(tasks.join_all()).await;
        assert_eq!(tunnel.far.stats().resets, 0);
    }
}

/// A local side that does not read makes its relay hold what it has taken from the tunnel.
#[tokio::test]
async fn what_a_relay_holds_counts() {
    const LEN: usize = 100_000;
    let budget = Budget::new(100 << 20);
    let accepting = mux::builder().budget(&budget);
    let mut tunnel = Link::Pipe.built(mux::builder(), accepting).await;
    let (mut near, far) = tunnel.stream().await;
    let (mut local, mut service) = tokio::io::duplex(16);
    let relay = tokio::spawn(async move { far.relay(&mut local).await });
    near.write_all(&noise(1, LEN)).await.unwrap();
    near.shutdown().await.unwrap();
    within(async {
        while tunnel.far.stats().bytes_received < LEN as u64 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(tunnel.far.stats().unread < LEN);
    assert!(budget.held() >= LEN - 16, "{}", budget.held());
    let mut all = Vec::new();
    within(service.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all.len(), LEN);
    drop((service, near));
    let _ = within(relay).await;
    assert!(budget.held() < LEN / 2, "{}", budget.held());
}

/// Nor does who watches it hold anything for it.
#[tokio::test]
async fn a_tunnel_that_has_ended_holds_next_to_nothing() {
    let budget = Budget::new(100 << 20);
    let accepting = mux::builder().budget(&budget);
    let mut tunnel = Link::Pipe.built(mux::builder(), accepting).await;
    let (mut near, mut far) = tunnel.stream().await;
    near.write_all(&noise(1, 40_000)).await.unwrap();
    within(far.read_exact(&mut [0; 40_000])).await.unwrap();
    drop((near, far, tunnel.near, tunnel.acceptor));
    let _ = within(tunnel.far_driver).await.unwrap();
    assert!(tunnel.far.close_reason().is_some());
    assert!(budget.held() < 4 << 10, "{}", budget.held());
}

/// What it holds is counted no more, so it may not keep it. The peer may have ended the stream in
/// good order before.
#[tokio::test]
async fn a_relay_drops_what_it_holds_when_memory_is_short() {
    for ended in [false, true] {
        let (mut tunnel, mut near, far) = scarce().await;
        let (mut local, mut service) = tokio::io::duplex(16);
        let relay = tokio::spawn(async move { far.relay(&mut local).await });
        if ended {
            service.shutdown().await.unwrap();
            assert_eq!(within(near.read(&mut [0])).await.unwrap(), 0);
        }
        exhaust(&mut tunnel, &mut near, ended).await;
        let Err(RelayError::Tunnel(reset)) = within(relay).await.unwrap() else {
            panic!("not the tunnel's fault")
        };
        assert_eq!(reset.reason, Reason::Overflow);
    }
}

/// So does a join, and the other end of it hears of the reset.
#[tokio::test]
async fn a_join_drops_what_it_holds_when_memory_is_short() {
    for ended in [false, true] {
        let (mut tunnel, mut near, far) = scarce().await;
        let mut to_service = Link::Pipe.v2().await;
        let (there, mut service) = to_service.stream().await;
        let joined = tokio::spawn(async move {
            let mut there = there;
            fill(&mut there).await;
            far.join(there).await
        });
        if ended {
            service.shutdown().await.unwrap();
            assert_eq!(within(near.read(&mut [0])).await.unwrap(), 0);
        }
        exhaust(&mut tunnel, &mut near, ended).await;
        let reset = within(joined).await.unwrap().unwrap_err();
        assert_eq!(reset.reason, Reason::Overflow);
        let error = within(service.read_to_end(&mut Vec::new())).await;
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}

/// A tunnel whose far end may hold 100,000 bytes, and a stream.
async fn scarce() -> (Tunnel, TunnelStream, TunnelStream) {
    let budget = Budget::new(300_000);
    assert!(budget.take(200_000));
    let accepting = mux::builder().budget(&budget);
    let mut tunnel = Link::Pipe.built(mux::builder(), accepting).await;
    let (near, far) = tunnel.stream().await;
    (tunnel, near, far)
}

/// Sends what the stream's reader keeps, and then, on another stream, more than may be held.
async fn exhaust(tunnel: &mut Tunnel, near: &mut TunnelStream, end: bool) {
    near.write_all(&noise(1, 60_000)).await.unwrap();
    if end {
        near.shutdown().await.unwrap();
    }
    let taken = |tunnel: &Tunnel| {
        let stats = tunnel.far.stats();
        stats.bytes_received >= 60_000 && stats.unread == 0
    };
    within(async {
        while !taken(tunnel) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (mut other, _unread) = tunnel.stream().await;
    other.write_all(&noise(2, 50_000)).await.unwrap();
    within(async {
        while tunnel.far.stats().bytes_received < 110_000 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// One budget for many tunnels: floods are reset, and the others are not affected.
#[tokio::test]
async fn tunnels_that_share_a_budget_stay_within_it() {
    const LIMIT: usize = 3 << 20;
    let budget = Budget::new(LIMIT);
    let mut tunnels = Vec::new();
    for _ in 0..5 {
        let accepting = mux::builder().budget(&budget);
        let tunnel = Link::Pipe.built(mux::builder(), accepting).await;
        tunnels.push(tunnel);
    }
    let mut modest = tunnels.pop().unwrap();
    let (mut near, mut far) = modest.stream().await;
    let mut held = Vec::new();
    for tunnel in &mut tunnels {
        for _ in 0..8 {
            let (mut flooding, unread) = tunnel.stream().await;
            // Within its window, so it does not wait.
            let _ = flooding.write_all(&noise(1, 200 << 10)).await;
            held.push((flooding, unread));
            assert!(budget.held() <= LIMIT, "{}", budget.held());
            near.write_all(b"?").await.unwrap();
            let mut byte = [0];
            within(far.read_exact(&mut byte)).await.unwrap();
        }
    }
    let resets = tunnels
        .iter()
        .map(|tunnel| tunnel.far.stats().resets)
        .sum::<u64>();
    assert!(resets >= 16, "{resets}");
    drop((held, tunnels, near, far, modest));
    within(async {
        while budget.held() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Streams that this end opened for many parties do not make the tunnel reset a stream of one of
/// them.
#[tokio::test]
async fn a_tunnel_that_carries_streams_of_many_is_no_flood() {
    let budget = Budget::new(3 << 20);
    let member = || mux::builder().budget(&budget);
    let mut tunnel = Link::Pipe.built(member(), mux::builder()).await;
    let (mut near, mut far) = tunnel.stream().await;
    assert!(budget.take(2 << 20));
    // Held elsewhere, so that more than two thirds are held together with the data received here.
    let greedy = Link::Pipe.built(mux::builder(), member()).await;
    let waiting = greedy.near.open_tcp(7).unwrap();
    let many: Vec<_> = (0..1000)
        .map(|_| tunnel.near.open_tcp(7).unwrap())
        .collect();
    for _ in 0..200 {
        near.write_all(&noise(1, 1000)).await.unwrap();
        let mut came = [0; 1000];
        within(far.read_exact(&mut came)).await.unwrap();
    }
    assert!(budget.held() > 2 << 20);
    assert_eq!(tunnel.near.tunnel().stats().resets, 0);
    drop((many, waiting));
}

/// No more memory is held than counted, whatever buffers the data came in.
#[tokio::test]
async fn scarce_memory_is_not_pinned_by_small_payloads() {
    let budget = Budget::new(1 << 20);
    let (near, far, _) = pipe(1000);
    let carrier = Packets::default();
    let (mut acceptor, driver) = mux::builder().budget(&budget).acceptor(far, carrier);
    let _driver = tokio::spawn(driver);
    let mut near = near;
    let message = |kind, id: u32, payload: Bytes| {
        let header = Header {
            kind,
            proto: Proto::Tcp,
            id: ClientId(id),
            port: 80,
        };
        [&header.to_bytes()[..], &payload].concat()
    };
    // Half of the budget is held elsewhere.
    assert!(budget.take(512 << 10));
    let connect = message(Kind::Connect, 1, Bytes::new());
    near.send(Packet::Binary(connect.into())).await.unwrap();
    let mut stream = accept_tcp(&mut acceptor).await;
    let whole = Bytes::from(message(Kind::Data, 1, noise(3, 16 << 10).into()));
    let sent = whole.slice(..);
    near.send(Packet::Binary(sent)).await.unwrap();
    let chunk = within(stream.split().0.chunk()).await.unwrap().unwrap();
    assert_eq!(chunk, whole[8..]);
    assert_ne!(chunk.as_ptr(), whole[8..].as_ptr(), "it pins the buffer");
}

/// A flood without content is read more and more slowly; the data behind it still arrives.
#[tokio::test(start_paused = true)]
async fn a_flood_of_pings_is_slowed_down() {
    let (mut near, far, _) = pipe(100);
    let (mut acceptor, driver) = mux::builder().acceptor(far, Packets::default());
    let _driver = tokio::spawn(driver);
    let began = tokio::time::Instant::now();
    for _ in 0..6 * 64 {
        near.send(Packet::Ping).await.unwrap();
    }
    let connect = Header {
        kind: Kind::Connect,
        proto: Proto::Tcp,
        id: ClientId(1),
        port: 80,
    };
    let connect = Bytes::copy_from_slice(&connect.to_bytes());
    near.send(Packet::Binary(connect)).await.unwrap();
    within(acceptor.accept()).await.unwrap();
    // 2, 4, 8, 16, 32 ms.
    assert!(began.elapsed() >= Duration::from_millis(62));
}

/// A peer that was told, and goes on to send.
#[tokio::test(start_paused = true)]
async fn data_for_a_refused_connection_is_slowed_down() {
    let header = |kind, id| Header {
        kind,
        proto: Proto::Tcp,
        id: ClientId(id),
        port: 80,
    };
    let packet = |header: Header, len: usize| {
        let mut message = header.to_bytes().to_vec();
        message.resize(8 + len, 0);
        Packet::Binary(message.into())
    };
    for version in [Version::V1, Version::V2] {
        let (mut near, far, _) = pipe(1);
        let builder = mux::builder().version(version);
        let (mut acceptor, driver) = builder.acceptor(far, Packets::default());
        let _driver = tokio::spawn(driver);
        near.send(packet(header(Kind::Connect, 1), 0))
            .await
            .unwrap();
        drop(within(acceptor.accept()).await);
        let began = tokio::time::Instant::now();
        // What may be under way, and six reads.
        for _ in 0..64 + 6 * 2 {
            let data = packet(header(Kind::Data, 1), 64 << 10);
            near.send(data).await.unwrap();
        }
        near.send(packet(header(Kind::Connect, 2), 0))
            .await
            .unwrap();
        within(acceptor.accept()).await.unwrap();
        // 2, 4, 8, 16, 32 ms.
        assert!(began.elapsed() >= Duration::from_millis(62), "{version:?}");
    }
}

/// What is unread could take minutes, also after the peer has left.
#[tokio::test(start_paused = true)]
async fn a_flood_that_goes_on_ends_the_tunnel() {
    let (mut near, far, _) = pipe(100);
    let (acceptor, driver) = mux::builder().acceptor(far, Packets::default());
    let driver = tokio::spawn(driver);
    let began = tokio::time::Instant::now();
    let flood = async {
        loop {
            // The clock only goes on while everybody waits.
            tokio::time::sleep(Duration::from_millis(1)).await;
            for _ in 0..64 {
                let _ = near.send(Packet::Ping).await;
            }
        }
    };
    tokio::select! {
        ended = acceptor.tunnel().closed() => assert_eq!(ended, Err(TunnelError::Flooded)),
        () = flood => {}
    }
    let lasted = began.elapsed();
    assert!((30..40).contains(&lasted.as_secs()), "{lasted:?}");
    drop(near);
    assert_eq!(within(driver).await.unwrap(), Err(TunnelError::Flooded));
}

/// The end of a peer that has gone is behind all that it sent. Nothing of that needs an answer, so
/// nothing would be sent that could fail.
#[tokio::test(start_paused = true)]
async fn a_peer_that_floods_is_probed_and_not_read_to_its_end() {
    let (mut near, far, [_, back]) = pipe(100);
    let (acceptor, driver) = mux::builder().acceptor(far, Packets { probes: true });
    let driver = tokio::spawn(driver);
    let (id, credit) = (ClientId(9), 1);
    let window = Packet::Binary(Frame::<Bytes>::Window { id, credit }.to_bytes());
    let mut flood = std::pin::pin!(async {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            for _ in 0..64 {
                let _ = near.send(window.clone()).await;
            }
        }
    });
    let _ = tokio::time::timeout(Duration::from_secs(9), flood.as_mut()).await;
    assert_eq!(back.passed(), 4);
    tokio::select! {
        ended = acceptor.tunnel().closed() => assert_eq!(ended, Err(TunnelError::Flooded)),
        () = flood.as_mut() => {}
    }
    let ended = tokio::time::Instant::now();
    assert_eq!(driver.await.unwrap(), Err(TunnelError::Flooded));
    assert_eq!(ended.elapsed(), Duration::ZERO);
}
