//! How a tunnel gets a transport, and loses it.

use super::link::Link;
use super::message::Kind;
use super::side::Side;
use super::{
    EndReason, Ended, Identity, Message, Open, Opened, Received, Refusal, Resumption, Secret,
    State, Takeover, Violation,
};
use crate::session::Instant;

impl Link {
    /// Client: there is a transport, and its greeting was heard. OPEN is the next output.
    ///
    /// The transport before must have been dropped: from now on every message is of the new one. No
    /// effect on a server's end, or after the end.
    pub fn attach(&mut self, now: Instant) {
        if matches!(self.side, Side::Client(_)) && self.state != State::Ended {
            self.detach(now);
        }
        let (Side::Client(client), State::Detached) = (&mut self.side, self.state) else {
            return;
        };
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
        self.first = Some(Message::Open(open));
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
    /// tunnel ends here.
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
        if let Err(ended) = self.resume(now) {
            return Err(Takeover::Ended(ended));
        }
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

    pub(super) fn handle_opened(&mut self, now: Instant, opened: &Opened) -> Received {
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
            if let Err(ended) = self.resume(now) {
                return Received::Ended(ended);
            }
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

    /// The tunnel goes on: what is left in the ring is sent again.
    fn resume(&mut self, now: Instant) -> Result<(), Ended> {
        let received = (self.ring.held() > 0).then_some(self.ring.base());
        if !self.keep.is_fruitful(now, received) {
            return Err(self.fail(EndReason::Expired, "nothing gets through"));
        }
        self.ring.rewind();
        let (messages, bytes) = self.ring.behind();
        let detached = self.keep.stop(now);
        self.stats.resumed += 1;
        self.resumption = Some(Resumption {
            messages,
            bytes,
            detached,
        });
        Ok(())
    }

    /// Attached, with OPENED as the next output.
    pub(super) fn answer(&mut self, identity: Identity, open: &Open, next: Secret, now: Instant) {
        let keep = open.keep.min(self.config.keep_seconds());
        let opened = Opened {
            instance: identity.instance,
            tunnel: identity.tunnel,
            secret: next,
            received: self.received,
            keep,
            ring: wire_size(self.config.ring_min),
        };
        self.first = Some(Message::Opened(opened));
        self.state = State::Attached;
        self.keep.agree(keep);
        self.keep.stop(now);
        self.acks.set_peer_ring(open.ring);
        self.acks.told();
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

    fn is_in_range(&self, received: u64) -> bool {
        (self.ring.base()..=self.ring.sent()).contains(&received)
    }
}

/// A size as messages carry it.
fn wire_size(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
