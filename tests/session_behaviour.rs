//! What a session does, one situation at a time.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

use std::time::Duration;

use bytes::Bytes;
use kohakuriver_tunnel::session::{
    Config, Event, INITIAL_WINDOW, Instant, OpenError, Reason, Recv, Reset, Role, SendError,
    Session, State, StreamError, StreamId, Transmit, Version, Violation,
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

/// Two sessions side by side. Nothing passes between them until [`Pair::run`].
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

    /// Passes messages both ways until there are none. Two honest ends never break the protocol.
    fn run(&mut self) {
        let mut moved = true;
        while moved {
            moved = pass(&mut self.opener, &mut self.acceptor, self.now);
            moved |= pass(&mut self.acceptor, &mut self.opener, self.now);
        }
    }

    /// Moves the clock, with the timeouts on the way.
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
        self.acceptor.accept(accepted).unwrap();
        self.run();
        (opened, accepted)
    }

    fn flow(&mut self) -> (StreamId, StreamId) {
        let opened = self.opener.open_udp(53, self.now).unwrap();
        self.run();
        let accepted = incoming(&mut self.acceptor);
        self.acceptor.accept(accepted).unwrap();
        self.run();
        (opened, accepted)
    }
}

fn pass(from: &mut Session, to: &mut Session, now: Instant) -> bool {
    let mut moved = false;
    while to.can_receive() {
        match from.poll_transmit(now) {
            Some(Transmit::Message(message)) => to.handle_message(now, message).unwrap(),
            Some(Transmit::Probe) => from.handle_activity(now),
            None => break,
        }
        moved = true;
    }
    moved
}

/// The next stream the peer wants; other events are skipped.
fn incoming(session: &mut Session) -> StreamId {
    loop {
        if let Event::Incoming { stream, .. } = session.poll_event().expect("an incoming stream") {
            return stream;
        }
    }
}

fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

/// All that can be read now, and what came after it.
fn drain(session: &mut Session, stream: StreamId) -> (Vec<u8>, Result<Recv, StreamError>) {
    let mut all = Vec::new();
    loop {
        match session.recv(stream) {
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
    total
}

fn messages(session: &mut Session, now: Instant) -> Vec<Frame> {
    let mut all = Vec::new();
    while let Some(transmit) = session.poll_transmit(now) {
        if let Transmit::Message(message) = transmit {
            all.push(Frame::decode(message).unwrap());
        }
    }
    // A v2 end measures the round trip when it likes.
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

mod ends {
    use super::*;

    #[test]
    fn half_close_keeps_the_reply() {
        for version in BOTH {
            let mut pair = Pair::new(version);
            let (opened, accepted) = pair.stream();
            assert_eq!(pair.opener.send_slice(opened, b"question").unwrap(), 8);
            pair.opener.finish(opened);
            pair.run();
            let (question, end) = drain(&mut pair.acceptor, accepted);
            assert_eq!((&question[..], end), (&b"question"[..], Ok(Recv::Finished)));
            assert_eq!(pair.opener.state(opened), Some(State::LocalFinished));

            pair.acceptor.send_slice(accepted, b"reply").unwrap();
            pair.run();
            assert_eq!(pair.opener.recv(opened), Ok(Recv::Data("reply".into())));
            assert_eq!(pair.opener.recv(opened), Ok(Recv::Blocked));
            pair.acceptor.finish(accepted);
            pair.run();
            assert_eq!(pair.opener.recv(opened), Ok(Recv::Finished));
            for (session, stream) in [(&mut pair.opener, opened), (&mut pair.acceptor, accepted)] {
                assert_eq!(session.state(stream), Some(State::Closed));
                assert_eq!(session.reset_of(stream), None);
                session.release(stream);
                assert!(session.is_idle());
            }
        }
    }

    #[test]
    fn the_service_may_end_first() {
        for version in BOTH {
            let mut pair = Pair::new(version);
            let (opened, accepted) = pair.stream();
            pair.acceptor.send_slice(accepted, b"greeting").unwrap();
            pair.acceptor.finish(accepted);
            pair.run();
            assert_eq!(pair.opener.recv(opened), Ok(Recv::Data("greeting".into())));
            assert_eq!(pair.opener.recv(opened), Ok(Recv::Finished));
            pair.opener.send_slice(opened, b"more").unwrap();
            pair.opener.finish(opened);
            pair.run();
            let read = drain(&mut pair.acceptor, accepted);
            assert_eq!(read, (b"more".to_vec(), Ok(Recv::Finished)));
        }
    }

    #[test]
    fn a_reset_reaches_the_other_side_with_its_reason() {
        let mut pair = Pair::new(Version::V2);
        for from_opener in [true, false] {
            let (opened, accepted) = pair.stream();
            let (from, stream, to, theirs) = match from_opener {
                true => (&mut pair.opener, opened, &mut pair.acceptor, accepted),
                false => (&mut pair.acceptor, accepted, &mut pair.opener, opened),
            };
            from.send_slice(stream, b"dropped").unwrap();
            from.reset(stream, Reason::TimedOut, "too late");
            pass(from, to, pair.now);
            let reset = Reset::new(Reason::TimedOut, "too late");
            assert_eq!(to.recv(theirs), Err(StreamError::Reset(reset.clone())));
            assert_eq!(to.reset_of(theirs), Some(&reset));
            assert_eq!(from.stats().unsent, 0);
            let sent = to.send_slice(theirs, b"x");
            assert!(matches!(sent, Err(SendError::Reset(found)) if found == reset));
        }
    }

    #[test]
    fn what_came_before_a_reset_is_read_first() {
        let mut pair = Pair::new(Version::V2);
        let (opened, accepted) = pair.stream();
        pair.opener.send_slice(opened, b"first").unwrap();
        pair.run();
        pair.opener.reset(opened, Reason::Reset, "");
        pair.run();
        let (read, end) = drain(&mut pair.acceptor, accepted);
        assert_eq!((&read[..], reason(end)), (&b"first"[..], Reason::Reset));
    }

    #[test]
    fn in_v1_only_the_acceptor_can_say_why() {
        let mut pair = Pair::new(Version::V1);
        let (opened, accepted) = pair.stream();
        pair.acceptor.reset(accepted, Reason::Refused, "no");
        pair.run();
        let StreamError::Reset(reset) = pair.opener.recv(opened).unwrap_err() else {
            panic!();
        };
        assert_eq!(
            reset,
            Reset::new(Reason::Unspecified, "connection refused: no")
        );

        let (opened, accepted) = pair.stream();
        pair.opener.reset(opened, Reason::Reset, "");
        pair.run();
        assert_eq!(pair.acceptor.recv(accepted), Ok(Recv::Finished));
        // What the service still sends is answered once with CLOSE, the second, which ends all.
        pair.acceptor.send_slice(accepted, b"late").unwrap();
        pair.run();
        assert_eq!(pair.acceptor.state(accepted), Some(State::Closed));
        assert_eq!(pair.opener.stats().stray_data, 1);
    }

    #[test]
    fn a_rejected_connection_tells_why() {
        for version in BOTH {
            let mut pair = Pair::new(version);
            let opened = pair.opener.open_tcp(1, pair.now).unwrap();
            pair.opener.send_slice(opened, b"optimistic").unwrap();
            pair.run();
            let asked = incoming(&mut pair.acceptor);
            pair.acceptor
                .reject(asked, Reason::Refused, "nothing listens");
            assert!(pair.acceptor.is_idle());
            assert_eq!(pair.acceptor.stats().unread, 0);
            pair.run();
            let reset = pair.opener.reset_of(opened).unwrap();
            assert!(reset.to_string().contains("nothing listens"), "{reset}");
            if version == Version::V2 {
                assert_eq!(reset.reason, Reason::Refused);
            }
            assert_eq!(pair.acceptor.accept(asked), Err(StreamError::Unknown));
        }
    }

    #[test]
    fn data_may_follow_connect_at_once() {
        for version in BOTH {
            let mut pair = Pair::new(version);
            let opened = pair.opener.open_tcp(80, pair.now).unwrap();
            assert_eq!(pair.opener.send_slice(opened, b"early").unwrap(), 5);
            pair.opener.finish(opened);
            pair.run();
            let accepted = incoming(&mut pair.acceptor);
            assert_eq!(pair.acceptor.state(accepted), Some(State::PendingFinished));
            assert!(matches!(
                pair.acceptor.send_slice(accepted, b"x"),
                Err(SendError::Finished)
            ));
            // Even before it is accepted.
            let read = drain(&mut pair.acceptor, accepted);
            assert_eq!(read, (b"early".to_vec(), Ok(Recv::Finished)));
            pair.acceptor.accept(accepted).unwrap();
            assert_eq!(pair.acceptor.accept(accepted), Err(StreamError::WrongState));
            pair.acceptor.send_slice(accepted, b"reply").unwrap();
            pair.acceptor.finish(accepted);
            pair.run();
            let read = drain(&mut pair.opener, opened);
            assert_eq!(read, (b"reply".to_vec(), Ok(Recv::Finished)));
        }
    }

    #[test]
    fn finish_before_accept_is_not_forgotten() {
        for version in BOTH {
            let mut pair = Pair::new(version);
            let opened = pair.opener.open_tcp(80, pair.now).unwrap();
            pair.run();
            let accepted = incoming(&mut pair.acceptor);
            pair.acceptor.finish(accepted);
            pair.acceptor.accept(accepted).unwrap();
            pair.run();
            assert_eq!(pair.opener.recv(opened), Ok(Recv::Finished));
        }
    }

    #[test]
    fn a_flow_ends_both_ways_with_one_close() {
        for version in BOTH {
            let mut pair = Pair::new(version);
            let (opened, accepted) = pair.flow();
            pair.opener
                .send_datagram(opened, Chunk::copied(b"last"))
                .unwrap();
            pair.opener.finish(opened);
            pair.run();
            assert_eq!(pair.opener.state(opened), Some(State::Closed));
            assert_eq!(pair.acceptor.state(accepted), Some(State::Closed));
            let read = drain(&mut pair.acceptor, accepted);
            assert_eq!(read, (b"last".to_vec(), Ok(Recv::Finished)));
            assert_eq!(pair.acceptor.reset_of(accepted), None);
        }
    }

    #[test]
    fn release_lets_what_was_sent_arrive() {
        for version in BOTH {
            let mut pair = Pair::new(version);
            let (opened, accepted) = pair.stream();
            let sent = fill(&mut pair.opener, opened);
            pair.opener.release(opened);
            assert_eq!(pair.opener.stats().streams, 1, "not yet");
            pair.run();
            let (read, end) = drain(&mut pair.acceptor, accepted);
            assert_eq!((read.len(), end), (sent, Ok(Recv::Finished)));
            pair.acceptor.finish(accepted);
            pair.run();
            assert!(pair.opener.is_idle());
            assert_eq!(pair.opener.recv(opened), Err(StreamError::Unknown));
        }
    }

    #[test]
    fn sending_to_a_released_stream_resets_it() {
        let mut pair = Pair::new(Version::V2);
        let (opened, accepted) = pair.stream();
        pair.opener.release(opened);
        pair.run();
        pair.acceptor.send_slice(accepted, b"anybody?").unwrap();
        pair.run();
        let (_, end) = drain(&mut pair.acceptor, accepted);
        assert_eq!(reason(end), Reason::Gone);
        assert!(pair.opener.is_idle());
    }

    #[test]
    fn release_drops_what_was_not_read() {
        let mut pair = Pair::new(Version::V2);
        let (opened, accepted) = pair.stream();
        fill(&mut pair.opener, opened);
        pair.run();
        assert!(pair.acceptor.stats().unread > 0);
        pair.acceptor.release(accepted);
        assert_eq!(pair.acceptor.stats().unread, 0);
    }

    #[test]
    fn a_pending_stream_released_is_rejected() {
        let mut pair = Pair::new(Version::V2);
        let opened = pair.opener.open_tcp(80, pair.now).unwrap();
        pair.run();
        let asked = incoming(&mut pair.acceptor);
        pair.acceptor.release(asked);
        pair.run();
        assert_eq!(pair.opener.reset_of(opened).unwrap().reason, Reason::Gone);
        assert!(pair.acceptor.is_idle());
    }

    #[test]
    fn a_released_stream_whose_peer_never_ends_is_given_up() {
        let mut pair = Pair::new(Version::V2);
        let (opened, accepted) = pair.stream();
        pair.opener.release(opened);
        pair.run();
        pair.wait(Duration::from_millis(9_999));
        assert_eq!(pair.acceptor.recv(accepted), Ok(Recv::Finished));
        assert_eq!(pair.opener.stats().streams, 1);
        pair.wait(Duration::from_millis(2));
        assert!(pair.opener.is_idle());
        assert_eq!(
            pair.acceptor.reset_of(accepted).unwrap().reason,
            Reason::Gone
        );
    }

    /// The linger counts from the release, however long nothing has happened before.
    #[test]
    fn a_release_after_a_long_silence_lingers_in_full() {
        let quiet = config(|config| config.keepalive = None);
        let mut pair = Pair::with(Version::V2, quiet);
        let (opened, _) = pair.stream();
        pair.opener.finish(opened);
        pair.run();
        pair.wait(Duration::from_secs(1_000));
        pair.opener.release(opened);
        pair.wait(Duration::from_secs(9));
        assert!(!pair.opener.is_idle());
        pair.wait(Duration::from_secs(2));
        assert!(pair.opener.is_idle());
    }

    /// An event about a stream that is gone would reach whoever has its slot now.
    #[test]
    fn no_event_comes_after_release() {
        let mut pair = Pair::new(Version::V2);
        let opened = pair.opener.open_tcp(80, pair.now).unwrap();
        pair.run();
        let accepted = incoming(&mut pair.acceptor);
        pair.acceptor.accept(accepted).unwrap();
        pair.acceptor.send_slice(accepted, b"hello").unwrap();
        pair.run();
        pair.opener.release(opened);
        assert_eq!(pair.opener.poll_event(), None);

        let opened = pair.opener.open_tcp(80, pair.now).unwrap();
        pair.opener.release(opened);
        pair.run();
        let accepted = incoming(&mut pair.acceptor);
        pair.acceptor.accept(accepted).unwrap();
        pair.run();
        assert_eq!(events(&mut pair.opener), []);
    }

    #[test]
    fn an_id_is_not_given_again_while_it_lives_or_lingers() {
        let mut pair = Pair::new(Version::V2);
        let mut seen = std::collections::HashSet::new();
        let (lives, _) = pair.stream();
        seen.insert(pair.opener.client_id(lives).unwrap());
        for _ in 0..500 {
            let (opened, accepted) = pair.stream();
            assert!(seen.insert(pair.opener.client_id(opened).unwrap()));
            pair.opener.reset(opened, Reason::Reset, "");
            pair.acceptor.release(accepted);
            pair.opener.release(opened);
            pair.run();
        }
        assert_eq!(pair.opener.stats().streams, 1);
        assert!(!seen.contains(&ClientId::KEEPALIVE));
    }
}

mod limits {
    use super::*;

    #[test]
    fn one_stream_too_many_is_refused() {
        let small = config(|config| config.max_streams = 2);
        for version in BOTH {
            let mut pair = Pair::new(version);
            pair.acceptor = Session::new(Role::Acceptor, version, small.clone(), pair.now);
            let first = pair.stream();
            pair.stream();
            let refused = pair.opener.open_tcp(80, pair.now).unwrap();
            pair.run();
            let reset = pair.opener.reset_of(refused).unwrap();
            assert!(reset.text.contains("too many"), "{reset}");
            if version == Version::V2 {
                assert_eq!(reset.reason, Reason::Limit);
            }
            assert_eq!(pair.acceptor.stats().streams, 2);
            pair.acceptor.reset(first.1, Reason::Reset, "");
            pair.acceptor.release(first.1);
            pair.run();
            pair.stream();
        }
        let mut opener = Session::new(Role::Opener, Version::V2, small, at(0));
        opener.open_tcp(1, at(0)).unwrap();
        opener.open_udp(1, at(0)).unwrap();
        assert_eq!(opener.open_tcp(1, at(0)), Err(OpenError::Limit(2)));
    }

    #[test]
    fn the_backlog_is_bounded_and_accepting_makes_room() {
        let small = config(|config| config.accept_backlog = 3);
        let mut pair = Pair::with(Version::V2, small);
        let opened: Vec<_> = (0..5)
            .map(|_| pair.opener.open_tcp(80, pair.now).unwrap())
            .collect();
        pair.run();
        let refused = |pair: &Pair, i: usize| pair.opener.reset_of(opened[i]).is_some();
        assert_eq!(
            [0, 1, 2, 3, 4].map(|i| refused(&pair, i)),
            [false, false, false, true, true]
        );
        let asked = incoming(&mut pair.acceptor);
        pair.acceptor.accept(asked).unwrap();
        let next = pair.opener.open_tcp(80, pair.now).unwrap();
        pair.run();
        assert_eq!(pair.opener.reset_of(next), None);
    }

    #[test]
    fn only_the_opener_opens() {
        let mut acceptor = Session::new(Role::Acceptor, Version::V2, Config::default(), at(0));
        assert_eq!(acceptor.open_tcp(1, at(0)), Err(OpenError::NotOpener));
        acceptor.handle_closed(Reason::Gone, "");
        assert_eq!(acceptor.open_tcp(1, at(0)), Err(OpenError::Closed));
    }

    #[test]
    fn the_receive_budget_resets_the_stream_that_holds_most() {
        let small = config(|config| config.receive_budget = 300 << 10);
        for version in BOTH {
            let mut pair = Pair::with(version, small.clone());
            let (_, modest) = {
                let (opened, accepted) = pair.stream();
                pair.opener.send_slice(opened, &[1; 10_000]).unwrap();
                (opened, accepted)
            };
            let (greedy, theirs) = pair.stream();
            fill(&mut pair.opener, greedy);
            pair.run();
            let (third, _) = pair.stream();
            fill(&mut pair.opener, third);
            pair.run();
            let stats = pair.acceptor.stats();
            assert!(stats.unread <= 300 << 10, "{}", stats.unread);
            let reset = pair.acceptor.reset_of(theirs).unwrap();
            assert_eq!(reset.reason, Reason::Overflow);
            assert_eq!(reason(pair.acceptor.recv(theirs)), Reason::Overflow);
            let (read, end) = drain(&mut pair.acceptor, modest);
            assert_eq!((read.len(), end), (10_000, Ok(Recv::Blocked)));
        }
    }

    /// Its bytes go, so its reader must not take what is left for the whole.
    #[test]
    fn the_receive_budget_never_truncates_in_silence() {
        let small = config(|config| config.receive_budget = 300 << 10);
        let mut pair = Pair::with(Version::V2, small);
        let (done, theirs) = pair.stream();
        let sent = fill(&mut pair.opener, done);
        pair.opener.finish(done);
        pair.acceptor.finish(theirs);
        pair.run();
        assert_eq!(pair.acceptor.state(theirs), Some(State::Closed));
        let (next, _) = pair.stream();
        fill(&mut pair.opener, next);
        pair.run();
        match drain(&mut pair.acceptor, theirs) {
            (read, Ok(Recv::Finished)) => assert_eq!(read.len(), sent),
            (_, end) => assert_eq!(reason(end), Reason::Overflow),
        }
    }

    #[test]
    fn a_ping_flood_stops_receiving_until_the_answers_are_read() {
        let small = config(|config| config.max_replies = 100);
        for version in BOTH {
            let mut session = Session::new(Role::Opener, version, small.clone(), at(0));
            messages(&mut session, at(0));
            let ping = Frame::Ping {
                id: ClientId::KEEPALIVE,
                payload: Bytes::from_static(&[9; 4000]),
            };
            for _ in 0..100 {
                assert!(session.can_receive());
                say(&mut session, at(0), ping.clone()).unwrap();
            }
            assert!(!session.can_receive());
            // Whoever does not care is held to the bound.
            let more = say(&mut session, at(0), ping);
            assert_eq!(more, Err(Violation::TooManyRequests(100)));
            session.poll_transmit(at(0)).unwrap();
            assert!(session.can_receive());
            let answers = messages(&mut session, at(0));
            assert_eq!(answers.len(), 99);
            assert!(answers.iter().all(|pong| pong.payload().len() <= 125));
        }
    }

    #[test]
    fn a_connect_flood_stops_receiving_until_the_answers_are_read() {
        let small = config(|config| {
            config.max_replies = 100;
            config.accept_backlog = 10;
        });
        let mut acceptor = Session::new(Role::Acceptor, Version::V2, small, at(0));
        let mut id = 0;
        while acceptor.can_receive() {
            id += 1;
            say(&mut acceptor, at(0), connect(id)).unwrap();
        }
        assert_eq!(id, 110);
        assert_eq!(acceptor.stats().streams, 10);
        let refusals = messages(&mut acceptor, at(0));
        assert_eq!(refusals.len(), 100);
        assert!(acceptor.can_receive());
    }

    #[test]
    fn a_flood_of_stray_data_stops_receiving_until_the_answers_are_read() {
        let small = config(|config| config.max_replies = 50);
        let mut opener = Session::new(Role::Opener, Version::V1, small, at(0));
        let mut id = 1;
        while opener.can_receive() {
            let outcome = say(&mut opener, at(0), data(id, "x"));
            assert!(matches!(outcome, Err(Violation::UnknownStream { .. })));
            id += 1;
        }
        assert_eq!(id, 51);
        messages(&mut opener, at(0));
        assert!(opener.can_receive());
    }

    /// Zero is a bound too: it must not mean that nothing is ever received.
    #[test]
    fn a_session_with_the_smallest_bounds_still_works() {
        let least = config(|config| {
            config.max_replies = 0;
            config.v1_stream_buffer = 0;
            config.stream_send_buffer = 0;
            config.send_budget = 0;
            config.max_piece = 0;
            config.contended_piece = 0;
            config.datagram_queue = 0;
            config.max_window = 0;
        });
        for version in BOTH {
            let mut pair = Pair::with(version, least.clone());
            let (opened, accepted) = pair.stream();
            for byte in b"abc" {
                let sent = pair.opener.send_slice(opened, &[*byte]).unwrap();
                pair.run();
                assert_eq!(sent, 1);
                assert_eq!(drain(&mut pair.acceptor, accepted).0, [*byte]);
            }
        }
    }
}

mod credit {
    use super::*;

    #[test]
    fn a_sender_stops_at_the_window_and_goes_on_when_it_opens() {
        let mut pair = Pair::new(Version::V2);
        let (opened, accepted) = pair.stream();
        let mut sent = 0;
        for _ in 0..20 {
            sent += fill(&mut pair.opener, opened);
            pair.run();
        }
        assert_eq!(sent, WINDOW);
        assert_eq!(pair.acceptor.stats().unread, WINDOW);
        assert_eq!(pair.opener.send_slice(opened, b"x").unwrap(), 0);
        events(&mut pair.opener);
        drain(&mut pair.acceptor, accepted).1.unwrap();
        pair.run();
        assert_eq!(events(&mut pair.opener), [Event::Writable(opened)]);
        assert!(pair.opener.send_capacity(opened).unwrap() > 0);
    }

    #[test]
    fn a_stalled_reader_stalls_nobody_else() {
        let mut pair = Pair::new(Version::V2);
        let (stalled, _) = pair.stream();
        let (other, theirs) = pair.stream();
        let (flow, their_flow) = pair.flow();
        let mut read = 0;
        for _ in 0..100 {
            fill(&mut pair.opener, stalled);
            fill(&mut pair.opener, other);
            let datagram = Chunk::copied(b"hi");
            pair.opener.send_datagram(flow, datagram).unwrap();
            pair.run();
            assert!(pair.acceptor.can_receive());
            read += drain(&mut pair.acceptor, theirs).0.len();
            let datagram = pair.acceptor.recv(their_flow);
            assert_eq!(datagram, Ok(Recv::Data("hi".into())));
        }
        assert!(read > 10 * WINDOW, "{read}");
        assert_eq!(pair.acceptor.stats().unread, WINDOW);
    }

    #[test]
    fn an_overrun_resets_only_its_stream() {
        let mut acceptor = Session::new(Role::Acceptor, Version::V2, Config::default(), at(0));
        for id in [1, 2] {
            say(&mut acceptor, at(0), connect(id)).unwrap();
        }
        let streams = [incoming(&mut acceptor), incoming(&mut acceptor)];
        for stream in streams {
            acceptor.accept(stream).unwrap();
        }
        messages(&mut acceptor, at(0));
        say(&mut acceptor, at(0), data(1, vec![0; WINDOW])).unwrap();
        let outcome = say(&mut acceptor, at(0), data(1, "!"));
        let (id, excess) = (ClientId(1), 1);
        assert_eq!(outcome, Err(Violation::CreditOverrun { id, excess }));
        say(&mut acceptor, at(0), data(2, "fine")).unwrap();
        let said = messages(&mut acceptor, at(0));
        let is_error = |frame: &&Frame| frame.kind() == Kind::Error;
        let errors: Vec<_> = said.iter().filter(is_error).collect();
        assert!(
            matches!(errors[..], [Frame::Error { id: ClientId(1), code, .. }]
            if *code == Reason::Overflow.code())
        );
        assert_eq!(acceptor.recv(streams[1]), Ok(Recv::Data("fine".into())));
        // What was within the window is still there.
        assert_eq!(drain(&mut acceptor, streams[0]).0.len(), WINDOW);
        assert_eq!(acceptor.stats().violations, 1);
    }

    /// The chunk is larger than what is left, so it comes back; a part of it goes.
    #[test]
    fn a_chunk_beyond_the_credit_comes_back_whole() {
        let mut pair = Pair::new(Version::V2);
        let (opened, _) = pair.stream();
        let mut left = WINDOW - 1000;
        while left > 0 {
            let room = pair.opener.send_capacity(opened).unwrap().min(left);
            pair.opener
                .send(opened, Chunk::copied(&vec![1; room]))
                .unwrap();
            left -= room;
            pair.run();
        }
        assert_eq!(pair.opener.send_capacity(opened).unwrap(), 1000);
        let sent = pair.opener.send(opened, Chunk::copied(&[2; 1001]));
        let Err(SendError::Blocked(chunk)) = sent else {
            panic!("{sent:?}");
        };
        assert_eq!(chunk.payload(), [2; 1001]);
        pair.opener.send(opened, Chunk::copied(&[2; 1000])).unwrap();
        assert_eq!(pair.opener.send_capacity(opened).unwrap(), 0);
    }

    #[test]
    fn every_stream_that_waits_for_the_send_budget_is_woken() {
        let small = config(|config| {
            config.send_budget = 64 << 10;
            config.stream_send_buffer = 64 << 10;
            config.keepalive = None;
        });
        for version in BOTH {
            let mut pair = Pair::with(version, small.clone());
            let streams: Vec<_> = (0..50).map(|_| pair.stream()).collect();
            events(&mut pair.opener);
            for (opened, _) in &streams {
                fill(&mut pair.opener, *opened);
            }
            let unsent = pair.opener.stats().unsent;
            assert!(unsent <= (64 << 10) + 50 * 4096 + (64 << 10), "{unsent}");
            let mut waiting: std::collections::HashSet<_> =
                streams.iter().map(|(opened, _)| *opened).collect();
            // Each is told as it can go on; those who do not care take nothing from the others.
            messages(&mut pair.opener, pair.now);
            for event in events(&mut pair.opener) {
                if let Event::Writable(stream) = event {
                    assert!(pair.opener.send_capacity(stream).unwrap() > 0);
                    waiting.remove(&stream);
                }
            }
            assert!(waiting.is_empty(), "{} were not woken", waiting.len());
        }
    }

    #[test]
    fn a_writer_is_woken_by_the_end_of_its_stream() {
        let mut pair = Pair::new(Version::V2);
        let (opened, accepted) = pair.stream();
        while fill(&mut pair.opener, opened) > 0 {
            pair.run();
        }
        events(&mut pair.opener);
        pair.acceptor.reset(accepted, Reason::Reset, "");
        pair.run();
        let told = events(&mut pair.opener);
        assert!(told.contains(&Event::Writable(opened)), "{told:?}");
        assert!(told.contains(&Event::Readable(opened)), "{told:?}");
    }

    /// Small writes are joined, and what is allocated for them stays in proportion.
    #[test]
    fn small_writes_that_wait_are_joined() {
        let mut pair = Pair::new(Version::V2);
        let (opened, accepted) = pair.stream();
        let mut sent = Vec::new();
        for i in 0..10_000_u32 {
            let bytes = i.to_be_bytes();
            assert_eq!(pair.opener.send_slice(opened, &bytes).unwrap(), 4);
            sent.extend_from_slice(&bytes);
        }
        let mut count = 0;
        while let Some(Transmit::Message(message)) = pair.opener.poll_transmit(pair.now) {
            pair.acceptor.handle_message(pair.now, message).unwrap();
            count += 1;
        }
        assert!(count <= 16, "{count} messages");
        assert_eq!(drain(&mut pair.acceptor, accepted).0, sent);
    }
}

mod datagrams {
    use super::*;

    fn datagram(n: u8, len: usize) -> Chunk {
        Chunk::copied(&vec![n; len])
    }

    #[test]
    fn the_oldest_is_dropped_on_both_sides_and_counted() {
        let small = config(|config| config.datagram_queue = 4);
        for version in BOTH {
            let mut pair = Pair::with(version, small.clone());
            let (opened, accepted) = pair.flow();
            for n in 0..10 {
                pair.opener.send_datagram(opened, datagram(n, 10)).unwrap();
            }
            assert_eq!(pair.opener.stats().datagrams_dropped_sending, 6);
            assert_eq!(pair.opener.stats().unsent, 40);
            pair.run();
            for n in 10..12 {
                pair.opener.send_datagram(opened, datagram(n, 10)).unwrap();
                pair.run();
            }
            assert_eq!(pair.acceptor.stats().datagrams_dropped_receiving, 2);
            let mut read = Vec::new();
            while let Ok(Recv::Data(data)) = pair.acceptor.recv(accepted) {
                read.push(data[0]);
            }
            assert_eq!(read, [8, 9, 10, 11]);
            assert_eq!(pair.acceptor.stats().unread, 0);
        }
    }

    #[test]
    fn bytes_are_bounded_for_a_flow_and_for_all() {
        let small = config(|config| {
            config.datagram_buffer = 2_500;
            config.datagram_budget = 4_000;
        });
        let mut pair = Pair::with(Version::V2, small);
        let flows = [pair.flow(), pair.flow(), pair.flow()];
        for (opened, _) in flows {
            for n in 0..5 {
                pair.opener
                    .send_datagram(opened, datagram(n, 1000))
                    .unwrap();
                assert!(pair.opener.stats().unsent <= 4_000);
            }
            pair.run();
            assert!(pair.acceptor.stats().unread <= 4_000);
        }
        // One larger than the flow's bound goes alone, if the budget has room.
        pair.opener
            .send_datagram(flows[0].0, datagram(9, 3_000))
            .unwrap();
        assert_eq!(pair.opener.stats().unsent, 3_000);
    }

    #[test]
    fn bytes_and_datagrams_are_not_mixed_up() {
        let mut pair = Pair::new(Version::V2);
        let (stream, _) = pair.stream();
        let (flow, _) = pair.flow();
        let session = &mut pair.opener;
        let unknown = |outcome| matches!(outcome, Err(SendError::Unknown));
        assert!(unknown(session.send_slice(flow, b"bytes").map(drop)));
        assert!(unknown(session.send(flow, Chunk::copied(b"bytes"))));
        assert!(unknown(session.send_datagram(stream, datagram(1, 1))));
        assert_eq!(session.stats().unsent, 0);
    }

    #[test]
    fn an_empty_datagram_arrives() {
        let mut pair = Pair::new(Version::V2);
        let (opened, accepted) = pair.flow();
        for len in [0, 3, 0] {
            pair.opener.send_datagram(opened, datagram(1, len)).unwrap();
        }
        pair.run();
        for len in [0, 3, 0] {
            let Ok(Recv::Data(data)) = pair.acceptor.recv(accepted) else {
                panic!();
            };
            assert_eq!(data.len(), len);
        }
        assert_eq!(pair.acceptor.recv(accepted), Ok(Recv::Blocked));
    }

    #[test]
    fn they_go_ahead_of_bulk_and_do_not_starve_it() {
        let mut pair = Pair::new(Version::V2);
        let (bulk, _) = pair.stream();
        let (flow, _) = pair.flow();
        fill(&mut pair.opener, bulk);
        for n in 0..64 {
            pair.opener.send_datagram(flow, datagram(n, 100)).unwrap();
        }
        let protos: Vec<_> = messages(&mut pair.opener, pair.now)
            .iter()
            .map(|frame| frame.header().proto)
            .collect();
        assert_eq!(protos[..16], [Proto::Udp; 16]);
        let first = protos.iter().position(|proto| *proto == Proto::Tcp);
        assert_eq!(first, Some(16));
    }

    #[test]
    fn flows_take_turns() {
        let mut pair = Pair::new(Version::V2);
        let (a, _) = pair.flow();
        let (b, _) = pair.flow();
        for _ in 0..8 {
            pair.opener.send_datagram(a, datagram(1, 1)).unwrap();
        }
        for _ in 0..8 {
            pair.opener.send_datagram(b, datagram(2, 1)).unwrap();
        }
        let order: Vec<_> = messages(&mut pair.opener, pair.now)
            .iter()
            .map(|frame| frame.payload()[0])
            .collect();
        assert_eq!(order[..4], [1, 2, 1, 2]);
    }

    /// A flow that sends what is dropped takes no more turns than one that behaves.
    #[test]
    fn a_flow_over_the_budget_gains_no_turns() {
        let small = config(|config| config.datagram_budget = 100);
        let mut pair = Pair::with(Version::V2, small);
        let (pushy, _) = pair.flow();
        let (modest, _) = pair.flow();
        for _ in 0..50 {
            pair.opener.send_datagram(pushy, datagram(1, 101)).unwrap();
        }
        assert_eq!(pair.opener.stats().datagrams_dropped_sending, 50);
        for _ in 0..8 {
            pair.opener.send_datagram(pushy, datagram(1, 1)).unwrap();
            pair.opener.send_datagram(modest, datagram(2, 1)).unwrap();
        }
        let order: Vec<_> = messages(&mut pair.opener, pair.now)
            .iter()
            .map(|frame| frame.payload()[0])
            .collect();
        assert_eq!(order[..6], [1, 2, 1, 2, 1, 2]);
    }
}

mod tunnel {
    use super::*;

    #[test]
    fn drain_refuses_new_streams_and_lets_open_ones_go_on() {
        for drain_opener in [true, false] {
            let mut pair = Pair::new(Version::V2);
            let (opened, accepted) = pair.stream();
            events(&mut pair.opener);
            events(&mut pair.acceptor);
            let (one, other) = match drain_opener {
                true => (&mut pair.opener, &mut pair.acceptor),
                false => (&mut pair.acceptor, &mut pair.opener),
            };
            one.drain();
            one.drain();
            assert!(one.is_draining() && !other.is_draining());
            pass(one, other, pair.now);
            assert_eq!(events(other), [Event::GoAway]);
            assert!(other.is_draining());
            let again = pair.opener.open_tcp(1, pair.now);
            assert_eq!(again, Err(OpenError::Draining));
            pair.opener.send_slice(opened, b"goes on").unwrap();
            pair.run();
            assert_eq!(
                pair.acceptor.recv(accepted),
                Ok(Recv::Data("goes on".into()))
            );
        }
    }

    #[test]
    fn a_connect_that_crosses_goaway_is_refused() {
        let mut pair = Pair::new(Version::V2);
        let opened = pair.opener.open_tcp(1, pair.now).unwrap();
        pair.acceptor.drain();
        pair.run();
        assert_eq!(pair.opener.reset_of(opened).unwrap().reason, Reason::Gone);
        assert!(pair.acceptor.is_idle());
    }

    #[test]
    fn a_v1_peer_is_not_told_of_draining_but_refused() {
        let mut pair = Pair::new(Version::V1);
        pair.acceptor.drain();
        assert!(!pair.acceptor.has_transmit());
        let opened = pair.opener.open_tcp(1, pair.now).unwrap();
        pair.run();
        assert!(pair.opener.reset_of(opened).is_some());
    }

    #[test]
    fn shutdown_resets_every_stream_with_gone() {
        for version in BOTH {
            let mut pair = Pair::new(version);
            let streams: Vec<_> = (0..5).map(|_| pair.stream()).collect();
            let pending = pair.opener.open_tcp(1, pair.now).unwrap();
            pair.run();
            pair.acceptor.shutdown();
            pair.run();
            let opened = streams.iter().map(|(opened, _)| *opened);
            for stream in opened.chain([pending]) {
                let reset = pair.opener.reset_of(stream).unwrap();
                assert!(reset.text.contains("shutting down"), "{reset}");
            }
            assert_eq!(pair.acceptor.stats().resets, 6);
            assert!(pair.opener.is_draining() == (version == Version::V2));
        }
    }

    /// More streams at once than ids are remembered for: still nobody breaks the protocol.
    #[test]
    fn thousands_of_resets_at_once_are_no_violation() {
        for version in BOTH {
            let mut pair = Pair::with(version, config(|config| config.accept_backlog = 5_000));
            let streams: Vec<_> = (0..5_000)
                .map(|_| pair.opener.open_tcp(1, pair.now).unwrap())
                .collect();
            pair.run();
            for event in events(&mut pair.acceptor) {
                if let Event::Incoming { stream, .. } = event {
                    pair.acceptor.accept(stream).unwrap();
                    pair.acceptor.send_slice(stream, b"crosses").unwrap();
                }
            }
            pass(&mut pair.acceptor, &mut pair.opener, pair.now);
            for stream in events(&mut pair.acceptor) {
                let _ = stream;
            }
            pair.opener.shutdown();
            pair.run();
            for stream in streams {
                pair.opener.release(stream);
            }
            assert!(pair.opener.is_idle());
        }
    }

    /// As above, with what the acceptor sent still under way when the opener forgets.
    #[test]
    fn data_under_way_when_thousands_are_reset_is_late_not_stray() {
        let mut pair = Pair::with(Version::V2, config(|config| config.accept_backlog = 5_000));
        for _ in 0..3_000 {
            pair.opener.open_tcp(1, pair.now).unwrap();
        }
        pair.run();
        for event in events(&mut pair.acceptor) {
            if let Event::Incoming { stream, .. } = event {
                pair.acceptor.accept(stream).unwrap();
            }
        }
        pair.run();
        let live: Vec<_> = (1..=3_000).map(|id| data(id, "crosses")).collect();
        pair.opener.shutdown();
        for frame in live {
            say(&mut pair.opener, pair.now, frame).unwrap();
        }
        pair.run();
    }

    #[test]
    fn ping_measures_the_round_trip() {
        let mut pair = Pair::new(Version::V2);
        pair.opener.ping();
        for (start, trip) in [(0, 40), (1_000, 20)] {
            let Some(Transmit::Message(ping)) = pair.opener.poll_transmit(at(start)) else {
                panic!();
            };
            pair.acceptor.handle_message(at(start), ping).unwrap();
            let Some(Transmit::Message(pong)) = pair.acceptor.poll_transmit(at(start)) else {
                panic!();
            };
            let back = at(start + trip);
            pair.opener.handle_message(back, pong.clone()).unwrap();
            assert_eq!(pair.opener.rtt(), Some(Duration::from_millis(trip)));
            // A second answer to the same PING says nothing.
            pair.opener.handle_message(at(start + 1), pong).unwrap();
            assert_eq!(pair.opener.rtt(), Some(Duration::from_millis(trip)));
            pair.opener.ping();
        }

        let mut v1 = Session::new(Role::Opener, Version::V1, Config::default(), at(0));
        v1.ping();
        assert!(!v1.has_transmit());
    }

    #[test]
    fn pings_more_frequent_than_the_round_trip_still_measure_it() {
        let mut pair = Pair::new(Version::V2);
        let mut under_way = std::collections::VecDeque::new();
        for tick in 0..20_u64 {
            pair.opener.ping();
            if let Some(Transmit::Message(ping)) = pair.opener.poll_transmit(at(tick * 10)) {
                under_way.push_back((tick + 5, ping));
            }
            while under_way.front().is_some_and(|(due, _)| *due <= tick) {
                let (_, ping) = under_way.pop_front().unwrap();
                pair.acceptor.handle_message(at(tick * 10), ping).unwrap();
                pass(&mut pair.acceptor, &mut pair.opener, at(tick * 10));
            }
        }
        assert_eq!(pair.opener.rtt(), Some(Duration::from_millis(50)));
    }

    #[test]
    fn silence_is_probed_and_then_death() {
        for version in BOTH {
            let mut session = Session::new(Role::Opener, version, Config::default(), at(0));
            let stream = session.open_tcp(1, at(0)).unwrap();
            messages(&mut session, at(0));
            assert_eq!(session.poll_timeout(), Some(at(15_000)));
            session.handle_timeout(at(15_000));
            match (version, session.poll_transmit(at(15_000))) {
                (Version::V1, Some(Transmit::Probe)) => {}
                (Version::V2, Some(Transmit::Message(ping))) => {
                    assert_eq!(Frame::decode(ping).unwrap().kind(), Kind::Ping);
                }
                (_, other) => panic!("{other:?}"),
            }
            assert_eq!(session.poll_transmit(at(15_000)), None);
            assert_eq!(session.poll_timeout(), Some(at(30_000)));
            session.handle_timeout(at(30_000));
            assert!(events(&mut session).contains(&Event::PeerDead));
            assert!(session.is_closed());
            assert_eq!(session.reset_of(stream).unwrap().reason, Reason::TimedOut);
            assert_eq!(session.poll_timeout(), None);
            assert_eq!(session.poll_transmit(at(30_000)), None);
        }
    }

    #[test]
    fn a_sign_of_life_ends_the_silence() {
        for version in BOTH {
            let mut pair = Pair::new(version);
            pair.stream();
            pair.wait(Duration::from_secs(3600));
            assert!(!pair.opener.is_closed() && !pair.acceptor.is_closed());
        }
    }

    #[test]
    fn nothing_is_taken_after_the_end() {
        let mut acceptor = Session::new(Role::Acceptor, Version::V2, Config::default(), at(0));
        acceptor.handle_closed(Reason::Gone, "cut");
        say(&mut acceptor, at(0), connect(1)).unwrap();
        say(&mut acceptor, at(0), data(1, "x")).unwrap();
        assert!(acceptor.is_idle());
        assert_eq!(events(&mut acceptor), []);
        assert_eq!(acceptor.poll_transmit(at(0)), None);
    }

    #[test]
    fn what_was_received_can_be_read_after_the_end() {
        let mut pair = Pair::new(Version::V2);
        let (opened, accepted) = pair.stream();
        pair.opener.send_slice(opened, b"read me").unwrap();
        pair.run();
        pair.acceptor.handle_closed(Reason::Gone, "cut");
        let (read, end) = drain(&mut pair.acceptor, accepted);
        assert_eq!((&read[..], reason(end)), (&b"read me"[..], Reason::Gone));
        pair.acceptor.release(accepted);
        assert!(pair.acceptor.is_idle());
    }
}

mod v1 {
    use super::*;

    fn small() -> Config {
        config(|config| {
            config.v1_stream_buffer = 256 << 10;
            config.keepalive = None;
        })
    }

    /// Fills a stream until the tunnel stalls.
    fn stall(pair: &mut Pair, opened: StreamId) {
        while pair.acceptor.can_receive() {
            fill(&mut pair.opener, opened);
            pair.run();
        }
    }

    #[test]
    fn a_stall_resets_only_the_slow_stream_and_the_others_go_on() {
        let mut pair = Pair::with(Version::V1, small());
        let (slow, their_slow) = pair.stream();
        let (other, their_other) = pair.stream();
        stall(&mut pair, slow);
        pair.opener.send_slice(other, b"waits").unwrap();
        pair.run();
        assert!(!pair.acceptor.can_receive());
        assert_eq!(pair.acceptor.recv(their_other), Ok(Recv::Blocked));
        pair.wait(Duration::from_millis(1_999));
        assert!(!pair.acceptor.can_receive());
        pair.wait(Duration::from_millis(2));
        assert!(pair.acceptor.can_receive());
        assert_eq!(
            pair.acceptor.recv(their_other),
            Ok(Recv::Data("waits".into()))
        );
        let reset = pair.acceptor.reset_of(their_slow).unwrap();
        assert_eq!(reset.reason, Reason::Overflow);
        assert_eq!(pair.opener.state(slow), Some(State::Closed));
        // What it had is still there for its reader, before the reset.
        let (read, end) = drain(&mut pair.acceptor, their_slow);
        assert!(read.len() >= 256 << 10);
        assert_eq!(reason(end), Reason::Overflow);
    }

    #[test]
    fn a_reader_that_makes_progress_is_not_reset() {
        let mut pair = Pair::with(Version::V1, small());
        let (opened, accepted) = pair.stream();
        stall(&mut pair, opened);
        let mut read = 0;
        for _ in 0..50 {
            pair.wait(Duration::from_millis(500));
            fill(&mut pair.opener, opened);
            pair.run();
            if let Ok(Recv::Data(data)) = pair.acceptor.recv(accepted) {
                read += data.len();
            }
            pair.run();
        }
        assert!(read >= 49 * (32 << 10), "{read}");
        assert_eq!(pair.acceptor.reset_of(accepted), None);
    }

    /// A reader that takes a little now and then stops all others as well as one that takes nothing.
    #[test]
    fn a_trickle_is_not_progress() {
        let mut pair = Pair::with(Version::V1, small());
        let (_, accepted) = pair.stream();
        // The peer sends in small messages, so that a read is a small one.
        let trickle = |pair: &mut Pair| {
            while pair.acceptor.can_receive() {
                let message = data(1, vec![1; 4096]);
                say(&mut pair.acceptor, pair.now, message).unwrap();
            }
        };
        trickle(&mut pair);
        for _ in 0..10 {
            pair.wait(Duration::from_millis(1_500));
            if pair.acceptor.reset_of(accepted).is_some() {
                break;
            }
            assert!(matches!(pair.acceptor.recv(accepted), Ok(Recv::Data(_))));
            trickle(&mut pair);
        }
        let reset = pair.acceptor.reset_of(accepted).expect("no reset");
        assert_eq!(reset.reason, Reason::Overflow);
    }

    #[test]
    fn reading_ends_the_stall() {
        let mut pair = Pair::with(Version::V1, small());
        let (opened, accepted) = pair.stream();
        stall(&mut pair, opened);
        drain(&mut pair.acceptor, accepted).1.unwrap();
        assert!(pair.acceptor.can_receive());
        assert_eq!(pair.acceptor.poll_timeout(), None);
    }

    #[test]
    fn releasing_or_resetting_the_slow_stream_ends_the_stall() {
        for release in [true, false] {
            let mut pair = Pair::with(Version::V1, small());
            let (opened, accepted) = pair.stream();
            stall(&mut pair, opened);
            match release {
                true => pair.acceptor.release(accepted),
                false => pair.acceptor.reset(accepted, Reason::Reset, ""),
            }
            assert!(pair.acceptor.can_receive());
        }
    }

    #[test]
    fn the_acceptor_lingers_after_close_for_a_bounded_time() {
        let mut pair = Pair::with(Version::V1, small());
        let (opened, accepted) = pair.stream();
        pair.opener.finish(opened);
        pair.run();
        pair.wait(Duration::from_secs(9));
        assert_eq!(pair.acceptor.state(accepted), Some(State::RemoteFinished));
        pair.wait(Duration::from_secs(2));
        assert_eq!(pair.acceptor.state(accepted), Some(State::Closed));
        assert_eq!(pair.opener.state(opened), Some(State::Closed));
    }

    #[test]
    fn the_opener_waits_as_long_as_the_reply_comes() {
        let mut opener = Session::new(Role::Opener, Version::V1, small(), at(0));
        let stream = opener.open_tcp(1, at(0)).unwrap();
        opener.finish(stream);
        messages(&mut opener, at(0));
        let connected = Frame::Connected {
            proto: Proto::Tcp,
            id: ClientId(1),
        };
        say(&mut opener, at(1), connected).unwrap();
        for seconds in 1..10 {
            let now = at(seconds * 9_000);
            assert!(opener.poll_timeout().unwrap() > now);
            say(&mut opener, now, data(1, "more")).unwrap();
        }
        assert_eq!(opener.poll_timeout(), Some(at(91_000)));
        opener.handle_timeout(at(91_000));
        let (read, end) = drain(&mut opener, stream);
        assert_eq!((read.len(), reason(end)), (36, Reason::Gone));
    }

    /// While the tunnel stalls nothing is received, so nothing can be said about who is silent.
    #[test]
    fn a_stall_does_not_use_up_the_linger_of_others() {
        let mut pair = Pair::with(Version::V1, small());
        let patient = config(|config| config.linger = Duration::from_secs(3600));
        pair.acceptor = Session::new(Role::Acceptor, Version::V1, patient, pair.now);
        let (slow, their_slow) = pair.stream();
        let (replying, asked) = pair.stream();
        pair.opener.finish(replying);
        pair.run();
        // The replies come to the opener, which stalls on another stream that is read, but slowly.
        let fill_back = |pair: &mut Pair| {
            while pair.opener.can_receive() {
                fill(&mut pair.acceptor, their_slow);
                pair.run();
            }
        };
        fill_back(&mut pair);
        pair.acceptor.send_slice(asked, b"reply").unwrap();
        pair.acceptor.finish(asked);
        let mut held = pair.opener.stats().unread;
        for _ in 0..12 {
            // Enough to count as progress, never enough to end the stall.
            pair.wait(Duration::from_secs(1));
            let message = data(1, vec![0; 64 << 10]);
            if let Ok(Recv::Data(data)) = pair.opener.recv(slow) {
                held -= data.len();
            }
            while held < 256 << 10 {
                say(&mut pair.opener, pair.now, message.clone()).unwrap();
                held += 64 << 10;
            }
        }
        assert_eq!(pair.opener.reset_of(replying), None);
        drain(&mut pair.opener, slow).1.unwrap();
        pair.run();
        let read = drain(&mut pair.opener, replying);
        assert_eq!(read, (b"reply".to_vec(), Ok(Recv::Finished)));
    }

    #[test]
    fn a_second_close_ends_what_is_left() {
        let mut pair = Pair::with(Version::V1, small());
        let (opened, accepted) = pair.stream();
        pair.opener.finish(opened);
        pair.run();
        say(&mut pair.acceptor, pair.now, close(1)).unwrap();
        assert_eq!(
            pair.acceptor.reset_of(accepted).unwrap().reason,
            Reason::Gone
        );
    }

    #[test]
    fn the_deployed_agents_quirks_are_no_violations() {
        let mut opener = Session::new(Role::Opener, Version::V1, small(), at(0));
        let stream = opener.open_tcp(1, at(0)).unwrap();
        let connected = [2, 0, 0, 0, 0, 1, 0x1f, 0x90]; // the port is reserved there
        opener
            .handle_message(at(0), Bytes::copy_from_slice(&connected))
            .unwrap();
        // The service ends, and still reads.
        say(&mut opener, at(0), data(1, "bye")).unwrap();
        say(&mut opener, at(0), close(1)).unwrap();
        opener.send_slice(stream, b"thanks").unwrap();
        opener.finish(stream);
        let said = messages(&mut opener, at(0));
        assert_eq!(said.last(), Some(&close(1)));
        // Late frames of a closed id.
        say(&mut opener, at(0), data(1, "late")).unwrap();
        say(&mut opener, at(0), close(1)).unwrap();
        say(&mut opener, at(0), error(1, 8080, b"mid-stream")).unwrap();
        let pong = Frame::Pong {
            id: ClientId(7),
            payload: Bytes::new(),
        };
        say(&mut opener, at(0), pong).unwrap();
        assert_eq!(opener.stats().violations, 0);
    }
}

mod hostile {
    use super::*;

    #[test]
    fn data_for_nobody_is_answered_once() {
        for version in BOTH {
            for role in [Role::Opener, Role::Acceptor] {
                let mut session = Session::new(role, version, Config::default(), at(0));
                let id = ClientId(77);
                let kind = Kind::Data;
                let first = say(&mut session, at(0), data(77, "flood"));
                assert_eq!(first, Err(Violation::UnknownStream { kind, id }));
                for _ in 0..100 {
                    let _ = say(&mut session, at(0), data(77, "flood"));
                }
                let said = messages(&mut session, at(0));
                let expected = match version {
                    Version::V1 => close(77),
                    Version::V2 => error(77, Reason::Gone.code(), b"no such connection"),
                };
                assert_eq!(said, [expected]);
                assert_eq!(session.stats().stray_data, 101);
                assert_eq!(session.stats().bytes_received, 0);
            }
        }
    }

    #[test]
    fn late_frames_after_the_end_change_nothing() {
        let mut pair = Pair::new(Version::V2);
        let (opened, accepted) = pair.stream();
        pair.opener.reset(opened, Reason::Reset, "");
        pair.run();
        pair.opener.release(opened);
        pair.acceptor.release(accepted);
        for session in [&mut pair.opener, &mut pair.acceptor] {
            let window = Frame::Window {
                id: ClientId(1),
                credit: 1,
            };
            for late in [data(1, "x"), close(1), error(1, 8, b""), window] {
                say(session, at(0), late).unwrap();
            }
            assert_eq!(messages(session, at(0)), []);
            assert_eq!(session.stats().violations, 0);
            assert!(session.is_idle());
        }
    }

    #[test]
    fn every_breach_is_counted_and_survived() {
        let connected = |id| Frame::<Bytes>::Connected {
            proto: Proto::Tcp,
            id: ClientId(id),
        };
        let window = |id| Frame::<Bytes>::Window {
            id: ClientId(id),
            credit: 1,
        };
        let udp = Frame::Data {
            proto: Proto::Udp,
            id: ClientId(1),
            payload: Bytes::from_static(b"x"),
        };
        for version in BOTH {
            for role in [Role::Opener, Role::Acceptor] {
                let mut pair = Pair::new(version);
                let (opened, accepted) = pair.stream();
                let (session, stream) = match role {
                    Role::Opener => (&mut pair.opener, opened),
                    Role::Acceptor => (&mut pair.acceptor, accepted),
                };
                let breaches = [
                    connect(1).to_bytes(),
                    connected(1).to_bytes(),
                    connected(99).to_bytes(),
                    close(98).to_bytes(),
                    error(97, 0, b"").to_bytes(),
                    window(96).to_bytes(),
                    udp.to_bytes(),
                    Bytes::from_static(b"short"),
                    Bytes::from_static(&[0xff, 0, 0, 0, 0, 1, 0, 0]),
                    Bytes::from_static(&[3, 9, 0, 0, 0, 1, 0, 0]),
                    Bytes::from_static(&[3, 0, 0, 0, 0, 0, 0, 0]),
                    Bytes::from_static(&[8, 0, 0, 0, 0, 1, 0, 0, 1]),
                    Bytes::new(),
                ];
                for (i, breach) in breaches.into_iter().enumerate() {
                    let outcome = session.handle_message(at(0), breach.clone());
                    assert!(outcome.is_err(), "{version:?} {role:?} {breach:?}");
                    assert_eq!(session.stats().violations, i as u64 + 1);
                }
                assert_eq!(session.state(stream), Some(State::Open));
                assert_eq!(messages(session, at(0)), []);
            }
        }
    }

    #[test]
    fn the_error_says_what_was_wrong() {
        let mut opener = Session::new(Role::Opener, Version::V1, Config::default(), at(0));
        let go = say(&mut opener, at(0), Frame::GoAway);
        assert_eq!(go, Err(Violation::NotInVersion(Kind::GoAway)));
        let wrong = say(&mut opener, at(0), connect(5));
        assert_eq!(wrong, Err(Violation::WrongRole(Kind::Connect)));
        let short = opener.handle_message(at(0), Bytes::from_static(b"abc"));
        let truncated = DecodeError::Truncated { len: 3 };
        assert_eq!(short, Err(Violation::Malformed(truncated)));
    }

    #[test]
    fn data_before_connected_resets_the_stream() {
        let mut opener = Session::new(Role::Opener, Version::V2, Config::default(), at(0));
        let stream = opener.open_tcp(1, at(0)).unwrap();
        assert!(say(&mut opener, at(0), data(1, "too early")).is_err());
        assert_eq!(opener.state(stream), Some(State::Closed));
        let said = messages(&mut opener, at(0));
        assert!(said.iter().any(|frame| frame.kind() == Kind::Error));
    }

    #[test]
    fn data_after_close_resets_a_v2_stream() {
        let mut pair = Pair::new(Version::V2);
        let (opened, accepted) = pair.stream();
        pair.opener.send_slice(opened, b"all").unwrap();
        pair.opener.finish(opened);
        pair.run();
        assert!(say(&mut pair.acceptor, at(0), data(1, "and more")).is_err());
        let (read, end) = drain(&mut pair.acceptor, accepted);
        assert_eq!((&read[..], reason(end)), (&b"all"[..], Reason::Reset));
    }

    #[test]
    fn a_peers_words_are_bounded_and_fit_one_line() {
        for text in [
            [0xff; 5000],
            [b'\n'; 5000],
            *b"\xf0\x9f\x98\x80".repeat(1250).first_chunk().unwrap(),
        ] {
            let mut opener = Session::new(Role::Opener, Version::V2, Config::default(), at(0));
            let stream = opener.open_tcp(1, at(0)).unwrap();
            let frame = Frame::Error {
                proto: Proto::Tcp,
                id: ClientId(1),
                code: 0xffff,
                text: Bytes::copy_from_slice(&text),
            };
            say(&mut opener, at(0), frame).unwrap();
            let reset = opener.reset_of(stream).unwrap();
            assert!(reset.text.len() <= Reset::MAX_TEXT, "{}", reset.text.len());
            assert!(!reset.text.contains('\n'));
            assert_eq!(reset.reason, Reason::Unspecified);
        }
    }

    #[test]
    fn an_id_that_ended_may_be_opened_again_by_the_peer() {
        for version in BOTH {
            let mut acceptor = Session::new(Role::Acceptor, version, Config::default(), at(0));
            for round in 0..3 {
                say(&mut acceptor, at(0), connect(9)).unwrap();
                say(&mut acceptor, at(0), data(9, vec![round])).unwrap();
                let stream = incoming(&mut acceptor);
                assert_eq!(acceptor.recv(stream), Ok(Recv::Data(vec![round].into())));
                // The handle of the old one is kept for a while.
                acceptor.reset(stream, Reason::Reset, "");
                messages(&mut acceptor, at(0));
            }
            assert_eq!(acceptor.stats().streams, 3);
            assert_eq!(acceptor.stats().violations, 0);
        }
    }
}
