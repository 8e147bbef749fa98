//! The client that behaves: round trips on one connection, new connections, and new clients beside
//! it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::programs::Starter;

/// Longest time for a round trip, a new connection or a new client.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pauses between round trips, new connections, new clients.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(2),
    Duration::from_millis(200),
    Duration::from_secs(1),
];

/// Observations in one phase of a measurement.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// Milliseconds of each round trip.
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
pub const ATTACKED: u8 = 1;
pub const AFTER: u8 = 2;
const OVER: u8 = 3;

pub struct Client {
    port: AtomicU16,
    phase: AtomicU8,
    seen: Mutex<[Seen; 3]>,
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
        let mut stream = None;
        self.repeat(PAUSES[0], |at| {
            let took = trip(&mut stream, self.port.load(Relaxed));
            if took.is_err() {
                stream = None;
            }
            self.note(at, |seen| match took {
                Ok(took) => seen.trips.push(took),
                Err(error) => {
                    seen.trips_failed += 1;
                    seen.fail(&format!("round trip: {error}"));
                }
            });
        });
    }

    fn connections(&self) {
        self.repeat(PAUSES[1], |at| {
            let took = trip(&mut None, self.port.load(Relaxed));
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
        self.repeat(PAUSES[2], |at| {
            let begun = Instant::now();
            let came = starter.forward(echo).and_then(|mut forward| {
                let port = forward.local_port(PATIENCE)?;
                trip(&mut None, port).map_err(|error| error.to_string())?;
                let took = begun.elapsed().as_secs_f64() * 1e3;
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
            sleep(pause);
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

/// Milliseconds for 64 bytes there and back, on a new connection if there is none.
fn trip(stream: &mut Option<TcpStream>, port: u16) -> io::Result<f64> {
    let begun = Instant::now();
    let stream = match stream {
        Some(stream) => stream,
        None => {
            let new = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            new.set_nodelay(true)?;
            new.set_read_timeout(Some(PATIENCE))?;
            stream.insert(new)
        }
    };
    let sent = [0x5a; 64];
    let mut came = [0; 64];
    stream.write_all(&sent)?;
    stream.read_exact(&mut came)?;
    if came != sent {
        return Err(io::Error::other("came back damaged"));
    }
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// Tries until a round trip on a new connection works; returns after how many seconds.
pub fn works_within(port: u16, within: Duration) -> Option<f64> {
    let begun = Instant::now();
    while begun.elapsed() < within {
        if trip(&mut None, port).is_ok() {
            return Some(begun.elapsed().as_secs_f64());
        }
        sleep(Duration::from_millis(50));
    }
    None
}
