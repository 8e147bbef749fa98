//! A user-defined clock: neither the driver nor the handles of the mux use another.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use kohakuriver_tunnel::mux::{self, Clock, Incoming, Timer, TunnelError};
use kohakuriver_tunnel::session::{Config, Instant};
use tokio::io::AsyncWriteExt;

use super::pipe::{Packets, pipe};

/// A clock that only moves when told.
#[derive(Debug, Clone, Default)]
struct Manual(Arc<AtomicU64>);

impl Manual {
    fn pass(&self, span: Duration) {
        self.0.fetch_add(span.as_micros() as u64, Ordering::Relaxed);
    }
}

impl Clock for Manual {
    fn now(&self) -> Instant {
        Instant::from_micros(self.0.load(Ordering::Relaxed))
    }
}

impl Timer for Manual {
    fn clock(&mut self) -> Arc<dyn Clock> {
        Arc::new(self.clone())
    }

    fn poll_deadline(&mut self, _: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        match deadline <= self.now() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

/// Polls a future once, with a waker that does nothing.
fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match poll(&mut Box::pin(future)) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it waits"),
    }
}

#[test]
fn keepalive_goes_by_the_clock_it_was_given() {
    let clock = Manual::default();
    // Not at zero, like a browser's clock.
    clock.pass(Duration::from_secs(1_000_000));
    let (near, _silent, _wires) = pipe(8);
    let builder = mux::builder().timer(clock.clone());
    let (mux, mut driver) = builder.opener(near, Packets::default());
    let keepalive = Config::default().keepalive.unwrap();
    for _ in 0..2 {
        assert!(poll(&mut driver).is_pending());
        assert_eq!(mux.tunnel().close_reason(), None);
        clock.pass(keepalive);
    }
    let mut ended = Poll::Pending;
    for _ in 0..20 {
        ended = poll(&mut driver);
        clock.pass(Duration::from_secs(1));
    }
    assert_eq!(ended, Poll::Ready(Err(TunnelError::PeerDead)));
}

/// The handle's calls use the clock too: a released stream lingers from then on.
#[test]
fn handles_go_by_the_clock_too() {
    let clock = Manual::default();
    let (near, far, _) = pipe(8);
    let mut config = Config::default();
    config.keepalive = None;
    let linger = config.linger;
    let builder = || mux::builder().config(config.clone()).timer(clock.clone());
    let (mux, mut opening) = builder().opener(near, Packets::default());
    let (mut acceptor, mut accepting) = builder().acceptor(far, Packets::default());
    let mut run = || {
        for _ in 0..4 {
            assert!(poll(&mut opening).is_pending());
            assert!(poll(&mut accepting).is_pending());
        }
    };
    let mut stream = mux.open_tcp(1).unwrap();
    now(stream.shutdown()).unwrap();
    run();
    let Some(Incoming::Tcp(incoming)) = now(acceptor.accept()) else {
        panic!("no stream")
    };
    let _far = incoming.accept();
    run();
    clock.pass(Duration::from_secs(3600));
    drop(stream);
    run();
    clock.pass(linger - Duration::from_millis(1));
    run();
    assert_eq!(mux.tunnel().stats().streams, 1);
    clock.pass(Duration::from_millis(2));
    run();
    assert_eq!(mux.tunnel().stats().streams, 0);
}
