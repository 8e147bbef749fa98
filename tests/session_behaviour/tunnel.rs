//! The whole tunnel.

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
            pair.acceptor.recv(accepted, pair.now),
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

/// More streams at a time than ids are remembered, because memory is short: still neither end
/// violates the protocol.
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
                pair.acceptor.accept(stream, pair.now).unwrap();
                pair.acceptor.send_slice(stream, b"crosses").unwrap();
            }
        }
        pass(&mut pair.acceptor, &mut pair.opener, pair.now);
        pair.opener.shutdown();
        for session in [&mut pair.opener, &mut pair.acceptor] {
            session.set_allowance(Allowance::Exceeded(usize::MAX));
        }
        pair.run();
        for stream in streams {
            pair.opener.release(stream, pair.now);
        }
        assert!(pair.opener.is_idle());
    }
}

/// As above, with data of the acceptor still in flight when the opener forgets the stream.
#[test]
fn data_under_way_when_thousands_are_reset_is_late_not_stray() {
    let mut pair = Pair::with(Version::V2, config(|config| config.accept_backlog = 5_000));
    for _ in 0..3_000 {
        pair.opener.open_tcp(1, pair.now).unwrap();
    }
    pair.run();
    for event in events(&mut pair.acceptor) {
        if let Event::Incoming { stream, .. } = event {
            pair.acceptor.accept(stream, pair.now).unwrap();
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
        // A second answer to the same PING is ignored.
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
            (Version::V1, Some(Transmit::Ping)) => {}
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

/// As after a suspension: the answer is awaited for one interval, not two.
#[test]
fn a_probe_shortens_the_silence() {
    for version in BOTH {
        let mut session = Session::new(Role::Opener, version, Config::default(), at(0));
        session.probe(at(1000));
        assert!(session.is_probing() && session.poll_transmit(at(1000)).is_some());
        session.probe(at(5000));
        assert_eq!(session.poll_timeout(), Some(at(16_000)));
        session.handle_activity(at(6000));
        assert!(!session.is_probing());
        assert_eq!(session.poll_timeout(), Some(at(21_000)));
        session.probe(at(7000));
        session.handle_timeout(at(22_000));
        assert!(session.is_closed());
    }
    let config = Config::default().with_keepalive(None);
    let mut session = Session::new(Role::Opener, Version::V2, config, at(0));
    session.probe(at(1000));
    assert!(session.poll_transmit(at(1000)).is_some() && session.is_probing());
    assert_eq!(session.poll_timeout(), None);
    session.handle_activity(at(2000));
    assert!(!session.is_probing());
}

#[test]
fn a_session_that_outlives_its_transport_survives_silence() {
    let mut session = Session::new(Role::Opener, Version::V2, Config::default(), at(0));
    session.set_outlives_transport(true);
    let stream = session.open_tcp(1, at(0)).unwrap();
    for silences in 1..4 {
        let dead = at(30_000 * silences);
        session.handle_timeout(at(30_000 * silences - 15_000));
        assert!(session.is_probing());
        session.handle_timeout(dead);
        assert_eq!(events(&mut session), [Event::PeerDead]);
        assert!(!session.is_probing() && !session.is_closed());
    }
    assert_eq!(session.reset_of(stream), None);
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
    acceptor.handle_closed(at(0), Reason::Gone, "cut");
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
    pair.acceptor.handle_closed(pair.now, Reason::Gone, "cut");
    let (read, end) = drain(&mut pair.acceptor, accepted, pair.now);
    assert_eq!((&read[..], reason(end)), (&b"read me"[..], Reason::Gone));
    pair.acceptor.release(accepted, pair.now);
    assert!(pair.acceptor.is_idle());
}

#[test]
fn a_stream_and_a_flow_are_counted_each_for_itself() {
    for version in BOTH {
        let mut pair = Pair::new(version);
        let (opened, accepted) = pair.stream();
        let (flow, their_flow) = pair.flow();
        pair.opener.send_slice(opened, b"12345").unwrap();
        let datagram = Chunk::copied(b"123");
        pair.opener.send_datagram(flow, datagram).unwrap();
        let counts = |session: &Session, stream| {
            let stats = session.stream_stats(stream).unwrap();
            let sums = [stats.bytes_sent, stats.bytes_received];
            (sums, [stats.unsent, stats.unread])
        };
        assert_eq!(counts(&pair.opener, opened), ([0, 0], [5, 0]));
        assert_eq!(counts(&pair.opener, flow), ([0, 0], [3, 0]));
        pair.run();
        assert_eq!(counts(&pair.opener, opened), ([5, 0], [0, 0]));
        assert_eq!(counts(&pair.opener, flow), ([3, 0], [0, 0]));
        assert_eq!(counts(&pair.acceptor, accepted), ([0, 5], [0, 5]));
        assert_eq!(counts(&pair.acceptor, their_flow), ([0, 3], [0, 3]));
        drain(&mut pair.acceptor, accepted, pair.now).1.unwrap();
        pair.acceptor.discard(accepted);
        pair.opener.send_slice(opened, b"thrown away").unwrap();
        pair.run();
        assert_eq!(counts(&pair.acceptor, accepted), ([0, 16], [0, 0]));
        let state = pair.acceptor.stream_stats(accepted).unwrap().state;
        assert_eq!(state, State::Open);
        pair.acceptor.reset(accepted, Reason::Reset, "");
        pair.acceptor.release(accepted, pair.now);
        assert_eq!(pair.acceptor.stream_stats(accepted), None);
    }
}

/// What a driver may read less often: it does nothing for anybody.
#[test]
fn messages_without_content_are_counted() {
    let mut pair = Pair::new(Version::V2);
    pair.stream();
    let before = pair.acceptor.stats().empty;
    let ping = |payload: &'static [u8]| Frame::Ping {
        id: ClientId::KEEPALIVE,
        payload: Bytes::from_static(payload),
    };
    for message in [ping(b"?"), ping(b""), Frame::GoAway, data(1, "")] {
        say(&mut pair.acceptor, at(0), message).unwrap();
    }
    say(&mut pair.acceptor, at(0), data(1, "x")).unwrap();
    assert_eq!(pair.acceptor.stats().empty, before + 4);
    assert_eq!(pair.acceptor.stats().violations, 0);
}

/// A peer may grant a window in parts, but not forever while nothing is sent.
#[test]
fn credit_that_nobody_needs_is_counted() {
    let mut pair = Pair::new(Version::V2);
    let (_, accepted) = pair.stream();
    let before = pair.acceptor.stats().empty;
    let unneeded = |pair: &mut Pair, times: u32| {
        for _ in 0..times {
            let credit = Frame::Window {
                id: ClientId(1),
                credit: 1,
            };
            say(&mut pair.acceptor, at(0), credit).unwrap();
        }
        pair.acceptor.stats().empty - before
    };
    assert_eq!(unneeded(&mut pair, 16), 0);
    assert_eq!(unneeded(&mut pair, 5), 5);
    pair.acceptor.send_slice(accepted, b"used").unwrap();
    pair.run();
    assert_eq!(unneeded(&mut pair, 16), 5);
    pair.acceptor.reset(accepted, Reason::Reset, "");
    pair.acceptor.release(accepted, pair.now);
    pair.run();
    assert_eq!(unneeded(&mut pair, 2), 7, "late");
    assert_eq!(pair.acceptor.stats().violations, 0);
}

#[test]
fn data_is_held_and_control_is_not() {
    let mut pair = Pair::new(Version::V2);
    let (stream, _) = pair.stream();
    let flow = pair.opener.open_udp(1, pair.now).unwrap();
    pair.run();
    pair.opener.hold_data(true);
    pair.opener.send_slice(stream, b"data").unwrap();
    pair.opener.finish(stream);
    assert!(!pair.opener.has_transmit());
    assert_eq!(pair.opener.poll_transmit(pair.now), None);

    let datagram = Chunk::copied(b"datagram");
    pair.opener.send_datagram(flow, datagram).unwrap();
    let port = pair.opener.open_tcp(2, pair.now).unwrap();
    pair.opener.reset(port, Reason::Reset, "");
    assert!(pair.opener.has_transmit());
    let kinds = |frames: Vec<Frame>| -> Vec<Kind> { frames.iter().map(Frame::kind).collect() };
    let control = kinds(messages(&mut pair.opener, pair.now));
    assert_eq!(control, [Kind::Connect, Kind::Error, Kind::Data]);
    assert!(!pair.opener.has_transmit());

    pair.opener.hold_data(false);
    assert!(pair.opener.has_transmit());
    let data = kinds(messages(&mut pair.opener, pair.now));
    assert_eq!(data, [Kind::Data, Kind::Close]);
}
