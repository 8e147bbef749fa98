//! Whatever a peer sends has one outcome and a bound.

use super::*;

fn any_open(change: impl FnOnce(&mut Open)) -> Open {
    let mut open = Open {
        tunnel: 0,
        secret: secret(0),
        attempt: 1,
        received: 0,
        keep: 60,
        ring: 1 << 20,
    };
    change(&mut open);
    open
}

#[test]
fn the_extremes_of_open_are_harmless() {
    for value in [0, 1, u32::MAX] {
        let open = any_open(|open| (open.ring, open.keep, open.attempt) = (value, value, value));
        let mut server = Link::server(Config::default(), IDENTITY, &open, secret(1), at(0));
        let told = output(&mut server);
        let [Message::Opened(opened)] = layer(&told)[..] else {
            panic!()
        };
        assert_eq!(opened.keep, value.min(120), "not more than either wants");
        // A ring of 0 gets an acknowledgement a write, and none without a message.
        assert_eq!(server.poll_output(), None);
        server.handle_message(at(0), message(1));
        assert_eq!(output(&mut server).len(), usize::from(value < 1 << 18));
        server.handle_message(at(0), ack(0));
        server.detach(at(0));
        let keep = u64::from(value.min(120)) * 1000;
        assert_eq!(server.poll_timeout(), Some(at(keep)));
        assert!(server.handle_timeout(at(keep)).is_some() && server.audit());
    }
}

#[test]
fn the_extremes_of_opened_are_harmless() {
    for (keep, ring, received) in [(0, 0, 0), (u32::MAX, u32::MAX, 0), (1, 1, u64::MAX)] {
        let mut client = Link::client(Config::default());
        client.attach(at(0));
        open(&mut client);
        let opened = Message::Opened(Opened {
            instance: u64::MAX,
            tunnel: u64::MAX,
            secret: secret(0),
            received,
            keep,
            ring,
        });
        let outcome = client.handle_message(at(0), opened.to_bytes());
        if received > 0 {
            let told = output(&mut client);
            assert!(matches!(outcome, Received::Ended(_)) && told.len() == 1);
            continue;
        }
        assert_eq!(outcome, Received::Attached);
        client.detach(at(0));
        let keep = u64::from(keep.min(120)) * 1000;
        assert_eq!(client.poll_timeout(), Some(at(keep)));
    }
    // A tunnel without a name.
    let mut client = Link::client(Config::default());
    client.attach(at(0));
    open(&mut client);
    let opened = Message::Opened(Opened {
        instance: 1,
        tunnel: 0,
        secret: secret(0),
        received: 0,
        keep: 1,
        ring: 1,
    });
    let outcome = client.handle_message(at(0), opened.to_bytes());
    assert!(matches!(
        outcome,
        Received::Ended(Ended {
            reason: EndReason::Protocol,
            ..
        })
    ));
}

#[test]
fn attempts_do_not_wrap() {
    let mut pair = Pair::new();
    let last = Open {
        tunnel: IDENTITY.tunnel,
        secret: secret(1),
        attempt: u32::MAX,
        received: 0,
        keep: 60,
        ring: 0,
    };
    pair.server.takeover(&last, secret(2), at(0)).unwrap();
    pair.cut();
    pair.client.attach(at(0));
    let open = open(&mut pair.client);
    assert!(pair.server.check(&open).is_err());
}

/// A peer that never acknowledges gets a bounded number of bytes kept, then END.
#[test]
fn a_peer_that_acknowledges_nothing_costs_a_bounded_ring() {
    let mut pair = Pair::new();
    let piece = Bytes::from(alloc::vec![3, 0, 0, 0, 0, 1, 0, 0].repeat(8 << 10));
    let mut data = 0;
    while pair.client.accepts() == Accepts::All {
        pair.client.sent(&piece).unwrap();
        data += piece.len();
    }
    assert!((1 << 20..2 << 20).contains(&data), "{data}");
    assert_eq!(pair.client.accepts(), Accepts::Control);
    let pong = Bytes::from_static(&[7, 0, 0, 0, 0, 0, 0, 0]);
    let mut control = 0_usize;
    let ended = loop {
        match pair.client.sent(&pong) {
            Ok(()) => control += 1,
            Err(ended) => break ended,
        }
        assert!(pair.client.ring_bytes() <= (6 << 20), "unbounded");
    };
    assert!(control > 50_000, "{control}");
    assert_eq!(ended.reason, EndReason::Overflow);
    let told = output(&mut pair.client);
    assert!(matches!(
        &layer(&told)[..],
        [Message::End {
            reason: EndReason::Overflow,
            ..
        }]
    ));
    assert_eq!(pair.client.ring_bytes(), 0);
    assert_eq!(pair.client.sent(&pong), Err(ended));
    pair.audit();
}

#[test]
fn the_text_of_end_is_cleaned_and_cut_both_ways() {
    let hostile = alloc::format!("\u{1b}[2J\n{}", "木".repeat(2000));
    let mut message = alloc::vec![0x0d, 0, 0, 0, 0, 0, 0x12, 0x34];
    message.extend(hostile.as_bytes());
    let mut pair = Pair::new();
    let Received::Ended(ended) = pair.client.handle_message(at(0), message.into()) else {
        panic!()
    };
    assert_eq!(ended.reason, EndReason::Unspecified);
    assert!(ended.text.len() <= 1024 && ended.text.starts_with(" [2J "));
    pair.server.end(EndReason::Gone, &hostile);
    let told = output(&mut pair.server);
    assert!(told[0].len() <= 8 + 1024);
    // Invalid UTF-8, and no text.
    for text in [&b"\xff\xfe"[..], b""] {
        let mut pair = Pair::new();
        let message = [&[0x0d, 0, 0, 0, 0, 0, 0, 0], text].concat();
        let ended = pair.client.handle_message(at(0), message.into());
        assert!(matches!(ended, Received::Ended(_)));
    }
}

/// Every length of every message of the layer, in every state, at both ends.
#[test]
fn no_message_of_the_layer_panics() {
    for kind in 0x0a..=0x0d_u8 {
        for len in 0..80 {
            for fill in [0, 1, 0xff] {
                let mut bytes = alloc::vec![fill; len];
                if let Some(first) = bytes.first_mut() {
                    *first = kind;
                }
                for step in 0..4 {
                    let mut pair = Pair::new();
                    match step {
                        0 => {}
                        1 => pair.cut(),
                        2 => {
                            pair.cut();
                            pair.reopen();
                        }
                        _ => {
                            pair.client.end(EndReason::Closed, "");
                            output(&mut pair.client);
                        }
                    }
                    let message = Bytes::from(bytes.clone());
                    pair.client.handle_message(at(0), message.clone());
                    pair.server.handle_message(at(0), message);
                    pair.audit();
                }
            }
        }
    }
}

#[test]
fn secrets_are_not_shown() {
    let mut pair = Pair::new();
    pair.cut();
    pair.client.attach(at(0));
    let open = open(&mut pair.client);
    pair.server.takeover(&open, secret(0x5a), at(0)).unwrap();
    let shown = alloc::format!(
        "{:?} {:?} {open:?}",
        pair.client.state(),
        pair.server.check(&open)
    );
    assert!(!shown.contains("90, 90") && shown.contains("Secret(..)"));
}
