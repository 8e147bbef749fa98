//! Two links whose transports come and go, with recorded and forged OPENs, or with a hostile peer.
//!
//! Input: one byte that chooses bounds and whether there is a hostile peer, then operations of one
//! byte with one byte of argument. A forged message has its length and its bytes behind that.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use kohakuriver_tunnel::resume::{
    Accepts, Config, Due, EndReason, Identity, Link, Message, Open, Received, Secret, State,
    Takeover, counts, is_layer,
};
use kohakuriver_tunnel::session::Instant;

/// For any input: no panic, the ring's bound holds, `poll_output` terminates. Without a hostile
/// peer, each end hands up a prefix of what the other sent, no OPEN of others changes anything, and
/// with a good transport everything arrives.
pub fn resume(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let mut input = rest;
    let mut world = World::new(first);
    while let Some(op) = byte(&mut input) {
        let argument = byte(&mut input).unwrap_or(0);
        world.step(op, argument, &mut input);
        world.check();
    }
    world.wind_up();
}

fn byte(input: &mut &[u8]) -> Option<u8> {
    let (&first, rest) = input.split_first()?;
    *input = rest;
    Some(first)
}

/// One end, and what was handed up there.
struct End {
    link: Link,
    /// The transport it is on.
    on: Option<usize>,
    /// Counted messages that it took, and that it was handed.
    sent: Vec<Bytes>,
    handed: usize,
    /// Server: the attempt of the last OPEN, and whether a message came behind it.
    accepted: u32,
    proved: bool,
}

/// Messages on their way, either way.
#[derive(Default)]
struct Transport {
    up: VecDeque<Bytes>,
    down: VecDeque<Bytes>,
}

struct World {
    hostile: bool,
    config: Config,
    now: Instant,
    client: End,
    server: Option<End>,
    transports: Vec<Transport>,
    recorded: Vec<Open>,
    secrets: u8,
    number: u32,
}

impl World {
    fn new(first: u8) -> Self {
        let ring = match first >> 6 {
            0 => 1 << 20,
            1 => 5_000,
            2 => 500,
            _ => 1,
        };
        let config = Config::default()
            .with_ring_min(ring)
            .with_ring_max(ring * (1 + usize::from(first & 2)))
            .with_keep(Duration::from_secs(u64::from(first >> 2 & 7) * 10));
        let now = Instant::default();
        Self {
            hostile: first & 1 != 0,
            client: End::new(Link::client(config.clone()), None),
            config,
            now,
            server: None,
            transports: Vec::new(),
            recorded: Vec::new(),
            secrets: 0,
            number: 0,
        }
    }

    fn step(&mut self, op: u8, argument: u8, input: &mut &[u8]) {
        let up = op & 0x80 == 0;
        let times = usize::from(argument) + 1;
        match op & 0x0f {
            0 => self.dial(),
            1 | 2 => (0..times).for_each(|_| self.deliver(up)),
            3 => self.send(up, usize::from(argument) * 8),
            4 => (0..times).for_each(|_| self.send(up, 0)),
            5 => {
                if let Some(end) = self
                    .end(up)
                    .filter(|end| end.link.accepts() != Accepts::Nothing)
                {
                    let datagram = Bytes::from(vec![3, 1, 0, 0, 0, 1, 0, 0, argument]);
                    let _ = end.link.sent(&datagram);
                    self.write(up, Some(datagram));
                }
            }
            6 | 7 => (0..times).for_each(|_| self.write(up, None)),
            8 => {
                let now = self.now;
                if let Some(end) = self.end(up) {
                    end.link.detach(now);
                    end.on = None;
                }
            }
            9 => {
                self.now = self.now + Duration::from_millis(u64::from(argument) * 250);
                self.timeouts();
            }
            10 => self.forge(argument),
            11 => {
                if let Some(end) = self.end(up) {
                    match argument {
                        0..8 => end.link.end(EndReason::Closed, "the end"),
                        8..64 => end.link.set_idle(argument & 1 == 0),
                        _ => end.link.set_ring_limit(usize::from(argument) << 8),
                    }
                }
            }
            12 if self.hostile => {
                let len = usize::from(argument).min(input.len());
                let (message, rest) = input.split_at(len);
                *input = rest;
                self.receive(up, Bytes::copy_from_slice(message));
            }
            _ => {
                // A transport that works for a while.
                for _ in 0..times {
                    self.write(up, None);
                    self.deliver(up);
                    self.write(!up, None);
                    self.deliver(!up);
                }
            }
        }
    }

    fn end(&mut self, client: bool) -> Option<&mut End> {
        match client {
            true => Some(&mut self.client),
            false => self.server.as_mut(),
        }
    }

    /// The client gives its transport up for another.
    fn dial(&mut self) {
        self.client.link.attach(self.now);
        if self.client.link.state() == State::Ended {
            return;
        }
        self.client.on = Some(self.transports.len());
        self.transports.push(Transport::default());
    }

    /// A counted message of the session, with its number.
    fn send(&mut self, up: bool, len: usize) {
        self.number += 1;
        let mut bytes = vec![3, 0, 0, 0, 0, 1, 0, 0];
        bytes.extend(self.number.to_be_bytes());
        bytes.resize(12 + len, 0x5a);
        let message = Bytes::from(bytes);
        let Some(end) = self
            .end(up)
            .filter(|end| end.link.accepts() == Accepts::All)
        else {
            return;
        };
        if end.link.sent(&message).is_ok() {
            end.sent.push(message.clone());
            self.write(up, Some(message));
        }
    }

    /// One message of the output, or the given one, goes to the transport.
    fn write(&mut self, up: bool, message: Option<Bytes>) {
        let Some(end) = self.end(up) else { return };
        let Some(message) = message.or_else(|| end.link.poll_output()) else {
            return;
        };
        let Some(on) = end.on else { return };
        if let Ok(Message::Open(open)) = Message::decode(&message) {
            self.recorded.push(open);
        }
        let transport = &mut self.transports[on];
        match up {
            true => transport.up.push_back(message),
            false => transport.down.push_back(message),
        }
    }

    /// The next message on the newest transport that has one arrives.
    fn deliver(&mut self, up: bool) {
        let waiting = |t: &&mut Transport| match up {
            true => !t.up.is_empty(),
            false => !t.down.is_empty(),
        };
        let mut newest = self.transports.iter_mut().enumerate().rev();
        let Some((on, transport)) = newest.find(|(_, t)| waiting(t)) else {
            return;
        };
        if !up {
            let message = transport.down.pop_front().unwrap();
            if self.client.on == Some(on) {
                self.receive(true, message);
            }
            return;
        }
        let message = transport.up.pop_front().unwrap();
        match &self.server {
            Some(server) if server.on == Some(on) => self.receive(false, message),
            _ => self.open(on, &message),
        }
    }

    /// What a server does with a message of a transport that is not bound.
    fn open(&mut self, on: usize, message: &Bytes) {
        let Ok(Message::Open(open)) = Message::decode(message) else {
            return;
        };
        self.secrets = self.secrets.wrapping_add(1);
        let next = Secret::new([self.secrets; 16]);
        if open.tunnel == 0 {
            if self.client.on != Some(on) {
                return self.late(on, &open);
            }
            let identity = Identity {
                instance: 1,
                tunnel: 1 + u64::from(self.secrets),
            };
            let link = Link::server(self.config.clone(), identity, &open, next, self.now);
            self.server = Some(End::new(link, Some(on)));
            return;
        }
        let Some(server) = &mut self.server else {
            return;
        };
        match server.link.takeover(&open, next, self.now) {
            Err(Takeover::Refused(refusal)) => {
                let told = refusal.to_message();
                self.transports[on].down.push_back(told);
            }
            Err(Takeover::Ended(_)) => {
                // Or nothing got through for as long as it is kept, which may be no time at all.
                let orderly = server.link.ended().is_some_and(|ended| {
                    matches!(ended.reason, EndReason::Closed | EndReason::Expired)
                });
                assert!(self.hostile || orderly, "an honest client has no gap");
                server.on = Some(on);
            }
            Err(other) => panic!("unknown: {other:?}"),
            Ok(()) => {
                server.on = Some(on);
                (server.accepted, server.proved) = (open.attempt, false);
            }
        }
    }

    /// A new tunnel whose client has given its transport up: nothing that is still under way on it
    /// shows a client.
    fn late(&mut self, on: usize, open: &Open) {
        let identity = Identity {
            instance: 1,
            tunnel: u64::MAX,
        };
        let secret = Secret::new([0xcc; 16]);
        let mut link = Link::server(self.config.clone(), identity, open, secret, self.now);
        for message in self.transports[on].up.drain(..) {
            link.handle_message(self.now, message);
            assert!(!link.is_confirmed() && link.audit(), "{link:?}");
        }
    }

    /// `client`: which end receives.
    fn receive(&mut self, client: bool, message: Bytes) {
        let (now, hostile) = (self.now, self.hostile);
        let expected = match client {
            true => self.server.as_ref().map_or(&[][..], |server| &server.sent),
            false => &self.client.sent,
        };
        let end = match client {
            true => &self.client,
            false => match &self.server {
                Some(server) => server,
                None => return,
            },
        };
        let next = expected.get(end.handed).cloned();
        let lost = !client
            || self
                .server
                .as_ref()
                .is_none_or(|s| s.link.ended().is_some());
        let Some(end) = self.end(client) else { return };
        end.proved = true;
        match end.link.handle_message(now, message) {
            Received::Deliver(message) if counts(&message) => {
                assert!(hostile || next == Some(message), "not the next one");
                end.handed += 1;
            }
            Received::Deliver(message) => assert!(!is_layer(&message)),
            Received::Handled | Received::Attached => {}
            Received::Violation(violation) => {
                assert!(hostile, "{violation}");
                end.link.detach(now);
                end.on = None;
            }
            Received::Retry => end.on = None,
            Received::Ended(ended) => {
                let fault = match ended.reason {
                    EndReason::Gap | EndReason::Protocol | EndReason::Overflow => true,
                    EndReason::Unknown => ended.by_peer && !lost,
                    _ => false,
                };
                assert!(hostile || !fault, "{ended:?}");
            }
            other => panic!("unknown: {other:?}"),
        }
    }

    /// A recorded OPEN, or one with a wrong secret, on a transport of somebody else.
    fn forge(&mut self, argument: u8) {
        let (now, last) = (self.now, self.recorded.len().saturating_sub(1));
        let Some(server) = &mut self.server else {
            return;
        };
        let recorded = self.recorded.get(usize::from(argument) % (last + 1));
        let Some(mut open) = recorded.copied() else {
            return;
        };
        if argument & 1 != 0 {
            open.secret = Secret::new([0xee; 16]);
            open.attempt = u32::MAX;
        } else if open.tunnel == 0 || open.attempt > server.accepted {
            // It may have arrived before the client's own.
            return;
        } else if server.proved && !self.hostile && argument & 2 != 0 {
            // The client has shown that it has a later secret.
            open.attempt = u32::MAX;
        }
        let before = format!("{:?}", server.link);
        let outcome = server.link.takeover(&open, Secret::new([0xdd; 16]), now);
        assert!(matches!(outcome, Err(Takeover::Refused(_))), "{outcome:?}");
        assert_eq!(format!("{:?}", server.link), before);
    }

    fn timeouts(&mut self) {
        let now = self.now;
        let ends = [Some(&mut self.client), self.server.as_mut()];
        for end in ends.into_iter().flatten() {
            for _ in 0..3 {
                let is_due = end.link.poll_timeout().is_some_and(|due| due <= now);
                if is_due && end.link.handle_timeout(now) == Some(Due::NotOpened) {
                    end.on = None;
                }
            }
            let due = end.link.poll_timeout();
            assert!(due.is_none_or(|due| due > now), "a busy loop");
        }
    }

    fn check(&self) {
        let bound = (self.config.ring_max + (4 << 20)) + (1 << 20);
        for end in [Some(&self.client), self.server.as_ref()]
            .into_iter()
            .flatten()
        {
            let stats = end.link.stats();
            assert!(end.link.audit(), "{:?}", end.link);
            assert!(end.link.ring_bytes() <= bound);
            assert!(stats.acked <= stats.sent);
            assert_eq!(stats.received, end.handed as u64);
        }
        let confirmed = self.server.as_ref().map(|server| &server.link);
        if let Some(link) = confirmed.filter(|link| link.is_confirmed() && !self.hostile) {
            assert_eq!(link.identity(), self.client.link.identity());
        }
    }

    /// With a transport that works, everything arrives, and then an orderly end.
    fn wind_up(&mut self) {
        if self.hostile || self.client.link.state() == State::Ended {
            return;
        }
        self.dial();
        self.client.link.end(EndReason::Closed, "");
        for _ in 0..100_000 {
            let left = self.number;
            self.write(true, None);
            self.deliver(true);
            self.write(false, None);
            self.deliver(false);
            let over = self.client.link.state() == State::Ended;
            if over
                && self
                    .transports
                    .iter()
                    .all(|t| t.up.is_empty() && t.down.is_empty())
            {
                break;
            }
            assert_eq!(left, self.number);
        }
        let ended = self.client.link.ended().expect("it ends");
        let server = self.server.as_ref();
        if let Some(server) = server.filter(|_| !ended.by_peer && ended.reason == EndReason::Closed)
        {
            assert_eq!(server.handed, self.client.sent.len(), "{ended:?}");
        }
    }
}

impl End {
    fn new(link: Link, on: Option<usize>) -> Self {
        Self {
            link,
            on,
            sent: Vec::new(),
            handed: 0,
            accepted: 0,
            proved: false,
        }
    }
}
