//! Both ends of a tunnel, and what passes between them.

mod bounds;
mod hostile;
mod laws;
mod states;

use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;

use super::*;
use crate::session::Instant;

const IDENTITY: Identity = Identity {
    instance: 7,
    tunnel: 9,
};

fn at(millis: u64) -> Instant {
    Instant::from_micros(millis * 1000)
}

fn secret(n: u8) -> Secret {
    Secret::new([n; Secret::LEN])
}

/// A counted message.
fn message(n: u8) -> Bytes {
    Bytes::copy_from_slice(&[3, 0, 0, 0, 0, 1, 0, 0, n])
}

fn datagram() -> Bytes {
    Bytes::copy_from_slice(&[3, 1, 0, 0, 0, 1, 0, 0])
}

fn ack(received: u64) -> Bytes {
    Message::Ack { received }.to_bytes()
}

fn end(reason: EndReason) -> Bytes {
    let text = "text".into();
    Message::End { reason, text }.to_bytes()
}

/// All output.
fn output(link: &mut Link) -> Vec<Bytes> {
    core::iter::from_fn(|| link.poll_output()).collect()
}

/// The OPEN that is the client's next output.
fn open(client: &mut Link) -> Open {
    match Message::decode(&client.poll_output().unwrap()) {
        Ok(Message::Open(open)) => open,
        other => panic!("not OPEN: {other:?}"),
    }
}

/// The counts and the reason in messages of the layer.
fn layer(messages: &[Bytes]) -> Vec<Message> {
    let of_layer = messages.iter().filter(|message| is_layer(message));
    of_layer
        .map(|message| Message::decode(message).unwrap())
        .collect()
}

/// Two ends. Messages pass between them only when a test says so.
struct Pair {
    client: Link,
    server: Link,
    now: Instant,
    secrets: u8,
}

impl Pair {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        let now = at(0);
        let mut client = Link::client(config.clone());
        client.attach(now);
        let open = open(&mut client);
        let mut server = Link::server(config, IDENTITY, &open, secret(1), now);
        let opened = server.poll_output().unwrap();
        assert!(!server.is_confirmed());
        assert_eq!(client.handle_message(now, opened), Received::Attached);
        let answer = client.poll_output().unwrap();
        assert_eq!(server.handle_message(now, answer), Received::Handled);
        assert!(client.is_confirmed() && server.is_confirmed());
        Self {
            client,
            server,
            now,
            secrets: 1,
        }
    }

    /// Both lose their transport.
    fn cut(&mut self) {
        self.client.detach(self.now);
        self.server.detach(self.now);
    }

    /// The server takes the tunnel over. Returns its output, OPENED first.
    fn reopen(&mut self) -> Vec<Bytes> {
        self.client.attach(self.now);
        let open = open(&mut self.client);
        self.secrets += 1;
        let next = secret(self.secrets);
        self.server.takeover(&open, next, self.now).unwrap();
        output(&mut self.server)
    }

    /// Cuts and goes on. Returns what the client and the server are handed.
    fn resume(&mut self) -> (Vec<Bytes>, Vec<Bytes>) {
        self.cut();
        let down = self.reopen();
        let to_client = hand(&mut self.client, self.now, down);
        let up = output(&mut self.client);
        let to_server = hand(&mut self.server, self.now, up);
        (to_client, to_server)
    }

    fn audit(&self) {
        assert!(self.client.audit(), "{:?}", self.client);
        assert!(self.server.audit(), "{:?}", self.server);
    }
}

/// Passes messages to a link. Returns those that it delivers.
fn hand(link: &mut Link, now: Instant, messages: Vec<Bytes>) -> Vec<Bytes> {
    let mut delivered = Vec::new();
    for message in messages {
        match link.handle_message(now, message) {
            Received::Deliver(message) => delivered.push(message),
            Received::Handled | Received::Attached => {}
            other => panic!("{other:?}"),
        }
    }
    delivered
}

/// Sends messages that the transport loses or carries, as the caller likes.
fn send(link: &mut Link, numbers: core::ops::Range<u8>) -> Vec<Bytes> {
    let messages: Vec<Bytes> = numbers.map(message).collect();
    for message in &messages {
        assert_ne!(link.accepts(), Accepts::Nothing);
        link.sent(message).unwrap();
    }
    messages
}
