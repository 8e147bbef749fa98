//! The load of an application on a local port, and how long it takes. Every byte is checked.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::pattern::Pattern;
use crate::service::{DOWNLOAD, ECHO, FOR_A_TIME, READY, UPLOAD, WHOLE};

/// Longer than any measurement has to wait for a byte.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between round trips beside other traffic.
const INTERVAL: Duration = Duration::from_millis(1);

const MIB: f64 = (1 << 20) as f64;

fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Runs the same on that many threads. Returns the first failure.
fn at_once<T: Send>(count: usize, work: impl Fn() -> io::Result<T> + Sync) -> io::Result<Vec<T>> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(&work)).collect();
        let ended = threads.into_iter().map(|thread| match thread.join() {
            Ok(ended) => ended,
            Err(_) => Err(io::Error::other("a measuring thread panicked")),
        });
        ended.collect()
    })
}

/// As many connections are opened at once: fewer than the shortest backlog among the tools.
const OPENING: usize = 100;

/// How many connections are being opened.
#[derive(Default)]
struct Opening {
    count: Mutex<usize>,
    fewer: Condvar,
}

impl Opening {
    /// Opens a connection as far as the service, when it is its turn.
    fn open(&self, port: u16) -> io::Result<TcpStream> {
        let held = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.fewer.wait_while(held, |count| *count >= OPENING);
        *waited.unwrap_or_else(PoisonError::into_inner) += 1;
        let opened = connect(port).and_then(|mut stream| {
            stream.write_all(&[READY])?;
            stream.read_exact(&mut [0])?;
            Ok(stream)
        });
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.fewer.notify_one();
        opened
    }
}

fn request(port: u16, wish: u8, len: u64) -> io::Result<TcpStream> {
    ask(connect(port)?, wish, len)
}

fn ask(mut stream: TcpStream, wish: u8, len: u64) -> io::Result<TcpStream> {
    let mut request = [wish; 9];
    request[1..].copy_from_slice(&len.to_be_bytes());
    stream.write_all(&request)?;
    Ok(stream)
}

/// MiB/s into the service over that many connections, `mib` in total.
pub fn upload(port: u16, connections: usize, mib: u64) -> io::Result<f64> {
    let len = (mib << 20) / connections as u64;
    let (pattern, opening) = (Pattern::new(), Opening::default());
    let start = Instant::now();
    at_once(connections, || {
        let mut stream = ask(opening.open(port)?, UPLOAD, len)?;
        pattern.send(&mut stream, len)?;
        let mut verdict = [0];
        stream.read_exact(&mut verdict)?;
        match verdict {
            [WHOLE] => Ok(()),
            _ => Err(io::Error::other("the upload arrived damaged")),
        }
    })?;
    Ok((len * connections as u64) as f64 / MIB / start.elapsed().as_secs_f64())
}

/// MiB/s out of the service.
pub fn download(port: u16, connections: usize, mib: u64) -> io::Result<f64> {
    let len = (mib << 20) / connections as u64;
    let (pattern, opening) = (Pattern::new(), Opening::default());
    let start = Instant::now();
    at_once(connections, || {
        let mut stream = ask(opening.open(port)?, DOWNLOAD, len)?;
        pattern.receive(&mut stream, len)
    })?;
    Ok((len * connections as u64) as f64 / MIB / start.elapsed().as_secs_f64())
}

/// MiB/s of echo, counted one way: each connection sends all and gets all back. `half_close`: it
/// ends its direction after the last byte, before the last byte comes back.
pub fn echo(port: u16, connections: usize, kib: u64, half_close: bool) -> io::Result<f64> {
    let len = kib << 10;
    let pattern = Pattern::new();
    let start = Instant::now();
    at_once(connections, || {
        let mut stream = connect(port)?;
        let mut back = stream.try_clone()?;
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                stream.write_all(&[ECHO])?;
                pattern.send(&mut stream, len)?;
                if half_close {
                    stream.shutdown(Shutdown::Write)?;
                }
                io::Result::Ok(())
            });
            pattern.receive(&mut back, len)?;
            sending.join().map_err(|_| io::Error::other("panicked"))??;
            if half_close && back.read(&mut [0; 1])? != 0 {
                return Err(io::Error::other("more came back than was sent"));
            }
            Ok(())
        })
    })?;
    Ok((len * connections as u64) as f64 / MIB / start.elapsed().as_secs_f64())
}

/// Microseconds of each round trip of 64 bytes, one after the other, sorted.
pub fn round_trips(port: u16, count: usize) -> io::Result<Vec<f64>> {
    let mut numbers = 0..count;
    let mut times = pings(port, Duration::ZERO, || numbers.next().is_some())?;
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The same on `pinging` connections, while `bulk` downloads run beside them for that long, and the
/// MiB/s of these.
pub fn round_trips_beside(
    port: u16,
    bulk: usize,
    time: Duration,
    pinging: usize,
) -> io::Result<(Vec<f64>, f64)> {
    let pattern = Pattern::new();
    let start = Instant::now();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let bulk = scope.spawn(|| {
            let ended = at_once(bulk, || {
                let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                let mut stream = request(port, FOR_A_TIME, millis)?;
                pattern.receive_all(&mut stream)
            });
            over.store(true, Ordering::Relaxed);
            ended.map(|received| (received, start.elapsed()))
        });
        thread::sleep(time / 8);
        let times = at_once(pinging, || {
            pings(port, INTERVAL, || !over.load(Ordering::Relaxed))
        });
        let ended = bulk.join().map_err(|_| io::Error::other("panicked"))?;
        let (received, elapsed) = ended?;
        if received.contains(&0) {
            return Err(io::Error::other(
                "a download beside it came to a standstill",
            ));
        }
        let mut times = times?.concat();
        times.sort_by(f64::total_cmp);
        let rate = received.iter().sum::<u64>() as f64 / MIB / elapsed.as_secs_f64();
        Ok((times, rate))
    })
}

/// Round trips on one connection for as long as asked, one after the other. None begins within the
/// `interval` after the last began: with none between, the short ones would outnumber the long.
fn pings(port: u16, interval: Duration, mut go_on: impl FnMut() -> bool) -> io::Result<Vec<f64>> {
    let mut stream = connect(port)?;
    stream.write_all(&[ECHO])?;
    let sent = [0x5a; 64];
    let mut came = [0; 64];
    let mut times = Vec::new();
    while go_on() {
        let start = Instant::now();
        stream.write_all(&sent)?;
        stream.read_exact(&mut came)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        if came != sent {
            return Err(io::Error::other("a round trip came back damaged"));
        }
        if let Some(wait) = interval.checked_sub(start.elapsed()) {
            thread::sleep(wait);
        }
    }
    Ok(times)
}

/// The value that this share of the sorted values does not exceed.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = (sorted.len().saturating_sub(1)) as f64 * part;
    sorted.get(at.round() as usize).copied().unwrap_or(f64::NAN)
}

/// Connections per second: opened, one byte there and back, closed; eight at a time.
pub fn connections(port: u16, count: usize) -> io::Result<f64> {
    const AT_ONCE: usize = 8;
    let start = Instant::now();
    at_once(AT_ONCE, || {
        for _ in 0..count / AT_ONCE {
            let mut stream = connect(port)?;
            stream.write_all(&[ECHO, 7])?;
            let mut came = [0];
            stream.read_exact(&mut came)?;
            if came != [7] {
                return Err(io::Error::other("a connection came back damaged"));
            }
        }
        Ok(())
    })?;
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Microseconds of each datagram's round trip, sorted. Those that did not come back within a second
/// are omitted.
pub fn datagrams(port: u16, count: u32) -> io::Result<Vec<f64>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut times = Vec::new();
    let mut buffer = [0; 2048];
    for number in 0..count {
        let mut sent = [0x5a; 64];
        sent[..4].copy_from_slice(&number.to_be_bytes());
        let start = Instant::now();
        socket.send(&sent)?;
        // A late answer to an earlier datagram is not taken for this one.
        while let Ok(len) = socket.recv(&mut buffer) {
            if buffer[..len] == sent {
                times.push(start.elapsed().as_secs_f64() * 1e6);
                break;
            }
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Connections that were used once and now wait.
pub fn idle(port: u16, count: usize) -> io::Result<Vec<TcpStream>> {
    let mut idle = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = connect(port)?;
        stream.write_all(&[ECHO, 7])?;
        stream.read_exact(&mut [0; 1])?;
        idle.push(stream);
    }
    Ok(idle)
}
