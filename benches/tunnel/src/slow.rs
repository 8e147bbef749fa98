//! A TCP relay as a long path is: one link for all its connections, with a rate, a delay and a
//! queue, and connections that stall as after a loss.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::socket;

/// What a router queues beside what is under way.
const QUEUE: usize = 1 << 20;
/// Bytes that take their turn on the link at once.
const PIECE: usize = 16 << 10;
/// Socket buffers belong to the path: they are small, and do not grow.
const BUFFER: usize = 128 << 10;
/// How long a connection stands still: the least that TCP waits before it sends again.
const STALL: Duration = Duration::from_millis(200);
/// The link's clock may be late by this much. It makes up for it.
const LATE: Duration = Duration::from_millis(5);

/// Each direction is such a path. All connections share its rate.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    pub round_trip: Duration,
    pub mbit: u32,
    /// Each direction of each connection stalls once in about as many MiB; 0: never.
    pub stall_mib: u32,
}

impl Path {
    fn bytes_per_second(self) -> f64 {
        f64::from(self.mbit) * 1e6 / 8.0
    }

    /// Bytes of one connection that are under way or queued.
    fn window(self) -> usize {
        (self.bytes_per_second() * self.round_trip.as_secs_f64() / 2.0) as usize + QUEUE
    }
}

/// Relays until the process ends.
pub fn serve(port: u16, target: u16, path: Path) -> io::Result<()> {
    let listener = socket::listen(port, Some(BUFFER))?;
    let [there, back] = [Link::start(path), Link::start(path)];
    for number in 1.. {
        let (near, _) = listener.accept()?;
        near.set_nodelay(true)?;
        let (there, back) = (Arc::clone(&there), Arc::clone(&back));
        thread::spawn(move || {
            let far = socket::new(Some(BUFFER))?;
            far.connect(&socket::address(target).into())?;
            let far = TcpStream::from(far);
            lay(near.try_clone()?, far.try_clone()?, there, 2 * number);
            lay(far, near, back, 2 * number + 1);
            io::Result::Ok(())
        });
    }
    Ok(())
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

fn once<'a, T>(
    (lock, changed): &'a (Mutex<T>, Condvar),
    ready: impl Fn(&T) -> bool,
) -> MutexGuard<'a, T> {
    let waited = changed.wait_while(held(lock), |state| !ready(state));
    waited.unwrap_or_else(PoisonError::into_inner)
}

/// One direction of the path.
struct Link {
    path: Path,
    queue: (Mutex<Queue>, Condvar),
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<(Arc<Line>, Vec<u8>)>,
    bytes: usize,
}

/// One direction of one connection.
#[derive(Default)]
struct Line {
    state: (Mutex<UnderWay>, Condvar),
}

#[derive(Default)]
struct UnderWay {
    /// What has left the link, and when it arrives. An empty piece is the end.
    arriving: VecDeque<(Instant, Vec<u8>)>,
    queued: usize,
    bytes: usize,
    broken: bool,
}

impl Link {
    fn start(path: Path) -> Arc<Self> {
        let link = Arc::new(Self {
            path,
            queue: Default::default(),
        });
        let other = Arc::clone(&link);
        thread::spawn(move || other.send());
        link
    }

    /// Sends one piece after the other, of whichever connection.
    fn send(&self) {
        let mut free = Instant::now();
        loop {
            let mut queue = once(&self.queue, |queue| !queue.pieces.is_empty());
            let Some((line, piece)) = queue.pieces.pop_front() else {
                continue;
            };
            queue.bytes -= piece.len();
            drop(queue);
            self.queue.1.notify_all();
            let takes = Duration::from_secs_f64(piece.len() as f64 / self.path.bytes_per_second());
            free = free.max(Instant::now() - LATE) + takes;
            let ahead = free.saturating_duration_since(Instant::now());
            // A sleep for each piece would cost more than the piece.
            if ahead > Duration::from_millis(1) {
                thread::sleep(ahead);
            }
            // Being late makes the rate up, it does not shorten the path.
            let due = free.max(Instant::now()) + self.path.round_trip / 2;
            let mut state = held(&line.state.0);
            state.queued -= piece.len();
            state.arriving.push_back((due, piece));
            drop(state);
            line.state.1.notify_all();
        }
    }
}

/// One direction of a connection: two threads.
fn lay(from: TcpStream, to: TcpStream, link: Arc<Link>, number: u64) {
    let line = Arc::new(Line::default());
    let (path, other) = (link.path, Arc::clone(&line));
    thread::spawn(move || enter(from, &link, &line));
    thread::spawn(move || leave(to, &other, path, number));
}

fn enter(mut from: TcpStream, link: &Link, line: &Arc<Line>) {
    let mut buffer = vec![0; PIECE];
    loop {
        let len = from.read(&mut buffer).unwrap_or_default();
        let window = link.path.window();
        let mut state = once(&line.state, |state| state.bytes < window || state.broken);
        // A connection that has nothing in the queue need not wait until there is room.
        let first = state.queued == 0;
        state.bytes += len;
        state.queued += len;
        let broken = state.broken;
        drop(state);
        let mut queue = once(&link.queue, |queue| first || queue.bytes < QUEUE);
        queue.bytes += len;
        let piece = buffer.get(..len).unwrap_or_default().to_vec();
        queue.pieces.push_back((Arc::clone(line), piece));
        drop(queue);
        link.queue.1.notify_all();
        if len == 0 || broken {
            return;
        }
    }
}

fn leave(mut to: TcpStream, line: &Line, path: Path, number: u64) {
    let mut stalls = Stalls::new(path.stall_mib, number);
    loop {
        let mut state = once(&line.state, |state| !state.arriving.is_empty());
        let Some((due, piece)) = state.arriving.pop_front() else {
            continue;
        };
        drop(state);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if piece.is_empty() {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
        if stalls.hits(piece.len()) {
            thread::sleep(STALL);
        }
        let broken = to.write_all(&piece).is_err();
        let mut state = held(&line.state.0);
        state.bytes -= piece.len();
        state.broken |= broken;
        drop(state);
        line.state.1.notify_all();
        if broken {
            return;
        }
    }
}

/// When a connection stalls: the same in every run, not the same for every connection.
struct Stalls {
    mean: u64,
    random: u64,
    left: u64,
}

impl Stalls {
    fn new(mib: u32, number: u64) -> Self {
        let mut stalls = Self {
            mean: u64::from(mib) << 20,
            random: 0x9e37_79b9_7f4a_7c15 ^ (number << 32 | number),
            left: 0,
        };
        stalls.left = stalls.next();
        stalls
    }

    /// From half the mean to one and a half.
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.mean / 2 + self.random % self.mean.max(1)
    }

    fn hits(&mut self, len: usize) -> bool {
        self.left = self.left.saturating_sub(len as u64);
        let hit = self.mean > 0 && self.left == 0;
        if hit {
            self.left = self.next();
        }
        hit
    }
}
