//! The memory a session holds, and how it reacts when memory is short.

use alloc::vec::Vec;

use super::endpoint::Session;
use super::stream::Stream;
use super::{Reason, Role, StreamId};

impl Session {
    /// Estimate of the bytes a stream costs besides its queues: its handle and the task that serves
    /// it.
    const STREAM_COST: usize = 2048;
    /// Estimate of the further bytes that a stream costs until it is accepted, while its connection
    /// is made. The programs hold 4 KiB for both, and a socket.
    const PENDING_COST: usize = 4 << 10;
    /// Estimate of the bytes a queued control message costs.
    const CONTROL_COST: usize = 256;
    /// Estimate of the bytes a remembered id costs.
    const ENDED_COST: usize = 128;

    /// Bytes that the peer makes this tunnel hold: all queued bytes, with 64 more for each
    /// datagram, in `mux` also those that applications have taken and not used yet, and an estimate
    /// for streams, answers and remembered ids.
    ///
    /// Streams and ids of an opener are not counted, because this end opened them. Their cost is
    /// charged where the request came from.
    #[must_use]
    pub fn memory(&self) -> usize {
        let streams = match self.dialect.role() {
            Role::Opener => 0,
            Role::Acceptor => {
                self.streams.len() * Self::STREAM_COST
                    + self.streams.spare()
                    + self.streams.pending() * Self::PENDING_COST
                    + self.streams.remembered() * Self::ENDED_COST
            }
        };
        streams + self.queued() + self.control.len() * Self::CONTROL_COST
    }

    /// The part of [`memory`](Self::memory) that resets give back.
    fn queued(&self) -> usize {
        self.receiving.memory() + self.sending.memory()
    }

    /// Number of parties that use this tunnel. Each stream of an opener may belong to a different
    /// party. 0 once the tunnel has ended and its streams are released.
    #[must_use]
    pub fn parties(&self) -> usize {
        let streams = self.streams.len();
        let most = match self.dialect.role() {
            Role::Opener => streams.max(1),
            Role::Acceptor => 1,
        };
        if self.closed { streams.min(most) } else { most }
    }

    /// All streams together may hold `bytes` that were received. Close to that the
    /// transport is not read while readers make room, as close to
    /// [`Config::receive_budget`](super::Config::receive_budget); no stream is reset. Messages to
    /// send are short meanwhile. `None`: as many as the budget allows. For code that bounds many
    /// sessions together.
    pub fn set_share(&mut self, bytes: Option<usize>) {
        self.receiving.set_share(bytes);
        self.sending.set_sparing(bytes.is_some());
    }

    /// While pressed, the session refuses new connections (ERROR, limit) and hardly holds more:
    /// windows do not grow, streams queue little, and few ended ids are remembered. For code that
    /// bounds many sessions together.
    pub fn set_pressed(&mut self, pressed: bool) {
        let changed = self.pressed != pressed;
        self.pressed = pressed;
        if pressed {
            self.streams.forget_ended();
        }
        self.sending.set_pressed(pressed);
        self.receiving.set_pressed(pressed);
        if changed {
            self.sending.wake(&mut self.streams, &mut self.events);
        }
    }

    /// While thrifty, the session copies the payloads that it receives. Without a copy, a small
    /// payload can keep a large buffer of the transport alive. For code that bounds many sessions
    /// together.
    pub fn set_thrifty(&mut self, thrifty: bool) {
        self.receiving.set_thrifty(thrifty);
    }

    /// The reader of an expendable stream cannot read for a while, for example because it is behind
    /// a tunnel that has lost its transport. When too much is held, expendable streams that hold
    /// something are reset before all others. In a stall of v1 they do not count as waiting.
    pub fn set_expendable(&mut self, stream: StreamId, expendable: bool) {
        if let Some(s) = self.streams.get_mut(stream) {
            s.recv.set_expendable(expendable);
        }
    }

    /// Refuses (ERROR, limit) connections that were not accepted yet, until [`memory`](Self::memory)
    /// is at most `target` or none is left. A peer that sends 14 bytes for each holds them most
    /// cheaply. For code that bounds many sessions together.
    pub fn refuse_pending(&mut self, target: usize) {
        let excess = self.memory().saturating_sub(target);
        if excess == 0 || self.streams.pending() == 0 {
            return;
        }
        let most = excess.div_ceil(Self::STREAM_COST + Self::PENDING_COST);
        let pending = self.streams.iter().filter(|s| s.life.is_asked_for());
        // Those that were refused before and are not released yet count, too.
        let refused = pending.take(most).filter(|s| s.life.reset().is_none());
        let refused: Vec<_> = refused.map(Stream::id).collect();
        let text = alloc::format!("memory is short {}", self.config.place);
        for stream in refused {
            self.reset(stream, Reason::Limit, &text);
        }
    }

    /// Resets streams with reason overflow, expendable ones and then those that hold most, until
    /// [`memory`](Self::memory) is at most `target` or no stream holds anything. Drops what they
    /// held. If the rest alone exceeds `target`, the queues may still hold up to `target`.
    pub fn shed(&mut self, target: usize) {
        let besides = self.memory() - self.queued();
        let target = match target.saturating_sub(besides) {
            0 => target,
            left => left,
        };
        if self.queued() <= target {
            return;
        }
        let streams = self.streams.iter();
        let mut holders: Vec<_> = streams
            .map(|s| (s.recv.is_first_victim(), s.memory(), s.id()))
            .filter(|(_, held, _)| *held > 0)
            .collect();
        holders.sort_unstable_by_key(|holder| core::cmp::Reverse(*holder));
        for (_, _, stream) in holders {
            if self.queued() <= target {
                return;
            }
            let text = alloc::format!("memory is short {}", self.config.place);
            self.overflow(stream, &text);
        }
    }
}
