//! Data that waits to be sent, the peer's credit, and the order of streams.

mod credit;
mod queue;
mod schedule;

use bytes::Bytes;

use self::credit::Credit;
use self::queue::SendQueue;
use self::schedule::{Schedule, Turn};
use super::events::Events;
use super::pool::Pool;
use super::ready::{List, Place};
use super::stream::Stream;
use super::streams::Streams;
use super::{Config, Stats, StreamId};
use crate::wire::{Chunk, Header, Kind, Proto};

/// The sending half of a session: queues, the budgets on them, and the order.
#[derive(Debug, Default)]
pub(super) struct Sending {
    config: Config,
    /// Bytes queued on byte streams.
    bytes: Pool,
    /// Datagrams queued on flows.
    datagrams: Pool,
    schedule: Schedule,
    /// Flows with something to send.
    flows: List,
    /// Datagrams sent since the last piece of a stream.
    flow_run: u32,
    /// Streams that wait for the send budget.
    waiting: List,
    pressed: bool,
    /// Data of streams stays here.
    held: bool,
    sent: u64,
    dropped: u64,
}

/// The sending direction of one stream or flow.
#[derive(Debug, Default)]
pub(super) struct SendHalf {
    queue: SendQueue,
    credit: Credit,
    turn: Turn,
    flow: Place,
    waiting: Place,
    /// CLOSE follows the queued data.
    finishing: bool,
}

/// The next thing to send.
#[derive(Debug)]
pub(super) enum Outgoing {
    Data(Bytes),
    /// The stream has sent everything and sends CLOSE.
    Close(StreamId),
}

impl Sending {
    /// Bytes that a stream may always queue, however much the others have queued.
    const RESERVE: usize = 4096;
    /// Queued chunks shorter than this are joined, because the overhead of a chunk would exceed its
    /// bytes.
    const SMALL: usize = 256;
    /// Most datagrams in a row while streams wait.
    const MAX_FLOW_RUN: u32 = 16;

    pub(super) fn new(config: &Config) -> Self {
        Self {
            config: config.clone(),
            bytes: Pool::new(config.send_budget),
            datagrams: Pool::new(config.datagram_budget),
            ..Self::default()
        }
    }

    /// Queues bytes of a stream without a copy, unless they are few. Returns them if they exceed
    /// the credit or there is no room.
    pub(super) fn push(&mut self, s: &mut Stream, chunk: Chunk) -> Result<(), Chunk> {
        let half = &mut s.send;
        if chunk.len() > half.credit() || self.capacity(half) == 0 {
            self.block(s);
            return Err(chunk);
        }
        if chunk.len() < Self::SMALL && !half.queue.is_empty() {
            let piece = self.config.max_piece;
            half.queue
                .push_slice(chunk.payload(), piece, &mut self.bytes);
        } else {
            half.queue.push(chunk, &mut self.bytes);
        }
        s.notice.want_writable(false);
        self.activate(s);
        Ok(())
    }

    /// Queues a copy of as many bytes as there is room for. Returns how many.
    pub(super) fn push_slice(&mut self, s: &mut Stream, bytes: &[u8]) -> usize {
        let capacity = self.capacity(&s.send);
        let taken = bytes.get(..capacity).unwrap_or(bytes);
        if taken.is_empty() {
            if !bytes.is_empty() {
                self.block(s);
            }
            return 0;
        }
        let piece = self.config.max_piece;
        s.send.queue.push_slice(taken, piece, &mut self.bytes);
        s.notice.want_writable(false);
        self.activate(s);
        taken.len()
    }

    /// Queues one datagram. Without room, the flow's oldest datagrams or this one are dropped.
    pub(super) fn push_datagram(&mut self, s: &mut Stream, datagram: Chunk) {
        let len = datagram.len();
        let (config, queue) = (&self.config, &mut s.send.queue);
        while queue.pieces() >= config.datagram_queue
            || (!queue.is_empty() && queue.len() + len > config.datagram_buffer)
        {
            if queue.pop(usize::MAX, &mut self.datagrams).is_none() {
                break;
            }
            self.dropped += 1;
        }
        if self.datagrams.has_room(len) {
            queue.push(datagram, &mut self.datagrams);
        } else {
            self.dropped += 1;
        }
        self.activate(s);
    }

    /// A datagram was too long to be queued.
    pub(super) fn drop_datagram(&mut self) {
        self.dropped += 1;
    }

    /// The stream waits for credit, for room in its queue, or for the send budget, and wants an
    /// event.
    pub(super) fn block(&mut self, s: &mut Stream) {
        s.notice.want_writable(true);
        if self.is_budget_full() {
            self.waiting.push(s.id(), &mut s.send.waiting);
        }
    }

    /// CLOSE follows the queued data.
    pub(super) fn finish(&mut self, s: &mut Stream) {
        s.send.finishing = true;
        self.activate(s);
    }

    /// Schedules the stream if it has something to send.
    pub(super) fn activate(&mut self, s: &mut Stream) {
        if !has_more(s) {
            return;
        }
        let id = s.id();
        match s.proto() {
            Proto::Tcp => {
                let quantum = self.config.max_piece;
                self.schedule.activate(id, &mut s.send.turn, quantum);
            }
            Proto::Udp => self.flows.push(id, &mut s.send.flow),
        }
    }

    /// The stream has ended: drops its queue.
    pub(super) fn retire(&mut self, s: &mut Stream) {
        let pool = match s.proto() {
            Proto::Tcp => &mut self.bytes,
            Proto::Udp => &mut self.datagrams,
        };
        s.send.queue.clear(pool);
    }

    /// The next message with data, or the end of a stream: datagrams first, then streams in turn.
    pub(super) fn next(&mut self, streams: &mut Streams, events: &mut Events) -> Option<Outgoing> {
        let streams_wait = !self.held && !self.schedule.is_empty();
        if !streams_wait || self.flow_run < Self::MAX_FLOW_RUN {
            if let Some(message) = self.next_datagram(streams) {
                self.flow_run = self.flow_run.saturating_add(1);
                return Some(message);
            }
        }
        self.flow_run = 0;
        if self.held {
            return None;
        }
        self.next_piece(streams, events)
            .or_else(|| self.next_datagram(streams))
    }

    fn next_datagram(&mut self, streams: &mut Streams) -> Option<Outgoing> {
        while let Some(id) = self.flows.pop() {
            let Some(s) = streams.get_mut(id) else {
                continue;
            };
            s.send.flow.leave();
            if let Some(datagram) = s.send.queue.pop(usize::MAX, &mut self.datagrams) {
                let message = self.message(s, datagram);
                self.activate(s);
                return Some(Outgoing::Data(message));
            }
            if has_close(s) {
                return Some(Outgoing::Close(id));
            }
        }
        None
    }

    fn next_piece(&mut self, streams: &mut Streams, events: &mut Events) -> Option<Outgoing> {
        let quantum = self.config.max_piece;
        while let Some(id) = self.schedule.pop() {
            let Some(s) = streams.get_mut(id) else {
                continue;
            };
            let Some(chunk) = s.send.queue.pop(quantum, &mut self.bytes) else {
                let close = has_close(s);
                self.schedule.sent(id, &mut s.send.turn, 0, false, quantum);
                if close {
                    return Some(Outgoing::Close(id));
                }
                continue;
            };
            let len = chunk.len();
            let message = self.message(s, chunk);
            let more = has_more(s);
            self.schedule.sent(id, &mut s.send.turn, len, more, quantum);
            if s.notice.wants_writable() && s.send.credit() > 0 {
                events.writable(s);
            }
            self.wake(streams, events);
            return Some(Outgoing::Data(message));
        }
        None
    }

    fn message(&mut self, s: &mut Stream, chunk: Chunk) -> Bytes {
        let len = chunk.len();
        self.sent += len as u64;
        s.send.credit.spend(len);
        s.recv.note_asked();
        chunk.seal(Header {
            kind: Kind::Data,
            proto: s.proto(),
            id: s.wire_id(),
            port: 0,
        })
    }

    /// Wakes the streams that wait for the send budget, once half of it is free.
    pub(super) fn wake(&mut self, streams: &mut Streams, events: &mut Events) {
        if !self.bytes.is_half_free() {
            return;
        }
        while let Some(id) = self.waiting.pop() {
            if let Some(s) = streams.get_mut(id) {
                s.send.waiting.leave();
                events.writable(s);
            }
        }
    }

    /// While pressed, streams queue little.
    pub(super) fn set_pressed(&mut self, pressed: bool) {
        self.pressed = pressed;
    }

    /// While held, only datagrams are taken.
    pub(super) fn set_held(&mut self, held: bool) {
        self.held = held;
    }

    /// Bytes that the stream accepts now.
    pub(super) fn capacity(&self, half: &SendHalf) -> usize {
        let piece = match self.schedule.is_contended() {
            true => self.config.contended_piece,
            false => self.config.max_piece,
        };
        // A bound is exceeded by at most one piece, so that pieces stay whole.
        let stream_full = half.queue.len() >= self.config.stream_send_buffer;
        let room = match (stream_full, self.is_budget_full()) {
            (false, false) => piece,
            (false, true) if half.queue.is_empty() => piece.min(Self::RESERVE),
            _ => 0,
        };
        room.min(half.credit())
    }

    fn is_budget_full(&self) -> bool {
        self.pressed || self.bytes.is_full()
    }

    pub(super) fn has_output(&self) -> bool {
        !self.flows.is_empty() || (!self.held && !self.schedule.is_empty())
    }

    /// Bytes queued on all streams and flows.
    pub(super) const fn unsent(&self) -> usize {
        self.bytes.bytes() + self.datagrams.bytes()
    }

    pub(super) fn count(&self, stats: &mut Stats) {
        stats.bytes_sent = self.sent;
        stats.datagrams_dropped_sending = self.dropped;
        stats.unsent = self.unsent();
    }

    /// Whether the pools match the queues of the streams.
    pub(super) fn audit(&self, streams: &Streams) -> bool {
        let queues = |proto| {
            let of_proto = streams.iter().filter(move |s| s.proto() == proto);
            of_proto.map(|s| (s.send.queue.pieces(), s.send.queue.len()))
        };
        self.bytes.audit(queues(Proto::Tcp)) && self.datagrams.audit(queues(Proto::Udp))
    }
}

impl SendHalf {
    pub(super) fn new(credit: u64) -> Self {
        let credit = Credit::new(credit);
        Self {
            credit,
            ..Self::default()
        }
    }

    /// The connection was accepted: the rest of the initial window may be used.
    pub(super) fn establish(&mut self) {
        self.credit.establish();
    }

    /// Adds credit. `None` if the sum overflows.
    pub(super) fn grant(&mut self, credit: u32) -> Option<()> {
        self.credit.grant(credit)
    }

    /// Whether the application has ended this direction.
    pub(super) const fn is_finishing(&self) -> bool {
        self.finishing
    }

    /// Bytes queued.
    pub(super) const fn unsent(&self) -> usize {
        self.queue.len()
    }

    /// Payload bytes transmitted.
    pub(super) const fn sent(&self) -> u64 {
        self.credit.sent()
    }

    /// Credit beyond the queued bytes.
    fn credit(&self) -> usize {
        self.credit.left(self.queue.len())
    }
}

/// Whether the stream has data or CLOSE to send.
fn has_more(s: &Stream) -> bool {
    !s.send.queue.is_empty() || has_close(s)
}

fn has_close(s: &Stream) -> bool {
    s.send.finishing && s.life.state().can_send()
}
