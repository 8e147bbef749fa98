use alloc::boxed::Box;
use alloc::collections::VecDeque;

use super::receive::{ReceiveBuffer, ReceiveWindow};
use super::schedule::Turn;
use super::stall::Conversation;
use super::{EARLY_DATA, INITIAL_WINDOW, Instant, Reset, State, Version};
use crate::wire::{Chunk, ClientId, Proto};

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
    /// Bytes counted by [`Early`](super::early::Early).
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

/// What the application gave to send, and how much of it the peer takes.
#[derive(Debug)]
pub(super) struct SendQueue {
    chunks: VecDeque<Chunk>,
    len: usize,
    sent: u64,
    /// All bytes the peer will ever take, as granted so far.
    limit: u64,
}

impl SendQueue {
    fn new(proto: Proto, version: Version, state: State) -> Self {
        let limit = match (proto, version, state) {
            (Proto::Tcp, Version::V2, State::Connecting) => u64::from(EARLY_DATA),
            (Proto::Tcp, Version::V2, _) => u64::from(INITIAL_WINDOW),
            _ => u64::MAX,
        };
        Self {
            chunks: VecDeque::new(),
            len: 0,
            sent: 0,
            limit,
        }
    }

    /// Bytes the peer takes beyond what is queued.
    pub(super) fn credit(&self) -> usize {
        let left = self.limit - self.sent - self.len as u64;
        usize::try_from(left).unwrap_or(usize::MAX)
    }

    /// The connection is made: the rest of the initial window is open.
    pub(super) fn establish(&mut self) {
        if self.limit != u64::MAX {
            self.limit += u64::from(INITIAL_WINDOW - EARLY_DATA);
        }
    }

    /// Adds credit. `None` when it can no longer be counted.
    pub(super) fn grant(&mut self, credit: u32) -> Option<()> {
        let limit = self.limit.checked_add(u64::from(credit))?;
        (limit <= i64::MAX as u64).then(|| self.limit = limit)
    }

    pub(super) fn push(&mut self, chunk: Chunk) {
        self.len += chunk.len();
        self.chunks.push_back(chunk);
    }

    /// Copies bytes in, behind those that wait in the last chunk where it has room.
    pub(super) fn push_slice(&mut self, mut bytes: &[u8], piece: usize) {
        self.len += bytes.len();
        let backlog = !self.chunks.is_empty();
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
            // No more room than there is data, so that a stream that waits holds at most twice its bytes.
            let room = match backlog {
                true => (piece - front.len()).min(self.len),
                false => 0,
            };
            self.chunks.push_back(Chunk::copied_with_room(front, room));
            bytes = rest;
        }
    }

    /// Takes at most `piece` bytes off the front.
    pub(super) fn pop(&mut self, piece: usize) -> Option<Chunk> {
        let front = self.chunks.front_mut()?;
        let chunk = if front.len() > piece {
            front.split_to(piece)
        } else {
            self.chunks.pop_front()?
        };
        self.len -= chunk.len();
        self.sent += chunk.len() as u64;
        if self.chunks.is_empty() && self.chunks.capacity() > 8 {
            // An idle stream holds next to no memory.
            self.chunks = VecDeque::new();
        }
        Some(chunk)
    }

    /// Drops the oldest chunk; says how many bytes that was.
    pub(super) fn drop_front(&mut self) -> Option<usize> {
        let len = self.chunks.pop_front()?.len();
        self.len -= len;
        Some(len)
    }

    /// Drops everything; says how many bytes that was.
    pub(super) fn clear(&mut self) -> usize {
        self.chunks = VecDeque::new();
        core::mem::take(&mut self.len)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes queued.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Messages queued, if each was pushed whole.
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Reason, Role, Session, Violation};
    use super::*;
    use crate::wire::Frame;

    /// It takes 2^31 messages to come this far, so the last of them is all that is played.
    #[test]
    fn more_credit_than_can_be_counted_resets_the_stream() {
        let now = Instant::default();
        let mut session = Session::new(Role::Opener, Version::V2, Config::default(), now);
        let streams = [1, 2].map(|port| session.open_tcp(port, now).unwrap());
        let most = i64::MAX as u64;
        let id = ClientId(1);
        session.streams.get_mut(streams[0]).unwrap().queue.limit = most - 5;
        let mut window = |credit| {
            let frame = Frame::<&[u8]>::Window { id, credit };
            session.handle_message(now, frame.to_bytes())
        };
        assert_eq!(window(5), Ok(()));
        assert_eq!(window(1), Err(Violation::CreditOverflow { id }));
        assert_eq!(window(1), Ok(()), "late");
        let reset = session.reset_of(streams[0]).unwrap();
        assert_eq!(reset.reason, Reason::Overflow);
        assert_eq!(session.reset_of(streams[1]), None);
    }
}
