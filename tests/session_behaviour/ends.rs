//! How streams begin and end.

use super::*;

#[test]
fn half_close_keeps_the_reply() {
    for version in BOTH {
        let mut pair = Pair::new(version);
        let (opened, accepted) = pair.stream();
        assert_eq!(pair.opener.send_slice(opened, b"question").unwrap(), 8);
        pair.opener.finish(opened);
        pair.run();
        let (question, end) = drain(&mut pair.acceptor, accepted, pair.now);
        assert_eq!((&question[..], end), (&b"question"[..], Ok(Recv::Finished)));
        assert_eq!(pair.opener.state(opened), Some(State::LocalFinished));

        pair.acceptor.send_slice(accepted, b"reply").unwrap();
        pair.run();
        assert_eq!(
            pair.opener.recv(opened, pair.now),
            Ok(Recv::Data("reply".into()))
        );
        assert_eq!(pair.opener.recv(opened, pair.now), Ok(Recv::Blocked));
        pair.acceptor.finish(accepted);
        pair.run();
        assert_eq!(pair.opener.recv(opened, pair.now), Ok(Recv::Finished));
        for (session, stream) in [(&mut pair.opener, opened), (&mut pair.acceptor, accepted)] {
            assert_eq!(session.state(stream), Some(State::Closed));
            assert_eq!(session.reset_of(stream), None);
            session.release(stream, pair.now);
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
        assert_eq!(
            pair.opener.recv(opened, pair.now),
            Ok(Recv::Data("greeting".into()))
        );
        assert_eq!(pair.opener.recv(opened, pair.now), Ok(Recv::Finished));
        pair.opener.send_slice(opened, b"more").unwrap();
        pair.opener.finish(opened);
        pair.run();
        let read = drain(&mut pair.acceptor, accepted, pair.now);
        assert_eq!(read, (b"more".to_vec(), Ok(Recv::Finished)));
    }
}

/// A body of a megabyte, say, as the text of a refusal.
#[test]
fn a_text_too_long_for_a_message_is_cut_and_ends_no_tunnel() {
    let body = "é".repeat(1 << 20);
    for version in BOTH {
        let mut pair = Pair::new(version);
        let (kept, _) = pair.stream();
        let refused = pair.opener.open_tcp(81, pair.now).unwrap();
        pair.run();
        let asked = incoming(&mut pair.acceptor);
        pair.acceptor.reject(asked, Reason::Refused, &body);
        pair.run();
        let text = &pair.opener.reset_of(refused).unwrap().text;
        let text = match version {
            Version::V1 => text.strip_prefix("connection refused: ").unwrap(),
            _ => text,
        };
        assert!(text.len() > 1000 && body.starts_with(text), "{text}");

        let (opened, accepted) = pair.stream();
        pair.acceptor.reset(accepted, Reason::Reset, &body);
        let own = pair.acceptor.reset_of(accepted).unwrap();
        assert_eq!(own.text.len(), Reset::MAX_TEXT);
        pair.run();
        assert!(pair.opener.reset_of(opened).unwrap().text.len() <= Reset::MAX_TEXT);
        assert_eq!(pair.opener.reset_of(kept), None);
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
        assert_eq!(
            to.recv(theirs, pair.now),
            Err(StreamError::Reset(reset.clone()))
        );
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
    let (read, end) = drain(&mut pair.acceptor, accepted, pair.now);
    assert_eq!((&read[..], reason(end)), (&b"first"[..], Reason::Reset));
}

#[test]
fn in_v1_only_the_acceptor_can_say_why() {
    let mut pair = Pair::new(Version::V1);
    let (opened, accepted) = pair.stream();
    pair.acceptor.reset(accepted, Reason::Refused, "no");
    pair.run();
    let StreamError::Reset(reset) = pair.opener.recv(opened, pair.now).unwrap_err() else {
        panic!();
    };
    assert_eq!(
        reset,
        Reset::new(Reason::Unspecified, "connection refused: no")
    );

    let (opened, accepted) = pair.stream();
    pair.opener.reset(opened, Reason::Reset, "");
    pair.run();
    assert_eq!(pair.acceptor.recv(accepted, pair.now), Ok(Recv::Finished));
    // Further data of the service is answered once with CLOSE, the second one, which ends both
    // directions.
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
        assert_eq!(
            pair.acceptor.accept(asked, pair.now),
            Err(StreamError::Unknown)
        );
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
        let sent = pair.acceptor.send_slice(accepted, b"x");
        assert!(matches!(sent, Err(SendError::NotAccepted)), "{sent:?}");
        // Also before it is accepted.
        let read = drain(&mut pair.acceptor, accepted, pair.now);
        assert_eq!(read, (b"early".to_vec(), Ok(Recv::Finished)));
        pair.acceptor.accept(accepted, pair.now).unwrap();
        assert_eq!(
            pair.acceptor.accept(accepted, pair.now),
            Err(StreamError::WrongState)
        );
        pair.acceptor.send_slice(accepted, b"reply").unwrap();
        pair.acceptor.finish(accepted);
        pair.run();
        let read = drain(&mut pair.opener, opened, pair.now);
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
        pair.acceptor.accept(accepted, pair.now).unwrap();
        pair.run();
        assert_eq!(pair.opener.recv(opened, pair.now), Ok(Recv::Finished));
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
        let read = drain(&mut pair.acceptor, accepted, pair.now);
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
        pair.opener.release(opened, pair.now);
        assert_eq!(pair.opener.stats().streams, 1, "not yet");
        pair.run();
        let (read, end) = drain(&mut pair.acceptor, accepted, pair.now);
        assert_eq!((read.len(), end), (sent, Ok(Recv::Finished)));
        pair.acceptor.finish(accepted);
        pair.run();
        assert!(pair.opener.is_idle());
        assert_eq!(
            pair.opener.recv(opened, pair.now),
            Err(StreamError::Unknown)
        );
    }
}

#[test]
fn sending_to_a_released_stream_resets_it() {
    let mut pair = Pair::new(Version::V2);
    let (opened, accepted) = pair.stream();
    pair.opener.release(opened, pair.now);
    pair.run();
    pair.acceptor.send_slice(accepted, b"anybody?").unwrap();
    pair.run();
    let (_, end) = drain(&mut pair.acceptor, accepted, pair.now);
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
    pair.acceptor.release(accepted, pair.now);
    assert_eq!(pair.acceptor.stats().unread, 0);
}

#[test]
fn a_pending_stream_released_is_rejected() {
    let mut pair = Pair::new(Version::V2);
    let opened = pair.opener.open_tcp(80, pair.now).unwrap();
    pair.run();
    let asked = incoming(&mut pair.acceptor);
    pair.acceptor.release(asked, pair.now);
    pair.run();
    assert_eq!(
        pair.opener.reset_of(opened).unwrap().reason,
        Reason::Refused
    );
    assert!(pair.acceptor.is_idle());
}

#[test]
fn a_released_stream_whose_peer_never_ends_is_given_up() {
    let mut pair = Pair::new(Version::V2);
    let (opened, accepted) = pair.stream();
    pair.opener.release(opened, pair.now);
    pair.run();
    pair.wait(Duration::from_millis(9_999));
    assert_eq!(pair.acceptor.recv(accepted, pair.now), Ok(Recv::Finished));
    assert_eq!(pair.opener.stats().streams, 1);
    pair.wait(Duration::from_millis(2));
    assert!(pair.opener.is_idle());
    assert_eq!(
        pair.acceptor.reset_of(accepted).unwrap().reason,
        Reason::Gone
    );
}

/// The linger time counts from the release, however long the stream was idle before.
#[test]
fn a_release_after_a_long_silence_lingers_in_full() {
    let quiet = config(|config| config.keepalive = None);
    let mut pair = Pair::with(Version::V2, quiet);
    let (opened, _) = pair.stream();
    pair.opener.finish(opened);
    pair.run();
    pair.wait(Duration::from_secs(1_000));
    pair.opener.release(opened, pair.now);
    pair.wait(Duration::from_secs(9));
    assert!(!pair.opener.is_idle());
    pair.wait(Duration::from_secs(2));
    assert!(pair.opener.is_idle());
}

/// An event about a removed stream would reach the next stream in its slot.
#[test]
fn no_event_comes_after_release() {
    let mut pair = Pair::new(Version::V2);
    let opened = pair.opener.open_tcp(80, pair.now).unwrap();
    pair.run();
    let accepted = incoming(&mut pair.acceptor);
    pair.acceptor.accept(accepted, pair.now).unwrap();
    pair.acceptor.send_slice(accepted, b"hello").unwrap();
    pair.run();
    pair.opener.release(opened, pair.now);
    assert_eq!(pair.opener.poll_event(), None);

    let opened = pair.opener.open_tcp(80, pair.now).unwrap();
    pair.opener.release(opened, pair.now);
    pair.run();
    let accepted = incoming(&mut pair.acceptor);
    pair.acceptor.accept(accepted, pair.now).unwrap();
    pair.run();
    assert_eq!(events(&mut pair.opener), []);
}

#[test]
fn what_is_discarded_does_not_hold_the_sender_back() {
    for version in BOTH {
        let mut pair = Pair::new(version);
        let (opened, accepted) = pair.stream();
        fill(&mut pair.opener, opened);
        pair.run();
        pair.acceptor.discard(accepted);
        pair.run();
        let mut sent = 0;
        while sent < 4 * WINDOW {
            let more = fill(&mut pair.opener, opened);
            assert!(more > 0, "{version:?}: held back after {sent}");
            sent += more;
            pair.run();
            assert_eq!(pair.acceptor.stats().unread, 0);
        }
        pair.opener.finish(opened);
        pair.run();
        assert_eq!(pair.acceptor.recv(accepted, pair.now), Ok(Recv::Finished));
        assert_eq!(pair.acceptor.reset_of(accepted), None);

        let (opened, accepted) = pair.flow();
        pair.acceptor.discard(accepted);
        let datagram = Chunk::copied(b"unheard");
        pair.opener.send_datagram(opened, datagram).unwrap();
        pair.run();
        assert_eq!(pair.acceptor.recv(accepted, pair.now), Ok(Recv::Blocked));
    }
}

#[test]
fn a_writer_without_credit_learns_at_once_that_its_reader_is_gone() {
    let mut pair = Pair::new(Version::V2);
    let (opened, accepted) = pair.stream();
    fill(&mut pair.opener, opened);
    pair.run();
    assert_eq!(fill(&mut pair.opener, opened), 0, "credit is left");
    pair.acceptor.release(accepted, pair.now);
    pair.run();
    assert!(fill(&mut pair.opener, opened) > 0, "no credit came");
    pair.run();
    let reset = pair.opener.reset_of(opened).unwrap();
    assert_eq!(reset.reason, Reason::Gone);
}
