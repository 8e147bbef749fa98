use alloc::collections::VecDeque;

use super::super::{EARLY_DATA, INITIAL_WINDOW, State, Version};
use crate::wire::{Chunk, Proto};

/// What the application gave to send, and how much of it the peer takes.
#[derive(Debug)]
pub(in crate::session) struct SendQueue {
    chunks: VecDeque<Chunk>,
    len: usize,
    sent: u64,
    /// All bytes the peer will ever take, as granted so far.
    limit: u64,
}

impl SendQueue {
    pub(in crate::session) fn new(proto: Proto, version: Version, state: State) -> Self {
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
    pub(in crate::session) fn credit(&self) -> usize {
        let left = self.limit - self.sent - self.len as u64;
        usize::try_from(left).unwrap_or(usize::MAX)
    }

    /// The connection is made: the rest of the initial window is open.
    pub(in crate::session) fn establish(&mut self) {
        if self.limit != u64::MAX {
            self.limit += u64::from(INITIAL_WINDOW - EARLY_DATA);
        }
    }

    /// Adds credit. `None` when it can no longer be counted.
    pub(in crate::session) fn grant(&mut self, credit: u32) -> Option<()> {
        let limit = self.limit.checked_add(u64::from(credit))?;
        (limit <= i64::MAX as u64).then(|| self.limit = limit)
    }

    pub(in crate::session) fn push(&mut self, chunk: Chunk) {
        self.len += chunk.len();
        self.chunks.push_back(chunk);
    }

    /// Copies bytes in, behind those that wait in the last chunk where it has room.
    pub(in crate::session) fn push_slice(&mut self, mut bytes: &[u8], piece: usize) {
        self.len += bytes.len();
        let queued = !self.chunks.is_empty();
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
            let room = match queued {
                true => (piece - front.len()).min(self.len),
                false => 0,
            };
            self.chunks.push_back(Chunk::copied_with_room(front, room));
            bytes = rest;
        }
    }

    /// Takes at most `piece` bytes off the front.
    pub(in crate::session) fn pop(&mut self, piece: usize) -> Option<Chunk> {
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
    pub(in crate::session) fn drop_front(&mut self) -> Option<usize> {
        let len = self.chunks.pop_front()?.len();
        self.len -= len;
        Some(len)
    }

    /// Drops everything; says how many bytes that was.
    pub(in crate::session) fn clear(&mut self) -> usize {
        self.chunks = VecDeque::new();
        core::mem::take(&mut self.len)
    }

    pub(in crate::session) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes queued.
    pub(in crate::session) fn len(&self) -> usize {
        self.len
    }

    /// Messages queued, if each was pushed whole.
    pub(in crate::session) fn chunks(&self) -> usize {
        self.chunks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Instant;
    use super::super::super::{Config, Reason, Role, Session, Violation};
    use super::*;
    use crate::wire::{ClientId, Frame};

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
