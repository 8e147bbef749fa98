//! Two sessions under operations of every kind, mixed with messages of a hostile peer.
//!
//! Input: one byte that chooses version, bounds and the first id, then operations of one byte with
//! their arguments. Messages between the sessions pass in order, but either end may also get a
//! forged one at any time, well formed or not.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use kohakuriver_tunnel::session::{
    Allowance, Config, Event, Instant, Reason, Recv, Role, SendError, Session, State, Stats,
    StreamId, Transmit, Version,
};
use kohakuriver_tunnel::wire::{Chunk, Frame};

/// For any input: no panic, every bound holds, every `poll_*` terminates, ended streams stay ended,
/// and after every handle is released nothing is left.
pub fn session(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let version = match first & 1 {
        0 => Version::V2,
        _ => Version::V1,
    };
    // Close to the last id, a few streams reach the wrap while others are live.
    let first_id = match first & 4 {
        0 => 1,
        _ => u32::MAX - 3,
    };
    let mut config = config(first & 2 != 0);
    config.first_id = Some(first_id);
    let mut input = Input { rest, first_id };
    let mut now = Instant::default();
    let end = |role| End {
        session: Session::new(role, version, config.clone(), now),
        config: config.clone(),
        wire: VecDeque::new(),
        handles: Vec::new(),
        ended: Vec::new(),
        violations: 0,
    };
    let mut ends = [end(Role::Opener), end(Role::Acceptor)];
    while let Some(op) = input.byte() {
        let [opener, acceptor] = &mut ends;
        let (one, other) = match op >> 7 {
            0 => (opener, acceptor),
            _ => (acceptor, opener),
        };
        match op & 0x0f {
            0 => one.open(now, input.byte().unwrap_or(0)),
            1 => one.accept(now, input.byte().unwrap_or(0)),
            2 => one.transmit(now, usize::from(input.byte().unwrap_or(255))),
            3 | 4 => other.receive(now, &mut one.wire, usize::from(input.byte().unwrap_or(1))),
            5 => {
                one.transmit(now, usize::MAX);
                other.receive(now, &mut one.wire, usize::MAX);
            }
            6 => one.send(&mut input),
            7 => one.send_datagram(&mut input),
            8 => one.recv(now, input.byte().unwrap_or(0), usize::from(op >> 4) + 1),
            9 => one.finish_or_reset(&mut input),
            10 => one.release(now, input.byte().unwrap_or(0)),
            11 => now = now + Duration::from_millis(u64::from(input.byte().unwrap_or(1)) * 20),
            12 => one.about_the_tunnel(now, input.byte().unwrap_or(0)),
            13 => {
                let message = input.message();
                one.take(now, message);
            }
            14 => {
                let message = input.raw();
                one.take(now, message);
            }
            _ => one.flood(now, &mut input),
        }
        for end in &mut ends {
            end.timeout(now);
            end.poll_events();
            end.check();
        }
    }
    wind_up(&mut ends, now);
}

/// Bounds so small that a few operations reach them.
fn config(smallest: bool) -> Config {
    let mut config = Config::default();
    config.linger = Duration::from_secs(1);
    config.v1_stall = Duration::from_secs(1);
    config.v1_reach = 3_000;
    config.max_streams = 12;
    config.accept_backlog = 5;
    config.max_replies = 20;
    config.v1_stream_buffer = 2_000;
    config.receive_budget = 400_000;
    config.datagram_queue = 4;
    config.datagram_buffer = 1_000;
    config.datagram_budget = 3_000;
    if smallest {
        config.receive_budget = 5_000;
        config.send_budget = 4_000;
        config.stream_send_buffer = 1_000;
        config.max_piece = 500;
        config.contended_piece = 100;
        config.keepalive = None;
    }
    config
}

/// Releases everything and lets time pass. Nothing may remain.
fn wind_up(ends: &mut [End; 2], mut now: Instant) {
    for _ in 0..20 {
        for end in &mut *ends {
            end.timeout(now);
            end.poll_events();
            for stream in std::mem::take(&mut end.handles) {
                end.session.release(stream, now);
            }
            end.check();
        }
        let [opener, acceptor] = &mut *ends;
        for _ in 0..3 {
            opener.transmit(now, usize::MAX);
            acceptor.receive(now, &mut opener.wire, usize::MAX);
            acceptor.transmit(now, usize::MAX);
            opener.receive(now, &mut acceptor.wire, usize::MAX);
        }
        now = now + Duration::from_secs(1);
    }
    for end in ends {
        let stats = end.session.stats();
        assert_eq!(stats.streams, 0, "a stream stays");
        assert_eq!((stats.unread, stats.unsent), (0, 0), "bytes stay");
        assert!(end.session.is_idle());
    }
}

struct End {
    session: Session,
    config: Config,
    /// Messages to the other end.
    wire: VecDeque<Bytes>,
    handles: Vec<StreamId>,
    /// Streams that were read to their end.
    ended: Vec<StreamId>,
    violations: u64,
}

impl End {
    fn pick(&self, which: u8) -> Option<StreamId> {
        let at = usize::from(which).checked_rem(self.handles.len())?;
        self.handles.get(at).copied()
    }

    fn open(&mut self, now: Instant, which: u8) {
        let port = u16::from(which);
        let opened = match which & 1 {
            0 => self.session.open_tcp(port, now),
            _ => self.session.open_udp(port, now),
        };
        self.handles.extend(opened);
    }

    fn accept(&mut self, now: Instant, which: u8) {
        if let Some(stream) = self.pick(which) {
            // Fails only if the stream was already answered or is gone.
            let _ = self.session.accept(stream, now);
        }
    }

    fn transmit(&mut self, now: Instant, most: usize) {
        const ENDLESS: usize = 100_000;
        for _ in 0..most.min(ENDLESS) {
            match self.session.poll_transmit(now) {
                Some(Transmit::Message(message)) => {
                    Frame::decode_strict(message.clone()).expect("a message is well formed");
                    self.wire.push_back(message);
                }
                Some(Transmit::Ping) => self.session.handle_activity(now),
                Some(other) => panic!("unknown: {other:?}"),
                None => {
                    assert!(!self.session.has_transmit());
                    return;
                }
            }
        }
        assert!(most < ENDLESS, "poll_transmit does not end");
    }

    fn receive(&mut self, now: Instant, wire: &mut VecDeque<Bytes>, most: usize) {
        for _ in 0..most {
            if !self.session.can_receive() {
                return;
            }
            let Some(message) = wire.pop_front() else {
                return;
            };
            self.take(now, message);
        }
    }

    /// A message that cannot be received now is not passed in.
    fn take(&mut self, now: Instant, message: Bytes) {
        if self.session.can_receive() {
            let outcome = self.session.handle_message(now, message);
            self.violations += u64::from(outcome.is_err());
            self.check();
        }
    }

    fn flood(&mut self, now: Instant, input: &mut Input<'_>) {
        let (message, times) = (input.message(), input.byte().unwrap_or(0));
        for _ in 0..times {
            self.take(now, message.clone());
        }
    }

    fn send(&mut self, input: &mut Input<'_>) {
        let (which, len) = (input.byte().unwrap_or(0), input.len());
        let Some(stream) = self.pick(which) else {
            return;
        };
        let unsent = self.session.stats().unsent;
        let sent = match which & 0x80 {
            0 => self.session.send_slice(stream, &vec![which; len]),
            _ => self.send_chunk(stream, vec![which; len].into()),
        };
        let more = self.session.stats().unsent - unsent;
        assert_eq!(more, sent.unwrap_or(0));
    }

    /// Sends as much as is accepted at once.
    fn send_chunk(&mut self, stream: StreamId, mut bytes: Bytes) -> Result<usize, SendError> {
        let room = self.session.send_capacity(stream)?;
        if room == 0 {
            self.session.request_writable(stream);
        }
        bytes.truncate(room);
        let len = bytes.len();
        self.session.send(stream, Chunk::from(bytes)).map(|()| len)
    }

    fn send_datagram(&mut self, input: &mut Input<'_>) {
        let (which, len) = (input.byte().unwrap_or(0), input.len());
        if let Some(flow) = self.pick(which) {
            let datagram = Chunk::copied(&vec![which; len]);
            // Fails only if it is not a flow, or has ended.
            let _ = self.session.send_datagram(flow, datagram);
        }
    }

    fn recv(&mut self, now: Instant, which: u8, times: usize) {
        let Some(stream) = self.pick(which) else {
            return;
        };
        for _ in 0..times {
            match self.session.recv(stream, now) {
                Ok(Recv::Data(_)) => assert!(!self.ended.contains(&stream), "data after the end"),
                Ok(Recv::Blocked) => {
                    assert!(!self.ended.contains(&stream), "blocked after the end");
                    return;
                }
                Ok(Recv::Finished) | Err(_) => {
                    self.ended.push(stream);
                    return;
                }
            }
        }
    }

    fn finish_or_reset(&mut self, input: &mut Input<'_>) {
        let (which, how) = (input.byte().unwrap_or(0), input.byte().unwrap_or(0));
        let Some(stream) = self.pick(which) else {
            return;
        };
        let reason = Reason::from_code(u16::from(how));
        match how % 4 {
            0 | 1 => self.session.finish(stream),
            2 => self.session.discard(stream),
            _ => self.session.reset(stream, reason, "fuzz"),
        }
    }

    fn release(&mut self, now: Instant, which: u8) {
        if let Some(stream) = self.pick(which) {
            self.handles.retain(|held| *held != stream);
            match which & 0x80 {
                0 => self.session.release(stream, now),
                _ => self.session.reject(stream, Reason::Denied, "fuzz"),
            }
        }
    }

    fn about_the_tunnel(&mut self, now: Instant, which: u8) {
        match which {
            0..32 => self.session.ping(),
            32..64 => self.session.set_allowance(Allowance::Exceeded(usize::MAX)),
            64..96 => self.session.set_allowance(Allowance::Ample),
            96..128 => self.exceed(usize::from(which - 96) * 1_000),
            128..192 => self.session.handle_activity(now),
            192..216 => self.session.set_allowance(Allowance::Scarce),
            216..232 => {
                let share = usize::from(which - 216) * 1_000;
                self.session.set_allowance(Allowance::Share(share));
            }
            232..240 => self.session.drain(),
            240..250 => self.session.shutdown(),
            _ => self.session.handle_closed(now, Reason::Gone, "fuzz"),
        }
    }

    fn exceed(&mut self, share: usize) {
        self.session.set_allowance(Allowance::Exceeded(share));
        let Stats { unread, unsent, .. } = self.session.stats();
        assert!(self.session.memory() <= share || unread + unsent <= share);
    }

    fn timeout(&mut self, now: Instant) {
        for _ in 0..100 {
            if self.session.poll_timeout().is_none_or(|due| due > now) {
                return;
            }
            self.session.handle_timeout(now);
        }
        panic!("poll_timeout stays due");
    }

    fn poll_events(&mut self) {
        for _ in 0..1_000 {
            match self.session.poll_event() {
                Some(Event::Incoming { stream, .. }) => self.handles.push(stream),
                Some(
                    Event::Readable(stream) | Event::Writable(stream) | Event::Established(stream),
                ) => assert!(self.handles.contains(&stream), "told of a released stream"),
                Some(_) => {}
                None => return,
            }
        }
        panic!("poll_event does not end");
    }

    fn check(&self) {
        assert!(self.session.audit(), "what is counted is not what is there");
        let (stats, config) = (self.session.stats(), &self.config);
        assert!(stats.unread <= config.receive_budget + config.datagram_budget);
        let reserve = stats.streams * 4096 + config.max_piece;
        assert!(stats.unsent <= config.send_budget + config.datagram_budget + reserve);
        assert!(stats.streams <= config.max_streams);
        assert_eq!(stats.violations, self.violations);
        // It does not wait for its peer or for a reader for ever.
        let session = &self.session;
        let waits = !session.can_receive() && !session.is_closed();
        assert!(!waits || session.has_transmit() || session.poll_timeout().is_some());
        if self.session.is_closed() {
            assert!(!self.session.has_transmit() && self.session.poll_timeout().is_none());
            for stream in &self.handles {
                assert_eq!(self.session.state(*stream), Some(State::Closed));
            }
        }
    }
}

struct Input<'a> {
    rest: &'a [u8],
    first_id: u32,
}

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    /// Mostly small, sometimes longer than a window.
    fn len(&mut self) -> usize {
        match self.byte().unwrap_or(0) {
            len @ 0..200 => usize::from(len),
            len => (usize::from(len) - 199) * 6_000,
        }
    }

    /// A message with a valid type, about an id that is probably live.
    fn message(&mut self) -> Bytes {
        let [kind, id, port] = [(); 3].map(|()| self.byte().unwrap_or(0));
        let id = self
            .first_id
            .wrapping_sub(1)
            .wrapping_add(u32::from(id % 16));
        let mut message = vec![kind % 9 + 1, kind >> 7];
        message.extend(id.to_be_bytes());
        message.extend([0, port]);
        if kind % 9 + 1 == 0x08 {
            // The credit of a WINDOW: none, all, or any order of magnitude.
            let credit = match port {
                0 => u32::MAX,
                1 => 0,
                _ => u32::from(port) << (port % 25),
            };
            message.extend(credit.to_be_bytes());
        } else {
            let fill = if port & 1 == 0 { 0xff } else { 0 };
            message.resize(8 + self.len(), fill);
        }
        message.into()
    }

    fn raw(&mut self) -> Bytes {
        let len = usize::from(self.byte().unwrap_or(0) % 32).min(self.rest.len());
        let (message, rest) = self.rest.split_at(len);
        self.rest = rest;
        Bytes::copy_from_slice(message)
    }
}
