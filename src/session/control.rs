use alloc::collections::VecDeque;

use bytes::Bytes;

use crate::wire::Frame;

/// Messages that go ahead of all data.
#[derive(Debug, Default)]
pub(super) struct ControlQueue {
    frames: VecDeque<(Frame<Bytes>, Cause)>,
    /// How many of them are replies.
    replies: usize,
}

/// Who made a control message necessary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// This end: bounded by its own streams.
    Own,
    /// A message of the peer: bounded by not receiving more.
    Reply,
}

impl ControlQueue {
    pub(super) fn push(&mut self, frame: Frame<Bytes>, cause: Cause) {
        self.replies += usize::from(cause == Cause::Reply);
        self.frames.push_back((frame, cause));
    }

    pub(super) fn pop(&mut self) -> Option<Frame<Bytes>> {
        let (frame, cause) = self.frames.pop_front()?;
        self.replies -= usize::from(cause == Cause::Reply);
        if self.frames.is_empty() {
            self.frames.shrink_to(64);
        }
        Some(frame)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Answers that wait for the transport.
    pub(super) fn replies(&self) -> usize {
        self.replies
    }
}
