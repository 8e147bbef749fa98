use alloc::boxed::Box;

use super::receiving::{Conversation, ReceiveBuffer, ReceiveWindow};
use super::sending::{SendQueue, Turn};
use super::{Instant, Reset, State, Version};
use crate::wire::{ClientId, Proto};

/// Everything the session knows of one stream or flow.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) generation: u32,
    pub(super) id: ClientId,
    pub(super) proto: Proto,
    pub(super) state: State,
    pub(super) reset: Option<Box<Reset>>,

    pub(super) queue: SendQueue,
    pub(super) turn: Turn,
    /// CLOSE follows what is queued.
    pub(super) finishing: bool,

    pub(super) unread: ReceiveBuffer,
    pub(super) window: ReceiveWindow,
    /// Stands in the list of streams with credit to announce.
    pub(super) window_queued: bool,
    /// Bytes counted by [`Early`](super::receiving::Early).
    pub(super) early: usize,

    pub(super) flags: Flags,
    pub(super) conversation: Conversation,
    /// When a direction that the peer may never end is given up.
    pub(super) deadline: Option<Instant>,
}

/// What the user of the stream wants to hear, and was told.
#[derive(Debug, Default)]
pub(super) struct Flags {
    /// The handle is gone: nothing more is read or sent.
    pub(super) released: bool,
    /// What arrives is thrown away.
    pub(super) deaf: bool,
    /// Sending was refused; the user waits for room.
    pub(super) blocked: bool,
    /// Stands in the list of streams that wait for the session's send budget.
    pub(super) budget_queued: bool,
    /// Stands in the list of flows with something to send.
    pub(super) flow_queued: bool,
    pub(super) readable_queued: bool,
    pub(super) writable_queued: bool,
}

impl Stream {
    pub(super) fn new(
        generation: u32,
        id: ClientId,
        proto: Proto,
        state: State,
        version: Version,
        now: Instant,
    ) -> Self {
        Self {
            generation,
            id,
            proto,
            state,
            reset: None,
            queue: SendQueue::new(proto, version, state),
            turn: Turn::default(),
            finishing: false,
            unread: ReceiveBuffer::default(),
            window: ReceiveWindow::new(now),
            window_queued: false,
            early: 0,
            flags: Flags::default(),
            conversation: Conversation::default(),
            deadline: None,
        }
    }

    pub(super) fn can_send(&self) -> bool {
        self.state.can_send() && !self.finishing && self.reset.is_none()
    }

    /// Whether poll_transmit has something to do for it.
    pub(super) fn has_output(&self) -> bool {
        !self.queue.is_empty() || (self.finishing && self.state.can_send())
    }
}
