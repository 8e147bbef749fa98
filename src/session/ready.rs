use alloc::collections::VecDeque;

use super::StreamId;

/// Streams that wait for something, in order of arrival. Each is in a list at most once.
#[derive(Debug, Default)]
pub(super) struct List {
    queue: VecDeque<StreamId>,
}

/// Whether a stream is in one [`List`].
#[derive(Debug, Default)]
pub(super) struct Place {
    taken: bool,
}

impl List {
    /// Adds the stream, unless it is in the list.
    pub(super) fn push(&mut self, id: StreamId, place: &mut Place) {
        if place.take() {
            self.queue.push_back(id);
        }
    }

    /// Removes the first stream. The stream may be gone; if not, call [`leave`](Place::leave) on
    /// its place.
    pub(super) fn pop(&mut self) -> Option<StreamId> {
        self.queue.pop_front()
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// There were many more streams before.
    pub(super) fn shrink(&mut self) {
        self.queue.shrink_to_fit();
    }
}

impl Place {
    /// Returns whether the place was free.
    pub(super) fn take(&mut self) -> bool {
        !core::mem::replace(&mut self.taken, true)
    }

    pub(super) const fn is_taken(&self) -> bool {
        self.taken
    }

    pub(super) fn leave(&mut self) {
        self.taken = false;
    }
}
