//! The session's use of a link, on a virtual clock: the figures are exact and equal in every run.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use kohakuriver_tunnel::session::{
    Config, Event, Instant, Recv, Session, State, StreamId, Transmit, Version,
};
use kohakuriver_tunnel::wire::{Chunk, Frame, Proto};

use super::network::{self, LinkConfig, Network, Side, ignore};

const GIGABIT: u64 = 1_000_000_000;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Sends endlessly on some streams and reads what arrives, except on some streams.
struct Bulk {
    source: Bytes,
    /// Streams of the acceptor by port: those of `stalled` ports are not read.
    ports: HashMap<StreamId, u16>,
    stalled: u16,
    received: HashMap<u16, u64>,
    /// Streams of the opener that send endlessly.
    senders: Vec<StreamId>,
}

impl Bulk {
    fn new(stalled: u16) -> Self {
        Self {
            source: Bytes::from(vec![0x5a; 1 << 20]),
            ports: HashMap::new(),
            stalled,
            received: HashMap::new(),
            senders: Vec::new(),
        }
    }

    fn open(&mut self, network: &mut Network, ports: std::ops::Range<u16>) {
        let now = network.now();
        for port in ports {
            let stream = network.opener.session.open_tcp(port, now).unwrap();
            self.senders.push(stream);
            self.fill(&mut network.opener.session, stream);
        }
    }

    fn fill(&self, session: &mut Session, stream: StreamId) {
        while let Ok(room @ 1..) = session.send_capacity(stream) {
            let chunk = Chunk::from(self.source.slice(..room));
            session.send(stream, chunk).unwrap();
        }
        session.request_writable(stream);
    }

    fn total(&self) -> u64 {
        self.received.values().sum()
    }
}

impl network::App for Bulk {
    fn on_event(&mut self, side: Side, session: &mut Session, event: Event, now: Instant) {
        match (side, event) {
            (Side::Opener, Event::Writable(stream)) if self.senders.contains(&stream) => {
                self.fill(session, stream);
            }
            (Side::Acceptor, Event::Incoming { stream, port, .. }) => {
                session.accept(stream, now).unwrap();
                self.ports.insert(stream, port);
            }
            (Side::Acceptor, Event::Readable(stream)) => {
                let port = self.ports[&stream];
                if port >= self.stalled {
                    while let Ok(Recv::Data(data)) = session.recv(stream, now) {
                        *self.received.entry(port).or_default() += data.len() as u64;
                    }
                }
            }
            _ => {}
        }
    }
}

/// The squared sum over the sum of squares: 1 if all are equal, 1/n if one has everything.
fn jain(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|share| *share as f64).sum();
    let squares: f64 = shares.iter().map(|share| (*share as f64).powi(2)).sum();
    sum * sum / (shares.len() as f64 * squares)
}

#[test]
fn one_stream_fills_a_long_fat_link_within_three_seconds_and_keeps_it() {
    let link = LinkConfig::new(GIGABIT, millis(50));
    let mut network = Network::symmetric(Version::V2, Config::default(), link);
    let mut bulk = Bulk::new(0);
    bulk.open(&mut network, 1..2);
    let mut last = 0;
    let mut shares = Vec::new();
    for _ in 0..20 {
        network.run_for(millis(250), &mut bulk);
        let share = (bulk.total() - last) as f64 * 4.0 / (GIGABIT / 8) as f64;
        shares.push((share * 1000.0).round() / 10.0);
        last = bulk.total();
    }
    println!("percent of 1 Gbit/s at 100 ms, each 250 ms: {shares:?}");
    assert!(shares[8..].iter().all(|share| *share >= 90.0), "{shares:?}");
    assert!(network.acceptor.violations.is_empty());
    let unread = network.acceptor.session.stats().unread;
    assert!(unread <= Config::default().receive_budget);
}

/// The window lent to one stream is available for the next after it has ended.
#[test]
fn one_stream_after_the_other_fills_the_link() {
    let link = LinkConfig::new(GIGABIT, millis(50));
    let mut network = Network::symmetric(Version::V2, Config::default(), link);
    let mut bulk = Bulk::new(0);
    for port in 1..4 {
        bulk.open(&mut network, port..port + 1);
        network.run_for(millis(2500), &mut bulk);
        let before = bulk.total();
        network.run_for(millis(500), &mut bulk);
        let share = (bulk.total() - before) as f64 * 2.0 / (GIGABIT / 8) as f64;
        assert!(share >= 0.9, "stream {port}: {share}");
        let stream = bulk.senders.pop().unwrap();
        network.opener.session.finish(stream);
        network.run_for(millis(1000), &mut bulk);
        for stream in bulk.ports.keys() {
            network.acceptor.session.finish(*stream);
        }
        network.run_for(millis(1000), &mut bulk);
        assert_eq!(network.opener.session.state(stream), Some(State::Closed));
    }
}

#[test]
fn stalled_streams_leave_a_fair_share_to_all_others() {
    let link = LinkConfig::new(GIGABIT, millis(5));
    let mut network = Network::symmetric(Version::V2, Config::default(), link);
    const STALLED: u16 = 10;
    const STREAMS: u16 = 1000;
    let mut bulk = Bulk::new(STALLED);
    bulk.open(&mut network, 0..STREAMS);
    network.run_for(millis(1000), &mut bulk);
    let before = bulk.received.clone();
    network.run_for(millis(2000), &mut bulk);
    let shares: Vec<u64> = (STALLED..STREAMS)
        .map(|port| bulk.received[&port] - before[&port])
        .collect();
    let (jain, sum) = (jain(&shares), shares.iter().sum::<u64>());
    let percent = sum as f64 * 50.0 / (GIGABIT / 8) as f64;
    let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
    println!("Jain {jain:.4}, {percent:.1} % of the link, shares {least}..{most}");
    assert!(jain >= 0.95, "{jain}");
    assert!(percent >= 90.0, "{percent}");
    assert_eq!(network.acceptor.session.stats().resets, 0);
}

/// Echoes on one port, receives bulk on the others, and counts round trips.
struct Echo {
    bulk: Bulk,
    stream: StreamId,
    sent: Instant,
    trips: Vec<Duration>,
}

const ECHO_PORT: u16 = 7;
const KEYSTROKE: [u8; 64] = [1; 64];

impl network::App for Echo {
    fn on_event(&mut self, side: Side, session: &mut Session, event: Event, now: Instant) {
        match (side, event) {
            (Side::Opener, Event::Readable(stream)) if stream == self.stream => {
                while let Ok(Recv::Data(_)) = session.recv(stream, now) {
                    self.trips.push(now - self.sent);
                    self.sent = now;
                    assert_eq!(session.send_slice(stream, &KEYSTROKE).unwrap(), 64);
                }
            }
            (Side::Acceptor, Event::Readable(stream)) if self.bulk.ports[&stream] == ECHO_PORT => {
                while let Ok(Recv::Data(data)) = session.recv(stream, now) {
                    assert_eq!(session.send_slice(stream, &data).unwrap(), data.len());
                }
            }
            _ => self.bulk.on_event(side, session, event, now),
        }
    }
}

/// Round trips of 64 bytes beside `uploads` bulk streams, in bytes that the link carried meanwhile,
/// beyond its delay and the socket's buffer.
fn queueing_beside(uploads: u16, stalled: u16) -> u64 {
    const RATE: u64 = GIGABIT / 10;
    let link = LinkConfig::new(RATE, millis(10));
    let mut network = Network::symmetric(Version::V2, Config::default(), link);
    let mut bulk = Bulk::new(100 + stalled);
    bulk.open(&mut network, 100..100 + uploads);
    network.run_for(millis(500), &mut bulk);
    let (sent, session) = (network.now(), &mut network.opener.session);
    bulk.stalled = 100 + stalled;
    let stream = session.open_tcp(ECHO_PORT, sent).unwrap();
    session.send_slice(stream, &KEYSTROKE).unwrap();
    let mut echo = Echo {
        bulk,
        stream,
        sent,
        trips: Vec::new(),
    };
    network.run_for(millis(3000), &mut echo);
    assert!(echo.trips.len() > 50, "{}", echo.trips.len());
    let socket = (link.send_buffer + (64 << 10)) as u64;
    let worst = echo.trips.iter().max().unwrap();
    let beyond = worst.saturating_sub(millis(20));
    (beyond.as_micros() as u64 * (RATE / 8) / 1_000_000).saturating_sub(socket)
}

/// In the session a keystroke waits for at most one piece of each bulk stream.
#[test]
fn a_keystroke_waits_for_at_most_one_piece_of_each_bulk_stream() {
    for (uploads, stalled) in [(1, 0), (4, 0), (4, 3), (16, 0)] {
        let queued = queueing_beside(uploads, stalled);
        println!("{queued} bytes beside {uploads} uploads, {stalled} of them stalled");
        assert!(queued <= u64::from(uploads) * (64 << 10), "{queued}");
    }
}

/// The same without a link: the output of `poll_transmit` before the keystroke.
#[test]
fn a_fresh_stream_goes_ahead_of_queued_bulk() {
    let mut network = Network::symmetric(
        Version::V2,
        Config::default(),
        LinkConfig::new(GIGABIT, millis(1)),
    );
    let mut bulk = Bulk::new(0);
    bulk.open(&mut network, 1..9);
    // Every stream is accepted and has had its first turn.
    network.run_for(millis(4), &mut bulk);
    let now = network.now();
    let session = &mut network.opener.session;
    for _ in 0..4 {
        session.poll_transmit(now).unwrap();
    }
    assert!(session.stats().unsent > 0);
    let stream = session.open_tcp(ECHO_PORT, now).unwrap();
    session.send_slice(stream, &KEYSTROKE).unwrap();
    let id = session.client_id(stream).unwrap();
    let mut ahead = 0;
    loop {
        let Some(Transmit::Message(message)) = session.poll_transmit(now) else {
            panic!("the keystroke was not transmitted");
        };
        match Frame::decode(message).unwrap() {
            Frame::Data { id: of, .. } if of == id => break,
            frame => ahead += frame.payload().len(),
        }
    }
    assert_eq!(ahead, 0);
}

#[test]
fn a_slow_reader_gets_what_it_reads_and_the_sender_waits() {
    let link = LinkConfig::new(GIGABIT, millis(5));
    let mut network = Network::symmetric(Version::V2, Config::default(), link);
    let mut bulk = Bulk::new(u16::MAX);
    bulk.open(&mut network, 1..2);
    let mut read = 0;
    for _ in 0..100 {
        network.run_for(millis(10), &mut bulk);
        let stream = *bulk.ports.keys().next().unwrap();
        let now = network.now();
        let session = &mut network.acceptor.session;
        if let Ok(Recv::Data(data)) = session.recv(stream, now) {
            read += data.len();
        }
        let held = session.stats().unread;
        assert!(
            held <= 256 << 10,
            "the window of a slow reader grew: {held}"
        );
    }
    assert!(read >= 95 * (32 << 10), "{read}");
}

#[test]
fn an_idle_pair_falls_silent_but_for_its_keepalive() {
    for keepalive in [None, Some(Duration::from_secs(15))] {
        let mut config = Config::default();
        config.keepalive = keepalive;
        let link = LinkConfig::new(GIGABIT, millis(5));
        let mut network = Network::symmetric(Version::V2, config, link);
        let mut bulk = Bulk::new(0);
        bulk.open(&mut network, 1..4);
        network.run_for(millis(100), &mut bulk);
        bulk.source = Bytes::new();
        bulk.senders.clear();
        network.run_for(Duration::from_secs(20), &mut bulk);
        let before = network.opener.messages + network.acceptor.messages;
        let silent = network.run_until_silent(Duration::from_secs(3600), &mut bulk);
        let said = network.opener.messages + network.acceptor.messages - before;
        assert_eq!(silent, keepalive.is_none());
        match keepalive {
            None => assert_eq!(said, 0),
            // A PING and a PONG per interval, by whichever end is first; both ends may be in step.
            Some(_) => assert!((240..=960).contains(&said), "{said}"),
        }
        assert!(!network.opener.session.is_closed());
    }
}

#[test]
fn a_cut_resets_every_stream_and_leaves_nothing_to_do() {
    let link = LinkConfig::new(GIGABIT, millis(5));
    let mut network = Network::symmetric(Version::V2, Config::default(), link);
    let mut bulk = Bulk::new(0);
    bulk.open(&mut network, 1..20);
    network.run_for(millis(50), &mut bulk);
    network.cut();
    assert!(network.run_until_silent(Duration::from_secs(60), &mut bulk));
    for side in Side::BOTH {
        let session = network.session(side);
        assert!(session.is_closed() && !session.has_transmit());
        assert_eq!(session.poll_timeout(), None);
        assert_eq!((session.stats().resets, session.stats().streams), (19, 19));
    }
    let now = network.now();
    for stream in bulk.senders.clone() {
        assert_eq!(network.opener.session.state(stream), Some(State::Closed));
        network.opener.session.release(stream, now);
    }
    let acceptor = &mut network.acceptor.session;
    for stream in bulk.ports.keys() {
        acceptor.release(*stream, now);
    }
    for side in Side::BOTH {
        let stats = network.session(side).stats();
        assert_eq!((stats.streams, stats.unread, stats.unsent), (0, 0, 0));
    }
}

#[test]
fn a_peer_that_vanishes_is_dead_after_two_intervals() {
    for version in [Version::V1, Version::V2] {
        let link = LinkConfig::new(GIGABIT, millis(5));
        let mut network = Network::symmetric(version, Config::default(), link);
        let now = network.now();
        network.opener.session.open_tcp(1, now).unwrap();
        network.run_for(Duration::from_secs(100), &mut ignore);
        assert!(!network.opener.session.is_closed(), "{version:?}");
        network.go_silent();
        let (from, mut dead) = (network.now(), Vec::new());
        let mut watch = |side, _: &mut Session, event, now: Instant| {
            if event == Event::PeerDead {
                dead.push((side, now - from));
            }
        };
        network.run_for(Duration::from_secs(31), &mut watch);
        assert_eq!(dead.len(), 2, "{version:?}: {dead:?}");
        for (_, after) in dead {
            assert!(after <= Duration::from_secs(30) && after >= Duration::from_secs(15));
        }
    }
}

#[test]
fn v1_and_v2_datagrams_cross_a_link_beside_bulk() {
    for version in [Version::V1, Version::V2] {
        let link = LinkConfig::new(GIGABIT / 10, millis(5));
        let mut network = Network::symmetric(version, Config::default(), link);
        let mut bulk = Bulk::new(0);
        bulk.open(&mut network, 1..5);
        let now = network.now();
        let flow = network.opener.session.open_udp(53, now).unwrap();
        let mut latest = Duration::ZERO;
        let mut count = 0;
        let mut app = |side, session: &mut Session, event, now: Instant| match (side, event) {
            (
                Side::Acceptor,
                Event::Incoming {
                    stream,
                    proto: Proto::Udp,
                    ..
                },
            ) => session.accept(stream, now).unwrap(),
            (Side::Acceptor, Event::Readable(stream)) if !bulk.ports.contains_key(&stream) => {
                while let Ok(Recv::Data(data)) = session.recv(stream, now) {
                    let sent = u64::from_be_bytes(data[..].try_into().unwrap());
                    latest = latest.max(now - Instant::from_micros(sent));
                    count += 1;
                }
            }
            _ => network::App::on_event(&mut bulk, side, session, event, now),
        };
        for _ in 0..100 {
            let stamp = network.now().as_micros().to_be_bytes();
            let datagram = Chunk::copied(&stamp);
            network
                .opener
                .session
                .send_datagram(flow, datagram)
                .unwrap();
            network.run_for(millis(3), &mut app);
        }
        network.run_for(millis(50), &mut app);
        assert_eq!(count, 100, "{version:?}");
        // The delay and a full socket; in the session a datagram does not wait.
        assert!(latest <= millis(5 + 16), "{version:?} {latest:?}");
    }
}
