//! A message transport in memory without a runtime: bounded, with back-pressure, and strict about
//! its use.

use std::collections::VecDeque;
use std::fmt::{self, Display};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use kohakuriver_tunnel::transport::{Carrier, CloseReason, Received};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Packet {
    Binary(Bytes),
    Text(String),
    Close(CloseReason),
    Ping,
    Pong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

impl Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the pipe is broken")
    }
}

#[derive(Debug, Default)]
struct Lane {
    packets: VecDeque<Packet>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// The receiver is gone.
    held: bool,
    closed: bool,
    broken: bool,
    passed: usize,
}

/// One direction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wire(Arc<Mutex<Lane>>);

impl Wire {
    fn lane(&self) -> MutexGuard<'_, Lane> {
        self.0.lock().unwrap()
    }

    fn change<R>(&self, change: impl FnOnce(&mut Lane) -> R) -> R {
        let mut lane = self.lane();
        let outcome = change(&mut lane);
        let wakers = [lane.reader.take(), lane.writer.take()];
        drop(lane);
        for waker in wakers.into_iter().flatten() {
            waker.wake();
        }
        outcome
    }

    /// Adds a packet, regardless of the bound.
    pub(crate) fn inject(&self, packet: Packet) {
        self.change(|lane| lane.packets.push_back(packet));
    }

    /// Breaks the lane: both ends see an error.
    pub(crate) fn cut(&self) {
        self.change(|lane| lane.broken = true);
    }

    /// While it is held, its packets do not arrive.
    pub(crate) fn hold(&self, held: bool) {
        self.change(|lane| lane.held = held);
    }

    /// Packets sent so far.
    pub(crate) fn passed(&self) -> usize {
        self.lane().passed
    }
}

/// One end.
#[derive(Debug)]
pub(crate) struct Pipe {
    input: Wire,
    output: Wire,
    capacity: usize,
    ready: bool,
    ended: bool,
}

/// Two ends joined by lanes of `capacity` packets. The wires are near to far, and back.
pub(crate) fn pipe(capacity: usize) -> (Pipe, Pipe, [Wire; 2]) {
    let (there, back) = (Wire::default(), Wire::default());
    let near = Pipe::new(back.clone(), there.clone(), capacity);
    let far = Pipe::new(there.clone(), back.clone(), capacity);
    (near, far, [there, back])
}

impl Pipe {
    fn new(input: Wire, output: Wire, capacity: usize) -> Self {
        Self {
            input,
            output,
            capacity,
            ready: false,
            ended: false,
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.output.change(|lane| lane.closed = true);
        // Like a socket: later writes to it fail.
        self.input.change(|lane| lane.broken = true);
    }
}

impl Stream for Pipe {
    type Item = Result<Packet, Broken>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        assert!(!self.ended, "read after the end");
        let input = self.input.clone();
        let mut lane = input.lane();
        if lane.broken {
            self.ended = true;
            return Poll::Ready(Some(Err(Broken)));
        }
        if !lane.held {
            if let Some(packet) = lane.packets.pop_front() {
                let writer = lane.writer.take();
                drop(lane);
                if let Some(writer) = writer {
                    writer.wake();
                }
                if packet == Packet::Ping {
                    self.output.inject(Packet::Pong);
                }
                return Poll::Ready(Some(Ok(packet)));
            }
            if lane.closed {
                self.ended = true;
                return Poll::Ready(None);
            }
        }
        lane.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Sink<Packet> for Pipe {
    type Error = Broken;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let mut lane = self.output.lane();
        if lane.broken {
            return Poll::Ready(Err(Broken));
        }
        let full = lane.packets.len() >= self.capacity;
        if full {
            lane.writer = Some(cx.waker().clone());
        }
        drop(lane);
        self.ready = !full;
        if full {
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }

    fn start_send(mut self: Pin<&mut Self>, packet: Packet) -> Result<(), Broken> {
        assert!(std::mem::take(&mut self.ready), "sent without asking");
        self.output.change(|lane| {
            assert!(!lane.closed, "sent after the end");
            lane.packets.push_back(packet);
            lane.passed += 1;
        });
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.output.lane().broken {
            return Poll::Ready(Err(Broken));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.output.change(|lane| lane.closed = true);
        Poll::Ready(Ok(()))
    }
}

/// Tunnel messages as packets.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Packets {
    pub(crate) probes: bool,
}

impl Carrier for Packets {
    type Message = Packet;

    fn binary(&mut self, message: Bytes) -> Packet {
        Packet::Binary(message)
    }

    fn classify(&mut self, packet: Packet) -> Received<Packet> {
        match packet {
            Packet::Binary(bytes) => Received::Message(bytes),
            Packet::Ping | Packet::Pong => Received::Skip,
            Packet::Text(text) => Received::Text(text),
            Packet::Close(reason) => Received::End(Some(reason)),
        }
    }

    fn ping(&mut self) -> Option<Packet> {
        self.probes.then_some(Packet::Ping)
    }

    fn text(&mut self, text: String) -> Option<Packet> {
        Some(Packet::Text(text))
    }

    fn close(&mut self, code: u16, why: &str) -> Option<Packet> {
        let reason = CloseReason::new(code, CloseReason::cut(why));
        Some(Packet::Close(reason))
    }
}
