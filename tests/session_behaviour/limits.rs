//! Bounds, and what happens at them.

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
        pair.acceptor.release(first.1, pair.now);
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
    pair.acceptor.accept(asked, pair.now).unwrap();
    let next = pair.opener.open_tcp(80, pair.now).unwrap();
    pair.run();
    assert_eq!(pair.opener.reset_of(next), None);
}

#[test]
fn only_messages_about_many_connections_keep_new_ones_from_opening() {
    let small = config(|config| config.max_streams = 1);
    for version in BOTH {
        let mut opener = Session::new(Role::Opener, version, small.clone(), at(0));
        for _ in 0..10 {
            let (id, payload) = (ClientId::KEEPALIVE, Bytes::new());
            say(&mut opener, at(0), Frame::Ping { id, payload }).unwrap();
        }
        let mut come_and_go = || {
            let stream = opener.open_tcp(80, at(0))?;
            opener.reset(stream, Reason::Reset, "");
            opener.release(stream, at(0));
            Ok::<_, OpenError>(())
        };
        assert_eq!(come_and_go(), Ok(()));
        assert_eq!(come_and_go(), Ok(()));
        // Bounded nevertheless, until the transport takes them.
        let refused = (0..20).find_map(|_| come_and_go().err());
        assert_eq!(refused, Some(OpenError::Congested));
        messages(&mut opener, at(0));
        opener.open_tcp(80, at(0)).unwrap();
    }
}

/// The program may still make the connections that the peer has given up.
#[test]
fn connections_that_ended_count_until_they_are_answered() {
    let small = config(|config| config.accept_backlog = 3);
    for version in BOTH {
        let mut acceptor = Session::new(Role::Acceptor, version, small.clone(), at(0));
        let ask = |acceptor: &mut Session, id| {
            say(acceptor, at(0), connect(id)).unwrap();
            say(acceptor, at(0), error(id, 8, b"")).unwrap();
            messages(acceptor, at(0)).len()
        };
        assert_eq!([1, 2, 3, 4].map(|id| ask(&mut acceptor, id)), [0, 0, 0, 1]);
        let streams: Vec<_> = events(&mut acceptor)
            .into_iter()
            .filter_map(|event| match event {
                Event::Incoming { stream, .. } => Some(stream),
                _ => None,
            })
            .collect();
        assert_eq!(streams.len(), 3);
        let late = acceptor.accept(streams[0], at(0));
        assert!(matches!(late, Err(StreamError::Reset(_))), "{late:?}");
        acceptor.release(streams[1], at(0));
        acceptor.reject(streams[2], Reason::Refused, "");
        assert_eq!([5, 6, 7, 8].map(|id| ask(&mut acceptor, id)), [0, 0, 0, 1]);
        assert!(acceptor.audit());
    }
}

#[test]
fn small_chunks_that_wait_are_joined() {
    let mut pair = Pair::new(Version::V2);
    let (stream, _) = pair.stream();
    let sent: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
    for byte in &sent {
        pair.opener.send(stream, Chunk::copied(&[*byte])).unwrap();
    }
    let messages = messages(&mut pair.opener, pair.now);
    let data: Vec<_> = messages.iter().filter(|m| m.kind() == Kind::Data).collect();
    assert!(data.len() < 50, "{} messages", data.len());
    let joined: Vec<u8> = data.iter().flat_map(|m| m.payload().to_vec()).collect();
    assert!(joined == sent);
}

#[test]
fn only_the_opener_opens() {
    let mut acceptor = Session::new(Role::Acceptor, Version::V2, Config::default(), at(0));
    assert_eq!(acceptor.open_tcp(1, at(0)), Err(OpenError::NotOpener));
    acceptor.handle_closed(at(0), Reason::Gone, "");
    assert_eq!(acceptor.open_tcp(1, at(0)), Err(OpenError::Closed));
}

#[test]
fn the_receive_budget_resets_the_stream_that_holds_most() {
    let small = config(|config| {
        config.receive_budget = 300 << 10;
        config.stream_send_buffer = 256 << 10;
        config.place = "at the agent";
    });
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
        // Its readers may make room now. If they do not, others go on.
        assert!(!pair.acceptor.can_receive());
        pair.wait(Duration::from_secs(2));
        assert!(pair.acceptor.can_receive());
        let (third, _) = pair.stream();
        fill(&mut pair.opener, third);
        pair.run();
        let stats = pair.acceptor.stats();
        assert!(stats.unread <= 300 << 10, "{}", stats.unread);
        let reset = pair.acceptor.reset_of(theirs).unwrap();
        assert_eq!(reset.reason, Reason::Overflow);
        assert_eq!(reset.text, "too many bytes were not read at the agent");
        assert_eq!(
            reason(pair.acceptor.recv(theirs, pair.now)),
            Reason::Overflow
        );
        let (read, end) = drain(&mut pair.acceptor, modest, pair.now);
        assert_eq!((read.len(), end), (10_000, Ok(Recv::Blocked)));
    }
}

/// The initial windows of all exceed the budget, and the credit for them cannot be revoked.
#[test]
fn no_stream_is_reset_while_readers_make_room() {
    const SIZE: usize = 256 << 10;
    let small = config(|config| {
        config.receive_budget = 300 << 10;
        config.send_budget = 10 * SIZE;
    });
    for version in BOTH {
        let mut pair = Pair::with(version, small.clone());
        let streams: Vec<_> = (0..10).map(|_| pair.stream()).collect();
        for (opened, _) in &streams {
            let mut data = vec![7; SIZE];
            while !data.is_empty() {
                let sent = pair.opener.send_slice(*opened, &data).unwrap();
                assert!(sent > 0);
                data.drain(..sent);
            }
            pair.opener.finish(*opened);
        }
        let (mut read, mut pauses) = ([0; 10], 0);
        while read != [SIZE; 10] {
            pair.run();
            pauses += usize::from(!pair.acceptor.can_receive());
            assert!(pair.acceptor.stats().unread <= 300 << 10);
            // Slow, but as fast as it must be: a 64th of the budget within two seconds.
            pair.wait(Duration::from_millis(500));
            let unread = |stream| pair.acceptor.stream_stats(stream).unwrap().unread;
            let (turn, (_, stream)) = streams
                .iter()
                .enumerate()
                .max_by_key(|(_, s)| unread(s.1))
                .unwrap();
            match pair.acceptor.recv(*stream, pair.now) {
                Ok(Recv::Data(data)) => read[turn] += data.len(),
                other => panic!("{other:?}"),
            }
        }
        assert!(pauses > 10, "{version:?}: {pauses}");
        assert_eq!(pair.acceptor.stats().resets, 0);
    }
}

/// A reader that is behind a tunnel without a transport makes no room however long others wait.
#[test]
fn nothing_pauses_for_a_reader_that_cannot_read() {
    let small = config(|config| config.receive_budget = 300 << 10);
    for expendable in [false, true] {
        let mut pair = Pair::with(Version::V2, small.clone());
        let (opened, theirs) = pair.stream();
        pair.acceptor.set_expendable(theirs, expendable);
        fill(&mut pair.opener, opened);
        let (next, _) = pair.stream();
        fill(&mut pair.opener, next);
        pair.run();
        assert_eq!(pair.acceptor.can_receive(), expendable);
        assert_eq!(pair.acceptor.reset_of(theirs).is_some(), expendable);
    }
}

/// One window is the whole budget of a small device.
#[test]
fn a_small_session_resets_a_paused_reader_when_others_receive() {
    let mut pair = Pair::with(Version::V2, Config::small());
    let (paused, theirs) = pair.stream();
    let (other, _) = pair.stream();
    while pair.acceptor.stats().unread < WINDOW {
        fill(&mut pair.opener, paused);
        pair.run();
        pair.wait(Duration::from_secs(2));
    }
    assert_eq!(pair.acceptor.reset_of(theirs), None);
    pair.opener.send_slice(other, b"x").unwrap();
    pair.run();
    let reset = pair.acceptor.reset_of(theirs).unwrap();
    assert_eq!(reset.reason, Reason::Overflow);
}

/// A message may be longer than what the expendable streams hold.
#[test]
fn as_many_streams_are_reset_as_the_receive_budget_needs() {
    let small = config(|config| config.receive_budget = 300 << 10);
    let mut pair = Pair::with(Version::V2, small);
    for _ in 0..8 {
        let (opened, theirs) = pair.stream();
        pair.acceptor.set_expendable(theirs, true);
        pair.opener.send_slice(opened, b"x").unwrap();
    }
    for _ in 0..2 {
        let (opened, _) = pair.stream();
        fill(&mut pair.opener, opened);
        pair.run();
        assert!(pair.acceptor.stats().unread <= 300 << 10);
    }
}

/// Its bytes are dropped, so its reader must not take the rest for everything.
#[test]
fn the_receive_budget_never_truncates_in_silence() {
    let small = config(|config| config.receive_budget = 300 << 10);
    let mut pair = Pair::with(Version::V2, small);
    let (done, theirs) = pair.stream();
    let sent = fill(&mut pair.opener, done);
    pair.opener.finish(done);
    pair.acceptor.finish(theirs);
    pair.run();
    pair.wait(Duration::from_secs(2));
    assert_eq!(pair.acceptor.state(theirs), Some(State::Closed));
    let (next, _) = pair.stream();
    fill(&mut pair.opener, next);
    pair.run();
    match drain(&mut pair.acceptor, theirs, pair.now) {
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
        // A caller that ignores the capacity is held to the bound.
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
fn a_pong_has_the_id_of_its_ping_and_in_v2_its_payload() {
    for version in BOTH {
        let mut session = Session::new(Role::Acceptor, version, Config::default(), at(0));
        for (id, len) in [(0, 0), (7, 9), (u32::MAX, 125)] {
            let (id, payload) = (ClientId(id), Bytes::from(vec![9; len]));
            let ping = Frame::Ping {
                id,
                payload: payload.clone(),
            };
            say(&mut session, at(0), ping).unwrap();
            let payload = match version {
                Version::V1 => Bytes::new(),
                _ => payload,
            };
            let pong = Frame::Pong { id, payload };
            assert_eq!(messages(&mut session, at(0)), [pong], "{version:?}");
        }
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

/// Zero is a valid bound: it must not mean that nothing is ever received.
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
            assert_eq!(drain(&mut pair.acceptor, accepted, pair.now).0, [*byte]);
        }
    }
}

/// Early data is bounded: a client may request many connections that are never made.
#[test]
fn early_data_is_bounded_for_each_stream_that_is_not_accepted() {
    const EARLY: usize = EARLY_DATA as usize;
    let mut acceptor = Session::new(Role::Acceptor, Version::V2, Config::default(), at(0));
    let mut streams = Vec::new();
    for id in 1..=100 {
        say(&mut acceptor, at(0), connect(id)).unwrap();
        streams.push(incoming(&mut acceptor));
        for _ in 0..4 {
            // After a reset it is a violation.
            let _ = say(&mut acceptor, at(0), data(id, vec![0; EARLY]));
        }
    }
    let held = acceptor.stats().unread;
    assert!(held <= 100 * EARLY + (1 << 20) + 4 * EARLY, "{held}");
    let reset = |stream: &&StreamId| acceptor.reset_of(**stream).is_some();
    let reset: Vec<_> = streams.iter().filter(reset).collect();
    assert!(reset.len() >= 90, "{}", reset.len());
    // An opener of the first release with few connections is served.
    assert_eq!(acceptor.reset_of(streams[0]), None);
    for stream in streams {
        acceptor.release(stream, at(0));
    }
    assert_eq!(acceptor.stats().unread, 0);
}

/// What ended connections hold is not made by others, so it counts until it is dropped or read.
#[test]
fn early_data_counts_after_the_end_and_until_it_is_read() {
    const EARLY: usize = EARLY_DATA as usize;
    for reads in [false, true] {
        let mut acceptor = Session::new(Role::Acceptor, Version::V2, Config::default(), at(0));
        let mut held = 0;
        for id in 1..=50 {
            say(&mut acceptor, at(0), connect(id)).unwrap();
            let stream = incoming(&mut acceptor);
            for _ in 0..3 {
                let _ = say(&mut acceptor, at(0), data(id, vec![0; EARLY]));
            }
            say(&mut acceptor, at(0), error(id, 8, b"")).unwrap();
            if reads {
                drain(&mut acceptor, stream, at(0)).1.unwrap_err();
            }
            held = held.max(acceptor.stats().unread);
            assert!(acceptor.audit());
        }
        assert!(held <= 50 * EARLY + (1 << 20), "{held}");
        let overflows = |session: &mut Session| {
            let told = messages(session, at(0)).into_iter();
            told.filter(|frame| frame.kind() == Kind::Error).count()
        };
        assert_eq!(overflows(&mut acceptor) == 0, reads);
    }
}

#[test]
fn reading_early_data_makes_room_for_more() {
    const EARLY: usize = EARLY_DATA as usize;
    let mut acceptor = Session::new(Role::Acceptor, Version::V2, Config::default(), at(0));
    for id in 1..=50 {
        say(&mut acceptor, at(0), connect(id)).unwrap();
        let stream = incoming(&mut acceptor);
        for _ in 0..3 {
            say(&mut acceptor, at(0), data(id, vec![0; EARLY])).unwrap();
        }
        match id % 2 {
            0 => drop(drain(&mut acceptor, stream, at(0)).1.unwrap()),
            _ => acceptor.discard(stream),
        }
    }
    assert_eq!(acceptor.stats().resets, 0);
}

#[test]
fn an_opener_keeps_to_the_early_data_until_the_connection_is_made() {
    let mut pair = Pair::new(Version::V2);
    let opened = pair.opener.open_tcp(80, pair.now).unwrap();
    pair.run();
    assert_eq!(fill(&mut pair.opener, opened), EARLY_DATA as usize);
    events(&mut pair.opener);
    pair.run();
    let accepted = incoming(&mut pair.acceptor);
    // What is read before grants credit for later.
    let (read, _) = drain(&mut pair.acceptor, accepted, pair.now);
    assert!(pair.acceptor.has_transmit());
    pair.run();
    assert_eq!(fill(&mut pair.opener, opened), 0);
    pair.acceptor.accept(accepted, pair.now).unwrap();
    pair.run();
    let told = events(&mut pair.opener);
    assert!(told.contains(&Event::Writable(opened)), "{told:?}");
    assert_eq!(read.len(), EARLY_DATA as usize);
    assert_eq!(fill(&mut pair.opener, opened), WINDOW);
}

/// v1 has no credit, so too much early data stalls the tunnel until the connection is made.
#[test]
fn early_data_of_v1_waits_in_the_transport() {
    let mut pair = Pair::new(Version::V1);
    let opened = pair.opener.open_tcp(80, pair.now).unwrap();
    pair.run();
    let accepted = incoming(&mut pair.acceptor);
    let mut sent = 0;
    for _ in 0..40 {
        sent += fill(&mut pair.opener, opened);
        pair.run();
    }
    let held = pair.acceptor.stats().unread;
    assert!(held <= (1 << 20) + 3 * EARLY_DATA as usize, "{held}");
    assert!(!pair.acceptor.can_receive());
    pair.acceptor.accept(accepted, pair.now).unwrap();
    assert!(pair.acceptor.can_receive());
    pair.run();
    assert_eq!(drain(&mut pair.acceptor, accepted, pair.now).0.len(), sent);
}

#[test]
fn a_session_sheds_the_streams_that_hold_most() {
    let mut acceptor = Session::new(Role::Acceptor, Version::V2, Config::default(), at(0));
    let mut streams = Vec::new();
    for id in 1..=3 {
        let stream = accepted(&mut acceptor, id);
        say(
            &mut acceptor,
            at(0),
            data(id, vec![0; id as usize * 50_000]),
        )
        .unwrap();
        streams.push(stream);
    }
    messages(&mut acceptor, at(0));
    let before = acceptor.memory();
    assert!(before >= 300_000);
    acceptor.set_allowance(Allowance::Exceeded(before));
    acceptor.set_allowance(Allowance::Exceeded(before - 200_000));
    assert!(acceptor.memory() <= before - 200_000);
    let reset = |stream: &StreamId| acceptor.reset_of(*stream).map(|reset| reset.reason);
    let ends: Vec<_> = streams.iter().map(reset).collect();
    assert_eq!(ends, [None, Some(Reason::Overflow), Some(Reason::Overflow)]);
    let told = messages(&mut acceptor, at(0));
    let words = b"memory is short here";
    assert_eq!(told, [3, 2].map(|id| error(id, 7, words)));
    let shown = acceptor.reset_of(streams[2]).unwrap().to_string();
    assert_eq!(shown, "too much data: memory is short here");
    // Capacity that a stream cannot use is kept.
    acceptor.set_allowance(Allowance::Exceeded(0));
    assert_eq!(acceptor.stats().unread, 0);
    assert_eq!(acceptor.stats().streams, 3);
}

#[test]
fn a_session_refuses_connections_that_were_not_accepted_yet() {
    let mut acceptor = Session::new(Role::Acceptor, Version::V2, Config::default(), at(0));
    let before = accepted(&mut acceptor, 1);
    let mut pending = Vec::new();
    for id in 2..=101 {
        say(&mut acceptor, at(0), connect(id)).unwrap();
        pending.push(incoming(&mut acceptor));
    }
    messages(&mut acceptor, at(0));
    let full = acceptor.memory();
    acceptor.set_allowance(Allowance::Share(full));
    acceptor.set_allowance(Allowance::Share(full / 2));
    // What is not released yet is not made up for by others.
    acceptor.set_allowance(Allowance::Share(full / 2));
    let is_refused = |stream: &&StreamId| {
        let reset = acceptor.reset_of(**stream);
        reset.is_some_and(|reset| reset.reason == Reason::Limit)
    };
    let refused: Vec<_> = pending.iter().filter(is_refused).copied().collect();
    // Their answers are held meanwhile.
    assert!((48..=56).contains(&refused.len()), "{}", refused.len());
    assert!(acceptor.reset_of(before).is_none());
    assert_eq!(messages(&mut acceptor, at(0)).len(), refused.len());
    assert_eq!(acceptor.stats().refused, refused.len() as u64);
    say(&mut acceptor, at(0), connect(102)).unwrap();
    assert_eq!(messages(&mut acceptor, at(0)).len(), 1);
    assert_eq!(acceptor.stats().refused, refused.len() as u64 + 1);
    assert!(
        events(&mut acceptor)
            .iter()
            .all(|event| !matches!(event, Event::Incoming { .. }))
    );
    for stream in refused {
        acceptor.release(stream, at(0));
    }
    let left = acceptor.memory();
    assert!(left <= full / 2 + 56 * 128, "{left} of {full}");
    acceptor.set_allowance(Allowance::Share(0));
    assert!(acceptor.reset_of(before).is_none());
}

/// Streams cost something themselves, and those that hold nothing are not reset.
#[test]
fn what_resets_cannot_give_back_costs_no_stream() {
    let mut acceptor = Session::new(Role::Acceptor, Version::V2, Config::default(), at(0));
    for id in 1..=100 {
        accepted(&mut acceptor, id);
    }
    say(&mut acceptor, at(0), data(1, vec![0; 50_000])).unwrap();
    messages(&mut acceptor, at(0));
    assert!(acceptor.memory() > 200_000);
    acceptor.set_allowance(Allowance::Exceeded(60_000));
    assert_eq!(acceptor.stats().resets, 0);
    acceptor.set_allowance(Allowance::Exceeded(40_000));
    assert_eq!(acceptor.stats().resets, 1);
}

#[test]
fn a_pressed_session_forgets_most_ids_that_have_ended() {
    let mut acceptor = Session::new(Role::Acceptor, Version::V2, Config::default(), at(0));
    for id in 1..=5000 {
        say(&mut acceptor, at(0), connect(id)).unwrap();
        let stream = incoming(&mut acceptor);
        acceptor.reset(stream, Reason::Reset, "");
        acceptor.release(stream, at(0));
    }
    messages(&mut acceptor, at(0));
    let before = acceptor.memory();
    acceptor.set_allowance(Allowance::Exceeded(usize::MAX));
    assert!(acceptor.memory() < before / 4, "{before}");
}

#[test]
fn a_pressed_session_takes_no_connections_and_queues_little() {
    let mut acceptor = Session::new(Role::Acceptor, Version::V2, Config::default(), at(0));
    let stream = accepted(&mut acceptor, 1);
    messages(&mut acceptor, at(0));
    acceptor.set_allowance(Allowance::Exceeded(usize::MAX));
    say(&mut acceptor, at(0), connect(2)).unwrap();
    let told = messages(&mut acceptor, at(0));
    let Some(Frame::Error { code, .. }) = told.first() else {
        panic!("{told:?}");
    };
    assert_eq!(Reason::from_code(*code), Reason::Limit);
    let queued = fill(&mut acceptor, stream);
    assert!((1..=4096).contains(&queued), "{queued}");
    events(&mut acceptor);
    acceptor.set_allowance(Allowance::Ample);
    messages(&mut acceptor, at(0));
    assert_eq!(events(&mut acceptor), [Event::Writable(stream)]);
    assert!(fill(&mut acceptor, stream) > 4096);
    say(&mut acceptor, at(0), connect(3)).unwrap();
    incoming(&mut acceptor);
}
