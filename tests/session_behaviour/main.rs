//! The behaviour of a session, one situation at a time.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

mod credit;
mod datagrams;
mod ends;
mod hostile;
mod limits;
mod room;
mod tunnel;
mod v1;

use std::time::Duration;

use bytes::Bytes;
use kohakuriver_tunnel::session::{
    Allowance, Config, EARLY_DATA, Event, INITIAL_WINDOW, Instant, OpenError, Reason, Recv, Reset,
    Role, SendError, Session, State, StreamError, StreamId, Transmit, Version, Violation,
};
use kohakuriver_tunnel::wire::{Chunk, ClientId, DecodeError, Frame, Kind, Proto};

const BOTH: [Version; 2] = [Version::V1, Version::V2];
const WINDOW: usize = INITIAL_WINDOW as usize;

fn at(millis: u64) -> Instant {
    Instant::from_micros(millis * 1000)
}

fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    change(&mut config);
    config
}

/// Two sessions. Messages pass between them only in [`Pair::run`].
struct Pair {
    opener: Session,
    acceptor: Session,
    now: Instant,
}

impl Pair {
    fn new(version: Version) -> Self {
        Self::with(version, Config::default())
    }

    fn with(version: Version, config: Config) -> Self {
        let now = Instant::default();
        Self {
            opener: Session::new(Role::Opener, version, config.clone(), now),
            acceptor: Session::new(Role::Acceptor, version, config, now),
            now,
        }
    }

    /// Passes messages both ways until there are none. Two honest ends never violate the protocol.
    fn run(&mut self) {
        let mut moved = true;
        while moved {
            moved = pass(&mut self.opener, &mut self.acceptor, self.now);
            moved |= pass(&mut self.acceptor, &mut self.opener, self.now);
        }
    }

    /// Advances the clock and handles the timeouts on the way.
    fn wait(&mut self, span: Duration) {
        let until = self.now + span;
        loop {
            let due = [self.opener.poll_timeout(), self.acceptor.poll_timeout()];
            let due = due.into_iter().flatten().min();
            let Some(due) = due.filter(|due| *due <= until) else {
                break;
            };
            self.now = due.max(self.now);
            for session in [&mut self.opener, &mut self.acceptor] {
                if session.poll_timeout().is_some_and(|due| due <= self.now) {
                    session.handle_timeout(self.now);
                }
            }
            self.run();
        }
        self.now = until;
    }

    /// An accepted stream: its handle at the opener and at the acceptor.
    fn stream(&mut self) -> (StreamId, StreamId) {
        let opened = self.opener.open_tcp(80, self.now).unwrap();
        self.run();
        let accepted = incoming(&mut self.acceptor);
        self.acceptor.accept(accepted, self.now).unwrap();
        self.run();
        (opened, accepted)
    }

    fn flow(&mut self) -> (StreamId, StreamId) {
        let opened = self.opener.open_udp(53, self.now).unwrap();
        self.run();
        let accepted = incoming(&mut self.acceptor);
        self.acceptor.accept(accepted, self.now).unwrap();
        self.run();
        (opened, accepted)
    }
}

fn pass(from: &mut Session, to: &mut Session, now: Instant) -> bool {
    let mut moved = false;
    while to.can_receive() {
        match from.poll_transmit(now) {
            Some(Transmit::Message(message)) => to.handle_message(now, message).unwrap(),
            Some(Transmit::Ping) => from.handle_activity(now),
            Some(other) => panic!("unknown: {other:?}"),
            None => break,
        }
        moved = true;
    }
    moved
}

/// The next stream that the peer requests. Skips other events.
fn incoming(session: &mut Session) -> StreamId {
    loop {
        let event = session.poll_event().expect("an incoming stream");
        if let Event::Incoming { stream, .. } = event {
            return stream;
        }
    }
}

fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

/// Everything that can be read now, and the final result.
fn drain(
    session: &mut Session,
    stream: StreamId,
    now: Instant,
) -> (Vec<u8>, Result<Recv, StreamError>) {
    let mut all = Vec::new();
    loop {
        match session.recv(stream, now) {
            Ok(Recv::Data(data)) => all.extend_from_slice(&data),
            end => return (all, end),
        }
    }
}

fn fill(session: &mut Session, stream: StreamId) -> usize {
    let mut total = 0;
    while let Ok(room @ 1..) = session.send_capacity(stream) {
        session.send(stream, Chunk::copied(&vec![7; room])).unwrap();
        total += room;
    }
    session.request_writable(stream);
    total
}

fn messages(session: &mut Session, now: Instant) -> Vec<Frame> {
    let mut all = Vec::new();
    while let Some(transmit) = session.poll_transmit(now) {
        if let Transmit::Message(message) = transmit {
            all.push(Frame::decode(message).unwrap());
        }
    }
    // A v2 end may measure the round trip at any time.
    all.retain(|frame| frame.kind() != Kind::Ping);
    all
}

fn say(session: &mut Session, now: Instant, frame: Frame) -> Result<(), Violation> {
    session.handle_message(now, frame.to_bytes())
}

fn connect(id: u32) -> Frame {
    Frame::Connect {
        proto: Proto::Tcp,
        id: ClientId(id),
        port: 80,
    }
}

/// Asks for a stream and accepts it.
fn accepted(acceptor: &mut Session, id: u32) -> StreamId {
    say(acceptor, at(0), connect(id)).unwrap();
    let stream = incoming(acceptor);
    acceptor.accept(stream, at(0)).unwrap();
    stream
}

fn data(id: u32, payload: impl Into<Bytes>) -> Frame {
    Frame::Data {
        proto: Proto::Tcp,
        id: ClientId(id),
        payload: payload.into(),
    }
}

fn close(id: u32) -> Frame {
    Frame::Close {
        proto: Proto::Tcp,
        id: ClientId(id),
    }
}

fn error(id: u32, code: u16, text: &'static [u8]) -> Frame {
    Frame::Error {
        proto: Proto::Tcp,
        id: ClientId(id),
        code,
        text: Bytes::from_static(text),
    }
}

fn reason(outcome: Result<Recv, StreamError>) -> Reason {
    match outcome {
        Err(StreamError::Reset(reset)) => reset.reason,
        other => panic!("not a reset: {other:?}"),
    }
}
