use core::time::Duration;

use bytes::Bytes;

use super::ack::Acks;
use super::keep::Keep;
use super::message::counts;
use super::ring::Ring;
use super::side::{Client, Server, Side};
use super::{
    Accepts, Config, EndReason, Ended, Identity, Message, Open, Resumption, Secret, State, Stats,
};
use crate::session::Instant;

/// One end of a tunnel that outlives its transports. See the [module](super) for how to drive it,
/// and for an example.
///
/// Times are on the real clock. That of the session stands still while there is no transport.
#[derive(Debug)]
pub struct Link {
    pub(super) config: Config,
    pub(super) side: Side,
    pub(super) state: State,
    pub(super) ended: Option<Ended>,
    /// OPEN or OPENED, ahead of everything else on the transport.
    pub(super) first: Option<Message>,
    /// Client: when OPENED is overdue.
    pub(super) opened_by: Option<Instant>,
    /// Requested by this end; END follows everything that was sent.
    pub(super) ending: Option<Ended>,
    /// END, after the end.
    pub(super) farewell: Option<Bytes>,
    pub(super) ring: Ring,
    /// Counted messages handed up.
    pub(super) received: u64,
    pub(super) acks: Acks,
    pub(super) keep: Keep,
    /// The session has no connections.
    idle: bool,
    /// Nobody at this end needs the tunnel any more.
    unneeded: bool,
    pub(super) resumption: Option<Resumption>,
    pub(super) stats: Stats,
}

impl Link {
    /// A client's end of a new tunnel, without a transport. Its first OPEN asks for a new tunnel.
    #[must_use]
    pub fn client(config: Config) -> Self {
        Self::new(config, Side::Client(Client::default()), State::Detached)
    }

    /// A server's end of the new tunnel that `open` asks for, attached to the transport it came on.
    /// OPENED is the first output.
    ///
    /// `next` is the secret for the client's next OPEN. It must be random, and different each time.
    #[must_use]
    pub fn server(
        config: Config,
        identity: Identity,
        open: &Open,
        next: Secret,
        now: Instant,
    ) -> Self {
        let server = Server::new(identity, open.attempt, next);
        let mut link = Self::new(config, Side::Server(server), State::Detached);
        link.answer(identity, open, next, now);
        link
    }

    fn new(config: Config, side: Side, state: State) -> Self {
        let config = config.clamped();
        Self {
            side,
            state,
            ended: None,
            first: None,
            opened_by: None,
            ending: None,
            farewell: None,
            ring: Ring::new(&config),
            received: 0,
            acks: Acks::new(),
            keep: Keep::new(&config),
            idle: false,
            unneeded: false,
            resumption: None,
            stats: Stats::default(),
            config,
        }
    }

    /// The next message for the transport: of the layer, or one that is sent again. `None`: the
    /// session's messages may follow, as [`accepts`](Self::accepts) says.
    ///
    /// Poll it before and after the session's messages, and after any call that takes `&mut self`.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        if self.state == State::Ended {
            return self.farewell.take();
        }
        if let Some(first) = self.first.take() {
            return Some(first.to_bytes());
        }
        if !self.is_open() {
            return None;
        }
        if self.acks.is_due() {
            self.acks.told();
            self.stats.acks += 1;
            let received = self.received;
            return Some(Message::Ack { received }.to_bytes());
        }
        if let Some(message) = self.ring.replay() {
            self.stats.replayed += 1;
            self.stats.replayed_bytes += message.len() as u64;
            return Some(message);
        }
        let ended = self.ending.take()?;
        let farewell = ended.to_message();
        self.finish(ended);
        Some(farewell)
    }

    /// A message of the session goes out on the transport, after all output.
    ///
    /// It counts as sent, and is kept until the peer acknowledges it, unless it is a datagram. The
    /// copy shares its bytes. Call it only as [`accepts`](Self::accepts) allows.
    ///
    /// # Errors
    /// [`Ended`] if the tunnel is over: before, or because more than [`Config::ring_reserve`]
    /// beyond the ring's size would be kept. The message must not be sent then; END is the next
    /// output.
    #[inline]
    pub fn sent(&mut self, message: &Bytes) -> Result<(), Ended> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        self.acks.beside(message);
        if counts(message) {
            self.ring.push(message.clone());
            if self.ring.is_over(self.config.ring_reserve) {
                return Err(self.fail(EndReason::Overflow, ""));
            }
        }
        Ok(())
    }

    /// The ring may grow to `bytes` now, at most [`Config::ring_max`]; [`Config::ring_min`] is
    /// always allowed. For a budget that many tunnels share.
    ///
    /// A lower value takes effect at once, but what is kept stays until it is acknowledged.
    pub fn set_ring_limit(&mut self, bytes: usize) {
        self.ring.allow(bytes);
    }

    /// No data is accepted while at least `bytes` are kept, even below [`Config::ring_min`]. For
    /// code that bounds many tunnels together, while memory is short.
    ///
    /// So little may be less than the peer receives without an acknowledgement. A PING makes it
    /// acknowledge (PROTOCOL.md section 5.10).
    pub fn set_ring_share(&mut self, bytes: Option<usize>) {
        self.ring.set_share(bytes);
    }

    /// Whether the session has no connections, and no message about one waits in it. Then the
    /// tunnel is kept for [`Config::idle_keep`] only, once the peer has acknowledged the end of
    /// each.
    ///
    /// An acknowledgement that the peer needs for that may be the next output.
    pub fn set_idle(&mut self, idle: bool) {
        self.idle = idle;
        self.acks.set_idle(idle);
    }

    /// Whether nobody at this end needs the tunnel any more: once it is idle, it is kept for
    /// [`Config::idle_keep`] only, whatever the peer knows.
    #[cfg(feature = "mux")]
    pub(crate) fn set_unneeded(&mut self, unneeded: bool) {
        self.unneeded = unneeded;
    }

    /// When the tunnel has been without a transport for too long.
    pub(super) fn over_at(&self) -> Option<Instant> {
        let is_told = self.unneeded || !self.ring.holds_end();
        self.keep.over_at(self.idle && is_told)
    }

    /// What may be taken from the session now. Cheap: ask for each message.
    #[inline]
    #[must_use]
    pub fn accepts(&self) -> Accepts {
        let ready = self.is_open() && self.first.is_none() && self.ending.is_none();
        if !ready || self.ring.is_replaying() {
            return Accepts::Nothing;
        }
        match self.ring.is_full() {
            true => Accepts::Control,
            false => Accepts::All,
        }
    }

    /// Whether everything is accepted, and [`poll_output`](Self::poll_output) would return nothing
    /// and change nothing.
    #[cfg(feature = "mux")]
    pub(crate) fn is_at_rest(&self) -> bool {
        self.accepts() == Accepts::All && self.acks.is_at_rest()
    }

    /// The time of the next call of [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.ended.is_some() {
            return None;
        }
        let times = [self.opened_by, self.over_at()];
        times.into_iter().flatten().min()
    }

    /// The state.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Why the tunnel is over.
    #[must_use]
    pub const fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Whether the other end is known to be there: it has answered this end, and not merely sent
    /// OPEN, which something on the way may have held for any time.
    ///
    /// A server's new tunnel must not take the place of another one before.
    #[must_use]
    pub const fn is_confirmed(&self) -> bool {
        match &self.side {
            Side::Client(client) => client.tunnel.is_some(),
            Side::Server(server) => server.is_confirmed(),
        }
    }

    /// The tunnel's name; `None` before a client's first OPENED. May be logged.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        match &self.side {
            Side::Client(client) => client.tunnel.map(|(identity, _)| identity),
            Side::Server(server) => Some(server.identity),
        }
    }

    /// How long the tunnel is kept without a transport while it has connections: the shorter of
    /// both ends' values, as far as the peer's is known.
    #[must_use]
    pub const fn keep(&self) -> Duration {
        self.keep.agreed()
    }

    /// How the tunnel went on the last time.
    #[must_use]
    pub const fn resumption(&self) -> Option<Resumption> {
        self.resumption
    }

    /// Bytes kept for the peer, where each message counts 64 more than its length. 0 if everything
    /// is acknowledged.
    #[must_use]
    pub const fn ring_bytes(&self) -> usize {
        self.ring.held()
    }

    /// Bytes from which on the ring is full now.
    #[must_use]
    pub const fn ring_limit(&self) -> usize {
        self.ring.limit()
    }

    /// Counters since the tunnel began.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let received = self.received;
        // After the end the ring is empty, whatever the peer has acknowledged.
        let (sent, acked) = match self.ended {
            Some(_) => (self.stats.sent, self.stats.acked),
            None => (self.ring.sent(), self.ring.base()),
        };
        Stats {
            sent,
            acked,
            received,
            ..self.stats
        }
    }

    /// Whether the parts fit together. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn audit(&self) -> bool {
        let over = self.state == State::Ended;
        self.ring.audit()
            && over == self.ended.is_some()
            && (!over || self.ring.held() == 0 && self.first.is_none())
            && (self.first.is_none() || self.state != State::Detached)
            && (self.opened_by.is_some() == (self.state == State::Opening))
            && (self.farewell.is_none() || over)
    }

    /// Memory of an empty ring, in bytes.
    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.ring.room()
    }

    /// The transport carries messages of the session: OPENED was received, or the tunnel is new.
    #[inline]
    fn is_open(&self) -> bool {
        match self.state {
            State::Attached => true,
            State::Opening => self.is_new(),
            State::Detached | State::Ended => false,
        }
    }

    /// Whether the peer may send. A client that resumes waits for OPENED.
    #[inline]
    pub(super) fn has_opened(&self) -> bool {
        let answered = self.first.is_none() || self.resumption.is_none();
        self.state == State::Attached && answered
    }

    /// Whether the server has never answered.
    #[inline]
    pub(super) fn is_new(&self) -> bool {
        matches!(&self.side, Side::Client(client) if client.tunnel.is_none())
    }
}
