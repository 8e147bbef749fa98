//! Resumption: what a link adds to one message.

use std::hint::black_box;

use bytes::Bytes;
use kohakuriver_tunnel::resume::{Accepts, Config, Identity, Link, Message, Received, Secret};
use kohakuriver_tunnel::session::Instant;

use super::{CALLS, Case};

/// Bytes of the payload.
const MESSAGES: &[&str] = &["64", "65536"];

pub(super) const CASES: &[Case] = &[
    Case {
        function: "resume_send",
        budget: 600,
        inputs: MESSAGES,
    },
    Case {
        function: "resume_receive",
        budget: 120,
        inputs: MESSAGES,
    },
];

mod counted {
    use super::*;

    /// All that a driver asks for one message that the session sends.
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(super) fn resume_send(link: &mut Link, message: &Bytes) -> Option<Bytes> {
        if let Some(output) = link.poll_output() {
            return Some(output);
        }
        if link.accepts() == Accepts::All {
            link.sent(message).ok()?;
        }
        None
    }

    /// The same for one that is received.
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(super) fn resume_receive(link: &mut Link, message: Bytes, now: Instant) -> Received {
        link.handle_message(now, message)
    }
}

fn pair(now: Instant) -> (Link, Link) {
    let mut client = Link::client(Config::default());
    client.attach(now);
    let Ok(Message::Open(open)) = Message::decode(&client.poll_output().unwrap()) else {
        panic!("not OPEN")
    };
    let identity = Identity {
        instance: 1,
        tunnel: 1,
    };
    let mut server = Link::server(
        Config::default(),
        identity,
        &open,
        Secret::new([1; 16]),
        now,
    );
    let opened = server.poll_output().unwrap();
    assert_eq!(client.handle_message(now, opened), Received::Attached);
    let confirmation = client.poll_output().unwrap();
    server.handle_message(now, confirmation);
    (client, server)
}

/// Calls the function `CALLS` times.
pub(super) fn call(function: &str, input: &str) {
    let now = Instant::default();
    let (mut client, mut server) = pair(now);
    let mut bytes = vec![0x5a; 8 + input.parse::<usize>().unwrap()];
    bytes[..8].copy_from_slice(&[3, 0, 0, 0, 0, 1, 0, 0]);
    for _ in 0..CALLS {
        let message = Bytes::from(bytes.clone());
        let output = match function {
            "resume_send" => counted::resume_send(&mut client, &message),
            _ => {
                client.sent(&message).unwrap();
                None
            }
        };
        assert_eq!(black_box(output), None);
        let received = match function {
            "resume_receive" => counted::resume_receive(&mut server, message, now),
            _ => server.handle_message(now, message),
        };
        assert!(matches!(black_box(received), Received::Deliver(_)));
        while let Some(ack) = server.poll_output() {
            client.handle_message(now, ack);
        }
    }
}
