use super::message::is_end_of_connection;
use super::ring::Ring;

/// When received messages are acknowledged.
#[derive(Debug)]
pub(super) struct Acks {
    /// Bytes received and not acknowledged, where each message counts 64 more than its length.
    debt: usize,
    /// Debt from which on an acknowledgement is a write of its own.
    alone: usize,
    /// Debt from which on one goes along with what is being written.
    now: usize,
    /// The session has no connections.
    idle: bool,
    /// What was not acknowledged has the end of a connection in it. Until it is, the peer keeps an
    /// idle tunnel for as long as any other.
    has_end: bool,
}

impl Acks {
    /// Debt from which on an acknowledgement goes along with any write.
    const BESIDE: usize = 128 << 10;
    /// Debt from which on it is a write of its own, if the peer's ring is large enough.
    const ALONE: usize = 512 << 10;
    /// Debt from which on it goes beside a keepalive.
    const KEEPALIVE: usize = 1 << 10;

    pub(super) const fn new() -> Self {
        Self {
            debt: 0,
            alone: Self::ALONE,
            now: Self::ALONE,
            idle: false,
            has_end: false,
        }
    }

    /// The peer keeps at least this many bytes, and waits when they are full.
    pub(super) fn set_peer_ring(&mut self, bytes: u32) {
        let ring = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.alone = (ring / 2).clamp(1, Self::ALONE);
        self.now = self.alone;
    }

    /// One is due, whatever was received.
    pub(super) fn demand(&mut self) {
        self.now = 0;
    }

    /// One is due when the last connection has ended. An end that comes later waits for a
    /// keepalive, so that a peer which sends many is not answered each time.
    pub(super) fn set_idle(&mut self, idle: bool) {
        if idle && !self.idle && self.has_end {
            self.demand();
        }
        self.idle = idle;
    }

    #[inline]
    pub(super) fn received(&mut self, message: &[u8]) {
        let cost = message.len() + Ring::OVERHEAD;
        self.debt = self.debt.saturating_add(cost);
        self.has_end |= is_end_of_connection(message);
    }

    /// A message of the session is being written.
    #[inline]
    pub(super) fn beside(&mut self, message: &[u8]) {
        let least = match message.first() {
            Some(0x06 | 0x07) if self.idle && self.has_end => 0,
            Some(0x06 | 0x07) => Self::KEEPALIVE,
            _ => Self::BESIDE.min(self.alone),
        };
        self.now = self.now.min(least);
    }

    /// Whether to acknowledge now. Otherwise the batch of writes is over.
    #[inline]
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.debt >= self.now;
        self.now = self.alone;
        due
    }

    /// Whether [`is_due`](Self::is_due) is false and changes nothing.
    #[cfg(feature = "mux")]
    pub(super) const fn is_at_rest(&self) -> bool {
        self.debt < self.now && self.now == self.alone
    }

    /// The count was told to the peer.
    pub(super) fn told(&mut self) {
        self.debt = 0;
        self.now = self.alone;
        self.has_end = false;
    }
}
