use alloc::collections::{BTreeMap, VecDeque};

use crate::wire::ClientId;

/// Hands out client ids: counts up from 1, wraps, never gives 0 or one in use.
#[derive(Debug, Default)]
pub(super) struct IdAllocator {
    last: u32,
}

impl IdAllocator {
    #[cfg(test)]
    pub(super) fn starting_after(last: u32) -> Self {
        Self { last }
    }

    /// The next id for which `in_use` is false. Terminates because fewer than 2^32 - 1 ids are in use.
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

/// The ids that ended last: late frames for them are normal traffic.
///
/// Bounded by count; the oldest are forgotten first.
#[derive(Debug)]
pub(super) struct Tombstones {
    max: usize,
    /// Whether a late DATA was, or need not be, answered.
    answered: BTreeMap<ClientId, bool>,
    order: VecDeque<ClientId>,
}

impl Tombstones {
    const LEAST: usize = 1024;

    /// Remembers as many ids as may end at once, or somewhat more.
    pub(super) fn new(max_streams: usize) -> Self {
        Self {
            max: max_streams.max(Self::LEAST),
            answered: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }

    pub(super) fn bury(&mut self, id: ClientId, answered: bool) {
        if self.answered.insert(id, answered).is_some() {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > self.max {
            if let Some(oldest) = self.order.pop_front() {
                self.answered.remove(&oldest);
            }
        }
    }

    pub(super) fn contains(&self, id: ClientId) -> bool {
        self.answered.contains_key(&id)
    }

    /// Whether a late DATA for `id` is to be answered now. True once for an id, known or not.
    pub(super) fn answer(&mut self, id: ClientId) -> bool {
        let answered = self.answered.get(&id).copied().unwrap_or(false);
        self.bury(id, true);
        !answered
    }

    /// The id lives again.
    pub(super) fn revive(&mut self, id: ClientId) {
        if self.answered.remove(&id).is_some() {
            self.order.retain(|buried| *buried != id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_wrap_and_skip_zero_and_live_ones() {
        let mut ids = IdAllocator::starting_after(u32::MAX - 1);
        let live = [ClientId(1), ClientId(2)];
        let in_use = |id| live.contains(&id);
        assert_eq!(ids.allocate(in_use), ClientId(u32::MAX));
        assert_eq!(ids.allocate(in_use), ClientId(3));
    }

    #[test]
    fn a_late_frame_is_answered_once_and_memory_is_bounded() {
        let mut graves = Tombstones::new(2_000);
        graves.bury(ClientId(1), false);
        graves.bury(ClientId(2), true);
        assert!(graves.answer(ClientId(1)) && !graves.answer(ClientId(1)));
        assert!(!graves.answer(ClientId(2)));
        for id in 3..5_000 {
            assert!(graves.answer(ClientId(id)));
        }
        assert_eq!(graves.answered.len(), 2_000);
        assert_eq!(graves.order.len(), 2_000);
        graves.revive(ClientId(4_999));
        assert!(!graves.contains(ClientId(4_999)));
    }
}
