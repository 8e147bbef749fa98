//! Datagram flows.

use super::*;

fn datagram(n: u8, len: usize) -> Chunk {
    Chunk::copied(&vec![n; len])
}

#[test]
fn the_oldest_is_dropped_on_both_sides_and_counted() {
    let small = config(|config| config.datagram_queue = 4);
    for version in BOTH {
        let mut pair = Pair::with(version, small.clone());
        let (opened, accepted) = pair.flow();
        for n in 0..10 {
            pair.opener.send_datagram(opened, datagram(n, 10)).unwrap();
        }
        assert_eq!(pair.opener.stats().datagrams_dropped_sending, 6);
        assert_eq!(pair.opener.stats().unsent, 40);
        pair.run();
        for n in 10..12 {
            pair.opener.send_datagram(opened, datagram(n, 10)).unwrap();
            pair.run();
        }
        assert_eq!(pair.acceptor.stats().datagrams_dropped_receiving, 2);
        let mut read = Vec::new();
        while let Ok(Recv::Data(data)) = pair.acceptor.recv(accepted, pair.now) {
            read.push(data[0]);
        }
        assert_eq!(read, [8, 9, 10, 11]);
        assert_eq!(pair.acceptor.stats().unread, 0);
    }
}

#[test]
fn bytes_are_bounded_for_a_flow_and_for_all() {
    let small = config(|config| {
        config.datagram_buffer = 2_500;
        config.datagram_budget = 4_000;
    });
    let mut pair = Pair::with(Version::V2, small);
    let flows = [pair.flow(), pair.flow(), pair.flow()];
    for (opened, _) in flows {
        for n in 0..5 {
            pair.opener
                .send_datagram(opened, datagram(n, 1000))
                .unwrap();
            assert!(pair.opener.stats().unsent <= 4_000);
        }
        pair.run();
        assert!(pair.acceptor.stats().unread <= 4_000);
    }
    // A datagram larger than the flow's bound is sent alone, if the budget has room.
    pair.opener
        .send_datagram(flows[0].0, datagram(9, 3_000))
        .unwrap();
    assert_eq!(pair.opener.stats().unsent, 3_000);
}

#[test]
fn one_flow_cannot_have_the_budget_of_all() {
    let small = config(|config| {
        config.datagram_buffer = 2_500;
        config.datagram_budget = 100_000;
    });
    let mut pair = Pair::with(Version::V2, small);
    let (opened, accepted) = pair.flow();
    let id = pair.acceptor.client_id(accepted).unwrap();
    for n in 0..5 {
        let sent = pair.opener.send_datagram(opened, datagram(n, 1000));
        sent.unwrap();
        let data = Frame::Data {
            proto: Proto::Udp,
            id,
            payload: vec![n; 1000].into(),
        };
        say(&mut pair.acceptor, pair.now, data).unwrap();
    }
    let sending = pair.opener.stats();
    assert_eq!(
        (sending.unsent, sending.datagrams_dropped_sending),
        (2_000, 3)
    );
    let receiving = pair.acceptor.stats();
    let dropped = receiving.datagrams_dropped_receiving;
    assert_eq!((receiving.unread, dropped), (2_000, 3));
}

/// They use memory, which a bound on many sessions counts and resets give back.
#[test]
fn empty_ones_count_as_memory_and_are_shed() {
    let mut pair = Pair::new(Version::V2);
    let flows = [pair.flow(), pair.flow()];
    for (opened, _) in flows {
        for _ in 0..200 {
            pair.opener.send_datagram(opened, datagram(1, 0)).unwrap();
        }
    }
    assert!(pair.opener.memory() >= 400 * 64);
    let before = pair.acceptor.memory();
    pair.run();
    assert_eq!(pair.acceptor.memory() - before, 400 * 64);
    pair.acceptor
        .set_allowance(Allowance::Exceeded(before + 200 * 64));
    assert_eq!(pair.acceptor.stats().resets, 1);
}

#[test]
fn empty_ones_are_not_free() {
    let small = config(|config| config.datagram_budget = 64 * 100);
    let mut pair = Pair::with(Version::V2, small);
    let flows = [pair.flow(), pair.flow(), pair.flow()];
    for (opened, _) in flows {
        for _ in 0..80 {
            pair.opener.send_datagram(opened, datagram(1, 0)).unwrap();
        }
    }
    assert_eq!(pair.opener.stats().datagrams_dropped_sending, 140);
    pair.run();
    for (opened, _) in flows {
        pair.opener.send_datagram(opened, datagram(1, 0)).unwrap();
    }
    pair.run();
    assert_eq!(pair.acceptor.stats().datagrams_dropped_receiving, 3);
    // Reading makes room.
    for (_, accepted) in flows {
        while let Ok(Recv::Data(_)) = pair.acceptor.recv(accepted, pair.now) {}
    }
    pair.opener
        .send_datagram(flows[2].0, datagram(1, 0))
        .unwrap();
    pair.run();
    assert_eq!(
        pair.acceptor.recv(flows[2].1, pair.now),
        Ok(Recv::Data("".into()))
    );
}

/// As much as a stream may have early: an acceptor holds flows that it has not dialled yet, too.
#[test]
fn a_flow_holds_little_until_it_is_accepted() {
    for version in BOTH {
        let mut pair = Pair::new(version);
        let opened = pair.opener.open_udp(53, pair.now).unwrap();
        let send = |pair: &mut Pair, numbers: core::ops::Range<u8>| {
            for n in numbers {
                pair.opener
                    .send_datagram(opened, datagram(n, 1 << 10))
                    .unwrap();
                pair.run();
            }
        };
        send(&mut pair, 0..100);
        let accepted = incoming(&mut pair.acceptor);
        assert_eq!(pair.acceptor.stats().unread, EARLY_DATA as usize);
        assert_eq!(pair.acceptor.stats().datagrams_dropped_receiving, 36);
        pair.acceptor.accept(accepted, pair.now).unwrap();
        send(&mut pair, 100..200);
        assert_eq!(pair.acceptor.stats().datagrams_dropped_receiving, 36);
        let mut read = Vec::new();
        while let Ok(Recv::Data(data)) = pair.acceptor.recv(accepted, pair.now) {
            read.push(data[0]);
        }
        assert_eq!(read, (36..200).collect::<Vec<u8>>());
    }
}

#[test]
fn bytes_and_datagrams_are_not_mixed_up() {
    let mut pair = Pair::new(Version::V2);
    let (stream, _) = pair.stream();
    let (flow, _) = pair.flow();
    let session = &mut pair.opener;
    let unknown = |outcome| matches!(outcome, Err(SendError::Unknown));
    assert!(unknown(session.send_slice(flow, b"bytes").map(drop)));
    assert!(unknown(session.send(flow, Chunk::copied(b"bytes"))));
    assert!(unknown(session.send_datagram(stream, datagram(1, 1))));
    assert_eq!(session.stats().unsent, 0);
}

#[test]
fn one_that_is_too_long_is_dropped_and_counted_and_the_flow_goes_on() {
    for version in BOTH {
        let mut pair = Pair::new(version);
        let (opened, accepted) = pair.flow();
        let long = pair.opener.send_datagram(opened, datagram(1, 65_508));
        assert!(matches!(long, Err(SendError::TooLong(65_508))));
        assert_eq!(pair.opener.stats().datagrams_dropped_sending, 1);

        let long = Frame::Data {
            proto: Proto::Udp,
            id: pair.opener.client_id(opened).unwrap(),
            payload: vec![1; 65_508],
        };
        assert_eq!(
            pair.acceptor.handle_message(pair.now, long.to_bytes()),
            Ok(())
        );
        assert_eq!(pair.acceptor.stats().datagrams_dropped_receiving, 1);
        pair.opener
            .send_datagram(opened, datagram(2, 65_507))
            .unwrap();
        pair.run();
        let Ok(Recv::Data(data)) = pair.acceptor.recv(accepted, pair.now) else {
            panic!();
        };
        assert_eq!(data.len(), 65_507);
    }
}

#[test]
fn an_empty_datagram_arrives() {
    let mut pair = Pair::new(Version::V2);
    let (opened, accepted) = pair.flow();
    for len in [0, 3, 0] {
        pair.opener.send_datagram(opened, datagram(1, len)).unwrap();
    }
    pair.run();
    for len in [0, 3, 0] {
        let Ok(Recv::Data(data)) = pair.acceptor.recv(accepted, pair.now) else {
            panic!();
        };
        assert_eq!(data.len(), len);
    }
    assert_eq!(pair.acceptor.recv(accepted, pair.now), Ok(Recv::Blocked));
}

#[test]
fn they_go_ahead_of_bulk_and_do_not_starve_it() {
    let mut pair = Pair::new(Version::V2);
    let (bulk, _) = pair.stream();
    let (flow, _) = pair.flow();
    fill(&mut pair.opener, bulk);
    for n in 0..64 {
        pair.opener.send_datagram(flow, datagram(n, 100)).unwrap();
    }
    let protos: Vec<_> = messages(&mut pair.opener, pair.now)
        .iter()
        .map(|frame| frame.header().proto)
        .collect();
    assert_eq!(protos[..16], [Proto::Udp; 16]);
    let first = protos.iter().position(|proto| *proto == Proto::Tcp);
    assert_eq!(first, Some(16));
}

#[test]
fn flows_take_turns() {
    let mut pair = Pair::new(Version::V2);
    let (a, _) = pair.flow();
    let (b, _) = pair.flow();
    for _ in 0..8 {
        pair.opener.send_datagram(a, datagram(1, 1)).unwrap();
    }
    for _ in 0..8 {
        pair.opener.send_datagram(b, datagram(2, 1)).unwrap();
    }
    let order: Vec<_> = messages(&mut pair.opener, pair.now)
        .iter()
        .map(|frame| frame.payload()[0])
        .collect();
    assert_eq!(order[..4], [1, 2, 1, 2]);
}

/// A flow whose datagrams are dropped gets no more turns than another.
#[test]
fn a_flow_over_the_budget_gains_no_turns() {
    let small = config(|config| config.datagram_budget = 2_000);
    let mut pair = Pair::with(Version::V2, small);
    let (pushy, _) = pair.flow();
    let (modest, _) = pair.flow();
    for _ in 0..50 {
        pair.opener
            .send_datagram(pushy, datagram(1, 2_001))
            .unwrap();
    }
    assert_eq!(pair.opener.stats().datagrams_dropped_sending, 50);
    for _ in 0..8 {
        pair.opener.send_datagram(pushy, datagram(1, 1)).unwrap();
        pair.opener.send_datagram(modest, datagram(2, 1)).unwrap();
    }
    let order: Vec<_> = messages(&mut pair.opener, pair.now)
        .iter()
        .map(|frame| frame.payload()[0])
        .collect();
    assert_eq!(order[..6], [1, 2, 1, 2, 1, 2]);
}
