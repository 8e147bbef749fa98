//! Transports of the virtual network: two pipes of bytes that are cut at any position, go silent,
//! or hold what they got and let it go later.

use std::collections::VecDeque;

use bytes::Bytes;

use super::rng::Rng;

/// Microseconds.
pub type Time = u64;

pub const MILLI: Time = 1_000;
pub const SECOND: Time = 1_000_000;

/// Bytes that a WebSocket adds to a message.
const FRAME: u64 = 6;

/// Who dialled a transport, and who accepted it. Pipes and ends are indexed by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    Client,
    Server,
}

impl Party {
    pub const BOTH: [Self; 2] = [Self::Client, Self::Server];

    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// One direction.
#[derive(Debug)]
struct Pipe {
    /// Messages under way and when each arrives.
    flight: VecDeque<(Time, Bytes)>,
    /// Bytes under way, also those that never arrive: a black hole fills up.
    held: u64,
    written: u64,
    /// Bytes that arrive; the message across this position and all after it are lost.
    cut_at: u64,
    free_at: Time,
    /// Nothing arrives before.
    held_until: Time,
}

#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// Bytes in a millisecond.
    pub rate: u64,
    pub delay: Time,
    /// Bytes under way in one direction; exceeded by at most one message.
    pub capacity: u64,
}

/// What the two parties learn of a cut.
#[derive(Debug, Clone, Copy)]
pub enum Notice {
    /// Each at a time of its own, soon.
    Soon,
    /// Each at a time of its own within a minute.
    Late,
    /// Nobody ever: both think that it is alive.
    Never,
    /// Only one party, soon.
    One(Party),
}

#[derive(Debug)]
pub struct Transport {
    line: Line,
    pipes: [Pipe; 2],
    pub notice: Notice,
    broken: bool,
    /// When each party learns that it is lost.
    lost_at: [Option<Time>; 2],
    /// What each party did last: closed parties neither read nor write.
    closed: [bool; 2],
}

impl Transport {
    pub fn new(line: Line, notice: Notice) -> Self {
        let pipe = || Pipe {
            flight: VecDeque::new(),
            held: 0,
            written: 0,
            cut_at: u64::MAX,
            free_at: 0,
            held_until: 0,
        };
        Self {
            line,
            pipes: [pipe(), pipe()],
            notice,
            broken: false,
            lost_at: [None; 2],
            closed: [false; 2],
        }
    }

    /// The direction from `party` carries this many bytes and no more.
    pub fn cut_after(&mut self, party: Party, bytes: u64) {
        self.pipes[party as usize].cut_at = bytes;
    }

    /// Nothing that was planned happens any more.
    pub fn spare(&mut self) {
        for pipe in &mut self.pipes {
            if !self.broken {
                pipe.cut_at = u64::MAX;
            }
        }
    }

    /// What `party` sends arrives at `time` at the earliest, also when the party is gone by then.
    pub fn hold(&mut self, party: Party, time: Time) {
        self.pipes[party as usize].held_until = time;
    }

    /// Cuts both directions now, each at a random position between what arrived and what was
    /// written.
    pub fn cut(&mut self, now: Time, rng: &mut Rng) {
        if self.broken {
            return;
        }
        self.broken = true;
        for pipe in &mut self.pipes {
            let keep = usize::try_from(rng.below(pipe.flight.len() as u64 + 1)).unwrap();
            pipe.flight.truncate(keep);
            pipe.cut_at = 0;
        }
        let soon = |rng: &mut Rng| Some(now + rng.below(50 * MILLI));
        self.lost_at = match self.notice {
            Notice::Soon => [soon(rng), soon(rng)],
            Notice::Late => [(); 2].map(|()| Some(now + rng.below(60 * SECOND))),
            Notice::Never => [None; 2],
            Notice::One(Party::Client) => [soon(rng), None],
            Notice::One(Party::Server) => [None, soon(rng)],
        };
    }

    /// `party` drops it. What it wrote may still arrive.
    pub fn close(&mut self, party: Party, now: Time, rng: &mut Rng) {
        self.closed[party as usize] = true;
        let other = party.other();
        self.pipes[other as usize].flight.clear();
        if self.lost_at[other as usize].is_none() && !self.broken {
            // After what is under way; a part of it may be lost with the connection.
            if rng.once_in(2) {
                let flight = &mut self.pipes[party as usize].flight;
                let keep = usize::try_from(rng.below(flight.len() as u64 + 1)).unwrap();
                flight.truncate(keep);
            }
            let last = self.pipes[party as usize].flight.back();
            let after = last.map_or(now, |(at, _)| *at).max(now);
            self.lost_at[other as usize] = Some(after + rng.below(50 * MILLI));
        }
    }

    /// As [`close`](Self::close), but everything written arrives before the other party learns it.
    pub fn close_orderly(&mut self, party: Party, now: Time) {
        self.closed[party as usize] = true;
        let last = self.pipes[party as usize].flight.back();
        let after = last.map_or(now, |(at, _)| *at).max(now);
        if !self.broken {
            self.lost_at[party.other() as usize].get_or_insert(after);
        }
    }

    pub fn has_room(&self, party: Party) -> bool {
        !self.closed[party as usize] && self.pipes[party as usize].held < self.line.capacity
    }

    pub fn write(&mut self, party: Party, now: Time, message: Bytes, rng: &mut Rng) {
        let line = self.line;
        let peer_reads = !self.closed[party.other() as usize];
        let pipe = &mut self.pipes[party as usize];
        let len = message.len() as u64 + FRAME;
        pipe.held += len;
        pipe.written += len;
        if pipe.written > pipe.cut_at || !peer_reads {
            if !self.broken && peer_reads {
                self.cut_here(party, now, rng);
            }
            return;
        }
        pipe.free_at = pipe.free_at.max(now) + len * MILLI / line.rate;
        let arrives = (pipe.free_at + line.delay).max(pipe.held_until);
        pipe.flight.push_back((arrives, message));
    }

    /// A write has crossed the position of a cut: what `party` wrote before arrives.
    fn cut_here(&mut self, party: Party, now: Time, rng: &mut Rng) {
        let before = std::mem::take(&mut self.pipes[party as usize].flight);
        self.cut(now, rng);
        for at in self.lost_at.iter_mut().flatten() {
            *at = (*at).max(before.back().map_or(now, |(at, _)| *at));
        }
        self.pipes[party as usize].flight = before;
    }

    /// The next message for `party` that has arrived.
    pub fn read(&mut self, party: Party, now: Time) -> Option<Bytes> {
        if self.closed[party as usize] {
            return None;
        }
        let pipe = &mut self.pipes[party.other() as usize];
        pipe.flight.front().filter(|(at, _)| *at <= now)?;
        let (_, message) = pipe.flight.pop_front()?;
        pipe.held -= message.len() as u64 + FRAME;
        Some(message)
    }

    pub fn next_arrival(&self, party: Party) -> Option<Time> {
        let flight = &self.pipes[party.other() as usize].flight;
        flight.front().map(|(at, _)| *at)
    }

    /// Whether `party` has learned that it is lost. Messages that arrived before are read first.
    pub fn is_lost(&self, party: Party, now: Time) -> bool {
        self.fails(party, now) && self.next_arrival(party).is_none_or(|at| at > now)
    }

    /// Whether it is lost as far as `party` can know.
    pub fn fails(&self, party: Party, now: Time) -> bool {
        self.lost_at[party as usize].is_some_and(|at| at <= now)
    }

    pub fn next_loss(&self, party: Party) -> Option<Time> {
        self.lost_at[party as usize]
    }

    pub fn is_broken(&self) -> bool {
        self.broken || self.closed.contains(&true)
    }
}
