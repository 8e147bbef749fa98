//! What both ends guarantee together, each test with the fault that it is there to find.

use alloc::vec;

use super::*;

/// Found by: a replay that starts one message late, or early; a count read before the cut.
#[test]
fn what_was_lost_comes_again_once_and_in_order() {
    for arrived in 0..=5 {
        let mut pair = Pair::new();
        let up = send(&mut pair.client, 0..5);
        let down = send(&mut pair.server, 10..15);
        hand(&mut pair.server, pair.now, up[..arrived].to_vec());
        hand(&mut pair.client, pair.now, down[..arrived].to_vec());
        let (to_client, to_server) = pair.resume();
        assert_eq!(to_server, up[arrived..]);
        assert_eq!(to_client, down[arrived..]);
        let resumption = pair.server.resumption().unwrap();
        let left = 5 - arrived as u64;
        assert_eq!((resumption.messages, resumption.bytes), (left, left * 9));
        assert_eq!(pair.server.stats().replayed, left);
        pair.audit();
    }
}

/// Found by: a count read before the cut.
#[test]
fn the_count_is_read_when_the_tunnel_is_taken_over() {
    let mut pair = Pair::new();
    let up = send(&mut pair.client, 0..2);
    pair.client.detach(pair.now);
    pair.client.attach(pair.now);
    let open = open(&mut pair.client);
    pair.server.check(&open).unwrap();
    // The old transport delivers between the check and the takeover.
    hand(&mut pair.server, pair.now, up[..1].to_vec());
    pair.server.takeover(&open, secret(2), pair.now).unwrap();
    let opened = output(&mut pair.server);
    let [Message::Opened(told)] = layer(&opened)[..] else {
        panic!()
    };
    assert_eq!(told.received, 1);
    hand(&mut pair.client, pair.now, opened);
    assert_eq!(output(&mut pair.client), up[1..]);
}

/// Found by: write-all-then-read; progress that is lost when a replay is cut.
#[test]
fn a_replay_that_is_cut_again_and_again_ends() {
    let mut pair = Pair::new();
    let up = send(&mut pair.client, 0..50);
    let down = send(&mut pair.server, 100..150);
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    for round in 1..=50 {
        pair.cut();
        let replay = pair.reopen();
        // OPENED and one message get through.
        to_client.extend(hand(&mut pair.client, pair.now, replay[..2].to_vec()));
        let first = pair.client.poll_output().unwrap();
        to_server.extend(hand(&mut pair.server, pair.now, [first].to_vec()));
        assert_eq!((to_client.len(), to_server.len()), (round, round));
        pair.audit();
    }
    assert_eq!((to_client, to_server), (down, up));
}

/// Reading goes on while messages are sent again.
#[test]
fn messages_are_delivered_during_a_replay() {
    let mut pair = Pair::new();
    send(&mut pair.client, 0..3);
    let down = send(&mut pair.server, 10..12);
    pair.cut();
    let replay = pair.reopen();
    hand(&mut pair.client, pair.now, replay[..1].to_vec());
    assert_eq!(pair.client.accepts(), Accepts::Nothing);
    pair.client.poll_output().unwrap();
    let handed = hand(&mut pair.client, pair.now, replay[1..].to_vec());
    assert_eq!(handed, down);
    assert_eq!(output(&mut pair.client).len(), 2);
    assert_eq!(pair.client.accepts(), Accepts::All);
}

/// A message that was taken from the session too early is sent again in its place.
#[test]
fn a_message_taken_without_a_transport_is_not_lost() {
    let mut pair = Pair::new();
    pair.cut();
    pair.client.sent(&message(1)).unwrap();
    let (_, to_server) = pair.resume();
    assert_eq!(to_server, [message(1)]);
}

/// Found by: a late OPEN honoured.
#[test]
fn the_latest_attempt_wins() {
    let mut pair = Pair::new();
    pair.cut();
    pair.client.attach(pair.now);
    let early = open(&mut pair.client);
    pair.client.attach(pair.now);
    let late = open(&mut pair.client);
    assert!(late.attempt > early.attempt);
    pair.server.takeover(&late, secret(2), pair.now).unwrap();
    let (attempt, last) = (early.attempt, late.attempt);
    let refused = Refusal::Stale { attempt, last };
    assert_eq!(pair.server.check(&early), Err(refused));
    let outcome = pair.server.takeover(&early, secret(3), pair.now);
    assert_eq!(outcome, Err(Takeover::Refused(refused)));
    assert_eq!(refused.to_message()[..8], [0x0d, 0, 0, 0, 0, 0, 0, 2]);
    let opened = output(&mut pair.server);
    hand(&mut pair.client, pair.now, opened);
    // The same OPEN again, recorded by somebody.
    assert!(pair.server.check(&late).is_err());
    pair.audit();
}

/// Found by: the old secret dropped at once.
#[test]
fn an_answer_may_be_lost() {
    let mut pair = Pair::new();
    send(&mut pair.client, 0..2);
    for _ in 0..3 {
        pair.cut();
        pair.reopen();
    }
    let (_, to_server) = pair.resume();
    assert_eq!(to_server.len(), 2);
}

/// Found by: a token that still works after its replacement.
#[test]
fn a_secret_is_good_until_the_client_shows_that_it_got_the_next() {
    let forged = |pair: &Pair, n| {
        let open = Open {
            tunnel: IDENTITY.tunnel,
            secret: secret(n),
            attempt: 99,
            received: 0,
            keep: 1,
            ring: 1,
        };
        pair.server.check(&open)
    };
    for first in [message(0), datagram(), ack(0)] {
        let mut pair = Pair::new();
        pair.cut();
        let opened = pair.reopen();
        hand(&mut pair.client, pair.now, opened);
        for known in [1, 2] {
            assert_eq!(forged(&pair, known), Ok(()));
        }
        assert_eq!(forged(&pair, 3), Err(Refusal::Unknown));
        assert_eq!(forged(&pair, 0), Err(Refusal::Unknown));
        pair.server.handle_message(pair.now, first);
        assert_eq!(forged(&pair, 1), Err(Refusal::Unknown));
        assert_eq!(forged(&pair, 2), Ok(()));
    }
    // A secret that OPENED carried and nobody used is good for nothing after the next OPENED.
    let mut pair = Pair::new();
    for _ in 0..2 {
        pair.cut();
        pair.reopen();
    }
    for (n, good) in [(1, true), (2, false), (3, true)] {
        assert_eq!(forged(&pair, n).is_ok(), good, "{n}");
    }
    // The server's name of the tunnel counts as well.
    let mut open = Open {
        tunnel: 8,
        secret: secret(1),
        attempt: 99,
        received: 0,
        keep: 1,
        ring: 1,
    };
    assert_eq!(pair.server.check(&open), Err(Refusal::Unknown));
    open.tunnel = 9;
    assert_eq!(pair.server.check(&open), Ok(()));
}

/// Found by: classification that differs for one type, or with the length.
#[test]
fn every_first_two_bytes_count_alike_at_both_ends() {
    for kind in 0..=255_u8 {
        for proto in 0..=255_u8 {
            let exempt = (0x0a..=0x0d).contains(&kind) || (kind, proto) == (3, 1);
            let short = Bytes::copy_from_slice(&[kind, proto]);
            let long = Bytes::from([&[kind, proto][..], &[0; 70]].concat());
            for message in [short, long] {
                assert_eq!(counts(&message), !exempt, "{kind:#x} {proto:#x}");
                if is_layer(&message) {
                    assert!((0x0a..=0x0d).contains(&kind));
                    continue;
                }
                let mut pair = Pair::new();
                pair.client.sent(&message).unwrap();
                hand(&mut pair.server, pair.now, [message].to_vec());
                let counted = pair.client.stats().sent;
                assert_eq!(counted, u64::from(!exempt));
                assert_eq!(pair.server.stats().received, counted);
            }
        }
    }
    assert!(counts(&[]) && counts(&[3]) && !counts(&[3, 1]));
}

/// Found by: an ack ahead of what was handed up.
#[test]
fn every_count_that_is_told_was_handed_up() {
    let mut pair = Pair::with(Config::default().with_ring_min(1));
    let mut handed = 0;
    for n in 0..100 {
        if n % 7 == 3 {
            let (to_client, to_server) = pair.resume();
            assert!(to_client.is_empty() && to_server.is_empty());
        }
        let up = send(&mut pair.client, n..n + 1);
        handed += hand(&mut pair.server, pair.now, up).len() as u64;
        let told = output(&mut pair.server);
        assert_eq!(layer(&told), [Message::Ack { received: handed }]);
        hand(&mut pair.client, pair.now, told);
        let stats = pair.client.stats();
        assert_eq!((stats.acked, stats.sent), (handed, handed));
    }
}

/// Datagrams are neither kept nor counted, and never come again.
#[test]
fn datagrams_are_never_sent_again() {
    let mut pair = Pair::new();
    pair.client.sent(&datagram()).unwrap();
    pair.client.sent(&message(1)).unwrap();
    pair.client.sent(&datagram()).unwrap();
    let (_, to_server) = pair.resume();
    assert_eq!(to_server, [message(1)]);
    let handed = pair.server.handle_message(pair.now, datagram());
    assert_eq!(handed, Received::Deliver(datagram()));
    assert_eq!(pair.server.stats().received, 1);
}

/// No round trip is added to a new tunnel, and what went out before OPENED is not sent again.
#[test]
fn a_new_client_sends_at_once() {
    let now = at(0);
    let mut client = Link::client(Config::default());
    client.attach(now);
    assert_eq!(client.accepts(), Accepts::Nothing, "OPEN goes first");
    let open = open(&mut client);
    let up = send(&mut client, 0..3);
    let mut server = Link::server(Config::default(), IDENTITY, &open, secret(1), now);
    // It is read before OPENED is written.
    assert_eq!(hand(&mut server, now, up.clone()), up);
    let opened = output(&mut server);
    hand(&mut client, now, opened);
    assert_eq!(output(&mut client), [ack(0)]);
    let ended = pair_end(&mut client);
    assert_eq!(ended, [end_message(EndReason::Closed)]);
}

fn pair_end(link: &mut Link) -> Vec<Bytes> {
    link.end(EndReason::Closed, "");
    output(link)
}

fn end_message(reason: EndReason) -> Bytes {
    let text = "".into();
    Message::End { reason, text }.to_bytes()
}

/// What a client sent before OPENED, which something may have held for any time, does not show that
/// it is there. An acknowledgement does, and an OPEN with the secret of OPENED.
#[test]
fn a_new_tunnel_is_confirmed_by_a_client_that_heard_opened() {
    let config = Config::default();
    let mut client = Link::client(config.clone());
    client.attach(at(0));
    let asked = open(&mut client);
    let mut early = send(&mut client, 0..3);
    early.push(datagram());
    let server = || {
        let mut server = Link::server(config.clone(), IDENTITY, &asked, secret(1), at(0));
        output(&mut server);
        server
    };
    let mut late = server();
    hand(&mut late, at(0), early.clone());
    assert!(!late.is_confirmed());
    late.detach(at(0));
    assert_eq!(late.poll_timeout(), Some(at(120_000)), "as any other");

    let opened = Opened {
        instance: IDENTITY.instance,
        tunnel: IDENTITY.tunnel,
        secret: secret(1),
        received: 0,
        keep: 120,
        ring: 1,
    };
    client.handle_message(at(0), Message::Opened(opened).to_bytes());
    let answer = output(&mut client);
    assert_eq!(answer, [ack(0)]);
    let mut answered = server();
    hand(&mut answered, at(0), [early, answer].concat());
    assert!(answered.is_confirmed());
    answered.detach(at(0));
    assert_eq!(answered.poll_timeout(), Some(at(120_000)));

    // The answer was lost.
    client.attach(at(0));
    let again = open(&mut client);
    late.takeover(&again, secret(2), at(0)).unwrap();
    assert!(late.is_confirmed());
    let opened = late.poll_output().unwrap();
    client.handle_message(at(0), opened);
    assert_eq!(layer(&output(&mut client)), [], "it is known already");
}

/// A client that resumes sends nothing before OPENED, and the server takes nothing.
#[test]
fn a_client_that_resumes_waits_for_opened() {
    let mut pair = Pair::new();
    pair.cut();
    pair.client.attach(pair.now);
    let open = open(&mut pair.client);
    assert_eq!(pair.client.accepts(), Accepts::Nothing);
    pair.server.takeover(&open, secret(2), pair.now).unwrap();
    let early = pair.server.handle_message(pair.now, message(1));
    assert_eq!(early, Received::Violation(Violation::BeforeOpened));
    let early = pair.server.handle_message(pair.now, ack(0));
    assert!(matches!(early, Received::Violation(_)));
    assert_eq!(pair.server.stats().received, 0);
}

/// A new tunnel whose answer is lost is opened anew only if no message may be handled twice.
#[test]
fn messages_are_never_sent_to_another_tunnel() {
    let mut client = Link::client(Config::default());
    client.attach(at(0));
    let first = open(&mut client);
    client.sent(&datagram()).unwrap();
    client.detach(at(0));
    client.attach(at(0));
    let second = open(&mut client);
    assert_eq!((first.tunnel, second.tunnel), (0, 0));
    assert!(second.attempt > first.attempt);
    send(&mut client, 0..1);
    client.detach(at(0));
    assert_eq!(client.ended().unwrap().reason, EndReason::Unknown);
    assert!(client.audit());
}

/// END is last: after a replay, and after everything that was sent.
#[test]
fn an_orderly_end_follows_everything() {
    let mut pair = Pair::new();
    let up = send(&mut pair.client, 0..3);
    pair.cut();
    pair.client.end(EndReason::Closed, "done");
    assert_eq!(
        pair.client.state(),
        State::Detached,
        "messages are under way"
    );
    let opened = pair.reopen();
    hand(&mut pair.client, pair.now, opened);
    assert_eq!(pair.client.accepts(), Accepts::Nothing);
    let mut rest = output(&mut pair.client);
    let last = rest.pop().unwrap();
    assert_eq!(rest, up);
    assert_eq!(hand(&mut pair.server, pair.now, rest), up);
    let Received::Ended(ended) = pair.server.handle_message(pair.now, last) else {
        panic!()
    };
    assert_eq!((ended.reason, &ended.text[..]), (EndReason::Closed, "done"));
    assert!(ended.by_peer);
    assert_eq!(pair.client.state(), State::Ended);
    assert_eq!(
        (output(&mut pair.client), output(&mut pair.server)),
        Default::default()
    );
    pair.audit();

    // With nothing under way there is nothing to wait for.
    let mut pair = Pair::new();
    pair.cut();
    pair.server.end(EndReason::Gone, "");
    assert_eq!(pair.server.state(), State::Ended);
    let mut pair = Pair::new();
    pair.client.end(EndReason::Closed, "");
    pair.client.detach(pair.now);
    assert_eq!(pair.client.state(), State::Ended);
    let mut pair = Pair::new();
    pair.server.end(EndReason::Gone, "");
    pair.client.attach(pair.now);
    let open = open(&mut pair.client);
    let outcome = pair.server.takeover(&open, secret(2), pair.now);
    assert!(matches!(outcome, Err(Takeover::Ended(_))));
    let told = output(&mut pair.server);
    assert!(matches!(
        &layer(&told)[..],
        [Message::End {
            reason: EndReason::Gone,
            ..
        }]
    ));
    pair.audit();
}

/// A tunnel without connections is kept like any other until the peer has what ended them. It hears
/// of that as soon as the other end is idle, too, once.
#[test]
fn an_end_that_the_peer_may_not_know_is_kept() {
    for kind in [4, 5] {
        let mut pair = Pair::new();
        let end = Bytes::from(vec![kind, 0, 0, 0, 0, 1, 0, 0]);
        let data = send(&mut pair.server, 0..1);
        pair.server.set_idle(true);
        pair.server.sent(&end).unwrap();
        let received = [data, vec![end.clone()]].concat();
        hand(&mut pair.client, at(0), received);
        assert_eq!(output(&mut pair.client), [] as [Bytes; 0]);
        pair.client.set_idle(true);
        let answer = output(&mut pair.client);
        assert_eq!(answer, [ack(2)]);
        hand(&mut pair.server, at(0), answer);
        pair.audit();

        // One that comes later waits for a keepalive.
        let late = Bytes::from(vec![5, 0, 0, 0, 0, 2, 0, 0]);
        pair.server.sent(&late).unwrap();
        hand(&mut pair.client, at(0), vec![late]);
        pair.client.set_idle(true);
        assert_eq!(output(&mut pair.client), [] as [Bytes; 0]);
        let ping = Bytes::from(vec![6, 0, 0, 0, 0, 0, 0, 0]);
        for answer in [vec![ack(3)], vec![]] {
            pair.client.sent(&ping).unwrap();
            assert_eq!(output(&mut pair.client), answer);
            hand(&mut pair.server, at(0), answer);
        }
        // The client's PINGs end nothing.
        pair.server.sent(&end).unwrap();
        pair.cut();
        assert_eq!(pair.server.poll_timeout(), Some(at(120_000)));
        assert_eq!(pair.client.poll_timeout(), Some(at(10_000)));
        pair.resume();
        assert_eq!(layer(&output(&mut pair.client)), []);
        pair.client.set_idle(false);
        pair.client.set_idle(true);
        let answer = output(&mut pair.client);
        hand(&mut pair.server, at(0), answer);
        pair.cut();
        assert_eq!(pair.server.poll_timeout(), Some(at(10_000)));
        pair.audit();
    }
}

/// The shorter time holds, counted from the loss, whatever is dialled meanwhile.
#[test]
fn a_tunnel_is_kept_as_agreed() {
    let now = at(0);
    let config = Config::default().with_keep(Duration::from_secs(30));
    let mut client = Link::client(config);
    client.attach(now);
    let open_new = open(&mut client);
    assert_eq!(open_new.keep, 30);
    let mut server = Link::server(Config::default(), IDENTITY, &open_new, secret(1), now);
    assert_eq!(client.poll_timeout(), Some(at(10_000)));
    assert_eq!(
        client.handle_message(now, server.poll_output().unwrap()),
        Received::Attached
    );
    server.handle_message(now, ack(0));
    for link in [&mut client, &mut server] {
        assert_eq!(link.poll_timeout(), None);
        link.detach(at(1_000));
        link.detach(at(2_000));
        assert_eq!(link.poll_timeout(), Some(at(31_000)));
        link.set_idle(true);
        assert_eq!(link.poll_timeout(), Some(at(11_000)));
        link.set_idle(false);
        assert_eq!(link.handle_timeout(at(30_999)), None);
    }
    // A transport that is lost before OPENED is no new beginning.
    client.attach(at(20_000));
    client.detach(at(21_000));
    client.attach(at(25_000));
    open(&mut client);
    assert_eq!(client.poll_timeout(), Some(at(31_000)));
    let Some(Due::Ended(ended)) = client.handle_timeout(at(31_000)) else {
        panic!()
    };
    assert_eq!(ended.reason, EndReason::Expired);
    // The server may have taken the tunnel over just now.
    assert_eq!(output(&mut client), [end_message(EndReason::Expired)]);
    assert!(matches!(
        server.handle_timeout(at(31_000)),
        Some(Due::Ended(_))
    ));
    assert_eq!(output(&mut server), [] as [Bytes; 0]);
    for link in [&mut client, &mut server] {
        assert_eq!(
            (link.poll_timeout(), link.handle_timeout(at(99_000))),
            (None, None)
        );
        assert!(link.audit());
    }
}

#[test]
fn an_open_without_an_answer_is_given_up() {
    let mut pair = Pair::new();
    send(&mut pair.client, 0..1);
    pair.cut();
    pair.client.attach(at(5));
    let first = open(&mut pair.client);
    assert_eq!(pair.client.handle_timeout(at(10_004)), None);
    assert_eq!(pair.client.handle_timeout(at(10_005)), Some(Due::NotOpened));
    assert_eq!(pair.client.state(), State::Detached);
    pair.client.attach(at(10_005));
    assert!(open(&mut pair.client).attempt > first.attempt);
    pair.client
        .handle_message(at(10_005), end(EndReason::Stale));
    assert_eq!(pair.client.state(), State::Detached);
    let (_, to_server) = pair.resume();
    assert_eq!(to_server, [message(0)]);
    assert_eq!(pair.client.stats().resumed, 1);
}

#[test]
fn what_is_shown_has_neither_secrets_nor_contents() {
    let now = Instant::default();
    let (secret, identity) = (
        Secret::new([0xab; 16]),
        Identity {
            instance: 7,
            tunnel: 1,
        },
    );
    let mut client = Link::client(Config::default());
    client.attach(now);
    let Ok(Message::Open(open)) = Message::decode(&client.poll_output().unwrap()) else {
        panic!("no OPEN")
    };
    let mut server = Link::server(Config::default(), identity, &open, secret, now);
    // OPENED, with the secret, is not polled yet.
    let shown = alloc::format!("{server:?}");
    client.handle_message(now, server.poll_output().unwrap());
    client.sent(&"a private message".into()).unwrap();
    let shown = [shown, alloc::format!("{client:?} {server:?}")].concat();
    for part in ["171, 171", "xab", "private"] {
        assert!(!shown.contains(part), "{part} in {shown}");
    }
}
