/// Datagrams that wait, of all flows together.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    count: usize,
    bytes: usize,
}

impl Datagrams {
    /// Bytes that each costs besides its own: an empty one takes memory too.
    const OVERHEAD: usize = 64;

    pub(super) fn add(&mut self, len: usize) {
        self.count += 1;
        self.bytes += len;
    }

    pub(super) fn remove(&mut self, count: usize, bytes: usize) {
        self.count -= count;
        self.bytes -= bytes;
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What they would cost together with one more of `len` bytes.
    pub(super) fn cost_with(&self, len: usize) -> usize {
        self.bytes + len + (self.count + 1) * Self::OVERHEAD
    }
}
