use alloc::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::super::pool::Pool;

/// Bytes that a stream has received and the application has not read.
///
/// Small payloads are copied together, so that they neither pin the transport's buffer nor use more
/// memory than their length.
#[derive(Debug, Default)]
pub(super) struct ReceiveBuffer {
    chunks: VecDeque<Bytes>,
    /// Small payloads after the last chunk.
    tail: BytesMut,
    len: usize,
}

impl ReceiveBuffer {
    /// Payloads below this are copied.
    const SMALL: usize = 4096;

    pub(super) fn push(&mut self, payload: Bytes, pool: &mut Pool) {
        self.len += payload.len();
        let before = self.pieces();
        let len = payload.len();
        if len < Self::SMALL {
            if self.tail.capacity() - self.tail.len() < payload.len() {
                self.cut_tail();
                let queued = !self.chunks.is_empty();
                let room = if queued { Self::SMALL } else { payload.len() };
                self.tail = BytesMut::with_capacity(room);
            }
            self.tail.extend_from_slice(&payload);
        } else {
            self.cut_tail();
            self.chunks.push_back(payload);
        }
        pool.add(self.pieces() - before, len);
    }

    /// Adds a datagram. It is never merged with another, and copied if it would pin much more than
    /// its size.
    pub(super) fn push_datagram(&mut self, payload: Bytes, pool: &mut Pool) {
        self.len += payload.len();
        pool.add(1, payload.len());
        self.chunks.push_back(if payload.len() < Self::SMALL {
            Bytes::copy_from_slice(&payload)
        } else {
            payload
        });
    }

    pub(super) fn pop(&mut self, pool: &mut Pool) -> Option<Bytes> {
        let chunk = match self.chunks.pop_front() {
            Some(chunk) => chunk,
            None if self.tail.is_empty() => return None,
            None => core::mem::take(&mut self.tail).freeze(),
        };
        self.len -= chunk.len();
        pool.remove(1, chunk.len());
        if self.chunks.is_empty() && self.chunks.capacity() > 8 {
            // An idle stream should hold little memory.
            self.chunks = VecDeque::new();
        }
        Some(chunk)
    }

    pub(super) fn clear(&mut self, pool: &mut Pool) {
        pool.remove(self.pieces(), self.len);
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
            let tail = core::mem::take(&mut self.tail).freeze();
            self.chunks.push_back(tail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_payloads_are_joined_and_order_is_kept() {
        let (mut buffer, mut pool) = (ReceiveBuffer::default(), Pool::new(0));
        let big = Bytes::from(alloc::vec![7; ReceiveBuffer::SMALL]);
        for part in [
            Bytes::from_static(b"ab"),
            Bytes::from_static(b"c"),
            big.clone(),
        ] {
            buffer.push(part, &mut pool);
        }
        for _ in 0..1000 {
            buffer.push(Bytes::from_static(b"x"), &mut pool);
        }
        assert_eq!(buffer.len(), 3 + big.len() + 1000);
        assert_eq!(pool.bytes(), buffer.len());
        let mut joined = BytesMut::new();
        let mut pieces = 0;
        while let Some(chunk) = buffer.pop(&mut pool) {
            joined.extend_from_slice(&chunk);
            pieces += 1;
        }
        assert!(joined.starts_with(b"abc\x07") && joined.ends_with(b"xxx"));
        assert!(pieces <= 4 && buffer.is_empty());
        assert!(pool.audit([(0, 0)].into_iter()));
    }
}
