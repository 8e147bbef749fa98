//! A TCP relay that delays and limits, as a long path does.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::pattern::PIECE;

/// What a router queues beside what is under way.
const QUEUE: f64 = (1 << 20) as f64;

/// Each direction of every connection is such a path.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// One way.
    pub delay: Duration,
    pub bytes_per_second: f64,
}

impl Path {
    pub fn new(round_trip: Duration, mbit: u32) -> Self {
        Self {
            delay: round_trip / 2,
            bytes_per_second: f64::from(mbit) * 1e6 / 8.0,
        }
    }

    /// Bytes that fit into the path and its queue.
    fn capacity(self) -> usize {
        (self.bytes_per_second * self.delay.as_secs_f64() + QUEUE) as usize
    }
}

/// Relays until the process ends.
pub fn serve(port: u16, target: u16, path: Path) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    for near in listener.incoming() {
        let near = near?;
        near.set_nodelay(true)?;
        thread::spawn(move || {
            let far = TcpStream::connect((Ipv4Addr::LOCALHOST, target))?;
            far.set_nodelay(true)?;
            lay(near.try_clone()?, far.try_clone()?, path);
            lay(far, near, path);
            io::Result::Ok(())
        });
    }
    Ok(())
}

/// Bytes that are under way. An empty piece is the end.
#[derive(Default)]
struct UnderWay {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    broken: bool,
}

type Shared = Arc<(Mutex<UnderWay>, Condvar)>;

/// One direction: two threads.
fn lay(from: TcpStream, to: TcpStream, path: Path) {
    let shared = Shared::default();
    let other = Arc::clone(&shared);
    thread::spawn(move || enter(from, &shared, path));
    thread::spawn(move || leave(to, &other, path));
}

fn enter(mut from: TcpStream, shared: &Shared, path: Path) {
    let mut buffer = vec![0; PIECE];
    loop {
        let len = from.read(&mut buffer).unwrap_or_default();
        let (lock, changed) = &**shared;
        let full = |state: &mut UnderWay| state.bytes >= path.capacity() && !state.broken;
        let state = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_while(state, full);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.bytes += len;
        let due = Instant::now() + path.delay;
        state.pieces.push_back((due, buffer[..len].to_vec()));
        let broken = state.broken;
        drop(state);
        changed.notify_all();
        if len == 0 || broken {
            return;
        }
    }
}

fn leave(mut to: TcpStream, shared: &Shared, path: Path) {
    // When the link has sent everything before.
    let mut free = Instant::now();
    loop {
        let (lock, changed) = &**shared;
        let state = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_while(state, |state| state.pieces.is_empty());
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        let Some((due, piece)) = state.pieces.pop_front() else {
            continue;
        };
        state.bytes -= piece.len();
        drop(state);
        changed.notify_all();
        let takes = Duration::from_secs_f64(piece.len() as f64 / path.bytes_per_second);
        // A late wake-up does not slow the link down.
        free = free.max(Instant::now() - Duration::from_millis(5)).max(due) + takes;
        thread::sleep(free.saturating_duration_since(Instant::now()));
        if piece.is_empty() {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
        if to.write_all(&piece).is_err() {
            let mut state = lock.lock().unwrap_or_else(PoisonError::into_inner);
            state.broken = true;
            drop(state);
            changed.notify_all();
            return;
        }
    }
}
