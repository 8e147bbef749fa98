//! The memory of an idle stream, counted at the allocator.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

mod counting;

use std::time::Duration;

use bytes::Bytes;
use counting::counts;
use kohakuriver_tunnel::session::{
    Allowance, Config, Event, Instant, Reason, Recv, Role, Session, StreamId, Transmit, Version,
};
use kohakuriver_tunnel::wire::{Chunk, ClientId, Frame, Proto};

const STREAMS: usize = 10_000;
const NOW: Instant = Instant::from_micros(0);

fn config() -> Config {
    let mut config = Config::default();
    config.accept_backlog = STREAMS;
    config.send_budget = 4 << 20;
    config
}

fn pass(from: &mut Session, to: &mut Session) {
    while to.can_receive() {
        match from.poll_transmit(NOW) {
            Some(Transmit::Message(message)) => to.handle_message(NOW, message).unwrap(),
            Some(Transmit::Ping) => {}
            Some(other) => panic!("unknown: {other:?}"),
            None => return,
        }
    }
}

fn settle(opener: &mut Session, acceptor: &mut Session) {
    while opener.has_transmit() || acceptor.has_transmit() {
        pass(opener, acceptor);
        pass(acceptor, opener);
    }
}

#[test]
fn ten_thousand_idle_streams_and_what_waits_for_a_stuck_link() {
    for version in [Version::V1, Version::V2] {
        idle_streams(version);
    }
    small_writes_on_a_stuck_link();
}

fn idle_streams(version: Version) {
    let mut opener = Session::new(Role::Opener, version, config(), NOW);
    let mut acceptor = Session::new(Role::Acceptor, version, config(), NOW);
    let mut opened = Vec::with_capacity(STREAMS);
    let mut accepted: Vec<StreamId> = Vec::with_capacity(STREAMS);
    let empty = counts();
    for _ in 0..STREAMS {
        let stream = opener.open_tcp(80, NOW).unwrap();
        opener.send_slice(stream, &[1; 1000]).unwrap();
        opened.push(stream);
        settle(&mut opener, &mut acceptor);
        while let Some(event) = acceptor.poll_event() {
            if let Event::Incoming { stream, .. } = event {
                acceptor.accept(stream, NOW).unwrap();
                accepted.push(stream);
            }
        }
    }
    // Every stream has sent and read something: used streams, idle again.
    for stream in &accepted {
        assert!(matches!(acceptor.recv(*stream, NOW), Ok(Recv::Data(_))));
        acceptor.send_slice(*stream, &[2; 1000]).unwrap();
        settle(&mut opener, &mut acceptor);
    }
    for stream in &opened {
        assert!(matches!(opener.recv(*stream, NOW), Ok(Recv::Data(_))));
    }
    while opener.poll_event().is_some() || acceptor.poll_event().is_some() {}
    let both = (counts() - empty).live;
    let each = both / (2 * STREAMS as isize);
    println!("{version:?}: {each} bytes for each idle stream at each end");
    assert!(each < 4096, "{each}");
    // Half of the limit, because the mux comes on top.
    assert!(each < 2048, "{each}");

    for (session, streams) in [(&mut opener, opened), (&mut acceptor, accepted)] {
        for stream in streams {
            session.release(stream, NOW);
        }
    }
    settle(&mut opener, &mut acceptor);
    while opener.poll_event().is_some() || acceptor.poll_event().is_some() {}
    assert!(opener.is_idle() && acceptor.is_idle());
}

/// Allocated memory is proportional to queued data: `send_budget` and 4 KiB a stream bound the
/// bytes, and at most as much again is allocated behind them.
fn small_writes_on_a_stuck_link() {
    let mut opener = Session::new(Role::Opener, Version::V2, config(), NOW);
    let streams: Vec<_> = (0..STREAMS)
        .map(|_| opener.open_tcp(80, NOW).unwrap())
        .collect();
    let empty = counts();
    for _ in 0..20 {
        for stream in &streams {
            opener.send_slice(*stream, b"keystrokes").unwrap();
        }
    }
    let unsent = opener.stats().unsent;
    let each = (counts() - empty).live / STREAMS as isize;
    println!("{each} bytes allocated for {} waiting", unsent / STREAMS);
    assert_eq!(unsent, 200 * STREAMS);
    assert!(each < 1500, "{each}");
}

/// `Config::small` holds what it says against a peer that sends whatever it may and reads nothing,
/// with an application that writes whatever it can and reads nothing.
#[test]
fn a_small_session_stays_small() {
    const LIMIT: isize = 512 << 10;
    let mut most = 0;
    for version in [Version::V1, Version::V2] {
        for size in [0, 1, 255, 256, 1000, 4096, 65_000] {
            let empty = counts();
            let mut now = NOW;
            let mut session = Session::new(Role::Acceptor, version, Config::small(), now);
            let mut held = Vec::with_capacity(200);
            let mut unread = 0;
            let mut say = |session: &mut Session, frame: Frame<Bytes>| {
                if !session.can_receive() {
                    // It pauses for a while.
                    now = now + Duration::from_secs(3);
                    if session.poll_timeout().is_some_and(|due| due <= now) {
                        session.handle_timeout(now);
                    }
                }
                if session.can_receive() {
                    // What it does not take is counted, and is the peer's fault.
                    let _ = session.handle_message(now, frame.to_bytes());
                }
                while let Some(event) = session.poll_event() {
                    if let Event::Incoming { stream, .. } = event {
                        session.accept(stream, now).unwrap();
                        held.push(stream);
                    }
                }
                for stream in &held {
                    let _ = session.send_slice(*stream, &[7; 10_000]);
                    let _ = session.send_datagram(*stream, Chunk::copied(&[7; 1000]));
                }
                unread = unread.max(session.stats().unread);
                let live = (counts() - empty).live;
                assert!(live < LIMIT, "{version:?}, pieces of {size}: {live} bytes");
                most = most.max(live);
            };
            let id = |id: u32| {
                (
                    ClientId(id),
                    if id % 2 == 0 { Proto::Udp } else { Proto::Tcp },
                )
            };
            // Most are refused, and their ids remembered.
            for (id, proto) in (1..2000).map(id) {
                let port = 80;
                say(&mut session, Frame::Connect { proto, id, port });
                // It reads the answers, or no more would be taken.
                while session.poll_transmit(NOW).is_some() {}
            }
            // Of each a whole window, and more datagrams than there is room for.
            for _ in 0..(256 << 10) / size.max(256) {
                for (id, proto) in (1..17).map(id) {
                    let payload = Bytes::from(vec![1; size]);
                    say(&mut session, Frame::Data { proto, id, payload });
                }
            }
            for _ in 0..1000 {
                let (id, payload) = (ClientId::KEEPALIVE, Bytes::from_static(&[3; 100]));
                say(&mut session, Frame::Ping { id, payload });
            }
            assert!(session.stats().refused > 0);
            assert!(size < 255 || unread > 250 << 10, "{unread}");
        }
    }
    println!("{most} bytes at most");
    assert!(most > LIMIT / 4 * 3, "{most}: it was not put to the test");
}

/// A session is asked to shed after every message while memory is short, so it must not list its
/// streams if resets would give nothing back.
#[test]
fn a_session_whose_queues_are_short_sheds_without_looking_at_its_streams() {
    let mut opener = Session::new(Role::Opener, Version::V2, config(), NOW);
    let mut acceptor = Session::new(Role::Acceptor, Version::V2, config(), NOW);
    for _ in 0..1000 {
        let stream = opener.open_tcp(80, NOW).unwrap();
        opener.send_slice(stream, b"hello").unwrap();
    }
    settle(&mut opener, &mut acceptor);
    // Of those that are not accepted it refuses as many as are too many.
    for _ in 0..3 {
        // An id that is remembered costs something, too.
        acceptor.set_allowance(Allowance::Exceeded(2_000_000));
        while acceptor.poll_transmit(NOW).is_some() {}
    }
    assert!(acceptor.stats().refused > 0);
    assert!(acceptor.memory() > 2_000_000);
    let before = counts();
    acceptor.set_allowance(Allowance::Exceeded(2_000_000));
    assert_eq!((counts() - before).calls, 0);
    while let Some(event) = acceptor.poll_event() {
        if let Event::Incoming { stream, .. } = event {
            let _ = acceptor.accept(stream, NOW);
        }
    }
    assert!(acceptor.memory() > 100_000);
    let (resets, before) = (acceptor.stats().resets, counts());
    acceptor.set_allowance(Allowance::Exceeded(100_000));
    assert_eq!((counts() - before).calls, 0);
    assert_eq!(acceptor.stats().resets, resets);
}

/// What many streams used is given back when they are gone, and charged to the peer as long as one
/// of them keeps it.
#[test]
fn memory_of_streams_that_are_gone_is_given_back_or_counted() {
    for kept in [None, Some(0), Some(STREAMS - 1)] {
        let empty = counts();
        let mut acceptor = Session::new(Role::Acceptor, Version::V2, config(), NOW);
        let say = |acceptor: &mut Session, frame: Frame| {
            acceptor.handle_message(NOW, frame.to_bytes()).unwrap();
            while acceptor.poll_transmit(NOW).is_some() {}
        };
        let (proto, port) = (Proto::Tcp, 80);
        let ids = 1..=STREAMS as u32;
        for id in ids.clone().map(ClientId) {
            say(&mut acceptor, Frame::Connect { proto, id, port });
        }
        let streams: Vec<_> = std::iter::from_fn(|| acceptor.poll_event())
            .filter_map(|event| match event {
                Event::Incoming { stream, .. } => Some(stream),
                _ => None,
            })
            .collect();
        for id in ids.map(ClientId) {
            let text = Bytes::new();
            let code = 8;
            say(
                &mut acceptor,
                Frame::Error {
                    proto,
                    id,
                    code,
                    text,
                },
            );
        }
        while acceptor.poll_event().is_some() {}
        let remains = |i: usize| Some(i) == kept;
        for (i, stream) in streams.iter().enumerate() {
            if !remains(i) {
                acceptor.release(*stream, NOW);
            }
        }
        drop(streams);
        // Most ids are forgotten.
        acceptor.set_allowance(Allowance::Exceeded(usize::MAX));
        let live = (counts() - empty).live;
        let counted = acceptor.memory() as isize;
        assert!(live < counted + 200_000, "{live} bytes, {counted} counted");
        assert!(live < 200_000 || kept == Some(STREAMS - 1), "{live}");
        let left = acceptor.stats().streams;
        assert_eq!(left, usize::from(kept.is_some()));
    }
}

/// Streams that come and go do not allocate the table anew.
#[test]
fn churn_of_one_stream_keeps_the_table() {
    let mut opener = Session::new(Role::Opener, Version::V2, config(), NOW);
    let mut churn = |times| {
        for _ in 0..times {
            let stream = opener.open_tcp(80, NOW).unwrap();
            opener.release(stream, NOW);
            opener.reset(stream, Reason::Reset, "");
            while opener.poll_transmit(NOW).is_some() {}
        }
    };
    churn(10);
    let before = counts();
    churn(10);
    let most = (counts() - before).largest;
    assert!(most < 1000, "{most} bytes at once");
}

/// A payload may keep alive the whole buffer that a transport read it into. What has no reader may
/// not cost many times the budget.
#[test]
fn small_parts_of_large_buffers_keep_few_of_them_alive() {
    const BUDGET: usize = 1 << 20;
    const BUFFER: usize = 256 << 10;
    const PAYLOAD: usize = 4096;
    for proto in [Proto::Tcp, Proto::Udp] {
        let mut config = Config::default().with_receive_budget(BUDGET);
        config.datagram_budget = BUDGET;
        config.datagram_buffer = BUDGET;
        let mut session = Session::new(Role::Acceptor, Version::V2, config, NOW);
        let id = ClientId(2);
        let connect = Frame::<Bytes>::Connect {
            proto,
            id,
            port: 80,
        };
        session.handle_message(NOW, connect.to_bytes()).unwrap();
        let Some(Event::Incoming { stream, .. }) = session.poll_event() else {
            panic!("no connection");
        };
        session.accept(stream, NOW).unwrap();
        let payload = vec![7; PAYLOAD];
        let message = Frame::Data { proto, id, payload }.to_bytes();
        let empty = counts();
        for _ in 0..(200 << 10) / PAYLOAD {
            let mut buffer = vec![0; BUFFER];
            buffer[..message.len()].copy_from_slice(&message);
            let message = Bytes::from(buffer).slice(..message.len());
            session.handle_message(NOW, message).unwrap();
        }
        let unread = session.stats().unread;
        let live = (counts() - empty).live as usize;
        println!("{proto:?}: {live} bytes for {unread} unread");
        assert!(unread >= 200 << 10, "{unread}");
        assert!(live < unread + 2 * BUDGET, "{proto:?}: {live}");
    }
}
