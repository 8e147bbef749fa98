use alloc::collections::{BTreeSet, VecDeque};
use core::time::Duration;

use bytes::Bytes;

use super::control::{Cause, ControlQueue};
use super::ids::{IdAllocator, Tombstones};
use super::keepalive::Keepalive;
use super::pool::Datagrams;
use super::receiving::Early;
use super::receiving::{Pause, Stall};
use super::sending::Schedule;
use super::stream::Stream;
use super::streams::Streams;
use super::{
    Config, Event, Instant, OpenError, Reason, Recv, Reset, Role, State, Stats, StreamError,
    StreamId, Version,
};
use crate::wire::{ClientId, Frame, Proto};

/// One end of one tunnel. See the [module](super) for how to drive it.
///
/// A stream is there from open or [`Event::Incoming`] until [`release`](Self::release), however it ended.
#[derive(Debug)]
pub struct Session {
    pub(super) role: Role,
    pub(super) version: Version,
    pub(super) config: Config,

    pub(super) streams: Streams,
    ids: IdAllocator,
    pub(super) graves: Tombstones,
    /// Connections that wait to be accepted.
    pub(super) backlog: usize,
    pub(super) early: Early,
    pub(super) pressed: bool,
    pub(super) thrifty: bool,

    pub(super) control: ControlQueue,
    /// Streams with credit to announce.
    pub(super) grants: VecDeque<StreamId>,
    /// Flows with datagrams to send.
    pub(super) flows: VecDeque<StreamId>,
    /// Datagrams sent since the last piece of a stream.
    pub(super) flow_run: u32,
    pub(super) schedule: Schedule,
    /// Streams that wait for `send_budget`.
    pub(super) waiting: VecDeque<StreamId>,

    pub(super) events: VecDeque<Event>,
    /// Streams one direction of which is given up at a time.
    pub(super) deadlines: BTreeSet<(Instant, u32)>,
    pub(super) keepalive: Keepalive,
    pub(super) stall: Option<Stall>,
    pub(super) last_pause: Option<Pause>,

    /// Bytes of windows lent beyond what every stream has.
    pub(super) lent: usize,
    /// The stream that last received a small piece, and when: somebody waits for an answer there.
    pub(super) small_data: Option<(StreamId, Instant)>,
    /// The datagrams in `Stats::unread` and `Stats::unsent`.
    pub(super) datagrams_unread: Datagrams,
    pub(super) datagrams_unsent: Datagrams,
    pub(super) stats: Stats,

    draining: bool,
    peer_draining: bool,
    closed: bool,
}

impl Session {
    /// A new tunnel. `version` is what the handshake agreed on; `now` is the current time.
    #[must_use]
    pub fn new(role: Role, version: Version, config: Config, now: Instant) -> Self {
        let config = config.clamped();
        Self {
            role,
            version,
            streams: Streams::default(),
            ids: IdAllocator::starting_at(config.first_id.unwrap_or(1)),
            graves: Tombstones::new(config.max_streams),
            backlog: 0,
            early: Early::default(),
            pressed: false,
            thrifty: false,
            control: ControlQueue::default(),
            grants: VecDeque::new(),
            flows: VecDeque::new(),
            flow_run: 0,
            schedule: Schedule::default(),
            waiting: VecDeque::new(),
            events: VecDeque::new(),
            deadlines: BTreeSet::new(),
            keepalive: Keepalive::new(version, &config, now),
            stall: None,
            last_pause: None,
            lent: 0,
            small_data: None,
            datagrams_unread: Datagrams::default(),
            datagrams_unsent: Datagrams::default(),
            stats: Stats::default(),
            draining: false,
            peer_draining: false,
            closed: false,
            config,
        }
    }

    /// Opens a byte stream to `port` at the other side. Data may be sent at once.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_tcp(&mut self, port: u16, now: Instant) -> Result<StreamId, OpenError> {
        self.open(Proto::Tcp, port, now)
    }

    /// Opens a datagram flow to `port` at the other side. Datagrams may be sent at once.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_udp(&mut self, port: u16, now: Instant) -> Result<StreamId, OpenError> {
        self.open(Proto::Udp, port, now)
    }

    fn open(&mut self, proto: Proto, port: u16, now: Instant) -> Result<StreamId, OpenError> {
        if self.closed {
            return Err(OpenError::Closed);
        }
        if self.role != Role::Opener {
            return Err(OpenError::NotOpener);
        }
        if self.draining || self.peer_draining {
            return Err(OpenError::Draining);
        }
        if self.streams.len() >= self.config.max_streams {
            return Err(OpenError::Limit(self.config.max_streams));
        }
        if self.control.len() >= self.config.max_streams {
            return Err(OpenError::Congested);
        }
        let (streams, graves) = (&self.streams, &self.graves);
        let id = self
            .ids
            .allocate(|id| streams.find(id).is_some() || graves.contains(id));
        self.push_control(Frame::Connect { proto, id, port });
        self.stats.opened += 1;
        // Now, while nothing queues yet.
        self.keepalive.want_sample(now);
        Ok(self.insert(id, proto, State::Connecting, now))
    }

    pub(super) fn insert(
        &mut self,
        id: ClientId,
        proto: Proto,
        state: State,
        now: Instant,
    ) -> StreamId {
        let version = self.version;
        self.streams.insert(id, |generation| {
            Stream::new(generation, id, proto, state, version, now)
        })
    }

    /// Accepts a connection of [`Event::Incoming`].
    ///
    /// # Errors
    /// [`StreamError::Reset`] when the peer gave up meanwhile, [`StreamError::WrongState`] when it was
    /// answered before.
    pub fn accept(&mut self, stream: StreamId, now: Instant) -> Result<(), StreamError> {
        let s = Self::checked(&mut self.streams, stream)?;
        s.state = match s.state.after_accept() {
            Some(next) => next,
            None if s.state == State::Closed => {
                let text = "closed by the other side";
                return Err(StreamError::Reset(Reset::new(Reason::Gone, text)));
            }
            None => return Err(StreamError::WrongState),
        };
        let (proto, id) = (s.proto, s.id);
        self.early.settle(s);
        self.backlog -= 1;
        self.push_control(Frame::Connected { proto, id });
        self.keepalive.want_sample(now);
        self.schedule_output(stream.slot);
        self.reconsider_stall(now);
        Ok(())
    }

    /// Refuses a connection of [`Event::Incoming`] and releases it. Does nothing if it is gone already.
    pub fn reject(&mut self, stream: StreamId, reason: Reason, text: &str) {
        self.reset(stream, reason, text);
        if let Some(s) = self.streams.get_mut(stream) {
            s.flags.released = true;
            self.clean_up(stream.slot);
        }
    }

    /// Takes what was received on a stream or flow.
    ///
    /// Reading grants the peer new credit, so [`poll_transmit`](Self::poll_transmit) may have something to
    /// say. Data that came before a reset is still read first.
    ///
    /// # Errors
    /// [`StreamError::Reset`] once, and after, all data was read.
    pub fn recv(&mut self, stream: StreamId, now: Instant) -> Result<Recv, StreamError> {
        let s = self.streams.get_mut(stream).ok_or(StreamError::Unknown)?;
        let Some(chunk) = s.unread.pop() else {
            return match &s.reset {
                Some(reset) => Err(StreamError::Reset((**reset).clone())),
                None if s.state.can_receive() => Ok(Recv::Blocked),
                None => Ok(Recv::Finished),
            };
        };
        self.stats.unread -= chunk.len();
        if s.proto == Proto::Udp {
            self.datagrams_unread.remove(1, chunk.len());
        } else {
            s.window.consume(chunk.len());
        }
        self.queue_grant(stream.slot);
        self.note_progress(stream.slot, chunk.len(), now);
        Ok(Recv::Data(chunk))
    }

    /// Says CLOSE after what was sent: the peer reads to the end and may go on sending.
    ///
    /// A datagram flow ends in both directions.
    pub fn finish(&mut self, stream: StreamId) {
        if let Some(s) = self.streams.get_mut(stream) {
            s.finishing = true;
            self.schedule_output(stream.slot);
        }
    }

    /// Ends both directions of a stream at once. What was queued is dropped, what was received can still be
    /// read.
    ///
    /// The peer learns `reason` and `text` in v2, the text alone in v1 if this end is the acceptor.
    pub fn reset(&mut self, stream: StreamId, reason: Reason, text: &str) {
        if self.streams.get(stream).is_some() {
            self.reset_slot(stream.slot, reason, text);
        }
    }

    /// Throws away what has come and will come on a stream, and lets the peer go on sending it.
    pub fn discard(&mut self, stream: StreamId) {
        if let Some(s) = self.streams.get_mut(stream) {
            s.flags.deaf = true;
            s.window.consume(s.unread.len());
            self.discard_unread(stream.slot);
            self.queue_grant(stream.slot);
        }
    }

    /// Gives the handle back: the last call on every stream.
    ///
    /// What was sent still reaches the peer. If the peer goes on sending, the stream is reset.
    pub fn release(&mut self, stream: StreamId, now: Instant) {
        let Some(s) = self.streams.get_mut(stream) else {
            return;
        };
        if s.state.is_pending() {
            return self.reject(stream, Reason::Gone, "not accepted");
        }
        // With the credit for it, a peer that waits for some goes on and learns that nobody reads.
        self.discard(stream);
        let Some(s) = self.streams.get_mut(stream) else {
            return;
        };
        s.finishing = true;
        s.flags.released = true;
        let finished = matches!(s.state, State::LocalFinished | State::ConnectingFinished);
        if finished && s.deadline.is_none() {
            self.set_deadline(stream.slot, now + self.config.linger);
        }
        self.schedule_output(stream.slot);
        self.clean_up(stream.slot);
    }

    /// Measures the round trip now. v2 only.
    pub fn ping(&mut self) {
        if self.version == Version::V2 {
            self.keepalive.want_ping();
        }
    }

    /// Takes no new connections any more, here and at the peer; open streams go on (GOAWAY in v2).
    pub fn drain(&mut self) {
        if !self.draining && self.version == Version::V2 {
            self.push_control(Frame::GoAway);
        }
        self.draining = true;
    }

    /// Drains and resets every stream with reason gone.
    pub fn shutdown(&mut self) {
        self.drain();
        for slot in self.streams.live() {
            self.reset_slot(slot, Reason::Gone, "shutting down");
        }
    }

    /// The transport has ended: every stream is reset, nothing more is transmitted.
    pub fn handle_closed(&mut self, now: Instant, reason: Reason, text: &str) {
        self.closed = true;
        self.blame_pause(now, reason, text);
        for slot in self.streams.live() {
            self.reset_slot(slot, reason, text);
        }
        self.control.clear();
        self.grants.clear();
        self.deadlines.clear();
    }

    /// The next thing that happened. Of a stream that was released nothing is told any more.
    pub fn poll_event(&mut self) -> Option<Event> {
        while let Some(event) = self.events.pop_front() {
            let wanted = match event {
                Event::Readable(id) => {
                    if let Some(s) = self.streams.get_mut(id) {
                        s.flags.readable_queued = false;
                    }
                    self.is_held(id)
                }
                Event::Writable(id) => {
                    if let Some(s) = self.streams.get_mut(id) {
                        s.flags.writable_queued = false;
                    }
                    self.is_held(id)
                }
                Event::Incoming { stream, .. } => self.is_held(stream),
                Event::Established(id) => self.is_held(id),
                Event::GoAway | Event::PeerDead => true,
            };
            if wanted {
                return Some(event);
            }
        }
        None
    }

    /// Whether [`poll_event`](Self::poll_event) may have something.
    #[must_use]
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.closed {
            return None;
        }
        let linger = self.deadlines.first().map(|(at, _)| *at);
        let stall = self.stall.map(|stall| stall.until);
        [linger, stall, self.keepalive.next_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.closed {
            return;
        }
        self.handle_stall_timeout(now);
        while let Some((at, slot)) = self.deadlines.first().copied() {
            if at > now {
                break;
            }
            let after_stall = self.stall.map(|stall| stall.until + self.config.linger);
            if let Some(later) = after_stall.filter(|later| *later > now) {
                // Its end may wait behind what is not received.
                self.set_deadline(slot, later);
                continue;
            }
            self.deadlines.remove(&(at, slot));
            if let Some(s) = self.streams.slot_mut(slot) {
                s.deadline = None;
            }
            let text = "the other side did not end the connection";
            self.reset_slot(slot, Reason::Gone, text);
        }
        if self.stall.is_some() {
            // Nothing is received, so silence says nothing.
            self.keepalive.heard(now);
        } else if self.keepalive.handle_timeout(now) {
            self.handle_closed(now, Reason::TimedOut, "the tunnel went silent");
            self.events.push_back(Event::PeerDead);
        }
    }

    /// The transport showed life without a message, for instance by a pong of its own.
    pub fn handle_activity(&mut self, now: Instant) {
        self.keepalive.heard(now);
    }

    /// Whether [`poll_transmit`](Self::poll_transmit) may have something.
    #[must_use]
    pub fn has_transmit(&self) -> bool {
        !self.closed
            && (!self.control.is_empty()
                || !self.grants.is_empty()
                || !self.flows.is_empty()
                || !self.schedule.is_empty()
                || self.keepalive.has_output())
    }

    /// Whether the transport may be read. False while a v1 stream is full (see
    /// [`Config::v1_stall`]) or too many answers wait to be transmitted; becomes true again after `recv`,
    /// `poll_transmit`, `release` or `handle_timeout`.
    #[must_use]
    pub fn can_receive(&self) -> bool {
        self.stall.as_ref().is_none_or(Stall::may_receive)
            && self.control.replies() < self.config.max_replies
    }

    /// The state of a stream on the wire.
    #[must_use]
    pub fn state(&self, stream: StreamId) -> Option<State> {
        self.streams.get(stream).map(|s| s.state)
    }

    /// The client id a stream has, or had, on the wire.
    #[must_use]
    pub fn client_id(&self, stream: StreamId) -> Option<ClientId> {
        self.streams.get(stream).map(|s| s.id)
    }

    /// How a stream was reset, if it was.
    #[must_use]
    pub fn reset_of(&self, stream: StreamId) -> Option<&Reset> {
        self.streams.get(stream)?.reset.as_deref()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            streams: self.streams.len(),
            ..self.stats
        }
    }

    /// The round trip to the peer, if it was measured. v2 only.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.keepalive.rtt()
    }

    /// Whether this end or the peer takes no new connections.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.draining || self.peer_draining
    }

    /// Whether there are no streams.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.streams.len() == 0
    }

    /// Whether the transport has ended.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the stream is there and was not released.
    fn is_held(&self, stream: StreamId) -> bool {
        self.streams.get(stream).is_some_and(|s| !s.flags.released)
    }

    pub(super) fn checked(
        streams: &mut Streams,
        stream: StreamId,
    ) -> Result<&mut Stream, StreamError> {
        let s = streams.get_mut(stream).ok_or(StreamError::Unknown)?;
        match &s.reset {
            Some(reset) => Err(StreamError::Reset((**reset).clone())),
            None => Ok(s),
        }
    }

    /// Queues a control message. All that an acceptor says was caused by the peer, in the end.
    pub(super) fn push_control(&mut self, frame: Frame<Bytes>) {
        let cause = match self.role {
            Role::Opener => Cause::Own,
            Role::Acceptor => Cause::Reply,
        };
        self.control.push(frame, cause);
    }

    pub(super) fn handle_goaway(&mut self) {
        if !self.peer_draining {
            self.peer_draining = true;
            self.events.push_back(Event::GoAway);
        }
    }

    pub(super) fn notify_readable(&mut self, slot: u32) {
        if let Some(s) = self.streams.slot_mut(slot) {
            if !s.flags.readable_queued && !s.flags.released {
                s.flags.readable_queued = true;
                let generation = s.generation;
                self.events
                    .push_back(Event::Readable(StreamId { slot, generation }));
            }
        }
    }

    pub(super) fn notify_writable(&mut self, slot: u32) {
        if let Some(s) = self.streams.slot_mut(slot) {
            if s.flags.blocked && !s.flags.writable_queued && !s.flags.released {
                s.flags.blocked = false;
                s.flags.writable_queued = true;
                let generation = s.generation;
                self.events
                    .push_back(Event::Writable(StreamId { slot, generation }));
            }
        }
    }
}
