//! What this end sends, and in which order.

use bytes::Bytes;

use super::endpoint::Session;
use super::stream::Stream;
use super::{Instant, MAX_DATAGRAM, Reset, SendError, State, StreamId, Transmit, Version};
use crate::wire::{Chunk, ClientId, Frame, Header, Kind, Proto};

impl Session {
    /// Bytes a stream may always queue, whatever the others have queued.
    const RESERVE: usize = 4096;
    /// Chunks of a stream below this are joined while they wait: a queue of them would cost more than its bytes.
    const SMALL: usize = 256;
    /// Datagrams in a row while streams wait.
    const MAX_FLOW_RUN: u32 = 16;

    /// Bytes of a stream that [`send`](Self::send) takes now: right for one message.
    ///
    /// At most [`Config::max_piece`](super::Config::max_piece), less while many streams wait to send. Zero
    /// when there is no credit or no room; [`request_writable`](Self::request_writable) asks to be told
    /// when there is.
    ///
    /// # Errors
    /// [`SendError`], never `Blocked`.
    pub fn send_capacity(&self, stream: StreamId) -> Result<usize, SendError> {
        let s = self.streams.get(stream).ok_or(SendError::Unknown)?;
        Self::check_sending(s)?;
        self.capacity_of(s)
    }

    fn capacity_of(&self, s: &Stream) -> Result<usize, SendError> {
        if s.proto != Proto::Tcp {
            return Err(SendError::Unknown);
        }
        let contended = self.schedule.is_contended();
        let piece = match contended {
            true => self.config.contended_piece,
            false => self.config.max_piece,
        };
        // Bounds are overrun by at most one piece, so that pieces stay whole.
        let stream_full = s.queue.len() >= self.config.stream_send_buffer;
        let room = match (stream_full, self.is_send_budget_full()) {
            (false, false) => piece,
            (false, true) if s.queue.is_empty() => piece.min(Self::RESERVE),
            _ => 0,
        };
        Ok(room.min(s.queue.credit()))
    }

    fn is_send_budget_full(&self) -> bool {
        let stream_bytes = self.stats.unsent - self.datagrams_unsent.bytes();
        stream_bytes >= self.config.send_budget || self.pressed
    }

    /// Asks for one [`Event::Writable`](super::Event::Writable) as soon as
    /// [`send_capacity`](Self::send_capacity) is above zero, at once if it is now.
    ///
    /// [`send`](Self::send) does so when it returns [`SendError::Blocked`], and
    /// [`send_slice`](Self::send_slice) when it takes nothing. A stream that is over is left alone.
    pub fn request_writable(&mut self, stream: StreamId) {
        if let Ok(capacity) = self.send_capacity(stream) {
            self.block(stream);
            if capacity > 0 {
                self.notify_writable(stream.slot);
            }
        }
    }

    /// Sending was refused: the stream waits for credit, for room of its own, or for the send budget.
    fn block(&mut self, stream: StreamId) {
        let budget_full = self.is_send_budget_full();
        if let Some(s) = self.streams.get_mut(stream) {
            s.flags.blocked = true;
            if budget_full && !s.flags.budget_queued {
                s.flags.budget_queued = true;
                self.waiting.push_back(stream);
            }
        }
    }

    /// Queues bytes of a stream without copying them.
    ///
    /// A chunk of at most [`send_capacity`](Self::send_capacity) bytes that was read behind headroom becomes
    /// one message as it is, except that small ones that wait are joined.
    ///
    /// # Errors
    /// [`SendError::Blocked`] gives the chunk back when it exceeds the credit or there is no room at all.
    pub fn send(&mut self, stream: StreamId, chunk: Chunk) -> Result<(), SendError> {
        if chunk.is_empty() {
            return Self::sending(&mut self.streams, stream).map(drop);
        }
        let capacity = self.send_capacity(stream)?;
        let s = Self::sending(&mut self.streams, stream)?;
        if capacity == 0 || chunk.len() > s.queue.credit() {
            self.block(stream);
            return Err(SendError::Blocked(chunk));
        }
        self.stats.unsent += chunk.len();
        if chunk.len() < Self::SMALL && !s.queue.is_empty() {
            s.queue.push_slice(chunk.payload(), self.config.max_piece);
        } else {
            s.queue.push(chunk);
        }
        self.schedule_output(stream.slot);
        Ok(())
    }

    /// Queues a copy of as many of the bytes as there is room for; says how many.
    ///
    /// Small writes that wait are joined into one message. `Ok(0)` means that there is no credit or no room;
    /// then [`Event::Writable`](super::Event::Writable) follows.
    ///
    /// # Errors
    /// [`SendError`], never `Blocked`.
    pub fn send_slice(&mut self, stream: StreamId, bytes: &[u8]) -> Result<usize, SendError> {
        let capacity = self.send_capacity(stream)?;
        let taken = bytes.get(..capacity).unwrap_or(bytes);
        let piece = self.config.max_piece;
        if capacity == 0 && !bytes.is_empty() {
            self.block(stream);
            return Ok(0);
        }
        let s = Self::sending(&mut self.streams, stream)?;
        s.queue.push_slice(taken, piece);
        self.stats.unsent += taken.len();
        self.schedule_output(stream.slot);
        Ok(taken.len())
    }

    /// Queues one datagram of a flow. Never blocks: under pressure the flow's oldest datagrams are dropped and counted.
    ///
    /// # Errors
    /// [`SendError`], never `Blocked`.
    pub fn send_datagram(&mut self, flow: StreamId, datagram: Chunk) -> Result<(), SendError> {
        let len = datagram.len();
        let s = Self::sending(&mut self.streams, flow)?;
        if s.proto != Proto::Udp {
            return Err(SendError::Unknown);
        }
        if len > MAX_DATAGRAM {
            self.stats.datagrams_dropped_sending += 1;
            return Err(SendError::TooLong(len));
        }
        let mut dropped = 0;
        while s.queue.chunks() >= self.config.datagram_queue
            || (!s.queue.is_empty() && s.queue.len() + len > self.config.datagram_buffer)
        {
            let Some(oldest) = s.queue.drop_front() else {
                break;
            };
            self.stats.unsent -= oldest;
            self.datagrams_unsent.remove(1, oldest);
            dropped += 1;
        }
        if self.datagrams_unsent.cost_with(len) > self.config.datagram_budget {
            dropped += 1;
        } else {
            s.queue.push(datagram);
            self.stats.unsent += len;
            self.datagrams_unsent.add(len);
        }
        self.stats.datagrams_dropped_sending += dropped;
        self.schedule_output(flow.slot);
        Ok(())
    }

    /// The next message for the transport: control, then datagrams, then streams in turn.
    ///
    /// To be called while the transport has room, until `None`. What it returns counts as sent.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        if self.is_closed() {
            return None;
        }
        let message = match self.next_control(now) {
            Some(frame) => frame.to_bytes(),
            None if self.keepalive.take_probe() => return Some(Transmit::Probe),
            None => self.next_data(now)?,
        };
        Some(Transmit::Message(message))
    }

    fn next_control(&mut self, now: Instant) -> Option<Frame<Bytes>> {
        if let Some(frame) = self.control.pop() {
            return Some(frame);
        }
        if let Some(payload) = self.keepalive.take_ping(now) {
            let id = ClientId::KEEPALIVE;
            return Some(Frame::Ping { id, payload });
        }
        while let Some(stream) = self.grants.pop_front() {
            let Some(s) = self.streams.get_mut(stream) else {
                continue;
            };
            s.window_queued = false;
            if s.state.can_receive() {
                let credit = s.window.take_grant();
                return Some(Frame::Window { id: s.id, credit });
            }
        }
        None
    }

    fn next_data(&mut self, now: Instant) -> Option<Bytes> {
        let streams_wait = !self.schedule.is_empty();
        if !streams_wait || self.flow_run < Self::MAX_FLOW_RUN {
            if let Some(message) = self.next_datagram(now) {
                self.flow_run = self.flow_run.saturating_add(1);
                return Some(message);
            }
        }
        self.flow_run = 0;
        self.next_piece(now).or_else(|| self.next_datagram(now))
    }

    fn next_datagram(&mut self, now: Instant) -> Option<Bytes> {
        while let Some(flow) = self.flows.pop_front() {
            let Some(s) = self.streams.get_mut(flow) else {
                continue;
            };
            s.flags.flow_queued = false;
            if let Some(datagram) = s.queue.pop(usize::MAX) {
                self.datagrams_unsent.remove(1, datagram.len());
                let message = to_message(s, datagram, &mut self.stats);
                self.schedule_output(flow.slot);
                return Some(message);
            }
            if s.finishing && s.state.can_send() {
                let (proto, id) = (s.proto, s.id);
                self.finish_slot(flow.slot, now);
                return Some(Frame::<Bytes>::Close { proto, id }.to_bytes());
            }
        }
        None
    }

    fn next_piece(&mut self, now: Instant) -> Option<Bytes> {
        let quantum = self.config.max_piece;
        while let Some(stream) = self.schedule.pop() {
            let Some(s) = self.streams.get_mut(stream) else {
                continue;
            };
            let Some(chunk) = s.queue.pop(quantum) else {
                let close = s.finishing && s.state.can_send();
                let (proto, id) = (s.proto, s.id);
                self.schedule.sent(stream, &mut s.turn, 0, false, quantum);
                if close {
                    self.finish_slot(stream.slot, now);
                    return Some(Frame::<Bytes>::Close { proto, id }.to_bytes());
                }
                continue;
            };
            let len = chunk.len();
            let message = to_message(s, chunk, &mut self.stats);
            let more = s.has_output();
            self.schedule.sent(stream, &mut s.turn, len, more, quantum);
            if s.flags.blocked && s.queue.credit() > 0 {
                self.notify_writable(stream.slot);
            }
            self.wake_waiting();
            return Some(message);
        }
        None
    }

    /// CLOSE was sent.
    fn finish_slot(&mut self, slot: u32, now: Instant) {
        let Some(s) = self.streams.slot_mut(slot) else {
            return;
        };
        let next = match s.proto {
            Proto::Tcp => s.state.after_finish(),
            Proto::Udp => State::Closed,
        };
        if next == State::Closed {
            return self.end_stream(slot, None, false);
        }
        s.state = next;
        // The peer may never say CLOSE: in v1 because it forgot the id, in v2 because nobody here would
        // notice that it did.
        if self.version == Version::V1 || s.flags.released {
            self.set_deadline(slot, now + self.config.linger);
        }
    }

    /// Wakes the streams that wait for the send budget, once half of it is free.
    pub(super) fn wake_waiting(&mut self) {
        let stream_bytes = self.stats.unsent - self.datagrams_unsent.bytes();
        if stream_bytes > self.config.send_budget / 2 {
            return;
        }
        while let Some(stream) = self.waiting.pop_front() {
            if let Some(s) = self.streams.get_mut(stream) {
                s.flags.budget_queued = false;
                self.notify_writable(stream.slot);
            }
        }
    }

    /// Gives the stream its turn if it has something to send.
    pub(super) fn schedule_output(&mut self, slot: u32) {
        let quantum = self.config.max_piece;
        let Some(s) = self.streams.slot_mut(slot) else {
            return;
        };
        if !s.has_output() {
            return;
        }
        let stream = StreamId {
            slot,
            generation: s.generation,
        };
        match s.proto {
            Proto::Tcp => self.schedule.activate(stream, &mut s.turn, quantum),
            Proto::Udp if s.flags.flow_queued => {}
            Proto::Udp => {
                s.flags.flow_queued = true;
                self.flows.push_back(stream);
            }
        }
    }

    fn sending(
        streams: &mut super::streams::Streams,
        stream: StreamId,
    ) -> Result<&mut Stream, SendError> {
        let s = streams.get_mut(stream).ok_or(SendError::Unknown)?;
        Self::check_sending(s)?;
        Ok(s)
    }

    fn check_sending(s: &Stream) -> Result<(), SendError> {
        if let Some(reset) = &s.reset {
            return Err(SendError::Reset(Reset::clone(reset)));
        }
        if s.can_send() {
            Ok(())
        } else {
            Err(SendError::Finished)
        }
    }
}

fn to_message(s: &mut Stream, chunk: Chunk, stats: &mut super::Stats) -> Bytes {
    let len = chunk.len();
    stats.unsent -= len;
    stats.bytes_sent += len as u64;
    s.conversation.ask();
    chunk.seal(Header {
        kind: Kind::Data,
        proto: s.proto,
        id: s.id,
        port: 0,
    })
}
