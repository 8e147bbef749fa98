//! A stream of one tunnel joined with one of another.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use kohakuriver_tunnel::mux::{self, Relayed, TunnelStream};
use kohakuriver_tunnel::session::{Config, Reason, Reset, Version};
use kohakuriver_tunnel::wire::Chunk;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinHandle, JoinSet};

use super::pipe::{Packets, Wire, pipe};
use super::tunnel::{Link, Tunnel, accept_tcp, noise, run_others, transmitted, tunnel, within};

type Outcome = JoinHandle<Result<Relayed, Reset>>;

/// A client's tunnel, and one to a service, between which somebody joins streams.
struct Chain {
    client: Tunnel,
    service: Tunnel,
}

impl Chain {
    async fn new(links: [Link; 2], versions: [Version; 2]) -> Self {
        let config = Config::default;
        Self {
            client: links[0].tunnel(versions[0], config()).await,
            service: links[1].tunnel(versions[1], config()).await,
        }
    }

    async fn v2(link: Link) -> Self {
        Self::new([link, link], [Version::V2; 2]).await
    }

    /// The way to the service takes one message at a time, and can be held.
    async fn by_a_narrow_pipe() -> (Self, Wire) {
        let (near, far, [there, _]) = pipe(1);
        let carrier = Packets::default();
        let chain = Self {
            client: Link::Pipe.v2().await,
            service: tunnel(near, far, carrier, mux::builder(), mux::builder()),
        };
        (chain, there)
    }

    /// The ends of a connection through both, and the two in the middle.
    async fn streams(&mut self) -> (TunnelStream, TunnelStream, TunnelStream, TunnelStream) {
        let (client, here) = self.client.stream().await;
        let there = self.service.near.open_tcp(80).unwrap();
        let service = accept_tcp(&mut self.service.acceptor).await;
        (client, here, there, service)
    }

    async fn joined(&mut self) -> (TunnelStream, TunnelStream, Outcome) {
        let (client, here, there, service) = self.streams().await;
        (client, service, tokio::spawn(here.join(there)))
    }
}

async fn reset_of(stream: &mut TunnelStream) -> Reset {
    within(poll_fn(|cx| stream.split().0.poll_reset(cx))).await
}

/// All of the data arrives, and then the reset.
async fn whole_then_denied(service: &mut TunnelStream, data: &[u8], joined: Outcome) {
    let mut got = Vec::new();
    within(service.read_to_end(&mut got)).await.unwrap_err();
    assert!(got == data, "{} of {} bytes", got.len(), data.len());
    let reset = within(joined).await.unwrap().unwrap_err();
    assert_eq!(reset.reason, Reason::Denied);
}

async fn exchange(client: TunnelStream, service: TunnelStream, len: usize) {
    let mut tasks = JoinSet::new();
    let ((client_read, client_write), (service_read, service_write)) =
        (client.into_split(), service.into_split());
    for (seed, mut read, mut write) in [
        (1, service_read, client_write),
        (2, client_read, service_write),
    ] {
        let data = noise(seed, len);
        let sent = data.clone();
        tasks.spawn(async move {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
            // Dropped when all has come: a v1 opener that is gone is taken to have given up.
            tokio::time::sleep(Duration::from_millis(200)).await;
        });
        tasks.spawn(async move {
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.unwrap();
            assert!(got == data, "{} of {} bytes", got.len(), data.len());
        });
    }
    while let Some(task) = within(tasks.join_next()).await {
        task.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_passes_both_ways_and_each_direction_ends_by_itself() {
    let (v1, v2) = (Version::V1, Version::V2);
    let websockets = [Link::WebSocket, Link::WebSocket];
    for (links, versions) in [
        (websockets, [v2, v2]),
        ([Link::Pipe, Link::WebSocket], [v2, v2]),
        (websockets, [v1, v2]),
        (websockets, [v2, v1]),
    ] {
        let mut chain = Chain::new(links, versions).await;
        let (client, service, joined) = chain.joined().await;
        let len = 8 << 20;
        exchange(client, service, len).await;
        let joined = within(joined).await.unwrap().unwrap();
        let len = len as u64;
        assert_eq!((joined.sent, joined.received), (len, len), "{versions:?}");
    }
}

#[tokio::test]
async fn a_join_keeps_the_reply_after_a_half_close() {
    for link in Link::BOTH {
        let mut chain = Chain::v2(link).await;
        let (mut client, mut service, joined) = chain.joined().await;
        client.write_all(b"request").await.unwrap();
        client.shutdown().await.unwrap();
        let mut request = String::new();
        within(service.read_to_string(&mut request)).await.unwrap();
        assert_eq!(request, "request");
        assert!(!joined.is_finished());
        let reply = noise(3, 1 << 20);
        let answer = async {
            service.write_all(&reply).await.unwrap();
            service.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (_, read) = within(async { tokio::join!(answer, client.read_to_end(&mut got)) }).await;
        read.unwrap();
        assert!(got == reply);
        within(joined).await.unwrap().unwrap();
    }
}

/// Each end in turn resets; the other one learns why.
#[tokio::test]
async fn a_reset_passes_with_its_reason_and_its_words() {
    for link in Link::BOTH {
        for by_client in [true, false] {
            let mut chain = Chain::v2(link).await;
            let (client, service, joined) = chain.joined().await;
            let (one, mut other) = match by_client {
                true => (client, service),
                false => (service, client),
            };
            one.reset(Reason::TimedOut, "waited long enough");
            let expected = Reset::new(Reason::TimedOut, "waited long enough");
            let reset = within(other.split().0.chunk()).await.unwrap_err();
            assert_eq!(reset, expected);
            assert_eq!(within(joined).await.unwrap(), Err(expected));
        }
    }
}

/// Its direction is over, so only the reset itself is left to notice.
#[tokio::test]
async fn a_reset_after_the_end_of_its_direction_is_noticed() {
    for link in Link::BOTH {
        let mut chain = Chain::v2(link).await;
        let (mut client, mut service, joined) = chain.joined().await;
        client.write_all(b"done").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = String::new();
        within(service.read_to_string(&mut got)).await.unwrap();
        assert!(!joined.is_finished());
        client.reset(Reason::Reset, "gone after all");
        let reset = within(joined).await.unwrap().unwrap_err();
        assert_eq!(reset.reason, Reason::Reset);
        assert_eq!(reset_of(&mut service).await, reset);
    }
}

#[tokio::test]
async fn what_came_before_a_reset_is_still_delivered() {
    for link in Link::BOTH {
        let mut chain = Chain::v2(link).await;
        let (client, mut service, joined) = chain.joined().await;
        let data = noise(6, 150_000);
        let (_read, mut write) = client.into_split();
        write.write_all(&data).await.unwrap();
        transmitted(chain.client.near.tunnel()).await;
        // Nothing was read at the other end yet.
        chain.client.near.tunnel().shutdown();
        let mut got = Vec::new();
        let error = within(service.read_to_end(&mut got)).await.unwrap_err();
        assert!(got == data, "{} of {} bytes", got.len(), data.len());
        let reset = error.get_ref().unwrap().downcast_ref::<Reset>().unwrap();
        assert_eq!(reset.reason, Reason::Gone);
        assert_eq!(
            within(joined).await.unwrap().unwrap_err().reason,
            Reason::Gone
        );
    }
}

/// A reset waits for what came before it, but not once the stream that takes it is gone too, and it
/// goes on when the transport does.
#[tokio::test]
async fn a_reset_that_waits_for_the_transport_is_not_forgotten() {
    for service_resets in [true, false] {
        let (mut chain, there) = Chain::by_a_narrow_pipe().await;
        let (mut client, mut service, joined) = chain.joined().await;
        within(service.established()).await.unwrap();
        there.hold(true);
        let data = noise(9, 30_000);
        for piece in data.chunks(3000) {
            client.write_all(piece).await.unwrap();
            transmitted(chain.client.near.tunnel()).await;
        }
        client.reset(Reason::Denied, "given up");
        run_others().await;
        let waiting = chain.service.near.tunnel().stats().unsent;
        assert!(waiting > 10_000, "{waiting}");
        assert!(!joined.is_finished());
        if service_resets {
            service.reset(Reason::Limit, "so be it");
            within(joined).await.unwrap().unwrap_err();
        } else {
            there.hold(false);
            whole_then_denied(&mut service, &data, joined).await;
        }
    }
}

/// What was written before the join is unsent, but was not carried by it.
#[tokio::test]
async fn a_stream_written_before_the_join_outlasts_a_reset_of_the_other() {
    let (mut chain, there) = Chain::by_a_narrow_pipe().await;
    let (client, mut here, mut to_service, mut service) = chain.streams().await;
    within(to_service.established()).await.unwrap();
    there.hold(true);
    // Several messages, and the pipe takes one.
    let header = noise(9, 200_000);
    to_service.write_all(&header).await.unwrap();
    client.reset(Reason::Denied, "given up");
    assert_eq!(reset_of(&mut here).await.reason, Reason::Denied);
    let joined = tokio::spawn(here.join(to_service));
    run_others().await;
    assert!(chain.service.near.tunnel().stats().unsent > 0);
    assert!(!joined.is_finished());
    there.hold(false);
    whole_then_denied(&mut service, &header, joined).await;
}

#[tokio::test]
async fn both_ends_at_once() {
    let mut chain = Chain::v2(Link::Pipe).await;
    let (client, mut here, mut there, service) = chain.streams().await;
    client.reset(Reason::Denied, "");
    service.reset(Reason::Limit, "");
    // Both resets have come before anything is joined.
    assert_eq!(reset_of(&mut here).await.reason, Reason::Denied);
    assert_eq!(reset_of(&mut there).await.reason, Reason::Limit);
    let reset = within(here.join(there)).await.unwrap_err();
    assert!(matches!(reset.reason, Reason::Denied | Reason::Limit));
}

/// What the service does not read stays with the client, and stalls nobody else.
#[tokio::test]
async fn a_stalled_reader_holds_back_its_writer_and_no_other() {
    for link in Link::BOTH {
        let mut chain = Chain::v2(link).await;
        let (client, mut service, joined) = chain.joined().await;
        let (_read, mut write) = client.into_split();
        let piece = noise(1, 32 << 10);
        let mut written = 0;
        let stall = Duration::from_millis(300);
        while let Ok(len) = tokio::time::timeout(stall, write.write(&piece)).await {
            written += len.unwrap();
        }
        // A window of each tunnel, of 4 MiB where the machine is so busy that the round trip seems
        // long, and what is queued between them.
        assert!(written >= 256 << 10, "{written}");
        assert!(written <= 10 << 20, "{written}");
        let (other_client, other_service, other) = chain.joined().await;
        exchange(other_client, other_service, 1 << 20).await;
        within(other).await.unwrap().unwrap();

        let finishing = tokio::spawn(async move {
            write.shutdown().await.unwrap();
            write
        });
        let mut left = written;
        let mut buffer = vec![0; 100_000];
        while left > 0 {
            left -= within(service.read(&mut buffer)).await.unwrap();
        }
        assert_eq!(within(service.read(&mut buffer)).await.unwrap(), 0);
        drop((service, finishing.await.unwrap(), _read));
        within(joined).await.unwrap().unwrap();
    }
}

/// A service that reads nothing must not keep the streams of clients that gave up on it.
#[tokio::test(start_paused = true)]
async fn grace_bounds_what_a_stalled_reader_keeps() {
    let pieces = || mux::builder().config(Config::default().with_max_piece(64 << 10));
    let mut chain = Chain {
        client: Link::Pipe.built(pieces(), pieces()).await,
        service: Link::Pipe.built(pieces(), pieces()).await,
    };
    let (client, here, there, mut service) = chain.streams().await;
    let grace = || tokio::time::sleep(Duration::from_secs(5));
    let joined = tokio::spawn(here.join_with_grace(there, grace));
    let (read, mut write) = client.into_split();
    let piece = vec![7; 32 << 10];
    let stall = Duration::from_millis(300);
    while tokio::time::timeout(stall, write.write_all(&piece))
        .await
        .is_ok()
    {}
    let began = tokio::time::Instant::now();
    chain.client.near.tunnel().shutdown();
    drop((read, write));
    // A reader that is slow gets it all, and its time anew with what it takes.
    let mut got = 0;
    let mut buffer = vec![0; 64 << 10];
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(4)).await;
        let mut left = buffer.len();
        while left > 0 {
            let len = service.read(&mut buffer[..left]).await.unwrap();
            (left, got) = (left - len, got + len);
        }
    }
    assert!(!joined.is_finished(), "{got} bytes were read");
    let reset = within(joined).await.unwrap().unwrap_err();
    assert_eq!(reset.reason, Reason::Gone);
    let passed = began.elapsed().as_secs();
    assert!((20..=30).contains(&passed), "{passed} s");
}

/// Nothing can pass on what comes for a direction that was ended before.
#[tokio::test]
async fn what_comes_for_a_direction_that_was_ended_before_ends_the_join() {
    let mut chain = Chain::v2(Link::Pipe).await;
    let (mut client, here, mut there, mut service) = chain.streams().await;
    there.shutdown().await.unwrap();
    let joined = tokio::spawn(here.join(there));
    client.write_all(b"too late").await.unwrap();
    within(joined).await.unwrap().unwrap_err();
    reset_of(&mut client).await;
    reset_of(&mut service).await;
}

/// Neither end must take a part for the whole.
#[tokio::test]
async fn a_dropped_join_resets_both_streams() {
    let dropped = Reset::new(Reason::Reset, "the relay was dropped");
    for link in Link::BOTH {
        let mut chain = Chain::v2(link).await;
        let (client, service, joined) = chain.joined().await;
        let (mut service_read, mut service_write) = service.into_split();
        let (mut read, mut write) = client.into_split();
        write.write_all(b"half a sent").await.unwrap();
        let first = within(service_read.chunk()).await.unwrap();
        assert_eq!(first, Some(Bytes::from_static(b"half a sent")));
        joined.abort();
        assert_eq!(within(service_read.chunk()).await, Err(dropped.clone()));
        within(async {
            while service_write.send(Chunk::copied(b"?")).is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(within(read.chunk()).await, Err(dropped.clone()));

        let (mut client, here, there, mut service) = chain.streams().await;
        drop(here.join(there)); // never polled
        assert_eq!(reset_of(&mut client).await, dropped);
        assert_eq!(reset_of(&mut service).await, dropped);
    }
}

/// What was carried to the end keeps its end, though it is still in the queue of the transport.
#[tokio::test]
async fn a_finished_join_resets_nothing() {
    let (mut chain, there) = Chain::by_a_narrow_pipe().await;
    let (mut client, mut service, joined) = chain.joined().await;
    within(service.established()).await.unwrap();
    service.shutdown().await.unwrap();
    assert_eq!(within(client.read(&mut [0])).await.unwrap(), 0);
    there.hold(true);
    let data = noise(4, 200_000);
    client.write_all(&data).await.unwrap();
    client.shutdown().await.unwrap();
    within(joined).await.unwrap().unwrap();
    assert!(chain.service.near.tunnel().stats().unsent > 0);
    there.hold(false);
    let mut got = Vec::new();
    within(service.read_to_end(&mut got)).await.unwrap();
    assert!(got == data, "{} of {} bytes", got.len(), data.len());
}

/// Many joins on many threads fight for one small budget: none loses what it has read.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn joins_that_share_a_budget_lose_nothing() {
    let mut config = Config::default();
    config.send_budget = 16 << 10;
    let small = || mux::builder().config(config.clone());
    let mut chain = Chain {
        client: Link::Pipe.built(small(), small()).await,
        service: Link::Pipe.built(small(), small()).await,
    };
    let mut tasks = JoinSet::new();
    for _ in 0..40 {
        let (client, service, joined) = chain.joined().await;
        tasks.spawn(async move {
            exchange(client, service, 100_000).await;
            within(joined).await.unwrap().unwrap();
        });
    }
    while let Some(task) = within(tasks.join_next()).await {
        task.unwrap();
    }
}
