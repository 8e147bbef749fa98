use alloc::collections::VecDeque;

use super::Role;
use crate::wire::Frame;

/// Messages that go ahead of all data.
#[derive(Debug)]
pub(super) struct Control {
    role: Role,
    max_replies: usize,
    frames: VecDeque<(Frame, Cause)>,
    /// How many of the queued messages are replies.
    replies: usize,
}

/// Which end made a control message necessary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// This end. Bounded by the number of its streams.
    Own,
    /// The peer. Bounded because receiving stops.
    Reply,
}

impl Control {
    pub(super) const fn new(role: Role, max_replies: usize) -> Self {
        Self {
            role,
            max_replies,
            frames: VecDeque::new(),
            replies: 0,
        }
    }

    /// Queues a message about a connection or the tunnel. An acceptor's messages count as replies:
    /// only the peer's messages cause them.
    #[inline]
    pub(super) fn push(&mut self, frame: Frame) {
        let cause = match self.role {
            Role::Opener => Cause::Own,
            Role::Acceptor => Cause::Reply,
        };
        self.queue(frame, cause);
    }

    /// Queues an answer to a message of the peer.
    pub(super) fn reply(&mut self, frame: Frame) {
        self.queue(frame, Cause::Reply);
    }

    pub(super) fn pop(&mut self) -> Option<Frame> {
        let (frame, cause) = self.frames.pop_front()?;
        self.replies -= usize::from(cause == Cause::Reply);
        if self.frames.is_empty() {
            self.frames.shrink_to(64);
        }
        Some(frame)
    }

    pub(super) fn clear(&mut self) {
        self.frames = VecDeque::new();
        self.replies = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether the end of a connection is among them.
    #[cfg(feature = "mux")]
    pub(super) fn has_end(&self) -> bool {
        let is_end = |(frame, _): &_| matches!(frame, Frame::Close { .. } | Frame::Error { .. });
        self.frames.iter().any(is_end)
    }

    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Messages that are not replies.
    pub(super) fn own(&self) -> usize {
        self.frames.len() - self.replies
    }

    /// Whether too many answers wait for the transport to receive a message that needs one.
    pub(super) const fn is_congested(&self) -> bool {
        self.replies >= self.max_replies
    }

    #[inline]
    fn queue(&mut self, frame: Frame, cause: Cause) {
        self.replies += usize::from(cause == Cause::Reply);
        self.frames.push_back((frame, cause));
    }
}
