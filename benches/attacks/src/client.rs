//! The client that behaves: round trips on one connection, new connections, and new clients beside
//! it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering::Relaxed};
use std::sync::{Mutex, mpsc};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::programs::Starter;

/// Longest time for a round trip, a new connection or a new client.
const PATIENCE: Duration = Duration::from_secs(10);

/// A round trip begins this often, whether or not the ones before have ended.
pub const EVERY: Duration = Duration::from_millis(2);

/// Pauses between new connections, and between new clients.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];

const MESSAGE: [u8; 64] = [0x5a; 64];

/// Observations in one phase of a measurement.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// Milliseconds of each round trip, from when it was due.
    pub trips: Vec<f64>,
    pub trips_failed: u32,
    /// New connections through the same forward, and new forwards: milliseconds of those that
    /// succeeded.
    pub connections: Vec<f64>,
    pub connections_failed: u32,
    pub clients: Vec<f64>,
    pub clients_failed: u32,
    /// The first failure.
    pub first_failure: Option<String>,
}

impl Seen {
    fn fail(&mut self, why: &str) {
        self.first_failure.get_or_insert_with(|| why.to_owned());
    }

    fn fail_trip(&mut self, error: &io::Error) {
        self.trips_failed += 1;
        self.fail(&format!("round trip: {error}"));
    }
}

/// The value that this share of the values does not exceed.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len().saturating_sub(1)) as f64 * part;
    sorted.get(at.round() as usize).copied().unwrap_or(f64::NAN)
}

/// Phases of a measurement.
pub const IDLE: u8 = 0;
/// The attack has begun, and its times are not measured yet.
pub const SETTLING: u8 = 1;
pub const ATTACKED: u8 = 2;
pub const AFTER: u8 = 3;
const OVER: u8 = 4;

pub struct Client {
    port: AtomicU16,
    phase: AtomicU8,
    seen: Mutex<[Seen; OVER as usize]>,
}

impl Client {
    pub fn new(port: u16) -> Self {
        Self {
            port: AtomicU16::new(port),
            phase: AtomicU8::new(IDLE),
            seen: Mutex::default(),
        }
    }

    /// Measures while `work` runs. `work` says when phases begin.
    pub fn beside<T>(
        &self,
        starter: &Starter<'_>,
        echo: u16,
        clients: bool,
        work: impl FnOnce() -> T,
    ) -> T {
        thread::scope(|scope| {
            scope.spawn(|| self.trips());
            scope.spawn(|| self.connections());
            if clients {
                scope.spawn(|| self.clients(starter, echo));
            }
            let done = work();
            self.begin(OVER);
            done
        })
    }

    pub fn begin(&self, phase: u8) {
        self.phase.store(phase, Relaxed);
    }

    pub fn seen(&self, phase: u8) -> Seen {
        let seen = self
            .seen
            .lock()
            .map(|seen| seen[usize::from(phase)].clone());
        seen.unwrap_or_default()
    }

    fn trips(&self) {
        self.repeat(EVERY, |at| match open(self.port.load(Relaxed)) {
            Ok(stream) => self.trips_on(&stream),
            Err(error) => self.note(at, |seen| seen.fail_trip(&error)),
        });
    }

    /// Until the connection breaks or the measurement is over.
    fn trips_on(&self, stream: &TcpStream) {
        let (sent, coming) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| self.receive(stream, coming));
            let _ = self.send(stream, sent);
            let _ = stream.shutdown(Shutdown::Both);
        });
    }

    /// Sends on schedule, so that a stall counts for each round trip that is due in it.
    fn send(&self, mut stream: &TcpStream, sent: mpsc::Sender<(u8, Instant)>) -> io::Result<()> {
        let mut due = Instant::now();
        loop {
            sleep(due.saturating_duration_since(Instant::now()));
            let phase = self.phase.load(Relaxed);
            if phase == OVER || sent.send((phase, due)).is_err() {
                return Ok(());
            }
            stream.write_all(&MESSAGE)?;
            due += EVERY;
        }
    }

    fn receive(&self, stream: &TcpStream, coming: mpsc::Receiver<(u8, Instant)>) {
        for (at, due) in coming {
            let came = expect_back(stream);
            let broken = came.is_err();
            self.note(at, |seen| match came {
                Ok(()) => seen.trips.push(milliseconds_since(due)),
                Err(error) => seen.fail_trip(&error),
            });
            if broken {
                return;
            }
        }
    }

    fn connections(&self) {
        self.repeat(PAUSES[0], |at| {
            let took = trip(self.port.load(Relaxed));
            self.note(at, |seen| match took {
                Ok(took) => seen.connections.push(took),
                Err(error) => {
                    seen.connections_failed += 1;
                    seen.fail(&format!("new connection: {error}"));
                }
            });
        });
    }

    fn clients(&self, starter: &Starter<'_>, echo: u16) {
        self.repeat(PAUSES[1], |at| {
            let begun = Instant::now();
            let came = starter.forward(echo).and_then(|mut forward| {
                let port = forward.local_port(PATIENCE)?;
                trip(port).map_err(|error| error.to_string())?;
                let took = milliseconds_since(begun);
                forward.interrupt();
                Ok(took)
            });
            self.note(at, |seen| match came {
                Ok(took) => seen.clients.push(took),
                Err(error) => {
                    seen.clients_failed += 1;
                    seen.fail(&format!("new client: {error}"));
                }
            });
        });
    }

    fn repeat(&self, pause: Duration, mut work: impl FnMut(u8)) {
        loop {
            let phase = self.phase.load(Relaxed);
            if phase == OVER {
                return;
            }
            work(phase);
            let next = Instant::now() + pause;
            while self.phase.load(Relaxed) != OVER && Instant::now() < next {
                sleep(pause.min(Duration::from_millis(20)));
            }
        }
    }

    /// Counts for the phase in which it began. Failures after the end are ignored, because the end
    /// causes them.
    fn note(&self, phase: u8, note: impl FnOnce(&mut Seen)) {
        if self.phase.load(Relaxed) == OVER {
            return;
        }
        if let Ok(mut seen) = self.seen.lock() {
            note(&mut seen[usize::from(phase)]);
        }
    }
}

fn open(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn expect_back(mut stream: &TcpStream) -> io::Result<()> {
    let mut came = [0; MESSAGE.len()];
    stream.read_exact(&mut came)?;
    if came != MESSAGE {
        return Err(io::Error::other("came back damaged"));
    }
    Ok(())
}

/// Milliseconds for a message there and back on a new connection.
fn trip(port: u16) -> io::Result<f64> {
    let begun = Instant::now();
    let mut stream = open(port)?;
    stream.write_all(&MESSAGE)?;
    expect_back(&stream)?;
    Ok(milliseconds_since(begun))
}

fn milliseconds_since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

/// Tries until a round trip on a new connection works; returns after how many seconds.
pub fn works_within(port: u16, within: Duration) -> Option<f64> {
    let begun = Instant::now();
    while begun.elapsed() < within {
        if trip(port).is_ok() {
            return Some(begun.elapsed().as_secs_f64());
        }
        sleep(Duration::from_millis(50));
    }
    None
}
