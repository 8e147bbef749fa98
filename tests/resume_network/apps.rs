//! The programs on both sides of the tunnels: what they send, what they must get, and the relay
//! that joins two tunnels.

use std::collections::{HashSet, VecDeque};
use std::sync::OnceLock;

use bytes::Bytes;
use kohakuriver_tunnel::session::{
    Event, Instant, Reason, Recv, SendError, Session, StreamError, StreamId,
};
use kohakuriver_tunnel::wire::{Chunk, Proto};

use super::rng::Rng;
use super::wire::{MILLI, Time};

/// What a stream carries, known to both sides by its port.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub proto: Proto,
    /// Bytes, or datagrams, from the opener and from the acceptor.
    pub lens: [u64; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Finished,
    Reset,
}

/// One side of one stream.
#[derive(Debug)]
pub struct Half {
    pub port: u16,
    pub stream: StreamId,
    plan: Plan,
    /// 0 for the opener's side, 1 for the acceptor's.
    side: usize,
    sent: u64,
    pub read: u64,
    seen: HashSet<u64>,
    finished: bool,
    /// Its reader stalls until then.
    stalled_until: Time,
    pub outcome: Option<Outcome>,
    released: bool,
}

/// The application at one end of a tunnel.
#[derive(Debug)]
pub struct App {
    side: usize,
    /// What is opened in turn, or may come in, by port.
    plans: Vec<(u16, Plan)>,
    pub halves: Vec<Half>,
    /// Most bytes of one read or write.
    pub bite: usize,
}

/// Bytes without a period that matters; each stream and direction starts elsewhere.
pub fn pattern(port: u16, side: usize, offset: u64, len: usize) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    const PERIOD: usize = 1 << 18;
    let bytes = BYTES.get_or_init(|| {
        let mut rng = Rng::new(7);
        let once: Vec<u8> = (0..PERIOD / 8)
            .flat_map(|_| rng.next().to_le_bytes())
            .collect();
        once.repeat(2)
    });
    let start = usize::from(port) * 10_007 + side * 100_003;
    let start = (start + usize::try_from(offset).unwrap()) % PERIOD;
    &bytes[start..start + len]
}

fn datagram(port: u16, side: usize, number: u64) -> Vec<u8> {
    let mut datagram = number.to_be_bytes().to_vec();
    datagram.extend_from_slice(pattern(port, side, number * 31, 20));
    datagram
}

impl App {
    pub fn new(side: usize, plans: Vec<(u16, Plan)>, bite: usize) -> Self {
        Self {
            side,
            plans,
            halves: Vec::new(),
            bite,
        }
    }

    /// Opens the next stream of the plan, unless the tunnel has ended.
    pub fn open_next(&mut self, session: &mut Session, now: Instant) {
        let Some((port, plan)) = self.plans.get(self.halves.len()).copied() else {
            return;
        };
        let opened = match plan.proto {
            Proto::Tcp => session.open_tcp(port, now),
            Proto::Udp => session.open_udp(port, now),
        };
        if let Ok(stream) = opened {
            self.add(stream, port, plan);
        }
    }

    fn add(&mut self, stream: StreamId, port: u16, plan: Plan) {
        self.halves.push(Half {
            port,
            stream,
            plan,
            side: self.side,
            sent: 0,
            read: 0,
            seen: HashSet::new(),
            finished: false,
            stalled_until: 0,
            outcome: None,
            released: false,
        });
    }

    pub fn on_event(&mut self, session: &mut Session, event: Event, now: Instant) {
        if let Event::Incoming {
            stream,
            proto,
            port,
        } = event
        {
            let (_, plan) = self.plans.iter().find(|(known, _)| *known == port).unwrap();
            let plan = *plan;
            assert_eq!(proto, plan.proto);
            match session.accept(stream, now) {
                Ok(()) => self.add(stream, port, plan),
                // A flow was over before it was looked at; a tunnel has ended.
                Err(_) => session.release(stream, now),
            }
        }
    }

    /// The readers of all streams stall, each for up to `most`.
    pub fn stall(&mut self, now: Time, most: Time, rng: &mut Rng) {
        for half in &mut self.halves {
            half.stalled_until = now + rng.below(most.max(1));
        }
    }

    /// Reads and writes as far as possible. Returns whether something moved.
    pub fn drive(&mut self, session: &mut Session, at: Instant, now: Time) -> bool {
        let bite = self.bite;
        let mut moved = false;
        for half in &mut self.halves {
            moved |= half.read(session, at, now) | half.write(session, bite);
            half.release_if_over(session, at);
        }
        moved
    }

    pub fn next_stall_end(&self, now: Time) -> Option<Time> {
        let stalled = self.halves.iter().filter(|h| h.outcome.is_none());
        stalled
            .map(|h| h.stalled_until)
            .filter(|at| *at > now)
            .min()
    }

    pub fn has_more_to_open(&self) -> bool {
        self.side == 0 && self.halves.len() < self.plans.len()
    }

    pub fn all_over(&self) -> bool {
        !self.has_more_to_open() && self.halves.iter().all(|h| h.outcome.is_some())
    }
}

impl Half {
    fn read(&mut self, session: &mut Session, at: Instant, now: Time) -> bool {
        let mut moved = false;
        while !self.released && self.stalled_until <= now {
            match session.recv(self.stream, at) {
                Ok(Recv::Data(data)) => {
                    assert_eq!(self.outcome, None, "data after the end of {}", self.port);
                    self.take(&data);
                }
                Ok(Recv::Blocked) => {
                    assert_eq!(self.outcome, None, "no end after the end of {}", self.port);
                    break;
                }
                Ok(Recv::Finished) => {
                    moved |= self.ends(Outcome::Finished);
                    break;
                }
                Err(StreamError::Reset(_)) => {
                    moved |= self.ends(Outcome::Reset);
                    break;
                }
                Err(error) => panic!("{error}"),
            }
            moved = true;
        }
        moved
    }

    fn take(&mut self, data: &Bytes) {
        let other = 1 - self.side;
        match self.plan.proto {
            Proto::Tcp => {
                let right = pattern(self.port, other, self.read, data.len());
                assert!(
                    data == right,
                    "other bytes on {} at {}",
                    self.port,
                    self.read
                );
                self.read += data.len() as u64;
                assert!(self.read <= self.plan.lens[other], "too many bytes");
            }
            Proto::Udp => {
                let number = u64::from_be_bytes(data[..8].try_into().unwrap());
                assert_eq!(
                    data,
                    &datagram(self.port, other, number),
                    "another datagram"
                );
                assert!(self.seen.insert(number), "datagram {number} came twice");
                self.read += 1;
            }
        }
    }

    fn ends(&mut self, outcome: Outcome) -> bool {
        match self.outcome {
            None => {
                self.outcome = Some(outcome);
                true
            }
            // A reset after the peer has finished is no second end: the reader has seen the first.
            Some(_) => false,
        }
    }

    fn write(&mut self, session: &mut Session, bite: usize) -> bool {
        let mut moved = false;
        let total = self.plan.lens[self.side];
        while self.sent < total && !self.finished {
            let sent = match self.plan.proto {
                Proto::Tcp => {
                    let len = usize::try_from(total - self.sent).unwrap().min(bite);
                    let bytes = pattern(self.port, self.side, self.sent, len);
                    session.send_slice(self.stream, bytes).map(|len| len as u64)
                }
                Proto::Udp => {
                    let datagram = datagram(self.port, self.side, self.sent);
                    let sent = session.send_datagram(self.stream, Chunk::copied(&datagram));
                    sent.map(|()| 1)
                }
            };
            match sent {
                Ok(0) => break,
                Ok(len) => self.sent += len,
                Err(SendError::Reset(_) | SendError::Finished) => self.finished = true,
                Err(error) => panic!("{error}"),
            }
            moved = true;
        }
        // The opener ends a flow, when it has sent its datagrams.
        let ends = self.plan.proto == Proto::Tcp || self.side == 0;
        if self.sent == total && !self.finished && ends {
            session.finish(self.stream);
            (self.finished, moved) = (true, true);
        }
        moved
    }

    /// A side that has seen its end and sent everything gives the handle back.
    fn release_if_over(&mut self, session: &mut Session, at: Instant) {
        if self.outcome.is_some() && !self.released {
            let reset = self.outcome == Some(Outcome::Reset);
            if reset || self.finished || self.plan.proto == Proto::Udp {
                session.release(self.stream, at);
                self.released = true;
            }
        }
    }

    pub fn datagrams(&self) -> u64 {
        self.seen.len() as u64
    }

    pub fn is_complete(&self) -> bool {
        // The opener may end a flow before the acceptor has looked at it.
        match self.plan.proto {
            Proto::Udp => self.side == 1 || self.outcome == Some(Outcome::Finished),
            Proto::Tcp => {
                let all = self.plan.lens[1 - self.side];
                self.outcome == Some(Outcome::Finished) && self.read == all
            }
        }
    }
}

/// Joins the streams that come in on one tunnel with streams opened on another.
#[derive(Debug, Default)]
pub struct Relay {
    pub joins: Vec<Join>,
}

#[derive(Debug)]
pub struct Join {
    /// The end of a tunnel and the stream on it: where it came in, where it goes on.
    legs: [(usize, StreamId); 2],
    proto: Proto,
    /// Bytes read from a leg and not yet accepted by the other.
    waiting: [VecDeque<Bytes>; 2],
    /// What was read from a leg has ended.
    ended: [Option<Outcome>; 2],
    /// That end was passed on.
    passed: [bool; 2],
    released: bool,
}

impl Relay {
    pub fn add(&mut self, from: (usize, StreamId), to: (usize, StreamId), proto: Proto) {
        self.joins.push(Join {
            legs: [from, to],
            proto,
            waiting: [VecDeque::new(), VecDeque::new()],
            ended: [None; 2],
            passed: [false; 2],
            released: false,
        });
    }

    pub fn drive(&mut self, legs: &mut [Leg<'_>]) -> bool {
        let mut moved = false;
        for join in &mut self.joins {
            if !join.released {
                moved |= join.drive(legs);
            }
        }
        self.joins.retain(|join| !join.released);
        moved
    }
}

/// An end of a tunnel at the relay.
pub struct Leg<'a> {
    pub end: usize,
    pub session: &'a mut Session,
    pub at: Instant,
}

impl Join {
    fn drive(&mut self, legs: &mut [Leg<'_>]) -> bool {
        let mut moved = false;
        let at = self
            .legs
            .map(|(end, _)| legs.iter().position(|leg| leg.end == end).unwrap());
        for side in 0..2 {
            moved |= self.pump(side, legs, at);
        }
        let reset = self.ended.contains(&Some(Outcome::Reset));
        let over = self.ended.iter().all(Option::is_some) && self.passed == [true; 2];
        let flow_over = self.proto == Proto::Udp && self.ended.iter().any(Option::is_some);
        if reset || over || flow_over {
            for (side, leg) in at.into_iter().enumerate() {
                let (stream, leg) = (self.legs[side].1, &mut legs[leg]);
                if reset {
                    leg.session.reset(stream, Reason::Gone, "the other leg");
                }
                leg.session.release(stream, leg.at);
            }
            self.released = true;
            moved = true;
        }
        moved
    }

    /// Copies what comes from one leg to the other.
    fn pump(&mut self, side: usize, legs: &mut [Leg<'_>], at: [usize; 2]) -> bool {
        let (from, to) = (self.legs[side].1, self.legs[1 - side].1);
        let mut moved = false;
        loop {
            if self.waiting[side].is_empty() && self.ended[side].is_none() {
                let leg = &mut legs[at[side]];
                match leg.session.recv(from, leg.at) {
                    Ok(Recv::Data(data)) => self.waiting[side].push_back(data),
                    Ok(Recv::Blocked) => return moved,
                    Ok(Recv::Finished) => self.ended[side] = Some(Outcome::Finished),
                    Err(_) => self.ended[side] = Some(Outcome::Reset),
                }
                moved = true;
            }
            let session = &mut *legs[at[1 - side]].session;
            let Some(data) = self.waiting[side].pop_front() else {
                if self.ended[side].is_some() && !self.passed[side] {
                    session.finish(to);
                    self.passed[side] = true;
                    moved = true;
                }
                return moved;
            };
            let sent = match self.proto {
                Proto::Tcp => session.send_slice(to, &data),
                Proto::Udp => {
                    let all = session.send_datagram(to, Chunk::copied(&data));
                    all.map(|()| data.len())
                }
            };
            match sent {
                Ok(len) if len == data.len() => moved = true,
                Ok(len) => {
                    self.waiting[side].push_front(data.slice(len..));
                    session.request_writable(to);
                    return moved || len > 0;
                }
                Err(_) => {
                    // The other leg is reset or its reader is gone; its own reading says which.
                    moved = true;
                }
            }
        }
    }
}

pub const OPEN_EVERY: Time = 20 * MILLI;
