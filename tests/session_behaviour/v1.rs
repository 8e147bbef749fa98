//! Tunnels with v1 peers, which have no credit.

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

/// The same at the opener.
fn fill_back(pair: &mut Pair, accepted: StreamId) {
    while pair.opener.can_receive() {
        fill(&mut pair.acceptor, accepted);
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
    assert_eq!(pair.acceptor.recv(their_other, pair.now), Ok(Recv::Blocked));
    pair.wait(Duration::from_millis(1_999));
    assert!(!pair.acceptor.can_receive());
    pair.wait(Duration::from_millis(2));
    assert!(pair.acceptor.can_receive());
    assert_eq!(
        pair.acceptor.recv(their_other, pair.now),
        Ok(Recv::Data("waits".into()))
    );
    let reset = pair.acceptor.reset_of(their_slow).unwrap();
    assert_eq!(reset.reason, Reason::Overflow);
    assert_eq!(pair.opener.state(slow), Some(State::Closed));
    // Its data can still be read before the reset.
    let (read, end) = drain(&mut pair.acceptor, their_slow, pair.now);
    assert!(read.len() >= 256 << 10);
    assert_eq!(reason(end), Reason::Overflow);
}

/// A driver would look again and again in one moment.
#[test]
fn no_time_for_a_stall_or_a_silence_is_no_loop() {
    let none = config(|config| {
        config.v1_stream_buffer = 256 << 10;
        config.v1_stall = Duration::ZERO;
        config.keepalive = Some(Duration::ZERO);
    });
    for version in BOTH {
        let pair = Pair::with(version, none.clone());
        assert_eq!(pair.acceptor.poll_timeout(), None);
    }
    let mut pair = Pair::with(Version::V1, none);
    let (opened, _) = pair.stream();
    stall(&mut pair, opened);
    for _ in 0..3 {
        let due = pair.acceptor.poll_timeout().unwrap();
        assert!(due > pair.now);
        pair.now = due;
        pair.acceptor.handle_timeout(pair.now);
    }
}

/// All their readers are behind one tunnel that has lost its transport. When it is back, the stall
/// ends, and a reset of one would not have helped the others.
#[test]
fn a_stall_waits_for_readers_that_are_away_together() {
    let mut pair = Pair::with(Version::V1, small());
    let streams = [pair.stream(), pair.stream()];
    let [(slow, their_slow), (other, their_other)] = streams;
    for (_, theirs) in streams {
        pair.acceptor.set_expendable(theirs, true);
    }
    stall(&mut pair, slow);
    pair.opener.send_slice(other, b"waits").unwrap();
    pair.wait(Duration::from_secs(60));
    for (_, theirs) in streams {
        assert_eq!(pair.acceptor.reset_of(theirs), None);
        pair.acceptor.set_expendable(theirs, false);
    }
    let _ = drain(&mut pair.acceptor, their_slow, pair.now);
    pair.run();
    let (read, _) = drain(&mut pair.acceptor, their_other, pair.now);
    assert_eq!(read, b"waits");
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
        if let Ok(Recv::Data(data)) = pair.acceptor.recv(accepted, pair.now) {
            read += data.len();
        }
        pair.run();
    }
    assert!(read >= 49 * (32 << 10), "{read}");
    assert_eq!(pair.acceptor.reset_of(accepted), None);
}

/// A reader that reads a little now and then stops all others as much as one that reads nothing.
#[test]
fn a_trickle_is_not_progress() {
    let mut pair = Pair::with(Version::V1, small());
    let (_, accepted) = pair.stream();
    let (_, beside) = pair.stream();
    // The peer sends in small messages, so that a read is a small one.
    let trickle = |pair: &mut Pair| {
        say(&mut pair.acceptor, pair.now, data(2, "beside")).unwrap();
        drain(&mut pair.acceptor, beside, pair.now).1.unwrap();
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
        assert!(matches!(
            pair.acceptor.recv(accepted, pair.now),
            Ok(Recv::Data(_))
        ));
        trickle(&mut pair);
    }
    let reset = pair.acceptor.reset_of(accepted).expect("no reset");
    assert_eq!(reset.reason, Reason::Overflow);
}

/// No other stream waits, so the pause harms nobody.
#[test]
fn a_lone_reader_may_pause_as_long_as_it_likes() {
    for role in [Role::Acceptor, Role::Opener] {
        let mut pair = Pair::with(Version::V1, small());
        let (opened, accepted) = pair.stream();
        let (from, to) = match role {
            Role::Acceptor => (opened, accepted),
            Role::Opener => (accepted, opened),
        };
        let mut sent = 0;
        for _ in 0..3 {
            sent += match role {
                Role::Acceptor => fill(&mut pair.opener, from),
                Role::Opener => fill(&mut pair.acceptor, from),
            };
            pair.run();
            pair.wait(Duration::from_secs(60));
        }
        assert_eq!(receiver_of(&mut pair, role).reset_of(to), None);
        let mut read = 0;
        loop {
            let now = pair.now;
            let (part, end) = drain(receiver_of(&mut pair, role), to, now);
            end.unwrap();
            read += part.len();
            pair.run();
            if part.is_empty() {
                break;
            }
        }
        assert_eq!(read, sent, "{role:?}");
    }
}

fn receiver_of(pair: &mut Pair, role: Role) -> &mut Session {
    match role {
        Role::Acceptor => &mut pair.acceptor,
        Role::Opener => &mut pair.opener,
    }
}

/// A ping of the peer's transport is queued behind the data, so the session receives a stated
/// amount more.
#[test]
fn a_lone_stall_reaches_for_what_stands_behind_it() {
    let config = config(|config| {
        config.v1_stream_buffer = 256 << 10;
        config.v1_reach = 5 << 20;
        config.keepalive = None;
    });
    let mut opener = Session::new(Role::Opener, Version::V1, config, at(0));
    let stream = opener.open_tcp(1, at(0)).unwrap();
    messages(&mut opener, at(0));
    let connected = Frame::Connected {
        proto: Proto::Tcp,
        id: ClientId(1),
    };
    say(&mut opener, at(0), connected).unwrap();
    let take = |opener: &mut Session, now| {
        let before = opener.stats().unread;
        while opener.can_receive() {
            say(opener, now, data(1, vec![0; 64 << 10])).unwrap();
        }
        opener.stats().unread - before
    };
    assert_eq!(take(&mut opener, at(0)), 256 << 10);
    for look in 1..=30 {
        let now = at(look * 2_000);
        assert_eq!(opener.poll_timeout(), Some(now));
        opener.handle_timeout(now);
        let taken = if look <= 5 { 1 << 20 } else { 0 };
        assert_eq!(take(&mut opener, now), taken, "look {look}");
    }
    assert_eq!(opener.reset_of(stream), None);
    // Progress restores the full reach.
    drain(&mut opener, stream, at(60_000)).1.unwrap();
    assert_eq!(take(&mut opener, at(60_000)), 256 << 10);
    opener.handle_timeout(at(62_000));
    assert_eq!(take(&mut opener, at(62_000)), 1 << 20);
}

const MESSAGE: usize = 64 << 10;

/// An opener with two streams.
fn opened(reach: usize) -> (Session, [StreamId; 2]) {
    let config = config(|config| {
        config.v1_stream_buffer = 256 << 10;
        config.v1_reach = reach;
        config.keepalive = None;
    });
    let mut opener = Session::new(Role::Opener, Version::V1, config, at(0));
    let streams = [1, 2].map(|port| opener.open_tcp(port, at(0)).unwrap());
    messages(&mut opener, at(0));
    for id in [1, 2] {
        let (proto, id) = (Proto::Tcp, ClientId(id));
        say(&mut opener, at(0), Frame::Connected { proto, id }).unwrap();
    }
    (opener, streams)
}

/// An opener of which stream 1 is full, long after anything came for stream 2.
fn paused(reach: usize) -> (Session, [StreamId; 2]) {
    let (mut opener, streams) = opened(reach);
    take(&mut opener, at(9_000), MESSAGE);
    (opener, streams)
}

/// When the stall is looked at.
fn looks() -> impl Iterator<Item = Instant> {
    (1..).map(|look| at(9_000 + look * 2_000))
}

/// Receives as many messages as the session does. Returns their bytes.
fn take(opener: &mut Session, now: Instant, message: usize) -> usize {
    let before = opener.stats().unread;
    while opener.can_receive() {
        assert_eq!(opener.stats().resets, 0);
        say(opener, now, data(1, vec![0; message])).unwrap();
    }
    opener.stats().unread - before
}

/// The same, with the look if one is due then.
fn take_and_look(opener: &mut Session, now: Instant) -> usize {
    let mut taken = take(opener, now, MESSAGE);
    if opener.poll_timeout().is_some_and(|due| due <= now) {
        opener.handle_timeout(now);
        taken += take(opener, now, MESSAGE);
    }
    taken
}

/// Reads some whole messages.
fn read(opener: &mut Session, stream: StreamId, now: Instant, messages: usize) {
    for _ in 0..messages {
        let read = opener.recv(stream, now);
        assert!(matches!(read, Ok(Recv::Data(_))), "{read:?}");
    }
}

/// What the pause has left in the buffer does not keep the peer's pings waiting until it is read.
#[test]
fn a_lone_reader_that_goes_on_slowly_does_not_stop_the_transport() {
    let reach = 8 << 20;
    let (mut opener, [stream, _]) = paused(reach);
    let mut looks = looks();
    for now in looks.by_ref().take(5) {
        opener.handle_timeout(now);
        assert_eq!(take(&mut opener, now, MESSAGE), 1 << 20);
    }
    for (turn, now) in looks.take(60).enumerate() {
        read(&mut opener, stream, now, 4);
        opener.handle_timeout(now);
        let taken = take(&mut opener, now, MESSAGE);
        // While the reach lasts, the pings come as soon as in the pause.
        let pace = if turn < 3 { 1 << 20 } else { 4 * MESSAGE };
        assert!(taken >= pace, "{taken} in turn {turn}");
        assert!(opener.stats().unread <= (256 << 10) + reach);
    }
    assert_eq!(opener.reset_of(stream), None);
    // A fast reader ends the stall.
    drain(&mut opener, stream, at(200_000)).1.unwrap();
    assert_eq!(opener.poll_timeout(), None);
}

/// Deployed peers ping every 20 s, behind what both kernels hold, and give up when a ping is not
/// answered before the next one. Such a reader makes room several times in each of the looks.
#[test]
fn a_lone_reader_that_is_slow_does_not_stop_the_transport_within_its_reach() {
    const KERNELS: usize = (6 << 20) / MESSAGE;
    let (mut opener, [stream, _]) = paused(32 << 20);
    let mut pinged = at(9_000);
    let mut ahead_of_ping = None;
    // 150 kB/s.
    for now in (1..=140).map(|turn| at(9_000 + turn * 437)) {
        read(&mut opener, stream, now, 1);
        if now - pinged >= Duration::from_secs(20) {
            assert_eq!(ahead_of_ping, None, "not answered");
            pinged = now;
            ahead_of_ping = Some(KERNELS);
        }
        let received = take_and_look(&mut opener, now) / MESSAGE;
        ahead_of_ping = ahead_of_ping.and_then(|ahead: usize| ahead.checked_sub(received));
    }
    assert_eq!(opener.reset_of(stream), None);
}

/// A sender is often faster. That keeps no ping waiting, and is not why a tunnel ends.
#[test]
fn a_reader_that_is_only_slower_than_the_peer_holds_no_more_and_is_not_blamed() {
    let (mut opener, [stream, _]) = paused(32 << 20);
    for now in (1..=6_000).map(|turn| at(9_000 + turn * 10)) {
        read(&mut opener, stream, now, 1);
        take_and_look(&mut opener, now);
        assert!(opener.stats().unread <= 256 << 10);
    }
    opener.handle_closed(at(69_000), Reason::Gone, "the tunnel ended");
    assert_eq!(opener.reset_of(stream).unwrap().reason, Reason::Gone);
}

#[test]
fn the_reach_bounds_what_a_reader_holds_however_often_it_reads() {
    for message in [MESSAGE, 1 << 20] {
        let reach = 5 << 20;
        let (mut opener, [stream, _]) = paused(reach);
        for (look, now) in looks().take(500).enumerate() {
            if look % 16 == 0 {
                read(&mut opener, stream, now, 1);
            }
            opener.handle_timeout(now);
            take(&mut opener, now, message);
            let most = (256 << 10) + reach + message;
            assert!(opener.stats().unread <= most, "look {look}");
        }
        assert_eq!(opener.reset_of(stream), None);
    }
}

/// All that an ended stream holds has arrived, so it stalls nothing.
#[test]
fn a_stream_that_has_ended_takes_no_reach_from_others() {
    let reach = 4 << 20;
    let (mut opener, [ended, other]) = paused(reach);
    let mut looks = looks();
    for now in looks.by_ref().take(4) {
        opener.handle_timeout(now);
        take(&mut opener, now, MESSAGE);
    }
    let now = at(17_500);
    assert_eq!(opener.stats().unread, (256 << 10) + reach);
    say(&mut opener, now, close(1)).unwrap();
    let mut held = 0;
    let mut fill = |opener: &mut Session, now| {
        while opener.can_receive() {
            say(opener, now, data(2, vec![0; MESSAGE])).unwrap();
            held += MESSAGE;
        }
        held
    };
    assert_eq!(fill(&mut opener, now), 256 << 10);
    for look in 1..=4 {
        let now = now + Duration::from_secs(2 * look);
        opener.handle_timeout(now);
        assert_eq!(
            fill(&mut opener, now),
            (256 << 10) + ((look as usize) << 20)
        );
    }
    for stream in [ended, other] {
        assert_eq!(opener.reset_of(stream), None);
    }
}

/// A reader has paused while nobody waited, and goes on to read when somebody does.
#[test]
fn a_reader_that_is_far_behind_does_not_hold_up_others() {
    let asks = |opener: &mut Session, other, now| {
        opener.send_slice(other, b"?").unwrap();
        messages(opener, now);
    };
    for (pace, is_kept) in [(1, false), (2, true)] {
        let (mut opener, [slow, other]) = paused(32 << 20);
        let mut looks = looks();
        for now in looks.by_ref().take(10) {
            opener.handle_timeout(now);
            take(&mut opener, now, MESSAGE);
        }
        asks(&mut opener, other, at(29_000));
        // The answer is behind what both kernels hold.
        let mut ahead = (6 << 20) / MESSAGE;
        let (mut answered, mut reset) = (None, None);
        for (turn, now) in looks.take(60).enumerate() {
            read(&mut opener, slow, now, pace);
            opener.handle_timeout(now);
            if opener.reset_of(slow).is_some() {
                reset = Some(turn);
                break;
            }
            while ahead > 0 && opener.can_receive() {
                say(&mut opener, now, data(1, vec![0; MESSAGE])).unwrap();
                ahead -= 1;
            }
            if ahead == 0 && answered.is_none() && opener.can_receive() {
                say(&mut opener, now, data(2, "!")).unwrap();
                answered = Some(turn);
            }
            take(&mut opener, now, MESSAGE);
            asks(&mut opener, other, now);
        }
        assert_eq!(answered, Some(1));
        assert_eq!(reset.is_none(), is_kept, "{reset:?}");
        assert!(reset.is_none_or(|turn| turn < 9), "{reset:?}");
    }
}

/// An opener knows which of its streams are unanswered.
#[test]
fn a_stall_ends_for_a_stream_that_waits_for_an_answer() {
    let answered_before = |pair: &mut Pair| {
        let (other, their_other) = pair.stream();
        pair.opener.send_slice(other, b"?").unwrap();
        pair.run();
        pair.acceptor.send_slice(their_other, b"!").unwrap();
        pair.run();
        pair.wait(Duration::from_secs(5));
        other
    };
    for asks in [false, true] {
        let mut pair = Pair::with(Version::V1, small());
        let other = answered_before(&mut pair);
        let (slow, their_slow) = pair.stream();
        fill_back(&mut pair, their_slow);
        pair.wait(Duration::from_secs(30));
        assert_eq!(
            pair.opener.reset_of(slow),
            None,
            "an idle stream does not wait"
        );
        if asks {
            pair.opener.send_slice(other, b"?").unwrap();
            pair.run();
        }
        pair.wait(Duration::from_secs(3));
        let reset = pair.opener.reset_of(slow);
        assert_eq!(
            reset.map(|reset| reset.reason),
            asks.then_some(Reason::Overflow)
        );
    }
}

/// Without a reach nothing more can be read to find out whether a new connection has a request.
#[test]
fn a_stall_ends_for_a_connection_that_was_just_accepted() {
    let config = config(|config| {
        config.v1_stream_buffer = 256 << 10;
        config.v1_reach = 0;
        config.keepalive = None;
    });
    let mut pair = Pair::with(Version::V1, config);
    let (slow, their_slow) = pair.stream();
    let (other, their_other) = pair.stream();
    stall(&mut pair, slow);
    pair.opener.send_slice(other, b"request").unwrap();
    pair.wait(Duration::from_millis(1_999));
    assert!(!pair.acceptor.can_receive());
    pair.wait(Duration::from_millis(2));
    let request = pair.acceptor.recv(their_other, pair.now);
    assert_eq!(request, Ok(Recv::Data("request".into())));
    let reset = pair.acceptor.reset_of(their_slow).unwrap();
    assert_eq!(reset.reason, Reason::Overflow);
}

/// Browsers open connections that they may need.
#[test]
fn a_connection_that_has_not_asked_for_anything_does_not_wait() {
    let mut pair = Pair::with(Version::V1, small());
    let (slow, their_slow) = pair.stream();
    let (idle, _) = pair.stream();
    pair.wait(Duration::from_secs(5));
    fill_back(&mut pair, their_slow);
    pair.wait(Duration::from_secs(60));
    assert_eq!(pair.opener.reset_of(slow), None);
    pair.opener.send_slice(idle, b"?").unwrap();
    pair.run();
    pair.wait(Duration::from_secs(3));
    let reset = pair.opener.reset_of(slow).expect("no reset");
    assert_eq!(reset.reason, Reason::Overflow);
}

/// Its CLOSE is behind what the paused reader has not read.
#[test]
fn a_stream_that_nobody_reads_does_not_wait() {
    for is_read in [false, true] {
        let (mut opener, [slow, other]) = paused(32 << 20);
        opener.send_slice(other, b"?").unwrap();
        match is_read {
            true => opener.finish(other),
            false => opener.release(other, at(9_000)),
        }
        messages(&mut opener, at(9_000));
        for now in looks().take(10) {
            opener.handle_timeout(now);
        }
        assert_eq!(opener.reset_of(slow).is_some(), is_read);
    }
}

/// CONNECTED is no answer to what was sent before it.
#[test]
fn a_request_that_was_sent_early_waits() {
    let mut pair = Pair::with(Version::V1, small());
    let (slow, their_slow) = pair.stream();
    let early = pair.opener.open_tcp(80, pair.now).unwrap();
    pair.opener.send_slice(early, b"?").unwrap();
    pair.run();
    let accepted = incoming(&mut pair.acceptor);
    pair.acceptor.accept(accepted, pair.now).unwrap();
    pair.run();
    pair.wait(Duration::from_secs(1));
    fill_back(&mut pair, their_slow);
    pair.wait(Duration::from_secs(3));
    let reset = pair.opener.reset_of(slow).expect("no reset");
    assert_eq!(reset.reason, Reason::Overflow);
}

/// After which of 60 looks the stream is reset, while the peer sends on and `turn` happens once a
/// second.
fn reset_after(
    opener: &mut Session,
    slow: StreamId,
    mut turn: impl FnMut(&mut Session, u64),
) -> Option<u64> {
    for second in 10..130 {
        turn(opener, second);
        let now = at(second * 1_000);
        if opener.poll_timeout().is_some_and(|due| due <= now) {
            opener.handle_timeout(now);
        }
        if opener.reset_of(slow).is_some() {
            return Some((second - 9) / 2);
        }
        take(opener, now, MESSAGE);
    }
    None
}

/// The transport was read when an answer was due, so the service may owe none: a long poll, a log.
#[test]
fn what_was_long_unanswered_before_a_stall_waits_for_a_bounded_time() {
    // When it was sent, and how many looks the reader has.
    for (asked, looks) in [(1_000, 9), (6_999, 9), (7_000, 1), (8_999, 1)] {
        for udp in [false, true] {
            let (mut opener, [slow, other]) = opened(32 << 20);
            if udp {
                let flow = opener.open_udp(53, at(0)).unwrap();
                messages(&mut opener, at(0));
                let (proto, id) = (Proto::Udp, ClientId(3));
                say(&mut opener, at(0), Frame::Connected { proto, id }).unwrap();
                opener.send_datagram(flow, Chunk::copied(b"line")).unwrap();
            } else {
                opener.send_slice(other, b"hello").unwrap();
            }
            messages(&mut opener, at(asked));
            take(&mut opener, at(9_000), MESSAGE);
            let after = reset_after(&mut opener, slow, |_, _| ());
            assert_eq!(after, Some(looks), "sent at {asked}, UDP {udp}");
        }
    }
}

#[test]
fn a_connection_that_was_long_not_made_before_a_stall_waits_for_a_bounded_time() {
    for (asked, looks) in [(1_000, 9), (8_000, 1)] {
        let (mut opener, [slow, _]) = opened(32 << 20);
        opener.open_tcp(3, at(asked)).unwrap();
        messages(&mut opener, at(asked));
        take(&mut opener, at(9_000), MESSAGE);
        let after = reset_after(&mut opener, slow, |_, _| ());
        assert_eq!(after, Some(looks), "opened at {asked}");
    }
}

/// Its answer is due when it ends. If it is not answered then either, the reach finds out.
#[test]
fn an_upload_does_not_wait_before_its_end() {
    let upload = |opener: &mut Session, other, second| {
        opener.send_slice(other, b"some of it").unwrap();
        messages(opener, at(second * 1_000));
    };
    for (began, ends, looks) in [
        (1, None, None),
        (1, Some(20), Some(13)),
        (1, Some(100), Some(46)),
        (8, None, Some(1)),
        (10, None, Some(1)),
    ] {
        let (mut opener, [slow, other]) = opened(32 << 20);
        for second in began..9 {
            upload(&mut opener, other, second);
        }
        take(&mut opener, at(9_000), MESSAGE);
        let after = reset_after(&mut opener, slow, |opener, second| {
            if second >= began && ends.is_none_or(|end| second < end) {
                upload(opener, other, second);
            }
        });
        assert_eq!(after, looks, "from {began} to {ends:?}");
    }
}

#[test]
fn a_late_answer_ends_the_stall() {
    let (mut opener, [slow, other]) = opened(32 << 20);
    opener.send_slice(other, b"a slow query").unwrap();
    messages(&mut opener, at(5_000));
    take(&mut opener, at(9_000), MESSAGE);
    let after = reset_after(&mut opener, slow, |opener, second| {
        if second == 14 {
            say(opener, at(14_000), data(2, "rows")).unwrap();
        }
    });
    assert_eq!(after, Some(2));
}

/// Something came for the other stream just before the stall. Whether it waits for more shows in
/// the bytes of the reach, or the slow stream is reset when they are used up.
#[test]
fn a_stream_that_was_just_served_waits_for_a_bounded_time() {
    let config = config(|config| {
        config.v1_stream_buffer = 256 << 10;
        config.v1_reach = 12 << 20;
        config.keepalive = None;
    });
    for (sends_on, more_comes_at) in [(false, None), (true, None), (true, Some(3))] {
        let mut opener = Session::new(Role::Opener, Version::V1, config.clone(), at(0));
        let [slow, _] = [1, 2].map(|port| opener.open_tcp(port, at(0)).unwrap());
        messages(&mut opener, at(0));
        for id in [1, 2] {
            let (proto, id) = (Proto::Tcp, ClientId(id));
            say(&mut opener, at(0), Frame::Connected { proto, id }).unwrap();
        }
        let now = at(9_000);
        say(&mut opener, now, data(2, "the last byte")).unwrap();
        let send_slow = |opener: &mut Session, now| {
            while opener.can_receive() {
                say(opener, now, data(1, vec![0; 64 << 10])).unwrap();
            }
        };
        send_slow(&mut opener, now);
        let mut reset_after = None;
        for look in 1..=60 {
            let now = at(9_000 + look * 2_000);
            opener.handle_timeout(now);
            if opener.reset_of(slow).is_none() && more_comes_at == Some(look) {
                say(&mut opener, now, data(2, "more")).unwrap();
            }
            if opener.reset_of(slow).is_some() {
                reset_after = Some(look);
                break;
            }
            if sends_on {
                send_slow(&mut opener, now);
            }
        }
        let expected = match (sends_on, more_comes_at) {
            // All that was sent has been read, so nothing waits.
            (false, _) => None,
            (true, None) => Some(4),
            (true, more_comes_at) => more_comes_at,
        };
        assert_eq!(reset_after, expected);
    }
}

/// Others have waited, but the reader has just read again.
#[test]
fn a_reader_that_has_read_enough_since_is_not_reset_for_the_next_message() {
    let config = config(|config| {
        config.v1_stream_buffer = 256 << 10;
        config.keepalive = None;
    });
    let mut acceptor = Session::new(Role::Acceptor, Version::V1, config, at(0));
    let slow = accepted(&mut acceptor, 1);
    accepted(&mut acceptor, 2);
    let fill = |acceptor: &mut Session, now| {
        while acceptor.can_receive() {
            say(acceptor, now, data(1, vec![1; 64 << 10])).unwrap();
        }
    };
    let begun = at(9_000);
    fill(&mut acceptor, begun);
    let late = at(11_000);
    acceptor.handle_timeout(late);
    // What the reach allows makes the stream hold more than its bound.
    for _ in 0..8 {
        say(&mut acceptor, late, data(1, vec![1; 64 << 10])).unwrap();
    }
    for _ in 0..2 {
        let read = acceptor.recv(slow, late);
        assert!(matches!(read, Ok(Recv::Data(_))), "{read:?}");
    }
    say(&mut acceptor, late, data(2, "next")).unwrap();
    assert_eq!(acceptor.reset_of(slow), None);
    acceptor.handle_timeout(at(13_000));
    assert_eq!(acceptor.reset_of(slow), None);
    // It pauses again, and the other stream waits again.
    acceptor.handle_timeout(at(15_000));
    say(&mut acceptor, at(15_000), data(2, "next")).unwrap();
    let reset = acceptor.reset_of(slow).expect("no reset");
    assert_eq!(reset.reason, Reason::Overflow);
}

/// The reset names the paused reader when the peer ends the tunnel because of the pause.
#[test]
fn the_end_of_the_tunnel_over_a_pause_names_the_reader() {
    for resumes in [false, true] {
        let mut pair = Pair::with(Version::V1, small());
        let (slow, their_slow) = pair.stream();
        let (other, _) = pair.stream();
        fill_back(&mut pair, their_slow);
        pair.opener.discard(other);
        pair.opener.reset(other, Reason::Reset, "");
        pair.wait(Duration::from_secs(41));
        if resumes {
            while matches!(pair.opener.recv(slow, pair.now), Ok(Recv::Data(_))) {}
        }
        pair.opener
            .handle_closed(pair.now, Reason::Gone, "the tunnel ended");
        let reset = pair.opener.reset_of(slow).unwrap();
        let words = "the tunnel ended, after the application had not read enough for ";
        let seconds = reset.text.strip_prefix(words).expect(&reset.text);
        assert!(["40 s", "41 s"].contains(&seconds), "{seconds}");
        // Received data can still be read, followed by a reset: never by an end of data.
        assert_eq!(
            reason(drain(&mut pair.opener, slow, pair.now).1),
            Reason::Overflow
        );
    }
}

/// The peer's close is queued behind data, which fills the stream again after the pause.
#[test]
fn short_stalls_after_a_pause_do_not_hide_it() {
    let (mut opener, [slow, _]) = paused(0);
    let now = at(109_000);
    for _ in 0..3 {
        drain(&mut opener, slow, now).1.unwrap();
        take(&mut opener, now, MESSAGE);
    }
    assert!(!opener.can_receive());
    opener.handle_closed(now, Reason::Gone, "the tunnel ended");
    let reset = opener.reset_of(slow).unwrap();
    let text = "the tunnel ended, after the application had not read enough for 100 s";
    assert_eq!((reset.reason, &*reset.text), (Reason::Overflow, text));
}

/// A stream that has ended cannot say whose pause it was.
#[test]
fn the_pause_of_a_stream_that_has_ended_does_not_hide_a_shorter_one() {
    let (mut opener, [first, second]) = paused(0);
    let now = at(109_000);
    drain(&mut opener, first, now).1.unwrap();
    opener.reset(first, Reason::Reset, "");
    while opener.can_receive() {
        say(&mut opener, now, data(2, vec![0; MESSAGE])).unwrap();
    }
    opener.handle_closed(at(117_000), Reason::Gone, "the tunnel ended");
    let reset = opener.reset_of(second).unwrap();
    let text = "the tunnel ended, after the application had not read enough for 8 s";
    assert_eq!((reset.reason, &*reset.text), (Reason::Overflow, text));
}

/// A reader that takes something between two looks, but too little for all that comes.
#[test]
fn the_end_of_the_tunnel_over_a_slow_reader_names_it() {
    let (mut opener, [slow, _]) = paused(2 << 20);
    for (look, now) in looks().take(20).enumerate() {
        // It stays behind what the pause has left.
        read(&mut opener, slow, now, usize::from(look > 1));
        opener.handle_timeout(now);
        take(&mut opener, now, MESSAGE);
    }
    opener.handle_closed(at(49_500), Reason::Gone, "the tunnel ended");
    let reset = opener.reset_of(slow).unwrap();
    let text = "the tunnel ended, after the application had not read enough for 40 s";
    assert_eq!((reset.reason, &*reset.text), (Reason::Overflow, text));
}

#[test]
fn reading_ends_the_stall() {
    let mut pair = Pair::with(Version::V1, small());
    let (opened, accepted) = pair.stream();
    stall(&mut pair, opened);
    drain(&mut pair.acceptor, accepted, pair.now).1.unwrap();
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
            true => pair.acceptor.release(accepted, pair.now),
            false => pair.acceptor.reset(accepted, Reason::Reset, ""),
        }
        assert!(pair.acceptor.can_receive());
    }
}

/// Everything has arrived, so there is nothing to wait for, and nothing to reset.
#[test]
fn the_peers_end_of_the_slow_stream_ends_the_stall() {
    let mut pair = Pair::with(Version::V1, small());
    let (_, accepted) = pair.stream();
    let (_, beside) = pair.stream();
    say(&mut pair.acceptor, pair.now, data(2, "beside")).unwrap();
    drain(&mut pair.acceptor, beside, pair.now).1.unwrap();
    let mut sent = 0;
    while pair.acceptor.can_receive() {
        let message = data(1, vec![1; 64 << 10]);
        say(&mut pair.acceptor, pair.now, message).unwrap();
        sent += 64 << 10;
    }
    say(&mut pair.acceptor, pair.now, close(1)).unwrap();
    assert!(pair.acceptor.can_receive());
    pair.acceptor
        .handle_timeout(pair.now + Duration::from_secs(2));
    let (read, end) = drain(&mut pair.acceptor, accepted, pair.now);
    assert_eq!((read.len(), end), (sent, Ok(Recv::Finished)));
}

#[test]
fn a_lone_reader_is_not_reset_for_what_comes_to_itself() {
    let mut pair = Pair::with(Version::V1, small());
    let (_, accepted) = pair.stream();
    let piece = || data(1, vec![1; 4096]);
    while pair.acceptor.can_receive() {
        say(&mut pair.acceptor, pair.now, piece()).unwrap();
    }
    // Not enough to end the stall.
    for _ in 0..2 {
        let read = pair.acceptor.recv(accepted, pair.now);
        assert!(matches!(read, Ok(Recv::Data(_))), "{read:?}");
    }
    let later = pair.now + Duration::from_secs(2);
    pair.acceptor.handle_timeout(later);
    assert!(pair.acceptor.can_receive());
    say(&mut pair.acceptor, later, piece()).unwrap();
    assert_eq!(pair.acceptor.reset_of(accepted), None);
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
    let (read, end) = drain(&mut opener, stream, at(91_000));
    assert_eq!((read.len(), reason(end)), (36, Reason::Gone));
}

/// While the tunnel stalls nothing is received, so silence does not mean that the peer is dead.
#[test]
fn a_stall_does_not_use_up_the_linger_of_others() {
    let mut pair = Pair::with(Version::V1, small());
    let patient = config(|config| config.linger = Duration::from_secs(3600));
    pair.acceptor = Session::new(Role::Acceptor, Version::V1, patient, pair.now);
    let (slow, their_slow) = pair.stream();
    let (replying, asked) = pair.stream();
    pair.opener.finish(replying);
    pair.run();
    // The replies go to the opener, which stalls on another stream that is read slowly.
    fill_back(&mut pair, their_slow);
    pair.acceptor.send_slice(asked, b"reply").unwrap();
    pair.acceptor.finish(asked);
    let mut held = pair.opener.stats().unread;
    for _ in 0..12 {
        // Enough to count as progress, but never enough to end the stall.
        pair.wait(Duration::from_secs(1));
        let message = data(1, vec![0; 64 << 10]);
        if let Ok(Recv::Data(data)) = pair.opener.recv(slow, pair.now) {
            held -= data.len();
        }
        while held < 256 << 10 {
            say(&mut pair.opener, pair.now, message.clone()).unwrap();
            held += 64 << 10;
        }
    }
    assert_eq!(pair.opener.reset_of(replying), None);
    drain(&mut pair.opener, slow, pair.now).1.unwrap();
    pair.run();
    let read = drain(&mut pair.opener, replying, pair.now);
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
    // The service ends its direction, and still reads.
    say(&mut opener, at(0), data(1, "bye")).unwrap();
    say(&mut opener, at(0), close(1)).unwrap();
    opener.send_slice(stream, b"thanks").unwrap();
    opener.finish(stream);
    let said = messages(&mut opener, at(0));
    assert_eq!(said.last(), Some(&close(1)));
    // Late frames for a closed id.
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
