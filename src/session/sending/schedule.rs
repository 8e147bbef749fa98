use alloc::collections::VecDeque;

use super::super::StreamId;

/// Which stream may send next: deficit round robin by bytes, with a head start for streams that
/// were idle.
///
/// A stream that becomes active gets one quantum ahead of bulk streams, so a keystroke does not
/// wait behind a download. Afterwards it takes turns with the others, even if its queue ran empty,
/// so it cannot stay ahead by sending little and often.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    fresh: VecDeque<StreamId>,
    bulk: VecDeque<StreamId>,
    /// Fresh turns since the last bulk turn.
    fresh_run: u32,
}

/// A stream's place in the [`Schedule`].
#[derive(Debug, Default)]
pub(super) struct Turn {
    round: Round,
    /// Bytes that the stream may still send in this turn. Below zero it has sent too much, which is
    /// deducted from its next turns.
    deficit: i32,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Round {
    #[default]
    Idle,
    Fresh,
    Bulk,
}

impl Turn {
    /// Whether the stream had nothing to send when its turn came.
    pub(super) fn is_idle(&self) -> bool {
        self.round == Round::Idle
    }

    /// Whether the stream need not let this turn pass.
    #[cfg(feature = "mux")]
    pub(super) fn may_send(&self) -> bool {
        self.deficit > 0
    }

    /// What the stream may send in its next turn. A message may be longer than the quantum, which
    /// shrinks while many streams wait. Such an overdraft costs it at most two turns.
    fn refill(&mut self, quantum: usize) {
        let quantum = bytes(quantum);
        self.deficit = (self.deficit + quantum).clamp(-quantum, quantum);
    }
}

impl Schedule {
    /// Most fresh turns in a row while bulk waits.
    const MAX_FRESH_RUN: u32 = 16;

    /// The stream has something to send. A `bulk` stream only waited for room, so it does not go
    /// first.
    pub(super) fn activate(&mut self, id: StreamId, turn: &mut Turn, quantum: usize, bulk: bool) {
        if turn.round == Round::Idle {
            turn.deficit = bytes(quantum);
            if bulk {
                turn.round = Round::Bulk;
                self.bulk.push_back(id);
            } else {
                turn.round = Round::Fresh;
                self.fresh.push_back(id);
            }
        }
    }

    /// Takes the stream whose turn is next. The stream may be gone; if not,
    /// [`defer`](Self::defer) or [`sent`](Self::sent) puts it back.
    pub(super) fn pop(&mut self) -> Option<StreamId> {
        if self.fresh_run < Self::MAX_FRESH_RUN || self.bulk.is_empty() {
            if let Some(id) = self.fresh.pop_front() {
                self.fresh_run += 1;
                return Some(id);
            }
        }
        self.fresh_run = 0;
        self.bulk.pop_front()
    }

    /// Whether the stream has sent so much in its turns before that this one passes.
    pub(super) fn defer(&mut self, id: StreamId, turn: &mut Turn, quantum: usize) -> bool {
        let defers = turn.deficit <= 0;
        if defers {
            turn.refill(quantum);
            self.bulk.push_back(id);
        }
        defers
    }

    /// The stream has sent `len` bytes; `more` says whether it has more to send.
    pub(super) fn sent(
        &mut self,
        id: StreamId,
        turn: &mut Turn,
        len: usize,
        more: bool,
        quantum: usize,
    ) {
        turn.deficit -= bytes(len);
        let fresh = turn.round == Round::Fresh;
        if more && turn.deficit > 0 {
            let list = if fresh {
                &mut self.fresh
            } else {
                &mut self.bulk
            };
            list.push_front(id);
        } else if more || fresh {
            turn.refill(quantum);
            turn.round = Round::Bulk;
            self.bulk.push_back(id);
        } else {
            turn.round = Round::Idle;
        }
    }

    /// The only stream that takes turns, unless it is its first one.
    #[cfg(feature = "mux")]
    pub(super) fn last(&self) -> Option<StreamId> {
        let only = self.bulk.front().filter(|_| self.bulk.len() == 1);
        only.filter(|_| self.fresh.is_empty()).copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.bulk.is_empty()
    }

    /// There were many more streams before.
    pub(super) fn shrink(&mut self) {
        self.fresh.shrink_to_fit();
        self.bulk.shrink_to_fit();
    }

    /// Whether so many streams take turns that a round of full pieces would be long.
    pub(super) fn is_contended(&self) -> bool {
        const FEW: usize = 4;
        self.fresh.len() + self.bulk.len() > FEW
    }
}

/// A piece has at most 1 MiB.
fn bytes(len: usize) -> i32 {
    i32::try_from(len).unwrap_or(i32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const QUANTUM: usize = 1000;

    fn id(slot: usize) -> StreamId {
        StreamId::of_slot(slot)
    }

    /// One message of `len(slot)` bytes by the stream that may send next.
    fn send(schedule: &mut Schedule, turns: &mut [Turn], len: impl Fn(usize) -> usize) -> usize {
        loop {
            let next = schedule.pop().unwrap();
            let slot = next.slot();
            let turn = &mut turns[slot];
            if !schedule.defer(next, turn, QUANTUM) {
                schedule.sent(next, turn, len(slot), true, QUANTUM);
                return slot;
            }
        }
    }

    #[test]
    fn bytes_are_shared_whatever_the_message_size() {
        for lens in [[1000, 100, 333], [2000, 1000, 333], [3000, 1500, 1000]] {
            let mut schedule = Schedule::default();
            let mut turns = [Turn::default(), Turn::default(), Turn::default()];
            for (slot, turn) in turns.iter_mut().enumerate() {
                schedule.activate(id(slot), turn, QUANTUM, false);
            }
            let len = |slot: usize| lens[slot];
            let mut bytes = [0_usize; 3];
            for _ in 0..10_000 {
                let slot = send(&mut schedule, &mut turns, len);
                bytes[slot] += len(slot);
            }
            let (least, most) = (bytes.iter().min().unwrap(), bytes.iter().max().unwrap());
            assert!(most - least <= 3 * QUANTUM, "{bytes:?}");
        }
    }

    /// The bytes of a message above its bound are not deducted, or one stream would wait for long.
    #[test]
    fn an_overdraft_costs_at_most_two_turns() {
        let mut schedule = Schedule::default();
        let mut turns = [Turn::default(), Turn::default()];
        for (slot, turn) in turns.iter_mut().enumerate() {
            schedule.activate(id(slot), turn, QUANTUM, true);
        }
        let len = |slot: usize| [1 << 20, QUANTUM][slot];
        let sent: Vec<_> = (0..9)
            .map(|_| send(&mut schedule, &mut turns, len))
            .collect();
        assert_eq!(sent, [0, 1, 1, 1, 0, 1, 1, 1, 0]);
    }

    #[test]
    fn a_newcomer_goes_first_once() {
        let mut schedule = Schedule::default();
        let mut turns: Vec<Turn> = (0..3).map(|_| Turn::default()).collect();
        schedule.activate(id(0), &mut turns[0], QUANTUM, false);
        schedule.activate(id(1), &mut turns[1], QUANTUM, false);
        for _ in 0..4 {
            send(&mut schedule, &mut turns, |_| 1000);
        }
        schedule.activate(id(2), &mut turns[2], QUANTUM, false);
        let next = schedule.pop().unwrap();
        assert_eq!(next, id(2));
        schedule.sent(next, &mut turns[2], 10, false, QUANTUM);
        // The queue ran empty: the stream keeps its place in the round and does not go first again.
        schedule.activate(id(2), &mut turns[2], QUANTUM, false);
        assert_ne!(schedule.pop().unwrap(), id(2));
    }

    #[test]
    fn a_flood_of_newcomers_does_not_starve_bulk() {
        let mut schedule = Schedule::default();
        let mut turns: Vec<Turn> = (0..200).map(|_| Turn::default()).collect();
        schedule.activate(id(0), &mut turns[0], QUANTUM, false);
        send(&mut schedule, &mut turns, |_| 1000);
        for (slot, turn) in turns.iter_mut().enumerate().skip(1) {
            schedule.activate(id(slot), turn, QUANTUM, false);
        }
        let first = (0..100).position(|_| send(&mut schedule, &mut turns, |_| 1000) == 0);
        assert!(first.is_some_and(|turns| turns <= Schedule::MAX_FRESH_RUN as usize));
    }
}
