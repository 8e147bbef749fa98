//! How streams end, and what is left of them.

use alloc::boxed::Box;

use bytes::Bytes;

use super::endpoint::Session;
use super::stream::Stream;
use super::{Instant, Reason, Reset, Role, State, Version};
use crate::wire::{Frame, Proto};

impl Session {
    /// Ends a stream here and tells the peer.
    pub(super) fn reset_slot(&mut self, slot: u32, reason: Reason, text: &str) {
        let Some(s) = self.streams.slot_mut(slot) else {
            return;
        };
        if s.state == State::Closed {
            return;
        }
        let (proto, id) = (s.proto, s.id);
        let frame = if self.version == Version::V2 || self.role == Role::Acceptor {
            let code = match self.version {
                Version::V1 => 0,
                Version::V2 => reason.code(),
            };
            let words = match self.version {
                Version::V1 if text.is_empty() => alloc::format!("{reason}"),
                Version::V1 => alloc::format!("{reason}: {text}"),
                Version::V2 => text.into(),
            };
            let text = Bytes::from(words);
            Frame::Error {
                proto,
                id,
                code,
                text,
            }
        } else {
            Frame::Close { proto, id }
        };
        self.push_control(frame);
        self.end_stream(slot, Some(Reset::new(reason, text)), false);
    }

    /// The stream is over on the wire. `answered`: late frames of the peer need no answer.
    pub(super) fn end_stream(&mut self, slot: u32, reset: Option<Reset>, answered: bool) {
        let Some(s) = self.streams.slot_mut(slot) else {
            return;
        };
        if s.state.is_pending() {
            self.backlog -= 1;
            self.early.settle(s);
        }
        s.state = State::Closed;
        if s.proto == Proto::Udp {
            self.datagrams_unsent
                .remove(s.queue.chunks(), s.queue.len());
        }
        self.stats.unsent -= s.queue.clear();
        if let Some(deadline) = s.deadline.take() {
            self.deadlines.remove(&(deadline, slot));
        }
        self.lent -= s.window.grown();
        let credit = match (s.proto, self.version) {
            (Proto::Tcp, Version::V2) => s.window.credit(),
            _ => u64::MAX,
        };
        let id = s.id;
        if let Some(reset) = reset {
            s.reset = Some(Box::new(reset));
            self.stats.resets += 1;
        }
        if self.stall.is_some_and(|stall| stall.slot == slot) {
            self.stall = None;
        }
        self.streams.detach(id);
        // In v2 an ERROR or both CLOSEs are final: what is late needs no answer.
        let answered = answered || self.version == Version::V2;
        self.graves.bury(id, answered, credit);
        self.notify_readable(slot);
        self.notify_writable(slot);
        self.wake_waiting();
        self.clean_up(slot);
    }

    /// Drops the stream if nobody needs it any more.
    pub(super) fn clean_up(&mut self, slot: u32) {
        let over = |s: &mut Stream| s.flags.released && s.state == State::Closed;
        if self.streams.slot_mut(slot).is_some_and(over) {
            self.discard_unread(slot);
            self.streams.remove(slot);
        }
    }

    pub(super) fn set_deadline(&mut self, slot: u32, at: Instant) {
        if let Some(s) = self.streams.slot_mut(slot) {
            if let Some(old) = s.deadline.replace(at) {
                self.deadlines.remove(&(old, slot));
            }
            self.deadlines.insert((at, slot));
        }
    }
}
