//! The effect of each message of the peer.

use bytes::Bytes;

use super::link::Link;
use super::message::{Kind, counts};
use super::side::Side;
use super::{EndReason, Ended, Message, Received, State, Violation};
use crate::session::Instant;

impl Link {
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
            self.acks.received(&message);
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

    #[inline]
    fn confirm(&mut self) {
        if let Side::Server(server) = &mut self.side {
            server.confirm();
        }
    }
}
