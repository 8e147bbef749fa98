//! Received data that was not read, the credit for more, and the bounds on both.

mod buffer;
mod early;
mod lending;
mod shortage;
mod stall;
mod window;

use core::time::Duration;

use bytes::Bytes;

use self::buffer::ReceiveBuffer;
pub(super) use self::buffer::payload;
use self::early::{Early, Excess};
use self::lending::Lending;
use self::shortage::Shortage;
use self::stall::{Conversation, Stall, Stalls, Waits};
use self::window::ReceiveWindow;
use super::budget::QueueBudget;
use super::dialect::Dialect;
use super::ready::{List, Place};
use super::stream::Stream;
use super::streams::Streams;
use super::time::earliest;
use super::{Config, EARLY_DATA, Instant, MAX_DATAGRAM, Role, Stats, StreamId};
use crate::wire::{Chunk, Frame, Proto};

/// The receiving half of a session: buffers, the budgets on them, credit, and the stall of v1.
#[derive(Debug, Default)]
pub(super) struct Receiving {
    config: Config,
    has_credit: bool,
    /// At an acceptor the peer asks, and the answers are still sent.
    asks: bool,
    /// Bytes held by byte streams.
    bytes: QueueBudget,
    /// Datagrams held by flows.
    datagrams: QueueBudget,
    /// Bytes that applications have taken from streams and not used yet.
    taken: usize,
    lending: Lending,
    /// Streams with credit to announce.
    grants: List,
    early: Early,
    stalls: Stalls,
    shortage: Shortage,
    thrifty: bool,
    received: u64,
    dropped: u64,
}

/// The receiving direction of one stream or flow.
#[derive(Debug)]
pub(super) struct RecvHalf {
    buffer: ReceiveBuffer,
    /// See [`Receiving::taken`].
    taken: usize,
    window: ReceiveWindow,
    grant: Place,
    early: Excess,
    talk: Conversation,
    /// Received data is discarded.
    discards: bool,
    /// Its reader cannot read for a while: goes first when memory is short.
    expendable: bool,
}

/// Result of receiving the payload of a DATA.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Nothing new to read.
    Nothing,
    Kept {
        /// A stalled stream for which this one has waited long enough.
        give_up: Option<StreamId>,
    },
    /// Number of bytes beyond the credit. None was kept.
    Overrun(u64),
    /// More early data than a connection may have before it is accepted.
    TooEarly,
}

impl Receiving {
    /// Payloads of this length or more are copied only while thrifty: it would cost more than what
    /// they keep alive besides.
    const SHARED_MIN: usize = 64 << 10;
    /// Smaller ones share memory with the transport up to this part of the budget. At worst, one of
    /// 4 KiB keeps a buffer of 256 KiB alive, and all of them as much as the budget.
    const SHARED_PART: usize = 64;

    pub(super) fn new(config: &Config, dialect: Dialect) -> Self {
        Self {
            config: config.clone(),
            has_credit: dialect.has_credit(),
            asks: dialect.role() == Role::Opener,
            bytes: QueueBudget::new(config.receive_budget),
            datagrams: QueueBudget::new(config.datagram_budget),
            shortage: Shortage::new(config.receive_budget),
            ..Self::default()
        }
    }

    /// Receives the bytes of a stream that `message` carries. `rtt` is the round trip to the peer,
    /// if known.
    pub(super) fn take(
        &mut self,
        now: Instant,
        s: &mut Stream,
        message: Bytes,
        rtt: Option<Duration>,
    ) -> Taken {
        let len = payload(&message).len();
        self.count_payload(now, s, len);
        if len == 0 {
            return Taken::Nothing;
        }
        if self.has_credit {
            if let Err(excess) = s.recv.window.receive(len) {
                return Taken::Overrun(excess);
            }
        } else {
            s.recv.window.count(len);
        }
        if s.recv.discards {
            s.recv.window.consume(len);
            self.queue_grant(s);
            return Taken::Nothing;
        }
        let copies = self.copies(len, self.held(), self.config.receive_budget);
        let buffer = &mut s.recv.buffer;
        buffer.push(message, copies, &mut self.bytes);
        if s.life.state().is_pending() {
            let unread = s.recv.unread();
            self.early.update(&mut s.recv.early, unread);
        }
        self.lending.note_piece(now, s.id(), len);
        let mut give_up = None;
        if !self.has_credit {
            let full = self.is_full(s);
            // Nobody waits for data that no reader can have.
            let waits = !full && !s.recv.expendable;
            let (stalls, config) = (&mut self.stalls, &self.config);
            give_up = stalls.taken(now, s.id(), len, full, waits, config);
        } else if self.early.is_too_much(&s.recv.early) {
            return Taken::TooEarly;
        } else if let Some(rtt) = rtt {
            let id = s.id();
            let window = &mut s.recv.window;
            if self.lending.resize(now, id, window, rtt, &self.config) {
                self.queue_grant(s);
            }
        }
        Taken::Kept { give_up }
    }

    /// Receives the datagram that `message` carries. A full queue drops its oldest one. Until the
    /// flow is accepted, that is a queue with as much as a stream may have early.
    pub(super) fn take_datagram(&mut self, now: Instant, s: &mut Stream, message: Bytes) -> Taken {
        let len = payload(&message).len();
        self.count_payload(now, s, len);
        s.recv.window.count(len);
        if s.recv.discards {
            return Taken::Nothing;
        }
        if len > MAX_DATAGRAM {
            self.dropped += 1;
            return Taken::Nothing;
        }
        let held = self.datagrams.memory();
        let copies = self.copies(len, held, self.config.datagram_budget);
        let (config, buffer) = (&self.config, &mut s.recv.buffer);
        let most = match s.life.state().is_pending() {
            true => config.datagram_buffer.min(EARLY_DATA as usize),
            false => config.datagram_buffer,
        };
        while buffer.pieces() >= config.datagram_queue
            || (!buffer.is_empty() && buffer.len() + len > most)
        {
            if buffer.pop(&mut self.datagrams).is_none() {
                break;
            }
            self.dropped += 1;
        }
        if self.datagrams.has_room(len) {
            buffer.push_datagram(message, copies, &mut self.datagrams);
        } else {
            self.dropped += 1;
        }
        Taken::Kept { give_up: None }
    }

    /// Whether a payload is copied, so that it does not keep a buffer of the transport alive.
    fn copies(&self, len: usize, held: usize, budget: usize) -> bool {
        self.thrifty || (len < Self::SHARED_MIN && held > budget / Self::SHARED_PART)
    }

    fn count_payload(&mut self, now: Instant, s: &mut Stream, len: usize) {
        self.received += len as u64;
        s.recv.talk.hear(now);
    }

    /// The next bytes of a stream, or the next datagram of a flow, for the application.
    pub(super) fn read(&mut self, now: Instant, s: &mut Stream) -> Option<Chunk> {
        let chunk = self.pop(now, s);
        self.shortage.shrink(self.held());
        chunk
    }

    /// As [`read`](Self::read). What is returned counts as held until the next call, and `kept`
    /// bytes of earlier calls.
    #[cfg(feature = "mux")]
    pub(super) fn lend(&mut self, now: Instant, s: &mut Stream, kept: usize) -> Option<Chunk> {
        let chunk = self.pop(now, s);
        self.set_taken(s, kept + chunk.as_ref().map_or(0, Chunk::len));
        chunk
    }

    /// Whether reading the stream may end the stall.
    #[cfg(feature = "mux")]
    pub(super) fn is_stalled_by(&self, stream: StreamId) -> bool {
        self.stalls.stalled() == Some(stream)
    }

    fn pop(&mut self, now: Instant, s: &mut Stream) -> Option<Chunk> {
        if s.proto() == Proto::Udp {
            return s.recv.buffer.pop(&mut self.datagrams);
        }
        let chunk = s.recv.buffer.pop(&mut self.bytes)?;
        self.early.shrink(&mut s.recv.early, s.recv.buffer.len());
        s.recv.window.consume(chunk.len());
        self.queue_grant(s);
        if self.stalls.read(s.id(), chunk.len()) && self.has_room(s) {
            self.stalls.end(now, &self.config);
        }
        Some(chunk)
    }

    /// The application still has `bytes` of what it took from the stream.
    fn set_taken(&mut self, s: &mut Stream, bytes: usize) {
        self.taken -= core::mem::replace(&mut s.recv.taken, bytes);
        self.taken += bytes;
        self.shortage.shrink(self.held());
    }

    /// The stream was accepted, or its data was dropped: it holds no early data any more.
    pub(super) fn settle(&mut self, s: &mut Stream) {
        self.early.settle(&mut s.recv.early);
    }

    /// Discards received and future data of the stream, and grants the credit for it.
    pub(super) fn discard(&mut self, s: &mut Stream) {
        s.recv.discards = true;
        s.recv.window.consume(s.recv.unread());
        self.drop_unread(s);
        self.queue_grant(s);
    }

    /// Discards the received data of the stream. The application drops what it has taken.
    pub(super) fn drop_unread(&mut self, s: &mut Stream) {
        let budget = match s.proto() {
            Proto::Tcp => &mut self.bytes,
            Proto::Udp => &mut self.datagrams,
        };
        s.recv.buffer.clear(budget);
        self.settle(s);
        self.set_taken(s, 0);
        self.stalls.forget(s.id());
    }

    /// The peer has finished the stream, so it does not keep the transport waiting any more.
    pub(super) fn finish(&mut self, s: &Stream) {
        self.stalls.forget(s.id());
    }

    /// The stream has ended: nothing more arrives. Received data can still be read.
    pub(super) fn retire(&mut self, s: &mut Stream) {
        self.lending.give_back(&s.recv.window);
        self.stalls.forget(s.id());
    }

    /// Queues a WINDOW for the stream if one is due.
    fn queue_grant(&mut self, s: &mut Stream) {
        let open = s.life.state().can_receive() && s.proto() == Proto::Tcp;
        if open && self.has_credit && s.recv.window.grant_is_due() {
            self.grants.push(s.id(), &mut s.recv.grant);
        }
    }

    /// The next WINDOW to send.
    pub(super) fn next_grant(&mut self, streams: &mut Streams) -> Option<Frame> {
        while let Some(id) = self.grants.pop() {
            let Some(s) = streams.get_mut(id) else {
                continue;
            };
            s.recv.grant.leave();
            if s.life.state().can_receive() {
                let credit = s.recv.window.take_grant();
                let id = s.wire_id();
                return Some(Frame::Window { id, credit });
            }
        }
        None
    }

    /// The transport has ended: no more WINDOWs.
    pub(super) fn close(&mut self) {
        self.grants.clear();
    }

    /// Ends the stall if its stream has room now, or is gone.
    pub(super) fn reconsider_stall(&mut self, now: Instant, streams: &Streams) {
        if let Some(stalled) = self.stalls.stalled() {
            if streams.get(stalled).is_none_or(|s| self.has_room(s)) {
                self.stalls.end(now, &self.config);
            }
        }
    }

    /// Checks at the deadline whether the transport stays unread for want of room.
    pub(super) fn look_at_shortage(&mut self, now: Instant) {
        self.shortage.look(now, self.held());
    }

    /// Checks at the deadline whether the stall continues. Returns the stream to reset, if any.
    pub(super) fn look_at_stall(&mut self, now: Instant, streams: &Streams) -> Option<StreamId> {
        self.reconsider_stall(now, streams);
        let stall = self.stalls.due(now)?;
        // What has ended can stall nothing more.
        let open = |s: &&Stream| s.proto() == Proto::Tcp && s.life.state().can_receive();
        let all: usize = streams.iter().filter(open).map(|s| self.beyond(s)).sum();
        let reach = self.config.v1_reach.saturating_sub(all);
        let half = self.config.receive_budget / 2;
        let room = reach.min(half.saturating_sub(self.unread()));
        let waits = self.others_wait(now, streams, &stall);
        let beyond = streams.get(stall.stream()).map_or(0, |s| self.beyond(s));
        self.stalls.look(now, waits, beyond, room, &self.config)
    }

    /// Whether another stream waits to receive.
    fn others_wait(&self, now: Instant, streams: &Streams, stall: &Stall) -> Waits {
        let open = |s: &&Stream| {
            let is_read = !s.recv.discards && !s.recv.expendable;
            s.id() != stall.stream() && s.life.state().can_receive() && is_read && !self.is_full(s)
        };
        let slack = self.config.v1_stall;
        let waits = |s: &Stream| s.recv.talk.waits(now, stall, slack, self.asks);
        let others = streams.iter().filter(open);
        others.map(waits).max().unwrap_or(Waits::No)
    }

    /// Whether a v1 stream holds as much as it may. A full stream waits only for its reader.
    fn is_full(&self, s: &Stream) -> bool {
        s.recv.unread() >= self.limit_of(s)
    }

    /// Bytes that a v1 stream holds because a stall had to reach behind them.
    fn beyond(&self, s: &Stream) -> usize {
        s.recv.unread().saturating_sub(self.limit_of(s))
    }

    /// Most bytes that a v1 stream may hold before it stalls the tunnel.
    fn limit_of(&self, s: &Stream) -> usize {
        let buffer = self.config.v1_stream_buffer;
        match self.early.is_too_much(&s.recv.early) {
            true => buffer.min(EARLY_DATA as usize),
            false => buffer,
        }
    }

    /// Whether a stall of the stream has ended. With less room the next message would begin a new
    /// stall with a new deadline.
    fn has_room(&self, s: &Stream) -> bool {
        let limit = self.config.v1_stream_buffer;
        let limit = limit.saturating_sub(Stalls::PROGRESS);
        s.recv.unread() <= limit && !self.early.is_too_much(&s.recv.early)
    }

    /// The transport has ended. Returns the stream whose reader was paused or too slow, and for how
    /// long.
    pub(super) fn blame(&mut self, now: Instant) -> Option<(StreamId, Duration)> {
        self.stalls.blame(now, &self.config)
    }

    /// All streams may hold that many bytes, for the sake of other sessions.
    pub(super) fn set_share(&mut self, share: Option<usize>) {
        self.shortage.set_share(share, self.held());
    }

    /// While pressed, windows do not grow.
    pub(super) fn set_pressed(&mut self, pressed: bool) {
        self.lending.stop(pressed);
    }

    /// While thrifty, payloads are copied.
    pub(super) fn set_thrifty(&mut self, thrifty: bool) {
        self.thrifty = thrifty;
    }

    /// Whether there is credit to announce.
    pub(super) fn has_grant(&self) -> bool {
        !self.grants.is_empty()
    }

    /// Whether the transport may be read.
    pub(super) fn may_receive(&self) -> bool {
        self.stalls.may_receive() && self.shortage.may_receive()
    }

    /// When to check again whether the transport may be read.
    pub(super) fn next_look(&self) -> Option<Instant> {
        earliest(self.stalls.until(), self.shortage.until())
    }

    /// Byte streams hold more than before. Stops the transport while that helps. Returns the stream
    /// to reset if they exceed the budget: of the expendable ones, or else of all, the one that
    /// holds most.
    pub(super) fn bound(&mut self, now: Instant, streams: &Streams) -> Option<StreamId> {
        let bytes = || streams.iter().filter(|s| s.proto() == Proto::Tcp);
        let helps = || !bytes().any(|s| s.recv.is_first_victim());
        self.shortage.grow(now, self.held(), helps);
        if !self.bytes.is_over() {
            return None;
        }
        let victim = bytes().max_by_key(|s| (s.recv.is_first_victim(), s.recv.unread()));
        victim.map(Stream::id)
    }

    /// There were many more streams before.
    pub(super) fn shrink(&mut self) {
        self.grants.shrink();
    }

    /// Bytes that all streams and flows hold.
    pub(super) const fn unread(&self) -> usize {
        self.bytes.bytes() + self.datagrams.bytes()
    }

    /// Bytes of streams, unread or taken.
    const fn held(&self) -> usize {
        self.bytes.bytes() + self.taken
    }

    /// As [`unread`](Self::unread), with what applications have taken and the overhead of
    /// datagrams.
    pub(super) const fn memory(&self) -> usize {
        self.held() + self.datagrams.memory()
    }

    pub(super) fn count(&self, stats: &mut Stats) {
        stats.bytes_received = self.received;
        stats.datagrams_dropped_receiving = self.dropped;
        stats.unread = self.unread();
    }

    /// Whether budgets and totals match the streams.
    pub(super) fn audit(&self, streams: &Streams) -> bool {
        let buffers = |proto| {
            let of_proto = streams.iter().filter(move |s| s.proto() == proto);
            of_proto.map(|s| (s.recv.buffer.pieces(), s.recv.buffer.len()))
        };
        let live = streams.iter().filter(|s| !s.life.is_closed());
        self.taken == streams.iter().map(|s| s.recv.taken).sum::<usize>()
            && self.bytes.audit(buffers(Proto::Tcp))
            && self.datagrams.audit(buffers(Proto::Udp))
            && self.lending.audit(live.map(|s| &s.recv.window))
            && self.early.audit(streams.iter().map(|s| &s.recv.early))
    }
}

impl RecvHalf {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            buffer: ReceiveBuffer::default(),
            taken: 0,
            window: ReceiveWindow::new(now),
            grant: Place::default(),
            early: Excess::default(),
            talk: Conversation::new(now),
            discards: false,
            expendable: false,
        }
    }

    pub(super) const fn set_expendable(&mut self, expendable: bool) {
        self.expendable = expendable;
    }

    /// Whether this is to go before others that hold more.
    pub(super) fn is_first_victim(&self) -> bool {
        self.expendable && self.unread() > 0
    }

    /// CONNECT or CONNECTED has come for the stream.
    pub(super) fn note_opening(&mut self, now: Instant) {
        self.talk.begin(now);
    }

    /// This end has sent something on the stream.
    pub(super) fn note_asked(&mut self, now: Instant) {
        self.talk.ask(now);
    }

    /// Bytes that the peer may still send.
    pub(super) fn credit(&self) -> u64 {
        self.window.credit()
    }

    /// Bytes not read.
    pub(super) const fn unread(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing is unread, and the application still has `taken` bytes.
    #[cfg(feature = "mux")]
    pub(super) fn holds_only(&self, taken: usize) -> bool {
        self.buffer.is_empty() && self.taken == taken
    }

    /// Bytes not read, or taken and not used yet.
    pub(super) const fn held(&self) -> usize {
        self.buffer.len() + self.taken
    }

    /// Pieces not read: for a flow, datagrams.
    pub(super) fn pieces(&self) -> usize {
        self.buffer.pieces()
    }

    /// Payload bytes received.
    pub(super) const fn received(&self) -> u64 {
        self.window.received()
    }
}
