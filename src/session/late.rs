//! What is late: messages for streams that have ended.

use alloc::collections::BTreeMap;

use crate::wire::ClientId;

/// The ids that ended most recently. Late messages for them are normal traffic, and the ids are not
/// free yet.
///
/// Bounded by count. The oldest id is forgotten first and is then free again.
#[derive(Debug)]
pub(super) struct EndedIds {
    max: usize,
    ids: BTreeMap<ClientId, EndedId>,
    /// Oldest first.
    order: BTreeMap<u64, ClientId>,
    last_number: u64,
}

#[derive(Debug)]
struct EndedId {
    number: u64,
    /// Whether a late DATA was answered, or needs no answer.
    answered: bool,
    /// Bytes that the peer may have sent before it learned of the end.
    credit: u64,
}

impl EndedIds {
    /// Least number of remembered ids.
    const LEAST: usize = 1024;

    /// Remembers `max_streams` ids, but at least [`LEAST`](Self::LEAST).
    pub(super) fn new(max_streams: usize) -> Self {
        Self {
            max: max_streams.max(Self::LEAST),
            ids: BTreeMap::new(),
            order: BTreeMap::new(),
            last_number: 0,
        }
    }

    pub(super) fn remember(&mut self, id: ClientId, answered: bool, credit: u64) {
        if let Some(ended) = self.ids.get_mut(&id) {
            ended.answered = answered;
            return;
        }
        self.last_number += 1;
        let number = self.last_number;
        let ended = EndedId {
            number,
            answered,
            credit,
        };
        self.ids.insert(id, ended);
        self.order.insert(number, id);
        self.keep(self.max);
    }

    /// Forgets the oldest ids beyond [`LEAST`](Self::LEAST).
    pub(super) fn shrink(&mut self) {
        self.keep(Self::LEAST);
    }

    fn keep(&mut self, most: usize) {
        while self.order.len() > most {
            if let Some((_, oldest)) = self.order.pop_first() {
                self.ids.remove(&oldest);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn contains(&self, id: ClientId) -> bool {
        self.ids.contains_key(&id)
    }

    /// Whether to answer a late DATA for `id` now. True once for an id, known or not. An unknown
    /// one has `credit` for more.
    pub(super) fn answer(&mut self, id: ClientId, credit: u64) -> bool {
        let answered = self.ids.get(&id).is_some_and(|ended| ended.answered);
        self.remember(id, true, credit);
        !answered
    }

    /// Subtracts late bytes for `id` from its remaining credit. The error is by how much they
    /// exceed it.
    pub(super) fn receive(&mut self, id: ClientId, len: usize) -> Result<(), u64> {
        let Some(ended) = self.ids.get_mut(&id) else {
            return Ok(());
        };
        let len = len as u64;
        let excess = len.saturating_sub(ended.credit);
        ended.credit = ended.credit.saturating_sub(len);
        if excess > 0 { Err(excess) } else { Ok(()) }
    }

    /// The id is in use again.
    pub(super) fn forget(&mut self, id: ClientId) {
        if let Some(ended) = self.ids.remove(&id) {
            self.order.remove(&ended.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_frame_is_answered_once_and_memory_is_bounded() {
        let mut ended = EndedIds::new(2_000);
        ended.remember(ClientId(1), false, 0);
        ended.remember(ClientId(2), true, 0);
        assert!(ended.answer(ClientId(1), 0) && !ended.answer(ClientId(1), 0));
        assert!(!ended.answer(ClientId(2), 0));
        for id in 3..5_000 {
            assert!(ended.answer(ClientId(id), 0));
        }
        assert_eq!(ended.ids.len(), 2_000);
        assert_eq!(ended.order.len(), 2_000);
        ended.forget(ClientId(4_999));
        assert!(!ended.contains(ClientId(4_999)));
        // Remembered again, it is the youngest.
        ended.forget(ClientId(3_000));
        ended.remember(ClientId(3_000), true, 0);
        for id in 5_000..6_999 {
            ended.remember(ClientId(id), true, 0);
        }
        assert!(ended.contains(ClientId(3_000)) && !ended.contains(ClientId(4_998)));
        assert_eq!((ended.ids.len(), ended.order.len()), (2_000, 2_000));
    }
}
