//! WebSocket messages on a socket, for bulk: read into, and written from, where they lie.
//!
//! The handshake, the frame headers, the messages and the errors are tungstenite's; only the buffers are
//! handled here. Its own stream zeroes its read buffer before every read and copies each message it sends,
//! which costs a role a fifth of its CPU time (ARCHITECTURE.md, "Choice of the WebSocket stack").

use std::collections::VecDeque;
use std::io::{self, Cursor, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{FrameHeader, Utf8Bytes};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::io::poll_read_buf;

use super::random::random;

/// Bytes that wait to be written before no more are taken.
const WRITE_BUFFER: usize = 128 << 10;
/// Least and most that one read asks for.
const READ_MIN: usize = 8 << 10;
const READ_MAX: usize = 128 << 10;
/// Payloads up to this are copied behind their header.
const SMALL: usize = 1024;
/// Parts written by one call.
const WRITE_SLICES: usize = 32;
/// RFC 6455 section 5.5.
const CONTROL_MAX: usize = 125;
const HEADER_MAX: usize = 14;

/// A WebSocket after its handshake: a `Stream` and `Sink` of messages.
///
/// Pings are answered, and the closing handshake is done, while it is polled as a stream.
#[derive(Debug)]
pub struct WebSocket<S> {
    socket: S,
    role: Role,
    message_max: usize,

    inbound: BytesMut,
    read_size: usize,
    /// What came of a message in several frames.
    partial: Option<(Data, BytesMut)>,
    received_close: bool,

    outbound: VecDeque<Bytes>,
    queued: usize,
    /// Headers and small frames are written here.
    scratch: BytesMut,
    /// The answer to the last ping; one before it that did not go out need not.
    pong: Option<Bytes>,
    sent_close: bool,
    /// Something was queued that the user does not know of.
    owes: bool,
}

impl<S> WebSocket<S> {
    /// Goes on where the handshake left `socket`, of which `read` was read already.
    ///
    /// A message of more than `message_max` bytes is an error.
    pub fn new(socket: S, read: Bytes, role: Role, message_max: usize) -> Self {
        Self {
            socket,
            role,
            message_max,
            inbound: read.into(),
            read_size: READ_MIN,
            partial: None,
            received_close: false,
            outbound: VecDeque::new(),
            queued: 0,
            scratch: BytesMut::new(),
            pong: None,
            sent_close: false,
            owes: false,
        }
    }

    /// Takes the next whole message off what was read. `Err` with the number of bytes still missing.
    fn next_message(&mut self) -> Result<Result<Message, usize>, Error> {
        loop {
            let mut cursor = Cursor::new(&self.inbound);
            let Some((header, len)) = FrameHeader::parse(&mut cursor)? else {
                return Ok(Err(1));
            };
            let header_len = cursor.position() as usize;
            let len = self.check(&header, len)?;
            let missing = (header_len + len).saturating_sub(self.inbound.len());
            if missing > 0 {
                return Ok(Err(missing));
            }
            self.inbound.advance(header_len);
            let mut payload = self.inbound.split_to(len);
            if let Some(key) = header.mask {
                apply_mask(&mut payload, key);
            }
            if len < self.read_size / 8 {
                // Kept by a reader who is in no hurry, it must not pin a read buffer of many times its size.
                payload = BytesMut::from(&*payload);
            }
            if let Some(message) = self.take_frame(&header, payload)? {
                return Ok(Ok(message));
            }
        }
    }

    /// Whether a frame may come here and now; its length.
    fn check(&self, header: &FrameHeader, len: u64) -> Result<usize, Error> {
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(ProtocolError::NonZeroReservedBits.into());
        }
        match (self.role, header.mask) {
            (Role::Server, None) => return Err(ProtocolError::UnmaskedFrameFromClient.into()),
            (Role::Client, Some(_)) => return Err(ProtocolError::MaskedFrameFromServer.into()),
            _ => {}
        }
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        match header.opcode {
            OpCode::Control(_) if !header.is_final => {
                Err(ProtocolError::FragmentedControlFrame.into())
            }
            OpCode::Control(_) if size > CONTROL_MAX => {
                Err(ProtocolError::ControlFrameTooBig.into())
            }
            OpCode::Control(_) => Ok(size),
            OpCode::Data(_) => {
                let before = self.partial.as_ref().map_or(0, |(_, before)| before.len());
                let size = size.saturating_add(before);
                let max_size = self.message_max;
                if size > max_size {
                    return Err(CapacityError::MessageTooLong { size, max_size }.into());
                }
                Ok(size - before)
            }
        }
    }

    fn take_frame(
        &mut self,
        header: &FrameHeader,
        payload: BytesMut,
    ) -> Result<Option<Message>, Error> {
        let kind = match header.opcode {
            OpCode::Control(control) => return self.take_control(control, payload).map(Some),
            OpCode::Data(kind) => kind,
        };
        let (kind, payload) = match (kind, self.partial.take()) {
            (Data::Continue, None) => {
                return Err(ProtocolError::UnexpectedContinueFrame.into());
            }
            (Data::Continue, Some((kind, mut before))) => {
                before.unsplit(payload);
                (kind, before)
            }
            (kind, None) => (kind, payload),
            (kind, Some(_)) => return Err(ProtocolError::ExpectedFragment(kind).into()),
        };
        if !header.is_final {
            self.partial = Some((kind, payload));
            return Ok(None);
        }
        let payload = payload.freeze();
        Ok(Some(match kind {
            Data::Text => Message::Text(text(payload)?),
            _ => Message::Binary(payload),
        }))
    }

    fn take_control(&mut self, control: Control, payload: BytesMut) -> Result<Message, Error> {
        let payload = payload.freeze();
        Ok(match control {
            Control::Ping => {
                // Copied, so that the answer does not pin the read buffer.
                self.pong = Some(Bytes::copy_from_slice(&payload));
                self.owes = true;
                Message::Ping(payload)
            }
            Control::Pong => Message::Pong(payload),
            _ => {
                let frame = close_frame(payload)?;
                self.received_close = true;
                self.send_close(frame.clone());
                self.owes = true;
                Message::Close(frame)
            }
        })
    }

    fn send_close(&mut self, frame: Option<CloseFrame>) {
        if !self.sent_close {
            let mut payload = BytesMut::new();
            if let Some(frame) = frame {
                payload.put_u16(frame.code.into());
                payload.put_slice(frame.reason.as_bytes());
            }
            self.push(OpCode::Control(Control::Close), payload.freeze());
            self.sent_close = true;
        }
    }

    /// Queues one frame. After a close frame there are no more.
    fn push(&mut self, opcode: OpCode, payload: Bytes) {
        if self.sent_close {
            return;
        }
        let header = FrameHeader {
            is_final: true,
            rsv1: false,
            rsv2: false,
            rsv3: false,
            opcode,
            mask: (self.role == Role::Client).then(random),
        };
        let small = payload.len() <= SMALL;
        let room = HEADER_MAX + if small { payload.len() } else { 0 };
        if self.scratch.capacity() - self.scratch.len() < room {
            self.scratch.reserve(room.max(READ_MIN));
        }
        // A buffer in memory takes everything.
        let _ = header.format(payload.len() as u64, &mut (&mut self.scratch).writer());
        if small {
            let start = self.scratch.len();
            self.scratch.put_slice(&payload);
            if let (Some(key), Some(copied)) = (header.mask, self.scratch.get_mut(start..)) {
                apply_mask(copied, key);
            }
        }
        self.enqueue_scratch();
        if !small {
            let payload = match header.mask {
                None => payload,
                Some(key) => {
                    // Nobody else holds a message that was read behind headroom.
                    let owned = payload.try_into_mut();
                    let mut owned = owned.unwrap_or_else(|shared| BytesMut::from(&*shared));
                    apply_mask(&mut owned, key);
                    owned.freeze()
                }
            };
            self.enqueue(payload);
        }
    }

    fn enqueue_scratch(&mut self) {
        let part = self.scratch.split().freeze();
        self.enqueue(part);
    }

    fn enqueue(&mut self, part: Bytes) {
        self.queued += part.len();
        self.outbound.push_back(part);
    }
}

impl<S: AsyncWrite + Unpin> WebSocket<S> {
    /// Writes what is queued.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(payload) = self.pong.take() {
            self.push(OpCode::Control(Control::Pong), payload);
        }
        while !self.outbound.is_empty() {
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
            let mut count = 0;
            for (slice, part) in slices.iter_mut().zip(&self.outbound) {
                *slice = IoSlice::new(part);
                count += 1;
            }
            let slices = slices.get(..count).unwrap_or_default();
            let written = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
            let mut written = ready!(written)?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.queued -= written;
            while let Some(front) = self.outbound.front_mut().filter(|_| written > 0) {
                let part = written.min(front.len());
                front.advance(part);
                written -= part;
                if front.is_empty() {
                    self.outbound.pop_front();
                }
            }
        }
        self.owes = false;
        Pin::new(&mut self.socket).poll_flush(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for WebSocket<S> {
    type Item = Result<Message, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.owes {
            let owed = this.poll_drain(cx)?;
            if this.received_close {
                ready!(owed);
            }
        }
        if this.received_close {
            return Poll::Ready(None);
        }
        loop {
            let missing = match this.next_message() {
                Ok(Ok(message)) => return Poll::Ready(Some(Ok(message))),
                Ok(Err(missing)) => missing,
                Err(error) => {
                    this.received_close = true;
                    return Poll::Ready(Some(Err(error)));
                }
            };
            // In proportion to what has come: a length alone costs the other side nothing.
            let wanted = this.read_size.max(missing.min(this.inbound.len()));
            if this.inbound.capacity() - this.inbound.len() < wanted.min(missing.max(READ_MIN)) {
                this.inbound.reserve(wanted);
            }
            let room = this.inbound.capacity() - this.inbound.len();
            let len = ready!(poll_read_buf(
                Pin::new(&mut this.socket),
                cx,
                &mut this.inbound
            ))?;
            if len == room {
                this.read_size = (this.read_size * 2).min(READ_MAX);
            } else if len < this.read_size / 4 {
                this.read_size = (this.read_size / 2).max(READ_MIN);
            }
            if len == 0 {
                this.received_close = true;
                let whole = this.inbound.is_empty() && this.partial.is_none();
                let reset = Error::Protocol(ProtocolError::ResetWithoutClosingHandshake);
                return Poll::Ready((!whole).then_some(Err(reset)));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sink<Message> for WebSocket<S> {
    type Error = Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.queued >= WRITE_BUFFER {
            let drained = self.poll_drain(cx)?;
            if drained.is_pending() && self.queued >= WRITE_BUFFER {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), Error> {
        let (opcode, payload) = match message {
            Message::Binary(payload) => (OpCode::Data(Data::Binary), payload),
            Message::Text(text) => (OpCode::Data(Data::Text), text.into()),
            Message::Ping(payload) => (OpCode::Control(Control::Ping), payload),
            Message::Pong(payload) => (OpCode::Control(Control::Pong), payload),
            Message::Close(frame) => {
                self.send_close(frame);
                return Ok(());
            }
            Message::Frame(_) => return Err(ProtocolError::InvalidOpcode(0).into()),
        };
        self.push(opcode, payload);
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll_drain(cx).map_err(Error::Io)
    }

    /// Sends a close frame (1001, going away) if none was; does not wait for the other side's.
    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.send_close(Some(CloseFrame {
            code: CloseCode::Away,
            reason: "".into(),
        }));
        self.poll_drain(cx).map_err(Error::Io)
    }
}

/// RFC 6455 section 5.3.
fn apply_mask(payload: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = payload.chunks_exact_mut(8);
    for word in &mut words {
        if let Ok(bytes) = <[u8; 8]>::try_from(&*word) {
            word.copy_from_slice(&(u64::from_ne_bytes(bytes) ^ wide).to_ne_bytes());
        }
    }
    let rest = words.into_remainder();
    for (byte, key) in rest.iter_mut().zip(key.into_iter().cycle()) {
        *byte ^= key;
    }
}

fn text(bytes: Bytes) -> Result<Utf8Bytes, Error> {
    Utf8Bytes::try_from(bytes).map_err(|error| Error::Utf8(error.to_string()))
}

fn close_frame(mut payload: Bytes) -> Result<Option<CloseFrame>, Error> {
    match payload.len() {
        0 => Ok(None),
        1 => Err(ProtocolError::InvalidCloseSequence.into()),
        _ => {
            let code = CloseCode::from(payload.get_u16());
            let reason = text(payload)?;
            Ok(Some(CloseFrame { code, reason }))
        }
    }
}
