//! Random operations on both ends of a tunnel, against a model that knows only what was sent and what was done.
//!
//! `PROPTEST_CASES` sets how many runs there are.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

mod network;

use std::sync::OnceLock;
use std::time::Duration;

use kohakuriver_tunnel::session::{
    Config, Event, INITIAL_WINDOW, Instant, OpenError, Reason, Recv, SendError, Session, State,
    StreamError, StreamId, Version,
};
use kohakuriver_tunnel::wire::{Chunk, ClientId, Proto};
use proptest::prelude::*;

use self::network::{App, Flow, LinkConfig, Network, Side};

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone)]
enum Op {
    Open {
        udp: bool,
    },
    Accept {
        which: usize,
    },
    Reject {
        which: usize,
    },
    Send {
        side: Side,
        which: usize,
        len: usize,
        copy: bool,
    },
    Recv {
        side: Side,
        which: usize,
        times: usize,
    },
    /// Sends until it blocks, or for a megabyte.
    Flood {
        side: Side,
        which: usize,
    },
    Finish {
        side: Side,
        which: usize,
    },
    Reset {
        side: Side,
        which: usize,
    },
    Release {
        side: Side,
        which: usize,
    },
    Wait {
        micros: u64,
    },
    Rate {
        side: Side,
        kilobytes: u64,
    },
    Ping {
        side: Side,
    },
}

/// What the model knows of a stream; pairs are by side.
#[derive(Debug)]
struct Stream {
    id: ClientId,
    proto: Proto,
    handles: [Option<StreamId>; 2],
    answered: bool,
    /// Bytes, or datagrams.
    sent: [u64; 2],
    /// Bytes; of datagrams the number of the last and one.
    read: [u64; 2],
    finished: [bool; 2],
    /// What this end read last: nothing comes after it.
    ended: [Option<End>; 2],
    /// Sending was refused and no event has come since.
    blocked: [bool; 2],
    /// Somebody ended it before its time, so that bytes may be missing.
    disturbed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    Reset,
}

struct Model {
    version: Version,
    config: Config,
    streams: Vec<Stream>,
    told: u64,
}

impl App for Model {
    fn on_event(&mut self, side: Side, session: &mut Session, event: Event, _: Instant) {
        self.told += 1;
        match event {
            Event::Incoming {
                stream,
                proto,
                port,
            } => {
                let id = session.client_id(stream).unwrap();
                let known = self.streams.iter_mut().find(|s| s.id == id).unwrap();
                assert_eq!((side, known.proto, port), (Side::Acceptor, proto, 80));
                assert_eq!(known.handles[1].replace(stream), None, "{id} came in twice");
            }
            Event::Established(stream) | Event::Readable(stream) | Event::Writable(stream) => {
                let held = |s: &&mut Stream| s.handles[side as usize] == Some(stream);
                let Some(s) = self.streams.iter_mut().find(held) else {
                    panic!("{event:?} of a released stream");
                };
                s.blocked[side as usize] &= event != Event::Writable(stream);
            }
            Event::PeerDead | Event::GoAway => panic!("{event:?}"),
            _ => {}
        }
    }
}

/// Bytes that look the same nowhere: what a stream sends starts at a place that its id and direction choose.
fn pattern(id: ClientId, side: Side, offset: u64, len: usize) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    const PERIOD: u64 = 1 << 19;
    let bytes = BYTES.get_or_init(|| {
        let mut x = 0x9e37_79b9_7f4a_7c15_u64;
        let words = std::iter::repeat_with(|| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x.to_le_bytes()
        });
        let period: Vec<u8> = words.take((1 << 19) / 8).flatten().collect();
        period.repeat(2)
    });
    let start = u64::from(id.0) * 0x1_0001 + side as u64 * 0x7_0003;
    let start = usize::try_from((start + offset) % PERIOD).unwrap();
    &bytes[start..start + len]
}

impl Model {
    /// A stream for which `fits` holds, chosen by `which`.
    fn choose(&self, which: usize, fits: impl Fn(&Stream) -> bool) -> Option<usize> {
        let fit: Vec<_> = (0..self.streams.len())
            .filter(|i| fits(&self.streams[*i]))
            .collect();
        (!fit.is_empty()).then(|| fit[which % fit.len()])
    }

    fn held(&self, which: usize, side: Side) -> Option<(usize, StreamId)> {
        let i = self.choose(which, |s| s.handles[side as usize].is_some())?;
        Some((i, self.streams[i].handles[side as usize]?))
    }

    fn apply(&mut self, network: &mut Network, op: &Op) {
        let now = network.now();
        match *op {
            Op::Open { udp } => {
                let session = &mut network.opener.session;
                let opened = match udp {
                    true => session.open_udp(80, now),
                    false => session.open_tcp(80, now),
                };
                let stream = match opened {
                    Ok(stream) => stream,
                    Err(OpenError::Limit(limit)) => {
                        return assert_eq!(session.stats().streams, limit);
                    }
                    Err(OpenError::Congested) => return,
                    Err(error) => panic!("{error}"),
                };
                let id = session.client_id(stream).unwrap();
                assert!(self.streams.iter().all(|s| s.id != id), "{id} again");
                self.streams.push(Stream {
                    id,
                    proto: if udp { Proto::Udp } else { Proto::Tcp },
                    handles: [Some(stream), None],
                    answered: false,
                    sent: [0; 2],
                    read: [0; 2],
                    finished: [false; 2],
                    ended: [None; 2],
                    blocked: [false; 2],
                    disturbed: false,
                });
            }
            Op::Accept { which } => {
                if let Some(i) = self.choose(which, |s| s.handles[1].is_some() && !s.answered) {
                    self.accept(network, i);
                }
            }
            Op::Reject { which } => {
                let Some(i) = self.choose(which, |s| s.handles[1].is_some() && !s.answered) else {
                    return;
                };
                let s = &mut self.streams[i];
                (s.answered, s.disturbed) = (true, true);
                let handle = s.handles[1].take().unwrap();
                network
                    .acceptor
                    .session
                    .reject(handle, Reason::Refused, "no");
            }
            Op::Send {
                side,
                which,
                len,
                copy,
            } => {
                if let Some((i, handle)) = self.held(which, side) {
                    self.send(network.session(side), side, i, handle, len, copy);
                }
            }
            Op::Recv { side, which, times } => {
                if let Some((i, handle)) = self.held(which, side) {
                    self.recv(network, side, i, handle, times);
                }
            }
            Op::Flood { side, which } => {
                if let Some((i, handle)) = self.held(which, side) {
                    self.flood(network, side, i, handle);
                }
            }
            Op::Finish { side, which } => {
                if let Some((i, handle)) = self.held(which, side) {
                    self.streams[i].finished[side as usize] = true;
                    network.session(side).finish(handle);
                }
            }
            Op::Reset { side, which } => {
                if let Some((i, handle)) = self.held(which, side) {
                    self.streams[i].disturbed = true;
                    network.session(side).reset(handle, Reason::Reset, "reset");
                }
            }
            Op::Release { side, which } => {
                if let Some((i, handle)) = self.held(which, side) {
                    let s = &mut self.streams[i];
                    s.handles[side as usize] = None;
                    s.answered |= side == Side::Acceptor;
                    // What it sent arrives, but what the other side sends may not.
                    s.disturbed = true;
                    network.session(side).release(handle, now);
                }
            }
            Op::Wait { micros } => network.run_for(Duration::from_micros(micros), self),
            Op::Rate { side, kilobytes } => {
                network.end_mut(side).link.config.bytes_per_second = kilobytes << 10;
            }
            Op::Ping { side } => network.session(side).ping(),
        }
    }

    fn accept(&mut self, network: &mut Network, i: usize) {
        let small = self.is_small();
        let s = &mut self.streams[i];
        s.answered = true;
        let handle = s.handles[1].unwrap();
        let now = network.now();
        match network.acceptor.session.accept(handle, now) {
            Ok(()) => {}
            Err(StreamError::Reset(_)) => {
                let over_udp = s.proto == Proto::Udp && s.finished[0];
                assert!(s.disturbed || over_udp || small, "{s:?}");
                s.disturbed = true;
            }
            Err(error) => panic!("{error}: {s:?}"),
        }
    }

    fn send(
        &mut self,
        session: &mut Session,
        side: Side,
        i: usize,
        handle: StreamId,
        len: usize,
        copy: bool,
    ) {
        let small = self.is_small();
        let s = &mut self.streams[i];
        let sent = &mut s.sent[side as usize];
        let outcome = if s.proto == Proto::Udp {
            let mut datagram = sent.to_be_bytes().to_vec();
            datagram.extend_from_slice(pattern(s.id, side, *sent, len.min(2000)));
            session
                .send_datagram(handle, Chunk::copied(&datagram))
                .map(|()| *sent += 1)
        } else if copy {
            let bytes = pattern(s.id, side, *sent, len);
            session.send_slice(handle, bytes).map(|taken| {
                *sent += taken as u64;
                s.blocked[side as usize] = taken == 0 && len > 0;
            })
        } else {
            session.send_capacity(handle).and_then(|capacity| {
                let len = len.min(capacity).max(1);
                s.blocked[side as usize] = capacity == 0;
                let chunk = Chunk::copied(pattern(s.id, side, *sent, len));
                match session.send(handle, chunk) {
                    Err(SendError::Blocked(chunk)) => {
                        assert_eq!(capacity, 0);
                        assert_eq!(chunk.payload(), pattern(s.id, side, *sent, len));
                        Ok(())
                    }
                    outcome => outcome.map(|()| *sent += len as u64),
                }
            })
        };
        match outcome {
            Ok(()) => assert!(!s.finished[side as usize] || len == 0, "{s:?}"),
            Err(SendError::Finished) => {
                let over_udp = s.proto == Proto::Udp && s.finished.contains(&true);
                let early = side == Side::Acceptor && !s.answered;
                let fits = s.finished[side as usize] || over_udp || early || s.disturbed;
                assert!(fits, "{s:?}");
            }
            Err(SendError::Reset(reset)) => {
                assert!(s.disturbed || small, "{reset}: {s:?}");
                s.disturbed = true;
            }
            Err(error) => panic!("{error}: {s:?}"),
        }
    }

    /// Sends until that is refused for a while, or for a megabyte.
    fn flood(&mut self, network: &mut Network, side: Side, i: usize, handle: StreamId) {
        let until = self.streams[i].sent[side as usize] + (1 << 20);
        for _ in 0..200 {
            let before = self.streams[i].sent[side as usize];
            self.send(network.session(side), side, i, handle, 64 << 10, false);
            let s = &self.streams[i];
            let sent = s.sent[side as usize];
            if s.proto == Proto::Udp || sent > until {
                return;
            }
            if sent == before {
                network.run_for(Duration::from_millis(50), self);
                if self.streams[i].blocked[side as usize] {
                    return;
                }
            }
        }
    }

    /// Reads, and holds what comes against what was sent. Says whether anything came.
    fn recv(
        &mut self,
        network: &mut Network,
        side: Side,
        i: usize,
        handle: StreamId,
        times: usize,
    ) -> bool {
        let small = self.is_small();
        let s = &mut self.streams[i];
        let peer = side.other();
        let now = network.now();
        let session = network.session(side);
        for time in 0..times {
            let end = match session.recv(handle, now) {
                Ok(Recv::Blocked) => {
                    assert_eq!(s.ended[side as usize], None, "blocked after the end: {s:?}");
                    return time > 0;
                }
                Ok(Recv::Data(data)) => {
                    assert_eq!(s.ended[side as usize], None, "data after the end: {s:?}");
                    let read = &mut s.read[side as usize];
                    if s.proto == Proto::Udp {
                        let (number, filler) = data.split_first_chunk().unwrap();
                        let number = u64::from_be_bytes(*number);
                        assert!(number >= *read && number < s.sent[peer as usize]);
                        assert_eq!(filler, pattern(s.id, peer, number, filler.len()));
                        *read = number + 1;
                    } else {
                        let expected = pattern(s.id, peer, *read, data.len());
                        assert!(data[..] == *expected, "other bytes than were sent: {s:?}");
                        let read = &mut s.read[side as usize];
                        *read += data.len() as u64;
                        assert!(*read <= s.sent[peer as usize], "more than was sent: {s:?}");
                    }
                    continue;
                }
                Ok(Recv::Finished) => {
                    if s.proto == Proto::Tcp && !s.disturbed {
                        assert!(s.finished[peer as usize], "an end nobody said: {s:?}");
                        assert_eq!(s.read[side as usize], s.sent[peer as usize], "cut short");
                    }
                    End::Finished
                }
                Err(StreamError::Reset(reset)) => {
                    assert!(s.disturbed || small, "{reset}: {s:?}");
                    s.disturbed = true;
                    End::Reset
                }
                Err(error) => panic!("{error}: {s:?}"),
            };
            let before = s.ended[side as usize].replace(end);
            // A direction that ended in order may still see the stream reset, but never the reverse.
            let fits = before.is_none_or(|before| before == end || before == End::Finished);
            assert!(
                fits && (before.is_none_or(|before| before == end) || s.disturbed),
                "{s:?}"
            );
            return time > 0;
        }
        true
    }

    /// Whether bounds are so small that honest streams run into them.
    fn is_small(&self) -> bool {
        self.config.max_streams < 10
    }

    /// What holds at every moment.
    fn check(&self, network: &mut Network) {
        let config = &self.config;
        for side in Side::BOTH {
            let end = network.end(side);
            assert_eq!(
                end.violations,
                [],
                "{side:?} saw its honest peer break the protocol"
            );
            assert!(end.session.audit(), "what is counted is not what is there");
            let stats = end.session.stats();
            let unread = config.receive_budget + config.datagram_budget;
            assert!(stats.unread <= unread, "{stats:?}");
            let reserve = stats.streams * 4096 + config.max_piece;
            let unsent = config.send_budget + config.datagram_budget + reserve;
            assert!(stats.unsent <= unsent, "{stats:?}");
            assert!(stats.streams <= config.max_streams, "{stats:?}");
            assert!(stats.resets <= stats.opened, "{stats:?}");
            assert_eq!(
                (stats.violations, stats.stray_data.min(1)),
                (0, stats.stray_data.min(1))
            );
        }
        if self.version == Version::V2 {
            for s in self.streams.iter().filter(|s| s.proto == Proto::Tcp) {
                self.check_credit(network, s);
            }
        }
    }

    /// Credit and bytes are conserved in each direction.
    fn check_credit(&self, network: &Network, s: &Stream) {
        for side in Side::BOTH {
            let flow = |side| network.end(side).sent.get(&s.id).copied();
            let ours: Flow = flow(side).unwrap_or_default();
            let theirs: Flow = flow(side.other()).unwrap_or_default();
            let initial = u64::from(INITIAL_WINDOW);
            assert!(
                ours.data_sent <= initial + theirs.credit_received,
                "overrun: {s:?}"
            );
            assert!(ours.data_received <= ours.data_sent);
            // The receiver has granted no more than was read, or thrown away by its release, and the largest window.
            let taken = match s.handles[side.other() as usize] {
                Some(_) => s.read[side.other() as usize],
                None => ours.data_received,
            };
            let most = taken + u64::from(self.config.max_window) - initial;
            assert!(theirs.credit_sent <= most, "{theirs:?} {s:?}");
            // Credit held and on its way, bytes on their way and unread are the window.
            let held = initial + theirs.credit_received - ours.data_sent;
            let credit_under_way = theirs.credit_sent - theirs.credit_received;
            let data_under_way = ours.data_sent - ours.data_received;
            let read = s.read[side.other() as usize];
            if !s.disturbed {
                let unread = ours.data_received - read;
                let window = initial + theirs.credit_sent - read;
                assert_eq!(held + credit_under_way + data_under_way + unread, window);
                assert!(ours.data_sent <= s.sent[side as usize]);
            }
            assert!(ours.closes <= 1, "CLOSE twice: {s:?}");
            assert!(ours.errors <= 1, "ERROR twice: {s:?}");
        }
    }

    /// Whoever waits is accepted, and both ends read all there is, until nothing more comes.
    fn read_all(&mut self, network: &mut Network) {
        loop {
            let mut moved = false;
            for i in 0..self.streams.len() {
                if self.streams[i].handles[1].is_some() && !self.streams[i].answered {
                    self.accept(network, i);
                    moved = true;
                }
            }
            for side in Side::BOTH {
                for i in 0..self.streams.len() {
                    if let Some(handle) = self.streams[i].handles[side as usize] {
                        if self.streams[i].ended[side as usize].is_none() {
                            moved |= self.recv(network, side, i, handle, usize::MAX);
                        }
                    }
                }
            }
            let told = self.told;
            network.run_for(Duration::from_secs(10), self);
            self.check(network);
            if !moved && told == self.told {
                return;
            }
        }
    }

    /// Lets everything come to its end and looks at what is left.
    fn wind_up(&mut self, network: &mut Network) {
        for side in Side::BOTH {
            network.end_mut(side).link.config.bytes_per_second = 100 << 20;
        }
        network.run_for(Duration::from_secs(10), self);
        self.read_all(network);
        self.no_window_is_closed(network);
        for side in Side::BOTH {
            for s in &mut self.streams {
                if let Some(handle) = s.handles[side as usize] {
                    s.finished[side as usize] = true;
                    network.session(side).finish(handle);
                }
            }
        }
        self.read_all(network);
        // Streams that were released on one side only are given up after a while.
        let silent = network.run_until_silent(10 * HOUR, self);
        assert!(silent, "an idle pair does not fall silent");
        self.read_all(network);
        let now = network.now();
        for s in &mut self.streams {
            for side in Side::BOTH {
                let Some(handle) = s.handles[side as usize].take() else {
                    continue;
                };
                let session = network.session(side);
                assert_eq!(session.state(handle), Some(State::Closed), "{s:?}");
                let end = s.ended[side as usize].expect("a stream has no end");
                assert!(!s.blocked[side as usize], "a writer was not woken: {s:?}");
                if !s.disturbed {
                    assert_eq!(end, End::Finished);
                    if s.proto == Proto::Tcp {
                        assert_eq!(s.read[side as usize], s.sent[side.other() as usize]);
                    }
                }
                session.release(handle, now);
                assert_eq!(session.state(handle), None);
            }
        }
        assert!(network.run_until_silent(10 * HOUR, self));
        for side in Side::BOTH {
            assert_eq!(network.end(side).link.in_flight(), 0);
            let session = network.session(side);
            let stats = session.stats();
            assert_eq!((stats.streams, stats.unread, stats.unsent), (0, 0, 0));
            assert!(session.is_idle() && !session.has_transmit() && session.can_receive());
            assert_eq!((session.poll_timeout(), session.poll_event()), (None, None));
        }
        self.check(network);
    }

    /// All was read: whoever may send can.
    fn no_window_is_closed(&mut self, network: &mut Network) {
        for side in Side::BOTH {
            // Where the other side has let go, the sender learns when that gives up.
            let undisturbed = self.streams.iter().filter(|s| !s.disturbed);
            for s in undisturbed {
                if let (Some(handle), Proto::Tcp) = (s.handles[side as usize], s.proto) {
                    let waits = s.blocked[side as usize] && !s.finished[side as usize];
                    assert!(!waits, "a writer was not woken: {s:?}");
                    match network.session(side).send_capacity(handle) {
                        Ok(room) => assert!(room > 0, "a window stays closed: {s:?}"),
                        Err(SendError::Finished | SendError::Reset(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
    }
}

/// Large bounds, small ones that cost only speed, and ones that honest streams run into.
fn configs() -> impl Strategy<Value = Config> {
    (0..3).prop_map(|size| {
        let mut config = Config::default();
        config.keepalive = None;
        // Whatever the random phase does, a v1 stream is not given up for it.
        config.linger = HOUR;
        config.v1_stall = HOUR;
        if size > 0 {
            config.max_piece = 1000;
            config.contended_piece = 300;
            config.stream_send_buffer = 5_000;
            config.send_budget = 10_000;
            config.max_window = INITIAL_WINDOW + 10_000;
            config.v1_stream_buffer = 10_000;
            config.datagram_queue = 3;
            config.datagram_buffer = 3_000;
            config.datagram_budget = 5_000;
            config.max_replies = 16;
        }
        if size > 1 {
            config.max_streams = 6;
            config.accept_backlog = 2;
            config.receive_budget = 60_000;
        }
        config
    })
}

fn links() -> impl Strategy<Value = LinkConfig> {
    let buffers = (0..3_usize, 0..3_usize);
    (0..100_u64, 0..20_u64, 10..100_000_u64, buffers).prop_map(
        |(delay, jitter, kilobytes, (send_buffer, pipe))| LinkConfig {
            bytes_per_second: kilobytes << 10,
            delay: Duration::from_millis(delay),
            jitter: Duration::from_millis(jitter),
            send_buffer: [1, 10_000, 128 << 10][send_buffer],
            pipe: [0, 20_000, 1 << 20][pipe],
        },
    )
}

fn sides() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Opener), Just(Side::Acceptor)]
}

fn ops() -> impl Strategy<Value = Op> {
    let which = 0..1000_usize;
    let len = prop_oneof![4 => 0..3_000_usize, 1 => 0..200_000_usize];
    let times = prop_oneof![3 => 1..4_usize, 1 => Just(1_000_usize)];
    let at = || (sides(), 0..1000_usize);
    prop_oneof![
        4 => prop_oneof![3 => Just(false), 1 => Just(true)].prop_map(|udp| Op::Open { udp }),
        5 => which.clone().prop_map(|which| Op::Accept { which }),
        1 => which.prop_map(|which| Op::Reject { which }),
        24 => (at(), len, any::<bool>())
            .prop_map(|((side, which), len, copy)| Op::Send { side, which, len, copy }),
        16 => (at(), times).prop_map(|((side, which), times)| Op::Recv { side, which, times }),
        3 => at().prop_map(|(side, which)| Op::Flood { side, which }),
        3 => at().prop_map(|(side, which)| Op::Finish { side, which }),
        1 => at().prop_map(|(side, which)| Op::Reset { side, which }),
        1 => at().prop_map(|(side, which)| Op::Release { side, which }),
        16 => prop_oneof![0..2_000_u64, 0..1_000_000_u64].prop_map(|micros| Op::Wait { micros }),
        1 => (sides(), 10..100_000_u64)
            .prop_map(|(side, kilobytes)| Op::Rate { side, kilobytes }),
        1 => sides().prop_map(|side| Op::Ping { side }),
    ]
}

fn run(version: Version, config: Config, links: [LinkConfig; 2], seed: u64, ops: &[Op]) {
    let configs = [config.clone(), config.clone()];
    let mut network = Network::new(version, configs, links, seed);
    network.tapped = true;
    network.batch = usize::try_from(seed % 7).unwrap() + 1;
    let mut model = Model {
        version,
        config,
        streams: Vec::new(),
        told: 0,
    };
    for op in ops {
        model.apply(&mut network, op);
        model.check(&mut network);
    }
    model.wind_up(&mut network);
}

fn cases(standard: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig {
        cases: cases.and_then(|n| n.parse().ok()).unwrap_or(standard),
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn v2_does_what_the_model_does(
        config in configs(), out in links(), back in links(), seed in any::<u64>(),
        ops in prop::collection::vec(ops(), 0..200),
    ) {
        run(Version::V2, config, [out, back], seed, &ops);
    }

    #[test]
    fn v1_does_what_the_model_does(
        config in configs(), out in links(), back in links(), seed in any::<u64>(),
        ops in prop::collection::vec(ops(), 0..200),
    ) {
        run(Version::V1, config, [out, back], seed, &ops);
    }
}
