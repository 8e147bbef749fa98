//! The session: the cost of one message, and of one stream, at an end with one stream or ten
//! thousand.

use std::hint::black_box;

use bytes::Bytes;
use kohakuriver_tunnel::session::{
    Config, Event, Instant, Recv, Role, Session, StreamId, Transmit, Version,
};
use kohakuriver_tunnel::wire::Chunk;

use super::{CALLS, Case};

/// Streams that are open, and bytes of the payload.
const MESSAGES: &[&str] = &["1 x 64", "1 x 65536", "10000 x 64", "10000 x 65536"];
const STREAMS: &[&str] = &["1", "10000"];

pub(super) const CASES: &[Case] = &[
    Case {
        function: "session_send",
        budget: 1_200,
        inputs: MESSAGES,
    },
    Case {
        function: "session_receive",
        budget: 1_600,
        inputs: MESSAGES,
    },
    Case {
        function: "session_open",
        budget: 1_450,
        inputs: STREAMS,
    },
    Case {
        function: "session_accept",
        budget: 1_900,
        inputs: STREAMS,
    },
    Case {
        function: "session_close",
        budget: 3_000,
        inputs: STREAMS,
    },
];

mod counted {
    use super::*;

    /// Turns bytes of the application into a message.
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(super) fn session_send(
        session: &mut Session,
        stream: StreamId,
        chunk: Chunk,
        now: Instant,
    ) -> Option<Transmit> {
        session.send(stream, chunk).ok()?;
        session.poll_transmit(now)
    }

    /// Turns a message into bytes of the application, and returns credit.
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(super) fn session_receive(
        session: &mut Session,
        message: Bytes,
        now: Instant,
    ) -> (Option<Recv>, Option<Transmit>) {
        let _ = session.handle_message(now, message);
        let received = match session.poll_event() {
            Some(Event::Readable(stream)) => session.recv(stream, now).ok(),
            _ => None,
        };
        (received, session.poll_transmit(now))
    }

    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(super) fn session_open(session: &mut Session, now: Instant) -> Option<Transmit> {
        session.open_tcp(80, now).ok()?;
        session.poll_transmit(now)
    }

    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(super) fn session_accept(
        session: &mut Session,
        connect: Bytes,
        now: Instant,
    ) -> Option<Transmit> {
        let _ = session.handle_message(now, connect);
        if let Some(Event::Incoming { stream, .. }) = session.poll_event() {
            session.accept(stream, now).ok()?;
        }
        session.poll_transmit(now)
    }

    /// Both directions of a stream end, and its handle is released.
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(super) fn session_close(
        session: &mut Session,
        stream: StreamId,
        close: Bytes,
        now: Instant,
    ) -> Option<Transmit> {
        let _ = session.handle_message(now, close);
        session.finish(stream);
        let answer = session.poll_transmit(now);
        session.release(stream, now);
        while session.poll_event().is_some() {}
        answer
    }
}

/// An opener and an acceptor with streams between them.
struct Pair {
    opener: Session,
    acceptor: Session,
    /// The streams by the opener's and the acceptor's handles.
    streams: Vec<(StreamId, StreamId)>,
    micros: u64,
}

impl Pair {
    fn with_streams(count: usize) -> Self {
        let end = |role| Session::new(role, Version::V2, Config::default(), Instant::default());
        let mut pair = Self {
            opener: end(Role::Opener),
            acceptor: end(Role::Acceptor),
            streams: Vec::new(),
            micros: 0,
        };
        for _ in 0..count {
            let stream = pair.open();
            pair.streams.push(stream);
        }
        pair
    }

    fn open(&mut self) -> (StreamId, StreamId) {
        let now = self.now();
        let near = self.opener.open_tcp(80, now).unwrap();
        self.exchange();
        let far = loop {
            if let Some(Event::Incoming { stream, .. }) = self.acceptor.poll_event() {
                break stream;
            }
        };
        self.acceptor.accept(far, now).unwrap();
        self.exchange();
        self.forget_events();
        (near, far)
    }

    fn now(&mut self) -> Instant {
        self.micros += 10;
        Instant::from_micros(self.micros)
    }

    fn exchange(&mut self) {
        let now = self.now();
        loop {
            let sent = message(self.opener.poll_transmit(now));
            let answered = message(self.acceptor.poll_transmit(now));
            if sent.is_none() && answered.is_none() {
                return;
            }
            if let Some(sent) = sent {
                self.acceptor.handle_message(now, sent).unwrap();
            }
            if let Some(answered) = answered {
                self.opener.handle_message(now, answered).unwrap();
            }
        }
    }

    fn forget_events(&mut self) {
        while self.opener.poll_event().is_some() {}
        while self.acceptor.poll_event().is_some() {}
    }
}

fn message(transmit: Option<Transmit>) -> Option<Bytes> {
    match transmit {
        Some(Transmit::Message(message)) => Some(message),
        _ => None,
    }
}

/// Calls the function `CALLS` times. Preparation and clean-up of each call are not counted.
pub(super) fn call(function: &str, input: &str) {
    let (streams, len) = input.split_once(" x ").unwrap_or((input, "0"));
    let payload = vec![0x5a; len.parse().unwrap()];
    let mut pair = Pair::with_streams(streams.parse().unwrap());
    for turn in 0..CALLS as usize {
        let (near, far) = pair.streams[turn % pair.streams.len()];
        let now = pair.now();
        match function {
            "session_send" | "session_receive" => {
                let chunk = black_box(Chunk::copied(&payload));
                let sent = if function == "session_send" {
                    counted::session_send(&mut pair.opener, near, chunk, now)
                } else {
                    pair.opener.send(near, chunk).unwrap();
                    pair.opener.poll_transmit(now)
                };
                let sent = message(black_box(sent)).unwrap();
                let (received, granted) = if function == "session_receive" {
                    counted::session_receive(&mut pair.acceptor, sent, now)
                } else {
                    pair.acceptor.handle_message(now, sent).unwrap();
                    (pair.acceptor.recv(far, now).ok(), None)
                };
                let len = payload.len();
                assert!(
                    matches!(black_box(received), Some(Recv::Data(bytes)) if bytes.len() == len)
                );
                if let Some(granted) = message(granted) {
                    pair.opener.handle_message(now, granted).unwrap();
                }
                pair.exchange();
                pair.forget_events();
            }
            "session_open" => {
                let opened = counted::session_open(&mut pair.opener, now);
                message(black_box(opened)).unwrap();
            }
            "session_accept" => {
                pair.opener.open_tcp(80, now).unwrap();
                let connect = message(pair.opener.poll_transmit(now)).unwrap();
                let accepted = counted::session_accept(&mut pair.acceptor, connect, now);
                let accepted = message(black_box(accepted)).unwrap();
                pair.opener.handle_message(now, accepted).unwrap();
            }
            "session_close" => {
                let (near, far) = pair.open();
                pair.opener.finish(near);
                let close = message(pair.opener.poll_transmit(now)).unwrap();
                let answer = counted::session_close(&mut pair.acceptor, far, close, now);
                let answer = message(black_box(answer)).unwrap();
                pair.opener.handle_message(now, answer).unwrap();
                pair.opener.release(near, now);
                pair.forget_events();
            }
            other => panic!("no function {other}"),
        }
    }
}
