use alloc::collections::VecDeque;

use bytes::Bytes;

use super::super::budget::QueueBudget;
use crate::wire::{Chunk, HEADER_LEN};

/// Bytes that a stream has received and the application has not read.
///
/// Small payloads are copied together, so that they neither pin the transport's buffer nor use much
/// more memory than their length. One that comes alone, in memory of its own, stays where it is.
/// Each piece has headroom, unless it shares its memory: one that is sent on becomes a message
/// without a copy.
#[derive(Debug, Default)]
pub(super) struct ReceiveBuffer {
    chunks: VecDeque<Chunk>,
    /// Small payloads after the last chunk.
    tail: Chunk,
    len: usize,
}

impl ReceiveBuffer {
    /// Payloads below this are copied.
    const SMALL: usize = 4096;

    /// Adds the payload of a message. It is copied if it is small, or `copies`.
    pub(super) fn push(&mut self, message: Bytes, copies: bool, budget: &mut QueueBudget) {
        let payload = payload(&message);
        let len = payload.len();
        let before = self.pieces();
        self.len += len;
        if len < Self::SMALL {
            if self.tail.room() < len {
                self.cut_tail();
                self.tail = match self.chunks.is_empty() {
                    true => Chunk::small(message),
                    false => Chunk::copied_with_room(payload, Self::SMALL - len),
                };
            } else {
                self.tail.append(payload);
            }
        } else {
            self.cut_tail();
            self.chunks.push_back(match copies {
                true => Chunk::copied(payload),
                false => Chunk::received(message),
            });
        }
        budget.add(self.pieces() - before, len);
    }

    /// Adds a datagram. It is never merged with another, and copied if it would pin much more than
    /// its size, or `copies`.
    pub(super) fn push_datagram(&mut self, message: Bytes, copies: bool, budget: &mut QueueBudget) {
        let payload = payload(&message);
        self.len += payload.len();
        budget.add(1, payload.len());
        self.chunks
            .push_back(match copies || payload.len() < Self::SMALL {
                true => Chunk::copied(payload),
                false => Chunk::received(message),
            });
    }

    pub(super) fn pop(&mut self, budget: &mut QueueBudget) -> Option<Chunk> {
        let chunk = match self.chunks.pop_front() {
            Some(chunk) => chunk,
            None if self.tail.is_empty() => return None,
            None => core::mem::take(&mut self.tail),
        };
        self.len -= chunk.len();
        budget.remove(1, chunk.len());
        if self.chunks.is_empty() && self.chunks.capacity() > 8 {
            // An idle stream should hold little memory.
            self.chunks = VecDeque::new();
        }
        Some(chunk)
    }

    pub(super) fn clear(&mut self, budget: &mut QueueBudget) {
        budget.remove(self.pieces(), self.len);
        *self = Self::default();
    }

    /// Bytes held.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Pieces that [`pop`](Self::pop) would return: for a flow, datagrams.
    pub(super) fn pieces(&self) -> usize {
        self.chunks.len() + usize::from(!self.tail.is_empty())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.tail.is_empty()
    }

    fn cut_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(core::mem::take(&mut self.tail));
        }
    }
}

/// The payload of a message.
pub(in super::super) fn payload(message: &[u8]) -> &[u8] {
    message.get(HEADER_LEN..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use bytes::BytesMut;

    use super::*;
    use crate::wire::Header;

    /// A message with this payload.
    fn message(payload: &[u8]) -> Bytes {
        [&[3; HEADER_LEN], payload].concat().into()
    }

    #[test]
    fn small_payloads_are_joined_and_order_is_kept() {
        let (mut buffer, mut budget) = (ReceiveBuffer::default(), QueueBudget::new(0));
        let big = alloc::vec![7; ReceiveBuffer::SMALL];
        for part in [&b"ab"[..], b"c", &big] {
            buffer.push(message(part), false, &mut budget);
        }
        for _ in 0..1000 {
            buffer.push(message(b"x"), false, &mut budget);
        }
        assert_eq!(buffer.len(), 3 + big.len() + 1000);
        assert_eq!(budget.bytes(), buffer.len());
        let mut joined = Vec::new();
        let mut pieces = 0;
        while let Some(chunk) = buffer.pop(&mut budget) {
            joined.extend_from_slice(chunk.payload());
            pieces += 1;
        }
        assert!(joined.starts_with(b"abc\x07") && joined.ends_with(b"xxx"));
        assert!(pieces <= 4 && buffer.is_empty());
        assert!(budget.audit([(0, 0)].into_iter()));
    }

    #[test]
    fn a_small_payload_is_copied_only_if_others_hold_it_or_its_memory_is_large() {
        let own = || message(b"abc");
        let shared = own();
        // Any part of a large buffer of which nothing else is left.
        let part = |at: usize| {
            let mut read = BytesMut::zeroed(64 << 10);
            let _ = read.split_to(at);
            let mut part = read.split_to(own().len());
            part.copy_from_slice(&own());
            part.freeze()
        };
        let last = (64 << 10) - own().len();
        let cases = [
            (own(), false),
            (shared.clone(), true),
            (part(0), true),
            (part(1000), true),
            (part(last), true),
            (Bytes::from(alloc::vec![3; 64 << 10]).split_off(last), true),
        ];
        for (received, moves) in cases {
            let (mut buffer, mut budget) = (ReceiveBuffer::default(), QueueBudget::new(0));
            let place = received.as_ptr() as usize + HEADER_LEN;
            buffer.push(received, false, &mut budget);
            let payload = buffer.pop(&mut budget).unwrap().into_payload();
            assert_eq!(payload.len(), 3);
            assert_eq!(payload.as_ptr() as usize != place, moves);
        }
    }

    #[test]
    fn a_large_payload_is_copied_only_if_asked_or_if_somebody_else_holds_it() {
        let payload = alloc::vec![7; ReceiveBuffer::SMALL];
        for (copies, shared, moves) in [
            (false, false, false),
            (true, false, true),
            (false, true, true),
        ] {
            let (mut buffer, mut budget) = (ReceiveBuffer::default(), QueueBudget::new(0));
            let received = message(&payload);
            let held = shared.then(|| received.clone());
            let place = received.as_ptr();
            buffer.push(received, copies, &mut budget);
            let header = Header::from_bytes([3, 0, 0, 0, 0, 9, 0, 0]).unwrap();
            let sent = buffer.pop(&mut budget).unwrap().seal(header);
            assert_eq!(sent[..HEADER_LEN], header.to_bytes());
            assert_eq!(sent[HEADER_LEN..], payload);
            assert_eq!(sent.as_ptr() != place, moves);
            assert!(held.is_none_or(|held| held == message(&payload)));
        }
    }

    #[test]
    fn a_large_datagram_is_copied_only_if_asked() {
        let payload = alloc::vec![7; ReceiveBuffer::SMALL];
        for copies in [false, true] {
            let (mut buffer, mut budget) = (ReceiveBuffer::default(), QueueBudget::new(0));
            let received = message(&payload);
            let place = received.as_ptr() as usize + HEADER_LEN;
            buffer.push_datagram(received, copies, &mut budget);
            let datagram = buffer.pop(&mut budget).unwrap().into_payload();
            assert_eq!(datagram, payload);
            assert_eq!(datagram.as_ptr() as usize != place, copies);
        }
    }
}
