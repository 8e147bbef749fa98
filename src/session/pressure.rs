//! The memory a session holds, and how it reacts when memory is short.

use alloc::vec::Vec;

use super::endpoint::Session;
use super::stream::Stream;
use super::{Reason, Role, StreamId};

/// How much a session may hold while memory is short. Each level includes those before it.
///
/// ```
/// use kohakuriver_tunnel::session::Allowance;
///
/// /// For one of `sessions` that hold `held` bytes together, of `limit`.
/// fn allowance(held: usize, limit: usize, sessions: usize) -> Allowance {
///     let share = limit / 3 / sessions;
///     match held {
///         _ if held > limit / 3 * 2 => Allowance::Exceeded(share),
///         _ if held > limit / 2 => Allowance::Share(share),
///         _ if held > limit / 16 => Allowance::Scarce,
///         _ => Allowance::Ample,
///     }
/// }
/// assert_eq!(allowance(600, 999, 3), Allowance::Share(111));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Allowance {
    /// As much as its [`Config`](super::Config) allows.
    Ample,
    /// The same, but payloads are copied when they are received. Without a copy, a small payload
    /// can keep a large buffer of the transport alive.
    Scarce,
    /// All streams together may hold that many bytes that were received. Close to that the
    /// transport is not read while readers make room, as close to
    /// [`Config::receive_budget`](super::Config::receive_budget); no stream is reset. Messages to
    /// send are short meanwhile.
    ///
    /// If streams and remembered ids cost more than that, without what is queued, new connections
    /// are refused (ERROR, limit), and so many of those that were not accepted yet.
    Share(usize),
    /// The session holds more than that many bytes. It refuses new connections (ERROR, limit) and
    /// hardly holds more: windows do not grow, streams queue little, and few ended ids are
    /// remembered.
    ///
    /// Streams are reset with reason overflow, [expendable](Session::set_expendable) ones and then
    /// those that hold most, until [`Session::memory`] is at most that or no stream holds anything.
    /// What they held is dropped. If the rest alone exceeds it, the queues may still hold up to
    /// that.
    Exceeded(usize),
}

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

    /// The other part.
    fn unqueued(&self) -> usize {
        self.memory() - self.queued()
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

    /// How much the session may hold, for code that bounds many sessions together.
    ///
    /// Only this call refuses and drops what is held beyond an allowance: call it again when
    /// [`memory`](Self::memory) has grown.
    ///
    /// ```
    /// use kohakuriver_tunnel::session::{Allowance, Config, Instant, Role, Session, Version};
    ///
    /// let now = Instant::default();
    /// let mut session = Session::new(Role::Acceptor, Version::V2, Config::default(), now);
    /// let (all_hold_much, share) = (true, 1 << 20);
    /// session.set_allowance(match all_hold_much {
    ///     true if session.memory() > share => Allowance::Exceeded(share),
    ///     true => Allowance::Share(share),
    ///     false => Allowance::Ample,
    /// });
    /// ```
    pub fn set_allowance(&mut self, allowance: Allowance) {
        let (share, is_exceeded) = match allowance {
            Allowance::Ample | Allowance::Scarce => (None, false),
            Allowance::Share(share) => (Some(share), false),
            Allowance::Exceeded(share) => (Some(share), true),
        };
        self.receiving.set_thrifty(allowance != Allowance::Ample);
        self.receiving.set_share(share);
        self.sending.set_sparing(share.is_some());
        self.set_pressed(is_exceeded);
        if let Some(share) = share {
            self.refuse_pending(share);
        }
        self.refuses = is_exceeded || share.is_some_and(|share| self.unqueued() > share);
        if let Allowance::Exceeded(share) = allowance {
            self.shed(share);
        }
    }

    /// While pressed, the session hardly holds more.
    fn set_pressed(&mut self, pressed: bool) {
        if pressed {
            self.streams.forget_ended();
        }
        self.receiving.set_pressed(pressed);
        self.sending
            .set_pressed(pressed, &mut self.streams, &mut self.events);
    }

    /// The reader of an expendable stream cannot read for a while, for example because it is behind
    /// a tunnel that has lost its transport. When too much is held, expendable streams that hold
    /// something are reset before all others. In a stall of v1 they do not count as waiting.
    pub fn set_expendable(&mut self, stream: StreamId, expendable: bool) {
        if let Some(s) = self.streams.get_mut(stream) {
            s.recv.set_expendable(expendable);
        }
    }

    /// Refuses pending connections, as [`Allowance::Share`] says. They cost the peer 14 bytes
    /// each.
    fn refuse_pending(&mut self, target: usize) {
        let excess = self.unqueued().saturating_sub(target);
        let most = excess.div_ceil(Self::STREAM_COST + Self::PENDING_COST);
        // Those that were refused before and are not released yet count, too.
        let refused = self.streams.pending() - self.streams.waiting();
        let missing = most.saturating_sub(refused).min(self.streams.waiting());
        if missing == 0 {
            return;
        }
        let is_waiting = |s: &&Stream| s.life.is_asked_for() && !s.life.is_closed();
        let waiting = self.streams.iter().filter(is_waiting).take(missing);
        let refused: Vec<_> = waiting.map(Stream::id).collect();
        let text = alloc::format!("memory is short {}", self.config.place);
        for stream in refused {
            self.counters.refused += 1;
            self.reset(stream, Reason::Limit, &text);
        }
    }

    /// Resets streams, as [`Allowance::Exceeded`] says.
    fn shed(&mut self, target: usize) {
        let target = match target.saturating_sub(self.unqueued()) {
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
