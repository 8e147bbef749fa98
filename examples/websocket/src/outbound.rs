//! The writing half: a bounded queue of frames.

use std::cell::Cell;
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::{iter, mem};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, OpCode};
use tungstenite::protocol::{CloseFrame, Role};

use crate::budget::Charge;
use crate::close;
use crate::limits::{
    FREE_ALLOWANCE, HEADER_MAX, MASKED_MAX, PONGS_MAX, SCRATCH, SMALL, WRITE_BUFFER, WRITE_SLICES,
};
use crate::mask::{apply_mask, copy_masked};

/// Frames that wait to be written.
///
/// Parts of `queue` go first, then `scratch`. Small frames share a part, so few bytes are few
/// parts.
#[derive(Debug)]
pub(crate) struct Outbound {
    role: Role,
    keys: MaskKeys,
    queue: VecDeque<Part>,
    /// Headers and small frames. They are written last.
    scratch: BytesMut,
    /// Bytes in `queue` and `scratch`.
    queued: usize,
    /// What is masked of the shared payloads that go first.
    masked: Masked,
    charge: Charge,
    /// The account is exhausted: queue little.
    short_of_memory: bool,
    /// Bytes written in total.
    written: u64,
    /// The pong that answers the last ping, not queued yet.
    pong: Option<Bytes>,
    /// Pongs queued since those before were all written.
    pongs: usize,
    /// Value of `written` at which all queued pongs are on the wire.
    pong_end: u64,
    closed: bool,
    /// Data is queued that no caller will flush.
    owes: bool,
}

impl Outbound {
    pub(crate) fn new(role: Role) -> Self {
        Self {
            role,
            keys: MaskKeys::default(),
            queue: VecDeque::new(),
            scratch: BytesMut::new(),
            queued: 0,
            masked: Masked::default(),
            charge: Charge::default(),
            short_of_memory: false,
            written: 0,
            pong: None,
            pongs: 0,
            pong_end: 0,
            closed: false,
            owes: false,
        }
    }

    /// Answers a ping with the next write. If many pongs wait, this one replaces the last of them
    /// (RFC 6455 section 5.5.3), so the last place in the queue is left to it.
    pub(crate) fn answer(&mut self, ping: Bytes) {
        self.push_pong(PONGS_MAX - 1);
        self.pong = Some(ping);
        self.owes = true;
    }

    /// Queues the close frame, which is the last frame.
    pub(crate) fn close(&mut self, frame: Option<&CloseFrame>) {
        if !self.closed {
            self.push_pong(PONGS_MAX);
            self.push(OpCode::Control(Control::Close), close::payload(frame));
            self.closed = true;
            self.owes = true;
        }
    }

    /// Queues one frame. After a close frame none is queued.
    pub(crate) fn push(&mut self, opcode: OpCode, payload: Bytes) {
        if self.closed {
            return;
        }
        let header = FrameHeader {
            opcode,
            mask: (self.role == Role::Client).then(|| self.keys.next()),
            ..FrameHeader::default()
        };
        let small = payload.len() <= SMALL;
        let room = HEADER_MAX + if small { payload.len() } else { 0 };
        if self.scratch.capacity() - self.scratch.len() < room {
            self.enqueue_scratch();
            self.scratch.reserve(room.max(SCRATCH));
        }
        let start = self.scratch.len();
        // Writing into a buffer in memory cannot fail.
        let _ = header.format(payload.len() as u64, &mut (&mut self.scratch).writer());
        if small {
            let body = self.scratch.len();
            self.scratch.put_slice(&payload);
            if let (Some(key), Some(copied)) = (header.mask, self.scratch.get_mut(body..)) {
                apply_mask(copied, key);
            }
        }
        self.queued += self.scratch.len() - start;
        if !small {
            self.enqueue_scratch();
            self.queued += payload.len();
            self.queue.push_back(match header.mask {
                None => Part::Ready(payload),
                Some(key) => Part::masked(payload, key),
            });
        }
        self.account();
    }

    fn enqueue_scratch(&mut self) {
        if !self.scratch.is_empty() {
            let part = Part::Ready(self.scratch.split().freeze());
            self.queue.push_back(part);
        }
    }

    /// Writes queued data.
    pub(crate) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        loop {
            self.push_pong(PONGS_MAX);
            if self.queued == 0 {
                break;
            }
            let written = ready!(self.poll_write(cx, socket))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        if self.scratch.capacity() > SCRATCH {
            self.scratch = BytesMut::new();
        }
        // A socket with a buffer of its own, such as TLS, may have accepted what it has not sent.
        ready!(Pin::new(socket).poll_flush(cx))?;
        self.owes = false;
        Poll::Ready(Ok(()))
    }

    /// Queues the last pong, unless `most` are queued already.
    fn push_pong(&mut self, most: usize) {
        if self.written >= self.pong_end {
            self.pongs = 0;
        }
        if self.pongs < most {
            if let Some(payload) = self.pong.take() {
                self.push(OpCode::Control(Control::Pong), payload);
                self.pongs += 1;
                self.pong_end = self.written + self.queued as u64;
            }
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<usize>> {
        if self.queue.is_empty() {
            return Pin::new(socket).poll_write(cx, &self.scratch);
        }
        if self.masked.rest().is_empty() {
            self.mask();
        }
        let mut masked = self.masked.rest();
        let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
        let mut count = 0;
        let mut whole = true;
        let parts = self.queue.iter().map(|part| match part {
            Part::Ready(bytes) => (&bytes[..], true),
            Part::Shared { payload, .. } => {
                let (copy, others) = masked.split_at(payload.len().min(masked.len()));
                masked = others;
                (copy, copy.len() == payload.len())
            }
        });
        let last = (!self.scratch.is_empty()).then_some((&*self.scratch, true));
        for (slice, (part, is_whole)) in slices.iter_mut().zip(parts.chain(last)) {
            if !whole {
                break;
            }
            whole = is_whole;
            *slice = IoSlice::new(part);
            count += 1;
        }
        let slices = slices.get(..count).unwrap_or_default();
        Pin::new(socket).poll_write_vectored(cx, slices)
    }

    /// Copies the first shared payloads, as many as fit, and masks the copies. A long one alone is
    /// copied in part: a write that ends within a payload costs a segment more.
    fn mask(&mut self) {
        let mut shared = self.queue.iter().take(WRITE_SLICES).filter_map(|part| {
            let Part::Shared { payload, key } = part else {
                return None;
            };
            Some((payload, *key))
        });
        let Some(first) = shared.next() else {
            return;
        };
        let mut bytes = MASKED.take();
        let mut end = 0;
        for (payload, key) in iter::once(first).chain(shared) {
            let start = end;
            if start > 0 && payload.len() > MASKED_MAX - start {
                break;
            }
            let payload = payload.get(..MASKED_MAX - start).unwrap_or(payload);
            end += payload.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            if let Some(copy) = bytes.get_mut(start..end) {
                copy_masked(payload, key, copy);
            }
        }
        self.masked = Masked { bytes, at: 0, end };
    }

    fn advance(&mut self, mut written: usize) {
        self.queued -= written;
        self.written += written as u64;
        while let Some(front) = self.queue.front_mut().filter(|_| written > 0) {
            let part = written.min(front.len());
            if let Part::Shared { .. } = front {
                self.masked.at += part;
            }
            front.advance(part);
            written -= part;
            if front.len() == 0 {
                self.queue.pop_front();
            }
        }
        if self.masked.rest().is_empty() {
            self.masked.release();
        }
        self.scratch.advance(written);
        self.account();
    }

    fn account(&mut self) {
        self.short_of_memory = !self.charge.hold(self.queued);
    }

    /// Memory held now is charged with the next frame.
    pub(crate) fn charge_to(&mut self, charge: Charge) {
        self.charge = charge;
    }

    /// More data waits than is accepted before some of it is written.
    pub(crate) fn is_full(&self) -> bool {
        let most = match self.short_of_memory {
            false => WRITE_BUFFER,
            true => FREE_ALLOWANCE,
        };
        self.queued >= most
    }

    /// Whether there is data to write that no caller will flush.
    pub(crate) fn owes(&self) -> bool {
        self.owes
    }
}

/// Unpredictable keys, one for each frame (RFC 6455 section 5.3).
///
/// The standard library keys its hash maps from the operating system, by a system call. That works
/// in an empty root directory too, where `/dev/urandom` is missing. A keyed hash under a new key
/// each time is as unpredictable as the key, and neither of its halves tells the other.
#[derive(Debug, Default)]
struct MaskKeys {
    other_half: Option<[u8; 4]>,
}

impl MaskKeys {
    fn next(&mut self) -> [u8; 4] {
        if let Some(key) = self.other_half.take() {
            return key;
        }
        let [a, b, c, d, e, f, g, h] = RandomState::new().hash_one(()).to_le_bytes();
        self.other_half = Some([e, f, g, h]);
        [a, b, c, d]
    }
}

/// Masked copies of payloads. What a write leaves over is kept for the next one, so that each byte
/// is masked once.
#[derive(Debug, Default)]
struct Masked {
    bytes: Vec<u8>,
    at: usize,
    end: usize,
}

impl Masked {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.at..self.end).unwrap_or_default()
    }

    /// Gives the memory to the thread's next WebSocket that writes.
    fn release(&mut self) {
        let Self { bytes, .. } = mem::take(self);
        if bytes.capacity() > 0 {
            MASKED.set(bytes);
        }
    }
}

thread_local! {
    /// Memory for masked copies. The WebSockets of a thread share it, so it stays in the cache and
    /// an idle one holds nothing. It never shrinks: old bytes are overwritten. One whose socket is
    /// full keeps it, and the next one takes new memory.
    static MASKED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes of a frame, or of several.
#[derive(Debug)]
enum Part {
    Ready(Bytes),
    /// Somebody else holds this payload too, for instance to send it again. A copy is masked before
    /// it is written.
    Shared {
        payload: Bytes,
        key: [u8; 4],
    },
}

impl Part {
    /// Masks in place if nobody else holds the payload: a message that was read behind headroom.
    fn masked(payload: Bytes, key: [u8; 4]) -> Self {
        match payload.try_into_mut() {
            Ok(mut owned) => {
                apply_mask(&mut owned, key);
                Self::Ready(owned.freeze())
            }
            Err(payload) => Self::Shared { payload, key },
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Ready(bytes) | Self::Shared { payload: bytes, .. } => bytes.len(),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Ready(bytes) => bytes.advance(count),
            Self::Shared { payload, key } => {
                payload.advance(count);
                key.rotate_left(count % 4);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::task::Waker;

    use tungstenite::protocol::frame::coding::Data;

    use super::*;

    /// Bytes of the header of a short frame before its key.
    const HEADER: usize = 2;

    /// Takes a few bytes of a few slices at a time.
    struct Narrow {
        taken: Vec<u8>,
        most: usize,
        /// Where the last slice of each write ended.
        ends: Vec<*const u8>,
    }

    impl Narrow {
        fn taking(most: usize) -> Self {
            Self {
                taken: Vec::new(),
                most,
                ends: Vec::new(),
            }
        }
    }

    impl AsyncWrite for Narrow {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let end = slices.last().map(|slice| slice.as_ptr_range().end);
            self.ends.extend(end);
            let all = slices.iter().flat_map(|slice| slice.iter().copied());
            let before = self.taken.len();
            let most = self.most;
            self.taken.extend(all.take(most));
            Poll::Ready(Ok(self.taken.len() - before))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn unframed(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut payloads = Vec::new();
        while !bytes.is_empty() {
            let mut cursor = io::Cursor::new(bytes);
            let (header, len) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
            let start = usize::try_from(cursor.position()).unwrap();
            let end = start + usize::try_from(len).unwrap();
            let mut payload = bytes.get(start..end).unwrap().to_vec();
            apply_mask(&mut payload, header.mask.unwrap());
            payloads.push(payload);
            bytes = bytes.get(end..).unwrap();
        }
        payloads
    }

    #[test]
    fn each_frame_has_a_key_of_its_own() {
        let mut outbound = Outbound::new(Role::Client);
        for _ in 0..100 {
            // The key itself.
            let zeros = Bytes::from_static(&[0; 4]);
            outbound.push(OpCode::Data(Data::Binary), zeros);
        }
        let frames = outbound.scratch.chunks_exact(HEADER + 8);
        let keys: HashSet<_> = frames.map(|frame| frame.get(HEADER..).unwrap()).collect();
        assert_eq!(keys.len(), 100);
    }

    #[test]
    fn payloads_that_somebody_else_holds_arrive_whole_and_stay_as_they_are() {
        let lens = [70_000, 10, 2_000, 300_000, 1_025, 200_000, 5, 66_000];
        let made = |(seed, len): (usize, usize)| -> Vec<u8> {
            (0..len)
                .map(|at| (at * 7 + seed * 13 + (at >> 8)) as u8)
                .collect()
        };
        let payloads: Vec<Vec<u8>> = lens.into_iter().enumerate().map(made).collect();
        for most in [1_001, 4_099, 65_537, 1 << 20] {
            let mut outbound = Outbound::new(Role::Client);
            let mut kept = Vec::new();
            for (number, payload) in payloads.iter().enumerate() {
                let payload = Bytes::from(payload.clone());
                if number % 3 != 2 {
                    kept.push((number, payload.clone()));
                }
                outbound.push(OpCode::Data(Data::Binary), payload);
            }
            let mut socket = Narrow::taking(most);
            let mut cx = Context::from_waker(Waker::noop());
            assert!(outbound.poll_drain(&mut cx, &mut socket).is_ready());
            assert!(unframed(&socket.taken) == payloads, "{most}");
            assert!(
                kept.iter()
                    .all(|(number, held)| payloads.get(*number).unwrap() == held)
            );
        }
    }

    #[test]
    fn a_write_ends_with_a_payload_unless_one_alone_is_too_long() {
        let mut outbound = Outbound::new(Role::Client);
        let payload = Bytes::from(vec![7; 70_000]);
        for _ in 0..3 {
            outbound.push(OpCode::Data(Data::Binary), payload.clone());
        }
        let mut socket = Narrow::taking(usize::MAX);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(outbound.poll_drain(&mut cx, &mut socket).is_ready());
        assert!(
            unframed(&socket.taken)
                .iter()
                .all(|taken| *taken == payload)
        );
        assert_eq!(socket.ends.len(), 3);
    }

    #[test]
    fn what_a_write_leaves_over_is_not_masked_again() {
        let mut outbound = Outbound::new(Role::Client);
        let payload = Bytes::from(vec![7; 100_000]);
        outbound.push(OpCode::Data(Data::Binary), payload.clone());
        let mut socket = Narrow::taking(1000);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(outbound.poll_drain(&mut cx, &mut socket).is_ready());
        assert_eq!(unframed(&socket.taken), [payload]);
        // A copy made for each write would begin where the first did, and end earlier.
        assert!(socket.ends.len() > 100);
        assert!(socket.ends.windows(2).all(|ends| ends[0] == ends[1]));
        assert_eq!(outbound.masked.bytes.capacity(), 0);
    }
}
