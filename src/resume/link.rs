use bytes::Bytes;

use super::ack::Acks;
use super::keep::Keep;
use super::message::{Kind, counts};
use super::ring::Ring;
use super::side::{Client, Server, Side};
use super::{
    Accepts, Config, Due, EndReason, Ended, Identity, Message, Open, Opened, Received, Refusal,
    Resumption, Secret, State, Stats, Takeover, Violation,
};
use crate::session::Instant;

/// One end of a tunnel that outlives its transports. See the [module](super) for how to drive it,
/// and for an example.
///
/// Times are on the real clock. That of the session stands still while there is no transport.
#[derive(Debug)]
pub struct Link {
    config: Config,
    side: Side,
    state: State,
    ended: Option<Ended>,
    /// OPEN or OPENED, ahead of everything else on the transport.
    first: Option<Bytes>,
    /// Client: when OPENED is overdue.
    opened_by: Option<Instant>,
    /// Requested by this end; END follows everything that was sent.
    ending: Option<Ended>,
    /// END, after the end.
    farewell: Option<Bytes>,
    ring: Ring,
    /// Counted messages handed up.
    received: u64,
    acks: Acks,
    keep: Keep,
    resumption: Option<Resumption>,
    stats: Stats,
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
            resumption: None,
            stats: Stats::default(),
            config,
        }
    }

    /// Client: there is a transport, and its greeting was heard. OPEN is the next output.
    ///
    /// The transport before must have been dropped: from now on every message is of the new one. No
    /// effect on a server's end, or after the end.
    pub fn attach(&mut self, now: Instant) {
        self.detach(now);
        let Side::Client(client) = &mut self.side else {
            return;
        };
        if self.state == State::Ended {
            return;
        }
        client.attempt = client.attempt.saturating_add(1);
        let (tunnel, secret) = match client.tunnel {
            Some((identity, secret)) => (identity.tunnel, secret),
            None => (0, Secret::new([0; Secret::LEN])),
        };
        let open = Open {
            tunnel,
            secret,
            attempt: client.attempt,
            received: self.received,
            keep: self.config.keep_seconds(),
            ring: wire_size(self.config.ring_min),
        };
        self.first = Some(Message::Open(open).to_bytes());
        self.opened_by = Some(now + self.config.opening_timeout);
        self.state = State::Opening;
        self.acks.told();
    }

    /// Server: takes the tunnel over with the transport on which `open` came. OPENED is the next
    /// output, and what the peer has not received follows it.
    ///
    /// The transport before must have been dropped: this reads the count of received messages, and
    /// from now on every message is of the new transport. `next` is as for
    /// [`server`](Self::server).
    ///
    /// # Errors
    /// [`Takeover::Refused`] as [`check`](Self::check), without effect. [`Takeover::Ended`] if the
    /// peer received less than it acknowledged, or more than was sent.
    pub fn takeover(&mut self, open: &Open, next: Secret, now: Instant) -> Result<(), Takeover> {
        self.check(open)?;
        self.detach(now);
        if let Some(ended) = &self.ended {
            self.farewell = Some(ended.to_message());
            return Err(Takeover::Ended(ended.clone()));
        }
        if !self.is_in_range(open.received) {
            return Err(Takeover::Ended(self.fail(EndReason::Gap, "")));
        }
        let Side::Server(server) = &mut self.side else {
            return Err(Takeover::Refused(Refusal::Unknown));
        };
        server.rotate(open, next);
        let identity = server.identity;
        self.ring.ack(open.received);
        self.resume(now);
        self.answer(identity, open, next, now);
        Ok(())
    }

    /// The transport is lost, or about to be replaced.
    ///
    /// The tunnel waits for the next one. A client's tunnel ends if it was never opened and
    /// messages are under way: nobody can tell whether the server has handled them.
    pub fn detach(&mut self, now: Instant) {
        self.farewell = None;
        if !matches!(self.state, State::Opening | State::Attached) {
            return;
        }
        if self.is_new() && self.ring.sent() > 0 {
            let text = "the transport was lost before the tunnel was opened";
            self.finish(Ended::here(EndReason::Unknown, text));
            return;
        }
        if self.ring.held() == 0 {
            if let Some(ended) = self.ending.take() {
                self.finish(ended);
                return;
            }
        }
        self.state = State::Detached;
        self.first = None;
        self.opened_by = None;
        self.ring.rewind();
        self.keep.start(now);
    }

    /// Handles a message of the transport. Never panics, whatever it contains.
    pub fn handle_message(&mut self, now: Instant, message: Bytes) -> Received {
        if let Some(ended) = &self.ended {
            return Received::Ended(ended.clone());
        }
        if self.state == State::Detached {
            // Of a transport that was given up.
            return Received::Handled;
        }
        match Kind::of(&message) {
            None => self.handle_counted(message),
            Some(kind) => self.handle_layer(now, kind, &message),
        }
    }

    #[inline]
    fn handle_counted(&mut self, message: Bytes) -> Received {
        if !self.has_opened() {
            return Received::Violation(Violation::BeforeOpened);
        }
        self.confirm();
        if counts(&message) {
            self.received += 1;
            self.acks.received(message.len());
        }
        Received::Deliver(message)
    }

    fn handle_layer(&mut self, now: Instant, kind: Kind, message: &[u8]) -> Received {
        let state = self.state;
        let decoded = match Message::decode(message) {
            Ok(decoded) => decoded,
            Err(malformed) => return Received::Violation(malformed.into()),
        };
        match (decoded, state) {
            (Message::Opened(opened), State::Opening) => self.handle_opened(now, &opened),
            (Message::Ack { received }, State::Attached) if self.has_opened() => {
                self.handle_ack(received)
            }
            (
                Message::End {
                    reason: EndReason::Stale,
                    ..
                },
                State::Opening,
            ) => {
                self.detach(now);
                match &self.ended {
                    Some(ended) => Received::Ended(ended.clone()),
                    None => Received::Retry,
                }
            }
            (Message::End { reason, text }, _) => self.finish(Ended {
                reason,
                text,
                by_peer: true,
            }),
            _ => Received::Violation(Violation::Unexpected { kind, state }),
        }
    }

    fn handle_opened(&mut self, now: Instant, opened: &Opened) -> Received {
        let is_new = self.is_new();
        let Side::Client(client) = &mut self.side else {
            let (kind, state) = (Kind::Opened, self.state);
            return Received::Violation(Violation::Unexpected { kind, state });
        };
        let identity = Identity {
            instance: opened.instance,
            tunnel: opened.tunnel,
        };
        let expected = client.tunnel.map_or(identity, |(identity, _)| identity);
        if identity != expected || identity.tunnel == 0 {
            let ended = self.fail(EndReason::Protocol, "OPENED names another tunnel");
            return Received::Ended(ended);
        }
        client.tunnel = Some((identity, opened.secret));
        if !self.is_in_range(opened.received) {
            return Received::Ended(self.fail(EndReason::Gap, ""));
        }
        self.ring.ack(opened.received);
        if !is_new {
            self.resume(now);
        }
        self.keep.agree(opened.keep.min(self.config.keep_seconds()));
        self.keep.stop(now);
        self.acks.set_peer_ring(opened.ring);
        if is_new {
            // Shows the server that the client is there.
            self.acks.demand();
        }
        self.opened_by = None;
        self.first = None;
        self.state = State::Attached;
        Received::Attached
    }

    fn handle_ack(&mut self, received: u64) -> Received {
        self.confirm();
        if received > self.ring.sent() {
            let ended = self.fail(EndReason::Protocol, "more was acknowledged than sent");
            return Received::Ended(ended);
        }
        self.ring.ack(received);
        if let Side::Server(server) = &mut self.side {
            server.acknowledged();
        }
        Received::Handled
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
            return Some(first);
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
    /// [`Ended`] if the tunnel is over: before, or because more than 4 MiB beyond the ring's size
    /// would be kept. The message must not be sent then; END is the next output.
    #[inline]
    pub fn sent(&mut self, message: &Bytes) -> Result<(), Ended> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        self.acks.beside(message);
        if counts(message) {
            self.ring.push(message.clone());
            if self.ring.is_over() {
                return Err(self.fail(EndReason::Overflow, ""));
            }
        }
        Ok(())
    }

    /// Ends the tunnel in good order: END follows all that was sent, and nothing more is accepted.
    ///
    /// Without a transport the tunnel ends at once if the peer has acknowledged everything.
    /// Otherwise it waits for another transport, as long as it is kept; a driver that does not want
    /// to wait drops the link. The second call has no effect.
    pub fn end(&mut self, reason: EndReason, text: &str) {
        if self.ended.is_some() || self.ending.is_some() {
            return;
        }
        let ended = Ended::here(reason, text);
        if self.state == State::Detached && self.ring.held() == 0 {
            self.finish(ended);
        } else {
            self.ending = Some(ended);
        }
    }

    /// Handles what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Due> {
        if self.ended.is_some() {
            return None;
        }
        let is_due = |time: Option<Instant>| time.is_some_and(|time| time <= now);
        if is_due(self.keep.over_at()) {
            let has_transport = self.state == State::Opening;
            let ended = self.fail(EndReason::Expired, "");
            if !has_transport {
                self.farewell = None;
            }
            return Some(Due::Ended(ended));
        }
        if is_due(self.opened_by) {
            self.detach(now);
            let ended = self.ended.clone();
            return Some(ended.map_or(Due::NotOpened, Due::Ended));
        }
        None
    }

    /// The ring may grow to `bytes` now, at most [`Config::ring_max`]; [`Config::ring_min`] is
    /// always allowed. For a budget that many tunnels share.
    ///
    /// A lower value takes effect at once, but what is kept stays until it is acknowledged.
    pub fn set_ring_limit(&mut self, bytes: usize) {
        self.ring.allow(bytes);
    }

    /// Whether the tunnel has no connections: then it is kept for [`Config::idle_keep`] only.
    pub fn set_idle(&mut self, idle: bool) {
        self.keep.set_idle(idle);
    }

    /// Server: whether `open` may take the tunnel over. Changes nothing.
    ///
    /// # Errors
    /// [`Refusal`]: that transport is refused, with [`Refusal::to_message`]. Counts that do not fit
    /// are not found here; they end the tunnel.
    pub fn check(&self, open: &Open) -> Result<(), Refusal> {
        match &self.side {
            Side::Server(server) if self.ended.is_none() => server.check(open),
            _ => Err(Refusal::Unknown),
        }
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

    /// The time of the next call of [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.ended.is_some() {
            return None;
        }
        let times = [self.opened_by, self.keep.over_at()];
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
        Stats {
            sent: self.ring.sent(),
            acked: self.ring.base(),
            received: self.received,
            ..self.stats
        }
    }

    /// Whether the parts fit together. For tests.
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
    fn has_opened(&self) -> bool {
        let answered = self.first.is_none() || self.resumption.is_none();
        self.state == State::Attached && answered
    }

    /// Whether the server has never answered.
    #[inline]
    fn is_new(&self) -> bool {
        matches!(&self.side, Side::Client(client) if client.tunnel.is_none())
    }

    fn is_in_range(&self, received: u64) -> bool {
        (self.ring.base()..=self.ring.sent()).contains(&received)
    }

    #[inline]
    fn confirm(&mut self) {
        if let Side::Server(server) = &mut self.side {
            server.confirm();
        }
    }

    /// The tunnel goes on: what is left in the ring is sent again.
    fn resume(&mut self, now: Instant) {
        self.ring.rewind();
        let (messages, bytes) = self.ring.behind();
        let detached = self.keep.stop(now);
        self.stats.resumed += 1;
        self.resumption = Some(Resumption {
            messages,
            bytes,
            detached,
        });
    }

    /// Attached, with OPENED as the next output.
    fn answer(&mut self, identity: Identity, open: &Open, next: Secret, now: Instant) {
        let keep = open.keep.min(self.config.keep_seconds());
        let opened = Opened {
            instance: identity.instance,
            tunnel: identity.tunnel,
            secret: next,
            received: self.received,
            keep,
            ring: wire_size(self.config.ring_min),
        };
        self.first = Some(Message::Opened(opened).to_bytes());
        self.state = State::Attached;
        self.keep.agree(keep);
        self.keep.stop(now);
        self.acks.set_peer_ring(open.ring);
        self.acks.told();
    }

    /// Ends the tunnel because of a fault. END is the next output.
    fn fail(&mut self, reason: EndReason, text: &str) -> Ended {
        let ended = Ended::here(reason, text);
        let farewell = ended.to_message();
        self.finish(ended.clone());
        self.farewell = Some(farewell);
        ended
    }

    fn finish(&mut self, ended: Ended) -> Received {
        self.state = State::Ended;
        self.first = None;
        self.opened_by = None;
        self.ending = None;
        self.ring.clear();
        self.keep.stop(Instant::default());
        self.ended = Some(ended.clone());
        Received::Ended(ended)
    }
}

/// A size as messages carry it.
fn wire_size(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
