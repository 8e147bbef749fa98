//! Data that waits to be sent, the peer's credit, and the order of streams.

mod credit;
mod pace;
mod queue;
mod schedule;

use bytes::Bytes;

use self::credit::Credit;
use self::pace::Pace;
use self::queue::SendQueue;
use self::schedule::{Schedule, Turn};
use super::budget::QueueBudget;
use super::events::Events;
use super::ready::{List, Place};
use super::stream::Stream;
use super::streams::Streams;
use super::{Config, Instant, Stats, StreamId};
use crate::wire::{Chunk, Header, Kind, Proto};

/// The sending half of a session: queues, the budgets on them, and the order.
#[derive(Debug, Default)]
pub(super) struct Sending {
    config: Config,
    /// Bytes queued on byte streams.
    bytes: QueueBudget,
    /// Datagrams queued on flows.
    datagrams: QueueBudget,
    schedule: Schedule,
    pace: Pace,
    /// Flows with something to send.
    flows: List,
    /// Datagrams sent since the last piece of a stream.
    flow_run: u32,
    /// Streams that wait for the send budget.
    waiting: List,
    /// Room kept for streams that were told to send and have not sent yet.
    promised: usize,
    /// No promise lapses.
    keeping: bool,
    /// Promises of earlier epochs have lapsed.
    epoch: u64,
    pressed: bool,
    /// Memory is short: pieces are small.
    sparing: bool,
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
    promise: Promise,
    /// Bytes queued since the stream last had nothing to send.
    burst: usize,
    /// It had queued as much as the reserve before its last bytes, so these do not go first.
    bulk: bool,
    /// CLOSE follows the queued data.
    finishing: bool,
    /// How often credit came since something was sent.
    grants: u8,
}

/// Room that is kept for a stream until it sends, passes it on, or everything queued was sent.
#[derive(Debug, Default, Clone, Copy)]
struct Promise {
    bytes: usize,
    epoch: u64,
}

/// The next thing to send.
#[derive(Debug)]
pub(super) enum Outgoing {
    Data(Bytes),
    /// The stream has sent everything and sends CLOSE.
    Close(StreamId),
}

impl Sending {
    /// Bytes that a stream may queue however much the others have queued, unless it is bulk.
    const RESERVE: usize = 4096;
    /// Most bytes of one message while memory is short.
    const SPARING_PIECE: usize = 16 << 10;
    /// Queued chunks shorter than this are joined, because the overhead of a chunk would exceed its
    /// bytes.
    const SMALL: usize = 256;
    /// Most datagrams in a row while streams wait.
    const MAX_FLOW_RUN: u32 = 16;

    pub(super) fn new(config: &Config) -> Self {
        Self {
            config: config.clone(),
            bytes: QueueBudget::new(config.send_budget),
            datagrams: QueueBudget::new(config.datagram_budget),
            ..Self::default()
        }
    }

    /// Queues bytes of a stream without a copy, unless they are few. Returns them if they exceed
    /// the credit or there is no room.
    pub(super) fn push(&mut self, s: &mut Stream, chunk: Chunk) -> Result<(), Chunk> {
        if chunk.len() > s.send.credit() || self.capacity(&s.send) == 0 {
            return Err(chunk);
        }
        self.queue(s, chunk);
        Ok(())
    }

    /// Queues as much of the chunk as there is room for, as [`push`](Self::push) does. Returns how
    /// many bytes; the chunk keeps the rest.
    #[cfg(feature = "mux")]
    pub(super) fn push_part(&mut self, s: &mut Stream, chunk: &mut Chunk) -> usize {
        let taken = self.capacity(&s.send).min(chunk.len());
        if taken > 0 {
            let part = match taken < chunk.len() {
                true => chunk.split_to(taken),
                false => core::mem::take(chunk),
            };
            self.queue(s, part);
        }
        taken
    }

    fn queue(&mut self, s: &mut Stream, chunk: Chunk) {
        let half = &mut s.send;
        self.redeem(half, chunk.len());
        if chunk.len() < Self::SMALL && !half.queue.is_empty() {
            let piece = self.config.max_piece;
            half.queue
                .push_slice(chunk.payload(), piece, &mut self.bytes);
        } else {
            half.queue.push(chunk, &mut self.bytes);
        }
        s.notice.want_writable(false);
        self.activate(s);
    }

    /// Queues a copy of as many bytes as there is room for. Returns how many.
    pub(super) fn push_slice(&mut self, s: &mut Stream, bytes: &[u8]) -> usize {
        let capacity = self.capacity(&s.send);
        let taken = bytes.get(..capacity).unwrap_or(bytes);
        if taken.is_empty() {
            return 0;
        }
        self.redeem(&mut s.send, taken.len());
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

    /// A stream that wants to send takes the next step towards it: it waits for credit, for its own
    /// queue, or in line for the send budget; or it is told. [`wake`](Self::wake) has to follow.
    pub(super) fn line_up(&mut self, s: &mut Stream, events: &mut Events) {
        let id = s.id();
        let half = &mut s.send;
        if !s.notice.wants_writable() || half.credit() == 0 || self.is_stream_full(half) {
            return;
        }
        if self.promise(half) > 0 || self.reserve(half) > 0 {
            events.writable(s);
        } else if !self.pressed {
            self.waiting.push(id, &mut half.waiting);
        }
    }

    /// The stream has nothing to send for now: others get the room that was kept for it.
    /// [`wake`](Self::wake) has to follow.
    pub(super) fn pass(&mut self, s: &mut Stream) {
        s.notice.want_writable(false);
        self.take_back(&mut s.send);
    }

    fn take_back(&mut self, half: &mut SendHalf) {
        self.promised -= self.promise(half);
        half.promise.bytes = 0;
    }

    /// CLOSE follows the queued data. [`wake`](Self::wake) has to follow.
    pub(super) fn finish(&mut self, s: &mut Stream, events: &mut Events) {
        // Nobody can send any more.
        events.writable(s);
        self.pass(s);
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
                let quantum = self.piece();
                let bulk = s.send.bulk;
                self.schedule.activate(id, &mut s.send.turn, quantum, bulk);
            }
            Proto::Udp => self.flows.push(id, &mut s.send.flow),
        }
    }

    /// The stream has ended: drops its queue. [`wake`](Self::wake) has to follow.
    pub(super) fn retire(&mut self, s: &mut Stream) {
        self.take_back(&mut s.send);
        let budget = match s.proto() {
            Proto::Tcp => &mut self.bytes,
            Proto::Udp => &mut self.datagrams,
        };
        s.send.queue.clear(budget);
    }

    /// The next message with data, or the end of a stream: datagrams first, then streams in turn.
    pub(super) fn next(
        &mut self,
        streams: &mut Streams,
        events: &mut Events,
        now: Instant,
    ) -> Option<Outgoing> {
        let streams_wait = !self.held && !self.schedule.is_empty();
        if !streams_wait || self.flow_run < Self::MAX_FLOW_RUN {
            if let Some(message) = self.next_datagram(streams, now) {
                self.flow_run = self.flow_run.saturating_add(1);
                return Some(message);
            }
        }
        self.flow_run = 0;
        if self.held {
            return None;
        }
        self.next_piece(streams, events, now)
            .or_else(|| self.next_datagram(streams, now))
    }

    /// As [`next`](Self::next) after the last data of the only stream. Returns whether this was it.
    #[cfg(feature = "mux")]
    pub(super) fn rest(&mut self, streams: &mut Streams, events: &mut Events) -> bool {
        let only = self.schedule.last();
        let Some(s) = only.and_then(|id| streams.get_mut(id)) else {
            return false;
        };
        let rests = !has_more(s) && s.send.turn.may_send();
        if !rests || self.held || !self.flows.is_empty() {
            return false;
        }
        let quantum = self.piece();
        self.schedule.pop();
        self.schedule
            .sent(s.id(), &mut s.send.turn, 0, false, quantum);
        self.flow_run = 0;
        self.lapse(streams, events);
        true
    }

    fn next_datagram(&mut self, streams: &mut Streams, now: Instant) -> Option<Outgoing> {
        while let Some(id) = self.flows.pop() {
            let Some(s) = streams.get_mut(id) else {
                continue;
            };
            s.send.flow.leave();
            if let Some(datagram) = s.send.queue.pop(usize::MAX, &mut self.datagrams) {
                let message = self.message(s, datagram, now);
                self.activate(s);
                return Some(Outgoing::Data(message));
            }
            if has_close(s) {
                return Some(Outgoing::Close(id));
            }
        }
        None
    }

    fn next_piece(
        &mut self,
        streams: &mut Streams,
        events: &mut Events,
        now: Instant,
    ) -> Option<Outgoing> {
        let quantum = self.piece();
        while let Some(id) = self.schedule.pop() {
            let Some(s) = streams.get_mut(id) else {
                continue;
            };
            if self.schedule.defer(id, &mut s.send.turn, quantum) {
                continue;
            }
            let Some(chunk) = s.send.queue.pop(self.config.max_piece, &mut self.bytes) else {
                let close = has_close(s);
                self.schedule.sent(id, &mut s.send.turn, 0, false, quantum);
                if close {
                    return Some(Outgoing::Close(id));
                }
                continue;
            };
            let len = chunk.len();
            self.pace.sent(len, now);
            let message = self.message(s, chunk, now);
            let more = has_more(s);
            self.schedule.sent(id, &mut s.send.turn, len, more, quantum);
            self.line_up(s, events);
            self.wake(streams, events);
            return Some(Outgoing::Data(message));
        }
        self.lapse(streams, events);
        None
    }

    /// Everything was sent. If those who were told to send have not done so since, others get the
    /// room.
    fn lapse(&mut self, streams: &mut Streams, events: &mut Events) {
        let told = events.is_empty() && !self.keeping;
        if told && self.promised > 0 {
            self.epoch = self.epoch.wrapping_add(1);
            self.promised = 0;
            self.wake(streams, events);
        }
    }

    fn message(&mut self, s: &mut Stream, chunk: Chunk, now: Instant) -> Bytes {
        let len = chunk.len();
        self.sent += len as u64;
        s.send.credit.spend(len);
        s.send.grants = 0;
        s.recv.note_asked(now);
        chunk.seal(Header {
            kind: Kind::Data,
            proto: s.proto(),
            id: s.wire_id(),
            port: 0,
        })
    }

    /// Tells streams that wait for the send budget to send, first come first served, and only as
    /// many as there is room for. The room is kept for them.
    #[inline]
    pub(super) fn wake(&mut self, streams: &mut Streams, events: &mut Events) {
        if !self.waiting.is_empty() {
            self.wake_waiting(streams, events);
        }
    }

    fn wake_waiting(&mut self, streams: &mut Streams, events: &mut Events) {
        while !self.waiting.is_empty() && (self.pressed || self.has_room()) {
            let Some(s) = self.waiting.pop().and_then(|id| streams.get_mut(id)) else {
                continue;
            };
            let half = &mut s.send;
            half.waiting.leave();
            let room = match self.pressed {
                true => self.reserve(half),
                false if self.is_stream_full(half) => 0,
                false => self.piece(),
            };
            let bytes = room.min(half.credit());
            if s.notice.wants_writable() && bytes > 0 {
                let epoch = self.epoch;
                self.promised += bytes;
                half.promise = Promise { bytes, epoch };
                events.writable(s);
            }
        }
    }

    /// While pressed, streams queue little.
    pub(super) fn set_pressed(
        &mut self,
        pressed: bool,
        streams: &mut Streams,
        events: &mut Events,
    ) {
        if self.pressed != pressed {
            self.pressed = pressed;
            self.wake(streams, events);
        }
    }

    /// While sparing, pieces are small.
    pub(super) fn set_sparing(&mut self, sparing: bool) {
        self.sparing = sparing;
    }

    /// While keeping, writers that were told have not had their chance to send.
    #[cfg(feature = "mux")]
    pub(super) fn set_keeping(&mut self, keeping: bool) {
        self.keeping = keeping;
    }

    /// While held, only datagrams are taken.
    pub(super) fn set_held(&mut self, held: bool) {
        self.held = held;
    }

    /// Bytes that the stream accepts now.
    pub(super) fn capacity(&self, half: &SendHalf) -> usize {
        let room = match self.promise(half) {
            0 if self.is_stream_full(half) => 0,
            0 if self.waiting.is_empty() && self.has_room() => self.piece(),
            0 => self.reserve(half),
            promised => promised,
        };
        room.min(half.credit())
    }

    /// Room that is kept for the stream.
    fn promise(&self, half: &SendHalf) -> usize {
        match half.promise.epoch == self.epoch {
            true => half.promise.bytes,
            false => 0,
        }
    }

    /// The stream queues so many bytes.
    fn redeem(&mut self, half: &mut SendHalf, len: usize) {
        let promised = self.promise(half);
        if promised == 0 && half.turn.is_idle() {
            half.burst = 0;
        }
        half.bulk = half.burst >= Self::RESERVE;
        half.burst = half.burst.saturating_add(len);
        // What is left is kept only if it is no tiny piece.
        let left = promised.saturating_sub(len);
        let left = if left < Self::RESERVE { 0 } else { left };
        half.promise.bytes = left;
        self.promised -= promised - left;
    }

    /// Most bytes of one message now.
    fn piece(&self) -> usize {
        if self.sparing {
            return self.config.contended_piece.min(Self::SPARING_PIECE);
        }
        match self.schedule.is_contended() || !self.pace.is_fast() {
            true => self.config.contended_piece,
            false => self.config.max_piece,
        }
    }

    /// Bytes that the stream accepts without room in the budget: all of the reserve or nothing,
    /// so that pieces stay whole.
    fn reserve(&self, half: &SendHalf) -> usize {
        match half.queue.is_empty() && (self.pressed || !self.is_bulk(half)) {
            true => Self::RESERVE.min(self.piece()),
            false => 0,
        }
    }

    /// Whether the stream has queued as much as the reserve since it last had nothing to send.
    fn is_bulk(&self, half: &SendHalf) -> bool {
        let has_more = !half.turn.is_idle() || half.waiting.is_taken() || self.promise(half) > 0;
        half.burst >= Self::RESERVE && has_more
    }

    fn is_stream_full(&self, half: &SendHalf) -> bool {
        half.queue.len() >= self.config.stream_send_buffer
    }

    /// Whether the budget has room for a piece. It is exceeded by at most one piece, so that pieces
    /// stay whole.
    fn has_room(&self) -> bool {
        let held = self.bytes.bytes() + self.promised;
        !self.pressed && (held < self.config.send_budget || held == 0)
    }

    pub(super) fn has_output(&self) -> bool {
        !self.flows.is_empty() || (!self.held && !self.schedule.is_empty())
    }

    /// Whether no data is held, and no room kept that may lapse.
    #[cfg(feature = "mux")]
    pub(super) const fn is_at_rest(&self) -> bool {
        !self.held && self.promised == 0 && self.flow_run == 0
    }

    /// There were many more streams before.
    pub(super) fn shrink(&mut self) {
        self.schedule.shrink();
        self.flows.shrink();
        self.waiting.shrink();
    }

    /// As [`unsent`](Self::unsent), with the overhead of datagrams.
    pub(super) const fn memory(&self) -> usize {
        self.bytes.bytes() + self.datagrams.memory()
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

    /// Whether the budgets match the queues of the streams.
    pub(super) fn audit(&self, streams: &Streams) -> bool {
        let queues = |proto| {
            let of_proto = streams.iter().filter(move |s| s.proto() == proto);
            of_proto.map(|s| (s.send.queue.pieces(), s.send.queue.len()))
        };
        let promised: usize = streams.iter().map(|s| self.promise(&s.send)).sum();
        self.bytes.audit(queues(Proto::Tcp))
            && self.datagrams.audit(queues(Proto::Udp))
            && self.promised == promised
    }
}

impl SendHalf {
    /// Grants after which further ones are of no use until something was sent. A window is granted
    /// in a few parts.
    const GRANTS: u8 = 16;

    pub(super) fn new(credit: u64, early: Option<u64>) -> Self {
        let credit = Credit::new(credit, early);
        Self {
            credit,
            ..Self::default()
        }
    }

    /// The connection was accepted: all of the credit may be used.
    pub(super) fn establish(&mut self) {
        self.credit.establish();
    }

    /// Adds credit. `None` if the sum overflows, otherwise whether it may be of use.
    pub(super) fn grant(&mut self, credit: u32) -> Option<bool> {
        self.credit.grant(credit)?;
        self.grants = self.grants.saturating_add(1);
        Some(self.grants <= Self::GRANTS)
    }

    /// Whether the application has ended this direction.
    pub(super) const fn is_finishing(&self) -> bool {
        self.finishing
    }

    /// Bytes queued.
    pub(super) const fn unsent(&self) -> usize {
        self.queue.len()
    }

    /// Entries queued: for a flow, datagrams.
    pub(super) fn pieces(&self) -> usize {
        self.queue.pieces()
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
