//! How streams and the tunnel end, and what remains of them.

use super::dialect::Dialect;
use super::endpoint::Session;
use super::time::earliest;
use super::{Event, Instant, Reason, Reset, Role, StreamId};

/// How a stream ends on the wire.
#[derive(Debug)]
pub(super) enum Ending {
    /// Both directions in good order, or a flow by this end.
    Finished,
    /// By the peer. A flow that it closes ends without a reset.
    ByPeer(Option<Reset>),
    /// By this end, which informs the peer.
    Here(Reset),
}

impl Ending {
    /// Whether late messages of the peer need no answer.
    const fn is_final(&self, dialect: Dialect) -> bool {
        // In v2 an ERROR, or CLOSE from both ends, is final.
        matches!(self, Self::ByPeer(_)) || !dialect.peer_may_forget()
    }
}

impl Session {
    /// Ends a stream. Has no effect if it has ended on the wire.
    pub(super) fn end(&mut self, stream: StreamId, ending: Ending) {
        let answered = ending.is_final(self.dialect);
        let (reset, tell) = match ending {
            Ending::Finished => (None, false),
            Ending::ByPeer(reset) => (reset, false),
            // Without a transport there is nobody to tell.
            Ending::Here(reset) => (Some(reset), !self.closed),
        };
        let Some(s) = self.streams.close(stream, reset, answered, self.dialect) else {
            return;
        };
        self.linger.cancel(s);
        self.sending.retire(s);
        self.receiving.retire(s);
        self.events.ended(s);
        if let Some(reset) = s.life.reset() {
            self.counters.resets += 1;
            if tell {
                let (proto, id) = (s.proto(), s.wire_id());
                let frame = self.dialect.reset(proto, id, reset.reason, &reset.text);
                self.control.push(frame);
            }
        }
        self.sending.wake(&mut self.streams, &mut self.events);
        self.reap(stream);
    }

    /// Removes the stream if it has ended and was released.
    pub(super) fn reap(&mut self, stream: StreamId) {
        if let Some(s) = self.streams.get_mut(stream).filter(|s| s.life.is_over()) {
            self.receiving.drop_unread(s);
            if self.streams.reap(stream) {
                self.events.shrink();
                self.sending.shrink();
                self.receiving.shrink();
            }
        }
    }

    /// The reader of a v1 stream pauses while others wait.
    pub(super) fn give_up(&mut self, stalled: StreamId) {
        let text = match self.dialect.role() {
            Role::Opener => "the application does not read what the service sends",
            Role::Acceptor => "the service does not read what the application sends",
        };
        self.reset(stalled, Reason::Overflow, text);
    }

    /// Handles the end of the transport: every stream is reset, and nothing more is transmitted. A
    /// v1 stream whose paused or slow reader may have led to it is reset with
    /// [`Reason::Overflow`].
    pub fn handle_closed(&mut self, now: Instant, reason: Reason, text: &str) {
        self.closed = true;
        if let Some((stream, pause)) = self.receiving.blame(now) {
            let reader = match self.dialect.role() {
                Role::Opener => "the application",
                Role::Acceptor => "the service",
            };
            let seconds = pause.as_secs();
            let text = alloc::format!("{text}, after {reader} had not read enough for {seconds} s");
            self.reset(stream, Reason::Overflow, &text);
        }
        for stream in self.streams.live() {
            self.reset(stream, reason, text);
        }
        self.control.clear();
        self.receiving.close();
    }

    /// The time of the next call of [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.is_closed() {
            return None;
        }
        let linger = self.linger.next_timeout();
        let look = self.receiving.next_look();
        let keepalive = self.keepalive.next_timeout();
        earliest(earliest(linger, look), keepalive)
    }

    /// Handles everything that is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.is_closed() {
            return;
        }
        if let Some(stalled) = self.receiving.look_at_stall(now, &self.streams) {
            self.give_up(stalled);
        }
        self.receiving.look_at_shortage(now);
        let next_look = self.receiving.next_look();
        while let Some(stream) = self.linger.due(now) {
            let s = self.streams.get_mut(stream);
            if let (Some(s), Some(until)) = (s, next_look) {
                if self.linger.outlast(s, until, now) {
                    continue;
                }
            }
            let text = "the other side did not end the connection";
            self.reset(stream, Reason::Gone, text);
        }
        if self.receiving.next_look().is_some() {
            // The transport is not read, so silence proves nothing.
            self.keepalive.heard(now);
        } else if self.keepalive.handle_timeout(now) {
            if self.outlives_transport {
                self.keepalive.heard(now);
            } else {
                self.handle_closed(now, Reason::TimedOut, "the tunnel went silent");
            }
            self.events.push(Event::PeerDead);
        }
    }

    /// The transport showed a sign of life other than a message, for instance its own pong.
    pub fn handle_activity(&mut self, now: Instant) {
        self.keepalive.heard(now);
    }

    /// The peer sent a message of the layer below that says nothing new.
    #[cfg(feature = "mux")]
    pub(crate) const fn note_empty(&mut self) {
        self.counters.empty += 1;
    }
}
