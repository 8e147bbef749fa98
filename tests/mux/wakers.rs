//! A waker is foreign code: it is woken and dropped while no lock is held.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use kohakuriver_tunnel::mux;
use kohakuriver_tunnel::session::{Config, Version};
use kohakuriver_tunnel::wire::{Frame, Proto, RawFrame};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::pipe::{Packet, Packets, pipe};
use super::tunnel::{builder, piped, run_others, within};

/// A task that looks at the tunnel when it is woken and when it ends.
struct Curious(mux::Tunnel);

impl Wake for Curious {
    fn wake(self: Arc<Self>) {
        let _ = self.0.stats();
    }
}

impl Drop for Curious {
    fn drop(&mut self) {
        let _ = self.0.stats();
    }
}

/// Polls from one task after the other, each of which ends at once.
fn polled_by_two<F: Future>(tunnel: &mux::Tunnel, future: F) {
    let mut future = pin!(future);
    for _ in 0..2 {
        let waker = Waker::from(Arc::new(Curious(tunnel.clone())));
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    }
}

#[tokio::test]
async fn a_task_that_is_replaced_may_use_the_tunnel_as_it_ends() {
    let (near, far, _wires) = pipe(8);
    let builder = builder(Version::V2, Config::default());
    let (mux, mut driver) = builder.clone().opener(near, Packets::default());
    let (mut acceptor, _far_driver) = builder.acceptor(far, Packets::default());
    let tunnel = mux.tunnel();
    let stream = mux.open_tcp(1).unwrap();
    let flow = mux.open_udp(1).unwrap();
    polled_by_two(tunnel, stream.established());
    let (mut read, mut write) = stream.into_split();
    polled_by_two(tunnel, read.chunk());
    polled_by_two(tunnel, poll_fn(|cx| read.poll_reset(cx)));
    polled_by_two(tunnel, flow.recv());
    polled_by_two(tunnel, tunnel.closed());
    polled_by_two(acceptor.tunnel(), acceptor.tunnel().draining());
    let accepting = acceptor.tunnel().clone();
    polled_by_two(&accepting, acceptor.accept());
    let unheard = poll_fn(|cx| {
        // Until the window is full.
        while pin!(&mut write).poll_write(cx, &[0; 4096])?.is_ready() {}
        Poll::<std::io::Result<()>>::Pending
    });
    polled_by_two(tunnel, unheard);
    polled_by_two(tunnel, write.capacity());
    polled_by_two(tunnel, &mut driver);
}

/// Counts how often it is woken.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Counting {
    fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_driver_whose_transport_is_full_is_not_woken_to_write() {
    let (near, far, _wires) = pipe(1);
    let builder = builder(Version::V2, Config::default());
    let (mux, mut driver) = builder.clone().opener(near, Packets::default());
    let (_acceptor, mut far_driver) = builder.acceptor(far, Packets::default());
    let wakes = Arc::<Counting>::default();
    let waker = Waker::from(Arc::clone(&wakes));
    let mut poll = || Pin::new(&mut driver).poll(&mut Context::from_waker(&waker));
    let mut streams = Vec::from_iter((0..9).map(|port| mux.open_tcp(port).unwrap()));
    assert!(poll().is_pending());
    wakes.take();

    let mut polls = 0;
    for stream in &mut streams {
        let written = stream.write_all(b"hello").now_or_never();
        written.unwrap().unwrap();
        if wakes.take() > 0 {
            polls += 1;
            assert!(poll().is_pending());
        }
    }
    assert_eq!(polls, 0);

    // Room, and whatever else it has to see to, wakes it.
    let noop = &mut Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut far_driver).poll(noop).is_pending());
    assert!(wakes.take() > 0);
    assert!(poll().is_pending());
    wakes.take();
    mux.tunnel().shutdown();
    assert!(wakes.take() > 0);
}

/// Writers that were told to send and no longer want to let others have the room.
#[tokio::test]
async fn a_writer_that_passes_gives_its_room_to_others() {
    const PIECE: usize = 4096;
    let config = Config::default()
        .with_send_budget(256 << 10)
        .with_max_piece(PIECE)
        .with_contended_piece(PIECE);
    let (near, mut far, _wires) = pipe(1);
    let (mux, driver) = mux::builder()
        .config(config)
        .opener(near, Packets::default());
    let _driver = tokio::spawn(driver);
    let mut streams = Vec::from_iter((0..100).map(|_| mux.open_tcp(80).unwrap()));
    for _ in &streams {
        let Some(Ok(Packet::Binary(connect))) = within(far.next()).await else {
            panic!("no message")
        };
        let (proto, id) = (Proto::Tcp, RawFrame::new(&connect).unwrap().id());
        let connected = Frame::<Bytes>::Connected { proto, id };
        far.send(Packet::Binary(connected.to_bytes()))
            .await
            .unwrap();
    }
    run_others().await;
    let wakes = Vec::from_iter(streams.iter().map(|_| Arc::<Counting>::default()));
    for (stream, wakes) in streams.iter_mut().zip(&wakes) {
        let waker = Waker::from(Arc::clone(wakes));
        let cx = &mut Context::from_waker(&waker);
        while pin!(&mut *stream).poll_write(cx, &[0; PIECE]).is_ready() {}
    }
    let told = || Vec::from_iter((0..100).filter(|i| wakes[*i].take() > 0));
    assert!(told().is_empty());
    let first = within(async {
        loop {
            far.next().await;
            run_others().await;
            let first = told();
            if !first.is_empty() {
                break first;
            }
        }
    })
    .await;
    assert!(first.len() < 50, "{first:?}");
    run_others().await;
    assert!(told().is_empty());
    for stream in &first {
        streams[*stream].split().1.pass();
    }
    run_others().await;
    assert_eq!(told().len(), first.len());
}

#[tokio::test]
async fn a_task_that_is_woken_may_use_the_tunnel() {
    let (pair, _wires) = piped(Version::V2, Config::default());
    let tunnel = pair.near.tunnel();
    let stream = pair.near.open_tcp(1).unwrap();
    // The futures live on, and with them their wakers.
    let (mut draining, mut closed) = (pin!(tunnel.draining()), pin!(tunnel.closed()));
    let mut established = pin!(stream.established());
    polled_by_two(tunnel, established.as_mut());
    polled_by_two(tunnel, draining.as_mut());
    polled_by_two(tunnel, closed.as_mut());
    tunnel.drain();
    within(draining).await;
    polled_by_two(tunnel, closed.as_mut());
    tunnel.shutdown();
    within(established).await.unwrap_err();
    within(closed).await.unwrap();
}

/// A task that only counts its wakers.
struct Idle;

impl Wake for Idle {
    fn wake(self: Arc<Self>) {}
}

/// Who watches the tunnel does not keep the tasks alive that drove it or accepted from it.
#[tokio::test]
async fn what_has_ended_keeps_no_waker() {
    for ends in ["driver", "acceptor"] {
        let (near, far, wires) = pipe(8);
        let builder = builder(Version::V2, Config::default());
        let (mut acceptor, mut driver) = builder.acceptor(near, Packets::default());
        let tunnel = acceptor.tunnel().clone();
        let [accepts, drives] = [Arc::new(Idle), Arc::new(Idle)];
        let wakers = [&accepts, &drives].map(|task| Waker::from(Arc::clone(task)));
        let [mut accepting, mut driving] = wakers.each_ref().map(Context::from_waker);
        assert!(acceptor.poll_accept(&mut accepting).is_pending());
        assert!(pin!(&mut driver).poll(&mut driving).is_pending());
        drop((wakers, far, wires));
        let task = if ends == "driver" {
            drop(driver);
            assert!(tunnel.close_reason().is_some());
            drives
        } else {
            drop(acceptor);
            accepts
        };
        assert_eq!(Arc::strong_count(&task), 1, "{ends}");
    }
}
