//! Both ends of a tunnel in one program without any library: a megabyte each way around a
//! half-close, datagrams, a refusal, and an orderly end. Exit code 0 if everything succeeded.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;
use core::time::Duration;

use kohakuriver_tunnel::session::{
    Config, Event, Instant, Reason, Recv, Role, Session, StreamError, StreamId, Transmit, Version,
};
use kohakuriver_tunnel::wire::{Chunk, Proto};
use no_std_program::{Heap, entry, write_all};

#[global_allocator]
static HEAP: Heap = Heap::new();

entry!(main);

fn main() -> i32 {
    for (code, version) in [(10, Version::V1), (20, Version::V2)] {
        if let Err(step) = Tunnel::new(version).run() {
            return code + step;
        }
    }
    match write_all(b"a whole session, v1 and v2\n") {
        Some(()) => 0,
        None => 1,
    }
}

const MEGABYTE: usize = 1 << 20;

struct Tunnel {
    opener: Session,
    acceptor: Session,
    now: Instant,
}

impl Tunnel {
    fn new(version: Version) -> Self {
        let now = Instant::default();
        let session = |role| Session::new(role, version, Config::default(), now);
        Self {
            opener: session(Role::Opener),
            acceptor: session(Role::Acceptor),
            now,
        }
    }

    /// Delivers messages until neither end has any.
    fn exchange(&mut self) -> Result<(), i32> {
        self.now = self.now + Duration::from_millis(1);
        loop {
            let there = carry(&mut self.opener, &mut self.acceptor, self.now)?;
            let back = carry(&mut self.acceptor, &mut self.opener, self.now)?;
            if !there && !back {
                return Ok(());
            }
        }
    }

    fn incoming(&mut self) -> Result<(StreamId, Proto, u16), i32> {
        while let Some(event) = self.acceptor.poll_event() {
            if let Event::Incoming {
                stream,
                proto,
                port,
            } = event
            {
                return Ok((stream, proto, port));
            }
        }
        Err(1)
    }

    fn run(&mut self) -> Result<(), i32> {
        let near = self.opener.open_tcp(8080, self.now).map_err(|_| 2)?;
        self.exchange()?;
        let (far, Proto::Tcp, 8080) = self.incoming()? else {
            return Err(3);
        };
        self.acceptor.accept(far, self.now).map_err(|_| 3)?;
        self.transfer(Way::There, near, far)?;
        self.opener.finish(near);
        self.exchange()?;
        if self.acceptor.recv(far, self.now) != Ok(Recv::Finished) {
            return Err(4);
        }
        self.transfer(Way::Back, far, near)?;
        self.acceptor.finish(far);
        self.exchange()?;
        if self.opener.recv(near, self.now) != Ok(Recv::Finished) {
            return Err(5);
        }
        self.opener.release(near, self.now);
        self.acceptor.release(far, self.now);

        let near = self.opener.open_udp(53, self.now).map_err(|_| 6)?;
        for datagram in [&b"one"[..], b"", b"three"] {
            let sent = self.opener.send_datagram(near, Chunk::copied(datagram));
            sent.map_err(|_| 6)?;
        }
        self.exchange()?;
        let (far, Proto::Udp, 53) = self.incoming()? else {
            return Err(6);
        };
        self.acceptor.accept(far, self.now).map_err(|_| 6)?;
        for datagram in [&b"one"[..], b"", b"three"] {
            match self.acceptor.recv(far, self.now) {
                Ok(Recv::Data(bytes)) if bytes == datagram => {}
                _ => return Err(7),
            }
        }
        self.opener.release(near, self.now);
        self.acceptor.release(far, self.now);

        let near = self.opener.open_tcp(1, self.now).map_err(|_| 8)?;
        self.exchange()?;
        let (far, ..) = self.incoming()?;
        self.acceptor.reject(far, Reason::Refused, "nobody there");
        self.exchange()?;
        match self.opener.recv(near, self.now) {
            Err(StreamError::Reset(reset)) if reset.text.ends_with("nobody there") => {}
            _ => return Err(8),
        }
        self.opener.release(near, self.now);
        self.opener.drain();
        self.exchange()?;
        match self.opener.is_idle() && self.acceptor.is_idle() {
            true => Ok(()),
            false => Err(9),
        }
    }

    /// Sends a megabyte from one end and reads it at the other.
    fn transfer(&mut self, way: Way, from: StreamId, to: StreamId) -> Result<(), i32> {
        let data: Vec<u8> = (0..MEGABYTE).map(|i| (i * 31) as u8).collect();
        let (mut sent, mut received) = (0, 0);
        while received < data.len() {
            let (sender, receiver) = match way {
                Way::There => (&mut self.opener, &mut self.acceptor),
                Way::Back => (&mut self.acceptor, &mut self.opener),
            };
            sent += sender.send_slice(from, &data[sent..]).map_err(|_| 9)?;
            while let Recv::Data(bytes) = receiver.recv(to, self.now).map_err(|_| 9)? {
                if data.get(received..received + bytes.len()) != Some(&bytes[..]) {
                    return Err(9);
                }
                received += bytes.len();
            }
            self.exchange()?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Way {
    There,
    Back,
}

fn carry(from: &mut Session, to: &mut Session, now: Instant) -> Result<bool, i32> {
    let mut any = false;
    while let Some(transmit) = from.poll_transmit(now) {
        if let Transmit::Message(message) = transmit {
            to.handle_message(now, message).map_err(|_| 9)?;
        }
        any = true;
    }
    Ok(any)
}
