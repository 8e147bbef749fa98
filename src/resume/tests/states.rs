//! Every row of the tables of states in PROTOCOL.md.

use alloc::string::{String, ToString};

use super::*;

const PROTOCOL: &str = include_str!("../../../PROTOCOL.md");

fn cells(line: &str) -> Vec<&str> {
    let line = line.trim().trim_matches('|');
    line.split('|').map(str::trim).collect()
}

/// The table that begins with this line: the names of its columns, and its rows.
fn table(first: &'static str) -> (Vec<&'static str>, Vec<Vec<&'static str>>) {
    let (_, text) = PROTOCOL.split_once(first).unwrap();
    let rows = text.trim_start().lines().skip(1);
    let rows = rows.take_while(|line| line.starts_with('|')).map(cells);
    (cells(first), rows.collect())
}

/// Ends of which the peer acknowledged two messages of five, and sent one.
fn pair() -> Pair {
    let mut pair = Pair::new();
    for link in [&mut pair.client, &mut pair.server] {
        send(link, 0..5);
        assert_eq!(link.handle_message(at(0), ack(2)), Received::Handled);
        let first = link.handle_message(at(0), message(0));
        assert_eq!(first, Received::Deliver(message(0)));
    }
    pair
}

fn client(state: &str) -> Link {
    let mut client = pair().client;
    match state {
        "Attached" => return client,
        "Ended" => {
            client.handle_message(at(0), end(EndReason::Closed));
        }
        _ => client.detach(at(0)),
    }
    if state == "Opening" {
        client.attach(at(0));
        open(&mut client);
    }
    client
}

fn server(state: &str) -> Link {
    let mut server = pair().server;
    match state {
        "Detached" => server.detach(at(0)),
        "Ended" => {
            server.handle_message(at(0), end(EndReason::Closed));
        }
        _ => {}
    }
    server
}

fn opened(change: impl FnOnce(&mut Opened)) -> Bytes {
    let mut opened = Opened {
        instance: IDENTITY.instance,
        tunnel: IDENTITY.tunnel,
        secret: secret(2),
        received: 3,
        keep: 60,
        ring: 1 << 20,
    };
    change(&mut opened);
    Message::Opened(opened).to_bytes()
}

fn opening(change: impl FnOnce(&mut Open)) -> Open {
    let mut open = Open {
        tunnel: IDENTITY.tunnel,
        secret: secret(1),
        attempt: 2,
        received: 3,
        keep: 60,
        ring: 1 << 20,
    };
    change(&mut open);
    open
}

/// What became of a message and of the link, as a cell says it.
fn outcome(link: &mut Link, received: Received) -> String {
    match received {
        Received::Deliver(_) => "taken".into(),
        Received::Violation(_) => {
            // Nothing happens until the driver drops the transport.
            assert!(matches!(link.state(), State::Opening | State::Attached));
            link.detach(at(0));
            assert_eq!(link.state(), State::Detached);
            "violation".into()
        }
        Received::Attached => "Attached".into(),
        Received::Retry => {
            assert_eq!(link.state(), State::Detached);
            "Detached".into()
        }
        Received::Handled | Received::Ended(_) => state(link),
    }
}

fn state(link: &Link) -> String {
    let name = |reason| match reason {
        EndReason::Unknown => "unknown",
        EndReason::Stale => "stale",
        EndReason::Gap => "gap",
        EndReason::Protocol => "protocol",
        EndReason::Expired => "expired",
        EndReason::Gone => "gone",
        other => panic!("{other}"),
    };
    match link.ended() {
        Some(ended) => alloc::format!("Ended ({})", name(ended.reason)),
        None => link.state().to_string(),
    }
}

/// Sends the message of an event that is one, in either table.
fn common(event: &str) -> Option<Bytes> {
    Some(match event {
        "ACK, acknowledged before" => ack(1),
        "ACK, count in range" => ack(4),
        "ACK, above what was sent" => ack(6),
        "malformed message of the layer" => Bytes::from_static(&[0x0c, 0, 0, 0, 0, 0, 0, 0, 1]),
        "counted message" => message(1),
        "datagram" => datagram(),
        "END, stale" => end(EndReason::Stale),
        "END, other code" | "END, any code" => end(EndReason::Gone),
        "OPENED" | "OPENED, count in range" => opened(|_| {}),
        "OPENED, count out of range" => opened(|opened| opened.received = 6),
        "OPENED, other tunnel or instance" => opened(|opened| opened.instance = 8),
        "OPEN" | "OPEN, on the tunnel's own transport" => {
            Message::Open(opening(|open| open.attempt = 9)).to_bytes()
        }
        _ => return None,
    })
}

/// Compares what a message did with the cell.
fn check(link: &mut Link, message: Bytes, cell: &str, context: &str) {
    let (before, acked, ended) = (link.state(), link.stats().acked, link.ended().cloned());
    let is_ack = message.first() == Some(&0x0c);
    let received = link.handle_message(at(0), message);
    let acked = link.stats().acked - acked;
    match cell {
        "ignored" => {
            let silent = match ended {
                Some(ended) => received == Received::Ended(ended),
                None => received == Received::Handled,
            };
            assert!(silent, "{context}: {received:?}");
            assert_eq!((link.state(), acked), (before, 0), "{context}");
        }
        "taken" if is_ack => {
            assert_eq!((received, acked), (Received::Handled, 2), "{context}");
        }
        _ => assert_eq!(outcome(link, received), cell, "{context}"),
    }
    assert!(link.audit(), "{context}");
}

/// A client's tunnel that was never opened, after `sent` messages.
fn unopened(name: &str, sent: u8) -> Link {
    let mut client = Link::client(Config::default());
    if name == "Opening" {
        client.attach(at(0));
        open(&mut client);
        send(&mut client, 0..sent);
    }
    client
}

#[test]
fn the_clients_table_of_the_protocol_holds() {
    let (columns, rows) = table("| event | Opening | Attached | Detached | Ended |");
    assert_eq!(rows.len(), 18);
    for row in &rows {
        for (name, cell) in columns[1..].iter().zip(&row[1..]) {
            let (event, context) = (row[0], alloc::format!("{} in {name}", row[0]));
            let mut link = client(name);
            if let Some(message) = common(event) {
                check(&mut link, message, cell, &context);
                continue;
            }
            let is_old = *cell == "ignored" || *cell == "-";
            match event {
                "transport lost" => link.detach(at(0)),
                "transport lost, tunnel never opened, nothing sent" => {
                    link = unopened(name, 0);
                    link.detach(at(0));
                }
                "transport lost, tunnel never opened, messages sent" => {
                    link = unopened(name, 1);
                    link.detach(at(0));
                }
                "OPEN not answered in time" => {
                    let due = link.handle_timeout(at(10_000));
                    assert_eq!(due == Some(Due::NotOpened), *cell == "Detached");
                }
                "new transport" => link.attach(at(0)),
                "keep is over" => {
                    let due = link.handle_timeout(at(120_000));
                    assert_eq!(matches!(due, Some(Due::Ended(_))), !is_old);
                }
                other => panic!("no such event: {other}"),
            }
            assert!(is_old || state(&link) == *cell, "{context}: {link:?}");
            assert!(!is_old || link.state().to_string() == *name || event.contains("never"));
            assert!(link.audit(), "{context}");
        }
    }
}

#[test]
fn only_a_client_whose_tunnel_has_not_ended_is_attached() {
    let mut aborted = client("Attached");
    aborted.abort(EndReason::Closed, "text");
    for link in [
        &mut server("Attached"),
        &mut server("Detached"),
        &mut aborted,
    ] {
        let before = alloc::format!("{link:?}");
        link.attach(at(1));
        assert_eq!(alloc::format!("{link:?}"), before);
    }
    assert_eq!(output(&mut aborted), [end(EndReason::Closed)]);
}

#[test]
fn the_servers_table_of_the_protocol_holds() {
    let (columns, rows) = table("| event | Attached | Detached | Ended |");
    assert_eq!(rows.len(), 16);
    for row in &rows {
        for (name, cell) in columns[1..].iter().zip(&row[1..]) {
            let (event, context) = (row[0], alloc::format!("{} in {name}", row[0]));
            let mut link = server(name);
            if let Some(message) = common(event) {
                check(&mut link, message, cell, &context);
                continue;
            }
            let open = match event {
                "OPEN, wrong tunnel or secret" => Some(opening(|open| open.secret = secret(3))),
                "OPEN, attempt not above the last" => Some(opening(|open| open.attempt = 1)),
                "OPEN, good, count in range" => Some(opening(|_| {})),
                "OPEN, good, count below what was acknowledged" => {
                    Some(opening(|open| open.received = 1))
                }
                "OPEN, good, count above what was sent" => Some(opening(|open| open.received = 6)),
                _ => None,
            };
            let Some(open) = open else {
                match event {
                    "transport lost" => link.detach(at(0)),
                    "keep is over" => {
                        let due = link.handle_timeout(at(120_000));
                        assert_eq!(matches!(due, Some(Due::Ended(_))), *name == "Detached");
                    }
                    other => panic!("no such event: {other}"),
                }
                let stays = matches!(*cell, "ignored" | "-");
                assert!(stays || state(&link) == *cell, "{context}");
                assert!(!stays || link.state().to_string() == *name, "{context}");
                continue;
            };
            let before = alloc::format!("{link:?}");
            let refused = matches!(
                link.takeover(&open, secret(2), at(0)),
                Err(Takeover::Refused(_))
            );
            assert_eq!(refused, *cell == "refused", "{context}");
            match refused {
                true => assert_eq!(alloc::format!("{link:?}"), before, "{context}"),
                false => assert_eq!(state(&link), *cell, "{context}"),
            }
            assert!(link.audit(), "{context}");
        }
    }
}
