//! The mux on an executor of thirty lines, with its own timer and without a runtime.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use kohakuriver_tunnel::mux::{self, Clock, Incoming, SystemClock, Timer, TunnelError};
use kohakuriver_tunnel::session::{Config, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::pipe::{Packets, pipe};
use super::tunnel::noise;

#[derive(Clone)]
struct Alarms {
    clock: SystemClock,
    list: Arc<Mutex<Vec<Option<Waiting>>>>,
}

type Waiting = (Instant, Waker);

/// One deadline in the executor's list.
struct Alarm {
    alarms: Alarms,
    place: usize,
}

impl Alarms {
    fn new() -> Self {
        Self {
            clock: SystemClock::start(),
            list: Arc::default(),
        }
    }

    fn timer(&self) -> Alarm {
        let mut alarms = self.list.lock().unwrap();
        alarms.push(None);
        Alarm {
            alarms: self.clone(),
            place: alarms.len() - 1,
        }
    }

    /// Wakes tasks that are due; returns how long to sleep at most.
    fn ring(&self) -> Duration {
        let now = self.clock.now();
        let mut next = Duration::from_secs(1);
        let mut due = Vec::new();
        for alarm in self.list.lock().unwrap().iter_mut() {
            match alarm {
                Some((at, _)) if *at <= now => due.extend(alarm.take()),
                Some((at, _)) => next = next.min(*at - now),
                None => {}
            }
        }
        for (_, waker) in &due {
            waker.wake_by_ref();
        }
        if due.is_empty() { next } else { Duration::ZERO }
    }
}

impl Timer for Alarm {
    fn clock(&mut self) -> Arc<dyn Clock> {
        Arc::new(self.alarms.clock)
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        if deadline <= self.alarms.clock.now() {
            return Poll::Ready(());
        }
        let mut alarms = self.alarms.list.lock().unwrap();
        alarms[self.place] = Some((deadline, cx.waker().clone()));
        Poll::Pending
    }
}

struct Flag {
    raised: AtomicBool,
    thread: Thread,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.raised.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Runs all tasks to their end. Polls each only when it was woken.
fn run(alarms: &Alarms, tasks: Vec<Task<'_>>) {
    let began = std::time::Instant::now();
    let flag = || {
        Arc::new(Flag {
            raised: AtomicBool::new(true),
            thread: thread::current(),
        })
    };
    let mut tasks: Vec<_> = tasks.into_iter().map(|task| (task, flag())).collect();
    while !tasks.is_empty() {
        tasks.retain_mut(|(task, flag)| {
            if !flag.raised.swap(false, Ordering::Acquire) {
                return true;
            }
            let waker = Waker::from(Arc::clone(flag));
            task.as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        });
        let asleep = |(_, flag): &(Task<'_>, Arc<Flag>)| !flag.raised.load(Ordering::Acquire);
        if !tasks.is_empty() && tasks.iter().all(asleep) {
            thread::park_timeout(alarms.ring());
        }
        assert!(
            began.elapsed() < Duration::from_secs(40),
            "nothing happened"
        );
    }
}

#[test]
fn streams_flow_on_any_executor() {
    let alarms = Alarms::new();
    let (near, far, _) = pipe(2);
    let carrier = Packets::default();
    let mut config = Config::default();
    config.keepalive = Some(Duration::from_millis(50));
    let builder = || mux::builder().config(config.clone()).timer(alarms.timer());
    let (opener, near_driver) = builder().opener(near, carrier);
    let (mut acceptor, far_driver) = builder().acceptor(far, carrier);
    let client = async move {
        for seed in 0..5 {
            let data = noise(seed, 1 << 20);
            let mut stream = opener.open_tcp(7).unwrap();
            stream.established().await.unwrap();
            stream.write_all(&data).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.unwrap();
            assert!(got == data);
        }
    };
    let server = async move {
        for _ in 0..5 {
            let Some(Incoming::Tcp(incoming)) = acceptor.accept().await else {
                panic!("no stream")
            };
            let mut stream = incoming.accept();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.unwrap();
            stream.write_all(&got).await.unwrap();
        }
    };
    // The first to finish ends the other.
    let over = |ended| assert!(matches!(ended, Ok(()) | Err(TunnelError::Ended(_))));
    let near_driver = async move { over(near_driver.await) };
    let far_driver = async move { over(far_driver.await) };
    let tasks: Vec<Task<'_>> = vec![
        Box::pin(near_driver),
        Box::pin(far_driver),
        Box::pin(client),
        Box::pin(server),
    ];
    run(&alarms, tasks);
}

#[test]
fn a_dead_peer_is_noticed_by_any_timer() {
    let alarms = Alarms::new();
    let (near, _silent, _wires) = pipe(8);
    let mut config = Config::default();
    config.keepalive = Some(Duration::from_millis(30));
    let builder = mux::builder().config(config).timer(alarms.timer());
    let (mux, driver) = builder.opener(near, Packets::default());
    let stream = mux.open_tcp(1).unwrap();
    let waiting = async move {
        stream.established().await.unwrap_err();
        let closed = mux.tunnel().closed().await;
        assert_eq!(closed, Err(TunnelError::PeerDead));
    };
    let driver = async move { assert_eq!(driver.await, Err(TunnelError::PeerDead)) };
    run(&alarms, vec![Box::pin(driver), Box::pin(waiting)]);
}
