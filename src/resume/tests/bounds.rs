//! The ring, and when it is acknowledged.

use super::*;

/// A message of `len` bytes.
fn long(len: usize) -> Bytes {
    let mut bytes = alloc::vec![0x5a; len];
    bytes[..8].copy_from_slice(&[3, 0, 0, 0, 0, 1, 0, 0]);
    bytes.into()
}

const PING: [u8; 8] = [6, 0, 0, 0, 0, 0, 0, 0];

/// Found by: a ring that blocks control.
#[test]
fn full_rings_at_both_ends_let_control_pass() {
    let config = Config::default().with_ring_min(4096).with_ring_max(4096);
    let mut pair = Pair::with(config);
    for link in [&mut pair.client, &mut pair.server] {
        while link.accepts() == Accepts::All {
            link.sent(&long(1000)).unwrap();
        }
        assert_eq!(link.accepts(), Accepts::Control);
    }
    // Neither has read anything; now control of each passes, and then acknowledgements.
    let ping = Bytes::from_static(&PING);
    for _ in 0..1000 {
        pair.client.sent(&ping).unwrap();
        pair.server.sent(&ping).unwrap();
    }
    for n in 0..3 {
        // Half of a ring.
        for _ in 0..2 {
            pair.client.handle_message(at(0), long(1000));
            pair.server.handle_message(at(0), long(1000));
        }
        let (up, down) = (output(&mut pair.client), output(&mut pair.server));
        assert_eq!((up.len(), down.len()), (1, 1), "half {n}");
        hand(&mut pair.server, at(0), up);
        hand(&mut pair.client, at(0), down);
    }
    for link in [&pair.client, &pair.server] {
        assert_eq!(link.stats().acked, 6);
    }
}

/// What the peer has not acknowledged is dropped, and does not count as if it had been.
#[test]
fn the_end_acknowledges_nothing() {
    let mut pair = Pair::new();
    send(&mut pair.client, 0..5);
    pair.client.handle_message(at(0), ack(3));
    pair.client.abort(EndReason::Gone, "");
    let stats = pair.client.stats();
    assert_eq!((stats.sent, stats.acked), (5, 3));
    assert_eq!(pair.client.ring_bytes(), 0);
    pair.audit();
}

/// Whatever the ring, the messages and the direction, a transfer never waits for ever.
#[test]
fn a_ring_of_any_size_makes_progress() {
    for ring in [1, 100, 1000, 5000, 1 << 20] {
        for len in [8, 100, 3000, 70_000] {
            let config = Config::default().with_ring_min(ring).with_ring_max(ring);
            let mut pair = Pair::with(config);
            let mut passed = 0;
            while passed < 3 * ring / (len + 64) + 3 {
                assert_eq!(pair.client.accepts(), Accepts::All, "{ring} {len}");
                while pair.client.accepts() == Accepts::All {
                    pair.client.sent(&long(len)).unwrap();
                    pair.server.handle_message(at(0), long(len));
                    passed += 1;
                }
                let acks = output(&mut pair.server);
                hand(&mut pair.client, at(0), acks);
                assert!(pair.client.ring_bytes() <= ring + len + 64);
            }
            pair.audit();
        }
    }
}

#[test]
fn the_ring_grows_once_it_was_full_and_acknowledged() {
    let config = Config::default().with_ring_max(9 << 20);
    let mut pair = Pair::with(config);
    let mut acked = 0;
    let fill = |client: &mut Link| {
        while client.accepts() == Accepts::All {
            client.sent(&long(64 << 10)).unwrap();
        }
    };
    let mut sizes = Vec::new();
    for _ in 0..5 {
        fill(&mut pair.client);
        acked = pair.client.stats().sent.max(acked);
        pair.client.handle_message(at(0), ack(acked));
        sizes.push(pair.client.ring_limit() >> 20);
    }
    assert_eq!(sizes, [9; 5]);

    // Never full: no growth, however much is acknowledged.
    let mut pair = Pair::new();
    for n in 1..=1000 {
        pair.client.sent(&long(64 << 10)).unwrap();
        pair.client.handle_message(at(0), ack(n));
    }
    assert_eq!(pair.client.ring_limit(), 1 << 20);
    // Full, and a ring's worth is not acknowledged since: no growth.
    let mut pair = Pair::new();
    fill(&mut pair.client);
    pair.client.handle_message(at(0), ack(8));
    assert_eq!(pair.client.ring_limit(), 1 << 20);
}

#[test]
fn the_drivers_limit_holds() {
    let mut pair = Pair::new();
    pair.client.set_ring_limit(2 << 20);
    for _ in 0..5 {
        while pair.client.accepts() == Accepts::All {
            pair.client.sent(&long(64 << 10)).unwrap();
        }
        let sent = pair.client.stats().sent;
        pair.client.handle_message(at(0), ack(sent));
    }
    assert_eq!(pair.client.ring_limit(), 2 << 20);
    while pair.client.accepts() == Accepts::All {
        pair.client.sent(&long(64 << 10)).unwrap();
    }
    // Lower: what is kept stays, control still passes, and the first size is always allowed.
    pair.client.set_ring_limit(0);
    assert_eq!(pair.client.ring_limit(), 1 << 20);
    for _ in 0..10_000 {
        pair.client.sent(&Bytes::from_static(&PING)).unwrap();
    }
    assert_eq!(pair.client.accepts(), Accepts::Control);
    // However much is kept.
    let mut pair = Pair::new();
    for _ in 0..5 {
        while pair.client.accepts() == Accepts::All {
            pair.client.sent(&long(64 << 10)).unwrap();
        }
        if pair.client.ring_limit() < 16 << 20 {
            let sent = pair.client.stats().sent;
            pair.client.handle_message(at(0), ack(sent));
        }
    }
    assert!(pair.client.ring_bytes() >= 16 << 20);
    pair.client.set_ring_limit(0);
    pair.client.sent(&Bytes::from_static(&PING)).unwrap();
    pair.client.set_ring_limit(usize::MAX);
    let sent = pair.client.stats().sent;
    pair.client.handle_message(at(0), ack(sent));
    assert_eq!(pair.client.accepts(), Accepts::All);
    assert!(pair.client.ring_limit() <= 32 << 20);
    pair.audit();
}

/// Messages received until the link acknowledges by itself, and their debt.
fn until_ack(link: &mut Link, len: usize) -> usize {
    let mut debt = 0;
    loop {
        assert_eq!(link.poll_output(), None);
        link.handle_message(at(0), long(len));
        debt += len + 64;
        if let Some(message) = link.poll_output() {
            assert!(matches!(Message::decode(&message), Ok(Message::Ack { .. })));
            return debt;
        }
    }
}

#[test]
fn debt_is_acknowledged_in_time() {
    let mut pair = Pair::new();
    let debt = until_ack(&mut pair.client, 1000);
    assert!((512 << 10..514 << 10).contains(&debt), "{debt}");
    // Half of the peer's ring, if that is less.
    let mut pair = Pair::with(Config::default().with_ring_min(64 << 10));
    let debt = until_ack(&mut pair.client, 1000);
    assert!((32 << 10..34 << 10).contains(&debt), "{debt}");

    // From 128 KiB beside a write, from 1 KiB beside a keepalive, otherwise not.
    for (received, beside, due) in [
        (120 << 10, long(8), false),
        (130 << 10, long(8), true),
        (1500, long(8), false),
        (900, Bytes::from_static(&PING), false),
        (1100, Bytes::from_static(&PING), true),
        (1100, Bytes::from_static(&[7, 0, 0, 0, 0, 0, 0, 0]), true),
    ] {
        let mut pair = Pair::new();
        pair.client.handle_message(at(0), long(received - 64));
        assert_eq!(pair.client.poll_output(), None);
        pair.client.sent(&beside).unwrap();
        assert_eq!(pair.client.poll_output().is_some(), due, "{received}");
        // The next batch begins anew.
        assert_eq!(pair.client.poll_output(), None);
        pair.client.handle_message(at(0), long(394 << 10));
        let alone = received + (394 << 10) >= 512 << 10 && !due;
        assert_eq!(pair.client.poll_output().is_some(), alone, "{received}");
    }
    // OPEN and OPENED tell the count too.
    let mut pair = Pair::new();
    pair.client.handle_message(at(0), long(200 << 10));
    pair.server.handle_message(at(0), long(200 << 10));
    pair.client.sent(&long(200 << 10)).unwrap();
    pair.server.sent(&long(200 << 10)).unwrap();
    pair.resume();
    for link in [&mut pair.client, &mut pair.server] {
        link.handle_message(at(0), long(100 << 10));
        assert_eq!(link.poll_output(), None);
        assert_eq!(link.ring_bytes(), 0);
    }
}

/// A link costs less than 1 KiB while nothing is under way, also after much was.
#[test]
fn an_idle_link_is_small() {
    let mut pair = Pair::new();
    assert!(size_of::<Link>() <= 648, "{} bytes", size_of::<Link>());
    send(&mut pair.client, 0..200);
    pair.client.handle_message(at(0), ack(200));
    assert!(pair.client.room() <= 16 * size_of::<Bytes>());
}

/// A driver says what is allowed again and again, and may change its mind: the bound on control
/// stays.
#[test]
fn a_limit_that_is_said_again_allows_no_more() {
    let ping = Bytes::from_static(&PING);
    for limits in [[usize::MAX; 2], [0; 2], [0, usize::MAX]] {
        let mut pair = Pair::new();
        let mut most = 0;
        let ended = limits.into_iter().cycle().take(1000).find_map(|limit| {
            pair.client.set_ring_limit(limit);
            (0..1000).find_map(|_| {
                most = most.max(pair.client.ring_bytes());
                pair.client.sent(&ping).err()
            })
        });
        let reason = ended.map(|ended| ended.reason);
        assert_eq!(reason, Some(EndReason::Overflow), "{limits:?}");
        assert!(most <= (1 << 20) + (4 << 20));
    }
}

#[test]
fn the_reserve_for_control_follows_the_configuration() {
    const RING: usize = 8 << 10;
    for reserve in [2 << 20, 3 << 20] {
        let config = Config::default().with_ring_min(RING).with_ring_max(RING);
        let mut pair = Pair::with(config.with_ring_reserve(reserve));
        while pair.client.accepts() == Accepts::All {
            pair.client.sent(&long(1000)).unwrap();
        }
        let ping = Bytes::from_static(&PING);
        let mut most = 0;
        while pair.client.sent(&ping).is_ok() {
            most = pair.client.ring_bytes();
        }
        assert!(
            (RING + reserve - 72..=RING + reserve).contains(&most),
            "{most}"
        );
    }
}

/// Found by: a proxy that ends every WebSocket on one message.
#[test]
fn a_message_that_breaks_every_transport_ends_the_tunnel_in_time() {
    let keep = Config::default().keep;
    for to_client in [false, true] {
        for delivers in [false, true] {
            let mut pair = Pair::new();
            let step = keep / 10;
            let mut ended = None;
            for turn in 0..40 {
                let sender = if to_client {
                    &mut pair.server
                } else {
                    &mut pair.client
                };
                sender.sent(&message(turn)).unwrap();
                pair.now = pair.now + step;
                pair.cut();
                pair.client.attach(pair.now);
                let open = open(&mut pair.client);
                let next = secret(turn + 2);
                if let Err(Takeover::Ended(over)) = pair.server.takeover(&open, next, pair.now) {
                    ended = Some((turn, over.reason));
                    break;
                }
                let opened = pair.server.poll_output().unwrap();
                if let Received::Ended(over) = pair.client.handle_message(pair.now, opened) {
                    ended = Some((turn, over.reason));
                    break;
                }
                if delivers {
                    // The first that waits, and no more.
                    let (from, to) = match to_client {
                        true => (&mut pair.server, &mut pair.client),
                        false => (&mut pair.client, &mut pair.server),
                    };
                    let first = from.poll_output().unwrap();
                    assert!(matches!(
                        to.handle_message(pair.now, first),
                        Received::Deliver(_)
                    ));
                }
            }
            match (delivers, ended) {
                (true, None) => {}
                (false, Some((turn, EndReason::Expired))) => assert_eq!(turn, 10),
                other => panic!("{to_client} {other:?}"),
            }
        }
    }
}
