use alloc::collections::VecDeque;

use super::super::budget::QueueBudget;
use crate::wire::Chunk;

/// Data queued by the application on one stream or flow.
#[derive(Debug, Default)]
pub(super) struct SendQueue {
    chunks: VecDeque<Chunk>,
    len: usize,
}

impl SendQueue {
    pub(super) fn push(&mut self, chunk: Chunk, budget: &mut QueueBudget) {
        budget.add(1, chunk.len());
        self.len += chunk.len();
        self.chunks.push_back(chunk);
    }

    /// Copies bytes into the last chunk if it has room, else into new chunks.
    pub(super) fn push_slice(&mut self, mut bytes: &[u8], piece: usize, budget: &mut QueueBudget) {
        let before = self.chunks.len();
        let len = bytes.len();
        self.len += len;
        if let Some(last) = self.chunks.back_mut() {
            let room = piece.saturating_sub(last.len()).min(bytes.len());
            let (front, _) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            let taken = last.append(front);
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        while !bytes.is_empty() {
            let (front, rest) = bytes
                .split_at_checked(piece.min(bytes.len()))
                .unwrap_or((bytes, &[]));
            // At most as much room as data, so that a waiting stream uses at most twice its bytes.
            let room = match before {
                0 => 0,
                _ => (piece - front.len()).min(self.len),
            };
            self.chunks.push_back(Chunk::copied_with_room(front, room));
            bytes = rest;
        }
        budget.add(self.chunks.len() - before, len);
    }

    /// Takes at most `piece` bytes from the front.
    pub(super) fn pop(&mut self, piece: usize, budget: &mut QueueBudget) -> Option<Chunk> {
        let front = self.chunks.front_mut()?;
        let (chunk, pieces) = if front.len() > piece {
            (front.split_to(piece), 0)
        } else {
            (self.chunks.pop_front()?, 1)
        };
        self.len -= chunk.len();
        budget.remove(pieces, chunk.len());
        if self.chunks.is_empty() && self.chunks.capacity() > 8 {
            // An idle stream should hold little memory.
            self.chunks = VecDeque::new();
        }
        Some(chunk)
    }

    /// Drops everything.
    pub(super) fn clear(&mut self, budget: &mut QueueBudget) {
        budget.remove(self.chunks.len(), self.len);
        *self = Self::default();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes queued.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Entries: for a flow, datagrams.
    pub(super) fn pieces(&self) -> usize {
        self.chunks.len()
    }
}
