//! Room in the send budget: who is told to send, in which order, and how many.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const PIECE: usize = 16 << 10;
const BUDGET: usize = 4 * PIECE;
const RESERVE: usize = 4096;

fn narrow() -> Config {
    config(|config| {
        config.send_budget = BUDGET;
        config.max_piece = PIECE;
        config.contended_piece = PIECE;
        config.keepalive = None;
    })
}

/// Streams of the opener, each of which has queued all it may and waits, and their other ends.
fn waiting(version: Version, count: usize) -> (Pair, Vec<StreamId>, Vec<StreamId>) {
    let mut pair = Pair::with(version, narrow());
    let (opened, accepted): (Vec<_>, Vec<_>) = (0..count).map(|_| pair.stream()).unzip();
    events(&mut pair.opener);
    for stream in &opened {
        fill(&mut pair.opener, *stream);
    }
    (pair, opened, accepted)
}

/// The streams that were told to send.
fn told(session: &mut Session) -> Vec<StreamId> {
    let told = events(session).into_iter().filter_map(|event| match event {
        Event::Writable(stream) => Some(stream),
        _ => None,
    });
    told.collect()
}

/// Transmits one message of data and returns its length.
fn transmit(pair: &mut Pair) -> Option<usize> {
    loop {
        let Some(Transmit::Message(message)) = pair.opener.poll_transmit(pair.now) else {
            return None;
        };
        pair.acceptor
            .handle_message(pair.now, message.clone())
            .unwrap();
        if let Ok(Frame::Data { payload, .. }) = Frame::decode(message) {
            return Some(payload.len());
        }
    }
}

#[test]
fn pieces_are_long_only_where_a_fast_transport_has_credit() {
    let default = Config::default();
    for version in BOTH {
        let mut pair = Pair::with(version, default.clone());
        let (stream, accepted) = pair.stream();
        // 2 Gbit/s, then 0.5.
        for (micros, fast) in [(262, true), (1_048, false)] {
            for _ in 0..100 {
                pair.opener.send_slice(stream, &[1; 1 << 16]).unwrap();
                pair.now = pair.now + Duration::from_micros(micros);
                pair.run();
                while let Ok(Recv::Data(_)) = pair.acceptor.recv(accepted, pair.now) {}
                pair.run();
            }
            let piece = match fast && version == Version::V2 {
                true => default.max_piece,
                false => default.contended_piece,
            };
            let capacity = pair.opener.send_capacity(stream).unwrap();
            assert_eq!(capacity, piece, "{version:?}, {micros} us");
        }
    }
}

#[test]
fn writers_are_told_in_order_and_as_many_as_fit() {
    for version in BOTH {
        let (mut pair, streams, accepted) = waiting(version, 40);
        let mut line = VecDeque::new();
        let mut outstanding = Vec::new();
        for _ in 0..1000 {
            let sent = transmit(&mut pair).unwrap();
            let now = told(&mut pair.opener);
            let kept = (outstanding.len() + now.len()) * PIECE;
            let held = pair.opener.stats().unsent + kept;
            assert!(held < BUDGET + PIECE + 40 * RESERVE, "{sent}: {held}");
            for stream in now {
                // In the order in which they sent before.
                if line.len() == streams.len() {
                    assert_eq!(line.pop_front(), Some(stream));
                }
                line.push_back(stream);
                outstanding.push(stream);
            }
            if outstanding.len() > 1 {
                for stream in outstanding.drain(..) {
                    assert_eq!(pair.opener.send_capacity(stream).unwrap(), PIECE);
                    let chunk = Chunk::copied(&[1; PIECE]);
                    pair.opener.send(stream, chunk).unwrap();
                    assert_eq!(pair.opener.send_capacity(stream).unwrap(), 0);
                    pair.opener.request_writable(stream);
                }
            }
            read(&mut pair, &accepted);
        }
        assert_eq!(line.len(), streams.len());
    }
}

/// The peer reads everything and grants credit.
fn read(pair: &mut Pair, accepted: &[StreamId]) {
    for stream in accepted {
        drain(&mut pair.acceptor, *stream, pair.now).1.unwrap();
    }
    pass(&mut pair.acceptor, &mut pair.opener, pair.now);
}

/// Whatever a writer does that was told, the one behind it is told too.
#[test]
fn a_writer_that_does_not_send_passes_the_room_on() {
    type Go = fn(&mut Session, StreamId);
    let ways: [Go; 4] = [
        |session, stream| session.cancel_writable(stream),
        |session, stream| session.finish(stream),
        |session, stream| session.release(stream, at(0)),
        |session, stream| session.reset(stream, Reason::Reset, ""),
    ];
    for version in BOTH {
        for go in ways {
            let (mut pair, streams, _) = waiting(version, 20);
            let mut woken = Vec::new();
            while woken.is_empty() {
                transmit(&mut pair).unwrap();
                woken = told(&mut pair.opener);
            }
            let mut gone = 0;
            // Nothing is transmitted any more.
            while gone + woken.len() < streams.len() {
                let stream = woken.remove(0);
                go(&mut pair.opener, stream);
                gone += 1;
                let mut next = told(&mut pair.opener);
                next.retain(|next| *next != stream);
                assert!(!next.is_empty(), "after {gone}");
                woken.extend(next);
            }
        }
    }
}

/// Writers that are told and do nothing at all hold nobody up once everything was transmitted.
#[test]
fn idle_writers_strand_nobody() {
    for version in BOTH {
        let (mut pair, streams, _) = waiting(version, 50);
        let mut woken = std::collections::HashSet::new();
        for _ in 0..streams.len() {
            messages(&mut pair.opener, pair.now);
            woken.extend(told(&mut pair.opener));
        }
        assert_eq!(woken.len(), streams.len());
    }
}

/// Nor do they take room from a writer that did not have to wait.
#[test]
fn idle_writers_keep_no_room() {
    for version in BOTH {
        let (mut pair, streams, _) = waiting(version, 4);
        while !told(&mut pair.opener).is_empty() || transmit(&mut pair).is_some() {}
        let queued: usize = streams
            .iter()
            .skip(3)
            .map(|stream| fill(&mut pair.opener, *stream))
            .sum();
        assert!(queued >= BUDGET - RESERVE, "{queued}");
    }
}

/// A keystroke does not wait in line, and bulk does not use the reserve for more than its start.
#[test]
fn the_reserve_is_for_streams_that_are_not_bulk() {
    for version in BOTH {
        let (mut pair, mut bulk, accepted) = waiting(version, 30);
        let keys = bulk.pop().unwrap();
        // Its queue runs empty, and it asks for no more.
        pair.opener.cancel_writable(keys);
        let mut small = 0;
        for round in 0..3000 {
            if transmit(&mut pair).unwrap() == RESERVE {
                small += 1;
            }
            for stream in told(&mut pair.opener) {
                if stream != keys {
                    fill(&mut pair.opener, stream);
                }
            }
            if round > 100 && round % 40 == 0 {
                assert_eq!(pair.opener.send_slice(keys, b"key").unwrap(), 3);
            }
            read(&mut pair, &accepted);
        }
        assert!(small <= 30, "{small} small pieces");
    }
}

#[derive(Debug, Clone)]
enum Op {
    /// Sends at most so many bytes, if there is room, and asks for more.
    Send(usize, usize),
    Cancel(usize),
    Finish(usize),
    Release(usize),
    Reset(usize),
    Transmit(usize),
    Press(bool),
    Hold(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let which = || 0..24_usize;
    prop_oneof![
        30 => (which(), 1..2 * PIECE).prop_map(|(which, len)| Op::Send(which, len)),
        5 => which().prop_map(Op::Cancel),
        1 => which().prop_map(Op::Finish),
        1 => which().prop_map(Op::Release),
        1 => which().prop_map(Op::Reset),
        20 => (0..8_usize).prop_map(Op::Transmit),
        1 => any::<bool>().prop_map(Op::Press),
        1 => any::<bool>().prop_map(Op::Hold),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever writers do: bounds hold, who is told may send, and nobody is forgotten.
    #[test]
    fn room_is_bounded_and_reaches_everybody(ops in prop::collection::vec(op(), 0..400)) {
        let mut pair = Pair::with(Version::V1, narrow());
        let streams: Vec<_> = (0..24).map(|_| pair.stream().0).collect();
        events(&mut pair.opener);
        let mut wants = std::collections::HashSet::new();
        let opener = &mut pair.opener;
        for op in ops {
            match op {
                Op::Send(which, len) => {
                    let stream = streams[which];
                    let room = opener.send_capacity(stream).unwrap_or(0);
                    if room > 0 {
                        let chunk = Chunk::copied(&vec![1; len.min(room)]);
                        opener.send(stream, chunk).unwrap();
                    }
                    if opener.send_capacity(stream).is_ok() {
                        opener.request_writable(stream);
                        wants.insert(stream);
                    }
                }
                Op::Cancel(which) => {
                    opener.cancel_writable(streams[which]);
                    wants.remove(&streams[which]);
                }
                Op::Finish(which) => opener.finish(streams[which]),
                Op::Release(which) => opener.release(streams[which], at(0)),
                Op::Reset(which) => opener.reset(streams[which], Reason::Reset, ""),
                Op::Transmit(count) => {
                    for _ in 0..count {
                        opener.poll_transmit(at(0));
                    }
                }
                Op::Press(true) => opener.set_allowance(Allowance::Exceeded(usize::MAX)),
                Op::Press(false) => opener.set_allowance(Allowance::Ample),
                Op::Hold(held) => opener.hold_data(held),
            }
            prop_assert!(opener.audit());
            let unsent = opener.stats().unsent;
            prop_assert!(unsent <= BUDGET + PIECE + streams.len() * RESERVE, "{unsent}");
            let promised = !matches!(op, Op::Press(_));
            for stream in told(opener) {
                wants.remove(&stream);
                prop_assert!(!promised || opener.send_capacity(stream).unwrap_or(1) > 0);
            }
            wants.retain(|stream| opener.send_capacity(*stream).is_ok());
        }
        // The transport takes everything; those who are told do nothing.
        opener.set_allowance(Allowance::Ample);
        opener.hold_data(false);
        for _ in 0..=streams.len() {
            messages(opener, at(0));
            for stream in told(opener) {
                wants.remove(&stream);
            }
        }
        prop_assert!(wants.is_empty(), "{wants:?}");
    }
}

#[test]
fn long_messages_get_no_larger_share() {
    let config = config(|config| {
        config.max_piece = 2_000;
        config.contended_piece = 1_000;
    });
    let mut pair = Pair::with(Version::V2, config);
    let streams = [2_000, 1_000].map(|len| (pair.stream().0, len));
    for (stream, len) in streams {
        for _ in 0..60_000 / len {
            let chunk = Chunk::copied(&vec![7; len]);
            pair.opener.send(stream, chunk).unwrap();
        }
    }
    let mut sent = 0;
    while sent < 60_000 {
        sent += transmit(&mut pair).unwrap();
    }
    let [long, short] = streams.map(|(stream, _)| {
        let stats = pair.opener.stream_stats(stream).unwrap();
        stats.bytes_sent
    });
    assert!(long.abs_diff(short) <= 4_000, "{long} and {short}");
}
