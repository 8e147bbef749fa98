use core::time::Duration;

use super::control::Control;
use super::dialect::Dialect;
use super::draining::Draining;
use super::events::Events;
use super::keepalive::Keepalive;
use super::linger::Linger;
use super::receiving::Receiving;
use super::sending::Sending;
use super::stream::Stream;
use super::streams::Streams;
use super::{
    Config, Event, Instant, OpenError, Reason, Reset, Role, State, Stats, StreamError, StreamId,
    StreamStats, Version, Violation,
};
use crate::wire::{ClientId, Frame, Proto};
use bytes::Bytes;

/// One end of one tunnel. See the [module](super) for how to drive it, and for an example.
///
/// A stream exists from open or [`Event::Incoming`] until [`release`](Self::release), however it
/// ended. Calls on a released stream have no effect or return an error.
///
/// ```
/// use kohakuriver_tunnel::session::{Config, Instant, Role, Session, Transmit, Version};
///
/// let now = Instant::default();
/// let mut session = Session::new(Role::Opener, Version::V2, Config::default(), now);
/// session.open_tcp(8080, now)?;
/// let Some(Transmit::Message(message)) = session.poll_transmit(now) else { panic!() };
/// assert_eq!(message[..], [1, 0, 0, 0, 0, 1, 0x1f, 0x90]);
/// # Ok::<(), kohakuriver_tunnel::session::OpenError>(())
/// ```
#[derive(Debug)]
pub struct Session {
    pub(super) config: Config,
    pub(super) dialect: Dialect,
    pub(super) streams: Streams,
    pub(super) sending: Sending,
    pub(super) receiving: Receiving,
    pub(super) linger: Linger,
    pub(super) keepalive: Keepalive,
    pub(super) events: Events,
    pub(super) control: Control,
    /// Counters of the tunnel as a whole. The parts have the others.
    pub(super) counters: Stats,
    pub(super) draining: Draining,
    pub(super) closed: bool,
    /// Memory is short, so new connections are refused.
    pub(super) refuses: bool,
    pub(super) outlives_transport: bool,
}

/// Result of [`Session::recv`].
///
/// ```
/// use kohakuriver_tunnel::session::{Config, Instant, Recv, Role, Session, Version};
///
/// let now = Instant::default();
/// let mut session = Session::new(Role::Opener, Version::V2, Config::default(), now);
/// let stream = session.open_tcp(80, now)?;
/// assert_eq!(session.recv(stream, now), Ok(Recv::Blocked));
/// # Ok::<(), kohakuriver_tunnel::session::OpenError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recv {
    /// Bytes of a stream, or exactly one datagram.
    Data(Bytes),
    /// Nothing to read now; [`Event::Readable`] follows.
    Blocked,
    /// The peer has finished this direction.
    Finished,
}

impl Session {
    /// A new tunnel. `version` is the result of the handshake (PROTOCOL.md section 5.1).
    #[must_use]
    pub fn new(role: Role, version: Version, config: Config, now: Instant) -> Self {
        let mut config = config.clamped();
        let dialect = Dialect::new(version, role);
        if !dialect.has_credit() {
            // The receiver judges a reader by the pieces that it takes.
            config.max_piece = config.contended_piece;
        }
        Self {
            dialect,
            streams: Streams::new(&config),
            sending: Sending::new(&config),
            receiving: Receiving::new(&config, dialect),
            linger: Linger::new(config.linger),
            keepalive: Keepalive::new(dialect, &config, now),
            events: Events::default(),
            control: Control::new(role, config.max_replies),
            counters: Stats::default(),
            draining: Draining::default(),
            closed: false,
            refuses: false,
            outlives_transport: false,
            config,
        }
    }

    /// Opens a byte stream to `port` at the acceptor. Data may be sent immediately.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_tcp(&mut self, port: u16, now: Instant) -> Result<StreamId, OpenError> {
        self.open(Proto::Tcp, port, now)
    }

    /// Opens a datagram flow to `port` at the acceptor. Datagrams may be sent immediately.
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
        if self.dialect.role() != Role::Opener {
            return Err(OpenError::NotOpener);
        }
        if self.draining.has_begun() {
            return Err(OpenError::Draining);
        }
        if self.streams.len() >= self.config.max_streams {
            return Err(OpenError::Limit(self.config.max_streams));
        }
        // Each stream begins and may end with a message, and some were released before.
        let most = self.config.max_streams.saturating_mul(2).saturating_add(16);
        if self.control.own() >= most {
            return Err(OpenError::Congested);
        }
        let (stream, id) = self.streams.open(proto, self.dialect, now);
        self.control.push(Frame::Connect { proto, id, port });
        self.counters.opened += 1;
        // Sample now, before data queues up.
        self.keepalive.want_sample(now);
        Ok(stream)
    }

    /// Accepts a connection of [`Event::Incoming`].
    ///
    /// # Errors
    /// [`StreamError::Reset`] if the peer gave up meanwhile, [`StreamError::WrongState`] if the
    /// connection was already answered.
    pub fn accept(&mut self, stream: StreamId, now: Instant) -> Result<(), StreamError> {
        if let Some(s) = self.streams.get_mut(stream) {
            self.receiving.settle(s);
        }
        let s = self.streams.accept(stream)?;
        let (proto, id) = (s.proto(), s.wire_id());
        self.sending.activate(s);
        self.control.push(Frame::Connected { proto, id });
        self.keepalive.want_sample(now);
        self.receiving.reconsider_stall(now, &self.streams);
        Ok(())
    }

    /// Refuses a connection of [`Event::Incoming`] and releases it. Has no effect if the connection
    /// is already gone.
    pub fn reject(&mut self, stream: StreamId, reason: Reason, text: &str) {
        self.reset(stream, reason, text);
        if let Some(s) = self.streams.get_mut(stream) {
            s.life.release();
            self.reap(stream);
        }
    }

    /// Returns data received on a stream or flow.
    ///
    /// Reading may grant the peer new credit, so [`poll_transmit`](Self::poll_transmit) may have
    /// output afterwards. Data from before a reset is returned before the reset.
    ///
    /// # Errors
    /// [`StreamError::Reset`] after all data was read.
    pub fn recv(&mut self, stream: StreamId, now: Instant) -> Result<Recv, StreamError> {
        let s = self.streams.get_mut(stream);
        if let Some(chunk) = s.and_then(|s| self.receiving.read(now, s)) {
            return Ok(Recv::Data(chunk.into_payload()));
        }
        self.end_of_data(stream)
    }

    /// What follows what was received on a stream, all of which has been read.
    pub(crate) fn end_of_data(&self, stream: StreamId) -> Result<Recv, StreamError> {
        let s = self.streams.get(stream).ok_or(StreamError::Unknown)?;
        match s.life.reset() {
            Some(reset) => Err(StreamError::Reset(reset.clone())),
            None if s.life.state().can_receive() => Ok(Recv::Blocked),
            None => Ok(Recv::Finished),
        }
    }

    /// As [`recv`](Self::recv), with the headroom that the data may have. `None` if there is none.
    /// What is returned counts as held until the next call, and `kept` bytes of earlier calls.
    ///
    /// The time matters only if the stream [stalls](Self::is_stalled_by) the tunnel.
    #[cfg(feature = "mux")]
    pub(crate) fn take_chunk(
        &mut self,
        stream: StreamId,
        kept: usize,
        now: Instant,
    ) -> Option<crate::wire::Chunk> {
        let s = self.streams.get_mut(stream)?;
        self.receiving.lend(now, s, kept)
    }

    /// Whether a v1 stream is full, and the transport therefore not read.
    #[cfg(feature = "mux")]
    pub(crate) fn is_stalled_by(&self, stream: StreamId) -> bool {
        self.receiving.is_stalled_by(stream)
    }

    /// Whether [`take_chunk`](Self::take_chunk) would return nothing and change nothing, and the
    /// stream has not ended.
    #[cfg(feature = "mux")]
    pub(crate) fn has_nothing_new(&self, stream: StreamId, kept: usize) -> bool {
        let s = self.streams.get(stream);
        s.is_some_and(|s| s.recv.holds_only(kept) && s.life.state().can_receive())
    }

    /// Ends this direction: sends CLOSE after the queued data. The peer may still send.
    ///
    /// A datagram flow ends in both directions.
    pub fn finish(&mut self, stream: StreamId) {
        if let Some(s) = self.streams.get_mut(stream) {
            self.sending.finish(s, &mut self.events);
            self.sending.wake(&mut self.streams, &mut self.events);
        }
    }

    /// Discards received and future data of a stream, and lets the peer continue to send.
    pub fn discard(&mut self, stream: StreamId) {
        if let Some(s) = self.streams.get_mut(stream) {
            self.receiving.discard(s);
        }
    }

    /// Releases the handle. This is the last call on every stream.
    ///
    /// Queued data is still sent. If the peer continues to send, the stream is reset. A connection
    /// that was not accepted is refused.
    pub fn release(&mut self, stream: StreamId, now: Instant) {
        let Some(s) = self.streams.get_mut(stream) else {
            return;
        };
        if s.life.state().is_pending() {
            return self.reject(stream, Reason::Refused, "not accepted");
        }
        s.life.release();
        // Discarding grants credit, so a peer that waits for credit sends and learns that nobody
        // reads.
        self.receiving.discard(s);
        self.sending.finish(s, &mut self.events);
        if s.life.waits_for_peer() {
            self.linger.start_once(s, now);
        }
        self.sending.wake(&mut self.streams, &mut self.events);
        self.reap(stream);
    }

    /// Measures the round trip now. Has no effect in v1.
    pub fn ping(&mut self) {
        self.keepalive.want_ping();
    }

    /// Probes the peer now, as after a keepalive interval of silence: for code that has a reason to
    /// doubt the path, for instance that the machine was asleep. If the peer is not heard within
    /// one further interval, it counts as dead.
    pub fn probe(&mut self, now: Instant) {
        self.keepalive.probe(now);
    }

    /// Whether the peer was probed and has not been heard since.
    #[must_use]
    pub const fn is_probing(&self) -> bool {
        self.keepalive.is_probing()
    }

    /// A tunnel that is resumed (PROTOCOL.md section 5.10) does not end with its transport: when
    /// the peer is silent for too long, there is an [`Event::PeerDead`], and nothing is closed.
    pub const fn set_outlives_transport(&mut self, outlives: bool) {
        self.outlives_transport = outlives;
    }

    /// Stops new connections from both ends; open streams continue. In v2 the peer is informed
    /// (GOAWAY, PROTOCOL.md section 5.7).
    pub fn drain(&mut self) {
        if self.draining.begin() && self.dialect.has_goaway() {
            self.control.push(Frame::GoAway);
        }
    }

    /// Drains, and resets every stream with reason gone.
    pub fn shutdown(&mut self) {
        self.drain();
        for stream in self.streams.live() {
            self.reset(stream, Reason::Gone, "shutting down");
        }
    }

    /// The next event. Released streams have no events.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.next(&mut self.streams)
    }

    /// Whether [`poll_event`](Self::poll_event) may have something.
    #[must_use]
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// Whether the transport may be read. False while a v1 stream is full (see
    /// [`Config::v1_stall`]), while all streams hold almost [`Config::receive_budget`], or while
    /// too many answers wait to be transmitted ([`Config::max_replies`]). `accept`, `recv`,
    /// `discard`, `reset`, `release`, `poll_transmit` and `handle_timeout` can make it true again.
    #[must_use]
    pub fn can_receive(&self) -> bool {
        self.receiving.may_receive() && !self.control.is_congested()
    }

    /// The state of a stream on the wire; `None` after its release.
    #[must_use]
    pub fn state(&self, stream: StreamId) -> Option<State> {
        self.streams.get(stream).map(|s| s.life.state())
    }

    /// The client id of a stream, also after it has ended on the wire.
    #[must_use]
    pub fn client_id(&self, stream: StreamId) -> Option<ClientId> {
        self.streams.get(stream).map(Stream::wire_id)
    }

    /// The reset of a stream, if it was reset.
    #[must_use]
    pub fn reset_of(&self, stream: StreamId) -> Option<&Reset> {
        self.streams.get(stream)?.life.reset()
    }

    /// Whether received bytes of a stream were dropped because memory was short. What the
    /// application has taken and not used yet does not count as held any more.
    #[cfg(feature = "mux")]
    pub(crate) fn has_lost(&self, stream: StreamId) -> bool {
        let s = self.streams.get(stream);
        s.is_some_and(|s| s.life.has_lost())
    }

    /// Counters of one stream; `None` after its release.
    #[must_use]
    pub fn stream_stats(&self, stream: StreamId) -> Option<StreamStats> {
        self.streams.get(stream).map(Stream::stats)
    }

    /// Counters of the tunnel.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = self.counters;
        self.sending.count(&mut stats);
        self.receiving.count(&mut stats);
        stats.streams = self.streams.len();
        stats
    }

    /// The last violation by the peer, if any; see [`Event::Violation`].
    #[must_use]
    pub const fn last_violation(&self) -> Option<Violation> {
        self.events.last_violation()
    }

    /// The round trip to the peer, if it was measured. Never in v1.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.keepalive.rtt()
    }

    /// Whether this end or the peer takes no new connections.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.draining.has_begun()
    }

    /// Whether there are no streams.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.streams.len() == 0
    }

    /// Whether a stream has ended, and the message that says so waits to be transmitted.
    #[cfg(feature = "mux")]
    pub(crate) fn has_untold_end(&self) -> bool {
        self.control.has_end()
    }

    /// Every [`StreamId::slot`] is below this.
    #[cfg(feature = "mux")]
    pub(crate) fn slots(&self) -> usize {
        self.streams.slots()
    }

    /// Whether a stream or flow has not ended on the wire.
    #[cfg(feature = "mux")]
    pub(crate) fn has_live_streams(&self) -> bool {
        self.streams.has_live()
    }

    /// Whether the transport has ended.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the counters of the parts match their streams. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn audit(&self) -> bool {
        self.streams.audit()
            && self.sending.audit(&self.streams)
            && self.receiving.audit(&self.streams)
    }
}
