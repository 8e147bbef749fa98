use crate::wire::ClientId;

/// Allocates client ids: counts up from the first, wraps, and skips 0 and ids in use (PROTOCOL.md
/// section 2.3).
#[derive(Debug)]
pub(super) struct IdAllocator {
    last: u32,
}

impl IdAllocator {
    pub(super) fn starting_at(first: u32) -> Self {
        let last = first.max(1) - 1;
        Self { last }
    }

    /// The next id for which `in_use` is false. Terminates because fewer than 2^32 - 1 ids are in
    /// use.
    pub(super) fn allocate(&mut self, in_use: impl Fn(ClientId) -> bool) -> ClientId {
        loop {
            self.last = self.last.wrapping_add(1).max(1);
            let id = ClientId(self.last);
            if !in_use(id) {
                return id;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_wrap_and_skip_zero_and_live_ones() {
        let mut ids = IdAllocator::starting_at(u32::MAX);
        let live = [ClientId(1), ClientId(2)];
        let in_use = |id| live.contains(&id);
        assert_eq!(ids.allocate(in_use), ClientId(u32::MAX));
        assert_eq!(ids.allocate(in_use), ClientId(3));
        assert_eq!(IdAllocator::starting_at(0).allocate(|_| false), ClientId(1));
    }
}
