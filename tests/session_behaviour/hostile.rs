//! Peers that break the protocol.

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
                // v1 has no credit that would say how much can be under way.
                let more = say(&mut session, at(0), data(77, "flood"));
                assert_eq!(more.is_err(), version == Version::V2);
            }
            let said = messages(&mut session, at(0));
            let expected = match version {
                Version::V1 => close(77),
                _ => error(77, Reason::Gone.code(), b"no such connection"),
            };
            assert_eq!(said, [expected]);
            assert_eq!(session.stats().stray_data, 101);
            assert_eq!(session.stats().bytes_received, 0);
        }
    }
}

#[test]
fn data_for_nobody_is_answered_when_there_is_room_for_the_answer() {
    let small = config(|config| config.max_replies = 16);
    for version in BOTH {
        let mut session = Session::new(Role::Opener, version, small.clone(), at(0));
        while session.can_receive() {
            let (id, payload) = (ClientId::KEEPALIVE, Bytes::new());
            say(&mut session, at(0), Frame::Ping { id, payload }).unwrap();
        }
        // A caller may pass on what it had already read.
        say(&mut session, at(0), data(77, "stray")).unwrap_err();
        assert_eq!(messages(&mut session, at(0)).len(), 16);
        let _ = say(&mut session, at(0), data(77, "stray"));
        assert_eq!(messages(&mut session, at(0)).len(), 1);
    }
}

#[test]
fn credit_for_a_direction_that_has_ended_is_counted() {
    let mut pair = Pair::new(Version::V2);
    let (opened, accepted) = pair.stream();
    pair.opener.finish(opened);
    pair.acceptor.finish(accepted);
    messages(&mut pair.opener, at(0));
    messages(&mut pair.acceptor, at(0));
    let (id, credit) = (ClientId(1), 1);
    for session in [&mut pair.opener, &mut pair.acceptor] {
        let before = session.stats().empty;
        say(session, at(0), Frame::Window { id, credit }).unwrap();
        assert_eq!(session.stats().empty - before, 1);
    }
}

#[test]
fn late_frames_after_the_end_change_nothing() {
    let mut pair = Pair::new(Version::V2);
    let (opened, accepted) = pair.stream();
    pair.opener.reset(opened, Reason::Reset, "");
    pair.run();
    pair.opener.release(opened, pair.now);
    pair.acceptor.release(accepted, pair.now);
    for session in [&mut pair.opener, &mut pair.acceptor] {
        let window = Frame::Window {
            id: ClientId(1),
            credit: 1,
        };
        let before = session.stats().empty;
        for late in [data(1, "x"), close(1), error(1, 8, b""), window] {
            say(session, at(0), late).unwrap();
        }
        assert_eq!(session.stats().empty - before, 3);
        assert_eq!(messages(session, at(0)), []);
        assert_eq!(session.stats().violations, 0);
        assert!(session.is_idle());
    }
}

/// A peer may not know of the end yet, but it knows its credit.
#[test]
fn data_after_the_end_is_late_only_within_the_credit() {
    let mut pair = Pair::new(Version::V2);
    let (opened, accepted) = pair.stream();
    pair.acceptor.reset(accepted, Reason::Gone, "");
    pair.acceptor.release(accepted, at(0));
    let piece = Bytes::from_static(&[7; 1000]);
    for _ in 0..WINDOW / piece.len() {
        say(&mut pair.acceptor, at(0), data(1, piece.clone())).unwrap();
    }
    let id = ClientId(1);
    let excess = (piece.len() - WINDOW % piece.len()) as u64;
    for excess in [excess, piece.len() as u64] {
        let broken = say(&mut pair.acceptor, at(0), data(1, piece.clone()));
        assert_eq!(broken, Err(Violation::CreditOverrun { id, excess }));
    }
    assert_eq!(pair.opener.client_id(opened), Some(id));
}

/// Before CONNECTED an opener sends no more than its early data.
#[test]
fn data_for_a_refused_connection_is_late_only_within_the_early_data() {
    let mut acceptor = Session::new(Role::Acceptor, Version::V2, Config::default(), at(0));
    say(&mut acceptor, at(0), connect(1)).unwrap();
    let refused = incoming(&mut acceptor);
    let all = EARLY_DATA as usize;
    say(&mut acceptor, at(0), data(1, vec![0; 1_000])).unwrap();
    acceptor.reject(refused, Reason::Refused, "");
    say(&mut acceptor, at(0), data(1, vec![0; all - 1_000])).unwrap();
    assert_eq!(acceptor.stats().stray_excess, 0);
    let id = ClientId(1);
    let broken = say(&mut acceptor, at(0), data(1, "x"));
    assert_eq!(broken, Err(Violation::CreditOverrun { id, excess: 1 }));
    assert_eq!(acceptor.stats().stray_excess, (2 << 10) + 1);
}

/// v1 has no credit: what may be under way is a guess, and more than that is no violation. Deployed
/// acceptors go on for as long as their service sends.
#[test]
fn a_v1_opener_should_not_go_on_for_a_connection_that_was_not_made() {
    let megabyte = || data(1, vec![0; 1 << 20]);
    let send = |session: &mut Session, megabytes: u64| {
        for _ in 0..megabytes {
            let _ = say(session, at(0), megabyte());
        }
        session.stats().stray_excess
    };
    let mut acceptor = Session::new(Role::Acceptor, Version::V1, Config::default(), at(0));
    say(&mut acceptor, at(0), connect(1)).unwrap();
    let refused = incoming(&mut acceptor);
    acceptor.reject(refused, Reason::Refused, "");
    assert_eq!(send(&mut acceptor, 4), 0);
    assert_eq!(send(&mut acceptor, 3), 3 * ((1 << 20) + (2 << 10)));
    assert_eq!(acceptor.stats().violations, 0);

    let mut pair = Pair::new(Version::V1);
    let (opened, accepted) = pair.stream();
    pair.opener.reset(opened, Reason::Reset, "");
    pair.acceptor.reset(accepted, Reason::Reset, "");
    for session in [&mut pair.opener, &mut pair.acceptor] {
        assert_eq!(send(session, 100), 0);
        assert_eq!(session.stats().violations, 0);
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
    let (read, end) = drain(&mut pair.acceptor, accepted, pair.now);
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
            assert_eq!(
                acceptor.recv(stream, at(0)),
                Ok(Recv::Data(vec![round].into()))
            );
            // The handle of the old stream is kept for a while.
            acceptor.reset(stream, Reason::Reset, "");
            messages(&mut acceptor, at(0));
        }
        assert_eq!(acceptor.stats().streams, 3);
        assert_eq!(acceptor.stats().violations, 0);
    }
}

/// A peer must not be able to make the queue of events grow.
#[test]
fn however_often_a_peer_breaks_the_protocol_one_event_waits() {
    let mut opener = Session::new(Role::Opener, Version::V2, Config::default(), at(0));
    assert_eq!(opener.last_violation(), None);
    for round in 1..=3 {
        for id in 1..=100 {
            say(&mut opener, at(0), connect(id)).unwrap_err();
        }
        let garbage = opener.handle_message(at(0), Bytes::from_static(b"\xff"));
        assert_eq!(opener.last_violation(), garbage.err());
        assert_eq!(events(&mut opener), [Event::Violation]);
        assert_eq!(opener.stats().violations, round * 101);
    }
}
