//! Credit, windows and send capacity.

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
    drain(&mut pair.acceptor, accepted, pair.now).1.unwrap();
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
        read += drain(&mut pair.acceptor, theirs, pair.now).0.len();
        let datagram = pair.acceptor.recv(their_flow, pair.now);
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
        acceptor.accept(stream, at(0)).unwrap();
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
    assert_eq!(
        acceptor.recv(streams[1], at(0)),
        Ok(Recv::Data("fine".into()))
    );
    // Data within the window is still there.
    assert_eq!(drain(&mut acceptor, streams[0], at(0)).0.len(), WINDOW);
    assert_eq!(acceptor.stats().violations, 1);
}

/// The chunk exceeds the credit, so it is returned; a part of it is sent.
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
    // There is room for a part at once: credit for all of it may never come.
    assert!(events(&mut pair.opener).contains(&Event::Writable(opened)));
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
        // Each stream is notified when it can continue. Streams that do not wait take nothing from
        // the others.
        let mut told = 1;
        while told > 0 {
            messages(&mut pair.opener, pair.now);
            told = 0;
            for event in events(&mut pair.opener) {
                if let Event::Writable(stream) = event {
                    assert!(pair.opener.send_capacity(stream).unwrap() > 0);
                    waiting.remove(&stream);
                    told += 1;
                }
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

/// Small writes are joined, and the memory for them stays proportional.
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
    assert_eq!(drain(&mut pair.acceptor, accepted, pair.now).0, sent);
}

/// An acceptor with a stream of id 1, which knows that the round trip is short.
fn near() -> (Session, StreamId) {
    let mut acceptor = Session::new(Role::Acceptor, Version::V2, Config::default(), at(0));
    let stream = accepted(&mut acceptor, 1);
    let Some(Transmit::Message(_)) = acceptor.poll_transmit(at(0)) else {
        panic!("nothing to send");
    };
    while let Some(Transmit::Message(message)) = acceptor.poll_transmit(at(0)) {
        if let Ok(Frame::Ping { id, payload }) = Frame::decode(message) {
            say(&mut acceptor, at(0), Frame::Pong { id, payload }).unwrap();
        }
    }
    (acceptor, stream)
}

/// Opens a stream of id 3, receives on it fast enough for a second window if nobody else needs
/// room, and returns the credit granted.
fn granted_to_another(acceptor: &mut Session) -> (u32, StreamId) {
    say(acceptor, at(1_000), connect(3)).unwrap();
    let bulk = incoming(acceptor);
    acceptor.accept(bulk, at(1_000)).unwrap();
    let mut granted = 0;
    for millis in [1_000, 1_002] {
        say(acceptor, at(millis), data(3, vec![0; WINDOW / 2])).unwrap();
        drain(acceptor, bulk, at(millis)).1.unwrap();
        for frame in messages(acceptor, at(millis)) {
            if let Frame::Window { credit, .. } = frame {
                granted += credit;
            }
        }
    }
    (granted, bulk)
}

#[test]
fn a_stream_that_goes_on_with_long_pieces_is_not_interactive() {
    for (first, second, has_room) in [(3, 3, false), (3, 16 << 10, true), (2000, 2000, true)] {
        let (mut acceptor, _) = near();
        for len in [first, second] {
            say(&mut acceptor, at(1_000), data(1, vec![0; len])).unwrap();
        }
        let (granted, _) = granted_to_another(&mut acceptor);
        assert_eq!(granted > INITIAL_WINDOW, has_room, "{first} {second}");
    }
}

/// The interactive stream is identified by its handle, which is never reused.
#[test]
fn a_stream_in_the_slot_of_an_interactive_one_leaves_it_room_as_any_other() {
    let now = at(1_000);
    let (mut acceptor, keys) = near();
    say(&mut acceptor, now, data(1, "key")).unwrap();
    say(&mut acceptor, now, error(1, 8, b"")).unwrap();
    acceptor.release(keys, now);
    let (granted, bulk) = granted_to_another(&mut acceptor);
    assert_eq!(bulk.slot(), keys.slot());
    assert!(granted <= INITIAL_WINDOW, "{granted}");
}

#[test]
fn asking_what_can_be_sent_changes_nothing_and_asking_to_be_told_does() {
    let mut pair = Pair::new(Version::V2);
    let (opened, accepted) = pair.stream();
    while let Ok(room @ 1..) = pair.opener.send_capacity(opened) {
        let chunk = Chunk::copied(&vec![7; room]);
        pair.opener.send(opened, chunk).unwrap();
        pair.run();
    }
    for wanted in [false, true] {
        assert_eq!(pair.opener.send_capacity(opened).unwrap(), 0);
        if wanted {
            pair.opener.request_writable(opened);
            assert_eq!(pair.opener.send_slice(opened, b"").unwrap(), 0);
        }
        events(&mut pair.opener);
        drain(&mut pair.acceptor, accepted, pair.now).1.unwrap();
        pair.run();
        let told = events(&mut pair.opener).contains(&Event::Writable(opened));
        assert_eq!(told, wanted);
        if !wanted {
            while let Ok(room @ 1..) = pair.opener.send_capacity(opened) {
                let chunk = Chunk::copied(&vec![7; room]);
                pair.opener.send(opened, chunk).unwrap();
                pair.run();
            }
        }
    }
    // There is room: told at once, and once.
    pair.opener.request_writable(opened);
    pair.opener.request_writable(opened);
    assert_eq!(events(&mut pair.opener), [Event::Writable(opened)]);
}
