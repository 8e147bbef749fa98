/// What the queues of many streams hold together. Each method of a queue that changes what it holds
/// takes the pool, so the two cannot come apart.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pool {
    bytes: usize,
    /// Entries of the queues: for flows, datagrams.
    pieces: usize,
}

impl Pool {
    /// Bytes that a piece costs besides its own: an empty datagram takes memory too.
    const OVERHEAD: usize = 64;

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

    /// What all pieces would cost with one more of `len` bytes.
    pub(super) const fn cost_with(&self, len: usize) -> usize {
        self.bytes + len + (self.pieces + 1) * Self::OVERHEAD
    }
}
