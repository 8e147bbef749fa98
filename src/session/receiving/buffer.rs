use alloc::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// What a stream has received and the application has not read.
///
/// Small payloads are copied together, so that they neither pin the transport's buffer nor cost more
/// memory than the bytes they carry.
#[derive(Debug, Default)]
pub(in crate::session) struct ReceiveBuffer {
    chunks: VecDeque<Bytes>,
    /// Small payloads after the last chunk.
    tail: BytesMut,
    len: usize,
}

impl ReceiveBuffer {
    /// Payloads below this are copied.
    const SMALL: usize = 4096;

    pub(in crate::session) fn push(&mut self, payload: Bytes) {
        self.len += payload.len();
        if payload.len() < Self::SMALL {
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
    }

    /// A datagram: never merged with another, copied when it would pin much more than itself.
    pub(in crate::session) fn push_datagram(&mut self, payload: Bytes) {
        self.len += payload.len();
        self.chunks.push_back(if payload.len() < Self::SMALL {
            Bytes::copy_from_slice(&payload)
        } else {
            payload
        });
    }

    pub(in crate::session) fn pop(&mut self) -> Option<Bytes> {
        let chunk = match self.chunks.pop_front() {
            Some(chunk) => chunk,
            None if self.tail.is_empty() => return None,
            None => core::mem::take(&mut self.tail).freeze(),
        };
        self.len -= chunk.len();
        if self.chunks.is_empty() && self.chunks.capacity() > 8 {
            // An idle stream holds next to no memory.
            self.chunks = VecDeque::new();
        }
        Some(chunk)
    }

    pub(in crate::session) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Bytes held.
    pub(in crate::session) fn len(&self) -> usize {
        self.len
    }

    /// Datagrams held, if all that was pushed are datagrams.
    pub(in crate::session) fn datagrams(&self) -> usize {
        self.chunks.len()
    }

    pub(in crate::session) fn is_empty(&self) -> bool {
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
        let mut buffer = ReceiveBuffer::default();
        let big = Bytes::from(alloc::vec![7; ReceiveBuffer::SMALL]);
        for part in [
            Bytes::from_static(b"ab"),
            Bytes::from_static(b"c"),
            big.clone(),
        ] {
            buffer.push(part);
        }
        for _ in 0..1000 {
            buffer.push(Bytes::from_static(b"x"));
        }
        assert_eq!(buffer.len(), 3 + big.len() + 1000);
        let mut joined = BytesMut::new();
        let mut pieces = 0;
        while let Some(chunk) = buffer.pop() {
            joined.extend_from_slice(&chunk);
            pieces += 1;
        }
        assert!(joined.starts_with(b"abc\x07") && joined.ends_with(b"xxx"));
        assert!(pieces <= 4 && buffer.is_empty());
    }
}
