//! Two sessions joined by two links with a rate, a delay and bounded buffers, on a virtual clock.
//!
//! Uses no clock and no random source: the same seed and calls give the same run.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use kohakuriver_tunnel::session::{
    Config, Event, Instant, Reason, Role, Session, Transmit, Version, Violation,
};
use kohakuriver_tunnel::wire::{ClientId, Frame, Kind};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Side {
    Opener,
    Acceptor,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Opener, Self::Acceptor];

    pub(super) fn other(self) -> Self {
        match self {
            Self::Opener => Self::Acceptor,
            Self::Acceptor => Self::Opener,
        }
    }
}

/// One direction of the transport.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinkConfig {
    pub(super) bytes_per_second: u64,
    pub(super) delay: Duration,
    /// Maximum extra delay of a message; the order is kept.
    pub(super) jitter: Duration,
    /// Bytes that the sender's socket accepts before they are on the wire; exceeded by at most one
    /// message.
    pub(super) send_buffer: usize,
    /// Bytes that may be on the wire or wait to be received; exceeded by at most `send_buffer`.
    pub(super) pipe: usize,
}

impl LinkConfig {
    /// Room for the bandwidth-delay product and a small socket buffer.
    pub(super) fn new(bits_per_second: u64, delay: Duration) -> Self {
        let bytes_per_second = bits_per_second / 8;
        let product = u128::from(bytes_per_second) * delay.as_nanos() / 1_000_000_000;
        Self {
            bytes_per_second,
            delay,
            jitter: Duration::ZERO,
            send_buffer: 128 << 10,
            pipe: usize::try_from(product).unwrap() + (512 << 10),
        }
    }
}

#[derive(Debug)]
enum Packet {
    Message(Bytes),
    Probe,
    ProbeAnswer,
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) config: LinkConfig,
    /// When each message leaves the socket, and its length.
    unsent: VecDeque<(u64, usize)>,
    unsent_bytes: usize,
    flight: VecDeque<(u64, Packet)>,
    /// Bytes of messages not yet received, including those in the socket.
    held_bytes: usize,
    free_at: u64,
    /// Accepts everything and delivers nothing.
    pub(super) silent: bool,
}

impl Link {
    fn new(config: LinkConfig) -> Self {
        Self {
            config,
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            flight: VecDeque::new(),
            held_bytes: 0,
            free_at: 0,
            silent: false,
        }
    }

    fn settle(&mut self, now: u64) {
        while let Some(&(departs, len)) = self.unsent.front() {
            if departs > now {
                break;
            }
            self.unsent.pop_front();
            self.unsent_bytes -= len;
        }
    }

    fn has_room(&self) -> bool {
        self.unsent_bytes < self.config.send_buffer
            && self.held_bytes - self.unsent_bytes <= self.config.pipe
    }

    fn push(&mut self, now: u64, packet: Packet, jitter: u64) {
        if self.silent {
            return;
        }
        let len = packet.len();
        let nanos = len as u64 * 1_000_000_000 / self.config.bytes_per_second.max(1);
        self.free_at = self.free_at.max(now) + nanos.max(1);
        self.unsent.push_back((self.free_at, len));
        self.unsent_bytes += len;
        self.held_bytes += len;
        let delay = u64::try_from(self.config.delay.as_nanos()).unwrap() + jitter;
        let last = self.flight.back().map_or(0, |(at, _)| *at);
        let arrives = (self.free_at + delay).max(last);
        self.flight.push_back((arrives, packet));
    }

    fn pop(&mut self, now: u64) -> Option<Packet> {
        self.flight.front().filter(|(at, _)| *at <= now)?;
        let (_, packet) = self.flight.pop_front()?;
        self.held_bytes -= packet.len();
        Some(packet)
    }

    /// Messages transmitted and not received.
    pub(super) fn in_flight(&self) -> usize {
        self.flight.len()
    }

    fn clear(&mut self) {
        *self = Self::new(self.config);
        self.silent = true;
    }
}

impl Packet {
    /// Including the approximate overhead of WebSocket and TCP/IP.
    fn len(&self) -> usize {
        match self {
            Self::Message(message) => message.len() + 14,
            Self::Probe | Self::ProbeAnswer => 14,
        }
    }
}

/// Data passed in one direction for one client id.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) data_sent: u64,
    pub(super) data_received: u64,
    pub(super) credit_sent: u64,
    pub(super) credit_received: u64,
    pub(super) closes: u32,
    pub(super) errors: u32,
    /// Messages after an ERROR.
    pub(super) after_error: u32,
}

/// One end and the link from it.
#[derive(Debug)]
pub(super) struct End {
    pub(super) session: Session,
    pub(super) link: Link,
    pub(super) violations: Vec<Violation>,
    /// Data sent by this end, by client id.
    pub(super) sent: HashMap<ClientId, Flow>,
    pub(super) messages: u64,
    pub(super) probes: u64,
}

#[derive(Debug)]
pub(super) struct Network {
    pub(super) opener: End,
    pub(super) acceptor: End,
    /// Nanoseconds.
    now: u64,
    random: u64,
    /// Counts data by client id.
    pub(super) tapped: bool,
    /// Messages that a receiver handles before the other end runs.
    pub(super) batch: usize,
}

/// Called with every event of either end.
pub(super) trait App {
    fn on_event(&mut self, side: Side, session: &mut Session, event: Event, now: Instant);
}

impl<F: FnMut(Side, &mut Session, Event, Instant)> App for F {
    fn on_event(&mut self, side: Side, session: &mut Session, event: Event, now: Instant) {
        self(side, session, event, now);
    }
}

/// Ignores every event.
pub(super) fn ignore(_: Side, _: &mut Session, _: Event, _: Instant) {}

impl Network {
    pub(super) fn new(
        version: Version,
        configs: [Config; 2],
        links: [LinkConfig; 2],
        seed: u64,
    ) -> Self {
        let [opener, acceptor] = configs;
        let [out, back] = links;
        let end = |role, config, link| End {
            session: Session::new(role, version, config, Instant::default()),
            link: Link::new(link),
            violations: Vec::new(),
            sent: HashMap::new(),
            messages: 0,
            probes: 0,
        };
        Self {
            opener: end(Role::Opener, opener, out),
            acceptor: end(Role::Acceptor, acceptor, back),
            now: 0,
            random: seed | 1,
            tapped: false,
            batch: 64,
        }
    }

    /// The same configuration at both ends and the same link both ways.
    pub(super) fn symmetric(version: Version, config: Config, link: LinkConfig) -> Self {
        Self::new(version, [config.clone(), config], [link; 2], 1)
    }

    pub(super) fn now(&self) -> Instant {
        Instant::from_micros(self.now / 1000)
    }

    pub(super) fn end(&self, side: Side) -> &End {
        match side {
            Side::Opener => &self.opener,
            Side::Acceptor => &self.acceptor,
        }
    }

    pub(super) fn end_mut(&mut self, side: Side) -> &mut End {
        match side {
            Side::Opener => &mut self.opener,
            Side::Acceptor => &mut self.acceptor,
        }
    }

    pub(super) fn session(&mut self, side: Side) -> &mut Session {
        &mut self.end_mut(side).session
    }

    /// Advances the clock by `span`.
    pub(super) fn run_for(&mut self, span: Duration, app: &mut impl App) {
        let until = self.now + u64::try_from(span.as_nanos()).unwrap();
        while self.step(until, app) {}
        for side in Side::BOTH {
            let audit = self.end(side).session.audit();
            assert!(audit, "{side:?} counts what is not there");
        }
    }

    /// Runs until nothing more happens by itself, for at most `span`. Returns whether that was
    /// reached.
    pub(super) fn run_until_silent(&mut self, span: Duration, app: &mut impl App) -> bool {
        let until = self.now + u64::try_from(span.as_nanos()).unwrap();
        while self.step(until, app) {}
        self.now < until
    }

    /// Ends the transport: messages on it are lost, and both ends are informed.
    pub(super) fn cut(&mut self) {
        let now = self.now();
        for side in Side::BOTH {
            let end = self.end_mut(side);
            end.link.clear();
            end.session.handle_closed(now, Reason::Gone, "cut");
        }
    }

    /// The transport carries nothing any more and informs nobody.
    pub(super) fn go_silent(&mut self) {
        for side in Side::BOTH {
            self.end_mut(side).link.clear();
        }
    }

    /// Handles everything due now, then advances to the next event. False at `until`, or when
    /// nothing is due.
    fn step(&mut self, until: u64, app: &mut impl App) -> bool {
        self.settle(app);
        match self.next_moment() {
            Some(at) if at <= until => {
                self.now = at.max(self.now);
                true
            }
            Some(_) => {
                self.now = until;
                self.settle(app);
                false
            }
            None => false,
        }
    }

    /// Runs both ends as far as possible at this time.
    pub(super) fn settle(&mut self, app: &mut impl App) {
        loop {
            let first = match self.next_random() & 1 {
                0 => Side::Opener,
                _ => Side::Acceptor,
            };
            let mut moved = false;
            for side in [first, first.other()] {
                moved |= self.transmit(side);
                moved |= self.receive(side);
                moved |= self.timeout(side);
                moved |= self.tell(side, app);
                moved |= self.transmit(side);
            }
            if !moved {
                return;
            }
        }
    }

    fn transmit(&mut self, side: Side) -> bool {
        let (now, at, tapped) = (self.now, self.now(), self.tapped);
        let jitter = self.jitter(side);
        let end = self.end_mut(side);
        end.link.settle(now);
        let mut moved = false;
        while end.link.has_room() {
            let packet = match end.session.poll_transmit(at) {
                Some(Transmit::Message(message)) => {
                    end.messages += 1;
                    if tapped {
                        end.tap(&message);
                    }
                    Packet::Message(message)
                }
                Some(Transmit::Ping) => {
                    end.probes += 1;
                    Packet::Probe
                }
                Some(other) => panic!("unknown: {other:?}"),
                None => {
                    assert!(!end.session.has_transmit(), "nothing came of has_transmit");
                    break;
                }
            };
            end.link.push(now, packet, jitter);
            moved = true;
        }
        moved
    }

    /// Handles arrived messages, while the session can receive.
    fn receive(&mut self, side: Side) -> bool {
        let (now, at, tapped) = (self.now, self.now(), self.tapped);
        let mut taken = 0;
        while taken < self.batch && self.end(side).session.can_receive() {
            let peer = self.end_mut(side.other());
            let Some(packet) = peer.link.pop(now) else {
                break;
            };
            taken += 1;
            match packet {
                Packet::Message(message) => {
                    if tapped {
                        peer.tap_received(&message);
                    }
                    let end = self.end_mut(side);
                    if let Err(violation) = end.session.handle_message(at, message) {
                        end.violations.push(violation);
                    }
                }
                Packet::Probe => {
                    let end = self.end_mut(side);
                    end.link.push(now, Packet::ProbeAnswer, 0);
                }
                Packet::ProbeAnswer => self.session(side).handle_activity(at),
            }
        }
        taken > 0
    }

    fn timeout(&mut self, side: Side) -> bool {
        let at = self.now();
        let session = self.session(side);
        let due = session.poll_timeout().is_some_and(|due| due <= at);
        if due {
            session.handle_timeout(at);
            let again = session.poll_timeout().filter(|due| *due <= at);
            assert_eq!(again, None, "still due after handle_timeout");
        }
        due
    }

    fn tell(&mut self, side: Side, app: &mut impl App) -> bool {
        let at = self.now();
        let session = self.session(side);
        let mut told = false;
        while let Some(event) = session.poll_event() {
            app.on_event(side, session, event, at);
            told = true;
        }
        told
    }

    fn next_moment(&self) -> Option<u64> {
        Side::BOTH
            .into_iter()
            .flat_map(|side| {
                let (end, peer) = (self.end(side), self.end(side.other()));
                let arrival = peer.session.can_receive().then_some(());
                let arrival = arrival.and_then(|()| end.link.flight.front().map(|(at, _)| *at));
                let full = end.session.has_transmit() && !end.link.has_room();
                let room = full.then(|| end.link.unsent.front().map(|(at, _)| *at));
                let timeout = end.session.poll_timeout();
                // Not before the microsecond has passed.
                let timeout = timeout.map(|at| at.as_micros().saturating_mul(1000));
                [arrival, room.flatten(), timeout]
            })
            .flatten()
            .min()
    }

    fn jitter(&mut self, side: Side) -> u64 {
        let jitter = self.end(side).link.config.jitter.as_nanos();
        match u64::try_from(jitter).unwrap() {
            0 => 0,
            most => self.next_random() % most,
        }
    }

    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

impl End {
    fn tap(&mut self, message: &Bytes) {
        let frame = Frame::decode(message.clone()).expect("a session sends only frames");
        Frame::decode_strict(message.clone()).expect("and they are well formed");
        let flow = self.sent.entry(frame.id()).or_default();
        flow.after_error += u32::from(flow.errors > 0);
        match &frame {
            Frame::Data { payload, .. } => flow.data_sent += payload.len() as u64,
            Frame::Window { credit, .. } => flow.credit_sent += u64::from(*credit),
            Frame::Close { .. } => flow.closes += 1,
            Frame::Error { .. } => flow.errors += 1,
            _ => {}
        }
    }

    fn tap_received(&mut self, message: &Bytes) {
        let frame = Frame::decode(message.clone()).expect("a session sends only frames");
        let flow = self.sent.entry(frame.id()).or_default();
        match (frame.kind(), &frame) {
            (Kind::Data, frame) => flow.data_received += frame.payload().len() as u64,
            (_, Frame::Window { credit, .. }) => flow.credit_received += u64::from(*credit),
            _ => {}
        }
    }
}
