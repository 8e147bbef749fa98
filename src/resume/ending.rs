//! How a tunnel ends, and what is due.

use super::link::Link;
use super::{Due, EndReason, Ended, Received, State};
use crate::session::Instant;

impl Link {
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

    /// Ends the tunnel at once. END is the next output, and what the peer has not acknowledged is
    /// dropped. Has no effect on a tunnel that has ended.
    pub fn abort(&mut self, reason: EndReason, text: &str) {
        if self.ended.is_none() {
            self.fail(reason, text);
        }
    }

    /// Handles what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Due> {
        if self.ended.is_some() {
            return None;
        }
        let is_due = |time: Option<Instant>| time.is_some_and(|time| time <= now);
        if is_due(self.over_at()) {
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

    /// Ends the tunnel because of a fault. END is the next output.
    pub(super) fn fail(&mut self, reason: EndReason, text: &str) -> Ended {
        let ended = Ended::here(reason, text);
        let farewell = ended.to_message();
        self.finish(ended.clone());
        self.farewell = Some(farewell);
        ended
    }

    pub(super) fn finish(&mut self, ended: Ended) -> Received {
        self.state = State::Ended;
        self.first = None;
        self.opened_by = None;
        self.ending = None;
        (self.stats.sent, self.stats.acked) = (self.ring.sent(), self.ring.base());
        self.ring.clear();
        self.keep.stop(Instant::default());
        self.ended = Some(ended.clone());
        Received::Ended(ended)
    }
}
