//! The writing half: a bounded queue of frames.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, OpCode};
use tungstenite::protocol::{CloseFrame, Role};

use crate::budget::Charge;
use crate::close;
use crate::limits::{FREE_ALLOWANCE, HEADER_MAX, SCRATCH, SMALL, WRITE_BUFFER, WRITE_SLICES};
use crate::mask::apply_mask;
use crate::random::random;

/// Frames that wait to be written.
///
/// Parts of `queue` go first, then `scratch`. Small frames share a part, so few bytes are few
/// parts.
#[derive(Debug)]
pub(crate) struct Outbound {
    role: Role,
    queue: VecDeque<Bytes>,
    /// Headers and small frames. They are written last.
    scratch: BytesMut,
    /// Bytes in `queue` and `scratch`.
    queued: usize,
    charge: Charge,
    /// The account is exhausted: queue little.
    short_of_memory: bool,
    /// Bytes written in total.
    written: u64,
    /// The pong that answers the last ping. It replaces an earlier one that was not sent (RFC 6455
    /// section 5.5.3).
    pong: Option<Bytes>,
    /// The last pong is written completely once `written` reaches this.
    pong_end: u64,
    closed: bool,
    /// Data is queued that no caller will flush.
    owes: bool,
}

impl Outbound {
    pub(crate) fn new(role: Role) -> Self {
        Self {
            role,
            queue: VecDeque::new(),
            scratch: BytesMut::new(),
            queued: 0,
            charge: Charge::default(),
            short_of_memory: false,
            written: 0,
            pong: None,
            pong_end: 0,
            closed: false,
            owes: false,
        }
    }

    /// Queues the answer to a ping. Only one pong waits at a time; the next follows when it is
    /// written.
    pub(crate) fn answer(&mut self, ping: Bytes) {
        self.pong = Some(ping);
        self.owes = true;
    }

    /// Queues the close frame, which is the last frame.
    pub(crate) fn close(&mut self, frame: Option<&CloseFrame>) {
        if !self.closed {
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
            mask: (self.role == Role::Client).then(random),
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
                None => payload,
                Some(key) => masked(payload, key),
            });
        }
        self.account();
    }

    fn enqueue_scratch(&mut self) {
        if !self.scratch.is_empty() {
            self.queue.push_back(self.scratch.split().freeze());
        }
    }

    /// Writes queued data.
    pub(crate) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        loop {
            self.push_pong();
            if self.queued == 0 {
                break;
            }
            let written = ready!(self.poll_write(cx, socket))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        self.owes = false;
        if self.scratch.capacity() > SCRATCH {
            self.scratch = BytesMut::new();
        }
        Pin::new(socket).poll_flush(cx)
    }

    fn push_pong(&mut self) {
        if self.written >= self.pong_end {
            if let Some(payload) = self.pong.take() {
                self.push(OpCode::Control(Control::Pong), payload);
                self.pong_end = self.written + self.queued as u64;
            }
        }
    }

    fn poll_write(
        &self,
        cx: &mut Context<'_>,
        socket: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
        let mut count = 0;
        let parts = self.queue.iter().map(|part| &**part);
        let last = (!self.scratch.is_empty()).then_some(&*self.scratch);
        for (slice, part) in slices.iter_mut().zip(parts.chain(last)) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        let slices = slices.get(..count).unwrap_or_default();
        Pin::new(socket).poll_write_vectored(cx, slices)
    }

    fn advance(&mut self, mut written: usize) {
        self.queued -= written;
        self.written += written as u64;
        while let Some(front) = self.queue.front_mut().filter(|_| written > 0) {
            let part = written.min(front.len());
            front.advance(part);
            written -= part;
            if front.is_empty() {
                self.queue.pop_front();
            }
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

/// Masks in place if nobody else holds the payload: a message that was read behind headroom.
fn masked(payload: Bytes, key: [u8; 4]) -> Bytes {
    let owned = payload.try_into_mut();
    let mut owned = owned.unwrap_or_else(|shared| BytesMut::from(&*shared));
    apply_mask(&mut owned, key);
    owned.freeze()
}
