//! Streams through two joined tunnels whose transports are cut at random, both at once too: from a
//! client to a relay, and from there to an agent. On a paused clock, with a time for the way.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::{Sink, Stream};
use kohakuriver_tunnel::mux::{
    self, Acceptor, Admission, Binding, ConnectFailure, Dial, Incoming, Keeper, KeeperLimits, Mux,
};
use kohakuriver_tunnel::resume;
use kohakuriver_tunnel::session::Config;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::pipe::{Broken, Packet, Packets};
use super::tunnel::noise;

const CARRIER: Packets = Packets { probes: true };

/// Random numbers from a seed.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn millis(&mut self, end: u64) -> Duration {
        Duration::from_micros(self.below(end * 1000))
    }
}

/// One direction of a transport: its packets arrive after a while, and some bytes are under way.
#[derive(Debug, Default)]
struct Way {
    packets: VecDeque<(Instant, Packet)>,
    bytes: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Everything is lost from now on.
    is_cut: bool,
    /// The reader, and the writer, notice it.
    notice: [Option<Instant>; 2],
    closed: bool,
}

type Shared = Arc<Mutex<Way>>;

fn wake(way: &Shared) {
    let mut way = way.lock().unwrap();
    let wakers = [way.reader.take(), way.writer.take()];
    drop(way);
    wakers.into_iter().flatten().for_each(Waker::wake);
}

/// One end of a transport.
struct Line {
    input: Shared,
    output: Shared,
    delay: Duration,
    room: usize,
    timers: [Pin<Box<Sleep>>; 2],
}

/// Two ends, and what cuts them.
fn line(delay: Duration, room: usize) -> (Line, Line, [Shared; 2]) {
    let ways = [Shared::default(), Shared::default()];
    let end = |input: usize, output: usize| Line {
        input: ways[input].clone(),
        output: ways[output].clone(),
        delay,
        room,
        timers: [(); 2].map(|()| Box::pin(sleep(Duration::ZERO))),
    };
    (end(1, 0), end(0, 1), ways.clone())
}

/// The near and the far end notice after so long.
fn cut(ways: &[Shared; 2], near: Duration, far: Duration) {
    let now = Instant::now();
    for (way, notice) in ways.iter().zip([[far, near], [near, far]]) {
        let mut locked = way.lock().unwrap();
        if !locked.is_cut {
            locked.is_cut = true;
            locked.packets.clear();
            locked.notice = notice.map(|after| Some(now + after));
        }
        drop(locked);
        wake(way);
    }
}

/// Whether the time has come; if not, the task is woken then.
fn is_due(timer: &mut Pin<Box<Sleep>>, cx: &mut Context<'_>, at: Instant) -> bool {
    if Instant::now() >= at {
        return true;
    }
    timer.as_mut().reset(at);
    timer.as_mut().poll(cx).is_ready()
}

impl Stream for Line {
    type Item = Result<Packet, Broken>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let mut way = this.input.lock().unwrap();
        way.reader = Some(cx.waker().clone());
        if let Some(notice) = way.notice[0] {
            return match is_due(&mut this.timers[0], cx, notice) {
                true => Poll::Ready(Some(Err(Broken))),
                false => Poll::Pending,
            };
        }
        let Some((at, _)) = way.packets.front() else {
            return match way.closed {
                true => Poll::Ready(None),
                false => Poll::Pending,
            };
        };
        if !is_due(&mut this.timers[0], cx, *at) {
            return Poll::Pending;
        }
        let (_, packet) = way.packets.pop_front().unwrap();
        way.bytes -= size(&packet);
        let writer = way.writer.take();
        drop(way);
        if let Some(writer) = writer {
            writer.wake();
        }
        Poll::Ready(Some(Ok(packet)))
    }
}

impl Sink<Packet> for Line {
    type Error = Broken;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let this = self.get_mut();
        let mut way = this.output.lock().unwrap();
        if let Some(notice) = way.notice[1] {
            if is_due(&mut this.timers[1], cx, notice) {
                return Poll::Ready(Err(Broken));
            }
        }
        if way.bytes < this.room {
            return Poll::Ready(Ok(()));
        }
        way.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn start_send(self: Pin<&mut Self>, packet: Packet) -> Result<(), Broken> {
        let mut way = self.output.lock().unwrap();
        way.bytes += size(&packet);
        if !way.is_cut {
            way.packets.push_back((Instant::now() + self.delay, packet));
        }
        drop(way);
        wake(&self.output);
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.output.lock().unwrap().closed = true;
        wake(&self.output);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let now = Instant::now();
        self.output.lock().unwrap().closed = true;
        self.input.lock().unwrap().notice[1].get_or_insert(now);
        wake(&self.output);
        wake(&self.input);
    }
}

fn size(packet: &Packet) -> usize {
    match packet {
        Packet::Binary(bytes) => bytes.len(),
        _ => 2,
    }
}

/// The relay's end of one kind of tunnel: how it is dialled, and the transport in use.
#[derive(Clone)]
struct Leg {
    keeper: Keeper<Line>,
    builder: mux::Builder,
    ways: Arc<Mutex<[Shared; 2]>>,
    random: Arc<Mutex<Random>>,
    /// How long a dial takes at most, in milliseconds.
    slow: Arc<AtomicU64>,
    opened: mpsc::UnboundedSender<End>,
    is_agent: bool,
}

type Connecting = Pin<Box<dyn Future<Output = Result<Line, ConnectFailure>> + Send>>;

enum End {
    Client(Acceptor),
    Agent(Mux),
}

impl Leg {
    fn dial(&self) -> Line {
        let (delay, room) = {
            let mut random = self.random.lock().unwrap();
            (random.millis(20), 1 << (14 + random.below(7)))
        };
        let (near, far, ways) = line(delay, room);
        *self.ways.lock().unwrap() = ways;
        let leg = self.clone();
        tokio::spawn(async move {
            let binding = Binding::new("route", "container", "192.0.2.1");
            let builder = leg.builder.clone();
            let admitted = builder.admit(&leg.keeper, far, CARRIER, binding).await;
            if let Ok(Admission::New(opening)) = admitted {
                let end = match leg.is_agent {
                    true => {
                        let (mux, driver) = opening.opener();
                        tokio::spawn(driver);
                        End::Agent(mux)
                    }
                    false => {
                        let (acceptor, driver) = opening.acceptor();
                        tokio::spawn(driver);
                        End::Client(acceptor)
                    }
                };
                let _ = leg.opened.send(end);
            }
        });
        near
    }

    fn connector(&self) -> impl FnMut(Dial) -> Connecting + use<> {
        let leg = self.clone();
        move |_| {
            let leg = leg.clone();
            let (wait, fails) = {
                let mut random = leg.random.lock().unwrap();
                let slow = leg.slow.load(Ordering::Relaxed);
                (random.millis(slow + 1), slow > 100 && random.below(3) == 0)
            };
            Box::pin(async move {
                sleep(wait).await;
                match fails {
                    true => Err(ConnectFailure::again("away")),
                    false => Ok(leg.dial()),
                }
            })
        }
    }

    /// Cuts the transport in use.
    fn cut(&self, random: &mut Random) {
        let ways = self.ways.lock().unwrap().clone();
        let mut notice = || match random.below(4) {
            0 => random.millis(2000),
            1 => random.millis(50),
            _ => Duration::ZERO,
        };
        let (near, far) = (notice(), notice());
        cut(&ways, near, far);
    }
}

/// What a stream carries.
#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    /// Bytes per second each way, and what is read of them at most.
    rate: usize,
    read: usize,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "bulk",
        rate: 512 << 10,
        read: usize::MAX,
    },
    Kind {
        name: "small",
        rate: 8 << 10,
        read: usize::MAX,
    },
    Kind {
        name: "slow",
        rate: 512 << 10,
        read: 64 << 10,
    },
];

const TICK: Duration = Duration::from_millis(10);

/// Writes the pattern at its rate.
async fn write(mut to: impl AsyncWrite + Unpin, kind: Kind, data: Arc<[u8]>) {
    let step = kind.rate / 100;
    let mut at = 0;
    let mut next = Instant::now();
    loop {
        let end = (at + step).min(data.len());
        to.write_all(&data[at..end]).await.unwrap();
        at = if end == data.len() { 0 } else { end };
        next = (next + TICK).max(Instant::now() - 5 * TICK);
        sleep_until(next).await;
    }
}

/// Reads at its rate and compares.
async fn read(
    mut from: impl AsyncRead + Unpin,
    kind: Kind,
    data: Arc<[u8]>,
    progress: Arc<AtomicU64>,
) {
    let mut at = 0;
    let mut buffer = vec![0; 16 << 10];
    let step = (kind.read / 100).clamp(1, buffer.len());
    loop {
        let len = from.read(&mut buffer[..step]).await.unwrap();
        assert!(len > 0, "the end");
        let mut got = &buffer[..len];
        while !got.is_empty() {
            let part = got.len().min(data.len() - at);
            assert!(got[..part] == data[at..at + part], "{}", kind.name);
            at = (at + part) % data.len();
            got = &got[part..];
        }
        progress.fetch_add(len as u64, Ordering::Relaxed);
        if kind.read < usize::MAX {
            sleep(TICK).await;
        }
    }
}

/// A connection's far side: a socket that a relay joins with its stream.
fn local(kind: Kind, seeds: [u64; 2], progress: &Arc<AtomicU64>) -> tokio::io::DuplexStream {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (from, to) = tokio::io::split(far);
    let data = |seed| -> Arc<[u8]> { noise(seed, 65_521).into() };
    tokio::spawn(write(to, kind, data(seeds[0])));
    tokio::spawn(read(from, kind, data(seeds[1]), progress.clone()));
    near
}

/// Streams through the chain, and how much each end has read.
struct Chain {
    legs: [Leg; 2],
    progress: Vec<(String, Arc<AtomicU64>)>,
    _mux: Mux,
}

impl Chain {
    async fn new(seed: u64, streams: u64, config: &Config, resume: &resume::Config) -> Self {
        let (opened, mut ends) = mpsc::unbounded_channel();
        let builder = mux::builder().config(config.clone()).resume(resume.clone());
        let leg = |is_agent: bool| {
            let mut secrets = seed * 2 + u64::from(is_agent);
            let random = move |bytes: &mut [u8]| {
                secrets += 1_000_000;
                bytes.copy_from_slice(&noise(secrets, bytes.len()));
            };
            Leg {
                keeper: Keeper::new(resume.clone(), KeeperLimits::default(), random),
                builder: builder.clone(),
                ways: Arc::default(),
                random: Arc::new(Mutex::new(Random(seed * 7 + 11))),
                slow: Arc::default(),
                opened: opened.clone(),
                is_agent,
            }
        };
        let legs = [leg(false), leg(true)];
        let progress: Vec<(String, Arc<AtomicU64>)> = (0..streams as usize * 2)
            .map(|end| {
                let kind = KINDS[end / 2 % KINDS.len()];
                let side = ["application", "service"][end % 2];
                (format!("{} {}, {side}", kind.name, end / 2), Arc::default())
            })
            .collect();

        let dial = legs[1].connector();
        let (mut agent, driver) = builder
            .clone()
            .resuming_acceptor(legs[1].dial(), CARRIER, dial);
        tokio::spawn(driver);
        let services: Vec<_> = progress.iter().map(|end| end.1.clone()).collect();
        tokio::spawn(async move {
            while let Some(Incoming::Tcp(incoming)) = agent.accept().await {
                let number = usize::from(incoming.port()) - 1;
                let kind = KINDS[number % KINDS.len()];
                let seeds = [number as u64, number as u64 + 1000];
                let mut socket = local(kind, seeds, &services[number * 2 + 1]);
                tokio::spawn(async move { incoming.accept().relay(&mut socket).await });
            }
        });
        let Some(End::Agent(to_agent)) = ends.recv().await else {
            panic!("no agent")
        };

        let dial = legs[0].connector();
        let (mux, driver) = builder.resuming_opener(legs[0].dial(), CARRIER, dial);
        tokio::spawn(driver);
        for number in 0..streams as usize {
            let kind = KINDS[number % KINDS.len()];
            let seeds = [number as u64 + 1000, number as u64];
            let mut socket = local(kind, seeds, &progress[number * 2].1);
            let stream = mux.open_tcp(number as u16 + 1).unwrap();
            tokio::spawn(async move { stream.relay(&mut socket).await });
        }
        let Some(End::Client(mut clients)) = ends.recv().await else {
            panic!("no client")
        };
        tokio::spawn(async move {
            while let Some(Incoming::Tcp(incoming)) = clients.accept().await {
                let there = to_agent.open_tcp(incoming.port()).unwrap();
                tokio::spawn(async move {
                    there.established().await.unwrap();
                    incoming.accept().join(there).await
                });
            }
        });
        Self {
            legs,
            progress,
            _mux: mux,
        }
    }

    fn read(&self) -> Vec<u64> {
        let read = self.progress.iter();
        read.map(|(_, read)| read.load(Ordering::Relaxed)).collect()
    }

    /// Every end reads something new within this time.
    async fn moves(&self, limit: Duration, what: &str) {
        let before = self.read();
        let end = Instant::now() + limit;
        loop {
            let now = self.read();
            let names = self.progress.iter().zip(before.iter().zip(now));
            let still: Vec<_> = names
                .filter(|(_, (before, now))| *before == now)
                .map(|((name, _), _)| name)
                .collect();
            if still.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "{what}: nothing new at {still:?}");
            sleep(TICK).await;
        }
    }
}

/// Cuts for a while, then lets everything move, again and again. Returns how often the tunnels went
/// on.
async fn run(
    seed: u64,
    rounds: u64,
    streams: u64,
    config: &Config,
    resume: &resume::Config,
) -> u64 {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let chain = Chain::new(seed, streams, config, resume).await;
    chain.moves(Duration::from_secs(10), "at first").await;
    for round in 0..rounds {
        for leg in &chain.legs {
            let slow = [0, 5, 50, 1000][random.below(4) as usize];
            leg.slow.store(slow, Ordering::Relaxed);
        }
        for _ in 0..1 + random.below(6) {
            let both = random.below(3) > 0;
            let first = random.below(2) as usize;
            chain.legs[first].cut(&mut random);
            if both {
                let between = match random.below(2) {
                    0 => Duration::ZERO,
                    _ => random.millis(100),
                };
                sleep(between).await;
                chain.legs[1 - first].cut(&mut random);
            }
            let pause = match random.below(3) {
                0 => random.millis(20),
                1 => random.millis(300),
                _ => random.millis(3000),
            };
            sleep(pause).await;
        }
        let what = format!("seed {seed}, round {round}");
        chain.moves(Duration::from_secs(10), &what).await;
    }
    let stats = chain.legs.iter().map(|leg| leg.keeper.stats());
    stats.map(|stats| stats.resumed).sum()
}

/// Other seeds: `RESUME_SEED=100 RESUME_SEEDS=50 RESUME_ROUNDS=20 RESUME_STREAMS=9`.
#[test]
fn all_streams_move_soon_after_cuts_of_both_legs() {
    let number = |name: &str, default: u64| {
        let set = std::env::var(name).ok();
        set.map_or(default, |number| number.parse().unwrap())
    };
    let first = number("RESUME_SEED", 1);
    for seed in first..first + number("RESUME_SEEDS", 4) {
        let mut random = Random(seed * 31 + 7);
        let config = Config::default().with_send_budget(1 << (16 + random.below(7)));
        let resume = resume::Config::default()
            .with_keep(Duration::from_secs(3600))
            .with_ring_min(1 << (12 + random.below(9)));
        // The tasks end with their runtime.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (rounds, streams) = (number("RESUME_ROUNDS", 4), number("RESUME_STREAMS", 3));
        let resumed = runtime.block_on(run(seed, rounds, streams, &config, &resume));
        assert!(resumed > rounds, "seed {seed}: {resumed} times resumed");
    }
}
