//! Both ends of a tunnel that outlives its transport, in one program without any library: a
//! megabyte, of which a part is lost with the first transport and sent again on the second. Exit
//! code 0 if everything succeeded.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use kohakuriver_tunnel::resume::{
    self, Accepts, EndReason, Identity, Link, Message, Open, Received, Secret, State,
};
use kohakuriver_tunnel::session::{
    Config, Event, Instant, Recv, Role, Session, StreamId, Transmit, Version,
};
use no_std_program::{Heap, entry, write_all};

#[global_allocator]
static HEAP: Heap = Heap::new();

entry!(main);

fn main() -> i32 {
    if let Err(step) = run() {
        return step;
    }
    match write_all(b"a tunnel over two transports\n") {
        Some(()) => 0,
        None => 1,
    }
}

const MEGABYTE: usize = 1 << 20;
const IDENTITY: Identity = Identity {
    instance: 7,
    tunnel: 1,
};

struct End {
    session: Session,
    link: Link,
}

fn run() -> Result<(), i32> {
    let mut now = Instant::default();
    let mut link = Link::client(resume::Config::default());
    link.attach(now);
    let asked = open(&mut link)?;
    let mut client = End::new(Role::Opener, link, now);
    let link = Link::server(
        resume::Config::default(),
        IDENTITY,
        &asked,
        Secret::new([1; Secret::LEN]),
        now,
    );
    let mut server = End::new(Role::Acceptor, link, now);

    let near = client.session.open_tcp(8080, now).map_err(|_| 10)?;
    exchange(&mut client, &mut server, now)?;
    let far = server.accept(now)?;
    let data: Vec<u8> = (0..MEGABYTE).map(|i| (i * 31) as u8).collect();
    let (mut sent, mut received, mut rounds) = (0, 0, 0);
    while received < data.len() {
        now = now + Duration::from_millis(1);
        sent += client
            .session
            .send_slice(near, &data[sent..])
            .map_err(|_| 11)?;
        rounds += 1;
        if rounds == 3 {
            // It is under way when the transport is lost.
            while client.next_message(now).is_some() {}
            client.link.detach(now);
            server.link.detach(now);
            client.link.attach(now);
            let open = open(&mut client.link)?;
            let next = Secret::new([2; Secret::LEN]);
            server.link.takeover(&open, next, now).map_err(|_| 12)?;
        }
        exchange(&mut client, &mut server, now)?;
        while let Recv::Data(bytes) = server.session.recv(far, now).map_err(|_| 13)? {
            if data.get(received..received + bytes.len()) != Some(&bytes[..]) {
                return Err(14);
            }
            received += bytes.len();
        }
    }
    if client.link.stats().replayed == 0 || server.link.stats().resumed != 1 {
        return Err(15);
    }
    client.link.end(EndReason::Closed, "");
    exchange(&mut client, &mut server, now)?;
    match (client.link.state(), server.link.state()) {
        (State::Ended, State::Ended) => Ok(()),
        _ => Err(16),
    }
}

/// The OPEN that is the link's next output.
fn open(link: &mut Link) -> Result<Open, i32> {
    let message = link.poll_output().ok_or(17)?;
    match Message::decode(&message) {
        Ok(Message::Open(open)) => Ok(open),
        _ => Err(17),
    }
}

/// Delivers messages until neither end has any.
fn exchange(client: &mut End, server: &mut End, now: Instant) -> Result<(), i32> {
    loop {
        let there = carry(client, server, now)?;
        let back = carry(server, client, now)?;
        if !there && !back {
            return Ok(());
        }
    }
}

fn carry(from: &mut End, to: &mut End, now: Instant) -> Result<bool, i32> {
    let mut any = false;
    while let Some(message) = from.next_message(now) {
        to.handle(now, message)?;
        any = true;
    }
    Ok(any)
}

impl End {
    fn new(role: Role, link: Link, now: Instant) -> Self {
        let mut session = Session::new(role, Version::V2, Config::default(), now);
        session.set_outlives_transport(true);
        Self { session, link }
    }

    fn next_message(&mut self, now: Instant) -> Option<Bytes> {
        if let Some(output) = self.link.poll_output() {
            return Some(output);
        }
        match self.link.accepts() {
            Accepts::Control => self.session.hold_data(true),
            Accepts::All => self.session.hold_data(false),
            _ => return None,
        }
        match self.session.poll_transmit(now) {
            Some(Transmit::Message(message)) => {
                self.link.sent(&message).ok()?;
                Some(message)
            }
            // An acknowledgement may go along with what was taken before.
            _ => self.link.poll_output(),
        }
    }

    fn handle(&mut self, now: Instant, message: Bytes) -> Result<(), i32> {
        match self.link.handle_message(now, message) {
            Received::Deliver(message) => {
                let handled = self.session.handle_message(now, message);
                handled.map_err(|_| 18)
            }
            Received::Handled | Received::Attached | Received::Ended(_) => Ok(()),
            _ => Err(19),
        }
    }

    /// Accepts the stream that the other end has opened.
    fn accept(&mut self, now: Instant) -> Result<StreamId, i32> {
        while let Some(event) = self.session.poll_event() {
            if let Event::Incoming { stream, .. } = event {
                self.session.accept(stream, now).map_err(|_| 20)?;
                return Ok(stream);
            }
        }
        Err(20)
    }
}
