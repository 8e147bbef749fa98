use alloc::collections::VecDeque;
use core::fmt;

use bytes::Bytes;

use super::Config;
use super::message::is_end_of_connection;

/// The counted messages that the peer has not acknowledged, and the place of the next one to
/// transmit.
pub(super) struct Ring {
    messages: VecDeque<Bytes>,
    /// Messages acknowledged: the number of the first one here.
    base: u64,
    /// The number of the next message to transmit.
    next: u64,
    /// Messages sent up to the last one that ended a connection.
    last_end: u64,
    /// Bytes of the messages here, with what keeping them costs.
    held: usize,
    /// Bytes from which on the ring is full.
    limit: usize,
    min: usize,
    max: usize,
    /// Most that the driver allows.
    allowed: usize,
    /// Bytes from which on no more data is taken, whatever the limit is.
    share: usize,
    /// What was held of the old limit when it was lowered, until that is acknowledged.
    excess: usize,
    /// Since the limit last grew: whether the ring was full, and bytes acknowledged.
    was_full: bool,
    acked: usize,
}

/// Without the contents of messages.
impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("messages", &self.messages.len())
            .field("base", &self.base)
            .field("next", &self.next)
            .field("held", &self.held)
            .field("limit", &self.limit)
            .field("excess", &self.excess)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// What a message counts beyond its length: the cost of keeping it.
    pub(super) const OVERHEAD: usize = 64;

    /// Entries that an idle ring keeps room for.
    const IDLE_CAPACITY: usize = 16;

    pub(super) fn new(config: &Config) -> Self {
        Self {
            messages: VecDeque::new(),
            base: 0,
            next: 0,
            last_end: 0,
            held: 0,
            limit: config.ring_min,
            min: config.ring_min,
            max: config.ring_max,
            allowed: config.ring_max,
            share: usize::MAX,
            excess: 0,
            was_full: false,
            acked: 0,
        }
    }

    /// Keeps a message that is transmitted now, or later if others wait.
    #[inline]
    pub(super) fn push(&mut self, message: Bytes) {
        let transmitted = !self.is_replaying();
        self.held += cost(&message);
        let is_end = is_end_of_connection(&message);
        self.messages.push_back(message);
        if is_end {
            self.last_end = self.sent();
        }
        if transmitted {
            self.next = self.sent();
        }
        self.was_full |= self.held >= self.limit;
    }

    /// The peer has received this many messages. Counts up to `sent` only; never goes back.
    pub(super) fn ack(&mut self, received: u64) {
        while self.base < received {
            let Some(message) = self.messages.pop_front() else {
                break;
            };
            let cost = cost(&message);
            self.base += 1;
            self.held -= cost;
            self.acked = self.acked.saturating_add(cost);
        }
        self.next = self.next.max(self.base);
        self.excess = self.excess.min(self.held);
        if self.was_full && self.acked >= self.limit {
            self.was_full = false;
            self.acked = 0;
            self.limit = self.clamp(self.max);
        }
        if self.messages.len() <= Self::IDLE_CAPACITY / 2
            && self.messages.capacity() > Self::IDLE_CAPACITY
        {
            self.messages.shrink_to(Self::IDLE_CAPACITY);
        }
    }

    /// Everything that is kept is to be transmitted again.
    pub(super) fn rewind(&mut self) {
        self.next = self.base;
    }

    /// The next message to transmit again.
    pub(super) fn replay(&mut self) -> Option<Bytes> {
        let at = usize::try_from(self.next - self.base).ok()?;
        let message = self.messages.get(at)?.clone();
        self.next += 1;
        Some(message)
    }

    /// The tunnel has ended: drops everything.
    pub(super) fn clear(&mut self) {
        self.base = self.sent();
        self.next = self.base;
        self.held = 0;
        self.messages = VecDeque::new();
    }

    /// The ring may grow to `bytes`, within its configuration.
    pub(super) fn allow(&mut self, bytes: usize) {
        let before = self.limit;
        self.allowed = bytes;
        self.limit = self.clamp(before);
        if self.limit < before && self.held >= self.limit {
            self.excess = self.excess.max(self.held.min(before));
        }
    }

    /// While memory is short, the ring is full from `bytes` on.
    pub(super) fn set_share(&mut self, bytes: Option<usize>) {
        self.share = bytes.unwrap_or(usize::MAX);
    }

    /// Messages sent since the tunnel began, whether transmitted or not.
    pub(super) fn sent(&self) -> u64 {
        self.base + self.messages.len() as u64
    }

    /// Messages acknowledged.
    pub(super) const fn base(&self) -> u64 {
        self.base
    }

    /// Whether messages wait to be transmitted again.
    #[inline]
    pub(super) fn is_replaying(&self) -> bool {
        self.next < self.sent()
    }

    /// Whether the peer may not know of the end of a connection.
    pub(super) const fn holds_end(&self) -> bool {
        self.base < self.last_end
    }

    /// Whether no more data should be taken.
    #[inline]
    pub(super) const fn is_full(&self) -> bool {
        self.held >= self.limit || self.held >= self.share
    }

    /// Whether even control messages are too many: more than `reserve` bytes beyond the limit.
    #[inline]
    pub(super) const fn is_over(&self, reserve: usize) -> bool {
        let limit = if self.excess > self.limit {
            self.excess
        } else {
            self.limit
        };
        self.held > limit.saturating_add(reserve)
    }

    pub(super) const fn held(&self) -> usize {
        self.held
    }

    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    /// Messages and bytes that wait to be transmitted again.
    pub(super) fn behind(&self) -> (u64, u64) {
        let skip = usize::try_from(self.next - self.base).unwrap_or(usize::MAX);
        let behind = self.messages.iter().skip(skip);
        behind.fold((0, 0), |(n, bytes), message| {
            (n + 1, bytes + message.len() as u64)
        })
    }

    /// Whether counts and bytes match the messages.
    pub(super) fn audit(&self) -> bool {
        self.held == self.messages.iter().map(cost).sum()
            && (self.base..=self.sent()).contains(&self.next)
            && (self.min..=self.max).contains(&self.limit)
    }

    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.messages.capacity() * size_of::<Bytes>()
    }

    fn clamp(&self, limit: usize) -> usize {
        limit.min(self.allowed.min(self.max)).max(self.min)
    }
}

fn cost(message: &Bytes) -> usize {
    message.len() + Ring::OVERHEAD
}
