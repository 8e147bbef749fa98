/// What the queues of many streams may hold together, and what they hold. Every queue method that
/// changes a queue takes the budget, so the two cannot diverge.
#[derive(Debug, Default)]
pub(super) struct QueueBudget {
    /// Most bytes.
    limit: usize,
    bytes: usize,
    /// Entries of the queues: for flows, datagrams.
    pieces: usize,
}

impl QueueBudget {
    /// Overhead of each piece in bytes: an empty datagram uses memory too.
    const OVERHEAD: usize = 64;

    pub(super) const fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: 0,
            pieces: 0,
        }
    }

    pub(super) fn add(&mut self, pieces: usize, bytes: usize) {
        self.pieces += pieces;
        self.bytes += bytes;
    }

    pub(super) fn remove(&mut self, pieces: usize, bytes: usize) {
        self.pieces -= pieces;
        self.bytes -= bytes;
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes with the overhead of pieces, for queues with pieces of any size.
    pub(super) const fn memory(&self) -> usize {
        Self::memory_of(self.pieces, self.bytes)
    }

    /// As [`memory`](Self::memory), of so many pieces with so many bytes.
    pub(super) const fn memory_of(pieces: usize, bytes: usize) -> usize {
        bytes + pieces * Self::OVERHEAD
    }

    /// Whether the budget is exceeded.
    pub(super) const fn is_over(&self) -> bool {
        self.bytes > self.limit
    }

    /// Whether one more piece of `len` bytes fits, counting the overhead of pieces.
    pub(super) const fn has_room(&self, len: usize) -> bool {
        self.memory() + len + Self::OVERHEAD <= self.limit
    }

    /// Whether these queues, by pieces and bytes, match the total.
    pub(super) fn audit(&self, queues: impl Iterator<Item = (usize, usize)>) -> bool {
        let sum = queues.fold((0, 0), |sum, queue| (sum.0 + queue.0, sum.1 + queue.1));
        sum == (self.pieces, self.bytes)
    }
}
