//! What a session holds, and what it does when whoever runs many of them is short of memory.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::endpoint::Session;
use super::{Reason, Reset, Role};

impl Session {
    /// Bytes that a stream costs besides its queues, with its handle and the task that serves it.
    const STREAM_COST: usize = 2048;
    /// Bytes that a stream costs besides that until it is accepted: somebody makes its connection meanwhile.
    const PENDING_COST: usize = 16 << 10;
    /// Bytes that a queued control message costs.
    const CONTROL_COST: usize = 256;
    /// Bytes that a remembered id costs.
    const GRAVE_COST: usize = 128;

    /// Bytes that the peer makes this tunnel hold: those queued either way, and an estimate of what
    /// streams, answers and remembered ids cost besides.
    ///
    /// An opener's streams and ids are not counted: its own side opened them, and whoever asked it to
    /// do so pays for them elsewhere.
    #[must_use]
    pub fn memory(&self) -> usize {
        let streams = match self.role {
            Role::Opener => 0,
            Role::Acceptor => {
                self.streams.len() * Self::STREAM_COST
                    + self.backlog * Self::PENDING_COST
                    + self.graves.len() * Self::GRAVE_COST
            }
        };
        streams + self.stats.unread + self.stats.unsent + self.control.len() * Self::CONTROL_COST
    }

    /// Parties that this tunnel carries something for: an opener's streams may each be somebody else's.
    #[must_use]
    pub fn parties(&self) -> usize {
        match self.role {
            Role::Opener => self.streams.len().max(1),
            Role::Acceptor => 1,
        }
    }

    /// While pressed, the session takes no new connections (ERROR, limit) and nothing makes it hold much
    /// more: windows do not grow, and streams queue little. For whoever bounds many sessions together.
    pub fn set_pressed(&mut self, pressed: bool) {
        let relieved = self.pressed && !pressed;
        self.pressed = pressed;
        if relieved {
            self.wake_waiting();
        }
    }

    /// While thrifty, the session copies the bytes of streams that it keeps. A payload as it came may be a small part of a buffer
    /// of the transport, which it keeps whole. For whoever bounds many sessions together.
    pub fn set_thrifty(&mut self, thrifty: bool) {
        self.thrifty = thrifty;
    }

    /// Resets streams with reason overflow, those that hold most first, until [`memory`](Self::memory) is at most
    /// `target` or none holds anything. What they held is dropped.
    pub fn shed(&mut self, target: usize) {
        let streams = self.streams.iter();
        let mut holders: Vec<_> = streams
            .map(|(slot, s)| (s.unread.len() + s.queue.len(), slot))
            .filter(|(held, _)| *held > 0)
            .collect();
        holders.sort_unstable_by_key(|holder| core::cmp::Reverse(*holder));
        for (_, slot) in holders {
            if self.memory() <= target {
                return;
            }
            self.overflow(slot, "memory is short here");
        }
    }

    /// Resets a stream and drops what it holds.
    pub(super) fn overflow(&mut self, slot: u32, text: &str) {
        self.reset_slot(slot, Reason::Overflow, text);
        self.discard_unread(slot);
        if let Some(s) = self.streams.slot_mut(slot) {
            // It may have ended in order before: what is lost now must not look like its end.
            s.reset
                .get_or_insert_with(|| Box::new(Reset::new(Reason::Overflow, text)));
        }
    }
}
