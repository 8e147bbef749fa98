//! What a session holds, and what it does when the process that runs many of them is short of
//! memory.

use alloc::vec::Vec;

use super::Role;
use super::endpoint::Session;

impl Session {
    /// Bytes that a stream costs besides its queues, with its handle and the task that serves it.
    const STREAM_COST: usize = 2048;
    /// Bytes that a stream costs in addition until it is accepted, while its connection is made.
    const PENDING_COST: usize = 16 << 10;
    /// Bytes that a queued control message costs.
    const CONTROL_COST: usize = 256;
    /// Bytes that a remembered id costs.
    const ENDED_COST: usize = 128;

    /// Bytes that the peer makes this tunnel hold: those queued either way, and an estimate of what
    /// streams, answers and remembered ids cost besides.
    ///
    /// An opener's streams and ids are not counted: this side opened them, and the client that asked
    /// for it is charged elsewhere.
    #[must_use]
    pub fn memory(&self) -> usize {
        let streams = match self.dialect.role() {
            Role::Opener => 0,
            Role::Acceptor => {
                self.streams.len() * Self::STREAM_COST
                    + self.streams.pending() * Self::PENDING_COST
                    + self.streams.remembered() * Self::ENDED_COST
            }
        };
        let queued = self.receiving.unread() + self.sending.unsent();
        streams + queued + self.control.len() * Self::CONTROL_COST
    }

    /// The number of parties that this tunnel carries data for: each stream of an opener may be that
    /// of another.
    #[must_use]
    pub fn parties(&self) -> usize {
        match self.dialect.role() {
            Role::Opener => self.streams.len().max(1),
            Role::Acceptor => 1,
        }
    }

    /// While pressed, the session refuses new connections (ERROR, limit) and holds little more than
    /// it does: windows do not grow, and streams queue little. For a bound on many sessions together.
    pub fn set_pressed(&mut self, pressed: bool) {
        let relieved = self.pressed && !pressed;
        self.pressed = pressed;
        self.sending.set_pressed(pressed);
        self.receiving.set_pressed(pressed);
        if relieved {
            self.sending.wake(&mut self.streams, &mut self.events);
        }
    }

    /// While thrifty, the session copies the payloads of streams. Without a copy, a small payload can
    /// keep a large buffer of the transport allocated. For a bound on many sessions together.
    pub fn set_thrifty(&mut self, thrifty: bool) {
        self.receiving.set_thrifty(thrifty);
    }

    /// Resets streams with reason overflow, those that hold most first, until
    /// [`memory`](Self::memory) is at most `target` or none holds anything. What they held is
    /// dropped.
    pub fn shed(&mut self, target: usize) {
        let streams = self.streams.iter();
        let mut holders: Vec<_> = streams
            .map(|s| (s.recv.unread() + s.send.unsent(), s.id()))
            .filter(|(held, _)| *held > 0)
            .collect();
        holders.sort_unstable_by_key(|holder| core::cmp::Reverse(*holder));
        for (_, stream) in holders {
            if self.memory() <= target {
                return;
            }
            self.overflow(stream, "memory is short here");
        }
    }
}
